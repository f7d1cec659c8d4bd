"""What was given, in figures and in words, before and after the defects are known; and the skull that comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcdiff.errors import InputError
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.scan import Scan, read_scan
from pcdiff.imaging.segment import METAL, THRESHOLD, Segmentation, segment

THICK = 1.5  # mm: thicker slices round off a defect's rim
TILTED = 0.5  # degrees
SOME_METAL = 0.1  # ml
STREAKS = 40.0  # HU
NOISY = 80.0  # HU, a third of the way from brain to the threshold
LITTLE = 100.0  # ml of bone; a vault alone has three times as much
NARROW = 120.0  # mm; no head is narrower


@dataclass(frozen=True)
class InputCheck:
    """An input, described; as JSON in `run.json`.

    kind: ct or mask. format: DICOM, NRRD, NIfTI or MetaImage. spacing_mm, field_of_view_mm: along the index axes.
    slice_thickness_mm: see `Scan`. tilt_deg: of the gantry. threshold_hu, metal_ml, noise_hu, streaks_hu: see
    `Segmentation`. removed_ml: as dense as bone, but table, holder or a loose piece. These are None for a mask.
    defects: of the prior's fit, none before it.
    warnings: each a line for the user.
    """

    kind: str
    format: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    field_of_view_mm: tuple[float, float, float]
    slice_thickness_mm: float
    tilt_deg: float
    threshold_hu: int | None
    metal_ml: float | None
    noise_hu: float | None
    streaks_hu: float | None
    removed_ml: float | None
    warnings: tuple[str, ...]


def read_skull(path: str | Path, threshold: int | None = None, series: str | None = None) -> tuple[Volume, InputCheck]:
    """The skull in any head scan, on the scan's own grid, and what there is to say of the scan.

    threshold: HU, of a CT only. series: of a DICOM folder only. Raises InputError as `read_scan` and `segment`, and for
    a threshold or a series where there is nothing to choose.
    """
    scan = read_scan(Path(path), series)
    if scan.is_ct:
        found = segment(scan, THRESHOLD if threshold is None else threshold)
        return found.skull, describe(scan, found, THRESHOLD if threshold is None else threshold)
    if threshold is not None:
        raise InputError(f"{path}: --threshold is for a CT in HU, got a mask; leave it out")
    return Volume(scan.values, scan.affine, scan.header), describe(scan)


def describe(scan: Scan, found: Segmentation | None = None, threshold: int | None = None) -> InputCheck:
    """Describes a scan; found, threshold: of a CT."""
    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    shape = scan.values.shape
    view = spacing * shape
    return InputCheck(
        kind="ct" if scan.is_ct else "mask",
        format=scan.format,
        shape=shape,
        spacing_mm=_rounded(spacing, 6),
        field_of_view_mm=_rounded(view, 1),
        slice_thickness_mm=round(scan.slice_thickness, 3),
        tilt_deg=round(scan.tilt, 2),
        threshold_hu=threshold,
        metal_ml=None if found is None else round(found.metal_ml, 3),
        noise_hu=None if found is None or found.noise is None else round(found.noise, 1),
        streaks_hu=None if found is None or found.streaks is None else round(found.streaks, 1),
        removed_ml=None if found is None else round(found.removed_ml, 3),
        warnings=(*scan.notes, *_warnings(scan, view, found)),
    )


def _warnings(scan: Scan, view: np.ndarray, found: Segmentation | None) -> list[str]:
    words = []
    if scan.slice_thickness > THICK + 1e-3:
        words.append(
            f"slices of {scan.slice_thickness:.1f} mm: more than {THICK} mm round off the defect's rim; "
            "use the thinnest reconstruction there is"
        )
    if scan.tilt > TILTED:
        words.append(
            f"gantry tilt of {scan.tilt:.1f} degrees: taken into account; the files keep the scan's own sheared grid, "
            "which some viewers show upright: then trust the STL"
        )
    if view.min() < NARROW:
        words.append(f"the scan is only {view.min():.0f} mm wide along one axis: does it hold the whole vault?")
    if found is None:
        return words
    if found.metal_ml >= SOME_METAL:
        words.append(
            f"{found.metal_ml:.1f} ml of metal or the like ({METAL} HU or more): it counts as bone; its streaks "
            "can hide or feign bone in its slices"
        )
    if found.streaks is not None and found.streaks > STREAKS:
        words.append(
            f"streaks: in slices with metal soft tissue varies by {found.streaks:.0f} HU more than elsewhere: "
            "that can pass for bone or for a defect; look at the mask (--mask-out)"
        )
    if found.noise is not None and found.noise > NOISY:
        words.append(
            f"noise of {found.noise:.0f} HU in the brain: it can pass for bone; use a smoother kernel or a higher "
            "--threshold, and look at the mask (--mask-out)"
        )
    if found.skull.ml < LITTLE:
        words.append(f"only {found.skull.ml:.0f} ml of bone: is the threshold too high, or the scan no whole head?")
    return words


def _rounded(values: np.ndarray, digits: int) -> tuple[float, float, float]:
    first, second, third = (round(float(value), digits) for value in values)
    return first, second, third
