"""What new heads are like beside real ones: size, thickness, asymmetry, novelty, and coverage of held-out heads.

All of it is measured on tables along the rays of the map, (2, R) mm, outer radius and bone thickness, where at least
nine heads of ten have bone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pcdiff.prior.direction_map import MAP, PIXEL, RADIUS
from pcdiff.prior.model import ShapePrior

BONE_SHARE = 0.9  # of heads with bone, from which a ray is measured
SOLID_ANGLE = (PIXEL / RADIUS) ** 2  # of a ray; the map keeps areas
NAMES = ("bone_ml", "inside_ml", "thickness_mm", "thickness_spread_mm", "asymmetry_mm", "nearest_mm")


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
    measured = prior.present >= BONE_SHARE
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


@dataclass(frozen=True)
class Reference:
    """Real heads that new ones are measured against, posed on the shape model.

    real: (2 N, 2, R) mm, tables of the heads that new ones are made of, and of their mirror images; without gaps.
    scales: (N, 3), see `head_measures`. held_out: tables (2, R) of other heads, by name.
    """

    prior: ShapePrior
    names: tuple[str, ...]
    real: np.ndarray
    scales: np.ndarray
    held_out: Mapping[str, np.ndarray]

    def distances(self, tables: np.ndarray) -> np.ndarray:
        """(2 N,) mm: mean distance along the rays of both tables of a head (2, R) from those of the real ones.

        In model space: pose and size do not count. Rays unknown in the head are left out.
        """
        return self._apart(tables, self._real)

    def record(self, tables: np.ndarray, scales: np.ndarray) -> dict[str, Any]:
        """Measures of a new head, its nearest real head, and its distance from each held-out one."""
        away = self.distances(tables)
        nearest = int(away.argmin())
        held_out = self._apart(tables, self._held_out).tolist() if self.held_out else []
        return {
            **head_measures(tables, scales, self.prior),
            "nearest": self.names[nearest % len(self.names)],
            "nearest_mm": float(away[nearest]),
            "held_out_mm": dict(zip(self.held_out, held_out, strict=True)),
        }

    def summary(self, groups: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
        """Means and standard deviations of the real heads, and of groups of records of new ones.

        nearest_mm: of a real head, to the nearest other one. held_out_nearest_mm: mean distance of a held-out head from
        the nearest real, or new, one. coverage: share of held-out heads to which a new head is nearer than each real
        one; it grows with the number of new heads.
        """
        own = [head_measures(self.real[k], self.scales[k], self.prior) for k in range(len(self.names))]
        for k, record in enumerate(own if len(own) > 1 else []):
            others = np.delete(self.distances(self.real[k]), [k, k + len(own)])
            record["nearest_mm"] = float(others.min())
        found: dict[str, Any] = {"real": _statistics(own)}
        real = np.array([self.distances(tables).min() for tables in self.held_out.values()])
        for name, records in groups.items():
            found[name] = _statistics(records)
            if self.held_out:
                new = np.array([min(record["held_out_mm"][head] for record in records) for head in self.held_out])
                found[name] |= {"held_out_nearest_mm": _rounded(new.mean()), "coverage": _rounded((new < real).mean())}
        if self.held_out:
            found["real"]["held_out_nearest_mm"] = _rounded(real.mean())
        return found

    @cached_property
    def _measured(self) -> np.ndarray:
        return self.prior.present >= BONE_SHARE

    @cached_property
    def _real(self) -> np.ndarray:
        return self._surfaces(self.real)

    @cached_property
    def _held_out(self) -> np.ndarray:
        return self._surfaces(np.stack(list(self.held_out.values())))

    def _surfaces(self, tables: np.ndarray) -> np.ndarray:
        """(..., 2, R) outer radius and thickness -> (..., 2, R') float32 outer and inner radius of measured rays."""
        outer, thickness = np.moveaxis(tables[..., self._measured].astype(np.float32), -2, 0)
        return np.stack([outer, outer - thickness], -2)

    def _apart(self, tables: np.ndarray, others: np.ndarray) -> np.ndarray:
        surfaces = self._surfaces(tables)
        known = np.isfinite(surfaces).all(0)
        if not known.all():
            surfaces, others = surfaces[:, known], others[..., known]
        apart: np.ndarray = np.abs(others - surfaces).mean((-2, -1))
        return apart


def _statistics(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of each measure over heads."""
    names = [name for name in NAMES if name in records[0]]
    values = {name: np.array([record[name] for record in records]) for name in names}
    found = {name: {"mean": _rounded(of.mean()), "std": _rounded(of.std())} for name, of in values.items()}
    return {"heads": len(records), **found}


def _rounded(value: Any) -> float:
    return round(float(value), 3)
