"""A DICOM folder as one image, by SimpleITK's GDCM: its series told apart, its slices put in order and checked.

Positions and directions are read slice by slice, so that a sheared stack (a tilted gantry) keeps its true affine, and
a gap is refused instead of bridged. Names, ids and dates of the header are read by nobody and go nowhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pcdiff.errors import InputError
from pcdiff.imaging.formats.image import Image, checked_shape

MAX_FILES = 50_000
MAX_BYTES = 2**28  # of one slice
FEWEST = 16  # slices of a head; fewer are a localiser or a sample of slices
EVEN = 0.1  # share of the usual step by which a step between slices may differ
STRAIGHT = 0.2  # mm that a slice may lie beside the line from first to last, beyond a tenth of a step
CT_IMAGE = b"1.2.840.10008.5.1.4.1.1.2\0"  # the SOP class of CT slices, DICOM PS3.4 B.5


@dataclass(frozen=True)
class Slice:
    """One file: where its first voxel's centre lies, and what it must share with the others of its stack."""

    path: Path
    instance: str
    position: tuple[float, ...]  # (3,) mm, LPS
    directions: tuple[float, ...]  # (6,) along a row, along a column, LPS
    thickness: float | None  # mm, as the scanner says


@dataclass(frozen=True)
class Series:
    """Slices of one series that share size, spacing and directions. problem: why this is no CT of a head, or None."""

    uid: str
    number: int
    size: tuple[int, int]  # columns, rows
    spacing: tuple[float, float]  # mm between columns, between rows
    kernel: str
    problem: str | None
    slices: list[Slice]

    @property
    def directions(self) -> np.ndarray:
        """(3, 3) unit vectors, rows: along a row, along a column, the normal. Of a series without a problem."""
        row, column = np.reshape(self.slices[0].directions, (2, 3))
        return np.stack([row, column, np.cross(row, column)])

    @property
    def heights(self) -> np.ndarray:
        """(N,) mm of each slice along the normal."""
        return np.array([part.position for part in self.slices]) @ self.directions[2]

    def __str__(self) -> str:
        words = f"{len(self.slices)} slices of {self.size[0]}x{self.size[1]}"
        if self.problem is not None:
            return f"{words} ({self.problem})"
        thickness = self.slices[0].thickness
        words += f", {self.spacing[0]:.2f} mm" + (f" by {thickness:g} mm" if thickness else "")
        return f"{words}, kernel {self.kernel}" if self.kernel else words


def is_dicom(path: Path) -> bool:
    """By its first bytes: DICM after the preamble, or a data set that begins at once (group 2 or 8)."""
    with path.open("rb") as file:
        head = file.read(132)
    return head[128:] == b"DICM" or head[:4] in (b"\x02\0\0\0", b"\x08\0\x05\0", b"\x08\0\0\0", b"\x08\0\x08\0")


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files in a folder and below, sorted. Links that lead out of it are passed over.

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


def open_folder(folder: Path, series: str | None = None) -> Image:
    """The folder's one CT of a head, or the series asked for: its place in the list (1, 2, ...) or its UID.

    Values come in HU (slope and intercept applied), index order column, row, slice; slices ascend along the normal.
    Raises InputError where there is none or a choice, for slices that are missing, unequal or damaged.
    """
    found = find_series(folder)
    chosen, notes = _choose(folder, found, series)
    affine = _affine(folder, chosen)
    shape = checked_shape(folder, [*chosen.size, len(chosen.slices)])
    thickness = {part.thickness for part in chosen.slices if part.thickness}
    return Image(shape, affine, {}, _runs(chosen), max(thickness, default=None), notes)


def find_series(folder: Path) -> list[Series]:
    """What images a folder holds, ordered by series number; other DICOM objects are passed over.

    Raises InputError for a CT slice that cannot be read.
    """
    groups: dict[tuple[Any, ...], dict[str, Slice]] = {}
    for path in dicom_files(folder):
        read = _slice(path)
        if read is not None:  # a slice copied twice counts once
            groups.setdefault(read[0], {}).setdefault(read[1].instance, read[1])
    series = []
    for key, parts in groups.items():
        number, uid, size, spacing, _, kernel, problem = key
        one = Series(uid, number, size, spacing, kernel, problem, list(parts.values()))
        if problem is None:
            ascending = [one.slices[k] for k in np.argsort(one.heights, kind="stable")]
            one = replace(one, slices=ascending, problem="too few for a head" if len(parts) < FEWEST else None)
        series.append(((*key[:-1], problem or ""), one))
    return [one for _, one in sorted(series, key=lambda pair: pair[0])]


