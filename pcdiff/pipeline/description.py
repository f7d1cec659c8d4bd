"""What `run.json` says of a designed case: its input, its defects, its implant, and what the checks found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pcdiff import NOTICE
from pcdiff.checks.recommend import Choice
from pcdiff.geometry.extents import extents
from pcdiff.geometry.grey import GreyHead
from pcdiff.geometry.mesh import Mesh, label_bodies
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.input_check import InputCheck
from pcdiff.pipeline.names import shown_name, without_folders
from pcdiff.pipeline.settings import Settings
from pcdiff.prior.regions import OpenDefect, openings_of

if TYPE_CHECKING:
    from pcdiff.checks import Report
    from pcdiff.pipeline.flow import Design
    from pcdiff.prior.fit import PriorFit

MIN_COVERED = 0.25  # of a defect that is not left open; between the widest drain holes a third is covered


@dataclass(frozen=True)
class Given:
    """The skull of a scan, what the input check found, the sha256 of the scan, and the grey values of a CT."""

    path: Path
    skull: Volume
    check: InputCheck
    digest: str
    grey: GreyHead | None


@dataclass(frozen=True)
class Checked:
    """Reports of the implant and of each candidate (None for one without a voxel), and the recommended candidate.

    uncertainty_mm: (V,) standard deviation of the candidates' surfaces at the vertices of the STL.
    """

    report: Report
    candidates: list[Report | None]
    choice: Choice
    uncertainty_mm: np.ndarray | None


def describe(given: Given, result: Design, checked: Checked, notes: list[str], settings: Settings) -> dict[str, Any]:
    """The record of a case, without files and times. notes: warnings of the design, beside those of the input."""
    label = result.fit.defect_at(result.mesh.vertices)
    closed, left_open = openings_of(result.fit, given.skull)
    defects = [asdict(defect) for defect in closed]
    return {
        **settings.record(),
        "notice": NOTICE,
        "input": {
            "path": shown_name(given.path),
            "sha256": given.digest,
            "shape": list(given.skull.mask.shape),
            "spacing_mm": [round(float(s), 6) for s in given.skull.spacing],
        },
        "input_check": asdict(given.check)
        | {
            "warnings": [
                *(without_folders(warning, given.path) for warning in given.check.warnings),
                *notes,
            ],
            "defects": defects,
        },
        "left_open": _left_open(left_open, result.fit, defects, checked.report),
        "midplane": _midplane(result.fit),
        "defects": result.fit.defects,
        "implant_ml": round(result.implant.ml, 3),
        "pieces": _pieces(result.mesh, label),
        "members_ml": [0.0 if member is None else round(member.volume.ml, 3) for member in result.members],
        "prior_residual_mm": round(float(result.fit.residual), 3),
        "unusual_head": bool(result.fit.residual > result.fit.prior.settings.pose.warn_residual_mm),
        "fitting": {
            "trimmed_ml": round(result.trimmed_ml, 3),
            "drain_holes": result.drain_holes,
            "engraved": [
                each.record() | {"defect": _most_frequent(result.fit.defect_at(each.point[None]))}
                for each in result.engraved
            ],
        },
        "checks": _verdict(checked.report),
        "candidates": [
            None if report is None or member is None else _verdict(report) | {"engraved": bool(member.engraved)}
            for report, member in zip(checked.candidates, result.members, strict=True)
        ],
        "recommended": checked.choice.candidate,
        "recommended_because": checked.choice.why,
    }


def _pieces(mesh: Mesh, label: np.ndarray) -> list[dict[str, Any]]:
    """Each body of the mesh: label of the defect it closes, size in mm, and volume; by label, the largest first.

    label: (V,) of the defect that each vertex lies in.
    """
    body = label_bodies(mesh)
    pieces = []
    for k in range(body.max() + 1):
        faces = mesh.faces[body == k]
        members = np.unique(faces)
        length, width, height = (round(mm, 1) for mm in extents(mesh.vertices[members]))
        piece = {"defect": _most_frequent(label[members]), "length_mm": length, "width_mm": width, "height_mm": height}
        pieces.append(piece | {"ml": round(Mesh(mesh.vertices, faces).volume_ml, 3)})
    return sorted(pieces, key=lambda piece: (piece["defect"], -piece["ml"]))


def _most_frequent(label: np.ndarray) -> int:
    """The label of a defect that most of the points have, (N,); 0 is none."""
    return int(np.bincount(label, minlength=2)[1:].argmax()) + 1


def _left_open(
    found: list[OpenDefect], fit: PriorFit, defects: list[dict[str, Any]], report: Report
) -> list[dict[str, Any]]:
    """The openings that the implant does not close, for the record. found: by the fit. defects: those to close."""
    left = [asdict(defect) for defect in found]
    numbers = fit.numbers or [None] * len(defects)  # those of a region have none
    for defect, number in zip(defects, numbers, strict=True):
        covered = float(report["complete"].figure(f"coverage_{defect['label']}" if len(defects) > 1 else "coverage"))
        if covered < MIN_COVERED:
            left.append(defect | {"number": number, "why": f"implant and bone cover {covered:.0%} of it"})
    for defect in left:
        del defect["label"]
    return left


def _midplane(fit: PriorFit) -> dict[str, list[float]]:
    """A point of the head's midsagittal plane, mm, LPS, and the unit normal to the patient's left."""
    normal = fit.pose.linear[:, 0] / np.linalg.norm(fit.pose.linear[:, 0])
    return {"point": [round(float(x), 2) for x in fit.pose.shift], "normal": [round(float(x), 5) for x in normal]}


def _verdict(report: Report) -> dict[str, Any]:
    """What the record says of a report; the figures are in `checks.json`."""
    return {"passed": report.passed, "failed": {name: report[name].words for name in report.failed}}
