"""An implant as it is printed: without what no printer makes, as a surface, and with its text."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from pcdiff.checks.criteria import MIN_WALL_MM
from pcdiff.checks.distances import OUTER_COSINE, bone_gap, outward_cosine, wall_thickness
from pcdiff.geometry.grid import count_components, largest_components, voxels_of
from pcdiff.geometry.mesh import Mesh, label_bodies
from pcdiff.geometry.surface import Terraces, volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.pipeline.engraving import Engraving, engrave
from pcdiff.pipeline.fitting import without

THIN_SHARE = 0.005  # of the outer surface that may be thinner than `MIN_WALL_MM`: half of what the check allows
EDGE_MM = 3.0  # from bone; there a thin wall is the implant's edge
ROUNDS = 10


@dataclass(frozen=True)
class Printed:
    """An implant as it is printed.

    volume: on the skull's own grid, disjoint from the skull. surface: of the volume, mm, LPS. mesh: the surface with
    what is engraved in it. engraved: the texts.
    """

    volume: Volume
    surface: Mesh
    mesh: Mesh
    engraved: tuple[Engraving, ...] = ()

    def with_text(self, text: str, skull: Volume, centre: np.ndarray, min_wall_mm: float) -> Printed:
        """The same with a text in its mesh. Arguments and errors as those of `engrave`."""
        mesh, engraved = engrave(self.surface, skull, centre, text, min_wall_mm)
        return replace(self, mesh=mesh, engraved=engraved)


def printed(implant: Volume, skull: Volume, centre: np.ndarray, bodies: int) -> Printed:
    """The implant without crumbs and without an edge too thin to print, and its surface.

    A piece of a few voxels may have no surface of its own; a voxel or two on a thin neck belong to the mask's piece,
    but the smooth surface makes a body of their own of them. centre: (3,) mm, the cranial centre. bodies: that may
    stay, one per defect.
    """
    pieces = count_components(implant.mask)
    allowed = min(bodies, pieces)
    if pieces > allowed:
        implant = implant.with_mask(largest_components(implant.mask, allowed, corners=True))
    for _ in range(ROUNDS):
        terraces = Terraces.of(implant)
        faulty = _crumbs(terraces.mesh, allowed)
        reach = np.zeros(len(faulty))
        if not len(faulty):  # only a surface without crumbs is worth smoothing
            mesh = terraces.smoothed(skull)
            faulty, reach = _thin_edge(mesh, skull, centre)
        if not len(faulty):
            return Printed(implant, mesh, mesh)
        body = voxels_of(implant.mask)
        tree = cKDTree(implant.to_mm(body.astype(float)))
        gone = {int(k) for k in tree.query(faulty)[1]}.union(*tree.query_ball_point(faulty, reach))
        implant = without(implant, body[sorted(gone)])
        implant = implant.with_mask(largest_components(implant.mask, allowed, corners=True))
    mesh = volume_to_mesh(implant, skull)
    return Printed(implant, mesh, mesh)


def _crumbs(mesh: Mesh, allowed: int) -> np.ndarray:
    """(N, 3) mm: vertices of the bodies beyond the `allowed` largest."""
    labels = label_bodies(mesh)
    volumes = [Mesh(mesh.vertices, mesh.faces[labels == k]).volume_ml for k in range(labels.max() + 1)]
    small = np.isin(labels, np.argsort(volumes)[:-allowed])
    return mesh.vertices[np.unique(mesh.faces[small])]


def _thin_edge(mesh: Mesh, skull: Volume, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (N, 3) mm at the rim where the wall is too thin, and (N,) mm how thin; none if they are few.

    A thin wall away from the rim stays, because the implant must not get a hole.
    """
    cosine = outward_cosine(mesh, centre)
    wall = wall_thickness(mesh, cosine, MIN_WALL_MM)
    thin = (cosine > OUTER_COSINE) & (wall < MIN_WALL_MM)
    if thin.sum() <= THIN_SHARE * (cosine > OUTER_COSINE).sum():
        return np.zeros((0, 3)), np.zeros(0)
    points = mesh.vertices[thin]
    index = skull.to_index(points)
    margin = np.ceil(EDGE_MM * skull.voxels_per_mm).astype(int) + 2
    near = skull.crop(np.floor(index.min(0)).astype(int) - margin, np.ceil(index.max(0)).astype(int) + margin)
    at_rim = bone_gap(points, near) < EDGE_MM
    return points[at_rim], wall[thin][at_rim]
