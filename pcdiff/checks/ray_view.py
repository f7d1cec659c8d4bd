"""Skull and implant sampled along fine rays from the cranial centre; most checks measure on these samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from pcdiff.checks.continuation import continued_surface
from pcdiff.geometry.grid import bounding_box
from pcdiff.geometry.interpolator import Interpolator
from pcdiff.geometry.volume import Volume
from pcdiff.prior.direction_map import MAP, PIXEL, Pose, surface_elements
from pcdiff.prior.fit import PriorFit

RAYS_PER_PIXEL = 2  # of the direction map, along each side: rays about 0.75 mm apart
SURROUNDINGS_MM = 10.0  # bone around defect and implant that is looked at
HEIGHTS = np.arange(-26.0, 12.25, 0.5)  # mm along a ray, from the completed outer surface
VAULT_MM = 4.0  # bone farther than this from both expected surfaces is not of the vault, but of the skull base


@dataclass(frozen=True)
class CompletedVault:
    """The completed cranial vault, which an implant is compared with: radii along the rays of the direction map.

    pose: from patient to model coordinates. outer, thickness: (R,) model mm, NaN where unknown. defect: (R,) int
    labels, 0 on bone. measured: (R,) model mm, outer radius of the bone that is there, NaN where there is none.
    """

    pose: Pose
    outer: np.ndarray
    thickness: np.ndarray
    defect: np.ndarray
    measured: np.ndarray

    @classmethod
    def of(cls, fit: PriorFit) -> CompletedVault:
        """The vault as the fitted statistical shape model completes it."""
        return cls(fit.pose, fit.outer, fit.thickness, fit.defect, fit.observation.outer)

    @property
    def mirrored(self) -> np.ndarray:
        """(R,) model mm, outer radius of bone on the other side, NaN where there is none."""
        return self.measured[MAP.mirror]

    @cached_property
    def continued(self) -> np.ndarray:
        """(R,) model mm, outer radius at which bone would continue in the defects, NaN elsewhere."""
        rays, radius = continued_surface(self.measured, self.defect)
        beyond = np.full(len(MAP.directions), np.nan)
        beyond[rays] = radius
        return beyond

    @property
    def defects(self) -> int:
        """Number of defects."""
        return int(self.defect.max(initial=0))


@dataclass(frozen=True)
class RayView:
    """Samples along fine rays through the defects and their surroundings.

    Images (U, V), one value per ray. Heights are model mm along the ray, from the completed outer surface outward.
    defect: int labels, 0 on bone. inner: height of the completed inner surface, negative. mirrored: height of the
    outer surface on the other side, NaN where unknown. continued: that of the bone around, continued over the rim of
    the defect, NaN elsewhere. mm: patient mm per unit of height, perpendicular to the
    surface. area: mm2 of the completed outer surface per ray.
    bone, implant: (U, V, H) occupancy, 0 to 1, at `HEIGHTS`.
    """

    defect: np.ndarray
    inner: np.ndarray
    mirrored: np.ndarray
    continued: np.ndarray
    mm: np.ndarray
    area: np.ndarray
    bone: np.ndarray
    implant: np.ndarray

    @classmethod
    def of(cls, vault: CompletedVault, skull: Volume, implant: Volume) -> RayView:
        """Samples skull and implant, which lie on one grid, around the defects and the implant."""
        skull, implant = _around_defects(vault, skull, implant)
        pixels, shape = _window(vault, implant)
        outer, thickness = (
            _interpolate(MAP.filled(values), pixels).reshape(shape) for values in (vault.outer, vault.thickness)
        )
        directions = MAP.from_pixel(pixels).reshape(*shape, 3)
        area, normal = _area_and_normal(vault.pose.to_patient(outer[..., None] * directions))
        along = directions @ vault.pose.linear.T  # patient mm per model mm of radius
        mm = np.abs((along * normal).sum(-1))
        # a ray is a straight line on the grid too: all its samples are multiples of one step, (3, U, V, H)
        step = np.moveaxis(along @ np.linalg.inv(skull.affine[:3, :3]).T, -1, 0).astype(np.float32)[..., None]
        start = skull.to_index(vault.pose.shift).astype(np.float32)[:, None, None, None]
        index = (start + step * (outer[..., None] + HEIGHTS).astype(np.float32)).reshape(3, -1)
        far = (-(thickness + VAULT_MM)[..., None] > HEIGHTS) | (HEIGHTS > VAULT_MM)
        bone, solid = np.zeros(far.shape, np.float32), _occupancy(implant, index).reshape(far.shape)
        bone[~far] = _occupancy(skull, index[:, ~far.ravel()])
        defect = ndimage.map_coordinates(MAP.to_image(vault.defect), pixels.T, order=0).reshape(shape)
        known = _interpolate(MAP.to_image(np.isfinite(vault.mirrored).astype(float)), pixels).reshape(shape) > 0.99
        mirrored = np.where(known, _interpolate(MAP.filled(vault.mirrored), pixels).reshape(shape) - outer, np.nan)
        continued = _interpolate(MAP.to_image(vault.continued, np.nan), pixels).reshape(shape) - outer
        return cls(defect, -thickness, mirrored, continued, mm, area, bone, solid)

    @cached_property
    def top(self) -> tuple[np.ndarray, np.ndarray]:
        """Heights of the outer surfaces of bone and of implant, NaN where a ray meets none."""
        outside_in = HEIGHTS[::-1]
        return _first_crossing(self.bone[..., ::-1], outside_in), _first_crossing(self.implant[..., ::-1], outside_in)

    @cached_property
    def bottom(self) -> tuple[np.ndarray, np.ndarray]:
        """Heights of the inner surfaces of bone and of implant, NaN where a ray meets none."""
        return _first_crossing(self.bone, HEIGHTS), _first_crossing(self.implant, HEIGHTS)

    @property
    def pitch(self) -> float:
        """Distance between neighbouring rays on the outer surface, mm."""
        return (
            float(np.sqrt(np.median(self.area[self.defect > 0]))) if (self.defect > 0).any() else PIXEL / RAYS_PER_PIXEL
        )


def _around_defects(vault: CompletedVault, skull: Volume, implant: Volume) -> tuple[Volume, Volume]:
    """Skull and implant, cropped to the implant and to the defects, which it may have left open."""
    rays = np.flatnonzero((vault.defect > 0) & np.isfinite(vault.outer))
    points = vault.pose.to_patient(MAP.directions[rays] * vault.outer[rays, None])
    low, high = bounding_box(implant.mask)
    if len(rays):
        index = skull.to_index(points)
        low, high = np.minimum(low, np.floor(index.min(0))), np.maximum(high, np.ceil(index.max(0)) + 1)
    margin = np.ceil(2 * SURROUNDINGS_MM / skull.spacing)
    return skull.crop(low - margin, high + margin), implant.crop(low - margin, high + margin)


def _window(vault: CompletedVault, implant: Volume) -> tuple[np.ndarray, tuple[int, int]]:
    """A window of the direction map around defects and implant: (U V, 2) pixel coordinates of its rays, and (U, V)."""
    inside = np.argwhere(MAP.to_image(vault.defect > 0, False))
    body = np.argwhere(implant.mask[::3, ::3, ::3]) * 3
    model = vault.pose.to_model(implant.to_mm(body.astype(float)))
    model = model[np.linalg.norm(model, axis=1) > 20]
    seen = MAP.to_pixel(model / np.linalg.norm(model, axis=1, keepdims=True))
    both = np.concatenate([inside, seen])
    low = np.clip(np.floor(both.min(0) - SURROUNDINGS_MM / PIXEL), 0, len(MAP.inside) - 1)
    high = np.clip(np.ceil(both.max(0) + SURROUNDINGS_MM / PIXEL), 0, len(MAP.inside) - 1)
    lines = [np.arange(a, b + 1e-9, 1 / RAYS_PER_PIXEL) for a, b in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*lines, indexing="ij"), -1)
    return grid.reshape(-1, 2), (len(lines[0]), len(lines[1]))


def _occupancy(volume: Volume, index: np.ndarray) -> np.ndarray:
    """(N,) float32, 0 to 1, at (3, N) continuous index."""
    values = Interpolator(volume.mask.view(np.uint8) * np.uint8(200))(index)
    values /= 200
    return values


def _interpolate(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    return ndimage.map_coordinates(image, pixels.T, order=1, mode="nearest")


def _area_and_normal(surface: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(U, V, 3) mm, points of a surface -> (U, V) mm2, the area per point, and (U, V, 3), the unit normal."""
    # smoothed, because single rays are noisy where the surface was measured
    smooth = np.stack([ndimage.gaussian_filter(surface[..., axis], 2.0, mode="nearest") for axis in range(3)], -1)
    return surface_elements(smooth)


def _first_crossing(profile: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """(U, V, H) occupancy, (H,) heights -> (U, V) height where it first reaches one half; NaN where it does not."""
    solid = profile >= 0.5
    at = solid.argmax(-1)
    before = np.maximum(at - 1, 0)
    a, b = (np.take_along_axis(profile, i[..., None], -1)[..., 0] for i in (before, at))
    share = np.where(at > 0, (0.5 - a) / np.where(b > a, b - a, 1), 1.0)
    return np.where(solid.any(-1), heights[before] + share * (heights[at] - heights[before]), np.nan)
