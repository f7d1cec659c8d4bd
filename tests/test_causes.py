"""Values that are neither a CT in HU nor a mask of the bone: the message names the cause."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from pcdiff.errors import InputError
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.scan import read_scan
from pcdiff.imaging.volumes import write_map, write_volume

AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
DISTANCE = np.linalg.norm(np.indices((60, 60, 60)) - 29.5, axis=0) * 3  # mm from the middle
SKULL = (DISTANCE > 62) & (DISTANCE < 70)
HEAD = DISTANCE < 76


def hu() -> np.ndarray:
    """(60, 60, 60) float HU of a head with noise."""
    noise = np.random.default_rng(1).normal(0, 12, SKULL.shape)
    return np.rint(np.clip(np.where(SKULL, 1200, np.where(HEAD, 40, -1000)) + noise, -1024, 3071))


def read(path: Path, values: np.ndarray) -> str:
    """The message that refuses the values; empty if they are read."""
    grid = Volume(np.zeros(SKULL.shape, bool), AFFINE)
    write_map(values.astype(np.float32), grid, path / "a.nrrd")
    try:
        read_scan(path / "a.nrrd")
    except InputError as error:
        return str(error)
    return ""


def test_a_head_and_its_bone_are_read(tmp_path: Path) -> None:
    assert not read(tmp_path, hu())
    assert not read(tmp_path, SKULL)


def test_nan_in_the_background_of_a_mask(tmp_path: Path) -> None:
    assert "voxels are nan (not a number); set the background to 0" in read(tmp_path, np.where(HEAD, SKULL, np.nan))
    assert "voxels are nan" in read(tmp_path, np.where(SKULL, 1, np.nan))
    assert not read(tmp_path, np.where(HEAD, hu(), np.nan))  # of a CT it is air


def test_probabilities(tmp_path: Path) -> None:
    soft = ndimage.gaussian_filter(SKULL.astype(float), 0.7)
    assert "if they are a network's probabilities, threshold them at 0.5" in read(tmp_path, soft)
    assert "threshold them at 0.5" in read(tmp_path, np.round(soft, 1))


def test_an_inverted_mask(tmp_path: Path) -> None:
    message = read(tmp_path, ~SKULL)
    assert "it is inverted; give bone the value 1" in message
    assert "93% of all voxels" in message


def test_a_mask_of_the_whole_head_or_of_the_brain(tmp_path: Path) -> None:
    for solid in (HEAD, DISTANCE < 62, DISTANCE < 30):
        assert "it holds the whole head, or the brain; threshold the CT at about 300 HU" in read(tmp_path, solid)
    assert not read(tmp_path, (DISTANCE > 30) & (DISTANCE < 70))  # 40 mm: more than any bone


def test_a_ct_that_was_masked_with_0(tmp_path: Path) -> None:
    inside = np.where(DISTANCE < 20, -1000, hu())  # air in the head remains
    assert "exactly 0 HU, which is water: the CT was masked with 0" in read(tmp_path, np.where(HEAD, inside, 0))
    message = read(tmp_path, np.where(HEAD, np.maximum(hu(), -99), 0))
    assert "the CT was masked with 0; export the original" in message


@pytest.mark.parametrize(("low", "high"), [(0, 80), (-160, 240), (-1000, 90), (-100, 1000)])
def test_a_ct_that_was_clipped(tmp_path: Path, low: int, high: int) -> None:
    message = read(tmp_path, np.clip(hu(), low, high))
    assert f"got values of {low} to {high}" in message
    assert "the CT was clipped to a window" in message
    assert "export the original" in message


def test_raw_numbers_grey_values_and_labels(tmp_path: Path) -> None:
    assert "subtract 1024: they are raw CT numbers" in read(tmp_path, hu() + 1024)
    assert "subtract 1024: they are raw CT numbers" in read(tmp_path, np.where(DISTANCE < 85, hu() + 1024, 0))
    assert "export it in HU" in read(tmp_path, (hu() + 1024) * 5)
    grey = np.clip((hu() + 200) / 1500 * 240 + 5, 5, 250)
    assert "expected a CT in HU" in read(tmp_path, np.rint(grey))
    assert "got 3 labels; choose the bone with --label" in read(
        tmp_path, SKULL + 2.0 * (DISTANCE < 50) + (DISTANCE < 9)
    )
    many = np.where(HEAD, np.floor(DISTANCE) // 4 * 4, 0)  # shells of 4 mm
    assert "got 18 labels" in read(tmp_path, many)


def test_probabilities_of_0_to_255(tmp_path: Path) -> None:
    soft = np.rint(255 * np.clip(1 - np.abs(DISTANCE - 66) / 8, 0, 1))
    assert "(probabilities of 0 to 255: threshold them at 128)" in read(tmp_path, soft)


def test_a_sheared_mask_is_measured_between_its_planes(tmp_path: Path) -> None:
    affine = AFFINE.copy()
    affine[1, 2] = 1.5
    write_volume(Volume(SKULL, affine), tmp_path / "a.nrrd")
    assert not read_scan(tmp_path / "a.nrrd").is_ct