def _slice(path: Path) -> tuple[tuple[Any, ...], Slice] | None:
    """(what it must share with its series, the slice); None for an object without an image."""
    import SimpleITK as sitk

    if path.stat().st_size > MAX_BYTES:
        if _should_be_ct(path):
            raise InputError(f"{path}: a CT slice of more than 256 MB is not read; export it again")
        return None
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        if _should_be_ct(path):
            raise InputError(f"{path}: the DICOM file is truncated or damaged; copy or export it again") from error
        return None

    def text(tag: str) -> str:
        return reader.GetMetaData(tag).strip(" \0") if reader.HasMetaDataKey(tag) else ""

    def numbers(tag: str, count: int) -> tuple[float, ...]:
        try:
            values = tuple(float(part) for part in text(tag).split("\\"))
        except ValueError:
            return ()
        return values if len(values) == count and np.isfinite(values).all() else ()

    position, directions, spacing = numbers("0020|0032", 3), numbers("0020|0037", 6), numbers("0028|0030", 2)
    problem = None
    if text("0008|0060") != "CT":
        problem = f"{_word(text('0008|0060')) or 'no modality'}, not CT"
    elif "LOCALIZER" in text("0008|0008"):
        problem = "a localiser"
    elif reader.GetNumberOfComponents() != 1:
        problem = "a colour picture"
    elif reader.GetDimension() > 2 and reader.GetSize()[2] != 1:
        problem = "multi-frame CT, which is not read: convert it to single slices or NIfTI"
    elif not (position and directions and spacing) or not _perpendicular(directions):
        problem = "without position, directions or spacing in its header"
    thickness = numbers("0018|0050", 1)
    size = (int(reader.GetSize()[0]), int(reader.GetSize()[1]))
    number = int(text("0020|0011")) if re.fullmatch(r"\d{1,9}", text("0020|0011")) else 0
    key = (
        number,
        text("0020|000e"),
        size,
        spacing[::-1],  # DICOM gives that between rows first
        tuple(round(value, 2) + 0.0 for value in directions),  # as written they may differ in the last digits
        _word(text("0018|1210")),
        problem,
    )
    instance = text("0008|0018") or str(path)
    nominal = thickness[0] if thickness and 0 < thickness[0] < 50 else None
    return key, Slice(path, instance, position, directions, nominal)


def _should_be_ct(path: Path) -> bool:
    """Does a file that cannot be read say first of all that it is a CT slice? An index of a disc only names such."""
    with path.open("rb") as file:
        head = file.read(2**12)
    classes = re.search(rb"(?:\x02\0\x02\0UI|\x08\0\x16\0(?:UI)?)..(?:\0\0)?([0-9.]+\0?)", head, re.DOTALL)
    return classes is not None and classes[1] == CT_IMAGE


def _word(text: str) -> str:
    """A technical term of the header as one that can be printed; free text is none."""
    return text if re.fullmatch(r"[\w.+/-]{1,12}", text) else ""


def _perpendicular(directions: tuple[float, ...]) -> bool:
    row, column = np.array(directions[:3]), np.array(directions[3:])
    return abs(row @ column) < 0.01 and abs(row @ row - 1) < 0.01 and abs(column @ column - 1) < 0.01


def _choose(folder: Path, found: list[Series], wanted: str | None) -> tuple[Series, tuple[str, ...]]:
    usable = [one for one in found if one.problem is None]
    listed = "; ".join(f"{number}: {one}" for number, one in enumerate(found, 1))
    if not found:
        raise InputError(f"{folder}: expected a CT, got DICOM files without a slice of one; give the CT's own folder")
    if wanted is not None:
        if wanted.isdecimal():
            named = found[int(wanted) - 1 : int(wanted)] if int(wanted) else []
        else:
            named = [one for one in found if one.uid == wanted]
            named = [one for one in named if one.problem is None] or named
        if len(named) != 1:
            raise InputError(f"{folder}: --series {wanted} names {len(named)} of its series: {listed}; choose one")
        if named[0].problem is not None:
            raise InputError(f"{folder}: series {wanted} cannot be used: {named[0]}; choose another of {listed}")
        return named[0], ()
    if len(usable) > 1:
        raise InputError(f"{folder}: several CT series, choose one with --series N: {listed}")
    if not usable:
        raise InputError(f"{folder}: expected a CT of a head in slices, got {listed}; give the CT's own folder")
    if len(found) == 1:
        return usable[0], ()
    return usable[0], (f"series {found.index(usable[0]) + 1} of {len(found)} taken, the only CT of a head: {listed}",)


def _affine(folder: Path, series: Series) -> np.ndarray:
    """(4, 4) index -> LPS mm. Raises InputError where the slices are not one stack in equal steps."""
    positions = np.array([part.position for part in series.slices])
    row, column, normal = series.directions
    axis, steps = int(np.abs(normal).argmax()), np.diff(series.heights)
    usual = float(np.median(steps))
    for k, step in enumerate(steps):
        where = f"between slice {k + 1} and {k + 2} of {len(positions)}, "
        where += f"{'xyz'[axis]} = {positions[k, axis]:.1f} and {positions[k + 1, axis]:.1f} mm"
        if step < 0.01:
            raise InputError(f"{folder}: two slices at one place {where}; export one reconstruction of the CT alone")
        if abs(step - usual) > EVEN * usual:
            missing = round(step / usual) - 1
            if missing >= 1 and abs(step / usual - missing - 1) < 2 * EVEN:
                which = "1 slice is" if missing == 1 else f"{missing} slices are"
                raise InputError(f"{folder}: {which} missing {where}; export the whole series again")
            raise InputError(
                f"{folder}: expected slices in equal steps, got {step:.2f} mm instead of {usual:.2f} mm {where}; "
                "export a series with one slice distance"
            )
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    beside = np.linalg.norm(positions - positions[0] - np.arange(len(positions))[:, None] * step, axis=1)
    if beside.max() > STRAIGHT + EVEN * usual:
        k = int(beside.argmax())
        raise InputError(
            f"{folder}: slice {k + 1} of {len(positions)}, {'xyz'[axis]} = {positions[k, axis]:.1f} mm, lies "
            f"{beside[k]:.1f} mm beside the line through the stack; export the series again"
        )
    affine = np.eye(4)
    affine[:3, :3] = np.stack([row * series.spacing[0], column * series.spacing[1], step], 1)
    affine[:3, 3] = positions[0]
    return affine


def _runs(series: Series) -> Iterator[np.ndarray]:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    for part in series.slices:
        reader.SetFileName(str(part.path))
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise InputError(f"{part.path}: the DICOM file's image is damaged; copy or export it again") from error
        yield sitk.GetArrayFromImage(image).reshape(-1)
