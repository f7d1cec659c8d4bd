"""The input check: what the scan is, in figures and in warnings; and the skull in the scan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcdiff.errors import InputError
from pcdiff.geometry.grey import GreyHead, Grid, grey_head
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.scan import Scan, read_scan
from pcdiff.imaging.segment import METAL, THRESHOLD, Segmentation, segment

# From here on the user is warned.
WARN_SLICE_MM = 1.5  # thicker slices round off the rim of a defect
WARN_TILT_DEG = 0.5
WARN_METAL_ML = 0.1
WARN_STREAKS_HU = 40.0
WARN_NOISE_HU = 80.0  # a third of the way from brain to the threshold
WARN_BONE_ML = 100.0  # or less; a vault alone has three times as much
WARN_VIEW_MM = 120.0  # or less; no head is narrower
UNSTATED = "does not state the patient's orientation"  # in the notes of a reader, where the file leaves the axes open


@dataclass(frozen=True)
class InputCheck:
    """A description of the input, written to `run.json`.

    kind: ct or mask. format: DICOM, NRRD, NIfTI or MetaImage. spacing_mm, field_of_view_mm: along the index axes.
    slice_thickness_mm: see `Scan`. tilt_deg: gantry tilt. axes_stated: whether the file states the patient's axes.
    threshold_hu: HU from which a voxel is bone. removed_ml,
    metal_ml, noise_hu, streaks_hu: see `Segmentation`. From threshold_hu on all are None for a mask.
    warnings: one line each.
    """

    kind: str
    format: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    field_of_view_mm: tuple[float, float, float]
    slice_thickness_mm: float
    tilt_deg: float
    axes_stated: bool
    threshold_hu: int | None
    metal_ml: float | None
    noise_hu: float | None
    streaks_hu: float | None
    removed_ml: float | None
    warnings: tuple[str, ...]


def read_skull(
    path: str | Path,
    threshold: int | None = None,
    series: str | None = None,
    label: str | None = None,
    acquisition: int | None = None,
    *,
    ignore_metal: bool = False,
) -> tuple[Volume, InputCheck]:
    """The skull of a head scan and the input check, see `read_head`."""
    skull, check, _ = read_head(path, threshold, series, label, acquisition, ignore_metal=ignore_metal)
    return skull, check


def read_head(
    path: str | Path,
    threshold: int | None = None,
    series: str | None = None,
    label: str | None = None,
    acquisition: int | None = None,
    *,
    ignore_metal: bool = False,
    with_grey: bool = False,
) -> tuple[Volume, InputCheck, GreyHead | None]:
    """Reads a head scan and segments its skull.

    Args:
        path: DICOM, NRRD, NIfTI or MetaImage with a CT in HU or a mask, see `read_scan`.
        threshold: HU from which a voxel is bone, for a CT only; by default `segment.THRESHOLD`.
        series: Number or UID of the series, for DICOM only.
        label: Number or name of the label, for a segmentation only.
        acquisition: Number of the acquisition, for a DICOM series with several only.
        ignore_metal: Whether metal is left out of the skull, for a CT only.
        with_grey: Whether the grey values of a CT are kept for pictures.

    Returns:
        The skull on the scan's own grid, the input check, and the grey values; None for a mask.

    Raises:
        InputError: As `read_scan` and `segment`, a threshold or metal for a mask, and a series or acquisition for an
            image file.
    """
    scan = read_scan(Path(path), series, label, acquisition)
    if scan.is_ct:
        threshold = THRESHOLD if threshold is None else threshold
        segmentation = segment(scan, threshold, ignore_metal)
        skull = segmentation.skull
        grey = grey_head(scan.values, scan.affine, Grid.around(skull)) if with_grey else None
        return skull, describe(scan, segmentation, threshold), grey
    if threshold is not None:
        raise InputError(f"{path}: --threshold is for a CT in HU, got a mask; leave it out")
    if ignore_metal:
        raise InputError(f"{path}: --ignore-metal is for a CT in HU, got a mask; remove the metal from the mask")
    return Volume(scan.values, scan.affine, scan.header), describe(scan), None


def describe(scan: Scan, segmentation: Segmentation | None = None, threshold: int | None = None) -> InputCheck:
    """The input check of a scan. segmentation, threshold: for a CT."""
    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    shape = scan.values.shape
    view = spacing * shape
    ct = segmentation
    return InputCheck(
        kind="ct" if scan.is_ct else "mask",
        format=scan.format,
        shape=shape,
        spacing_mm=_rounded(spacing, 6),
        field_of_view_mm=_rounded(view, 1),
        slice_thickness_mm=round(scan.slice_thickness, 3),
        tilt_deg=round(scan.tilt, 2),
        axes_stated=not any(UNSTATED in note for note in scan.notes),
        threshold_hu=threshold,
        metal_ml=None if ct is None else round(ct.metal_ml, 3),
        noise_hu=None if ct is None or ct.noise is None else round(ct.noise, 1),
        streaks_hu=None if ct is None or ct.streaks is None else round(ct.streaks, 1),
        removed_ml=None if ct is None else round(ct.removed_ml, 3),
        warnings=(*scan.notes, *_grid_warnings(scan, view), *([] if ct is None else _ct_warnings(ct))),
    )


def _grid_warnings(scan: Scan, view: np.ndarray) -> list[str]:
    warnings = []
    if scan.slice_thickness > WARN_SLICE_MM + 1e-3:
        warnings.append(
            f"slices of {scan.slice_thickness:.1f} mm: more than {WARN_SLICE_MM} mm round off the defect's rim; "
            "use the thinnest reconstruction there is"
        )
    if scan.tilt > WARN_TILT_DEG:
        warnings.append(
            f"gantry tilt of {scan.tilt:.1f} degrees: it is corrected for; the files keep the scan's own sheared grid, "
            "which some viewers show upright: trust the STL there"
        )
    if view.min() < WARN_VIEW_MM:
        warnings.append(f"the scan is only {view.min():.0f} mm wide along one axis: does it hold the whole vault?")
    return warnings


def _ct_warnings(ct: Segmentation) -> list[str]:
    warnings = []
    if ct.metal_ml >= WARN_METAL_ML:
        counts = "it is left out" if ct.metal_ignored else "it counts as bone (--ignore-metal leaves it out)"
        warnings.append(
            f"{ct.metal_ml:.1f} ml of metal ({METAL} HU or more): {counts}, and its streaks can hide bone or look like "
            "it"
        )
    if ct.streaks is not None and ct.streaks > WARN_STREAKS_HU:
        warnings.append(
            f"streaks: in slices with metal soft tissue varies by {ct.streaks:.0f} HU more than elsewhere, which can "
            "look like bone or like a defect; check the mask (pcdiff design --mask-out)"
        )
    if ct.noise is not None and ct.noise > WARN_NOISE_HU:
        warnings.append(
            f"noise of {ct.noise:.0f} HU in the brain, which can look like bone; use a smoother kernel or a higher "
            "--threshold, and check the mask (pcdiff design --mask-out)"
        )
    if ct.skull.ml < WARN_BONE_ML:
        warnings.append(
            f"only {ct.skull.ml:.0f} ml of bone: is the threshold too high, or does the scan not hold a whole head?"
        )
    return warnings


def _rounded(values: np.ndarray, digits: int) -> tuple[float, float, float]:
    first, second, third = (round(float(value), digits) for value in values)
    return first, second, third
