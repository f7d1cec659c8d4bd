"""All checks of one implant."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pcdiff.checks.coverage import bone_thickness, complete, no_false_positive_area, restores_shape, smooth_transition
from pcdiff.checks.criteria import Criteria
from pcdiff.checks.distances import OUTER_COSINE, bone_gap, outward_cosine, wall_thickness
from pcdiff.checks.insertion import implantable, removal_paths
from pcdiff.checks.printable import printable
from pcdiff.checks.ray_view import SURROUNDINGS_MM, CompletedVault, RayView
from pcdiff.checks.report import Report
from pcdiff.checks.thickness import clear_of_bone, thick_enough
from pcdiff.geometry.grid import bounding_box, voxels_per_mm
from pcdiff.geometry.mesh import Mesh
from pcdiff.geometry.volume import Volume


def check_implant(
    skull: Volume,
    implant: Volume,
    mesh: Mesh,
    vault: CompletedVault,
    criteria: Criteria | None = None,
    clearance: float = 0.0,
) -> Report:
    """Runs all checks of an implant.

    Args:
        skull: the defective skull.
        implant: on the same grid.
        mesh: the implant's surface as it is to be printed, mm, LPS; the report's values per vertex are in its order.
        vault: the completed vault to compare with.
        criteria: the limits, by default the usual ones.
        clearance: the gap that was asked for between implant and bone, mm.

    Raises:
        ValueError: the implant has no voxels, or lies on another grid.
    """
    if implant.mask.shape != skull.mask.shape or not implant.mask.any():
        raise ValueError("expected an implant with voxels on the skull's grid")
    criteria = criteria or Criteria()
    bone, solid = surroundings(skull, implant)
    centre, voxel_mm = vault.pose.shift, float(implant.spacing.max())
    with ThreadPoolExecutor(1) as beside:  # voxels there, the mesh here
        viewed = beside.submit(RayView.of, vault, skull, implant)
        removed = beside.submit(removal_paths, solid, bone, centre, criteria.min_body_ml)
        cosine = outward_cosine(mesh, centre)
        thickness = wall_thickness(mesh, cosine)
        gap = bone_gap(mesh.vertices, bone)
        outer = (cosine > OUTER_COSINE) & np.isfinite(thickness)
        wall = float(np.percentile(thickness[outer], 1)) if outer.any() else 0.0
        printed = printable(mesh, max(vault.defects, 1), wall, criteria)
        view, paths = viewed.result(), removed.result()
    return Report(
        (
            complete(view, criteria),
            no_false_positive_area(view, criteria),
            implantable(paths, criteria),
            restores_shape(view, criteria),
            smooth_transition(view, criteria),
            thick_enough(mesh.vertices, thickness, gap, cosine, bone_thickness(view), voxel_mm, criteria),
            clear_of_bone(solid, bone, gap, cosine, clearance, criteria),
            printed,
        ),
        tuple(-path.direction for path in paths),
        thickness.astype(np.float32),
        gap.astype(np.float32),
    )


def surroundings(skull: Volume, implant: Volume, margin_mm: float = SURROUNDINGS_MM) -> tuple[Volume, Volume]:
    """Skull and implant, cropped to the implant and a margin: the checks take time per voxel.

    They are copies of one memory order, as arrays of different orders are slow to combine.
    """
    low, high = bounding_box(implant.mask)
    margin = np.ceil(margin_mm * voxels_per_mm(skull.affine[:3, :3])).astype(int)
    crops = (volume.crop(low - margin, high + margin) for volume in (skull, implant))
    bone, solid = (crop.with_mask(np.ascontiguousarray(crop.mask)) for crop in crops)
    return bone, solid
