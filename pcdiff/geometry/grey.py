"""The head as pictures show it: sampled on an upright grid of 1 mm, a CT in the grey values of the bone window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np

from pcdiff.array_files import ArrayKind, read_arrays
from pcdiff.files import written_beside
from pcdiff.foreign import parsing
from pcdiff.geometry.volume import Volume

LEVEL_HU, WIDTH_HU = 500, 2000  # the bone window
MARGIN_MM = 12.0  # scalp around the bone
HEIGHT_MM = 170.0  # below the crown: the vault and the skull base; neck and mandible are left out
MAX_MM = 400  # along each axis: no head is larger
FAR_MM = 1e4  # no head is so far from its scan's origin
QUALITY = 55  # of the WebP picture: an error of 2 % of the window at most places
QUARTER_MM = 0.25  # along each axis, from the centre of a cube of 1 mm to the centres of its eight parts
TETRAHEDRON = np.array([(-1, -1, -1), (-1, 1, 1), (1, -1, 1), (1, 1, -1)])


@dataclass(frozen=True)
class Grid:
    """An upright grid of 1 mm. low: (3,) mm, LPS, of the first point. shape: points along left, posterior, superior."""

    low: tuple[float, float, float]
    shape: tuple[int, int, int]

    @classmethod
    def around(cls, skull: Volume) -> Grid:
        """The grid of a head: its bone and MARGIN_MM, HEIGHT_MM high at most. The mask must not be empty."""
        every = np.maximum(1, np.round(2 / skull.spacing)).astype(int)
        coarse = np.argwhere(skull.mask[:: every[0], :: every[1], :: every[2]])
        points = skull.to_mm(coarse * every if len(coarse) else np.argwhere(skull.mask))
        low, high = points.min(axis=0) - MARGIN_MM, points.max(axis=0) + MARGIN_MM
        low[2] = max(low[2], high[2] - HEIGHT_MM)
        low = np.floor(low)
        x, y, z = (int(n) for n in np.minimum(np.ceil(high - low) + 1, MAX_MM))
        return cls((float(low[0]), float(low[1]), float(low[2])), (x, y, z))


@dataclass(frozen=True)
class GreyHead:
    """A CT in 8 bits on an upright grid. picture: its axial slices as tiles of one WebP picture, see `tiled`.

    Grey is linear in HU: 0 at LEVEL_HU - WIDTH_HU / 2 and below, 255 at LEVEL_HU + WIDTH_HU / 2 and above.
    """

    grid: Grid
    picture: bytes

    @cached_property
    def values(self) -> np.ndarray:
        """(x, y, z) uint8. Raises ValueError or OSError where the picture does not belong to the grid."""
        from PIL import Image

        width, height = _tiles_shape(self.grid.shape)
        with Image.open(BytesIO(self.picture), formats=("WEBP",)) as image:
            if image.size != (width, height):
                raise ValueError(f"a picture of {image.size}, expected {(width, height)}")
            return untiled(np.asarray(image.convert("L")), self.grid.shape)


def grey_head(hu: np.ndarray, affine: np.ndarray, grid: Grid) -> GreyHead:
    """A CT in the bone window on an upright grid.

    Args:
        hu: (I, J, K) int16.
        affine: (4, 4) index -> mm, LPS.
        grid: where.
    """
    grey = np.zeros(grid.shape, np.uint8)
    for z, (values, inside) in enumerate(_sampled(hu, affine, grid)):
        scaled = (values - (LEVEL_HU - WIDTH_HU / 2)) * (255 / WIDTH_HU)
        grey[:, :, z] = np.where(inside, np.clip(scaled, 0, 255), 0)
    return GreyHead(grid, packed(grey))


def occupancy(volume: Volume, grid: Grid) -> np.ndarray:
    """(x, y, z) uint8: 255 times the share of a mask in the cube of 1 mm around each point of an upright grid.

    The share is that of four places in the cube, the corners of a tetrahedron; they are looked at only where a point
    and its neighbours differ.
    """
    mask = np.zeros(grid.shape, bool)
    for z, (values, inside) in enumerate(_sampled(volume.mask, volume.affine, grid)):
        mask[:, :, z] = values & inside
    shares = np.where(mask, np.uint8(255), np.uint8(0))
    border = np.argwhere(_changes(mask))
    counts = np.zeros(len(border), np.uint16)
    for corner in TETRAHEDRON:
        index = np.rint(volume.to_index(border + (np.array(grid.low) + QUARTER_MM * corner))).astype(np.int32)
        inside = ((index >= 0) & (index < volume.mask.shape)).all(axis=1)
        counts[inside] += volume.mask[tuple(index[inside].T)]
    shares[tuple(border.T)] = counts * 255 // len(TETRAHEDRON)
    return shares


def packed(values: np.ndarray) -> bytes:
    """(x, y, z) uint8 -> one WebP picture of its axial slices."""
    from PIL import Image

    file = BytesIO()
    Image.fromarray(tiled(values)).save(file, "WEBP", quality=QUALITY, method=1)
    return file.getvalue()


def tiled(values: np.ndarray) -> np.ndarray:
    """(x, y, z) -> its axial slices, from below to above, as tiles of one nearly square picture, row by row."""
    width, height, count = values.shape
    columns = tile_columns(values.shape)
    rows = -(-count // columns)
    tiles = np.zeros((rows * columns, height, width), values.dtype)
    tiles[:count] = values.transpose(2, 1, 0)
    return tiles.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)


def untiled(picture: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The inverse of `tiled`. shape: of the values."""
    width, height, count = shape
    columns = tile_columns(shape)
    tiles = picture.reshape(-1, height, columns, width).swapaxes(1, 2).reshape(-1, height, width)
    return np.ascontiguousarray(tiles[:count].transpose(2, 1, 0))


