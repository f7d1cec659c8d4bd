"""What new heads are like beside real ones: size, thickness, asymmetry, novelty, and coverage of held-out heads.

All of it is measured on tables along the rays of the map, (2, R) mm, outer radius and bone thickness, where at least
nine heads of ten have bone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pcdiff.prior.direction_map import MAP, PIXEL, RADIUS
from pcdiff.prior.model import ShapePrior

BONE_SHARE = 0.9  # of heads with bone, from which a ray is measured
SOLID_ANGLE = (PIXEL / RADIUS) ** 2  # of a ray; the map keeps areas
NAMES = ("bone_ml", "inside_ml", "thickness_mm", "thickness_spread_mm", "asymmetry_mm")


def head_measures(tables: np.ndarray, scales: np.ndarray, prior: ShapePrior) -> dict[str, float]:
    """Measures of one head.

    Args:
        tables: (2, R) model mm, NaN where unknown.
        scales: (3,) patient mm for a mm of the model.
        prior: the model that the head is posed on.

    Returns:
        bone_ml: Volume of the vault's bone. inside_ml: of what the bone encloses, as far as the rays reach.
        thickness_mm, thickness_spread_mm: mean and standard deviation along the rays. asymmetry_mm: mean distance
        between the outer table and its mirror image.
    """
    measured = _measured(prior)
    outer, thickness = tables
    inner, ml = outer - thickness, float(np.prod(scales)) * SOLID_ANGLE / 3000
    size = float(np.mean(scales))
    known = measured & np.isfinite(thickness)
    share = float(measured.sum() / max(known.sum(), 1))  # unknown rays count as the others do
    mirrored = np.abs(outer - outer[MAP.mirror])[measured & measured[MAP.mirror]]
    return {
        "bone_ml": share * ml * float((outer**3 - inner**3)[known].sum()),
        "inside_ml": share * ml * float((inner**3)[known].sum()),
        "thickness_mm": size * float(thickness[known].mean()),
        "thickness_spread_mm": size * float(thickness[known].std()),
        "asymmetry_mm": size * float(np.nanmean(mirrored)),
    }


def distances(tables: np.ndarray, others: np.ndarray, prior: ShapePrior) -> np.ndarray:
    """(N,) mm: mean distance along the rays of both tables of a head (2, R) from those of others (N, 2, R).

    In model space: pose and size do not count. Rays unknown in either head are left out.
    """
    measured = _measured(prior)
    surfaces, theirs = _surfaces(tables)[:, measured], _surfaces(others)[..., measured]
    found: np.ndarray = np.nanmean(np.abs(theirs - surfaces), axis=(-2, -1))
    return found


def summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of each measure over heads, and of the distance from the nearest real head."""
    names = [name for name in (*NAMES, "nearest_mm") if name in records[0]]
    values = {name: np.array([record[name] for record in records]) for name in names}
    found = {name: {"mean": round(v.mean(), 3), "std": round(v.std(), 3)} for name, v in values.items()}
    return {"heads": len(records), **found}


def coverage(nearest_new: np.ndarray, nearest_real: np.ndarray) -> float:
    """Share of held-out heads to which a new head is nearer than every real one of training; (H,) mm each."""
    return float((nearest_new < nearest_real).mean())


def _measured(prior: ShapePrior) -> np.ndarray:
    """(R,) bool."""
    return prior.present >= BONE_SHARE


def _surfaces(tables: np.ndarray) -> np.ndarray:
    """(..., 2, R) outer radius and thickness -> outer and inner radius."""
    outer, thickness = np.moveaxis(tables, -2, 0)
    return np.stack([outer, outer - thickness], -2)
