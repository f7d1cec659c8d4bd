"""Segmentation of the skull in a CT: bone by its HU, without table, head holder and loose pieces.

Holes are neither closed nor filled: that would remove the defect.
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
# to thin bone that fills half a voxel.
THRESHOLD = 300
THRESHOLD_RANGE = (100, 1500)  # HU
METAL = 3000  # HU; 12-bit scanners end at 3071, enamel hardly reaches it
METAL_RIM_MM = 1.0  # around metal, voxels that it fills in part are left out with it
BODY = -300  # HU, half way from air to fat; denser voxels are patient or table
COARSE_MM = 2.0  # the grid on which the head is found
OPENING_MM = 8.0  # radius: the head is thicker than twice this, table and holder are shells and thinner
NEAR_HEAD_MM = 8.0  # around the opened head, where bone counts: nose and ears
REACH_MM = 25.0  # around the opened head, where bone under the skin counts if it hangs together with the skull
ROOM_MM = 8.0  # radius of a ball of air that fits into the room, and neither into nose nor sinuses
MIN_HEAD_ML = 300.0  # less soft tissue, or a smaller opened body: bone alone
MAX_SAMPLES, MIN_SAMPLES = 100_000, 500  # voxels of soft tissue in which noise and streaks are measured
MIN_ISLAND_ML = 1.0  # loose pieces of bone that are smaller are removed
SCALP_MM = 2.0  # over 95 % of a loose piece; with less it is a holder, flush with the skin
DEEP_MM = 25.0  # below the skin; a loose piece deeper than this is contrast medium or neck, not vault


@dataclass(frozen=True)
class Segmentation:
    """A skull and the quality of the CT that it was segmented from.

    skull: on the CT's grid; what else is dense in the CT is its `loose`. removed_ml: as dense as bone, but removed.
    metal_ml: in the head and near it. metal_ignored: whether it was left out of the skull.
    noise: HU, standard deviation in the soft tissue of the head; None without soft tissue.
    streaks: HU by which soft tissue varies more in slices (third index) with metal; None without metal.
    """

    skull: Volume
    removed_ml: float
    metal_ml: float
    noise: float | None
    streaks: float | None
    metal_ignored: bool = False


def segment(ct: Scan, threshold: int = THRESHOLD, ignore_metal: bool = False) -> Segmentation:
    """The skull in a CT: the largest component of bone, and islands of 1 ml or more near the head's surface.

    threshold: HU from which a voxel is bone. ignore_metal: metal, and the millimetre around it, is no bone. Raises
    InputError for a CT without bone and a threshold out of range.
    """
    low, high = THRESHOLD_RANGE
    if not low <= threshold <= high:
        raise InputError(f"threshold: expected {low} to {high} HU, got {threshold}; bone begins at about {THRESHOLD}")
    dense = ct.values >= threshold
    head = _find_head(ct)
    first, last = bounding_box(dense)
    if not (last > first).all():
        raise InputError(
            f"no bone: expected voxels of {threshold} HU or more, got none; give a CT of a head, or a lower threshold"
        )
    box = box_slices(first, last)
    near = dense[box] if head is None else dense[box] & head.holds(ct.values[box], first)
    if not near.any():
        raise InputError(
            f"no bone: expected {threshold} HU or more within the head, got none; give a CT of a head, or a lower "
            "threshold"
        )

    metal = near & (ct.values[box] >= METAL)
    if ignore_metal:
        radius = np.maximum(1, np.round(METAL_RIM_MM / ct.distances)).astype(int)
        rim = ndimage.maximum_filter(metal, 2 * radius + 1)
        near, dense[box] = near & ~rim, dense[box] & ~rim
    mask = np.zeros(dense.shape, bool, order="F")
    mask[box] = _skull_components(near, head, first, abs(np.linalg.det(ct.affine[:3, :3])) / 1000)
    skull = Volume(mask, ct.affine, ct.header, dense & ~mask)
    slices = np.zeros(dense.shape[2], bool)
    slices[box[2]] = metal.any((0, 1))
    noise, streaks = (None, None) if head is None else _noise_and_streaks(ct, head, threshold, slices)
    removed = np.count_nonzero(ct.values >= threshold) - np.count_nonzero(skull.mask)
    metal_ml = float(np.count_nonzero(metal) * skull.voxel_ml)
    return Segmentation(skull, float(removed * skull.voxel_ml), metal_ml, noise, streaks, ignore_metal)


@dataclass(frozen=True)
class _Head:
    """The patient's head on a coarse grid, every `step` voxels.

    outside: mm to it; depth: mm below its surface; cover: mm below the room's air, which ends at the nostrils.
    """

    outside: np.ndarray
    depth: np.ndarray
    cover: np.ndarray
    step: np.ndarray

    def holds(self, values: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Where bone counts among voxels (i, j, k) in HU that begin at index `first`: in the head and near it.

        Farther out it counts under the skin. Metal there is a pin of the holder.
        """
        at = np.ix_(*(np.arange(a, a + n) // step for a, n, step in zip(first, values.shape, self.step, strict=True)))
        under_skin = (self.outside <= REACH_MM) & (self.cover >= SCALP_MM)
        return (self.outside <= NEAR_HEAD_MM)[at] | (under_skin[at] & (values < METAL))

    def is_island(self, index: np.ndarray) -> bool:
        """Whether voxels (N, 3) lie under the scalp and not deeper than the vault."""
        top, middle = np.percentile(self.depth[tuple((index // self.step).T)], [5, 50])
        return bool(top >= SCALP_MM and middle <= DEEP_MM)


def _find_head(ct: Scan) -> _Head | None:
    """The patient's head, None for bone without soft tissue.

    All that is denser than air is opened by a ball. This removes table and holder, which are shells, even where they
    touch the head. Air inside is filled before. A sinus opens into the nose and so into the room, but in axial slices
    its wall is a closed ring: without the filling of slices too, the front wall of the sinus would be a shell.
    """
    step = np.maximum(1, np.round(COARSE_MM / ct.distances)).astype(int)
    # Sampled, not averaged: the mean of shell and air would be neither.
    values = ct.values[tuple(slice(None, None, s) for s in step)]
    voxel_ml = abs(np.linalg.det(ct.affine[:3, :3])) * step.prod() / 1000
    if np.count_nonzero((values > BODY) & (values < THRESHOLD)) * voxel_ml < MIN_HEAD_ML:
        return None
    body = values > BODY
    upright = int(np.abs(ct.affine[2, :3] / np.linalg.norm(ct.affine[:3, :3], axis=0)).argmax())
    slices = np.moveaxis(ndimage.binary_fill_holes(body), upright, 0)
    solid = np.moveaxis(np.stack([ndimage.binary_fill_holes(image) for image in slices]), 0, upright)
    spacing = plane_distances(ct.affine @ np.diag([*step, 1.0]))
    core = largest_components(ndimage.distance_transform_edt(solid, spacing) > OPENING_MM)
    if not core.any():
        return None
    outside = np.maximum(ndimage.distance_transform_edt(~core, spacing) - OPENING_MM, 0)
    head = outside == 0
    if np.count_nonzero(head) * voxel_ml < MIN_HEAD_ML:
        return None
    room = ndimage.distance_transform_edt(~body, spacing) > ROOM_MM
    room = ndimage.distance_transform_edt(~room, spacing) <= ROOM_MM
    # A surface lies half way to the first voxel beyond it.
    depth, cover = (
        np.maximum(ndimage.distance_transform_edt(inside, spacing) - spacing.min() / 2, 0) for inside in (head, ~room)
    )
    return _Head(outside, depth, cover, step)


def _skull_components(near: np.ndarray, head: _Head | None, first: np.ndarray, voxel_ml: float) -> np.ndarray:
    """The largest component of the bone (i, j, k) near the head, and islands of bone under the scalp.

    first: (3,) index of the first voxel in the CT.
    """
    labels, _ = ndimage.label(near)
    counts = np.bincount(labels.ravel())
    counts[0] = 0
    selected = counts == counts.max()
    if head is not None:
        boxes = ndimage.find_objects(labels)
        for label in np.flatnonzero((counts * voxel_ml >= MIN_ISLAND_ML) & ~selected):
            box = boxes[label - 1]
            corner = first + [along.start for along in box]
            selected[label] = head.is_island(np.argwhere(labels[box] == label) + corner)
    return selected[labels]


def _noise_and_streaks(ct: Scan, head: _Head, threshold: int, metal: np.ndarray) -> tuple[float | None, float | None]:
    """(noise, streaks) in HU of soft tissue deep in the head, see `Segmentation`. metal: (K,) bool, slices with metal.

    Noise is the robust standard deviation of the difference between neighbours. Streaks are the additional standard
    deviation, in quadrature, of the tissue in slices with metal.
    """
    deep = np.argwhere(head.depth > DEEP_MM) * head.step
    deep = deep[deep[:, 0] + 1 < ct.values.shape[0]]
    deep = deep[:: max(1, len(deep) // MAX_SAMPLES)]
    here = ct.values[tuple(deep.T)].astype(float)
    neighbour = ct.values[tuple((deep + np.array([1, 0, 0])).T)].astype(float)
    soft = (np.minimum(here, neighbour) > BODY) & (np.maximum(here, neighbour) < max(threshold, THRESHOLD))
    here, neighbour, near_metal = here[soft], neighbour[soft], metal[deep[soft, 2]]
    if len(here) < MIN_SAMPLES:
        return None, None
    noise = _robust_std(here - neighbour) / math.sqrt(2)
    if min(np.count_nonzero(near_metal), np.count_nonzero(~near_metal)) < MIN_SAMPLES:
        return noise, None
    more = _robust_std(here[near_metal]) ** 2 - _robust_std(here[~near_metal]) ** 2
    return noise, math.sqrt(max(more, 0.0))


def _robust_std(values: np.ndarray) -> float:
    """1.4826 times the median absolute deviation."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))
