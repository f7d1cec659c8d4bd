"""Still pictures of surfaces: shaded orthographic views drawn in numpy, without a window or a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from pcdiff.errors import InputError
from pcdiff.files import written_beside
from pcdiff.report.colours import srgb
from pcdiff.report.surfaces import Shape

# Direction from the head to the viewer, LPS: +x left, +y posterior, +z superior.
VIEWS = {
    "front": (0.0, -1.0, 0.0),
    "back": (0.0, 1.0, 0.0),
    "left": (1.0, 0.0, 0.0),
    "right": (-1.0, 0.0, 0.0),
    "top": (0.0, 0.0, 1.0),
    "oblique": (0.6, -0.65, 0.45),
}
SUPERSAMPLING = 2  # samples per pixel and axis
BORDER_MM = 6.0  # white around the shapes
PAIRS = 2**17  # (triangle, sample) pairs tested at a time
# Directions towards the lights in view axes (right, up, viewer), and their strengths.
LIGHTS = (((-0.55, 0.70, 0.60), 0.78), ((0.7, 0.0, 0.5), 0.20))
AMBIENT = (0.10, 0.16)  # from below, from above
HIGHLIGHT = 0.06
HOLLOW_MM = (2.5, 12.0)  # neighbourhoods below whose mean height a surface is darkened
HOLLOW_STEP = 2  # samples: the neighbourhoods' means vary little


def render(shapes: Sequence[Shape], view: str | Sequence[float] | np.ndarray, mm_per_pixel: float = 0.5) -> np.ndarray:
    """Draws shapes on white, to scale and antialiased.

    Shaded per sample; hollows are darkened by the unsharp mask of the depth buffer (Luft et al. 2006).

    Args:
        shapes: what to draw.
        view: a name in VIEWS, or the direction (3,) from the head to the viewer, LPS.
        mm_per_pixel: scale.

    Returns:
        (H, W, 3) uint8 sRGB.
    """
    canvas = Canvas(shapes, view, mm_per_pixel)
    for shape in shapes:
        canvas.add(shape)
    return canvas.picture()


class Canvas:
    """A picture to which shapes are added one after the other, see `render`; it can be taken in between.

    shapes: all that the picture has room for. view, mm_per_pixel: as of `render`.
    """

    def __init__(
        self, shapes: Sequence[Shape], view: str | Sequence[float] | np.ndarray, mm_per_pixel: float = 0.5
    ) -> None:
        self._axes = view_axes(view)
        self._step = mm_per_pixel / SUPERSAMPLING
        in_view = [shape.vertices @ self._axes.T for shape in shapes]
        self._low = np.min([p.min(axis=0) for p in in_view], axis=0) - BORDER_MM
        extent = np.max([p.max(axis=0) for p in in_view], axis=0) + BORDER_MM - self._low
        width, height = (np.ceil(extent[:2] / mm_per_pixel) * SUPERSAMPLING).astype(int)
        self._depth = np.full((height, width), -np.inf, np.float32)
        self._normal = np.zeros((height, width, 3), np.float32)
        self._colour = np.ones((height, width, 3), np.float32)

    def add(self, shape: Shape) -> None:
        """Draws a shape before or behind what is there."""
        points = (shape.vertices @ self._axes.T - self._low) / (self._step, self._step, 1.0)
        corners, nearest, weights = _rasterise(points, shape.faces, self._depth.shape)
        front = nearest > self._depth
        corners, weights = corners[front], weights[front]
        self._depth[front] = nearest[front]
        self._normal[front] = np.einsum("nc,ncx->nx", weights, (shape.normals @ self._axes.T)[corners])
        if isinstance(shape.colour, tuple):
            self._colour[front] = shape.colour
        else:
            self._colour[front] = np.einsum("nc,ncx->nx", weights, shape.colour[corners])

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) mm -> (N, 2) columns and rows of the picture."""
        at = (points @ self._axes.T - self._low)[:, :2] / (self._step * SUPERSAMPLING)
        return np.stack([at[:, 0], self._depth.shape[0] / SUPERSAMPLING - at[:, 1]], axis=1)

    def picture(self) -> np.ndarray:
        """(H, W, 3) uint8 sRGB."""
        height, width = self._depth.shape
        covered = np.isfinite(self._depth)
        normal = self._normal / np.maximum(np.linalg.norm(self._normal, axis=2, keepdims=True), 1e-9)
        light = _light(normal) * _hollows(self._depth, covered, self._step)
        shaded = np.where(covered[..., None], self._colour * light[..., :1] + light[..., 1:], 1.0)
        blocks = shaded.reshape(height // SUPERSAMPLING, SUPERSAMPLING, width // SUPERSAMPLING, SUPERSAMPLING, 3)
        return np.round(255 * srgb(blocks.mean(axis=(1, 3))[::-1])).astype(np.uint8)


def view_axes(view: str | Sequence[float] | np.ndarray) -> np.ndarray:
    """(3, 3) rows right, up, towards the viewer, in LPS, of a name in VIEWS or a direction (3,)."""
    viewer = np.array(VIEWS[view] if isinstance(view, str) else view, float)
    viewer /= np.linalg.norm(viewer)
    # Seen from above, the forehead is up.
    up = np.array([0.0, -1.0, 0.0] if abs(viewer[2]) > 0.95 else [0.0, 0.0, 1.0])
    right = np.cross(up, viewer)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(viewer, right), viewer])


