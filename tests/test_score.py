"""Implants of other programs: found by name, read from masks and meshes, scored as `evaluate` scores."""

from __future__ import annotations

import json
import math
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from pcdiff.data.cases import Case, find_cases
from pcdiff.errors import InputError
from pcdiff.evaluation.predictions import find_predictions, score_predictions
from pcdiff.geometry.mesh import Mesh, write_stl
from pcdiff.geometry.surface import volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import write_volume

AFFINE = np.array([[-1.0, 0, 0, 5], [0, -2.0, 0, 7], [0, 0, 0.5, -3], [0, 0, 0, 1]])


def cuboid(first: int = 4) -> Volume:
    """8 x 4 x 16 mm from voxel `first` on, in 24 x 12 x 48 mm."""
    mask = np.zeros((24, 6, 96), bool)
    mask[first : first + 8, 2:4, 20:52] = True
    return Volume(mask, AFFINE)


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    bone = cuboid()
    skull = bone.with_mask(np.roll(bone.mask, 8, 0))
    for name in ("own/000", "own/001", "bilateral/000"):
        for part, volume in (("implant", bone), ("defective_skull", skull)):
            path = tmp_path / "truth" / part / f"{name}.nrrd"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_volume(volume, path)
    return tmp_path / "truth"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "predictions").mkdir()
    return tmp_path / "predictions"


