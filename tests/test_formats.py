"""Headers of image files as programs write them: spellings, axes of one, pairs, data beside; and hostile ones."""

from __future__ import annotations

import gzip
import os
import random
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from pcdiff.environment import memory_at_hand
from pcdiff.errors import InputError
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.formats import streams
from pcdiff.imaging.scan import input_digest, read_scan
from pcdiff.imaging.volumes import read_volume, write_volume

SHAPE = (7, 6, 5)
AFFINE = np.array([[0.5, 0.02, 0, -11], [0, 0.75, 0.25, 21.5], [0.125, 0, 1.25, 3], [0, 0, 0, 1]])
DIRECTIONS = "(0.5,0,0.125) (0.02,0.75,0) (0,0.25,1.25)"


def mask() -> np.ndarray:
    return np.random.default_rng(3).random(SHAPE) < 0.4


def ct() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 3071, SHAPE).astype("<i2")


def nrrd(path: Path, values: np.ndarray, lines: str = "", **fields: str) -> Path:
    """Writes an NRRD file by hand; in `fields` an underscore stands for a space."""
    kinds = {"b1": "uint8", "u1": "uint8", "i2": "short", "f4": "float"}
    head = {"type": kinds[values.dtype.str[1:]], "dimension": str(values.ndim), "space": "left-posterior-superior"}
    head |= {"sizes": " ".join(map(str, values.shape)), "space directions": DIRECTIONS, "encoding": "gzip"}
    head |= {"space origin": "(-11,21.5,3)", "endian": "little"}
    head |= {name.replace("_", " "): text for name, text in fields.items()}
    text = "NRRD0005\n" + "".join(f"{name}: {value}\n" for name, value in head.items()) + lines + "\n"
    data = values.tobytes(order="F")
    path.write_bytes(text.encode() + (gzip.compress(data) if head["encoding"] == "gzip" else data))
    return path


def metaimage(path: Path, values: np.ndarray, data: bytes | None = None, end: str = "= LOCAL", **fields: str) -> Path:
    """Writes a MetaImage header by hand, and the values after it."""
    sizes = " ".join(map(str, values.shape))
    head = {"ObjectType": "Image", "NDims": str(values.ndim), "DimSize": sizes, "TransformMatrix": matrix(values.ndim)}
    head |= {"Offset": "-11 21.5 3" + " 0" * (values.ndim - 3), "ElementSpacing": "1 1 1" + " 1" * (values.ndim - 3)}
    head |= {"ElementType": {"b1": "MET_UCHAR", "i2": "MET_SHORT"}[values.dtype.str[1:]]} | fields
    text = "".join(f"{name} = {value}\n" for name, value in head.items()) + f"ElementDataFile {end}\n"
    path.write_bytes(text.encode() + (values.tobytes(order="F") if data is None else data))
    return path


def matrix(axes: int, first: int = 0) -> str:
    whole = np.eye(axes)
    whole[first : first + 3, first : first + 3] = AFFINE[:3, :3].T
    return " ".join(map(str, whole.ravel()))


def nifti(path: Path, values: np.ndarray, version: int = 1, paired: bool = False, extension: bytes = b"") -> Path:
    """Writes NIfTI by hand, with an sform in RAS; a pair gets its values in the .img beside."""
    code = {"b1": 2, "u1": 2, "i2": 4, "f4": 16}[values.dtype.str[1:]]
    sizes = [*values.shape, *[1] * (7 - values.ndim)]
    ras = (np.diag([-1, -1, 1, 1]) @ AFFINE)[:3].ravel()
    begin = (0 if paired else (352, 544)[version - 1]) + len(extension)
    if version == 1:
        head = bytearray(348)
        struct.pack_into("<i", head, 0, 348)
        struct.pack_into("<8h", head, 40, values.ndim, *sizes)
        struct.pack_into("<2h", head, 70, code, 8 * values.itemsize)
        struct.pack_into("<8f3f", head, 76, 1, 0.5, 0.75, 1.25, *[1] * 4, begin, 1, 0)
        struct.pack_into("<12f", head, 280, *ras)
        struct.pack_into("<h", head, 254, 1)
        head[344:348] = b"ni1\0" if paired else b"n+1\0"
    else:
        head = bytearray(540)
        struct.pack_into("<i8s2h", head, 0, 540, b"ni2\0\r\n\x1a\n" if paired else b"n+2\0\r\n\x1a\n", code, 8)
        struct.pack_into("<8q", head, 16, values.ndim, *sizes)
        struct.pack_into("<8dq2d", head, 104, 1, 0.5, 0.75, 1.25, *[1] * 4, begin, 1, 0)
        struct.pack_into("<2i", head, 344, 0, 1)
        struct.pack_into("<12d", head, 400, *ras)
    pack: Callable[[bytes], bytes] = gzip.compress if path.suffix == ".gz" else bytes
    data = values.tobytes(order="F")
    between = (b"\1\0\0\0" if extension else bytes(4)) + extension
    path.write_bytes(pack(bytes(head) if paired else bytes(head) + between + data))
    if paired:
        path.with_name(path.name.replace(".hdr", ".img")).write_bytes(pack(data))
    return path


