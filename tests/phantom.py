"""Phantom CTs: HU around a skull mask (skin, brain, holder, table, noise), and their DICOM files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, MRImageStorage, RLELossless
from scipy import ndimage

from pcdiff.geometry.volume import Volume

AIR, SKIN, BRAIN, BONE, SHELL = -1000, 50, 35, 1100, 420  # HU
SECRETS = {
    "PatientName": "Mustermann^Erika",
    "PatientID": "KH-4711-0815",
    "PatientBirthDate": "19640812",
    "StudyDate": "20240229",
    "AccessionNumber": "ACC99817",
    "InstitutionName": "Klinikum Nirgendwo",
    "ReferringPhysicianName": "Sauerbruch^Ferdinand",
    "SeriesDescription": "Schaedel Mustermann",
    "StudyDescription": "CCT nach Kraniektomie",
}
ROOT = "1.2.826.0.1.3680043.8.498."


def head_ct(
    skull: Volume, noise: float = 15.0, blur: float = 0.0, table: bool = True, seed: int = 0
) -> tuple[np.ndarray, Volume]:
    """(I, J, K) int16 HU of a head around a skull, and the skull on the same grid: larger, to hold skin and table.

    The scalp is 5 mm thick and covers the defect. The shell of a head holder, denser than diploe, touches it from
    behind over a third of the head. Below lies a table with a steel rail.
    """
    spacing = skull.spacing
    before, after = np.ceil(np.array([[12, 12, 12], [12, 45, 12]]) / spacing).astype(int)
    bone = np.pad(skull.mask, list(zip(before, after, strict=True)))
    affine = skull.affine.copy()
    affine[:3, 3] = skull.to_mm(-before.astype(float))
    grid = Volume(bone, affine)
    outward = ndimage.distance_transform_edt(~_filled(bone, spacing), sampling=spacing)
    head = outward <= 5
    hu = np.full(bone.shape, AIR, np.float32)
    hu[head] = SKIN
    hu[outward == 0] = BRAIN
    hu[bone] = BONE
    if table:
        x, y, z = np.moveaxis(grid.to_mm(np.moveaxis(np.indices(bone.shape), 0, -1).astype(float)), -1, 0)
        middle, back = grid.to_mm(np.argwhere(head)).mean(0), grid.to_mm(np.argwhere(head))[:, 1].max()
        cup = (y > middle[1]) & (np.abs(x - middle[0]) < 50) & (np.abs(z - middle[2]) < 40)
        hu[(outward > 5) & (outward <= 8.5) & cup] = SHELL
        hu[(y > back + 12) & (y < back + 16)] = 350
        hu[(y > back + 12) & (y < back + 20) & (np.abs(x - middle[0] - 40) < 4)] = 3071
    if blur:
        hu = ndimage.gaussian_filter(hu, blur / spacing)
    hu += np.random.default_rng(seed).normal(0, noise, hu.shape).astype(np.float32)
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16), grid


def coarse(skull: Volume) -> Volume:
    """Every second voxel of a mask, thickened so that the bone stays in one piece: for tests that look at files."""
    thick = ndimage.binary_dilation(skull.mask)
    return Volume(np.asfortranarray(thick[::2, ::2, ::2]), skull.affine @ np.diag([2.0, 2.0, 2.0, 1.0]))


def write_dicom(folder: Path, hu: np.ndarray, affine: np.ndarray, series: int = 1, **changes: Any) -> list[Path]:
    """Writes a file for each slice (third index), with names in random order. The header names a patient.

    changes: DICOM attributes, or slope and intercept of the rescale, signed (pixel representation), compressed (RLE).
    """
    folder.mkdir(parents=True, exist_ok=True)
    slope, intercept = changes.pop("slope", 1), changes.pop("intercept", -1024)
    signed, compressed = changes.pop("signed", False), changes.pop("compressed", False)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    stored = np.rint((hu.astype(float) - intercept) / slope).astype("<i2" if signed else "<u2")
    paths = []
    for k in np.random.default_rng(series).permutation(hu.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage if changes.get("Modality") == "MR" else CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"{ROOT}{series}.{k + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"IM{series:02d}{len(paths):04d}"
        data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        data.Modality, data.SeriesNumber, data.InstanceNumber = "CT", series, int(k) + 1
        data.StudyInstanceUID, data.SeriesInstanceUID = f"{ROOT}9", f"{ROOT}{series}"
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.Columns, data.Rows = hu.shape[:2]
        data.PixelSpacing = [f"{spacing[1]:.8g}", f"{spacing[0]:.8g}"]
        data.ImageOrientationPatient = [f"{x:.10f}" for x in (affine[:3, :2] / spacing[:2]).T.ravel()]
        data.ImagePositionPatient = [f"{x:.6f}" for x in affine[:3, 2] * k + affine[:3, 3]]
        data.SliceThickness = f"{spacing[2]:.6g}"
        data.ConvolutionKernel = "H60s"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation, data.SamplesPerPixel = 15, int(signed), 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.RescaleSlope, data.RescaleIntercept = f"{slope:g}", f"{intercept:g}"
        data.PixelData = stored[:, :, k].T.tobytes()
        for name, value in (SECRETS | changes).items():
            setattr(data, name, value)
        if compressed:
            data.compress(RLELossless)
        data.save_as(path, enforce_file_format=True)
        paths.append(path)
    return [path for _, path in sorted(zip(np.random.default_rng(series).permutation(hu.shape[2]), paths, strict=True))]


def write_enhanced(path: Path, hu: np.ndarray, affine: np.ndarray, **changes: Any) -> Path:
    """Writes an enhanced CT: all slices (third index) as frames of one file, in random order.

    changes: DICOM attributes, or compressed (RLE).
    """
    compressed = changes.pop("compressed", False)
    order = np.random.default_rng(3).permutation(hu.shape[2])
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = EnhancedCTImageStorage, f"{ROOT}77"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Modality, data.SeriesNumber, data.SeriesInstanceUID = "CT", 5, f"{ROOT}5"
    data.NumberOfFrames, data.Columns, data.Rows = hu.shape[2], *hu.shape[:2]
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation, data.SamplesPerPixel = 15, 0, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    shared = Dataset()
    shared.PlaneOrientationSequence = [
        _item(ImageOrientationPatient=[f"{x:.10f}" for x in (affine[:3, :2] / spacing[:2]).T.ravel()])
    ]
    shared.PixelMeasuresSequence = [
        _item(PixelSpacing=[f"{spacing[1]:.8g}", f"{spacing[0]:.8g}"], SliceThickness=f"{spacing[2]:.6g}")
    ]
    shared.CTReconstructionSequence = [_item(ConvolutionKernel="H60s")]
    data.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k in order:
        frame = Dataset()
        frame.PlanePositionSequence = [
            _item(ImagePositionPatient=[f"{x:.6f}" for x in affine[:3, 2] * k + affine[:3, 3]])
        ]
        # Each frame has an intercept of its own, as the standard allows.
        frame.PixelValueTransformationSequence = [
            _item(RescaleSlope="1", RescaleIntercept=str(-2000 - int(k)), RescaleType="HU")
        ]
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = frames
    data.PixelData = b"".join((hu[:, :, k].T.astype(int) + 2000 + k).astype("<u2").tobytes() for k in order)
    for name, value in (SECRETS | changes).items():
        setattr(data, name, value)
    if compressed:
        data.compress(RLELossless)
    data.save_as(path, enforce_file_format=True)
    return path


def _item(**values: Any) -> Dataset:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item


def _filled(bone: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The inside of the scalp: bone closed by 60 mm on a coarse grid, so that the defect is covered."""
    step = np.maximum(1, np.round(4 / spacing)).astype(int)
    pad = 20
    coarse = np.pad(bone[:: step[0], :: step[1], :: step[2]], pad)
    sampling = spacing * step
    grown = ndimage.distance_transform_edt(~coarse, sampling) <= 60
    closed = ndimage.distance_transform_edt(grown, sampling) > 60
    inner = closed[pad:-pad, pad:-pad, pad:-pad]
    at = [np.arange(n) // s for n, s in zip(bone.shape, step, strict=True)]
    return inner[np.ix_(*at)] | bone
