"""Methods x cases -> scores, seconds and memory, measured from file to file.

Every case runs in a fresh process, as a user would start it: seconds are from its start to its end, memory is the peak
resident set that the operating system saw, and the scores are those of the files it wrote. Where there is nothing to
close, to say so (exit code 2, a reason, no implant) is right, and an implant is a failure.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pcdiff.data.cases import Case, LoadedCase
from pcdiff.errors import InputError
from pcdiff.evaluation.error_maps import write_error_maps
from pcdiff.evaluation.measure import COMMAND, SILENT, _measure
from pcdiff.evaluation.results import (
    REFUSED,
    Results,
    Row,
    _filled,
    _fingerprint,
    _is,
    _kept,
    _measured_on,
    _read_rows,
    _strict,
    _write,
)
from pcdiff.evaluation.spread import spread_error
from pcdiff.files import sha256
from pcdiff.geometry.mesh import read_stl
from pcdiff.geometry.metrics import scores
from pcdiff.imaging.volumes import read_volume, write_volume
from pcdiff.methods.registry import weights_files


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