def sheet(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (H, W, 3) side by side on white, centred in height."""
    height = max(picture.shape[0] for picture in pictures)
    padded = []
    for picture in pictures:
        above = (height - picture.shape[0]) // 2
        below = height - picture.shape[0] - above
        padded.append(np.pad(picture, ((above, below), (0, 0), (0, 0)), constant_values=255))
    return np.concatenate(padded, axis=1)


def stack(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (H, W, 3) one below the other on white, aligned at the left."""
    width = max(picture.shape[1] for picture in pictures)
    padded = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
    return np.concatenate(padded)


def write_png(picture: np.ndarray, path: Path) -> None:
    """Writes (H, W, 3) uint8 as PNG. Raises InputError for another suffix, or a path that cannot be written."""
    from PIL import Image

    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: expected a name that ends in .png, got {path.suffix or 'none'}; only PNG is written")
    with written_beside(path) as part:
        Image.fromarray(picture).save(part, format="PNG")


def _rasterise(
    points: np.ndarray, faces: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices (V, 3) as column, row, height -> per sample: corners (H, W, 3), height (H, W), weights (H, W, 3).

    Height is -inf where no front-facing triangle covers the sample.
    """
    x, y, z = points.T.astype(np.float32)[:, faces.T]  # (3, F) each: one corner after the other is fast to read
    front = np.flatnonzero((x[1] - x[0]) * (y[2] - y[0]) - (y[1] - y[0]) * (x[2] - x[0]) > 1e-6)
    x, y, z = x[:, front], y[:, front], z[:, front]
    height = np.full(shape[0] * shape[1], -np.inf, np.float32)
    winner = np.zeros(shape[0] * shape[1], np.int64)
    weight = np.zeros((shape[0] * shape[1], 3), np.float32)
    for owner, column, row in _samples(x, y, shape):
        dx, dy = x[:, owner] - column.astype(np.float32), y[:, owner] - row.astype(np.float32)
        w = [dx[i] * dy[j] - dx[j] * dy[i] for i, j in ((1, 2), (2, 0), (0, 1))]
        hit = np.flatnonzero((w[0] >= 0) & (w[1] >= 0) & (w[2] >= 0))
        owner, pixel = owner[hit], row[hit].astype(np.int64) * shape[1] + column[hit]
        within = np.stack([each[hit] for each in w])
        within /= within.sum(axis=0)
        above = (within * z[:, owner]).sum(axis=0)
        # In ascending order the nearest sample is written last, over the others.
        order = np.argsort(above)
        order = order[above[order] > height[pixel[order]]]
        pixel = pixel[order]
        height[pixel], winner[pixel], weight[pixel] = above[order], front[owner[order]], within.T[order]
    return faces[winner].reshape(*shape, 3), height.reshape(shape), weight.reshape(*shape, 3)


def _samples(
    x: np.ndarray, y: np.ndarray, shape: tuple[int, int]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Triangle index, column and row of the samples in each triangle's bounding box, in chunks.

    x, y: (3, F) of the triangles' corners.
    """
    first, last = (
        [np.clip(rounded(of(a, axis=0)), least, side - 1 + least) for a, side in ((x, shape[1]), (y, shape[0]))]
        for rounded, of, least in ((np.ceil, np.min, 0), (np.floor, np.max, -1))
    )
    low = np.array(first).astype(np.int32)  # (2, F)
    extent = np.maximum(np.array(last).astype(np.int32) - low + 1, 0)
    pairs = extent.prod(axis=0)
    some = np.flatnonzero(pairs)
    for group in np.split(some, np.flatnonzero(np.diff(np.cumsum(pairs[some]) // PAIRS)) + 1):
        owner = np.repeat(group, pairs[group])
        rank = np.arange(len(owner), dtype=np.int32)
        rank -= np.repeat((np.cumsum(pairs[group]) - pairs[group]).astype(np.int32), pairs[group])
        width = extent[0, owner]
        yield owner, low[0, owner] + rank % width, low[1, owner] + rank // width


def _light(normal: np.ndarray) -> np.ndarray:
    """(H, W, 3) view normals -> (H, W, 2): diffuse light, and the white highlight (Blinn 1977)."""
    diffuse = AMBIENT[0] + (AMBIENT[1] - AMBIENT[0]) * (normal[..., 1] + 1) / 2
    highlight = np.zeros(normal.shape[:2])
    for direction, strength in LIGHTS:
        towards = np.array(direction) / np.linalg.norm(direction)
        diffuse = diffuse + strength * np.maximum(normal @ towards, 0)
        half = towards + np.array([0.0, 0.0, 1.0])
        highlight += strength * HIGHLIGHT * np.maximum(normal @ (half / np.linalg.norm(half)), 0) ** 30
    return np.stack([diffuse, highlight], axis=-1)


def _hollows(depth: np.ndarray, covered: np.ndarray, step: float) -> np.ndarray:
    """(H, W, 1) factor: below 1 where the surface lies deeper than the mean of its neighbourhood."""
    share = covered[::HOLLOW_STEP, ::HOLLOW_STEP].astype(np.float32)
    known = np.where(covered, depth, 0)[::HOLLOW_STEP, ::HOLLOW_STEP].astype(np.float32)
    factor = np.ones(known.shape, np.float32)
    for width in HOLLOW_MM:
        sigma = width / (step * HOLLOW_STEP) / 2
        around = gaussian_filter(known, sigma) / np.maximum(gaussian_filter(share, sigma), 1e-3)
        factor -= 0.3 * np.clip((around - known) / width, 0, 1) * share
    whole = factor.repeat(HOLLOW_STEP, axis=0).repeat(HOLLOW_STEP, axis=1)
    return whole[: depth.shape[0], : depth.shape[1], None]
