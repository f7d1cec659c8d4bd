"""Training: one recipe, one loop; CPU, one GPU or many through `accelerate launch`; resumes where it stopped."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from einops import rearrange
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from pcdiff import __version__
from pcdiff.data.cases import find_cases
from pcdiff.design.flow import design
from pcdiff.diffusion.ema import Ema
from pcdiff.diffusion.loss import denoising_loss, pseudo_huber
from pcdiff.geometry.metrics import scores
from pcdiff.methods.anchored.condition import Condition
from pcdiff.methods.anchored.method import DiffusionMethod, bind, draw_noise, save_network
from pcdiff.methods.anchored.network import AnchoredDenoiser
from pcdiff.prior.folds import assign_folds, cached_prior, load_population
from pcdiff.prior.model import ShapePrior
from pcdiff.training.anchored.pairs import VERSION, Pairs, mirrored
from pcdiff.training.recipes import TrainConfig
from pcdiff.training.run_state import Sigterm, State, any_process, ignore_sigterm, same_recipe, write_row

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
        """Sigma (E k,), noise (E k, P) -> losses: denoising, the guide's mean, normals.

        The guide costs next to nothing and learns from all B pairs, the rest of the network from the first E of them.
        """
        missed = self.denoiser.predict_mean(batch["anchor_features"]) - batch["target"]
        guide = (batch["valid"] * pseudo_huber(missed * batch["unit"], KNEE)).mean()
        batch = {name: value[: self.encoded] for name, value in batch.items()}
        skull = bind(self.denoiser, batch).repeated(self.noises)
        repeated = {
            name: batch[name].repeat_interleave(self.noises, 0) for name in ("target", "valid", "unit", "true_normals")
        }
        # between squared millimetres, which a few wide defects would rule, and the prior's own units, which rims would
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
        same_recipe(run.out / "config.json", config)
    torch.manual_seed(run.seed)
    model = TrainingStep(config)
    optimiser = torch.optim.AdamW(model.parameters(), options.rate, betas=(0.9, 0.99), weight_decay=options.decay)
    average = Ema(model.denoiser, options.ema)
    state = State(model.to(accelerator.device), optimiser, average)
    checkpoint = run.out / "checkpoint.safetensors"
    if checkpoint.exists():
        state.load(checkpoint)
        log.info("going on at step %d", state.step)
    wrapped, prepared = accelerator.prepare(model, optimiser)
    loader = DataLoader(
        pairs,
        batch_sampler=list(batches(config, state.step, accelerator.process_index, accelerator.num_processes)),
        num_workers=run.workers,
        worker_init_fn=ignore_sigterm,
        multiprocessing_context="spawn" if run.workers else None,
        persistent_workers=False,
    )
    saved = began = time.monotonic()
    sums = np.zeros(4)
    bar = tqdm(total=options.steps, initial=state.step, disable=not (progress and accelerator.is_main_process))
    wrapped.train()
    with Sigterm() as asked:
        for batch in loader:
            losses = _step(config, state.step, accelerator, wrapped, prepared, batch)
            state.step += 1
            average.update(model.denoiser, state.step)
            sums += (*losses, 1)
            bar.update()
            last = state.step == options.steps
            if accelerator.is_main_process and (state.step % 50 == 0 or last or asked.stop):
                done = {"step": state.step} | dict(zip(("loss", "guide", "normals"), sums[:3] / sums[3], strict=True))
                write_row(run, done | {"rate": rate_at(config, state.step), "seconds": time.monotonic() - began})
                bar.set_postfix(loss=f"{done['loss']:.3f}")
                sums[:] = 0
            if accelerator.is_main_process and (state.step % run.validate_every == 0 or last):
                method = averaged(config, state, prior)
                scored = validate(config, method, validation)
                write_row(run, {"step": state.step} | scored)
                if scored["val_mm"] < state.best:
                    state.best = scored["val_mm"]
                    _save_weights(config, state, method)
                wrapped.train()
            stop = last or any_process(accelerator, asked.stop)
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
    priors = [cached_prior(run.cache, people, fold != k) for k in range(config.pairs.folds)]
    prior = cached_prior(run.cache, people, np.ones(len(names), bool))
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
    assert state.ema is not None
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


def _key(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]
