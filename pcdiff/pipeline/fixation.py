"""Marks for plates and screws along the rim of an implant: places where the bone beside it is thick enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.ndimage import gaussian_filter1d, map_coordinates
from scipy.spatial import cKDTree

from pcdiff.checks.distances import OUTER_COSINE, outward_cosine
from pcdiff.geometry.directions import unit
from pcdiff.geometry.grid import bounding_box
from pcdiff.geometry.interpolator import Interpolator
from pcdiff.geometry.mesh import Mesh
from pcdiff.geometry.volume import Volume
from pcdiff.prior.direction_map import MAP, crossing, profiles
from pcdiff.prior.fit import PriorFit

MIN_BONE_MM = 3.0  # screws of cranial plates are 3 to 5 mm long
MIN_IMPLANT_MM = 1.5  # as the check of the thickness
BESIDE_MM = (4.0, 6.0, 8.0)  # from the rim, where the screws of a plate are
AROUND_MM = 25.0  # of the defect and of the implant, where the rim is looked for
NEAR_PX = 4  # of the map; from a defect to what closes it
STATION_MM = 1.0  # along the rim
SMOOTH = 3.0  # stations, standard deviation: the map's pixels are stairs
ABOVE_MM, BELOW_MM, STEP_MM = 4.0, 20.0, 0.25  # along a normal, from the expected outer surface
MAX_STEP_MM = 3.0  # from the expected to the bone's surface: farther off it is other bone
PORE_MM = 1.0  # longer gaps end the bone: a sinus, or the head's inside
MAX_SHIFT = 0.3  # of the distance between two places


@dataclass(frozen=True)
class FixationPlace:
    """A place on the rim. defect: its label. point: (3,) mm, LPS, on the outer surface.

    normal: (3,) unit, out of the head. across: (3,) unit, from bone to implant. bone_mm, implant_mm: the least
    thickness beside it, under a plate.
    """

    defect: int
    point: np.ndarray
    normal: np.ndarray
    across: np.ndarray
    bone_mm: float
    implant_mm: float

    def record(self) -> dict[str, Any]:
        """For `run.json`."""
        vectors = {"point": self.point, "normal": self.normal, "across": self.across}
        places = {name: [round(float(x), 3) for x in vector] for name, vector in vectors.items()}
        thickness = {"bone_mm": round(self.bone_mm, 1), "implant_mm": round(self.implant_mm, 1)}
        return {"defect": self.defect, **places, **thickness}


def fixation_places(
    fit: PriorFit, skull: Volume, implant: Volume, mesh: Mesh, thickness_mm: np.ndarray, count: int
) -> list[FixationPlace]:
    """Up to `count` places around each piece, evenly spaced by arc length, where bone and implant are thick enough.

    A place that falls on thin or missing bone moves along the rim by less than a third of the spacing, or is left out.

    Args:
        fit: Of the shape model, for the defects and the outer surface around them.
        skull: The defective skull.
        implant: On its grid.
        mesh: The implant's surface.
        thickness_mm: (V,) at its vertices.
        count: Of places around each piece.
    """
    low, high = bounding_box(implant.mask)
    margin = np.ceil(AROUND_MM * skull.voxels_per_mm).astype(int)
    bone, solid = skull.crop(low - margin, high + margin), implant.crop(low - margin, high + margin)
    outermost = _outermost(fit, bone, solid)
    outer = outward_cosine(mesh, fit.pose.shift) > OUTER_COSINE
    surface = cKDTree(mesh.vertices[outer]), thickness_mm[outer]
    places: list[FixationPlace] = []
    for label in range(1, fit.defects + 1):
        near = ndimage.binary_dilation(MAP.to_image(fit.defect == label, False), iterations=NEAR_PX)
        rim = _rim(fit, outermost & near)
        if rim is None:
            continue
        bone_mm = np.min([_bone_mm(bone, *_beside(fit, rim, mm)) for mm in BESIDE_MM], axis=0)
        implant_mm = np.min([_implant_mm(*surface, _beside(fit, rim, -mm)[0]) for mm in BESIDE_MM[:2]], axis=0)
        usable = (bone_mm >= MIN_BONE_MM) & (implant_mm >= MIN_IMPLANT_MM)
        points, normals = _beside(fit, rim, 0.0)
        inner, _ = _beside(fit, rim, -1.0)
        for k in _spread(usable, count):
            across = unit((inner[k] - points[k])[None])[0]
            places.append(FixationPlace(label, points[k], normals[k], across, float(bone_mm[k]), float(implant_mm[k])))
    return places


def few_places(found: int, count: int, defects: int) -> str:
    """A warning where fewer places were found than asked for."""
    asked = f"{count} places" if defects == 1 else f"{defects} x {count} places"
    return (
        f"{asked} for fixation asked for, {found} found: elsewhere the bone beside the rim is missing or thinner than "
        f"{MIN_BONE_MM:g} mm, or the implant thinner than {MIN_IMPLANT_MM:g} mm"
    )


@dataclass(frozen=True)
class _Rim:
    """Stations around a defect, on the map: (N, 2) pixels, and (N, 2) pixels per mm away from the defect."""

    pixels: np.ndarray
    away: np.ndarray


def _outermost(fit: PriorFit, bone: Volume, implant: Volume) -> np.ndarray:
    """(SIZE, SIZE) bool: rays that meet the implant first, from outside. A slanting rim is that of its outer edge."""
    rays = np.flatnonzero(fit.observation.distance <= AROUND_MM)
    tops = []
    for volume in (bone, implant):
        occupancy = volume.mask.astype(np.uint8) * np.uint8(255)
        top = crossing(profiles(occupancy, volume.affine, fit.pose, MAP.directions[rays]), None, outward=True)
        tops.append(np.nan_to_num(top, nan=0.0))
    found = np.zeros(len(MAP.directions), bool)
    found[rays] = tops[1] > tops[0]
    return MAP.to_image(found, False)


def _rim(fit: PriorFit, piece: np.ndarray) -> _Rim | None:
    """The rim of a piece, (SIZE, SIZE) bool; None without one."""
    contour = _contour(piece)
    if contour is None:
        return None
    pixels = gaussian_filter1d(contour, SMOOTH, axis=0, mode="wrap")
    for _ in range(2):  # the second time with stations at equal distances
        points = _surface(fit, pixels)
        arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0, append=points[:1]), axis=1))])
        closed = np.concatenate([pixels, pixels[:1]])
        stations = np.linspace(0, arc[-1], max(8, int(arc[-1] / STATION_MM)), endpoint=False)
        pixels = np.stack([np.interp(stations, arc, column) for column in closed.T], axis=1)
    along = np.roll(pixels, -1, axis=0) - np.roll(pixels, 1, axis=0)
    away = unit(np.stack([along[:, 1], -along[:, 0]], axis=1))  # the contour runs counter-clockwise
    mm = np.linalg.norm(_surface(fit, pixels + away) - _surface(fit, pixels), axis=1, keepdims=True)
    return _Rim(pixels, away / mm)


def _contour(mask: np.ndarray) -> np.ndarray | None:
    """(N, 2) pixels: the longest boundary of a mask, counter-clockwise, about a pixel between points."""
    from skimage.measure import find_contours

    lines = find_contours(np.pad(mask, 1).astype(float), 0.5)
    if not lines:
        return None
    line = max(lines, key=len)[:-1] - 1
    x, y = line.T
    return line if x @ np.roll(y, -1) > y @ np.roll(x, -1) else line[::-1]


def _surface(fit: PriorFit, pixels: np.ndarray) -> np.ndarray:
    """(N, 2) -> (N, 3) mm, LPS: the completed outer surface."""
    radius = map_coordinates(MAP.filled(fit.outer), pixels.T, order=1, mode="nearest")
    return fit.pose.to_patient(radius[:, None] * MAP.from_pixel(pixels))


def _beside(fit: PriorFit, rim: _Rim, mm: float) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) points of the outer surface so many mm away from the defect, and (N, 3) unit normals out of the head."""
    pixels = rim.pixels + mm * rim.away
    first, second = (_surface(fit, pixels + 2 * step) - _surface(fit, pixels - 2 * step) for step in np.eye(2))
    points = _surface(fit, pixels)
    normals = unit(np.cross(first, second))
    return points, normals * np.sign((normals * (points - fit.pose.shift)).sum(1, keepdims=True))


