"""The training loop of every method: steps, averages, log, validation, checkpoints, and a clean stop at SIGTERM.

It runs on a CPU, on one GPU, or on many through `torchrun`. All randomness of a step comes from (seed, step,
process), so a run that was stopped ends with the same bits as one that was not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pcdiff.diffusion.ema import Ema
from pcdiff.errors import OutputError, first_line
from pcdiff.files import opened_alone
from pcdiff.nets.devices import computes_bfloat16
from pcdiff.training.batches import load_batches
from pcdiff.training.recipes import RunRecipe
from pcdiff.training.run_state import LOG, State, write_row
from pcdiff.training.stopping import Interrupted, Sigterm, any_process

log = logging.getLogger(__name__)

LOG_EVERY = 50  # steps
LONGEST_VALIDATION = timedelta(hours=2)  # other processes wait for the main one that long


class Task(Protocol):
    """What a method gives the loop.

    steps: of the whole run. checkpoint: the file that the run goes on from. model: holds all that is trained, on the
    training device. optimiser: of its parameters. network: the part of it whose weights `ema`, if there is one,
    averages.
    """

    steps: int
    checkpoint: Path
    model: nn.Module
    optimiser: torch.optim.Optimizer
    network: nn.Module
    ema: Ema | None

    @property
    def config(self) -> RunRecipe:
        """The recipe, which is stored in the checkpoint."""

    @property
    def clip(self) -> float | None:
        """Largest norm of the gradient; None leaves it as it is."""

    @property
    def dataset(self) -> Dataset[Any]:
        """Items to train on; item k is a function of k alone."""

    def batches(self, start: int, rank: int, world: int) -> Iterator[list[int]]:
        """Indices of the items of each step from `start` on, for process `rank` of `world`."""

    def rate(self, step: int) -> float:
        """Learning rate of a step."""

    def losses(self, model: nn.Module, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to descend and the losses to log. model: `self.model`, or its distributed wrapper."""

    def validate(self) -> dict[str, float]:
        """Scores of the present weights on held-out data."""

    def write_weights(self, state: State, scores: dict[str, float]) -> Path | None:
        """Writes the weights if their scores call for it, and updates `state.best`; returns the file."""


