"""A CT becomes a mask of the skull: bone by its HU, without table, holder and loose pieces, and with every defect in
it.

Nothing is closed and nothing is filled: the defect is what it is all about.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from pcdiff.errors import InputError
from pcdiff.geometry.grid import bounding_box, box_slices, largest_components
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.scan import Scan, plane_distances

# Above blood, calcified falx and most contrast medium (up to about 300 HU), and so far above brain that noise of 80 HU
# leaves single voxels only; below nearly all diploe (300 to 700 HU) and cortical bone (above 1000). Half way from brain
# to a thin wall that fills half a voxel.
THRESHOLD = 300
RANGE = (100, 1500)  # HU that a threshold for bone may have
METAL = 3000  # HU; 12-bit scanners end at 3071, enamel hardly reaches it
BODY = -300  # HU, half way from air to fat: what is denser is patient, or table
COARSE = 2.0  # mm, the spacing at which patient and table are told apart
OPENING = 8.0  # mm: a shell thinner than twice this is no head
REACH = 8.0  # mm beyond the opened head in which bone counts: nose and ears; a holder's shell there is loose
SMALLEST_HEAD = 300.0  # ml; an opened body that has less is bone without soft tissue
SAMPLES, FEWEST = 100_000, 500  # voxels of soft tissue that noise and streaks are measured on: at most, at least
ISLAND = 1.0  # ml, the smallest loose piece of bone that is kept
SCALP = 2.0  # mm of it over all but a twentieth of a loose piece; else it is a holder, flush with the skin
DEEP = 25.0  # mm beneath the skin: a loose piece below this is no vault, but contrast medium or a neck


@dataclass(frozen=True)
class Segmentation:
    """skull: on the CT's grid. removed_ml: as dense as bone, and left out. metal_ml: of the skull and near it.

    noise: HU, standard deviation within the head's soft tissue; None where there is none. streaks: HU by which it
    spreads more in slices (third index) with metal; None without metal there.
    """

    skull: Volume
    removed_ml: float
    metal_ml: float
    noise: float | None
    streaks: float | None


def segment(ct: Scan, threshold: int = THRESHOLD) -> Segmentation:
    """The skull in a CT: its largest piece of bone, and islands of 1 ml or more near the head's surface.

    threshold: HU from which a voxel is bone. Raises InputError where there is no bone, or for a threshold that is none.
    """
    low, high = RANGE
    if not low <= threshold <= high:
        raise InputError(f"threshold: expected {low} to {high} HU, got {threshold}; bone begins at about {THRESHOLD}")
    dense = ct.values >= threshold
    volume = Volume(dense, ct.affine, ct.header)
    body = _body(ct)
    first, last = bounding_box(dense)
    if not (last > first).all():
        raise InputError(f"no bone: expected voxels of {threshold} HU or more, got none; lower --threshold")
    box = box_slices(first, last)
    near = dense[box] if body is None else dense[box] & body.near(first, last)
    labels, _ = ndimage.label(near)
    counts = np.bincount(labels.ravel())
    counts[0] = 0
    if counts.max() == 0:
        raise InputError(f"no bone: expected {threshold} HU or more within the head, got none; lower --threshold")
    kept = counts == counts.max()
    if body is not None:
        places = ndimage.find_objects(labels)
        for label in np.flatnonzero((counts * volume.voxel_ml >= ISLAND) & ~kept):
            place = places[label - 1]
            corner = first + [along.start for along in place]
            kept[label] = body.is_island(np.argwhere(labels[place] == label) + corner)
    skull = np.zeros(dense.shape, bool, order="F")
    skull[box] = kept[labels]
    metal = near & (ct.values[box] >= METAL)
    slices = np.zeros(dense.shape[2], bool)
    slices[box[2]] = metal.any((0, 1))
    noise, streaks = (None, None) if body is None else _quality(ct, body, threshold, slices)
    removed = np.count_nonzero(dense) - np.count_nonzero(skull)
    return Segmentation(
        Volume(skull, ct.affine, ct.header),
        float(removed * volume.voxel_ml),
        float(np.count_nonzero(metal) * volume.voxel_ml),
        noise,
        streaks,
    )


@dataclass(frozen=True)
class _Body:
    """The opened head on a coarse grid, every `step` voxels. outside: mm to it; depth: mm beneath the skin."""

    outside: np.ndarray
    depth: np.ndarray
    step: np.ndarray

    def near(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Bool on the CT's voxels first <= index < last: within reach of the head."""
        at = [np.arange(a, b) // step for a, b, step in zip(first, last, self.step, strict=True)]
        return (self.outside <= REACH)[np.ix_(*at)]

    def is_island(self, index: np.ndarray) -> bool:
        """Do these voxels (N, 3) lie beneath the scalp, where the vault does?"""
        top, middle = np.percentile(self.depth[tuple((index // self.step).T)], [5, 50])
        return bool(top >= SCALP and middle <= DEEP)


def _body(ct: Scan) -> _Body | None:
    """The patient's head, None for bone without soft tissue.

    What is no air, opened by a ball: that parts the head from table and holder, shells, even where they touch.
    """
    step = np.maximum(1, np.round(COARSE / ct.distances)).astype(int)
    # Sampled, not averaged: the mean of a shell and air is neither.
    solid = ndimage.binary_fill_holes(ct.values[tuple(slice(None, None, s) for s in step)] > BODY)
    spacing = plane_distances(ct.affine @ np.diag([*step, 1.0]))
    core = largest_components(ndimage.distance_transform_edt(solid, spacing) > OPENING)
    if not core.any():
        return None
    outside = np.maximum(ndimage.distance_transform_edt(~core, spacing) - OPENING, 0)
    head = outside == 0
    voxel_ml = abs(np.linalg.det(ct.affine[:3, :3])) * step.prod() / 1000
    if np.count_nonzero(head) * voxel_ml < SMALLEST_HEAD:
        return None
    # The skin lies half way to the first voxel outside.
    depth = np.maximum(ndimage.distance_transform_edt(head, spacing) - spacing.min() / 2, 0)
    return _Body(outside, depth, step)


def _quality(ct: Scan, body: _Body, threshold: int, metal: np.ndarray) -> tuple[float | None, float | None]:
    """(noise, streaks) HU of soft tissue deep in the head, see `Segmentation`. metal: (K,) bool, slices that hold some.

    Noise is the robust standard deviation of neighbours' difference; streaks are what the tissue spreads more in slices
    with metal than in those without, in quadrature.
    """
    deep = np.argwhere(body.depth > DEEP) * body.step
    deep = deep[deep[:, 0] + 1 < ct.values.shape[0]]
    deep = deep[:: max(1, len(deep) // SAMPLES)]
    here = ct.values[tuple(deep.T)].astype(float)
    beside = ct.values[tuple((deep + np.array([1, 0, 0])).T)].astype(float)
    soft = (np.minimum(here, beside) > BODY) & (np.maximum(here, beside) < max(threshold, THRESHOLD))
    here, beside, near_metal = here[soft], beside[soft], metal[deep[soft, 2]]
    if len(here) < FEWEST:
        return None, None
    noise = _spread(here - beside) / math.sqrt(2)
    if min(np.count_nonzero(near_metal), np.count_nonzero(~near_metal)) < FEWEST:
        return noise, None
    more = _spread(here[near_metal]) ** 2 - _spread(here[~near_metal]) ** 2
    return noise, math.sqrt(max(more, 0.0))


def _spread(values: np.ndarray) -> float:
    """Robust standard deviation: 1.4826 times the median absolute deviation."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))
