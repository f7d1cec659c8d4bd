"""Names of cases: they stay in the output folder, and no patient's result replaces another's without a word."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stub_method import Run, Stub, files

from pcdiff.errors import InputError
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume, write_volume
from pcdiff.pipeline.case import design_case
from pcdiff.pipeline.names import as_text, case_folder_for, case_name, distinct_names, without_folders
from pcdiff.pipeline.record import read_record
from pcdiff.pipeline.settings import Settings

DESIGN = ("design", "--no-report", "-o")


@pytest.fixture
def patients(tmp_path: Path, case: tuple[Volume, Volume]) -> list[Path]:
    """patient1/skull.nrrd and patient2/skull.nrrd; the second has a voxel less."""
    paths = [tmp_path / patient / "skull.nrrd" for patient in ("patient1", "patient2")]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        mask = case[0].mask.copy()
        mask[tuple(np.argwhere(mask)[:number].T)] = False
        write_volume(case[0].with_mask(mask), path)
    return paths


def sources(out: Path) -> dict[str, int]:
    """Folder of each result in `out` -> the number of voxels of its skull."""
    return {path.name: int(read_volume(path / "defective_skull.nrrd").mask.sum()) for path in out.iterdir()}


def test_names_that_clash_in_one_call_take_their_folders(
    run: Run, stub: Stub, patients: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run(*DESIGN, out, *patients, "-q") == (0, "", "")
    first, second = (int(read_volume(path).mask.sum()) for path in patients)
    assert sources(out) == {"patient1_skull": first, "patient2_skull": second}
    for patient in patients:  # alone, each finds its own result
        code, _, printed = run(*DESIGN, out, patient)
        assert code == 0
        assert f"{patient.parent.name}_skull: already designed" in printed
    assert sources(out).keys() == {"patient1_skull", "patient2_skull"}


def test_names_that_clash_in_two_calls_take_their_folders(
    run: Run, stub: Stub, patients: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first, second = (int(read_volume(path).mask.sum()) for path in patients)
    assert run(*DESIGN, out, patients[0], "-q")[0] == 0
    before = files(out / "skull")
    code, _, printed = run(*DESIGN, out, patients[1])
    assert code == 0
    assert f"{out / 'skull'} holds the result of another input; this one goes to {out / 'patient2_skull'}" in printed
    assert sources(out) == {"skull": first, "patient2_skull": second}
    assert files(out / "skull") == before
    assert "already designed" in run(*DESIGN, out, *patients)[2]
    assert sources(out) == {"skull": first, "patient2_skull": second}
    run(*DESIGN, out, patients[1], "--overwrite", "-q")  # replaces its own result, not the first patient's
    assert files(out / "skull") == before


def test_the_result_of_another_input_is_replaced_only_when_asked(
    run: Run, stub: Stub, patients: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run(*DESIGN, out, patients[0], "-q")[0] == 0
    (out / "patient2_skull").mkdir()
    for path in (out / "skull").iterdir():
        (out / "patient2_skull" / path.name).write_bytes(path.read_bytes())
    before = files(out)
    code, _, printed = run(*DESIGN, out, patients[1], "-q")
    assert code == 2
    assert "hold results of another input; choose another output folder, or pass --overwrite" in printed
    assert files(out) == before
    assert run(*DESIGN, out, patients[1], "-q", "--overwrite")[0] == 0
    assert sources(out)["patient2_skull"] == int(read_volume(patients[1]).mask.sum())
    assert files(out / "skull") == {name[6:]: data for name, data in before.items() if name.startswith("skull/")}


def test_a_design_from_python_does_not_replace_another_either(stub: Stub, patients: list[Path], tmp_path: Path) -> None:
    settings = Settings("prior", report=False)
    design_case(patients[0], tmp_path / "case", stub, settings)
    before = files(tmp_path / "case")
    with pytest.raises(InputError, match="holds the result of another input"):
        design_case(patients[1], tmp_path / "case", stub, settings)
    assert files(tmp_path / "case") == before
    design_case(patients[1], tmp_path / "case", stub, settings, overwrite=True)
    record = read_record(tmp_path / "case")
    assert record is not None
    assert record["input"]["path"] == "skull.nrrd"


def test_a_mask_replaces_no_file_that_was_there(run: Run, stub: Stub, patients: list[Path], tmp_path: Path) -> None:
    before = files(tmp_path)
    command = (*DESIGN, tmp_path / "out", patients[0], "-q", "--mask-out")
    for other in patients:
        code, _, printed = run(*command, other)
        assert code == 2
        assert "expected a new file, found one that may be of another patient" in printed
    code, _, printed = run(*command, patients[0], "--overwrite")
    assert code == 2
    assert "expected a file for the mask, got the scan itself" in printed
    assert files(tmp_path) == before
    assert run(*command, patients[1], "--overwrite")[0] == 0


def test_a_segmentation_replaces_no_file_that_was_there(run: Run, tmp_path: Path) -> None:
    (tmp_path / "other.dcm").write_bytes(b"another patient's")
    code, _, printed = run("dicom-seg", tmp_path, "--scan", tmp_path, "-o", tmp_path / "other.dcm")
    assert code == 2
    assert "found one that may be of another patient" in printed


def test_a_simulation_and_the_demo_do_not_replace_another_result(
    run: Run, healthy: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = healthy.mask.copy()
    mask[tuple(np.argwhere(mask)[0])] = False
    for name, volume in (("a", healthy), ("b", healthy.with_mask(mask))):
        write_volume(volume, tmp_path / f"{name}.nrrd")
    out = tmp_path / "out"
    assert run("simulate", tmp_path / "a.nrrd", "-o", out, "-q")[0] == 0
    before = files(out)
    assert str(tmp_path) not in (out / "run.json").read_text()
    monkeypatch.setattr("pcdiff.prior.model.ShapePrior.draw", lambda self, rng: healthy)
    for command in (("simulate", tmp_path / "b.nrrd"), ("demo", "--method", "prior")):
        code, _, printed = run(*command, "-o", out, "-q")
        assert code == 2
        assert "holds the result of another input" in printed
    assert files(out) == before
    assert run("simulate", tmp_path / "a.nrrd", "-o", out, "-q", "--seed", 3)[0] == 0
    assert run("simulate", tmp_path / "b.nrrd", "-o", out, "-q", "--overwrite")[0] == 0


@pytest.mark.parametrize("name", ["...nrrd", ".nrrd", "..nrrd", "....nii.gz", "a\\b.nrrd", "a\nb.nrrd"])
def test_a_name_that_leads_out_of_the_output_is_refused(
    run: Run, stub: Stub, case: tuple[Volume, Volume], tmp_path: Path, name: str
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    write_volume(case[0], scans / "head.nrrd")
    (scans / "head.nrrd").rename(scans / name)
    (tmp_path / "implant.nrrd").write_text("somebody's")
    code, _, printed = run(*DESIGN, tmp_path / "out", scans / name, "--overwrite", "-q")
    assert code == 2
    assert "can name a folder" in printed
    assert printed.count("\n") == 1
    assert printed.isascii()
    assert {path.name for path in tmp_path.iterdir()} == {"scans", "implant.nrrd"}
    with pytest.raises(InputError):
        case_name(scans / name, 1) if name.startswith("a") else case_name(scans / name)


def test_names_of_folders_and_of_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "patient1" / "dicom").mkdir(parents=True)
    (tmp_path / "link").symlink_to("patient1/dicom")
    monkeypatch.chdir(tmp_path / "patient1" / "dicom")
    assert case_name(Path()) == "dicom"
    assert case_name(Path("..")) == "patient1"
    assert case_name(Path(), 1) == "patient1_dicom"
    assert case_name(tmp_path / "link") == "link"  # the user's name for it
    with pytest.raises(InputError, match="can name a folder"):
        case_name(Path("/"))


def test_a_text_for_others_names_no_folder() -> None:
    scan = Path("/home/erika/patient1/dicom")
    text = "/home/erika/patient1/dicom/IM0001 and /home/erika/patient1/dicom differ"
    assert without_folders(text, scan) == "IM0001 and dicom differ"
    assert (
        without_folders("patients/head.nrrd: LPS is assumed", Path("patients/head.nrrd")) == "head.nrrd: LPS is assumed"
    )


def test_only_names_that_clash_become_longer(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/x/skull.nrrd", "b/x/skull.nii.gz", "b/other.mha", "b/other.nrrd")]
    names = distinct_names(paths)
    assert [names[path] for path in paths] == ["a_x_skull", "b_x_skull", "other", "other"]
    assert case_folder_for(paths[2], "other", tmp_path / "out") == tmp_path / "out" / "other"


def test_a_name_that_is_not_utf8_reaches_every_file(
    run: Run, stub: Stub, case: tuple[Volume, Volume], tmp_path: Path
) -> None:
    scan = os.fsdecode(os.fsencode(tmp_path) + b"/Sch\xe4del.nrrd")
    write_volume(case[0], tmp_path / "head.nrrd")
    (tmp_path / "head.nrrd").rename(scan)
    assert run("design", "-o", tmp_path / "out", scan, "-q") == (0, "", "")
    (folder,) = (tmp_path / "out").iterdir()
    assert "Sch\ufffddel" in (folder / "report.html").read_text(encoding="utf-8")
    assert json.loads((folder / "run.json").read_text())["input"]["path"] == "Sch\ufffddel.nrrd"
    assert as_text(Path(scan).stem) == "Sch\ufffddel"
    assert run("report", folder)[0] == 0


def test_results_are_the_users_alone_unless_shared(run: Run, stub: Stub, patients: list[Path], tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        out, shared = tmp_path / "out", tmp_path / "shared"
        options = ("--ensemble", 2, "-q", "--keep-points", "--mesh", "ply", "--mask-out", tmp_path / "mask.nrrd")
        assert run("design", "-o", out, patients[0], *options)[0] == 0
        assert run("--shared", "design", "-o", shared, patients[0], *options, "--overwrite")[0] == 0
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)

    def modes(folder: Path, kind: Callable[[Path], bool]) -> set[int]:
        return {stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*")) if kind(path)}

    assert (modes(out, Path.is_file), modes(out, Path.is_dir)) == ({0o600}, {0o700})
    assert (modes(shared, Path.is_file), modes(shared, Path.is_dir)) == ({0o644}, {0o755})
