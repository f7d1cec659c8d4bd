"""From noise to data: samplers as pure functions over sigmas, the data unscaled (variance exploding, x = x0 + sigma n).

Gradients flow through: wrap a call in `torch.inference_mode()` where none are wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
Callback = Callable[[int, Tensor, Tensor], object]


class Sampler(Protocol):
    """What all samplers look like, so that they can be chosen by name.

    denoise:   (x (B, ...), sigma (B,)) -> x0 (B, ...), with the condition already bound.
    x:         (B, ...) at noise level sigmas[0].
    sigmas:    (n + 1,), descending, on any device; denoise is never asked at 0. Else ValueError.
    generator: where noise is drawn from, on the generator's device; only `sample_ancestral` draws any.
    callback:  called as (step, x, x0) with x at sigmas[step] and x0 what denoise makes of it.

    Returns x at sigmas[-1], of x's dtype; the steps in between accumulate in float32 at least.
    """

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: Tensor,
        *,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
    ) -> Tensor: ...


def sample_euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """First order on the probability-flow ODE dx/dsigma = (x - D) / sigma; the same as DDIM (Song et al. 2021)."""
    d, out = _bind(denoise, callback), _wide(x)
    for step, sigma, sigma_next in _steps(sigmas):
        x0 = d(step, out, sigma)
        out = x0 + sigma_next / sigma * (out - x0)
    return out.to(x.dtype)


def sample_heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Second order, two evaluations a step but the last to 0 (Karras et al. 2022, algorithm 1)."""
    d, correct, out = _bind(denoise, callback), _bind(denoise, None), _wide(x)
    for step, sigma, sigma_next in _steps(sigmas):
        slope = (out - d(step, out, sigma)) / sigma
        euler = out + (sigma_next - sigma) * slope
        if sigma_next > 0:
            slope_next = (euler - correct(step, euler, sigma_next)) / sigma_next
            out = out + (sigma_next - sigma) * (slope + slope_next) / 2
        else:
            out = euler
    return out.to(x.dtype)


def sample_dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DPM-Solver++(2M): second order from one evaluation a step (Lu et al. 2022, algorithm 2, alpha = 1).

    The first step and the one to 0 have no second order to use: they are Euler steps.
    """
    d, out = _bind(denoise, callback), _wide(x)
    last: tuple[float, Tensor] | None = None  # step in lambda = -ln(sigma), and x0, of the step before
    for step, sigma, sigma_next in _steps(sigmas):
        x0 = d(step, out, sigma)
        target = x0
        if sigma_next > 0:
            h = math.log(sigma / sigma_next)
            if last is not None:
                h_last, x0_last = last
                target = x0 + h / (2 * h_last) * (x0 - x0_last)  # D_i, with r = h_last / h
            last = h, x0
        out = target + sigma_next / sigma * (out - target)
    return out.to(x.dtype)


def sample_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Each step draws from q(x_next | x, x0): DDPM with its posterior variance (Ho et al. 2020, eq. 7; eta = 1).

    Raises ValueError without a generator.
    """
    if generator is None:
        raise ValueError("sample_ancestral draws noise and needs a generator, got None; pass a torch.Generator")
    d, out = _bind(denoise, callback), _wide(x)
    for step, sigma, sigma_next in _steps(sigmas):
        x0 = d(step, out, sigma)
        kept = (sigma_next / sigma) ** 2
        out = x0 + kept * (out - x0)
        if sigma_next > 0:
            noise = torch.randn(out.shape, dtype=out.dtype, device=generator.device, generator=generator)
            out = out + sigma_next * math.sqrt(1 - kept) * noise.to(out.device)
    return out.to(x.dtype)


SAMPLERS: dict[str, Sampler] = {
    "euler": sample_euler,
    "heun": sample_heun,
    "dpmpp_2m": sample_dpmpp_2m,
    "ancestral": sample_ancestral,
}


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _steps(sigmas: Tensor) -> Iterator[tuple[int, float, float]]:
    """(step, sigma, sigma_next) as Python floats: their ratios are then exact to float64 on every device."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        if not sigma > sigma_next >= 0:
            raise ValueError(f"sigmas must descend and end at 0 or above, got {sigma} before {sigma_next}")
        yield step, sigma, sigma_next


def _bind(denoise: Denoise, callback: Callback | None) -> Callable[[int, Tensor, float], Tensor]:
    """The denoiser at one scalar sigma for the whole batch, its result in x's dtype, the callback told."""

    def evaluate(step: int, x: Tensor, sigma: float) -> Tensor:
        x0 = denoise(x, x.new_full((len(x),), sigma)).to(x.dtype)
        if callback is not None:
            callback(step, x, x0)
        return x0

    return evaluate
