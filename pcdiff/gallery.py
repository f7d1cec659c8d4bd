"""The pictures of a report: skull and implant from four sides and from within, the rim close up, and sections."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pcdiff.metrics import bounding_box
from pcdiff.picture import BONE, IMPLANT, INSIDE_MM, Shape, part_of, render, srgb
from pcdiff.scene import Scene, bounds
from pcdiff.volume import Volume

PIXEL_MM = 0.65
CLOSE_MM = 0.4  # per pixel, of the rim and the sections
AROUND_MM = 16.0  # bone around the implant in the close-up
SECTION_MM = 24.0  # and in the sections
SECTIONS = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}  # right, up (or down), across


def views(scene: Scene) -> Iterator[tuple[str, np.ndarray]]:
    """Captions and (H, W, 3) uint8 pictures, all to one scale but the close-up.

    Front, the side on which more of the implant lies, top; from within, what is before the implant cut away; the rim.
    """
    bone = scene.surfaces[0].shape
    implant = scene.surface("implant")
    assert implant is not None
    piece = implant.shape
    low, high = bounds([bone, piece])
    centre = piece.vertices.mean(axis=0)
    outward = centre - (low + high) / 2
    outward /= np.linalg.norm(outward)
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
