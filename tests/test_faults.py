"""A disk that is full or read-only at any moment of a design: one line that names a file, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from faults import failing
from pydantic import BaseModel

from pcdiff import checks
from pcdiff.cli.batch import Batch
from pcdiff.cohort import rows as cohort_rows
from pcdiff.data.craniotomy import simulate_craniotomy
from pcdiff.errors import error_line, exit_code
from pcdiff.evaluation import runner
from pcdiff.imaging.volumes import write_volume
from pcdiff.pipeline import flow
from pcdiff.pipeline.settings import Settings
from pcdiff.prior.model import ShapePrior
from pcdiff.training.recipes import RunConfig
from pcdiff.training.run_state import same_recipe, write_row

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc"),
    pytest.mark.timeout(300),
]
Design = Callable[..., tuple[int, str]]


@pytest.fixture
def design(
    prior: ShapePrior,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Design:
    """Designs a case as the command does: folder -> exit code and stderr.

    What takes long, and writes nothing, is done once.
    """
    healthy = prior.draw(np.random.default_rng(3), spacing=3.5)
    write_volume(simulate_craniotomy(healthy, "random_1", np.random.default_rng(0))[0], tmp_path / "head.nrrd")
    once: dict[str, Any] = {}

    def kept(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: once[name] if name in once else once.setdefault(name, real(*args, **options))

    monkeypatch.setattr(flow, "design", kept("design", flow.design))
    monkeypatch.setattr(checks, "check_implant", kept("check", checks.check_implant))
    monkeypatch.setattr(Settings, "load", cache(Settings.load))
    monkeypatch.setattr(Settings, "read_head", kept("head", Settings.read_head))

    def run(out: Path, seed: int = 0) -> tuple[int, str]:
        settings = Settings("prior", seed=seed, report=False, mesh="ply", keep_points=True)
        code = 0
        try:
            Batch(out, settings, overwrite=True, quiet=True).design([tmp_path / "head.nrrd"])
        except typer.Exit as ended:
            code = ended.exit_code
        return code, capfd.readouterr().err

    return run


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_new_case(number: int, design: Design, tmp_path: Path) -> None:
    """Every change fails once, until there are no more."""
    for first in count(1):
        out = tmp_path / str(first)
        with failing(out, first, number):
            code, error = design(out)
        if code == 0:
            break
        assert (code, error.count("\n")) == (3, 1), (first, error)
        assert f"{out}/" in error, (first, error)
        assert f": {os.strerror(number)}; free space, or write elsewhere" in error, (first, error)
        assert not re.search("[0-9a-f]{32}", error), (first, error)  # no name of a file that is gone
        assert not out.exists(), first
    assert first > 30
    assert len([*(out / "head").iterdir()]) > 6


def test_an_earlier_case_stays(design: Design, tmp_path: Path) -> None:
    out = tmp_path / "out"
    design(out, seed=1)
    before = content(out)
    assert len(before) > 6
    for first in count(1, 4):
        with failing(out, first, errno.ENOSPC):
            code, error = design(out)
        if code == 0:
            break
        assert (code, error.count("\n")) == (3, 1), (first, error)
        assert content(out) == before, first
    assert first > 30
    assert content(out) != before


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Recipe(BaseModel):
    """A recipe of one setting."""

    run: RunConfig


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_run_and_its_log(number: int, tmp_path: Path) -> None:
    """What a training writes at its start, and a row of its log, which is the old or the new one."""
    for first in count(1):
        run = RunConfig(data=tmp_path, cache=tmp_path, out=tmp_path / str(first))
        code, said = 0, str(run.out)
        with failing(run.out, first, number):
            try:
                same_recipe(run.out / "config.json", Recipe(run=run))
                write_row(run, {"step": 1})
                write_row(run, {"step": 2})
            except OSError as error:
                code, said = exit_code(error), error_line(error)
        assert str(run.out) in said, (first, said)
        log = run.out / "log.jsonl"
        rows = [json.loads(line)["step"] for line in log.read_text().splitlines()] if log.exists() else []
        assert rows in ([], [1], [1, 2])
        if code == 0:
            break
        assert code == 3, first
        assert {path.name for path in run.out.rglob("*")} <= {"config.json", "log.jsonl"}, first
    assert first > 8
    assert rows == [1, 2]


@pytest.mark.parametrize("start", [cohort_rows.Journal, runner._open_journal])
def test_a_folder_cannot_be_made(start: Callable[[Path], object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with failing(tmp_path, 1, errno.ENOSPC), pytest.raises(OSError, match=re.escape(f"'{out}'")) as raised:
        start(out)
    assert exit_code(raised.value) == 3
