"""The doctor: what it lists, what counts as a problem, and the measurement of the built-in case."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import pcdiff
from pcdiff.cli import app as cli
from pcdiff.cli import doctor
from pcdiff.cli.console import available_device
from pcdiff.errors import InputError
from pcdiff.files import sha256
from pcdiff.methods.ensemble import read_ensemble
from pcdiff.methods.registry import METHODS, load_method, weights_files

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requirements of the distribution as its metadata has them; a test may change them."""
    extras = PROJECT["optional-dependencies"].items()
    lines = [*PROJECT["dependencies"], *(f"{text}; extra == '{extra}'" for extra, texts in extras for text in texts)]
    monkeypatch.setattr(metadata, "requires", lambda name: lines if name == pcdiff.DISTRIBUTION else None)
    return lines


def test_what_it_lists(installed: list[str]) -> None:
    found = {finding.name: finding for finding in doctor.examine()}
    assert not [finding for finding in found.values() if finding.good is False]
    weights = Path(pcdiff.__file__).parent / "weights" / "prior.safetensors"
    assert sha256(weights)[:16] in found["prior.safetensors"].words
    assert "cores" in found["cpu"].words
    assert "15 s" in found["a case"].words
    assert {re.split("[<>=]", text)[0] for text in PROJECT["dependencies"]} <= found.keys()
    assert {f"method {name}" for name in METHODS} <= found.keys()
    assert {
        path.name for name, entry in METHODS.items() if not entry.required for path in weights_files(name)
    } <= found.keys()
    assert {"cuda", "display", "extra open3d"} <= found.keys()
    assert found["method paper"].good is None
    assert METHODS["paper"].required in found["method paper"].words


def test_changed_weights_are_a_problem(installed: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    damaged = bytearray((Path(pcdiff.__file__).parent / "weights" / "denoiser.safetensors").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "denoiser.safetensors").write_bytes(damaged)
    for path in (Path(pcdiff.__file__).parent / "weights").iterdir():
        if path.name != "denoiser.safetensors":
            (tmp_path / "weights" / path.name).symlink_to(path)
    monkeypatch.setattr("pcdiff.files.resources.files", lambda name: tmp_path)
    found = {finding.name: finding for finding in doctor.examine()}
    assert found["denoiser.safetensors"].good is False
    assert "changed: sha256" in found["denoiser.safetensors"].words
    assert [name for name, finding in found.items() if finding.good is False] == ["denoiser.safetensors"]
    assert "as shipped" in found["unet.safetensors"].words
    with pytest.raises(InputError, match="expected the file as it was shipped"):
        load_method("diffusion")


def test_a_changed_ensemble_and_a_damaged_list_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    for path in (Path(pcdiff.__file__).parent / "weights").iterdir():
        (weights / path.name).write_bytes(path.read_bytes() if path.suffix != ".safetensors" else b"")
    monkeypatch.setattr("pcdiff.files.resources.files", lambda name: tmp_path)
    assert read_ensemble(weights / "ensemble.yaml").members
    (weights / "ensemble.yaml").write_text("members: {unet: 5.0}")
    with pytest.raises(InputError, match="expected the file as it was shipped"):
        read_ensemble(weights / "ensemble.yaml")
    (weights / "SHA256SUMS").write_text("no list of checksums")
    with pytest.raises(InputError, match="expected the checksums of the shipped weights"):
        read_ensemble(weights / "ensemble.yaml")


def test_every_extra_has_a_purpose(installed: list[str]) -> None:
    assert doctor.requirements().keys() == {"", "dev", "docs", *doctor.PURPOSES}
    assert doctor.requirements()["dicom"] == ["highdicom"]


def test_a_missing_dependency_is_a_problem(installed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    installed[:] = ["numpy>=1.26", "no-such-package>=1", "no-such-extra; extra == 'open3d'"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["doctor"])
    printed = capsys.readouterr()
    assert stopped.value.code == 1
    assert "1 problem, marked BAD above" in printed.err
    assert "BAD no-such-package" in printed.out
    assert "pip install no-such-package" in printed.out
    assert "    extra open3d" in printed.out
    assert "without no-such-extra; for a window for" in printed.out
    assert "pip install 'pcdiff-cranial[open3d]' (in a clone: pip install '.[open3d]')" in printed.out


def test_a_folder_that_is_not_installed_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    found = {finding.name: finding for finding in doctor.examine()}
    assert found["pcdiff-cranial"].good is False
    assert "pip install pcdiff-cranial (in a clone: pip install .)" in found["pcdiff-cranial"].words


@pytest.mark.parametrize(("dsc", "good"), [(0.97, True), (0.5, False)])
def test_the_built_in_case_is_measured(monkeypatch: pytest.MonkeyPatch, dsc: float, good: bool) -> None:
    record = {"scores": {"dsc": dsc}, "seconds": {"total": 7.0}, "peak_memory_mb": 812}
    monkeypatch.setattr("pcdiff.pipeline.demo.demo", lambda folder, settings: record)
    *_, last = doctor.examine(try_it=True)
    assert last.good is good
    assert "designed in 7 s" in last.words
    assert "812 MB" in last.words


def test_auto_is_a_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcdiff.cli.console.may_have_gpu", lambda: True)
    monkeypatch.setattr("torch.empty", lambda *_, device: None)
    assert available_device("auto") == "cuda"

    def broken(*_: object, device: str) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr("torch.empty", broken)
    assert available_device("auto") == "cpu"
    monkeypatch.setattr("torch.empty", lambda *_, device: None)
    monkeypatch.setattr("pcdiff.cli.console.may_have_gpu", lambda: False)
    assert available_device("auto") == "cpu"
    with pytest.raises(InputError, match="cuda:N or auto"):
        available_device("abacus")
