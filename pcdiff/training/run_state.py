"""The state of a training run on disk: checkpoint, recipe and log."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from pcdiff import __version__
from pcdiff.diffusion.ema import Ema
from pcdiff.errors import InputError
from pcdiff.files import folder_to_write, written_beside
from pcdiff.foreign import read_bytes
from pcdiff.imaging.formats.header import shown
from pcdiff.nets.states import check_state
from pcdiff.tensor_files import TensorFile, read_tensors, write_tensors
from pcdiff.training.recipes import RunConfig

# Sections of `run` that may change when a run goes on: they do not change what is trained.
FREE = {"data", "cache", "out", "workers", "checkpoint_minutes", "tensorboard", "validate_every", "validate_cases"}

LOG = "log.jsonl"
ANOTHER = "checkpoint of another network; choose another `run.out`"
REMEDY = "remove it, or choose another `run.out`"


class _Progress(BaseModel):
    """What a checkpoint's metadata says of the run."""

    step: int = Field(ge=0)
    validated: int = Field(ge=0)
    best: float = Field(gt=-math.inf, description="infinite before the first validation, never NaN")


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
        write_tensors(path, tensors, metadata)

    def load(self, path: Path) -> None:
        """Restores what `save` wrote; a file that does not fit changes nothing.

        Raises InputError if the file holds another network, or is damaged.
        """
        file = read_tensors(path, "a checkpoint of a run", REMEDY, framework="pt")
        progress = file.notes(_Progress)
        weights, averages = _part(file.tensors, "model."), _part(file.tensors, "ema.")
        check_state(weights, self.model.state_dict(), path, ANOTHER)
        check_state(averages, {} if self.ema is None else self.ema.state_dict(), path, ANOTHER)
        if averages and not 0 <= int(averages["step"]) <= progress.step:
            raise InputError(
                f"{path}: expected averages of step {progress.step}, got {int(averages['step'])}; {REMEDY}"
            )
        moments = self._moments(file)
        self.step, self.validated, self.best = progress.step, progress.validated, progress.best
        self.model.load_state_dict(weights)
        if self.ema is not None:
            self.ema.load_state_dict(averages)
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": moments})

    def _moments(self, file: TensorFile) -> dict[int, dict[str, Tensor]]:
        """The moments of Adam by the number of their parameter."""
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(file.tensors, "optimiser.").items():
            digits, _, part = name.partition(".")
            moments.setdefault(int(digits) if re.fullmatch(r"\d{1,6}", digits) else -1, {})[part] = value
        parameters = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        for number, found in moments.items():
            if not 0 <= number < len(parameters):
                raise InputError(f"{file.path}: {ANOTHER} (moments of more parameters than it has)")
            like = parameters[number]
            check_state(found, {"step": torch.tensor(0.0), "exp_avg": like, "exp_avg_sq": like}, file.path, ANOTHER)
        return moments


def same_recipe(path: Path, config: BaseModel, option: str = "`run.out`") -> None:
    """Writes the resolved recipe to `path` at the first start and compares it at every later one.

    option: which names the folder, for the message. Raises InputError if the folder cannot be written or holds a run of
    another recipe; `FREE` settings may differ.
    """
    resolved = config.model_dump_json(exclude={"run": FREE}, indent=2)
    if not path.exists():
        with folder_to_write(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_beside(path) as beside:
                beside.write_bytes(resolved.encode())
    elif (found := read_bytes(path, "the recipe of a run", f"choose another {option}")) != resolved.encode():
        raise InputError(
            f"{path}: the folder holds a run of another recipe{_difference(found, resolved)}; choose another {option} "
            "or remove it"
        )


def _difference(before: bytes, now: str) -> str:
    """The first setting in which two recipes differ, for a message; empty for a file that is no recipe."""
    try:
        was, wanted = _settings(json.loads(before)), _settings(json.loads(now))
    except (ValueError, RecursionError):
        return ""
    name = next((name for name in {**wanted, **was} if was.get(name) != wanted.get(name)), None)
    return "" if name is None else f" ({shown(name)} {shown(str(was.get(name)))}, not {shown(str(wanted.get(name)))})"


def _settings(value: object, name: str = "") -> dict[str, object]:
    """The leaves of a recipe by their dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    return {
        place: leaf
        for key, part in value.items()
        for place, leaf in _settings(part, f"{name}.{key}" if name else key).items()
    }


def write_row(run: RunConfig, row: dict[str, float]) -> None:
    """Appends a row to log.jsonl and, with `run.tensorboard`, to TensorBoard's files beside it."""
    path, line = run.out / LOG, f"{json.dumps(row)}\n".encode()
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            file.truncate(size)  # a full disk leaves no half of a row
            raise OSError(error.errno, error.strerror, str(path)) from error
    if run.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(run.out)) as writer:
            for name, value in row.items():
                writer.add_scalar(name, value, int(row["step"]))


def trained_seconds(run: RunConfig) -> float:
    """Seconds that a run has taken, validation included: of log.jsonl, whose clock starts anew where a run goes on."""
    path = run.out / LOG
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    clock = [row["seconds"] for row in rows if "seconds" in row]
    return sum(now for now, later in pairwise([*clock, 0.0]) if later < now)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
