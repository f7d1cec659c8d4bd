"""The cases that are left, given to Dask: one to each worker at a time, and none that does not fit."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

from pcdiff.cohort.cluster import Worker, resources, workers_of
from pcdiff.cohort.rows import Row
from pcdiff.cohort.work import Job, failed_row, within_time
from pcdiff.errors import InputError, OutputError
from pcdiff.pipeline.case_folder import clear_away

if TYPE_CHECKING:
    from distributed import Client, Future

TRIES = 2  # of a case whose worker dies
LOOK_S = 1.0  # between two looks at the workers
MISSED = 20  # a worker is dead that so many looks in a row have missed: seconds would pass while this process stands
FETCH_S = 10.0  # for a result that is ready; then the worker is slow, or has died with it


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


class _Hand(NamedTuple):
    """A case in work, its worker's address, what the worker will return, and when it got the case."""

    job: Job
    address: str
    future: Future
    began: float

    @property
    def late(self) -> bool:
        """Whether the case has had its time."""
        return time.monotonic() >= self.began + self.job.timeout_s


class Dispatch:
    """Cases on their way through the workers of a cluster.

    A worker gets as many cases as it does at a time, and what waits, waits here: so a worker that dies touches the
    cases in its hands alone. They are tried once more, unless they took longer than they may, which is what ends their
    worker. Dask's own second tries would also blame those that wait at the worker, and a case that is bound to a dead
    worker would wait for ever.
    """

    def __init__(self, client: Client, jobs: Sequence[Job], work: Callable[[Job], Row]) -> None:
        """work: what a worker does with a case."""
        self._client, self._work = client, work
        self._gpu = any(job.on_gpu for job in jobs)
        self._waiting = deque(jobs)
        self._hands: dict[str, _Hand] = {}
        self._deaths: Counter[Job] = Counter()
        self._done: SimpleQueue[Future] = SimpleQueue()
        self._workers: list[Worker] = []
        self._look_at = 0.0
        self._missed: Counter[str] = Counter()  # looks in a row that did not find a worker that has a case

    @property
    def in_work(self) -> list[Job]:
        """The cases that workers have in their hands."""
        return [hand.job for hand in self._hands.values()]

    def rows(self) -> Iterator[Row]:
        """The row of each case as it is done.

        Raises InputError if the scheduler goes away, and for workers that do not state their memory.
        """
        while self._waiting or self._hands:
            self._look()
            yield from self._refused()
            self._give()
            for key in self._ended():
                if (row := self._take(key)) is not None:
                    yield row

    def _look(self) -> None:
        """Sees which workers there are, from time to time."""
        if time.monotonic() < self._look_at:
            return
        try:
            self._workers = workers_of(self._client, self._gpu)
        except (OSError, TimeoutError) as error:
            raise _gone() from error
        self._look_at = time.monotonic() + LOOK_S
        absent = {hand.address for hand in self._hands.values()} - {worker.address for worker in self._workers}
        self._missed = Counter({address: self._missed[address] + 1 for address in absent})

    def _is_dead(self, address: str) -> bool:
        return self._missed[address] >= MISSED

    def _refused(self) -> Iterator[Row]:
        """Rows of the cases that fit no worker; without a worker nothing is known."""
        largest = max((worker.mb for worker in self._workers), default=None)
        if largest is not None:
            for job in [job for job in self._waiting if job.mb > largest]:
                self._waiting.remove(job)
                yield failed_row(job, _does_not_fit(job, largest))

    def _give(self) -> None:
        """Gives each worker that is free the first case that fits it."""
        busy = Counter(hand.address for hand in self._hands.values())
        for worker in self._workers:
            for _ in range(worker.cases - busy[worker.address]):
                job = next((job for job in self._waiting if job.mb <= worker.mb), None)
                if job is None:
                    break
                self._waiting.remove(job)
                key, takes = f"case-{uuid4().hex}", resources(job.mb, self._gpu)  # no key says anything about a patient
                future = self._client.submit(
                    within_time, self._work, job, key=key, workers=[worker.address], resources=takes
                )
                self._hands[key] = _Hand(job, worker.address, future, time.monotonic())
                future.add_done_callback(self._done.put)

    def _ended(self) -> list[str]:
        """Keys of cases that are done or have lost their worker, after waiting a little for the first."""
        keys = [key for key, hand in self._hands.items() if self._is_dead(hand.address)]
        with suppress(Empty):
            keys.append(self._done.get(timeout=0 if keys else LOOK_S).key)
            while True:
                keys.append(self._done.get_nowait().key)
        return keys

    def _take(self, key: str) -> Row | None:
        """The row of a case that has ended; None if it is not there yet or tried again, or has been taken before."""
        from distributed import KilledWorker

        if (hand := self._hands.get(key)) is None:
            return None
        row: Row | None = None
        if not self._is_dead(hand.address):
            try:
                row = hand.future.result(timeout=FETCH_S)
            except KilledWorker:
                pass
            except TimeoutError:
                hand.future.add_done_callback(self._done.put)
                return None
            except Exception as error:  # such as a worker without pcdiff
                if hand.future.cancelled():
                    raise _gone() from error
                row = failed_row(hand.job, error)
        del self._hands[key]
        return row or self._lost(hand)

    def _lost(self, hand: _Hand) -> Row | None:
        """The row of a case whose worker has died; None if it is tried again."""
        hand.future.cancel()
        self._look_at = 0.0  # who is there now?
        clear_away(hand.job.folder)
        if hand.late:
            return failed_row(hand.job, _took_too_long(hand.job))
        self._deaths[hand.job] += 1
        if self._deaths[hand.job] < TRIES:
            self._waiting.appendleft(hand.job)
            return None
        return failed_row(hand.job, _died(hand.job))


def _gone() -> InputError:
    return InputError(
        "the Dask scheduler has gone away; start it, and run the same command again: it goes on from here"
    )


def _died(job: Job) -> OutputError:
    return OutputError(
        f"{job.scan.name}: its worker died {TRIES} times in the middle of it, perhaps for lack of memory "
        f"({job.mb} MB were expected); try again with fewer --workers and --retry"
    )


def _took_too_long(job: Job) -> OutputError:
    return OutputError(f"{job.scan.name}: no implant after {job.timeout_s:g} s; allow more by --timeout, with --retry")


def _does_not_fit(job: Job, largest: int) -> InputError:
    return InputError(
        f"{job.scan.name}: may need {job.mb} MB of memory, {largest} MB is the most that a worker has; crop the scan "
        "to the head, or use a larger machine"
    )
