"""What the denoiser is trained on."""

from __future__ import annotations

from torch import Tensor

from pcdiff.diffusion.denoiser import per_sample
from pcdiff.diffusion.samplers import Denoise


def loss_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """lambda(sigma) = 1 / c_out^2 = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (Karras et al. 2022, table 1)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def denoising_loss(
    denoise: Denoise, clean: Tensor, sigma: Tensor, noise: Tensor, weight: Tensor, sigma_data: float
) -> Tensor:
    """lambda(sigma) |D(clean + sigma noise; sigma) - clean|^2, averaged (Karras et al. 2022, eq. 2).

    clean (B, C, N), sigma (B,), noise (B, C, N) standard normal, weight (B, N): 1 for a point that counts, 0 for
    padding, or anything between; at least one must be positive. The average runs over channels and, weighted, over
    all points of the batch -> scalar, about 1 for a network that outputs 0.
    """
    sigmas = per_sample(sigma, clean)
    error = (denoise(clean + sigmas * noise, sigma) - clean).square().mean(1)  # (B, N)
    each = weight * loss_weight(sigmas, sigma_data)[:, 0]  # (B, N)
    return (each * error).sum() / weight.sum()


def pseudo_huber(error: Tensor, knee: float) -> Tensor:
    """2 k^2 (sqrt(1 + (e / k)^2) - 1), of each element: about e^2 below the knee k, 2 k |e| far beyond."""
    return 2 * knee**2 * ((1 + (error / knee).square()).sqrt() - 1)
