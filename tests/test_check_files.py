"""The files of the checks: of a design, of any implant, and of an ensemble with its recommended candidate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import SimpleITK as sitk
from fuzzing import fuzz

from pcdiff import __version__
from pcdiff.checks import Check, Figure, Report
from pcdiff.checks.recommend import recommend, surface_std
from pcdiff.data.craniotomy import simulate_craniotomy
from pcdiff.errors import InputError
from pcdiff.geometry.grid import bounding_box
from pcdiff.geometry.mesh import Mesh, read_stl, write_stl
from pcdiff.geometry.mesh_files import MESH_KINDS, write_mesh
from pcdiff.geometry.mesh_reading import read_mesh
from pcdiff.geometry.surface import volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume, write_map, write_volume
from pcdiff.methods.base import Proposal
from pcdiff.methods.candidates import OrientedPoints
from pcdiff.pipeline.case import write_case
from pcdiff.pipeline.fitting import FitOptions
from pcdiff.pipeline.settings import Settings
from pcdiff.prior.fit import PriorFit, fit
from pcdiff.prior.model import ShapePrior

NAMES = [
    "complete",
    "no_false_positive_area",
    "implantable",
    "restores_shape",
    "smooth_transition",
    "thickness",
    "clearance",
    "printable",
]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def files(tmp_path: Path, case: tuple[Volume, Volume], fitted: PriorFit, monkeypatch: pytest.MonkeyPatch) -> Path:
    """skull.nrrd, implant.nrrd, implant.stl; the shape model is fitted once for all tests."""
    # the flow first: patching it imports it, and it must import the original function
    monkeypatch.setattr("pcdiff.pipeline.flow.fit_prior", lambda prior, skull, *_, **__: fitted)
    monkeypatch.setattr("pcdiff.prior.fit.fit", lambda prior, skull, *_, **__: fitted)
    for name, volume in zip(("skull", "implant"), case, strict=True):
        write_volume(volume, tmp_path / f"{name}.nrrd")
    write_stl(volume_to_mesh(case[1], case[0]), tmp_path / "implant.stl")
    return tmp_path


def check_schema(checks: dict) -> None:
    assert checks["pcdiff"] == __version__
    assert "Not a medical device" in checks["notice"]
    assert [check["name"] for check in checks["checks"]] == NAMES
    assert checks["passed"] is all(check["passed"] is not False for check in checks["checks"])
    assert np.linalg.norm(checks["insertion_vectors"], axis=1) == pytest.approx(1, abs=1e-3)
    assert all(way.startswith("from ") for way in checks["insertion"])
    for check in checks["checks"]:
        assert check["words"].endswith(".")
        assert check["title"]
        for figure in check["figures"]:
            assert figure.keys() == {"key", "name", "value", "unit", "limit", "rule", "passed"}
            assert isinstance(figure["value"], float | int)
            assert (figure["rule"] is None) == (figure["limit"] is None) == (figure["passed"] is None)


def test_a_true_implant_passes_as_volume_and_as_stl(run: Run, files: Path) -> None:
    printed = {}
    for name in ("implant.nrrd", "implant.stl"):
        command = ("check", files / name, "--skull", files / "skull.nrrd", "-o", files / "out")
        code, printed[name], _ = run(*command, "--overwrite")
        assert code == 0
        assert printed[name].count("pass  ") == 8
        assert "Not a medical device" in printed[name]
        checks = json.loads((files / "out" / "checks.json").read_text())
        check_schema(checks)
    with np.load(files / "out" / "surface.npz", allow_pickle=False) as arrays:
        assert arrays.keys() == {"thickness_mm", "gap_mm", "uncertainty"}
        for values in arrays.values():
            assert values.shape == (len(read_stl(files / "implant.stl").vertices),)
            assert values.dtype == np.float32
    code, _, error = run(*command)  # without --overwrite: they may be of another implant
    assert code == 2
    assert "checks.json: expected a new file, found one that may be of another patient" in error
    code, _, error = run(*command[:-1], files / "skull.nrrd")
    assert code == 2
    assert "skull.nrrd: expected a folder to write to, got a file in its path" in error


def test_the_skull_may_be_a_ct(run: Run, files: Path) -> None:
    image = sitk.ReadImage(str(files / "skull.nrrd"))
    sitk.WriteImage(sitk.Cast(image, sitk.sitkInt16) * 2000 - 1000, str(files / "ct.nrrd"))
    assert run("check", files / "implant.stl", "--skull", files / "ct.nrrd", "-q")[0] == 0


def test_the_skull_may_be_a_label(run: Run, files: Path, case: tuple[Volume, Volume]) -> None:
    write_map(case[0].mask * 2.0 + case[1].mask, case[0], files / "labels.nrrd")
    given = ("check", files / "implant.nrrd", "--skull", files / "labels.nrrd", "-q")
    assert run(*given, "--label", "2")[0] == 0
    code, _, error = run(*given)
    assert code == 2
    assert "choose the bone with --label" in error


def test_an_implant_for_one_of_two_defects_is_held_against_that_one(
    run: Run, tmp_path: Path, prior: ShapePrior, healthy: Volume
) -> None:
    skull, implant = simulate_craniotomy(healthy, "random_1", np.random.default_rng(5), defects=2)
    second = fit(prior, skull).defect_at(implant.to_mm(np.argwhere(implant.mask))) == 2
    mask = np.zeros_like(implant.mask)
    mask[tuple(np.argwhere(implant.mask)[second].T)] = True
    write_volume(skull, tmp_path / "skull.nrrd")
    write_volume(implant.with_mask(mask), tmp_path / "implant.nrrd")
    given = ("check", tmp_path / "implant.nrrd", "--skull", tmp_path / "skull.nrrd")
    assert "pass  Covers the whole defect" in run(*given, "--defect", 2)[1]
    assert "FAIL  Covers the whole defect" in run(*given)[1]
    assert "FAIL  Covers the whole defect" in run(*given, "--defect", 1)[1]


def test_a_bad_implant_gives_exit_code_1_and_the_reason(run: Run, files: Path, case: tuple[Volume, Volume]) -> None:
    implant = case[1]
    half = implant.mask.copy()
    middle = int(np.argwhere(half)[:, 0].mean())
    half[:middle] = False
    write_volume(implant.with_mask(half), files / "half.nrrd")
    code, printed, _ = run("check", files / "half.nrrd", "--skull", files / "skull.nrrd")
    assert code == 1
    assert "FAIL  Covers the whole defect" in printed
    mesh = read_stl(files / "implant.stl")
    write_stl(Mesh(mesh.vertices, mesh.faces[1:]), files / "open.stl")
    code, printed, _ = run("check", files / "open.stl", "--skull", files / "skull.nrrd")
    assert code == 1
    assert "open edges" in printed
    assert "Covers" not in printed
    (files / "ours.yaml").write_text("min_thickness_mm: 20")
    criteria = ("--criteria", files / "ours.yaml")
    code, printed, _ = run("check", files / "implant.nrrd", "--skull", files / "skull.nrrd", *criteria)
    assert code == 1
    assert printed.count("FAIL  ") == 1
    assert "FAIL  Thickness" in printed


def test_files_that_do_not_match_give_exit_code_2(run: Run, files: Path, case: tuple[Volume, Volume]) -> None:
    implant = case[1]
    moved = implant.affine.copy()
    moved[:3, 3] += 0.5 * implant.spacing
    write_volume(Volume(implant.mask, moved), files / "other.nrrd")
    code, _, printed = run("check", files / "other.nrrd", "--skull", files / "skull.nrrd")
    assert code == 2
    assert "expected a mask on the skull's own grid" in printed
    mesh = volume_to_mesh(implant)
    write_stl(Mesh(mesh.vertices + 900, mesh.faces), files / "far.stl")
    code, _, printed = run("check", files / "far.stl", "--skull", files / "skull.nrrd")
    assert code == 2
    assert "lies outside" in printed


@pytest.mark.parametrize("kind", MESH_KINDS)
@pytest.mark.parametrize("space", ["lps", "ras"])
def test_every_mesh_that_a_design_writes_is_checked(
    run: Run, files: Path, case: tuple[Volume, Volume], kind: str, space: str
) -> None:
    write_mesh(volume_to_mesh(case[1], case[0]), files / f"other.{kind}", space)
    mesh = read_mesh(files / f"other.{kind}")
    assert mesh.is_watertight
    assert mesh.volume_ml == pytest.approx(case[1].ml, rel=0.03)
    np.testing.assert_allclose(mesh.vertices.max(0), read_stl(files / "implant.stl").vertices.max(0), atol=1e-3)
    if space == "lps":
        assert run("check", files / f"other.{kind}", "--skull", files / "skull.nrrd", "-q")[0] == 0


def test_a_mesh_in_ras_is_named_as_such(run: Run, files: Path) -> None:
    mesh = read_stl(files / "implant.stl")
    write_mesh(Mesh(mesh.vertices * (-1, -1, 1), mesh.faces), files / "flipped.ply")
    command = ("check", files / "flipped.ply", "--skull", files / "skull.nrrd", "-q")
    code, _, printed = run(*command)
    assert code == 2
    assert "with x and y negated it fits" in printed
    assert "--mesh-space ras" in printed
    assert run(*command, "--mesh-space", "ras")[0] == 0
    code, _, printed = run(*command, "--mesh-space", "las")
    assert code == 2
    assert "expected lps or ras" in printed


def test_a_mesh_that_fits_neither_way_is_not_called_ras(run: Run, files: Path) -> None:
    mesh = read_stl(files / "implant.stl")
    write_stl(Mesh(mesh.vertices + np.array([0, 0, 900]), mesh.faces), files / "far.stl")
    code, _, printed = run("check", files / "far.stl", "--skull", files / "skull.nrrd")
    assert code == 2
    assert "lies outside" in printed
    assert "negated" not in printed


def test_a_mask_on_a_part_of_the_grid_is_accepted(run: Run, files: Path, case: tuple[Volume, Volume]) -> None:
    skull, implant = case
    low, high = bounding_box(implant.mask)
    part = implant.crop(low - 2, high + 1)
    write_volume(part, files / "part.nrrd")
    assert run("check", files / "part.nrrd", "--skull", files / "skull.nrrd", "-q")[0] == 0
    np.testing.assert_array_equal(part.on_grid_of(skull).mask, implant.mask)
    turned = part.affine @ np.array([[0, 0, 1, 0], [-1, 0, 0, part.mask.shape[1] - 1], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    swapped = Volume(np.transpose(part.mask[:, ::-1], (1, 2, 0)), turned)
    np.testing.assert_array_equal(swapped.on_grid_of(skull).mask, implant.mask)
    finer = Volume(implant.mask, implant.affine @ np.diag([0.5, 1, 1, 1]))
    assert finer.on_grid_of(skull) is None
    with pytest.raises(InputError, match="reaches beyond"):
        implant.on_grid_of(skull.crop(low + 1, high))


def test_bytes_after_an_stl_are_left_out(files: Path) -> None:
    path, mesh = files / "implant.stl", read_stl(files / "implant.stl")
    whole = path.read_bytes()
    for more in (b"\0" * 512, b"<?xml version='1.0'?>", b"\n"):
        path.write_bytes(whole + more)
        assert np.array_equal(read_stl(path).vertices, mesh.vertices)
    path.write_bytes(b"solid " + whole[6:] + b"\0")  # a binary file that begins as a text
    assert np.array_equal(read_stl(path).vertices, mesh.vertices)
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="truncated"):
        read_stl(path)


@pytest.mark.parametrize("kind", MESH_KINDS)
def test_mutated_meshes_are_read_or_refused(files: Path, kind: str) -> None:
    corners = np.array([[0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9.0]])
    mesh = Mesh(corners, np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]))
    path = files / f"small.{kind}"
    write_mesh(mesh, path)
    assert read_mesh(path).volume_ml == pytest.approx(mesh.volume_ml)
    assert fuzz(path, read_mesh, 150) > 30


def test_a_3mf_says_its_unit_and_place(files: Path) -> None:
    path = files / "tetra.3mf"
    write_mesh(read_stl(files / "implant.stl"), path)
    with ZipFile(path) as archive:
        text = archive.read("3D/3dmodel.model").decode()
    for old, new in (
        ('unit="millimeter"', 'unit="inch"'),
        ('<item objectid="1"/>', '<item objectid="1" transform="1 0 0 0 1 0 0 0 1 10 0 0"/>'),
    ):
        text = text.replace(old, new)
    with ZipFile(path, "w") as archive:
        archive.writestr("3D/3dmodel.model", text)
    expected = 25.4 * (read_stl(files / "implant.stl").vertices.max(0) + np.array([10, 0, 0]))
    np.testing.assert_allclose(read_mesh(path).vertices.max(0), expected, atol=1e-2)
    many = text.replace("</build>", '<item objectid="1"/>' * 20_000 + "</build>")
    for content, message in (
        ('<!DOCTYPE a [<!ENTITY b "c">]>' + text.partition("?>")[2], "document type"),
        (" " * (2**27 + 1), "more than 134 MB"),
        (many, "more than 10,000,000 vertices"),
        ("<a/>" * 2**20, "3MF file with a mesh"),
    ):
        with ZipFile(path, "w", ZIP_DEFLATED) as archive:
            archive.writestr("3D/3dmodel.model", content)
        with pytest.raises(InputError, match=message):
            read_mesh(path)


def member(fitted: PriorFit) -> Callable[..., Proposal]:
    def method(skull: Volume, *, ensemble: int = 1, seed: int = 0, device: str = "cpu") -> Proposal:
        shifts = [0.0, 2.5, -0.1, 0.1][:ensemble]
        return Proposal([OrientedPoints(fitted.completed_surface(fitted.outer + shift)) for shift in shifts])

    return method


def test_each_candidate_is_checked_and_one_recommended(
    fitted: PriorFit, case: tuple[Volume, Volume], files: Path
) -> None:
    folder = files / "case"
    folder.mkdir()
    record = write_case(folder, files / "skull.nrrd", member(fitted), Settings("prior", ensemble=4, report=False))
    for path in [folder / "checks.json", *(folder / "candidates" / f"checks_{k}.json" for k in (1, 2, 3, 4))]:
        check_schema(json.loads(path.read_text()))
    assert len(record["candidates"]) == 4
    assert "smooth_transition" in record["candidates"][1]["failed"]  # lifted by 2.5 mm
    assert record["recommended"] != 2
    assert " 0.00 mm" not in record["recommended_because"]
    with np.load(folder / "surface.npz", allow_pickle=False) as arrays:
        uncertainty = arrays["uncertainty"]
    mesh = read_stl(folder / "implant.stl")
    skull = read_volume(files / "skull.nrrd")
    members = [volume_to_mesh(read_volume(folder / "candidates" / f"implant_{k}.nrrd"), skull) for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(uncertainty, surface_std(mesh.vertices, members), atol=1e-5)
    assert np.percentile(uncertainty, 95) == pytest.approx(np.std([0, 2.5, -0.1, 0.1], ddof=1), rel=0.3)


def test_fit_options_change_the_implant_as_asked(fitted: PriorFit, files: Path) -> None:
    made = {}
    for name, fitting in (("plain", FitOptions()), ("fit", FitOptions(clearance=1.0, make_insertable=True))):
        (files / name).mkdir()
        settings = Settings("prior", fitting=fitting, report=False)
        made[name] = write_case(files / name, files / "skull.nrrd", member(fitted), settings)
    assert made["fit"]["settings"]["fitting"]["clearance"] == 1.0
    assert made["fit"]["implant_ml"] < made["plain"]["implant_ml"]
    checks = json.loads((files / "fit" / "checks.json").read_text())["checks"]
    (gap,) = (f for c in checks for f in c["figures"] if f["key"] == "gap_min")
    assert gap["value"] >= 1.0
    assert gap["limit"] == 1.0
    assert gap["passed"]


def report(step: float, limit: float = 1.0) -> Report:
    check = Check(
        "smooth_transition", "Smooth", "Words.", (Figure("step_mean", "Step, mean", step, "mm", maximum=limit),)
    )
    return Report((check,), None, np.zeros(0), np.zeros(0))


def test_the_mean_is_recommended_unless_a_candidate_is_clearly_better() -> None:
    assert recommend([report(0.5), report(0.45), report(0.48)]).candidate == 0
    assert recommend([report(0.5), report(0.45), report(0.2)]).candidate == 2
    assert recommend([report(1.05), None, report(0.99)]).candidate == 2  # one check fewer fails
    assert recommend([report(0.5), report(0.2, 0.1)]).candidate == 0  # nearer, but it fails a check
    assert recommend([report(0.5)]).why == "there is one candidate"
