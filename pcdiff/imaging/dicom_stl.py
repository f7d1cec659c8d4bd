"""An implant's STL within a DICOM file (Encapsulated STL Storage, PS3.3 A.85), for a PACS that keeps such models."""

from __future__ import annotations

import hashlib
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import EncapsulatedSTLStorage, ExplicitVRLittleEndian, generate_uid

from pcdiff import __version__
from pcdiff.errors import InputError
from pcdiff.files import written_beside
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.dicom_seg import series_headers

ENCAPSULATED = "implant_stl.dcm"  # in a case folder
HEADER = 80  # bytes of a binary STL that name its space
COPIED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "StudyDescription"),
    *("AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID", "PositionReferenceIndicator"),
)


def write_dicom_stl(stl: Path, implant: Volume, scan: Path, path: Path) -> None:
    """Writes a DICOM file that holds the STL byte for byte, in the scan's study and frame of reference.

    Args:
        stl: A binary STL in mm and LPS, the axes that DICOM asks for.
        implant: The implant as a volume on the grid of the scan, which finds its series.
        scan: The folder of DICOM slices that the implant was designed from.
        path: The file to write.

    Raises:
        InputError: An STL in other axes, no series that fits the implant, or no frame of reference.
    """
    data = stl.read_bytes()
    if b"SPACE=LPS" not in data[:HEADER]:
        raise InputError(
            f"{stl}: expected an STL in LPS, the axes of DICOM, its header names others; design with --mesh-space lps"
        )
    slices = series_headers(scan, implant)
    if not slices[0].get("FrameOfReferenceUID"):
        raise InputError(
            f"{scan}: a model in DICOM asks for a frame of reference, the scan has none; use the original DICOM files"
        )
    now = datetime.now()
    made = [slices[0].SeriesInstanceUID, hashlib.sha256(data).hexdigest(), "stl"]
    model = Dataset()
    model.SpecificCharacterSet = "ISO_IR 192"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about names and dates, which are the scan's own
        for name in COPIED:
            setattr(model, name, slices[0].get(name, ""))
    model.SOPClassUID, model.SOPInstanceUID = EncapsulatedSTLStorage, generate_uid(entropy_srcs=[*made, "instance"])
    model.Modality, model.SeriesInstanceUID = "M3D", generate_uid(entropy_srcs=[*made, "series"])
    model.SeriesNumber, model.InstanceNumber = 1001, 1
    model.SeriesDescription = model.DocumentTitle = "Cranial implant, not a medical device"
    model.Manufacturer = model.ManufacturerModelName = "pcdiff"
    model.DeviceSerialNumber, model.SoftwareVersions = "0", __version__
    model.ContentDate, model.ContentTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    model.AcquisitionDateTime = ""
    model.BurnedInAnnotation = "NO"
    model.ConceptNameCodeSequence = []
    model.MeasurementUnitsCodeSequence = [_code(codes.UCUM.Millimeter)]
    model.SourceInstanceSequence = list(map(_reference, slices))
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedInstanceSequence = (
        slices[0].SeriesInstanceUID,
        model.SourceInstanceSequence,
    )
    model.ReferencedSeriesSequence = [series]
    model.MIMETypeOfEncapsulatedDocument = "model/stl"
    model.EncapsulatedDocument = data + b"\0" * (len(data) % 2)
    model.EncapsulatedDocumentLength = len(data)
    model.file_meta = FileMetaDataset()
    model.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with written_beside(path) as part, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.save_as(part, enforce_file_format=True)


def _code(code: Any) -> Dataset:
    """A code of a coding scheme as an item of a sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def _reference(header: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return item
