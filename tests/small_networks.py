"""Small networks with random weights, whose output depends on their input."""

from __future__ import annotations

import numpy as np
import torch

from pcdiff.methods.surface.config import SurfaceDiffusionConfig, SurfaceNetworkConfig
from pcdiff.methods.surface.network import SurfaceDenoiser
from pcdiff.methods.volumetric.config import UNetConfig, VolumetricConfig
from pcdiff.methods.volumetric.features import LATTICE
from pcdiff.methods.volumetric.model import VolumetricModel

DIFFUSION = SurfaceDiffusionConfig()
SMALL = SurfaceNetworkConfig(width=32, blocks=1, heads=2)


def small_unet() -> VolumetricModel:
    """With log-odds of zero."""
    torch.manual_seed(0)
    config = UNetConfig(widths=(8, 8))
    network = config.make().eval()
    torch.nn.init.zeros_(network.leave.bias)
    return VolumetricModel(network, np.zeros(LATTICE.shape, np.uint8), VolumetricConfig(network=config))


def small_denoiser(config: SurfaceNetworkConfig = SMALL) -> SurfaceDenoiser:
    """With an output that is not zero."""
    torch.manual_seed(1)
    network = SurfaceDenoiser(config, DIFFUSION.sigma_data).eval()
    torch.nn.init.normal_(network.leave.weight, std=0.2)
    return network
