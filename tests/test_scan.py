"""Reading head scans: series, slices, geometry and HU of DICOM folders; CTs and masks in files; refused inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import copy, copytree

import numpy as np
import pytest
import SimpleITK as sitk
from phantom import ROOT, SECRETS, write_dicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from pcdiff.errors import InputError
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.scan import Scan, input_digest, read_scan
from pcdiff.imaging.volumes import read_volume, write_volume

SHAPE = (13, 11, 18)
TURNS = {
    "supine": np.eye(3),
    "prone": np.diag([-1.0, -1.0, 1.0]),
    "feet first": np.diag([-1.0, 1.0, -1.0]),
    "stacked from above": np.diag([1.0, 1.0, -1.0]),
    "coronal": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "oblique": np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0],
}


def ct(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Random whole HU: air, tissue, bone and metal."""
    return np.random.default_rng(0).integers(-1000, 3071, shape).astype(np.int16)


def grid(turn: np.ndarray | None = None, shear: float = 0.0) -> np.ndarray:
    """(4, 4): 0.7 x 0.8 x 1.25 mm; shear: mm by which each slice is shifted along the columns."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag([0.7, 0.8, 1.25])
    affine[1, 2] = shear
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ affine[:3, :3]
    affine[:3, 3] = -12.5, 31.25, 7.75
    return affine


def same_places(scan: Scan, hu: np.ndarray, affine: np.ndarray) -> None:
    """Every voxel has its HU at the same place in millimetres."""
    assert scan.values.dtype == np.int16
    assert scan.values.size == hu.size
    index = np.argwhere(np.ones(scan.values.shape, bool))
    places = Volume(scan.values > 0, scan.affine).to_mm(index)
    there = Volume(hu > 0, affine).to_index(places)
    np.testing.assert_allclose(there, np.rint(there), atol=1e-4)
    np.testing.assert_array_equal(scan.values[tuple(index.T)], hu[tuple(np.rint(there).astype(int).T)])


def refused(path: Path, reason: str, series: str | None = None) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        read_scan(path, series)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    assert not any(secret in str(caught.value) for secret in SECRETS.values())


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
@pytest.mark.parametrize("shear", [0.0, 0.5])
def test_dicom_voxels_lie_where_they_were_scanned(tmp_path: Path, turn: np.ndarray, shear: float) -> None:
    affine = grid(turn, shear)
    write_dicom(tmp_path / "a", ct(), affine)
    scan = read_scan(tmp_path / "a")
    same_places(scan, ct(), affine)
    assert scan.is_ct
    assert scan.format == "DICOM"
    assert scan.notes == ()
    assert scan.tilt == pytest.approx(np.degrees(np.arctan2(shear, 1.25)), abs=1e-3)


@pytest.mark.parametrize("stored", [{"signed": True, "intercept": 0}, {"intercept": -1024}, {"compressed": True}])
def test_hu_in_every_pixel_representation(tmp_path: Path, stored: dict) -> None:
    write_dicom(tmp_path, ct(), grid(), **stored)
    same_places(read_scan(tmp_path), ct(), grid())


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    write_dicom(tmp_path, ct(), grid(), slope=0.5, intercept=-1000.5)
    # HU that end in a half are rounded to even
    assert np.abs(read_scan(tmp_path).values.astype(int) - ct()).max() <= 1
    write_dicom(tmp_path / "b", ct() // 2 * 2, grid(), slope=2, intercept=-1000)
    same_places(read_scan(tmp_path / "b"), ct() // 2 * 2, grid())


def test_names_order_and_copies_of_files_do_not_matter(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a", ct(), grid())
    (tmp_path / "a" / "README.TXT").write_text("burnt by the viewer")
    for number, path in enumerate(sorted((tmp_path / "a").glob("IM*"), reverse=True)):
        folder = tmp_path / "b" / f"S{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        copy(path, folder / f"{number:05d}.dcm")
    a, b = read_scan(tmp_path / "a"), read_scan(tmp_path / "b")
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(a.affine, b.affine)
    assert input_digest(tmp_path / "a") == input_digest(tmp_path / "b")
    copytree(tmp_path / "b" / "S1", tmp_path / "b" / "again")
    np.testing.assert_array_equal(a.values, read_scan(tmp_path / "b").values)
    write_dicom(tmp_path / "c", ct() + 1, grid())
    assert input_digest(tmp_path / "a") != input_digest(tmp_path / "c")


def test_slice_thickness_is_the_larger_of_header_and_distance(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a", ct(), grid(), SliceThickness="3.0")
    assert read_scan(tmp_path / "a").slice_thickness == 3.0
    write_dicom(tmp_path / "b", ct(), grid(shear=0.5), SliceThickness="0.6")
    assert read_scan(tmp_path / "b").slice_thickness == pytest.approx(1.25)


def test_the_only_ct_among_other_series_is_used(tmp_path: Path) -> None:
    write_dicom(tmp_path, ct((20, 20, 3)), grid(), series=1, ImageType=["DERIVED", "PRIMARY", "LOCALIZER"])
    write_dicom(tmp_path, ct(), grid(), series=2)
    write_dicom(tmp_path, ct((20, 20, 20)), grid(), series=3, Modality="MR")
    write_dicom(tmp_path, ct((20, 20, 4)), grid(), series=4)
    scan = read_scan(tmp_path)
    same_places(scan, ct(), grid())
    assert len(scan.notes) == 1
    assert scan.notes[0].startswith("series 2 of 4 taken")
    for reason in ("a localiser", "MR, not CT", "too few", "H60s"):
        assert reason in scan.notes[0]
    assert not any(secret in scan.notes[0] for secret in SECRETS.values())
    refused(tmp_path, "series 1 cannot be used", "1")


def test_several_cts_are_listed_and_chosen(tmp_path: Path) -> None:
    write_dicom(tmp_path, ct(), grid(), series=4)
    write_dicom(tmp_path, ct() - 1, grid(), series=11, ConvolutionKernel="Mustermann^E")
    refused(
        tmp_path,
        r"choose one with --series N: 1: 18 slices of 13x11, 0.70 mm by 1.25 mm, kernel H60s; 2: 18 .* mm$",
    )
    same_places(read_scan(tmp_path, "1"), ct(), grid())
    same_places(read_scan(tmp_path, "2"), ct() - 1, grid())
    same_places(read_scan(tmp_path, f"{ROOT}11"), ct() - 1, grid())
    for wrong in ("0", "3", "1.2.3", "bone"):
        refused(tmp_path, "names 0 of its series", wrong)


def test_missing_slices_are_refused_with_their_position(tmp_path: Path) -> None:
    paths = write_dicom(tmp_path, ct(), grid())
    paths[6].unlink()
    refused(tmp_path, r"1 slice is missing between slice 6 and 7 of 17, z = 14.0 and 16.5 mm")
    paths[7].unlink()
    refused(tmp_path, r"2 slices are missing between slice 6 and 7 of 16, z = 14.0 and 17.8 mm")


def test_slices_that_are_no_stack_are_refused(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a", ct(), grid())
    write_dicom(tmp_path / "a" / "twice", ct() + 1, grid(), SOPInstanceUID="")
    refused(tmp_path / "a", "two slices at one position between slice 1 and 2 of 36")
    write_dicom(tmp_path / "b", ct(), grid())
    shifted = grid()
    shifted[0, 3] += 3
    moved = write_dicom(tmp_path / "c", ct(), shifted)
    copy(moved[9], tmp_path / "b" / next(path.name for path in [moved[9]]))
    refused(tmp_path / "b", "slice 10 of 18, .* mm beside the line")


def test_folders_without_a_ct_are_refused(tmp_path: Path) -> None:
    write_dicom(tmp_path / "mr", ct(), grid(), Modality="MR")
    refused(tmp_path / "mr", r"expected a CT of a head in slices, got 1: 18 slices of 13x11 \(MR, not CT\)")
    write_dicom(tmp_path / "water", np.full(SHAPE, 40, np.int16), grid())
    refused(tmp_path / "water", "expected a CT in HU")
    write_dicom(tmp_path / "bare", ct(), grid(), ImagePositionPatient=None)
    refused(tmp_path / "bare", "without position")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("hello")
    refused(tmp_path / "text", "expected a folder of DICOM files, got 1 other file;")
    refused(tmp_path / "nothing", "found none")


def test_damaged_files_give_one_line(tmp_path: Path) -> None:
    path = write_dicom(tmp_path, ct(), grid())[3]
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) - 2 * 13 * 11 - 4, 600):
        path.write_bytes(whole[:length])
        refused_file(tmp_path, path)
    path.write_bytes(whole[:132] + bytes(range(256)) * 4)  # no longer a CT: the slice is missing
    refused(tmp_path, "1 slice is missing between slice 3 and 4")
    path.write_bytes(whole[:64])
    refused(tmp_path, "1 slice is missing between slice 3 and 4")


def test_a_disc_with_an_index_is_read(tmp_path: Path) -> None:
    write_dicom(tmp_path / "DICOM", ct(), grid())
    meta, index, record = FileMetaDataset(), Dataset(), Dataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MediaStorageDirectoryStorage, f"{ROOT}0"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    record.DirectoryRecordType, record.ReferencedSOPClassUIDInFile = "IMAGE", CTImageStorage
    record.ReferencedFileID, record.SOPClassUID = ["DICOM", "IM010000"], CTImageStorage
    index.DirectoryRecordSequence, index.file_meta = [record], meta
    index.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    for scan in (tmp_path, tmp_path / "DICOMDIR"):
        same_places(read_scan(scan), ct(), grid())


def refused_file(folder: Path, path: Path) -> None:
    with pytest.raises(InputError, match="truncated or damaged") as caught:
        read_scan(folder)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dicom(tmp_path, ct(), grid())
    for limit, value in (
        ("imaging.formats.dicom_files.MAX_FILES", 17),
        ("imaging.formats.dicom_header.MAX_BYTES", 100),
        ("imaging.scan.MAX_CT_VOXELS", 2573),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"pcdiff.{limit}", value)
            with pytest.raises(InputError):
                read_scan(tmp_path)
    read_scan(tmp_path)


def save(values: np.ndarray, path: Path) -> Path:
    image = sitk.GetImageFromArray(values.T)
    image.SetSpacing([0.7, 0.8, 1.25])
    image.SetOrigin([-12.5, 31.25, 7.75])
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize(
    ("name", "form"), [("a.nrrd", "NRRD"), ("a.nii.gz", "NIfTI"), ("a.nii", "NIfTI"), ("a.mha", "MetaImage")]
)
@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_a_ct_in_a_file(tmp_path: Path, name: str, form: str, kind: type) -> None:
    scan = read_scan(save(ct().astype(kind), tmp_path / name))
    assert scan.format == form
    np.testing.assert_allclose(scan.affine, grid(), atol=1e-5)
    np.testing.assert_array_equal(scan.values, ct())


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    for number, name in enumerate(("a.nrrd", "a.nii.gz", "a.nii", "a.mha")):
        path = save(ct(), tmp_path / name)
        for other in ("scan", "scan.nrrd", "scan.nii.gz", "scan.dcm", f"scan{number}.mha"):
            np.testing.assert_array_equal(read_scan(path.rename(tmp_path / other)).values, ct())
            path = tmp_path / other


def test_nifti_scaling_gives_hu(tmp_path: Path) -> None:
    path = save(((ct() // 2 * 2 + 1024) // 2).astype(np.int16), tmp_path / "a.nii")
    head = bytearray(path.read_bytes())
    head[112:120] = np.array([2.0, -1024.0], "<f4").tobytes()
    path.write_bytes(head)
    np.testing.assert_array_equal(read_scan(path).values, ct() // 2 * 2)


def test_a_file_without_patient_axes_is_read_with_a_note(tmp_path: Path) -> None:
    path = save(ct(), tmp_path / "a.nii")
    assert read_scan(path).notes == ()
    head = bytearray(path.read_bytes())
    head[252:256] = bytes(4)  # neither qform nor sform
    path.write_bytes(head)
    assert "RAS axes are assumed" in read_scan(path).notes[0]
    path = save(ct(), tmp_path / "b.nrrd")
    assert read_scan(path).notes == ()
    whole = path.read_bytes().replace(b"space: left-posterior-superior", b"space dimension: 3")
    path.write_bytes(whole)
    assert "LPS is assumed" in read_scan(path).notes[0]


def test_nan_is_air(tmp_path: Path) -> None:
    values = ct().astype(np.float32)
    values[3, 4, 5] = np.nan
    assert read_scan(save(values, tmp_path / "a.nrrd")).values[3, 4, 5] == -1024


@pytest.mark.parametrize("value", [1, 255, -7])
def test_a_mask_is_read_as_by_read_volume(tmp_path: Path, value: int) -> None:
    path = save(((ct() > 1000) * value).astype(np.int16), tmp_path / "a.nrrd")
    scan, volume = read_scan(path), read_volume(path)
    assert not scan.is_ct
    assert scan.values.dtype == bool
    assert scan.format == "NRRD"
    np.testing.assert_array_equal(scan.values, volume.mask)
    np.testing.assert_array_equal(scan.affine, volume.affine)
    write_volume(volume, tmp_path / "b.nrrd")
    write_volume(Volume(scan.values, scan.affine, scan.header), tmp_path / "c.nrrd")
    assert (tmp_path / "b.nrrd").read_bytes() == (tmp_path / "c.nrrd").read_bytes()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (lambda hu: (hu > 0).astype(np.int16) + (hu > 1000), "expected a mask with two values"),
        (lambda hu: hu + 1024, "values of 24 to 4094; subtract 1024"),
        (lambda hu: np.abs(hu) * 5, "values of 0 to 15350; export it in HU"),
        (lambda hu: np.minimum(hu, 90), "values of -1000 to 90"),
        (lambda hu: hu * 0 + 7, "every voxel is 7"),
    ],
)
def test_files_that_are_neither_ct_nor_mask_are_refused(
    tmp_path: Path, values: Callable[[np.ndarray], np.ndarray], reason: str
) -> None:
    refused(save(values(ct()).astype(np.int16), tmp_path / "a.nrrd"), reason)
    refused(save(ct(), tmp_path / "b.nrrd"), "--series chooses in a DICOM folder", "1")
