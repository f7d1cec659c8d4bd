"""Training of the anchored denoiser: order and rate, whole runs, validation, losses against closed forms."""

from __future__ import annotations

import json
import math
import multiprocessing
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import default_collate

from pcdiff.data.cases import LoadedCase
from pcdiff.errors import InputError
from pcdiff.geometry.volume import Volume
from pcdiff.methods.anchored.condition import ANCHORS
from pcdiff.methods.anchored.method import DiffusionMethod
from pcdiff.methods.anchored.network import AnchoredDenoiser
from pcdiff.prior.folds import Population, cached_prior
from pcdiff.prior.model import ShapePrior
from pcdiff.training.anchored import pools, validation
from pcdiff.training.anchored import train as training
from pcdiff.training.anchored.pools import load_pairs
from pcdiff.training.anchored.step import KNEE, TrainingStep
from pcdiff.training.anchored.train import batches, rate_at, train
from pcdiff.training.anchored.validation import validate
from pcdiff.training.loop import Loop
from pcdiff.training.recipes import TrainConfig

STEPS = 6


# --- order and rate -------------------------------------------------------------------------------------------------


def tiny(out: Path, cache: Path, data: Path, **optimiser: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "run": {
                "data": data,
                "cache": cache,
                "out": out,
                "cases": "000-003",
                "validation": "004-005",
                "validate_cases": 0,
                "workers": 0,
                "seed": 3,
            },
            "pairs": {"pool": 4, "kinds": {"random_1": 1.0}, "folds": 2, "mix": 0.0, "deform": 0.0},
            "network": {"width": 16, "grid": 8, "step_grid": 4, "blocks": 1, "heads": 2, "dropout": 0.2},
            "diffusion": {"steps": 2},
            "optimiser": {"steps": STEPS, "batch": 2, "noises": 2, "warmup": 2, **optimiser},
        }
    )


def test_every_pass_takes_every_pair_once():
    config = tiny(Path("o"), Path("c"), Path("d"), steps=12, batch=2)
    indices = np.array(list(batches(config, 0, 0, 1))).ravel()
    passes = indices.reshape(-1, 4)
    assert all(sorted(each) == [0, 1, 2, 3] for each in passes.tolist())
    assert len({tuple(each) for each in passes.tolist()}) > 1  # in an order of its own


@pytest.mark.parametrize("batch", [2, 3])  # 3: a batch may lie across two passes
def test_the_order_continues_after_a_stop(batch):
    config = tiny(Path("o"), Path("c"), Path("d"), steps=15, batch=batch)
    whole = list(batches(config, 0, 0, 1))
    assert len(whole) == 15
    assert all(len(each) == batch for each in whole)
    for start in (1, 7, 14, 15):
        assert list(batches(config, start, 0, 1)) == whole[start:]


def test_ranks_share_the_work():
    config = tiny(Path("o"), Path("c"), Path("d"), steps=5, batch=2)
    config = config.model_copy(update={"pairs": config.pairs.model_copy(update={"pool": 40})})
    ranks = [list(batches(config, 0, rank, 3)) for rank in range(3)]
    seen = np.array(ranks).ravel()
    assert len(set(seen.tolist())) == len(seen) == 30  # within a pass nothing is met twice
    alone = np.array(list(batches(config, 0, 0, 1)))
    assert np.array_equal(np.array(ranks)[:, 0].ravel(), alone[:3].ravel())  # three ranks' step is three steps


def test_the_rate_rises_then_falls():
    config = tiny(Path("o"), Path("c"), Path("d"), steps=100, warmup=10, rate=2e-3)
    rates = [rate_at(config, step) for step in range(101)]
    assert rates[0] == pytest.approx(2e-4)
    assert rates[9] == pytest.approx(2e-3)
    assert rates[10] == pytest.approx(2e-3)
    assert rates[55] == pytest.approx(2e-3 * 0.505)
    assert rates[100] == pytest.approx(2e-5)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rate_at(tiny(Path("o"), Path("c"), Path("d"), warmup=0), 0) == pytest.approx(1e-3)


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Data set of six names and a cache that all runs share."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "data" / "complete_skull").mkdir(parents=True)
    for number in range(6):
        (folder / "data" / "complete_skull" / f"{number:03d}.nrrd").touch()
    (folder / "cache").mkdir()
    return folder / "cache", folder / "data"


