"""Generative models of skulls as images.

Of maps: (2, S, S), deviations of outer radius and bone thickness from a mean head over directions, in units of their
spread. Of volumes: `VOLUME`, signed distances to the bone's surface in blocks of 4 x 4 x 4 points, 2 mm apart. The
first axis is mirrored with the head. `GENERATORS` is the table. Networks, schedulers and losses are MONAI's
(https://monai.io), where it has them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from pcdiff import install_hint
from pcdiff.config import StrictConfig
from pcdiff.errors import InputError

Model = Literal["vae", "wgan_gp", "vae_gan", "intro_vae", "latent_diffusion", "volume_diffusion"]
GENERATORS: dict[Model, str] = {
    "vae": "vae:Vae",
    "wgan_gp": "wgan:WassersteinGan",
    "vae_gan": "wgan:VaeGan",
    "intro_vae": "intro_vae:IntroVae",
    "latent_diffusion": "latent_diffusion:LatentDiffusion",
    "volume_diffusion": "latent_diffusion:VolumeDiffusion",
}
OF_VOLUMES: tuple[Model, ...] = ("volume_diffusion",)  # the others are of maps
VOLUME = (64, 32, 32, 32)  # channels, a block's points, and blocks along each axis

RATE = 1e-3  # of autoencoders and of the diffusion, at the start


class GeneratorConfig(StrictConfig):
    """The size of a generative model."""

    size: int = Field(default=64, ge=16, le=192, multiple_of=16, description="pixels along a side of a map")
    latent: int = Field(default=32, ge=1, le=512, description="numbers that an image is made of; not of a diffusion")
    width: int = Field(default=16, ge=8, le=128, multiple_of=8, description="channels at full resolution")

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the encoders' levels, each at half of the resolution before."""
        return self.width, 2 * self.width, 4 * self.width, 8 * self.width


class ImageGenerator(nn.Module, ABC):
    """A generative model. Training calls it as a module and descends the entry "loss"; `sample` makes images of noise.

    Images are (N, C, *sides). betas: of Adam. noise: (...) shape of the standard normal numbers that one image is made
    of. weight: of each pixel, 0 where there is none; its sides are those of an image, or 1.
    """

    betas = (0.9, 0.99)
    noise: tuple[int, ...]
    weight: Tensor

    def __init__(self, config: GeneratorConfig, weight: Tensor) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("weight", weight)
        self.noise = (config.latent,)

    @abstractmethod
    def forward(self, images: Tensor, step: int, share: float) -> dict[str, Tensor]:
        """The losses of images: "loss", which is descended, and its parts, with the same names always.

        step: of the training run. share: of the run that is done.
        """

    def rate(self, share: float) -> float:
        """The learning rate when a share of the run is done."""
        return RATE * max(1 - share, 0.05)

    @abstractmethod
    def sample(self, noise: Tensor) -> Tensor:
        """Images of noise (N, *self.noise)."""

    def error(self, images: Tensor, others: Tensor) -> Tensor:
        """(N,) weighted mean squared difference of images."""
        total = images.shape[1] * self.weight.expand(images.shape[2:]).sum()
        return ((images - others) ** 2 * self.weight).flatten(1).sum(1) / total


def make_generator(model: Model, config: GeneratorConfig, weight: Tensor) -> ImageGenerator:
    """An untrained model; its weights follow torch's random state. weight: see `ImageGenerator`.

    Raises InputError where MONAI is not installed.
    """
    module, _, name = GENERATORS[model].partition(":")
    try:
        kind = getattr(import_module(f"pcdiff.data.augmentation.{module}"), name)
    except ModuleNotFoundError as error:
        if error.name != "monai":
            raise
        raise InputError(f"generative models need MONAI, which is missing; run {install_hint('baselines')}") from error
    return cast(Callable[..., ImageGenerator], kind)(config, weight)


def trains_only(parts: nn.Module, others: nn.Module) -> None:
    """Lets a loss change `parts`, and flow through `others` without changing them."""
    others.requires_grad_(False)
    parts.requires_grad_(True)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """(N,) Kullback-Leibler divergence of Gaussians (N, L) from the standard normal one (Kingma & Welling 2014, B)."""
    return (mean**2 + log_variance.exp() - 1 - log_variance).sum(1) / 2


def draw(generator: ImageGenerator, count: int, seed: int, batch: int = 32) -> Tensor:
    """`count` images; the same seed gives the same ones."""
    device = generator.weight.device
    noise = torch.randn(count, *generator.noise, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return torch.cat([generator.sample(part.to(device)).cpu() for part in noise.split(batch)])
