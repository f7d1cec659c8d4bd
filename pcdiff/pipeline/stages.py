"""The stages of a case and their times. This is the only list of stages: progress, records and reports read it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """title: for people. share: of the usual time of a case, for a progress bar."""

    title: str
    share: int


STAGES = {
    "read": Stage("reading the scan", 1),
    "fit": Stage("fitting the shape model", 5),
    "points": Stage("completing the surface", 5),
    "reconstruct": Stage("reconstructing the solid", 3),
    "mesh": Stage("meshing", 1),
    "write": Stage("writing", 1),
    "check": Stage("checking", 4),
    "report": Stage("writing the report", 3),
}


class Stopwatch:
    """Times stages, and calls `on_stage` with the name of each as it begins."""

    def __init__(self, on_stage: Callable[[str], None] | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._on_stage = on_stage

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Times one of `STAGES`."""
        assert stage in STAGES, stage
        if self._on_stage is not None:
            self._on_stage(stage)
        started = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started

    @property
    def total(self) -> float:
        """Seconds of all stages so far."""
        return sum(self.seconds.values())
