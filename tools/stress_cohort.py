"""A long cohort of small synthetic heads, with files between them that are no scans, whose workers are killed.

    python tools/stress_cohort.py --cases 1000 --to docs/results/stress.json

Some heads are designed undisturbed first. Then many scans, copies of these heads under other names, go through one
`pcdiff cohort` with files that hold no defective skull; every minute its youngest worker gets SIGKILL, and the memory
of the oldest one is read. At the end each good case must have the files of its head, byte for byte, and each bad one a
row with a reason. docs/scale.md reports it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from measure_cohort import write_heads

from pcdiff.environment import commit, machine
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import write_volume
from pcdiff.prior.model import ShapePrior

OPTIONS = ("--method", "prior", "--no-report", "--workers", "2", "-q")
SAME = ("implant.nrrd", "implant.stl", "surface.npz", "defective_skull.nrrd")  # the others hold times and names
SAMPLE_S = 2.0
WORKER_MB = 150  # a process of less is not a worker, or not ready
ROWS = 100  # of which the memory at the begin and at the end is the median

Samples = list[tuple[int, float]]  # rows that are there, and MB of the oldest worker


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="good and bad ones together")
    parser.add_argument("--bad", type=float, default=0.05, help="share of files without a defective skull")
    parser.add_argument("--heads", type=int, default=20, help="different ones")
    parser.add_argument("--spacing", type=float, default=3.0, help="mm between the voxels of the heads")
    parser.add_argument("--kill-s", type=float, default=60.0, help="seconds from one killed worker to the next")
    parser.add_argument("--to", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        heads = write_heads(folder / "heads", given.heads, given.spacing)
        cohort(heads, folder / "quiet")
        bad = round(given.cases * given.bad)
        origin = write_scans(folder / "scans", heads, given.cases - bad, bad)
        began = time.monotonic()
        kills, samples = disturbed(folder / "scans", folder / "out", given.kill_s)
        wall = time.monotonic() - began
        lost = sum("its worker died" in row["reason"] for row in rows_of(folder / "out"))
        cohort(folder / "scans", folder / "out", "--retry")
        found = {
            "commit": commit(),
            "machine": machine(),
            "cases": given.cases,
            "bad": bad,
            "heads": given.heads,
            "spacing_mm": given.spacing,
            "kill_s": given.kill_s,
            "wall_s": round(wall),
            "kills": kills,
            "lost_before_retry": lost,
            "memory_mb": memory(samples),
            **outcome(folder / "out", folder / "quiet", origin),
        }
    given.to.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def write_scans(folder: Path, heads: Path, good: int, bad: int) -> dict[str, str | None]:
    """Copies of the heads with bad files between them; name -> that of its head, None for a bad one."""
    folder.mkdir()
    files, makers = sorted(heads.iterdir()), bad_files(min(heads.iterdir()))
    kinds, every = list(makers), (good + bad) // max(bad, 1)
    origin: dict[str, str | None] = {}
    for number in range(good + bad):
        if number % every == every - 1 and (so_far := number // every) < bad:
            kind = kinds[so_far % len(kinds)]
            name = f"{number:04d}_{kind}"
            makers[kind](folder / f"{name}.nrrd")
            origin[name] = None
        else:
            head = files[number % len(files)]
            name = f"{number:04d}"
            shutil.copy(head, folder / f"{name}.nrrd")
            origin[name] = head.stem
    return origin


def bad_files(head: Path) -> dict[str, Callable[[Path], object]]:
    """What writes each kind of file without a defective skull."""
    content = head.read_bytes()
    header = b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 99999 99999 99999\nencoding: raw\n\n"
    healthy = ShapePrior.shipped().draw(np.random.default_rng(0), spacing=3.0)
    return {
        "empty": lambda path: path.write_bytes(b""),
        "text": lambda path: path.write_text("patient\n"),
        "cut_off": lambda path: path.write_bytes(content[: len(content) // 2]),
        "damaged": lambda path: path.write_bytes(content[:-500] + bytes(500)),
        "huge": lambda path: path.write_bytes(header),
        "healthy": lambda path: write_volume(healthy, path),
        "no_bone": lambda path: write_volume(Volume(np.zeros((40, 40, 40), bool), np.eye(4)), path),
        "all_bone": lambda path: write_volume(Volume(np.ones((40, 40, 40), bool), np.eye(4)), path),
        "noise": lambda path: write_volume(
            Volume(np.random.default_rng(0).random((60, 60, 60)) > 0.5, np.diag([3.0, 3, 3, 1])), path
        ),
    }


def cohort(scans: Path, out: Path, *options: str) -> None:
    """An undisturbed cohort; some cases may fail."""
    subprocess.run([*command(scans, out), *options], check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})


def command(scans: Path, out: Path) -> list[str]:
    """The command of a cohort."""
    return [sys.executable, "-m", "pcdiff", "cohort", str(scans / "*.nrrd"), "-o", str(out), *OPTIONS]


def disturbed(scans: Path, out: Path, kill_s: float) -> tuple[int, Samples]:
    """A cohort whose youngest worker is killed every so often; how often, and the memory of its oldest worker."""
    process = subprocess.Popen(command(scans, out), env=os.environ | {"OMP_NUM_THREADS": "1"})
    kills, samples, due = 0, [], time.monotonic() + kill_s
    while process.poll() is None:
        time.sleep(SAMPLE_S)
        workers = workers_of(process.pid)
        if workers:
            samples.append((count_rows(out), memory_mb(workers[0])))
        if len(workers) > 1 and time.monotonic() >= due:
            workers[-1].kill()
            kills, due = kills + 1, time.monotonic() + kill_s
    return kills, samples


def workers_of(pid: int) -> list[psutil.Process]:
    """The workers of a cohort, the oldest one first."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return sorted((child for child in children if memory_mb(child) > WORKER_MB), key=lambda child: child.create_time())


