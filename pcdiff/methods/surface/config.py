"""Sizes, noise and inputs of the diffusion of a surface's points; stored with its weights."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pcdiff.config import StrictConfig


class SurfaceLayout(StrictConfig):
    """The network's inputs: their number, units and order. Weights with another layout are refused."""

    anchors: int = Field(default=512, description="points of the surface that the network moves")
    offsets_mm: tuple[float, ...] = Field(
        default=(-6.0, -4.0, -2.5, -1.2, 0.0, 1.2, 2.5, 4.0, 6.0),
        description="where the skull is read along the normal of each anchor",
    )
    fields: tuple[str, ...] = Field(
        default=("log_odds", "table_log_odds", "bone", "mirrored", "mean", "border"), description="read there"
    )
    static: tuple[str, ...] = Field(
        default=("x", "y", "z", "normal_x", "normal_y", "normal_z", "outer_std", "thickness_std", "border_distance"),
        description="of each anchor",
    )
    position_scale_mm: float = Field(default=80.0, description="unit of x, y and z")
    border_scale_mm: float = Field(default=8.0, description="unit of distances to a defect's border, which end at 2")
    log_odds_scale: float = Field(default=5.0, description="unit of log-odds")

    @property
    def channels(self) -> int:
        """Values read at each place."""
        return len(self.fields)


LAYOUT = SurfaceLayout()  # that this version computes


class SurfaceNetworkConfig(StrictConfig):
    """Size of the point network."""

    width: int = Field(default=96, gt=0, le=4096, multiple_of=16, description="channels of each point")
    blocks: int = Field(default=4, gt=0, le=64, description="blocks of attention and perceptron")
    heads: int = Field(default=4, gt=0, le=64, description="attention heads; each learns how far it looks")
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")
        return self


class SurfaceDiffusionConfig(StrictConfig):
    """Noise levels in mm along the normal, and the noise: random smooth motions of space, projected on the normals."""

    sigma_min: float = Field(default=0.05, gt=0)
    sigma_max: float = Field(default=4.0, gt=0)
    sigma_data: float = Field(default=0.8, gt=0, description="standard deviation of the true displacements")
    p_mean: float = Field(default=0.0, description="of the logarithm of the noise levels in training")
    p_std: float = Field(default=1.2, gt=0)
    lengths_mm: tuple[float, ...] = Field(default=(40.0, 15.0, 5.0), description="over which the motion is alike")
    shares: tuple[float, ...] = Field(default=(0.5, 0.35, 0.15), description="of each length in the variance")
    temperature: float = Field(
        default=1.0,
        gt=0,
        description="noise at the start over sigma_max: widens the samples to the errors on held-out heads",
    )
    draws: int = Field(
        default=8,
        gt=0,
        le=1024,
        multiple_of=2,
        description="samples whose mean is the answer where one candidate is asked for",
    )
    steps: int = Field(default=6, gt=0, le=1000)
    sampler: Literal["euler", "heun", "dpmpp_2m", "ancestral"] = "heun"

    @model_validator(mode="after")
    def _valid(self) -> Self:
        if not self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min must be less than sigma_max, got {self.sigma_min} and {self.sigma_max}")
        if min(self.lengths_mm, default=0.0) <= 0 or min(self.shares, default=0.0) < 0:
            raise ValueError(
                f"lengths_mm must be positive and shares not negative, got {self.lengths_mm}, {self.shares}"
            )
        if len(self.lengths_mm) != len(self.shares) or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"shares must be one for each length and add up to 1, got {self.shares}")
        return self


class SurfaceConfig(StrictConfig):
    """What the file of weights holds beside the weights."""

    network: SurfaceNetworkConfig = SurfaceNetworkConfig()
    diffusion: SurfaceDiffusionConfig = SurfaceDiffusionConfig()
    layout: SurfaceLayout = LAYOUT
