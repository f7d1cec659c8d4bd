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
) -> Tensor:
    """(members, N) mm.

    Every second member starts at the opposite of the noise of the one before: each is a sample, and their mean hardly
    depends on the noise (antithetic variates). A larger ensemble begins with the members of a smaller one.

    anchors: fields of one `Anchors` by name, (1, N, ...), on the network's device.
    """
    surface = network.encode(anchors["positions"], anchors["static"], anchors["profile"]).repeated(members)
    drawn = (members + 1) // 2
    positions, normals = (anchors[name].expand(drawn, -1, -1) for name in ("positions", "normals"))
    noise = normal_noise(positions, normals, config, generator)
    noise = torch.stack([noise, -noise], 1).flatten(0, 1)[:members]
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
