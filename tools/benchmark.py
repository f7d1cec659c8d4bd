"""Wall time and peak memory of `pcdiff sample` and `pcdiff demo`, from process start to files written, by stage.

    python tools/benchmark.py                     # the demo, and `sample` on the demo's defective skull
    python tools/benchmark.py skull.nrrd -n 5     # `sample` on a skull of yours too

Prints a Markdown table of medians over the repeats. `start` is what no stage accounts for: the interpreter, imports,
weights, and hashes. Memory is the peak resident set, the largest of the repeats, 10^6 bytes.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from pcdiff.design.case import case_name
from pcdiff.environment import machine
from pcdiff.evaluation.measure import _measure

SHIPPED = ("diffusion", "prior")  # methods with weights
STAGES = ("read", "points", "reconstruct", "mesh", "write", "check")


def measure(arguments: Sequence[str], folder: Path, repeats: int) -> str:
    """A row of the table. folder: where the command leaves its run.json."""
    seconds, peaks, stages = [], [], []
    for _ in range(repeats):
        wall, peak, _, error = _measure([sys.executable, "-m", "pcdiff", *arguments, "--overwrite", "-q"], 900)
        if error:
            sys.exit(f"{' '.join(arguments)}: {error}")
        recorded = json.loads((folder / "run.json").read_text())["seconds"]
        seconds.append(wall)
        peaks.append(peak)
        stages.append({"start": wall - recorded["total"], **recorded})
    parts = " | ".join(f"{median(stage[name] for stage in stages):.2f}" for name in ("start", *STAGES))
    return f"| {median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f}) | {max(peaks):.0f} | {parts} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("skulls", nargs="*", type=Path, help="masks of defective skulls")
    parser.add_argument("-n", "--repeats", type=int, default=3)
    parser.add_argument("--method", choices=SHIPPED, nargs="+", default=list(SHIPPED))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ensemble", type=int, default=1)
    parser.add_argument("--paper", action="store_true", help="the published networks instead: benchmark_paper.py")
    options = parser.parse_args()
    if options.paper:
        sys.argv = [str(Path(__file__).with_name("benchmark_paper.py"))]
        runpy.run_path(sys.argv[0], run_name="__main__")
        return

    print(" ".join(f"{name} {value}," for name, value in machine().items()).rstrip(","))
    print(f"\n| command | method | seconds | peak MB | start | {' | '.join(STAGES)} |")
    print("|" + "---|" * (5 + len(STAGES)))
    seed = ["--seed", str(options.seed)]
    with tempfile.TemporaryDirectory(prefix="pcdiff-") as scratch:
        folder = Path(scratch)
        for method in options.method:
            # The demo's `start` also holds drawing and cutting the head, scoring, and the picture.
            demo = folder / "demo"
            row = measure(["demo", "-o", str(demo), "--method", method, *seed], demo, options.repeats)
            print(f"| demo | {method} {row}", flush=True)
            for skull in [demo / "defective_skull.nrrd", *options.skulls]:
                command = ["sample", str(skull), "-o", str(folder), "--method", method, *seed]
                command += ["--ensemble", str(options.ensemble)]
                row = measure(command, folder / case_name(skull), options.repeats)
                print(f"| sample {skull.name} | {method} {row}", flush=True)


if __name__ == "__main__":
    main()
