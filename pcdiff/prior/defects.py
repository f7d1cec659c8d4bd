"""Defects of a posed skull: regions of the map over which the bone is absent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from pcdiff.errors import InputError
from pcdiff.geometry.directions import unit
from pcdiff.geometry.volume import Volume
from pcdiff.prior.direction_map import MAP, PIXEL, Pose
from pcdiff.prior.settings import DefectSettings

VAULT = MAP.directions[:, 2] > np.cos(np.deg2rad(55.0))  # (R,) the cone around the vertex that a scan has to cover
MAX_CUT, WARN_CUT = 0.10, 0.01  # share of its rays along which bone reaches the edge of the scan
MAX_UNSEEN = 0.02  # share of its rays without bone that leave the scan before the middle of the missing bone
WARN_LOST_CM2 = 2.0  # of a defect, where the outer table is expected outside of the scan
MIN_USUAL = 0.6  # share of a defect over which healthy heads have bone; ten true ones of the suite have at least 0.74
MAX_CUT_BORDER_MM = 15.0  # of a defect's border along such bone


DefectNumbers = Sequence[int] | Literal["clear", "all"]  # `clear`: all but the doubtful ones
DefectChoice = DefectNumbers | Volume  # a mask: whatever bone is absent within it


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
    openings = _bordered_openings(absent, in_view, usually_bone, settings)
    return _numbered(region for region, area, _ in openings if area >= settings.min_area_cm2)


def small_openings(
    absent: np.ndarray, in_view: np.ndarray, usually_bone: np.ndarray, settings: DefectSettings
) -> np.ndarray:
    """(R,) int labels of openings that are too small for a defect, such as burr holes, where healthy heads have bone.

    Arguments as in `find_defects`.
    """
    openings = _bordered_openings(absent, in_view, usually_bone, settings)
    return _numbered(region for region, area, share in openings if area < settings.min_area_cm2 and share >= MIN_USUAL)


def _numbered(regions: Iterator[np.ndarray]) -> np.ndarray:
    """(R,) int: k on the rays of the k-th region, (SIZE, SIZE) bool each."""
    labels = np.zeros(MAP.inside.shape, int)
    for number, region in enumerate(regions, 1):
        labels[region] = number
    return labels[MAP.inside]


def _bordered_openings(
    absent: np.ndarray, in_view: np.ndarray, usually_bone: np.ndarray, settings: DefectSettings
) -> Iterator[tuple[np.ndarray, float, float]]:
    """Each region of absent bone that bone borders, (SIZE, SIZE) bool; cm2 and share of it where bone is usual."""
    regions = _smooth_regions(MAP.to_image(absent, False), settings.opening_mm)
    labels, count = ndimage.label(regions & MAP.inside)
    usual, bone = MAP.to_image(usually_bone, False), MAP.to_image(in_view & ~absent, False)
    beside_edge = ndimage.binary_dilation(~MAP.to_image(in_view, False))
    for label in range(1, count + 1):
        region = labels == label
        border = ndimage.binary_dilation(region) & ~region
        share = usual[region].mean()
        area = np.count_nonzero(region & usual) * PIXEL**2 / 100
        bordered = np.count_nonzero(border & bone) >= settings.min_bone_border * np.count_nonzero(border)
        # a low strip along the edge of the map or of the field of view is a missing face
        length = np.count_nonzero(region & beside_edge) * PIXEL  # mm
        height = np.count_nonzero(region) * PIXEL**2 / max(length, PIXEL)  # mm
        if bordered and height >= max(settings.min_strip_mm, settings.min_strip_ratio * length):
            yield region, area, float(share)


def rays_through(region: Volume, pose: Pose) -> np.ndarray:
    """(R,) bool: the rays through the voxels of a mask; where it is coarse, also those between its voxels."""
    points = pose.to_model(region.to_mm(np.argwhere(region.mask).astype(float)))
    pixels = np.rint(MAP.to_pixel(unit(points))).astype(int)
    gap = int(np.ceil(region.spacing.max() / PIXEL))  # pixels
    drawn = np.zeros(np.add(MAP.inside.shape, 2 * gap), bool)
    drawn[tuple(pixels[((pixels >= 0) & (pixels < MAP.inside.shape)).all(1)].T + gap)] = True
    closed = ndimage.binary_closing(drawn, iterations=gap)[gap:-gap, gap:-gap]
    return np.asarray(closed[MAP.inside])


def defects_within(drawn: np.ndarray, absent: np.ndarray, opening_mm: float) -> np.ndarray:
    """(R,) int labels of the absent bone on the rays of a region that a person drew: natural openings count, too.

    drawn, absent: (R,) bool. opening_mm: see `DefectSettings`. Raises InputError where no bone is absent.
    """
    region = MAP.to_image(drawn, False)
    labels, count = ndimage.label(_smooth_regions(MAP.to_image(absent, False) & region, opening_mm) & region)
    if not count:
        raise InputError(
            "no bone is absent within the region: expected a mask of what is to be closed, got one over bone alone, "
            "or narrower than a defect; draw it through the opening"
        )
    return np.asarray(labels[MAP.inside])


def doubtful_defects(defect: np.ndarray, usually_bone: np.ndarray) -> tuple[int, ...]:
    """Labels of the defects (R,) that may be natural openings, such as an orbit: many healthy heads have no bone there.

    usually_bone: (R,) bool, see `find_defects`.
    """
    labels = range(1, int(defect.max(initial=0)) + 1)
    return tuple(label for label in labels if usually_bone[defect == label].mean() < MIN_USUAL)


def choose_defects(count: int, doubtful: Sequence[int], choice: DefectNumbers) -> tuple[list[int], tuple[str, ...]]:
    """(numbers of the chosen defects, ascending; a line that names those left out for doubt), of defects 1 to `count`.

    Raises InputError for a number that there is not, and where every defect is doubtful.
    """
    numbers = list(range(1, count + 1))
    if choice == "all":
        return numbers, ()
    if choice != "clear":
        wanted = sorted({int(number) for number in choice})
        if unknown := [number for number in wanted if number not in numbers]:
            raise InputError(
                f"--defect: expected a number from 1 to {count}, got {unknown[0]}; pcdiff info SCAN lists the defects"
            )
        if not wanted:
            raise InputError(
                f"expected the number of a defect, from 1 to {count}, got none; pcdiff info SCAN lists them"
            )
        return wanted, ()
    if not doubtful:
        return numbers, ()
    why = (
        f"opening {', '.join(map(str, doubtful))} may be natural "
        f"({'an orbit or the nose' if len(doubtful) == 1 else 'orbits or nose'}): many healthy heads have no bone there"
    )
    remedy = f"pcdiff info SCAN shows where, --defect {doubtful[0]} chooses it"
    if not (clear := [number for number in numbers if number not in doubtful]):
        raise InputError(f"no defect found beyond doubt: {why}; {remedy}")
    return clear, (f"{why}, and it is left out; {remedy}",)


def with_defects(observation: Observation, numbers: Sequence[int]) -> Observation:
    """The observation with some of its defects, ascending, numbered anew from 1."""
    labels = np.zeros_like(observation.defect)
    for new, old in enumerate(numbers, 1):
        labels[observation.defect == old] = new
    return open_rays(observation.outer, observation.thickness, labels)


def _smooth_regions(absent: np.ndarray, opening_mm: float) -> np.ndarray:
    """(SIZE, SIZE) bool: absent bone without narrow gaps, closed and filled."""
    radius, around = int(np.ceil(opening_mm / PIXEL)), disc(opening_mm)
    core = ndimage.binary_opening(absent, around)
    grown = ndimage.binary_dilation(core, iterations=radius, mask=absent)  # restores corners that the opening removed
    closed = ndimage.binary_closing(np.pad(grown, radius), around)[radius:-radius, radius:-radius]
    return ndimage.binary_fill_holes(closed)


def disc(radius_mm: float) -> np.ndarray:
    """Pixels of the map within a radius, as a structuring element."""
    radius = int(np.ceil(radius_mm / PIXEL))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return np.asarray(np.hypot(x, y) <= radius_mm / PIXEL)


def check_view(cut: np.ndarray, unseen: np.ndarray) -> None:
    """Raises InputError where the scan ends below the top of the head.

    cut: (R,) bool, bone reaches the edge of the scan. unseen: (R,) bool, no bone up to there, and none expected before.
    """
    cut_share = cut[VAULT].mean()
    if cut_share > MAX_CUT:
        raise InputError(
            f"head cut off at the vault: expected the scan to cover the top of the head, got bone at the scan's edge "
            f"over {cut_share:.0%} of it; use a scan that covers the whole vault"
        )
    _check_unseen(unseen)


def _check_unseen(unseen: np.ndarray) -> None:
    if (share := unseen[VAULT].mean()) > MAX_UNSEEN:
        raise InputError(
            f"head cut off at the vault: expected the scan to cover the missing bone, got {share:.0%} of the "
            "vault outside of it; use a scan that covers the whole vault"
        )


def check_reach(middle: np.ndarray, outer: np.ndarray) -> tuple[str, ...]:
    """Warnings where the completed bone reaches a little beyond the scan.

    middle, outer: (R,) bool, the middle and the outer table of the bone over a defect lie outside of the scan. Raises
    InputError as `check_view`, whose bone is only a first guess.
    """
    _check_unseen(middle)
    lost = np.count_nonzero(outer & VAULT) * PIXEL**2 / 100
    if lost <= WARN_LOST_CM2:
        return ()
    return (
        f"over {lost:.0f} cm2 of the defect the missing bone is expected to reach beyond the scan, and the implant "
        "ends there; use a scan that covers the whole vault",
    )


def check_cut(cut: np.ndarray, defect: np.ndarray) -> tuple[str, ...]:
    """Warnings where the scan cuts a little of the vault.

    cut: (R,) bool as in `check_view`. defect: (R,) int labels. Raises InputError where the scan cuts the bone beside a
    defect.
    """
    border = ndimage.binary_dilation(MAP.to_image(defect > 0, False), iterations=2)[MAP.inside] & cut
    share = cut[VAULT].mean()
    if share > WARN_CUT and np.count_nonzero(border) * PIXEL > MAX_CUT_BORDER_MM:
        raise InputError(
            "the defect reaches the edge of the scan: expected bone around it, got a scan that ends there; use a scan "
            "that covers the whole vault"
        )
    if share <= WARN_CUT:
        return ()
    return (f"the scan cuts {share:.0%} of the vault off, away from the defect: the design goes on without it",)
