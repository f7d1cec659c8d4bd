"""docs/dicom.md says what the code reads and writes: classes, syntaxes, elements, limits."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from phantom import ROOT, SECRETS, write_dicom
from pydicom import Dataset, dcmread, uid
from test_scan import ct, grid

from pcdiff import __version__
from pcdiff.errors import InputError
from pcdiff.geometry.mesh import read_stl, write_stl
from pcdiff.geometry.surface import volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.imaging import dicom_seg, dicom_stl, scan
from pcdiff.imaging.formats import dicom_files, dicom_header, dicom_pixels, dicom_series

PAGE = (Path(__file__).parents[1] / "docs" / "dicom.md").read_text()
READ, written = PAGE.split("## What is written")
WRITTEN, MODEL = written.split("### As STL")
PLAIN = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian)
FRAMES = ("FrameType", "FrameAcquisitionNumber", "FrameAcquisitionDateTime", "TemporalPositionIndex")  # in groups


def table(text: str, head: str) -> dict[str, str]:
    """The rows of the table whose first column has this head."""
    (rows,) = re.findall(rf"^\| {head} \|.*\n\|---\|---\|\n((?:\|.*\n)+)", text, re.M)
    return dict(line.strip("| ").split(" | ") for line in rows.splitlines())


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """What `pcdiff dicom-seg` writes for a scan with a patient's name in a Japanese set."""
    pytest.importorskip("highdicom", reason="needs highdicom")
    folder = tmp_path_factory.mktemp("seg")
    names = {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎"}
    other = {"FrameOfReferenceUID": f"{ROOT}8", "LossyImageCompression": "01", "Manufacturer": "Scanner"}
    write_dicom(folder / "scan", ct(), grid(), **names, **other)
    mask = np.zeros(ct().shape, bool)
    mask[3:6, 3:6, 3:6] = True
    dicom_seg.write_dicom_seg(Volume(mask, grid()), folder / "scan", folder / "implant.dcm")
    return dcmread(folder / "implant.dcm")


def test_classes_and_syntaxes_are_those_that_are_read() -> None:
    assert set(table(READ, "SOP class").values()) == set(dicom_header.CT_IMAGES)
    syntaxes = {*PLAIN, uid.ExplicitVRBigEndian, *dicom_pixels.COMPRESSED}
    assert set(table(READ, "transfer syntax").values()) == syntaxes


def test_every_element_that_is_read_is_named() -> None:
    (named,) = re.findall(r"\*\*Elements\.\*\*.*?\n\n", READ, re.S)
    assert set(re.findall(r"`(\w+)`", named)) == {*dicom_header.READ, *FRAMES, "TransferSyntaxUID", "PixelData"}
    source = Path(dicom_header.__file__).read_text()
    assert all(name in source or name.removeprefix("Frame") in source for name in FRAMES)


def test_the_limits_are_those_of_the_code() -> None:
    assert table(READ, "limit") == {
        "slices of a head, at least": f"{dicom_series.MIN_SLICES}",
        "files in a folder or archive": f"{dicom_files.MAX_FILES:,}",
        "size of a file": f"{dicom_files.MAX_BYTES >> 30} GB",
        "header that is parsed": f"{dicom_header.MAX_HEADER >> 20} MB",
        "data set that is deflated as a whole": f"{dicom_files.MAX_INFLATED >> 20} MB",
        "frames in a file": f"{dicom_header.MAX_FRAMES:,}",
        "pixels of a slice": "{0} x {0}".format(int(dicom_header.MAX_PIXELS**0.5)),
        "voxels of a CT": f"2^{scan.MAX_CT_VOXELS.bit_length() - 1}",
    }


def test_a_segmentation_has_what_the_page_says(segmentation: Dataset) -> None:
    assert set(re.findall(r"`([A-Z]\w+)`", WRITTEN)) == {element.keyword for element in segmentation}
    rows = {keyword: value for cell, value in table(WRITTEN, "element").items() for keyword in re.findall(r"\w+", cell)}
    for keyword, value in rows.items():
        found = segmentation[keyword].value
        if value == "the version of pcdiff":
            assert found == __version__
        elif value.startswith("the scan's") and keyword in SECRETS and keyword != "PatientName":
            assert found == SECRETS[keyword]
        elif keyword not in SECRETS and not re.search(r"scan|written|highdicom|segment|frame", value):
            assert ", ".join([found] if isinstance(found, str) else map(str, np.ravel(found))) == value
    assert segmentation.LossyImageCompression == "01"
    scanner, highdicom = segmentation.ContributingEquipmentSequence
    assert (scanner.Manufacturer, scanner.InstitutionName) == ("Scanner", SECRETS["InstitutionName"])
    assert "highdicom" in highdicom.ManufacturerModelName
    (segment,) = segmentation.SegmentSequence
    assert (segment.SegmentLabel, segment.SegmentAlgorithmType) == ("cranial implant", "AUTOMATIC")
    assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Physical object"
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Implant"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Volume]:
    """(folder with scan and implant.stl, the implant on the scan's grid), with a patient's name in a Japanese set."""
    folder = tmp_path_factory.mktemp("stl")
    names = {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce"}
    write_dicom(folder / "scan", ct(), grid(), **names, FrameOfReferenceUID=f"{ROOT}8")
    mask = np.zeros(ct().shape, bool)
    mask[3:6, 3:6, 3:6] = True
    implant = Volume(mask, grid())
    write_stl(volume_to_mesh(implant), folder / "implant.stl")
    return folder, implant


def test_an_encapsulated_stl_has_what_the_page_says(model: tuple[Path, Volume]) -> None:
    folder, implant = model
    for name in ("a.dcm", "b.dcm"):
        dicom_stl.write_dicom_stl(folder / "implant.stl", implant, folder / "scan", folder / name)
    found, again = dcmread(folder / "a.dcm"), dcmread(folder / "b.dcm")
    assert found.file_meta.MediaStorageSOPClassUID == uid.EncapsulatedSTLStorage
    assert (found.SOPInstanceUID, found.SeriesInstanceUID) == (again.SOPInstanceUID, again.SeriesInstanceUID)
    text = table(MODEL, "element of the STL")
    rows = {keyword: value for cell, value in text.items() for keyword in re.findall(r"\w+", cell)}
    assert rows.keys() == {element.keyword for element in found}
    for keyword, value in rows.items():
        if not re.search(r"scan|written|version|UCUM|STL|empty", value):
            assert str(found[keyword].value) == value
    assert found.SoftwareVersions == __version__
    assert found.PatientName == "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce"
    assert found.FrameOfReferenceUID == f"{ROOT}8"
    assert found.MeasurementUnitsCodeSequence[0].CodeValue == "mm"
    slices = [dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in (folder / "scan").iterdir()]
    assert sorted(item.ReferencedSOPInstanceUID for item in found.SourceInstanceSequence) == sorted(slices)
    stl = (folder / "implant.stl").read_bytes()
    assert found.EncapsulatedDocument[: found.EncapsulatedDocumentLength] == stl
    assert len(found.EncapsulatedDocument) % 2 == 0


def test_an_stl_in_other_axes_is_not_encapsulated(model: tuple[Path, Volume]) -> None:
    folder, implant = model
    write_stl(read_stl(folder / "implant.stl"), folder / "ras.stl", "ras")
    with pytest.raises(InputError, match="expected an STL in LPS"):
        dicom_stl.write_dicom_stl(folder / "ras.stl", implant, folder / "scan", folder / "ras.dcm")
    assert not (folder / "ras.dcm").exists()


def test_a_name_in_any_character_set_is_kept(segmentation: Dataset) -> None:
    assert segmentation.SpecificCharacterSet == "ISO_IR 192"
    assert segmentation.PatientName == "Yamada^Tarou=山田^太郎"
