"""Latent diffusion (Rombach et al. 2022): an autoencoder to small images, and a diffusion of those.

The autoencoder is trained first, then the denoising network on what it makes of the images.
"""

from __future__ import annotations

import torch
from monai.inferers import DiffusionInferer
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from torch import Tensor
from torch.nn import functional

from pcdiff.data.augmentation.generators import RATE, VOLUME, GeneratorConfig, ImageGenerator, trains_only

AUTOENCODER_SHARE = 0.4  # of the steps
KL_WEIGHT = 1e-4  # of the divergence for each number, against the mean squared error
TRAINING_STEPS, SAMPLING_STEPS = 1000, 50  # of the diffusion: DDPM and DDIM
GROUPS = 4  # of the group normalisation
MEMORY = 0.98  # of the latent numbers' mean and mean square


class LatentDiffusion(ImageGenerator):
    """Of maps: MONAI's AutoencoderKL and DiffusionModelUNet.

    latent_channels: of the latent images. levels: of noise, at which a step of the diffusion sees each of its images.
    """

    latent_channels = 4
    levels = 1

    def __init__(self, config: GeneratorConfig, weight: Tensor) -> None:
        super().__init__(config, weight)
        (image_channels, *sides), channels = self.layout(config)
        self.autoencoder = AutoencoderKL(
            len(sides),
            image_channels,
            image_channels,
            num_res_blocks=1,
            channels=channels,
            attention_levels=(False,) * len(channels),
            latent_channels=self.latent_channels,
            norm_num_groups=GROUPS,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )
        self.denoiser = DiffusionModelUNet(
            len(sides),
            self.latent_channels,
            self.latent_channels,
            num_res_blocks=1,
            channels=(2 * config.width, 4 * config.width),
            attention_levels=(False, True),
            norm_num_groups=GROUPS,
            num_head_channels=config.width,
        )
        self.noise = (self.latent_channels, *(side // 2 ** (len(channels) - 1) for side in sides))
        self.register_buffer("centre", torch.zeros(self.noise))
        self.register_buffer("square", torch.ones(self.noise))
        self.centre: Tensor  # mean of each latent number
        self.square: Tensor  # its mean square

    @property
    def _spread(self) -> Tensor:
        """The standard deviation of each latent number.

        The diffusion sees deviations from the mean latent image in units of this: heads lie in one pose, so that most
        of a latent image is the same in all.
        """
        return (self.square - self.centre**2).clamp_min(1e-6).sqrt()

    @staticmethod
    def layout(config: GeneratorConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shape of an image, and the channels of the autoencoder's levels."""
        half = config.width // 2
        return (2, config.size, config.size), (half, 2 * half, 4 * half, 4 * half)

    def rate(self, share: float) -> float:
        """See `ImageGenerator`: it falls for each of the two networks."""
        begin, end = (0, AUTOENCODER_SHARE) if share < AUTOENCODER_SHARE else (AUTOENCODER_SHARE, 1)
        return RATE * max((end - share) / (end - begin), 0.05)

    def forward(self, images: Tensor, step: int, share: float) -> dict[str, Tensor]:
        """See `ImageGenerator`."""
        images = images * (self.weight > 0)
        if share < AUTOENCODER_SHARE:
            trains_only(self.autoencoder, self.denoiser)
            decoded, mean, sigma = self.autoencoder(images)
            error = self.error(decoded, images).mean()
            kl = (mean**2 + sigma**2 - 1 - 2 * sigma.log()).mean() / 2
            self.centre.lerp_(mean.mean(0).detach(), 1 - MEMORY)
            self.square.lerp_((mean**2 + sigma**2).mean(0).detach(), 1 - MEMORY)
            return {"loss": error + KL_WEIGHT * kl, "error": error}
        trains_only(self.denoiser, self.autoencoder)
        self.denoiser.train()
        scheduler = DDPMScheduler(TRAINING_STEPS, schedule="scaled_linear_beta")
        with torch.no_grad():
            latent = (self.autoencoder.encode_stage_2_inputs(images) - self.centre) / self._spread
        latent = latent.repeat(self.levels, *[1] * (latent.ndim - 1))
        noise = torch.randn_like(latent)
        when = torch.randint(TRAINING_STEPS, (len(latent),), device=images.device)
        loss = functional.mse_loss(self.denoiser(scheduler.add_noise(latent, noise, when), when), noise)
        return {"loss": loss, "error": loss.detach()}

    def sample(self, noise: Tensor) -> Tensor:
        """See `ImageGenerator`."""
        scheduler = DDIMScheduler(TRAINING_STEPS, schedule="scaled_linear_beta", clip_sample=False)
        scheduler.set_timesteps(SAMPLING_STEPS)
        latent = DiffusionInferer(scheduler).sample(noise, self.denoiser, scheduler, verbose=False)
        assert isinstance(latent, Tensor)  # without those on the way
        images: Tensor = self.autoencoder.decode_stage_2_outputs(latent * self._spread + self.centre)
        return images


class VolumeDiffusion(LatentDiffusion):
    """The same of volumes: few places of many channels, because the diffusion's time grows with places."""

    latent_channels = 16
    levels = 8  # to encode a head takes as long

    @staticmethod
    def layout(config: GeneratorConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """See `LatentDiffusion.layout`; a block of points stands for two levels already."""
        return VOLUME, (config.width, 2 * config.width, 4 * config.width)
