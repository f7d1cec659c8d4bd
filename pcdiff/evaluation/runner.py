"""Methods x cases -> scores, seconds and memory, measured from file to file.

Each case runs in a process of its own, as a user would start it: seconds are from its start to its end, memory is its
peak resident set, and the scores are those of the files that it wrote. A skull without a defect must be refused
(exit code 2, a reason, no implant); an implant for it is a failure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pcdiff.data.cases import Case
from pcdiff.errors import InputError
from pcdiff.evaluation.error_maps import write_error_maps
from pcdiff.evaluation.measure import COMMAND, end_all
from pcdiff.evaluation.plan import Run, plan_runs
from pcdiff.evaluation.results import Results, conditions_of, write_results
from pcdiff.evaluation.rows import Journal, Row
from pcdiff.evaluation.scoring import run_case
from pcdiff.files import folder_to_write, sha256


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
    *,
    weights: Mapping[str, Mapping[str, str]],
) -> Results:
    """Runs each method on each case and writes the results into a folder.

    The folder gets `rows.jsonl`, `results.json`, `results.csv`, `implants/<method>/<case>.nrrd` and `error_maps/`. A
    case that fails gives a row with an error. An interrupted evaluation goes on: a row of an earlier one with the same
    method, case, seed and fingerprint is reused while its implant is there, and a failure is tried again.

    Args:
        methods: names, which are passed to the command.
        cases: see `find_cases`.
        out: the folder.
        seed: passed to the command.
        command: designs one implant and writes `{out}/<stem of skull>/implant.nrrd`; {skull}, {out}, {method} and
            {seed} are filled in.
        timeout_s: a command is killed after this time, and the case fails.
        workers: processes at the same time.
        notes: added to `results.json`.
        progress: show progress bars.
        weights: method -> name and sha256 of each weights file that it reads, for `results.json`; a row is not reused
            if one of them changes.

    Raises:
        InputError: there is no method or no case, or the folder cannot be written.
        KeyError: `weights` lacks a method.
    """
    if not methods or not cases:
        raise InputError(f"expected a method and a case at least, got {len(methods)} and {len(cases)}; name some")
    with _open_journal(Path(out)) as journal:
        runs = plan_runs(methods, cases, Path(out), seed, command, weights)
        rows = _run_all(runs, journal, timeout_s, workers, progress)
    at_once = max(row.workers for row in rows)  # also of reused rows: it limits what all the seconds are worth
    conditions = {**conditions_of(command), "workers": at_once, "weights": dict(weights), **(notes or {})}
    results = Results(rows, conditions)
    write_results(Path(out), results)
    write_error_maps(Path(out), rows, cases, progress)
    return results


def _open_journal(out: Path) -> Journal:
    with folder_to_write(out):
        out.mkdir(parents=True, exist_ok=True)
        return Journal(out / "rows.jsonl")


def _run_all(runs: Sequence[Run], journal: Journal, timeout_s: float, workers: int, progress: bool) -> list[Row]:
    """A row for each run: reused if it is still valid, else measured; written to the journal at once."""

    def row_of(run: Run) -> Row:
        earlier = journal.earlier.get((run.method, run.case.name, run.seed, run.fingerprint))
        if earlier is not None and _is_valid(earlier, run):
            return earlier
        return run_case(run, timeout_s, workers)

    rows = []
    with tqdm(total=len(runs), unit="case", disable=not progress) as bar, ThreadPoolExecutor(workers) as pool:
        try:
            for row in pool.map(row_of, runs):
                bar.set_description(f"{row.method} {row.case}")
                journal.add(row)
                rows.append(row)
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            end_all()
            raise
    return rows


def _is_valid(row: Row, run: Run) -> bool:
    """A failure may have been the machine's, and another evaluation may have replaced the implant."""
    if row.error is not None:
        return False
    return not row.implant or (run.implant.is_file() and sha256(run.implant) == row.implant)