def plain(path: Path, values: np.ndarray | None = None, note: str | None = None) -> None:
    """The file holds the mask, or the CT, on the grid."""
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.values, mask() if values is None else values)
    np.testing.assert_allclose(scan.affine, AFFINE, atol=1e-6)
    assert (note is None and not scan.notes) or (note and note in " ".join(scan.notes))


def refused(path: Path, reason: str, label: str | None = None) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        read_scan(path, label=label)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_names_of_fields_and_words_ignore_case(tmp_path: Path) -> None:
    plain(nrrd(tmp_path / "a.nrrd", ct(), endian="Little"), ct())
    plain(nrrd(tmp_path / "b.nrrd", ct().astype(">i2"), endian="BIG", type="Signed Short"), ct())
    path = nrrd(
        tmp_path / "c.nrrd", mask(), space="Left-Posterior-Superior", type="UChar", kinds="Domain DOMAIN domain"
    )
    head, data = path.read_bytes().split(b"\n\n", 1)
    lines = [line.partition(b":") for line in head.split(b"\n")]
    path.write_bytes(b"\n".join(name.upper() + colon + value for name, colon, value in lines) + b"\n\n" + data)
    plain(path)
    refused(nrrd(tmp_path / "d.nrrd", ct(), endian="middle"), "expected little or big, got middle")
    path = metaimage(tmp_path / "e.mha", ct(), compresseddata="false", ELEMENTBYTEORDERMSB="FALSE")
    path.write_bytes(path.read_bytes().replace(b"NDims", b"NDIMS"))
    plain(path, ct())


