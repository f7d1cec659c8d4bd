"""Phantom CTs in HU of whole heads with large frontal sinuses, made from distances in mm, so that thin walls are exact.

A sinus lies between a front and a back wall of 1 to 2 mm in the frontal bone. It opens through two ducts into the nasal
cavity and that through the nostrils into the room. The nasal bones are thin plates over air. Around the head lie the
shell of a holder that touches the scalp, a strap that closes a ring with it, a table with a rail, and a tube that
leaves the mouth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from pcdiff.geometry.volume import Volume
from pcdiff.prior.direction_map import MAP
from pcdiff.prior.model import ShapePrior

AIR, SKIN, BRAIN, CORTEX, DIPLOE, PLASTIC, FABRIC, STEEL = -1000, 50, 35, 1300, 650, 420, -60, 3071  # HU
SCALP = 5.0  # mm
LOW, HIGH = np.array([-95.0, -118, -84]), np.array([95.0, 130, 106])  # mm around the cranial centre


@dataclass(frozen=True)
class SinusHead:
    """What varies in a phantom, in mm and HU.

    width (half of it), height over the nasion and depth: of the sinus. wall: thickness of its walls. nasal: that of the
    nasal bones. bulge: of its front wall beyond the forehead. noise, blur, spacing: of the scan.
    """

    width: float = 34.0
    height: float = 34.0
    depth: float = 15.0
    wall: float = 1.3
    nasal: float = 1.4
    bulge: float = 2.0
    noise: float = 20.0
    blur: float = 0.5
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.25)
    seed: int = 0

    @classmethod
    def drawn(cls, seed: int) -> SinusHead:
        """Sizes of large sinuses, drawn at random."""
        rng = np.random.default_rng([16, seed])
        fine = rng.uniform(0.7, 1.2)
        return cls(
            width=rng.uniform(22, 45),
            height=rng.uniform(22, 48),
            depth=rng.uniform(11, 20),
            wall=rng.uniform(1.0, 1.8),
            nasal=rng.uniform(1.0, 1.8),
            bulge=rng.uniform(0, 4),
            noise=rng.uniform(5, 45),
            blur=rng.uniform(0.4, 0.7),
            spacing=(fine, fine, rng.uniform(0.8, 1.6)),
            seed=seed,
        )

    def ct(self, prior: ShapePrior) -> tuple[np.ndarray, Volume]:
        """(I, J, K) int16 HU, and the true bone on its grid; where a wall fills less than half a voxel it is no bone.

        The head is drawn from `prior`; it has no defect.
        """
        spacing = np.array(self.spacing)
        shape = np.ceil((HIGH - LOW) / spacing).astype(int)
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = LOW
        hu, bone = np.empty(shape, np.float32), np.empty(shape, bool)
        rng = np.random.default_rng(self.seed)
        weights = rng.standard_normal(len(prior.modes)).astype(np.float32) * 0.8
        tables = prior.mean + np.tensordot(weights, prior.modes, 1)
        outer, thickness = (MAP.filled(MAP.smoothed(table, 1.0)) for table in tables)
        face = float(MAP.sample(outer, np.array([[0, -1.0, -0.15]]))[0])
        axes = [low + step * np.arange(n) for low, step, n in zip(LOW, spacing, shape, strict=True)]
        for k, z in enumerate(axes[2]):  # by slices, for the memory
            x, y = np.meshgrid(axes[0], axes[1], indexing="ij")
            slice_ = _Slice(x, y, np.full_like(x, z), float(spacing.mean()))
            hu[..., k], bone[..., k] = self._slice(slice_, outer, np.maximum(thickness, 2.5), face)
        hu = ndimage.gaussian_filter(hu, self.blur / spacing)
        hu += rng.standard_normal(shape, np.float32) * self.noise
        return np.clip(np.rint(hu), -1024, 3071).astype(np.int16), Volume(bone, affine)

    def _slice(
        self, at: _Slice, outer: np.ndarray, thickness: np.ndarray, face: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """(I, J) HU and bone; face: mm from the centre to the nasion."""
        x, y, z = at.x, at.y, at.z
        radius = np.maximum(np.sqrt(x * x + y * y + z * z), 1e-3)
        directions = np.stack([x, y, z], -1).reshape(-1, 3) / radius.reshape(-1, 1)
        vault = (MAP.sample(MAP.inside.astype(float), directions, 0.0) > 0.99).reshape(x.shape)
        bone_mm = MAP.sample(thickness, directions, 3.0).reshape(x.shape)
        depth = MAP.sample(outer, directions, 0.0).reshape(x.shape) - radius  # below the outer table
        hu = np.full(x.shape, AIR, np.float32)

        # Soft tissue: scalp and brain, face, neck, nose. The nasion is at z = -12; from there the nose leans forward.
        back = y + face + 1 - 0.55 * np.minimum(z + 12, 0)  # behind the ridge of the nose
        nose = (back - 0.9 * np.abs(x)) / 1.45
        hu[vault & (depth > -SCALP)] = SKIN
        hu[(x / 64) ** 2 + ((y + 5) / (face - 2)) ** 2 < (z < -8)] = SKIN
        hu[(nose > 0) & (y < -40) & (np.abs(x) < 24) & (z < -8) & (z > -50)] = SKIN
        hu[vault & (depth > bone_mm)] = BRAIN
        hu[~vault & (radius < 60)] = BRAIN

        # Bone of the vault, with the sinus in it.
        inside = 1 - (x / self.width) ** 2 - ((z + 14) / (self.height + 2)) ** 2
        sinus = vault & (y < -30) & (inside > 0)
        front = np.where(sinus, -self.bulge * np.clip(inside, 0, 1), 0.0)
        rear = np.where(sinus, np.maximum(bone_mm, self.depth * np.sqrt(np.clip(inside, 0, 1))), bone_mm)
        hu[sinus & (depth > front - SCALP) & (depth < front)] = SKIN
        bone = vault * at.between(depth, front, rear)
        air = sinus * at.between(depth, front + self.wall, rear - self.wall) * (1 - at.within(np.abs(x - 2) - 0.7))
        cortex = np.minimum(depth - front, rear - depth) < 1.5
        hu = at.mix(hu, np.where(cortex | sinus, CORTEX, DIPLOE), bone)
        hu = at.mix(hu, AIR, air)

        # Maxilla and nasal bones; the nasal cavity with its septum, ducts to the sinus, nostrils.
        maxilla = at.within(np.maximum(np.abs(x) - 34, np.maximum(np.abs(y + 62) - 14, np.abs(z + 52) - 16)))
        process = at.within(np.hypot(np.abs(x) - 15, y + face - 8) - 5) * (z < -14) * (z > -40)
        plates = at.between(nose, 3.0, 3.0 + self.nasal) * (np.abs(x) < 12) * (z < -10) * (z > -34)
        cavity = at.within(np.abs(x) - 10) * at.within(3.0 + self.nasal - nose) * (z < -20) * (z > -46) * (y < -30)
        cavity *= 1 - at.within(np.abs(x) - 0.8)
        ducts = at.within(np.hypot(np.abs(x) - 6, depth - self.depth / 2) - 3.5) * (z < -12) * (z > -30) * (y < -30)
        nostrils = at.within(np.hypot(np.abs(x) - 6, y + face + 4) - 4.5) * (z < -38) * (z > -54)
        for part in (maxilla, process, plates):
            hu = at.mix(hu, CORTEX, part)
        bone = np.maximum(bone * (1 - air), np.maximum(maxilla, np.maximum(process, plates)))
        for hollow in (cavity, ducts, nostrils):
            hu, bone = at.mix(hu, AIR, hollow), bone * (1 - hollow)
        return self._surroundings(at, hu, depth, vault), bone > 0.5

    def _surroundings(self, at: _Slice, hu: np.ndarray, depth: np.ndarray, vault: np.ndarray) -> np.ndarray:
        """Adds holder, strap, table, rail and tube."""
        x, y, z = at.x, at.y, at.z
        outside = vault & (depth < -SCALP)
        hu = at.mix(hu, PLASTIC, outside * at.between(-depth, SCALP, SCALP + 3.5) * (y > 0) * (np.abs(z - 5) < 45))
        strap = outside * at.between(-depth, SCALP + 1, SCALP + 3) * (y <= 0) * (np.abs(z - 40) < 14)
        hu = at.mix(hu, FABRIC, strap)
        hu = at.mix(hu, 350, at.between(y, 116, 120))
        hu = at.mix(hu, STEEL, at.within(np.hypot(x - 40, y - 124) - 4))
        along = (-y - 70) * 0.8 + (-z - 70) * 0.6  # the tube leaves the mouth forwards and down
        across = np.hypot(x, (-y - 70) * 0.6 - (-z - 70) * 0.8)
        return at.mix(hu, PLASTIC + 200, at.between(across, 3.5, 5.0) * (along > -8))


@dataclass(frozen=True)
class _Slice:
    """Coordinates (I, J) mm of the voxels of a slice, and the width over which a border is blurred by the voxel."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    voxel: float

    def within(self, distance: np.ndarray) -> np.ndarray:
        """Share of the voxel where a signed distance in mm is negative."""
        return np.clip(0.5 - distance / self.voxel, 0, 1)

    def between(self, distance: np.ndarray, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
        """Share of the voxel where low < distance < high."""
        return np.maximum(self.within(distance - high) - self.within(distance - low), 0)

    @staticmethod
    def mix(hu: np.ndarray, other: np.ndarray | float, share: np.ndarray) -> np.ndarray:
        """HU where `other` fills a share of each voxel."""
        return hu * (1 - share) + other * share
