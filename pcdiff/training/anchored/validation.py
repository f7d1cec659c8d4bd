"""Validation of the anchored denoiser on held-out heads: points in mm, and volumes through the whole design."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch

from pcdiff.data.cases import find_cases
from pcdiff.geometry.metrics import scores
from pcdiff.methods.anchored.condition import Condition
from pcdiff.methods.anchored.method import DiffusionMethod
from pcdiff.pipeline.flow import design
from pcdiff.training.anchored.pairs import Pairs
from pcdiff.training.recipes import RunConfig


def validate(run: RunConfig, method: DiffusionMethod, pairs: Pairs, device: str = "cpu") -> dict[str, float]:
    """Scores of the method on pairs and on the first `run.validate_cases` cases of `run.validation`.

    Returns:
        val_mm, val_mm_prior: mean absolute error of the displacements in mm, of the network and of the prior alone.
        val_dsc, val_bdsc, val_hd95: mean scores of the designed implants; absent without cases.
    """
    return _score_points(method, pairs, device) | _score_volumes(run, method, device)


def _score_points(method: DiffusionMethod, pairs: Pairs, device: str) -> dict[str, float]:
    errors = np.zeros(2)
    for index in range(len(pairs)):
        pair = {name: value.astype(np.float32) for name, value in pairs[index].items()}
        condition = Condition(**{field.name: pair[field.name] for field in fields(Condition)})
        x0 = method.sample(condition, 1, torch.Generator().manual_seed(0), device).x0[0].cpu().numpy()
        errors += [
            np.abs((guess - pair["target"]) * pair["prior_std_mm"])[pair["valid"] > 0].mean() for guess in (x0, 0.0)
        ]
    return {"val_mm": float(errors[0] / len(pairs)), "val_mm_prior": float(errors[1] / len(pairs))}


def _score_volumes(run: RunConfig, method: DiffusionMethod, device: str) -> dict[str, float]:
    rows = []
    for case in find_cases(run.data, run.validation)[: run.validate_cases]:
        loaded = case.load()
        implant = design(loaded.defective_skull, method, device=device).implant
        found = scores(implant, loaded.implant, loaded.defective_skull)
        rows.append([found.dsc, found.bdsc, found.hd95])
    if not rows:
        return {}
    return dict(zip(("val_dsc", "val_bdsc", "val_hd95"), np.mean(rows, 0).tolist(), strict=True))
