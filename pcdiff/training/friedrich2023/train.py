"""Training of the paper's two networks by its recipe: Adam at a constant rate, epochs over cases, no augmentation."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pcdiff.data.cases import find_cases
from pcdiff.diffusion.schedule import linear_sigmas
from pcdiff.methods.friedrich2023.checkpoints import PaperModel
from pcdiff.methods.friedrich2023.config import PaperConfig
from pcdiff.methods.friedrich2023.denoiser import PaperDenoiser
from pcdiff.methods.friedrich2023.sampling import T
from pcdiff.methods.friedrich2023.voxelisation import VoxelisationNetwork
from pcdiff.training.friedrich2023.data import denoiser_sample, keep_surfaces, load_surfaces
from pcdiff.training.friedrich2023.voxelisation_training import training_loss, voxelisation_sample
from pcdiff.training.recipes import PaperTrainConfig
from pcdiff.training.run_state import Sigterm, State, any_process, ignore_sigterm, same_recipe, write_row

log = logging.getLogger(__name__)


class DenoiserStep(nn.Module):
    """The loss of one batch: what the network says of the implant's noise, squared error (Ho et al. 2020, eq. 14)."""

    def __init__(self, config: PaperConfig) -> None:
        super().__init__()
        self.network = PaperDenoiser(config.network)
        self.sigmas = linear_sigmas(T)

    def forward(self, skull: Tensor, implant: Tensor, seed: Tensor) -> Tensor:
        """Skull (B, S, 3), implant (B, P, 3), network units; seed (B,) -> scalar."""
        generator = torch.Generator().manual_seed(int(seed[0]))
        t = torch.randint(T, (len(skull),), generator=generator)
        noise = torch.randn(implant.shape, generator=generator).to(implant)
        sigma = self.sigmas[t].to(implant)[:, None, None]
        noisy = (implant + sigma * noise) * (1 + sigma**2).rsqrt()
        said = self.network(torch.cat([skull, noisy], 1), t.to(skull.device))
        return functional.mse_loss(said, noise)


class VoxelisationStep(nn.Module):
    """The loss of one batch: the network's grid against that of the true oriented surface."""

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.network = VoxelisationNetwork()
        self.resolution = resolution

    def forward(self, points: Tensor, truth: Tensor, seed: Tensor) -> Tensor:
        """Points (B, N, 3) in the unit cube, truth (B, r, r, r) -> scalar."""
        return training_loss(self.network, points, truth)


class Samples(Dataset):
    """A place in the run -> the tensors of one sample: the same whoever asks, so that runs resume bit for bit."""

    def __init__(self, paths: list[Path], config: PaperTrainConfig) -> None:
        self.paths, self.config = paths, config

    def __getitem__(self, place: int) -> tuple[np.ndarray, np.ndarray, np.integer]:
        epoch, number = divmod(place, len(self.paths))
        order = np.random.default_rng([self.config.run.seed, epoch]).permutation(len(self.paths))
        surfaces = load_surfaces(self.paths[order[number]])
        rng = np.random.default_rng([self.config.run.seed, place])
        seed = rng.integers(2**31)
        if self.config.stage == "denoiser":
            return *denoiser_sample(surfaces, self.config.paper, rng), seed
        paper = self.config.paper
        made = voxelisation_sample(
            surfaces, paper.network.implant_points, paper.resolution, rng, paper.spacing_mm, paper.faithful
        )
        return *made, seed


