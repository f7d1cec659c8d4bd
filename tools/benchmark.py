"""Run time and peak memory of `pcdiff demo` and `pcdiff design`, from process start to files written, by stage.

    python tools/benchmark.py                     # the demo, then its defective skull
    python tools/benchmark.py skull.nrrd -n 5     # other skulls too

Prints a Markdown table: medians over the repeats, seconds. `start` is the time outside the stages that run.json
records: interpreter, imports, weights, hashes and the report; for the demo also the simulated craniotomy and the
scores. Memory is the peak resident set of the process, 10^6 bytes, the largest of the repeats.
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

from pcdiff.environment import machine
from pcdiff.evaluation.measure import PCDIFF, measure
from pcdiff.evaluation.tables import markdown, markdown_row
from pcdiff.methods.registry import METHODS
from pcdiff.pipeline.names import case_name
from pcdiff.pipeline.stages import STAGES

SHIPPED = [name for name, entry in METHODS.items() if not entry.required]
COLUMNS = ["command", "method", "seconds", "peak MB", "start", *STAGES]
TIMEOUT_S = 900


def repeat(arguments: Sequence[str], folder: Path, repeats: int) -> list[str]:
    """Runs a command and returns its cells of the table. folder: where the command writes its run.json."""
    seconds, peaks, stages = [], [], []
    for _ in range(repeats):
        measured = measure([*PCDIFF, *arguments, "--overwrite", "-q"], TIMEOUT_S)
        if measured.error:
            sys.exit(f"{' '.join(arguments)}: {measured.error}")
        recorded = json.loads((folder / "run.json").read_text(encoding="utf-8"))["seconds"]
        seconds.append(measured.seconds)
        peaks.append(measured.peak_mb)
        stages.append({"start": measured.seconds - recorded["total"], **recorded})
    timed = {name: f"{median(stage[name] for stage in stages):.2f}" for name in stages[0]}
    parts = [timed.get(name, "") for name in ("start", *STAGES)]
    return [f"{median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})", f"{max(peaks):.0f}", *parts]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("skulls", nargs="*", type=Path, help="masks of defective skulls")
    parser.add_argument("-n", "--repeats", type=int, default=3)
    parser.add_argument("--method", nargs="+", default=SHIPPED)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ensemble", type=int, default=1)
    parser.add_argument("--paper", action="store_true", help="run benchmark_paper.py: the published networks")
    options = parser.parse_args()
    if options.paper:
        sys.argv = [str(Path(__file__).with_name("benchmark_paper.py"))]
        runpy.run_path(sys.argv[0], run_name="__main__")
        return

    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print(f"\n{markdown(COLUMNS, [])}")
    with tempfile.TemporaryDirectory(prefix="pcdiff-") as scratch:
        folder = Path(scratch)
        demo = folder / "demo"
        for method in options.method:
            common = ["--method", method, "--seed", str(options.seed)]
            cells = repeat(["demo", "-o", str(demo), *common], demo, options.repeats)
            print(markdown_row(["demo", method, *cells]), flush=True)
            for skull in [demo / "defective_skull.nrrd", *options.skulls]:
                command = ["design", str(skull), "-o", str(folder), *common, "--ensemble", str(options.ensemble)]
                cells = repeat(command, folder / case_name(skull), options.repeats)
                print(markdown_row([f"design {skull.name}", method, *cells]), flush=True)


if __name__ == "__main__":
    main()
