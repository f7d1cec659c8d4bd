"""A cohort: what is done stands, what is left goes to the workers, and each result is a row at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pcdiff.cohort.cluster import (
    check_installed,
    dashboard_of,
    local_cluster,
    running_cluster,
    slurm_cluster,
    visible_gpus,
)
from pcdiff.cohort.dispatch import Dispatch, waves
from pcdiff.cohort.memory import expected_mb
from pcdiff.cohort.page import write_cohort_page
from pcdiff.cohort.rows import Journal, Row, write_table
from pcdiff.cohort.work import (
    TIMEOUT_S,
    Job,
    design_row,
    designed_row,
    digest_of,
    failed_row,
    fingerprint,
    why_not_ready,
)
from pcdiff.environment import cpu_count, memory_at_hand
from pcdiff.errors import InputError
from pcdiff.files import absolute
from pcdiff.pipeline.case import is_done
from pcdiff.pipeline.case_folder import clear_away
from pcdiff.pipeline.names import as_text, shown_name
from pcdiff.pipeline.plan import planned_cases
from pcdiff.pipeline.settings import Settings

if TYPE_CHECKING:
    from distributed import Client

USABLE = 0.9  # of the memory at hand
PAGE_S, PAGE_SHARE = 20.0, 0.05  # the page is written again after so long, and takes at most this share of the time


@dataclass
class Cohort:
    """Designs many cases into the folders of `out`, and writes `cohort.jsonl`, `cohort.csv` and `cohort.html`.

    workers: processes on this machine, by default one a core; fewer where a case would not fit into its share of the
    memory. scheduler: address or file of a Dask scheduler to use instead. slurm: options of
    sbatch; the workers are jobs of Slurm then. retry: design cases again that failed.
    overwrite: design all again. timeout_s: time limit for a case. on_start: gets the number of cases to design. on_row:
    gets each row, and whether it stood already. note: gets what the user may know.
    """

    out: Path
    settings: Settings
    workers: int | None = None
    scheduler: str | None = None
    slurm: str | None = None
    retry: bool = False
    overwrite: bool = False
    timeout_s: float = TIMEOUT_S
    on_start: Callable[[int], None] = lambda count: None
    on_row: Callable[[Row, bool], None] = lambda row, stood: None
    note: Callable[[str], None] = lambda text: None

    def __post_init__(self) -> None:
        if self.settings.weights is not None:  # a worker may have another working folder
            self.settings = replace(self.settings, weights=absolute(self.settings.weights))

    def run(self, scans: Mapping[Path, str | None], work: Callable[[Job], Row] = design_row) -> list[Row]:
        """The row of each scan, in no order. scans: see `inputs.find_scans`. work: what a worker does with a case.

        Raises InputError without Dask, without Slurm where that is asked for, for a folder that cannot be written,
        settings that no case can be designed with, and a scheduler that does not answer or goes away.
        """
        check_installed(self.slurm is not None)  # before a folder is made
        rows: list[Row] = []
        with Journal(self.out) as journal:
            tables = _Tables(self.out, journal)
            try:
                for row, stood in self._rows(scans, journal, work):
                    rows.append(row)
                    journal.add(row)
                    self.on_row(row, stood)
                    tables.renew()
            finally:
                tables.renew(at_once=True)
        return rows

    def _rows(
        self, scans: Mapping[Path, str | None], journal: Journal, work: Callable[[Job], Row]
    ) -> Iterator[tuple[Row, bool]]:
        """Each row as it is known, and whether it stood already."""
        jobs = []
        planned, refused = self._plan(scans)
        for row in refused:
            yield row, False
        with ThreadPoolExecutor(cpu_count() or 1) as pool:  # threads read and hash side by side
            looked = pool.map(lambda job: self._look(job, journal.earlier), planned)
            for found in looked:
                if isinstance(found, Row):
                    yield found, found.state == "designed" or found is journal.earlier.get(found.scan)
                else:
                    jobs.append(found)
        self.on_start(len(jobs))
        for cluster, some in self._clusters(jobs) if jobs else ():
            dispatch = None
            try:
                with cluster as client:
                    self._check(client, some[0])
                    dispatch = Dispatch(client, some, work)
                    for row in dispatch.rows():
                        yield row, False
            finally:  # once the workers are gone
                for job in dispatch.in_work if dispatch else ():
                    clear_away(job.folder)

    def _plan(self, scans: Mapping[Path, str | None]) -> tuple[list[Job], list[Row]]:
        """The cases, their memory not known yet, and rows of those that have no place to go to."""
        any_case = Job(
            Path(), Path(), self.settings, fingerprint(self.settings), 0, self.overwrite, _umask(), self.timeout_s
        )
        refused = []

        def refuse(scan: Path, error: Exception) -> None:
            refused.append(failed_row(replace(any_case, scan=absolute(scan), folder=Path(shown_name(scan))), error))

        names = {scan: name for scan, name in scans.items() if name is not None}
        out = absolute(self.out)
        planned = [
            replace(any_case, scan=absolute(case.scan), folder=case.folder)
            for case in planned_cases(list(scans), out, self.overwrite, refuse, names)
        ]
        return planned, refused

    def _look(self, job: Job, earlier: Mapping[str, Row]) -> Row | Job:
        """The row of a case that stands, that failed before, or has no scan; else the case with the memory it needs."""
        if not job.scan.exists():
            return failed_row(job, InputError(f"{job.scan}: expected a scan, found none; check the path"))
        before = earlier.get(as_text(str(job.scan)))
        before = before if before is not None and before.settings == job.fingerprint else None
        try:
            if not self.overwrite and is_done(job.folder, job.scan, self.settings):
                if before is not None and not before.failed and before.case == as_text(job.folder.name):
                    return before
                return designed_row(job)
        except (InputError, OSError):
            pass  # the design says what is wrong
        if before is not None and before.failed and not self.retry and before.sha256 == digest_of(job.scan) is not None:
            return before
        return replace(job, mb=expected_mb(job.scan, self.settings))

    def _clusters(self, jobs: list[Job]) -> Iterator[tuple[AbstractContextManager[Client], list[Job]]]:
        """Clusters, one after the other, and the cases of each."""
        if self.scheduler is not None:
            yield running_cluster(self.scheduler), jobs
            return
        if self.slurm is not None:
            largest = max(job.mb for job in jobs)
            yield slurm_cluster(self.slurm, self.workers or 1, largest, jobs[0].on_gpu, absolute(self.out)), jobs
            return
        cores, budget = cpu_count() or 1, int(memory_at_hand() * USABLE / 1e6)
        gpus = visible_gpus() if jobs[0].on_gpu else []
        most = self.workers or (cores if self.settings.device == "cpu" else max(1, len(gpus)))
        for workers, some in waves(jobs, most, budget):
            threads = max(1, cores // workers)
            self.note(f"{count(workers, 'worker')} of {count(threads, 'thread')} and {budget // workers} MB")
            yield local_cluster(workers, threads, budget // workers, gpus), some

    def _check(self, client: Client, job: Job) -> None:
        """Says where the dashboard is. Raises InputError for what every case would fail at: once, not once for each."""
        if (address := dashboard_of(client)) is not None:
            self.note(f"dashboard: {address}")
        if not client.nthreads():
            self.note("waiting for a worker")
        if (why := client.submit(why_not_ready, self.settings, job.fingerprint, pure=False).result()) is not None:
            raise InputError(why)


@dataclass
class _Tables:
    """The table for people and the one for programs, written again from time to time."""

    out: Path
    journal: Journal
    due: float = 0.0

    def renew(self, at_once: bool = False) -> None:
        """Writes both if it is time."""
        began = time.monotonic()
        if began >= self.due or at_once:
            write_table(self.out, self.journal.rows.values())
            write_cohort_page(self.out, list(self.journal.rows.values()))
            self.due = began + max(PAGE_S, (time.monotonic() - began) / PAGE_SHARE)


def count(number: int, noun: str) -> str:
    """`1 worker`, `2 workers`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _umask() -> int:
    """The umask of this process."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
