"""The command that designs an implant; its run time and peak memory, measured from outside its process."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

PCDIFF = (sys.executable, "-m", "pcdiff")
COMMAND = (
    *(*PCDIFF, "design", "{skull}", "-o", "{out}"),
    *("--method", "{method}", "--seed", "{seed}", "--no-report", "-q"),
)
NO_MESSAGE = "nothing on stderr"
# The peak memory of a child process starts at that of its parent, and this process holds volumes. So a bare interpreter
# starts the command, waits for it, and prints what the command alone used. It ends the command where it is told to, and
# where the process that measures has gone.
_PROGRAM = """
import json, os, signal, subprocess, sys, time
start, parent, limit = time.perf_counter(), os.getppid(), float(sys.argv[1])
child = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
def look(*_):
    if time.perf_counter() - start >= limit:
        child.kill()
    elif os.getppid() != parent:
        child.terminate()
signal.signal(signal.SIGTERM, lambda *_: child.terminate())
signal.signal(signal.SIGALRM, look)
signal.setitimer(signal.ITIMER_REAL, min(limit, 0.5), 0.5)
_, status, usage = os.wait4(child.pid, 0)
signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm while the interpreter ends would kill it
cpu = usage.ru_utime + usage.ru_stime
print(json.dumps([time.perf_counter() - start, usage.ru_maxrss, os.waitstatus_to_exitcode(status), cpu]))
"""
_RSS_PER_MB = 1e6 if sys.platform == "darwin" else 1e6 / 1024  # ru_maxrss is in bytes there, in KiB elsewhere


class Measurement(NamedTuple):
    """One run of a command.

    seconds: wall time of its process. peak_mb: its peak resident set, 10^6 bytes. exit_code: negative for a signal.
    error: why it failed, from the last line on stderr; None for exit code 0. cpu_seconds: of all its threads, and of
    the processes that it started and waited for.
    """

    seconds: float
    peak_mb: float
    exit_code: int
    error: str | None
    cpu_seconds: float


_running: set[subprocess.Popen[str]] = set()


def end_all() -> None:
    """Ends every command that runs in some thread; `measure` returns there."""
    for process in list(_running):
        process.terminate()


def measure(command: Sequence[str], timeout_s: float) -> Measurement:
    """Runs a command and kills it after `timeout_s`. A command that cannot start has NaN seconds and memory."""
    bare = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(timeout_s), *command]
    with subprocess.Popen(bare, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        _running.add(process)
        try:
            output, said = process.communicate()
        finally:
            _running.discard(process)
    lines = said.strip().splitlines()
    message = lines[-1].strip() if lines else NO_MESSAGE
    if process.returncode != 0:
        return Measurement(math.nan, math.nan, process.returncode, f"could not start {command[0]}: {message}", math.nan)
    seconds, rss, exit_code, cpu = json.loads(output)
    if seconds >= timeout_s and exit_code == -signal.SIGKILL:
        message = f"no implant after {timeout_s:g} s"
    elif exit_code < 0:
        message = f"killed by {signal.Signals(-exit_code).name}: {message}"
    return Measurement(seconds, rss / _RSS_PER_MB, exit_code, message if exit_code else None, cpu)
