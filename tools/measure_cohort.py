"""Measures `pcdiff cohort` on synthetic heads, with 1 worker and with more: what docs/scale.md reports.

    python tools/measure_cohort.py --spacing 2.5 --cases 12 --workers 1,2 --options "--method prior --no-report" \
        --out docs/results/scale_small.json

Wall times hold for the machine as it was: the load before and after is written down. CPU seconds hardly depend on it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pcdiff.cohort.rows import Row
from pcdiff.cohort.runner import Cohort
from pcdiff.cohort.work import Job
from pcdiff.data.craniotomy import simulate_craniotomy
from pcdiff.environment import commit, cpu_count, machine
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import write_volume
from pcdiff.pipeline.settings import Settings
from pcdiff.prior.model import ShapePrior

KINDS = ("random_1", "bilateral", "frontoorbital", "parietotemporal", "skullfix")
PICTURE = "data:image/webp;base64," + "A" * 1700  # as large as usual


def main() -> None:
    """Makes the heads, runs the cohorts, and writes what they took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spacing", type=float, default=2.5, help="mm between the voxels of the heads")
    parser.add_argument("--scans", type=Path, help="a folder of scans to take instead")
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--workers", default="1,2", help="numbers of workers, one cohort for each")
    parser.add_argument("--options", default="--method prior --no-report", help="of pcdiff cohort")
    parser.add_argument("--rounds", type=int, default=1, help="times that each number of workers is measured")
    parser.add_argument("--empty", type=int, default=400, help="cases without work, for what each costs the client")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        heads = given.scans or write_heads(folder / "heads", given.cases, given.spacing)
        runs = [
            measured(heads, folder / f"out_{round_}_{workers}", workers, shlex.split(given.options))
            for round_ in range(given.rounds)
            for workers in map(int, given.workers.split(","))
        ]
        found = {
            "commit": commit(),
            "machine": machine(),
            "scans": "heads of real people" if given.scans else f"synthetic heads of {given.spacing} mm",
            "options": given.options,
            "input_mb": statistics.mean(path.stat().st_size for path in heads.iterdir()) / 1e6,
            "runs": runs,
            "client": client_cost(folder / "empty", given.empty),
        }
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    for run in runs:
        print(
            f"{run['workers']} workers: {run['wall_s']:.0f} s for {run['cases']} cases, {run['cpu_s_per_case']:.1f} "
            f"CPU-s a case, load {run['load_before']:.1f} to {run['load_after']:.1f}"
        )
    print(f"client: {1000 * found['client']['cpu_s_per_case']:.1f} CPU-ms a case")


def write_heads(folder: Path, count: int, spacing: float) -> Path:
    """Heads drawn from the shipped shape model, each with a defect; returns the folder."""
    folder.mkdir()
    prior = ShapePrior.shipped()
    for number in range(count):
        rng = np.random.default_rng(number)
        skull, _ = simulate_craniotomy(prior.draw(rng, spacing=spacing), KINDS[number % len(KINDS)], rng)
        write_volume(skull, folder / f"{number:04d}.nrrd")
    return folder


def measured(heads: Path, out: Path, workers: int, options: list[str]) -> dict[str, Any]:
    """Seconds and CPU seconds of a cohort, and its rows' stages."""
    load, cpu, began = os.getloadavg()[0], children_cpu(), time.perf_counter()
    command = [sys.executable, "-m", "pcdiff", "cohort", str(heads), "-o", str(out), *options]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--workers", str(workers), "-q"], check=True, env=one_thread)
    wall = time.perf_counter() - began
    rows = [json.loads(line) for line in (out / "cohort.jsonl").read_text().splitlines()]
    sizes = [sum(file.stat().st_size for file in (out / row["case"]).rglob("*")) for row in rows]
    return {
        "workers": workers,
        "cases": len(rows),
        "wall_s": round(wall, 2),
        "cpu_s_per_case": round((children_cpu() - cpu) / len(rows), 3),
        "seconds": [row["seconds"] for row in rows],
        "stages": {
            name: round(statistics.median(row["stages"][name] for row in rows), 3) for name in rows[0]["stages"]
        },
        "peak_memory_mb": max(row["peak_memory_mb"] for row in rows),
        "expected_mb": max(row["expected_mb"] for row in rows),
        "output_mb": round(statistics.mean(sizes) / 1e6, 3),
        "files": round(statistics.mean(sum(1 for _ in (out / row["case"]).rglob("*")) for row in rows)),
        "load_before": load,
        "load_after": os.getloadavg()[0],
    }


def client_cost(folder: Path, count: int) -> dict[str, Any]:
    """What a case costs the one process that plans, gives and writes rows: cases whose work is nothing."""
    folder.mkdir()
    write_volume(Volume(np.ones((4, 4, 4), bool), np.eye(4)), folder / "0.nrrd")
    scans = {folder / f"{number}.nrrd": None for number in range(count)}
    for scan in [*scans][1:]:
        os.link(folder / "0.nrrd", scan)
    cohort = Cohort(folder / "out", Settings("prior", report=False), workers=min(2, cpu_count() or 1))
    cpu, began = time.process_time(), time.perf_counter()
    rows = cohort.run(scans, nothing)
    assert len(rows) == count
    cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - began
    return {"cases": count, "cpu_s_per_case": cpu_s / count, "wall_s": round(wall_s, 2)}


def nothing(job: Job) -> Row:
    """A row without a design."""
    row = Row(job.folder.name, str(job.scan), job.fingerprint, "designed", "0" * 64)
    return replace(row, picture=PICTURE, defects=1, implant_ml=30.0, seconds=5.0)


def children_cpu() -> float:
    """CPU seconds of this process's children that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