@pytest.fixture(autouse=True)
def quick(monkeypatch, population) -> Iterator[None]:
    """Heads without volumes, validation without its 64 pairs, and no signal handler left behind."""

    def load(cache: Path, names: list[str], workers: int = 1, prior: ShapePrior | None = None) -> Population:
        rows = [population.names.index(name) for name in names]
        return Population(tuple(names), population.outer[rows], population.thickness[rows], population.present[rows])

    monkeypatch.setattr(pools, "load_population", load)
    monkeypatch.setattr(training, "validate", lambda *_: {"val_mm": 0.5, "val_mm_prior": 0.6})
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run_whole(folder: Path, folders: tuple[Path, Path], **optimiser: Any) -> TrainConfig:
    config = tiny(folder / "whole", *folders, **optimiser)
    train(config, progress=False)
    return config


def tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def rows(config: TrainConfig) -> list[dict[str, float]]:
    return [json.loads(line) for line in (config.run.out / "log.jsonl").read_text().splitlines()]


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """SIGTERM reaches the run within its step number `steps`."""
    advance = Loop._advance

    def advance_and_stop(loop: Loop, batch: Any) -> None:
        advance(loop, batch)
        if loop.state.step == steps:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Loop, "_advance", advance_and_stop)


def test_a_run_writes_the_documented_files(tmp_path, folders, population, condition_of_a_pair):
    config = run_whole(tmp_path, folders)
    out = config.run.out
    written = {path.name for path in out.iterdir()}
    assert written == {
        "config.json",
        "log.jsonl",
        "checkpoint.safetensors",
        "prior.safetensors",
        "denoiser.safetensors",
    }
    log = rows(config)
    assert [row["step"] for row in log] == [STEPS, STEPS]
    assert math.isfinite(log[0]["loss"])
    assert log[0]["rate"] == rate_at(config, STEPS)
    assert log[1]["val_mm"] == 0.5
    method = DiffusionMethod.load(out / "denoiser.safetensors", ShapePrior.load(out / "prior.safetensors"))
    assert method.prior.heads == 4
    assert method.diffusion == config.diffusion
    first, again = (method.sample(condition_of_a_pair, 3, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first.x0, again.x0)
    assert first.x0.isfinite().all()
    assert first.x0.shape == (3, 2 * ANCHORS)
    # a finished run that is started again does nothing
    before = tensors(out / "checkpoint.safetensors")
    assert train(config, progress=False) == out / "denoiser.safetensors"
    assert all(torch.equal(before[name], value) for name, value in tensors(out / "checkpoint.safetensors").items())
    assert len(rows(config)) == 2


@pytest.fixture
def condition_of_a_pair(folders, tmp_path) -> Any:
    pairs, _, _ = load_pairs(tiny(tmp_path / "none", *folders))
    return pairs.make(0).condition


def test_a_stopped_run_ends_as_one_that_was_not(tmp_path, folders, monkeypatch):
    config = run_whole(tmp_path, folders)
    stopped = tiny(tmp_path / "stopped", *folders)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        train(stopped, progress=False)
    with safe_open(stopped.run.out / "checkpoint.safetensors", "pt") as file:
        assert file.metadata()["step"] == "3"
    assert [row["step"] for row in rows(stopped)] == [3]
    train(stopped, progress=False)
    mine, theirs = (tensors(c.run.out / "checkpoint.safetensors") for c in (stopped, config))
    assert mine.keys() == theirs.keys()
    assert any(name.startswith("optimiser.") for name in mine)
    different = [name for name, value in mine.items() if not torch.equal(value, theirs[name])]
    assert not different
    mine, theirs = (tensors(c.run.out / "denoiser.safetensors") for c in (stopped, config))
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_sigterm_to_the_whole_process_group_keeps_the_step(tmp_path, folders, monkeypatch):
    config = tiny(tmp_path / "run", *folders)
    config = config.model_copy(update={"run": config.run.model_copy(update={"workers": 1})})
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
    assert written == config.run.out / "checkpoint.safetensors"  # no weights yet
    with safe_open(written, "pt") as file:
        assert file.metadata()["step"] == "1"


def test_a_run_that_found_no_data_can_be_repeated(tmp_path, folders):
    cache, data = folders
    wrong = tiny(tmp_path / "run", cache, tmp_path / "nowhere", steps=1)
    with pytest.raises(InputError, match="no such folder"):
        train(wrong, progress=False)
    train(tiny(tmp_path / "run", cache, data, steps=1), progress=False)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match="expected a folder to write to"):
        train(tiny(blocked, cache, data, steps=1), progress=False)


