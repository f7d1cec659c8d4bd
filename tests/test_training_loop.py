"""The training loop on a task of one number: stop and resume, SIGTERM at any moment, threads, workers, log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pcdiff.diffusion.ema import Ema
from pcdiff.environment import THREADS, one_thread_per_child, worker_pool
from pcdiff.errors import InputError
from pcdiff.training.batches import load_batches
from pcdiff.training.loop import Loop, Means, make_accelerator
from pcdiff.training.recipes import DiffusionTrainConfig, VolumetricTrainConfig
from pcdiff.training.run_state import State
from pcdiff.training.stopping import Interrupted, Sigterm


class Squares(Dataset[Tensor]):
    """Item k is k squared."""

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(float(index) ** 2)


class Slow(Squares):
    """Items that take half a minute, but for the first ones."""

    def __getitem__(self, index: int) -> Tensor:
        if index >= 4:
            time.sleep(30)
        return super().__getitem__(index)


class Environment(Dataset[str]):
    """The thread limits that a worker runs under, and the random number that its seed gives."""

    def __getitem__(self, index: int) -> str:
        return f"{[os.environ.get(name) for name in THREADS]} {torch.get_num_threads()} {torch.rand(()).item()}"


class Line(nn.Module):
    """w x, with dropout that only the seed of a step decides."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5))
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.w * x)


class ToyTask:
    """Fits a line to squares in nine steps, two items each."""

    steps = 9
    clip: float | None = None

    def __init__(self, out: Path, **run: Any) -> None:
        folders = {"data": out, "cache": out, "out": out, "workers": 0, "validate_every": 4}
        self.config = DiffusionTrainConfig.model_validate({"method": "diffusion", "run": folders | run})
        self.checkpoint = out / "checkpoint.safetensors"
        self.model: nn.Module = Line()
        self.network = self.model
        self.optimiser: torch.optim.Optimizer = torch.optim.Adam(self.model.parameters())
        self.ema: Ema | None = Ema(self.model)
        self.dataset: Dataset[Any] = Squares()
        self.written: list[int] = []

    def batches(self, start: int, rank: int, world: int) -> Iterator[list[int]]:
        return iter([[2 * step, 2 * step + 1] for step in range(start, self.steps)])

    def rate(self, step: int) -> float:
        return 0.1 / (1 + step)

    def losses(self, model: nn.Module, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        noise = torch.rand((), generator=generator)
        loss = (model(batch.sqrt()) - batch + noise).square().mean()
        return loss, {"loss": loss}

    def validate(self) -> dict[str, float]:
        assert self.ema is not None
        return {"score": float(self.ema.average["w"])}

    def write_weights(self, state: State, scores: dict[str, float]) -> Path | None:
        self.written.append(state.step)
        return None


def run(task: ToyTask) -> State:
    return Loop(task, make_accelerator(), progress=False).run()


def at_step(task: ToyTask, step: int, action: Callable[[], object]) -> ToyTask:
    """The task, which calls the action within step number `step` of a run."""
    losses, calls = task.losses, []

    def losses_and_action(*given: Any) -> tuple[Tensor, dict[str, Tensor]]:
        calls.append(given)
        if len(calls) == step:
            action()
        return losses(*given)

    task.losses = losses_and_action  # type: ignore[method-assign]
    return task


def stop_after(task: ToyTask, steps: int) -> ToyTask:
    """The task, which gets SIGTERM within its step number `steps`."""
    return at_step(task, steps, lambda: signal.raise_signal(signal.SIGTERM))


def rows(task: ToyTask) -> list[dict[str, float]]:
    return [json.loads(line) for line in (task.config.run.out / "log.jsonl").read_text().splitlines()]


def weights(state: State) -> list[Tensor]:
    assert state.ema is not None
    moments = [value for each in state.optimiser.state_dict()["state"].values() for _, value in sorted(each.items())]
    return [*state.model.state_dict().values(), *state.ema.state_dict().values(), *moments]


@pytest.fixture
def whole(tmp_path: Path) -> State:
    (tmp_path / "whole").mkdir()
    return run(ToyTask(tmp_path / "whole"))


def test_a_run_validates_in_time_and_at_the_end(tmp_path: Path) -> None:
    task = ToyTask(tmp_path)
    state = run(task)
    assert state.step == 9
    assert task.written == [4, 8, 9]
    assert [row["step"] for row in rows(task)] == [4, 8, 9, 9]
    assert [row["step"] for row in rows(task) if "loss" in row] == [9]
    assert rows(task)[2]["rate"] == task.rate(9)


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path) -> None:
    refused: list[str] = []

    def another() -> None:
        with pytest.raises(InputError) as raised:
            run(ToyTask(tmp_path))
        refused.append(str(raised.value))

    assert run(at_step(ToyTask(tmp_path), 3, another)).step == 9
    (said,) = refused
    assert said == f"{tmp_path}: another `pcdiff train` writes here; wait for it, or choose another output folder"


