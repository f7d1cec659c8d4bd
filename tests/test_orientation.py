"""A head that does not lie in its scan as the file says is found, named and refused; one on its side is designed."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import nrrd
import numpy as np
import pytest

from pcdiff.errors import InputError
from pcdiff.geometry.metrics import dice
from pcdiff.geometry.occupancy import Head, head_occupancy
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume, write_volume
from pcdiff.prior.fit import fit
from pcdiff.prior.model import ShapePrior
from pcdiff.prior.orientation import TURNS, Placed, place_head
from pcdiff.prior.pose import largest_piece

Run = Callable[..., tuple[int, str, str]]


def turned(degrees: float, axis: int = 2) -> np.ndarray:
    """(3, 3) rotation about a patient axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.roll(np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]), axis + 1, (0, 1))


def moved(head: Head, linear: np.ndarray) -> Head:
    change = np.eye(4)
    change[:3, :3] = linear
    return Head(head.occupancy, change @ head.affine, head.name)


@pytest.fixture(scope="module")
def head(case: tuple[Volume, Volume]) -> Head:
    found = head_occupancy(case[0])
    return Head(largest_piece(found.occupancy), found.affine, "")


def placed(prior: ShapePrior, head: Head, linear: np.ndarray) -> Placed:
    put = moved(head, linear)
    return place_head(prior, put.occupancy, put.affine)


def test_24_rotations_and_the_identity_first():
    assert TURNS.shape == (24, 3, 3)
    assert np.array_equal(TURNS[0], np.eye(3))
    assert np.allclose(np.linalg.det(TURNS), 1)
    assert len(np.unique(TURNS.reshape(24, 9), axis=0)) == 24


@pytest.mark.parametrize("linear", [np.eye(3), turned(20, 0), turned(40), np.diag([-1.0, 1, 1]), 1.07 * np.eye(3)])
def test_an_upright_head_of_usual_size_gives_no_warning(prior, head, linear):
    assert placed(prior, head, linear).check("unstated") == ()


@pytest.mark.parametrize(
    ("linear", "code", "cause"),
    [
        (np.diag([1.0, 1, -1]), "LPI", "upside down, z is flipped"),
        (np.eye(3)[::-1], "SPL", "axes x and z are swapped"),
        (np.eye(3)[[0, 2, 1]], "LSP", "axes y and z are swapped"),
        (np.diag([-1.0, -1, 1]), "RAS", "RAS is taken for LPS or the reverse"),
        (np.diag([1.0, -1, 1]), "LAS", "or y is flipped"),
        (np.eye(3)[[1, 2, 0]], "PSL", "the axes are in another order"),
    ],
)
def test_wrong_axes_are_refused_by_name(prior, head, linear, code, cause):
    found = placed(prior, head, linear)
    with pytest.raises(InputError, match="expected an upright head in patient axes") as refused:
        found.check("stated")
    assert code in str(refused.value)
    assert cause in str(refused.value)
    assert "--assume-orientation" in str(refused.value)
    (warning,) = found.check("assumed")
    assert cause in warning


@pytest.mark.parametrize(
    ("linear", "cause"),
    [
        (1.25 * np.eye(3), "larger than the mean"),
        (0.8 * np.eye(3), "smaller than the mean"),
        (np.diag([1.0, 1, 1.35]), "too long along z"),
        (np.diag([1.0, 1, 0.75]), "too short along z"),
    ],
)
def test_a_wrong_spacing_is_refused_by_name(prior, head, linear, cause):
    found = placed(prior, head, linear)
    with pytest.raises(InputError, match="spacing") as refused:
        found.check("stated")
    assert cause in str(refused.value)
    assert len(found.check("assumed")) == 1


def test_both_are_named(prior, head):
    with pytest.raises(InputError, match=r"RAS is taken for LPS.*larger than the mean"):
        placed(prior, head, 1.25 * np.diag([-1.0, -1, 1])).check("stated")


@pytest.mark.parametrize("degrees", [90, -90])
def test_a_head_on_its_side_is_found_in_the_same_place(prior, case, fitted, degrees):
    turn = np.eye(4)
    turn[:3, :3] = turned(degrees)
    put = fit(prior, Volume(case[0].mask, turn @ case[0].affine))
    assert put.defects == 1
    assert any("lies on its side" in note for note in put.notes)
    truth = case[1].to_mm(np.argwhere(case[1].mask)[::20])
    assert (put.defect_at(truth @ turn[:3, :3].T) > 0).mean() > 0.98
    assert put.residual == pytest.approx(fitted.residual, abs=0.1)


@pytest.mark.parametrize("degrees", [90, -90])
def test_a_head_on_its_side_in_a_file_without_axes_is_refused(prior, head, degrees):
    with pytest.raises(InputError, match=r"the file does not state the patient's axes.*axes x and y are swapped"):
        placed(prior, head, turned(degrees)).check("unstated")


def test_the_bones_of_a_knee_are_no_head_in_any_orientation(prior):
    shaft = np.zeros((60, 60, 140), bool)
    x, y, _ = np.indices(shaft.shape) - 30.0
    shaft[(np.hypot(x, y) < 20) & (np.hypot(x, y) > 14)] = True
    for axes in ("stated", "assumed"):
        with pytest.raises(InputError):
            fit(prior, Volume(shaft, np.eye(4)), axes)


def test_files_without_axes_through_the_command(run: Run, case: tuple[Volume, Volume], tmp_path: Path) -> None:
    """A mask in LPS order: with its axes, as an NRRD without a space, as a NIfTI without codes."""
    skull, truth = case
    write_volume(skull, tmp_path / "plain.nrrd")
    values, _ = nrrd.read(str(tmp_path / "plain.nrrd"))
    zyx = {"spacings": list(skull.spacing[::-1])}
    nrrd.write(str(tmp_path / "zyx.nrrd"), np.ascontiguousarray(values.transpose(2, 1, 0)), zyx)
    code, _, errors = run("design", tmp_path / "zyx.nrrd", "-o", tmp_path / "out", "--method", "prior", "--no-report")
    assert code == 2
    assert "axes x and z are swapped" in errors.splitlines()[-1]
    assert not (tmp_path / "out" / "zyx").exists()

    lps = Volume(skull.mask, np.diag([-1.0, -1, 1, 1]) @ np.diag([*skull.spacing, 1.0]))  # as a reader takes it
    write_volume(lps, tmp_path / "codes.nii")
    raw = bytearray((tmp_path / "codes.nii").read_bytes())
    raw[252:256] = struct.pack("<2h", 0, 0)
    (tmp_path / "none.nii").write_bytes(raw)
    design = ("design", tmp_path / "none.nii", "-o", tmp_path / "out", "--method", "prior", "--no-report")
    code, _, errors = run(*design)
    assert code == 2
    assert "the file does not state the patient's axes" in errors
    assert "RAS is taken for LPS" in errors
    code, _, errors = run(*design, "--assume-orientation")
    assert code == 0
    assert "warning: " in errors
    assert "RAS is taken for LPS" in errors
    assert dice(read_volume(tmp_path / "out" / "none" / "implant.nrrd").mask, truth.mask) > 0.85
    record = json.loads((tmp_path / "out" / "none" / "run.json").read_text())
    assert not record["input_check"]["axes_stated"]
    assert any("RAS is taken for LPS" in line for line in record["input_check"]["warnings"])
    assert run("check", tmp_path / "out" / "none" / "implant.nrrd", "--skull", tmp_path / "none.nii")[0] in (0, 1)
