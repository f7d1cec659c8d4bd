"""Training of a generative model of heads."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pcdiff import __version__
from pcdiff.data.augmentation.generators import OF_VOLUMES, draw
from pcdiff.diffusion.ema import Ema
from pcdiff.environment import worker_pool
from pcdiff.prior.folds import cached_heads, load_population
from pcdiff.prior.model import ShapePrior
from pcdiff.training.augmentation import volumes
from pcdiff.training.augmentation.config import GeneratorTrainConfig
from pcdiff.training.augmentation.generator import Generator, GeneratorFile, new_network
from pcdiff.training.augmentation.maps import to_images
from pcdiff.training.loop import Loop, make_accelerator
from pcdiff.training.prior import shape_model
from pcdiff.training.run_state import State, same_recipe
from pcdiff.training.stopping import clean_exit_on_sigterm
from pcdiff.training.volumetric.heads import load_heads
from pcdiff.training.volumetric.task import Steps

log = logging.getLogger(__name__)

MAPS, VOLUMES = 64, 8  # drawn at a validation


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
        log.info("training %s on these heads and their mirror images", config.model)
        images = _images(config, names, prior, progress)
        same_recipe(run.out / "config.json", config)
    task = GeneratorTask(config, images, prior, accelerator.device)
    state = Loop(task, accelerator, progress).run()
    return task.weights if state.step == task.steps else task.checkpoint


def _images(config: GeneratorTrainConfig, names: list[str], prior: ShapePrior, progress: bool) -> Tensor:
    """Of heads and their mirror images."""
    run = config.run
    if config.model in OF_VOLUMES:
        with worker_pool(run.workers) as pool:
            heads = load_heads(run.cache, names, run.same, prior, pool, progress)
        return torch.cat([volumes.to_images(part) for part in (heads.occupancy, heads.occupancy.flip(1))])
    people = load_population(run.cache, names, run.workers, prior)
    return to_images(people.deviations(prior.mean), config.network.size)


class GeneratorTask:
    """A generative model as a `Task` of the training loop; images: see `generators`; each step draws some."""

    def __init__(self, config: GeneratorTrainConfig, images: Tensor, prior: ShapePrior, device: torch.device) -> None:
        self.config, self.images, self.prior, self.device = config, images, prior, device
        self.dataset = Steps()
        self.steps, self.clip = config.optimiser.steps, config.optimiser.clip
        self.checkpoint = config.run.out / "checkpoint.safetensors"
        self.weights = config.run.out / "generator.safetensors"
        torch.manual_seed(config.run.seed)
        self.file = GeneratorFile(model=config.model, network=config.network)
        self.generator = new_network(self.file, prior).to(device)
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
        losses = model(self.images[chosen].to(self.device, torch.float32), step, step / self.steps)
        return losses["loss"], losses

    def validate(self) -> dict[str, float]:
        """See `Task`: standard deviation, over that of the heads, of samples' radius and thickness, or distances."""
        generator = self._averaged()
        made = self._spread(draw(generator.network, VOLUMES if generator.of_volumes else MAPS, 0, batch=16))
        if generator.of_volumes:
            return {"val_distance_spread": float(made.mean() / self._spread_of_heads.mean())}
        outer, thickness = (made / self._spread_of_heads).tolist()
        return {"val_outer_spread": outer, "val_thickness_spread": thickness}

    def write_weights(self, state: State, scores: dict[str, float]) -> Path | None:
        """The averaged network as it stands: samples have no truth to be measured by."""
        notes = {"step": str(state.step), "pcdiff": __version__, "cases": self.config.run.cases}
        self._averaged().save(self.weights, notes)
        return self.weights

    @cached_property
    def _spread_of_heads(self) -> Tensor:
        return self._spread(self.images)

    def _spread(self, images: Tensor) -> Tensor:
        """(C,) standard deviation over images, mean over pixels by their weight."""
        return (images.float().std(0) * self.generator.weight.cpu()).flatten(1).mean(1)

    def _averaged(self) -> Generator:
        """The model with the averaged weights as they stand."""
        network = new_network(self.file, self.prior).to(self.device)
        assert self.ema is not None
        self.ema.copy_to(network)
        return Generator(network.eval(), self.file, self.prior)
