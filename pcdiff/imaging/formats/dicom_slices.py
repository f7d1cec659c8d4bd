"""The DICOM files of a folder, and the header of one slice.

Positions and directions are read from every slice. Names, ids and dates in a header are never read.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pcdiff.errors import InputError

if TYPE_CHECKING:
    import SimpleITK as sitk

MAX_FILES = 50_000
MAX_BYTES = 2**28  # of one slice
CT_IMAGE = b"1.2.840.10008.5.1.4.1.1.2\0"  # the SOP class of CT slices, DICOM PS3.4 B.5


@dataclass(frozen=True)
class Slice:
    """One file of a series.

    position: (3,) mm, LPS, centre of its first voxel. directions: (6,) along a row and along a column, LPS.
    thickness: mm, as the header states it, None if it does not.
    """

    path: Path
    instance: str
    position: tuple[float, ...]
    directions: tuple[float, ...]
    thickness: float | None


class StackKey(NamedTuple):
    """What all slices of a stack share. problem: why they are no CT of a head, None if they are."""

    number: int
    uid: str
    size: tuple[int, int]  # columns, rows
    spacing: tuple[float, ...]  # mm between columns, between rows
    directions: tuple[float, ...]  # rounded, since the last digits may differ between slices
    kernel: str
    problem: str | None


def is_dicom(path: Path) -> bool:
    """By its first bytes: DICM after the preamble, or a data set without one (group 2 or 8)."""
    with path.open("rb") as file:
        head = file.read(132)
    return head[128:] == b"DICM" or head[:4] in (b"\x02\0\0\0", b"\x08\0\x05\0", b"\x08\0\0\0", b"\x08\0\x08\0")


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files in a folder and its subfolders, sorted. Links to files outside are ignored.

    Raises InputError for a folder that holds none, or more than 50,000 files.
    """
    root = folder.resolve()
    found, seen = [], 0
    for where, _, names in os.walk(root):
        for path in (Path(where, name) for name in names):
            seen += 1
            if seen > MAX_FILES:
                raise InputError(f"{folder}: more than {MAX_FILES} files; give the folder of one patient's CT")
            if path.is_file() and path.resolve().is_relative_to(root) and is_dicom(path):
                found.append(path)
    if not found:
        raise InputError(
            f"{folder}: expected a folder of DICOM files, got {seen} other file{'s' * (seen != 1)}; "
            "give the CT's own folder, or an image file (.nrrd, .nii.gz, .mha)"
        )
    return sorted(found)


def read_slice(path: Path) -> tuple[StackKey, Slice] | None:
    """The header of a DICOM file; None for an object without an image. Raises InputError for a damaged CT slice."""
    reader = _open_header(path)
    if reader is None:
        return None
    position, directions = _numbers(reader, "0020|0032", 3), _numbers(reader, "0020|0037", 6)
    spacing, thickness = _numbers(reader, "0028|0030", 2), _numbers(reader, "0018|0050", 1)
    number = _text(reader, "0020|0011")
    geometry = bool(position and directions and spacing) and _perpendicular(directions)
    key = StackKey(
        number=int(number) if re.fullmatch(r"\d{1,9}", number) else 0,
        uid=_text(reader, "0020|000e"),
        size=(int(reader.GetSize()[0]), int(reader.GetSize()[1])),
        spacing=spacing[::-1],  # DICOM names the distance between rows first
        directions=tuple(round(value, 2) + 0.0 for value in directions),
        kernel=_technical_term(_text(reader, "0018|1210")),
        problem=_problem(reader, geometry),
    )
    nominal = thickness[0] if thickness and 0 < thickness[0] < 50 else None
    return key, Slice(path, _text(reader, "0008|0018") or str(path), position, directions, nominal)


def _open_header(path: Path) -> sitk.ImageFileReader | None:
    import SimpleITK as sitk

    if path.stat().st_size > MAX_BYTES:
        if _claims_to_be_ct(path):
            raise InputError(f"{path}: a CT slice of more than 256 MB is not read; export it again")
        return None
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        if _claims_to_be_ct(path):
            raise InputError(f"{path}: the DICOM file is truncated or damaged; copy or export it again") from error
        return None
    return reader


def _problem(reader: sitk.ImageFileReader, geometry: bool) -> str | None:
    """Why a slice is no part of a CT of a head. geometry: whether its header states where it lies."""
    if _text(reader, "0008|0060") != "CT":
        return f"{_technical_term(_text(reader, '0008|0060')) or 'no modality'}, not CT"
    if "LOCALIZER" in _text(reader, "0008|0008"):
        return "a localiser"
    if reader.GetNumberOfComponents() != 1:
        return "a colour picture"
    if reader.GetDimension() > 2 and reader.GetSize()[2] != 1:
        return "multi-frame CT, which is not read: convert it to single slices or NIfTI"
    return None if geometry else "without position, directions or spacing in its header"


def _text(reader: sitk.ImageFileReader, tag: str) -> str:
    return reader.GetMetaData(tag).strip(" \0") if reader.HasMetaDataKey(tag) else ""


def _numbers(reader: sitk.ImageFileReader, tag: str, count: int) -> tuple[float, ...]:
    """The `count` finite numbers of a tag; empty for anything else."""
    try:
        values = tuple(float(part) for part in _text(reader, tag).split("\\"))
    except ValueError:
        return ()
    return values if len(values) == count and np.isfinite(values).all() else ()


def _claims_to_be_ct(path: Path) -> bool:
    """Whether an unreadable file states as its own class that of CT slices; the index of a disc only refers to it."""
    with path.open("rb") as file:
        head = file.read(2**12)
    classes = re.search(rb"(?:\x02\0\x02\0UI|\x08\0\x16\0(?:UI)?)..(?:\0\0)?([0-9.]+\0?)", head, re.DOTALL)
    return classes is not None and classes[1] == CT_IMAGE


def _technical_term(text: str) -> str:
    """A short term of the header that may be printed; empty for free text, which may name the patient."""
    return text if re.fullmatch(r"[\w.+/-]{1,12}", text) else ""


def _perpendicular(directions: tuple[float, ...]) -> bool:
    row, column = np.array(directions[:3]), np.array(directions[3:])
    return bool(abs(row @ column) < 0.01 and abs(row @ row - 1) < 0.01 and abs(column @ column - 1) < 0.01)
