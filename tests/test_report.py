"""The report of a case: its text, that it is safe to open, and that a browser draws it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image

from pcdiff import NOTICE
from pcdiff.errors import InputError
from pcdiff.files import sha256
from pcdiff.geometry.mesh import read_stl, write_stl
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import write_volume
from pcdiff.methods.base import Proposal, Trajectory
from pcdiff.methods.candidates import OrientedPoints
from pcdiff.pipeline.case import design_case
from pcdiff.pipeline.contents import read_contents
from pcdiff.pipeline.record import RECORD, case_record, renew_record
from pcdiff.pipeline.settings import Settings
from pcdiff.prior.fit import PriorFit
from pcdiff.report.case_report import PREVIEW, REPORT, write_report
from pcdiff.report.contents import CaseContents
from pcdiff.report.gallery import position
from pcdiff.report.page import MAX_PAGE_BYTES
from pcdiff.report.record_sections import checks_section
from pcdiff.report.scene import case_scene
from pcdiff.report.viewer import scene_html

NAME = "<script>alert(1)<script> & 'co'"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def checks_record(passed: bool) -> dict[str, Any]:
    figure = {"name": "collision", "value": 0.81, "unit": "ml", "limit": 0.1, "rule": "at most", "passed": passed}
    words = "It collides with <b>bone</b> during insertion."
    return {
        "pcdiff": "0",
        "notice": NOTICE,
        "passed": passed,
        "checks": [
            {"name": "insertable", "title": "Can be inserted", "passed": passed, "words": words, "figures": [figure]},
            {"name": "symmetry", "title": "Restores the shape", "passed": None, "words": "No side.", "figures": []},
        ],
    }


@pytest.fixture(scope="module")
def folder(case: tuple[Volume, Volume], fitted: PriorFit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A case folder: three candidates with points, checks, vertex fields, and a file name that must be escaped."""
    skull = tmp_path_factory.mktemp("in") / "head.nrrd"
    write_volume(case[0], skull)

    def method(skull: Volume, *, ensemble: int = 1, seed: int = 0, device: str = "cpu") -> Proposal:
        surfaces = [fitted.completed_surface(fitted.outer + shift) for shift in (0.0, 0.8, -0.8)]
        points = np.stack([[surface.points[:500] + away for away in (9, 3, 0)] for surface in surfaces])
        trajectory = Trajectory(points.astype(np.float32), ("start", "halfway", "result"))
        return Proposal([OrientedPoints(surface) for surface in surfaces], trajectory)

    folder = tmp_path_factory.mktemp("out") / "head"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "pcdiff.pipeline.flow.fit_prior", lambda prior, skull, *_, **__: fitted
        )  # that of this very skull
        record = design_case(skull, folder, method, Settings("prior", 3, keep_points=True, report=False))
    vertices = read_stl(folder / "implant.stl").vertices
    across = vertices[:, 0] - vertices[:, 0].min()
    np.savez(folder / "surface.npz", thickness_mm=across, gap_mm=across / 20 - 1, uncertainty=np.zeros(len(vertices)))
    (folder / "checks.json").write_text(json.dumps(checks_record(False)))
    for k in (1, 2, 3):
        (folder / "candidates" / f"checks_{k}.json").write_text(json.dumps(checks_record(k == 2)))
    input_check = {"kind": "ct", "tilt_deg": 12.5, "warnings": ["Slices are <thick>."]}
    input_check["defects"] = [{"label": 1, "area_cm2": 31.4, "side": "left", "place": "left parietal"}]
    record |= {
        "recommended": 2,
        "recommended_because": "It <fits> best.",
        "input_check": input_check,
        "input": record["input"] | {"path": f"/home/x/{NAME}"},
    }
    write_report(folder, replace(read_contents(folder), record=record))
    return folder


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / REPORT).read_text(encoding="utf-8")


