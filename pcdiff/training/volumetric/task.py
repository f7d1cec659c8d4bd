"""What the trainings on windows of fitted cuts share: optimiser, rates, averages, and the weights' notes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from pcdiff import __version__
from pcdiff.diffusion.ema import Ema
from pcdiff.errors import InputError
from pcdiff.methods.networks.config import BaselineConfig, NetworkConfig
from pcdiff.methods.volumetric.config import UNetConfig, VolumetricConfig
from pcdiff.nets.devices import device_name
from pcdiff.tensor_files import read_metadata
from pcdiff.training.recipes import BaselineTrainConfig, VolumetricTrainConfig
from pcdiff.training.run_state import State, trained_seconds
from pcdiff.training.volumetric.cuts import Cuts, Windows

MIN_MISSING = 1500.0  # lattice points that a defect counts as at least in the loss


class Steps(Dataset[int]):
    """Item k is k itself: the windows of step k are drawn on the device."""

    def __getitem__(self, item: int) -> int:
        """The number of the step."""
        return item


class Model(Protocol):
    """A network with the config that it was made by, as its file holds them."""

    @property
    def network(self) -> nn.Module:
        """The network."""

    @property
    def config(self) -> VolumetricConfig | BaselineConfig:
        """What travels with it."""

    def save(self, path: Path, notes: Mapping[str, str] | None = None) -> None:
        """Writes the weights; notes go into the metadata."""


class WindowsTask(ABC):
    """A network on windows of fitted cuts as a `Task` of the training loop.

    Subclasses say which network, which loss and which score; `score` names the one that the best weights are chosen by.
    chosen: the network. A new run starts from `config.weights`, or from an untrained network. Raises InputError for
    weights of another network.
    """

    score: str

    def __init__(
        self,
        config: VolumetricTrainConfig | BaselineTrainConfig,
        cuts: Cuts,
        mean: np.ndarray,
        cases: dict[str, list[Path]],
        device: torch.device,
    ) -> None:
        options = config.optimiser
        self.config, self.cuts, self.mean, self.cases, self.device = config, cuts, mean, cases, device
        self.chosen = self.choose()
        self.dataset = Steps()
        self.steps, self.clip = options.steps, options.clip
        self.checkpoint = config.run.out / "checkpoint.safetensors"
        self.weights = config.run.out / f"{config.method}.safetensors"
        torch.backends.cudnn.benchmark = True  # windows have few shapes
        torch.manual_seed(config.run.seed)
        self.model: nn.Module = self._start()
        self.network: nn.Module = self.model.to(device)
        self.optimiser: torch.optim.Optimizer = torch.optim.AdamW(
            self.model.parameters(), options.rate, betas=(0.9, 0.98), weight_decay=options.decay
        )
        self.ema: Ema | None = Ema(self.network, options.ema)

    def choose(self) -> UNetConfig | NetworkConfig:
        """The network; that of the recipe."""
        return self.config.network

    @abstractmethod
    def make(self) -> nn.Module:
        """The chosen network, untrained, on the CPU."""

    @abstractmethod
    def load(self, path: Path) -> Model:
        """A model from its file."""

    @abstractmethod
    def loss(self, model: nn.Module, windows: Windows) -> Tensor:
        """The loss to descend, a scalar."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """See `Task`."""

    @abstractmethod
    def averaged(self) -> Model:
        """The model with the averaged weights as they stand."""

    def batches(self, start: int, rank: int, world: int) -> Iterator[list[int]]:
        """See `Task`."""
        for step in range(start, self.steps):
            yield [step * world + rank]

    def rate(self, step: int) -> float:
        """See `Task`: rises, stays, and falls linearly to 0 at the end."""
        options = self.config.optimiser
        rise, fall = (step + 1) / max(options.warmup, 1), (options.steps - step) / max(options.cooldown, 1)
        return options.rate * min(1.0, rise, fall)

    def losses(self, model: nn.Module, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task`. batch: (1,) the number that the windows are drawn by."""
        rng = np.random.default_rng([self.config.run.seed, int(batch)])
        loss = self.loss(model, self.cuts.draw(self.config.optimiser.batch, rng))
        return loss, {"loss": loss}

    def write_weights(self, state: State, scores: dict[str, float]) -> Path | None:
        """The averaged network if it did better than all before; without validation cases, always.

        The notes tell windows and seconds of this run and of those that its first weights come from.
        """
        error = 1 - scores.get(self.score, 1.0)
        if self.score in scores and not error < state.best:
            return None
        state.best = error
        start = self.config.weights
        earlier = (None if start is None else read_metadata(start)) or {}
        windows, seconds = (int(earlier.get(name, 0)) for name in ("windows", "seconds"))
        windows += round(state.step * self.cuts.mean_count(self.config.optimiser.batch))
        notes = {
            "step": str(state.step),
            "windows": str(windows),
            "earlier_windows": str(earlier.get("windows", 0)),
            "seconds": str(seconds + round(trained_seconds(self.config.run))),
            "device": device_name(self.device),
            "pcdiff": __version__,
            "cases": self.config.run.cases,
            "recipe": self.config.model_dump_json(exclude={"run": {"data", "cache", "out"}, "weights": True}),
        }
        self.averaged().save(self.weights, notes)
        return self.weights

    def averaged_network(self) -> nn.Module:
        """A network with the averaged weights, on the training device and in evaluation mode."""
        network = self.make().to(self.device)
        assert self.ema is not None
        self.ema.copy_to(network)
        return network.eval()

    def _start(self) -> nn.Module:
        """The network that a new run starts from, on the CPU."""
        network, path = self.make(), self.config.weights
        if path is not None:
            start = self.load(path)
            if start.config.network != self.chosen:
                raise InputError(f"{path}: weights of another network: {start.config.network}; change `network`")
            network.load_state_dict(start.network.state_dict())
        return network


def missing_loss(odds: Tensor, missing: Tensor) -> Tensor:
    """Cross-entropy, in which each defect has the same weight, plus 1 - soft DSC. odds, missing: (B, I, J, K)."""
    size = missing.sum((1, 2, 3))
    entropy = functional.binary_cross_entropy_with_logits(odds, missing, reduction="none").sum((1, 2, 3))
    predicted = odds.sigmoid()
    overlap = 2 * (predicted * missing).sum((1, 2, 3)) / (predicted.sum((1, 2, 3)) + size + 1)
    return (entropy / size.clamp(min=MIN_MISSING) + 1 - overlap).mean()
