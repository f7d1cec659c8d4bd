"""What Windows lacks is simulated: modules, functions and signals of POSIX. The main path needs none of them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch  # noqa: F401 (it asks for the platform when it is imported)
from stub_method import Run

from pcdiff.pipeline.record import case_record


class Kernel:
    """kernel32.dll, which says that the process once had 321 million bytes."""

    def __init__(self, name: str) -> None:
        assert name == "kernel32"
        self.GetCurrentProcess = self._Function(lambda: 7)
        self.K32GetProcessMemoryInfo = self._Function(self._tell)

    class _Function(SimpleNamespace):
        def __init__(self, call: Any) -> None:
            super().__init__(call=call)

        def __call__(self, *arguments: Any) -> Any:
            return self.call(*arguments)

    def _tell(self, process: int, counters: Any, size: int) -> int:
        assert process == 7
        assert size == 8 + 8 * ctypes.sizeof(ctypes.c_size_t)  # of PROCESS_MEMORY_COUNTERS
        counters._obj.PeakWorkingSetSize = 321_000_000
        return 1


@contextmanager
def windows() -> Iterator[None]:
    """While entered; afterwards pytest needs its timers again."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("resource", "fcntl", "pwd", "grp"):
            monkeypatch.setitem(sys.modules, name, None)
        for name in ("geteuid", "getuid", "wait4", "fork", "sysconf", "sched_getaffinity", "killpg"):
            monkeypatch.delattr(os, name, raising=False)
        for name in ("SIGALRM", "SIGHUP", "SIGKILL", "setitimer"):
            monkeypatch.delattr(signal, name, raising=False)

        def link(*_: Any, follow_symlinks: bool = True) -> None:
            raise NotImplementedError("link: follow_symlinks unavailable on this platform")

        def library(name: str | None, **_: Any) -> None:
            raise TypeError("argument of type 'NoneType' is not iterable")

        monkeypatch.setattr(os, "link", link)
        monkeypatch.setattr(ctypes, "CDLL", library)
        monkeypatch.setattr(ctypes, "WinDLL", Kernel, raising=False)
        monkeypatch.setattr(sys, "platform", "win32")
        yield


@pytest.mark.usefixtures("stub")
def test_the_main_path_needs_nothing_of_posix(run: Run, skull: Path, tmp_path: Path) -> None:
    with windows():
        code, _, said = run("design", skull, "-o", tmp_path / "out", "-q", "--no-report")
        assert said == ""
        assert code == 0
        case = tmp_path / "out" / "head"
        assert case_record(case)["peak_memory_mb"] == 321
        (case / "notes.txt").write_text("mine")
        assert run("design", skull, "-o", tmp_path / "out", "-q", "--no-report", "--overwrite")[0] == 0
        assert (case / "notes.txt").read_text() == "mine"
        for command in (["report", case], ["export", "scene", case]):
            assert run(*command)[0] == 0


def test_evaluate_says_that_it_cannot_measure_there(run: Run, tmp_path: Path) -> None:
    with windows():
        code, _, said = run("evaluate", "--data", tmp_path, "-o", tmp_path / "out")
        assert code == 2
        assert "run it in WSL" in said
