"""An introspective VAE (Huang et al. 2018): its encoder is also the critic of what its decoder makes.

The encoder learns to give real images a small divergence and made ones a large one; the decoder learns to make images
with a small one. They take turns, after a time as an ordinary VAE.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pcdiff.data.augmentation.generators import RATE, GeneratorConfig, divergence, trains_only
from pcdiff.data.augmentation.vae import KL_WEIGHT, Vae

VAE_SHARE = 0.5  # of the steps, as an ordinary VAE
ADVERSARIAL = 0.25  # alpha, weight of made images
MARGIN = 1.25  # m, of the divergence of real images
MEMORY = 0.99  # of the mean divergence


class IntroVae(Vae):
    """A VAE whose encoder and decoder compete."""

    def __init__(self, config: GeneratorConfig, weight: Tensor) -> None:
        super().__init__(config, weight)
        self.register_buffer("typical", torch.zeros(()))
        self.typical: Tensor  # mean divergence of real images

    def rate(self, share: float) -> float:
        """See `ImageGenerator`."""
        return RATE if share < VAE_SHARE else RATE / 5

    def forward(self, images: Tensor, step: int, share: float) -> dict[str, Tensor]:
        """See `ImageGenerator`; Equations 11 and 12 of the paper, with the error's weight at 1."""
        if share < VAE_SHARE:
            self.requires_grad_(True)
            losses = super().forward(images, step, share)
            self.typical.lerp_(losses["divergence"].detach(), 1 - MEMORY)
            return losses | {"made": losses["loss"].detach() * 0}
        encoders_turn = step % 2 == 0
        trains_only(*((self.encoder, self.decoder) if encoders_turn else (self.decoder, self.encoder)))
        mean, log_variance = self.encode(images)
        decoded = self.sample(self.network.reparameterize(mean, log_variance))
        made = self.sample(torch.randn_like(mean))
        error, kl = self.error(decoded, images).mean(), divergence(mean, log_variance).mean()
        if encoders_turn:
            judged = [divergence(*self.encode(some.detach())) for some in (decoded, made)]
            gap = sum(functional.relu(MARGIN * self.typical - each).mean() for each in judged)
            loss = error + KL_WEIGHT * (kl + ADVERSARIAL * gap)
        else:
            judged = [divergence(*self.encode(some)) for some in (decoded, made)]
            loss = error + KL_WEIGHT * ADVERSARIAL * sum(each.mean() for each in judged)
        return {"loss": loss, "error": error, "divergence": kl, "made": judged[1].mean()}
