"""A trained generative model of heads: its file, and tables or volumes drawn from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, Field

from pcdiff.config import StrictConfig
from pcdiff.data.augmentation.generators import (
    OF_VOLUMES,
    GeneratorConfig,
    ImageGenerator,
    Model,
    draw,
    make_generator,
)
from pcdiff.errors import InputError
from pcdiff.geometry.occupancy import Head
from pcdiff.nets.states import load_network
from pcdiff.prior.build import read_tables
from pcdiff.prior.direction_map import Pose
from pcdiff.prior.model import ShapePrior
from pcdiff.prior.pose import largest_piece
from pcdiff.tensor_files import read_tensors, write_tensors
from pcdiff.training.augmentation.maps import image_weight, to_rays
from pcdiff.training.augmentation.volumes import AFFINE, to_heads

GENERATOR_FORMAT = "pcdiff-generator-1"
REMEDY = "train one with `pcdiff train generator`"
IN_PLACE = Pose(np.eye(3), np.zeros(3))  # of a head in model space


class GeneratorFile(StrictConfig):
    """What is in the file beside the weights."""

    model: Model
    network: GeneratorConfig = Field(description="size")


class _Notes(BaseModel):
    prior: str = Field(description="digest of the shape model in whose space the heads are")


def new_network(config: GeneratorFile, prior: ShapePrior) -> ImageGenerator:
    """An untrained model; its weights follow torch's random state. Raises InputError where MONAI is not installed."""
    weight = torch.ones(1, 1, 1) if config.model in OF_VOLUMES else image_weight(prior, config.network.size)
    return make_generator(config.model, config.network, weight)


@dataclass(frozen=True)
class Generator:
    """A generative model of heads in a shape model's space."""

    network: ImageGenerator
    config: GeneratorFile
    prior: ShapePrior

    @classmethod
    def load(cls, path: Path, prior: ShapePrior) -> Generator:
        """Reads what `save` wrote. Raises InputError for another file, and one of another shape model."""
        file = read_tensors(path, "weights of a generative model", REMEDY, GENERATOR_FORMAT, "pt")
        config = file.config(GeneratorFile)
        if file.notes(_Notes).prior != prior.digest:
            raise InputError(f"{path}: expected a model of deviations from this shape model, got another's; {REMEDY}")

        return cls(load_network(partial(new_network, config, prior), file.tensors, path), config, prior)

    def save(self, path: Path, notes: Mapping[str, str] | None = None) -> None:
        """Writes the weights and the config; notes go into the metadata."""
        metadata = {
            "format": GENERATOR_FORMAT,
            "config": self.config.model_dump_json(),
            "prior": self.prior.digest,
            "license": "CC-BY-NC-SA-4.0",
        }
        write_tensors(path, self.network.state_dict(), metadata | dict(notes or {}))

    @property
    def of_volumes(self) -> bool:
        """Whether it makes whole heads, and not their tables alone."""
        return self.config.model in OF_VOLUMES

    def heads(self, count: int, seed: int) -> list[Head]:
        """New heads in model space, their largest pieces; of a model of volumes. The same seed gives the same ones.

        Raises InputError where a head has no bone.
        """
        made = to_heads(draw(self.network.eval(), count, seed, batch=1))
        if not (made >= 128).any((1, 2, 3)).all():
            raise InputError("the generative model: expected heads, got one without bone; train it for more steps")
        return [Head(largest_piece(occupancy), AFFINE, "") for occupancy in made]

    def tables(self, count: int, seed: int) -> np.ndarray:
        """(count, 2, R) mm: outer radius and thickness of new heads, in model space; NaN where a head has no bone."""
        if self.of_volumes:
            limits = self.prior.settings.population
            read = [
                read_tables(head.occupancy, head.affine, IN_PLACE, self.prior.mean, limits)
                for head in self.heads(count, seed)
            ]
            return np.stack([tables.both for tables in read])
        return self.prior.mean + to_rays(draw(self.network.eval(), count, seed))
