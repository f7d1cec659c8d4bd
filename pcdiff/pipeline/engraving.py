"""A text in the inner surface of an implant, to tell one print from another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import cKDTree

from pcdiff.checks.distances import OUTER_COSINE, bone_gap, outward_cosine, wall_thickness
from pcdiff.checks.printable import self_intersections
from pcdiff.errors import InputError
from pcdiff.geometry.directions import unit
from pcdiff.geometry.mesh import Mesh, label_bodies, manifold_of
from pcdiff.geometry.stroke_font import LETTER_MM, stroked, text_strokes
from pcdiff.geometry.volume import Volume

if TYPE_CHECKING:
    import manifold3d

DEPTH_MM = 0.4
OVERSHOOT_MM = 1.0  # by which the cutter reaches out of the surface
MARGIN_MM = 1.0  # around the text, where the surface has to be free
RIM_MM = 4.0  # from the text to bone
EDGE_MM = 1.5  # from the text to an edge, as of a drain hole
FLAT = 0.85  # least cosine between the surface's normals under the text and their mean
STEEP = 0.95  # of a normal's share along the head's axis: beyond, the top of the text is at the forehead's side
SLIVERS_MM = (0.0, 0.01, 0.02, 0.005)  # tolerances, tried in turn: triangles of slivers may intersect
FINE_MM = 0.7  # edges of the cutter, so that it follows the surface
SEEDS_MM = 3.0  # between the places that are tried
MAX_SEEDS = 150
ANGLES = np.deg2rad([0, *(sign * step for step in range(15, 91, 15) for sign in (1, -1))][:-1])  # upright first


@dataclass(frozen=True)
class Engraving:
    """A text cut into one body. point: (3,) mm, LPS, its middle. right, up: (3,) unit, as it is read from inside.

    wall_mm: the thinnest wall left under the letters.
    """

    text: str
    point: np.ndarray
    right: np.ndarray
    up: np.ndarray
    wall_mm: float

    def record(self) -> dict[str, Any]:
        """For `run.json`."""
        vectors = {"point": self.point, "right": self.right, "up": self.up}
        places = {name: [round(float(x), 4) for x in vector] for name, vector in vectors.items()}
        return {"text": self.text, **places, "wall_mm": round(self.wall_mm, 2), "depth_mm": DEPTH_MM}


def engrave(
    mesh: Mesh, bone: Volume, centre: np.ndarray, text: str, min_wall_mm: float
) -> tuple[Mesh, tuple[Engraving, ...]]:
    """Cuts a text into the inner surface of each body, to be read from inside the head.

    A body other than the largest stays as it is if it has no room. Where the letters would leave triangles
    that intersect, vertices within 0.02 mm of the surface without them are left out, of the whole mesh.

    Args:
        mesh: The implant, watertight, mm.
        bone: The skull.
        centre: (3,) mm, the cranial centre.
        text: See `stroke_font.GLYPHS`.
        min_wall_mm: What the letters have to leave.

    Returns:
        The mesh, and what was cut, largest body first.

    Raises:
        InputError: no place is flat and large enough, or thick enough; or the mesh is no manifold.
    """
    cosine = outward_cosine(mesh, centre)
    thickness = wall_thickness(mesh, cosine)
    labels = label_bodies(mesh)
    bodies = [np.unique(mesh.faces[labels == k]) for k in range(labels.max() + 1)]
    surfaces = [_inner_surface(mesh, body, cosine, thickness, bone) for body in sorted(bodies, key=len, reverse=True)]
    # manifold3d's objects live in the function below alone: those that an error holds are reported at the end.
    found = _engraved(mesh, surfaces, text, min_wall_mm)
    if isinstance(found, str):
        raise InputError(f"--engrave: {found}")
    return found


def _engraved(
    mesh: Mesh, surfaces: Sequence[_Surface], text: str, min_wall_mm: float
) -> tuple[Mesh, tuple[Engraving, ...]] | str:
    """What `engrave` returns, or a line why nothing can be cut. surfaces: of the bodies, that of the largest first."""
    import manifold3d

    solid = manifold_of(mesh)
    done: list[Engraving] = []
    for surface in surfaces:
        found = _place(surface, text, min_wall_mm)
        if isinstance(found, str):
            if not done:
                return found
            continue
        place, cutter = found
        solid -= cutter
        done.append(place)
    if solid.status() != manifold3d.Error.NoError:
        return "the surface of this implant is no manifold, so nothing can be cut; leave it out"
    cuts = []
    for tolerance in SLIVERS_MM:
        made = (solid.simplify(tolerance) if tolerance else solid).to_mesh64()
        vertices = np.array(made.vert_properties[:, :3])
        cut = Mesh(vertices, np.array(made.tri_verts).astype(mesh.faces.dtype))
        as_written = Mesh(vertices.astype(np.float32), cut.faces)  # an STL rounds
        if not len(self_intersections(as_written)):
            return cut, tuple(done)
        cuts.append(cut)
    return cuts[0], tuple(done)  # the check of the mesh says it


@dataclass(frozen=True)
class _Surface:
    """The inner surface of one body: (N, 3) mm and unit normals, into the head, and per vertex the wall, mm.

    room: (N,) mm that a text may reach around each vertex. outer: the outer surface.
    """

    points: np.ndarray
    normals: np.ndarray
    wall: np.ndarray
    room: np.ndarray
    outer: cKDTree


def _inner_surface(mesh: Mesh, body: np.ndarray, cosine: np.ndarray, thickness: np.ndarray, bone: Volume) -> _Surface:
    """body: (N,) vertex numbers."""
    inner, outer = body[cosine[body] < -OUTER_COSINE], body[cosine[body] > OUTER_COSINE]
    side = body[np.abs(cosine[body]) <= OUTER_COSINE]
    points = mesh.vertices[inner]
    room = np.full(len(points), np.inf)
    if len(inner):
        index = bone.to_index(points)
        margin = np.ceil(3 * RIM_MM * bone.voxels_per_mm).astype(int)
        near = bone.crop(np.floor(index.min(0)).astype(int) - margin, np.ceil(index.max(0)).astype(int) + margin)
        room = bone_gap(points, near) - RIM_MM
        if len(side):
            room = np.minimum(room, cKDTree(mesh.vertices[side]).query(points)[0] - EDGE_MM)
    normals = mesh.vertex_normals[inner]
    return _Surface(points, normals, thickness[inner], room, cKDTree(mesh.vertices[outer]))


def _place(surface: _Surface, text: str, min_wall_mm: float) -> tuple[Engraving, manifold3d.Manifold] | str:
    """Where a text goes and what cuts it, or a line why it has no place."""
    letters = stroked(text_strokes(text))
    low, high = np.array(letters.bounds()).reshape(2, 2)
    half = np.maximum(-low, high) + MARGIN_MM
    thickest = 0.0
    tree = cKDTree(surface.points)
    for seed in _seeds(surface, float(half.min())):
        point = surface.points[seed]
        near = np.array(tree.query_ball_point(point, 1.5 * float(np.linalg.norm(half))))
        around = tree.query_ball_point(point, LETTER_MM)
        normal = unit(surface.normals[around].sum(0, keepdims=True))[0]
        for angle in ANGLES:
            frame = _frame(normal, angle)
            local, normals = (surface.points[near] - point) @ frame.T, surface.normals[near]
            under = (np.abs(local[:, :2]) < half).all(1)
            if surface.room[near][under].min() <= 0 or (normals[under] @ frame[2]).min() < FLAT:
                continue
            thickest = max(thickest, float(surface.wall[near][under].min()) - DEPTH_MM)
            if thickest < min_wall_mm:
                continue
            cutter, floor = _cutter(letters, local[normals @ frame[2] > 0])
            floor = floor @ frame + point
            wall = float(surface.outer.query(floor)[0].min()) if np.isfinite(floor).all() else 0.0
            if wall >= min_wall_mm:
                placed = cutter.transform(np.column_stack([frame.T, point]))
                return Engraving(text, point, frame[0], frame[1], wall), placed
    if thickest:
        return (
            f"the letters would leave a wall of {thickest:.1f} mm, expected {min_wall_mm:g} mm at least; choose a "
            "thicker implant, or leave it out"
        )
    size = f"{high[0] - low[0]:.0f} x {LETTER_MM:.0f} mm"
    return (
        f"{text!r} takes {size}, and no place on the inner surface is so large, flat, {RIM_MM:g} mm from bone, and "
        f"{EDGE_MM:g} mm from drain holes; choose a shorter text, or leave it out"
    )


def _seeds(surface: _Surface, room: float) -> np.ndarray:
    """Vertices around which there is some room, one in each cell of a lattice, those with the most first."""
    free = np.flatnonzero(surface.room > room - MARGIN_MM)
    free = free[np.argsort(-surface.room[free], kind="stable")]
    _, first = np.unique(np.floor(surface.points[free] / SEEDS_MM), axis=0, return_index=True)
    return free[np.sort(first)][:MAX_SEEDS]


def _frame(normal: np.ndarray, angle: float) -> np.ndarray:
    """(3, 3): unit vectors right, up and normal of a text turned by an angle; the normal points to the reader."""
    above = np.array([0.0, 0.0, 1.0]) if abs(normal[2]) < STEEP else np.array([0.0, -1.0, 0.0])  # superior, anterior
    right = unit(np.cross(above, normal)[None])[0]
    up = np.cross(normal, right)
    right, up = np.cos(angle) * right + np.sin(angle) * up, np.cos(angle) * up - np.sin(angle) * right
    return np.stack([right, up, normal])


def _cutter(letters: manifold3d.CrossSection, surface: np.ndarray) -> tuple[manifold3d.Manifold, np.ndarray]:
    """The letters as a solid that follows a surface, and the vertices of its floor.

    surface: (N, 3) mm along right, up and height, as the floor, which is not finite where the surface does not reach.
    """
    import manifold3d

    height = LinearNDInterpolator(surface[:, :2], surface[:, 2])
    solid = letters.extrude(DEPTH_MM + OVERSHOOT_MM).refine_to_length(FINE_MM).to_mesh64()
    vertices = np.array(solid.vert_properties[:, :3], order="C")
    floor = vertices[:, 2] < 1e-9
    vertices[:, 2] += height(vertices[:, :2]) - DEPTH_MM
    if np.isfinite(vertices).all():
        return manifold3d.Manifold(manifold3d.Mesh64(vertices, np.array(solid.tri_verts, order="C"))), vertices[floor]
    return manifold3d.Manifold(), np.full((1, 3), np.nan)
