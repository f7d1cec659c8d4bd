"""The command line, in process: files, exit codes and messages; a fitted shape model takes the place of a method."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import SimpleITK as sitk
import typer
from phantom import coarse, head_ct, write_dicom
from PIL import Image

import pcdiff
from pcdiff import __version__
from pcdiff.cli import app as cli
from pcdiff.cli.train import recipe_file
from pcdiff.data.craniotomy import KINDS
from pcdiff.errors import InputError, OutputError
from pcdiff.files import sha256, shipped_file
from pcdiff.geometry.mesh import read_stl, write_stl
from pcdiff.geometry.surface import volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume, write_map, write_volume
from pcdiff.methods.base import Proposal
from pcdiff.methods.candidates import OrientedPoints
from pcdiff.methods.registry import METHODS, MethodEntry, weights_files
from pcdiff.pipeline.case_folder import case_folder
from pcdiff.pipeline.record import case_skull, pieces_ml, read_record
from pcdiff.pipeline.stages import STAGES
from pcdiff.pipeline.write import compare_stl
from pcdiff.prior.fit import PriorFit
from pcdiff.reconstruct import BACKENDS
from pcdiff.report.colours import BONE, IMPLANT
from pcdiff.report.render import render
from pcdiff.report.surfaces import shape_of

Run = Callable[..., tuple[int, str, str]]


@dataclass
class Stub:
    """A method without a network: the fitted completed surface, its members apart by some tenths of a millimetre."""

    fitted: PriorFit
    calls: list[int] = field(default_factory=list)
    error: Exception | None = None

    def __call__(self, skull: Volume, *, ensemble: int = 1, seed: int = 0, device: str = "cpu") -> Proposal:
        self.calls.append(seed)
        if self.error:
            raise self.error
        shifts = np.random.default_rng(seed).normal(0, 1.0, ensemble)
        return Proposal([OrientedPoints(self.fitted.completed_surface(self.fitted.outer + shift)) for shift in shifts])


@pytest.fixture
def stub(fitted: PriorFit, monkeypatch: pytest.MonkeyPatch) -> Stub:
    method = Stub(fitted)
    monkeypatch.setattr("pcdiff.methods.registry.load_method", lambda name, weights=None: method)
    monkeypatch.setattr("pcdiff.pipeline.flow.fit_prior", lambda prior, skull, *_, **__: fitted)
    return method


@pytest.fixture
def skull(tmp_path: Path, case: tuple[Volume, Volume]) -> Path:
    path = tmp_path / "in" / "head.nii.gz"
    path.parent.mkdir()
    write_volume(case[0], path)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("design", "a.nrrd", "--method", "guess", "-o", "out"), "unknown method 'guess'"),
        (("design", "a.nrrd", "--weights", "none.safetensors", "-o", "out"), "found none"),
        (("design", "a.nrrd", "--device", "abacus", "-o", "out"), "device 'abacus': expected cpu, cuda"),
        (("demo", "--method", "guess", "-o", "out"), "unknown method 'guess'"),
        (("evaluate", "--data", "none"), "none: expected a data set in a layout"),
        (("evaluate", "--data", "none", "--suite", "odd"), "unknown variant 'odd'"),
        (("evaluate", "--data", "none", "--weights", "a"), "--weights belong to one method"),
        (("evaluate", "--data", "none", "--method", "prior,guess"), "unknown method 'guess'"),
        (("train", "none.yaml"), "expected a YAML recipe"),
        (("train", "none.yaml", "--set", "steps"), "expected KEY=VALUE, got 'steps'"),
        (("simulate", "none.nrrd", "-o", "out"), "none.nrrd: expected an image file, found none"),
        (("prepare", "none", "-o", "cache"), "none: expected a data set in a layout"),
        (("check", "none.stl", "--skull", "none.nrrd"), "none.nrrd: expected an image file, found none"),
        (
            ("check", "none.stl", "--skull", "none.nrrd", "--criteria", "none.yaml"),
            "expected a YAML file with lines such as",
        ),
        (("design", "a.nrrd", "-o", "out", "--clearance", "60"), "--clearance: expected 0 to 5 mm"),
        (("design", "a.nrrd", "-o", "out", "--thickness", "thin"), "--thickness: expected bone"),
        (("design", "a.nrrd", "-o", "out", "--drain-holes", "2"), "--drain-holes: expected DIAMETER@SPACING"),
        (("view", "none"), "none: expected a case folder"),
        (("view", "/"), "/: expected a case folder"),
        (("report", "/proc"), "/proc: expected a case folder"),
        (("design", "a.nrrd", "-o", "out", "--weights", "/"), "/: expected a file, got a folder"),
        (("design", "a.nrrd", "-o", "out", "--criteria", "/"), "/: expected a YAML file with lines such as"),
        (("train", "/"), "/: expected a YAML recipe"),
        (("import-checkpoint", "/", "-o", "w.safetensors"), "/: expected a checkpoint"),
        (("prepare", "/proc", "-o", "cache"), "/proc: expected a data set in a layout"),
    ],
)
def test_an_input_error_is_code_2_and_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, printed = run(*arguments)
    assert code == 2
    assert line in printed.splitlines()[-1]
    assert "Traceback" not in printed
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("comapre",), "no such command 'comapre'. Did you mean 'compare', 'score'? See pcdiff --help"),
        (("export", "hubb"), "no such command 'hubb'. Did you mean 'hub'? See pcdiff export --help"),
        (
            ("design", "--ensembel", "3"),
            "no such option: --ensembel (Possible options: --ensemble, --seed). See pcdiff",
        ),
        (("design", "a.nrrd"), "missing option '-o' / '--out'. See pcdiff design --help"),
        (("design", "a.nrrd", "-o", "out", "--ensemble", "0"), "invalid value for '--ensemble': "),
        (("design", "a.nrrd", "-o", "out", "--device"), "option '--device' requires an argument. See pcdiff --help"),
        (("info", "a.nrrd", "b.nrrd"), "got unexpected extra argument(s) (b.nrrd). See pcdiff info --help"),
    ],
)
def test_a_wrong_command_line_is_code_2_and_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], line: str
) -> None:
    assert run(*arguments)[0] == 2
    monkeypatch.setenv("PCDIFF_DEBUG", "1")  # which shows where our own code fails
    code, said, printed = run(*arguments)
    assert (code, said, printed.count("\n")) == (2, "", 1)
    assert printed.startswith(f"pcdiff: {line}")


def test_an_error_of_a_command_line_is_known_by_its_message_and_not_by_its_class(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions of typer raise those of click, which have the same methods and another base."""

    class OfClick(Exception):
        def format_message(self) -> str:
            return "Missing argument 'CASE'."

    def raise_it(**_: object) -> None:
        raise OfClick

    monkeypatch.setattr("pcdiff.cli.app.app", raise_it)
    assert run("view") == (2, "", "pcdiff: missing argument 'CASE'. See pcdiff --help\n")


