"""Diffusion as formulated by Karras et al. 2022 (EDM, arXiv 2206.00364): functions of a denoiser and sigma."""

from pcdiff.diffusion.ema import Ema
from pcdiff.diffusion.loss import add_noise, denoising_loss
from pcdiff.diffusion.samplers import SAMPLERS
from pcdiff.diffusion.schedule import karras_sigmas, linear_sigmas, log_normal_sigmas

__all__ = [
    "SAMPLERS",
    "Ema",
    "add_noise",
    "denoising_loss",
    "karras_sigmas",
    "linear_sigmas",
    "log_normal_sigmas",
]
