"""Batches of a data set, loaded by worker processes that are seeded, run on one thread each, and end promptly."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children, get_context
from multiprocessing.synchronize import Event
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from pcdiff.environment import one_thread_per_child


def load_batches(
    dataset: Dataset[Any], indices: Iterable[list[int]], workers: int, seed: int, pin_memory: bool
) -> Generator[Any, None, None]:
    """Yields one collated batch for each list of indices. Close the generator to end its workers early.

    Args:
        dataset: item k must be a function of k alone, so that a run that goes on meets the same items.
        indices: of the items of each batch.
        workers: processes that load; 0 loads in this one.
        seed: of the random state of the workers.
        pin_memory: put batches into page-locked memory, from which copies to a GPU do not wait.
    """
    stopping = get_context("spawn").Event()
    loader = DataLoader(
        dataset,
        batch_sampler=indices,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=partial(_start_worker, stopping),
        multiprocessing_context="spawn" if workers else None,
        generator=torch.Generator().manual_seed(seed),
    )
    others = active_children()
    with one_thread_per_child(), _sigterm_blocked():
        loaded = iter(loader)
    own = [child for child in active_children() if child not in others]
    try:
        yield from loaded
    finally:
        stopping.set()
        for worker in own:
            worker.terminate()


def _start_worker(stopping: Event, _: int) -> None:
    """Makes a worker end at SIGTERM only once the run stops: before, the signal is for the main process to act on."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if stopping.is_set() else None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


@contextmanager
def _sigterm_blocked() -> Iterator[None]:
    """Processes started in the block hold SIGTERM back until they unblock it; here it arrives after the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
