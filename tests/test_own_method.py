"""docs/own_method.md: its file, its line and its recipe, from heads to an implant."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from pcdiff.errors import InputError
from pcdiff.geometry.metrics import dice
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume, write_volume
from pcdiff.prior.model import ShapePrior
from pcdiff.training.recipes import load_config

PAGE = (Path(__file__).parents[1] / "docs" / "own_method.md").read_text()


def block(language: str) -> str:
    """The page's only example in a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)
    return str(found)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, and the page's package as pip would leave it."""
    site = tmp_path / "site"
    (site / "shell-1.0.dist-info").mkdir(parents=True)
    (site / "shell.py").write_text(block("python"))
    (site / "shell-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: shell\nVersion: 1.0\n")
    line = block("toml").replace('[project.entry-points."pcdiff.methods"]', "[pcdiff.methods]").replace('"', "")
    (site / "shell-1.0.dist-info" / "entry_points.txt").write_text(line)
    monkeypatch.delitem(sys.modules, "shell", raising=False)
    monkeypatch.syspath_prepend(site)
    paths = [str(site), str(Path(import_module("pcdiff").__file__ or "").parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
    (tmp_path / "shell.yaml").write_text(block("yaml"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_s_commands(
    installed: Path, run: Callable[..., tuple[int, str, str]], prior: ShapePrior, case: tuple[Volume, Volume]
) -> None:
    heads = installed / "data" / "skullfix" / "complete_skull"
    heads.mkdir(parents=True)
    for name in ("000", "059"):
        write_volume(prior.draw(np.random.default_rng(int(name)), spacing=1.6), heads / f"{name}.nrrd")
    write_volume(case[0], installed / "skull.nrrd")
    for line in block("sh").splitlines():
        name, *arguments = line.split()
        assert name == "pcdiff"
        code, _, errors = run(*arguments)
        assert code == 0, errors
    implant = read_volume(installed / "out" / "skull" / "implant.nrrd")
    assert dice(implant.mask, case[1].mask) > 0.75


def test_a_method_without_recipes_cannot_be_trained(installed: Path) -> None:
    (installed / "site" / "shell.py").write_text("load = print\n")
    with pytest.raises(InputError, match="got shell: shell has no class Recipe"):
        load_config(installed / "shell.yaml")
