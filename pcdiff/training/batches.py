"""Batches of a data set, loaded by worker processes that are seeded, run on one thread, and end promptly."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from pcdiff.environment import one_thread_per_child
from pcdiff.training.stopping import ignore_sigterm


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
    stopping = get_context("spawn").Event() if workers else None
    loader = DataLoader(
        dataset if stopping is None else _UntilStopped(dataset, stopping),
        batch_sampler=indices,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=ignore_sigterm,
        multiprocessing_context="spawn" if workers else None,
        generator=torch.Generator().manual_seed(seed),
    )
    with one_thread_per_child():
        loaded = iter(loader)
    try:
        yield from loaded
    finally:
        if stopping is not None:
            stopping.set()


class _UntilStopped(Dataset[Any]):
    """Refuses items once the run stops, so that a worker ends after the item it is at, not after its batch."""

    def __init__(self, dataset: Dataset[Any], stopping: Event) -> None:
        self.dataset, self.stopping = dataset, stopping

    def __getitem__(self, index: int) -> Any:
        if self.stopping.is_set():
            raise RuntimeError("the run has stopped: no more items are loaded")
        return self.dataset[index]
