"""Preconditioning: how the raw output of a network becomes a denoised sample (Karras et al. 2022, section 5)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Scaling(NamedTuple):
    """The four coefficients of a noise level, each of sigma's shape."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


# ----------------------------------------------------------------------------
# Preconditioning (Karras et al. 2022, Equation 7 and the last column of Table 1):
# D(x; sigma) = c_skip * x + c_out * F(c_in * x; c_noise).


def scaling(sigma: Tensor, sigma_data: float) -> Scaling:
    """The coefficients for data of standard deviation sigma_data.

    c_in and c_out give the network inputs and targets of unit variance; c_skip makes c_out as small as possible.
    sigma must be positive: c_noise is log(sigma) / 4.
    """
    total = sigma**2 + sigma_data**2
    return Scaling(
        c_skip=sigma_data**2 / total,
        c_out=sigma * sigma_data / total.sqrt(),
        c_in=1 / total.sqrt(),
        c_noise=sigma.log() / 4,
    )


def per_sample(sigma: Tensor, x: Tensor) -> Tensor:
    """Reshapes sigma, scalar or (B,), to (B, 1, ..., 1) beside x (B, ...), in x's dtype and on its device."""
    return sigma.to(x).expand(len(x)).reshape(-1, *[1] * (x.ndim - 1))