def test_the_text_shows_record_and_checks(text: str) -> None:
    shown = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert shown.count(NOTICE) == 2
    assert shown.index(NOTICE) < shown.index("<h1>") < shown.rindex(NOTICE)
    for part in (
        "0 of 1 checks passed; see the failed checks below",
        '<span class="light bad">failed</span>',
        '<span class="light none">not assessed</span>',
        "at most 0.1 ml",
        "0.81 ml",
        "CT in Hounsfield units",
        "12.5 degrees",
        "31.4 cm\u00b2, left parietal",
        "Slices are &lt;thick&gt;.",
        "2 <b>recommended</b>",
        "Recommended: It &lt;fits&gt; best.",
        "fitting</code> clearance 0, thickness bone, smooth 0, drain_holes -",
        "candidate 2, recommended",
        "completing the surface",
        "prior.safetensors",
    ):
        assert part in shown, part
    for caption in ("front", "top, forehead up", "from inside", "close-up of the rim", "axial section"):
        assert f"<figcaption>{caption}" in shown, caption
    assert re.search(r"<figcaption>(left|right) side<", shown)


def test_texts_are_escaped_and_folders_are_not_shown(text: str) -> None:
    assert str(escape(NAME)) in text
    assert NAME not in text
    assert "/home/x" not in text
    assert "<b>bone</b>" not in text
    assert "&lt;b&gt;bone&lt;/b&gt;" in text


def test_the_page_is_one_small_file_without_requests(folder: Path, text: str) -> None:
    assert (folder / REPORT).stat().st_size < MAX_PAGE_BYTES
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy[1]
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]*"', own)
    with Image.open(folder / PREVIEW) as preview:
        assert preview.width > 300


def test_sections_without_contents_are_left_out(folder: Path, tmp_path: Path) -> None:
    for name in ("implant.nrrd", "implant.stl", "defective_skull.nrrd", RECORD):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    contents = read_contents(tmp_path)
    assert contents.checks is None
    assert contents.points is None
    write_report(tmp_path, replace(contents, record={**contents.record, "members_ml": []}))
    text = (tmp_path / REPORT).read_text(encoding="utf-8")
    assert "has not been checked" in text
    assert "not checked" in text
    assert "<h2>Candidates" not in text
    assert 'data-control="field"' not in text


