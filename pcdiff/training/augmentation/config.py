"""The recipe of a generative model of heads, configs/generator.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pcdiff.config import StrictConfig
from pcdiff.data.augmentation.generators import GeneratorConfig, Model
from pcdiff.training.recipes import RunRecipe


class GeneratorOptimiserConfig(StrictConfig):
    """Adam; its rate is the model's own."""

    steps: int = Field(default=2000, gt=0)
    batch: int = Field(default=16, ge=2, description="heads a step")
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")
    ema: float = Field(default=12.0, gt=0, description="power of the averaged weights' profile")


class GeneratorTrainConfig(RunRecipe):
    """A recipe of a generative model. It is trained on heads and their mirror images."""

    trainer = "pcdiff.training.augmentation.train"
    method: Literal["generator"]
    model: Model
    network: GeneratorConfig = GeneratorConfig()
    optimiser: GeneratorOptimiserConfig = GeneratorOptimiserConfig()
