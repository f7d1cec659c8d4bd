"""The cases that are left, given to Dask: never more than there are workers, and none that does not fit."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING
from uuid import uuid4

from pcdiff.cohort.cluster import MB, TRIES, capacities
from pcdiff.cohort.rows import Row
from pcdiff.cohort.work import Job, failed_row
from pcdiff.errors import InputError, OutputError
from pcdiff.pipeline.case_folder import clear_away

if TYPE_CHECKING:
    from distributed import Client, Future

LOOK_S = 1.0  # between two looks at the workers


def waves(jobs: Sequence[Job], most: int, budget_mb: int) -> list[tuple[int, list[Job]]]:
    """(workers, cases): a case runs among as many workers, at most `most`, as leave it the memory that it may need.

    The workers of a machine share its memory, so large cases run among fewer of them, after the others.
    """
    sizes = [most]
    while sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)
    of: dict[int, list[Job]] = {size: [] for size in sizes}
    for job in jobs:
        of[next((size for size in sizes if job.mb <= budget_mb // size), 1)].append(job)
    return [(min(size, len(some)), some) for size, some in of.items() if some]


def dispatch(
    client: Client,
    jobs: Sequence[Job],
    running: dict[str, Job],
    work: Callable[[Job], Row],
) -> Iterator[Row]:
    """The row of each case as it is done.

    A case waits here until a worker is free: Dask blames the death of a worker on every case that waits there. running:
    gets the cases in work, by their keys. work: what a worker does with a case.

    Raises InputError if the scheduler goes away, and for workers that do not state their memory.
    """
    waiting, done = deque(jobs), SimpleQueue["Future"]()
    places, looked = _places(client), time.monotonic()
    while waiting or running:
        if time.monotonic() - looked > LOOK_S:
            places, looked = _places(client), time.monotonic()
        while waiting and len(running) < sum(cases for cases, _ in places):
            job, largest = waiting.popleft(), max(mb for _, mb in places)
            if job.mb > largest:
                yield failed_row(job, _does_not_fit(job, largest))
                continue
            future = client.submit(work, job, key=f"case-{uuid4().hex}", resources={MB: job.mb}, pure=False)
            running[future.key] = job
            future.add_done_callback(done.put)
        try:
            future = done.get(timeout=LOOK_S)
        except Empty:
            continue
        row = _row_of(future, running[future.key])
        del running[future.key]
        yield row


def _row_of(future: Future, job: Job) -> Row:
    """What the worker returned, or why there is nothing."""
    from distributed import KilledWorker

    if future.status in ("cancelled", "lost"):
        raise _gone()
    error = future.exception()
    if error is None:
        row: Row = future.result()
        return row
    if isinstance(error, KilledWorker):
        clear_away(job.folder)
        return failed_row(
            job,
            OutputError(
                f"{job.scan.name}: its worker died {TRIES} times in the middle of it, perhaps for lack of memory "
                f"({job.mb} MB were expected); try again with fewer --workers and --retry"
            ),
        )
    return failed_row(job, error)


def _places(client: Client) -> list[tuple[int, int]]:
    try:
        return capacities(client)
    except (OSError, TimeoutError) as error:
        raise _gone() from error


def _gone() -> InputError:
    return InputError(
        "the Dask scheduler has gone away; start it, and run the same command again: it goes on from here"
    )


def _does_not_fit(job: Job, largest: int) -> InputError:
    return InputError(
        f"{job.scan.name}: may need {job.mb} MB of memory, {largest} MB is the most that a worker has; crop the scan "
        "to the head, or use a larger machine"
    )
