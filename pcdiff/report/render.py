"""Still pictures of bone and implant: shaded orthographic views drawn in numpy, so that no window is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, label

from pcdiff.errors import InputError
from pcdiff.files import written_beside
from pcdiff.geometry.grid import bounding_box
from pcdiff.geometry.surface import distance_to, vertex_normals, volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.report.surfaces import Shape, facing, part_of, shape_of, slanted, smooth_normals

BONE = (0.87, 0.80, 0.67)  # linear RGB
IMPLANT = (0.06, 0.40, 0.55)
GREY = (0.55, 0.55, 0.55)
MISSING = (0.35, 0.02, 0.45)
ERROR_MM = 3.0  # where the scale of errors ends
# Linear RGB at equal steps from 0 to ERROR_MM: blue to yellow to red, which the colour-blind can tell apart too.
ERRORS = np.array([(0.03, 0.17, 0.50), (0.22, 0.55, 0.65), (0.95, 0.80, 0.25), (0.85, 0.22, 0.03), (0.35, 0.0, 0.02)])
# Where the viewer stands, LPS: +x left, +y posterior, +z superior.
VIEWS = {
    "front": (0.0, -1.0, 0.0),
    "back": (0.0, 1.0, 0.0),
    "left": (1.0, 0.0, 0.0),
    "right": (-1.0, 0.0, 0.0),
    "top": (0.0, 0.0, 1.0),
    "oblique": (0.6, -0.65, 0.45),
}
SUPERSAMPLING = 2  # samples per pixel and axis
MARGIN_MM = 6.0
INSIDE_MM = 8.0  # mm beneath a piece of an implant at which all is cut to look at it from within
PAIRS = 2**20  # (triangle, sample) pairs tested at a time
# Directions towards the lights in view axes (right, up, viewer), and how strong they are.
LIGHTS = (((-0.55, 0.70, 0.60), 0.78), ((0.7, 0.0, 0.5), 0.20))
AMBIENT = (0.10, 0.16)  # from below, from above
SHINE = 0.06
HOLLOW_MM = (2.5, 12.0)  # widths over which ground lower than its surroundings is darkened


def render(shapes: Sequence[Shape], view: str | Sequence[float] | np.ndarray, mm_per_pixel: float = 0.5) -> np.ndarray:
    """(H, W, 3) uint8: the shapes on white, seen from a name in VIEWS or from a direction (LPS), to scale.

    Antialiased by SUPERSAMPLING, shaded per sample; hollows are darkened by the depth buffer's unsharp mask
    (Luft et al. 2006).
    """
    axes = _axes(view)
    step = mm_per_pixel / SUPERSAMPLING
    placed = [shape.vertices @ axes.T for shape in shapes]
    low = np.min([p.min(axis=0) for p in placed], axis=0) - MARGIN_MM
    extent = np.max([p.max(axis=0) for p in placed], axis=0) + MARGIN_MM - low
    width, height = (np.ceil(extent[:2] / mm_per_pixel) * SUPERSAMPLING).astype(int)
    depth = np.full((height, width), -np.inf)
    normal = np.zeros((height, width, 3))
    colour = np.ones((height, width, 3))
    for shape, points in zip(shapes, placed, strict=True):
        points = (points - low) / (step, step, 1.0)
        corners, nearest, weights = _rasterise(points, shape.faces, (height, width))
        here = nearest > depth
        depth[here] = nearest[here]
        normal[here] = np.einsum("nc,ncx->nx", weights[here], (shape.normals @ axes.T)[corners[here]])
        each = np.broadcast_to(shape.colour, shape.vertices.shape)
        colour[here] = np.einsum("nc,ncx->nx", weights[here], each[corners[here]])
    seen = np.isfinite(depth)
    normal[seen] /= np.maximum(np.linalg.norm(normal[seen], axis=1, keepdims=True), 1e-9)
    light = _light(normal) * _hollows(depth, seen, step)
    shaded = np.where(seen[..., None], colour * light[..., :1] + light[..., 1:], 1.0)
    blocks = shaded.reshape(height // SUPERSAMPLING, SUPERSAMPLING, width // SUPERSAMPLING, SUPERSAMPLING, 3)
    return np.round(255 * srgb(blocks.mean(axis=(1, 3))[::-1])).astype(np.uint8)


def sheet(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures side by side on white, centred in height."""
    height = max(picture.shape[0] for picture in pictures)
    padded = []
    for picture in pictures:
        above = (height - picture.shape[0]) // 2
        below = height - picture.shape[0] - above
        padded.append(np.pad(picture, ((above, below), (0, 0), (0, 0)), constant_values=255))
    return np.concatenate(padded, axis=1)


