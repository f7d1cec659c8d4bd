"""Members of an ensemble: displacements of a surface's anchors, drawn by the truncated diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from pcdiff.diffusion.samplers import SAMPLERS, Callback
from pcdiff.diffusion.schedule import karras_sigmas
from pcdiff.methods.surface.config import SurfaceDiffusionConfig
from pcdiff.methods.surface.network import Surface, SurfaceDenoiser
from pcdiff.methods.surface.noise import normal_noise


def sigmas_of(config: SurfaceDiffusionConfig) -> Tensor:
    """The noise levels of the steps, mm, descending to 0."""
    return karras_sigmas(config.steps, config.sigma_min, config.sigma_max)


@torch.inference_mode()
def sample_displacements(
    network: SurfaceDenoiser,
    config: SurfaceDiffusionConfig,
    anchors: Mapping[str, Tensor],
    members: int,
    generator: torch.Generator,
    callback: Callback | None = None,
    paired: bool = False,
) -> Tensor:
    """(members, N) mm.

    anchors: fields of one `Anchors` by name, (1, N, ...), on the network's device. paired: the second half of the
    members starts at the opposite of the first half's noise, so that their mean hardly depends on the noise.
    """
    surface = network.encode(anchors["positions"], anchors["static"], anchors["profile"]).repeated(members)
    drawn = members // 2 if paired else members
    positions, normals = (anchors[name].expand(drawn, -1, -1) for name in ("positions", "normals"))
    noise = normal_noise(positions, normals, config, generator)
    if paired:
        noise = torch.cat([noise, -noise])
    sigmas = sigmas_of(config)
    return SAMPLERS[config.sampler](
        partial(_denoise, network, surface),
        config.temperature * sigmas[0] * noise,
        sigmas,
        generator=generator,
        callback=callback,
    )


def _denoise(network: SurfaceDenoiser, surface: Surface, x: Tensor, sigma: Tensor) -> Tensor:
    return network(x, sigma, surface)