@pytest.mark.parametrize("steps", [1, 4, 6])
def test_a_stopped_run_ends_as_one_that_was_not(tmp_path: Path, whole: State, steps: int) -> None:
    stopped = stop_after(ToyTask(tmp_path), steps)
    assert run(stopped).step == steps
    again = ToyTask(tmp_path)
    state = run(again)
    assert all(torch.equal(a, b) for a, b in zip(weights(state), weights(whole), strict=True))
    assert stopped.written + again.written == [4, 8, 9]  # each validation once, also that of the step it stopped at


def test_a_validation_that_sigterm_interrupts_is_made_up_for(tmp_path: Path, whole: State) -> None:
    task = ToyTask(tmp_path)

    def validate() -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the signal must leave the validation at once")

    task.validate = validate  # type: ignore[method-assign]
    assert run(task).step == 4
    assert not task.written
    again = ToyTask(tmp_path)
    state = run(again)
    assert again.written == [4, 8, 9]
    assert all(torch.equal(a, b) for a, b in zip(weights(state), weights(whole), strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm_ends_a_wait_for_data(tmp_path: Path, workers: int) -> None:
    task = ToyTask(tmp_path, workers=workers)
    task.dataset = Slow()
    stops: list[float] = []

    def stop() -> None:
        stops.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    assert run(at_step(task, 2, threading.Timer(0.3, stop).start)).step == 2
    assert task.checkpoint.exists()
    assert time.monotonic() - stops[0] < 10


def test_a_run_outside_the_main_thread_leaves_signals_alone(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(run(ToyTask(tmp_path)).step))
    thread.start()
    thread.join()
    assert found == [9]
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_interrupts_only_what_may_be_left() -> None:
    with Sigterm() as sigterm:
        signal.raise_signal(signal.SIGTERM)
        assert sigterm.stop
        with pytest.raises(Interrupted), sigterm.interruptible():
            pytest.fail("a signal that came before counts too")


def test_sigterm_before_the_first_step_ends_the_process_and_its_pool() -> None:
    code = """
import os, signal, threading, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pcdiff.training.stopping import clean_exit_on_sigterm
if __name__ == "__main__":
    with clean_exit_on_sigterm(), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(time.sleep, 0).result()
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        list(pool.map(time.sleep, [100] * 3))
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGTERM
    assert "Error" not in done.stderr
    assert time.monotonic() - began < 40  # far less than an item of the pool takes


def test_workers_are_seeded_and_run_on_one_thread() -> None:
    with closing(load_batches(Environment(), [[0, 1]], 1, 3, pin_memory=False)) as batches:
        found = [row for batch in batches for row in batch]
    worker_seed = int(torch.empty((), dtype=torch.int64).random_(generator=torch.Generator().manual_seed(3)))
    drawn = torch.rand(2, generator=torch.Generator().manual_seed(worker_seed)).tolist()
    assert found == [f"['1', '1', '1', '1'] 1 {value}" for value in drawn]


def test_a_pool_of_workers_runs_on_one_thread_each() -> None:
    with worker_pool(0) as pool:
        assert pool.submit(_threads).result() == ["1"] * len(THREADS)


def test_a_pool_that_is_left_starts_no_other_job() -> None:
    def fail() -> None:
        with worker_pool(1) as pool:
            jobs.extend(pool.submit(time.sleep, 0.2) for _ in range(50))
            jobs[0].result()
            raise InputError("enough")

    jobs: list[Future[None]] = []
    with pytest.raises(InputError, match="enough"):
        fail()
    assert sum(job.cancelled() for job in jobs) > 40


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_workers_end_with_a_process_that_is_killed() -> None:
    code = """
import os, signal, time
from pcdiff.environment import worker_pool
if __name__ == "__main__":
    with worker_pool(2) as pool:
        pool.submit(os.getpid).result()
        pool.submit(time.sleep, 100)
        os.kill(os.getpid(), signal.SIGKILL)
"""
    # The workers hold the pipe, too: it ends when the last of them does.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("name", ["surface", "volumetric"])
def test_what_is_made_before_training_runs_on_one_thread_each(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module(f"pcdiff.training.{name}.train")
    found: list[list[str | None]] = []

    def sources(run: Any, samples: Any, prior: Any, pool: Executor, progress: bool) -> None:
        found.append(pool.submit(_threads).result())
        raise InputError("enough")

    monkeypatch.setattr(module, "load_sources", sources)
    recipe, method = (DiffusionTrainConfig, "diffusion") if name == "surface" else (VolumetricTrainConfig, "unet")
    run = {"data": tmp_path, "cache": tmp_path, "out": tmp_path}
    with pytest.raises(InputError, match="enough"):
        module.train(
            recipe.model_validate({"method": method, "run": run, "optimiser": {"precision": "no"}}), progress=False
        )
    assert found == [["1"] * len(THREADS)]


def _threads() -> list[str | None]:
    return [os.environ.get(name) for name in THREADS]


def test_thread_limits_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with one_thread_per_child():
        assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "MKL_NUM_THREADS" not in os.environ


def test_means_are_those_of_python_floats() -> None:
    means, values = Means(), torch.rand(50, generator=torch.Generator().manual_seed(0))
    assert not means
    for value in values:
        means.add({"loss": value, "half": value / 2})
    taken = means.take()
    assert taken == {"loss": sum(map(float, values)) / 50, "half": sum(float(v / 2) for v in values) / 50}
    assert not means
