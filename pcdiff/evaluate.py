"""Methods x cases -> scores, seconds and memory, measured from file to file.

Every case runs in a fresh process, as a user would start it: seconds are from its start to its end, memory is the peak
resident set that the operating system saw, and the scores are those of the files it wrote. Where there is nothing to
close, to say so (exit code 2, a reason, no implant) is right, and an implant is a failure.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pcdiff import __version__
from pcdiff.data import Case, LoadedCase
from pcdiff.errors import InputError
from pcdiff.files import sha256, written_beside
from pcdiff.mesh import read_stl
from pcdiff.metrics import scores, spread_error
from pcdiff.picture import error_picture, write_png
from pcdiff.record import machine, weights_files
from pcdiff.volume import read_volume, write_volume

PCDIFF = (sys.executable, "-m", "pcdiff")
COMMAND = (
    *(*PCDIFF, "sample", "{skull}", "-o", "{out}"),
    *("--method", "{method}", "--seed", "{seed}", "--no-report", "-q"),
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

    spread_error: see `metrics.spread_error`; not a number for a single candidate.
    seconds: wall time of the process, one of `workers` at once. peak_mb: its peak resident set, 10^6 bytes.
    ml_*: volume of the implants.
    refusal: was an implant to be refused? Then there are no scores, and `reason` is what was said, if it was refused.
    implant: sha256 of the implant's file. fingerprint: of the command, this package's files, the weights' and the
    case's; rows of another one are not reused.
    """

    case: str
    method: str
    seed: int
    dsc: float = 0.0
    bdsc: float = 0.0
    hd95: float = math.inf
    spread_error: float = math.nan
    seconds: float = math.nan
    peak_mb: float = math.nan
    ml_true: float = math.nan
    ml_predicted: float = math.nan
    error: str | None = None
    workers: int = 1
    refusal: bool = False
    reason: str | None = None
    implant: str = field(default="", repr=False)
    fingerprint: str = field(default="", repr=False)

    @property
    def kind(self) -> str:
        """`bilateral` of the case `bilateral/003`, empty for `003`."""
        return self.case.rpartition("/")[0]


FIGURES = ("dsc", "bdsc", "hd95", "spread_error", "seconds", "peak_mb")
_HIGHER_IS_BETTER = {"dsc", "bdsc", "spread_error"}
REFUSED = 2  # exit code
SILENT = "nothing on stderr"


