"""SIGTERM and training: a run saves its state before it ends, and never waits long to do so."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import Accelerator


class Interrupted(BaseException):
    """SIGTERM arrived in a block that may be left at once."""


class Sigterm:
    """While entered, SIGTERM sets `stop` instead of ending the process.

    Python delivers signals to the main thread only: entered in another thread, this does nothing.
    """

    stop = False

    def __init__(self) -> None:
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
            raise Interrupted


@contextmanager
def clean_exit_on_sigterm() -> Iterator[None]:
    """SIGTERM leaves the block as an exception, so that worker pools are shut down, and only then takes effect."""
    try:
        with Sigterm() as sigterm, sigterm.interruptible():
            yield
    except Interrupted:
        signal.raise_signal(signal.SIGTERM)  # the earlier handler's turn: by default it ends the process
        raise


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """True if the flag is set in any process: all must leave the loop at the same step."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)) > 0)
