"""The documents: every command and option is in the reference, links lead to files, examples run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

import pcdiff
from pcdiff.cli.app import app
from pcdiff.geometry.metrics import dice

ROOT = Path(__file__).parents[1]
API = ROOT / "docs" / "api.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "tools" / "slicer" / "README.md"]


def test_every_command_and_option_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert re.search(rf"^## .*\b{name}\b", text, re.M), name
        for parameter in command.params:
            for option in (*parameter.opts, *parameter.secondary_opts):
                assert not option.startswith("--") or f"`{option}" in text or f" {option}" in text, f"{name} {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def sections() -> dict[str, str]:
    """The Python examples of docs/api.md by heading."""
    parts = re.split(r"^#+ (.*)\n", API.read_text(), flags=re.M)
    blocks = {
        name: re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    return {name: "\n".join(found) for name, found in blocks.items() if found}


def run_example(name: str, namespace: dict[str, Any]) -> dict[str, Any]:
    """Runs the examples of a section and returns their names."""
    source = sections()[name]
    names = dict(namespace)
    exec(compile(source, f"{API.name}: {name}", "exec"), names)  # our own document
    return names


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    """The names of the first section: a synthetic skull with a defect."""
    return run_example("Python interface", {"__name__": "example"})


def test_the_examples_are_all_run() -> None:
    assert [*sections()] == [
        "Python interface",
        "An implant without files",
        "Your own method",
        "Diffusion on your own data",
    ]


def test_an_implant_without_files(example: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    names = run_example("An implant without files", example)
    assert re.fullmatch(r"\d+\.\d ml, checks that failed: \[.*\]\n", capsys.readouterr().out)
    implant = names["result"].implant
    assert isinstance(implant, pcdiff.Volume)
    assert implant.mask.shape == example["mask"].shape
    assert dice(implant.mask, example["true_implant"].mask) > 0.8
    assert names["result"].mesh.is_watertight
    assert {check.name for check in names["report"].checks} >= {"complete", "implantable", "printable"}


def test_a_method_of_ones_own(example: dict[str, Any]) -> None:
    names = run_example("Your own method", example)
    implant = names["result"].implant
    assert not (implant.mask & example["mask"]).any()
    assert dice(implant.mask, example["true_implant"].mask) > 0.5
    assert isinstance(names["load"](names["WeightsFiles"](None, None)), names["Flip"])


def test_diffusion_on_ones_own_data(capsys: pytest.CaptureFixture[str]) -> None:
    names = run_example("Diffusion on your own data", {"__name__": "example"})
    assert names["points"].shape == (1, 2, 1000)
    radius = names["points"].norm(dim=1)
    assert radius.mean() == pytest.approx(1, abs=0.05)
    assert radius.std() < 0.15
    assert "radius" in capsys.readouterr().out


def test_pictures_are_small() -> None:
    pictures = [*(ROOT / "docs" / "pictures").glob("*")]
    assert pictures
    assert max(picture.stat().st_size for picture in pictures) < 300_000
