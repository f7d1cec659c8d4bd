"""The 3D Slicer module outside of Slicer: its command is valid, and its results and errors are passed on."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer

from pcdiff.cli.app import app

SOURCE = Path(__file__).parents[1] / "tools" / "slicer" / "PcdiffImplant" / "PcdiffImplant.py"


@pytest.fixture(scope="module")
def slicer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("PcdiffImplant", SOURCE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_is_valid(slicer: ModuleType, tmp_path: Path) -> None:
    program, name, *arguments = slicer.command("pcdiff", tmp_path / "scan.nrrd", tmp_path / "out", 3)
    assert (program, name) == ("pcdiff", "design")
    design = typer.main.get_command(app).commands["design"]  # type: ignore[attr-defined]
    context = design.make_context("design", arguments)
    assert context.params["ensemble"] == 3
    assert context.params["skulls"] == [tmp_path / "scan.nrrd"]


def test_the_record_or_the_error_is_returned(slicer: ModuleType, tmp_path: Path) -> None:
    program = tmp_path / "pcdiff"
    record = {"implant_ml": 45.5}
    folder = tmp_path / "out" / "scan"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record))
    program.write_text(f"#!{sys.executable}\n")
    program.chmod(0o755)
    found = slicer.design(str(program), tmp_path / "scan.nrrd", tmp_path / "out")
    assert found == record | {"folder": folder}
    program.write_text(f"#!{sys.executable}\nraise SystemExit('pcdiff: scan.nrrd: no defect found')\n")
    with pytest.raises(RuntimeError, match=r"pcdiff: scan\.nrrd: no defect found"):
        slicer.design(str(program), tmp_path / "scan.nrrd", tmp_path / "out")
