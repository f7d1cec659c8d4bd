"""Runs that are killed at seeded moments, and what may then lie in their folder: whole files, and no others."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from safetensors import safe_open

from pcdiff.geometry.mesh import read_stl
from pcdiff.imaging.volumes import read_volume

KILLS = int(os.environ.get("CRASHES", "0"))  # of each command, in place of the few of `make test`; see `make crashes`
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate", "os.chmod"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
LONGEST_S = 0.03  # between a change and the kill: most writes take less
# Of a run, not of its result.
UNSTABLE = {"seconds", "stages", "date", "machine", "peak_memory_mb", "peak_mb", "processor", "load", "median_seconds"}
RUNS = multiprocessing.get_context("forkserver")  # what takes long to import is imported once
RUNS.set_forkserver_preload(
    [
        "test_crashes",
        "torch._dynamo",
        "pcdiff.cohort.runner",
        "pcdiff.methods.prior",
        "pcdiff.pipeline.flow",
        "pcdiff.pipeline.write",
    ]
)
Act = Callable[[Path], None]


def run_killed(act: Act, out: Path, change: int, delay_s: float = 0.0) -> bool:
    """Whether the run was killed: so long after its change number `change` beneath `out`; never for 0."""
    process = RUNS.Process(target=_run, args=(act, out, change, delay_s, out.with_name(f"{out.name}.changes")))
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))):  # for what is preloaded
        process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def changes_of(out: Path) -> int:
    """The changes that the last run made beneath `out`, which was not killed."""
    return int(out.with_name(f"{out.name}.changes").read_text())


def kill_often(act: Act, out: Path, changes: int, times: int, seed: int) -> Path:
    """Kills runs at seeded moments, every fourth in a new folder; after each, every file is whole.

    changes: that an undisturbed run makes. Returns the last folder, in which a run has then ended.
    """
    rng = np.random.default_rng(seed)
    killed = 0
    for number in range(KILLS or times):
        if number % 4 == 3:
            out = out.with_name(f"{out.name}_")
        killed += run_killed(act, out, int(rng.integers(1, changes + 1)), rng.choice([0.0, rng.uniform(0, LONGEST_S)]))
        check_whole(out)
    assert killed
    assert not run_killed(act, out, 0)
    check_whole(out)
    return out


def content(folder: Path) -> dict[str, Any]:
    """File -> what is in it, without what differs between two runs. Pages and logs are left out."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert not [path for path in files if path.name.startswith(".")]
    return {str(path.relative_to(folder)): _stable(path) for path in files if path.name != "log.jsonl"}


def check_whole(folder: Path) -> None:
    """Every file with a name of its own can be read to its end."""
    for path in folder.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            _read(path)


def _run(act: Act, out: Path, change: int, delay_s: float, count_file: Path) -> None:
    """In a process of its own: the run, and its end."""
    count, reached = [0], threading.Event()

    def kill() -> None:
        reached.wait()
        time.sleep(delay_s)
        os.kill(os.getpid(), signal.SIGKILL)

    def see(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not flags & WRITES or not str(path).startswith(str(out)):
                return
        elif event not in CHANGES or not str(arguments[0]).startswith(str(out)):
            return
        count[0] += 1
        if count[0] == change:
            if delay_s == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            reached.set()

    if change:
        threading.Thread(target=kill, daemon=True).start()
    sys.addaudithook(see)
    act(out)
    count_file.write_text(str(count[0]))


def _read(path: Path) -> object:
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".jsonl":
        *whole, last = path.read_text().split("\n")
        return [json.loads(line) for line in whole if line] + [last]
    if path.suffix == ".html":
        assert path.read_text().rstrip().endswith("</html>"), path
        return ""
    if path.suffix == ".csv":
        assert path.read_text().endswith("\n"), path
        with path.open(newline="") as file:
            rows = list(csv.reader(file, strict=True))
        assert {len(row) for row in rows} == {len(rows[0])}, path
        return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    if path.suffix == ".safetensors":
        with safe_open(path, "np") as file:
            return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {name: file[name].tobytes() for name in file}
    if path.suffix == ".nrrd":
        return read_volume(path).mask.tobytes()
    if path.suffix == ".stl":
        return read_stl(path).vertices.tobytes()
    assert path.suffix == ".png", path
    assert path.read_bytes().endswith(b"IEND\xaeB`\x82"), path
    return ""


def _stable(path: Path) -> object:
    value = _without(_read(path))
    if isinstance(value, list):  # a journal and its table have the order in which cases ended
        return sorted(value, key=repr)
    return value


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(each) for key, each in value.items() if key not in UNSTABLE}
    return [_without(each) for each in value] if isinstance(value, list) else value
