"""Scans of every format with mutated headers and data: each is read, or refused in one line.

Mutations of meshes, weights, records and recipes are in test_check_files.py, test_foreign_cases.py and
test_foreign_files.py. `make fuzz` runs all of them with twenty times as many mutations.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from fuzzing import fuzz, mutated, mutated_header
from phantom import write_dicom, write_enhanced
from test_formats import ct, mask, metaimage, nifti, nrrd

from pcdiff.geometry.volume import Volume
from pcdiff.imaging.scan import input_digest, read_scan
from pcdiff.imaging.volumes import read_volume, write_volume

SEGMENT = 'space units: "mm" "mm" "mm"\nSegment0_Name:=Bone\nSegment0_LabelValue:=1\nSegment0_Layer:=0\n'
STRAIGHT = np.diag([4.0, 4.0, 4.0, 1.0])


def head_of_noise() -> np.ndarray:
    """A CT that is large enough for a head's, 32 voxels a side."""
    return np.random.default_rng(0).integers(-1000, 3000, (32, 32, 32)).astype(np.int16)


def read(path: Path) -> None:
    """Reads a scan; a mask can be written and read again."""
    scan = read_scan(path, label="Bone" if path.name == "labels.nrrd" else None)
    input_digest(path)
    if not scan.is_ct:
        again = path.with_name("again.nrrd") if path.is_file() else path.parent / "again.nrrd"
        write_volume(Volume(scan.values, scan.affine, scan.header), again)
        np.testing.assert_array_equal(read_volume(again).affine, scan.affine)


def seed_file(folder: Path, name: str) -> tuple[Path, Path]:
    """(the file that is mutated, what is read)."""
    path = folder / name
    if name == "labels.nrrd":
        nrrd(path, mask(), SEGMENT, kinds="domain domain domain", byte_skip="0")
    elif name == "mask.nrrd":
        nrrd(path, mask(), encoding="raw")
    elif name == "ct.nrrd":
        nrrd(path, ct())
    elif name.endswith(".mha"):
        metaimage(path, mask(), HeaderSize="0", ElementNumberOfChannels="1", CompressedData="False")
    elif name == "pair.hdr":
        nifti(path, mask(), paired=True)
    elif ".nii" in name:
        nifti(path, ct() if name.startswith("ct") else mask(), version=2 if name.startswith("2") else 1)
    elif name == "enhanced.dcm":
        write_enhanced(path, head_of_noise(), STRAIGHT)
    else:
        slices = write_dicom(folder / "series", head_of_noise(), STRAIGHT, compressed=name == "rle")
        if name != "dicom.zip":
            return slices[2], folder / "series"
        shutil.make_archive(str(path.with_suffix("")), "zip", folder / "series")
    return path, path


HEADS = {
    "labels.nrrd": 600,
    "mask.nrrd": 250,
    "ct.nrrd": 250,
    "a.mha": 250,
    "pair.hdr": 348,
    "mask.nii": 352,
    "2.nii": 544,
    "ct.nii.gz": None,
    "dicom": None,
    "rle": None,
    "enhanced.dcm": 4000,
    "dicom.zip": None,
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("mutate", [mutated_header, mutated])
def test_no_scan_raises_another_error(tmp_path: Path, name: str, mutate: object) -> None:
    path, scan = seed_file(tmp_path, name)
    read(scan)
    size = path.stat().st_size
    head = None if HEADS[name] is None else min(HEADS[name], size)
    times = 60 if "dicom" in name or name in ("rle", "enhanced.dcm") else 250
    refused = fuzz(path, lambda _: read(scan), times, head=head, mutate=mutate)
    assert refused > 0