def put(volume: Volume, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    write_volume(volume, path)


def test_files_belong_to_the_case_that_they_are_named_as(folder: Path) -> None:
    names = ("003.nii.gz", "case_004.stl", "005/implant.nrrd", "005/implant.stl", "005/defective_skull.nrrd", "5.nrrd")
    names += ("006.nrrd", "input_006.nrrd", "bilateral_007.nrrd", "bilateral/008.ply", "0003.nrrd", "plans.json")
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    cases = ("003", "004", "005", "006", "bilateral/007", "bilateral/008", "009", "random_1/003")
    found = find_predictions(folder, [Case(name, None, None, None) for name in cases])
    taken = ["003.nii.gz", "case_004.stl", "005/implant.nrrd", "006.nrrd", "bilateral_007.nrrd", "bilateral/008.ply"]
    assert [path.relative_to(folder).as_posix() for path in found.values()] == taken
    assert list(found) == list(cases[:6])
    (folder / "x_007.nrrd").touch()
    with pytest.raises(InputError, match=r"one file for case 007, got bilateral_007\.nrrd and x_007\.nrrd"):
        find_predictions(folder, [Case("007", None, None, None)])
    with pytest.raises(
        InputError,
        match=r"such as 999\.nrrd, got 12 of other names, such as 0003\.nrrd; rename",
    ):
        find_predictions(folder, [Case("999", None, None, None)])


def test_masks_and_meshes_have_the_scores_of_their_voxels(folder: Path, truth: Path) -> None:
    put(cuboid(5), folder / "nnunet_own_000.nii.gz")  # NIfTI is in RAS
    write_stl(volume_to_mesh(cuboid(5), smooth=False), folder / "own_001.stl")
    cropped = cuboid().crop(np.array([3, 1, 10]), np.array([20, 6, 60]))
    put(
        Volume(cropped.mask[:, ::-1], cropped.affine @ np.diag([1.0, -1, 1, 1]) + at(cropped, 1)),
        folder / "bilateral_000.nrrd",
    )
    rows = {row.case: row for row in score_predictions(folder, find_cases(truth), "theirs", progress=False)}
    for case in ("own/000", "own/001"):
        row = rows[case]
        assert (row.dsc, row.hd95, row.nsd_1mm) == pytest.approx((7 / 8, 1, 1))
        assert row.ml_true == row.ml_predicted == pytest.approx(0.512)
        assert (row.method, row.error, row.kind) == ("theirs", None, "own")
        assert math.isnan(row.seconds)
        assert row.implant
    assert rows["bilateral/000"].dsc == 1


def at(volume: Volume, axis: int) -> np.ndarray:
    """The shift of an affine whose axis is reversed."""
    shift = np.zeros((4, 4))
    shift[:3, 3] = volume.affine[:3, axis] * (volume.mask.shape[axis] - 1)
    return shift


def test_what_is_missing_has_the_worst_scores(folder: Path, truth: Path) -> None:
    put(cuboid(), folder / "own" / "000.nrrd")
    put(cuboid().with_mask(np.zeros((24, 6, 96), bool)), folder / "own" / "001.nrrd")
    bilateral, exact, empty = score_predictions(folder, find_cases(truth), "theirs", progress=False)
    assert exact.dsc == 1
    assert (bilateral.error, empty.error) == ("no file for this case", "the mask is empty")
    for row in (bilateral, empty):
        assert (row.dsc, row.nsd_1mm, row.hd95, row.volume_error) == (0, 0, math.inf, math.inf)
        assert row.ml_true == pytest.approx(0.512)


def test_a_path_that_is_no_folder_is_named(folder: Path, truth: Path) -> None:
    (folder / "a.nrrd").touch()
    for path, got in ((folder / "x", "no such folder"), (folder / "a.nrrd", "a file")):
        with pytest.raises(InputError, match=f"expected the folder of the implants, got {got}; correct the path"):
            find_predictions(path, find_cases(truth))


def test_another_grid_an_open_mesh_and_another_place_are_refused(folder: Path, truth: Path) -> None:
    def refused(path: Path, words: str) -> None:
        with pytest.raises(InputError, match=words) as error:
            score_predictions(folder, find_cases(truth), "theirs", progress=False)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
        path.unlink()

    shifted = AFFINE.copy()
    shifted[0, 3] += 0.4
    put(Volume(cuboid().mask, shifted), folder / "own_000.nrrd")
    refused(
        folder / "own_000.nrrd",
        "expected a mask on the skull's own grid .* got voxels that lie 0.4 mm beside its own; resample it",
    )
    put(Volume(cuboid().mask[::2], AFFINE @ np.diag([2.0, 1, 1, 1])), folder / "own_000.nrrd")
    refused(folder / "own_000.nrrd", "got voxels of 2 x 2 x 0.5 mm beside 1 x 2 x 0.5 mm; resample it")
    turned = np.diag([1.0, 1, 1, 1])
    turned[:2, :2] = [[np.cos(0.01), -np.sin(0.01)], [np.sin(0.01), np.cos(0.01)]]
    put(Volume(cuboid().mask, turned @ AFFINE), folder / "own_000.nrrd")
    refused(folder / "own_000.nrrd", "got axes in other directions; resample it")
    mesh = volume_to_mesh(cuboid(), smooth=False)
    write_stl(Mesh(mesh.vertices, mesh.faces[1:]), folder / "own_000.stl")
    refused(folder / "own_000.stl", "expected a closed surface")
    write_stl(Mesh(mesh.vertices + np.array([200, 0, 0]), mesh.faces), folder / "own_000.stl")
    refused(folder / "own_000.stl", "holds none of its voxels")


def test_the_command_writes_what_compare_reads(run, folder: Path, truth: Path, tmp_path: Path) -> None:
    put(cuboid(), folder / "own_000.nrrd")
    out = tmp_path / "a" / "b"
    arguments = ("score", folder, "--truth", truth, "-o", out, "--name", "nnU-Net", "-q")
    code, said, _ = run(*arguments, "--cases", "own/000")
    assert (code, said) == (0, "")
    code, said, error = run(*arguments, "--cases", "own/000")
    assert (code, said) == (2, "")
    assert "results.json: expected a new file, found one that may be of another evaluation; choose" in error
    code, said, _ = run(*arguments[:-1], "--overwrite")
    assert code == 1
    assert "| nnU-Net | own/000 | 1.0000 |" in said
    assert "failed: nnU-Net on own/001: no file for this case" in said
    record = json.loads((out / "results.json").read_text())
    assert record["command"] == "pcdiff score predictions --truth truth"
    assert record["kinds"]["own"]["nnU-Net"]["mean"]["dsc"] == 0.5
    assert len(record["rows"]) == 3
    code, _, error = run(*arguments, "-o", out / "results.csv")
    assert code == 2
    assert "results.csv: expected a folder to write to, got a file in its path" in error
    put(cuboid(13), folder / "own_001.nrrd")  # beside the true implant
    code, _, error = run(*arguments[:-1], "--cases", "own/000,own/001", "--overwrite")
    assert code == 0
    assert "warning: 1 of 2 implants share no voxel with the true one, such as that of own/001; check the" in error
    put(Volume(cuboid().mask[:-1], AFFINE), folder / "own_001.nrrd")  # a part of the grid
    assert run(*arguments, "--cases", "own/001", "--overwrite")[0] == 0
    put(Volume(cuboid().mask, AFFINE @ np.diag([1.1, 1, 1, 1])), folder / "own_001.nrrd")
    code, said, error = run(*arguments, "--cases", "own/001", "--overwrite")
    assert (code, said, error.count("\n")) == (2, "", 1)
    assert "own_001.nrrd: expected a mask on the skull's own grid" in error


def test_a_folder_with_results_is_whole(run, folder: Path, truth: Path, tmp_path: Path) -> None:
    put(cuboid(), folder / "own_000.nrrd")
    arguments = ("score", folder, "--truth", truth, "--cases", "own/000", "-o", tmp_path / "out", "-q")
    with mock.patch("pcdiff.evaluation.results.write_csv", side_effect=OSError("gone")):
        assert run(*arguments)[0] == 1
    assert run(*arguments)[0] == 0  # and not the refusal of a finished one
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["results.csv", "results.json"]


def test_files_of_no_case_are_named(run, folder: Path, truth: Path, tmp_path: Path) -> None:
    put(cuboid(), folder / "own_000.nrrd")
    write_stl(volume_to_mesh(cuboid(), smooth=False), folder / "own_000.stl")
    put(cuboid(), folder / "own_001" / "implant.nrrd")
    put(cuboid(), folder / "own_001" / "uncertainty.nrrd")  # of the case that lies beside it
    for name in ("plans.json", "dataset.json", "postprocessing.pkl", "own_001.npz", ".own_7.nrrd"):
        (folder / name).touch()
    arguments = ("score", folder, "--truth", truth, "--cases", "own/000", "--overwrite", "-o", tmp_path / "out")
    assert "warning" not in run(*arguments)[2]  # own/001 was not asked for
    for name in ("own_1.nrrd", "own000.stl", "x/implant.nrrd", "y.nii.gz"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    code, _, said = run(*arguments)
    assert code == 0
    (line,) = [line for line in said.splitlines() if "warning" in line]
    assert "4 files are of no case of " in line
    assert "left out: own000.stl, own_1.nrrd, x/implant.nrrd, ...; a name must be that of a case" in line
    assert "warning" not in run(*arguments, "-q")[2]
