"""Evaluates the method `diffusion` with one part of it left out at a time, from file to file.

    python tools/ablate.py skullfix -o out/ablation --cases 060-074

Runs `pcdiff evaluate` with weights made for each variant, and writes docs/results/ablation.json (or `--to`): per kind
of case and variant the mean and the worst scores, and the paired difference to all parts with its standard error
over skulls. The results of each variant stay under OUT and are reused.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pcdiff.evaluation.rows import Row, finite
from pcdiff.evaluation.statistics import kinds_of, paired_differences, summarise
from pcdiff.methods.registry import weights_of
from pcdiff.methods.volumetric.config import LAYOUT
from pcdiff.tensor_files import read_tensors

ROOT = Path(__file__).parent.parent
UNET = "unet.safetensors"
METHOD = "diffusion"  # it has all parts
ALL = "all parts"

Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]


def rewritten(path: Path, change: Callable[[Tensors, Config], None]) -> None:
    """Applies a change to the tensors and the configuration of a weights file."""
    file = read_tensors(path, "weights", "choose others", framework="pt")
    config = json.loads(file.metadata["config"])
    change(file.tensors, config)
    save_file(file.tensors, path, file.metadata | {"config": json.dumps(config)})


def unet_says_nothing(tensors: Tensors, config: Config) -> None:
    """The U-Net adds 0 to the log-odds of the tables."""
    tensors["leave.weight"].zero_()
    tensors["leave.bias"].zero_()


def tables_hidden(tensors: Tensors, config: Config) -> None:
    """The U-Net sees no tables, and its output alone decides where bone is.

    Zero weights for the tables are what the network saw in the samples whose tables were hidden. With a slope of 10 m
    the log-odds of the tables are nearly 0 between and around them.
    """
    tensors["enter.weight"][:, -len(LAYOUT.tables) :] = 0
    config["fusion"] |= {"slope_mm": 1e4, "near": 1.0}


def variants(folder: Path) -> dict[str, list[str]]:
    """Name of each variant -> its arguments for `pcdiff evaluate`; writes the weights that they name."""
    files = weights_of(METHOD)
    assert files.own is not None

    def weights(name: str, file: str, change: Callable[[Tensors, Config], None]) -> Path:
        """A copy of all weights with one file changed."""
        copies = folder / "weights" / name.replace(" ", "_")
        copies.mkdir(parents=True, exist_ok=True)
        for path in (files.prior, files.own, *files.companions):
            shutil.copy(path, copies / path.name)
        rewritten(copies / file, change)
        return copies

    own = files.own.name
    found = {ALL: ["--method", METHOD], "shape model alone": ["--method", "prior"]}
    found["without the diffusion: the default"] = ["--method", "unet"]
    name = "without the U-Net's correction"
    found[name] = ["--method", METHOD, "--weights", str(weights(name, UNET, unet_says_nothing) / own)]
    name = "U-Net alone, without the shape model's tables"
    alone = weights(name, UNET, tables_hidden)
    found[name] = ["--method", "unet", "--weights", str(alone / UNET)]
    return found


def kind_of_record(rows: list[Row], names: list[str]) -> dict[str, Any]:
    """Variant -> its scores; rows: of one kind of case, with the variants as methods."""
    summary = summarise(rows)
    record = {}
    for name in names:
        found = paired_differences(rows, name, ALL).get("dsc") if name != ALL else None
        record[name] = {
            "cases": summary[name]["cases"],
            "mean": summary[name]["mean"],
            "worst": summary[name]["worst"],
            "dsc_difference": asdict(found) if found else None,
        }
    return record


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder in the layout of SkullFix")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/ablation"))
    parser.add_argument("--cases", default="060-074")
    parser.add_argument("--suite", default="own,frontoorbital")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "results" / "ablation.json")
    options = parser.parse_args()
    rows: list[Row] = []
    names = []
    for name, arguments in variants(options.out).items():
        out = options.out / name.replace(" ", "_").replace("'", "")
        command = [sys.executable, "-m", "pcdiff", "evaluate", "--data", str(options.data), "--cases", options.cases]
        command += ["--suite", options.suite, "-o", str(out), "--workers", str(options.workers), *arguments]
        subprocess.run(command, check=True)
        results = json.loads((out / "results.json").read_text())
        rows += [replace(Row.from_json(row), method=name) for row in results["rows"]]
        names.append(name)
    of_kind = {kind: [row for row in rows if row.kind == kind] for kind in kinds_of(rows)}
    record = {
        "cases": options.cases,
        "variants": names,
        "kinds": {kind: kind_of_record(some, names) for kind, some in of_kind.items()},
    }
    options.to.write_text(json.dumps(finite(record), indent=1) + "\n")


if __name__ == "__main__":
    main()
