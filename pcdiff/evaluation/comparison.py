"""Several evaluations side by side: the methods of all files on the cases that all of them were measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from pcdiff.errors import InputError
from pcdiff.evaluation.inference import holm, interval, paired_p, ranks, resampled_means
from pcdiff.evaluation.rows import Row
from pcdiff.evaluation.statistics import HIGHER_IS_BETTER, median
from pcdiff.foreign import parsing, read_json
from pcdiff.geometry.metrics import VERSION

EXPECTED = "results.json of `pcdiff evaluate` or `pcdiff score`, or what tools/merge_results.py made of several"
REMEDY = "leave the file out, or run the evaluation again"
OWN = "own"  # the class of a case without one: a data set's own defects, as a suite calls them


class _File(BaseModel):
    """What a comparison needs of results.json; a file without `pcdiff` and `rows` is of another kind."""

    model_config = ConfigDict(extra="allow")
    pcdiff: str = ""
    ensemble: int = 1
    weights: dict[str, dict[str, str]] = {}
    metrics: int = VERSION
    rows: list[dict[str, Any]] = []


@dataclass(frozen=True)
class Estimate:
    """A mean over heads, and the ends of its 95 % interval by bootstrap over heads."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """`first` minus `second` over heads; p of Wilcoxon's signed-rank test, raw and with Holm's correction."""

    first: str
    second: str
    difference: Estimate
    p: float
    p_holm: float


@dataclass(frozen=True)
class Rank:
    """The rank of a method by its mean, its 95 % interval by bootstrap, and how often it has each rank (shares)."""

    rank: int
    low: int
    high: int
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """rows: method -> its rows of the cases that all methods have; best mean DSC first.

    left_out: method -> number of its cases that another method lacks. records: the files' contents, without rows.

    A head counts once: its value is the mean of its cases, and a case's the mean of its seeds.
    """

    rows: Mapping[str, Sequence[Row]]
    left_out: Mapping[str, int]
    records: Sequence[Mapping[str, Any]]

    @property
    def methods(self) -> list[str]:
        """Names, the best mean DSC first."""
        return list(self.rows)

    @property
    def kinds(self) -> list[str]:
        """Classes, in order of appearance."""
        return list(dict.fromkeys(row.kind for row in self._any))

    @property
    def heads(self) -> list[str]:
        """Names of heads."""
        return sorted({row.skull for row in self._any})

    @property
    def cases(self) -> int:
        """Number of cases."""
        return len({row.case for row in self._any})

    @property
    def _any(self) -> Sequence[Row]:
        return next(iter(self.rows.values()))

    def values(self, metric: str, kind: str | None = None) -> np.ndarray:
        """(H, M) of each head and method, of one class or of all; NaN for a method that was not measured so."""
        return np.array([by_head(rows, metric, kind) for rows in self.rows.values()]).T

    def failed(self, method: str, kind: str | None = None) -> int:
        """Number of rows with an error."""
        return sum(row.error is not None and kind in (None, row.kind) for row in self.rows[method])

    def seconds(self, method: str) -> tuple[float, int]:
        """Median seconds of a case, NaN if not known, and the number of cases that ran at the same time."""
        return median(row.seconds for row in self.rows[method]), max(row.workers for row in self.rows[method])

    def estimates(self, metric: str, kind: str | None = None) -> dict[str, Estimate]:
        """Method -> its mean and interval."""
        values = self.values(metric, kind)
        return dict(zip(self.methods, _estimates(values), strict=True))

    def tests(self, metric: str) -> list[PairedTest]:
        """Each pair of methods that were measured so, over all classes; the correction is for all pairs."""
        values = dict(zip(self.methods, self.values(metric).T, strict=True))
        pairs = list(combinations([name for name in self.methods if not np.isnan(values[name]).any()], 2))
        if not pairs:
            return []
        with np.errstate(invalid="ignore"):
            differences = np.stack([values[first] - values[second] for first, second in pairs], axis=1)
        differences[np.isnan(differences)] = 0  # both are infinite: they fail on the same head
        p = np.array([paired_p(column) for column in differences.T])
        found = zip(pairs, _estimates(differences), p, holm(p), strict=True)
        return [PairedTest(*pair, estimate, float(raw), float(adjusted)) for pair, estimate, raw, adjusted in found]

    def ranks(self, metric: str) -> dict[str, Rank]:
        """Method -> its rank, of those that were measured so."""
        values = self.values(metric)
        measured = ~np.isnan(values).any(axis=0)
        better = metric in HIGHER_IS_BETTER
        if not measured.any():
            return {}
        own = ranks(values[:, measured].mean(axis=0), better)
        drawn = ranks(resampled_means(values[:, measured]), better)
        low, high = interval(drawn)
        shares = [(drawn == place).mean(axis=0) for place in range(1, len(own) + 1)]
        names = [name for name, known in zip(self.methods, measured, strict=True) if known]
        return {
            name: Rank(int(own[k]), int(low[k]), int(high[k]), tuple(float(share[k]) for share in shares))
            for k, name in enumerate(names)
        }


def compare(paths: Sequence[Path]) -> Comparison:
    """Reads results.json of `pcdiff evaluate` and `pcdiff score`, and keeps the cases that all methods have.

    A method has the name that the file gives it, with the number of its candidates for an ensemble. Files that measured
    it on different cases are put together; where they measured the same case, each is a method of its own, with the
    file's name behind (of `results.json`, the folder's). Skulls that must be refused take no part.

    Raises InputError for other files, two files of one name, methods without a case in common, and cases of one name
    with different skulls or true implants.
    """
    files = {path.resolve(): read_results(path) for path in paths}
    rows = _by_method(files)
    if not rows:
        raise InputError("expected files with cases that have a defect, got none; give results.json of an evaluation")
    shared = set.intersection(*({row.case for row in each} for each in rows.values()))
    if not shared:
        names = ", ".join(f"{name}: {each[0].case} ..." for name, each in rows.items())
        raise InputError(f"expected methods with a case in common, got none ({names}); compare files of the same cases")
    _check_truth(rows, shared)
    left_out = {name: len({row.case for row in each} - shared) for name, each in rows.items()}
    kept = {name: [row for row in each if row.case in shared] for name, each in rows.items()}
    best_first = sorted(kept, key=lambda name: -float(np.mean(by_head(kept[name], "dsc"))))
    records = [{key: value for key, value in record.items() if key != "rows"} for record in files.values()]
    return Comparison({name: kept[name] for name in best_first}, left_out, records)


def read_results(path: Path) -> dict[str, Any]:
    """The file's contents with its rows as `Row`, without refusals and with a class each.

    Raises InputError for another file, and for scores by other definitions.
    """
    record = read_json(path, _File, EXPECTED, REMEDY)
    if not {"pcdiff", "rows"} <= record.keys():
        raise InputError(f"{path}: expected {EXPECTED}, got: JSON of another kind; leave it out")
    if (version := record.get("metrics", VERSION)) != VERSION:
        raise InputError(
            f"{path}: expected scores by the definitions {VERSION}, got {version}; run the evaluation again"
        )
    with parsing(path, EXPECTED, REMEDY):
        rows = [Row.from_json(values) for values in record["rows"]]
        if not rows:
            raise ValueError("no row")
    rows = [row if row.kind else replace(row, case=f"{OWN}/{row.case}") for row in rows if not row.refusal]
    return {"ensemble": 1, "weights": {}} | record | {"rows": rows}


def rows_by_method(record: Mapping[str, Any]) -> dict[str, list[Row]]:
    """The rows of each method of a file; an ensemble's name has the number of its candidates."""
    found = {}
    for method in dict.fromkeys(row.method for row in record["rows"]):
        rows = [row for row in record["rows"] if row.method == method]
        several = record["ensemble"] > 1 and not all(np.isnan(row.spread_error) for row in rows)
        found[f"{method}, {record['ensemble']} candidates" if several else method] = rows
    return found


