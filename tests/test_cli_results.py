"""`pcdiff demo`, `check`, `view` and `report`, in process, on the folder of one design."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from phantom import head_ct, write_dicom
from PIL import Image
from stub_method import Run, files

from pcdiff.cli import app as cli
from pcdiff.files import sha256
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume
from pcdiff.pipeline.record import read_record
from pcdiff.report.colours import BONE, IMPLANT
from pcdiff.report.render import render
from pcdiff.report.surfaces import shape_of


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
