"""Where DICOM files lie (folders, links, archives, names of any kind), and files that were made to do harm."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from phantom import write_dicom, write_enhanced
from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from test_dicom import as_syntax
from test_scan import ct, grid, refused, same_places

from pcdiff.cli.batch import as_scans
from pcdiff.errors import InputError
from pcdiff.imaging.formats import dicom_decoder, dicom_files, dicom_header, dicom_pixels
from pcdiff.imaging.scan import input_digest, read_scan
from pcdiff.pipeline.case import case_name

BAD_NAME = os.fsdecode(b"Sch\xe4del.dcm")
Run = Callable[..., tuple[int, str, str]]


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    for path in write_dicom(tmp_path / "store", ct(), grid()):
        link = tmp_path / "links" / path.name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(path)
    (tmp_path / "links" / "up").symlink_to(tmp_path / "links")
    (tmp_path / "links" / "itself").symlink_to(tmp_path / "links" / "itself")
    (tmp_path / "links" / "again").symlink_to(tmp_path / "store" / "IM010003")
    (tmp_path / "links" / ".#lock").symlink_to(tmp_path / "gone")
    write_dicom(tmp_path / "links" / ".store", ct() - 1, grid())
    same_places(read_scan(tmp_path / "links"), ct(), grid())
    assert input_digest(tmp_path / "links") == input_digest(tmp_path / "store")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "store").symlink_to(tmp_path / "store")
    same_places(read_scan(tmp_path / "folder"), ct(), grid())
    (tmp_path / "links" / "IM010003").unlink()
    (tmp_path / "links" / "IM010003").symlink_to(tmp_path / "gone")
    refused(tmp_path / "links", "IM010003: the link leads to no file; fetch what it stands for")


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    write_dicom(tmp_path, ct(), grid())
    os.mkfifo(tmp_path / "pipe")
    same_places(read_scan(tmp_path), ct(), grid())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("compressed", [False, True])
def test_names_that_are_not_utf8(tmp_path: Path, compressed: bool) -> None:
    paths = write_dicom(tmp_path / "a", ct((40, 44, 18)), grid())
    if compressed:
        for path in paths:
            as_syntax(dcmread(path), path, uid.JPEG2000Lossless)
    folder = (tmp_path / "a").rename(tmp_path / BAD_NAME)
    (folder / paths[4].name).rename(folder / BAD_NAME)
    same_places(read_scan(folder), ct((40, 44, 18)), grid())
    same_places(read_scan(folder / BAD_NAME), ct((40, 44, 18)), grid())
    write_enhanced(tmp_path / "many", ct(), grid()).rename(tmp_path / f"many{BAD_NAME}")
    same_places(read_scan(tmp_path / f"many{BAD_NAME}"), ct(), grid())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_errors_about_names_that_are_not_utf8_are_one_line(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pcdiff.methods.registry.load_method", lambda name, weights=None: None)
    (path, *_) = write_dicom(tmp_path / BAD_NAME, ct(), grid())
    path = path.rename(path.parent / BAD_NAME)
    path.write_bytes(path.read_bytes()[:600])
    for scan in (path, path.parent):
        code, _, error = run("design", scan, "-o", tmp_path / "out")
        assert (code, error.count("damaged"), error.count("unexpected")) == (2, 1, 0)
    command = [sys.executable, "-m", "pcdiff", "simulate", path.parent, "-o", tmp_path / "out"]
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, capture_output=True, check=False, env=plain)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"truncated or damaged" in done.stderr


def packed(path: Path, folder: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """The files of a folder in a zip archive, beside one that is no DICOM."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("README.txt", "burnt by the viewer")
        for number, file in enumerate(sorted(folder.iterdir())):
            archive.write(file, ("../../outside/", "/absolute/", "CT 1/")[number % 3] + file.name)
    return path


