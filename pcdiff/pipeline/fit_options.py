"""Fit options: how an implant is adapted before it is printed, as text or numbers, and which values are possible."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from pcdiff.errors import InputError
from pcdiff.geometry.stroke_font import is_drawable

MAX_CLEARANCE = 5.0  # mm
THICKNESS_RANGE = (1.0, 30.0)  # mm
THICKNESS_SHARE_RANGE = (0.2, 1.0)  # of the bone's thickness
SMOOTHING_RANGE = (0.2, 2.0)  # mm; more would consume thin bone
DRAIN_HOLE_RANGE = (2.0, 10.0)  # mm, diameter; smaller ones vanish when the mesh is made
MIN_HOLE_WALL = 2.0  # mm of implant between two drain holes
MIN_HOLE_VOXELS = 3  # across a drain hole
SMALL_TRIM = 0.01  # of the implant's volume
MAX_ENGRAVED = 12  # characters


@dataclass(frozen=True)
class FitOptions:
    """How an implant is adapted. The default removes undercuts where they are small, and nothing else.

    clearance: mm between implant and bone.
    thickness: `bone` (as designed), a value such as `3mm`, or a fraction of the bone's thickness such as `0.6`.
    smooth: mm, standard deviation of the Gaussian that smooths the free surfaces; 0 for none.
    drain_holes: `DIAMETER@SPACING` in mm, such as `2@12`; None for none.
    make_insertable: whether to remove undercuts; None: only where that costs at most `SMALL_TRIM` of the volume.
    engrave: a text to cut into the inner surface of the mesh, in capitals; None for none.

    Raises InputError for other values.
    """

    clearance: float = 0.0
    thickness: str = "bone"
    smooth: float = 0.0
    drain_holes: str | None = None
    make_insertable: bool | None = None
    engrave: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.clearance <= MAX_CLEARANCE:
            raise InputError(f"--clearance: expected 0 to {MAX_CLEARANCE:g} mm, got {self.clearance:g}; 0.5 is usual")
        low, high = SMOOTHING_RANGE
        if self.smooth and not low <= self.smooth <= high:
            raise InputError(f"--smooth: expected {low:g} to {high:g} mm, or 0 for none, got {self.smooth:g}; try 0.8")
        self.parse_thickness()
        self.parse_drain_holes()
        self.parse_engraving()

    def parse_thickness(self) -> tuple[float, bool] | None:
        """(3.0, True) for 3 mm, (0.6, False) for 0.6 of the bone's thickness, None for the thickness as designed."""
        if self.thickness == "bone":
            return None
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(mm)?", self.thickness)
        if found:
            value, absolute = float(found[1]), found[2] is not None
            low, high = THICKNESS_RANGE if absolute else THICKNESS_SHARE_RANGE
            if low <= value <= high:
                return value, absolute
        (low, high), (least, most) = THICKNESS_RANGE, THICKNESS_SHARE_RANGE
        raise InputError(
            f"--thickness: expected bone, {low:g}mm to {high:g}mm, or {least:g} to {most:g} for a share of the bone's, "
            f"got {self.thickness!r}; for example 3mm"
        )

    def parse_drain_holes(self) -> tuple[float, float] | None:
        """Diameter and spacing of the drain holes, mm; None without drain holes."""
        if self.drain_holes is None:
            return None
        found = re.fullmatch(r"(\d+(?:\.\d+)?)@(\d+(?:\.\d+)?)", self.drain_holes)
        low, high = DRAIN_HOLE_RANGE
        if found:
            diameter, spacing = float(found[1]), float(found[2])
            if low <= diameter <= high and diameter + MIN_HOLE_WALL <= spacing <= 100:
                return diameter, spacing
        raise InputError(
            f"--drain-holes: expected DIAMETER@SPACING in mm, a diameter of {low:g} to {high:g} and at least "
            f"{MIN_HOLE_WALL:g} mm between holes, got {self.drain_holes!r}; for example 2@12"
        )

    def parse_engraving(self) -> str | None:
        """The text to engrave, in capitals; None without one."""
        if self.engrave is None:
            return None
        text = self.engrave.strip().upper()
        if is_drawable(text) and len(text) <= MAX_ENGRAVED:
            return text
        raise InputError(
            f"--engrave: expected 1 to {MAX_ENGRAVED} letters A to Z, digits, spaces or - . _ / +, "
            f"got {self.engrave!r}; for example OP-7"
        )

    def check_resolution(self, voxel_mm: np.ndarray) -> None:
        """Raises InputError if voxels of (3,) mm are too coarse for the drain holes."""
        holes, least = self.parse_drain_holes(), MIN_HOLE_VOXELS * float(np.max(voxel_mm))
        if holes is not None and holes[0] < least:
            raise InputError(
                f"--drain-holes: expected a diameter of at least three voxels, {least:.1f} mm here, "
                f"got {holes[0]:g} mm; choose wider holes, or a finer scan"
            )


AS_DESIGNED = FitOptions(make_insertable=False)
USUAL = FitOptions()
