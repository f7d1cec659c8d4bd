"""Training of the surface denoiser: order and rate, whole runs, SIGTERM, and the loss against a closed form."""

from __future__ import annotations

import json
import math
import multiprocessing
import signal
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor
from torch.utils.data import default_collate

from pcdiff.diffusion.schedule import log_normal_sigmas
from pcdiff.errors import InputError
from pcdiff.files import sha256
from pcdiff.methods.registry import weights_of
from pcdiff.methods.surface.config import LAYOUT
from pcdiff.methods.surface.noise import normal_noise
from pcdiff.methods.surface.weights import load_denoiser
from pcdiff.training.loop import Loop
from pcdiff.training.recipes import DiffusionTrainConfig
from pcdiff.training.surface import train as training
from pcdiff.training.surface.dataset import Pairs
from pcdiff.training.surface.train import SurfaceTask, train

STEPS = 6
SCORES = {"val_mean": 0.5, "val_still": 0.6}


def tiny(out: Path, **optimiser: Any) -> DiffusionTrainConfig:
    run = {"data": "data", "cache": out / "cache", "out": out, "workers": 0, "seed": 3}
    return DiffusionTrainConfig.model_validate(
        {
            "method": "diffusion",
            "run": run,
            "network": {"width": 16, "blocks": 1, "heads": 2, "dropout": 0.2},
            "diffusion": {"steps": 2},
            "optimiser": {"steps": STEPS, "batch": 2, "warmup": 2, **optimiser},
        }
    )


def in_run(config: DiffusionTrainConfig, **changes: Any) -> DiffusionTrainConfig:
    return config.model_copy(update={"run": config.run.model_copy(update=changes)})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four pairs of noise."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("pairs")
    count = LAYOUT.anchors + 10
    for k in range(4):
        normals = rng.normal(size=(count, 3))
        pair = {
            "positions": rng.normal(0, 30, (count, 3)),
            "normals": normals / np.linalg.norm(normals, axis=1, keepdims=True),
            "static": rng.normal(size=(count, len(LAYOUT.static))),
            "profile": rng.normal(size=(count, len(LAYOUT.offsets_mm), LAYOUT.channels)),
            "target": rng.normal(0, 0.8, count),
            "valid": rng.random(count) < 0.9,
        }
        save_file({name: value.astype(np.float16) for name, value in pair.items()}, folder / f"{k}.safetensors")
    return sorted(folder.glob("*.safetensors"))


@pytest.fixture
def task(files: list[Path], tmp_path: Path) -> SurfaceTask:
    return made(tiny(tmp_path), files)


def made(config: DiffusionTrainConfig, files: list[Path]) -> SurfaceTask:
    return SurfaceTask(
        config, Pairs(files, config.anchors, config.run.seed), Pairs(files[:1], LAYOUT.anchors, 1), torch.device("cpu")
    )


# --- order and rate -------------------------------------------------------------------------------------------------


def batches(config: DiffusionTrainConfig, files: list[Path], start: int = 0, rank: int = 0, world: int = 1) -> Any:
    return list(made(config, files).batches(start, rank, world))


def test_every_pass_takes_every_pair_once(files):
    indices = np.array(batches(tiny(Path("o"), steps=12), files)).ravel()
    passes = indices.reshape(-1, 4) % 4
    assert all(sorted(each) == [0, 1, 2, 3] for each in passes.tolist())
    assert len({tuple(each) for each in passes.tolist()}) > 1  # in an order of its own
    assert len(set(indices.tolist())) == len(indices)  # and each time with other points


@pytest.mark.parametrize("batch", [2, 3])  # 3: a batch may lie across two passes
def test_the_order_continues_after_a_stop(files, batch):
    config = tiny(Path("o"), steps=15, batch=batch)
    whole = batches(config, files)
    assert len(whole) == 15
    assert all(len(each) == batch for each in whole)
    for start in (1, 7, 14, 15):
        assert batches(config, files, start) == whole[start:]


def test_ranks_share_the_work(files):
    config, many = tiny(Path("o"), steps=5), files * 10
    ranks = [batches(config, many, 0, rank, 3) for rank in range(3)]
    seen = np.array(ranks).ravel()
    assert len(set(seen.tolist())) == len(seen) == 30  # within a pass nothing is met twice
    alone = np.array(batches(config, many))
    assert np.array_equal(np.array(ranks)[:, 0].ravel(), alone[:3].ravel())  # three ranks' step is three steps


