"""Made to fit: what a designer does to an implant before it is printed. Each step takes one and returns another.

All of them only take away, but for the smoothing of free surfaces; so the outer surface stays where it is, nothing lies
deeper than the completed skull's inner surface, and nothing meets bone. Everything is in mm, on the scan's own grid,
whatever its spacing and axes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from pcdiff.checks import removal_paths, surroundings
from pcdiff.checks.distances import OUTER_COSINE, bone_gap, outward_cosine, voxel_gap, wall_thickness
from pcdiff.errors import InputError
from pcdiff.geometry.directions import orthonormal_pair
from pcdiff.geometry.grid import largest_components
from pcdiff.geometry.surface import vertex_normals, volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.reconstruct.finish import without_slivers

MOST_CLEARANCE = 5.0  # mm
THICKNESS = (1.0, 30.0)  # mm
SMOOTHING = (0.2, 2.0)  # mm; more would eat thin bone
HOLES = (2.0, 10.0)  # mm across; less closes when the mesh is made
RIM = 1.0  # mm from bone where smoothing begins
MARGIN = 4.0  # mm of solid rim around drain holes
PATCH = 2.0  # mm over which a thickness is that of its neighbourhood


@dataclass(frozen=True)
class FitOptions:
    """What is asked for beside the shape. The default changes nothing.

    clearance: mm between implant and bone, everywhere. thickness: `bone` (as designed), `3mm`, or `0.6` of the bone's.
    smooth: mm, width of the Gaussian that free surfaces are smoothed by. drain_holes: `2@12`, mm across @ mm apart.
    make_insertable: trim what is caught on the way in.

    Raises InputError for other values.
    """

    clearance: float = 0.0
    thickness: str = "bone"
    smooth: float = 0.0
    drain_holes: str | None = None
    make_insertable: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.clearance <= MOST_CLEARANCE:
            raise InputError(f"--clearance: expected 0 to {MOST_CLEARANCE:g} mm, got {self.clearance:g}; 0.5 is usual")
        if self.smooth and not SMOOTHING[0] <= self.smooth <= SMOOTHING[1]:
            low, high = SMOOTHING
            raise InputError(f"--smooth: expected {low:g} to {high:g} mm, or 0 for none, got {self.smooth:g}; try 0.8")
        self.wall()
        self.drains()

    def wall(self) -> tuple[float, bool] | None:
        """(3.0, True) for 3 mm, (0.6, False) for six tenths of the bone's thickness, None for all of it."""
        if self.thickness == "bone":
            return None
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(mm)?", self.thickness)
        low, high = THICKNESS
        if found and found[2] and low <= float(found[1]) <= high:
            return float(found[1]), True
        if found and not found[2] and 0.2 <= float(found[1]) <= 1:
            return float(found[1]), False
        raise InputError(
            f"--thickness: expected bone, {low:g}mm to {high:g}mm, or a share of the bone's from 0.2 to 1, got "
            f"{self.thickness!r}; for example 3mm"
        )

    def drains(self) -> tuple[float, float] | None:
        """Diameter and spacing of the drain holes, mm."""
        if self.drain_holes is None:
            return None
        found = re.fullmatch(r"(\d+(?:\.\d+)?)@(\d+(?:\.\d+)?)", self.drain_holes)
        low, high = HOLES
        if found:
            across, apart = float(found[1]), float(found[2])
            if low <= across <= high and across + 2 <= apart <= 100:
                return across, apart
        raise InputError(
            f"--drain-holes: expected DIAMETER@SPACING in mm, {low:g} to {high:g} across, 2 mm of wall between, "
            f"got {self.drain_holes!r}; for example 2@12"
        )

    def needs(self, spacing: np.ndarray) -> None:
        """Raises InputError where voxels of (3,) mm are too coarse for what is asked."""
        holes, least = self.drains(), 3 * float(np.max(spacing))
        if holes is not None and holes[0] < least:
            raise InputError(
                f"--drain-holes: expected at least three voxels across, {least:.1f} mm here, got {holes[0]:g} mm; "
                "ask for wider holes, or use a finer scan"
            )


AS_DESIGNED = FitOptions()


@dataclass(frozen=True)
class FittedImplant:
    """An implant after a `FitOptions`. trimmed_ml: what `make_insertable` took away. drains: how many drain holes."""

    implant: Volume
    trimmed_ml: float = 0.0
    drains: int = 0


def apply_fit_options(implant: Volume, skull: Volume, centre: np.ndarray, fitting: FitOptions) -> FittedImplant:
    """The implant made to fit, on the same grid. centre: (3,) mm, the cranial centre; the brain's side is towards it.

    Raises InputError where it leaves nothing, or the scan is too coarse for what is asked.
    """
    fitting.needs(skull.spacing)
    if fitting == AS_DESIGNED:
        return FittedImplant(implant)
    bone, solid = surroundings(skull, implant)
    pieces = _pieces(solid.mask)
    trimmed, drains = 0.0, 0
    wall, holes = fitting.wall(), fitting.drains()
    if fitting.smooth:
        solid = smoothed(solid, bone, fitting.smooth)
    if wall is not None:
        solid = thinned(solid, centre, *wall)
    if fitting.clearance:
        solid = cleared(solid, bone, fitting.clearance)
    if wall is not None or fitting.clearance:
        solid = solid.with_mask(without_slivers(solid.mask))
    if fitting.make_insertable and solid.mask.any():
        before = solid.ml
        solid = insertable(solid, bone, centre)
        trimmed = before - solid.ml
    solid = solid.with_mask(largest_components(solid.mask, pieces))  # carving leaves crumbs
    if not solid.mask.any():
        raise InputError("nothing is left of the implant; ask for less clearance or more thickness")
    if holes is not None:
        solid, drains = drilled(solid, bone, centre, *holes)
    low = np.rint(skull.to_index(solid.affine[:3, 3])).astype(int)
    return FittedImplant(skull.with_crop(solid.mask, low), trimmed, drains)