def case_picture(bone: Shape, piece: Shape, mm_per_pixel: float = 0.5) -> np.ndarray:
    """(H, W, 3) uint8: the defective skull, the implant in place, and the implant alone, half from beneath."""
    towards = facing(bone, piece)
    turned = slanted(towards)
    across = np.cross(towards, [0.0, 0.0, 1.0] if abs(towards[2]) < 0.95 else [0.0, 1.0, 0.0])
    return sheet(
        [
            render([bone], turned, mm_per_pixel),
            render([bone, piece], turned, mm_per_pixel),
            render([piece], across - 0.5 * towards, mm_per_pixel),
        ]
    )


def error_picture(skull: Volume, implant: Volume, truth: Volume, title: str, mm_per_pixel: float = 0.5) -> np.ndarray:
    """(H, W, 3) uint8: how far an implant's surface lies from the true one's, from outside and from within.

    A row for each piece of the implant, at most two. Bone is grey; what is left open, the true surface more than
    ERROR_MM from the implant's, is MISSING. One scale for all pictures, drawn beneath them.
    """
    mesh, true = volume_to_mesh(implant), volume_to_mesh(truth)
    error = np.abs(distance_to(true, mesh.vertices))
    piece = Shape(mesh.vertices, smooth_normals(vertex_normals(mesh), mesh.faces), mesh.faces, error_colours(error))
    lost = np.abs(distance_to(mesh, true.vertices)) > ERROR_MM
    missing = part_of(Shape(true.vertices, vertex_normals(true), true.faces, MISSING), lost)
    bone = shape_of(skull, GREY)
    middle = (bone.vertices.min(axis=0) + bone.vertices.max(axis=0)) / 2
    rows = []
    for points in _pieces(implant):
        # The direction in which the piece is thinnest looks at it squarely; a little from the side shows its relief.
        outward = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)[2][2]
        outward *= np.sign(outward @ (points.mean(axis=0) - middle)) or 1.0
        beside = 0.25 * np.cross([0.0, 0.0, 1.0], outward)
        floor = (points @ outward).min() - INSIDE_MM
        shapes = [bone, piece, missing]
        views = {
            "from outside": (outward + beside, shapes),
            "from within": (beside - outward, [part_of(shape, shape.vertices @ outward > floor) for shape in shapes]),
        }
        pictures = []
        for caption, (view, seen) in views.items():
            drawn = render([shape for shape in seen if len(shape.faces)], view, mm_per_pixel)
            pictures.append(_captioned(drawn, view, caption))
        rows.append(sheet(pictures))
    return _lettered(rows, title)


def error_colours(mm: np.ndarray) -> np.ndarray:
    """(N,) mm -> (N, 3) linear RGB on the scale of errors, the same beyond its end."""
    return scale_colours(mm, 0.0, ERROR_MM)