def test_the_rate_rises_then_falls(files):
    task = made(tiny(Path("o"), steps=100, warmup=10, rate=2e-3), files)
    rates = [task.rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(2e-4)
    assert rates[9] == pytest.approx(2e-3)
    assert rates[10] == pytest.approx(2e-3)
    assert rates[55] == pytest.approx(2e-3 * 0.505)
    assert rates[100] == pytest.approx(2e-5)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert made(tiny(Path("o"), warmup=0), files).rate(0) == pytest.approx(1e-3)


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, files: list[Path]) -> Iterator[None]:
    """Pairs that are there, validation without sampling, and no signal handler left behind."""
    monkeypatch.setattr(training, "load_sources", lambda *_: (None, files))
    monkeypatch.setattr(training, "store_cases", lambda *_: {"own": files[:1]})
    monkeypatch.setattr(training, "store_pairs", lambda cache, cases, *_: cases)
    monkeypatch.setattr(training, "validate", lambda *_: SCORES)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def rows(config: DiffusionTrainConfig) -> list[dict[str, float]]:
    return [json.loads(line) for line in (config.run.out / "log.jsonl").read_text().splitlines()]


def checkpoint(config: DiffusionTrainConfig) -> Path:
    return config.run.out / "checkpoint.safetensors"


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """SIGTERM reaches the run within its step number `steps`."""
    advance = Loop._advance

    def advance_and_stop(loop: Loop, batch: Any) -> None:
        advance(loop, batch)
        if loop.state.step == steps:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Loop, "_advance", advance_and_stop)


def test_a_run_writes_the_documented_files(tmp_path, quick, task):
    config = tiny(tmp_path / "run")
    out = config.run.out
    assert train(config, progress=False) == out / "denoiser.safetensors"
    weights = ("checkpoint", "denoiser", "unet")
    names = {"config.json", "log.jsonl"} | {f"{name}.safetensors" for name in weights}
    assert {path.name for path in out.iterdir()} == names
    log = rows(config)
    assert [row["step"] for row in log] == [STEPS, STEPS]
    assert math.isfinite(log[0]["loss"])
    assert log[0]["rate"] == task.rate(STEPS)
    assert log[1]["val_mean"] == 0.5
    assert load_denoiser(out / "denoiser.safetensors")[1].diffusion == config.diffusion
    files = weights_of("diffusion", out / "denoiser.safetensors")  # usable where they lie
    assert [path.parent for path in files.companions] == [out]
    assert sha256(files.companions[0]) == sha256(weights_of("unet").all[0])
    # a finished run that is started again does nothing
    before = tensors(checkpoint(config))
    assert train(config, progress=False) == out / "denoiser.safetensors"
    assert all(torch.equal(before[name], value) for name, value in tensors(checkpoint(config)).items())
    assert len(rows(config)) == 2


def test_a_stopped_run_ends_as_one_that_was_not(tmp_path, quick, monkeypatch):
    whole, stopped = tiny(tmp_path / "whole"), tiny(tmp_path / "stopped")
    train(whole, progress=False)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        train(stopped, progress=False)
    assert metadata(checkpoint(stopped))["step"] == "3"
    assert [row["step"] for row in rows(stopped)] == [3]
    train(stopped, progress=False)
    mine, theirs = (tensors(checkpoint(config)) for config in (stopped, whole))
    assert mine.keys() == theirs.keys()
    assert any(name.startswith("optimiser.") for name in mine)
    assert not [name for name, value in mine.items() if not torch.equal(value, theirs[name])]
    mine, theirs = (tensors(config.run.out / "denoiser.safetensors") for config in (stopped, whole))
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_sigterm_to_the_whole_process_group_keeps_the_step(tmp_path, quick, monkeypatch):
    config = in_run(tiny(tmp_path / "run"), workers=1)
    advance = Loop._advance

    def advance_and_stop(loop: Loop, batch: Any) -> None:
        workers = multiprocessing.active_children()
        assert workers
        for worker in workers:  # the workers too, as schedulers do
            subprocess.run(
                ["kill", "-TERM", str(worker.pid)], check=True
            )  # by another process: torch allows it from the parent
        signal.raise_signal(signal.SIGTERM)
        time.sleep(1)  # time for the signal to take effect
        advance(loop, batch)

    monkeypatch.setattr(Loop, "_advance", advance_and_stop)
    written = train(config, progress=False)
    assert written == checkpoint(config)  # no weights yet
    assert metadata(written)["step"] == "1"


