"""What an implant has to measure up to: every threshold of the checks in one place, each with its reason.

The six criteria are those that neurosurgeons graded in Ellis et al., "Qualitative criteria for designing feasible
cranial
implants" (AutoImplant 2021). They give no figures, and no standard does, so these are engineering judgement; a
hospital with figures of its own overrides them by a YAML file with the same names. docs/checks.md says how each is
measured.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pcdiff.errors import InputError
from pcdiff.files import shipped_file


class Criteria(BaseModel):
    """Thresholds: `min_*` are at least, `max_*` at most. Typed and frozen; an unknown name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_gap_mm: float = Field(default=3.0, gt=0, description="width from which an opening counts: a drain hole is less")
    min_closed: float = Field(default=0.99, ge=0, le=1, description="share of each defect closed to such openings")
    overhang_mm: float = Field(default=0.5, gt=0, description="thickness from which implant over bone counts")
    max_overhang_cm2: float = Field(default=1.0, ge=0, description="more lifts the implant off its seat")
    max_overhang_ml: float = Field(default=0.2, ge=0, description="the same as volume")
    max_collision_ml: float = Field(default=0.1, ge=0, description="what a file takes off in the theatre")
    min_body_ml: float = Field(
        default=0.02, ge=0, description="caught material left out of the undercut's depth: a crumb"
    )
    max_collision_mm: float = Field(default=1.0, ge=0, description="undercut beyond one voxel of play")
    max_prior_mm: float = Field(default=2.0, ge=0, description="95th percentile off the expected shape; more is seen")
    max_asymmetry_mm: float = Field(default=4.0, ge=0, description="mean; healthy heads reach 3")
    max_step_mean_mm: float = Field(default=0.5, ge=0, description="a step of half a millimetre is not felt")
    max_step_p95_mm: float = Field(default=1.0, ge=0, description="one of a millimetre is felt through the scalp")
    min_thickness_mm: float = Field(default=1.5, ge=0, description="away from the rim; less breaks when screwed")
    max_thickness_share: float = Field(default=1.15, gt=0, description="of the bone beside it; more presses inward")
    max_overlap_mm: float = Field(default=0.75, ge=0, description="depth of the mesh in bone, beside the clearance")
    min_wall_mm: float = Field(default=0.8, ge=0, description="what printers can build, over 99 % of the surface")
    max_size_mm: float = Field(default=250.0, gt=0, description="side of a usual printer's bed")


def load_criteria(path: Path | None) -> Criteria:
    """The criteria with what a YAML file changes of them. Raises InputError naming every wrong name or value."""
    if path is None:
        return Criteria()
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: expected a YAML file of criteria, got {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected lines such as max_step_p95_mm: 0.8, got a {type(values).__name__}")
    try:
        return Criteria.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InputError(f"{path}: {wrong}; {shipped_file('docs/checks.md')} lists the names") from error
