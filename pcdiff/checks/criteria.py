"""Limits of the checks: every threshold in one place, each with its reason.

The six criteria are those that neurosurgeons graded in Ellis et al., "Qualitative criteria for designing feasible
cranial implants" (AutoImplant 2021). That paper gives no figures, and no standard does, so the thresholds are
engineering judgement; a hospital with figures of its own overrides them by a YAML file with the same names.
docs/checks.md says how each figure is measured.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from pcdiff.config import StrictConfig, read_yaml, validate_config
from pcdiff.files import shipped_file
from pcdiff.geometry.grid import CRUMB_ML

MIN_WALL_MM = 0.8  # the thinnest that usual printers build; the implant's edge ends there, too


class Criteria(StrictConfig):
    """Thresholds: a figure must be at least `min_*` and at most `max_*`."""

    max_gap_mm: float = Field(default=3.0, gt=0, description="openings at least this wide count; drain holes do not")
    min_closed: float = Field(default=0.99, ge=0, le=1, description="coverage of each defect, such openings left out")
    overhang_mm: float = Field(default=0.5, gt=0, description="implant over bone counts from this thickness")
    max_overhang_cm2: float = Field(default=1.0, ge=0, description="a larger overlap lifts the implant off its seat")
    max_overhang_ml: float = Field(default=0.2, ge=0, description="volume of the same overlap")
    max_collision_ml: float = Field(default=0.1, ge=0, description="a surgeon can file off this much in theatre")
    max_collision_mm: float = Field(default=1.0, ge=0, description="depth of an undercut, beyond 0.5 mm of play")
    min_body_ml: float = Field(
        default=CRUMB_ML, ge=0, description="smaller amounts do not count for the undercut's depth"
    )
    max_surface_distance_mm: float = Field(
        default=5.0,
        ge=0,
        description="95th percentile of the distance to the expected surface; true implants reach 4.5 mm",
    )
    max_continuation_mm: float = Field(
        default=0.75,
        ge=0,
        description="mean, near the rim; true implants reach 0.5 mm, 1.5 mm too far in gives 0.8 mm or more",
    )
    max_asymmetry_mm: float = Field(default=4.0, ge=0, description="mean; healthy heads reach 3 mm")
    max_step_mean_mm: float = Field(default=0.5, ge=0, description="a step of half a millimetre is not palpable")
    max_step_p95_mm: float = Field(default=1.0, ge=0, description="a step of 1 mm is palpable through the scalp")
    min_thickness_mm: float = Field(
        default=1.5, ge=0, description="away from the rim; a thinner implant breaks at a screw"
    )
    max_thickness_share: float = Field(
        default=1.25,
        gt=0,
        description="of the adjacent bone's thickness; a thicker implant presses on the brain; true ones stay below it",
    )
    max_overlap_mm: float = Field(
        default=0.5, ge=0, description="depth of the mesh in bone; good designs reach 0.2 mm, at corners of voxels"
    )
    min_wall_mm: float = Field(
        default=MIN_WALL_MM, ge=0, description="thinnest printable wall; 99 % of the surface must reach it"
    )
    max_size_mm: float = Field(default=250.0, gt=0, description="build length of a usual printer")


def load_criteria(path: Path | None) -> Criteria:
    """The default criteria, or those with the changes of a YAML file.

    Raises:
        InputError: the file cannot be read; the message names every unknown name and every wrong value.
    """
    if path is None:
        return Criteria()
    values = read_yaml(path, "a YAML file with lines such as max_step_p95_mm: 0.8")
    return validate_config(Criteria, values, str(path), remedy=f"{shipped_file('docs/checks.md')} lists the names")
