"""Training of the published model's two networks by its recipe: Adam, epochs over cases."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pcdiff.data.cases import find_cases
from pcdiff.diffusion.ema import Ema
from pcdiff.methods.friedrich2023.checkpoints import PaperModel
from pcdiff.nets.devices import device_name
from pcdiff.tensor_files import read_metadata
from pcdiff.training.friedrich2023.data import denoiser_sample, load_surfaces, store_surfaces
from pcdiff.training.friedrich2023.steps import DenoiserStep, VoxelisationStep
from pcdiff.training.friedrich2023.voxelisation_training import voxelisation_sample
from pcdiff.training.loop import Loop, make_accelerator
from pcdiff.training.recipes import PaperTrainConfig
from pcdiff.training.run_state import State, same_recipe, trained_seconds
from pcdiff.training.stopping import clean_exit_on_sigterm

log = logging.getLogger(__name__)


def train(config: PaperTrainConfig, progress: bool = True) -> Path:
    """Trains the network that `config.stage` names, or goes on with it; returns its weights' file.

    Writes into `config.run.out`: <stage>.json, log.jsonl, <stage>-checkpoint.safetensors, <stage>.safetensors at every
    validation and at the end, and, once both networks are there, paper.safetensors with the two, which `pcdiff design`
    reads. At SIGTERM the checkpoint is written and returned.
    Raises InputError if a case cannot be read or the folder holds a run of another recipe.
    """
    run, stage = config.run, config.stage
    accelerator = make_accelerator()
    with clean_exit_on_sigterm(), accelerator.main_process_first():
        log.info("training the published model's %s; the resolved recipe is %s", stage, run.out / f"{stage}.json")
        paths, held_out = (_surfaces(config, cases, progress) for cases in (run.cases, run.validation))
        same_recipe(run.out / f"{stage}.json", config)
    task = PaperTask(config, paths, held_out, accelerator.device, accelerator.num_processes)
    state = Loop(task, accelerator, progress).run()
    return task.weights if state.step == task.steps else task.checkpoint


class Samples(Dataset[tuple[Any, ...]]):
    """Item k holds the arrays of one training sample and a seed: a function of the recipe and k alone."""

    def __init__(self, paths: list[Path], config: PaperTrainConfig) -> None:
        self.paths, self.config = paths, config

    def __getitem__(self, item: int) -> tuple[Any, ...]:
        """(skull (S, 3), implant (P, 3), seed), or (points (N, 3), surface (M, 3), normals (M, 3), seed)."""
        epoch, number = divmod(item, len(self.paths))
        order = np.random.default_rng([self.config.run.seed, epoch]).permutation(len(self.paths))
        surfaces = load_surfaces(self.paths[order[number]])
        rng = np.random.default_rng([self.config.run.seed, item])
        seed = rng.integers(2**31)
        paper = self.config.paper
        if self.config.stage == "denoiser":
            return *denoiser_sample(surfaces, paper, rng), seed
        points = paper.network.implant_points
        made = voxelisation_sample(surfaces, points, paper.resolution, rng, paper.spacing_mm, paper.faithful)
        return *made, seed


class PaperTask:
    """One of the two networks as a `Task` of the training loop."""

    def __init__(
        self, config: PaperTrainConfig, paths: list[Path], held_out: list[Path], device: torch.device, world: int
    ) -> None:
        self.options = config.denoiser if config.stage == "denoiser" else config.voxelisation
        self.config, self.device = config, device
        self.dataset, self.held_out = Samples(paths, config), Samples(held_out, config)
        self.samples = self.options.batch * world  # of a step
        self.steps = self.options.epochs * max(1, len(paths) // self.samples)
        self.checkpoint = config.run.out / f"{config.stage}-checkpoint.safetensors"
        self.weights = config.run.out / f"{config.stage}.safetensors"
        torch.manual_seed(config.run.seed)
        step = DenoiserStep(config.paper) if config.stage == "denoiser" else VoxelisationStep(config.paper.resolution)
        self.model: nn.Module = step.to(device)
        self.network: nn.Module = step.network
        self.optimiser: torch.optim.Optimizer = torch.optim.Adam(
            self.model.parameters(), self.options.rate, betas=(self.options.beta1, 0.999)
        )
        self.ema: Ema | None = None
        self.clip: float | None = None

    def batches(self, start: int, rank: int, world: int) -> Iterator[list[int]]:
        """See `Task`."""
        size = self.options.batch
        for step in range(start, self.steps):
            first = (step * world + rank) * size
            yield list(range(first, first + size))

    def rate(self, step: int) -> float:
        """See `Task`: constant, as published, or falling linearly to 0 in the epochs of `cooldown`."""
        falling = self.options.cooldown / self.options.epochs * self.steps
        return self.options.rate * min(1.0, (self.steps - step) / max(falling, 1.0))

    def losses(
        self, model: nn.Module, batch: list[Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task`. The seed in the batch stays on the CPU, where noise is drawn from it."""
        *arrays, seed = batch
        loss = model(*(array.to(self.device, non_blocking=True) for array in arrays), seed)
        return loss, {"loss": loss}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The same loss on `validate_cases` of the held-out cases, with the same draws at every call."""
        self.model.eval()
        losses = []
        for item in range(min(self.config.run.validate_cases, len(self.held_out.paths))):
            *arrays, seed = self.held_out[item]
            batch = [torch.from_numpy(array)[None].to(self.device) for array in arrays]
            losses.append(float(self.model(*batch, torch.tensor([int(seed)]))))
        return {"val_loss": float(np.mean(losses)) if losses else float("nan")}

    def write_weights(self, state: State, scores: dict[str, float]) -> Path | None:
        """Writes this stage's weights, and both networks' once the other's are there.

        The notes tell samples seen, of both networks those of the denoiser, and the seconds of all stages so far.
        """
        paper, stage, out = self.config.paper, self.config.stage, self.config.run.out
        notes = {
            "windows": str(state.step * self.samples),
            "seconds": str(round(trained_seconds(self.config.run))),
            "device": device_name(self.device),
            "recipe": self.config.model_dump_json(exclude={"run": {"data", "cache", "out"}}),
        }
        networks: dict[str, Any] = {stage: self.network}
        PaperModel(paper, **networks).save(self.weights, notes)
        other = "voxelisation" if stage == "denoiser" else "denoiser"
        if (beside := out / f"{other}.safetensors").is_file():
            networks[other] = getattr(PaperModel.load(beside), other)
            if other == "denoiser":
                notes["windows"] = (read_metadata(beside) or {}).get("windows", "0")
            PaperModel(paper, **networks).save(out / "paper.safetensors", notes)
        return self.weights


def _surfaces(config: PaperTrainConfig, cases: str, progress: bool) -> list[Path]:
    chosen = [case for case in find_cases(config.run.data, cases) if case.name.split("/")[-1] not in config.run.skip]
    log.info("sampling the surfaces of %d cases; they are stored in %s", len(chosen), config.run.cache)
    return store_surfaces(chosen, config.run.cache, config.pool, progress)
