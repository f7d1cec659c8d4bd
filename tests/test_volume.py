"""Image files: geometry against pynrrd and SimpleITK, round trips, and one line for every invalid file."""

from __future__ import annotations

import bz2
import gzip
import struct
from pathlib import Path

import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from pcdiff.errors import InputError
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.formats import streams
from pcdiff.imaging.volumes import read_volume, write_map, write_volume

SHAPE = (7, 6, 5)
GEOMETRY = {
    "space": "left-posterior-superior",
    "space directions": "(0.45117199999999991,0,0) (0,0.445617352660377,-0.0705786695252685) (0,0.099,0.6252061871080)",
    "space origin": "(-120.20000000000002,-127.8461171845,-10.215863564566289)",
}
SUFFIXES = [".nrrd", ".nii", ".nii.gz", ".mha"]


def blob(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(3).random(shape) < 0.4


def oblique(mask: np.ndarray | None = None, flip: int = 1) -> Volume:
    """Rotated about all axes, anisotropic; flip = -1 gives a left-handed grid."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix() * (0.45 * flip, 0.7, 1.25)
    affine[:3, 3] = -120.20000000000002, 1 / 3, 1234.5678
    return Volume(np.asfortranarray(blob() if mask is None else mask), affine)


def put_nrrd(path: Path, values: np.ndarray, geometry: dict[str, str] | None = None, **changed: str) -> Path:
    """Writes an NRRD file by hand; `changed` overrides fields, with _ for a space in their names."""
    kinds = {"b1": "uint8", "u1": "uint8", "i2": "short", "u2": "uint16", "i4": "int", "f4": "float", "f8": "double"}
    fields = {"type": kinds[values.dtype.str[1:]], "dimension": str(values.ndim)}
    fields |= {"space": "left-posterior-superior", "sizes": " ".join(map(str, values.shape)), "encoding": "gzip"}
    fields |= {"endian": "little"} | (GEOMETRY if geometry is None else geometry)
    fields |= {name.replace("_", " "): value for name, value in changed.items()}
    head = "NRRD0004\n# a comment\n" + "".join(f"{name}: {value}\n" for name, value in fields.items() if value)
    data = values.tobytes(order="F")
    packed = {"gzip": gzip.compress, "bzip2": bz2.compress}.get(fields["encoding"], bytes)(data)
    path.write_bytes(head.encode() + b"Patient:=somebody\n\n" + packed)
    return path


def itk_affine(image: sitk.Image) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return affine


@pytest.mark.parametrize("dtype", ["?", "u1", "<i2", ">u2", "<i4", "<f4", "<f8"])
@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
def test_nrrd_masks_of_any_type(tmp_path: Path, dtype: str, encoding: str) -> None:
    values = blob().astype(dtype) * np.array(1 if dtype == "?" else 3, dtype)
    endian = "big" if dtype.startswith(">") else "little"
    volume = read_volume(put_nrrd(tmp_path / "a.nrrd", values.astype(dtype), encoding=encoding, endian=endian))
    np.testing.assert_array_equal(volume.mask, blob())
    np.testing.assert_allclose(volume.to_mm(np.array([0.0, 0, 0])), [-120.2, -127.8461171845, -10.215863564566289])
    np.testing.assert_allclose(volume.spacing[1], np.hypot(0.445617352660377, 0.0705786695252685), rtol=1e-15)


def test_long_volumes_are_read_in_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RUN", 37)
    for suffix in SUFFIXES:
        write_volume(oblique(), tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(read_volume(tmp_path / f"a{suffix}").mask, blob())


@pytest.mark.parametrize(
    ("names", "signs"),
    [
        (["left-posterior-superior", "LPS", ""], (1, 1, 1)),
        (["right-anterior-superior", "RAS"], (-1, -1, 1)),
        (["Left-Anterior-Superior", "LAS"], (1, -1, 1)),
    ],
)
def test_every_nrrd_space_becomes_lps(tmp_path: Path, names: list[str], signs: tuple[int, int, int]) -> None:
    lps = read_volume(put_nrrd(tmp_path / "lps.nrrd", blob()))
    for name in names:
        dimension = "" if name else "3"
        path = put_nrrd(tmp_path / "other.nrrd", blob(), space=name, space_dimension=dimension)
        np.testing.assert_array_equal(read_volume(path).affine, np.diag([*signs, 1]) @ lps.affine)


def test_nrrd_geometry_is_written_back_verbatim_and_nothing_private(tmp_path: Path) -> None:
    for space in ("left-posterior-superior", "RAS"):
        source = put_nrrd(tmp_path / "in.nrrd", blob(), space=space, kinds="domain domain domain")
        volume = read_volume(source)
        write_volume(volume.with_mask(~volume.mask), tmp_path / "out.nrrd")
        lines = (tmp_path / "out.nrrd").read_bytes().split(b"\n\n")[0].decode().splitlines()
        fields = GEOMETRY | {"space": space, "kinds": "domain domain domain"}
        assert {f"{name}: {value}" for name, value in fields.items()} <= set(lines)
        assert not any("Patient" in line for line in lines)
        values, header = nrrd.read(str(tmp_path / "out.nrrd"))
        assert values.dtype == np.uint8
        assert header["space"] == space
        np.testing.assert_array_equal(values, ~blob())


def test_spacings_alone_are_an_axis_parallel_grid(tmp_path: Path) -> None:
    path = put_nrrd(tmp_path / "a.nrrd", blob(), {"spacings": "0.5 0.6 1.5"}, space="")
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.affine, np.diag([0.5, 0.6, 1.5, 1.0]))
    write_volume(volume, tmp_path / "b.nrrd")
    np.testing.assert_array_equal(read_volume(tmp_path / "b.nrrd").affine, volume.affine)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("flip", [1, -1])
def test_round_trip_and_simpleitk(tmp_path: Path, suffix: str, flip: int) -> None:
    volume = oblique(flip=flip)
    path = tmp_path / f"a{suffix}"
    write_volume(volume, path)
    image = sitk.ReadImage(str(path))
    assert image.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, volume.mask)
    np.testing.assert_allclose(itk_affine(image), volume.affine, atol=1e-4)  # NIfTI holds float32
    once = read_volume(path)
    np.testing.assert_allclose(once.affine, volume.affine, rtol=0, atol=1e-4 if "nii" in suffix else 1e-12)
    np.testing.assert_array_equal(once.mask, volume.mask)
    write_volume(once, tmp_path / f"b{suffix}")
    np.testing.assert_array_equal(read_volume(tmp_path / f"b{suffix}").affine, once.affine)
    write_volume(once, tmp_path / "c.nrrd")  # results are NRRD, whatever the input
    np.testing.assert_array_equal(read_volume(tmp_path / "c.nrrd").affine, once.affine)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".mhd"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_files_written_by_simpleitk(tmp_path: Path, suffix: str, dtype: type) -> None:
    image = sitk.GetImageFromArray(blob().T.astype(dtype) * 2)
    grid = oblique(flip=-1)
    image.SetSpacing(grid.spacing.tolist())
    image.SetDirection((grid.affine[:3, :3] / grid.spacing).ravel().tolist())
    image.SetOrigin(grid.affine[:3, 3].tolist())
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    volume = read_volume(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(volume.mask, blob())
    np.testing.assert_allclose(volume.affine, grid.affine, atol=1e-4)


def test_nifti_qform_and_sform_agree_and_a_sheared_sform_is_kept(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(blob().T.astype(np.uint8))
    grid = oblique(flip=-1)
    image.SetSpacing(grid.spacing.tolist())
    image.SetDirection((grid.affine[:3, :3] / grid.spacing).ravel().tolist())
    path = tmp_path / "a.nii"
    sitk.WriteImage(image, str(path))
    raw = bytearray(path.read_bytes())
    by_sform = read_volume(path).affine
    raw[254:256] = struct.pack("<h", 0)  # sform_code
    path.write_bytes(raw)
    np.testing.assert_allclose(read_volume(path).affine, by_sform, atol=1e-5)
    raw[252:256] = struct.pack("<2h", 0, 1)
    raw[280:328] = struct.pack("<12f", 0.5, 0, 0, 1, 0, 0.5, 0.25, 2, 0, 0, 0.75, 3)  # gantry tilt, RAS
    path.write_bytes(raw)
    tilted = read_volume(path)
    expected = np.array([[-0.5, 0, 0, -1], [0, -0.5, -0.25, -2], [0, 0, 0.75, 3], [0, 0, 0, 1]])
    np.testing.assert_array_equal(tilted.affine, expected)
    write_volume(tilted, tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "b.nii.gz").affine, expected)


def test_nifti_intercept_and_trailing_axis(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    write_volume(oblique(), path)
    raw = bytearray(path.read_bytes())
    raw[40:56] = struct.pack("<8h", 4, *SHAPE, 1, 1, 1, 1)
    raw[112:120] = struct.pack("<2f", -1, 1)  # the file holds 1 - mask
    path.write_bytes(raw)
    np.testing.assert_array_equal(read_volume(path).mask, ~blob())


def test_a_header_is_not_copied_to_another_grid(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        write_volume(oblique(), tmp_path / f"a{suffix}")
        read = read_volume(tmp_path / f"a{suffix}")
        moved = Volume(read.mask, read.affine + np.eye(4, k=3) * 8, read.header)
        write_volume(moved, tmp_path / f"b{suffix}")
        np.testing.assert_allclose(read_volume(tmp_path / f"b{suffix}").affine, moved.affine, rtol=0, atol=1e-4)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_volume_gives_the_same_bytes_at_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    write_volume(oblique(), tmp_path / f"a{suffix}")
    monkeypatch.setattr("time.time", lambda: 2e9)
    write_volume(Volume(blob(), oblique().affine), tmp_path / f"b{suffix}")  # in any memory order
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_map_lies_on_the_grid(tmp_path: Path, suffix: str) -> None:
    values = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    path = tmp_path / f"std{suffix}"
    write_map(values, oblique(), path)
    image = sitk.ReadImage(str(path))
    assert image.GetPixelID() == sitk.sitkFloat32
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, values)
    np.testing.assert_allclose(itk_affine(image), oblique().affine, atol=1e-4)
    with pytest.raises(ValueError, match="shape"):
        write_map(values[1:], oblique(), path)


def refused(path: Path, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        read_volume(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message


def test_refused_files(tmp_path: Path) -> None:
    refused(tmp_path / "none.nrrd", "found none")
    for name in ("a.nrrd", "a.nii", "a.nii.gz", "a.mha", "a.mhd"):
        (tmp_path / name).write_bytes(b"")
        refused(tmp_path / name, "empty")
        (tmp_path / name).write_bytes(b"hello world" * 100)
        refused(tmp_path / name, "not an NRRD|not a NIfTI|truncated or damaged|not a valid MetaImage")
    (tmp_path / "a.jpg").write_bytes(b"x")
    refused(tmp_path / "a.jpg", "another format")
    (tmp_path / "a.nhdr").write_bytes(b"x")
    refused(tmp_path / "a.nhdr", "not an NRRD")
    (tmp_path / "a.raw").write_bytes(b"x")
    refused(tmp_path / "a.raw", "give the header")
    refused(put_nrrd(tmp_path / "a.nrrd", blob(), encoding="hex"), "encoding hex")
    refused(put_nrrd(tmp_path / "a.nrrd", blob(), type="block"), "type block")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_volume(oblique(), path)
    whole = path.read_bytes()
    for length in (1, 100, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, "truncated|damaged|not a valid|not an NRRD|found|not a NIfTI")


def test_damaged_data_is_refused(tmp_path: Path) -> None:
    path = put_nrrd(tmp_path / "a.nrrd", blob())
    whole = bytearray(path.read_bytes())
    whole[-6] ^= 255  # the checksum
    path.write_bytes(whole)
    refused(path, "damaged")
    path = put_nrrd(tmp_path / "a.nrrd", blob(), encoding="raw")
    path.write_bytes(path.read_bytes()[:-1])
    refused(path, "truncated")


def test_refused_shapes(tmp_path: Path) -> None:
    refused(put_nrrd(tmp_path / "a.nrrd", blob((5, 4))), "3D")
    refused(put_nrrd(tmp_path / "a.nrrd", blob((2, 5, 4, 3))), "3D.*2x5x4x3")
    refused(put_nrrd(tmp_path / "a.nrrd", blob(), sizes="2048 2048 2048"), "2\\*\\*31")
    sitk.WriteImage(sitk.GetImageFromArray(blob((3, 4, 5, 6)).astype(np.uint8), isVector=False), tmp_path / "a.nii")
    refused(tmp_path / "a.nii", "3D.*6x5x4x3")
    sitk.WriteImage(sitk.GetImageFromArray(blob((3, 4, 5, 6)).astype(np.uint8), isVector=True), tmp_path / "a.mha")
    refused(tmp_path / "a.mha", "one value per voxel")


def test_refused_values(tmp_path: Path) -> None:
    ct = np.random.default_rng(0).integers(-1000, 2000, SHAPE).astype("<i2")
    refused(put_nrrd(tmp_path / "a.nrrd", ct), "threshold the bone first .*300 HU")
    labels = blob().astype("<f4")
    labels[labels == 1] = [*([1.0] * (int(labels.sum()) - 1)), np.nan]
    refused(put_nrrd(tmp_path / "a.nrrd", labels), "nan")
    refused(put_nrrd(tmp_path / "a.nrrd", np.zeros(SHAPE, np.uint8)), "no bone")
    refused(put_nrrd(tmp_path / "a.nrrd", np.full(SHAPE, -1024, "<i2")), "every voxel is -1024")


def test_refused_geometry(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    refused(put_nrrd(path, blob(), {}), "spacing is missing")
    refused(put_nrrd(path, blob(), space_directions="none none none"), "not valid")
    refused(put_nrrd(path, blob(), space_directions="(1,0,0) (0,1,0) none"), "not a number")
    refused(put_nrrd(path, blob(), space_directions="(1,0,0) (0,0.05,0) (0,0,1)"), "0.1 to 5 mm, got 1 x 0.05 x 1")
    refused(put_nrrd(path, blob(), space_directions="(1,0,0) (0,5.5,0) (0,0,1)"), "0.1 to 5 mm")
    refused(put_nrrd(path, blob(), space_directions="(1,0,0) (0,1,0) (0.7,0.7,0)"), "degenerate")
    refused(put_nrrd(path, blob(), space_directions="(1,0) (0,1) (1,1)"), "not valid")
    refused(put_nrrd(path, blob(), space="3D-left-handed"), "space LPS, RAS or LAS, got '3D-left-handed'")
    path = tmp_path / "a.mha"
    sitk.WriteImage(sitk.GetImageFromArray(blob().astype(np.uint8)), path)
    path.write_bytes(path.read_bytes().replace(b"ElementSpacing = 1 1 1\n", b""))
    refused(path, "spacing is missing")


def test_metaimage_with_data_elsewhere_is_refused(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(blob().astype(np.uint8)), inner / "a.mhd")
    (inner / "a.raw").rename(tmp_path / "a.raw")
    refused(inner / "a.mhd", "one data file beside")
    head = (inner / "a.mhd").read_bytes()
    for suffix in (".mhd", ".mha"):
        (inner / f"a{suffix}").write_bytes(head.replace(b"= a.raw", b"= ../a.raw"))
        refused(inner / f"a{suffix}", "one data file beside|not a valid MetaImage")


def test_refused_outputs(tmp_path: Path) -> None:
    volume = oblique()
    with pytest.raises(InputError, match=r"create .*missing first"):
        write_volume(volume, tmp_path / "missing" / "a.nrrd")
    (tmp_path / "a.nrrd").mkdir()
    with pytest.raises(InputError, match="found a folder"):
        write_volume(volume, tmp_path / "a.nrrd")
    for name in ("a.png", "a.mhd", "a.nhdr"):
        with pytest.raises(InputError, match=name):
            write_volume(volume, tmp_path / name)


def test_an_unwritable_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def touch(self: Path, exist_ok: bool = True) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", touch)  # permissions alone do not stop root
    with pytest.raises(InputError, match=r"Permission denied.*choose a writable folder"):
        write_volume(oblique(), tmp_path / "a.nrrd")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(streams.np, "ascontiguousarray", full)
    monkeypatch.setattr(sitk, "WriteImage", full)
    with pytest.raises(OSError, match="No space"):
        write_volume(oblique(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.ones((4, 4)), [[1, 0], [0, 1]]])
def test_an_affine_that_maps_to_no_place_is_refused(affine: np.ndarray) -> None:
    with pytest.raises(InputError, match="affine must"):
        Volume(np.zeros((2, 2, 2), bool), affine)
