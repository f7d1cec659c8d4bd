"""What is stored with the weights of a learned baseline: kind and size of the network, and its input."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pcdiff.config import StrictConfig
from pcdiff.methods.volumetric.config import LAYOUT, VolumetricLayout

Kind = Literal["encoder_decoder", "slices", "patches", "coarse_to_fine", "sparse"]
Block = Literal["plain", "residual", "squeeze", "dense", "vnet", "nnunet", "lstm"]
Input = Literal["bone", "mirrored", "mean"]  # as `LAYOUT.fine`
BLOCKS: dict[Kind, tuple[Block, ...]] = {
    "encoder_decoder": ("plain", "residual", "squeeze", "dense", "vnet", "nnunet"),
    "slices": ("plain", "residual", "lstm"),
    "patches": ("plain", "residual", "squeeze", "dense", "vnet"),
    "coarse_to_fine": ("plain", "residual", "squeeze", "dense", "vnet"),
    "sparse": ("plain",),
}


class NetworkConfig(StrictConfig):
    """A network. `networks.make` makes it."""

    kind: Kind
    block: Block = Field(default="residual", description="of convolutions; not every kind has every block")
    inputs: tuple[Input, ...] = Field(
        default=("bone",), min_length=1, description="bone, its mirror image, the mean head"
    )
    widths: tuple[Annotated[int, Field(ge=8, le=512, multiple_of=8)], ...] = Field(
        default=(24, 48, 96),
        min_length=2,
        max_length=7,
        description="channels of the levels, the finest first; nnunet plans its own",
    )

    @model_validator(mode="after")
    def _has_block(self) -> NetworkConfig:
        if self.block not in BLOCKS[self.kind]:
            raise ValueError(f"{self.kind} has the blocks {', '.join(BLOCKS[self.kind])}, got {self.block}")
        return self

    @property
    def channels(self) -> list[int]:
        """Numbers of the inputs among `LAYOUT.fine`."""
        return [LAYOUT.fine.index(name) for name in self.inputs]


class BaselineConfig(StrictConfig):
    """Everything that travels with the weights."""

    layout: VolumetricLayout = LAYOUT
    network: NetworkConfig
