"""The result of a check: figures with their limits, and a sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pcdiff.checks.direction_words import describe_movement
from pcdiff.figures import figure_text

# Keys of the figures that other modules look up.
STEP_MEAN, CONTINUATION_MEAN = "step_mean", "continuation_mean"


@dataclass(frozen=True)
class Figure:
    """A measured quantity and, where it has one, its limit.

    key: identifies the figure within its check, for programs; stable. name: what is measured, for people.
    value: a number, or True or False. unit: such as mm; empty for shares, which are floats, and for counts, integers.
    minimum, maximum, expected: the limit, at most one of the three.
    """

    key: str
    name: str
    value: float | bool
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    expected: float | bool | None = None

    @property
    def passed(self) -> bool | None:
        """Does the value keep the limit? None without a limit."""
        if self.minimum is not None:
            return bool(self.value >= self.minimum)
        if self.maximum is not None:
            return bool(self.value <= self.maximum)
        return None if self.expected is None else bool(self.value == self.expected)

    @property
    def rule(self) -> str | None:
        """`at least`, `at most`, `expected`, or None without a limit."""
        rules = (("at least", self.minimum), ("at most", self.maximum), ("expected", self.expected))
        return next((rule for rule, limit in rules if limit is not None), None)

    @property
    def limit(self) -> float | bool | None:
        """The limit, whichever of the three it is."""
        return next((limit for limit in (self.minimum, self.maximum, self.expected) if limit is not None), None)

    @property
    def text(self) -> str:
        """One line: "Step, mean: 0.12 mm (at most 0.5 mm)", "Separate bodies: 1 (expected 1)", "Watertight: yes"."""
        line = f"{self.name}: {figure_text(self.value, self.unit)}"
        if self.limit is None or isinstance(self.limit, bool):
            return line
        return f"{line} ({self.rule} {figure_text(self.limit, self.unit)})"

    def record(self) -> dict[str, Any]:
        """The figure's entry in `checks.json`; None for a value that is not finite."""
        value = self.value if isinstance(self.value, int) else round(float(self.value), 4)
        return {
            "key": self.key,
            "name": self.name,
            "value": value if math.isfinite(value) else None,
            "unit": self.unit,
            "limit": self.limit,
            "rule": self.rule,
            "passed": self.passed,
        }


@dataclass(frozen=True)
class Check:
    """One criterion. name: for programs. title: for people. words: the result as a sentence."""

    name: str
    title: str
    words: str
    figures: tuple[Figure, ...]

    @property
    def passed(self) -> bool | None:
        """Does every figure keep its limit? None if no figure has a limit."""
        verdicts = [figure.passed for figure in self.figures if figure.passed is not None]
        return all(verdicts) if verdicts else None

    def figure(self, key: str) -> float | bool:
        """The value of the figure with this key. Raises KeyError if there is none."""
        values = {figure.key: figure.value for figure in self.figures}
        if key not in values:
            raise KeyError(f"{self.name}: expected one of {', '.join(values) or 'no figures'}, got {key}")
        return values[key]

    def record(self) -> dict[str, Any]:
        """The check's entry in `checks.json`."""
        figures = [figure.record() for figure in self.figures]
        return {"name": self.name, "title": self.title, "passed": self.passed, "words": self.words, "figures": figures}


@dataclass(frozen=True)
class Report:
    """All checks of an implant, and the values that colour its mesh.

    insertion_vectors: (3,) unit, LPS, the movement by which each piece goes *into* its defect, the largest piece first.
    thickness_mm, gap_mm: (V,) float32, one value per vertex of the mesh: the implant's thickness there, and the
    distance to bone, negative inside bone.
    """

    checks: tuple[Check, ...]
    insertion_vectors: tuple[np.ndarray, ...]
    thickness_mm: np.ndarray = field(repr=False)
    gap_mm: np.ndarray = field(repr=False)

    @property
    def passed(self) -> bool:
        """True if no check failed."""
        return not self.failed

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed."""
        return [check.name for check in self.checks if check.passed is False]

    @property
    def insertion(self) -> list[str]:
        """The insertion direction of each piece in words, such as "from above"; the largest piece first."""
        return [describe_movement(vector) for vector in self.insertion_vectors]

    def __getitem__(self, name: str) -> Check:
        return next(check for check in self.checks if check.name == name)

    def record(self, version: str, notice: str) -> dict[str, Any]:
        """The contents of `checks.json`."""
        return {
            "pcdiff": version,
            "notice": notice,
            "passed": self.passed,
            "checks": [check.record() for check in self.checks],
            "insertion": self.insertion,
            "insertion_vectors": [[round(float(x), 4) for x in vector] for vector in self.insertion_vectors],
        }
