"""What a worker does with a case: everything that can fail becomes a row."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

from pcdiff.cohort.picture import case_picture
from pcdiff.cohort.rows import Row
from pcdiff.environment import forget_peak_memory, keep_freed_memory, return_freed_memory
from pcdiff.errors import InputError, error_line, exit_code
from pcdiff.files import absolute, sha256
from pcdiff.imaging.scan import input_digest
from pcdiff.pipeline.case import design_case, is_done
from pcdiff.pipeline.names import as_text
from pcdiff.pipeline.record import case_record, recorded_digest
from pcdiff.pipeline.settings import Settings

if TYPE_CHECKING:
    from pcdiff.methods.base import Method, PriorBasedMethod


TIMEOUT_S = 3600.0  # a limit too short would turn a slow machine into failures
RETURN_AFTER = 20  # cases; after each one it would take a twelfth of the time

_started = itertools.count(1)  # cases of this process


@dataclass(frozen=True)
class Job:
    """A case to design.

    fingerprint: of the settings, where the cohort was started. mb: memory that it may need. timeout_s: time limit.
    """

    scan: Path
    folder: Path
    settings: Settings
    fingerprint: str
    mb: int
    overwrite: bool = False
    umask: int = 0o077
    timeout_s: float = TIMEOUT_S

    @property
    def on_gpu(self) -> bool:
        """Whether it takes any GPU that a worker has; `cuda:1` is one of this machine."""
        return self.settings.device == "cuda"


def fingerprint(settings: Settings) -> str:
    """The SHA-256 of version, settings and weights: with the scan's, all that decides a result."""
    return hashlib.sha256(json.dumps(settings.record(), sort_keys=True).encode()).hexdigest()


def within_time(work: Callable[[Job], Row], job: Job) -> Row:
    """What the work returns. If it takes longer than the case may, this process ends: a thread cannot be stopped."""
    timer = Timer(job.timeout_s, os._exit, [1])
    timer.daemon = True
    timer.start()
    try:
        return work(job)
    finally:
        timer.cancel()


def design_row(job: Job) -> Row:
    """Designs a case, unless its folder holds this very result, and returns its row; an error is a row, too."""
    os.umask(job.umask)  # a worker on another machine has one of its own
    keep_freed_memory()
    if next(_started) % RETURN_AFTER == 0:
        return_freed_memory()
    forget_peak_memory()
    try:
        if job.overwrite or not is_done(job.folder, job.scan, job.settings):
            method = _method(job.settings, job.fingerprint)
            design_case(job.scan, job.folder, method, job.settings, job.overwrite)
        return designed_row(job)
    except Exception as error:  # noqa: BLE001 - a case that fails stops no other
        return failed_row(job, error)


def why_not_ready(settings: Settings, expected: str) -> str | None:
    """Why a worker can design no case with these settings; None if it can."""
    try:
        _method(settings, expected)
    except Exception as error:  # noqa: BLE001 - as text: an error may not be whole after its way here
        return error_line(error)
    return None


def designed_row(job: Job) -> Row:
    """The row of a case that is designed."""
    record = case_record(job.folder)
    checks: list[dict[str, Any]] = json.loads((job.folder / "checks.json").read_text(encoding="utf-8"))["checks"]
    return Row(
        case=as_text(job.folder.name),
        scan=as_text(str(absolute(job.scan))),
        settings=job.fingerprint,
        state="designed",
        sha256=recorded_digest(record),
        failed_checks=[check["title"] for check in checks if check["passed"] is False],
        warnings=record["input_check"]["warnings"],
        defects=record["defects"],
        pieces=len(record["pieces"]),
        implant_ml=record["implant_ml"],
        seconds=record["seconds"]["total"],
        stages={name: value for name, value in record["seconds"].items() if name != "total"},
        peak_memory_mb=record["peak_memory_mb"],
        expected_mb=job.mb,
        date=record["date"],
        picture=case_picture(job.folder),
    )


def failed_row(job: Job, error: Exception) -> Row:
    """The row of a case that failed."""
    return Row(
        case=as_text(job.folder.name),
        scan=as_text(str(absolute(job.scan))),
        settings=job.fingerprint,
        state="failed",
        sha256=digest_of(job.scan),
        reason=as_text(error_line(error)),
        exit_code=exit_code(error),
        expected_mb=job.mb,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def digest_of(scan: Path) -> str | None:
    """The SHA-256 of a scan, of one that is damaged that of its file; None where there is nothing to read."""
    for digest in (input_digest, sha256):
        with suppress(InputError, OSError):
            return digest(scan)
    return None


@lru_cache(maxsize=1)
def _method(settings: Settings, expected: str) -> Method | PriorBasedMethod:
    """The method, loaded once in a process. Raises InputError where version or weights are not those expected."""
    if fingerprint(settings) != expected:
        raise InputError(
            "expected the version and weights of pcdiff that started the cohort, got others on this worker; install "
            "the same pcdiff there"
        )
    return settings.load()