@pytest.mark.parametrize(("before", "after"), [((1,), ()), ((), (1,)), ((1, 1), ()), ((), (1, 1)), ((1,), (1,))])
def test_axes_of_one_do_not_matter(tmp_path: Path, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    sizes = (*before, *SHAPE, *after)
    directions = " ".join(["none"] * len(before) + [DIRECTIONS] + ["none"] * len(after))
    kinds = " ".join(["list"] * len(before) + ["domain"] * 3 + ["list"] * len(after))
    values = mask().reshape(sizes, order="F")
    plain(nrrd(tmp_path / "a.nrrd", values, space_directions=directions, kinds=kinds))
    written = tmp_path / "b.nrrd"
    write_volume(read_volume(tmp_path / "a.nrrd"), written)
    plain(written)
    plain(nifti(tmp_path / "a.nii.gz", values), note="the first axis is no axis of space" if before else None)
    places = [0] * len(before) + [-11, 21.5, 3] + [0] * len(after)
    steps = " ".join(["1"] * len(sizes))
    turned = matrix(len(sizes), len(before))
    offset = " ".join(map(str, places))
    plain(metaimage(tmp_path / "a.mha", values, TransformMatrix=turned, Offset=offset, ElementSpacing=steps))


@pytest.mark.parametrize("version", [1, 2])
def test_a_nifti_with_a_fourth_axis_of_0_is_one_volume(tmp_path: Path, version: int) -> None:
    path = nifti(tmp_path / "a.nii", ct()[..., None], version)
    head = bytearray(path.read_bytes())
    kind, at = ("<h", 48) if version == 1 else ("<q", 48)
    struct.pack_into(kind, head, at, 0)
    path.write_bytes(head)
    plain(path, ct())
    struct.pack_into(kind, head, at - struct.calcsize(kind), 0)  # of the third axis it is no volume
    path.write_bytes(head)
    with pytest.raises(InputError, match="expected a 3D image, got size 7x6x0x1"):
        read_scan(path)


def test_axes_with_their_own_spacing_or_turned_into_others_are_refused(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", mask()[None])
    head = bytearray(path.read_bytes())
    head[92:96] = struct.pack("<f", 1.25)  # pixdim[4]: the spacing of the slices, as ITK writes such an image
    path.write_bytes(head)
    refused(path, "3D.*1x7x6x5")
    turned = np.roll(np.eye(4), 1, axis=0).ravel()
    refused(metaimage(tmp_path / "a.mha", mask()[None], TransformMatrix=" ".join(map(str, turned))), "turn into others")


def test_spaces_of_nrrd(tmp_path: Path) -> None:
    plain(nrrd(tmp_path / "a.nrrd", mask(), space="scanner-xyz"), note="axes of the scanner (scanner-xyz)")
    plain(nrrd(tmp_path / "a.nrrd", mask(), space="3D-right-handed"), note="LPS is assumed")
    refused(nrrd(tmp_path / "a.nrrd", mask(), space="3D-left-handed"), "got '3D-left-handed'")
    timed = " ".join(f"{vector[:-1]},0)" for vector in DIRECTIONS.split()) + " (0,0,0,1)"
    values = mask()[..., None]
    space = {"space": "left-posterior-superior-time", "space_directions": timed, "space_origin": "(-11,21.5,3,0)"}
    plain(nrrd(tmp_path / "a.nrrd", values, **space))


def test_a_result_copies_only_what_is_valid(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "a.nrrd", mask(), space_units='"mm" "mm" "\xb5m"', kinds="domain domain", units="mm")
    write_volume(read_volume(path), tmp_path / "b.nrrd")
    head = (tmp_path / "b.nrrd").read_bytes().split(b"\n\n")[0].decode()
    assert '"\xb5m"' in head
    assert "kinds" not in head
    assert "\nunits" not in head
    plain(tmp_path / "b.nrrd")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_nifti_of_both_versions_alone_and_in_pairs(tmp_path: Path, version: int, packed: str) -> None:
    plain(nifti(tmp_path / f"a.nii{packed}", ct(), version), ct())
    pair = nifti(tmp_path / f"head ct.hdr{packed}", ct(), version, paired=True)
    data = tmp_path / f"head ct.img{packed}"
    for path in (pair, data):
        plain(path, ct())
        assert read_scan(path).format == "NIfTI"
    digests = {input_digest(pair), input_digest(data)}
    assert len(digests) == 1
    data.write_bytes(gzip.compress(bytes(2 * ct().size)) if packed else bytes(2 * ct().size))
    assert input_digest(pair) not in digests  # other values, the same header


def test_a_pair_without_its_other_file_is_refused(tmp_path: Path) -> None:
    pair = nifti(tmp_path / "a.hdr", mask(), paired=True)
    (tmp_path / "a.img").rename(tmp_path / "b.img")
    refused(pair, "one data file beside the header, a file and no link, got 'a.img'")
    refused(tmp_path / "b.img", "got 'b.hdr'")
    refused(pair.rename(tmp_path / "a.nii"), "rename the two files")
    (tmp_path / "c.hdr").write_bytes(struct.pack("<i", 348) + bytes(344))
    refused(tmp_path / "c.hdr", "Analyze 7.5 does not state which side is left")


def test_a_nifti_whose_two_orientations_differ_is_read_with_a_note(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", mask())
    head = bytearray(path.read_bytes())
    head[252:254] = struct.pack("<h", 1)  # a qform: axes parallel to the patient's, origin 0
    path.write_bytes(head)
    plain(path, note="sform and qform differ by up to 30 mm: the sform is used")


def test_axes_that_would_mirror_or_scale_a_head_are_refused(tmp_path: Path) -> None:
    """Without an sform the steps and the quaternion make the axes, and other readers take the same header otherwise."""

    def written(name: str, qform: int, steps: tuple[float, ...], quaternion: tuple[float, ...]) -> Path:
        path = nifti(tmp_path / f"{name}.nii", mask())
        head = bytearray(path.read_bytes())
        struct.pack_into("<2h6f", head, 252, qform, 0, *quaternion, 0, 0, 0)
        struct.pack_into("<3f", head, 80, *steps)
        path.write_bytes(head)
        return path

    for code in (0, 1):
        refused(written("negative", code, (-0.5, 0.75, 1.25), (0, 0, 0)), "a spacing above 0, got -0.5, 0.75, 1.25")
    refused(written("long", 1, (0.5, 0.75, 1.25), (0, 0, 1.08)), "its quaternion is no rotation")
    turned = read_scan(written("rounded", 1, (0.5, 0.75, 1.25), (0, 0, 1.0000002)))
    np.testing.assert_allclose(turned.affine[:3, :3], np.diag([0.5, 0.75, 1.25]), atol=1e-6)  # by 180 degrees, in LPS


def test_the_space_of_a_template_is_named(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", mask())
    head = bytearray(path.read_bytes())
    head[254:256] = struct.pack("<h", 4)
    path.write_bytes(head)
    plain(path, note="the space of a template (MNI 152)")


def test_data_beside_a_header(tmp_path: Path) -> None:
    data, line = mask().tobytes(order="F"), b"first\nsecond\n"
    (tmp_path / "head ct.raw").write_bytes(data)
    (tmp_path / "skipped.raw").write_bytes(line + b"12345" + data)
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"12" + data))
    (tmp_path / "a.zraw").write_bytes(zlib.compress(data))
    empty = np.zeros(SHAPE, bool)[:0]
    sizes = {"sizes": "7 6 5", "encoding": "raw"}
    plain(nrrd(tmp_path / "head ct.nhdr", empty, "data file: head ct.raw\n", **sizes))
    plain(nrrd(tmp_path / "b.nhdr", empty, "datafile: ./skipped.raw\nline skip: 2\nbyteskip: 5\n", **sizes))
    plain(nrrd(tmp_path / "b.nhdr", empty, "data file: skipped.raw\nbyte skip: -1\n", **sizes))
    path = nrrd(tmp_path / "b.nhdr", empty, "data file: a.gz\nbyte skip: 2", sizes="7 6 5", encoding="raw")
    path.write_bytes(path.read_bytes().replace(b"encoding: raw", b"encoding: gzip"))  # and no empty line at the end
    plain(path)
    header = {"DimSize": "7 6 5"}
    plain(metaimage(tmp_path / "head ct.mhd", empty, end="= head ct.raw", **header))
    plain(metaimage(tmp_path / "b.mhd", empty, end="= skipped.raw", HeaderSize=str(len(line) + 5), **header))
    plain(metaimage(tmp_path / "b.mhd", empty, end="= skipped.raw", HeaderSize="-1", **header))
    plain(metaimage(tmp_path / "b.mhd", empty, end="= a.zraw", CompressedData="True", **header))
    assert read_scan(tmp_path / "b.mhd").format == "MetaImage"
    before = input_digest(tmp_path / "b.mhd")
    (tmp_path / "a.zraw").write_bytes(zlib.compress((~mask()).tobytes(order="F")))
    assert input_digest(tmp_path / "b.mhd") != before


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the size of a mask that no header may reach."""
    path = tmp_path / "elsewhere" / "secret"
    path.parent.mkdir()
    path.write_bytes(mask().tobytes(order="F"))
    return path


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr", ".hdr"])
def test_no_other_file_is_read(tmp_path: Path, secret: Path, suffix: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    reason = "one data file beside the header, a file and no link|not a valid|a list of data files"

    def header(name: str) -> Path:
        empty = np.zeros(SHAPE, bool)[:0]
        if suffix == ".mhd":
            return metaimage(inner / "a.mhd", empty, end=f"= {name}", DimSize="7 6 5")
        if suffix == ".nhdr":
            return nrrd(inner / "a.nhdr", empty, f"data file: {name}\n", sizes="7 6 5", encoding="raw")
        return nifti(inner / "a.hdr", mask(), paired=True)

    if suffix != ".hdr":
        (inner / "LIST").write_text(f"{secret}\n")
        (inner / "a.raw").symlink_to(secret)
        for name in (secret, "../elsewhere/secret", "..", ".", "", "LIST", "a.raw", "a.raw 1 2 1", "x\0", "x" * 300):
            refused(header(str(name)), reason)
        (inner / "a.raw").unlink()
    path = header("a.img")
    (inner / "a.img").unlink(missing_ok=True)
    os.mkfifo(inner / "a.img")  # would block
    refused(path, reason)
    (inner / "a.img").unlink()
    (inner / "a.img").symlink_to(secret)
    refused(path, reason)


@pytest.mark.parametrize(
    "end", [": /etc/passwd\nElementDataFile = LOCAL", "\t= ../elsewhere/secret", "= LIST", "", "=", "= a%d.raw 1 3 1"]
)
def test_a_metaimage_header_that_is_read_in_two_ways_is_refused(tmp_path: Path, secret: Path, end: str) -> None:
    refused(metaimage(tmp_path / "a.mha", mask(), end=end), "not a valid MetaImage|one data file beside|a list of data")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"NDims": "1000"}, "from 1 to 6"),
        ({"NDims": "3\nNDims = 3"}, "ndims twice"),
        ({"NDims": "2"}, "NDims 2 for 3 sizes"),
        ({"DimSize": "7 6 -5"}, "whole number"),
        ({"DimSize": "2048 2048 2048"}, "2\\*\\*31"),
        ({"ElementType": "MET_STRING"}, "type met_string is not read"),
        ({"TransformMatrix": "1 0 0"}, "expected 9 numbers"),
        ({"Offset": "nan 0 0"}, "not a number"),
        ({"Position": "1 2 3"}, "offset has two values"),
        ({"ElementSpacing": "1e308 1 1"}, "not a number|more than 1e"),
        ({"BinaryData": "False"}, "values as text"),
        ({"CompressedData": "True"}, "truncated or damaged"),
        ({"DistanceUnits": "parsec"}, "DistanceUnits parsec"),
    ],
)
def test_refused_metaimages(tmp_path: Path, fields: dict[str, str], reason: str) -> None:
    refused(metaimage(tmp_path / "a.mha", mask(), **fields), reason)


def test_a_metaimage_is_read_as_by_simpleitk(tmp_path: Path) -> None:
    for kind in (np.int8, np.uint16, np.int32, np.int64, np.float64):
        image = sitk.GetImageFromArray(ct().T.astype(kind))
        image.SetSpacing([0.5, 0.75, 1.25])
        image.SetDirection([0, 0, 1, 1, 0, 0, 0, 1, 0])
        image.SetMetaData("0008|0005", "ISO_IR 100")
        for name, packed in (("a.mha", True), ("b.mha", False), ("a.mhd", True), ("b.mhd", False)):
            sitk.WriteImage(image, tmp_path / name, packed)
            again = sitk.ReadImage(tmp_path / name)
            written = np.clip(sitk.GetArrayFromImage(again).T.astype(float), -32768, 32767)
            if kind is not np.int8 and kind is not np.uint16:  # others are no HU
                np.testing.assert_array_equal(read_scan(tmp_path / name).values, written)
    values = mask()
    for unit, factor in (("cm", 10), ("um", 0.001)):
        spacing = " ".join(str(1 / factor) for _ in range(3))
        offset = " ".join(str(each / factor) for each in (-11, 21.5, 3))
        plain(metaimage(tmp_path / "c.mha", values, DistanceUnits=unit, ElementSpacing=spacing, Offset=offset))
    path = metaimage(tmp_path / "d.mha", values)
    path.write_bytes(re.sub(rb"TransformMatrix.*\n", b"", path.read_bytes()))
    assert "LPS is assumed" in read_scan(path).notes[0]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"sch\xe4del")
    for suffix in (".mha", ".nrrd", ".nii.gz"):
        path = tmp_path / f"{name}{suffix}"
        write_volume(Volume(np.asfortranarray(mask()), AFFINE), path)
        np.testing.assert_array_equal(read_volume(path).mask, mask())
    (tmp_path / f"{name}.raw").write_bytes(mask().tobytes(order="F"))
    path = metaimage(tmp_path / f"{name}.mhd", mask()[:0], end="= X", DimSize="7 6 5")
    path.write_bytes(path.read_bytes().replace(b"= X", b"= sch\xe4del.raw"))
    plain(path)


@pytest.fixture
def peak() -> Iterator[Callable[[], int]]:
    """Bytes at the most that were allocated in a test since it began or asked last."""
    tracemalloc.start()

    def since() -> int:
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        return found

    yield since
    tracemalloc.stop()


def test_what_does_not_fit_into_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peak: Callable[[], int]
) -> None:
    big = {"sizes": "1024 1024 1000"}
    monkeypatch.setattr("pcdiff.imaging.formats.image.memory_at_hand", lambda: 10**9)
    data = gzip.compress(bytes(10**7))  # packed a thousandfold: so few bytes may hold so many values
    path = nrrd(tmp_path / "a.nrrd", mask(), **big)
    path.write_bytes(path.read_bytes() + data * 100)
    peak()
    refused(path, r"1024x1024x1000 voxels need about 2\.1 GB of memory, 1\.0 GB are free; crop")
    refused(path, "need about 2.1 GB", label="1")
    monkeypatch.setattr("pcdiff.imaging.formats.image.memory_at_hand", lambda: 10**15)
    for suffix, write in ((".nrrd", nrrd), (".mha", metaimage)):  # more values than the file can hold
        given = big if suffix == ".nrrd" else {"DimSize": "1024 1024 1000", "CompressedData": "True"}
        refused(write(tmp_path / f"b{suffix}", mask(), **given), "truncated or damaged")
    assert peak() < 10**8


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".mha"])
def test_damaged_data_is_never_read_as_other_values(tmp_path: Path, suffix: str) -> None:
    path, draw, same = tmp_path / f"a{suffix}", random.Random(suffix), 0
    write_volume(Volume(np.asfortranarray(mask()), AFFINE), path)
    whole = path.read_bytes()
    for _ in range(150):
        data = bytearray(whole)
        data[-draw.randrange(1, 60)] = draw.randrange(256)  # the values and their checksum
        path.write_bytes(data)
        try:
            volume = read_volume(path)
        except InputError:
            continue
        np.testing.assert_array_equal(volume.mask, mask())
        same += 1
    assert same < 30


def test_a_large_packed_file_may_hold_more_than_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RUN", 2**10)
    path = nifti(tmp_path / "a.nii.gz", mask())
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole + bytes(5000)))
    plain(path)
    path.write_bytes(gzip.compress(whole + bytes(50_000)))
    refused(path, "damaged")


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".mha"])
def test_values_are_read_as_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peak: Callable[[], int], suffix: str
) -> None:
    values = np.zeros((200, 200, 200), bool, order="F")
    values[50:100, 50:100, 50:100] = True
    write_volume(Volume(values, AFFINE), tmp_path / f"a{suffix}")
    monkeypatch.setattr(streams, "RUN", 2**14)
    voxels = values.size
    del values
    peak()
    read_volume(tmp_path / f"a{suffix}")
    assert peak() < 1.1 * voxels


def test_memory_at_hand_follows_the_limit_of_the_process() -> None:
    assert memory_at_hand() > 10**7
    code = (
        "import resource; from pcdiff.environment import memory_at_hand;"
        "resource.setrlimit(resource.RLIMIT_AS, (10**9, resource.RLIM_INFINITY)); print(memory_at_hand())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 10**8 < int(done.stdout) < 10**9


def test_memory_at_hand_follows_the_limits_of_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 50\n")
    files = (str(tmp_path), "memory.max", "memory.current")
    monkeypatch.setattr("pcdiff.environment.GROUP_FILES", {"": files, "memory": files})
    assert memory_at_hand() == 150
