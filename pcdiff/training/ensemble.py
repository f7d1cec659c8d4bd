"""The shares of an ensemble's members, from their scores on validation cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from pcdiff.errors import InputError
from pcdiff.evaluation.comparison import compare
from pcdiff.files import written_beside
from pcdiff.methods.ensemble import EnsembleConfig
from pcdiff.training.recipes import EnsembleTrainConfig


def train(config: EnsembleTrainConfig, progress: bool = True) -> Path:
    """Writes and returns `config.out`: each member's share is 1 / (1 - mean DSC), by the results of `pcdiff evaluate`.

    The mean is over the cases that all members have. Raises InputError for a file of another kind and a member without
    results.
    """
    found = compare(config.results)
    if missing := [name for name in config.members if name not in found.methods]:
        raise InputError(
            f"expected results of each member, got none of {', '.join(missing)} among {', '.join(found.methods)}; "
            "evaluate it on the same cases and add its file to `results`"
        )
    errors = dict(zip(found.methods, 1 - found.values("dsc").mean(0), strict=True))
    shares = np.array([1 / max(float(errors[name]), 1e-3) for name in config.members])
    rounded = np.round(shares / shares.sum(), 3).tolist()
    members = EnsembleConfig(members=dict(zip(config.members, rounded, strict=True)))
    with written_beside(config.out) as beside:
        beside.write_text(yaml.safe_dump(members.model_dump(), sort_keys=False), encoding="utf-8")
    return config.out
