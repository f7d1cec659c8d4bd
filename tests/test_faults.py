"""A disk that is full or read-only at any moment of a design: one line that names a file, and nothing half-written."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from faults import failing

from pcdiff import checks
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import write_volume
from pcdiff.pipeline import flow
from pcdiff.pipeline.settings import Settings

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def design(
    case: tuple[Volume, Volume], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Designs a case into `out`; what takes long, and writes nothing, is done once."""
    write_volume(case[0], tmp_path / "head.nrrd")
    once: dict[str, Any] = {}

    def kept(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: once[name] if name in once else once.setdefault(name, real(*args, **options))

    monkeypatch.setattr(flow, "design", kept("design", flow.design))
    monkeypatch.setattr(checks, "check_implant", kept("check", checks.check_implant))
    monkeypatch.setattr(Settings, "load", cache(Settings.load))
    monkeypatch.setattr(Settings, "read_head", kept("head", Settings.read_head))
    options = ("--method", "prior", "--no-report", "--mesh", "ply,3mf", "--keep-points", "-q")
    return lambda *more: run("design", tmp_path / "head.nrrd", "-o", tmp_path / "out", *options, *more)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_new_case(number: int, design: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with failing(out, None, number) as disk:
        assert design()[0] == 0
    assert disk.changes > 40
    assert len([*(out / "head").iterdir()]) > 7
    for first in range(1, disk.changes + 1):
        other = tmp_path / "out" / str(first)
        with failing(other, first, number):
            code, printed, error = design("-o", other)
        assert (code, printed, error.count("\n")) == (3, "", 1), (first, error)
        assert f"{other}/" in error, (first, error)
        assert f": {os.strerror(number)}; free space, or write elsewhere" in error, (first, error)
        assert not re.search("[0-9a-f]{32}", error), (first, error)  # no name of a file that is gone
        assert not other.exists(), first


def test_an_earlier_case_stays(design: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    design("--seed", 1)
    with failing(out, None, errno.ENOSPC) as disk:
        design("--seed", 2, "--overwrite")
    before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    for first in range(1, disk.changes + 1, 5):
        with failing(out, first, errno.ENOSPC):
            code, _, error = design("--overwrite")
        assert (code, error.count("\n")) == (3, 1), (first, error)
        assert {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()} == before, first
    assert design("--overwrite")[0] == 0
