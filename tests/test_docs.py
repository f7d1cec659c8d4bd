"""The documents say what there is: every command and option, every file they point to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from pcdiff.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "tools" / "slicer" / "README.md"]


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


def test_pictures_are_small() -> None:
    pictures = [*(ROOT / "docs" / "pictures").glob("*")]
    assert pictures
    assert max(picture.stat().st_size for picture in pictures) < 300_000
