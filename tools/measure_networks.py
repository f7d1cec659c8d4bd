"""Measures what augmentation and inputs are worth to the networks of the field, on the lattice.

    python tools/measure_networks.py inputs skullfix cache/skullfix
    python tools/measure_networks.py augmentation skullfix cache/skullfix -o out/augmentation

`inputs` hides one input at a time from the shipped networks. `augmentation` trains `encoder_decoder` once with every
augmentation and once without each, on equal numbers of windows (`pcdiff train`; a run that was stopped goes on). Both
score the cases of SkullFix and SkullBreak cut into the heads 060 to 074 as the validation of a training does, and write
their part of docs/results/networks.json: DSC by class, and the paired difference to the whole with its standard error
over heads. `tools/write_tables.py` writes the tables of docs/experiments.md and docs/augmentation.md from it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcdiff.environment import commit, worker_pool
from pcdiff.evaluation.rows import Row
from pcdiff.evaluation.statistics import kinds_of, mean, paired_differences
from pcdiff.methods.networks.coarse_to_fine import CoarseToFine
from pcdiff.methods.networks.model import BaselineModel
from pcdiff.methods.registry import weights_of
from pcdiff.training.networks import score_case
from pcdiff.training.prior import shape_model
from pcdiff.training.recipes import BaselineTrainConfig, load_config
from pcdiff.training.volumetric.validation import store_cases

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "configs" / "encoder_decoder.yaml"
NETWORKS = ("encoder_decoder", "symmetry", "slices", "patches", "coarse_to_fine", "sparse")
ALL = "all"

ONE_KIND = {"samples.kinds": "{skullfix: 1.0}", "samples.two_defects": "0"}
OWN_SHAPES = {"samples.own_shape": "1", "samples.other_shape": "0"}
UNDEFORMED = {"samples.deform_mm": "0", "samples.windows.deformed": "0"}
AUGMENTATIONS = {
    ALL: {},
    "one kind of defect, SkullFix's": ONE_KIND,
    "no head in the shape of others": OWN_SHAPES,
    "no random deformation": UNDEFORMED,
    "none of the three": ONE_KIND | OWN_SHAPES | UNDEFORMED,
}

Cases = dict[str, list[Path]]
Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def hidden(channel: int) -> Change:
    """`LAYOUT.fine` number `channel` is 0, as where there is no bone."""

    def change(fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        fine = fine.clone()
        fine[:, channel] = 0
        return fine, coarse

    return change


def nowhere(fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
    """All coordinates are 0, those of the lattice's middle."""
    return fine, torch.zeros_like(coarse)


CHANGES: dict[str, Change] = {
    "other side hidden": hidden(1),
    "mean head hidden": hidden(2),
    "coordinates hidden": nowhere,
}


def changed(model: BaselineModel, change: Change) -> BaselineModel:
    """The model with another input."""
    forward = model.network.forward
    model.network.forward = lambda fine, coarse, missing=None: forward(*change(fine, coarse), missing)  # type: ignore[method-assign]
    return model


def first_alone(model: BaselineModel) -> BaselineModel:
    """The first of the two networks of `coarse_to_fine` answers everywhere."""
    assert isinstance(model.network, CoarseToFine)
    model.network._refined = lambda bone, where, rough, found: rough  # type: ignore[method-assign]
    return model


def score(name: str, model: BaselineModel, cases: Cases) -> list[Row]:
    """A row for each case on the lattice."""
    return [
        Row(f"{kind}/{file.stem.rsplit('-', 1)[-1]}", name, 0, score_case(model, file))
        for kind, files in cases.items()
        for file in files
    ]


def record_of(rows: list[Row]) -> dict[str, Any]:
    """Variant -> DSC by class, and the differences to the first variant, of each class and of all."""
    kinds = {kind: [row for row in rows if row.kind == kind] for kind in kinds_of(rows)}
    variants = list(dict.fromkeys(row.method for row in rows))
    record = {}
    for name in variants:
        groups = kinds | {"all": rows} if name != variants[0] else {}
        record[name] = {
            "dsc": {kind: mean(row.dsc for row in of if row.method == name) for kind, of in kinds.items()},
            "difference": {
                kind: asdict(paired_differences(of, name, variants[0])["dsc"]) for kind, of in groups.items()
            },
        }
    return record


def cases_of(config: BaselineTrainConfig, heads: int) -> Cases:
    """The cases on the lattice; made where they are not in the cache yet."""
    run = config.run.model_copy(update={"validate_cases": heads})
    with worker_pool(run.workers) as pool:
        return store_cases(run, shape_model(run), pool)


def read_recipe(options: argparse.Namespace) -> BaselineTrainConfig:
    """The recipe of `encoder_decoder` on the folders that were asked for."""
    values = {"run.data": options.data, "run.cache": options.cache, "run.workers": options.workers}
    config = load_config(RECIPE, {name: str(value) for name, value in values.items()})
    assert isinstance(config, BaselineTrainConfig)
    return config


def measure_inputs(options: argparse.Namespace) -> dict[str, Any]:
    """Network -> record of its variants."""
    cases = cases_of(read_recipe(options), options.heads)
    found = {}
    for name in NETWORKS:
        path = weights_of(name).own
        assert path is not None
        rows = score(ALL, BaselineModel.load(path), cases)
        for title, change in CHANGES.items():
            rows += score(title, changed(BaselineModel.load(path), change), cases)
        if name == "coarse_to_fine":
            rows += score("first network alone", first_alone(BaselineModel.load(path)), cases)
        found[name] = record_of(rows)
    return {"commit": commit(), "networks": found}


def measure_augmentation(options: argparse.Namespace) -> dict[str, Any]:
    """The record of the variants, and what each was trained on."""
    variants = AUGMENTATIONS | {"a third of the cuts": {"samples.fitted": str(options.cuts // 3)}}
    recipe = read_recipe(options)
    cases = cases_of(recipe, options.heads)
    rows: list[Row] = []
    for name, changes in variants.items():
        out = options.out / name.replace(" ", "_").replace("'", "")
        values = {
            "run.data": options.data,
            "run.cache": options.cache,
            "run.out": out,
            "run.validate_every": options.steps,
            "run.validate_cases": 1,
            "run.workers": options.workers,
            "samples.fitted": options.cuts,
            "optimiser.steps": options.steps,
            "optimiser.cooldown": options.steps // 2,
            **changes,
        }
        sets = [argument for key, value in values.items() for argument in ("--set", f"{key}={value}")]
        subprocess.run([sys.executable, "-m", "pcdiff", "train", str(RECIPE), *sets], check=True)
        rows += score(name, BaselineModel.load(out / f"{recipe.method}.safetensors"), cases)
    windows = options.steps * recipe.optimiser.batch
    return {"commit": commit(), "cuts": options.cuts, "windows": windows, "variants": record_of(rows)}


def main() -> None:
    """See the module."""
    parts = {"inputs": measure_inputs, "augmentation": measure_augmentation}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(parts))
    parser.add_argument("data", type=Path, help="folder in the layout of SkullFix")
    parser.add_argument("cache", type=Path, help="folder that `pcdiff prepare` wrote")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/augmentation"), help="folder of the trainings")
    parser.add_argument("--heads", type=int, default=15, help="the first of the recipe's validation heads")
    parser.add_argument("--cuts", type=int, default=300)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1, help="processes that make cuts and cases")
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "results" / "networks.json")
    options = parser.parse_args()
    record = json.loads(options.to.read_text()) if options.to.exists() else {}
    record[options.part] = parts[options.part](options)
    options.to.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