def cleared(implant: Volume, bone: Volume, clearance: float) -> Volume:
    """Without the voxels nearer to bone than `clearance` mm, box to box: never less, on average up to a voxel more."""
    body = np.argwhere(implant.mask)
    near = voxel_gap(body, bone, clearance) < clearance - 1e-6
    return _without(implant, body[near])


def thinned(implant: Volume, centre: np.ndarray, wall: float, absolute: bool) -> Volume:
    """Without what lies deeper under the outer surface than `wall` mm, or, not absolute, than that share of the wall.

    The outer surface stays; an implant that is thinner already stays too, for beneath it is where the brain is.
    """
    mesh = volume_to_mesh(implant)
    out = outward_cosine(mesh, centre)
    outer = out > OUTER_COSINE
    if not outer.any():
        return implant
    places = mesh.vertices[outer]
    tree = cKDTree(places)
    allowed = np.full(len(places), wall)
    if not absolute:
        thickness = wall_thickness(mesh, out)[outer]
        some = places[:: max(1, len(places) // 5000)]
        patch = np.array([thickness[rows].mean() for rows in tree.query_ball_point(some, PATCH)])
        # at a slanting rim bone ends in an edge, and a share of that would be a film
        allowed = np.maximum(wall * patch[cKDTree(some).query(places)[1]], THICKNESS[0])
    body = np.argwhere(implant.mask)
    depth, nearest = tree.query(implant.to_mm(body.astype(float)))
    return _without(implant, body[depth > allowed[nearest]])


def smoothed(implant: Volume, bone: Volume, sigma: float) -> Volume:
    """Free surfaces smoothed by a Gaussian of `sigma` mm, blended in between `RIM` and `RIM` + 3 sigma from bone.

    The rim, which the bone decides, stays voxel for voxel.
    """
    values = ndimage.gaussian_filter((implant.mask | bone.mask).astype(np.float32), sigma / implant.spacing)
    distance = ndimage.distance_transform_edt(~bone.mask, sampling=implant.spacing)
    weight = np.clip((distance - RIM) / (3 * sigma), 0, 1)
    # beyond what the Gaussian can move lies other bone's smoothing, not the implant's
    reach = ndimage.binary_dilation(implant.mask, iterations=int(np.ceil(sigma / implant.spacing.min())))
    return implant.with_mask((weight * values + (1 - weight) * implant.mask > 0.5) & reach & ~bone.mask)


def insertable(implant: Volume, bone: Volume, centre: np.ndarray) -> Volume:
    """Without what is caught by bone on the best straight way out of each piece."""
    labels, count = ndimage.label(implant.mask, np.ones((3, 3, 3)))
    for label in range(1, count + 1):
        piece = implant.with_mask(labels == label)
        (path,) = removal_paths(piece, bone, centre, exact=True)
        implant = _without(implant, np.argwhere(piece.mask)[path.undercut])
    return implant


def drilled(implant: Volume, bone: Volume, centre: np.ndarray, across: float, apart: float) -> tuple[Volume, int]:
    """Defects of `across` mm at right angles to the surface, in a triangular pattern `apart` mm wide, and their number.

    A rim of `MARGIN` mm stays whole.
    """
    mesh = volume_to_mesh(implant)
    out = outward_cosine(mesh, centre)
    places, normals = mesh.vertices[out > OUTER_COSINE], vertex_normals(mesh)[out > OUTER_COSINE]
    if not len(places):
        return implant, 0
    side = mesh.vertices[np.abs(out) < OUTER_COSINE]
    body = np.argwhere(implant.mask)
    voxels = implant.to_mm(body.astype(float))
    tree = cKDTree(places)
    axis = normals.mean(0) / np.linalg.norm(normals.mean(0))
    flat = (places - places.mean(0)) @ np.stack(orthonormal_pair(axis)).T
    extent = np.abs(flat).max() + apart
    steps = np.arange(-np.ceil(extent / apart), np.ceil(extent / apart) + 1)
    i, j = (grid.ravel() for grid in np.meshgrid(steps, steps, indexing="ij"))
    pattern = apart * np.stack([i + 0.5 * (j % 2), np.sqrt(0.75) * j], axis=1)
    distance, vertex = cKDTree(flat).query(pattern)
    vertex = np.unique(vertex[distance < 1.0])
    rim = across / 2 + MARGIN
    if len(side):
        vertex = vertex[cKDTree(side).query(places[vertex])[0] > rim]
    if bone.mask.any():
        vertex = vertex[bone_gap(places[vertex], bone) > rim]
    gone = np.zeros(len(body), bool)
    for k in vertex:
        normal = normals[tree.query_ball_point(places[k], 3.0)].mean(0)
        normal /= np.linalg.norm(normal)
        offset = voxels - places[k]
        along = offset @ normal
        gone |= ((offset**2).sum(1) - along**2 < (across / 2) ** 2) & (np.abs(along) < 25)
    return _without(implant, body[gone]), len(vertex)


def _without(implant: Volume, voxels: np.ndarray) -> Volume:
    mask = implant.mask.copy()
    mask[tuple(voxels.T)] = False
    return implant.with_mask(mask)


def _pieces(mask: np.ndarray) -> int:
    return int(ndimage.label(mask, np.ones((3, 3, 3)))[1])
