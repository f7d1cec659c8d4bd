"""The statistical shape model of the healthy vault: mean and covariance of both tables over directions."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field

from pcdiff.errors import InputError
from pcdiff.geometry.volume import Volume
from pcdiff.prior.direction_map import MAP
from pcdiff.prior.settings import SETTINGS, MapLayout, PriorSettings
from pcdiff.tensor_files import check_layout, read_tensors, write_tensors

PRIOR_FORMAT = "pcdiff-prior-2"
REMEDY = "use the shipped one; `pcdiff train prior` builds one"
LICENCE = "CC-BY-NC-SA-4.0"


class _Notes(BaseModel):
    """What the metadata says beside the settings."""

    heads: int = Field(ge=1, le=10**6)


@dataclass(frozen=True)
class ShapePrior:
    """Outer table and bone thickness over the directions of the map, in model millimetres.

    mean, std: (2, R): outer radius, thickness. modes: (M, 2, R), scaled to one standard deviation each, symmetric
    under mirroring as a set. present: (R,) share of heads with bone here. heads: how many it was built from.
    settings: the numbers that were chosen with it. digest: sha256 of its file.
    """

    mean: np.ndarray
    std: np.ndarray
    modes: np.ndarray
    present: np.ndarray
    heads: int
    settings: PriorSettings = SETTINGS
    digest: str = field(default="", compare=False)

    @classmethod
    def shipped(cls) -> ShapePrior:
        """The model that the package ships (CC BY-NC-SA 4.0, see the model card)."""
        with resources.as_file(resources.files("pcdiff") / "weights" / "prior.safetensors") as path:
            return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> ShapePrior:
        """Reads what `save` wrote.

        Raises InputError for another file, format, map layout or version of settings, a damaged file, and values that
        are not finite.
        """
        file = read_tensors(path, "a statistical shape model", REMEDY, PRIOR_FORMAT)
        settings = file.config(PriorSettings)
        check_layout(file.path, "direction map", settings.layout, MapLayout())
        rays = len(MAP.directions)
        shapes: dict[str, tuple[int | None, ...]] = {"mean": (2, rays), "std": (2, rays), "modes": (None, 2, rays)}
        values = {name: file.array(name, "float", shape).astype(np.float32) for name, shape in shapes.items()}
        present = file.array("present", "uint8", (rays,)).astype(np.float32) / 255
        heads = file.notes(_Notes).heads
        if not file.compared:  # the shipped one is older than checksums, and a copy of it has none
            raise InputError(
                f"{path}: expected a statistical shape model with a checksum, or the shipped one as it is, got "
                f"neither: it may be damaged; {REMEDY}"
            )
        return cls(**values, present=present, heads=heads, settings=settings, digest=file.sha256)

    def save(self, path: Path) -> None:
        """Writes the mean in single and the deviations in half precision, and the settings as JSON."""
        tensors: dict[str, np.ndarray] = {
            "mean": self.mean.astype(np.float32),
            "std": self.std.astype(np.float16),
            "modes": self.modes.astype(np.float16),
            "present": np.round(self.present * 255).astype(np.uint8),
        }
        metadata = {"format": PRIOR_FORMAT, "heads": str(self.heads), "license": LICENCE}
        write_tensors(path, tensors, metadata | {"config": self.settings.model_dump_json()})

    def draw(self, rng: np.random.Generator, spacing: float = 0.8, scale: float = 0.8) -> Volume:
        """Samples the vault of a synthetic healthy head, in voxels of `spacing` mm; scale: of the modes' weights."""
        weights = rng.standard_normal(len(self.modes)).astype(np.float32) * scale
        outer, thickness = self.mean + np.tensordot(weights, self.modes, 1)
        outer = MAP.smoothed(outer, 1.0)
        inner = outer - np.maximum(MAP.smoothed(thickness, 1.0), 1.5)
        reach = float(outer.max()) + 3 * spacing
        size = int(np.ceil(2 * reach / spacing))
        affine = np.diag([spacing, spacing, spacing, 1.0])
        affine[:3, 3] = -(size - 1) / 2 * spacing
        axis = (np.arange(size) * spacing + affine[0, 3]).astype(np.float32)
        mask = np.zeros((size, size, size), bool)
        for k, z in enumerate(axis):  # by slices, because the coordinates of the whole grid would take a gigabyte
            points = np.stack([*np.meshgrid(axis, axis, indexing="ij"), np.full((size, size), z)], -1).reshape(-1, 3)
            radius = np.linalg.norm(points, axis=1)
            near = np.flatnonzero((radius > 30) & (radius < reach))
            directions = points[near] / radius[near, None]
            bone = radius[near] <= MAP.sample(MAP.to_image(outer), directions, 0.0)
            bone &= radius[near] >= MAP.sample(MAP.to_image(inner), directions, np.inf)
            flat = np.zeros(size * size, bool)
            flat[near] = bone
            mask[:, :, k] = flat.reshape(size, size)
        return Volume(mask, affine)
