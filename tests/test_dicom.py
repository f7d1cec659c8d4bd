"""DICOM as scanners, anonymisers and archives leave it: which slices are one CT, where they lie, and what they hold."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from phantom import ROOT, SECRETS, write_dicom, write_enhanced
from PIL import Image
from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from test_scan import SHAPE, ct, grid, refused, same_places

from pcdiff.errors import InputError
from pcdiff.imaging.formats import dicom, dicom_pixels
from pcdiff.imaging.scan import input_digest, read_scan

Change = Callable[[Dataset, int], None]  # data set, number of the slice from below


def changed(folder: Path, change: Change, hu: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    """A DICOM folder whose slices have been changed one by one."""
    for k, path in enumerate(write_dicom(folder, ct() if hu is None else hu, grid() if affine is None else affine)):
        data = dcmread(path)
        change(data, k)
        data.save_as(path)
    return folder


def setting(**values: Callable[[int], object]) -> Change:
    """A change that sets attributes to functions of the number of the slice."""

    def change(data: Dataset, k: int) -> None:
        for name, value in values.items():
            setattr(data, name, value(k))

    return change


@pytest.mark.parametrize("step", [0.625, 0.43])
def test_positions_that_were_rounded_are_one_stack(tmp_path: Path, step: float) -> None:
    affine = grid()
    affine[2, 2] = step
    hu, heights = ct((13, 11, 60)), 7.75 + step * np.arange(60)
    scan = read_scan(
        changed(tmp_path, setting(ImagePositionPatient=lambda k: ["-12.5", "31.2", f"{heights[k]:.1f}"]), hu, affine)
    )
    np.testing.assert_array_equal(scan.values, hu)
    assert np.abs(scan.affine[2, 3] + scan.affine[2, 2] * np.arange(60) - heights).max() < 0.05
    assert scan.notes == ()


def test_last_digits_do_not_split_a_series(tmp_path: Path) -> None:
    angle = np.radians(5.45)

    def change(data: Dataset, k: int) -> None:
        data.ImageOrientationPatient = [
            "1",
            "0",
            "0",
            "0",
            f"{np.cos(angle):.6f}",
            f"{np.sin(angle) + 1e-6 * (-1) ** k:.6f}",
        ]
        data.ImagePositionPatient = ["-12.5", f"{-np.sin(angle) * 1.25 * k:.4f}", f"{np.cos(angle) * 1.25 * k:.4f}"]
        data.PixelSpacing = ["0.8", "0.7"] if k % 2 else ["0.800001", "0.7"]

    scan = read_scan(changed(tmp_path, change))
    np.testing.assert_array_equal(scan.values, ct())
    assert scan.notes == ()
    assert scan.tilt < 0.01
    assert np.linalg.norm(scan.affine[:3, :3], axis=0) == pytest.approx([0.7, 0.8, 1.25], abs=1e-4)


@pytest.mark.parametrize("other", [{"PixelSpacing": ["0.9", "0.7"]}, {"ImageOrientationPatient": list("100010")}])
def test_another_spacing_or_tilt_is_another_stack(tmp_path: Path, other: dict) -> None:
    affine = grid(np.array([[1, 0, 0], [0, np.cos(0.02), -np.sin(0.02)], [0, np.sin(0.02), np.cos(0.02)]]))
    write_dicom(tmp_path / "a", ct(), affine)
    write_dicom(tmp_path / "b", ct(), affine, **other)
    refused(tmp_path, "several CT series; choose one")


@pytest.mark.parametrize("shared", [lambda k: "1.2.3", lambda k: f"1.2.{k // 2}"], ids=["all", "pairs"])
def test_slices_that_share_their_uid_are_all_used_and_said(tmp_path: Path, shared: Callable[[int], str]) -> None:
    scan = read_scan(changed(tmp_path, setting(SOPInstanceUID=shared)))
    same_places(scan, ct(), grid())
    (note,) = scan.notes
    assert note.startswith("18 slices share their SOPInstanceUID")


def test_a_copy_has_the_position_and_the_pixels_of_a_slice(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a", ct(), grid())
    write_dicom(tmp_path / "b", ct(), grid(), SOPInstanceUID="")
    write_dicom(tmp_path / "c", ct(), grid(), compressed=True)  # the same values, stored otherwise
    scan = read_scan(tmp_path)
    same_places(scan, ct(), grid())
    assert scan.notes == ()
    other = ct()
    other[3, 4, 5] += 1
    write_dicom(tmp_path / "b", other, grid(), SOPInstanceUID="1.2.3")
    refused(tmp_path, "two slices at one position between slice 6 and 7 of 19")


def test_slices_with_a_series_uid_each_are_put_together_and_said(tmp_path: Path) -> None:
    write_dicom(tmp_path / "few", ct((13, 11, 4)), grid(), series=2)
    changed(tmp_path / "many", setting(SeriesInstanceUID=lambda k: f"{ROOT}3.{k}", SeriesNumber=lambda _: 3))
    scan = read_scan(tmp_path)
    same_places(scan, ct(), grid())
    assert any(note.startswith("18 series of the same geometry were put together") for note in scan.notes)
    same_places(read_scan(tmp_path, f"{ROOT}3.7"), ct(), grid())


def test_numbers_and_descriptions_do_not_split_a_series(tmp_path: Path) -> None:
    change = setting(SeriesNumber=lambda k: k, SliceThickness=lambda k: f"{1.25 + 1e-5 * k}", AcquisitionNumber=str)
    scan = read_scan(changed(tmp_path, change))
    same_places(scan, ct(), grid())
    assert scan.notes == ()


@pytest.mark.parametrize("name", ["ImagePositionPatient", "RescaleSlope", "RescaleIntercept", "PixelSpacing"])
def test_impossible_numbers_are_missing_ones(tmp_path: Path, name: str) -> None:
    huge = {"ImagePositionPatient": ["1", "1", "1e300"], "PixelSpacing": ["1e300", "1"]}.get(name, "1e300")
    write_dicom(tmp_path, ct(), grid(), **{name: huge})
    refused(tmp_path, "with a slope or intercept that is no number|without position, directions or spacing")


def test_a_slope_of_0_is_named(tmp_path: Path) -> None:
    write_dicom(tmp_path, ct(), grid(), RescaleSlope="0")
    refused(tmp_path, r"18 slices of 13x11 \(with a slope of 0, which makes all values alike\)")


def test_long_lists_of_series_are_cut(tmp_path: Path) -> None:
    for number in range(30):
        write_dicom(tmp_path / str(number), ct((13, 11, 1)), grid(), series=number)
    refused(tmp_path, r"20: 1 slice of 13x11 \(too few for a head\); 10 more; give")


def test_slices_with_a_series_uid_each_that_are_no_stack_stay_apart(tmp_path: Path) -> None:
    for number in range(4):
        affine = grid()
        affine[2, 3] += 100 * number
        uids = setting(SeriesInstanceUID=lambda k, n=number: f"{ROOT}3.{n}.{k}", SeriesNumber=lambda _: 3)
        changed(tmp_path / str(number), uids, ct((13, 11, 5)), affine)
    refused(tmp_path, "expected a CT of a head in slices, got 1: 1 slice of 13x11")


@pytest.mark.parametrize("shift", [0.0, 0.625], ids=["same places", "between"])
@pytest.mark.parametrize("name", ["AcquisitionNumber", "TemporalPositionIdentifier"])
def test_several_acquisitions_are_listed_and_chosen(tmp_path: Path, name: str, shift: float) -> None:
    second = grid()
    second[2, 3] += shift
    write_dicom(tmp_path / "a", ct(), grid(), **{name: "1"})
    write_dicom(tmp_path / "b", ct((13, 11, 17)) - 1, second, **{name: "2"})
    refused(
        tmp_path, r"several acquisitions in one series; choose one with --acquisition N: 1: 18 slices; 2: 17 slices$"
    )
    same_places(read_scan(tmp_path, acquisition=1), ct(), grid())
    same_places(read_scan(tmp_path, acquisition=2), ct((13, 11, 17)) - 1, second)
    with pytest.raises(InputError, match="--acquisition 3 is none of the series"):
        read_scan(tmp_path, acquisition=3)


@pytest.mark.parametrize("name", ["AcquisitionTime", "AcquisitionDateTime", "ContentTime"])
@pytest.mark.parametrize(
    "seconds",
    [
        (lambda k: 5, lambda k: 40),  # one time for each
        (lambda k: 5 + 0.4 * k, lambda k: 40 + 0.4 * k),  # of each slice
        (lambda k: 5 + k, lambda k: 23 + k),  # without a pause
        (lambda k: 5 + k, lambda k: 40 - k),  # down again
    ],
)
def test_acquisitions_that_differ_in_time_only_are_listed_and_chosen(
    tmp_path: Path, name: str, seconds: tuple[Callable[[int], float], ...]
) -> None:
    for folder, hu, second in zip("ab", (ct(), ct((13, 11, 17)) - 1), seconds, strict=True):
        start = "20261127" * (name == "AcquisitionDateTime") + "1159"
        changed(tmp_path / folder, setting(**{name: lambda k, s=second, at=start: f"{at}{s(k):05.2f}"}), hu)
    refused(tmp_path, r"several acquisitions in one series; .* N: 1: 18 slices; 2: 17 slices$")
    same_places(read_scan(tmp_path, acquisition=1), ct(), grid())
    same_places(read_scan(tmp_path, acquisition=2), ct((13, 11, 17)) - 1, grid())


def test_acquisitions_of_different_extent_are_told_apart_by_time(tmp_path: Path) -> None:
    high = grid()
    high[2, 3] += 1.25 * 30
    write_dicom(tmp_path / "a", ct((13, 11, 60)), grid(), AcquisitionTime="115905")
    write_dicom(tmp_path / "b", ct((13, 11, 20)) - 1, high, AcquisitionTime="115945.5")
    refused(tmp_path, r"several acquisitions in one series; .* N: 1: 60 slices; 2: 20 slices$")
    same_places(read_scan(tmp_path, acquisition=2), ct((13, 11, 20)) - 1, high)


def test_a_copy_with_another_time_is_a_copy(tmp_path: Path) -> None:
    changed(tmp_path / "a", setting(ContentTime=lambda k: f"1159{k:02d}"))
    changed(tmp_path / "b", setting(ContentTime=lambda k: f"1204{k:02d}"))
    same_places(read_scan(tmp_path), ct(), grid())


@pytest.mark.parametrize(
    "second",
    [
        lambda k: 0.4 * k,  # helical
        lambda k: (7 * k) % 60,  # in any order
        lambda k: 10 * (k // 20),  # a step of the table every 20 slices
        lambda k: 30 * (k % 2) + k // 2,  # every other slice first
        lambda k: 30 * (k % 2),  # the same, with one time for each half
    ],
)
@pytest.mark.parametrize("name", ["AcquisitionTime", "ContentTime"])
def test_times_do_not_split_a_stack(tmp_path: Path, name: str, second: Callable[[int], float]) -> None:
    hu = ct((13, 11, 60))
    changed(tmp_path, setting(**{name: lambda k: f"1159{second(k):05.2f}"}), hu)
    same_places(read_scan(tmp_path), hu, grid())
    with pytest.raises(InputError, match="--acquisition 2 is none of the series: 0: 60 slices"):
        read_scan(tmp_path, acquisition=2)


def test_parts_that_overlap_a_little_are_no_acquisitions(tmp_path: Path) -> None:
    """Steps of the table, with four slices of each at the places of the next: none of them is a head."""
    for number in range(3):
        affine = grid()
        affine[2, 3] += 1.25 * 16 * number
        write_dicom(tmp_path / str(number), ct((13, 11, 20)) - number, affine, AcquisitionTime=f"11590{number}")
    refused(tmp_path, "two slices at one position between slice 17 and 18 of 60")


def test_an_acquisition_of_few_slices_is_no_head(tmp_path: Path) -> None:
    changed(tmp_path, setting(AcquisitionNumber=lambda k: str(1 + (k > 14))), ct((13, 11, 18)))
    same_places(read_scan(tmp_path), ct(), grid())
    with pytest.raises(InputError, match="expected 16 slices of a head or more, got 3"):
        read_scan(tmp_path, acquisition=2)


def test_acquisitions_side_by_side_are_one_stack(tmp_path: Path) -> None:
    affine, hu = grid(), ct((13, 11, 60))
    scan = read_scan(changed(tmp_path, setting(AcquisitionNumber=lambda k: str(1 + k // 20)), hu, affine))
    same_places(scan, hu, affine)
    same_places(read_scan(tmp_path, acquisition=1), hu[:, :, :20], affine)


def at_heights(folder: Path, heights: np.ndarray) -> np.ndarray:
    """Writes slices whose HU grow linearly with the height; returns those of the first slice, (I, J)."""
    below = np.random.default_rng(3).integers(-1000, 600, (13, 11))
    hu = (below[:, :, None] + np.rint(10 * (heights - heights[0])).astype(int)).astype(np.int16)
    affine = grid(shear=0.5)
    place = affine[:3, 3] + (heights - heights[0])[:, None] * affine[:3, 2] / affine[2, 2]
    changed(folder, setting(ImagePositionPatient=lambda k: [f"{x:.4f}" for x in place[k]]), hu)
    return below


@pytest.mark.parametrize(
    "steps",
    [[1.25] * 17 + [2.0] * 6, [2.4] * 10 + [4.8] * 10, [1.0, 1.5] * 10, [1.3] * 10 + [1.0] * 20 + [1.7]],
    ids=["base and vault", "twice", "alternating", "at the end"],
)
def test_unequal_steps_are_interpolated_and_said(tmp_path: Path, steps: list[float]) -> None:
    below = at_heights(tmp_path, np.cumsum([0.0, *steps]))
    scan = read_scan(tmp_path)
    (note,) = scan.notes
    assert note.startswith(f"slices are {min(steps):.2f} to {max(steps):.2f} mm apart: interpolated in equal steps of ")
    planes = scan.values.shape[2]
    assert (planes - 1) * scan.affine[2, 2] == pytest.approx(sum(steps))  # from the first slice to the last
    assert min(steps) * 0.9 < scan.affine[2, 2] <= min(steps) * 1.001  # no slice is passed over
    assert scan.affine[1, 2] / scan.affine[2, 2] == pytest.approx(0.5 / 1.25)
    truth = below[:, :, None] + 10 * scan.affine[2, 2] * np.arange(planes)
    assert np.abs(scan.values - truth).max() <= 1
    assert scan.slice_thickness == pytest.approx(max(steps), abs=1e-3)


def test_steps_that_differ_by_more_than_two_are_refused(tmp_path: Path) -> None:
    at_heights(tmp_path, np.cumsum([0.0, *[1.25] * 10, *[3.1] * 6]))
    refused(tmp_path, r"factor of two, got 1.25 to 3.10 mm, the widest between slice 1\d and 1\d of 17, z = 20.2 and ")


@pytest.mark.parametrize("gone", [[6], [6, 7], [6, 8, 10], [1], [12]])
def test_missing_slices_are_never_made_up(tmp_path: Path, gone: list[int]) -> None:
    paths = write_dicom(tmp_path, ct((13, 11, 20)), grid())
    for k in gone:
        paths[k].unlink()
    refused(tmp_path, r"slices? (is|are) missing between slice")


PADDING = {
    "declared": (63536, {"PixelPaddingValue": 63536}),
    "declared by halves": (63536, {"PixelPaddingValue": 63530, "PixelPaddingRangeLimit": 63540}),
    "not declared": (63536, {}),
    "in twelve bits": (63536, {"BitsStored": 12, "HighBit": 11}),
    "of the value of tissue": (1024, {"PixelPaddingValue": 1024}),
}


@pytest.mark.parametrize(("stored", "header"), PADDING.values(), ids=PADDING)
def test_padding_is_air(tmp_path: Path, stored: int, header: dict) -> None:
    hu = ct((31, 29, 18))
    x, y = np.mgrid[:31, :29]
    ring = (x - 15) ** 2 + (y - 14) ** 2 > 14**2
    hu[~ring & (hu[:, :, 0] > 2900)] = 0  # so that the value of tissue is inside too

    def change(data: Dataset, k: int) -> None:
        pixels = np.frombuffer(data.PixelData, "<u2").reshape(29, 31).copy()
        pixels[ring.T] = stored
        data.PixelData = pixels.tobytes()
        for name, value in header.items():
            data[name] = data[name] if name in data else dcm_element(name, value)
            data[name].value = value

    scan = read_scan(changed(tmp_path, change, hu))
    assert (scan.values[ring] < -500).all()
    inside = scan.values[~ring]
    touches = inside == -1024  # only where the value of tissue reaches the ring
    assert touches.mean() < (0.01 if stored == 1024 else 1e-9)
    np.testing.assert_array_equal(inside[~touches], hu[~ring][~touches])


def dcm_element(name: str, value: int):
    from pydicom.datadict import tag_for_keyword
    from pydicom.dataelem import DataElement

    return DataElement(tag_for_keyword(name), "US", value)


def test_bits_that_are_not_used_are_left_out(tmp_path: Path) -> None:
    """Old scanners put graphics into the upper bits."""

    def change(data: Dataset, k: int) -> None:
        pixels = np.frombuffer(data.PixelData, "<u2").copy()
        pixels[5::7] |= 0x4000
        data.PixelData, data.BitsStored, data.HighBit = pixels.tobytes(), 12, 11

    same_places(read_scan(changed(tmp_path, change)), ct(), grid())

    small = np.minimum(ct(), 2000)
    for path in write_dicom(tmp_path / "signed", small, grid(), signed=True, intercept=0):
        data = dcmread(path)
        pixels = np.frombuffer(data.PixelData, "<i2") & 0x0FFF
        data.PixelData, data.BitsStored, data.HighBit = pixels.astype("<u2").tobytes(), 12, 11
        data.save_as(path)
    same_places(read_scan(tmp_path / "signed"), small, grid())


@pytest.mark.parametrize("compressed", [False, True])
def test_an_enhanced_ct_is_read(tmp_path: Path, compressed: bool) -> None:
    affine = grid(shear=0.5)
    path = write_enhanced(tmp_path / "ct", ct(), affine, compressed=compressed)
    for given in (path, tmp_path):
        scan = read_scan(given)
        same_places(scan, ct(), affine)
        assert scan.notes == ()
        assert scan.slice_thickness == pytest.approx(np.hypot(1.25, 0.5), abs=1e-3)
    write_dicom(tmp_path, ct() - 1, grid())
    refused(tmp_path, "several CT series")
    same_places(read_scan(path), ct(), affine)


def test_frames_without_places_are_refused(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "a.dcm", ct(), grid())
    data = dcmread(path)
    del data.PerFrameFunctionalGroupsSequence
    data.save_as(path)
    refused(tmp_path, "several frames without a place for each|without position")


def as_syntax(data: Dataset, path: Path, syntax: str) -> None:
    """Saves a plain slice in another transfer syntax."""
    data.file_meta.TransferSyntaxUID = syntax
    if syntax == uid.JPEGLSLossless:
        pytest.importorskip("jpeg_ls")
        data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        data.compress(syntax, generate_instance_uid=False)
    elif syntax == uid.JPEG2000Lossless:
        file = io.BytesIO()
        Image.fromarray(np.frombuffer(data.PixelData, "<u2").reshape(data.Rows, data.Columns)).save(
            file, "JPEG2000", irreversible=False, no_jp2=True
        )
        data.PixelData = encapsulate([file.getvalue()])
    data.save_as(path, implicit_vr=syntax == uid.ImplicitVRLittleEndian, little_endian=True)


SYNTAXES = {
    "implicit": uid.ImplicitVRLittleEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
    "JPEG-LS": uid.JPEGLSLossless,
    "JPEG 2000": uid.JPEG2000Lossless,
}


@pytest.mark.parametrize("syntax", SYNTAXES.values(), ids=SYNTAXES)
def test_transfer_syntaxes(tmp_path: Path, syntax: str) -> None:
    for path in write_dicom(tmp_path, ct((40, 44, 18)), grid()):
        as_syntax(dcmread(path), path, syntax)
    same_places(read_scan(tmp_path), ct((40, 44, 18)), grid())


def test_files_without_preamble_are_read(tmp_path: Path) -> None:
    for path in write_dicom(tmp_path, ct(), grid()):
        data = dcmread(path)
        del data.file_meta
        data.preamble = None
        data.save_as(path, implicit_vr=True, little_endian=True)
    same_places(read_scan(tmp_path), ct(), grid())


def test_unknown_compression_is_named(tmp_path: Path) -> None:
    for path in write_dicom(tmp_path, ct(), grid(), compressed=True):
        data = dcmread(path)
        data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"
        data.save_as(path)
    refused(tmp_path, "compressed by a method that is not read; export it without compression")


def test_pixels_are_read_of_the_chosen_series_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dicom(tmp_path, ct(), grid(), series=1)
    for series, other in ((2, {"Modality": "MR"}), (3, {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}), (4, {})):
        for path in write_dicom(tmp_path / str(series), ct(), grid(), series=series, **other):
            path.write_bytes(path.read_bytes()[:-3])  # could not be read
    read: list[str] = []

    def counted(slices: list[dicom_pixels.Pixels]) -> object:
        read.extend(str(pixels.file) for pixels in slices)
        return dicom_pixels.read_hu(slices)

    monkeypatch.setattr(dicom, "read_hu", counted)
    same_places(read_scan(tmp_path, "1"), ct(), grid())
    assert len(read) == 18
    with pytest.raises(InputError, match="truncated or damaged"):
        read_scan(tmp_path, "4")


def test_a_slice_or_an_index_stands_for_its_folder(tmp_path: Path) -> None:
    paths = write_dicom(tmp_path / "ct", ct(), grid())
    scan = read_scan(paths[7])
    same_places(scan, ct(), grid())
    assert scan.notes == ("one DICOM file was given: the CT in its folder is read",)
    assert input_digest(paths[7]) == input_digest(tmp_path / "ct")
    copytree(tmp_path / "ct", tmp_path / "one" / "ct")
    for path in list((tmp_path / "one" / "ct").iterdir())[1:]:
        path.unlink()
    refused_slice = next((tmp_path / "one" / "ct").iterdir())
    with pytest.raises(InputError, match=r"got 1: 1 slice of 13x11 \(too few for a head\); give the CT's own folder"):
        read_scan(refused_slice)


def test_what_the_decoder_gets_names_no_patient(tmp_path: Path) -> None:
    from pcdiff.imaging.formats.dicom_files import DicomFile
    from pcdiff.imaging.formats.dicom_header import read_slices

    (path, *_) = write_dicom(tmp_path, ct(SHAPE), grid(), compressed=True)
    with dicom_pixels._Streams() as streams:
        dicom_pixels._alone(read_slices(DicomFile(path))[0].pixels, streams).save_as(tmp_path / "alone.dcm")
    assert b"Mustermann" in path.read_bytes()
    assert not any(secret.encode() in (tmp_path / "alone.dcm").read_bytes() for secret in SECRETS.values())
