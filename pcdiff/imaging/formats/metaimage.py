"""MetaImage (.mha, or .mhd with a data file), by SimpleITK."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pcdiff.errors import InputError
from pcdiff.imaging.formats.image import Image, checked_shape, damaged, runs_of


def open_image(path: Path) -> Image:
    """Reads the header. Raises InputError for a file that is not a valid MetaImage with one value per voxel."""
    import SimpleITK as sitk

    with path.open("rb") as file:
        head = file.read(2**16)
    named = re.search(rb"^ElementDataFile *= *(.+?) *\r?$", head, re.MULTILINE)
    local = named is not None and named[1] == b"LOCAL"
    if named is None or (path.suffix.lower() == ".mhd") == local:
        raise InputError(f"{path}: not a valid MetaImage header (ElementDataFile); export it again")
    data_file = named[1].decode("utf8", "replace")
    if not local and (re.search(r"[/\\ %]", data_file) or not path.with_name(data_file).is_file()):
        raise InputError(f"{path}: expected one data file beside the header, got '{data_file}'; save it as .mha")
    if not re.search(rb"^Element(Spacing|Size) *=", head, re.MULTILINE):
        raise InputError(f"{path}: spacing is missing (no ElementSpacing); export it with its geometry")
    reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path}: not a valid MetaImage header; export it again") from error
    if reader.GetNumberOfComponents() != 1:
        raise InputError(f"{path}: expected one value per voxel, got {reader.GetNumberOfComponents()}; save a mask")
    shape = checked_shape(path, list(reader.GetSize()))
    header = {"spacing": reader.GetSpacing(), "direction": reader.GetDirection(), "origin": reader.GetOrigin()}

    def runs() -> Iterator[np.ndarray]:
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise damaged(path) from error
        values = sitk.GetArrayViewFromImage(image).reshape(-1)  # (k, j, i): first index fastest
        yield from runs_of(values)

    return Image(shape, _affine(header), header, runs())


def _affine(header: dict[str, Any]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(header["direction"], (3, 3)) * header["spacing"]
    affine[:3, 3] = header["origin"]
    return affine


def save_image(values: np.ndarray, affine: np.ndarray, header: dict[str, Any] | None, path: Path) -> None:
    """Writes (I, J, K) uint8 or float32; the geometry is copied from `header` if that describes the same grid."""
    import SimpleITK as sitk

    if header is None or "direction" not in header or not np.array_equal(_affine(header), affine):
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        direction = affine[:3, :3] / spacing
        header = {"spacing": spacing.tolist(), "direction": direction.ravel().tolist()}
        header["origin"] = affine[:3, 3].tolist()
    image = sitk.GetImageFromArray(values.T)
    image.SetSpacing(header["spacing"])
    image.SetDirection(header["direction"])
    image.SetOrigin(header["origin"])
    sitk.WriteImage(image, str(path), True, 1)
