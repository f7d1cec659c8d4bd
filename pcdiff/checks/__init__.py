"""Proof in numbers: what a surgeon checks of an implant (Ellis et al.), measured; and whether it can be printed."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from pcdiff.checks.coverage import bone_thickness, complete, no_false_positive_area, restores_shape, smooth_transition
from pcdiff.checks.criteria import Criteria
from pcdiff.checks.distances import FACING, bone_gap, facing, least_gap, wall_thickness
from pcdiff.checks.insertion import Exit, best_exit
from pcdiff.checks.printable import printable
from pcdiff.checks.ray_view import MARGIN, Vault, View
from pcdiff.checks.report import Check, Figure, Report
from pcdiff.geometry.grid import bounding_box
from pcdiff.geometry.mesh import Mesh
from pcdiff.geometry.volume import Volume

__all__ = ["Check", "Figure", "Report", "Vault", "check_implant", "exits", "surroundings"]

AWAY = 3.0  # mm from bone, from where the wall counts as thickness and no longer as rim


def check_implant(
    skull: Volume,
    implant: Volume,
    mesh: Mesh,
    vault: Vault,
    criteria: Criteria | None = None,
    clearance: float = 0.0,
) -> Report:
    """All checks of an implant and of its mesh, as it is to be printed.

    skull, implant: on one grid. mesh: mm, LPS; the report's per-vertex figures are in the order of its vertices.
    vault: the completed skull, of the prior. clearance: mm that were asked for between implant and bone.
    Raises ValueError for an empty implant, or another grid.
    """
    if implant.mask.shape != skull.mask.shape or not implant.mask.any():
        raise ValueError("expected an implant with voxels on the skull's grid")
    criteria = criteria or Criteria()
    bone, solid = surroundings(skull, implant)
    centre = vault.pose.shift
    view = View.of(vault, *_around(vault, skull, implant))
    ways = exits(solid, bone, centre, criteria.min_body_ml)
    out = facing(mesh, centre)
    thickness = wall_thickness(mesh, out)
    gap = bone_gap(mesh.vertices, bone)
    pieces = max(vault.defects, 1)
    outer = (out > FACING) & np.isfinite(thickness)
    wall = float(np.percentile(thickness[outer], 1)) if outer.any() else 0.0
    return Report(
        (
            complete(view, criteria),
            no_false_positive_area(view, criteria),
            _implantable(ways, criteria),
            restores_shape(view, criteria),
            smooth_transition(view, criteria),
            _thickness(thickness[outer], gap[outer], bone_thickness(view), criteria),
            _clearance(solid, bone, gap, out, clearance, criteria),
            printable(mesh, pieces, wall, criteria),
        ),
        ways[0].direction,
        thickness.astype(np.float32),
        gap.astype(np.float32),
    )


def exits(
    implant: Volume, bone: Volume, centre: np.ndarray, min_body_ml: float = 0.0, exact: bool = False
) -> list[Exit]:
    """The best way out of each piece of the implant, largest piece first; see `insertion.best_exit`."""
    labels, count = ndimage.label(implant.mask, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    found = []
    for label in 1 + np.argsort(-sizes, kind="stable"):
        piece = implant.with_mask(labels == label)
        normal = piece.to_mm(np.argwhere(piece.mask).mean(0)) - centre
        found.append(best_exit(piece, bone, normal, min_body_ml, exact))
    return found


def surroundings(skull: Volume, implant: Volume, margin_mm: float = MARGIN) -> tuple[Volume, Volume]:
    """Skull and implant cut to the implant and a margin: every check costs time per voxel."""
    low, high = bounding_box(implant.mask)
    margin = np.ceil(margin_mm * np.linalg.norm(np.linalg.inv(skull.affine[:3, :3]), axis=1)).astype(int)
    return skull.crop(low - margin, high + margin), implant.crop(low - margin, high + margin)


def _around(vault: Vault, skull: Volume, implant: Volume) -> tuple[Volume, Volume]:
    """Cut to implant and defects, which it may have left open."""
    from pcdiff.prior.direction_map import MAP

    rays = np.flatnonzero((vault.defect > 0) & np.isfinite(vault.outer))
    places = vault.pose.to_patient(MAP.directions[rays] * vault.outer[rays, None])
    low, high = bounding_box(implant.mask)
    if len(rays):
        index = skull.to_index(places)
        low, high = np.minimum(low, np.floor(index.min(0))), np.maximum(high, np.ceil(index.max(0)) + 1)
    margin = np.ceil(2 * MARGIN / skull.spacing)
    return skull.crop(low - margin, high + margin), implant.crop(low - margin, high + margin)


def _implantable(ways: list[Exit], criteria: Criteria) -> Check:
    figures = []
    for k, way in enumerate(ways, 1):
        label = f"piece {k}: " if len(ways) > 1 else ""
        figures += [
            Figure(f"{label}collision", way.ml, "ml", most=criteria.max_collision_ml),
            Figure(f"{label}undercut", way.mm, "mm", most=criteria.max_collision_mm),
        ]
    ml, mm = sum(way.ml for way in ways), max(way.mm for way in ways)
    words = (
        "There is a straight way in without collision."
        if ml == 0
        else f"On the best straight way in {ml:.2f} ml meet bone, undercut by {mm:.1f} mm at most."
    )
    return Check("implantable", "Goes in without collision", words, tuple(figures))


def _thickness(thickness: np.ndarray, gap: np.ndarray, bone: float, criteria: Criteria) -> Check:
    inner = thickness[gap > AWAY]
    if not inner.size:
        return Check("thickness", "Thickness", "The implant has no surface away from its rim.", ())
    least, mean = float(inner.min()), float(inner.mean())
    figures = [
        Figure("thickness, minimum", least, "mm", least=criteria.min_thickness_mm),
        Figure("thickness, mean", mean, "mm"),
        Figure("thickness of the bone beside it", bone, "mm"),
    ]
    if np.isfinite(bone):
        figures.append(Figure("share of the bone's thickness", mean / bone, "", most=criteria.max_thickness_share))
    words = f"Away from the rim it is {least:.1f} mm thick at least and {mean:.1f} mm on average"
    words += f"; the bone beside it has {bone:.1f} mm." if np.isfinite(bone) else "."
    return Check("thickness", "Thickness", words, tuple(f for f in figures if np.isfinite(f.value)))


def _clearance(
    implant: Volume, bone: Volume, gap: np.ndarray, out: np.ndarray, clearance: float, criteria: Criteria
) -> Check:
    """Between voxels, where a gap is exact; and of the mesh, which is smoother and may reach into bone."""
    near = clearance + 2 * float(implant.spacing.max()) + 1
    rim = gap[(np.abs(out) < FACING) & (gap < near)]
    least = least_gap(implant, bone, clearance + MARGIN)
    overlap = max(0.0, -float(gap.min(initial=0.0)))
    figures = (
        Figure("gap, minimum between voxels", least, "mm", least=clearance),
        Figure("gap of the mesh along the rim, mean", float(np.mean(rim)) if rim.size else float("nan"), "mm"),
        Figure("gap of the mesh, minimum", float(gap.min()), "mm"),
        Figure("depth of the mesh in bone", overlap, "mm", most=criteria.max_overlap_mm),
    )
    words = f"Asked for: {clearance:g} mm to the bone; there are {least:.2f} mm at the least"
    words += f" and {rim.mean():.2f} mm along the rim on average." if rim.size else "."
    return Check("clearance", "Gap to the bone", words, tuple(f for f in figures if np.isfinite(f.value)))
