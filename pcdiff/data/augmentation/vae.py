"""A variational autoencoder of maps (Kingma & Welling 2014): an encoder to Gaussians of few numbers, and a decoder."""

from __future__ import annotations

from typing import Any

from monai.networks.nets import VarAutoEncoder
from torch import Tensor, nn

from pcdiff.data.augmentation.generators import GeneratorConfig, ImageGenerator, divergence

KL_WEIGHT = 1e-3  # of the divergence, against the mean squared error


class Vae(ImageGenerator):
    """MONAI's VarAutoEncoder, without normalisation: it would remove the size of a head."""

    def __init__(self, config: GeneratorConfig, weight: Tensor) -> None:
        super().__init__(config, weight)
        shape, channels = (2, config.size, config.size), config.channels
        none: Any = None  # MONAI's types do not allow it, its code does
        self.network = VarAutoEncoder(
            2, shape, 2, config.latent, channels, (2,) * len(channels), norm=none, use_sigmoid=False
        )

    @property
    def encoder(self) -> nn.ModuleList:
        """The parts before the latent numbers."""
        network = self.network
        return nn.ModuleList([network.encode, network.intermediate, network.mu, network.logvar])

    @property
    def decoder(self) -> nn.ModuleList:
        """The parts behind them."""
        return nn.ModuleList([self.network.decodeL, self.network.decode])

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance, (N, latent) each, of images (N, 2, S, S)."""
        mean, log_variance = self.network.encode_forward(images * (self.weight > 0))
        return mean, log_variance

    def sample(self, noise: Tensor) -> Tensor:
        """See `ImageGenerator`: the decoder."""
        images: Tensor = self.network.decode_forward(noise, use_sigmoid=False)
        return images

    def forward(self, images: Tensor, step: int, share: float) -> dict[str, Tensor]:
        """See `ImageGenerator`."""
        mean, log_variance = self.encode(images)
        decoded = self.sample(self.network.reparameterize(mean, log_variance))
        error, kl = self.error(decoded, images).mean(), divergence(mean, log_variance).mean()
        return {"loss": error + KL_WEIGHT * kl, "error": error, "divergence": kl}
