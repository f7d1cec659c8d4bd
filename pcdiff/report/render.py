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
        self._shape = int(height), int(width)
        self._depth = np.full(height * width, -np.inf, np.float32)  # of each sample, row by row from below
        self._normal = np.zeros((height * width, 3), np.float32)
        self._colour = np.ones((height * width, 3), np.float32)

    def add(self, shape: Shape) -> None:
        """Draws a shape before or behind what is there."""
        points = (shape.vertices @ self._axes.T - self._low) / (self._step, self._step, 1.0)
        points = points.astype(np.float32)
        sample, height, triangle = _rasterise(points, shape.faces, self._shape)
        before = self._depth.copy()
        np.maximum.at(self._depth, sample, height)
        front = np.flatnonzero((height == self._depth[sample]) & (height > before[sample]))
        sample, corners = sample[front], shape.faces[triangle[front]].T  # (N,), (3, N)
        row, column = (place.astype(np.float32) for place in np.divmod(sample, self._shape[1]))
        weights = _weights(points[:, 0][corners] - column, points[:, 1][corners] - row)
        total = weights[0] + weights[1] + weights[2]

        def mixed(values: np.ndarray) -> np.ndarray:
            a, b, c = (values[corners[n]] * (weights[n] / total)[:, None] for n in range(3))
            return a + b + c

        self._normal[sample] = mixed((shape.normals @ self._axes.T).astype(np.float32))
        self._colour[sample] = shape.colour if isinstance(shape.colour, tuple) else mixed(shape.colour)

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) mm -> (N, 2) columns and rows of the picture."""
        at = (points @ self._axes.T - self._low)[:, :2] / (self._step * SUPERSAMPLING)
        return np.stack([at[:, 0], self._shape[0] / SUPERSAMPLING - at[:, 1]], axis=1)

    def picture(self) -> np.ndarray:
        """(H, W, 3) uint8 sRGB."""
        height, width = self._shape
        covered = np.flatnonzero(np.isfinite(self._depth))
        light = _light(self._normal[covered]) * _hollows(self._depth.reshape(self._shape), self._step)[covered, None]
        shaded = np.ones((height * width, 3), np.float32)
        shaded[covered] = self._colour[covered] * light[:, :1] + light[:, 1:]
        samples = shaded.reshape(height, width, 3)
        of_pixel = [samples[i::SUPERSAMPLING, j::SUPERSAMPLING] for i, j in np.ndindex(SUPERSAMPLING, SUPERSAMPLING)]
        return np.round(255 * srgb(np.mean(of_pixel, axis=0)[::-1])).astype(np.uint8)


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
    """The samples that triangles cover which face the viewer; one that several cover comes several times.

    points: (V, 3) float32 column, row, height of vertices. shape: rows and columns of samples. Returns (N,) int samples
    row by row, (N,) float32 heights and (N,) int triangles.
    """
    x, y, z = points.T[:, faces.T]  # (3, F) each: one corner after the other is fast to read
    front = np.flatnonzero((x[1] - x[0]) * (y[2] - y[0]) - (y[1] - y[0]) * (x[2] - x[0]) > 1e-6)
    x, y, z = x[:, front], y[:, front], z[:, front]
    found = [(np.zeros(0, int), np.zeros(0, np.float32), np.zeros(0, int))]
    for some, column, row in _boxes(x, y, shape):
        dx, dy = x[:, some, None] - column, y[:, some, None] - row
        weights = [weight.ravel() for weight in _weights(dx[:, :, None, :], dy[:, :, :, None])]  # (n, rows, columns)
        hit = np.flatnonzero((weights[0] >= 0) & (weights[1] >= 0) & (weights[2] >= 0))
        line, across = np.divmod(hit, column.shape[1])
        own = line // row.shape[1]
        triangle = some[own]
        w = [weight[hit] for weight in weights]
        height = (w[0] * z[0, triangle] + w[1] * z[1, triangle] + w[2] * z[2, triangle]) / (w[0] + w[1] + w[2])
        sample = row.ravel()[line].astype(int) * shape[1] + column[own, across].astype(int)
        found.append((sample, height, front[triangle]))
    sample, height, triangle = (np.concatenate(each) for each in zip(*found, strict=True))
    return sample, height, triangle


def _weights(dx: np.ndarray, dy: np.ndarray) -> list[np.ndarray]:
    """Barycentric weights times the doubled area, from the corners' distances to a point; negative outside."""
    return [dx[i] * dy[j] - dx[j] * dy[i] for i, j in ((1, 2), (2, 0), (0, 1))]


def _boxes(x: np.ndarray, y: np.ndarray, shape: tuple[int, int]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Triangles whose bounding boxes hold equally many samples, some at a time.

    x, y: (3, F) of the triangles' corners. Yields (n,) int triangles, (n, columns) and (n, rows) float32 of the samples
    in their boxes.
    """
    low, extent = [], []
    for (a, b, c), side in ((x, shape[1]), (y, shape[0])):
        first = np.clip(np.ceil(np.minimum(np.minimum(a, b), c)), 0, side)
        last = np.clip(np.floor(np.maximum(np.maximum(a, b), c)), -1, side - 1)
        low.append(first)
        extent.append(np.maximum(last - first + 1, 0).astype(int))
    columns, rows = extent
    size = np.where(columns > 0, rows, 0) * (shape[1] + 1) + columns
    order = np.argsort(size, kind="stable")
    order = order[np.searchsorted(size[order], shape[1] + 1) :]  # the others hold none
    for group in np.split(order, np.flatnonzero(np.diff(size[order])) + 1):
        across, down = (np.arange(side[group[:1]].sum(), dtype=np.float32) for side in (columns, rows))
        for start in range(0, len(group), step := max(1, PAIRS // max(1, len(across) * len(down)))):
            some = group[start : start + step]
            yield some, low[0][some, None] + across, low[1][some, None] + down


def _light(normals: np.ndarray) -> np.ndarray:
    """(N, 3) float32 normals in view axes, of any length -> (N, 2): diffuse light, and the highlight (Blinn 1977)."""
    normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    diffuse = AMBIENT[0] + (AMBIENT[1] - AMBIENT[0]) * (normals[:, 1] + 1) / 2
    highlight = np.zeros(len(normals), np.float32)
    for direction, strength in LIGHTS:
        towards = np.array(direction) / np.linalg.norm(direction)
        half = towards + np.array([0.0, 0.0, 1.0])
        half /= np.linalg.norm(half)
        diffuse += strength * np.maximum(normals @ towards.astype(np.float32), 0)
        highlight += strength * HIGHLIGHT * np.maximum(normals @ half.astype(np.float32), 0) ** 30
    return np.stack([diffuse, highlight], axis=-1)


def _hollows(depth: np.ndarray, step: float) -> np.ndarray:
    """(H, W) depth, -inf off shapes -> (H W,) factor: below 1 where a surface lies deeper than around it on average."""
    known = depth[::HOLLOW_STEP, ::HOLLOW_STEP]
    share = np.isfinite(known).astype(np.float32)
    known = np.where(share > 0, known, np.float32(0))
    factor = np.ones(known.shape, np.float32)
    for width in HOLLOW_MM:
        sigma = width / (step * HOLLOW_STEP) / 2
        around = gaussian_filter(known, sigma) / np.maximum(gaussian_filter(share, sigma), 1e-3)
        factor -= 0.3 * np.clip((around - known) / width, 0, 1) * share
    whole = factor.repeat(HOLLOW_STEP, axis=0).repeat(HOLLOW_STEP, axis=1)
    return whole[: depth.shape[0], : depth.shape[1]].ravel()
