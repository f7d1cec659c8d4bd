"""One run: the command designs an implant in its own process, and the files that it wrote are scored."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pcdiff.data.cases import LoadedCase
from pcdiff.errors import InputError
from pcdiff.evaluation.measure import NO_MESSAGE, Measurement, measure
from pcdiff.evaluation.plan import Run
from pcdiff.evaluation.rim_errors import rim_errors
from pcdiff.evaluation.rows import Row
from pcdiff.evaluation.spread import compare_spread
from pcdiff.files import sha256, written_beside
from pcdiff.foreign import parsing, read_bytes
from pcdiff.geometry.mesh import read_stl
from pcdiff.geometry.metrics import Scores, scores
from pcdiff.imaging.volumes import read_volume, write_volume

REFUSED = 2  # exit code of a command that refuses its input
NO_SCORES = {score.name: math.nan for score in fields(Scores)}


def run_case(run: Run, timeout_s: float, workers: int = 1) -> Row:
    """Runs the command on the defective skull of a case, scores its files, and keeps the implant.

    A case that cannot be read, a command that fails or takes longer than `timeout_s`, and files that cannot be read
    give a row with an error. workers: processes that run at the same time, for the record.
    """
    case = run.case
    row: dict[str, Any] = {"case": case.name, "method": run.method, "seed": run.seed, "workers": workers}
    row |= {"fingerprint": run.fingerprint, "refusal": case.refusal} | (NO_SCORES if case.refusal else {})
    with tempfile.TemporaryDirectory(prefix="pcdiff-") as folder:
        out = Path(folder) / "out"
        skull = case.defective_skull or Path(folder) / f"{case.name.replace('/', '_')}.nrrd"
        try:
            truth = case.load()
            row["truth"] = truth.digest
            if case.defective_skull is None:
                write_volume(truth.defective_skull, skull)
            measured = measure(run.filled(skull, out), timeout_s)
            row |= {"seconds": measured.seconds, "peak_mb": measured.peak_mb}
            written = next((path.parent for path in out.glob("*/implant.nrrd")), out)  # named after the scan
            if case.refusal:
                row |= _check_refusal(measured, (written / "implant.nrrd").exists())
            else:
                row |= {"ml_true": truth.implant.ml, "error": measured.error}
                if measured.error is None:
                    row |= score_files(written, truth)
                    row["failed_checks"] = failed_checks(written / "checks.json")
                    row["implant"] = _keep(written / "implant.nrrd", run.implant)
        except InputError as error:
            row["error"] = str(error)
        if row["error"] is not None:  # no folder of this machine in the results
            row["error"] = row["error"].replace(f"{folder}/", "").replace(f"{skull.parent}/", "")
    return Row(**row)


def score_files(folder: Path, truth: LoadedCase) -> dict[str, float]:
    """The figures of a designed case folder. Raises InputError if its files cannot be read."""
    implant = read_volume(folder / "implant.nrrd")
    members = [read_stl(path) for path in sorted((folder / "candidates").glob("*.stl"))]
    return {
        "ml_predicted": implant.ml,
        **asdict(scores(implant, truth.implant, truth.defective_skull)),
        **asdict(rim_errors(implant, truth.implant, truth.defective_skull)),
        **asdict(compare_spread(implant, members, truth.implant, truth.defective_skull)),
    }


def failed_checks(path: Path) -> str | None:
    """Names of the failed checks, with spaces between; None without the file. Raises InputError for another file."""
    if not path.exists():
        return None
    data = read_bytes(path, "the checks of a design", "design the case again")
    with parsing(path, "the checks of a design", "design the case again"):
        return " ".join(check["name"] for check in json.loads(data)["checks"] if check["passed"] is False)


def _check_refusal(measured: Measurement, designed: bool) -> dict[str, str | None]:
    """The reason of a correct refusal, or the error of anything else."""
    if measured.exit_code == REFUSED and measured.error != NO_MESSAGE and not designed:
        return {"reason": measured.error, "error": None}
    implant = " and an implant" if designed else ""
    got = f"exit code {measured.exit_code}{implant}: {measured.error or NO_MESSAGE}"
    return {"error": f"expected a refusal (exit code {REFUSED}, a reason, no implant), got {got}"}


def _keep(implant: Path, path: Path) -> str:
    """Copies an implant to where it is kept; returns its sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(path) as part:
        shutil.copyfile(implant, part)
    return sha256(path)
