"""The pictures of a report: skull and implant from several sides, and the rim in close-up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from pcdiff.geometry.directions import unit
from pcdiff.geometry.mesh import Mesh
from pcdiff.geometry.stroke_font import on_strokes, text_strokes
from pcdiff.report.colours import CUT, IMPLANT
from pcdiff.report.error_picture import CUT_BELOW_MM
from pcdiff.report.render import Canvas, render, sheet, stack
from pcdiff.report.scene import Scene
from pcdiff.report.surfaces import Shape, beads, oblique_view, outward_direction, select_vertices

PIXEL_MM = 0.75
CLOSE_UP_MM = 0.45  # per pixel
CLOSE_UP_BONE_MM = 16.0  # bone around the implant in the close-up
BEAD_MM = 1.1
TEXT_WINDOW_MM = (26.0, 0.0, 7.0)  # half the width, depth and height of what is shown around an engraved text
TEXT_PATCH_MM = (60.0, 25.0, 40.0)  # of the surface that is drawn
TEXT_MM = 0.12  # per pixel


def scene_picture(scene: Scene) -> np.ndarray:
    """(H, W, 3) uint8 of a scene: defect and implant, then its points, then the error where the truth is known."""
    bone, implant = scene.skull.shape, scene.implant
    rows = [case_picture(bone, implant.shape)]
    view = oblique_view(outward_direction(bone, implant.shape))
    moving = [cloud for cloud in scene.clouds if len(cloud.frames) > 1]
    still = [cloud for cloud in scene.clouds if len(cloud.frames) == 1]
    points = [(cloud.frames[0], cloud.colour) for cloud in still[:2]]
    points += [(cloud.frames[n], cloud.colour) for cloud in moving[:1] for n in (0, 1, len(cloud.frames) - 1)]
    if points:
        rows.append(sheet([render([bone, beads(*cloud, BEAD_MM)], view, PIXEL_MM) for cloud in points]))
    for field in implant.fields:
        if field.name == "error":
            error = replace(implant.shape, colour=field.scale.at(field.values, field.low, field.high))
            rows.append(sheet([render([bone, error], view, PIXEL_MM), render([error], -view, PIXEL_MM)]))
    return stack(rows)


def case_picture(bone: Shape, implant: Shape, mm_per_pixel: float = 0.5) -> np.ndarray:
    """(H, W, 3) uint8: the defective skull, the implant in place, and the implant alone, obliquely from below."""
    outward = outward_direction(bone, implant)
    view = oblique_view(outward)
    across = np.cross(outward, [0.0, 0.0, 1.0] if abs(outward[2]) < 0.95 else [0.0, 1.0, 0.0])
    canvas = Canvas([bone, implant], view, mm_per_pixel)
    canvas.add(bone)
    defect = canvas.picture()
    canvas.add(implant)
    return sheet([defect, canvas.picture(), render([implant], across - 0.5 * outward, mm_per_pixel)])


def views(scene: Scene) -> Iterator[tuple[str, np.ndarray]]:
    """Captions and (H, W, 3) uint8 pictures: front, side, top, inside, all to one scale, and the rim in close-up.

    The side is the one that the implant faces. For the view from inside, the bone in front of the implant is cut away.
    """
    bone, implant = scene.skull.shape, scene.implant.shape
    outward = outward_direction(bone, implant)
    side = "left" if outward[0] > 0 else "right"
    for caption, view in (("front", "front"), (f"{side} side", side), ("top, forehead up", "top")):
        yield caption, render([bone, implant], view, PIXEL_MM)
    tilt = 0.3 * np.cross([0.0, 0.0, 1.0], outward) + [0.0, 0.0, 0.05]
    floor = (implant.vertices @ outward).min() - CUT_BELOW_MM
    upper = [select_vertices(shape, shape.vertices @ outward > floor) for shape in (bone, implant)]
    yield "from inside", render(upper, tilt - outward, PIXEL_MM)
    yield "close-up of the rim", render([_bone_around(bone, implant), implant], outward + 2 * tilt, CLOSE_UP_MM)


def engraving_picture(mesh: Mesh, place: Mapping[str, Any]) -> np.ndarray:
    """(H, W, 3) uint8: an engraved text as it is read from inside the head, its letters dark.

    mesh: of the implant. place: `text`, `point`, `right` and `up`, see docs/files.md.
    """
    right, up = (np.array(place[name]) for name in ("right", "up"))
    local = (mesh.vertices - place["point"]) @ np.stack([right, np.cross(up, right), up]).T  # the reader is in front
    near = (np.abs(local) < TEXT_PATCH_MM).all(axis=1)[mesh.faces].all(axis=1)
    faces, flat = mesh.faces[near], Mesh(local, mesh.faces[near])
    normals = np.repeat(unit(flat.area_vectors), 3, axis=0)  # facets, so that edges stay sharp
    cut = on_strokes(local[faces].mean(axis=1)[:, [0, 2]], text_strokes(place["text"]))
    colours = np.where(np.repeat(cut, 3)[:, None], CUT, IMPLANT)
    shape = Shape(local[faces].reshape(-1, 3), normals, np.arange(faces.size).reshape(-1, 3), colours)
    corners = np.array(list(product((-1, 1), repeat=3))) * TEXT_WINDOW_MM  # of the picture; the surface goes on
    canvas = Canvas([replace(shape, vertices=corners)], (0.0, -1.0, -0.8), TEXT_MM)
    canvas.add(shape)
    return canvas.picture()


def _bone_around(bone: Shape, implant: Shape) -> Shape:
    low, high = implant.vertices.min(axis=0) - CLOSE_UP_BONE_MM, implant.vertices.max(axis=0) + CLOSE_UP_BONE_MM
    return select_vertices(bone, ((bone.vertices > low) & (bone.vertices < high)).all(axis=1))