def train(config: PaperTrainConfig, progress: bool = True) -> Path:
    """Trains the network that `config.stage` names, or goes on with it; returns its weights' file.

    Writes into `config.run.out`: <stage>.json, log.jsonl, <stage>-checkpoint.safetensors, <stage>.safetensors at every
    validation and at the end, and, once both networks are there, paper.safetensors with the two, for `pcdiff sample`.
    SIGTERM: writes a checkpoint and returns it.
    Raises InputError when a case cannot be read or the folder holds a run of another recipe.
    """
    run, stage = config.run, config.stage
    options = config.denoiser if stage == "denoiser" else config.voxelisation
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    with accelerator.main_process_first():
        paths, held = (_surfaces(config, cases, progress) for cases in (run.cases, run.validation))
        same_recipe(run.out / f"{stage}.json", config)
    torch.manual_seed(run.seed)
    model: Any = DenoiserStep(config.paper) if stage == "denoiser" else VoxelisationStep(config.paper.resolution)
    optimiser = torch.optim.Adam(model.parameters(), options.rate, betas=(options.beta1, 0.999))
    state = State(model.to(accelerator.device), optimiser)
    checkpoint = run.out / f"{stage}-checkpoint.safetensors"
    if checkpoint.exists():
        state.load(checkpoint)
        log.info("going on at step %d", state.step)
    wrapped, prepared = accelerator.prepare(model, optimiser)
    steps = options.epochs * max(1, len(paths) // (options.batch * accelerator.num_processes))
    loader = DataLoader(
        Samples(paths, config),
        batch_sampler=list(_batches(state.step, steps, options.batch, accelerator)),
        num_workers=run.workers,
        worker_init_fn=ignore_sigterm,
        multiprocessing_context="spawn" if run.workers else None,
    )
    bar = tqdm(total=steps, initial=state.step, disable=not (progress and accelerator.is_main_process))
    began = saved = time.monotonic()
    losses: list[float] = []
    with Sigterm() as asked:
        for batch in loader:
            wrapped.train()
            seed = int(np.random.SeedSequence([run.seed, state.step, accelerator.process_index]).generate_state(1)[0])
            torch.manual_seed(seed)  # dropout
            loss = wrapped(*(part.to(accelerator.device) for part in batch))
            accelerator.backward(loss)
            prepared.step()
            prepared.zero_grad(set_to_none=True)
            state.step += 1
            losses.append(float(loss.detach()))
            bar.update()
            last = state.step == steps
            stop = last or any_process(accelerator, asked.stop)
            if not accelerator.is_main_process:
                if stop:
                    break
                continue
            if state.step % 50 == 0 or stop:
                row = {"step": state.step, "loss": float(np.mean(losses)), "seconds": time.monotonic() - began}
                write_row(run, row)
                bar.set_postfix(loss=f"{row['loss']:.4f}")
                losses.clear()
            if state.step % run.validate_every == 0 or last:
                write_row(run, {"step": state.step, "val_loss": validation_loss(model, held, config)})
                _save(config, model)
            if stop or time.monotonic() - saved > 60 * run.checkpoint_minutes:
                state.save(checkpoint, config)
                saved = time.monotonic()
            if stop:
                break
    bar.close()
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return run.out / f"{stage}.safetensors" if state.step == steps else checkpoint


@torch.no_grad()
def validation_loss(model: nn.Module, held: list[Path], config: PaperTrainConfig) -> float:
    """The same loss on `validate_cases` of the held-out cases, in the same draws at every call."""
    model.eval()
    device = next(model.parameters()).device
    samples = Samples(held, config)
    losses = []
    for place in range(min(config.run.validate_cases, len(held))):
        *parts, seed = samples[place]
        tensors = [torch.from_numpy(part)[None].to(device) for part in parts]
        losses.append(float(model(*tensors, torch.tensor([int(seed)]))))
    return float(np.mean(losses)) if losses else float("nan")


def _surfaces(config: PaperTrainConfig, cases: str, progress: bool) -> list[Path]:
    chosen = [case for case in find_cases(config.run.data, cases) if case.name.split("/")[-1] not in config.run.skip]
    return keep_surfaces(chosen, config.run.cache, config.pool, progress)


def _batches(start: int, steps: int, size: int, accelerator: Accelerator) -> Iterator[list[int]]:
    """OccupancyQueries in the run, for the steps from `start` on."""
    for step in range(start, steps):
        first = (step * accelerator.num_processes + accelerator.process_index) * size
        yield list(range(first, first + size))


def _save(config: PaperTrainConfig, model: Any) -> None:
    """This stage's weights, and both networks' where the other's are there."""
    out, notes = config.run.out, {"recipe": config.model_dump_json(exclude={"run": {"data", "cache", "out"}})}
    PaperModel(config.paper, **{config.stage: model.network}).save(out / f"{config.stage}.safetensors", notes)
    other = "voxelisation" if config.stage == "denoiser" else "denoiser"
    if (beside := out / f"{other}.safetensors").is_file():
        both = {config.stage: model.network, other: getattr(PaperModel.load(beside), other)}
        PaperModel(config.paper, **both).save(out / "paper.safetensors", notes)
