"""Any head scan, told apart by what it holds: a CT in HU or a mask of the bone, from a DICOM folder or a file."""

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
from pcdiff.imaging.formats.image import Image
from pcdiff.imaging.volumes import NotAMask, check_affine, mask_values, open_image

MAX_CT_VOXELS = 2**30
AIR, BONE = -500, 300  # HU that a CT of a head has voxels beyond
FEWEST = 1e-3  # share of the voxels that are air, and that are bone, for values to be HU
LABELS = 255  # the largest value of what may be a label map


@dataclass(frozen=True)
class Scan:
    """What was read, on its own grid.

    values: (I, J, K) bool, a mask of the bone; or int16, a CT in whole HU. affine: (4, 4) index -> mm, LPS.
    header: as `Volume.header`. format: DICOM, NRRD, NIfTI or MetaImage.
    slice_thickness: mm, the larger of the distance between slices and what the scanner says of them.
    notes: what the user should know of how it was read.
    """

    values: np.ndarray
    affine: np.ndarray
    header: dict[str, Any] | None = field(repr=False)
    format: str
    slice_thickness: float
    notes: tuple[str, ...] = ()

    @property
    def is_ct(self) -> bool:
        """HU, not a mask."""
        return self.values.dtype != bool

    @property
    def distances(self) -> np.ndarray:
        """(3,) mm between the grid's planes: the spacing, less where the axes are sheared."""
        return plane_distances(self.affine)

    @property
    def tilt(self) -> float:
        """Degrees by which the grid's axes miss being perpendicular: the tilt of the gantry, 0 for a straight stack."""
        cosine = self.distances / np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(np.degrees(np.arccos(np.clip(cosine.min(), -1, 1))))


def read_scan(path: str | Path, series: str | None = None) -> Scan:
    """A CT or a mask from a DICOM folder, NRRD, NIfTI-1 or MetaImage; which it is, the content says, not the name.

    Values 0 and one other are a mask, exactly as `read_volume` gives it. series: of a folder with several, see
    `formats.dicom.open_folder`. Raises InputError for what is neither, and as the readers do.
    """
    path = Path(path)
    if path.is_dir():
        image = dicom.open_folder(path, series)
        check_affine(path, image.affine)
        return _scan(path, _hounsfield(path, image), image, "DICOM")
    if path.is_file() and path.stat().st_size and dicom.is_dicom(path):
        raise InputError(f"{path}: one DICOM file is one slice; give the folder that holds all of them")
    if series is not None:
        raise InputError(f"{path}: --series chooses in a DICOM folder, got an image file; leave it out")
    image = open_image(path)
    try:
        values = mask_values(path, image)
    except NotAMask as error:
        image = open_image(path)
        values = _hounsfield(path, image, error)
    return _scan(path, values, image, format_of(path).name)


def input_digest(path: Path) -> str:
    """sha256 of a file's bytes; of a DICOM folder, that of its files' sorted sha256: neither names nor order count."""
    if not path.is_dir():
        return sha256(path)
    return hashlib.sha256("".join(sorted(sha256(file) for file in dicom.dicom_files(path))).encode()).hexdigest()


def plane_distances(affine: np.ndarray) -> np.ndarray:
    """(3,) mm between neighbouring planes of the grid along each axis."""
    return 1 / voxels_per_mm(affine[:3, :3])


def _scan(path: Path, values: np.ndarray, image: Image, name: str) -> Scan:
    distances = plane_distances(image.affine)
    # of a file nobody knows which axis was stacked
    thickness = max(float(distances[2] if name == "DICOM" else distances.max()), image.slice_thickness or 0.0)
    return Scan(values, image.affine, image.header, name, thickness, image.notes)


def _hounsfield(path: Path, image: Image, otherwise: NotAMask | None = None) -> np.ndarray:
    """(I, J, K) int16 HU. Raises `otherwise` for small labels, InputError for other values that are no HU."""
    if math.prod(image.shape) > MAX_CT_VOXELS:
        raise InputError(f"{path}: {'x'.join(map(str, image.shape))} voxels exceed 2**30; crop the CT to the head")
    flat = np.empty(math.prod(image.shape), np.int16)
    start = 0
    for run in image.runs:
        into = flat[start : start + run.size]
        if run.size != into.size:
            break
        if run.dtype.kind == "f":  # no value, no tissue
            run = np.rint(np.nan_to_num(run, nan=-1024.0))
        np.clip(run, -32768, 32767, out=into, casting="unsafe")
        start += run.size
    if start != flat.size:
        raise InputError(f"{path}: expected {'x'.join(map(str, image.shape))} voxels, got others; export it again")
    air, bone = np.count_nonzero(flat < AIR), np.count_nonzero(flat >= BONE)
    if min(air, bone) < FEWEST * flat.size:
        low, high = int(flat.min()), int(flat.max())
        if otherwise is not None and low >= 0 and high <= LABELS:
            raise otherwise
        hint = "subtract 1024 if they are raw CT numbers" if low >= 0 and high <= 4095 + 1024 else "export it in HU"
        raise InputError(
            f"{path}: expected a CT in HU (air about -1000, bone above {BONE}) or a mask, got values of "
            f"{low} to {high}; {hint}, and give no MR"
        )
    return flat.reshape(image.shape, order="F")
