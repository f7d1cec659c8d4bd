"""The pictures of a report: skull and implant from four sides and from within, the rim close up, and sections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pcdiff.geometry.grid import bounding_box
from pcdiff.geometry.volume import Volume
from pcdiff.report.render import BONE, IMPLANT, INSIDE_MM, case_picture, render, scale_colours, sheet, srgb
from pcdiff.report.scene import Scene
from pcdiff.report.surfaces import Shape, facing, part_of, slanted

PIXEL_MM = 0.75
CLOSE_MM = 0.45  # per pixel, of the rim and the sections
AROUND_MM = 16.0  # bone around the implant in the close-up
BEAD_MM = 1.1
SECTION_MM = 24.0  # and in the sections
SECTIONS = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}  # right, up (or down), across


def scene_picture(scene: Scene) -> np.ndarray:
    """(H, W, 3) uint8 of a scene: skull, defect and implant; beneath, its points and their way, and its error map."""
    bone, implant = scene.surfaces[0].shape, scene.surface("implant")
    assert implant is not None
    rows = [case_picture(bone, implant.shape)]
    view = slanted(facing(bone, implant.shape))
    moving = [cloud for cloud in scene.clouds if len(cloud.frames) > 1]
    still = [cloud for cloud in scene.clouds if len(cloud.frames) == 1]
    steps = [(cloud.frames[0], cloud.colour) for cloud in still[:2]]
    steps += [(cloud.frames[n], cloud.colour) for cloud in moving[:1] for n in (0, 1, len(cloud.frames) - 1)]
    if steps:
        rows.append(sheet([render([bone, beads(*step)], view, PIXEL_MM) for step in steps]))
    for field in implant.fields:
        if field.name == "error":
            map_ = replace(implant.shape, colour=scale_colours(field.values, field.low, field.high))
            rows.append(sheet([render([bone, map_], view, PIXEL_MM), render([map_], -view, PIXEL_MM)]))
    width = max(row.shape[1] for row in rows)
    return np.concatenate(
        [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    )


def beads(points: np.ndarray, colour: tuple[float, float, float]) -> Shape:
    """(N, 3) mm as a shape: an octahedron of BEAD_MM for each."""
    ends = np.concatenate([np.eye(3), -np.eye(3)])
    sides = np.array(
        [(x, y, z) if (x < 3) ^ (y < 3) ^ (z < 3) else (y, x, z) for x in (0, 3) for y in (1, 4) for z in (2, 5)]
    )
    vertices = (points[:, None] + BEAD_MM * ends).reshape(-1, 3)
    faces = (6 * np.arange(len(points))[:, None, None] + sides).reshape(-1, 3)
    return Shape(vertices, np.tile(ends, (len(points), 1)), faces, colour)


def views(scene: Scene) -> Iterator[tuple[str, np.ndarray]]:
    """Captions and (H, W, 3) uint8 pictures, all to one scale but the close-up.

    Front, the side on which more of the implant lies, top; from within, what is before the implant cut away; the rim.
    """
    bone = scene.surfaces[0].shape
    implant = scene.surface("implant")
    assert implant is not None
    piece = implant.shape
    outward = facing(bone, piece)
    side = "left" if outward[0] > 0 else "right"
    for caption, view in (("front", "front"), (f"{side} side", side), ("top, forehead up", "top")):
        yield caption, render([bone, piece], view, PIXEL_MM)
    beside = 0.3 * np.cross([0.0, 0.0, 1.0], outward) + [0.0, 0.0, 0.05]
    floor = (piece.vertices @ outward).min() - INSIDE_MM
    within = [part_of(shape, shape.vertices @ outward > floor) for shape in (bone, piece)]
    yield "from inside", render(within, beside - outward, PIXEL_MM)
    yield "the rim, close up", render([_near(bone, piece), piece], outward + 2 * beside, CLOSE_MM)


def sections(skull: Volume, implant: Volume) -> Iterator[tuple[str, np.ndarray]]:
    """Axial, coronal and sagittal sections through the implant's voxel nearest its centre, voxel by voxel.

    Seen as radiologists do: the patient's left is on the right, front and top are up; a sagittal one faces left.
    """
    points = _voxels(implant)
    centre = points[np.linalg.norm(points - points.mean(axis=0), axis=1).argmin()]
    low, high = points.min(axis=0) - SECTION_MM, points.max(axis=0) + SECTION_MM
    for name, (right, up, across) in SECTIONS.items():
        u = np.arange(low[right], high[right], CLOSE_MM)
        v = np.arange(low[up], high[up], CLOSE_MM)
        if up == 2:  # superior is up; posterior, of an axial section, is down
            v = v[::-1]
        place = np.empty((len(v), len(u), 3))
        place[..., right], place[..., up], place[..., across] = u, v[:, None], centre[across]
        index = np.rint(implant.to_index(place)).astype(int)
        inside = ((index >= 0) & (index < implant.mask.shape)).all(axis=-1)
        i, j, k = np.moveaxis(np.where(inside[..., None], index, 0), -1, 0)
        picture = np.ones((*inside.shape, 3))
        picture[inside & skull.mask[i, j, k]] = np.array(BONE) * 0.75
        picture[inside & implant.mask[i, j, k]] = IMPLANT
        direction = "LPS"[across]
        yield f"{name} section at {direction} {centre[across]:.0f} mm", np.round(255 * srgb(picture)).astype(np.uint8)


def _near(bone: Shape, piece: Shape) -> Shape:
    low, high = piece.vertices.min(axis=0) - AROUND_MM, piece.vertices.max(axis=0) + AROUND_MM
    return part_of(bone, ((bone.vertices > low) & (bone.vertices < high)).all(axis=1))


def _voxels(implant: Volume) -> np.ndarray:
    part = implant.crop(*bounding_box(implant.mask))
    return part.to_mm(np.argwhere(part.mask))
