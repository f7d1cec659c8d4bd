"""Sizes and noise levels of the anchored point-voxel diffusion."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pcdiff.config import StrictConfig


class NetworkConfig(StrictConfig):
    """Size of the point-voxel network."""

    width: int = Field(default=64, gt=0, multiple_of=16, description="channels of the point branch")
    grid: int = Field(default=20, ge=8, multiple_of=4, description="cells along a side of the skull's voxel grid")
    step_grid: int = Field(default=12, ge=4, description="the same for the moving points")
    blocks: int = Field(default=3, gt=0, description="point-voxel blocks of the denoiser")
    heads: int = Field(default=4, gt=0, description="attention heads")
    dropout: float = Field(default=0.1, ge=0, lt=1)
    hidden: float = Field(default=0.5, ge=0, le=1, description="share of skulls in training without surroundings")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")
        return self


class DiffusionConfig(StrictConfig):
    """Noise levels, in units of the prior's standard deviation."""

    sigma_min: float = Field(default=0.05, gt=0)
    sigma_max: float = Field(default=4.0, gt=0)
    p_mean: float = 0.0
    p_std: float = Field(default=1.2, gt=0)
    steps: int = Field(default=6, gt=0)
    sampler: Literal["euler", "heun", "dpmpp_2m", "ancestral"] = "heun"

    @model_validator(mode="after")
    def _descends(self) -> Self:
        if not self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min must be less than sigma_max, got {self.sigma_min} and {self.sigma_max}")
        return self
