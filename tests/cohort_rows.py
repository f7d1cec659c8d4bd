"""Jobs and rows of a cohort for its tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pcdiff.cohort.rows import Row
from pcdiff.cohort.work import Job
from pcdiff.pipeline.settings import Settings

SETTINGS = Settings("prior", report=False)


def job(folder: Path, mb: int = 100) -> Job:
    return Job(folder.with_suffix(".nrrd"), folder, SETTINGS, "", mb)


def row_of(job: Job, **values: object) -> Row:
    return replace(Row(job.folder.name, str(job.scan), job.fingerprint, "designed"), **values)  # type: ignore[arg-type]
