"""What a check says: figures against their limits, and a sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Figure:
    """A measured quantity. least, most: its limit where it has one (at most one of the two)."""

    name: str
    value: float
    unit: str
    least: float | None = None
    most: float | None = None

    @property
    def passed(self) -> bool | None:
        """None without a limit."""
        if self.least is not None:
            return bool(self.value >= self.least)
        return None if self.most is None else bool(self.value <= self.most)

    @property
    def rule(self) -> str | None:
        """`at least`, `at most`, or None."""
        return "at least" if self.least is not None else "at most" if self.most is not None else None

    @property
    def limit(self) -> float | None:
        """The limit, whichever it is."""
        return self.least if self.least is not None else self.most

    def record(self) -> dict[str, Any]:
        """For `checks.json`."""
        value = round(float(self.value), 4)
        return {
            "name": self.name,
            "value": value if math.isfinite(value) else None,
            "unit": self.unit,
            "limit": self.limit,
            "rule": self.rule,
            "passed": self.passed,
        }


@dataclass(frozen=True)
class Check:
    """One criterion. passed: None where nothing could be held against a limit."""

    name: str
    title: str
    words: str
    figures: tuple[Figure, ...]

    @property
    def passed(self) -> bool | None:
        """Every figure that has a limit keeps it."""
        verdicts = [figure.passed for figure in self.figures if figure.passed is not None]
        return all(verdicts) if verdicts else None

    def figure(self, name: str) -> float:
        """The value of that name."""
        return next(figure.value for figure in self.figures if figure.name == name)

    def record(self) -> dict[str, Any]:
        """For `checks.json`."""
        figures = [figure.record() for figure in self.figures]
        return {"name": self.name, "title": self.title, "passed": self.passed, "words": self.words, "figures": figures}


@dataclass(frozen=True)
class Report:
    """All checks of an implant, and what is drawn on its mesh.

    insertion_direction: (3,) unit, LPS, the best way *out* of the largest defect; the implant goes in the other way.
    thickness_mm, gap_mm: (V,) float32 per vertex of the mesh: wall, and distance to bone (negative inside it).
    """

    checks: tuple[Check, ...]
    insertion_direction: np.ndarray | None
    thickness_mm: np.ndarray = field(repr=False)
    gap_mm: np.ndarray = field(repr=False)

    @property
    def passed(self) -> bool:
        """No check failed."""
        return not self.failed

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed."""
        return [check.name for check in self.checks if check.passed is False]

    def __getitem__(self, name: str) -> Check:
        return next(check for check in self.checks if check.name == name)

    def record(self, version: str, notice: str) -> dict[str, Any]:
        """The contents of `checks.json`."""
        way = self.insertion_direction
        return {
            "pcdiff": version,
            "notice": notice,
            "passed": self.passed,
            "checks": [check.record() for check in self.checks],
            "insertion_direction": None if way is None else [round(float(x), 4) for x in way],
        }
