"""Figures and directions as text, and the limits from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pcdiff.checks.criteria import Criteria, load_criteria
from pcdiff.checks.direction_words import describe_movement, describe_vector
from pcdiff.checks.insertion import RemovalPath, implantable
from pcdiff.checks.report import Check, Figure, Report
from pcdiff.errors import InputError
from pcdiff.figures import of_pieces
from pcdiff.report.record_sections import checks_section


@pytest.mark.parametrize(
    ("movement", "words"),
    [
        ((-0.07, -0.06, -1.0), "from above"),
        ((0, 0, 2), "from below"),
        ((-1, 0, 0), "from the left"),
        ((1, 0, 0.2), "from the right"),
        ((0, -5, 0), "from behind"),
        ((0, 1, 0), "from the front"),
        ((-0.5, 0.1, -0.8), "from above and the left"),
        ((-0.8, 0.1, -0.5), "from the left and above"),
        ((1, -1.1, -1.2), "from above, behind and the right"),
    ],
)
def test_directions_in_words(movement: tuple[float, float, float], words: str) -> None:
    assert describe_movement(movement) == words


def test_a_direction_needs_a_length() -> None:
    for vector in ((0, 0, 0), (np.nan, 0, 1), (np.inf, 0, 0)):
        with pytest.raises(ValueError, match="a vector with a direction"):
            describe_movement(vector)


def test_a_direction_with_its_figures() -> None:
    assert describe_vector((-0.0702, -0.0601, -0.9957)) == "from above (unit vector -0.07, -0.06, -1.00, LPS)"
    assert describe_vector((-1e-9, 0, -3)) == "from above (unit vector 0.00, 0.00, -1.00, LPS)"


def test_the_insertion_of_two_pieces_names_both_directions() -> None:
    right, left = (RemovalPath(np.array(way), 0.0, 0.0, np.zeros((0, 3))) for way in ((-1.0, 0, 0), (1.0, 0, 0)))
    words = implantable([right, left], Criteria()).words
    assert words.startswith("Insertion direction: from the right (unit vector 1.00, 0.00, 0.00, LPS) (largest piece), ")
    assert "from the left (unit vector -1.00, 0.00, 0.00, LPS) (next). No collision" in words
    nothing = np.zeros(0, np.float32)
    report = Report((), (-right.direction, -left.direction), nothing, nothing)
    assert report.insertion == ["from the right", "from the left"]
    assert of_pieces(report.insertion) == "from the right (largest piece), from the left (next)"
    assert of_pieces(["from above"]) == "from above"
    assert of_pieces([]) == ""


def test_figures_as_text() -> None:
    assert Figure("x", "Step, mean", 0.1234, "mm", maximum=0.5).text == "Step, mean: 0.123 mm (at most 0.5 mm)"
    assert Figure("x", "Coverage", 0.998, minimum=0.99).text == "Coverage: 0.998 (at least 0.99)"
    assert Figure("x", "Coverage", 1.0, minimum=0.9).text == "Coverage: 1.00 (at least 0.90)", "a share is no count"
    assert Figure("x", "Separate bodies", 1, expected=1).text == "Separate bodies: 1 (expected 1)"
    assert Figure("x", "Watertight", True, expected=True).text == "Watertight: yes"
    assert Figure("x", "Watertight", False, expected=True).text == "Watertight: no"
    assert Figure("x", "Triangles", 65980).text == "Triangles: 65,980"
    assert Figure("x", "Overlap with the bone's surface", 0.0, "cm2").text == "Overlap with the bone's surface: 0 cm2"


@pytest.mark.parametrize(
    ("value", "unit"),
    [(0.12345, "mm"), (0.9, ""), (0.9987, ""), (65980, ""), (1234.5, "mm"), (True, ""), (0.0, "mm")],
)
def test_a_figure_reads_the_same_in_the_terminal_and_in_the_report(value: float | bool, unit: str) -> None:
    figure = Figure("x", "Figure", value, unit)
    _, shown = figure.text.split(": ")
    page = checks_section({"checks": [Check("x", "X", "", (figure,)).record()]})
    assert f">{shown}</td>" in page.replace("\u00a0", " ")


def test_an_expected_figure_is_recorded() -> None:
    record = Figure("bodies", "Separate bodies", 2, expected=1).record()
    assert record == {
        "key": "bodies",
        "name": "Separate bodies",
        "value": 2,
        "unit": "",
        "limit": 1,
        "rule": "expected",
        "passed": False,
    }
    assert Figure("watertight", "Watertight", True, expected=True).record()["value"] is True
    assert Figure("undercut_depth", "Undercut depth", np.inf, "mm", maximum=1.0).record()["value"] is None


def test_criteria_are_read_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text("max_step_p95_mm: 0.2\n")
    assert load_criteria(path) == Criteria(max_step_p95_mm=0.2) != load_criteria(None)
    for text, message in (
        ("most_steps: 1", "most_steps"),
        ("max_gap_mm: wide", "max_gap_mm"),
        ("- 1", "list"),
        ("a: [", "YAML"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            load_criteria(path)