@dataclass(frozen=True)
class Results:
    """What `evaluate` found: rows in order of method and case, and what they were measured on."""

    rows: list[Row]
    measured_on: dict[str, Any]

    def summary(self, kind: str | None = None) -> dict[str, dict[str, Any]]:
        """method -> number of cases, names of the failed ones, and mean, median and worst of each figure.

        kind: of the cases `<kind>/...` alone. Failures count: DSC and bDSC 0, HD95 infinite. Seconds and memory are of
        what ran. Cases to be refused are in none of these, but in `refusals`: how many, and how many were refused.
        """
        result: dict[str, dict[str, Any]] = {}
        for method in dict.fromkeys(row.method for row in self.rows):
            here = [row for row in self.rows if row.method == method and kind in (None, row.kind)]
            rows, refusals = ([row for row in here if row.refusal is refusal] for refusal in (False, True))
            result[method] = {
                "cases": len(rows),
                "failed": [row.case for row in rows if row.error is not None],
                "refusals": len(refusals),
                "refused": sum(row.error is None for row in refusals),
            }
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

        Refusals are counted below, failures named.
        """
        lines = [
            "| method | case | DSC | bDSC | HD95 mm | spread rho | seconds | peak MB | true ml | implant ml |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            volumes = f"{_number(row.ml_true, 1)} | {_number(row.ml_predicted, 1)}"
            lines.append(f"| {row.method} | {row.case} | {_figures(asdict(row))} | {volumes} |")
        for kind in self.kinds:
            for method, result in self.summary(kind).items():
                if result["cases"]:
                    mean = f"**{kind}**, mean of {result['cases']}"
                    lines.append(f"| {method} | {mean} | {_figures(result['mean'])} | | |")
        for method, result in self.summary().items():
            for name in ("mean", "median", "worst") if result["cases"] else ():
                lines.append(f"| **{method}** | **{name}** of {result['cases']} | {_figures(result[name])} | | |")
        lines.append("")
        for kind in self.kinds:
            for method, result in self.summary(kind).items():
                if result["refusals"]:
                    lines.append(f"refused, rightly: {method} on {kind}: {result['refused']} of {result['refusals']}")
        lines += [f"failed: {row.method} on {row.case}: {row.error}" for row in self.rows if row.error]
        return "\n".join(lines).rstrip() + "\n"


def evaluate(
    methods: Sequence[str],
    cases: Sequence[Case],
    out: Path,
    seed: int = 0,
    command: Sequence[str] = COMMAND,
    timeout_s: float = 900.0,
    workers: int = 1,
    notes: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Results:
    """Runs each method on each case; writes `rows.jsonl`, `results.csv`, `results.json` and more under `out`.

    `implants/<method>/<case>.nrrd` is each implant, `error_maps/` has pictures: see `write_error_maps`.
    command: what designs one implant; {skull}, {out}, {method} and {seed} are filled in. It must write
    `{out}/<stem of skull>/implant.nrrd`. A case that fails, or takes longer than `timeout_s`, is a row that says why.
    Rows of an earlier run with the same method, case, seed and fingerprint are kept while their implant is there, so
    an interrupted run goes on; what failed is tried again.
    workers: processes at once. notes: what else `results.json` is to say of the run.

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

    def finished(job: tuple[str, Case]) -> Row:
        method, case = job
        fingerprint = _fingerprint(command, code, case)
        row = known.get((method, case.name, seed, fingerprint))
        kept = _kept(out, method, case.name)
        # What failed may have been the machine; an implant may have been replaced by that of another run.
        if row is None or row.error is not None or (row.implant and not _is(kept, row.implant)):
            row = _run_case(method, case, seed, command, timeout_s, fingerprint, kept)
            return replace(row, workers=workers)
        return row

    jobs = [(method, case) for method in dict.fromkeys(methods) for case in cases]
    with (
        journal,
        tqdm(total=len(jobs), unit="case", disable=not progress) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        try:
            for row in pool.map(finished, jobs):
                bar.set_description(f"{row.method} {row.case}")
                if known.get((row.method, row.case, row.seed, row.fingerprint)) is not row:
                    journal.write(json.dumps(_strict(asdict(row)), allow_nan=False) + "\n")
                    journal.flush()
                    os.fsync(journal.fileno())
                rows.append(row)
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    at_once = max(row.workers for row in rows)  # rows of an earlier run among them
    results = Results(rows, {**_measured_on(command), "workers": at_once, **(notes or {})})
    _write(out, results)
    write_error_maps(out, results, cases, progress)
    return results


def write_error_maps(out: Path, results: Results, cases: Sequence[Case], progress: bool = True) -> None:
    """`error_maps/<method>-<best, median or worst>-<case>.png` for each method and kind, by DSC, of what was designed.

    See `picture.error_picture`; the maps of an earlier run are removed.
    """
    folder = out / "error_maps"
    folder.mkdir(exist_ok=True)
    for stale in folder.glob("*.png"):
        stale.unlink()
    by_name = {case.name: case for case in cases}
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in results.rows:
        if row.implant:
            groups.setdefault((row.method, row.kind), []).append(row)
    drawn: list[tuple[str, Row]] = []
    for rows in groups.values():
        rows.sort(key=lambda row: -row.dsc)
        places = {0: "best", len(rows) // 2: "median", len(rows) - 1: "worst"}
        drawn += [(f"{name} of {len(rows)}", rows[place]) for place, name in places.items()]
    for name, row in tqdm(drawn, unit="map", disable=not progress, desc="error maps"):
        truth = by_name[row.case].load()
        implant = read_volume(_kept(out, row.method, row.case))
        title = f"{row.method}, {row.case}, {name}: DSC {row.dsc:.3f}, HD95 {row.hd95:.2f} mm"
        picture = error_picture(truth.defective_skull, implant, truth.implant, title)
        write_png(picture, folder / f"{row.method}-{name.split()[0]}-{row.case.replace('/', '-')}.png")


def _kept(out: Path, method: str, case: str) -> Path:
    """Where the implant of a case is kept."""
    return out / "implants" / method / f"{case}.nrrd"


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _run_case(
    method: str, case: Case, seed: int, command: Sequence[str], timeout_s: float, fingerprint: str, kept: Path
) -> Row:
    """Loads the case, runs the command on its defective skull, scores what it wrote and keeps the implant."""
    row: dict[str, Any] = {"case": case.name, "method": method, "seed": seed, "fingerprint": fingerprint}
    if case.refusal:
        row |= {"refusal": True, **dict.fromkeys(("dsc", "bdsc", "hd95"), math.nan)}
    with tempfile.TemporaryDirectory(prefix="pcdiff-") as folder:
        made = Path(folder) / "out"
        skull = case.defective_skull or Path(folder) / f"{case.name.replace('/', '_')}.nrrd"
        try:
            truth = case.load()
            if case.defective_skull is None:
                write_volume(truth.defective_skull, skull)
            filled = [_filled(part, skull=skull, out=made, method=method, seed=seed) for part in command]
            row["seconds"], row["peak_mb"], code, error = _measure(filled, timeout_s)
            written = made / skull.stem
            if case.refusal:
                designed = (written / "implant.nrrd").exists()
                if code == REFUSED and error != SILENT and not designed:
                    row["reason"], error = error, None
                else:
                    got = f"exit code {code}{' and an implant' if designed else ''}: {error or SILENT}"
                    error = f"expected a refusal (exit code {REFUSED}, a reason, no implant), got {got}"
            else:
                row["ml_true"] = truth.implant.ml
                if error is None:
                    row |= _scored(written, truth)
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(written / "implant.nrrd", kept)
                    row["implant"] = sha256(kept)
        except InputError as wrong:
            error = str(wrong)
        if error is not None:  # results are for others' eyes: no paths of this machine
            error = error.replace(f"{folder}/", "").replace(f"{skull.parent}/", "")
    return Row(**row, error=error)


def _scored(written: Path, truth: LoadedCase) -> dict[str, float]:
    """The figures of what `pcdiff sample` wrote for a case. Raises InputError where it cannot be read."""
    implant = read_volume(written / "implant.nrrd")
    members = [read_stl(path) for path in sorted((written / "candidates").glob("*.stl"))]
    return {
        "ml_predicted": implant.ml,
        **asdict(scores(implant, truth.implant, truth.defective_skull)),
        "spread_error": spread_error(implant, members, truth.implant, truth.defective_skull),
    }


def _filled(part: str, **values: object) -> str:
    """{skull} and the like in a part of a command; other braces may be a path's."""
    for name, value in values.items():
        part = part.replace(f"{{{name}}}", str(value))
    return part


def _measure(command: list[str], timeout_s: float) -> tuple[float, float, int, str | None]:
    """Runs a command: (seconds, peak MB, exit code, what went wrong). Its last line on stderr says what went wrong."""
    bare = [sys.executable, "-I", "-S", "-c", _MEASURE, str(timeout_s), *command]
    done = subprocess.run(bare, capture_output=True, text=True, errors="replace", check=False)
    said = done.stderr.strip().splitlines()
    last = said[-1].strip() if said else SILENT
    if done.returncode != 0:
        return math.nan, math.nan, done.returncode, f"could not start {command[0]}: {last}"
    seconds, rss, code = json.loads(done.stdout)
    if seconds >= timeout_s and code == -signal.SIGKILL:
        last = f"no implant after {timeout_s:g} s"
    elif code < 0:
        last = f"killed by {signal.Signals(-code).name}: {last}"
    return seconds, rss / _RSS_PER_MB, code, last if code else None


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
            # JSON has neither NaN nor infinity; a refusal has no scores, and only a failure's HD95 is infinite
            numbers = [item.name for item in fields(Row) if item.type == "float"]
            unknown = {name: math.nan for name in numbers if values[name] is None}
            if "hd95" in unknown and not values["refusal"]:
                unknown["hd95"] = math.inf
            rows.append(Row(**(values | unknown)))
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
    ours = tuple(command[: len(PCDIFF)]) == PCDIFF
    words = ["pcdiff", *command[len(PCDIFF) :]] if ours else command
    return {
        "pcdiff": __version__,
        **machine(),
        "processor": platform.processor() or platform.machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(Path(word).name if Path(word).is_absolute() else word for word in words),
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
    report = _strict(results.measured_on | {"summary": results.summary(), "kinds": kinds})
    rows = ",\n".join(json.dumps(_strict(asdict(row)), allow_nan=False) for row in results.rows)  # one a line
    text = json.dumps(report, indent=1, allow_nan=False).removesuffix("\n}")
    with written_beside(out / "results.json") as path:
        path.write_text(f'{text},\n "rows": [\n{rows}\n]\n}}\n', encoding="utf-8")


def _strict(value: Any) -> Any:
    """JSON has no infinity and no NaN: both become null."""
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _figures(values: Mapping[str, float]) -> str:
    digits = {"dsc": 4, "bdsc": 4, "hd95": 2, "spread_error": 2, "seconds": 1, "peak_mb": 0}
    return " | ".join(_number(values[name], digits[name]) for name in FIGURES)


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"
