"""Settings of the method of Friedrich et al. (2023), stored with its weights."""

from __future__ import annotations

import itertools
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pcdiff.config import StrictConfig, override, validate_config


class PaperNetworkConfig(StrictConfig):
    """The noise network of Friedrich et al. (2023); defaults are the paper's."""

    width: float = Field(default=1.0, gt=0, le=8, description="multiplies all channels; a multiple of 1 / 4")
    skull_points: int = Field(default=27_648, gt=0, le=10**6)
    implant_points: int = Field(default=3_072, gt=0, le=10**6)
    centres: tuple[int, int, int, int] = Field(default=(10_240, 2_560, 640, 160), description="of each stage")
    radii: tuple[float, float, float, float] = Field(default=(0.1, 0.2, 0.4, 0.8), description="network units")
    neighbours: int = Field(default=128, gt=0, le=4096)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @property
    def points(self) -> int:
        """Of skull and implant together."""
        return self.skull_points + self.implant_points

    @model_validator(mode="after")
    def _shrinks(self) -> Self:
        sizes = (self.points, *self.centres)
        if any(not 3 <= fewer < more for more, fewer in itertools.pairwise(sizes)):
            raise ValueError(f"each stage must have fewer centres than points, 3 at least, got {sizes}")
        if self.width * 4 != round(self.width * 4):
            raise ValueError(f"width must be a multiple of 0.25, got {self.width}")
        return self


class PaperConfig(StrictConfig):
    """Settings of the method of Friedrich et al. (2023), stored with its weights."""

    network: PaperNetworkConfig = PaperNetworkConfig()
    steps: int = Field(
        default=1000, ge=1, le=1000, description="of sampling, evenly spaced among the 1,000 of training"
    )
    sampler: Literal["ancestral", "euler", "heun", "dpmpp_2m"] = Field(
        default="ancestral", description="ancestral is DDPM, euler DDIM"
    )
    limit: float | None = Field(
        default=None,
        gt=0,
        description="each step's prediction is held within this distance of 0 on each axis, network units, where skulls"
        " reach 3; None, as published, does not hold it",
    )
    spacing_mm: float = Field(
        default=0.45, gt=0.01, description="voxel size of the cube in which the solid is made; SkullBreak: 0.4"
    )
    resolution: int = Field(default=512, ge=16, le=1024, multiple_of=4, description="voxels along its sides")
    precision: Literal["float32", "bf16"] = Field(
        default="float32",
        description="of the noise network; bf16, where the device is fast at it, changes the noise by 1.4 % on average",
    )
    faithful: bool = Field(default=False, description="repeat the original's errors, listed in docs/paper.md")


def parse_paper_config(changes: dict[str, Any]) -> PaperConfig:
    """The published settings with changes such as {"network.neighbours": 32}. Raises InputError for wrong keys."""
    values: dict[str, Any] = {}
    for name, value in changes.items():
        override(values, name, value)
    return validate_config(PaperConfig, values, "--set")