def test_unusable_files_of_a_case_are_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("implant.nrrd", "implant.stl", "defective_skull.nrrd", RECORD):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    for content in ("[]", "{"):
        (tmp_path / "checks.json").write_text(content)
        with pytest.raises(InputError, match=r"checks\.json: expected checks"):
            read_contents(tmp_path)
    (tmp_path / "checks.json").unlink()
    np.savez(tmp_path / "surface.npz", gap_mm=np.zeros(3))
    with pytest.raises(InputError, match="values of gap_mm"):
        read_contents(tmp_path)
    (tmp_path / "surface.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(InputError, match=r"surface\.npz: expected an NPZ file"):
        read_contents(tmp_path)
    (tmp_path / "surface.npz").unlink()
    with pytest.raises(InputError, match="found none; give it with --skull"):
        read_contents(tmp_path, tmp_path / "moved.nrrd")
    (tmp_path / RECORD).unlink()
    with pytest.raises(InputError, match="expected a case folder"):
        read_contents(tmp_path)


def test_a_report_needs_no_file_of_the_case(folder: Path, tmp_path: Path) -> None:
    contents = read_contents(folder)
    write_report(tmp_path, contents)
    assert {path.name for path in tmp_path.iterdir()} == {REPORT, PREVIEW}
    with pytest.raises(ValueError, match="gap_mm must have shape"):
        replace(contents, vertex_fields={"gap_mm": np.zeros(3)})


def test_a_design_reports_the_same_from_memory_as_from_its_files(
    case: tuple[Volume, Volume], fitted: PriorFit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skull = tmp_path / "head.nrrd"
    write_volume(case[0], skull)
    captured: list[CaseContents] = []
    monkeypatch.setattr("pcdiff.report.case_report.write_report", lambda folder, contents: captured.append(contents))

    def method(skull: Volume, *, ensemble: int = 1, seed: int = 0, device: str = "cpu") -> Proposal:
        return Proposal([OrientedPoints(fitted.completed_surface(fitted.outer + shift)) for shift in (0.0, 0.8)])

    design_case(skull, tmp_path / "head", method, Settings("prior", 2, keep_points=True))
    (memory,), files = captured, read_contents(tmp_path / "head")
    assert memory.title == files.title == "head"
    assert memory.checks == files.checks
    assert memory.candidate_checks == files.candidate_checks
    assert json.loads(json.dumps({**memory.record, "files": files.record["files"]})) == files.record
    assert np.array_equal(memory.skull.mask, files.skull.mask)
    assert np.array_equal(memory.implant.mask, files.implant.mask)
    assert np.array_equal(memory.mesh.vertices, files.mesh.vertices)
    assert memory.vertex_fields.keys() == files.vertex_fields.keys()
    assert all(np.array_equal(memory.vertex_fields[name], files.vertex_fields[name]) for name in files.vertex_fields)
    assert memory.candidates.keys() == files.candidates.keys() == {1, 2}
    assert memory.candidates[2].volume_ml == pytest.approx(files.candidates[2].volume_ml, rel=1e-6)
    assert memory.points is not None
    assert files.points is not None
    assert memory.points.keys() == files.points.keys()


def test_positions_are_named_as_in_radiology() -> None:
    assert [position(axis, 37.2) for axis in range(3)] == ["L 37 mm", "P 37 mm", "S 37 mm"]
    assert [position(axis, -37.2) for axis in range(3)] == ["R 37 mm", "A 37 mm", "I 37 mm"]


def test_yes_no_and_large_counts_are_shown_for_readers() -> None:
    figure = {"name": "watertight", "value": True, "unit": "", "limit": True, "rule": "expected", "passed": True}
    check = {"name": "printable", "title": "Can be printed", "passed": True, "words": "", "figures": [figure]}
    shown = checks_section({"checks": [check]})
    assert ">yes</td>" in shown
    assert ">expected yes</td>" in shown
    triangles = {"name": "triangles", "value": 66016, "unit": "", "limit": None, "rule": None, "passed": None}
    assert ">66,016</td>" in checks_section({"checks": [check | {"figures": [triangles]}]})


def test_the_record_holds_the_digest_of_a_new_report(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "case")
    (tmp_path / "case" / REPORT).write_text("new")
    renew_record(tmp_path / "case", case_record(tmp_path / "case"), (REPORT,))
    record = case_record(tmp_path / "case")
    assert record["files"][REPORT] == sha256(tmp_path / "case" / REPORT)
    assert record["files"].keys() == case_record(folder)["files"].keys() | {REPORT}


def test_a_scene_holds_all_surfaces_fields_and_clouds(
    folder: Path, case: tuple[Volume, Volume], tmp_path: Path
) -> None:
    mesh = read_stl(folder / "implant.stl")
    write_stl(replace(mesh, vertices=mesh.vertices + np.array([0, 0, 1.0])), tmp_path / "true.stl")
    scene = case_scene(read_contents(folder, truth=tmp_path / "true.stl"))
    names = ["skull", "implant", "candidate 1", "candidate 2", "candidate 3", "true implant"]
    assert [surface.name for surface in scene.surfaces] == names
    assert [surface.shown for surface in scene.surfaces] == [True, True, False, False, False, False]
    implant = scene.surfaces[1]
    assert [field.name for field in implant.fields] == ["thickness", "gap", "error"]
    thickness = implant.fields[0].values
    np.testing.assert_allclose(thickness, implant.shape.vertices[:, 0] - implant.shape.vertices[:, 0].min(), atol=1.5)
    assert 0.2 < np.median(implant.fields[2].values) < 1.0
    assert '<option value="error" selected>' in scene_html(scene)  # shown at the start
    write_volume(case[1], tmp_path / "true.nrrd")
    scene = case_scene(read_contents(folder, truth=tmp_path / "true.nrrd"))
    assert np.median(scene.surfaces[1].fields[2].values) < 0.8  # half a voxel
    assert [len(cloud.frames) for cloud in scene.clouds] == [1, 1, 1, 1, 3, 3, 3]
    assert scene.clouds[4].captions == ("start", "halfway", "result")
    titles = ["points of the shape model", "points of candidate 1", "sampling steps of candidate 1"]
    assert [scene.clouds[n].name for n in (0, 1, 4)] == titles


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    driver = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    arguments = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with driver.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


def cpu_seconds(browser: Any) -> float:
    """CPU time of the browser's renderer processes."""
    session = browser.new_browser_cdp_session()
    processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
    session.detach()
    return float(sum(process["cpuTime"] for process in processes if process["type"] == "renderer"))


def test_a_browser_draws_the_scene_and_its_controls_work(browser: Any, folder: Path) -> None:
    page = browser.new_page(viewport={"width": 600, "height": 560})
    errors: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    started = cpu_seconds(browser)
    page.goto((folder / REPORT).as_uri())
    assert cpu_seconds(browser) - started < 3.0  # until the text is shown
    page.wait_for_selector(".scene[data-drawn]", timeout=60_000)
    plot = page.locator(".plot")

    def screenshot() -> np.ndarray:
        """(H, W, 3) of the plot, after all drawing."""
        page.wait_for_timeout(150)
        file = folder / "screenshot.png"
        plot.screenshot(path=file)
        with Image.open(file) as image:
            picture = np.asarray(image.convert("RGB")).astype(int)
        file.unlink()
        return picture

    def after(act: Any) -> np.ndarray:
        drawn = int(page.locator(".scene").get_attribute("data-drawn"))
        act()
        page.wait_for_selector(f".scene[data-drawn='{drawn + 1}']", timeout=60_000)
        return screenshot()

    def blue(picture: np.ndarray) -> int:
        return int((picture[..., 2] > picture[..., 0] + 40).sum())

    def ink(picture: np.ndarray) -> int:
        return int((picture.min(axis=2) < 235).sum())

    whole = screenshot()
    assert ink(whole) > 20_000, "the skull is drawn"
    assert blue(whole) > 2_000, "the implant is drawn"
    alone = after(lambda: page.uncheck("[data-control=surface][value='0']"))
    assert ink(alone) < 0.8 * ink(whole)
    assert blue(alone) >= blue(whole)
    bone = after(lambda: page.check("[data-control=surface][value='0']"))
    bone = after(lambda: page.uncheck("[data-control=surface][value='1']"))
    assert blue(bone) < 0.1 * blue(whole)
    after(lambda: page.check("[data-control=surface][value='1']"))
    coloured = after(lambda: page.select_option("[data-control=field]", "thickness"))
    assert ((coloured[..., 0] > 150) & (coloured[..., 2] < 90)).sum() > 50, "the scale's red is visible"
    after(lambda: page.select_option("[data-control=field]", ""))
    half = after(lambda: page.select_option("[data-control=slice]", "sagittal"))
    other = after(lambda: page.check("[data-control=other]"))
    assert ink(half) < ink(whole)
    assert ink(other) < ink(whole)
    assert (half != other).any()
    moved = after(lambda: page.locator("[data-control=frame]").fill("1"))
    assert page.locator(".caption").inner_text() == "halfway"
    assert (moved != other).any()
    turned = after(lambda: page.click("button[data-view=inside]"))
    assert (turned != moved).any()
    assert errors == []
    assert requests == [(folder / REPORT).as_uri()]
    page.close()


@pytest.mark.parametrize("width", [400, 1600])
def test_the_page_is_as_wide_as_the_window(browser: Any, folder: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, java_script_enabled=False)
    page.goto((folder / REPORT).as_uri())
    wide = (
        page.locator("body").bounding_box()["width"],
        max(box["x"] + box["width"] for box in (item.bounding_box() for item in page.locator("section").all()) if box),
    )
    assert max(wide) <= width
    page.close()
