"""The tool that breaks one line at a time: its verdicts on a package of two lines, and its list against the code."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
MODULE = "def area(width, height):\n    width = max(width, 0)\n    return width * height  # mm2\n"
TEST = "import shapes\n\n\ndef test_area():\n    assert shapes.area(2, 3) == 6\n"


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools" / "mutants.py"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "shapes.py").write_text(MODULE)
    (tmp_path / "test_shapes.py").write_text(TEST)
    return tmp_path


@pytest.fixture
def mutant(tool: dict[str, Any]) -> Callable[..., Any]:
    return lambda line, mutated, number=1: tool["Mutant"](number, "shapes.py", line, mutated, ("test_shapes.py",))


def test_a_mutant_is_killed_by_a_test_or_survives_and_no_file_changes(tool, project, mutant, capsys):
    killed = mutant("return width * height", "return width + height")
    survivor = mutant("width = max(width, 0)", "pass", number=2)
    first, second = tool["check_mutants"]([killed, survivor], project, 1)
    assert first.killed_by == "test_shapes.py::test_area"
    assert second.killed_by == ""
    assert (project / "shapes.py").read_text() == MODULE
    lines = capsys.readouterr().out.splitlines()
    assert "killed" in lines[0]
    assert "survived" in lines[1]
    assert "width = max(width, 0)  ->  pass" in lines[1]


def test_a_line_that_is_not_there_once_is_named(tool, mutant):
    for line, found in (("return width - height", 0), ("x = 1", 2)):
        with pytest.raises(tool["MutantError"], match=rf"mutant 7: expected one line in shapes.py .* found {found}"):
            tool["mutated_source"](mutant(line, "pass", number=7), MODULE + "x = 1\nx = 1\n")


def test_indentation_and_comment_stay(tool, mutant):
    changed = tool["mutated_source"](mutant("return width * height", "return 0"), MODULE)
    assert changed == MODULE.replace("return width * height", "return 0")


def test_tests_that_fail_without_a_mutant_say_nothing_about_it(tool, project, mutant):
    (project / "test_shapes.py").write_text(TEST.replace("== 6", "== 7"))
    with pytest.raises(tool["MutantError"], match="test_area fails without any mutant"):
        tool["check_mutants"]([mutant("return width * height", "return 0")], project, 1)


def test_the_list_follows_the_code(tool):
    mutants = tool["read_mutants"](tool["LIST"])
    assert len(mutants) == 40
    assert len({(mutant.file, mutant.line) for mutant in mutants}) == 40
    for mutant in mutants:
        source = (ROOT / mutant.file).read_text(encoding="utf-8")
        changed = ast.parse(tool["mutated_source"](mutant, source))
        assert ast.dump(changed) != ast.dump(ast.parse(source)), mutant
        assert all((ROOT / test).is_file() for test in mutant.tests), mutant
