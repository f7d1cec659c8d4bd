"""Where bone is absent: the defects of a posed skull along the rays of the map."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from pcdiff.errors import InputError
from pcdiff.prior.direction_map import MAP, PIXEL

MIN_DEFECT_CM2 = 3.0  # cm^2; less is a burr hole, a foramen or a suture
OPENING = 4.0  # mm, gaps narrower than twice this are no craniotomy
BONE_RIM = 0.3  # share of a defect's rim that is bone, at least: else it is where the skull, or the scan of it, ends
# A strip at the edge of the field of view is a missing face, not a defect, where it is narrower than STRIP mm or than
# NARROW of its length.
STRIP, NARROW = 12.0, 1 / 12


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

    @cached_property
    def depth(self) -> np.ndarray:
        """(R,) mm from each ray inside a defect to the nearest bone along the map, 0 on bone."""
        return ndimage.distance_transform_edt(MAP.to_image(self.defect > 0, False))[MAP.inside] * PIXEL


def open_rays(outer: np.ndarray, thickness: np.ndarray, defect: np.ndarray) -> Observation:
    """What is left to see of tables (R,) mm once the rays of `defect` (R,) int labels are open."""
    distance = ndimage.distance_transform_edt(~MAP.to_image(defect > 0, False))[MAP.inside] * PIXEL
    return Observation(np.where(defect > 0, np.nan, outer), np.where(defect > 0, np.nan, thickness), defect, distance)


def _defects(absent: np.ndarray, in_view: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """(R,) int labels of the regions of absent bone that are defects: large enough, and with bone around them."""
    image = MAP.to_image(absent, False)
    radius = int(np.ceil(OPENING / PIXEL))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc = np.hypot(x, y) <= OPENING / PIXEL
    core = ndimage.binary_opening(image, disc)
    # what the opening took from a defect's corners comes back
    grown = ndimage.binary_dilation(core, iterations=radius, mask=image)
    closed = ndimage.binary_fill_holes(
        ndimage.binary_closing(np.pad(grown, radius), disc)[radius:-radius, radius:-radius]
    )
    labels, count = ndimage.label(closed & MAP.inside)
    ground, stands = MAP.to_image(usual, False), MAP.to_image(in_view & ~absent, False)
    beside_end = ndimage.binary_dilation(~MAP.to_image(in_view, False))
    kept = np.zeros(labels.shape, int)
    number = 0
    for label in range(1, count + 1):
        region = labels == label
        rim = ndimage.binary_dilation(region) & ~region
        large = np.count_nonzero(region & ground) * PIXEL**2 / 100 >= MIN_DEFECT_CM2
        framed = np.count_nonzero(rim & stands) >= BONE_RIM * np.count_nonzero(rim)
        length = np.count_nonzero(region & beside_end) * PIXEL  # mm that it is open to the end of map or scan
        height = np.count_nonzero(region) * PIXEL**2 / max(length, PIXEL)
        if large and framed and height >= max(STRIP, NARROW * length):
            number += 1
            kept[region] = number
    return kept[MAP.inside]


def _check_view(in_view: np.ndarray) -> None:
    """Raises InputError where a scan ends below the top of the head."""
    vault = MAP.directions[:, 2] > np.cos(np.deg2rad(55))
    share = 1 - in_view[vault].mean()
    if share > 0.02:
        raise InputError(
            f"head cut off at the vault: expected the scan to hold the top of the head, got {share:.0%} of it outside "
            "the field of view; use a scan that holds the whole vault"
        )