def make_accelerator(precision: str = "no") -> Accelerator:
    """On the GPU where there is one.

    precision: "bf16" runs in autocast, which needs no gradient scaler; float32 where the device is slow at it.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not computes_bfloat16(device):
        precision = "no"
    patient = InitProcessGroupKwargs(timeout=LONGEST_VALIDATION)
    return Accelerator(mixed_precision=precision, cpu=device == "cpu", kwargs_handlers=[patient])


class Loop:
    """One run of a task. Writes log.jsonl and the checkpoint into `run.out`, beside the weights of the task.

    Raises InputError if the checkpoint holds another network, and while another run trains into the folder.
    """

    def __init__(self, task: Task, accelerator: Accelerator, progress: bool = True) -> None:
        self.task, self.accelerator, self.settings = task, accelerator, task.config.run
        self.main = accelerator.is_main_process
        self.progress = progress and self.main
        self.state = State(task.model, task.optimiser, task.ema)
        self.unsaved = not task.checkpoint.exists()
        if not self.unsaved:
            self.state.load(task.checkpoint)
        self.model, self.optimiser = accelerator.prepare(task.model, task.optimiser)
        self.means = Means()
        self.sigterm = Sigterm()
        self.began = self.saved = time.monotonic()

    def run(self) -> State:
        """Trains to the last step, or until SIGTERM; then everything is on disk. Returns the state.

        Raises OutputError if another process of the training dies.
        """
        try:
            return self._run()
        except RuntimeError as error:
            if self.accelerator.num_processes == 1 or isinstance(error, OutputError):
                raise
            raise OutputError(
                f"the training stopped at step {self.state.step} ({first_line(error)}); if another process of it has "
                f"died, run the same command on all machines again: it goes on from {self.task.checkpoint}"
            ) from error

    def _run(self) -> State:
        self._announce()
        self.model.train()
        with ExitStack() as stack:
            if self.main:
                stack.enter_context(opened_alone(self.settings.out / LOG, "pcdiff train"))
            stack.enter_context(self.sigterm)
            batches = stack.enter_context(closing(self._batches()))
            bar = stack.enter_context(
                tqdm(total=self.task.steps, initial=self.state.step, disable=not self.progress, unit="step")
            )
            if self.progress:
                stack.enter_context(logging_redirect_tqdm())
            self._validate_if_due()  # the last run may have been stopped in this validation
            while self.state.step < self.task.steps:
                try:
                    batch = self._next(batches)
                except Interrupted:
                    break
                self._advance(batch)
                bar.update()
                self._log_if_due(bar)
                self._validate_if_due()
                if any_process(self.accelerator, self.sigterm.stop):
                    break
                self._save_if_due()
            self._finish()
        return self.state

    def _announce(self) -> None:
        if self.main:
            start = f"going on at step {self.state.step}" if self.state.step else "starting"
            log.info("%s of %d steps on %s; %s", start, self.task.steps, self.accelerator.device, self.task.checkpoint)

    def _batches(self) -> Generator[Any, None, None]:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        return load_batches(
            self.task.dataset,
            self.task.batches(self.state.step, rank, world),
            self.settings.workers,
            self._seed(),
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def _next(self, batches: Iterator[Any]) -> Any:
        """Waits for a batch, not longer than to SIGTERM. Of many processes all have to take the step together."""
        alone = self.accelerator.num_processes == 1
        with self.sigterm.interruptible() if alone else nullcontext():
            return next(batches)

    def _seed(self) -> int:
        key = [self.settings.seed, self.state.step, self.accelerator.process_index]
        return int(np.random.SeedSequence(key).generate_state(1)[0])

    def _advance(self, batch: Any) -> None:
        """One step of the optimiser."""
        seed = self._seed()
        torch.manual_seed(seed)  # dropout
        for group in self.optimiser.param_groups:
            group["lr"] = self.task.rate(self.state.step)
        loss, logged = self.task.losses(self.model, batch, torch.Generator().manual_seed(seed))
        self.accelerator.backward(loss)
        if self.task.clip is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.task.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.state.step += 1
        if self.state.ema is not None:
            self.state.ema.update(self.task.network, self.state.step)
        self.means.add(logged)
        self.unsaved = True

    def _log_if_due(self, bar: Any) -> None:
        if self.main and (self.state.step % LOG_EVERY == 0 or self.state.step == self.task.steps):
            bar.set_postfix(loss=f"{self._log_means()['loss']:.4f}")

    def _log_means(self) -> dict[str, float]:
        """Writes the mean losses since the last row."""
        step = self.state.step
        row = {"step": step} | self.means.take()
        row |= {"rate": self.task.rate(step), "seconds": time.monotonic() - self.began}
        write_row(self.settings, row)
        return row

    def _validate_if_due(self) -> None:
        step = self.state.step
        due = step and (step % self.settings.validate_every == 0 or step == self.task.steps)
        if not self.main or not due or self.state.validated == step:
            return
        log.info("validating at step %d", step)
        try:
            with self.sigterm.interruptible():
                scores = self.task.validate()
        except Interrupted:
            return
        write_row(self.settings, {"step": step} | scores)
        self.state.validated, self.unsaved = step, True
        if written := self.task.write_weights(self.state, scores):
            log.info("weights of step %d -> %s", step, written)
        self.model.train()

    def _save_if_due(self) -> None:
        if self.main and time.monotonic() - self.saved > 60 * self.settings.checkpoint_minutes:
            self._save()

    def _save(self) -> None:
        self.state.save(self.task.checkpoint, self.task.config)
        self.saved, self.unsaved = time.monotonic(), False

    def _finish(self) -> None:
        if self.main:
            if self.means:
                self._log_means()
            if self.unsaved:
                self._save()
            if self.state.step < self.task.steps:
                log.info("stopped at step %d; the same command goes on from %s", self.state.step, self.task.checkpoint)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()


class Means:
    """Means of named losses over steps, summed in float64 on their device: nothing waits for a GPU before `take`."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._names: list[str] = []
        self._count = 0

    def __bool__(self) -> bool:
        return self._count > 0

    def add(self, losses: dict[str, Tensor]) -> None:
        """Adds the losses, scalars, of one step."""
        values = torch.stack([loss.detach().double() for loss in losses.values()])
        self._sum = values if self._sum is None else self._sum + values
        self._names, self._count = list(losses), self._count + 1

    def take(self) -> dict[str, float]:
        """The means since the last call."""
        assert self._sum is not None
        means = dict(zip(self._names, (self._sum / self._count).tolist(), strict=True))
        self._sum, self._count = None, 0
        return means