def test_weights_hold_their_whole_recipe(tmp_path, folders):
    config = tiny(tmp_path / "run", *folders, steps=1)
    train(config, progress=False)
    with safe_open(config.run.out / "denoiser.safetensors", "pt") as file:
        assert TrainConfig.model_validate_json(file.metadata()["recipe"]) == config


def test_validation_runs_the_whole_pipeline(tmp_path, folders, monkeypatch):
    config = tiny(tmp_path / "run", *folders)
    config = config.model_copy(update={"run": config.run.model_copy(update={"validate_cases": 1})})
    truth = np.zeros((20, 20, 20), bool)
    truth[5:10, 5:10, 5:10] = True
    bone, implant = Volume(~truth, np.eye(4)), Volume(truth, np.eye(4))
    shifted = implant.with_mask(np.roll(truth, 1, 0))
    designed = []

    def made(skull: Volume, method: object, device: str) -> Any:
        designed.append((skull, method))
        return SimpleNamespace(implant=shifted)

    pairs, _, prior = load_pairs(config)
    untrained = DiffusionMethod(prior, AnchoredDenoiser(config.network).eval(), config.diffusion)
    case = SimpleNamespace(load=lambda: LoadedCase("004", bone, implant))
    monkeypatch.setattr(validation, "find_cases", lambda *_: [case, case])
    monkeypatch.setattr(validation, "design", made)
    found = validate(config.run, untrained, replace(pairs, config=pairs.config.model_copy(update={"pool": 1})))
    assert [(skull is bone, method is untrained) for skull, method in designed] == [(True, True)]
    assert found["val_dsc"] == pytest.approx(0.8)
    assert found["val_hd95"] == pytest.approx(1.0)
    assert "val_bdsc" in found


def test_another_recipe_in_the_same_folder_is_refused(tmp_path, folders):
    config = tiny(tmp_path / "run", *folders, steps=1)
    train(config, progress=False)
    with pytest.raises(InputError, match="a run of another recipe"):
        train(tiny(tmp_path / "run", *folders, steps=1, rate=5e-4), progress=False)
    run = config.run.model_copy(update={"checkpoint_minutes": 1.0})  # settings that do not change the result are free
    train(config.model_copy(update={"run": run}), progress=False)


def test_a_checkpoint_of_another_network_is_refused(tmp_path, folders):
    config = tiny(tmp_path / "run", *folders, steps=1)
    train(config, progress=False)
    (config.run.out / "config.json").unlink()
    wider = config.model_copy(update={"network": config.network.model_copy(update={"width": 32})})
    with pytest.raises(InputError, match="checkpoint of another network"):
        train(wider, progress=False)


def test_other_seeds_train_other_weights(tmp_path, folders):
    first, second = (tiny(tmp_path / str(seed), *folders, steps=1) for seed in (0, 1))
    second = second.model_copy(update={"run": second.run.model_copy(update={"seed": 8})})
    for config in (first, second):
        train(config, progress=False)
    mine, theirs = (tensors(c.run.out / "checkpoint.safetensors") for c in (first, second))
    assert any(not torch.equal(value, theirs[name]) for name, value in mine.items())


def test_sigterm_ends_the_process_again_after_a_run(tmp_path, folders):
    before = signal.getsignal(signal.SIGTERM)
    train(tiny(tmp_path / "run", *folders, steps=1), progress=False)
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_while_validating_keeps_the_step(tmp_path, folders, monkeypatch):
    config = tiny(tmp_path / "run", *folders)
    config = config.model_copy(update={"run": config.run.model_copy(update={"validate_every": 2})})

    def validating(*_: Any) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return {"val_mm": 0.5, "val_mm_prior": 0.6}

    monkeypatch.setattr(training, "validate", validating)
    train(config, progress=False)
    assert (config.run.out / "checkpoint.safetensors").exists()


# --- pairs and loss -------------------------------------------------------------------------------------------------


def test_training_and_validation_heads_are_separate(tmp_path, folders):
    pairs, held_out, prior = load_pairs(tiny(tmp_path / "run", *folders))
    assert pairs.population.names == ("000", "001", "002", "003")
    assert held_out.population.names == ("004", "005")
    assert prior.heads == 4
    assert [p.heads for p in pairs.priors] == [2, 2]
    assert sorted(pairs.fold) == [0, 0, 1, 1]
    assert held_out.priors[0].digest == prior.digest
    assert len(held_out) == 64
    assert held_out.config.mix == held_out.config.deform == 0


