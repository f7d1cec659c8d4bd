"""SIGTERM and training: a run saves its state before it ends, and never waits long to do so."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import InvalidStateError
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator


class Interrupted(BaseException):
    """SIGTERM arrived in a block that may be left at once."""


class Sigterm:
    """While entered, SIGTERM sets `stop` instead of ending the process.

    Python delivers signals to the main thread only: entered in another thread, this does nothing.
    on_interrupt: called at SIGTERM in an interruptible block, before the block is left.
    """

    stop = False

    def __init__(self, on_interrupt: Callable[[], None] | None = None) -> None:
        self._on_interrupt = on_interrupt
        self._installed = self._interruptible = False

    def __enter__(self) -> Sigterm:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._handle)
            self._installed = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, self._before)
            self._installed = False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block that SIGTERM leaves at once by Interrupted, also if it arrived before. Nothing in it may be lost."""
        self._interruptible = True
        try:
            if self.stop:
                raise Interrupted
            yield
        finally:
            self._interruptible = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.stop = True
        if self._interruptible:
            self._interruptible = False  # a second signal must not disturb the way out
            if self._on_interrupt is not None:
                self._on_interrupt()
            raise Interrupted


@contextmanager
def clean_exit_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the worker processes started in the block, leaves the block, and only then ends this process."""
    others, hook = active_children(), threading.excepthook

    def end_workers() -> None:
        threading.excepthook = partial(_unless_cancelled, hook)
        for child in active_children():
            if child not in others:
                child.terminate()

    try:
        with Sigterm(end_workers) as sigterm, sigterm.interruptible():
            yield
    except Interrupted:
        signal.raise_signal(signal.SIGTERM)  # the earlier handler's turn: by default it ends the process
        threading.excepthook = hook
        raise


def _unless_cancelled(hook: Callable[[Any], Any], error: Any) -> None:
    """A pool's thread that finds its workers gone may meet items that are cancelled by now, which is no error."""
    if error.exc_type is not InvalidStateError:
        hook(error)


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """True if the flag is set in any process: all must leave the loop at the same step."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)) > 0)
