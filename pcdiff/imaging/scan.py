"""A head scan from a DICOM folder or an image file: a CT in HU or a mask of the bone, recognised by its values."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pcdiff.errors import InputError
from pcdiff.files import sha256
from pcdiff.geometry.grid import voxels_per_mm
from pcdiff.imaging.causes import check_bone, check_ct, is_hounsfield, neither_ct_nor_mask, not_in_hu
from pcdiff.imaging.formats import format_of
from pcdiff.imaging.formats.dicom_files import DicomFile, dicom_files, is_dicom, is_zip
from pcdiff.imaging.formats.image import Image, check_memory
from pcdiff.imaging.volumes import NotAMask, check_affine, mask_values, open_image, read_label

MAX_CT_VOXELS = 2**30
CT_BYTES = 10  # of memory for a voxel, until the skull is found


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


def read_scan(
    path: str | Path, series: str | None = None, label: str | None = None, acquisition: int | None = None
) -> Scan:
    """A CT or a mask from DICOM, NRRD, NIfTI or MetaImage; the content decides which, not the name.

    DICOM is a folder, a zip archive, a file with many frames, or any slice in a folder, see `scan_source`. An image
    with the value 0 and one other is a mask, exactly as `read_volume` returns it. series, acquisition: of DICOM with
    several, see `formats.dicom.open_scan`. label: of a file with several, see `labels.find_labels`. Raises InputError
    for an image that is neither CT nor mask, and as the readers do.
    """
    given, path = Path(path), scan_source(Path(path))
    if is_dicom_scan(path):
        if label is not None:
            raise InputError(f"{path}: --label chooses in a file with a segmentation, got DICOM; leave it out")
        notes = () if path == given else ("one DICOM file was given: the CT in its folder is read",)
        return _read_dicom(path, series, acquisition, notes)
    for option, value in (("series", series), ("acquisition", acquisition)):
        if value is not None:
            raise InputError(f"{path}: --{option} chooses in a DICOM folder, got an image file; leave it out")
    if (chosen := read_label(path, label)) is not None:
        values, image = chosen
    else:
        image = open_image(path)
        try:
            values = mask_values(path, image)
        except NotAMask:
            image = open_image(path)
            values = _read_rounded(path, image)
            if not is_hounsfield(values):
                raise neither_ct_nor_mask(path, open_image(path), open_image(path)) from None
            check_ct(path, values)
    if values.dtype == bool:
        check_bone(path, values, image.affine)
    return _scan(values, image, format_of(path).name)


def _read_dicom(path: Path, series: str | None, acquisition: int | None, notes: tuple[str, ...]) -> Scan:
    """A CT from DICOM. notes: about how it was given."""
    from pcdiff.imaging.formats import dicom  # loads pydicom, which an image file does not need

    image = dicom.open_scan(path, series, acquisition)
    check_affine(path, image.affine)
    values = _read_rounded(path, image)
    if not is_hounsfield(values):
        raise not_in_hu(path, values)
    check_ct(path, values)
    return _scan(values, replace(image, notes=(*notes, *image.notes)), "DICOM")


def scan_source(path: Path) -> Path:
    """What a path stands for: a DICOM slice or the index of a disc (DICOMDIR) for its folder, others for themselves."""
    if path.is_file() and is_dicom_scan(path) and not is_zip(path):
        from pcdiff.imaging.formats.dicom_header import read_slices

        if len(read_slices(DicomFile(path))) < 2:
            return path.parent
    return path


def is_dicom_scan(path: Path) -> bool:
    """Whether a scan is read as DICOM: a folder, a DICOM file, or a zip archive."""
    if path.is_dir():
        return True
    try:
        return path.is_file() and path.stat().st_size > 0 and (is_dicom(path) or is_zip(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def input_digest(path: Path) -> str:
    """The SHA-256 of a file; of several files that of their sorted SHA-256, whatever their names and order.

    Several files are those of a DICOM folder, or a header and its data file.
    """
    path = scan_source(path)
    if path.is_dir():
        files = [file.path for file in dicom_files(path)]
    elif is_dicom_scan(path):
        return sha256(path)
    else:
        files = list(open_image(path).files)
        if len(files) == 1:
            return sha256(path)
    return hashlib.sha256("".join(sorted(sha256(file) for file in files)).encode()).hexdigest()


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
    check_memory(path, image.shape, CT_BYTES)
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