def test_without_arguments_the_help_is_printed(run: Run) -> None:
    for arguments in ((), ("export",)):
        code, said, printed = run(*arguments)
        assert (code, printed) == (2, "")
        assert "Usage: pcdiff" in said


def test_a_new_process_prints_an_error_in_one_line(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pcdiff",
        "design",
        "none.nrrd",
        "--method",
        "prior",
        "-q",
        "-o",
        str(tmp_path / "o"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("pcdiff: none.nrrd: expected")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("program", "code"), [("print('no', file=sys.stderr); sys.exit(2)", 0), ("pass", 1)])
def test_an_evaluation_succeeds_if_all_negative_controls_are_refused(
    run: Run, case: tuple[Volume, Volume], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, code: int
) -> None:
    for part, volume in zip(("defective_skull", "implant"), case, strict=True):
        (tmp_path / "data" / part).mkdir(parents=True)
        write_volume(volume, tmp_path / "data" / part / "001.nrrd")
    monkeypatch.setattr("pcdiff.evaluation.measure.COMMAND", (sys.executable, "-S", "-c", f"import sys; {program}"))
    where = ("--data", tmp_path / "data", "-o", tmp_path / "out", "--suite", "no_defect,jaw")
    got, printed, _ = run("evaluate", *where, "--method", "prior,diffusion", "--ensemble", 3, "--workers", 2)
    assert got == code
    assert f"correctly refused: diffusion on jaw: {1 - code} of 1" in printed
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["suite"], results["ensemble"], results["workers"]) == ("no_defect,jaw", 3, 2)
    shipped = {
        name: sha256(Path(pcdiff.__file__).parent / "weights" / name) for name in results["weights"]["diffusion"]
    }
    assert results["weights"]["diffusion"] == shipped
    assert len(shipped) == 3
    assert results["weights"]["prior"] == {"prior.safetensors": shipped["prior.safetensors"]}


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


