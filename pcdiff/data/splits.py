"""Splits of heads in a file: the folds of a cross-validation, or any others. Scans of one head stay together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import yaml
from pydantic import Field, RootModel, model_validator

from pcdiff.config import read_yaml
from pcdiff.errors import InputError
from pcdiff.files import written_beside
from pcdiff.foreign import parsing

EXPECTED = "a YAML file of splits: name -> list of heads, in quotes"
REMEDY = "correct it, or write one with `pcdiff datasets DATA --folds 5 -o splits.yaml`"
Splits = Mapping[str, Sequence[str]]  # name of a split -> heads


class _SplitsFile(RootModel[dict[str, Annotated[list[str], Field(min_length=1)]]]):
    """The contents of the file; no head stands twice."""

    @model_validator(mode="after")
    def _each_once(self) -> _SplitsFile:
        seen: dict[str, str] = {}
        for split, heads in self.root.items():
            for head in heads:
                if head in seen:
                    raise ValueError(f"head {head} stands in {seen[head]} and in {split}")
                seen[head] = split
        return self


def assign_folds(names: Sequence[str], folds: int, same: Sequence[Sequence[str]] = ()) -> np.ndarray:
    """(H,) int: the fold of each head, by turns in order of name; `same` lists names of one head, for one fold.

    Groups that share a name are one group: a, b and b, c are three scans of one head.
    """
    alias = {name: min(group) for group in _joined(same) for name in group}
    fold = {name: number % folds for number, name in enumerate(sorted({alias.get(name, name) for name in names}))}
    return np.array([fold[alias.get(name, name)] for name in names])


def _joined(groups: Sequence[Sequence[str]]) -> list[set[str]]:
    """The groups, those with a name in common put together."""
    found: list[set[str]] = []
    for group in groups:
        touching = [other for other in found if not other.isdisjoint(group)]
        found = [other for other in found if other not in touching] + [set(group).union(*touching)]
    return found


def write_folds(path: Path, heads: Sequence[str], folds: int, same: Sequence[Sequence[str]] = ()) -> Splits:
    """Writes `fold1`, `fold2`, ... into a file, and returns them.

    Args:
        path: of the file.
        heads: their names; a name that stands twice counts once.
        folds: their number.
        same: groups of names of one head.

    Raises:
        InputError: fewer heads than folds, an unknown name or a single one in `same`, a file of other splits in its
            place, and a path that cannot be written.
    """
    names = sorted(set(heads))
    if unknown := sorted({name for group in same for name in group}.difference(names)):
        raise InputError(f"--same: expected names of heads such as {names[0]}, got {unknown[0]}; correct it")
    if alone := [group for group in same if len(set(group)) < 2]:
        raise InputError(f"--same: expected two names of one head at least, got {alone[0][0]} alone; add the other")
    fold = assign_folds(names, folds, same)
    splits = {f"fold{k + 1}": [name for name, of in zip(names, fold, strict=True) if of == k] for k in range(folds)}
    if empty := [name for name, of in splits.items() if not of]:
        raise InputError(
            f"expected a head at least in each of {folds} folds, got {empty[0]} empty; ask for fewer folds"
        )
    if path.exists() and read_splits(path) != splits:
        raise InputError(f"{path}: expected no file, or these splits, got others; remove it or name another by --out")
    with written_beside(path) as part:
        part.write_text(yaml.safe_dump(splits, sort_keys=False, default_flow_style=None, width=110), encoding="utf-8")
    return splits


def read_splits(path: Path) -> Splits:
    """The splits of a file. Raises InputError for another file, an empty split, and a head in two splits."""
    values = read_yaml(path, EXPECTED)
    with parsing(path, EXPECTED, REMEDY):
        return _SplitsFile.model_validate(values).root


def expand(selection: str, splits: Splits) -> str:
    """A selection as for `find_cases`, with the heads of a split in place of its name."""
    return ",".join(",".join(splits.get(token.strip(), (token.strip(),))) for token in selection.split(","))


def leave_out(fold: str, splits: Splits) -> tuple[str, str]:
    """The heads of all other splits, and those of one, as selections. Raises InputError for an unknown name."""
    if fold not in splits:
        raise InputError(f"--fold: expected one of {', '.join(splits)}, got {fold}; correct it")
    others = [head for name, heads in splits.items() if name != fold for head in heads]
    if not others:
        raise InputError(f"--fold: expected two splits at least, got {fold} alone; nothing is left to train on")
    return ",".join(others), ",".join(splits[fold])