def test_an_archive_is_read_and_nothing_is_unpacked(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a" / "b" / "ct", ct(), grid())
    path = packed(tmp_path / "a" / "b" / "head.zip", tmp_path / "a" / "b" / "ct")
    before = sorted(tmp_path.rglob("*"))
    same_places(read_scan(path), ct(), grid())
    assert sorted(tmp_path.rglob("*")) == before
    write_enhanced(tmp_path / "one", ct(), grid())
    with zipfile.ZipFile(tmp_path / "one.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "one", "one")
    same_places(read_scan(tmp_path / "one.zip"), ct(), grid())


def test_a_case_has_the_name_of_its_folder_or_file(tmp_path: Path) -> None:
    (path, *_) = write_dicom(tmp_path / "head 1", ct(), grid())
    assert case_name(path) == case_name(tmp_path / "head 1") == "head 1"
    assert case_name(packed(tmp_path / "head 2.zip", tmp_path / "head 1")) == "head 2"
    for name, case in (("many.dcm", "many"), ("1.2.840.7", "1.2.840.7"), ("MANY", "MANY")):
        assert case_name(write_enhanced(tmp_path / name, ct(), grid())) == case


def test_archives_that_are_not_read_are_refused(tmp_path: Path) -> None:
    write_dicom(tmp_path / "ct", ct(), grid())
    refused(packed(tmp_path / "lzma.zip", tmp_path / "ct", zipfile.ZIP_LZMA), "compression is not read; unpack it")
    path = packed(tmp_path / "a.zip", tmp_path / "ct")
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    refused(path, "truncated or damaged")
    path.write_bytes(whole[:6] + b"\1" + whole[7:].replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"))
    refused(path, "encrypted; unpack it")
    path.write_bytes(whole.replace(b"\0\0\x80", b"\0\0\x81"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("skull.nrrd", "NRRD0005")
    refused(path, "expected an archive of DICOM files, got 1 other file; give")


def hostile(data: Dataset, path: Path, kind: str) -> None:
    """Saves a small slice that claims to be huge."""
    if kind == "large":
        data.Rows = data.Columns = 65535
    elif kind == "frames":
        data.NumberOfFrames = 2**30
    elif kind == "JPEG 2000":
        as_syntax(data, path, uid.JPEG2000Lossless)
        data.Rows = data.Columns = 2048
    data.save_as(path)


@pytest.mark.parametrize("kind", ["large", "frames", "JPEG 2000"])
def test_small_files_take_little_memory(tmp_path: Path, kind: str) -> None:
    for path in write_dicom(tmp_path, ct(), grid()):
        hostile(dcmread(path), path, kind)
    tracemalloc.start()
    with pytest.raises(InputError) as caught:
        read_scan(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < (2**28 if kind == "JPEG 2000" else 2**25)  # of the volume that is not filled
    assert "\n" not in str(caught.value)


def test_what_follows_the_frames_in_an_archive_is_not_unpacked(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "one", ct(), grid())
    with (
        zipfile.ZipFile(tmp_path / "one.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("one", "w", force_zip64=True) as member,
    ):
        member.write((tmp_path / "one").read_bytes() + bytes(2**26))
    tracemalloc.start()
    same_places(read_scan(tmp_path / "one.zip"), ct(), grid())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**25


def test_a_slice_that_ends_in_its_header_is_not_lost_in_silence(tmp_path: Path) -> None:
    """The last slice: without it the others are a stack, too."""
    path = write_dicom(tmp_path, ct(), grid())[-1]
    path.write_bytes(path.read_bytes()[:300])
    refused_file(tmp_path, path)


def test_headers_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_dicom(tmp_path, ct(), grid())[3]
    data = dcmread(path)
    data.ImageComments = "x" * 5000
    data.ConvolutionKernel = ["x" * 16] * 300
    data.save_as(path)
    monkeypatch.setattr(dicom_header, "MAX_HEADER", 4000)
    with pytest.raises(InputError, match=rf"{path.name}: the DICOM file is truncated or damaged"):
        read_scan(tmp_path)


def test_nested_sequences_end(tmp_path: Path) -> None:
    path = write_dicom(tmp_path, ct(), grid())[3]
    head, pixels = path.read_bytes().split(b"\xe0\x7f\x10\0", 1)
    nested = (b"\x08\0\x15\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\xff") * 3000
    at = head.index(b"\x08\0\x60\0CS")
    path.write_bytes(head[:at] + nested + head[at:] + b"\xe0\x7f\x10\0" + pixels)
    refused_file(tmp_path, path)


def refused_file(folder: Path, path: Path) -> None:
    with pytest.raises(InputError, match=rf"{path.name}: .*truncated or damaged"):
        read_scan(folder)


def test_deflated_data_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_dicom(tmp_path, ct(), grid())
    for path in paths:
        as_syntax(dcmread(path), path, uid.DeflatedExplicitVRLittleEndian)
    same_places(read_scan(tmp_path), ct(), grid())
    whole = paths[3].read_bytes()
    begin = 144 + int.from_bytes(whole[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    plain = zlib.decompress(whole[begin:], -15)
    paths[3].write_bytes(whole[:begin] + packer.compress(plain + b"\0" * 2**20) + packer.flush())
    same_places(read_scan(tmp_path), ct(), grid())
    monkeypatch.setattr(dicom_files, "MAX_INFLATED", 2**20)
    refused_file(tmp_path, paths[3])


def test_rle_is_as_long_as_its_slice(tmp_path: Path) -> None:
    path = write_dicom(tmp_path, ct(), grid(), compressed=True)[3]
    data = dcmread(path)
    for other in (np.zeros((64, 64), np.uint16), np.zeros((4, 4), np.uint16)):
        data.Rows = data.Columns = len(other)
        data.compress(uid.RLELossless, other, generate_instance_uid=False)
        data.Rows, data.Columns = ct().shape[1], ct().shape[0]
        data.save_as(path)
        if len(other) == 4:
            refused_file(tmp_path, path)
        data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian


def test_the_decoder_has_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from pcdiff.imaging.formats import dicom_decoder as d; "
        "d.main(Path(sys.argv[1])); "
        "print(resource.getrlimit(resource.RLIMIT_AS)[0], resource.getrlimit(resource.RLIMIT_CPU)[0])"
    )
    (tmp_path / "empty").mkdir()
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "empty"], capture_output=True, check=True, text=True)
    assert done.stdout.split() == [str(dicom_decoder.MEMORY), str(dicom_decoder.SECONDS)]

    paths = write_dicom(tmp_path / "ct", ct((40, 44, 18)), grid())
    for path in paths:
        as_syntax(dcmread(path), path, uid.JPEG2000Lossless)
    with monkeypatch.context() as patch:
        patch.setattr(dicom_pixels, "DECODER_SECONDS", 0.01)
        refused(tmp_path / "ct", "its compressed image cannot be decoded")
    monkeypatch.setattr(dicom_decoder, "__file__", str(tmp_path / "crash.py"))
    (tmp_path / "crash.py").write_text("import os; os.abort()")
    refused(tmp_path / "ct", "its compressed image cannot be decoded")


@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.JPEGLSLossless])
@pytest.mark.parametrize("size", [(40, 44), (20, 44), (10, 176)])
def test_pixels_of_another_size_than_the_header_says_are_refused(
    tmp_path: Path, syntax: str, size: tuple[int, int]
) -> None:
    paths = write_dicom(tmp_path, ct((40, 44, 18)), grid())
    for path in paths:
        data = dcmread(path)
        as_syntax(data, path, syntax)
        data.Columns, data.Rows = size
        data.save_as(path)
    if size == (40, 44):
        same_places(read_scan(tmp_path), ct((40, 44, 18)), grid())
    else:
        refused(tmp_path, r"IM01\d+: .* damaged")


def test_slices_of_a_folder_are_one_scan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write_dicom(tmp_path / "ct", ct(), grid())
    mask = tmp_path / "mask.nrrd"
    assert as_scans([*paths, mask, tmp_path / "ct"]) == [tmp_path / "ct", mask]
    assert capsys.readouterr().err == (
        f"pcdiff: 18 DICOM files of {tmp_path / 'ct'} given: the CT in this folder is read\n"
    )
    assert as_scans([tmp_path / "ct", mask]) == [tmp_path / "ct", mask]
    paths[2].write_bytes(paths[2].read_bytes()[:600])
    assert as_scans([paths[2]]) == [paths[2]]  # its case says why
