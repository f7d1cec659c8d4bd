"""Adapts an implant to the fit options before it is printed.

Every step takes an implant and returns another on the same grid, of any spacing and axes. All steps only remove
material, except for the smoothing of free surfaces: the outer surface stays where it is, no voxel lies deeper than the
completed skull's inner surface, and none meets bone. Everything is in mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from pcdiff.checks import removal_paths, surroundings
from pcdiff.checks.distances import OUTER_COSINE, bone_gap, outward_cosine, voxel_gap, wall_thickness
from pcdiff.errors import InputError
from pcdiff.geometry.directions import orthonormal_pair
from pcdiff.geometry.grid import count_components, dilated, largest_components, voxels_of
from pcdiff.geometry.surface import volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.pipeline.fit_options import AS_DESIGNED, SMALL_TRIM, THICKNESS_RANGE, FitOptions
from pcdiff.reconstruct.finish import without_slivers

SMOOTHING_RIM = 1.0  # mm from bone where smoothing begins
HOLE_MARGIN = 4.0  # mm of implant between drain holes and the rim
PATCH = 2.0  # mm, radius over which the thickness is averaged
NORMAL_PATCH = 3.0  # mm, radius over which the normal at a drain hole is averaged
MAX_HOLE_DEPTH = 25.0  # mm


@dataclass(frozen=True)
class FittedImplant:
    """An implant after `apply_fit_options`.

    trimmed_ml: volume that was removed to make it insertable. drain_holes: their number.
    """

    implant: Volume
    trimmed_ml: float = 0.0
    drain_holes: int = 0


def apply_fit_options(implant: Volume, skull: Volume, centre: np.ndarray, options: FitOptions) -> FittedImplant:
    """Adapts an implant to the options.

    Args:
        implant: On the skull's grid.
        skull: The defective skull.
        centre: (3,) mm, the cranial centre; the brain's side of the implant faces it.
        options: What to do.

    Returns:
        The implant on the same grid.

    Raises:
        InputError: Options that remove the whole implant, or need finer voxels.
    """
    options.check_resolution(skull.spacing)
    if options == AS_DESIGNED:
        return FittedImplant(implant)
    bone, solid = surroundings(skull, implant)
    pieces = count_components(solid.mask)
    trimmed_ml, drain_holes = 0.0, 0
    thickness, holes = options.parse_thickness(), options.parse_drain_holes()
    if options.smooth:
        solid = smooth_free_surfaces(solid, bone, options.smooth)
    if thickness is not None:
        solid = reduce_thickness(solid, centre, *thickness)
    if options.clearance:
        solid = keep_clearance(solid, bone, options.clearance)
    if thickness is not None or options.clearance:
        solid = solid.with_mask(without_slivers(solid.mask))
    if options.make_insertable is not False and solid.mask.any():
        insertable = remove_undercuts(solid, bone, centre)
        cost = solid.ml - insertable.ml
        if options.make_insertable or cost <= SMALL_TRIM * solid.ml:
            solid, trimmed_ml = insertable, cost
    solid = solid.with_mask(largest_components(solid.mask, pieces))  # without the crumbs of the steps above
    if not solid.mask.any():
        raise InputError("nothing is left of the implant; choose less clearance or more thickness")
    if holes is not None:
        solid, drain_holes = drill_holes(solid, bone, centre, *holes)
    low = np.rint(skull.to_index(solid.affine[:3, 3])).astype(int)
    return FittedImplant(skull.with_crop(solid.mask, low), trimmed_ml, drain_holes)


def keep_clearance(implant: Volume, bone: Volume, clearance: float) -> Volume:
    """The implant without the voxels nearer to bone than `clearance` mm, box to box.

    The gap is never smaller, and on average up to a voxel larger.
    """
    body = voxels_of(implant.mask)
    near = voxel_gap(body, bone, clearance) < clearance - 1e-6
    return without(implant, body[near])


def reduce_thickness(implant: Volume, centre: np.ndarray, thickness: float, absolute: bool) -> Volume:
    """The implant without the voxels deeper below its outer surface than `thickness`, in mm or as a share of its own.

    The outer surface stays. An implant that is thinner already stays too, because the brain lies below it.
    """
    mesh = volume_to_mesh(implant)
    out = outward_cosine(mesh, centre)
    outer = out > OUTER_COSINE
    if not outer.any():
        return implant
    points = mesh.vertices[outer]
    tree = cKDTree(points)
    allowed = np.full(len(points), thickness)
    if not absolute:
        own = wall_thickness(mesh, out)[outer]
        some = points[:: max(1, len(points) // 5000)]
        patch = np.array([own[rows].mean() for rows in tree.query_ball_point(some, PATCH)])
        # At a bevelled rim the bone ends in an edge, and a share of its thickness would be too thin.
        allowed = np.maximum(thickness * patch[cKDTree(some).query(points)[1]], THICKNESS_RANGE[0])
    body = voxels_of(implant.mask)
    depth, nearest = tree.query(implant.to_mm(body.astype(float)))
    return without(implant, body[depth > allowed[nearest]])


def smooth_free_surfaces(implant: Volume, bone: Volume, sigma: float) -> Volume:
    """The implant with its free surfaces smoothed by a Gaussian of `sigma` mm.

    The effect begins at `SMOOTHING_RIM` mm from bone and is full 3 sigma farther. At the rim no voxel changes.
    """
    values = ndimage.gaussian_filter((implant.mask | bone.mask).astype(np.float32), sigma / implant.spacing)
    distance = ndimage.distance_transform_edt(~bone.mask, sampling=implant.spacing)
    weight = np.clip((distance - SMOOTHING_RIM) / (3 * sigma), 0, 1)
    # Farther from the implant than the Gaussian moves a surface, only bone is smoothed.
    reach = dilated(implant.mask, int(np.ceil(sigma / implant.spacing.min())))
    return implant.with_mask((weight * values + (1 - weight) * implant.mask > 0.5) & reach & ~bone.mask)


def remove_undercuts(implant: Volume, bone: Volume, centre: np.ndarray) -> Volume:
    """The implant without the voxels of each piece that meet bone on its best straight way out."""
    paths = removal_paths(implant, bone, centre, exact=True)
    return without(implant, np.concatenate([path.undercut for path in paths]))


def drill_holes(
    implant: Volume, bone: Volume, centre: np.ndarray, diameter: float, spacing: float
) -> tuple[Volume, int]:
    """The implant with drain holes at right angles to its outer surface, in a triangular pattern, and their number.

    A rim of `HOLE_MARGIN` mm stays whole.
    """
    mesh = volume_to_mesh(implant)
    out = outward_cosine(mesh, centre)
    points, normals = mesh.vertices[out > OUTER_COSINE], mesh.vertex_normals[out > OUTER_COSINE]
    if not len(points):
        return implant, 0
    side = mesh.vertices[np.abs(out) < OUTER_COSINE]
    vertex = _triangular_pattern(points, normals, spacing)
    margin = diameter / 2 + HOLE_MARGIN
    if len(side):
        vertex = vertex[cKDTree(side).query(points[vertex])[0] > margin]
    if bone.mask.any():
        vertex = vertex[bone_gap(points[vertex], bone) > margin]

    body = voxels_of(implant.mask)
    voxels = implant.to_mm(body.astype(float))
    tree = cKDTree(points)
    gone = np.zeros(len(body), bool)
    for k in vertex:
        normal = normals[tree.query_ball_point(points[k], NORMAL_PATCH)].mean(0)
        normal /= np.linalg.norm(normal)
        offset = voxels - points[k]
        along = offset @ normal
        gone |= ((offset**2).sum(1) - along**2 < (diameter / 2) ** 2) & (np.abs(along) < MAX_HOLE_DEPTH)
    return without(implant, body[gone]), len(vertex)


def _triangular_pattern(points: np.ndarray, normals: np.ndarray, spacing: float) -> np.ndarray:
    """Indices of the points (N, 3) mm nearest to a triangular pattern, `spacing` mm wide, across the mean normal."""
    axis = normals.mean(0) / np.linalg.norm(normals.mean(0))
    flat = (points - points.mean(0)) @ np.stack(orthonormal_pair(axis)).T
    extent = np.abs(flat).max() + spacing
    steps = np.arange(-np.ceil(extent / spacing), np.ceil(extent / spacing) + 1)
    i, j = (grid.ravel() for grid in np.meshgrid(steps, steps, indexing="ij"))
    pattern = spacing * np.stack([i + 0.5 * (j % 2), np.sqrt(0.75) * j], axis=1)
    distance, nearest = cKDTree(flat).query(pattern)
    return np.unique(nearest[distance < 1.0])


def without(implant: Volume, voxels: np.ndarray) -> Volume:
    """The implant without the voxels (N, 3)."""
    mask = implant.mask.copy(order="K")  # as it lies in memory: another order takes half a second
    mask[tuple(voxels.T)] = False
    return implant.with_mask(mask)