def scale_colours(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """(N,) -> (N, 3) linear RGB on the same scale between other ends."""
    steps = np.linspace(low, high, len(ERRORS))
    return np.stack([np.interp(values, steps, channel) for channel in ERRORS.T], axis=-1)


def write_png(picture: np.ndarray, path: Path) -> None:
    """(H, W, 3) uint8 -> PNG; raises InputError for a file of another name, and where it cannot be written."""
    from PIL import Image

    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: expected a name that ends in .png, got another; only PNG is written")
    with written_beside(path) as part:
        Image.fromarray(picture).save(part, format="PNG", optimize=True)


def _pieces(implant: Volume) -> list[np.ndarray]:
    """Voxels of the two largest pieces, (N, 3) mm, the largest first."""
    part = implant.crop(*bounding_box(implant.mask))
    labels, _ = label(part.mask, np.ones((3, 3, 3)))
    largest = np.argsort(-np.bincount(labels.ravel())[1:])[:2] + 1
    return [part.to_mm(np.argwhere(labels == number)) for number in largest]


def _captioned(picture: np.ndarray, view: np.ndarray, caption: str) -> np.ndarray:
    """A picture with white around it: a caption above, and at its sides which way they lie on the patient."""
    from PIL import Image, ImageDraw, ImageFont

    right, up, _ = _axes(view)
    image = Image.fromarray(np.pad(picture, ((44, 0), (24, 24), (0, 0)), constant_values=255))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    middle, centre = 44 + picture.shape[0] / 2, image.width / 2
    draw.text((centre, 4), caption, "black", font, "ma")
    draw.text((centre, 26), _towards(up), "dimgray", font, "ma")
    draw.text((4, middle), _towards(-right), "dimgray", font, "lm")
    draw.text((image.width - 4, middle), _towards(right), "dimgray", font, "rm")
    return np.asarray(image)


def _towards(way: np.ndarray) -> str:
    """Left, right, anterior, posterior, superior or inferior: where a direction (LPS) points mostly."""
    axis = int(np.abs(way).argmax())
    return ("RL", "AP", "IS")[axis][int(way[axis] > 0)]


def _lettered(rows: Sequence[np.ndarray], title: str) -> np.ndarray:
    """Rows of pictures on white, a title above them and the scale of errors beneath."""
    from PIL import Image, ImageDraw, ImageFont

    width = max(520, *(row.shape[1] for row in rows))
    above, beneath = 40, 90
    canvas = np.full((above + sum(row.shape[0] for row in rows) + beneath, width, 3), 255, np.uint8)
    top = above
    for row in rows:
        left = (width - row.shape[1]) // 2
        canvas[top : top + row.shape[0], left : left + row.shape[1]] = row
        top += row.shape[0]
    bar = slice(20, 320)
    canvas[top + 34 : top + 52, bar] = np.round(255 * srgb(error_colours(np.linspace(0, ERROR_MM, 300))))
    canvas[top + 34 : top + 52, 400:420] = np.round(255 * srgb(np.array(MISSING)))
    image = Image.fromarray(canvas)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    draw.text((20, 12), title, "black", font)
    draw.text((20, top + 10), "distance to the true implant's surface, mm", "black", font)
    draw.text((428, top + 34), "left open", "black", font)
    for mm in range(int(ERROR_MM) + 1):
        text = f"{mm}" if mm < ERROR_MM else f"{mm} or more"
        draw.text((20 + 300 * mm / ERROR_MM, top + 56), text, "black", font, "ma")
    return np.asarray(image)


def _axes(view: str | Sequence[float] | np.ndarray) -> np.ndarray:
    """(3, 3) rows right, up, towards the viewer, in LPS."""
    towards = np.array(VIEWS[view] if isinstance(view, str) else view, float)
    towards /= np.linalg.norm(towards)
    # From above, the forehead is up.
    up = np.array([0.0, -1.0, 0.0] if abs(towards[2]) > 0.95 else [0.0, 0.0, 1.0])
    right = np.cross(up, towards)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(towards, right), towards])


