"""The checks as files: `checks.json`, `surface.npz`, and which of several candidates to take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pcdiff import NOTICE, __version__
from pcdiff.errors import InputError
from pcdiff.files import written_beside

if TYPE_CHECKING:
    from pcdiff.checks import Report
    from pcdiff.criteria import Criteria
    from pcdiff.mesh import Mesh
    from pcdiff.volume import Volume


@dataclass(frozen=True)
class Choice:
    """One of the candidates, 0 for the mean of all, and why."""

    candidate: int
    why: str


def write_checks(report: Report, path: Path) -> None:
    """`checks.json`: each check with its figures, limits, verdict and a sentence; see `Report.record`."""
    with written_beside(path) as part:
        text = json.dumps(report.record(__version__, NOTICE), indent=1, allow_nan=False)
        part.write_text(text + "\n", encoding="utf-8")


def write_surface(report: Report, path: Path, uncertainty_mm: np.ndarray | None = None) -> None:
    """`surface.npz`: (V,) float32 in mm per vertex of implant.stl, as `mesh.read_stl` merges them, for colouring it.

    thickness_mm: the wall. gap_mm: to the nearest bone, negative inside it. uncertainty: standard deviation of the
    candidates' surfaces along the normal; 0 for a single one. Holds no objects: np.load(path) reads it as it is.
    """
    spread = np.zeros_like(report.gap_mm) if uncertainty_mm is None else uncertainty_mm.astype(np.float32)
    with written_beside(path) as part, part.open("wb") as file:
        np.savez_compressed(file, thickness_mm=report.thickness_mm, gap_mm=report.gap_mm, uncertainty=spread)


def spread(mesh: Mesh, members: Sequence[Mesh]) -> np.ndarray:
    """(V,) mm: standard deviation of the members' surfaces along the normal, at the vertices of the implant's mesh."""
    from pcdiff.surface import distance_to

    return np.std([distance_to(member, mesh.vertices) for member in members], axis=0)


def recommend(reports: Sequence[Report | None]) -> Choice:
    """The candidate to take: that which fails the fewest checks; of those, that which agrees best with what is known.

    reports: of the mean of all candidates, then of each; None for one that left a hole open. Agreement in mm: mean step
    along the rim plus mean distance to the expected surface. A candidate must be better than the mean by a tenth of a
    millimetre, or by a check, to be taken in its place: the mean is the likeliest.
    """
    keys = [
        (len(report.failed), disagreement(report) - (0.1 if k == 0 else 0.0), k)
        for k, report in enumerate(reports)
        if report is not None
    ]
    failed, _, best = min(keys)
    report = reports[best]
    assert report is not None
    if len(keys) == 1:
        return Choice(best, "there is one candidate")
    name = "the mean of all candidates" if best == 0 else f"candidate {best}"
    fails = "passes every check" if failed == 0 else f"fails the fewest checks ({failed})"
    return Choice(best, f"{name} {fails}, {disagreement(report):.2f} mm off rim and expected surface")


def disagreement(report: Report) -> float:
    """mm: mean step along the rim plus mean distance to the expected surface, as far as they are known."""
    names = {"step, mean", "distance to the expected surface, mean"}
    return float(sum(f.value for check in report.checks for f in check.figures if f.name in names))


def check_files(implant: Path, skull: Path, criteria: Criteria, clearance: float = 0.0) -> tuple[Report, Mesh]:
    """Checks an implant from anywhere against a defective skull.

    implant: an STL (LPS, mm), or a mask on the skull's grid. skull: a CT or a mask, as `sample` takes them.
    The shape prior finds the holes. Of a mesh with open edges there is the print gate only: it has no inside.
    Raises InputError for files that cannot be read or do not belong together, and a skull without a hole.
    """
    from pcdiff.checks import Report, Vault, check_implant
    from pcdiff.checks.printable import printable
    from pcdiff.input_check import read_skull
    from pcdiff.mesh import mesh_to_mask, read_stl
    from pcdiff.prior.fit import fit
    from pcdiff.prior.model import ShapePrior
    from pcdiff.surface import volume_to_mesh
    from pcdiff.volume import read_volume

    bone, _ = read_skull(skull)
    if implant.suffix.lower() == ".stl":
        mesh = read_stl(implant)
    else:
        solid = read_volume(implant)
        _on_one_grid(implant, solid, bone)
        mesh = volume_to_mesh(solid)
    vault = Vault.of(fit(ShapePrior.shipped(), bone))
    if not mesh.is_watertight:
        unknown = np.full(len(mesh.vertices), np.nan, np.float32)
        return Report((printable(mesh, vault.holes, float("nan"), criteria),), None, unknown, unknown), mesh
    if implant.suffix.lower() == ".stl":
        index = bone.to_index(mesh.vertices)
        low, high = np.floor(index.min(0)).astype(int), np.ceil(index.max(0)).astype(int) + 1
        mask = np.zeros_like(bone.mask)
        if (low < bone.mask.shape).all() and (high > 0).all():
            low, high = np.clip(low, 0, bone.mask.shape), np.clip(high, 0, bone.mask.shape)
            box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            mask[box] = mesh_to_mask(mesh, bone.crop(low, high))
        solid = bone.with_mask(mask)
        if not mask.any():
            raise InputError(f"{implant}: lies outside of {skull.name}; is it in LPS millimetres, of this patient?")
    return check_implant(bone, solid, mesh, vault, criteria, clearance), mesh


def _on_one_grid(path: Path, implant: Volume, skull: Volume) -> None:
    same = implant.mask.shape == skull.mask.shape and np.allclose(implant.affine, skull.affine, rtol=0, atol=1e-3)
    if not same:
        raise InputError(
            f"{path}: expected an implant on the skull's own grid, got {implant.mask.shape} and {skull.mask.shape} or "
            "other directions or origin; resample it, or give its STL"
        )
