"""Reading masks from image files, and writing masks and maps."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from pcdiff.errors import InputError
from pcdiff.files import written_beside
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.formats import FORMATS, format_of, suffix_of
from pcdiff.imaging.formats.image import Image, check_memory
from pcdiff.imaging.labels import MASK_BYTES, choose_label, find_labels, label_values, several_labels

SPACING_RANGE = (0.1, 5.0)  # mm
LOWEST = -128  # of the inside of a mask, in signed bytes; a lower value is a background in HU
FARTHEST_MM = 1e6  # of the origin; farther away positions lose their fractions


class EmptyMask(InputError):
    """An image whose every voxel is 0."""


class FullMask(InputError):
    """An image whose every voxel has one value, and that is not 0."""


class NotAMask(InputError):
    """An image with more values than 0 and one other: a CT, or several labels. `got`: its values, in words."""

    def __init__(self, path: Path, expected: str, got: str, remedy: str) -> None:
        super().__init__(f"{path}: expected {expected}, got {got}; {remedy}")
        self.got = got


def read_volume(path: str | Path) -> Volume:
    """A mask from NRRD, NIfTI or MetaImage (see `formats.FORMATS`), any numeric type, values {0, x}.

    The index order is that of the file; the affine maps voxel centres to LPS mm, whatever the patient space of the
    file. Raises InputError for a missing, empty, damaged or truncated file, an unknown format, an image that is not
    3D, an invalid geometry, and values that are not those of a mask or hold no bone.
    """
    path = Path(path)
    image = open_image(path)
    if image.layers > 1:
        raise several_labels(path, image, find_labels(path, image)).without_option()
    return Volume(mask_values(path, image), image.affine, image.header)


def read_label(path: Path, wanted: str | None) -> tuple[np.ndarray, Image] | None:
    """The label of that number or name as a mask, and its image with a note on it.

    None where no label is asked for and the file has one layer. Raises InputError for a label that is not there, and
    for several layers and no label; it lists what is there.
    """
    image = open_image(path)
    if wanted is None and image.layers == 1:
        return None
    labels = find_labels(path, image)
    if wanted is None:
        raise several_labels(path, image, labels)
    label = choose_label(path, labels, wanted)
    image = open_image(path)
    note = f"label {label} is used, one of {sum(each.ml > 0 for each in labels)} in the file"
    return label_values(image, label), replace(image, notes=(*image.notes, note))


def open_image(path: Path) -> Image:
    """Reads the header of an image file and checks its geometry; values are read later. Errors as `read_volume`."""
    if path.is_dir():
        raise InputError(f"{path}: expected an image file, got a folder; give the file in it")
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
    if not np.isfinite(affine).all():
        raise InputError(f"{path}: spacing or origin is missing (not a number); export it with its geometry")
    if np.abs(affine).max() > FARTHEST_MM:
        raise InputError(f"{path}: spacing or origin is more than {FARTHEST_MM:g} mm; correct the header")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() < low * (1 - 1e-6) or spacing.max() > high * (1 + 1e-6):
        got = " x ".join(f"{s:.4g}" for s in spacing)
        raise InputError(f"{path}: expected a spacing of {low:g} to {high:g} mm, got {got}; correct the header")
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 0.1:  # 1: perpendicular axes; 30 degrees of gantry tilt: 0.87
        raise InputError(f"{path}: the image axes lie in one plane (degenerate directions); correct the header")


def mask_values(path: Path, image: Image) -> np.ndarray:
    """(I, J, K) bool: the mask of an image with the value 0 and one other.

    Raises NotAMask for more values and for one below `LOWEST`, EmptyMask for a mask without bone, FullMask for one
    without background.
    """
    check_memory(path, image.shape, MASK_BYTES)
    flat = np.empty(math.prod(image.shape), bool)
    value, start = None, 0
    with image:
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
                    path,
                    "a mask with two values, 0 and one other",
                    f"0, {value}, {other}, ...",
                    "threshold the bone first (a CT: about 300 HU), or save one label as a mask of its own",
                )
    if value is None:
        raise EmptyMask(f"{path}: the mask holds no bone (every voxel is 0); check the threshold or the label")
    if flat.all():
        raise FullMask(f"{path}: expected a mask with background 0, but every voxel is {value}; check the threshold")
    assert value is not None
    if value < LOWEST:
        raise NotAMask(
            path,
            "a mask with 0 outside and another value inside",
            f"0 and {value}",
            f"is {value} its background? Save it as a mask of 0 and 1",
        )
    return flat.reshape(image.shape, order="F")


def _write(values: np.ndarray, grid: Volume, path: Path) -> None:
    write = FORMATS[suffix_of(path)].write
    if write is None:
        raise InputError(f"{path}: this format splits an image into two files; write .nrrd, .nii.gz or .mha instead")
    with written_beside(path) as part:
        write(values, grid.affine, grid.header, part)
