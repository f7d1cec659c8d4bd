"""Samplers, from noise to data, as pure functions of a denoiser, x and sigmas.

The data keep their size (variance exploding, x = x0 + sigma * n). Gradients flow through a sampler: call it in
`torch.inference_mode()` when none are needed.
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
    """The signature that all samplers share, so that they can be chosen by name."""

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: Tensor,
        *,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Denoises x step by step.

        Args:
            denoise: (x (B, ...), sigma (B,)) -> x0 (B, ...), with the condition already bound. It is never called at
                sigma = 0.
            x: (B, ...) at noise level sigmas[0].
            sigmas: (n + 1,), descending, on any device.
            generator: source of noise, drawn on the generator's device; only `sample_ancestral` draws any.
            callback: called as (step, x, x0), with x at sigmas[step] and x0 = denoise(x, sigmas[step]).

        Returns:
            x at sigmas[-1], in x's dtype. The steps between accumulate in float32 at least.

        Raises:
            ValueError: sigmas do not descend, or end below 0.
        """


# ----------------------------------------------------------------------------
# Euler steps on the probability-flow ODE dx/dsigma = (x - D(x; sigma)) / sigma (Karras et al. 2022, Equations 1
# and 3 with sigma(t) = t). Equals DDIM (Song et al. 2021, Equation 12 with sigma_t = 0).


def sample_euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """First order, one evaluation a step. See `Sampler`."""
    d, out = _bind(denoise, callback), _float32_at_least(x)
    for step, sigma, sigma_next in _steps(sigmas):
        x0 = d(step, out, sigma)
        out = x0 + sigma_next / sigma * (out - x0)
    return out.to(x.dtype)


# ----------------------------------------------------------------------------
# Heun's method on the same ODE (Karras et al. 2022, Algorithm 1).


def sample_heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Second order, two evaluations a step, one for the last step to 0. See `Sampler`."""
    d, correct, out = _bind(denoise, callback), _bind(denoise, None), _float32_at_least(x)
    for step, sigma, sigma_next in _steps(sigmas):
        slope = (out - d(step, out, sigma)) / sigma
        euler = out + (sigma_next - sigma) * slope
        if sigma_next > 0:
            slope_next = (euler - correct(step, euler, sigma_next)) / sigma_next
            out = out + (sigma_next - sigma) * (slope + slope_next) / 2
        else:
            out = euler
    return out.to(x.dtype)


# ----------------------------------------------------------------------------
# DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2 with alpha = 1), in lambda = -ln(sigma) with h its step and
# r = h_last / h: x_next = sigma_next / sigma * x + (1 - sigma_next / sigma) * ((1 + 1/(2r)) x0 - 1/(2r) x0_last).


def sample_dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Second order from one evaluation a step; the first step and the last step to 0 are Euler steps. See `Sampler`."""
    d, out = _bind(denoise, callback), _float32_at_least(x)
    last: tuple[float, Tensor] | None = None  # (h, x0) of the step before
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


# ----------------------------------------------------------------------------
# Ancestral sampling: each step draws from q(x_next | x, x0) (Ho et al. 2020, Equations 6 and 7; eta = 1 of Song et al.
# 2021). With k = (sigma_next / sigma)^2 its mean is x0 + k (x - x0) and its variance sigma_next^2 (1 - k).


def sample_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DDPM with its posterior variance. Raises ValueError without a generator. See `Sampler`."""
    if generator is None:
        raise ValueError("sample_ancestral draws noise and needs a generator, got None; pass a torch.Generator")
    d, out = _bind(denoise, callback), _float32_at_least(x)
    for step, sigma, sigma_next in _steps(sigmas):
        x0 = d(step, out, sigma)
        k = (sigma_next / sigma) ** 2
        out = x0 + k * (out - x0)
        if sigma_next > 0:
            noise = torch.randn(out.shape, dtype=out.dtype, device=generator.device, generator=generator)
            out = out + sigma_next * math.sqrt(1 - k) * noise.to(out.device)
    return out.to(x.dtype)


SAMPLERS: dict[str, Sampler] = {
    "euler": sample_euler,
    "heun": sample_heun,
    "dpmpp_2m": sample_dpmpp_2m,
    "ancestral": sample_ancestral,
}


def _float32_at_least(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _steps(sigmas: Tensor) -> Iterator[tuple[int, float, float]]:
    """Yields (step, sigma, sigma_next) as Python floats, whose ratios are exact to float64 on every device."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        if not sigma > sigma_next >= 0:
            raise ValueError(f"sigmas must descend and end at 0 or above, got {sigma} before {sigma_next}")
        yield step, sigma, sigma_next


def _bind(denoise: Denoise, callback: Callback | None) -> Callable[[int, Tensor, float], Tensor]:
    """The denoiser at one sigma for the whole batch; returns x's dtype and calls the callback."""

    def evaluate(step: int, x: Tensor, sigma: float) -> Tensor:
        x0 = denoise(x, x.new_full((len(x),), sigma)).to(x.dtype)
        if callback is not None:
            callback(step, x, x0)
        return x0

    return evaluate
