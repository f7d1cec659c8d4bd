"""A trained generative model of heads: its file, and tables drawn from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, Field

from pcdiff.config import StrictConfig
from pcdiff.data.augmentation.generators import GeneratorConfig, MapGenerator, Model, draw, make_generator
from pcdiff.errors import InputError
from pcdiff.nets.states import load_network
from pcdiff.prior.model import ShapePrior
from pcdiff.tensor_files import read_tensors, write_tensors
from pcdiff.training.augmentation.maps import to_rays

GENERATOR_FORMAT = "pcdiff-generator-1"
REMEDY = "train one with `pcdiff train generator`"


class GeneratorFile(StrictConfig):
    """What is in the file beside the weights."""

    model: Model
    network: GeneratorConfig = Field(description="size")


class _Notes(BaseModel):
    prior: str = Field(description="digest of the shape model whose mean the deviations are from")


@dataclass(frozen=True)
class Generator:
    """A generative model of deviations from a shape model's mean."""

    network: MapGenerator
    config: GeneratorFile
    prior: ShapePrior

    @classmethod
    def load(cls, path: Path, prior: ShapePrior) -> Generator:
        """Reads what `save` wrote. Raises InputError for another file, and one of another shape model."""
        file = read_tensors(path, "weights of a generative model", REMEDY, GENERATOR_FORMAT, "pt")
        config = file.config(GeneratorFile)
        if file.notes(_Notes).prior != prior.digest:
            raise InputError(f"{path}: expected a model of deviations from this shape model, got another's; {REMEDY}")

        def make() -> MapGenerator:
            return make_generator(config.model, config.network, torch.ones(config.network.size, config.network.size))

        return cls(load_network(make, file.tensors, path), config, prior)

    def save(self, path: Path, notes: Mapping[str, str] | None = None) -> None:
        """Writes the weights and the config; notes go into the metadata."""
        metadata = {
            "format": GENERATOR_FORMAT,
            "config": self.config.model_dump_json(),
            "prior": self.prior.digest,
            "license": "CC-BY-NC-SA-4.0",
        }
        write_tensors(path, self.network.state_dict(), metadata | dict(notes or {}))

    def tables(self, count: int, seed: int) -> np.ndarray:
        """(count, 2, R) mm: outer radius and thickness of new heads; the same seed gives the same ones."""
        return self.prior.mean + to_rays(draw(self.network.eval(), count, seed))
