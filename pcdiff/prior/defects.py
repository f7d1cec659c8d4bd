"""Defects of a posed skull: regions of the map over which the bone is absent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from pcdiff.errors import InputError
from pcdiff.prior.direction_map import MAP, PIXEL
from pcdiff.prior.settings import DefectSettings

VAULT_DEG, MAX_UNSEEN = 55.0, 0.02  # cone around the vertex that a scan has to cover, but for this share


@dataclass(frozen=True)
class Observation:
    """A posed skull along the rays of the map.

    outer, thickness: (R,) mm where measured, else NaN. defect: (R,) int, k >= 1 inside defect k, 0 elsewhere.
    distance: (R,) mm to the nearest defect along the map.
    """

    outer: np.ndarray
    thickness: np.ndarray
    defect: np.ndarray
    distance: np.ndarray


def open_rays(outer: np.ndarray, thickness: np.ndarray, defect: np.ndarray) -> Observation:
    """Tables (R,) mm without the rays of `defect`, (R,) int labels."""
    distance = ndimage.distance_transform_edt(~MAP.to_image(defect > 0, False))[MAP.inside] * PIXEL
    return Observation(np.where(defect > 0, np.nan, outer), np.where(defect > 0, np.nan, thickness), defect, distance)


def find_defects(
    absent: np.ndarray, in_view: np.ndarray, usually_bone: np.ndarray, settings: DefectSettings
) -> np.ndarray:
    """(R,) int labels of the defects: regions of absent bone that are large enough and bordered by bone.

    absent: (R,) bool, no bone along the ray. in_view: (R,) bool, the scan covers the ray. usually_bone: (R,) bool,
    healthy heads have bone here; only such rays count towards the area.
    """
    regions = _smooth_regions(MAP.to_image(absent, False), settings.opening_mm)
    labels, count = ndimage.label(regions & MAP.inside)
    usual, bone = MAP.to_image(usually_bone, False), MAP.to_image(in_view & ~absent, False)
    beside_edge = ndimage.binary_dilation(~MAP.to_image(in_view, False))
    defects = np.zeros(labels.shape, int)
    number = 0
    for label in range(1, count + 1):
        region = labels == label
        border = ndimage.binary_dilation(region) & ~region
        large = np.count_nonzero(region & usual) * PIXEL**2 / 100 >= settings.min_area_cm2
        bordered = np.count_nonzero(border & bone) >= settings.min_bone_border * np.count_nonzero(border)
        # a low strip along the edge of the map or of the field of view is a missing face
        length = np.count_nonzero(region & beside_edge) * PIXEL  # mm
        height = np.count_nonzero(region) * PIXEL**2 / max(length, PIXEL)  # mm
        if large and bordered and height >= max(settings.min_strip_mm, settings.min_strip_ratio * length):
            number += 1
            defects[region] = number
    return defects[MAP.inside]


def _smooth_regions(absent: np.ndarray, opening_mm: float) -> np.ndarray:
    """(SIZE, SIZE) bool: absent bone without narrow gaps, closed and filled."""
    radius = int(np.ceil(opening_mm / PIXEL))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc = np.hypot(x, y) <= opening_mm / PIXEL
    core = ndimage.binary_opening(absent, disc)
    grown = ndimage.binary_dilation(core, iterations=radius, mask=absent)  # restores corners that the opening removed
    closed = ndimage.binary_closing(np.pad(grown, radius), disc)[radius:-radius, radius:-radius]
    return ndimage.binary_fill_holes(closed)


def check_view(in_view: np.ndarray) -> None:
    """Raises InputError where the scan ends below the top of the head; in_view: (R,) bool."""
    vault = MAP.directions[:, 2] > np.cos(np.deg2rad(VAULT_DEG))
    unseen = 1 - in_view[vault].mean()
    if unseen > MAX_UNSEEN:
        raise InputError(
            f"head cut off at the vault: expected the scan to cover the top of the head, got {unseen:.0%} of it "
            "outside the field of view; use a scan that covers the whole vault"
        )
