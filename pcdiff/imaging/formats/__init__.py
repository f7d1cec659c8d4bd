"""File formats of volumes, one module each with two functions: `open_image(path)` and `save_image(...)`.

`image.py` has what they read, `streams.py` how.

DICOM (`dicom.py`) is different: it can only be read, and is a folder.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcdiff.errors import InputError
from pcdiff.imaging.formats import metaimage, nifti, nrrd
from pcdiff.imaging.formats.image import Image


@dataclass(frozen=True)
class Format:
    """A file format. read: path -> `Image`. write: values (I, J, K), affine, header of the input, path.

    write is None where the image would be split into two files.
    """

    name: str
    read: Callable[[Path], Image]
    write: Callable[[np.ndarray, np.ndarray, dict[str, Any] | None, Path], None] | None


FORMATS = {
    ".nrrd": Format("NRRD", nrrd.open_image, nrrd.save_image),
    ".nhdr": Format("NRRD", nrrd.open_image, None),
    ".nii": Format("NIfTI", nifti.open_image, nifti.save_image),
    ".nii.gz": Format("NIfTI", nifti.open_image, nifti.save_image),
    ".hdr": Format("NIfTI", nifti.open_image, None),
    ".hdr.gz": Format("NIfTI", nifti.open_image, None),
    ".img": Format("NIfTI", nifti.open_image, None),
    ".img.gz": Format("NIfTI", nifti.open_image, None),
    ".mha": Format("MetaImage", metaimage.open_image, metaimage.save_image),
    ".mhd": Format("MetaImage", metaimage.open_image, None),
}
DATA_FILES = {".raw": ".mhd or .nhdr", ".zraw": ".mhd"}  # beside a header of that suffix


def suffix_of(path: Path) -> str:
    """The suffix of a file name, one of FORMATS. Raises InputError for another."""
    for suffix in FORMATS:
        if path.name.lower().endswith(suffix):
            return suffix
    if (header := DATA_FILES.get(path.suffix.lower())) is not None:
        raise InputError(f"{path}: these are the values alone; give the header beside it ({header})")
    raise InputError(f"{path}: expected {', '.join(FORMATS)}, got another format; convert it first")


def format_of(path: Path) -> Format:
    """The format of a file by its first bytes, or else by its suffix. Raises InputError for an unknown format."""
    with path.open("rb") as file:
        head = file.read(2**12)
    if head.startswith(b"NRRD000"):
        return FORMATS[".nrrd"]
    if head.startswith(b"\x1f\x8b"):
        try:
            head = zlib.decompressobj(31).decompress(head, 352)
        except zlib.error:
            head = b""
    if nifti.is_header(head):
        return FORMATS[".nii"]
    if re.match(rb"\s*(ObjectType|NDims)\s*=", head, re.IGNORECASE):
        return FORMATS[".mha"]
    return FORMATS[suffix_of(path)]
