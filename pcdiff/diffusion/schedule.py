"""Noise levels: descending steps for sampling, random draws for training. sigma is in the data's unit."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def karras_sigmas(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """N noise levels from sigma_max down to sigma_min, then 0: (n + 1,) float64 (Karras et al. 2022, eq. 5).

    n = 1 gives [sigma_max, 0]. Raises ValueError unless n >= 1 and 0 < sigma_min <= sigma_max.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 step, got {n}")
    _check_range(sigma_min, sigma_max)
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    sigmas[0] = sigma_max  # exactly, for callers who draw the start at sigma_max
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def log_normal_sigmas(shape: tuple[int, ...], p_mean: float, p_std: float, generator: torch.Generator) -> Tensor:
    """Training noise levels with ln(sigma) ~ N(p_mean, p_std^2) (Karras et al. 2022, table 1).

    float32, on the generator's device.
    """
    normal = torch.randn(shape, generator=generator, device=generator.device)
    return (p_mean + p_std * normal).exp()


def log_uniform_sigmas(
    shape: tuple[int, ...], sigma_min: float, sigma_max: float, generator: torch.Generator
) -> Tensor:
    """Training noise levels with ln(sigma) uniform: none outside the range a truncated diffusion samples from.

    float32, on the generator's device. Raises ValueError unless 0 < sigma_min <= sigma_max.
    """
    _check_range(sigma_min, sigma_max)
    uniform = torch.rand(shape, generator=generator, device=generator.device)
    low, high = math.log(sigma_min), math.log(sigma_max)
    return (low + (high - low) * uniform).exp()


def linear_sigmas(steps: int = 1000, beta_first: float = 1e-4, beta_last: float = 0.02) -> Tensor:
    """(steps,) float64, ascending: the noise levels of DDPM's linear betas (Ho et al. 2020, section 4).

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) n with a_t the product of (1 - beta): divided by sqrt(a_t), the data stay as
    they are and sigma_t = sqrt((1 - a_t) / a_t).
    """
    kept = (1 - torch.linspace(beta_first, beta_last, steps, dtype=torch.float64)).cumprod(0)
    return ((1 - kept) / kept).sqrt()


def _check_range(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min <= sigma_max:
        raise ValueError(f"0 < sigma_min <= sigma_max must hold, got {sigma_min} and {sigma_max}")
