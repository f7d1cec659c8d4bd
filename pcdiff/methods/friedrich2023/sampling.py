"""From a defective skull's points to implant points: a network that predicts noise, run by the samplers all share."""

from __future__ import annotations

import torch
from torch import Tensor

from pcdiff.diffusion.samplers import SAMPLERS, Callback
from pcdiff.diffusion.schedule import linear_sigmas
from pcdiff.methods.friedrich2023.config import PaperConfig
from pcdiff.methods.friedrich2023.denoiser import PaperDenoiser

T = 1000  # noise levels of the training


class NoisePrediction:
    """denoise(x, sigma) -> x0 of a network that was trained to say the noise in sqrt(a) x0 + sqrt(1 - a) noise.

    skull: (B, S, 3) network units, never noisy and never scaled. x: (B, P, 3) implant points, the data's own size.
    sigma is taken to the nearest of the thousand levels that the network knows. half: products in bfloat16.
    """

    def __init__(self, network: PaperDenoiser, skull: Tensor, half: bool = False) -> None:
        self.network, self.skull, self.half = network, skull, half
        self.sigmas = linear_sigmas(T)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See the class."""
        level = sigma.double().cpu()
        t = (self.sigmas.log()[None] - level.log()[:, None]).abs().argmin(1).to(x.device)
        scale = (1 + sigma.double() ** 2).rsqrt().to(x)[:, None, None]  # sqrt(a)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half):
            noise = self.network(torch.cat([self.skull.to(x), x * scale], 1), t)
        return x - sigma.to(x)[:, None, None] * noise.to(x)


def ladder(steps: int) -> Tensor:
    """(steps + 1,) float64: levels evenly spread over the training's thousand, from the noisiest down, then 0."""
    chosen = torch.linspace(0, T - 1, steps, dtype=torch.float64).round().long().flip(0)
    return torch.cat([linear_sigmas(T)[chosen], torch.zeros(1, dtype=torch.float64)])


@torch.inference_mode()
def sample_points(
    network: PaperDenoiser,
    skull: Tensor,
    config: PaperConfig,
    generator: torch.Generator,
    callback: Callback | None = None,
) -> Tensor:
    """Skull (B, S, 3) network units -> implant points (B, P, 3).

    Like the original's, the start is standard normal noise in its scaled frame: a thousandth less than what the
    training ends at.
    """
    sigmas = ladder(config.steps)
    shape = (len(skull), network.config.implant_points, 3)
    noise = torch.randn(shape, generator=generator, device=generator.device).to(skull)
    start = noise * float((1 + sigmas[0] ** 2).sqrt())
    denoise = NoisePrediction(network, skull, half=config.precision == "bf16")
    return SAMPLERS[config.sampler](denoise, start, sigmas, generator=generator, callback=callback)
