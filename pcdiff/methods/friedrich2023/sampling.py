"""From points of a defective skull to implant points: a network that predicts noise, run by the common samplers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pcdiff.diffusion.samplers import SAMPLERS, Callback
from pcdiff.diffusion.schedule import linear_sigmas
from pcdiff.methods.friedrich2023.config import PaperConfig
from pcdiff.methods.friedrich2023.denoiser import PaperDenoiser
from pcdiff.nets.devices import half_precision

LEVELS = 1000  # noise levels of the training


class NoisePrediction:
    """denoise(x, sigma) -> x0, by a network trained to predict the noise n of sqrt(a) x0 + sqrt(1 - a) n.

    x0 = x - sigma * n, with x = x0 + sigma * n as the samplers have it (Ho et al. 2020, Equation 15).

    skull: (B, S, 3) network units, neither noised nor scaled. x: (B, P, 3) implant points in the data's own scale.
    sigma: (B,), rounded to the nearest of the thousand levels of the training. half: products in bfloat16, where
    the device is fast at it. limit: x0 is clamped to +- this, as in the code of Ho et al. An error of the noise counts
    sigma times, 157 times at the noisiest level, so a network of a short training needs it.
    """

    def __init__(self, network: PaperDenoiser, skull: Tensor, half: bool = False, limit: float | None = None) -> None:
        self.network, self.skull, self.half = network, skull, half
        self.limit = math.inf if limit is None else limit
        self.log_sigmas = linear_sigmas(LEVELS).log().to(skull.device)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See the class."""
        t = (self.log_sigmas[None] - sigma.to(self.log_sigmas).log()[:, None]).abs().argmin(1)
        scale = (1 + sigma.double() ** 2).rsqrt().to(x)[:, None, None]  # sqrt(a)
        with half_precision(x.device, self.half):
            noise = self.network(torch.cat([self.skull.to(x), x * scale], 1), t)
        return (x - sigma.to(x)[:, None, None] * noise.to(x)).clamp(-self.limit, self.limit)


def evenly_spaced_sigmas(steps: int) -> Tensor:
    """(steps + 1,) float64, descending: levels evenly spaced among the thousand of the training, then 0."""
    chosen = torch.linspace(0, LEVELS - 1, steps, dtype=torch.float64).round().long().flip(0)
    return torch.cat([linear_sigmas(LEVELS)[chosen], torch.zeros(1, dtype=torch.float64)])


@torch.inference_mode()
def sample_points(
    network: PaperDenoiser,
    skull: Tensor,
    config: PaperConfig,
    generator: torch.Generator,
    callback: Callback | None = None,
) -> Tensor:
    """Skull (B, S, 3) network units -> implant points (B, P, 3).

    As in the original, sampling starts at standard normal noise in the scaled frame, where the noisiest training sample
    would still hold a thousandth of the data.
    """
    sigmas = evenly_spaced_sigmas(config.steps)
    shape = (len(skull), network.config.implant_points, 3)
    noise = torch.randn(shape, generator=generator, device=generator.device).to(skull)
    start = noise * float((1 + sigmas[0] ** 2).sqrt())
    denoise = NoisePrediction(network, skull, config.precision == "bf16", config.limit)
    return SAMPLERS[config.sampler](denoise, start, sigmas, generator=generator, callback=callback)
