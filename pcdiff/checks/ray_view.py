"""Skull and implant seen from the cranial centre along fine rays: what most criteria are read off."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from pcdiff.geometry.volume import Volume
from pcdiff.prior.direction_map import MAP, PIXEL, Pose
from pcdiff.prior.fit import PriorFit

FINER = 2  # rays per pixel of the map, along each side: about 0.75 mm apart
MARGIN = 10.0  # mm of bone around defect and implant
HEIGHTS = np.arange(-26.0, 12.25, 0.5)  # mm along a ray, from the completed outer surface
WALL = 4.0  # mm beyond either expected surface in which bone is that of the vault, not of the skull base


@dataclass(frozen=True)
class Vault:
    """The completed skull as radii along the rays of the map, in model mm: what an implant is compared with.

    outer, thickness: (R,), NaN where unknown. defect: (R,) int labels, 0 on bone. mirrored: (R,) outer radius of the
    other side's bone, NaN where there is none.
    """

    pose: Pose
    outer: np.ndarray
    thickness: np.ndarray
    defect: np.ndarray
    mirrored: np.ndarray

    @classmethod
    def of(cls, fit: PriorFit) -> Vault:
        """As the prior completes it."""
        return cls(fit.pose, fit.outer, fit.thickness, fit.defect, fit.observation.outer[MAP.mirror])

    @property
    def defects(self) -> int:
        """How many there are."""
        return int(self.defect.max(initial=0))


@dataclass(frozen=True)
class View:
    """Images (U, V) over a window of the map, one fine ray each, and (U, V, H) occupancies at `HEIGHTS` above `outer`.

    defect: int labels. inner: height of the completed inner surface, mm, negative. mirrored: height of the other side.
    mm: patient mm per mm of height, measured across the surface. area: mm2 of the completed outer surface.
    """

    defect: np.ndarray
    inner: np.ndarray
    mirrored: np.ndarray
    mm: np.ndarray
    area: np.ndarray
    bone: np.ndarray
    implant: np.ndarray

    @classmethod
    def of(cls, vault: Vault, skull: Volume, implant: Volume) -> View:
        """skull, implant: crops of one grid that hold the defects' surroundings."""
        pixels, shape = _window(vault, implant)
        outer, thickness = (_at(MAP.filled(values), pixels).reshape(shape) for values in (vault.outer, vault.thickness))
        directions = MAP.from_pixel(pixels).reshape(*shape, 3)
        across, normal = _surface(vault.pose.to_patient(outer[..., None] * directions))
        along = directions @ vault.pose.linear.T  # patient mm per model mm of radius
        mm = np.abs((along * normal).sum(-1))
        # a ray is a line on the grid too: its places are multiples of one step, (3, U, V, H)
        step = np.moveaxis(along @ np.linalg.inv(skull.affine[:3, :3]).T, -1, 0).astype(np.float32)[..., None]
        start = skull.to_index(vault.pose.shift).astype(np.float32)[:, None, None, None]
        index = (start + step * (outer[..., None] + HEIGHTS).astype(np.float32)).reshape(3, -1)
        bone, solid = (
            ndimage.map_coordinates(
                volume.mask.view(np.uint8) * np.uint8(200), index, order=1, output=np.float32
            ).reshape(*shape, len(HEIGHTS))
            / 200
            for volume in (skull, implant)
        )
        far = (-(thickness + WALL)[..., None] > HEIGHTS) | (HEIGHTS > WALL)
        bone[far] = 0
        defect = ndimage.map_coordinates(MAP.to_image(vault.defect), pixels.T, order=0).reshape(shape)
        known = _at(MAP.to_image(np.isfinite(vault.mirrored).astype(float)), pixels).reshape(shape) > 0.99
        mirrored = np.where(known, _at(MAP.filled(vault.mirrored), pixels).reshape(shape) - outer, np.nan)
        return cls(defect, -thickness, mirrored, mm, across, bone, solid)

    @cached_property
    def top(self) -> tuple[np.ndarray, np.ndarray]:
        """Height of the outermost half-level crossing of bone and of implant, NaN where a ray meets none."""
        return _first(self.bone[..., ::-1], HEIGHTS[::-1]), _first(self.implant[..., ::-1], HEIGHTS[::-1])

    @cached_property
    def bottom(self) -> tuple[np.ndarray, np.ndarray]:
        """The same from inside."""
        return _first(self.bone, HEIGHTS), _first(self.implant, HEIGHTS)

    @property
    def pitch(self) -> float:
        """Mm between neighbouring rays on the surface."""
        return float(np.sqrt(np.median(self.area[self.defect > 0]))) if (self.defect > 0).any() else PIXEL / FINER


def _window(vault: Vault, implant: Volume) -> tuple[np.ndarray, tuple[int, int]]:
    """(U V, 2) fine pixel coordinates of the window around defects and implant, and (U, V)."""
    inside = np.argwhere(MAP.to_image(vault.defect > 0, False))
    body = np.argwhere(implant.mask[::3, ::3, ::3]) * 3
    model = vault.pose.to_model(implant.to_mm(body.astype(float)))
    model = model[np.linalg.norm(model, axis=1) > 20]
    seen = MAP.to_pixel(model / np.linalg.norm(model, axis=1, keepdims=True))
    both = np.concatenate([inside, seen])
    low = np.clip(np.floor(both.min(0) - MARGIN / PIXEL), 0, len(MAP.inside) - 1)
    high = np.clip(np.ceil(both.max(0) + MARGIN / PIXEL), 0, len(MAP.inside) - 1)
    lines = [np.arange(a, b + 1e-9, 1 / FINER) for a, b in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*lines, indexing="ij"), -1)
    return grid.reshape(-1, 2), (len(lines[0]), len(lines[1]))


def _at(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    return ndimage.map_coordinates(image, pixels.T, order=1, mode="nearest")


def _surface(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(U, V, 3) mm -> area of each cell (U, V) mm2, and its unit normal (U, V, 3)."""
    # single rays are noisy where the surface was measured; a normal is a matter of millimetres
    smooth = np.stack([ndimage.gaussian_filter(places[..., axis], 2.0, mode="nearest") for axis in range(3)], -1)
    cross = np.cross(np.gradient(smooth, axis=0), np.gradient(smooth, axis=1))
    area = np.linalg.norm(cross, axis=-1)
    return area, cross / np.maximum(area, 1e-9)[..., None]


def _first(profile: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Where each profile (U, V, H) first reaches one half, interpolated; NaN where it does not."""
    solid = profile >= 0.5
    at = solid.argmax(-1)
    before = np.maximum(at - 1, 0)
    a, b = (np.take_along_axis(profile, i[..., None], -1)[..., 0] for i in (before, at))
    share = np.where(at > 0, (0.5 - a) / np.where(b > a, b - a, 1), 1.0)
    return np.where(solid.any(-1), heights[before] + share * (heights[at] - heights[before]), np.nan)
