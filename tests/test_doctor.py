"""The doctor: what is there is told, what is missing is bad, and trying a case tells how long it took."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import pcdiff
from pcdiff.cli import app as cli
from pcdiff.cli import doctor
from pcdiff.cli.console import device_that_is_there
from pcdiff.errors import InputError
from pcdiff.files import sha256


def test_what_is_there_is_told() -> None:
    found = {finding.name: finding for finding in doctor.examine()}
    assert not [finding for finding in found.values() if finding.good is False]
    weights = Path(pcdiff.__file__).parent / "weights" / "prior.safetensors"
    assert sha256(weights)[:16] in found["prior.safetensors"].words
    assert "cores" in found["cpu"].words
    assert "13 s" in found["a case"].words
    assert {"numpy", "plotly", "open3d", "highdicom", "cuda", "display"} <= found.keys()


def test_every_package_that_pcdiff_needs_is_looked_for() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert {re.split("[<>=]", text)[0] for text in project["dependencies"]} == set(doctor.NEEDED)
    for extra, (name, _) in doctor.EXTRAS.items():
        assert any(text.startswith(f"{name}>") for text in project["optional-dependencies"][extra])


def test_what_is_missing_is_bad(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "NEEDED", ("numpy", "no-such-package"))
    monkeypatch.setattr(doctor, "EXTRAS", {"open3d": ("no-such-extra", "a window")})
    with pytest.raises(SystemExit) as stopped:
        cli.main(["doctor"])
    said = capsys.readouterr()
    assert stopped.value.code == 1
    assert "1 thing to mend" in said.err
    assert "BAD no-such-package" in said.out
    assert "pip install no-such-package" in said.out
    assert "    no-such-extra" in said.out
    assert "pip install 'pcdiff[open3d]' for a window" in said.out


@pytest.mark.parametrize(("dsc", "good"), [(0.97, True), (0.5, False)])
def test_trying_a_case_measures_it(monkeypatch: pytest.MonkeyPatch, dsc: float, good: bool) -> None:
    record = {"scores": {"dsc": dsc}, "seconds": {"total": 7.0}, "peak_memory_mb": 812}
    monkeypatch.setattr("pcdiff.design.demo.demo", lambda folder, settings: record)
    *_, last = doctor.examine(try_it=True)
    assert last.good is good
    assert "designed in 7 s" in last.words
    assert "812 MB" in last.words


def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, name in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        assert device_that_is_there("auto") == name
    with pytest.raises(InputError, match="cuda:N or auto"):
        device_that_is_there("abacus")
