"""Diffusion in the formulation of Karras et al. 2022 (EDM, arXiv 2206.00364), as functions of a denoiser and sigma."""

from pcdiff.diffusion.denoiser import Preconditioned
from pcdiff.diffusion.ema import Ema
from pcdiff.diffusion.loss import denoising_loss
from pcdiff.diffusion.samplers import SAMPLERS
from pcdiff.diffusion.schedule import karras_sigmas, linear_sigmas, log_normal_sigmas, log_uniform_sigmas

__all__ = [
    "SAMPLERS",
    "Ema",
    "Preconditioned",
    "denoising_loss",
    "karras_sigmas",
    "linear_sigmas",
    "log_normal_sigmas",
    "log_uniform_sigmas",
]
