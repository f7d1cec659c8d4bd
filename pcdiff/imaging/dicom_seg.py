"""An implant as DICOM Segmentation for a PACS or a planning station; needs the optional package highdicom."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pcdiff import __version__, install_hint
from pcdiff.errors import InputError
from pcdiff.files import written_beside
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.formats.dicom_files import DicomFile, dicom_files, inflated
from pcdiff.imaging.formats.dicom_header import read_slices
from pcdiff.imaging.formats.dicom_series import find_series
from pcdiff.imaging.scan import is_dicom_scan

if TYPE_CHECKING:
    from pydicom import Dataset

SEGMENTATION = "implant.dcm"  # in a case folder
MAX_COSINE = 1e-3  # between axes that count as perpendicular
# Attributes that anonymisers remove. DICOM-SEG allows them to be empty, but highdicom requires them.
MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator"),
)


def write_dicom_seg(implant: Volume, scan: Path, path: Path) -> None:
    """Writes a binary segmentation on the implant's own grid that refers to the scan's slices.

    Patient, study and frame of reference are copied from the scan. The same implant and scan give the same UIDs.

    Args:
        implant: On the grid of the scan.
        scan: The folder of DICOM slices that the implant was designed from.
        path: The file to write.

    Raises:
        InputError: No highdicom, no series that fits the implant, no frame of reference, or axes that are not
            perpendicular.
    """
    try:
        import highdicom as hd
        from pydicom.uid import generate_uid
    except ImportError as error:
        raise InputError(f"DICOM-SEG needs {error.name}, which is missing; run {install_hint('dicom')}") from error
    slices = series_headers(scan, implant)
    directions = implant.affine[:3, :3] / implant.spacing
    if np.abs(directions.T @ directions - np.eye(3)).max() > MAX_COSINE:
        raise InputError(f"{scan}: DICOM-SEG asks for perpendicular axes, the grid is tilted; use the STL or the NRRD")
    affine = implant.affine[:, [2, 1, 0, 3]]  # frames, rows, columns
    reference = slices[0].get("FrameOfReferenceUID")
    if not reference:
        raise InputError(
            f"{scan}: DICOM-SEG asks for a frame of reference, the scan has none; use the original DICOM files"
        )
    volume = hd.Volume(implant.mask.T.astype(np.uint8), affine, "PATIENT", reference)
    digest = hashlib.sha256(implant.mask.tobytes(order="C") + affine.tobytes()).hexdigest()
    made = [slices[0].SeriesInstanceUID, digest]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about names and dates, which are the scan's own
        segmentation = hd.seg.Segmentation(
            source_images=slices,
            pixel_array=volume,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_implant_segment()],
            series_instance_uid=generate_uid(entropy_srcs=[*made, "series"]),
            series_number=1000,
            sop_instance_uid=generate_uid(entropy_srcs=[*made, "instance"]),
            instance_number=1,
            manufacturer="pcdiff",
            manufacturer_model_name="pcdiff",
            software_versions=__version__,
            device_serial_number="0",
            series_description="Cranial implant, not a medical device",
            specific_character_set="ISO_IR 192",  # UTF-8: highdicom refuses some that scans have, Japanese ones too
        )
    with written_beside(path) as part:
        segmentation.save_as(part)


def _implant_segment() -> Any:
    """The description of the only segment, a highdicom SegmentDescription."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    return hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="cranial implant",
        segmented_property_category=codes.SCT.PhysicalObject,
        segmented_property_type=codes.SCT.Implant,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="pcdiff", version=__version__, family=codes.DCM.ArtificialIntelligence
        ),
    )


def series_headers(scan: Path, implant: Volume) -> list[Dataset]:
    """The headers of the slices of the only CT series, or of the one whose size is the implant's.

    Raises InputError for a folder without such a series, or with several.
    """
    if not is_dicom_scan(scan):
        raise InputError(f"{scan}: expected the scan's folder of DICOM slices, found none; check the path")
    found = find_series([part for file in dicom_files(scan) for part in read_slices(file)])
    series = [one for one in found if one.slices[0].problem is None]
    columns, rows, count = implant.mask.shape
    fit = [one for one in series if (*one.slices[0].pixels.size, one.places) == (columns, rows, count)]
    if len(series) == 1:
        fit = series
    if len(fit) != 1:
        raise InputError(
            f"{scan}: expected one series of {count} slices with {columns} x {rows} pixels, found {len(fit)} of "
            f"{len(series)}; give the folder that the implant was designed from"
        )
    files = {part.position: part.pixels.file for part in fit[0].slices}  # a copy has the position of its slice
    return [_whole_header(file) for file in dict.fromkeys(files.values())]


def _whole_header(file: DicomFile) -> Dataset:
    """All that the header of a slice says, which the segmentation copies. Raises InputError for what is no DICOM."""
    import pydicom

    try:
        with file.open() as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about values that are not used
            dataset = pydicom.dcmread(inflated(stream), stop_before_pixels=True, force=True)
    except InputError:
        raise
    except Exception as error:  # pydicom has no error of its own for what is no DICOM
        raise InputError(f"{file}: the DICOM file is truncated or damaged; copy or export it again") from error
    for name in MAY_BE_EMPTY:
        dataset.setdefault(name, "")
    return dataset