def memory_mb(process: psutil.Process) -> float:
    """The resident memory of a process; 0 of one that has ended."""
    try:
        return float(process.memory_info().rss) / 1e6
    except psutil.NoSuchProcess:
        return 0.0


def count_rows(out: Path) -> int:
    """The rows that a cohort has written so far."""
    journal = out / "cohort.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def rows_of(out: Path) -> list[dict[str, Any]]:
    """The rows of a cohort that has ended."""
    return [json.loads(line) for line in (out / "cohort.jsonl").read_text().splitlines()]


def memory(samples: Samples) -> dict[str, float]:
    """Median MB of the oldest worker over `ROWS` rows after the first ones, and over the last."""
    last = samples[-1][0]
    first = [mb for rows, mb in samples if ROWS / 2 <= rows < ROWS * 3 / 2]
    end = [mb for rows, mb in samples if rows >= last - ROWS]
    return {"begin": round(median(first)) if first else 0, "end": round(median(end))}


def outcome(out: Path, quiet: Path, origin: dict[str, str | None]) -> dict[str, Any]:
    """What became of the cases: numbers, the reasons of the bad ones, and what is not as it should be."""
    rows = {row["case"]: row for row in rows_of(out)}
    wrong = [f"{name}: no row" for name in origin if name not in rows]
    wrong += [f"{name}: a row of no scan" for name in rows if name not in origin]
    good = [name for name, head in origin.items() if head is not None]
    for name in good:
        if (row := rows.get(name)) is not None and row["state"] == "failed":
            wrong.append(row["reason"])
        elif row is not None:
            head = quiet / str(origin[name])
            wrong += [
                f"{name}: another {file}"
                for file in SAME
                if (out / name / file).read_bytes() != (head / file).read_bytes()
            ]
    bad = [rows[name] for name, head in origin.items() if head is None and name in rows]
    wrong += [f"{row['case']}: an implant" for row in bad if row["state"] == "designed"]
    wrong += [f"{row['case']}: no reason" for row in bad if not row["reason"]]
    wrong += [f"{path.name}: left behind" for path in out.iterdir() if path.name.startswith(".")]
    return {
        "designed": sum(row["state"] == "designed" for row in rows.values()),
        "failed": Counter(row["case"].partition("_")[2] for row in rows.values() if row["state"] == "failed"),
        "wrong": wrong,
    }


if __name__ == "__main__":
    main()
