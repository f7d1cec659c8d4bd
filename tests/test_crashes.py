"""`kill -9` at any moment leaves no half-written file, and the same command then ends as if nothing had happened.

`make crashes` kills each command a hundred times.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from crashing import KILLS, Act, changes_of, check_whole, content, kill_often, run_killed
from test_augment import CONFIG, quickly, write_cache
from test_evaluate import PROGRAM, write_boxes
from test_train import SCORES, STEPS, files, in_run, tiny

from pcdiff.cli import app
from pcdiff.cohort.runner import Cohort
from pcdiff.data.cases import find_cases
from pcdiff.data.craniotomy import simulate_craniotomy
from pcdiff.evaluation import runner
from pcdiff.geometry.occupancy import head_occupancy
from pcdiff.imaging.volumes import write_volume
from pcdiff.pipeline.settings import Settings
from pcdiff.prior.model import ShapePrior
from pcdiff.training.augmentation import cases
from pcdiff.training.surface import train as training

__all__ = ["files"]  # a fixture
pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL"),
    pytest.mark.timeout(7200 if KILLS else 1200),
]


@pytest.fixture(scope="module")
def head(prior: ShapePrior, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coarse head with a defect."""
    healthy = prior.draw(np.random.default_rng(3), spacing=3.0)
    path = tmp_path_factory.mktemp("heads") / "head.nrrd"
    write_volume(simulate_craniotomy(healthy, "random_1", np.random.default_rng(0))[0], path)
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_boxes(tmp_path / "set")


def command(arguments: list[str], out: Path) -> None:
    """A command of pcdiff that succeeds."""
    with pytest.raises(SystemExit) as ended:
        app.main([*arguments, "-o", str(out), "-q"])
    assert not ended.value.code


@contextmanager
def threads(workers: int, threads: int, mb_each: int, gpus: object) -> Iterator[object]:
    """A cluster within this process, which starts quickly and ends with it."""
    from distributed import Client

    with Client(
        processes=False, n_workers=workers, threads_per_worker=1, dashboard_address=None, resources={"MB": mb_each}
    ) as client:
        yield client


def cohort(head: Path, out: Path) -> None:
    with nullcontext() if KILLS else mock.patch("pcdiff.cohort.runner.local_cluster", threads):
        Cohort(out, Settings("prior", report=False), workers=1).run({head: None, head.with_name("gone.nrrd"): None})


def augment(cache: Path, out: Path) -> None:
    with quickly():
        cases.augment(cache, out, 2, CONFIG, progress=False)


def evaluate(data: Path, program: list[str], out: Path) -> None:
    runner.evaluate(["shifted"], find_cases(data), out, 0, program, progress=False, weights={"shifted": {}})


def train(files: list[Path], out: Path) -> None:
    """A run that saves its checkpoint after each step."""
    config = in_run(tiny(out), checkpoint_minutes=1e-9, validate_every=2)
    replaced = {
        "load_sources": lambda *_: (None, files),
        "store_cases": lambda *_: {"own": files[:1]},
        "store_pairs": lambda cache, cases, *_: cases,
        "validate": lambda *_: SCORES,
    }
    with mock.patch.multiple(training, **replaced):
        training.train(config, progress=False)


def check(act: Act, tmp_path: Path, least: int, times: int, seed: int) -> None:
    """least: changes of the folder that an undisturbed run makes at least."""
    whole = tmp_path / "whole"
    assert not run_killed(act, whole, 0)
    check_whole(whole)
    assert changes_of(whole) >= least
    last = kill_often(act, tmp_path / "killed", changes_of(whole), times, seed)
    assert content(last) == content(whole)


def test_design(head: Path, tmp_path: Path) -> None:
    check(partial(command, ["design", str(head), "--method", "prior", "--no-report"]), tmp_path, 20, 3, 1)


def test_cohort(head: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="needs the extra cohort")
    check(partial(cohort, head), tmp_path, 10, 2, 2)


def test_prepare(dataset: Path, tmp_path: Path) -> None:
    check(partial(command, ["prepare", str(dataset)]), tmp_path, 9, 4, 3)


def test_augment(prior: ShapePrior, tmp_path: Path) -> None:
    heads = [head_occupancy(prior.draw(np.random.default_rng(k), spacing=2.0), f"{k:03d}") for k in range(3)]
    check(partial(augment, write_cache(heads, tmp_path / "cache")), tmp_path, 20, 3, 54)


def test_score(dataset: Path, tmp_path: Path) -> None:
    arguments = ["score", str(dataset / "implant"), "--truth", str(dataset), "--overwrite"]
    check(partial(command, arguments), tmp_path, 4, 4, 7)


def test_train(files: list[Path], tmp_path: Path) -> None:
    check(partial(train, files), tmp_path, 2 * STEPS, 4, 4)


def test_evaluate(dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.format(log=str(tmp_path / "calls"), members=""))
    program = [sys.executable, "-S", str(path), "{skull}", "{out}", "{method}", "{seed}"]
    check(partial(evaluate, dataset, program), tmp_path, 10, 4, 5)
