"""Training: one recipe, one loop; CPU, one GPU or many through `accelerate launch`; resumes where it stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from pcdiff import __version__
from pcdiff.condition import Condition
from pcdiff.config import TrainConfig
from pcdiff.data import find_cases
from pcdiff.design import design
from pcdiff.diffusion.ema import Ema
from pcdiff.diffusion.loss import denoising_loss, pseudo_huber
from pcdiff.errors import InputError
from pcdiff.files import written_beside
from pcdiff.methods.diffusion import DiffusionMethod, bind, draw_noise, save_network
from pcdiff.metrics import scores
from pcdiff.nets.anchored import AnchoredDenoiser
from pcdiff.pairs import VERSION, Pairs, mirrored
from pcdiff.prior.folds import assign_folds, kept_prior, load_population
from pcdiff.prior.model import ShapePrior

log = logging.getLogger(__name__)

KNEE = 0.7  # mm: beyond, an error of the guide counts by its size, not by its square; scores count sizes


class TrainingStep(nn.Module):
    """Everything of a step that needs gradients, in one forward, so that distributed wrappers see it."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.denoiser = AnchoredDenoiser(config.network)
        self.encoded = config.optimiser.encoded
        self.noises = config.optimiser.noises
        self.normals = config.optimiser.normals

    def forward(self, batch: dict[str, Tensor], sigma: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """sigma (E k,), noise (E k, P) -> losses: denoising, the guide's mean, normals.

        The guide costs next to nothing and learns from all B pairs, the rest of the network from the first E of them.
        """
        missed = self.denoiser.expect(batch["anchor_features"]) - batch["target"]
        guide = (batch["valid"] * pseudo_huber(missed * batch["unit"], KNEE)).mean()
        batch = {name: value[: self.encoded] for name, value in batch.items()}
        skull = bind(self.denoiser, batch).repeated(self.noises)
        repeated = {
            name: batch[name].repeat_interleave(self.noises, 0) for name in ("target", "valid", "unit", "true_normals")
        }
        # between squared millimetres, which a few wide holes would rule, and the prior's own units, which rims would
        weight = repeated["valid"] * repeated["unit"]
        weight = weight / weight.mean()
        cosine = torch.zeros(())

        def denoise(x: Tensor, level: Tensor) -> Tensor:
            nonlocal cosine
            denoised = self.denoiser(x[:, 0], level, skull)
            agreement = (denoised.normals * rearrange(repeated["true_normals"], "b p xyz -> b xyz p")).sum(1)
            cosine = ((1 - agreement) * repeated["valid"]).mean()
            return denoised.x0[:, None]

        loss = denoising_loss(denoise, repeated["target"][:, None], sigma, noise[:, None], weight, sigma_data=1.0)
        return loss, guide, cosine


@dataclass
class State:
    """What a run goes on from: everything else is a function of the config and the step."""

    model: TrainingStep
    optimiser: torch.optim.AdamW
    ema: Ema
    step: int = 0
    best: float = math.inf

    def save(self, path: Path, config: TrainConfig) -> None:
        """One safetensors file: weights, averages, moments; written whole or not at all."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.state_dict().items()}
        for number, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{name}": value for name, value in moments.items()}
        metadata = {
            "step": str(self.step),
            "best": repr(self.best),
            "config": config.model_dump_json(),
            "pcdiff": __version__,
        }
        with written_beside(path) as beside:
            beside.write_bytes(save({name: value.cpu().contiguous() for name, value in tensors.items()}, metadata))

    def load(self, path: Path) -> None:
        """Goes on from `save`. Raises InputError where the file is of another network."""
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.step, self.best = int(file.metadata()["step"]), float(file.metadata()["best"])
        try:
            self.model.load_state_dict(_part(tensors, "model."))
            self.ema.load_state_dict(_part(tensors, "ema."))
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{path}: checkpoint of another network; choose another `run.out` ({error})") from error
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(tensors, "optimiser.").items():
            number, field = name.split(".", 1)
            moments.setdefault(int(number), {})[field] = value
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": moments})


def train(config: TrainConfig, progress: bool = True) -> Path:
    """Runs a recipe to its end, or goes on with it; returns the weights' file, or the checkpoint if there is none yet.

    Writes into `config.run.out`: config.json, log.jsonl, checkpoint.safetensors, prior.safetensors,
    denoiser.safetensors (the averaged weights that did best on the held-out heads so far).
    SIGTERM: writes a checkpoint and returns.
    Raises InputError when the cache lacks a head or the folder holds a run of another recipe.
    """
    run, options = config.run, config.optimiser
    # bf16 by autocast; no gradient scaler, so nothing but the step has to be remembered
    accelerator = Accelerator(mixed_precision=options.precision, cpu=not torch.cuda.is_available())
    with accelerator.main_process_first():
        pairs, validation, prior = load_pairs(config)
        _same_recipe(run.out / "config.json", config)
    torch.manual_seed(run.seed)
    model = TrainingStep(config)
    optimiser = torch.optim.AdamW(model.parameters(), options.rate, betas=(0.9, 0.99), weight_decay=options.decay)
    state = State(model.to(accelerator.device), optimiser, Ema(model.denoiser, options.ema))
    checkpoint = run.out / "checkpoint.safetensors"
    if checkpoint.exists():
        state.load(checkpoint)
        log.info("going on at step %d", state.step)
    wrapped, prepared = accelerator.prepare(model, optimiser)
    loader = DataLoader(
        pairs,
        batch_sampler=list(batches(config, state.step, accelerator.process_index, accelerator.num_processes)),
        num_workers=run.workers,
        worker_init_fn=_deaf_to_sigterm,
        multiprocessing_context="spawn" if run.workers else None,
        persistent_workers=False,
    )
    saved = began = time.monotonic()
    sums = np.zeros(4)
    bar = tqdm(total=options.steps, initial=state.step, disable=not (progress and accelerator.is_main_process))
    wrapped.train()
    with _Sigterm() as asked:
        for batch in loader:
            losses = _step(config, state.step, accelerator, wrapped, prepared, batch)
            state.step += 1
            state.ema.update(model.denoiser, state.step)
            sums += (*losses, 1)
            bar.update()
            last = state.step == options.steps
            if accelerator.is_main_process and (state.step % 50 == 0 or last or asked.stop):
                done = {"step": state.step} | dict(zip(("loss", "guide", "normals"), sums[:3] / sums[3], strict=True))
                _write(config, done | {"rate": rate_at(config, state.step), "seconds": time.monotonic() - began})
                bar.set_postfix(loss=f"{done['loss']:.3f}")
                sums[:] = 0
            if accelerator.is_main_process and (state.step % run.validate_every == 0 or last):
                method = averaged(config, state, prior)
                scored = validate(config, method, validation)
                _write(config, {"step": state.step} | scored)
                if scored["val_mm"] < state.best:
                    state.best = scored["val_mm"]
                    _save_weights(config, state, method)
                wrapped.train()
            stop = last or _any(accelerator, asked.stop)
            if accelerator.is_main_process and (stop or time.monotonic() - saved > 60 * run.checkpoint_minutes):
                state.save(checkpoint, config)
                saved = time.monotonic()
            if stop:
                break
    bar.close()
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return run.out / ("denoiser.safetensors" if math.isfinite(state.best) else "checkpoint.safetensors")


def load_pairs(config: TrainConfig) -> tuple[Pairs, Pairs, ShapePrior]:
    """Training pairs, validation pairs (heads and prior kept apart), and the prior of all training heads."""
    run = config.run
    names = [case.name.rsplit("/", 1)[-1] for case in find_cases(run.data, run.cases)]
    names = [name for name in dict.fromkeys(names) if name not in run.skip]
    people = load_population(run.cache, names, max(run.workers, 1))
    fold = assign_folds(names, config.pairs.folds, run.same)
    priors = [kept_prior(run.cache, people, fold != k) for k in range(config.pairs.folds)]
    prior = kept_prior(run.cache, people, np.ones(len(names), bool))
    held = [case.name.rsplit("/", 1)[-1] for case in find_cases(run.data, run.validation)]
    others = load_population(run.cache, list(dict.fromkeys(held)), max(run.workers, 1), prior)
    plain = config.pairs.model_copy(update={"mix": 0.0, "deform": 0.0, "warp_mm": 0.0, "pool": 64, "seed": 1})
    return (
        _stored(run.cache, Pairs(people, fold, priors, config.pairs)),
        _stored(run.cache, Pairs(others, np.zeros(len(others.names), int), [prior], plain)),
        prior,
    )


def _stored(cache: Path, pairs: Pairs) -> Pairs:
    """The pairs, kept once made, where only they are: another pool of the same begins with the same."""
    people, config = pairs.population, pairs.config.model_dump_json(exclude={"pool"})
    made_of = [f"{VERSION}", config, *map(str, pairs.fold), *(prior.digest for prior in pairs.priors)]
    folder = cache / "pairs" / _key(",".join(made_of).encode(), people.outer.tobytes(), people.thickness.tobytes())
    folder.mkdir(parents=True, exist_ok=True)
    return replace(pairs, store=folder)


def batches(config: TrainConfig, start: int, rank: int, world: int) -> Iterator[list[int]]:
    """Indices of pairs for the steps from `start` on; each pass over the pool is in an order of its own."""
    pool, size = config.pairs.pool, config.optimiser.batch
    orders: dict[int, np.ndarray] = {}

    def pick(place: int) -> int:
        epoch, offset = divmod(place, pool)
        if epoch not in orders:
            orders.clear()
            orders[epoch] = np.random.default_rng([config.run.seed, epoch]).permutation(pool)
        return int(orders[epoch][offset])

    for step in range(start, config.optimiser.steps):
        first = (step * world + rank) * size
        yield [pick(place) for place in range(first, first + size)]


def rate_at(config: TrainConfig, step: int) -> float:
    """Learning rate: linear warm-up, then half a cosine down to a hundredth."""
    options = config.optimiser
    if step < options.warmup:
        return options.rate * (step + 1) / options.warmup
    part = (step - options.warmup) / max(1, options.steps - options.warmup)
    return options.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(part, 1.0))))


def _step(
    config: TrainConfig,
    step: int,
    accelerator: Accelerator,
    model: nn.Module,
    optimiser: Any,
    batch: dict[str, Tensor],
) -> tuple[float, ...]:
    """One update. All its randomness comes from (seed, step, rank), so a run resumes bit for bit."""
    options, levels = config.optimiser, config.diffusion
    seed = int(np.random.SeedSequence([config.run.seed, step, accelerator.process_index]).generate_state(1)[0])
    torch.manual_seed(seed)  # dropout
    generator = torch.Generator().manual_seed(seed)
    factors = batch.pop("factors")[: options.encoded].float()  # by far the most bytes, and only noise needs them
    batch = {name: value.to(accelerator.device, torch.float32) for name, value in batch.items()}
    if torch.rand((), generator=generator) < 0.5:
        batch = mirrored(batch)
    count = len(factors) * options.noises
    sigma = (torch.randn(count, generator=generator) * levels.p_std + levels.p_mean).exp()
    sigma = sigma.clamp(levels.sigma_min, 2 * levels.sigma_max).to(accelerator.device)
    unit = batch["unit"][: len(factors)].cpu()
    noise = draw_noise(factors, unit, options.noises, generator).to(accelerator.device)
    for group in optimiser.param_groups:
        group["lr"] = rate_at(config, step)
    losses = model(batch, sigma, noise)
    accelerator.backward(losses[0] + losses[1] + options.normals * losses[2])
    accelerator.clip_grad_norm_(model.parameters(), options.clip)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return tuple(float(loss.detach()) for loss in losses)


def averaged(config: TrainConfig, state: State, prior: ShapePrior) -> DiffusionMethod:
    """The method with the averaged weights as they stand."""
    network = AnchoredDenoiser(config.network)
    state.ema.copy_to(network)
    return DiffusionMethod(prior, network.eval(), config.diffusion)


def validate(config: TrainConfig, method: DiffusionMethod, pairs: Pairs) -> dict[str, float]:
    """Points: mean absolute error in mm of network and prior on held-out heads. Volumes: the pipeline's scores."""
    errors = np.zeros(2)
    for index in range(len(pairs)):
        pair = {name: value.astype(np.float32) for name, value in pairs[index].items()}
        condition = Condition(**{field.name: pair[field.name] for field in fields(Condition)})
        x0 = method.sample(condition, 1, torch.Generator().manual_seed(0)).x0[0].cpu().numpy()
        errors += [np.abs((guess - pair["target"]) * pair["unit"])[pair["valid"] > 0].mean() for guess in (x0, 0.0)]
    result = {"val_mm": errors[0] / len(pairs), "val_mm_prior": errors[1] / len(pairs)}
    rows = []
    for case in find_cases(config.run.data, config.run.validation)[: config.run.validate_cases]:
        loaded = case.load()
        found = scores(design(loaded.defective_skull, method).implant, loaded.implant, loaded.defective_skull)
        rows.append([found.dsc, found.bdsc, found.hd95])
    if rows:
        result |= dict(zip(("val_dsc", "val_bdsc", "val_hd95"), np.mean(rows, 0).tolist(), strict=True))
    return {name: float(value) for name, value in result.items()}


def _save_weights(config: TrainConfig, state: State, method: DiffusionMethod) -> None:
    """The network and the prior it belongs to, side by side."""
    method.prior.save(config.run.out / "prior.safetensors")
    notes = {"step": str(state.step), "pcdiff": __version__, "cases": config.run.cases, "val_mm": f"{state.best:.4f}"}
    notes["recipe"] = config.model_dump_json()
    recipe = {"network": config.network.model_dump(), "diffusion": config.diffusion.model_dump()}
    save_network(config.run.out / "denoiser.safetensors", method.network.state_dict(), recipe, notes)


class _Sigterm:
    """While entered, SIGTERM asks the run to stop instead of killing it, so that it keeps what it has."""

    stop = False

    def __enter__(self) -> _Sigterm:
        self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.stop = True


def _deaf_to_sigterm(_: int = 0) -> None:
    """A worker lives on when a whole process group is told to stop: the run decides, and keeps what it has."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _any(accelerator: Accelerator, flag: bool) -> bool:
    """Does any process say so? All must leave the loop at one step, or the others wait for it for ever."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)) > 0)


def _write(config: TrainConfig, row: dict[str, float]) -> None:
    """Appends to log.jsonl and, if asked for, to TensorBoard's files beside it."""
    with (config.run.out / "log.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    if config.run.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(config.run.out)) as writer:
            for name, value in row.items():
                writer.add_scalar(name, value, int(row["step"]))


def _same_recipe(path: Path, config: TrainConfig) -> None:
    """Keeps the resolved config beside the run; a run goes on only with the recipe it began with, wherever its data."""
    free = {"data", "cache", "out", "workers", "checkpoint_minutes", "tensorboard", "validate_every", "validate_cases"}
    mine = config.model_dump_json(exclude={"run": free}, indent=2)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_beside(path) as beside:
                beside.write_text(mine)
        except OSError as error:
            raise InputError(f"{path.parent}: expected a folder to write to, got {error.strerror}") from error
    elif path.read_text() != mine:
        raise InputError(f"{path}: the folder holds a run of another recipe; choose another `run.out` or remove it")


def _key(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