def test_pieces_are_counted_largest_first() -> None:
    mask = np.zeros((9, 9, 9), bool)
    mask[1:3, 1:3, 1:3] = mask[5:8, 5:8, 5:8] = True
    assert pieces_ml(Volume(mask, np.diag([10.0, 10.0, 5.0, 1.0]))) == [13.5, 4.0]


def test_a_simulation_is_not_written_into_the_folder_of_its_skull(run: Run, healthy: Volume, tmp_path: Path) -> None:
    skull = tmp_path / "head" / "skull.nrrd"
    skull.parent.mkdir()
    write_volume(healthy, skull)
    assert run("simulate", skull, "-o", tmp_path / "other")[0] == 0
    assert run("simulate", skull, "-o", tmp_path / "label", "--label", 1)[0] == 0
    for name in ("implant.nrrd", "defective_skull.nrrd"):
        assert (tmp_path / "label" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert "--label 5 names none" in run("simulate", skull, "-o", tmp_path / "none", "--label", 5)[2]
    (tmp_path / "other" / "run.json").rename(tmp_path / "head" / "run.json")  # an earlier result, as it seems
    before = files(tmp_path / "head")
    code, _, error = run("simulate", skull, "-o", tmp_path / "head", "--overwrite")
    assert code == 2
    assert "holds the input skull.nrrd" in error
    assert files(tmp_path / "head") == before


def test_the_simulated_implant_is_the_exact_complement(run: Run, healthy: Volume, tmp_path: Path) -> None:
    write_volume(healthy, tmp_path / "skull.nrrd")
    for name in ("a", "b"):
        code, printed, _ = run(
            "simulate", tmp_path / "skull.nrrd", "-o", tmp_path / name, "--kind", "random_1", "--seed", 4
        )
        assert code == 0
        assert "ml of bone removed" in printed
    assert files(tmp_path / "a")["implant.nrrd"] == files(tmp_path / "b")["implant.nrrd"]
    defective, implant = (read_volume(tmp_path / "a" / f"{name}.nrrd") for name in ("defective_skull", "implant"))
    assert implant.mask.any()
    assert not (defective.mask & implant.mask).any()
    np.testing.assert_array_equal(defective.mask | implant.mask, healthy.mask)


def test_a_craniotomy_is_simulated_on_a_ct(run: Run, healthy: Volume, tmp_path: Path) -> None:
    hu, whole = head_ct(coarse(healthy), noise=0, table=False)
    for series in (3, 4):
        write_dicom(tmp_path / "dicom", hu, whole.affine, series)
    image = sitk.GetImageFromArray(hu.T)
    image.SetSpacing(whole.spacing.tolist())
    image.SetOrigin(whole.affine[:3, 3].tolist())
    sitk.WriteImage(image, str(tmp_path / "ct.nii.gz"))
    assert run("simulate", tmp_path / "dicom", "-o", tmp_path / "a")[0] == 2
    for scan, options in (("dicom", ("--series", 1)), ("ct.nii.gz", ("--threshold", 301))):
        code, _, error = run("simulate", tmp_path / scan, "-o", tmp_path / "out" / scan, *options)
        assert code == 0
        assert "warning: slices of 3.2 mm" in error
    a, b = (read_volume(tmp_path / "out" / scan / "implant.nrrd") for scan in ("dicom", "ct.nii.gz"))
    np.testing.assert_array_equal(a.mask, b.mask)
    defective = read_volume(tmp_path / "out" / "dicom" / "defective_skull.nrrd")
    assert not (defective.mask & a.mask).any()
    assert np.count_nonzero((defective.mask | a.mask) != whole.mask) < 0.01 * whole.mask.sum()  # pieces at the base


@pytest.fixture(scope="module")
def demo(healthy: Volume, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the built-in case, at half the resolution, and what `pcdiff demo` printed."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr("pcdiff.prior.model.ShapePrior.draw", lambda self, rng: healthy)
        with pytest.raises(SystemExit) as stopped:
            cli.main(["demo", "-o", str(folder), "--method", "prior"])
    assert not stopped.value.code
    return folder, printed.getvalue()


def test_an_implant_is_checked_against_one_series_of_a_dicom_folder(
    run: Run, demo: tuple[Path, str], tmp_path: Path
) -> None:
    skull = read_volume(demo[0] / "defective_skull.nrrd")
    hu, head = head_ct(skull, noise=0, table=False)
    for series in (3, 4):
        write_dicom(tmp_path / "dicom", hu, head.affine, series)
    command = ("check", demo[0] / "implant.stl", "--skull", tmp_path / "dicom", "-o", tmp_path / "checked")
    code, _, error = run(*command)
    assert code == 2
    assert "choose one with --series N" in error
    assert not (tmp_path / "checked").exists()
    code, _, error = run(*command, "--series", 1, "--threshold", 100_000)
    assert code == 2
    assert "100000" in error
    code, printed, error = run(*command, "--series", 1)
    assert code in (0, 1), error  # a coarse CT of a mask need not fit; it has to be checked
    assert "pass  " in printed
    assert (tmp_path / "checked" / "checks.json").is_file()


@pytest.fixture
def demo_copy(demo: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(copytree(demo[0], tmp_path / "demo"))


def test_demo_needs_no_input_and_prints_scores(demo: tuple[Path, str]) -> None:
    folder, printed = demo
    assert "DSC" in printed
    assert "pcdiff design SKULL.nrrd" in printed
    assert "Not a medical device" in printed
    names = {"skull.nrrd", "defective_skull.nrrd", "implant_true.nrrd", "implant.nrrd", "implant.stl", "preview.png"}
    names |= {"checks.json", "surface.npz", "report.html"}
    assert files(folder).keys() == names | {"run.json"}
    record = read_record(folder)
    assert record is not None
    assert record["scores"]["dsc"] > 0.8
    assert record["input"]["path"] == "defective_skull.nrrd"


def test_view_writes_the_picture_of_the_report(run: Run, demo_copy: Path) -> None:
    picture = demo_copy.parent / "scene.png"
    assert run("view", demo_copy, "--png", picture)[0] == 0
    assert picture.read_bytes() == (demo_copy / "preview.png").read_bytes()
    for option in ("--png", "--html"):
        picture.write_bytes(b"of another")
        code, _, error = run("view", demo_copy, option, picture)
        assert (code, picture.read_bytes()) == (2, b"of another")
        assert error.strip().endswith("choose another name, or pass --overwrite to replace it")
    assert run("view", demo_copy, "--png", picture, "--overwrite")[0] == 0
    assert np.asarray(Image.open(picture)).shape[2] == 3


def test_view_writes_a_page_without_a_display(run: Run, demo_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    code, printed, hindrance = run("view", demo_copy)
    assert code == 0
    assert "no display" in hindrance
    assert printed.strip() == str(demo_copy / "view.html")
    record = read_record(demo_copy)  # an --overwrite of the case then removes the page too
    assert record
    assert record["files"]["view.html"] == sha256(demo_copy / "view.html")


def test_report_is_written_again(run: Run, demo_copy: Path) -> None:
    (demo_copy / "report.html").unlink()
    assert run("report", demo_copy)[:2] == (0, f"{demo_copy / 'report.html'}\n")
    assert files(demo_copy).keys() >= read_record(demo_copy)["files"].keys()


def test_an_implant_that_was_changed_is_not_reported_as_checked(run: Run, demo_copy: Path) -> None:
    implant = demo_copy / "implant.stl"
    implant.write_bytes(implant.read_bytes()[:-2] + b"\1\0")
    code, _, error = run("report", demo_copy)
    assert code == 2
    assert "expected the implant that was checked, got another implant.stl, changed since; `pcdiff design" in error


def test_a_report_that_cannot_be_printed_is_not_written_again(
    run: Run, demo_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pcdiff.report.pdf._browsers", lambda: iter(["chromium"]))
    before = {path: path.stat().st_mtime_ns for path in demo_copy.rglob("*")}
    for name, said in (("plan.txt", "ends in .pdf"), ("gone/plan.pdf", "create")):
        code, _, error = run("report", demo_copy, "--pdf", tmp_path / name)
        assert (code, error.count("\n")) == (2, 1)
        assert said in error
    monkeypatch.setattr("pcdiff.report.pdf._browsers", lambda: iter([]))
    assert run("report", demo_copy, "--pdf", tmp_path / "plan.pdf")[0] == 2
    assert {path: path.stat().st_mtime_ns for path in demo_copy.rglob("*")} == before


def test_a_printed_report_is_not_replaced_and_belongs_to_its_case(
    run: Run, demo_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pcdiff.report.pdf.find_browser", lambda page, path: "chromium")
    monkeypatch.setattr("pcdiff.report.pdf.print_pdf", lambda page, path: path.write_bytes(page.read_bytes()[:20]))
    for plan in (tmp_path / "plan.pdf", demo_copy / "plan.pdf"):
        assert run("report", demo_copy, "--pdf", plan)[:2] == (0, f"{demo_copy / 'report.html'}\n{plan}\n")
    assert read_record(demo_copy)["files"]["plan.pdf"] == sha256(demo_copy / "plan.pdf")
    code, _, error = run("report", demo_copy, "--pdf", tmp_path / "plan.pdf")
    assert code == 2
    assert "found one that may be of another patient" in error
    assert run("report", demo_copy, "--pdf", tmp_path / "plan.pdf", "--overwrite")[0] == 0


def test_the_help_of_train_names_the_shipped_recipes(run: Run) -> None:
    _, printed, _ = run("train", "--help")
    words = set(re.findall(r"\w+", printed))
    assert words >= {path.stem for path in shipped_file("configs").glob("*.yaml")}
    (named,) = re.findall(r"shipped recipe, such as (\w+)\.", " ".join(re.sub("[│ \n]+", " ", printed).split()))
    assert recipe_file(named).is_file()


def test_train_passes_the_recipe_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: diffusion\nrun: {data: a, cache: b, out: c}\n")
    train = type(sys)("pcdiff.training.surface.train")
    train.train = lambda config, progress: f"{config.optimiser.steps} {config.run.out} {progress}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pcdiff.training.surface.train", train)
    code, printed, _ = run("train", recipe, "--set", "optimiser.steps=7", "--set", "run.out=d", "-q")
    assert (code, printed) == (0, "7 d False\n")
    code, _, printed = run("train", recipe, "--set", "optimiser.stops=7")
    assert code == 2
    assert "optimiser.stops" in printed
    code, printed, _ = run("train", "diffusion", "--set", "optimiser.steps=8", "--set", "run.out=e", "-q")
    assert (code, printed) == (0, "8 e False\n")
    code, _, printed = run("train", "difusion")
    assert code == 2
    assert f"one of {', '.join(sorted(path.stem for path in shipped_file('configs').glob('*.yaml')))}, " in printed
    monkeypatch.setitem(sys.modules, "pcdiff.training.surface.train", None)
    assert run("train", recipe)[0] == 1


def test_help_names_every_choice(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, printed, _ = run("--help")
    assert code == 0
    assert "Not a medical device" in printed
    assert " sample " not in printed  # the earlier name of design still works, but is not listed
    for command in ("design", "info", "check", "demo", "simulate", "prepare", "train", "evaluate", "view", "report"):
        assert f" {command} " in printed
    assert run("sample", "--help")[1] == run("design", "--help")[1].replace("pcdiff design [", "pcdiff sample [")
    assert run("--version") == (0, f"pcdiff {__version__}\n", "")
    for command, choices in (("design", (*METHODS, *BACKENDS)), ("simulate", KINDS)):
        printed = run(command, "--help")[1]
        assert all(choice in printed for choice in choices)


def test_help_and_doctor_list_the_methods_of_other_packages(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    entry = MethodEntry("theirs", "from the package theirs", "pcdiff.methods.prior:load", licence="BSD-3-Clause")
    monkeypatch.setattr("pcdiff.methods.registry.installed_methods", lambda: {"theirs": entry})
    monkeypatch.setattr("pcdiff.cli.doctor.installed_methods", lambda: {"theirs": entry})
    monkeypatch.setattr("pcdiff.cli.doctor.requirements", lambda: {"": ["numpy"]})
    for command in ("design", "demo", "evaluate"):
        shown = " ".join(run(command, "--help")[1].replace("│", " ").split())
        assert "theirs (from the package theirs)" in shown
    listed = " ".join(run("doctor")[1].split())
    assert "ok method theirs from the package theirs; licence: BSD-3-Clause" in listed


def test_each_example_in_the_help_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for name, command in typer.main.get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        printed = [line.strip() for line in run(name, "--help")[1].splitlines()]
        examples = [line.strip() for line in (command.help or "").splitlines() if line.strip().startswith("pcdiff ")]
        assert all(example in printed for example in examples), name
        assert examples or "checkpoint" in name


def test_an_object_in_front_hides_an_object_behind() -> None:
    index = np.indices((50, 80, 50))
    front, back = (radius > np.linalg.norm(index.T - [24.5, y, 24.5], axis=-1).T for y, radius in ((15, 8), (55, 18)))
    small, large = Volume(front, np.eye(4)), Volume(back, np.eye(4))
    apart = render([shape_of(small, IMPLANT), shape_of(large, BONE)], "front")
    middle = tuple(np.array(apart.shape[:2]) // 2)
    assert apart[middle][2] > apart[middle][0] + 30  # blue
    behind = render([shape_of(small, IMPLANT), shape_of(large, BONE)], "back")
    assert behind[middle][0] > behind[middle][2] + 10
    together = render([shape_of(Volume(front | back, np.eye(4)), BONE)], "front")
    np.testing.assert_allclose(together, render([shape_of(small, BONE), shape_of(large, BONE)], "front"), atol=3)


def test_a_design_that_is_ended_leaves_nothing_behind(skull: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pcdiff", "design", str(skull), "-o", str(out), "--method", "prior", "-q"]
    child = subprocess.Popen(command)
    while child.poll() is None and not list(out.glob(".head.*")):
        time.sleep(0.02)
    child.terminate()
    assert child.wait(30) == 143
    assert not out.exists()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_a_command_uses_the_memory_again_that_it_has_freed() -> None:
    code = (
        "import resource, numpy as np; from pcdiff.cli.app import _options; _options();"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt; before = faults();"
        "[[np.ones(2**20) for _ in range(8)].clear() for _ in range(20)];"
        "print((faults() - before) * resource.getpagesize())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2 * 8 * 2**23  # twice the 64 MB that are in use at once


def test_a_command_looks_for_garbage_rarely_and_not_at_its_end() -> None:
    code = (
        "import atexit, gc; atexit.register(lambda: print(gc.get_threshold()[0] > 10_000, gc.get_freeze_count() > 0));"
        "from pcdiff.cli.app import _options; _options()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_commands_load_their_libraries_with_threads_that_sleep(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pcdiff.cli.app import _options; assert 'numpy' not in sys.modules; _options();"
        "print(os.environ['OMP_WAIT_POLICY'])"
    )
    clean = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for given, expected in (({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")):
        done = subprocess.run(
            [sys.executable, "-c", code], env=clean | given, capture_output=True, text=True, check=True, cwd=tmp_path
        )
        assert done.stdout.strip() == expected