def test_heads_prepared_anew_get_new_priors_and_pairs(tmp_path, folders, population):
    other = replace(population, outer=population.outer + 3)
    every = np.ones(len(population.names), bool)
    first, second = (cached_prior(tmp_path, people, every) for people in (population, other))
    assert not np.array_equal(first.mean, second.mean)
    pairs = load_pairs(tiny(tmp_path / "run", *folders))[0]
    stores = [pools.with_store(tmp_path, replace(pairs, population=people)).store for people in (population, other)]
    assert stores[0] != stores[1]


def test_pairs_of_other_folds_are_stored_elsewhere(tmp_path, folders):
    config = tiny(tmp_path / "run", *folders)
    same = config.model_copy(update={"run": config.run.model_copy(update={"same": (("000", "001"),)})})
    first, second = (load_pairs(c)[0] for c in (config, same))
    assert not np.array_equal(first.fold, second.fold)
    assert first.store != second.store


def test_validation_compares_network_and_prior_on_the_same_pairs(tmp_path, folders):
    config = tiny(tmp_path / "run", *folders)
    pairs, _, prior = load_pairs(config)
    few = replace(pairs, config=pairs.config.model_copy(update={"pool": 2}))
    torch.manual_seed(0)
    untrained = DiffusionMethod(prior, AnchoredDenoiser(config.network).eval(), config.diffusion)
    found = validate(config.run, untrained, few)
    assert found["val_mm"] == pytest.approx(found["val_mm_prior"])  # its output is the prior
    # in half precision, in which pairs are stored, the mean itself would be rounded
    wide = [{name: value.astype(float) for name, value in few[k].items()} for k in range(2)]
    error = [np.abs(pair["target"] * pair["prior_std_mm"])[pair["valid"] > 0].mean() for pair in wide]
    assert found["val_mm_prior"] == pytest.approx(np.mean(error), rel=1e-5)
    assert found.keys() == {"val_mm", "val_mm_prior"}  # without cases no volumes


def test_the_loss_of_a_network_that_outputs_zero_is_known(tmp_path, folders):
    config = tiny(tmp_path / "run", *folders)
    pairs, _, _ = load_pairs(config)
    batch = {name: value.float() for name, value in default_collate([pairs[0], pairs[1]]).items()}
    model = TrainingStep(config).eval()
    generator = torch.Generator().manual_seed(0)
    sigma = torch.tensor([0.3, 1.0, 2.0, 4.0])
    noise = torch.randn(4, 2 * ANCHORS, generator=generator)
    loss, guide, cosine = model(batch, sigma, noise)
    target, valid, unit = (batch[name].repeat_interleave(2, 0) for name in ("target", "valid", "prior_std_mm"))
    # D = (y + sigma n) / (1 + sigma^2), so that lambda |D - y|^2 = |n - sigma y|^2 / (1 + sigma^2)
    level = sigma[:, None]
    weight = valid * unit
    expected = (weight * (noise - level * target).square() / (1 + level**2)).sum() / weight.sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    turn = (batch["normals"] * batch["true_normals"]).sum(-1)
    millimetres = target[::2] * unit[::2]  # the guide's error while its mean is zero
    wide = 2 * KNEE**2 * ((1 + (millimetres / KNEE) ** 2).sqrt() - 1)
    assert guide.item() == pytest.approx((valid[::2] * wide).mean().item(), rel=1e-4)
    assert cosine.item() == pytest.approx(((1 - turn) * batch["valid"]).mean().item(), abs=1e-5)


def test_the_guide_learns_from_pairs_that_the_denoiser_does_not_encode(tmp_path, folders):
    config = tiny(tmp_path / "run", *folders, encoded=2, batch=3)
    pairs, _, _ = load_pairs(config)
    batch = {name: value.float() for name, value in default_collate([pairs[k] for k in range(3)]).items()}
    model = TrainingStep(config).eval()
    sigma, noise = torch.full((4,), 1.0), torch.randn(4, 2 * ANCHORS, generator=torch.Generator().manual_seed(0))
    losses = model(batch, sigma, noise)
    for changed, same in ((2, (0, 2)), (1, ())):
        other = {name: value.clone() for name, value in batch.items()}
        other["target"][changed] += 1
        other["true_normals"][changed] *= -1
        differ = [k for k in range(3) if not torch.equal(model(other, sigma, noise)[k], losses[k])]
        assert differ == [k for k in range(3) if k not in same]
