"""Losses that a denoiser is trained with."""

from __future__ import annotations

from torch import Tensor

from pcdiff.diffusion.preconditioning import per_sample

# ----------------------------------------------------------------------------
# Loss weight (Karras et al. 2022, Table 1):
# lambda(sigma) = 1 / c_out^2 = (sigma^2 + sigma_data^2) / (sigma * sigma_data)^2.


def loss_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """lambda(sigma), of sigma's shape."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


# ----------------------------------------------------------------------------
# Denoising loss (Karras et al. 2022, Equations 2 and 8): the mean of lambda(sigma) * |D(y + n; sigma) - y|^2, where
# y are clean data and n is noise of standard deviation sigma. `add_noise` makes y + n, the caller applies D.


def add_noise(clean: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Clean + sigma * noise. clean, noise: (B, ...); noise of unit variance. sigma: (B,)."""
    return clean + per_sample(sigma, clean) * noise


def denoising_loss(denoised: Tensor, clean: Tensor, sigma: Tensor, weight: Tensor, sigma_data: float) -> Tensor:
    """The loss of a batch, averaged over channels and, weighted, over all points; about 1 if the network outputs 0.

    Args:
        denoised: (B, C, N), what the denoiser makes of `add_noise(clean, sigma, noise)`.
        clean: (B, C, N).
        sigma: (B,) noise levels.
        weight: (B, N), of each point: 1, 0 for padding, or anything between. At least one must be positive.
        sigma_data: standard deviation of the clean data.

    Returns:
        A scalar.
    """
    error = (denoised - clean).square().mean(1)  # (B, N)
    each = weight * loss_weight(per_sample(sigma, clean), sigma_data)[:, 0]  # (B, N)
    return (each * error).sum() / weight.sum()
