"""The state of a training run on disk: checkpoint, recipe and log."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel
from safetensors.torch import save
from torch import Tensor, nn

from pcdiff import __version__
from pcdiff.diffusion.ema import Ema
from pcdiff.errors import InputError
from pcdiff.files import written_beside
from pcdiff.tensor_files import read_tensors
from pcdiff.training.recipes import RunConfig

# Sections of `run` that may change when a run goes on: they do not change what is trained.
FREE = {"data", "cache", "out", "workers", "checkpoint_minutes", "tensorboard", "validate_every", "validate_cases"}


@dataclass
class State:
    """All that a run needs to go on; everything else follows from the recipe and the step.

    step: optimiser steps done. validated: the step of the last validation. best: its best score so far, lower is
    better.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer
    ema: Ema | None = None
    step: int = 0
    validated: int = 0
    best: float = math.inf

    def save(self, path: Path, config: BaseModel) -> None:
        """Writes one safetensors file, whole or not at all: weights, averages if there are any, optimiser moments."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": value for name, value in self.ema.state_dict().items()}
        for number, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{name}": value for name, value in moments.items()}
        metadata = {
            "step": str(self.step),
            "validated": str(self.validated),
            "best": repr(self.best),
            "config": config.model_dump_json(),
            "pcdiff": __version__,
        }
        with written_beside(path) as beside:
            beside.write_bytes(save({name: value.cpu().contiguous() for name, value in tensors.items()}, metadata))

    def load(self, path: Path) -> None:
        """Restores what `save` wrote. Raises InputError if the file holds another network."""
        file = read_tensors(path, "a checkpoint of a run", "remove it, or choose another `run.out`", framework="pt")
        tensors, self.step, self.best = file.tensors, int(file.metadata["step"]), float(file.metadata["best"])
        self.validated = int(file.metadata.get("validated", self.step))
        try:
            self.model.load_state_dict(_part(tensors, "model."))
            if self.ema is not None:
                self.ema.load_state_dict(_part(tensors, "ema."))
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{path}: checkpoint of another network; choose another `run.out` ({error})") from error
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(tensors, "optimiser.").items():
            number, field = name.split(".", 1)
            moments.setdefault(int(number), {})[field] = value
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": moments})


def same_recipe(path: Path, config: BaseModel) -> None:
    """Writes the resolved recipe to `path` at the first start and compares it at every later one.

    Raises InputError if the folder cannot be written or holds a run of another recipe; `FREE` settings may differ.
    """
    resolved = config.model_dump_json(exclude={"run": FREE}, indent=2)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_beside(path) as beside:
                beside.write_text(resolved)
        except OSError as error:
            raise InputError(f"{path.parent}: expected a folder to write to, got {error.strerror}") from error
    elif path.read_text() != resolved:
        raise InputError(f"{path}: the folder holds a run of another recipe; choose another `run.out` or remove it")


def write_row(run: RunConfig, row: dict[str, float]) -> None:
    """Appends a row to log.jsonl and, with `run.tensorboard`, to TensorBoard's files beside it."""
    with (run.out / "log.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    if run.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(run.out)) as writer:
            for name, value in row.items():
                writer.add_scalar(name, value, int(row["step"]))


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
