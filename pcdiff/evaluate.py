"""Methods x cases -> scores, seconds and memory, measured from file to file.

Every case runs in a fresh process, as a user would start it: seconds are from its start to its end, memory is the peak
resident set that the operating system saw, and the scores are those of the file it wrote.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pcdiff import __version__
from pcdiff.data import Case
from pcdiff.errors import InputError
from pcdiff.files import sha256, written_beside
from pcdiff.metrics import scores
from pcdiff.record import weights_files
from pcdiff.volume import read_volume, write_volume

COMMAND = (
    *(sys.executable, "-m", "pcdiff", "sample", "{skull}", "-o", "{out}"),
    *("--method", "{method}", "--seed", "{seed}", "-q"),
)

# A child's ru_maxrss starts at the resident set of whoever started it, and this process holds volumes of its own. So a
# bare interpreter stands in between: it starts the command, waits for it, and prints what the command alone used.
_MEASURE = """
import json, os, signal, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
signal.signal(signal.SIGALRM, lambda *_: child.kill())
signal.setitimer(signal.ITIMER_REAL, float(sys.argv[1]))
_, status, usage = os.wait4(child.pid, 0)
print(json.dumps([time.perf_counter() - start, usage.ru_maxrss, os.waitstatus_to_exitcode(status)]))
"""
_RSS_PER_MB = 1e6 if sys.platform == "darwin" else 1e6 / 1024  # bytes there, KiB elsewhere


@dataclass(frozen=True)
class Row:
    """One method on one case. A failure has an error, DSC and bDSC 0 and HD95 infinite.

    seconds: wall time of the process. peak_mb: its peak resident set, 10^6 bytes. ml_*: volume of the implants.
    fingerprint: of the command, this package's files, the weights' and the case's; rows of another one are not reused.
    """

    case: str
    method: str
    seed: int
    dsc: float = 0.0
    bdsc: float = 0.0
    hd95: float = math.inf
    seconds: float = math.nan
    peak_mb: float = math.nan
    ml_true: float = math.nan
    ml_predicted: float = math.nan
    error: str | None = None
    fingerprint: str = field(default="", repr=False)

    @property
    def kind(self) -> str:
        """`bilateral` of the case `bilateral/003`, empty for `003`."""
        return self.case.rpartition("/")[0]


FIGURES = ("dsc", "bdsc", "hd95", "seconds", "peak_mb")
_HIGHER_IS_BETTER = {"dsc", "bdsc"}


@dataclass(frozen=True)
class Results:
    """What `evaluate` found: rows in order of method and case, and what they were measured on."""

    rows: list[Row]
    measured_on: dict[str, Any]

    def summary(self, kind: str | None = None) -> dict[str, dict[str, Any]]:
        """method -> number of cases, names of the failed ones, and mean, median and worst of each figure.

        kind: of the cases `<kind>/...` alone. Failures count: DSC and bDSC 0, HD95 infinite. Seconds and memory are of
        what ran.
        """
        result: dict[str, dict[str, Any]] = {}
        for method in dict.fromkeys(row.method for row in self.rows):
            rows = [row for row in self.rows if row.method == method and kind in (None, row.kind)]
            result[method] = {"cases": len(rows), "failed": [row.case for row in rows if row.error is not None]}
            for statistic in ("mean", "median", "worst"):
                result[method][statistic] = {
                    name: _statistic(statistic, [getattr(row, name) for row in rows], name in _HIGHER_IS_BETTER)
                    for name in FIGURES
                }
        return result

    @property
    def kinds(self) -> list[str]:
        """The classes of a data set's cases, or the variants of a suite; empty where there are none."""
        return list(dict.fromkeys(row.kind for row in self.rows if row.kind))

    def table(self) -> str:
        """The rows, the means of each kind, and mean, median and worst of each method, as a Markdown table.

        Failures are named below.
        """
        lines = [
            "| method | case | DSC | bDSC | HD95 mm | seconds | peak MB | true ml | implant ml |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            volumes = f"{_number(row.ml_true, 1)} | {_number(row.ml_predicted, 1)}"
            lines.append(f"| {row.method} | {row.case} | {_figures(asdict(row))} | {volumes} |")
        for kind in self.kinds:
            for method, result in self.summary(kind).items():
                lines.append(f"| {method} | **{kind}**, mean of {result['cases']} | {_figures(result['mean'])} | | |")
        for method, result in self.summary().items():
            for name in ("mean", "median", "worst"):
                lines.append(f"| **{method}** | **{name}** of {result['cases']} | {_figures(result[name])} | | |")
        lines += [""] + [f"failed: {row.method} on {row.case}: {row.error}" for row in self.rows if row.error]
        return "\n".join(lines).rstrip() + "\n"


def evaluate(
    methods: Sequence[str],
    cases: Sequence[Case],
    out: Path,
    seed: int = 0,
    command: Sequence[str] = COMMAND,
    timeout_s: float = 900.0,
    progress: bool = True,
) -> Results:
    """Runs each method on each case, writes `rows.jsonl`, `results.csv` and `results.json` under `out`.

    command: what designs one implant; {skull}, {out}, {method} and {seed} are filled in. It must write
    `{out}/<stem of skull>/implant.nrrd`. A case that fails, or takes longer than `timeout_s`, is a row that says why.
    Rows of an earlier run with the same method, case, seed and fingerprint are kept, so an interrupted run goes on;
    what failed is tried again.

    Raises InputError for no method, no case, or an `out` that cannot be written.
    """
    if not methods or not cases:
        raise InputError(f"expected a method and a case at least, got {len(methods)} and {len(cases)}; name some")
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        known = _read_rows(out / "rows.jsonl")
        journal = (out / "rows.jsonl").open("a", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{out}: expected a folder to write to, got {error.strerror}; choose another") from error
    code = _code_hash(command)
    rows = []
    with journal, tqdm(total=len(methods) * len(cases), unit="case", disable=not progress) as bar:
        for method in dict.fromkeys(methods):
            for case in cases:
                bar.set_description(f"{method} {case.name}")
                fingerprint = _fingerprint(command, code, case)
                row = known.get((method, case.name, seed, fingerprint))
                if row is None or row.error is not None:  # what failed may have been the machine
                    row = _run_case(method, case, seed, command, timeout_s, fingerprint)
                    journal.write(json.dumps(_strict(asdict(row)), allow_nan=False) + "\n")
                    journal.flush()
                    os.fsync(journal.fileno())
                rows.append(row)
                bar.update()
    results = Results(rows, _measured_on(command))
    _write(out, results)
    return results


def _run_case(method: str, case: Case, seed: int, command: Sequence[str], timeout_s: float, fingerprint: str) -> Row:
    """Loads the case, runs the command on its defective skull, scores what it wrote."""
    row: dict[str, Any] = {"case": case.name, "method": method, "seed": seed, "fingerprint": fingerprint}
    try:
        truth = case.load()
        row["ml_true"] = truth.implant.ml
        with tempfile.TemporaryDirectory(prefix="pcdiff-") as folder:
            skull = case.defective_skull
            if skull is None:
                skull = Path(folder) / f"{case.name.replace('/', '_')}.nrrd"
                write_volume(truth.defective_skull, skull)
            made = Path(folder) / "out"
            filled = [_filled(part, skull=skull, out=made, method=method, seed=seed) for part in command]
            row["seconds"], row["peak_mb"], error = _measure(filled, timeout_s)
            if error is None:
                implant = read_volume(made / skull.stem / "implant.nrrd")
                row["ml_predicted"] = implant.ml
                row |= asdict(scores(implant, truth.implant, truth.defective_skull))
    except InputError as wrong:
        error = str(wrong)
    return Row(**row, error=error)


def _filled(part: str, **values: object) -> str:
    """{skull} and the like in a part of a command; other braces may be a path's."""
    for name, value in values.items():
        part = part.replace(f"{{{name}}}", str(value))
    return part


def _measure(command: list[str], timeout_s: float) -> tuple[float, float, str | None]:
    """Runs a command: (seconds, peak MB, what went wrong). Its last line on stderr says what went wrong."""
    bare = [sys.executable, "-I", "-S", "-c", _MEASURE, str(timeout_s), *command]
    done = subprocess.run(bare, capture_output=True, text=True, errors="replace", check=False)
    said = done.stderr.strip().splitlines()
    last = said[-1].strip() if said else "nothing on stderr"
    if done.returncode != 0:
        return math.nan, math.nan, f"could not start {command[0]}: {last}"
    seconds, rss, code = json.loads(done.stdout)
    if seconds >= timeout_s and code == -signal.SIGKILL:
        last = f"no implant after {timeout_s:g} s"
    elif code < 0:
        last = f"killed by {signal.Signals(-code).name}: {last}"
    return seconds, rss / _RSS_PER_MB, last if code else None


def _code_hash(command: Sequence[str]) -> str:
    """Of this package's code and weights, and those a command names: a figure must never outlive what it came from."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for path in sorted(path for kind in ("*.py", "*.safetensors") for path in package.rglob(kind)):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    for own in (path for path in map(Path, command) if path.suffix == ".safetensors"):
        for path in weights_files("diffusion", own):  # the prior beside them too
            digest.update(sha256(path).encode() if path.is_file() else b"none")
    return digest.hexdigest()


def _fingerprint(command: Sequence[str], code: str, case: Case) -> str:
    files = (case.complete_skull, case.defective_skull, case.implant)
    bytes_of = [sha256(path) if path and path.is_file() else None for path in files]
    return hashlib.sha256(json.dumps([*command, code, *bytes_of]).encode()).hexdigest()[:16]


def _read_rows(path: Path) -> dict[tuple[str, str, int, str], Row]:
    """The rows of an earlier run; a line that a crash cut short is dropped, and ended so that the next stands alone."""
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
    rows = []
    for line in text.splitlines():
        try:
            values = json.loads(line)
            unknown = {"hd95": math.inf} | dict.fromkeys(("seconds", "peak_mb", "ml_true", "ml_predicted"), math.nan)
            rows.append(Row(**(values | {name: unknown[name] for name in unknown if values[name] is None})))
        except (ValueError, TypeError, KeyError):
            continue
    return {(row.method, row.case, row.seed, row.fingerprint): row for row in rows}


def _statistic(name: str, values: list[float], higher_is_better: bool) -> float:
    """Mean, median or worst of what was measured; not a number where nothing was."""
    measured = [value for value in values if not math.isnan(value)]
    if not measured:
        return math.nan
    if name == "worst":
        return min(measured) if higher_is_better else max(measured)
    return float(np.mean(measured) if name == "mean" else np.median(measured))


def _measured_on(command: Sequence[str]) -> dict[str, Any]:
    return {
        "pcdiff": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(command),
    }


def _write(out: Path, results: Results) -> None:
    with (
        written_beside(out / "results.csv") as path,
        path.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, [item.name for item in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in results.rows)
    kinds = {kind: results.summary(kind) for kind in results.kinds}
    report = results.measured_on | {
        "summary": results.summary(),
        "kinds": kinds,
        "rows": [asdict(row) for row in results.rows],
    }
    with written_beside(out / "results.json") as path:
        path.write_text(json.dumps(_strict(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _strict(value: Any) -> Any:
    """JSON has no infinity and no NaN: both become null."""
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _figures(values: Mapping[str, float]) -> str:
    digits = {"dsc": 4, "bdsc": 4, "hd95": 2, "seconds": 1, "peak_mb": 0}
    return " | ".join(_number(values[name], digits[name]) for name in FIGURES)


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"
