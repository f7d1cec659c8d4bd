"""Training of the volumetric U-Net."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from pcdiff import __version__
from pcdiff.diffusion.ema import Ema
from pcdiff.environment import worker_pool
from pcdiff.errors import InputError
from pcdiff.methods.volumetric.config import VolumetricConfig
from pcdiff.methods.volumetric.model import VolumetricModel
from pcdiff.prior.model import ShapePrior
from pcdiff.training.loop import Loop, make_accelerator
from pcdiff.training.recipes import VolumetricTrainConfig
from pcdiff.training.run_state import State, same_recipe
from pcdiff.training.stopping import clean_exit_on_sigterm
from pcdiff.training.volumetric.cuts import Cuts
from pcdiff.training.volumetric.sources import load_sources
from pcdiff.training.volumetric.validation import store_cases, validate

log = logging.getLogger(__name__)

MIN_MISSING = 1500.0  # lattice points that a defect counts as at least in the loss


def train(config: VolumetricTrainConfig, progress: bool = True) -> Path:
    """Runs a recipe to its end, or goes on with it; returns the weights' file, or the checkpoint if there is none yet.

    Writes into `config.run.out`: config.json, log.jsonl, checkpoint.safetensors, and unet.safetensors, the averaged
    weights that did best on the held-out heads so far. At SIGTERM the checkpoint is written and the run ends.
    Raises InputError if the cache lacks heads or the folder holds a run of another recipe.
    """
    run = config.run
    accelerator = make_accelerator(config.optimiser.precision)
    with clean_exit_on_sigterm(), accelerator.main_process_first():
        log.info("training the volumetric U-Net; the resolved recipe is %s", run.out / "config.json")
        prior = ShapePrior.shipped()
        with worker_pool(run.workers) as pool:
            heads, fitted = load_sources(run, config.samples, prior, pool, progress)
            cases = store_cases(run, prior, pool, progress)
        same_recipe(run.out / "config.json", config)
    cuts = Cuts(fitted, heads, config.samples.windows, accelerator.device)
    task = VolumetricTask(config, cuts, heads.mean(), cases, accelerator.device)
    state = Loop(task, accelerator, progress).run()
    return task.weights if math.isfinite(state.best) else task.checkpoint


class Steps(Dataset[int]):
    """Item k is k itself: the windows of step k are drawn on the device."""

    def __getitem__(self, item: int) -> int:
        """The number of the step."""
        return item


class VolumetricTask:
    """The volumetric U-Net as a `Task` of the training loop.

    A new run starts from `config.weights`, or from an untrained network. Raises InputError for weights of another size.
    """

    def __init__(
        self,
        config: VolumetricTrainConfig,
        cuts: Cuts,
        mean: np.ndarray,
        cases: dict[str, list[Path]],
        device: torch.device,
    ) -> None:
        options = config.optimiser
        self.config, self.cuts, self.mean, self.cases, self.device = config, cuts, mean, cases, device
        self.dataset = Steps()
        self.steps, self.clip = options.steps, options.clip
        self.checkpoint = config.run.out / "checkpoint.safetensors"
        self.weights = config.run.out / "unet.safetensors"
        torch.backends.cudnn.benchmark = True  # windows have few shapes
        torch.manual_seed(config.run.seed)
        self.model: nn.Module = config.network.make()
        if config.weights is not None:
            start = VolumetricModel.load(config.weights)
            if start.config.network != config.network:
                raise InputError(
                    f"{config.weights}: weights of another network: {start.config.network}; change `network`"
                )
            self.model.load_state_dict(start.network.state_dict())
        self.network: nn.Module = self.model.to(device)
        self.optimiser: torch.optim.Optimizer = torch.optim.AdamW(
            self.model.parameters(), options.rate, betas=(0.9, 0.98), weight_decay=options.decay
        )
        self.ema: Ema | None = Ema(self.network, options.ema)

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
        windows = self.cuts.draw(self.config.optimiser.batch, rng)
        odds = model(windows.fine, windows.coarse).float() + windows.tables
        loss = missing_loss(odds, windows.missing)
        return loss, {"loss": loss}

    def validate(self) -> dict[str, float]:
        """See `Task`."""
        return validate(self._averaged(), dict(self.cases), str(self.device))

    def write_weights(self, state: State, scores: dict[str, float]) -> Path | None:
        """The averaged network if it did better than all before; without validation cases, always."""
        error = 1 - scores.get("val_fused", 1.0)
        if "val_fused" in scores and not error < state.best:
            return None
        state.best = error
        notes = {
            "step": str(state.step),
            "step_windows": str(self.config.optimiser.batch),
            "pcdiff": __version__,
            "cases": self.config.run.cases,
            "recipe": self.config.model_dump_json(exclude={"run": {"data", "cache", "out"}, "weights": True}),
        }
        self._averaged().save(self.weights, notes)
        return self.weights

    def _averaged(self) -> VolumetricModel:
        """The model with the averaged weights as they stand."""
        network = self.config.network.make().to(self.device)
        assert self.ema is not None
        self.ema.copy_to(network)
        return VolumetricModel(network.eval(), self.mean, VolumetricConfig(network=self.config.network))


def missing_loss(odds: Tensor, missing: Tensor) -> Tensor:
    """Cross-entropy, in which each defect has the same weight, plus 1 - soft DSC. odds, missing: (B, I, J, K)."""
    size = missing.sum((1, 2, 3))
    entropy = functional.binary_cross_entropy_with_logits(odds, missing, reduction="none").sum((1, 2, 3))
    predicted = odds.sigmoid()
    overlap = 2 * (predicted * missing).sum((1, 2, 3)) / (predicted.sum((1, 2, 3)) + size + 1)
    return (entropy / size.clamp(min=MIN_MISSING) + 1 - overlap).mean()
