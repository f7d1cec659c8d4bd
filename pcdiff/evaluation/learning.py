"""Learning curves: the scores on held-out heads that a training run logged, against samples seen and hours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from pcdiff.errors import InputError
from pcdiff.foreign import parsing, read_bytes
from pcdiff.tensor_files import read_metadata

EXPECTED = "log.jsonl of `pcdiff train`"
REMEDY = "give the folder of a run (run.out of its recipe), with log.jsonl and config.json in it"


@dataclass(frozen=True)
class Point:
    """One validation. windows: samples seen until then. seconds: of the run, over all its starts."""

    step: int
    windows: float
    seconds: float
    scores: dict[str, float]


@dataclass(frozen=True)
class Curve:
    """A run, named as its folder."""

    name: str
    points: Sequence[Point]

    @property
    def scores(self) -> list[str]:
        """Names without `val_`; those of single classes, which another name begins, are left out."""
        names = list(dict.fromkeys(name for point in self.points for name in point.scores))
        return [name for name in names if not any(name.startswith(f"{other}_") for other in names)]


class _Optimiser(BaseModel):
    batch: float


class _Recipe(BaseModel):
    """What a curve needs of config.json."""

    optimiser: _Optimiser


def read_curves(folders: Sequence[Path]) -> list[Curve]:
    """The validations in each folder's log.jsonl. Raises InputError for another folder, and two of one name."""
    curves = [read_curve(folder) for folder in folders]
    names = [curve.name for curve in curves]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"--run: expected folders of different names, got {twice[0]} twice; rename one")
    return curves


def read_curve(folder: Path) -> Curve:
    """The validations of one run, in order of their steps.

    The clock of a log starts anew where a run goes on, and steps after its last checkpoint are done again: they count
    as seconds, and their scores are replaced.
    """
    path = folder / "log.jsonl"
    data = read_bytes(path, EXPECTED, REMEDY)
    earlier, per_step = _windows_seen(folder)
    points: dict[int, Point] = {}
    before = clock = 0.0
    with parsing(path, EXPECTED, REMEDY):
        for row in map(json.loads, data.splitlines()):
            step = int(row["step"])
            now = float(row.get("seconds", clock))
            before, clock = (before + clock, now) if now < clock else (before, now)
            points = {earlier: point for earlier, point in points.items() if earlier < step}
            scores = {name.removeprefix("val_"): float(row[name]) for name in row if name.startswith("val_")}
            if scores:
                points[step] = Point(step, earlier + step * per_step, before + clock, scores)
    if not points:
        raise InputError(f"{path}: expected scores on held-out heads, got none; lower run.validate_every")
    return Curve(folder.resolve().name, list(points.values()))


def _windows_seen(folder: Path) -> tuple[float, float]:
    """Before the run, by the weights that it starts from, and in each step.

    The weights know the true numbers; else the recipe's batch counts.
    """
    for path in sorted(folder.glob("*.safetensors")):
        notes = read_metadata(path) or {}
        if "windows" in notes and float(notes.get("step", 0)) > 0:
            earlier = float(notes.get("earlier_windows", 0))
            return earlier, (float(notes["windows"]) - earlier) / float(notes["step"])
    path = folder / "config.json"
    with parsing(path, "config.json of `pcdiff train`", REMEDY):
        recipe = _Recipe.model_validate_json(read_bytes(path, "config.json of `pcdiff train`", REMEDY))
    return 0.0, recipe.optimiser.batch
