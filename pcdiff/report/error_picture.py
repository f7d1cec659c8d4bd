"""The error picture: an implant coloured by the distance of its surface to the true implant's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pcdiff.geometry.grid import components
from pcdiff.geometry.surface import distance_to, volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.report.colours import ERROR_MM, GREY_BONE, TRUTH, error_colours, srgb
from pcdiff.report.render import render, sheet, view_axes
from pcdiff.report.surfaces import Shape, select_vertices, shape_of, smooth_normals

CUT_BELOW_MM = 8.0  # deeper than this below a piece everything is cut away for the view from inside
PIECES = 2
LEAST_SHARE = 0.02  # of the largest piece: what is smaller is a crumb


def error_picture(skull: Volume, implant: Volume, truth: Volume, title: str, mm_per_pixel: float = 0.5) -> np.ndarray:
    """Draws the distance of an implant's surface to the true one's, from outside and from inside.

    One row for each of the two largest pieces of the implant, without crumbs. Bone is grey. Parts of the true surface
    that are more than ERROR_MM away from the implant's are drawn in the colour TRUTH: the defect is left open there.

    Args:
        skull: the defective skull.
        implant: the designed implant, on the skull's grid.
        truth: the true implant, on the same grid.
        title: text above the picture.
        mm_per_pixel: scale.

    Returns:
        (H, W, 3) uint8 with title and colour scale.
    """
    mesh, true = volume_to_mesh(implant), volume_to_mesh(truth)
    error = np.abs(distance_to(true, mesh.vertices))
    surface = Shape(mesh.vertices, smooth_normals(mesh.vertex_normals, mesh.faces), mesh.faces, error_colours(error))
    left_open = np.abs(distance_to(mesh, true.vertices)) > ERROR_MM
    missing = select_vertices(Shape(true.vertices, true.vertex_normals, true.faces, TRUTH), left_open)
    bone = shape_of(skull, GREY_BONE)
    pieces = components(implant.mask)[:PIECES]
    shown = [implant.to_mm(voxels) for voxels in pieces if len(voxels) >= LEAST_SHARE * len(pieces[0])]
    rows = [_piece_row([bone, surface, missing], points, mm_per_pixel) for points in shown]
    return _with_title_and_scale(rows, title)


def _piece_row(shapes: list[Shape], points: np.ndarray, mm_per_pixel: float) -> np.ndarray:
    """One piece, given by its voxels (N, 3) mm, from outside and from inside. The first shape is the bone."""
    bone = shapes[0]
    centre = (bone.vertices.min(axis=0) + bone.vertices.max(axis=0)) / 2
    # Along the direction in which the piece is thinnest its whole surface is visible; a small tilt shows the relief.
    centred = points - points.mean(axis=0)
    outward = np.linalg.eigh(centred.T @ centred)[1][:, 0]
    outward *= np.sign(outward @ (points.mean(axis=0) - centre)) or 1.0
    tilt = 0.25 * np.cross([0.0, 0.0, 1.0], outward)
    floor = (points @ outward).min() - CUT_BELOW_MM
    upper = [select_vertices(shape, shape.vertices @ outward > floor) for shape in shapes]
    pictures = []
    for caption, view, visible in (("from outside", outward + tilt, shapes), ("from inside", tilt - outward, upper)):
        drawn = render([shape for shape in visible if len(shape.faces)], view, mm_per_pixel)
        pictures.append(_with_caption_and_sides(drawn, view, caption))
    return sheet(pictures)


def _with_caption_and_sides(picture: np.ndarray, view: np.ndarray, caption: str) -> np.ndarray:
    """The picture with a caption above, and the letters of the patient's sides (R, L, A, P, I, S) at its edges."""
    from PIL import Image, ImageDraw, ImageFont

    right, up, _ = view_axes(view)
    image = Image.fromarray(np.pad(picture, ((44, 0), (24, 24), (0, 0)), constant_values=255))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    middle, centre = 44 + picture.shape[0] / 2, image.width / 2
    draw.text((centre, 4), caption, "black", font, "ma")
    draw.text((centre, 26), _side_letter(up), "dimgray", font, "ma")
    draw.text((4, middle), _side_letter(-right), "dimgray", font, "lm")
    draw.text((image.width - 4, middle), _side_letter(right), "dimgray", font, "rm")
    return np.asarray(image)


def _side_letter(direction: np.ndarray) -> str:
    """R, L, A, P, I or S: the side of the patient that a direction (3,), LPS, points to mostly."""
    axis = int(np.abs(direction).argmax())
    return ("RL", "AP", "IS")[axis][int(direction[axis] > 0)]


def _with_title_and_scale(rows: Sequence[np.ndarray], title: str) -> np.ndarray:
    """Rows of pictures on white, the title above and the colour scale below."""
    from PIL import Image, ImageDraw, ImageFont

    width = max(520, *(row.shape[1] for row in rows))
    above, below = 40, 90
    canvas = np.full((above + sum(row.shape[0] for row in rows) + below, width, 3), 255, np.uint8)
    top = above
    for row in rows:
        left = (width - row.shape[1]) // 2
        canvas[top : top + row.shape[0], left : left + row.shape[1]] = row
        top += row.shape[0]
    canvas[top + 34 : top + 52, 20:320] = np.round(255 * srgb(error_colours(np.linspace(0, ERROR_MM, 300))))
    canvas[top + 34 : top + 52, 400:420] = np.round(255 * srgb(np.array(TRUTH)))
    image = Image.fromarray(canvas)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    draw.text((20, 12), title, "black", font)
    draw.text((20, top + 10), "distance to the surface of the true implant, mm", "black", font)
    draw.text((428, top + 34), "left open", "black", font)
    for mm in range(int(ERROR_MM) + 1):
        text = f"{mm}" if mm < ERROR_MM else f"{mm} or more"
        draw.text((20 + 300 * mm / ERROR_MM, top + 56), text, "black", font, "ma")
    return np.asarray(image)
