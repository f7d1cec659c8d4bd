"""From a raw network to a denoiser: all scaling happens here, callers only ever see a denoised sample."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Scaling(NamedTuple):
    """The four coefficients of one noise level, each of sigma's shape."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def scaling(sigma: Tensor, sigma_data: float) -> Scaling:
    """Preconditioning for data of standard deviation sigma_data (Karras et al. 2022, table 1, last column).

    c_in and c_out give the network inputs and targets of unit variance; c_skip makes c_out as small as it can be.
    sigma must be positive: c_noise is its logarithm / 4.
    """
    total = sigma**2 + sigma_data**2
    return Scaling(
        c_skip=sigma_data**2 / total,
        c_out=sigma * sigma_data / total.sqrt(),
        c_in=1 / total.sqrt(),
        c_noise=sigma.log() / 4,
    )


def per_sample(sigma: Tensor, x: Tensor) -> Tensor:
    """sigma, scalar or (B,), as (B, 1, ..., 1) beside x (B, ...), in x's dtype and on its device."""
    return sigma.to(x).expand(len(x)).reshape(-1, *[1] * (x.ndim - 1))


class Preconditioned(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x, c_noise, condition) (Karras et al. 2022, eq. 7).

    `network` is F: (x (B, ...), c_noise (B,), condition) -> (B, ...). Bind the condition before sampling:
    `functools.partial(model, condition=condition)` is what samplers and the loss call `denoise`.
    """

    def __init__(self, network: nn.Module, sigma_data: float) -> None:
        super().__init__()
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data}")
        self.network = network
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, sigma: Tensor, condition: Any = None) -> Tensor:
        """Noisy x (B, ...), sigma scalar or (B,) -> denoised x, float32 at least, whatever autocast makes of F."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        c_skip, c_out, c_in, c_noise = scaling(per_sample(sigma, x), self.sigma_data)
        return c_skip * x + c_out * self.network(c_in * x, c_noise.flatten(), condition)
