"""An implant that a person edited is made to fit and checked, and never taken for another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from pcdiff.errors import InputError
from pcdiff.geometry.mesh import Mesh, write_stl
from pcdiff.geometry.metrics import dice
from pcdiff.geometry.surface import volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import write_map, write_volume
from pcdiff.methods.registry import load_method
from pcdiff.pipeline.check import check
from pcdiff.pipeline.fitting import FitOptions, apply_fit_options
from pcdiff.pipeline.flow import design
from pcdiff.prior.defects import rays_through
from pcdiff.prior.direction_map import MAP, Pose
from pcdiff.prior.fit import PriorFit, fit
from pcdiff.prior.model import ShapePrior

Run = Callable[..., tuple[int, str, str]]
REGION = "expected a mask of the region to be closed, 0 outside and one other value inside"


def proposed(file: Path, skull: Volume, fitted: PriorFit) -> np.ndarray:
    method = load_method("edited", file)
    return method(skull, fitted).candidates[0].to_volume(skull).mask  # type: ignore[call-arg, arg-type]


def test_the_rim_is_closed_and_bone_is_left_out(case: tuple[Volume, Volume], fitted: PriorFit, tmp_path: Path) -> None:
    skull, implant = case
    rim = implant.mask & ndimage.binary_dilation(skull.mask)
    loose = implant.mask & ~rim  # a voxel of 1.6 mm from bone
    dent = np.argwhere(ndimage.binary_erosion(loose, iterations=2)).mean(0).round().astype(int)
    loose[tuple(slice(c - 2, c + 3) for c in dent)] = False  # what the person changed
    swollen = ndimage.binary_dilation(implant.mask)
    for name, mask in (("loose", loose), ("swollen", swollen)):
        write_volume(implant.with_mask(mask), tmp_path / f"{name}.nrrd")
        found = proposed(tmp_path / f"{name}.nrrd", skull, fitted)
        assert not (found & skull.mask).any()
        assert (found & rim).sum() > 0.75 * rim.sum()  # of a plate four voxels thick; its corners are rounded
        far = ~ndimage.binary_dilation(skull.mask, iterations=6)
        assert np.array_equal(found[far], mask[far])  # the edit itself stays


def test_a_mesh_serves_too_and_the_options_apply(case: tuple[Volume, Volume], tmp_path: Path) -> None:
    skull, implant = case
    write_stl(volume_to_mesh(implant), tmp_path / "implant.stl")
    method = load_method("edited", tmp_path / "implant.stl")
    made = design(skull, method, options=FitOptions(make_insertable=False)).implant
    assert dice(made.mask, implant.mask) > 0.95
    loose = design(skull, method, options=FitOptions(clearance=1.0, make_insertable=False)).implant
    assert not (loose.mask & ndimage.binary_dilation(skull.mask)).any()
    assert loose.ml < made.ml


def test_an_implant_of_elsewhere_is_refused(case: tuple[Volume, Volume], fitted: PriorFit, tmp_path: Path) -> None:
    skull, implant = case
    centre = np.round(skull.to_index(fitted.pose.shift)).astype(int)
    elsewhere = np.zeros_like(implant.mask)
    elsewhere[tuple(slice(c - 4, c + 4) for c in centre)] = True
    write_volume(implant.with_mask(elsewhere & ~skull.mask), tmp_path / "elsewhere.nrrd")
    with pytest.raises(InputError, match="expected an implant in the defects to be closed, got"):
        proposed(tmp_path / "elsewhere.nrrd", skull, fitted)
    write_volume(skull, tmp_path / "bone.nrrd")
    with pytest.raises(InputError, match="lies in bone"):
        proposed(tmp_path / "bone.nrrd", skull, fitted)


def test_a_file_that_is_no_implant_is_refused_before_the_shape_model_is_fitted(
    case: tuple[Volume, Volume], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    skull, implant = case
    write_volume(skull, tmp_path / "skull.nrrd")
    write_volume(implant.with_mask(np.zeros_like(implant.mask)), tmp_path / "empty.nrrd")
    write_volume(implant.with_mask(np.ones_like(implant.mask)), tmp_path / "full.nrrd")
    mesh = volume_to_mesh(implant)
    far = Mesh(mesh.vertices * [-1, -1, 1] + [400, 0, 0], mesh.faces)
    write_stl(far, tmp_path / "far.stl")
    write_map(np.where(implant.mask, 0, -1000), skull, tmp_path / "hu.nrrd")
    grey = np.where(implant.mask, 0, -1000)
    grey[0, 0, 0] = 300
    write_map(grey, skull, tmp_path / "ct.nrrd")
    off = skull.affine.copy()
    off[:3, 3] += 0.4
    write_volume(Volume(implant.mask, off), tmp_path / "off.nrrd")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr("pcdiff.pipeline.flow.fit_prior", lambda *_: pytest.fail("it was fitted"))
    for option, name, said in (
        ("--edited", "empty.nrrd", "empty.nrrd: expected a mask of an implant, got one whose voxels are all 0"),
        ("--edited", "skull.nrrd", "skull.nrrd: expected an implant, got one that lies in bone altogether"),
        ("--edited", "far.stl", "is it in LPS millimetres? Export a mesh in RAS again in LPS, or give the implant as"),
        ("--edited", "gone.stl", "gone.stl: expected"),
        ("--edited", "folder", "folder: expected a file, got a folder; give the file in it"),
        (
            "--edited",
            "off.nrrd",
            "got voxels that lie 0.69 mm beside its own; resample it to that grid, or give its STL",
        ),
        ("--region", "folder", "folder: expected a file, got a folder; give the file in it"),
        ("--region", "off.nrrd", "got voxels that lie 0.69 mm beside its own; resample it to that grid\n"),
        ("--region", "hu.nrrd", f"{REGION}, got 0 and -1000.0; draw it in a segment editor (3D Slicer, ITK-SNAP) and"),
        ("--region", "ct.nrrd", f"{REGION}, got 0, 300.0, -1000.0, ...; draw it in a segment editor"),
        ("--edited", "ct.nrrd", "expected a mask of an implant, 0 outside and one other value inside, got 0, 300.0"),
        ("--region", "empty.nrrd", "empty.nrrd: expected a mask of the region to be closed, got one whose voxels are"),
        (
            "--region",
            "full.nrrd",
            "full.nrrd: expected a mask of the region to be closed, 0 outside, got one without any",
        ),
        ("--edited", "full.nrrd", "it covers its whole image; draw it in a segment editor"),
    ):
        code, _, error = run("design", tmp_path / "skull.nrrd", "-o", tmp_path / "out", option, tmp_path / name, "-q")
        assert code == 2
        assert said in error
        assert "mesh-space" not in error
        assert "bone first" not in error
        assert "threshold" not in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_command_takes_the_implant_of_one_scan_alone(case: tuple[Volume, Volume], tmp_path: Path, run: Run) -> None:
    skull, implant = case
    write_volume(skull, tmp_path / "skull.nrrd")
    write_volume(implant, tmp_path / "edited.nrrd")
    edited = ("--edited", tmp_path / "edited.nrrd")
    code, out, _ = run("design", tmp_path / "skull.nrrd", "-o", tmp_path / "out", *edited, "--no-report", "--json")
    assert code == 0
    assert '"method": "edited"' in out
    assert '"edited.nrrd"' in out  # its sha256 is recorded
    inside = tmp_path / "out" / "skull" / "implant.nrrd"
    code, _, error = run("design", tmp_path / "skull.nrrd", "-o", tmp_path / "out", "--edited", inside)
    assert code == 2
    assert "lies in the case folder" in error
    region = ("--region", tmp_path / "edited.nrrd")
    options = ("--skull", tmp_path / "skull.nrrd", *region)
    code, out, _ = run("check", tmp_path / "edited.nrrd", *options, "--json")
    assert code in (0, 1)
    code, _, error = run("check", tmp_path / "edited.nrrd", *options, "--defect", 1)
    assert code == 2
    assert "leave one of them out" in error
    code, _, error = run("design", tmp_path / "skull.nrrd", "-o", tmp_path / "out", *edited, "--method", "rbf")
    assert code == 2
    assert "leave out --method" in error
    scans = (tmp_path / "skull.nrrd", tmp_path / "edited.nrrd")
    code, _, error = run("design", *scans, "-o", tmp_path / "out", *edited)
    assert code == 2
    assert "--edited is for one scan, got 2" in error


def test_a_region_restricts_and_adds(case: tuple[Volume, Volume], prior: ShapePrior, fitted: PriorFit) -> None:
    skull, implant = case
    middle = np.argwhere(implant.mask).mean(0)
    half = implant.mask & (np.indices(implant.mask.shape)[0] < middle[0])
    part = fit(prior, skull, defects=skull.with_mask(ndimage.binary_dilation(half)))
    covered, whole = (
        found.defect_at(skull.to_mm(np.argwhere(implant.mask).astype(float))) > 0 for found in (part, fitted)
    )
    in_half = half[implant.mask]
    assert covered[in_half].mean() > 0.95 * whole[in_half].mean()
    assert covered[~in_half].mean() < 0.2 < whole[~in_half].mean()
    everywhere = fit(prior, skull, defects=skull.with_mask(np.ones_like(skull.mask)))
    assert everywhere.defects >= 1
    assert (everywhere.defect > 0).sum() >= (fitted.defect > 0).sum()
    with pytest.raises(InputError, match="no bone is absent within the region"):
        fit(prior, skull, defects=skull)


def test_a_coarse_region_is_one_region(case: tuple[Volume, Volume], fitted: PriorFit) -> None:
    _, implant = case
    drawn = rays_through(implant, fitted.pose)
    sparse = np.zeros_like(implant.mask)
    sparse[::2, ::2, ::2] = implant.mask[::2, ::2, ::2]  # voxels of 3.2 mm
    coarse = rays_through(implant.with_mask(sparse), fitted.pose)
    assert (coarse & drawn).sum() > 0.8 * drawn.sum()
    assert MAP.inside.sum() == len(drawn)


def test_a_fine_region_keeps_its_gaps() -> None:
    """Else the skull's own mask, given by mistake, would have rays through the corners of a defect."""
    affine = np.diag([0.8, 0.8, 0.8, 1.0])
    affine[:3, 3] = -24, -24, 84
    x, y, _ = np.indices((61, 61, 3)) * 0.8 - 24
    plate = Volume(np.hypot(x, y) > 4, affine)
    drawn = MAP.to_image(rays_through(plate, Pose(np.eye(3), np.zeros(3))), False)
    assert drawn.sum() > 500
    assert not drawn[tuple(np.rint(MAP.to_pixel(np.array([0.0, 0.0, 1.0]))).astype(int))]


def test_a_crumb_is_left_out(case: tuple[Volume, Volume], fitted: PriorFit, tmp_path: Path) -> None:
    skull, implant = case
    with_crumb = implant.mask.copy()
    with_crumb[1, 1, 1] = True
    write_volume(implant.with_mask(with_crumb), tmp_path / "crumb.nrrd")
    assert not proposed(tmp_path / "crumb.nrrd", skull, fitted)[1, 1, 1]


def test_a_gap_as_wide_as_a_voxel_is_as_wide_as_asked_for(case: tuple[Volume, Volume], prior: ShapePrior) -> None:
    skull, implant = case
    clearance = float(skull.spacing[0])
    loose = apply_fit_options(implant, skull, np.zeros(3), FitOptions(clearance=clearance)).implant
    report = check(skull, loose, clearance=clearance)
    assert report["clearance"].passed
