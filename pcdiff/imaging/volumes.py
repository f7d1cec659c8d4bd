"""Reading masks from image files, and writing masks and maps."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from pcdiff.errors import InputError
from pcdiff.files import written_beside
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.formats import FORMATS, format_of, suffix_of
from pcdiff.imaging.formats.image import Image

SPACING_RANGE = (0.1, 5.0)  # mm


class NotAMask(InputError):
    """An image with more values than 0 and one other: a CT, or several labels."""


def read_volume(path: str | Path) -> Volume:
    """A mask from NRRD (.nrrd), NIfTI-1 (.nii, .nii.gz) or MetaImage (.mha, .mhd), any numeric type, values {0, x}.

    The index order is that of the file; the affine maps voxel centres to LPS mm, whatever the patient space of the
    file. Raises InputError for a missing, empty, damaged or truncated file, an unknown format, an image that is not 3D,
    an invalid geometry, and values that are not those of a mask or hold no bone.
    """
    path = Path(path)
    image = open_image(path)
    return Volume(mask_values(path, image), image.affine, image.header)


def open_image(path: Path) -> Image:
    """Reads the header of an image file and checks its geometry; values are read later. Errors as `read_volume`."""
    if not path.is_file():
        raise InputError(f"{path}: expected an image file, found none; check the path")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes); export or copy it again")
    image = format_of(path).read(path)
    check_affine(path, image.affine)
    return image


def write_volume(volume: Volume, path: str | Path) -> None:
    """Writes the mask as uint8 0/1, gzip, on the grid that it was read from.

    The suffix decides the format: .nrrd, .nii, .nii.gz or .mha. In the format of the input the geometry is copied
    verbatim. The same volume gives the same bytes. Raises InputError for a missing or unwritable folder; a failure
    leaves an older file unchanged.
    """
    _write(volume.mask.view(np.uint8), volume, Path(path))


def write_map(values: np.ndarray, like: Volume, path: str | Path) -> None:
    """Writes (I, J, K) values, such as an uncertainty, as float32 on the grid of `like`; otherwise as `write_volume`.

    Raises ValueError for another shape.
    """
    if values.shape != like.mask.shape:
        raise ValueError(f"values must have the grid's shape {like.mask.shape}, got {values.shape}")
    _write(values.astype(np.float32, copy=False), like, Path(path))


def check_affine(path: Path, affine: np.ndarray) -> None:
    """Raises InputError for an impossible grid: NaN, spacing out of range, or axes in one plane."""
    low, high = SPACING_RANGE
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all():
        raise InputError(f"{path}: spacing or origin is missing (not a number); export it with its geometry")
    if spacing.min() < low * (1 - 1e-6) or spacing.max() > high * (1 + 1e-6):
        got = " x ".join(f"{s:.4g}" for s in spacing)
        raise InputError(f"{path}: expected a spacing of {low:g} to {high:g} mm, got {got}; correct the header")
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 0.1:  # 1: perpendicular axes; 30 degrees of gantry tilt: 0.87
        raise InputError(f"{path}: the image axes lie in one plane (degenerate directions); correct the header")


def mask_values(path: Path, image: Image) -> np.ndarray:
    """(I, J, K) bool: the mask of an image with the value 0 and one other.

    Raises NotAMask for more values, InputError for a mask without bone or without background.
    """
    flat = np.empty(math.prod(image.shape), bool)
    value, start = None, 0
    for run in image.runs:
        nonzero = flat[start : start + run.size]
        np.not_equal(run, 0, out=nonzero)
        start += run.size
        count = np.count_nonzero(nonzero)
        if count and value is None:
            value = run[nonzero.argmax()]
        if count and np.count_nonzero(run == value) != count:
            other = run[nonzero & (run != value)][0]
            raise NotAMask(
                f"{path}: expected a mask with two values, 0 and one other, got 0, {value}, {other}, ...; "
                "threshold the bone first (a CT: about 300 HU), or keep one label"
            )
    if value is None:
        raise InputError(f"{path}: the mask holds no bone (every voxel is 0); check the threshold or the label")
    if flat.all():
        raise InputError(f"{path}: expected a mask with background 0, but every voxel is {value}; check the threshold")
    return flat.reshape(image.shape, order="F")


def _write(values: np.ndarray, grid: Volume, path: Path) -> None:
    suffix = suffix_of(path)
    if suffix == ".mhd":
        raise InputError(f"{path}: .mhd splits an image into two files; write .mha instead")
    with written_beside(path) as part:
        FORMATS[suffix].write(values, grid.affine, grid.header, part)
