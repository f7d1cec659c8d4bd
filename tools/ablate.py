"""Evaluates the default method with parts of it left out, from file to file.

    python tools/ablate.py skullfix -o out/ablation --cases 060-074

Runs `pcdiff evaluate` on weights made for each variant, and writes docs/results/ablation.json (or `--to`): per variant
the mean DSC, bDSC, HD95 and seconds, and the worst DSC. The results of each variant stay under OUT and are reused.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from pcdiff.methods.registry import DEFAULT, weights_of
from pcdiff.tensor_files import read_tensors

ROOT = Path(__file__).parent.parent
STEPS = (1, 4, 20)


def with_diffusion(source: Path, target: Path, changes: dict[str, int]) -> None:
    """Copies the weights of the denoiser with changes in the section `diffusion` of their configuration."""
    file = read_tensors(source, "weights of a denoiser", "choose others", framework="pt")
    config = json.loads(file.metadata["config"])
    config["diffusion"] |= changes
    save_file(file.tensors, target, file.metadata | {"config": json.dumps(config)})


def variants(folder: Path) -> dict[str, list[str]]:
    """Name of each variant -> its arguments for `pcdiff evaluate`; writes the weights that they name."""
    files = weights_of(DEFAULT)
    assert files.own is not None
    found = {
        "statistical shape model alone": ["--method", "prior"],
        "without diffusion": ["--method", "unet"],
        "default, n = 1": [],
        "default, n = 5": ["--ensemble", "5"],
    }
    changes = {"one draw": {"draws": 1}} | {f"{steps} steps": {"steps": steps} for steps in STEPS}
    for name, change in changes.items():
        weights = folder / "weights" / name.replace(" ", "_")
        weights.mkdir(parents=True, exist_ok=True)
        for path in (files.prior, *files.companions):
            shutil.copy(path, weights / path.name)
        with_diffusion(files.own, weights / files.own.name, change)
        found[name] = ["--weights", str(weights / files.own.name)]
    return found


def row(name: str, results: dict[str, Any]) -> dict[str, Any]:
    """One row of the ablation, from the results.json of a variant."""
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
    for name, arguments in variants(options.out).items():
        out = options.out / name.replace(" ", "_")
        method = [] if "--method" in arguments else ["--method", DEFAULT]
        command = [sys.executable, "-m", "pcdiff", "evaluate", "--data", str(options.data), "--cases", options.cases]
        command += ["-o", str(out), "--workers", str(options.workers), *method, *arguments]
        subprocess.run(command, check=True)
        rows.append(row(name, json.loads((out / "results.json").read_text())))
        print(rows[-1], flush=True)
    record = {"cases": options.cases, "workers": options.workers, "rows": rows}
    options.to.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
