"""Directions from the cranial centre, laid out on a map; the skull along each of them as two radii.

The vault is, to a good approximation, a height field over directions: a ray from the cranial centre crosses the inner
table, then the outer table. The approximation fails where a ray crosses bone more than once (orbital roof, zygoma,
mastoid): there the two radii describe the crossing nearest to the expected one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates
from scipy.sparse import csr_array

from pcdiff.environment import side_by_side
from pcdiff.geometry.directions import unit
from pcdiff.geometry.interpolator import Interpolator

SIZE = 199  # pixels along a side of the map
PIXEL = 1.5  # mm of arc per pixel at the reference radius
RADIUS = 85.0  # mm, the reference radius, typical of a head; chord distances between directions are taken there
TILT_DEG = 15.0  # the pole leans back, so that the map covers the occiput and not the face
MAX_ANGLE_DEG = 120.0  # from the pole to the map's edge
TILT, MAX_ANGLE = np.deg2rad(TILT_DEG), np.deg2rad(MAX_ANGLE_DEG)
RADII = np.arange(30.0, 125.25, 0.5, dtype=np.float32)  # mm, the samples along a ray

RAYS_AT_A_TIME = 1024  # whose samples are looked up


@dataclass(frozen=True)
class DirectionMap:
    """Lambert's azimuthal equal-area map of directions; mirroring a head left-right flips the map's first axis.

    Every array over directions in this package is flat, (R,), in the order of `index`; `to_image` lays it out.
    """

    @cached_property
    def _grid(self) -> tuple[np.ndarray, np.ndarray]:
        pixels = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij"), -1).astype(float)
        inside = np.linalg.norm(pixels - (SIZE - 1) / 2, axis=-1) * PIXEL <= 2 * RADIUS * np.sin(MAX_ANGLE / 2)
        return inside, self.from_pixel(pixels)

    @cached_property
    def inside(self) -> np.ndarray:
        """(SIZE, SIZE) bool: the pixels that hold a direction."""
        return self._grid[0]

    @cached_property
    def directions(self) -> np.ndarray:
        """(R, 3) unit vectors, model axes (x left, y posterior, z superior)."""
        return self._grid[1][self.inside]

    @cached_property
    def mirror(self) -> np.ndarray:
        """(R,) int: the ray of the mirrored direction (x -> -x)."""
        return self._numbers[::-1][self.inside]

    @cached_property
    def _numbers(self) -> np.ndarray:
        """(SIZE, SIZE) int: the ray of each pixel, -1 outside the map."""
        return self.to_image(np.arange(self.inside.sum()), -1)

    def to_image(self, values: np.ndarray, fill: float = 0) -> np.ndarray:
        """(R, ...) -> (SIZE, SIZE, ...), `fill` outside the map."""
        image = np.full((SIZE, SIZE, *values.shape[1:]), fill, values.dtype)
        image[self.inside] = values
        return image

    def filled(self, values: np.ndarray) -> np.ndarray:
        """(R,) -> (SIZE, SIZE); pixels off the map and rays that are not finite take the value of the nearest ray."""
        known = self.to_image(np.isfinite(values), False)
        nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
        return self.to_image(values)[tuple(nearest)]

    def from_pixel(self, pixels: np.ndarray) -> np.ndarray:
        """(..., 2) continuous pixel coordinates -> (..., 3) unit vectors; undoes `to_pixel`."""
        u, v = np.moveaxis(np.asarray(pixels, float) - (SIZE - 1) / 2, -1, 0)
        theta = 2 * np.arcsin(np.clip(np.hypot(u, v) * PIXEL / (2 * RADIUS), 0, 1))
        phi = np.arctan2(v, u)
        local = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], -1)
        return local @ map_axes().T

    def to_pixel(self, directions: np.ndarray) -> np.ndarray:
        """(..., 3) unit vectors -> (..., 2) continuous pixel coordinates, also for directions beyond the map's edge."""
        local = directions @ map_axes()
        # rho = 2 R sin(theta / 2) = R sqrt(2 (1 - cos theta)); at the antipole the azimuth is undefined
        scale = np.sqrt(2 / np.maximum(1 + local[..., 2], 1e-9)) * RADIUS / PIXEL
        return local[..., :2] * scale[..., None] + (SIZE - 1) / 2

    def sample(self, image: np.ndarray, directions: np.ndarray, fill: float = np.nan) -> np.ndarray:
        """Bilinear values of a (SIZE, SIZE) image at (N, 3) directions."""
        return map_coordinates(image, self.to_pixel(directions).T, order=1, cval=fill)

    def every_second(self, rays: np.ndarray) -> tuple[np.ndarray, csr_array]:
        """Rays (N,) of every second row and column around `rays` (T,), and weights (T, N) that interpolate from them.

        Bilinear. A ray at the map's edge, where some of them are missing, is one of the N itself.
        """
        pixels = np.argwhere(self.inside)[rays]
        number = np.pad(self._numbers, (0, 2), constant_values=-1)
        corners = (pixels - pixels % 2)[:, None] + 2 * np.array([(0, 0), (0, 1), (1, 0), (1, 1)])  # (T, 4, 2)
        weight = (1 - np.abs(pixels[:, None] - corners) / 2).prod(-1)
        at = number[corners[..., 0], corners[..., 1]]
        at_edge = ((at < 0) & (weight > 0)).any(1)
        at[at_edge], weight[at_edge] = rays[at_edge, None], 0.25
        target, corner = np.nonzero(weight)
        some, column = np.unique(at[target, corner], return_inverse=True)
        return some, csr_array((weight[target, corner], (target, column)), (len(rays), len(some)))

    def nearest(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        """(N,) values of the pixels of a (SIZE, SIZE) image through which (N, 3) points are seen; 0 off the map."""
        return map_coordinates(image, self.to_pixel(unit(points)).T, order=0)

    def smoothed(self, values: np.ndarray, sigma: float, known: np.ndarray | None = None) -> np.ndarray:
        """(R,) values smoothed by a Gaussian of `sigma` pixels; known: (R,) bool, rays with weight (default: all)."""
        weight = self.to_image(np.ones(len(values)) if known is None else known.astype(float))
        total = gaussian_filter(self.to_image(values) * weight, sigma)
        return (total / np.maximum(gaussian_filter(weight, sigma), 1e-6))[self.inside]


def map_axes() -> np.ndarray:
    """(3, 3) rotation about x: the map's own axes -> model axes; its pole becomes (0, sin, cos) of the tilt."""
    c, s = np.cos(TILT), np.sin(TILT)
    return np.array([[1, 0, 0], [0, c, s], [0, -s, c]])


MAP = DirectionMap()


@dataclass(frozen=True)
class Pose:
    """Model -> patient: p = linear @ q + shift, with linear = rotation @ diag(three scales). (3, 3), (3,) mm."""

    linear: np.ndarray
    shift: np.ndarray

    def to_patient(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) model mm -> (..., 3) patient mm."""
        return points @ self.linear.T + self.shift

    def to_model(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) patient mm -> (..., 3) model mm."""
        return (points - self.shift) @ np.linalg.inv(self.linear).T


def surface_elements(surface: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Area elements and normals of a surface sampled on a grid.

    surface: (U, V, 3) mm. Returns the area of each grid cell, (U, V) mm2, and unit normals (U, V, 3) along the cross
    product of the steps in U and V; 0 where the area is 0.
    """
    cross = np.cross(np.gradient(surface, axis=0), np.gradient(surface, axis=1))
    area = np.linalg.norm(cross, axis=-1)
    return area, cross / np.maximum(area, 1e-9)[..., None]


def outward_normals(radius: np.ndarray) -> np.ndarray:
    """(R,) mm -> (SIZE, SIZE, 3) outward unit normals of the surface radius * direction; 0 outside the map."""
    surface = MAP.to_image(radius[:, None] * MAP.directions)
    _, normal = surface_elements(surface)
    return normal * np.sign((normal * MAP.to_image(MAP.directions)).sum(-1, keepdims=True))


def ray_index(affine: np.ndarray, pose: Pose, directions: np.ndarray, radii: np.ndarray = RADII) -> np.ndarray:
    """(3, R, S) float32: continuous index on a grid of points along rays from the pose's centre.

    affine: (4, 4) index -> mm. directions: (R, 3). radii: (S,) model mm.
    """
    to_index = np.linalg.inv(affine)
    step = (directions @ (to_index[:3, :3] @ pose.linear).T).astype(np.float32)  # (R, 3) voxels per mm
    start = (to_index[:3, :3] @ pose.shift + to_index[:3, 3]).astype(np.float32)
    index = step.T[:, :, None] * radii.astype(np.float32)
    index += start[:, None, None]
    return index


def in_grid(index: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(3, ...) continuous index -> (...) bool: whether it lies within the voxels of a grid."""
    limit = np.array(shape, np.float32).reshape(3, *[1] * (index.ndim - 1))
    return np.asarray(((index > -0.5) & (index < limit - 0.5)).all(0))


def profiles(
    occupancy: np.ndarray, affine: np.ndarray, pose: Pose, directions: np.ndarray, radii: np.ndarray = RADII
) -> np.ndarray:
    """Occupancy along rays from the pose's centre, (R, S) float32 in [0, 1]; 0 beyond the grid.

    occupancy: (I, J, K) uint8, 255 = bone. Others as in `ray_index`.
    """
    bone, values = Interpolator(occupancy), np.empty((len(directions), len(radii)), np.float32)

    def look_up(first: int) -> None:
        rays = slice(first, first + RAYS_AT_A_TIME)
        values[rays] = bone(ray_index(affine, pose, directions[rays], radii))

    side_by_side(look_up, range(0, len(directions), RAYS_AT_A_TIME))
    values /= 255
    return values


def crossing(profile: np.ndarray, target: np.ndarray | None, outward: bool, radii: np.ndarray = RADII) -> np.ndarray:
    """The half-level crossing nearest to a target radius, (R,) mm; NaN for a ray without a crossing.

    profile: (R, S). target: (R,) mm; None selects the outermost crossing. outward=True: bone ends going outward (an
    outer table); False: bone begins (an inner table).
    """
    ray, radius = _crossings(profile, outward, radii)
    cost = -radius if target is None else np.abs(radius - target[ray])
    return _cheapest(len(profile), ray, radius, cost)


def inner_table(profile: np.ndarray, expected: np.ndarray, reach: float, radii: np.ndarray = RADII) -> np.ndarray:
    """The smallest radius at which bone begins within `reach` mm of the expected one, (R,) mm; NaN without any.

    The smallest and not the nearest, because a thresholded mask has pores in the diploe, behind which bone begins too.
    """
    ray, radius = _crossings(profile, False, radii)
    near = np.abs(radius - expected[ray]) <= reach
    return _cheapest(len(profile), ray[near], radius[near], radius[near])


def _crossings(profile: np.ndarray, outward: bool, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every half-level crossing between neighbouring samples: its ray, (N,) int, and its radius, (N,) mm."""
    bone = profile >= 0.5
    ray, sample = np.nonzero(bone[:, :-1] & ~bone[:, 1:] if outward else ~bone[:, :-1] & bone[:, 1:])
    a, b = profile[ray, sample], profile[ray, sample + 1]
    return ray, radii[sample] + (radii[sample + 1] - radii[sample]) * (0.5 - a) / (b - a)


def _cheapest(rays: int, ray: np.ndarray, radius: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """(R,) the radius of least cost of each ray, NaN for one without; ray, radius, cost: (N,)."""
    found = np.full(rays, np.nan, radius.dtype)
    dearest_first = np.lexsort((cost, ray))[::-1]
    found[ray[dearest_first]] = radius[dearest_first]  # the last one assigned stays
    return found