def _rasterise(
    points: np.ndarray, faces: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices (V, 3) as column, row, height -> per sample: corners (H, W, 3), height (H, W), weights (H, W, 3).

    Height is -inf where no front-facing triangle covers the sample.
    """
    triangles = points[faces].astype(np.float32)
    (ax, ay), (bx, by) = (triangles[:, 1, :2] - triangles[:, 0, :2]).T, (triangles[:, 2, :2] - triangles[:, 0, :2]).T
    front = np.flatnonzero(ax * by - ay * bx > 1e-6)
    height = np.full(shape[0] * shape[1], -np.inf, np.float32)
    winner = np.zeros(shape[0] * shape[1], np.int64)
    weight = np.zeros((shape[0] * shape[1], 3), np.float32)
    for owner, x, y in _samples(triangles[front], shape):
        t = triangles[front[owner]]
        dx, dy = t[:, :, 0] - x[:, None], t[:, :, 1] - y[:, None]
        w = np.stack([dx[:, i] * dy[:, j] - dx[:, j] * dy[:, i] for i, j in ((1, 2), (2, 0), (0, 1))], axis=1)
        hit = (w >= 0).all(axis=1)
        w = w[hit] / w[hit].sum(axis=1, keepdims=True)
        z = (w * t[hit, :, 2]).sum(axis=1)
        pixel = y[hit].astype(np.int64) * shape[1] + x[hit].astype(np.int64)
        # The nearest sample of this chunk comes last, so that it is the one that stays.
        order = np.argsort(z)
        order = order[z[order] > height[pixel[order]]]
        height[pixel[order]], winner[pixel[order]], weight[pixel[order]] = z[order], front[owner[hit][order]], w[order]
    return faces[winner].reshape(*shape, 3), height.reshape(shape), weight.reshape(*shape, 3)


def _samples(triangles: np.ndarray, shape: tuple[int, int]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Triangle index, x and y (float32, whole) of the samples in each triangle's bounding box, in chunks."""
    low = np.ceil(np.maximum(triangles[:, :, :2].min(axis=1), 0)).astype(np.int32)
    high = np.floor(np.minimum(triangles[:, :, :2].max(axis=1), (shape[1] - 1, shape[0] - 1))).astype(np.int32)
    extent = np.maximum(high - low + 1, 0)
    pairs = extent.prod(axis=1)
    some = np.flatnonzero(pairs)
    for group in np.split(some, np.flatnonzero(np.diff(np.cumsum(pairs[some]) // PAIRS)) + 1):
        owner = np.repeat(group, pairs[group])
        rank = np.arange(len(owner)) - np.repeat(np.cumsum(pairs[group]) - pairs[group], pairs[group])
        x = low[owner, 0] + rank % extent[owner, 0]
        y = low[owner, 1] + rank // extent[owner, 0]
        yield owner, x.astype(np.float32), y.astype(np.float32)


def _light(normal: np.ndarray) -> np.ndarray:
    """(H, W, 3) view normals -> (H, W, 2): diffuse light, and the highlight that is white on every colour."""
    diffuse = AMBIENT[0] + (AMBIENT[1] - AMBIENT[0]) * (normal[..., 1] + 1) / 2
    shine = np.zeros(normal.shape[:2])
    for direction, strength in LIGHTS:
        towards = np.array(direction) / np.linalg.norm(direction)
        diffuse = diffuse + strength * np.maximum(normal @ towards, 0)
        half = towards + np.array([0.0, 0.0, 1.0])
        shine += strength * SHINE * np.maximum(normal @ (half / np.linalg.norm(half)), 0) ** 30
    return np.stack([diffuse, shine], axis=-1)


def _hollows(depth: np.ndarray, seen: np.ndarray, step: float) -> np.ndarray:
    """(H, W, 1) factor: below 1 where the surface lies deeper than its surroundings."""
    factor = np.ones(depth.shape)
    share = seen.astype(np.float32)
    known = np.where(seen, depth, 0).astype(np.float32)
    for width in HOLLOW_MM:
        sigma = width / step / 2
        around = gaussian_filter(known, sigma) / np.maximum(gaussian_filter(share, sigma), 1e-3)
        factor -= 0.3 * np.clip((around - known) / width, 0, 1)
    return factor[..., None]


def srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light 0 to 1 -> sRGB, 0 to 1 (IEC 61966-2-1)."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
