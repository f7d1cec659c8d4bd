"""DICOM-SEG, read back by highdicom: the implant in its place in the patient, with references to the scan."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from pcdiff.errors import InputError
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.dicom_seg import write_dicom_seg

pydicom = pytest.importorskip("pydicom", reason="needs pydicom")
hd = pytest.importorskip("highdicom", reason="needs highdicom")


def implant(shear: float = 0.0) -> Volume:
    """A block on an oblique, anisotropic grid of 12 x 10 x 6."""
    a, b = np.cos(0.3), np.sin(0.3)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[a, -b, 0], [b, a, shear], [0, 0, 1]]) @ np.diag([0.5, 0.7, 1.5])
    affine[:3, 3] = [-20, 30, 100]
    mask = np.zeros((12, 10, 6), bool)
    mask[3:9, 2:5, 1:4] = True
    return Volume(mask, affine)


def write_scan(folder: Path, volume: Volume, series: str) -> None:
    """Slices with only the attributes that a segmentation needs."""
    folder.mkdir(exist_ok=True)
    for k in range(volume.mask.shape[2]):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.SOPClassUID = pydicom.uid.CTImageStorage
        dataset.SOPInstanceUID = f"{series}.{k + 1}"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", series, "1.2.3.9"
        dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex = "Nobody", "0", "", ""
        dataset.StudyID, dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "1", "20260101", "000000", ""
        dataset.ReferringPhysicianName, dataset.Modality, dataset.SeriesNumber = "", "CT", 1
        dataset.PositionReferenceIndicator, dataset.InstanceNumber = "", k + 1
        dataset.Rows, dataset.Columns = volume.mask.shape[1], volume.mask.shape[0]
        directions = volume.affine[:3, :3] / volume.spacing
        dataset.ImageOrientationPatient = [f"{x:.8g}" for x in directions[:, :2].T.ravel()]
        dataset.ImagePositionPatient = [f"{x:.8g}" for x in volume.to_mm(np.array([0, 0, k]))]
        dataset.PixelSpacing, dataset.SliceThickness = [volume.spacing[1], volume.spacing[0]], volume.spacing[2]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 0
        dataset.PixelData = bytes(2 * dataset.Rows * dataset.Columns)
        dataset.save_as(folder / f"{series}_{k}.dcm", enforce_file_format=True)


def test_the_implant_is_in_its_place(tmp_path: Path) -> None:
    volume = implant()
    write_scan(tmp_path / "scan", volume, "1.2.3.4")
    (tmp_path / "scan" / "notes.txt").write_text("no image")
    for name in ("a.dcm", "b.dcm"):
        write_dicom_seg(volume, tmp_path / "scan", tmp_path / name)
    found, again = (hd.seg.segread(tmp_path / name) for name in ("a.dcm", "b.dcm"))
    assert found.SOPInstanceUID == again.SOPInstanceUID
    assert found.PatientName == "Nobody"
    assert found.FrameOfReferenceUID == "1.2.3.9"
    assert "not a medical device" in found.SeriesDescription
    read = found.get_volume(combine_segments=True)
    index = np.argwhere(read.array)
    mm = np.c_[index, np.ones(len(index))] @ read.affine.T
    expected = volume.to_mm(np.argwhere(volume.mask))
    assert len(mm) == len(expected) == 54
    order, other = (np.lexsort(points.round(2).T) for points in (mm[:, :3], expected))
    np.testing.assert_allclose(mm[order, :3], expected[other], atol=1e-3)


def test_an_anonymised_scan_in_subfolders(tmp_path: Path) -> None:
    volume = implant()
    write_scan(tmp_path / "scan", volume, "1.2.3.4")
    for k, path in enumerate(list((tmp_path / "scan").iterdir())):
        dataset = pydicom.dcmread(path)
        for name in ("PatientName", "PatientSex", "StudyID", "StudyTime", "PositionReferenceIndicator"):
            del dataset[name]
        (tmp_path / "scan" / str(k % 2)).mkdir(exist_ok=True)
        dataset.save_as(tmp_path / "scan" / str(k % 2) / path.name)
        path.unlink()
    write_dicom_seg(volume, tmp_path / "scan", tmp_path / "a.dcm")
    assert hd.seg.segread(tmp_path / "a.dcm").PatientSex == ""
    for path in (tmp_path / "scan").rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        del dataset.FrameOfReferenceUID
        dataset.save_as(path)
    with pytest.raises(InputError, match="asks for a frame of reference"):
        write_dicom_seg(volume, tmp_path / "scan", tmp_path / "b.dcm")


def test_scans_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = implant()
    with pytest.raises(InputError, match="expected the scan's folder"):
        write_dicom_seg(volume, tmp_path / "none", tmp_path / "a.dcm")
    write_scan(tmp_path / "scan", volume, "1.2.3.4")
    write_scan(tmp_path / "scan", volume, "1.2.3.5")
    with pytest.raises(InputError, match="expected one series of 6 slices with 12 x 10 pixels, found 2 of 2"):
        write_dicom_seg(volume, tmp_path / "scan", tmp_path / "a.dcm")
    tilted = implant(shear=0.3)
    write_scan(tmp_path / "tilted", tilted, "1.2.3.6")
    with pytest.raises(InputError, match="the grid is tilted"):
        write_dicom_seg(tilted, tmp_path / "tilted", tmp_path / "a.dcm")
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(InputError, match=r"pip install 'pcdiff-cranial\[dicom\]'"):
        write_dicom_seg(volume, tmp_path / "scan", tmp_path / "a.dcm")
    assert not (tmp_path / "a.dcm").exists()
