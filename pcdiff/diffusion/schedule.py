"""Noise levels sigma, in the data's unit: descending steps for sampling, random draws for training."""

from __future__ import annotations

import torch
from torch import Tensor

# ----------------------------------------------------------------------------
# Sampling steps (Karras et al. 2022, Equation 5):
# sigma_i = (sigma_max^(1/rho) + i / (n - 1) * (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, and sigma_n = 0.


def karras_sigmas(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """N noise levels from sigma_max down to sigma_min, then 0: (n + 1,) float64.

    n = 1 gives [sigma_max, 0]. Raises ValueError unless n >= 1 and 0 < sigma_min <= sigma_max.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 step, got {n}")
    if not 0 < sigma_min <= sigma_max:
        raise ValueError(f"0 < sigma_min <= sigma_max must hold, got {sigma_min} and {sigma_max}")
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    sigmas[0] = sigma_max  # exactly, for callers who draw the start at sigma_max
    return torch.cat([sigmas, sigmas.new_zeros(1)])


# ----------------------------------------------------------------------------
# Training noise levels (Karras et al. 2022, Table 1): ln(sigma) ~ N(p_mean, p_std^2).


def log_normal_sigmas(count: int, p_mean: float, p_std: float, generator: torch.Generator) -> Tensor:
    """Random noise levels (count,), float32, on the generator's device."""
    normal = torch.randn(count, generator=generator, device=generator.device)
    return (p_mean + p_std * normal).exp()


# ----------------------------------------------------------------------------
# Linear betas of DDPM (Ho et al. 2020, Section 4) as noise levels. There
# x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) n, where a_t is the product of (1 - beta) up to t. Divided by sqrt(a_t), the data
# keep their size, and sigma_t = sqrt((1 - a_t) / a_t).


def linear_sigmas(steps: int = 1000, beta_first: float = 1e-4, beta_last: float = 0.02) -> Tensor:
    """(steps,) float64, ascending."""
    alpha_bar = (1 - torch.linspace(beta_first, beta_last, steps, dtype=torch.float64)).cumprod(0)
    return ((1 - alpha_bar) / alpha_bar).sqrt()
