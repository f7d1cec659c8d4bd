"""Generative models of skulls as images of two channels: deviations of outer radius and thickness over directions.

An image is (2, S, S), the deviations from a mean head in units of their spread; the first axis of the map is mirrored
with the head. One file of this folder holds one model; `GENERATORS` is the table. Networks, schedulers and losses are
MONAI's (https://monai.io), where it has them.
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

Model = Literal["vae", "wgan_gp", "vae_gan", "intro_vae", "latent_diffusion"]
GENERATORS: dict[Model, str] = {
    "vae": "vae:Vae",
    "wgan_gp": "wgan:WassersteinGan",
    "vae_gan": "wgan:VaeGan",
    "intro_vae": "intro_vae:IntroVae",
    "latent_diffusion": "latent_diffusion:LatentDiffusion",
}

RATE = 1e-3  # of autoencoders and of the diffusion, at the start


class GeneratorConfig(StrictConfig):
    """The size of a generative model."""

    size: int = Field(default=64, ge=16, le=192, multiple_of=16, description="pixels along a side of an image")
    latent: int = Field(default=32, ge=1, le=512, description="numbers that an image is made of; not of the diffusion")
    width: int = Field(default=16, ge=8, le=128, multiple_of=8, description="channels at full resolution")

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the encoders' levels, each at half of the resolution before."""
        return self.width, 2 * self.width, 4 * self.width, 8 * self.width


class MapGenerator(nn.Module, ABC):
    """A generative model. Training calls it as a module and descends the entry "loss"; `sample` makes images of noise.

    betas: of Adam. noise: (...) shape of the standard normal numbers that one image is made of. weight: (S, S) of each
    pixel, 0 where there is none.
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
        """The losses of images (N, 2, S, S): "loss", which is descended, and its parts, with the same names always.

        step: of the training run. share: of the run that is done.
        """

    def rate(self, share: float) -> float:
        """The learning rate when a share of the run is done."""
        return RATE * max(1 - share, 0.05)

    @abstractmethod
    def sample(self, noise: Tensor) -> Tensor:
        """Images (N, 2, S, S) of noise (N, *self.noise)."""

    def error(self, images: Tensor, others: Tensor) -> Tensor:
        """(N,) weighted mean squared difference of images (N, 2, S, S)."""
        return ((images - others) ** 2 * self.weight).sum((1, 2, 3)) / (2 * self.weight.sum())


def make_generator(model: Model, config: GeneratorConfig, weight: Tensor) -> MapGenerator:
    """An untrained model; its weights follow torch's random state. weight: see `MapGenerator`.

    Raises InputError where MONAI is not installed.
    """
    module, _, name = GENERATORS[model].partition(":")
    try:
        kind = getattr(import_module(f"pcdiff.data.augmentation.{module}"), name)
    except ModuleNotFoundError as error:
        if error.name != "monai":
            raise
        raise InputError(f"generative models need MONAI, which is missing; run {install_hint('baselines')}") from error
    return cast(Callable[..., MapGenerator], kind)(config, weight)


def trains_only(parts: nn.Module, others: nn.Module) -> None:
    """Lets a loss change `parts`, and flow through `others` without changing them."""
    others.requires_grad_(False)
    parts.requires_grad_(True)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """(N,) Kullback-Leibler divergence of Gaussians (N, L) from the standard normal one (Kingma & Welling 2014, B)."""
    return (mean**2 + log_variance.exp() - 1 - log_variance).sum(1) / 2


def draw(generator: MapGenerator, count: int, seed: int, batch: int = 32) -> Tensor:
    """(count, 2, S, S) images; the same seed gives the same ones."""
    device = generator.weight.device
    noise = torch.randn(count, *generator.noise, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return torch.cat([generator.sample(part.to(device)).cpu() for part in noise.split(batch)])
