"""The notebooks of docs/notebooks: their code runs in order, and no output is kept in the repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_BYTES = 20_000


def cells_of(notebook: Path) -> list[dict[str, Any]]:
    """The cells that have code."""
    cells: list[dict[str, Any]] = json.loads(notebook.read_text("utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def run(notebook: Path) -> dict[str, Any]:
    """Runs the code of a notebook in order and returns its names; what a cell raises names the cell."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells_of(notebook), 1):
        exec(compile("".join(cell["source"]), f"{notebook.name}, code cell {number}", "exec"), names)  # our own
    return names


def test_there_are_two() -> None:
    assert [notebook.stem for notebook in NOTEBOOKS] == ["compare_methods", "design_and_look"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_no_output_is_kept(notebook: Path) -> None:
    assert notebook.stat().st_size < MAX_BYTES
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells_of(notebook))
    assert json.loads(notebook.read_text("utf-8"))["metadata"].keys() == {"kernelspec", "language_info"}


@pytest.mark.timeout(300)
def test_design_and_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names = run(FOLDER / "design_and_look.ipynb")
    assert names["found"].dsc > 0.8
    printed = capsys.readouterr().out
    assert all(check.title in printed for check in names["report"].checks)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.timeout(300)  # six designs, each in a process of its own
def test_compare_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names = run(FOLDER / "compare_methods.ipynb")
    assert {row.error for row in names["results"].rows} == {None}
    assert set(names["found"].methods) == {"prior", "mirror"}
    printed = capsys.readouterr().out
    assert "3 cases of 3 heads" in printed
    assert "row minus column (p)" in printed
    assert (tmp_path / "out" / "compare_methods" / "comparison.html").is_file()
