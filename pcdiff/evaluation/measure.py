"""Seconds and peak memory of a command, measured from outside its process."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys

PCDIFF = (sys.executable, "-m", "pcdiff")
COMMAND = (
    *(*PCDIFF, "sample", "{skull}", "-o", "{out}"),
    *("--method", "{method}", "--seed", "{seed}", "--no-report", "-q"),
)
# A child's ru_maxrss starts at the resident set of whoever started it, and this process holds volumes of its own. So a
# bare interpreter stands in between: it starts the command, waits for it, and prints what the command alone used.
_MEASURE = """
import json, os, signal, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
signal.signal(signal.SIGALRM, lambda *_: child.kill())
signal.setitimer(signal.ITIMER_REAL, float(sys.argv[1]))
_, status, usage = os.wait4(child.pid, 0)
print(json.dumps([time.perf_counter() - start, usage.ru_maxrss, os.waitstatus_to_exitcode(status)]))
"""
_RSS_PER_MB = 1e6 if sys.platform == "darwin" else 1e6 / 1024  # bytes there, KiB elsewhere
SILENT = "nothing on stderr"


def _measure(command: list[str], timeout_s: float) -> tuple[float, float, int, str | None]:
    """Runs a command: (seconds, peak MB, exit code, what went wrong). Its last line on stderr says what went wrong."""
    bare = [sys.executable, "-I", "-S", "-c", _MEASURE, str(timeout_s), *command]
    done = subprocess.run(bare, capture_output=True, text=True, errors="replace", check=False)
    said = done.stderr.strip().splitlines()
    last = said[-1].strip() if said else SILENT
    if done.returncode != 0:
        return math.nan, math.nan, done.returncode, f"could not start {command[0]}: {last}"
    seconds, rss, code = json.loads(done.stdout)
    if seconds >= timeout_s and code == -signal.SIGKILL:
        last = f"no implant after {timeout_s:g} s"
    elif code < 0:
        last = f"killed by {signal.Signals(-code).name}: {last}"
    return seconds, rss / _RSS_PER_MB, code, last if code else None
