"""Scores the default method with parts of it left out, from file to file, by `pcdiff evaluate` on weights made for it.

    python tools/ablate.py skullfix -o out/ablation --cases 060-074

Writes docs/results/ablation.json (`--to` for another place): a row for each part, with its mean DSC, bDSC and HD95, its
worst DSC and the mean seconds. Every part's own results stay under OUT, and are not measured again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from pcdiff.methods.registry import weights_files

ROOT = Path(__file__).parent.parent
STEPS = (1, 4, 20)


def with_steps(source: Path, target: Path, steps: int) -> None:
    """The same network, sampled in another number of steps."""
    with safe_open(source, "pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config = json.loads(metadata["config"])
    config["diffusion"]["steps"] = steps
    save_file(tensors, target, metadata | {"config": json.dumps(config)})


def variants(folder: Path) -> dict[str, list[str]]:
    """Name of each part left out -> what `pcdiff evaluate` is told; makes the weights."""
    own, prior, places = weights_files("diffusion")
    found = {"prior alone": ["--method", "prior"], "default, n = 1": [], "default, n = 5": ["--ensemble", "5"]}
    parts = {"without places": None} | {f"{steps} steps": steps for steps in STEPS}
    for name, steps in parts.items():
        room = folder / "weights" / name.replace(" ", "_")
        room.mkdir(parents=True, exist_ok=True)
        shutil.copy(prior, room / prior.name)
        if steps is None:
            shutil.copy(own, room / own.name)
        else:
            shutil.copy(places, room / places.name)
            with_steps(own, room / own.name, steps)
        found[name] = ["--weights", str(room / own.name)]
    return found


def row(name: str, results: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    (found,) = results["summary"].values()
    means = {figure: found["mean"][figure] for figure in ("dsc", "bdsc", "hd95", "seconds")}
    return {"variant": name, "cases": found["cases"], **means, "worst_dsc": found["worst"]["dsc"]}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder in the layout of SkullFix")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/ablation"))
    parser.add_argument("--cases", default="060-074")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "results" / "ablation.json")
    options = parser.parse_args()
    rows = []
    for name, told in variants(options.out).items():
        out = options.out / name.replace(" ", "_")
        method = [] if "--method" in told else ["--method", "diffusion"]
        command = [sys.executable, "-m", "pcdiff", "evaluate", "--data", str(options.data), "--cases", options.cases]
        command += ["-o", str(out), "--workers", str(options.workers), *method, *told]
        subprocess.run(command, check=True)
        rows.append(row(name, json.loads((out / "results.json").read_text())))
        print(rows[-1], flush=True)
    record = {"cases": options.cases, "workers": options.workers, "rows": rows}
    options.to.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
