"""The values that a report, a scene and their pictures are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pcdiff.geometry.mesh import Mesh
from pcdiff.geometry.volume import Volume
from pcdiff.report.shown_skull import ShownSkull


@dataclass(frozen=True)
class CaseContents:
    """A designed case: scan, implant, candidates, checks and record. Surfaces and points are in mm, LPS.

    Attributes:
        title: name of the case.
        record: what run.json holds.
        skull: the defective skull, and the grey values of its CT.
        implant: mask of the implant, on the skull's grid.
        mesh: surface of the implant, with its vertices in the order of implant.stl.
        checks: what checks.json holds; None for an implant that was not checked.
        vertex_fields: name -> (V,) values at the vertices of `mesh`: thickness_mm, gap_mm, uncertainty (all in mm).
        candidates: number (from 1) -> surface of that candidate; a candidate without a surface is left out.
        candidate_checks: number -> what checks_K.json holds.
        points: what points.npz holds, see docs/files.md; None without `--keep-points`.
        truth: surface of the true implant; None if unknown.
        stage_titles: name of a stage in `record["seconds"]` -> its title for readers.

    Raises:
        ValueError: a vertex field has another shape than (V,).
    """

    title: str
    record: Mapping[str, Any]
    skull: ShownSkull
    implant: Volume
    mesh: Mesh
    checks: Mapping[str, Any] | None = None
    vertex_fields: Mapping[str, np.ndarray] = field(default_factory=dict)
    candidates: Mapping[int, Mesh] = field(default_factory=dict)
    candidate_checks: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    points: Mapping[str, np.ndarray] | None = None
    truth: Mesh | None = None
    stage_titles: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        vertices = len(self.mesh.vertices)
        for name, values in self.vertex_fields.items():
            if values.shape != (vertices,):
                raise ValueError(f"{name} must have shape ({vertices},), one value per vertex, got {values.shape}")

    def figure(self, key: str) -> float | None:
        """The number that the checks found under a key; None without one."""
        figures = [figure for check in (self.checks or {}).get("checks", []) for figure in check.get("figures", [])]
        value = next((figure.get("value") for figure in figures if figure.get("key") == key), None)
        return float(value) if isinstance(value, float | int) else None
