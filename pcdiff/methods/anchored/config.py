"""Sizes, noise levels and feature layout of the anchored point-voxel diffusion; stored with its weights."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pcdiff.config import StrictConfig

FEATURE_NAMES = (
    *("table", "prior_std", "is_anchor", "normal_x", "normal_y", "normal_z"),
    *("outer_deviation", "thickness_deviation", "mirrored_outer_deviation", "mirrored_thickness_deviation"),
    *("mirrored_known", "mean_thickness", "mean_outer_std", "mean_thickness_std", "signed_defect_distance"),
    *("presence", "direction_x", "direction_y", "direction_z", "constant"),
)


class NetworkConfig(StrictConfig):
    """Size of the point-voxel network."""

    width: int = Field(default=64, gt=0, multiple_of=16, description="channels of the point branch")
    grid: int = Field(default=20, ge=8, multiple_of=4, description="cells along a side of the skull's voxel grid")
    step_grid: int = Field(default=12, ge=4, description="cells along a side of the moving points' voxel grid")
    blocks: int = Field(default=3, gt=0, description="point-voxel blocks of the denoiser")
    heads: int = Field(default=4, gt=0, description="attention heads")
    dropout: float = Field(default=0.1, ge=0, lt=1)
    context_dropout: float = Field(
        default=0.5, ge=0, le=1, description="share of skulls in training whose surroundings are hidden"
    )

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")
        return self


class DiffusionConfig(StrictConfig):
    """Noise levels, in units of the shape model's posterior standard deviation."""

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


class FeatureLayout(StrictConfig):
    """The network's inputs: their number, units and order. Weights with another layout are refused."""

    anchors: int = Field(default=512, description="rays that the network moves, two points each")
    bone: int = Field(default=640, description="rays of the surrounding bone, two points each")
    reach_mm: float = Field(default=45.0, description="bone around the defect that the network receives")
    border_mm: float = Field(default=1.6, description="bone nearer to the defect is replaced by the completion")
    frame_scale_mm: float = Field(default=80.0, description="length of one network unit")
    frame_centre_mm: float = Field(default=80.0, description="from the cranial centre to the frame's origin")
    deviation_scale_mm: float = Field(default=2.0, description="unit of deviations and standard deviations")
    thickness_scale_mm: float = Field(default=8.0, description="unit of the mean thickness")
    distance_scale_mm: float = Field(default=20.0, description="unit of the distance to the defect's border")
    clip: float = Field(default=4.0, description="limit of scaled deviations")
    features: tuple[str, ...] = Field(default=FEATURE_NAMES, description="of each point, in this order")


LAYOUT = FeatureLayout()  # that this version computes


class DenoiserConfig(StrictConfig):
    """What the file of weights holds beside the weights."""

    network: NetworkConfig
    diffusion: DiffusionConfig
    layout: FeatureLayout = LAYOUT
