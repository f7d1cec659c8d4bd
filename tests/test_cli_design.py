"""`pcdiff design` and `info`, in process: files, exit codes and messages; a fitted shape model is the method."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from stub_method import Run, Stub, files

from pcdiff import __version__
from pcdiff.cli import app as cli
from pcdiff.errors import InputError, OutputError
from pcdiff.geometry.mesh import read_stl, write_stl
from pcdiff.geometry.surface import volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume, write_map, write_volume
from pcdiff.methods.registry import weights_files
from pcdiff.pipeline.case_folder import case_folder
from pcdiff.pipeline.record import case_skull, read_record
from pcdiff.pipeline.stages import STAGES
from pcdiff.pipeline.write import compare_stl


def test_what_a_case_folder_holds(
    run: Run, stub: Stub, skull: Path, case: tuple[Volume, Volume], tmp_path: Path
) -> None:
    code, printed, _ = run("design", skull, "-o", tmp_path / "out", "--seed", 3)
    assert code == 0
    assert "head: 1 defect" in printed
    folder = tmp_path / "out" / "head"
    written = {"implant.nrrd", "implant.stl", "checks.json", "surface.npz", "report.html", "preview.png", "run.json"}
    written |= {"defective_skull.nrrd"}
    assert files(folder).keys() == written
    implant, defective = read_volume(folder / "implant.nrrd"), read_volume(skull)
    assert sitk.ReadImage(str(folder / "implant.nrrd")).GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(implant.affine, defective.affine)
    assert implant.mask.shape == defective.mask.shape
    assert not (implant.mask & defective.mask).any()
    mesh = read_stl(folder / "implant.stl")
    assert (folder / "implant.stl").read_bytes()[:80].find(b"SPACE=LPS") > 0
    assert mesh.is_watertight
    assert mesh.volume_ml == pytest.approx(implant.ml, rel=0.03)
    record = json.loads((folder / "run.json").read_text())
    assert record["pcdiff"] == __version__
    assert "Not a medical device" in record["notice"]
    assert record["settings"]["seed"] == 3
    assert record["settings"]["method"] == "unet"
    assert record["weights"].keys() == {path.name for path in weights_files("unet")}
    assert record["input"]["path"] == skull.name
    for name in ("run.json", "report.html", "checks.json"):  # whoever gets the folder learns nothing of the others
        assert str(tmp_path).encode() not in (folder / name).read_bytes()
    assert np.array_equal(read_volume(folder / "defective_skull.nrrd").mask, defective.mask)
    assert len(record["input"]["sha256"]) == 64
    assert record["defects"] == 1
    (piece,) = record["pieces"]
    assert piece["defect"] == 1
    assert piece["ml"] == pytest.approx(record["implant_ml"], rel=0.03)
    assert piece["length_mm"] > piece["width_mm"] > piece["height_mm"] > 3
    assert record["implant_ml"] == pytest.approx(implant.ml, abs=1e-3)
    assert record["stl"]["dsc"] >= 0.97
    assert record["seconds"]["total"] == pytest.approx(sum(record["seconds"].values()) / 2, abs=0.01)
    assert record["peak_memory_mb"] > 50
    assert record["files"].keys() == files(folder).keys() - {"run.json"}


def test_a_single_case_shows_its_stages_on_a_terminal(
    run: Run, stub: Stub, skull: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr("tqdm.tqdm.set_description", lambda bar, desc=None, refresh=True: shown.append(desc))
    assert run("design", skull, "-o", tmp_path / "out")[0] == 0
    titles = [stage.title for stage in STAGES.values()]
    assert [title for title in shown if title in titles] == titles
    _, _, errors = run("design", skull, "-o", tmp_path / "out", "--overwrite", "--no-report")
    assert "left" not in errors  # plain where stderr is no terminal


def test_a_label_is_designed_and_its_mask_kept(
    run: Run, stub: Stub, case: tuple[Volume, Volume], tmp_path: Path
) -> None:
    labels = case[0].mask * 2.0
    labels[:3] = 1  # another label, at the edge of the scan
    write_map(labels, case[0], tmp_path / "head ct.nrrd")
    scan, out = tmp_path / "head ct.nrrd", tmp_path / "out"
    code, _, error = run("design", scan, "-o", out, "-q")
    assert code == 2
    assert "got 2 labels; choose the bone with --label N or --label NAME: 1 (" in error
    assert not (out / "head ct").exists()
    code, _, error = run("design", scan, "-o", out, "--label", 2, "--no-report")
    assert code == 0
    assert "warning: label 2 (" in error
    record = read_record(out / "head ct")
    assert record
    assert record["settings"]["label"] == "2"
    np.testing.assert_array_equal(case_skull(out / "head ct").mask, labels == 2)


def test_info_lists_the_defects_and_draws_them(
    run: Run, skull: Path, healthy: Volume, case: tuple[Volume, Volume], tmp_path: Path
) -> None:
    code, printed, _ = run("info", skull, "--png", tmp_path / "defects.png")
    assert code == 0
    assert printed.startswith(f"mask, NIfTI: {case[0].mask.shape[0]} x ")
    assert re.search(r"^defect 1: .*(frontal|parietal|temporal|occipital).*, \d+ x \d+ mm, \d+ cm2$", printed, re.M)
    picture = np.asarray(Image.open(tmp_path / "defects.png"))
    assert run("info", skull, "--png", tmp_path / "defects.png")[0] == 2, "found one that may be of another patient"
    assert run("info", "--png", tmp_path / "nothing.png")[0] == 2, "no scan to draw"
    assert (picture != 255).any(-1).mean() > 0.1
    write_volume(healthy, tmp_path / "whole.nrrd")
    code, printed, error = run("info", tmp_path / "whole.nrrd", "--png", tmp_path / "none.png")
    assert code == 2
    assert printed.startswith("mask, NRRD")
    assert "no defect found" in error
    assert not (tmp_path / "none.png").exists()


def test_an_ensemble_keeps_its_members_and_their_uncertainty(run: Run, stub: Stub, skull: Path, tmp_path: Path) -> None:
    assert run("design", skull, "-o", tmp_path / "out", "--ensemble", 3, "--no-report", "-q") == (0, "", "")
    folder = tmp_path / "out" / "head"
    assert json.loads((folder / "run.json").read_text())["settings"]["method"] == "diffusion"
    members = [read_volume(folder / "candidates" / f"implant_{k}.nrrd").mask for k in (1, 2, 3)]
    for k in (1, 2, 3):
        assert read_stl(folder / "candidates" / f"implant_{k}.stl").is_watertight
    spread = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "uncertainty.nrrd"))).T
    assert spread.dtype == np.float32
    np.testing.assert_allclose(spread, np.std(np.stack(members).astype(float), axis=0), atol=1e-6)
    assert spread.max() == pytest.approx(np.sqrt(2) / 3)  # one of three against two
    assert run("design", skull, "-o", tmp_path / "out", "--no-report", "-q")[0] == 0
    expected = {"implant.nrrd", "implant.stl", "checks.json", "surface.npz", "run.json", "defective_skull.nrrd"}
    assert files(folder).keys() == expected  # of the earlier run nothing is left


def test_a_method_of_one_answer_says_so(
    run: Run, stub: Stub, skull: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pcdiff.methods.registry.load_method", lambda name, weights=None: lambda *_, **__: stub(skull))
    code, printed, error = run("design", skull, "-o", tmp_path, "--method", "unet", "--ensemble", 5, "--no-report")
    assert code == 0
    assert "recommended" not in printed
    said = "5 candidates asked for: unet gives one answer; leave out --ensemble, or choose --method diffusion"
    assert error.count(said) == 1
    record = json.loads((tmp_path / "head" / "run.json").read_text())
    assert record["input_check"]["warnings"][-1] == said  # the report prints these
    assert not (tmp_path / "head" / "candidates").exists()


def test_same_seed_same_bytes(run: Run, stub: Stub, skull: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run("design", skull, "-o", tmp_path / name, "--seed", seed, "--no-report", "-q")[0] == 0
    a, b, c = (files(tmp_path / name / "head") for name in "abc")
    for name in ("implant.nrrd", "implant.stl"):
        assert a[name] == b[name] != c[name]


def test_a_result_is_skipped_until_something_changes(run: Run, stub: Stub, skull: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("design", skull, "--no-report", "-o", out)
    run(*command)
    code, _, printed = run(*command)
    assert code == 0
    assert len(stub.calls) == 1
    assert "already designed" in printed
    run(*command, "--overwrite")
    run(*command, "--seed", 1)
    assert len(stub.calls) == 3
    (out / "head" / "implant.stl").write_bytes(b"damaged")
    run(*command, "--seed", 1)
    assert len(stub.calls) == 4
    whole = read_volume(skull)
    changed = whole.mask.copy()
    changed[tuple(np.argwhere(changed)[0])] = False
    write_volume(whole.with_mask(changed), skull)
    code, _, printed = run(*command, "--seed", 1)  # another input now, so the earlier result stays
    assert code == 0
    assert len(stub.calls) == 5
    assert f"{out / 'head'} holds the result of another input; this one goes to {out / 'in_head'}" in printed


def test_a_case_that_fails_is_one_line_and_the_others_go_on(run: Run, stub: Stub, skull: Path, tmp_path: Path) -> None:
    bad, twin = tmp_path / "in" / "bad.nrrd", tmp_path / "in" / "head.nii"
    bad.write_bytes(b"no image")
    twin.write_bytes(skull.read_bytes())
    out = tmp_path / "out"
    code, printed, errors = run("design", bad, tmp_path / "none.nrrd", skull, twin, tmp_path / "a.jpg", "-q", "-o", out)
    assert code == 2
    assert printed == ""
    lines = errors.splitlines()
    assert all(line.startswith("pcdiff: ") for line in lines)
    assert len(lines) == 5
    for part in ("not an NRRD file", "found none", "also goes to", "another format", "4 of 5 cases failed"):
        assert sum(part in line for line in lines) == 1, part
    assert [path.name for path in out.iterdir()] == ["head"]  # nor is anything half done left behind


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("no defect found: expected one"), 2, "pcdiff: head.nii.gz: no defect found: expected one"),
        (
            OSError(28, "No space left on device", "x"),
            3,
            "pcdiff: head.nii.gz: x: No space left on device; free space, or write elsewhere",
        ),
        (OSError(36, "File name too long", "x"), 2, "pcdiff: head.nii.gz: x: File name too long"),
        (MemoryError(), 1, "pcdiff: head.nii.gz: out of memory"),
        (KeyError("why"), 1, "pcdiff: head.nii.gz: unexpected KeyError: 'why'; run again with PCDIFF_DEBUG=1"),
    ],
)
def test_errors_are_one_line_and_a_code(
    run: Run,
    stub: Stub,
    skull: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: int,
    line: str,
) -> None:
    stub.error = error
    got, _, printed = run("design", skull, "-o", tmp_path / "out", "-q")
    assert got == code
    assert printed.startswith(line)
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("PCDIFF_DEBUG", "1")
    with pytest.raises(type(error)):
        cli.main(["design", str(skull), "-o", str(tmp_path / "out")])


@pytest.mark.parametrize("quiet", [(), ("-q",)])
def test_strict_exits_1_where_a_check_fails_after_writing(
    run: Run, stub: Stub, skull: Path, tmp_path: Path, quiet: tuple[str, ...]
) -> None:
    severe = tmp_path / "severe.yaml"
    severe.write_text("min_thickness_mm: 99\n")
    out = tmp_path / "out"
    command = ("design", skull, "-o", out, "--criteria", severe, *quiet)
    assert run(*command)[0] == 0
    code, _, said = run(*command, "--strict")  # the result exists
    assert code == 1
    assert "checks that failed: " in said
    assert "Thickness" in said
    code, _, said = run(*command, "--strict", "--overwrite")
    assert code == 1
    assert "Thickness" in said
    assert {"implant.stl", "checks.json", "report.html", "run.json"} <= files(out / "head").keys()


def fail_half_way(folder: Path) -> None:
    with case_folder(folder, overwrite=True) as part:
        (part / "implant.nrrd").write_text("half")
        raise KeyError


def test_foreign_files_are_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "implant.nrrd").write_text("precious")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="found other files"), case_folder(folder):
        pass
    with pytest.raises(KeyError):
        fail_half_way(folder)
    assert (folder / "implant.nrrd").read_text() == "precious"
    with case_folder(folder, overwrite=True) as part:
        (part / "implant.nrrd").write_text("new")
    assert (folder / "implant.nrrd").read_text() == "new"
    assert (folder / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["scans"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another"), case_folder(tmp_path / "file" / "case"):
        pass


def test_a_record_cannot_remove_files_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("stays")
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "run.json").write_text('{"files": {"../outside": ""}}')
    with case_folder(tmp_path / "case") as part:
        (part / "run.json").write_text('{"files": {}}')
    assert (tmp_path / "outside").read_text() == "stays"
    assert read_record(tmp_path / "case") == {"files": {}}


def test_an_stl_that_differs_from_its_volume_is_refused(case: tuple[Volume, Volume], tmp_path: Path) -> None:
    implant, path = case[1], tmp_path / "implant.stl"
    mesh = volume_to_mesh(implant)
    write_stl(mesh, path)
    assert compare_stl(read_stl(path), implant)["dsc"] >= 0.97
    with pytest.raises(OutputError, match=r"got 0\.\d+"):
        compare_stl(read_stl(path), implant.with_mask(np.roll(implant.mask, 1, axis=0)))
    for faces in (mesh.faces[1:], mesh.faces[:, ::-1]):
        write_stl(type(mesh)(mesh.vertices, faces), path)
        with pytest.raises(OutputError, match="closed surface with outward normals"):
            compare_stl(read_stl(path), implant)


def test_a_design_that_is_ended_leaves_nothing_behind(skull: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pcdiff", "design", str(skull), "-o", str(out), "--method", "prior", "-q"]
    child = subprocess.Popen(command)
    while child.poll() is None and not list(out.glob(".head.*")):
        time.sleep(0.02)
    child.terminate()
    assert child.wait(30) == 143
    assert not out.exists()
