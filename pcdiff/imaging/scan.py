"""A head scan from a DICOM folder or an image file: a CT in HU or a mask of the bone, recognised by its values."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pcdiff.errors import InputError
from pcdiff.files import sha256
from pcdiff.geometry.grid import voxels_per_mm
from pcdiff.imaging.formats import dicom, format_of
from pcdiff.imaging.formats.dicom_slices import dicom_files, is_dicom
from pcdiff.imaging.formats.image import Image
from pcdiff.imaging.volumes import NotAMask, check_affine, mask_values, open_image

MAX_CT_VOXELS = 2**30
AIR, BONE = -500, 300  # HU; a CT of a head has voxels below the one and above the other
MIN_SHARE = 1e-3  # of the voxels that are air, and of those that are bone, in HU
LABELS = 255  # the largest value of a label map


@dataclass(frozen=True)
class Scan:
    """A scan on its own grid.

    values: (I, J, K) bool, a mask of the bone; or int16, a CT in whole HU. affine: (4, 4) index -> mm, LPS.
    header: as `Volume.header`. format: DICOM, NRRD, NIfTI or MetaImage.
    slice_thickness: mm, the larger of the distance between slices and the thickness that the header states.
    notes: what the user should know about how it was read.
    """

    values: np.ndarray
    affine: np.ndarray
    header: dict[str, Any] | None = field(repr=False)
    format: str
    slice_thickness: float
    notes: tuple[str, ...] = ()

    @property
    def is_ct(self) -> bool:
        """Whether the values are HU; otherwise they are a mask."""
        return self.values.dtype != bool

    @property
    def distances(self) -> np.ndarray:
        """(3,) mm between the grid's planes: the spacing, or less if the axes are sheared."""
        return plane_distances(self.affine)

    @property
    def tilt(self) -> float:
        """Degrees between the grid's axes and perpendicular ones: the gantry tilt, 0 for a straight stack."""
        cosine = self.distances / np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(np.degrees(np.arccos(np.clip(cosine.min(), -1, 1))))


def read_scan(path: str | Path, series: str | None = None) -> Scan:
    """A CT or a mask from a DICOM folder, NRRD, NIfTI-1 or MetaImage; the content decides which, not the name.

    An image with the value 0 and one other is a mask, exactly as `read_volume` returns it. series: of a folder with
    several, see `formats.dicom.open_folder`. Raises InputError for an image that is neither CT nor mask, and as the
    readers do.
    """
    path = Path(path)
    if path.is_dir():
        image = dicom.open_folder(path, series)
        check_affine(path, image.affine)
        values = _read_rounded(path, image)
        if not _is_hounsfield(values):
            raise _not_hounsfield(path, values)
        return _scan(values, image, "DICOM")
    if path.is_file() and path.stat().st_size and is_dicom(path):
        raise InputError(f"{path}: one DICOM file is one slice; give the folder that holds all of them")
    if series is not None:
        raise InputError(f"{path}: --series chooses in a DICOM folder, got an image file; leave it out")
    image = open_image(path)
    try:
        values = mask_values(path, image)
    except NotAMask:
        image = open_image(path)
        values = _read_rounded(path, image)
        if not _is_hounsfield(values):
            if values.min() >= 0 and values.max() <= LABELS:
                raise  # a label map: the message for masks is the right one
            raise _not_hounsfield(path, values) from None
    return _scan(values, image, format_of(path).name)


def input_digest(path: Path) -> str:
    """The SHA-256 of a file; of a DICOM folder that of its files' sorted SHA-256, whatever their names and order."""
    if not path.is_dir():
        return sha256(path)
    return hashlib.sha256("".join(sorted(sha256(file) for file in dicom_files(path))).encode()).hexdigest()


def plane_distances(affine: np.ndarray) -> np.ndarray:
    """(3,) mm between neighbouring planes of the grid along each axis."""
    return 1 / voxels_per_mm(affine[:3, :3])


def _scan(values: np.ndarray, image: Image, name: str) -> Scan:
    distances = plane_distances(image.affine)
    # Only in DICOM the axis along which slices were stacked is known.
    thickness = max(float(distances[2] if name == "DICOM" else distances.max()), image.slice_thickness or 0.0)
    return Scan(values, image.affine, image.header, name, thickness, image.notes)


def _read_rounded(path: Path, image: Image) -> np.ndarray:
    """(I, J, K) int16: an image's values, rounded and clipped; NaN is air. Raises InputError for too large a CT."""
    if math.prod(image.shape) > MAX_CT_VOXELS:
        raise InputError(f"{path}: {'x'.join(map(str, image.shape))} voxels exceed 2**30; crop the CT to the head")
    flat = np.empty(math.prod(image.shape), np.int16)
    start = 0
    for run in image.runs:
        into = flat[start : start + run.size]
        if run.size != into.size:
            break
        if run.dtype.kind == "f":
            run = np.rint(np.nan_to_num(run, nan=-1024.0))
        np.clip(run, -32768, 32767, out=into, casting="unsafe")
        start += run.size
    if start != flat.size:
        raise InputError(f"{path}: expected {'x'.join(map(str, image.shape))} voxels, got others; export it again")
    return flat.reshape(image.shape, order="F")


def _is_hounsfield(values: np.ndarray) -> bool:
    """Whether air and bone both have a share of the voxels, as in every CT of a head."""
    air, bone = np.count_nonzero(values < AIR), np.count_nonzero(values >= BONE)
    return bool(min(air, bone) >= MIN_SHARE * values.size)


def _not_hounsfield(path: Path, values: np.ndarray) -> InputError:
    low, high = int(values.min()), int(values.max())
    raw = low >= 0 and high <= 4095 + 1024
    return InputError(
        f"{path}: expected a CT in HU (air about -1000, bone above {BONE}) or a mask, got values of {low} to {high}; "
        f"{'subtract 1024 if they are raw CT numbers' if raw else 'export it in HU'}, and give no MR"
    )
