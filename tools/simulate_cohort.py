"""Simulates `pcdiff cohort` with up to 1,000 workers from what `tools/measure_cohort.py` measured: where does it bend?

    python tools/simulate_cohort.py docs/results/scale_small.json --disk-mb-s 1000 --file-ms 2

A discrete-event simulation. Each worker takes the same way again and again: the client gives it a case, it reads the
scan from the shared disk, computes for as long as a measured case did, writes its files to the disk, and the client
writes the row. Client and disk serve one request at a time, in the order of arrival; the disk takes a time for each
file, and the bytes at its bandwidth. Workers start one after the other: each reads packages and weights from the disk.

Measured: the seconds that cases take, the bytes and files of a case, and the client's CPU seconds for one. Assumed:
the disk (`--disk-mb-s`, `--file-ms`), the bytes of a start (`--start-mb`), and that workers do not slow each other down
(`--slowdown` otherwise).
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
CASES_A_WORKER = 200
YEAR_H = 365 * 24


@dataclass
class Server:
    """Serves one request at a time, in the order of arrival. busy: seconds that it has worked."""

    free_at: float = 0.0
    busy: float = 0.0

    def serve(self, arrival: float, seconds: float) -> float:
        """When a request that arrives now is done; requests must arrive in the order of time."""
        self.free_at = max(self.free_at, arrival) + seconds
        self.busy += seconds
        return self.free_at


@dataclass(frozen=True)
class Costs:
    """Of a case: seconds of computing, one of which is drawn; of the client and of the disk. Of a worker's start."""

    computing_s: Sequence[float]
    client_s: float
    read_s: float
    write_s: float
    start_s: float


@dataclass
class Outcome:
    """What a simulation found. hours: until the last row. client, disk: the share of that time that each is busy."""

    workers: int
    cases: int
    hours: float
    client: float
    disk: float

    @property
    def cases_per_hour(self) -> float:
        """Cases of an hour, the start included."""
        return self.cases / self.hours


def simulate(workers: int, cases: int, costs: Costs, seed: int = 0) -> Outcome:
    """Runs so many cases through so many workers."""
    rng = random.Random(seed)
    client, disk = Server(), Server()
    left, finished = cases, 0.0
    events: list[tuple[float, int, Iterator[float]]] = []

    def way(now: float) -> Iterator[float]:
        """The times at which a worker asks for something: it goes on at each."""
        nonlocal left, finished
        now = disk.serve(now, costs.start_s)
        while True:
            yield now
            if not left:
                return
            left -= 1
            now = client.serve(now, costs.client_s / 2)  # half to give a case, half to write its row
            yield now
            now = disk.serve(now, costs.read_s) + rng.choice(costs.computing_s)
            yield now
            now = disk.serve(now, costs.write_s)
            yield now
            now = client.serve(now, costs.client_s / 2)
            finished = max(finished, now)

    for number in range(workers):
        each = way(0.0)
        heapq.heappush(events, (next(each), number, each))
    while events:
        _, number, each = heapq.heappop(events)
        if (time := next(each, None)) is not None:
            heapq.heappush(events, (time, number, each))
    return Outcome(workers, cases, finished / 3600, client.busy / finished, disk.busy / finished)


def costs_of(found: dict[str, Any], disk_mb_s: float, file_ms: float, start_mb: float, slowdown: float) -> Costs:
    """The costs by a measurement: CPU seconds, spread over the cases as their seconds were."""
    run = min(found["runs"], key=lambda run: run["workers"])
    mean = sum(run["seconds"]) / len(run["seconds"])
    return Costs(
        [slowdown * run["cpu_s_per_case"] * seconds / mean for seconds in run["seconds"]],
        found["client"]["cpu_s_per_case"],
        found["input_mb"] / disk_mb_s + file_ms / 1000,
        run["output_mb"] / disk_mb_s + run["files"] * file_ms / 1000,
        start_mb / disk_mb_s,
    )


def workers_by_memory(found: dict[str, Any], gb_a_core: float) -> float:
    """Workers a core that the memory of a machine allows, at most one."""
    return min(1.0, gb_a_core * 1000 / max(run["expected_mb"] for run in found["runs"]))


def main() -> None:
    """Prints the curve, and what a year of so many implants takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurement", type=Path, help="of tools/measure_cohort.py")
    parser.add_argument("--disk-mb-s", type=float, default=1000, help="bandwidth of the shared disk")
    parser.add_argument("--file-ms", type=float, default=2, help="what a file costs the shared disk")
    parser.add_argument("--start-mb", type=float, default=600, help="packages and weights that a worker reads")
    parser.add_argument("--slowdown", type=float, default=1.0, help="of a worker by others on its machine")
    parser.add_argument("--input-mb", type=float, help="of a scan, instead of those measured; a CT has 50 to 300")
    parser.add_argument("--implants", type=int, default=1_000_000, help="in a year")
    parser.add_argument("--price", type=float, help="of a core for an hour")
    given = parser.parse_args()
    found = json.loads(given.measurement.read_text())
    if given.input_mb is not None:
        found["input_mb"] = given.input_mb
    costs = costs_of(found, given.disk_mb_s, given.file_ms, given.start_mb, given.slowdown)
    print("| workers | last one starts after, min | cases an hour | of ideal | client busy | disk busy |")
    print("|---|---|---|---|---|---|")
    alone = None
    for workers in COUNTS:
        outcome = simulate(workers, workers * CASES_A_WORKER, costs)
        alone = alone or outcome.cases_per_hour
        start, share = workers * costs.start_s / 60, outcome.cases_per_hour / alone / workers
        print(
            f"| {workers:,} | {start:.1f} | {outcome.cases_per_hour:,.0f} | {share:.0%} | {outcome.client:.0%} "
            f"| {outcome.disk:.0%} |"
        )
    mean = sum(costs.computing_s) / len(costs.computing_s)
    disk_s = costs.read_s + costs.write_s
    print(f"\nThe client alone bends the curve near {mean / costs.client_s:,.0f} workers, ", end="")
    print(f"the disk alone near {mean / disk_s:,.0f}.")
    for gb in (1, 2, 4):
        print(f"{gb} GB a core: a worker on {workers_by_memory(found, gb):.0%} of the cores.")
    hours = given.implants * mean / 3600
    stored = given.implants * min(run["output_mb"] for run in found["runs"]) / 1e6
    print(
        f"{given.implants:,} implants a year: {hours:,.0f} core-hours, {hours / YEAR_H:.2f} cores all year, "
        f"{stored:.1f} TB of results" + (f", {hours * given.price:,.0f} for the cores" if given.price else "")
    )


if __name__ == "__main__":
    main()
