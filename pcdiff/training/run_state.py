"""What training runs share, whatever they train: a state to go on from, a recipe to hold to, a log, a way to stop."""

from __future__ import annotations

import json
import math
import signal
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator
from pydantic import BaseModel
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pcdiff import __version__
from pcdiff.diffusion.ema import Ema
from pcdiff.errors import InputError
from pcdiff.files import written_beside
from pcdiff.training.recipes import RunConfig


@dataclass
class State:
    """What a run goes on from: everything else is a function of the config and the step."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    ema: Ema | None = None
    step: int = 0
    best: float = math.inf

    def save(self, path: Path, config: BaseModel) -> None:
        """One safetensors file: weights, averages if there are any, moments; written whole or not at all."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.ema is not None:
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
            if self.ema is not None:
                self.ema.load_state_dict(_part(tensors, "ema."))
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{path}: checkpoint of another network; choose another `run.out` ({error})") from error
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(tensors, "optimiser.").items():
            number, field = name.split(".", 1)
            moments.setdefault(int(number), {})[field] = value
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": moments})


class Sigterm:
    """While entered, SIGTERM asks the run to stop instead of killing it, so that it keeps what it has."""

    stop = False

    def __enter__(self) -> Sigterm:
        self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.stop = True


def ignore_sigterm(_: int = 0) -> None:
    """A worker lives on when a whole process group is told to stop: the run decides, and keeps what it has."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Does any process say so? All must leave the loop at one step, or the others wait for it for ever."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)) > 0)


def write_row(run: RunConfig, row: dict[str, float]) -> None:
    """Appends to log.jsonl and, if asked for, to TensorBoard's files beside it."""
    with (run.out / "log.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    if run.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(run.out)) as writer:
            for name, value in row.items():
                writer.add_scalar(name, value, int(row["step"]))


def same_recipe(path: Path, config: BaseModel) -> None:
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


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
