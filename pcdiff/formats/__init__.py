"""File formats of volumes, one file each, behind two functions: `open_image(path)` and `save_image(...)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcdiff.errors import InputError
from pcdiff.formats import metaimage, nifti, nrrd
from pcdiff.formats.image import Image


@dataclass(frozen=True)
class Format:
    """read: path -> header and values to come. write: values (I, J, K), affine, the header kept from reading, path."""

    read: Callable[[Path], Image]
    write: Callable[[np.ndarray, np.ndarray, dict[str, Any] | None, Path], None]


FORMATS = {
    ".nrrd": Format(nrrd.open_image, nrrd.save_image),
    ".nii": Format(nifti.open_image, nifti.save_image),
    ".nii.gz": Format(nifti.open_image, nifti.save_image),
    ".mha": Format(metaimage.open_image, metaimage.save_image),
    ".mhd": Format(metaimage.open_image, metaimage.save_image),
}


def suffix_of(path: Path) -> str:
    """The suffix in FORMATS that a file name ends with. Raises InputError for any other."""
    for suffix in FORMATS:
        if path.name.lower().endswith(suffix):
            return suffix
    if path.suffix.lower() == ".nhdr":
        raise InputError(f"{path}: detached NRRD headers are not read; save it as one .nrrd file")
    raise InputError(f"{path}: expected {', '.join(FORMATS)}, got another format; convert it first")
