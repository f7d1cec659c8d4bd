"""A DICOM folder as one image, read by SimpleITK: its series, and one of them as a stack of slices.

The affine follows the slices' own positions, so that a stack sheared by gantry tilt keeps its true geometry. A gap
between slices is an error, never interpolated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pcdiff.errors import InputError
from pcdiff.imaging.formats.dicom_slices import Slice, StackKey, dicom_files, read_slice
from pcdiff.imaging.formats.image import Image, checked_shape

MIN_SLICES = 16  # of a head; fewer are a localiser or a selection of slices
STEP_TOLERANCE = 0.1  # share of the usual step by which a step between slices may differ
MAX_OFFSET_MM = 0.2  # of a slice from the line through the stack, in addition to a tenth of a step


@dataclass(frozen=True)
class Series:
    """Slices of one series that share size, spacing and directions. problem: why this is no CT of a head, or None."""

    uid: str
    number: int
    size: tuple[int, int]  # columns, rows
    spacing: tuple[float, ...]  # mm between columns, between rows
    kernel: str
    problem: str | None
    slices: list[Slice]

    @property
    def directions(self) -> np.ndarray:
        """(3, 3) unit vectors in rows: along a row, along a column, the normal. Only of a series without a problem."""
        row, column = np.reshape(self.slices[0].directions, (2, 3))
        return np.stack([row, column, np.cross(row, column)])

    @property
    def heights(self) -> np.ndarray:
        """(N,) mm of each slice along the normal."""
        return np.array([part.position for part in self.slices]) @ self.directions[2]

    def __str__(self) -> str:
        text = f"{len(self.slices)} slices of {self.size[0]}x{self.size[1]}"
        if self.problem is not None:
            return f"{text} ({self.problem})"
        thickness = self.slices[0].thickness
        text += f", {self.spacing[0]:.2f} mm" + (f" by {thickness:g} mm" if thickness else "")
        return f"{text}, kernel {self.kernel}" if self.kernel else text


def open_folder(folder: Path, series: str | None = None) -> Image:
    """The only CT of a head in a folder, or the series named by its number in the list (1, 2, ...) or its UID.

    Values are HU (slope and intercept applied), index order is column, row, slice, and slices ascend along the normal.
    Raises InputError for no CT, several without a choice, and slices that are missing, unequal or damaged.
    """
    found = find_series(folder)
    chosen, notes = _choose(folder, found, series)
    affine = _affine(folder, chosen)
    shape = checked_shape(folder, [*chosen.size, len(chosen.slices)])
    thickness = {part.thickness for part in chosen.slices if part.thickness}
    return Image(shape, affine, {}, _runs(chosen), max(thickness, default=None), notes)


def find_series(folder: Path) -> list[Series]:
    """The image series in a folder, ordered by series number; other DICOM objects are ignored.

    Raises InputError for a CT slice that cannot be read.
    """
    groups: dict[StackKey, dict[str, Slice]] = {}
    for path in dicom_files(folder):
        if (read := read_slice(path)) is not None:
            key, part = read
            groups.setdefault(key, {}).setdefault(part.instance, part)  # copies of a slice count once
    series = []
    for key in sorted(groups, key=lambda key: (*key[:-1], key.problem or "")):
        parts = list(groups[key].values())
        one = Series(key.uid, key.number, key.size, key.spacing, key.kernel, key.problem, parts)
        if key.problem is None:
            ascending = [one.slices[k] for k in np.argsort(one.heights, kind="stable")]
            problem = "too few for a head" if len(parts) < MIN_SLICES else None
            one = replace(one, slices=ascending, problem=problem)
        series.append(one)
    return series


def _choose(folder: Path, found: list[Series], wanted: str | None) -> tuple[Series, tuple[str, ...]]:
    """(the series, notes for the user)."""
    listed = "; ".join(f"{number}: {one}" for number, one in enumerate(found, 1))
    if not found:
        raise InputError(f"{folder}: expected a CT, got DICOM files without a slice of one; give the CT's own folder")
    if wanted is not None:
        return _series_named(folder, found, wanted, listed), ()
    usable = [one for one in found if one.problem is None]
    if len(usable) > 1:
        raise InputError(f"{folder}: several CT series, choose one with --series N: {listed}")
    if not usable:
        raise InputError(f"{folder}: expected a CT of a head in slices, got {listed}; give the CT's own folder")
    if len(found) == 1:
        return usable[0], ()
    return usable[0], (f"series {found.index(usable[0]) + 1} of {len(found)} taken, the only CT of a head: {listed}",)


def _series_named(folder: Path, found: list[Series], wanted: str, listed: str) -> Series:
    """The series of a number in the list, or of a UID."""
    if wanted.isdecimal():
        named = found[int(wanted) - 1 : int(wanted)] if int(wanted) else []
    else:
        named = [one for one in found if one.uid == wanted]
        named = [one for one in named if one.problem is None] or named
    if len(named) != 1:
        raise InputError(f"{folder}: --series {wanted} names {len(named)} of its series: {listed}; choose one")
    if named[0].problem is not None:
        raise InputError(f"{folder}: series {wanted} cannot be used: {named[0]}; choose another of {listed}")
    return named[0]


def _affine(folder: Path, series: Series) -> np.ndarray:
    """(4, 4) index -> LPS mm. Raises InputError where the slices are not one stack in equal steps."""
    positions = np.array([part.position for part in series.slices])
    row, column, normal = series.directions
    axis = int(np.abs(normal).argmax())
    usual = _check_steps(folder, positions, series.heights, axis)
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    offset = np.linalg.norm(positions - positions[0] - np.arange(len(positions))[:, None] * step, axis=1)
    if offset.max() > MAX_OFFSET_MM + STEP_TOLERANCE * usual:
        k = int(offset.argmax())
        raise InputError(
            f"{folder}: slice {k + 1} of {len(positions)}, {'xyz'[axis]} = {positions[k, axis]:.1f} mm, lies "
            f"{offset[k]:.1f} mm beside the line through the stack; export the series again"
        )
    affine = np.eye(4)
    affine[:3, :3] = np.stack([row * series.spacing[0], column * series.spacing[1], step], 1)
    affine[:3, 3] = positions[0]
    return affine


def _check_steps(folder: Path, positions: np.ndarray, heights: np.ndarray, axis: int) -> float:
    """The usual step between slices, mm. Raises InputError for a step that differs from it.

    positions: (N, 3) mm. heights: (N,) mm along the normal. axis: the patient's axis nearest to the normal.
    """
    steps = np.diff(heights)
    usual = float(np.median(steps))
    for k, step in enumerate(steps):
        where = f"between slice {k + 1} and {k + 2} of {len(positions)}, "
        where += f"{'xyz'[axis]} = {positions[k, axis]:.1f} and {positions[k + 1, axis]:.1f} mm"
        if step < 0.01:
            raise InputError(f"{folder}: two slices at one position {where}; export one reconstruction of the CT alone")
        if abs(step - usual) > STEP_TOLERANCE * usual:
            missing = round(step / usual) - 1
            if missing >= 1 and abs(step / usual - missing - 1) < 2 * STEP_TOLERANCE:
                which = "1 slice is" if missing == 1 else f"{missing} slices are"
                raise InputError(f"{folder}: {which} missing {where}; export the whole series again")
            raise InputError(
                f"{folder}: expected slices in equal steps, got {step:.2f} mm instead of {usual:.2f} mm {where}; "
                "export a series with one slice distance"
            )
    return usual


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