def test_a_run_that_found_no_data_can_be_repeated(tmp_path, quick, monkeypatch):
    def nothing(*_: Any) -> None:
        raise InputError("expected heads 000-059, got none")

    with monkeypatch.context() as patch:
        patch.setattr(training, "load_sources", nothing)
        with pytest.raises(InputError, match="expected heads"):
            train(tiny(tmp_path / "run", steps=1), progress=False)
    train(tiny(tmp_path / "run", steps=1), progress=False)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match="expected a folder to write to"):
        train(tiny(blocked, steps=1), progress=False)


def test_weights_hold_their_recipe(tmp_path, quick):
    config = tiny(tmp_path / "run", steps=1)
    recipe = json.loads(metadata(train(config, progress=False))["recipe"])
    recipe["run"] |= {"data": config.run.data, "cache": config.run.cache, "out": config.run.out}
    assert DiffusionTrainConfig.model_validate(recipe) == config


def test_another_recipe_in_the_same_folder_is_refused(tmp_path, quick):
    config = tiny(tmp_path / "run", steps=1)
    train(config, progress=False)
    with pytest.raises(InputError, match="a run of another recipe"):
        train(tiny(tmp_path / "run", steps=1, rate=5e-4), progress=False)
    train(in_run(config, checkpoint_minutes=1.0), progress=False)  # what does not change the result is free


def test_a_checkpoint_of_another_network_is_refused(tmp_path, quick):
    config = tiny(tmp_path / "run", steps=1)
    train(config, progress=False)
    (config.run.out / "config.json").unlink()
    wider = config.model_copy(update={"network": config.network.model_copy(update={"width": 32})})
    with pytest.raises(InputError, match="checkpoint of another network"):
        train(wider, progress=False)


def test_other_seeds_train_other_weights(tmp_path, quick):
    first, second = tiny(tmp_path / "0", steps=1), in_run(tiny(tmp_path / "1", steps=1), seed=8)
    for config in (first, second):
        train(config, progress=False)
    mine, theirs = (tensors(checkpoint(config)) for config in (first, second))
    assert any(not torch.equal(value, theirs[name]) for name, value in mine.items())


def test_weights_are_written_where_they_are_the_best_so_far(tmp_path, quick, monkeypatch):
    config = in_run(tiny(tmp_path / "run", steps=3), validate_every=1)
    scores = iter([0.5, 0.4, 0.6])
    monkeypatch.setattr(training, "validate", lambda *_: SCORES | {"val_mean": next(scores)})
    weights = metadata(train(config, progress=False))
    assert (weights["step"], weights["val_mm"]) == ("2", "0.4000")


def test_sigterm_ends_the_process_again_after_a_run(tmp_path, quick):
    before = signal.getsignal(signal.SIGTERM)
    train(tiny(tmp_path / "run", steps=1), progress=False)
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_while_validating_keeps_the_step(tmp_path, quick, monkeypatch):
    config = in_run(tiny(tmp_path / "run"), validate_every=2)

    def validating(*_: Any) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return SCORES

    monkeypatch.setattr(training, "validate", validating)
    train(config, progress=False)
    assert checkpoint(config).exists()


# --- loss -----------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_network_that_outputs_zero_is_known(task):
    """D = c_skip (y + sigma n), so that lambda |D - y|^2 = |s n - sigma y / s|^2 / (s^2 + sigma^2), s = sigma_data."""
    levels = task.config.diffusion
    batch = default_collate([task.dataset[0], task.dataset[1]])
    loss, logged = task.losses(task.model.eval(), batch, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    sigma = log_normal_sigmas(2, levels.p_mean, levels.p_std, generator)
    sigma = sigma.clamp(levels.sigma_min, 2 * levels.sigma_max)[:, None]
    noise = normal_noise(batch["positions"].float(), batch["normals"].float(), levels, generator)
    target, valid, s = batch["target"].float(), batch["valid"].float(), levels.sigma_data
    expected = (s * noise - sigma * target / s).square() / (s**2 + sigma**2)
    assert 0.5 < valid.mean() < 1
    assert loss.item() == pytest.approx(((valid * expected).sum() / valid.sum()).item(), rel=1e-4)
    assert logged["loss"] is loss


def test_points_without_a_true_surface_do_not_count(task):
    batch = default_collate([task.dataset[0]])
    other = batch | {"target": torch.where(batch["valid"] > 0, batch["target"], 3.0)}
    mine, theirs = (
        task.losses(task.model.eval(), each, torch.Generator().manual_seed(0))[0] for each in (batch, other)
    )
    assert torch.equal(mine, theirs)
