"""Training of the surface denoiser."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pcdiff import __version__
from pcdiff.diffusion.ema import Ema
from pcdiff.diffusion.loss import add_noise, denoising_loss
from pcdiff.diffusion.schedule import log_normal_sigmas
from pcdiff.environment import worker_pool
from pcdiff.errors import InputError
from pcdiff.files import written_beside
from pcdiff.methods.registry import PRIOR, weights_of
from pcdiff.methods.surface.config import LAYOUT, SurfaceConfig
from pcdiff.methods.surface.network import SurfaceDenoiser
from pcdiff.methods.surface.noise import normal_noise
from pcdiff.methods.surface.weights import save_denoiser
from pcdiff.prior.model import ShapePrior
from pcdiff.training.loop import Loop, make_accelerator
from pcdiff.training.prior import shape_model
from pcdiff.training.recipes import DiffusionTrainConfig
from pcdiff.training.run_state import State, same_recipe
from pcdiff.training.stopping import clean_exit_on_sigterm
from pcdiff.training.surface.dataset import Pairs, store_pairs
from pcdiff.training.surface.validation import validate
from pcdiff.training.volumetric.sources import load_sources
from pcdiff.training.volumetric.validation import store_cases

log = logging.getLogger(__name__)


def train(config: DiffusionTrainConfig, progress: bool = True) -> Path:
    """Runs a recipe to its end, or goes on with it; returns the weights' file, or the checkpoint if there is none yet.

    Writes into `config.run.out`: config.json, log.jsonl, checkpoint.safetensors, unet.safetensors, which the denoiser
    is trained for, and denoiser.safetensors, the averaged weights that did best on the held-out heads so far.
    At SIGTERM the checkpoint is written and the run ends.
    Raises InputError if the cache lacks heads, the U-Net is on another shape model, or the folder holds a run of
    another recipe.
    """
    run = config.run
    accelerator = make_accelerator(config.optimiser.precision)
    with clean_exit_on_sigterm(), accelerator.main_process_first():
        log.info("training the surface denoiser; the resolved recipe is %s", run.out / "config.json")
        prior = shape_model(run)
        base = weights_of("unet", config.unet)
        assert base.own is not None
        if ShapePrior.load(base.prior).digest != prior.digest:
            raise InputError(
                f"{base.own}: expected a U-Net on the shape model of this run, got one on another; "
                f"give the one that was trained on the same heads, with {PRIOR} beside it: --set unet=FILE"
            )
        with worker_pool(run.workers) as pool:
            _, fitted = load_sources(run, config.samples, prior, pool, progress)
            files = store_pairs(run.cache, fitted[config.first :], base.own, config.pool, pool, True, progress)
            held_out = [file for files in store_cases(run, prior, pool, progress).values() for file in files]
            validation = store_pairs(run.cache, held_out, base.own, config.pool, pool, False, progress)
        same_recipe(run.out / "config.json", config)
        for path in (base.own, *base.companions):
            with written_beside(run.out / path.name) as beside:
                beside.write_bytes(path.read_bytes())
    task = SurfaceTask(
        config, Pairs(files, config.anchors, run.seed), Pairs(validation, LAYOUT.anchors, 1), accelerator.device
    )
    state = Loop(task, accelerator, progress).run()
    return task.weights if math.isfinite(state.best) else task.checkpoint


class SurfaceTask:
    """The surface denoiser as a `Task` of the training loop."""

    def __init__(self, config: DiffusionTrainConfig, pairs: Pairs, validation: Pairs, device: torch.device) -> None:
        options = config.optimiser
        self.config, self.dataset, self.validation, self.device = config, pairs, validation, device
        self.steps, self.clip = options.steps, options.clip
        self.checkpoint = config.run.out / "checkpoint.safetensors"
        self.weights = config.run.out / "denoiser.safetensors"
        torch.manual_seed(config.run.seed)
        self.denoiser = SurfaceDenoiser(config.network, config.diffusion.sigma_data).to(device)
        self.model: nn.Module = self.denoiser
        self.network: nn.Module = self.denoiser
        self.optimiser: torch.optim.Optimizer = torch.optim.AdamW(
            self.model.parameters(), options.rate, betas=(0.9, 0.99), weight_decay=options.decay
        )
        self.ema: Ema | None = Ema(self.network, options.ema)

    def batches(self, start: int, rank: int, world: int) -> Iterator[list[int]]:
        """See `Task`. Each pass over the pairs is in an order of its own."""
        count, size = len(self.dataset.files), self.config.optimiser.batch

        @lru_cache(2)  # a batch may end one pass and begin the next
        def order(epoch: int) -> np.ndarray:
            return np.random.default_rng([self.config.run.seed, epoch]).permutation(count)

        for step in range(start, self.steps):
            first = (step * world + rank) * size
            passes = (divmod(position, count) for position in range(first, first + size))
            yield [epoch * count + int(order(epoch)[offset]) for epoch, offset in passes]

    def rate(self, step: int) -> float:
        """See `Task`."""
        options = self.config.optimiser
        if step < options.warmup:
            return options.rate * (step + 1) / options.warmup
        part = (step - options.warmup) / max(1, self.steps - options.warmup)
        return options.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(part, 1.0))))

    def losses(
        self, model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task`."""
        levels = self.config.diffusion
        batch = {name: value.to(self.device, non_blocking=True).float() for name, value in batch.items()}
        target, valid = batch["target"], batch["valid"]
        sigma = log_normal_sigmas(len(target), levels.p_mean, levels.p_std, generator)
        sigma = sigma.clamp(levels.sigma_min, 2 * levels.sigma_max).to(self.device)
        noise = normal_noise(batch["positions"], batch["normals"], levels, generator)
        surface = self.denoiser.encode(batch["positions"], batch["static"], batch["profile"])
        denoised = model(add_noise(target, sigma, noise), sigma, surface)
        loss = denoising_loss(denoised[:, None], target[:, None], sigma, valid, levels.sigma_data)
        return loss, {"loss": loss}

    def validate(self) -> dict[str, float]:
        """See `Task`."""
        network = self._averaged()
        pairs = [{name: value[None] for name, value in self.validation[k].items()} for k in range(len(self.validation))]
        return validate(network, self.config.diffusion, pairs, str(self.device))

    def write_weights(self, state: State, scores: dict[str, float]) -> Path | None:
        """The averaged network, if the mean of its ensembles did better than all before."""
        if not scores["val_mean"] < state.best:
            return None
        state.best = scores["val_mean"]
        notes = {
            "step": str(state.step),
            "pcdiff": __version__,
            "cases": self.config.run.cases,
            "val_mm": f"{state.best:.4f}",
            "recipe": self.config.model_dump_json(exclude={"run": {"data", "cache", "out"}, "unet": True}),
        }
        settings = SurfaceConfig(network=self.config.network, diffusion=self.config.diffusion)
        save_denoiser(self.weights, self._averaged().state_dict(), settings, notes)
        return self.weights

    def _averaged(self) -> SurfaceDenoiser:
        """The network with the averaged weights as they stand."""
        network = SurfaceDenoiser(self.config.network, self.config.diffusion.sigma_data).to(self.device)
        assert self.ema is not None
        self.ema.copy_to(network)
        return network.eval()