def _bone_mm(skull: Volume, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """(N,) mm of bone from its outer surface to the first gap; 0 where there is none near the point."""
    depth = np.arange(-ABOVE_MM, BELOW_MM, STEP_MM)
    line = points[:, None] - depth[:, None] * normals[:, None]
    index = skull.to_index(line.reshape(-1, 3)).T
    values = Interpolator(skull.mask.view(np.uint8) * np.uint8(200))(index)
    bone = values.reshape(line.shape[:2]) >= 100
    first = bone.argmax(axis=1)
    there = bone.any(axis=1) & (np.abs(depth[first]) <= MAX_STEP_MM)
    pore = round(PORE_MM / STEP_MM)
    gap = np.stack([~bone[:, k : bone.shape[1] - pore + k] for k in range(pore + 1)]).all(axis=0)  # from here on
    gap &= np.arange(gap.shape[1]) > first[:, None]
    end = np.where(gap.any(axis=1), gap.argmax(axis=1), bone.shape[1])
    return np.where(there, (end - first) * STEP_MM, 0.0)


def _implant_mm(tree: cKDTree, thickness_mm: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(N,) mm at the implant's outer surface nearest to each point; 0 where it is far."""
    far, nearest = tree.query(points)
    return np.where(far <= MAX_STEP_MM, np.nan_to_num(thickness_mm[nearest]), 0.0)


def _spread(usable: np.ndarray, count: int) -> list[int]:
    """Stations, (N,) around a rim, that are usable and as evenly spaced as they can be; at most `count`."""
    stations, spacing = len(usable), len(usable) / count
    good = np.flatnonzero(usable)
    best: list[int] = []
    cost = np.inf
    for phase in range(int(np.ceil(spacing))):
        chosen, moved = [], 0.0
        for wanted in (phase + spacing * np.arange(count)) % stations:
            away = np.abs((good - wanted + stations / 2) % stations - stations / 2)
            if len(good) and away.min() <= MAX_SHIFT * spacing:
                chosen.append(int(good[away.argmin()]))
                moved += float(away.min())
        if (len(best), -cost) < (len(chosen), -moved):
            best, cost = chosen, moved
    return best
