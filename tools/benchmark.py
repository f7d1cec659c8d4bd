"""Run time, CPU time and peak memory of `pcdiff`, from process start to files written, by stage.

    python tools/benchmark.py                              # the built-in case, and the start of the command line
    python tools/benchmark.py skull.nrrd --ensemble 1 5    # a design of this skull, alone and with five candidates
    python tools/benchmark.py a.nrrd b.nrrd c.nrrd --fine  # each of them, all in one batch, and the first at 0.3 mm
    python tools/benchmark.py skull.nrrd --against main    # this clone as it stands and another commit, by turns
    python tools/benchmark.py skull.nrrd --json docs/results/speed.json

Prints a Markdown table, see `pcdiff.evaluation.speed`; `tools/write_tables.py` writes that of docs/results/speed.json
into docs/benchmark.md. Runs of two commits alternate, so that other work on the machine slows both. The other commit
lies in a git worktree of its own meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from pcdiff.environment import commit, machine
from pcdiff.evaluation.measure import measure
from pcdiff.evaluation.speed import speed_table
from pcdiff.geometry.grid import bounding_box
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume, write_volume
from pcdiff.methods.registry import DEFAULT
from pcdiff.pipeline.names import case_name

ROOT = Path(__file__).parent.parent
PCDIFF = (sys.executable, "-P", "-m", "pcdiff")  # -P: not the package that lies where the command is given
TIMEOUT_S = 900
FINE_MM, FINE_SHAPE = 0.3, (768, 768, 700)


def repeat(
    title: str, arguments: Sequence[str], trees: Mapping[str, Path], repeats: int, folder: Path | None = None
) -> list[dict[str, Any]]:
    """Runs a command by turns with the package of each tree. folder: where it writes its run.json, if it does."""
    fields = ("seconds", "cpu_seconds", "peak_mb")
    rows = [{"command": title, "commit": name, **{key: [] for key in fields}, "stages": {}} for name in trees]
    for _ in range(repeats):
        for row, tree in zip(rows, trees.values(), strict=True):
            os.environ["PYTHONPATH"] = str(tree)
            measured = measure([*PCDIFF, *arguments], TIMEOUT_S)
            if measured.error:
                sys.exit(f"{title} ({row['commit']}): {measured.error}")
            print(f"{title} ({row['commit']}): {measured.cpu_seconds:.1f} CPU-s", file=sys.stderr, flush=True)
            for key in fields:
                row[key].append(getattr(measured, key))
            if folder is not None:
                stages = json.loads((folder / "run.json").read_text(encoding="utf-8"))["seconds"]
                for name, value in ({"start": measured.seconds - stages["total"]} | stages).items():
                    row["stages"].setdefault(name, []).append(value)
    return rows


@contextmanager
def checked_out(revision: str | None) -> Iterator[dict[str, Path]]:
    """This clone by its commit, and another commit in a worktree that is removed afterwards."""
    own = {commit() or "this package": ROOT}
    if revision is None:
        yield own
        return
    git = ("git", "-C", str(ROOT))
    name = subprocess.run([*git, "rev-parse", "--short=12", revision], capture_output=True, text=True, check=True)
    with tempfile.TemporaryDirectory(prefix="pcdiff-") as scratch:
        other = Path(scratch) / "other"
        subprocess.run([*git, "worktree", "add", "-q", "--detach", str(other), revision], check=True)
        try:
            yield own | {name.stdout.strip(): other}
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(other)], check=True)


def write_fine(skull: Path, path: Path) -> Path:
    """The same skull in the middle of a grid of `FINE_SHAPE` voxels of `FINE_MM`."""
    volume = read_volume(skull)
    low, high = bounding_box(volume.mask)
    step = FINE_MM / volume.spacing
    first = (low + high - 1) / 2 - step * (np.array(FINE_SHAPE) - 1) / 2
    share = ndimage.affine_transform(volume.mask.astype(np.float32), step, first, FINE_SHAPE, order=1)
    affine = volume.affine.copy()
    affine[:3, :3] *= step
    affine[:3, 3] = volume.affine[:3, :3] @ first + volume.affine[:3, 3]
    write_volume(Volume(share >= 0.5, affine), path)
    return path


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("skulls", nargs="*", type=Path, help="masks of defective skulls; by default the built-in case")
    parser.add_argument("-n", "--repeats", type=int, default=3)
    parser.add_argument("--method", nargs="+", default=[DEFAULT], help=f"methods of one implant (default: {DEFAULT})")
    parser.add_argument("--ensemble", nargs="+", type=int, default=[1], help="numbers of candidates (default: 1)")
    parser.add_argument("--options", default="", help='more options of design, such as "--no-report"')
    parser.add_argument("--fine", action="store_true", help="also the first skull in 768 x 768 x 700 voxels of 0.3 mm")
    parser.add_argument("--against", metavar="REV", help="another commit to alternate with")
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    parser.add_argument("--paper", action="store_true", help="run benchmark_paper.py: the published networks")
    options = parser.parse_args()
    if options.fine and not options.skulls:
        parser.error("--fine needs a skull")
    if options.paper:
        sys.argv = [str(Path(__file__).with_name("benchmark_paper.py"))]
        runpy.run_path(sys.argv[0], run_name="__main__")
        return

    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # compiled modules are there for users, too, after the first run
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # the worktree is removed then, too
    load = [os.getloadavg()[0]]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="pcdiff-") as scratch, checked_out(options.against) as trees:
        folder, more = Path(scratch), options.options.split()
        for light in ("--help", "info"):
            rows += repeat(light, [light], trees, options.repeats)
        if not options.skulls:
            for method in options.method:
                demo = ["demo", "-o", str(folder / "demo"), "--method", method, "--overwrite", "-q"]
                rows += repeat(f"demo, {method}", demo, trees, options.repeats, folder / "demo")
        designs = [(name, ["--method", name]) for name in options.method] if 1 in options.ensemble else []
        designs += [(f"{n} candidates", ["--ensemble", str(n)]) for n in options.ensemble if n > 1]
        tasks = {f" {case_name(skull)}": [skull] for skull in options.skulls}
        if len(options.skulls) > 1:
            tasks["".join(tasks)] = options.skulls
        if options.fine:
            fine = write_fine(options.skulls[0], folder / "fine.nrrd")
            tasks[f" {case_name(options.skulls[0])} at {FINE_MM} mm"] = [fine]
        for (names, skulls), (title, chosen) in itertools.product(tasks.items(), designs):
            command = ["design", *map(str, skulls), "-o", str(folder), *chosen, *more, "--overwrite", "-q"]
            name = ", ".join([f"design{names}", title, *more])
            of_case = folder / case_name(skulls[0]) if len(skulls) == 1 else None
            rows += repeat(name, command, trees, options.repeats, of_case)
    load.append(os.getloadavg()[0])
    date = datetime.now(UTC).isoformat(timespec="seconds")
    results = {"machine": machine(), "date": date, "load": load, "rows": rows}
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(speed_table(results))


if __name__ == "__main__":
    main()
