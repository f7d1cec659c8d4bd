"""Wasserstein GANs with gradient penalty (Gulrajani et al. 2017): on its own, and with a trained VAE's decoder.

At each step one network learns: the critic `CRITIC_STEPS` times, then the generator once.
"""

from __future__ import annotations

import torch
from monai.networks.nets import Discriminator
from monai.networks.nets import Generator as Upsampler
from torch import Tensor, nn

from pcdiff.data.augmentation.generators import RATE, GeneratorConfig, ImageGenerator, trains_only
from pcdiff.data.augmentation.vae import Vae

CRITIC_STEPS = 5
GAN_RATE = 2e-4
PENALTY = 10.0  # weight of the gradient penalty
VAE_SHARE = 0.5  # of the steps of `VaeGan`, in which its VAE is trained


class WassersteinGan(ImageGenerator):
    """MONAI's Generator and Discriminator."""

    betas = (0.0, 0.9)

    def __init__(self, config: GeneratorConfig, weight: Tensor) -> None:
        super().__init__(config, weight)
        self.generator: nn.Module = self.make_generator()
        self.critic = Discriminator(
            (2, config.size, config.size),
            config.channels,
            (2,) * len(config.channels),
            num_res_units=0,
            norm=None,  # the penalty is of each image's own gradient
            dropout=None,
            last_act=None,
        )

    def make_generator(self) -> nn.Module:
        """The network that turns noise into images."""
        *ups, deepest = self.config.channels
        start = (deepest, *(self.config.size // 2 ** len(self.config.channels),) * 2)
        channels = (*ups[::-1], 2)
        return Upsampler((self.config.latent,), start, channels, (2,) * len(channels), num_res_units=0, norm="BATCH")

    def sample(self, noise: Tensor) -> Tensor:
        """See `ImageGenerator`."""
        images: Tensor = self.generator(noise)
        return images

    def rate(self, share: float) -> float:
        """See `ImageGenerator`."""
        return GAN_RATE

    def forward(self, images: Tensor, step: int, share: float) -> dict[str, Tensor]:
        """See `ImageGenerator`."""
        noise = torch.randn(len(images), *self.noise, device=images.device)
        if step % (CRITIC_STEPS + 1) < CRITIC_STEPS:
            trains_only(self.critic, self.generator)
            with torch.no_grad():
                fake = self.sample(noise)
            distance = self.judged(images).mean() - self.judged(fake).mean()
            penalty = self.gradient_penalty(images, fake)
            return {"loss": PENALTY * penalty - distance, "distance": distance, "penalty": penalty}
        trains_only(self.generator, self.critic)
        loss = -self.judged(self.sample(noise)).mean()
        zero = loss.detach() * 0
        return {"loss": loss, "distance": zero, "penalty": zero}

    def judged(self, images: Tensor) -> Tensor:
        """(N, 1) the critic's judgement of what lies on the map."""
        judgement: Tensor = self.critic(images * self.weight)
        return judgement

    def gradient_penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        """E (|grad D(x)| - 1)^2 at x between real and fake images (Equation 3)."""
        share = torch.rand(len(real), 1, 1, 1, device=real.device)
        between = (share * real + (1 - share) * fake).requires_grad_()
        (gradient,) = torch.autograd.grad(self.judged(between).sum(), between, create_graph=True)
        return ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()


class VaeGan(WassersteinGan):
    """A VAE first; then its decoder is the generator of the GAN."""

    generator: Vae

    def make_generator(self) -> Vae:
        """See `WassersteinGan`: the whole VAE, whose decoder makes the images."""
        return Vae(self.config, self.weight.clone())  # a file holds each tensor once

    def sample(self, noise: Tensor) -> Tensor:
        """See `ImageGenerator`."""
        return self.generator.sample(noise)

    def rate(self, share: float) -> float:
        """See `ImageGenerator`."""
        return RATE if share < VAE_SHARE else GAN_RATE

    def forward(self, images: Tensor, step: int, share: float) -> dict[str, Tensor]:
        """See `ImageGenerator`."""
        if share >= VAE_SHARE:
            return super().forward(images, step, share)
        trains_only(self.generator, self.critic)
        loss = self.generator(images, step, share)["loss"]
        zero = loss.detach() * 0
        return {"loss": loss, "distance": zero, "penalty": zero}