def tile_columns(shape: tuple[int, int, int]) -> int:
    """Tiles in a row of `tiled`."""
    width, height, count = shape
    return max(1, min(count, round((count * height / width) ** 0.5)))


def _tiles_shape(shape: tuple[int, int, int]) -> tuple[int, int]:
    columns = tile_columns(shape)
    return columns * shape[0], -(-shape[2] // columns) * shape[1]


def _changes(mask: np.ndarray) -> np.ndarray:
    """(x, y, z) bool: points next to one of the other kind, along an axis."""
    changes = np.zeros_like(mask)
    for axis in range(3):
        along, of = np.moveaxis(changes, axis, 0), np.moveaxis(mask, axis, 0)
        differ = of[1:] != of[:-1]
        along[1:] |= differ
        along[:-1] |= differ
    return changes


def _sampled(values: np.ndarray, affine: np.ndarray, grid: Grid) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each axial plane of the grid: (x, y) values, and (x, y) bool where the scan has any.

    Nearest voxels; numbers are interpolated linearly along the axis of the thickest voxels, along which the nearest
    one may be millimetres away.
    """
    inverse = np.linalg.inv(affine[:3, :3])
    start = (inverse @ (np.array(grid.low) - affine[:3, 3])).astype(np.float32)
    inverse = inverse.astype(np.float32)
    if not (values.flags.c_contiguous or values.flags.f_contiguous):
        values = np.ascontiguousarray(values)
    flat, steps = values.ravel(order="K"), [stride // values.itemsize for stride in values.strides]
    thickest = int(np.linalg.norm(affine[:3, :3], axis=0).argmax())
    x, y = np.arange(grid.shape[0], dtype=np.float32)[:, None], np.arange(grid.shape[1], dtype=np.float32)
    planes = [start[axis] + inverse[axis, 0] * x + inverse[axis, 1] * y for axis in range(3)]
    for z in range(grid.shape[2]):
        at, inside, further, weight = np.zeros(planes[0].shape, np.int64), np.ones(planes[0].shape, bool), None, None
        for axis in range(3):
            place = planes[axis] + inverse[axis, 2] * np.float32(z)
            last = values.shape[axis] - 1
            inside &= (place >= -0.5) & (place <= last + 0.5)
            np.clip(place, 0, last, out=place)
            if axis == thickest and values.dtype != bool:
                index = place.astype(np.int64)  # rounds down
                weight, further = place - index, np.where(index < last, steps[axis], 0)
            else:
                index = np.rint(place).astype(np.int64)
            at += index * steps[axis]
        found = flat[at]
        if weight is not None:
            found = found * (1 - weight) + flat[at + further] * weight
        yield found, inside


def write_grey(head: GreyHead, path: Path) -> None:
    """Writes grey.npz: `picture`, the bytes of a WebP picture, `low` in mm and `shape` of its grid."""
    picture = np.frombuffer(head.picture, np.uint8)
    with written_beside(path) as part, part.open("wb") as file:
        np.savez(file, picture=picture, low=np.array(head.grid.low), shape=np.array(head.grid.shape))


def read_grey(path: Path) -> GreyHead | None:
    """The grey values of a case; None without that file. Raises InputError for another file."""
    if not path.is_file():
        return None
    what, remedy = "the grey values of a CT by pcdiff", "design the case again"
    kinds = {"picture": ArrayKind("u", (None,)), "low": ArrayKind("f", (3,)), "shape": ArrayKind("i", (3,))}
    arrays = read_arrays(path, kinds, what, remedy)
    with parsing(path, what, remedy):
        (a, b, c), (x, y, z) = arrays["low"].tolist(), arrays["shape"].tolist()
        if not (min(x, y, z) >= 1 and max(x, y, z) <= MAX_MM and np.abs(arrays["low"]).max() < FAR_MM):
            raise ValueError(f"a grid of {x} x {y} x {z} mm at {a}, {b}, {c} mm")
        head = GreyHead(Grid((a, b, c), (x, y, z)), arrays["picture"].tobytes())
        assert head.values.shape == (x, y, z)
    return head