def _check_truth(rows: Mapping[str, Sequence[Row]], shared: set[str]) -> None:
    """Raises InputError for a case whose skulls or true implants differ between methods; earlier rows do not tell."""
    first: dict[str, tuple[str, set[str]]] = {}  # case -> a method, and the digests of its seeds
    for name, of in rows.items():
        for case in sorted(shared):
            if truth := {row.truth for row in of if row.case == case and row.truth}:
                other, known = first.setdefault(case, (name, truth))
                if truth != known:
                    raise InputError(
                        f"case {case}: expected one skull and one true implant, got others for {other} and for {name}: "
                        "another data set, suite or seed; compare files of the same cases"
                    )


def _by_method(files: Mapping[Path, Mapping[str, Any]]) -> dict[str, list[Row]]:
    found: dict[str, dict[str, list[Row]]] = {}  # method -> label of the file -> rows
    for path, record in files.items():
        label = path.stem if path.stem != "results" else path.parent.name
        for method, rows in rows_by_method(record).items():
            of_files = found.setdefault(method, {})
            if label in of_files:
                raise InputError(f"{path}: expected a name of its own, got {label} twice for {method}; rename the file")
            of_files[label] = rows
    named: dict[str, list[Row]] = {}
    for method, of_files in found.items():
        cases = [row.case for rows in of_files.values() for row in {row.case: row for row in rows}.values()]
        if len(cases) == len(set(cases)):
            named[method] = [row for rows in of_files.values() for row in rows]
        else:
            named |= {f"{method} ({label})": rows for label, rows in of_files.items()}
    return named


def by_head(rows: Sequence[Row], metric: str, kind: str | None = None) -> list[float]:
    """The value of each head, by name: the mean of its cases; of a case the mean of its seeds."""
    heads: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if kind in (None, row.kind):
            heads.setdefault(row.skull, {}).setdefault(row.case, []).append(getattr(row, metric))
    return [float(np.mean([np.mean(seeds) for seeds in heads[head].values()])) for head in sorted(heads)]


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one value per head, and its interval."""
    return _estimates(np.array(values)[:, None])[0]


def _estimates(values: np.ndarray) -> list[Estimate]:
    """(H, N) -> N estimates; NaN for differences that are infinite both ways."""
    with np.errstate(invalid="ignore"):
        means = values.mean(axis=0)
        low, high = interval(resampled_means(values))
    return [Estimate(*map(float, ends)) for ends in zip(means, low, high, strict=True)]
