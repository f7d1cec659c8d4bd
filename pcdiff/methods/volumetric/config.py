"""Lattice, channels, network and fusion of the volumetric U-Net; stored with its weights."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pcdiff.config import StrictConfig
from pcdiff.nets.unet3d import UNet3d


class VolumetricLayout(StrictConfig):
    """What the network gets. Weights of another layout are refused."""

    step_mm: float = 2.0
    low_mm: tuple[float, float, float] = (-79.0, -120.0, -110.0)  # model space: vault, skull base and face
    shape: tuple[int, int, int] = (80, 116, 106)  # symmetric about the middle plane: x from -79 to 79 mm
    window_multiple: int = 8  # sides of a window are multiples of it: the network halves them three times
    window_margin_mm: float = 20.0  # around the missing tables of a defect, at least
    coordinate_scale_mm: tuple[float, float, float] = (80.0, 100.0, 90.0)
    fine: tuple[str, ...] = ("bone", "mirrored", "mean")  # at each lattice point
    coordinates: tuple[str, ...] = ("x", "y", "z")  # at every second lattice point
    tables: tuple[str, ...] = (  # of the shape model, at every second lattice point; zeros where it is hidden
        *("depth_below_outer", "height_above_inner", "outer_std", "thickness_std", "border_distance", "present"),
    )


LAYOUT = VolumetricLayout()


class UNetConfig(StrictConfig):
    """The size of the network."""

    widths: tuple[Annotated[int, Field(gt=0, le=4096)], ...] = Field(
        default=(64, 128, 256), min_length=1, max_length=3, description="channels"
    )
    blocks: int = Field(default=1, gt=0, le=64, description="residual blocks of each level")

    def make(self) -> UNet3d:
        """An untrained network for `LAYOUT`."""
        coarse = len(LAYOUT.coordinates) + len(LAYOUT.tables)
        return UNet3d(len(LAYOUT.fine), coarse, self.widths, self.blocks)


class FusionConfig(StrictConfig):
    """How the network's output is added to the log-odds of the shape model's completed tables."""

    near: float = Field(default=0.3, ge=0, le=1, description="weight of the output at the tables; it rises to 1")
    near_mm: tuple[float, float] = Field(default=(0.5, 1.5), description="distances from them over which it rises")
    max_bone: float = Field(
        default=0.25, gt=0, le=1, description="no correction where more bone is present, off the rim"
    )
    margin_mm: float = Field(default=22.0, gt=0, description="lattice around the missing tables")
    extension_mm: float = Field(default=4.0, description="the tables go on beyond a defect's border")
    slope_mm: float = Field(default=0.5, gt=0, description="depth between the tables per unit of log-odds")
    max_log_odds: float = Field(default=5.0, gt=0, description="of the tables; twice as many of the output")


class VolumetricConfig(StrictConfig):
    """Everything that travels with the weights."""

    layout: VolumetricLayout = LAYOUT
    network: UNetConfig = UNetConfig()
    fusion: FusionConfig = FusionConfig()
