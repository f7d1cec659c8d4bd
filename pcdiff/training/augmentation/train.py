"""Training of a generative model of heads."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pcdiff import __version__
from pcdiff.data.augmentation.generators import draw, make_generator
from pcdiff.diffusion.ema import Ema
from pcdiff.errors import InputError
from pcdiff.prior.folds import cached_heads, load_population
from pcdiff.prior.model import ShapePrior
from pcdiff.training.augmentation.config import GeneratorTrainConfig
from pcdiff.training.augmentation.generator import Generator, GeneratorFile
from pcdiff.training.augmentation.maps import image_weight, to_images
from pcdiff.training.loop import Loop, make_accelerator
from pcdiff.training.prior import shape_model
from pcdiff.training.run_state import State, same_recipe
from pcdiff.training.stopping import clean_exit_on_sigterm
from pcdiff.training.volumetric.task import Steps

log = logging.getLogger(__name__)

SAMPLES = 64  # drawn at a validation


def train(config: GeneratorTrainConfig, progress: bool = True) -> Path:
    """Runs a recipe to its end, or goes on with it; returns the weights' file, or the checkpoint if it was stopped.

    Writes into `config.run.out`: config.json, log.jsonl, checkpoint.safetensors, and the averaged weights,
    generator.safetensors. At SIGTERM the checkpoint is written and the run ends.
    Raises InputError if the cache lacks heads or the folder holds a run of another recipe.
    """
    run = config.run
    accelerator = make_accelerator()
    with clean_exit_on_sigterm(), accelerator.main_process_first():
        prior = shape_model(run)
        names = cached_heads(run.cache, run.cases, run.skip)
        if not names:
            raise InputError(f"{run.cache}: expected heads {run.cases}, got none; run `pcdiff prepare` first")
        log.info("training %s on %d heads and their mirror images", config.model, len(names))
        people = load_population(run.cache, names, run.workers, prior)
        images = to_images(people.deviations(prior.mean), config.network.size)
        same_recipe(run.out / "config.json", config)
    task = GeneratorTask(config, images, prior, accelerator.device)
    state = Loop(task, accelerator, progress).run()
    return task.weights if state.step == task.steps else task.checkpoint


class GeneratorTask:
    """A generative model as a `Task` of the training loop; images: (N, 2, S, S), of which each step draws some."""

    def __init__(self, config: GeneratorTrainConfig, images: Tensor, prior: ShapePrior, device: torch.device) -> None:
        self.config, self.images, self.prior, self.device = config, images, prior, device
        self.dataset = Steps()
        self.steps, self.clip = config.optimiser.steps, config.optimiser.clip
        self.checkpoint = config.run.out / "checkpoint.safetensors"
        self.weights = config.run.out / "generator.safetensors"
        torch.manual_seed(config.run.seed)
        weight = image_weight(prior, config.network.size)
        self.generator = make_generator(config.model, config.network, weight).to(device)
        self.model: nn.Module = self.generator
        self.network: nn.Module = self.generator
        self.optimiser: torch.optim.Optimizer = torch.optim.Adam(self.model.parameters(), betas=self.generator.betas)
        self.ema: Ema | None = Ema(self.network, config.optimiser.ema)

    def batches(self, start: int, rank: int, world: int) -> Iterator[list[int]]:
        """See `Task`."""
        for step in range(start, self.steps):
            yield [step * world + rank]

    def rate(self, step: int) -> float:
        """See `Task`."""
        return self.generator.rate(step / self.steps)

    def losses(self, model: nn.Module, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task`. batch: (1,) the number of the step."""
        step = int(batch)
        rng = np.random.default_rng([self.config.run.seed, step])
        chosen = rng.choice(len(self.images), min(self.config.optimiser.batch, len(self.images)), replace=False)
        losses = model(self.images[chosen].to(self.device), step, step / self.steps)
        return losses["loss"], losses

    def validate(self) -> dict[str, float]:
        """See `Task`: standard deviation, over that of the heads, of `SAMPLES` samples' radius and thickness."""
        network = self._averaged().network
        weight = network.weight.cpu()
        spreads = [
            ((images.std(0) * weight).sum((1, 2)) / weight.sum()) for images in (draw(network, SAMPLES, 0), self.images)
        ]
        outer, thickness = (spreads[0] / spreads[1]).tolist()
        return {"val_outer_spread": outer, "val_thickness_spread": thickness}

    def write_weights(self, state: State, scores: dict[str, float]) -> Path | None:
        """The averaged network as it stands: samples have no truth to be measured by."""
        notes = {"step": str(state.step), "pcdiff": __version__, "cases": self.config.run.cases}
        self._averaged().save(self.weights, notes)
        return self.weights

    def _averaged(self) -> Generator:
        """The model with the averaged weights as they stand."""
        config = self.config
        network = make_generator(config.model, config.network, self.generator.weight)
        assert self.ema is not None
        self.ema.copy_to(network.to(self.device))
        return Generator(network.eval(), GeneratorFile(model=config.model, network=config.network), self.prior)
