"""The implant's thickness, and its gap to bone, against their limits."""

from __future__ import annotations

import numpy as np

from pcdiff.checks.criteria import Criteria
from pcdiff.checks.distances import OUTER_COSINE, smallest_gap
from pcdiff.checks.ray_view import SURROUNDINGS_MM
from pcdiff.checks.report import Check, Figure
from pcdiff.geometry.nearest import nearest, search_tree
from pcdiff.geometry.volume import Volume

RIM_WIDTH_MM = 3.0  # nearer to bone the distance to the opposite surface is that of the rim, and no thickness
EDGE_MM = 0.5  # from the side of a drain hole or free edge, at least; a voxel, if larger: so far the edge is rounded
DIGITS = 6  # of a gap in mm: `fitting.keep_clearance` allows the rounding errors beyond


def thick_enough(
    points: np.ndarray,
    thickness: np.ndarray,
    gap: np.ndarray,
    cosine: np.ndarray,
    bone: float,
    voxel_mm: float,
    criteria: Criteria,
) -> Check:
    """Thickness of the outer surface away from the rim and from drain holes, and relative to the adjacent bone.

    points: (V, 3) mm, the mesh's vertices. thickness, gap: (V,) mm. cosine: (V,) by `outward_cosine`. bone: mm,
    thickness of the adjacent bone, NaN if unknown. voxel_mm: the longest side of the implant's voxels.
    """
    away = gap > RIM_WIDTH_MM
    inside = np.flatnonzero(away & (cosine > OUTER_COSINE) & np.isfinite(thickness))
    side = points[away & (np.abs(cosine) <= OUTER_COSINE)]
    if len(side):
        edge = max(EDGE_MM, voxel_mm)
        inside = inside[nearest(search_tree(side), points[inside], distance_upper_bound=edge)[0] > edge]
    inner = thickness[inside]
    if not inner.size:
        return Check("thickness", "Thickness", "The implant has no surface away from its rim.", ())
    smallest, mean = float(inner.min()), float(inner.mean())
    low, median, high = (float(value) for value in np.percentile(inner, (5, 50, 95)))
    figures = [
        Figure("thickness_min", "Thickness, minimum", smallest, "mm", minimum=criteria.min_thickness_mm),
        Figure("thickness_p5", "Thickness, 5th percentile", low, "mm"),
        Figure("thickness_median", "Thickness, median", median, "mm"),
        Figure("thickness_p95", "Thickness, 95th percentile", high, "mm"),
        Figure("thickness_mean", "Thickness, mean", mean, "mm"),
    ]
    words = f"Thickness away from the rim: at least {smallest:.1f} mm, {mean:.1f} mm on average"
    if np.isfinite(bone):
        name = "Thickness relative to the adjacent bone"
        figures += [
            Figure("bone_thickness", "Thickness of the adjacent bone", bone, "mm"),
            Figure("thickness_ratio", name, mean / bone, maximum=criteria.max_thickness_share),
        ]
        words += f"; the adjacent bone: {bone:.1f} mm"
    return Check("thickness", "Thickness", f"{words}.", tuple(f for f in figures if np.isfinite(f.value)))


def clear_of_bone(
    implant: Volume, bone: Volume, gap: np.ndarray, cosine: np.ndarray, clearance: float, criteria: Criteria
) -> Check:
    """The gap between voxels, which is exact; and that of the mesh, which is smoother and may reach into bone.

    implant, bone: on one grid. gap: (V,) mm, of the mesh's vertices to bone. cosine: (V,) by `outward_cosine`.
    clearance: mm that were asked for between implant and bone.
    """
    near = clearance + 2 * float(implant.spacing.max()) + 1
    rim = gap[(np.abs(cosine) < OUTER_COSINE) & (gap < near)]
    smallest = round(smallest_gap(implant, bone, clearance + SURROUNDINGS_MM), DIGITS)
    overlap = max(0.0, -float(gap.min(initial=0.0)))
    figures = (
        Figure("gap_min", "Gap between voxels, minimum", smallest, "mm", minimum=clearance),
        Figure("rim_gap_mean", "Gap of the mesh at the rim, mean", float(np.mean(rim)) if rim.size else np.nan, "mm"),
        Figure("mesh_gap_min", "Gap of the mesh, minimum", float(gap.min()), "mm"),
        Figure("overlap_depth", "Depth of the mesh in bone", overlap, "mm", maximum=criteria.max_overlap_mm),
    )
    words = f"At least {smallest:.2f} mm (specified: {clearance:g} mm)"
    words += f", {rim.mean():.2f} mm along the rim on average." if rim.size else "."
    return Check("clearance", "Gap to the bone", words, tuple(f for f in figures if np.isfinite(f.value)))
