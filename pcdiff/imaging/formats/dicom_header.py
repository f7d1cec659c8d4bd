"""The headers of DICOM files, parsed by pydicom: where each slice lies, and where its pixels are in the file.

A file holds one slice or, as an enhanced CT, many frames; each frame is a slice here. Of a header only the elements
that are named here are read. Names, ids and dates are not among them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial

from pcdiff.errors import InputError
from pcdiff.imaging.formats.dicom_files import MAX_BYTES, DicomFile, Window, inflated
from pcdiff.imaging.formats.dicom_pixels import COMPRESSED, Pixels

MAX_HEADER = 2**23  # bytes that are parsed; an enhanced CT of 2,000 frames has about 4 MB
MAX_FRAMES = 10_000
MAX_PIXELS = 2**22  # of a slice
MAX_NUMBER = 1e6  # mm and HU are below
CT_IMAGES = tuple(f"1.2.840.10008.5.1.4.1.1.2{kind}" for kind in ("", ".1", ".2"))  # CT, enhanced, converted; PS3.4 B.5
PIXEL_DATA = 0x7FE00010
UNDEFINED = 0xFFFFFFFF  # length of pixel data in fragments, which are compressed

# Sequences of one item, in which an enhanced CT has what the header of a slice has itself.
GROUPS = (
    *("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence", "FrameContentSequence"),
    *("PixelValueTransformationSequence", "CTImageFrameTypeSequence", "CTReconstructionSequence"),
)
READ = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "Modality", "ImageType"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "ConvolutionKernel"),
    *("AcquisitionNumber", "TemporalPositionIdentifier", "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel"),
    *("AcquisitionTime", "AcquisitionDateTime", "ContentTime"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
TAGS = [tag for tag in map(tag_for_keyword, READ) if tag is not None]


@dataclass(frozen=True)
class Slice:
    """A slice, as its header states it; what is not there is empty.

    series, instance: UIDs. number: of the series. acquisitions: acquisition number, and position in time. A number
    that is missing is 0. time: s after midnight at which it was acquired, or None. position: (3,) mm, LPS, centre of
    its first voxel. directions: (6,) along a row and along a column, LPS. spacing: mm between columns, between rows.
    thickness: mm, or None. problem: why it is no part of a CT of a head.
    """

    pixels: Pixels
    series: str
    instance: str
    number: int
    acquisitions: tuple[int, int]
    time: float | None
    position: tuple[float, ...]
    directions: tuple[float, ...]
    spacing: tuple[float, ...]
    thickness: float | None
    kernel: str
    problem: str | None


def read_slices(file: DicomFile) -> list[Slice]:
    """The slices in a DICOM file, in the order of their frames; none for an object without an image.

    Raises InputError for a CT that is damaged or too large.
    """
    if file.size > MAX_BYTES:
        if not _claims_to_be_ct(file):
            return []
        raise InputError(f"{file}: a CT of more than {MAX_BYTES >> 30} GB in one file is not read; export it again")
    try:
        with file.open() as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's, of values that are not used
            return list(_slices(file, inflated(stream)))
    except InputError:
        raise
    except Exception as error:  # pydicom has no error of its own for what is no DICOM
        if not _claims_to_be_ct(file):
            return []
        raise InputError(f"{file}: the DICOM file is truncated or damaged; copy or export it again") from error


def _slices(file: DicomFile, stream: IO[bytes]) -> Iterator[Slice]:
    place: dict[str, int] = {}

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if tag == PIXEL_DATA:
            place.update(at=stream.tell(), length=length)
        return tag >= PIXEL_DATA

    data: Any = read_partial(Window(stream, MAX_HEADER), at_pixels, force=True, specific_tags=list(TAGS))
    top = _Elements(data)
    rows, columns = top.whole("Rows"), top.whole("Columns")
    if not (place and rows and columns):
        raise ValueError("no image")  # which is no fault unless the file claims to be a CT
    frames = int(top.text("NumberOfFrames") or 1)
    if not 1 <= frames <= MAX_FRAMES:
        raise ValueError(f"{frames} frames")
    each = top.items("PerFrameFunctionalGroupsSequence")
    if frames > 1 and len(each) not in (0, frames):
        raise ValueError(f"{frames} frames, {len(each)} descriptions")
    shared = [inner for item in top.items("SharedFunctionalGroupsSequence") for inner in _groups(item)]
    _, little = data.original_encoding
    for frame in range(frames if each else 1):
        found = _Elements(*(_groups(each[frame]) if each else ()), *shared, data)
        pixels = Pixels(
            file=file,
            at=place["at"],
            frame=frame,
            frames=frames,
            syntax=str(data.file_meta.get("TransferSyntaxUID") or ""),
            compressed=place["length"] == UNDEFINED,
            big_endian=not little,
            size=(columns, rows),
            **_values(found),
        )
        yield _slice(found, pixels, "several frames without a place for each" if frames > 1 and not each else None)


def _slice(found: _Elements, pixels: Pixels, problem: str | None) -> Slice:
    instance = found.text("SOPInstanceUID")
    thickness = found.numbers("SliceThickness", 1)
    acquisition = found.text("AcquisitionNumber") or str(found.whole("FrameAcquisitionNumber"))
    time = found.text("TemporalPositionIdentifier") or str(found.whole("TemporalPositionIndex"))
    return Slice(
        pixels=pixels,
        series=found.text("SeriesInstanceUID"),
        instance=f"{instance or pixels.file}{f' frame {pixels.frame}' if pixels.frames > 1 else ''}",
        number=_ordinal(found.text("SeriesNumber")),
        acquisitions=(_ordinal(acquisition), _ordinal(time)),
        time=_time_of_day(found),
        position=found.numbers("ImagePositionPatient", 3),
        directions=found.numbers("ImageOrientationPatient", 6),
        spacing=found.numbers("PixelSpacing", 2)[::-1],  # DICOM names the distance between rows first
        thickness=thickness[0] if thickness and 0 < thickness[0] < 50 else None,
        kernel=_technical_term(found.text("ConvolutionKernel")),
        problem=_problem(found, pixels) or problem,
    )


def _values(found: _Elements) -> dict[str, Any]:
    """What says how stored values become HU, by the names of `Pixels`."""
    allocated = found.whole("BitsAllocated") or 0
    stored = found.whole("BitsStored") or allocated
    high, signed = found.whole("HighBit"), found.whole("PixelRepresentation") == 1
    low = found.whole("PixelPaddingValue", signed)
    last = found.whole("PixelPaddingRangeLimit", signed)
    return {
        "bits": (allocated, stored, stored - 1 if high is None else high),
        "signed": signed,
        "slope": (found.numbers("RescaleSlope", 1) or (1.0,))[0],
        "intercept": (found.numbers("RescaleIntercept", 1) or (0.0,))[0],
        "padding": None if low is None else (low, low) if last is None else (min(low, last), max(low, last)),
    }


def _problem(found: _Elements, pixels: Pixels) -> str | None:
    """Why a slice is no part of a CT of a head."""
    sop_class, modality = found.text("SOPClassUID"), found.text("Modality")
    if (modality or ("CT" if sop_class in CT_IMAGES else "")) != "CT":
        return f"{_technical_term(modality) or 'no modality'}, not CT"
    if "LOCALIZER" in found.text("ImageType") or "LOCALIZER" in found.text("FrameType"):
        return "a localiser"
    if found.whole("SamplesPerPixel") not in (None, 1):
        return "a colour picture"
    allocated, stored, high = pixels.bits
    if allocated not in (8, 16, 32) or not 1 <= stored <= high + 1 <= allocated:
        return f"pixels of {stored} bits in {allocated}"
    if pixels.compressed and pixels.syntax not in COMPRESSED:
        return "compressed by a method that is not read; export it without compression"
    if pixels.size[0] * pixels.size[1] > MAX_PIXELS:
        return "more pixels than a slice of a CT has"
    if problem := _scaling_problem(found):
        return problem
    position, directions = found.numbers("ImagePositionPatient", 3), found.numbers("ImageOrientationPatient", 6)
    spacing = found.numbers("PixelSpacing", 2)
    if position and spacing and min(spacing) > 0 and _perpendicular(directions):
        return None
    return "without position, directions or spacing in its header"


def _scaling_problem(found: _Elements) -> str | None:
    """Why stored values cannot become HU."""
    for name in ("RescaleSlope", "RescaleIntercept"):
        if found.text(name) and not found.numbers(name, 1):
            return "with a slope or intercept that is no number"
    return "with a slope of 0, which makes all values alike" if found.numbers("RescaleSlope", 1) == (0.0,) else None


class _Elements:
    """Elements of data sets, the first that holds them; what is not as it should be counts as missing."""

    def __init__(self, *places: Dataset) -> None:
        self._places = places

    def text(self, keyword: str) -> str:
        """Without blanks around it; empty if there is none."""
        return self._raw(keyword)[0].decode("ascii", "replace").strip(" \0")

    def numbers(self, keyword: str, count: int) -> tuple[float, ...]:
        """The `count` numbers of a text; empty for anything else, and for numbers that are no millimetres or HU."""
        try:
            values = tuple(float(part) for part in self.text(keyword).split("\\"))
        except ValueError:
            return ()
        return values if len(values) == count and all(abs(value) < MAX_NUMBER for value in values) else ()

    def whole(self, keyword: str, signed: bool = False) -> int | None:
        """A binary integer of two or four bytes."""
        value, order = self._raw(keyword)
        return int.from_bytes(value, order, signed=signed) if len(value) in (2, 4) else None  # type: ignore[arg-type]

    def items(self, keyword: str) -> list[Dataset]:
        """The items of a sequence."""
        tag: Any = tag_for_keyword(keyword)
        for place in self._places:
            if tag in place:
                value = place[tag].value
                return [item for item in value or () if isinstance(item, Dataset)]
        return []

    def _raw(self, keyword: str) -> tuple[bytes, str]:
        """(the bytes of an element, their order)."""
        tag: Any = tag_for_keyword(keyword)
        for place in self._places:
            element = place.get_item(tag, keep_deferred=True)
            if isinstance(element, RawDataElement) and element.value:
                return element.value, "little" if element.is_little_endian else "big"
        return b"", "little"


def _groups(item: Dataset) -> list[Dataset]:
    """The items in which a functional group of an enhanced CT has its elements."""
    return [inner for name in GROUPS for inner in _Elements(item).items(name)[:1]]


def _claims_to_be_ct(file: DicomFile) -> bool:
    """Whether an unreadable file states as its own class one of CT; the index of a disc only refers to it."""
    with file.open() as stream:
        head = stream.read(2**12)
    stated = re.search(rb"(?:\x02\0\x02\0UI|\x08\0\x16\0(?:UI)?)..(?:\0\0)?([0-9.]+)\0?", head, re.DOTALL)
    return stated is not None and stated[1].decode() in CT_IMAGES


def _ordinal(text: str) -> int:
    """A number that counts; 0 for anything else."""
    return int(text) if re.fullmatch(r"\d{1,9}", text) else 0


def _time_of_day(found: _Elements) -> float | None:
    """Seconds since midnight; dates are not looked at."""
    stamps = [found.text("AcquisitionTime"), *(found.text(f"{kind}AcquisitionDateTime")[8:] for kind in ("Frame", ""))]
    for stamp in (*stamps, found.text("ContentTime")):
        if parts := re.match(r"(\d\d)(\d\d)(\d\d(?:\.\d{1,6})?)", stamp):
            return int(parts[1]) * 3600 + int(parts[2]) * 60 + float(parts[3])
    return None


def _technical_term(text: str) -> str:
    """A short term of the header that may be printed; empty for free text, which may name the patient."""
    return text if re.fullmatch(r"[\w.+/-]{1,12}", text) else ""


def _perpendicular(directions: tuple[float, ...]) -> bool:
    if not directions:
        return False
    row, column = np.array(directions[:3]), np.array(directions[3:])
    return bool(abs(row @ column) < 0.01 and abs(row @ row - 1) < 0.01 and abs(column @ column - 1) < 0.01)
