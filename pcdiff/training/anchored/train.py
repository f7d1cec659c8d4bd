"""Training of the anchored denoiser."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pcdiff import __version__
from pcdiff.diffusion.ema import Ema
from pcdiff.diffusion.schedule import log_normal_sigmas
from pcdiff.methods.anchored.config import DenoiserConfig
from pcdiff.methods.anchored.method import DiffusionMethod, draw_noise
from pcdiff.methods.anchored.network import AnchoredDenoiser
from pcdiff.methods.anchored.weights import save_denoiser
from pcdiff.prior.model import ShapePrior
from pcdiff.training.anchored.pairs import Pairs, mirrored
from pcdiff.training.anchored.pools import load_pairs
from pcdiff.training.anchored.step import TrainingStep
from pcdiff.training.anchored.validation import validate
from pcdiff.training.loop import Loop, make_accelerator
from pcdiff.training.recipes import TrainConfig
from pcdiff.training.run_state import State, same_recipe
from pcdiff.training.stopping import clean_exit_on_sigterm

log = logging.getLogger(__name__)


def train(config: TrainConfig, progress: bool = True) -> Path:
    """Runs a recipe to its end, or goes on with it; returns the weights' file, or the checkpoint if there is none yet.

    Writes into `config.run.out`: config.json, log.jsonl, checkpoint.safetensors, prior.safetensors and
    denoiser.safetensors, the averaged weights that did best on the held-out heads so far. At SIGTERM the checkpoint is
    written and the run ends.
    Raises InputError if the cache lacks a head or the folder holds a run of another recipe.
    """
    out = config.run.out
    accelerator = make_accelerator(config.optimiser.precision)
    with clean_exit_on_sigterm(), accelerator.main_process_first():
        log.info("training the anchored denoiser; the resolved recipe is %s", out / "config.json")
        pairs, validation, prior = load_pairs(config)
        same_recipe(out / "config.json", config)
    task = AnchoredTask(config, pairs, validation, prior, accelerator.device)
    state = Loop(task, accelerator, progress).run()
    return task.weights if math.isfinite(state.best) else task.checkpoint


class AnchoredTask:
    """The anchored denoiser as a `Task` of the training loop: AdamW, a cosine schedule, averaged weights."""

    def __init__(
        self, config: TrainConfig, pairs: Pairs, validation: Pairs, prior: ShapePrior, device: torch.device
    ) -> None:
        options = config.optimiser
        self.config, self.dataset, self.validation, self.prior, self.device = config, pairs, validation, prior, device
        self.steps, self.clip = options.steps, options.clip
        self.checkpoint = config.run.out / "checkpoint.safetensors"
        self.weights = config.run.out / "denoiser.safetensors"
        torch.manual_seed(config.run.seed)
        self.model: nn.Module = TrainingStep(config).to(device)
        self.network: nn.Module = self.model.denoiser
        self.optimiser: torch.optim.Optimizer = torch.optim.AdamW(
            self.model.parameters(), options.rate, betas=(0.9, 0.99), weight_decay=options.decay
        )
        self.ema: Ema | None = Ema(self.network, options.ema)

    def batches(self, start: int, rank: int, world: int) -> Iterator[list[int]]:
        """See `Task`."""
        return batches(self.config, start, rank, world)

    def rate(self, step: int) -> float:
        """See `Task`."""
        return rate_at(self.config, step)

    def losses(
        self, model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task`."""
        options, levels = self.config.optimiser, self.config.diffusion
        cholesky = batch.pop("cholesky")[: options.encoded]  # the largest part of a pair, and only noise needs it
        # halves cross to the device, where they are widened
        cholesky = cholesky.to(self.device, non_blocking=True).float()
        batch = {name: value.to(self.device, non_blocking=True).float() for name, value in batch.items()}
        if torch.rand((), generator=generator) < 0.5:
            batch = mirrored(batch)
        sigma = log_normal_sigmas(len(cholesky) * options.noises, levels.p_mean, levels.p_std, generator)
        sigma = sigma.clamp(levels.sigma_min, 2 * levels.sigma_max).to(self.device)
        noise = draw_noise(cholesky, batch["prior_std_mm"][: len(cholesky)], options.noises, generator)
        loss, guide, normals = model(batch, sigma, noise)
        return loss + guide + options.normals * normals, {"loss": loss, "guide": guide, "normals": normals}

    def validate(self) -> dict[str, float]:
        """See `Task`."""
        log.info("validation: %d pairs, case limit %d", len(self.validation), self.config.run.validate_cases)
        return validate(self.config.run, self._averaged(), self.validation, str(self.device))

    def write_weights(self, state: State, scores: dict[str, float]) -> Path | None:
        """The averaged network and its prior, side by side, if they did better than all before."""
        if not scores["val_mm"] < state.best:
            return None
        state.best = scores["val_mm"]
        self.prior.save(self.config.run.out / "prior.safetensors")
        recipe = DenoiserConfig(network=self.config.network, diffusion=self.config.diffusion)
        notes = {
            "step": str(state.step),
            "pcdiff": __version__,
            "cases": self.config.run.cases,
            "val_mm": f"{state.best:.4f}",
            "recipe": self.config.model_dump_json(),
        }
        save_denoiser(self.weights, self._averaged().network.state_dict(), recipe, notes)
        return self.weights

    def _averaged(self) -> DiffusionMethod:
        """The method with the averaged weights as they stand."""
        network = AnchoredDenoiser(self.config.network).to(self.device)
        assert self.ema is not None
        self.ema.copy_to(network)
        return DiffusionMethod(self.prior, network.eval(), self.config.diffusion)


def batches(config: TrainConfig, start: int, rank: int, world: int) -> Iterator[list[int]]:
    """Indices of pairs for the steps from `start` on; each pass over the pool is in an order of its own."""
    pool, size = config.pairs.pool, config.optimiser.batch
    orders: dict[int, np.ndarray] = {}

    def pick(position: int) -> int:
        epoch, offset = divmod(position, pool)
        if epoch not in orders:
            orders.clear()
            orders[epoch] = np.random.default_rng([config.run.seed, epoch]).permutation(pool)
        return int(orders[epoch][offset])

    for step in range(start, config.optimiser.steps):
        first = (step * world + rank) * size
        yield [pick(position) for position in range(first, first + size)]


def rate_at(config: TrainConfig, step: int) -> float:
    """Learning rate: linear warm-up, then half a cosine down to a hundredth."""
    options = config.optimiser
    if step < options.warmup:
        return options.rate * (step + 1) / options.warmup
    part = (step - options.warmup) / max(1, options.steps - options.warmup)
    return options.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(part, 1.0))))
