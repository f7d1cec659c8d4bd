"""The report of a case: its text, that it is safe to open, and that a browser draws it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import escape
from phantom import head_ct
from PIL import Image

from pcdiff import NOTICE
from pcdiff.checks.criteria import Criteria
from pcdiff.checks.thickness import thick_enough
from pcdiff.errors import InputError
from pcdiff.files import sha256
from pcdiff.geometry.grey import Grid, grey_head
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
from pcdiff.report.colours import GREY_BONE
from pcdiff.report.contents import CaseContents
from pcdiff.report.gallery import scene_picture
from pcdiff.report.page import three_js
from pcdiff.report.record_sections import checks_section
from pcdiff.report.scene import case_scene
from pcdiff.report.slices import position
from pcdiff.report.surfaces import Shape
from pcdiff.report.templates import fill
from pcdiff.report.viewer import POINT_MM, scene_html

NAME = "<script>alert(1)<script> & 'co'"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.timeout(300)  # a browser that draws without a GPU, beside other tests


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
    hu, grid = head_ct(case[0])
    grey = grey_head(hu, grid.affine, Grid.around(grid))
    contents = read_contents(folder)
    write_report(folder, replace(contents, record=record, skull=replace(contents.skull, grey=grey)))
    return folder


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / REPORT).read_text(encoding="utf-8")


def test_the_text_shows_record_and_checks(text: str) -> None:
    shown = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert shown.count(NOTICE) == 2
    assert shown.index(NOTICE) < shown.index("<h1>") < shown.rindex(NOTICE)
    for part in (
        "0 of 1 checks passed; see the failed checks",
        '<span class="light bad">failed</span>',
        '<span class="light none">not assessed</span>',
        "at most 0.1\u00a0ml",
        "0.81\u00a0ml",
        "CT in Hounsfield units",
        "12.5\u00a0degrees",
        "31.4\u00a0cm\u00b2, left parietal",
        "Slices are &lt;thick&gt;.",
        "2 <b>recommended</b>",
        "Recommended: It &lt;fits&gt; best.",
        "fitting</code> clearance 0, thickness bone, smooth 0, drain_holes -",
        "candidate 2, recommended",
        "completing the surface",
        "prior.safetensors",
    ):
        assert part in shown, part
    assert "threshold</code>" not in shown, "what was not set is left out"
    for caption in ("front", "top, forehead up", "from inside", "close-up of the rim", "axial slice at ", "rim at "):
        assert f"<figcaption>{caption}" in shown, caption
    assert re.search(r"<figcaption>(left|right) side<", shown)


def test_the_plan_comes_first_and_names_no_file(text: str, folder: Path) -> None:
    record = case_record(folder)
    plan = text[text.index('class="plan"') : text.index("<h2>Slices")]
    ml = read_contents(folder).mesh.volume_ml  # the voxels have a few percent more than the smooth surface
    for part in (
        f"case {record['input']['sha256'][:8]}",
        f"implant.stl {sha256(folder / 'implant.stl')[:8]}",
        "left parietal",
        "31\u00a0cm\u00b2",
        f"{ml:.1f}\u00a0ml",
        f"PEEK {1.3 * ml:.0f}\u00a0g, titanium {4.43 * ml:.0f}\u00a0g, PMMA {1.18 * ml:.0f}\u00a0g",
        "<b>Can be inserted:</b> It collides with &lt;b&gt;bone&lt;/b&gt; during insertion.",
        "Not assessed</span> Restores the shape.",
        "<b>1 warning:</b> see Input",
        "Surgeon",
        "not a medical device",
    ):
        assert part in plan, part
    assert re.search(r"Length x width x height</dt><dd>\d+ x \d+ x \d+\u00a0mm", plan)
    assert "No other opening of the vault was found." in plan
    assert "Left open" not in plan
    assert str(escape(NAME)) not in plan
    assert record["input"]["sha256"] not in plan
    assert text.index("<h2>Limitations") < text.index(record["input"]["sha256"]), "hashes stand at the end"


def test_the_plan_gives_the_thickness_that_the_check_measured(folder: Path, tmp_path: Path) -> None:
    contents = read_contents(folder)
    thickness, gap = np.array([1.0, 8.0, 9.0, 9.0, 9.0]), np.array([0.5, 8.0, 8.0, 8.0, 8.0])
    found = thick_enough(np.zeros((5, 3)), thickness, gap, np.ones(5), np.nan, 0.5, Criteria())
    checks = {"passed": True, "checks": [found.record()]}
    settings = {**contents.record["settings"], "case_id": "OP-7 <b>", "defects": [3]}
    write_report(tmp_path, replace(contents, checks=checks, record={**contents.record, "settings": settings}))
    text = (tmp_path / REPORT).read_text(encoding="utf-8")
    assert "9.0\u00a0mm (median); 90\u00a0% from 8.2 to 9.0\u00a0mm" in text, "without the vertex at the rim"
    assert "<bdi>OP-7 &lt;b&gt;</bdi>" in text
    assert "<dt>Number</dt><dd>3</dd>" in text, "as in pcdiff info"
    assert "Only the defect with this number in <code>pcdiff info</code> was to be closed." in text
    assert re.search(r'@top-left { content: "Plan\\20 of.*OP\\2d 7\\20 \\3c b\\3e', text)


def test_texts_are_escaped_and_folders_are_not_shown(text: str) -> None:
    assert str(escape(NAME)) in text
    assert NAME not in text
    assert "/home/x" not in text
    assert "<b>bone</b>" not in text
    assert "&lt;b&gt;bone&lt;/b&gt;" in text


def test_the_page_is_one_small_file_without_requests(folder: Path, text: str) -> None:
    assert (folder / REPORT).stat().st_size < 5_000_000  # three candidates with points, and slices of a CT
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
    assert np.array_equal(memory.skull.volume.mask, files.skull.volume.mask)
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
    area = {"name": "area", "value": 0.5, "unit": "cm2", "limit": 1.0, "rule": "at most", "passed": True}
    shown = checks_section({"checks": [check | {"words": "0.50 cm2.", "figures": [area]}]})
    assert "0.50\u00a0cm\u00b2." in shown
    assert ">0.5\u00a0cm\u00b2</td>" in shown
    assert "cm2" not in shown
    covered = {"name": "coverage", "value": 1.0, "unit": "", "limit": 0.99, "rule": "at least", "passed": True}
    shown = checks_section({"checks": [check | {"figures": [covered]}]})
    assert ">1.00</td>" in shown, "a share is no count"
    assert ">at least 0.99</td>" in shown
    assert ">66,016</td>" in checks_section({"checks": [check | {"figures": [triangles]}]})


def test_a_unit_stays_beside_its_number_and_a_name_is_left_alone() -> None:
    texts = ["0.4 x 1 mm", "1,000 ml and 95 % <b>", "3 candidates, 3 stages"]
    shown = fill("input.html", facts={}, warnings=texts)
    for text in ("0.4 x 1\u00a0mm<", "1,000\u00a0ml and 95\u00a0% &lt;b&gt;", "3 candidates, 3 stages"):
        assert text in shown
    assert "<bdi>head 3 mm</bdi>" in fill("scene_page.html", title="head 3 mm", notice="", scene="", slices="")


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


def test_a_picture_shows_the_points_at_several_steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = case_scene(read_contents(folder))
    drawn: list[np.ndarray] = []

    def render(shapes: list[Shape], *_: Any) -> np.ndarray:
        drawn.append(shapes[-1].vertices)
        return np.full((4, 4, 3), len(drawn), np.uint8)

    monkeypatch.setattr("pcdiff.report.gallery.render", render)
    picture = scene_picture(scene)
    assert picture[-1, ::4, 0][:5].tolist() == [2, 3, 4, 5, 6], "side by side: two kinds of points, three steps"
    moving = next(cloud for cloud in scene.clouds if len(cloud.frames) == 3)
    for vertices, frame in zip(drawn[-3:], moving.frames, strict=True):
        np.testing.assert_allclose(vertices.reshape(len(frame), -1, 3).mean(axis=1), frame, atol=1e-3)
    assert not np.allclose(drawn[-3], drawn[-1])


def unpacked(packed: dict[str, Any]) -> np.ndarray:
    """(rows, columns), as `numbers` in viewer.js reads them."""
    changes = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), "<u2").reshape(packed["columns"], -1)
    return packed["low"] + packed["step"] * (np.cumsum(changes, axis=1) % 2**16).T


def test_the_page_holds_the_surfaces_to_a_hundredth_of_a_millimetre(folder: Path) -> None:
    scene = case_scene(read_contents(folder))
    data = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', scene_html(scene))[0])
    for surface, drawn in zip(scene.surfaces, data["surfaces"], strict=True):
        np.testing.assert_allclose(unpacked(drawn["points"]), surface.shape.vertices, atol=0.51 * POINT_MM)
        np.testing.assert_allclose(unpacked(drawn["normals"]), surface.shape.normals, atol=0.02)
        # The same triangles, wound the same way.
        corners = [np.roll(surface.shape.faces, turn, axis=1) for turn in range(3)]
        every = {tuple(face) for turned in corners for face in turned.tolist()}
        faces = unpacked(drawn["faces"]).astype(int).tolist()
        assert len(faces) == len(surface.shape.faces)
        assert all(tuple(face) in every for face in faces)
    for cloud, drawn in zip(scene.clouds, data["clouds"], strict=True):
        np.testing.assert_allclose(unpacked(drawn["frames"][0]), cloud.frames[0], atol=0.51 * POINT_MM)


def test_the_3d_library_comes_with_its_licence_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = three_js()
    assert "SPDX-License-Identifier: MIT" in script[:200]
    assert "GLTFLoader" not in script
    (tmp_path / "resources" / "templates").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "resources" / "templates" / "viewer.zip", "w") as archive:
        archive.writestr("viewer.html.template", "<script>another library</script>")
    monkeypatch.setattr("pcdiff.report.page._folder_of", lambda package: tmp_path)
    with pytest.raises(RuntimeError, match=r"expected three\.js in the viewer of trimesh"):
        three_js()


def test_colour_scales_say_what_is_good(folder: Path) -> None:
    contents = read_contents(folder)
    figure = {"key": "bone_thickness", "name": "bone", "value": 6.0}
    checks = {"passed": True, "checks": [{"name": "thickness", "title": "Thickness", "figures": [figure]}]}
    thickness, gap, *_ = case_scene(replace(contents, checks=checks)).implant.fields
    assert (thickness.low, thickness.high) == (3.0, 9.0)
    thin, bone, thick = thickness.scale.at(np.array([3.0, 6.0, 9.0]), thickness.low, thickness.high)
    assert bone.min() > 0.85, "white where it is as thick as the bone"
    assert thin[0] > 2 * thin[2]
    assert thick[2] > 2 * thick[0]
    rim = gap.values >= 0
    assert 0.05 < rim.mean() < 0.7
    colours = gap.scale.at(gap.values, gap.low, gap.high)
    assert (colours[~rim] == GREY_BONE).all(), "no colour away from the rim"
    assert not (colours[rim] == GREY_BONE).all(axis=1).any()
    assert [text for _, text in gap.ticks] == ["0 (touches)", "1", "2", "3 or more"]


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
    after(lambda: page.click("button[data-view=reset]"))
    veiled = after(lambda: page.locator("[data-control=opacity]").fill("0.3"))
    assert veiled.mean() > whole.mean() + 10, "the skull is pale"
    assert blue(veiled) >= blue(whole), "the implant's edge is seen through it"
    turned = after(lambda: page.click("button[data-view=inside]"))
    assert (turned != moved).any()
    assert errors == []
    assert requests == [(folder / REPORT).as_uri()]
    page.close()


def open_report(browser: Any, folder: Path, **options: Any) -> Any:
    page = browser.new_page(viewport={"width": 1000, "height": 900}, **options)
    page.goto((folder / REPORT).as_uri())
    return page


def drawn_after(page: Any, act: Any) -> None:
    """Acts, and waits until the slices are drawn again."""
    drawn = int(page.locator(".slices").get_attribute("data-drawn"))
    act()
    page.wait_for_function(f"() => Number(document.querySelector('.slices').dataset.drawn) > {drawn}", timeout=60_000)


def millimetres(text: str) -> np.ndarray:
    """(3,) mm, LPS, of a place such as "R 41, A 12, S 71 mm"."""
    found = re.findall(r"([RLAPIS]) (\d+)", text)
    return np.array([int(mm) * (1 if side in "LPS" else -1) for side, mm in found])


def test_slices_in_a_browser_show_what_a_click_points_to(browser: Any, folder: Path) -> None:
    page = open_report(browser, folder)
    page.wait_for_selector(".slices[data-drawn]", timeout=60_000)

    def where_after(act: Any) -> np.ndarray:
        drawn_after(page, act)
        return millimetres(page.locator(".where").inner_text())

    sides = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
    axes = {"axial": (0, 1, 1), "coronal": (0, 2, -1), "sagittal": (1, 2, -1)}  # to the right, downwards and its sign
    for name, shown in sides.items():
        panel = page.locator(f".panel[data-plane={name}]")
        at = ("left", "right", "top", "bottom")
        assert "".join(panel.locator(f".side.{side}").inner_text() for side in at) == shown
        canvas = panel.locator("canvas")
        box = canvas.bounding_box()
        x, y = box["width"] / 2, box["height"] / 2
        before = where_after(lambda canvas=canvas, x=x, y=y: canvas.click(position={"x": x, "y": y}))
        after = where_after(lambda canvas=canvas, x=x, y=y: canvas.click(position={"x": x + 60, "y": y + 40}))
        moved = after - before
        right, down, sign = axes[name]
        # The scale bar and the click measure the same millimetres.
        bar = panel.locator(".scale i").bounding_box()["width"]
        mm_per_pixel = int(panel.locator(".scale b").inner_text().removesuffix(" mm")) / bar
        assert moved[right] == pytest.approx(60 * mm_per_pixel, abs=1.6)
        assert sign * moved[down] == pytest.approx(40 * mm_per_pixel, abs=1.6)
        across = 3 - right - down
        assert moved[across] == 0
        slider = panel.locator("input")
        mm = int(slider.get_attribute("min")) + 5
        assert where_after(lambda slider=slider, mm=mm: slider.fill(str(mm)))[across] == mm
    assert page.locator(".panel[data-plane=rim] .scale b").inner_text() == "20 mm"
    page.close()


def test_outlines_can_be_switched_off(browser: Any, folder: Path) -> None:
    page = open_report(browser, folder)
    page.wait_for_selector(".slices[data-drawn]", timeout=60_000)

    def coloured() -> int:
        """Counted on the page: millions of numbers would take ten seconds to come over."""
        return int(
            page.evaluate(
                """() => {
                    const c = document.querySelector('.panel canvas');
                    const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
                    let count = 0;
                    for (let i = 0; i < d.length; i += 4) {
                        const rgb = d.subarray(i, i + 3);
                        count += Math.max(...rgb) - Math.min(...rgb) > 60;
                    }
                    return count;
                }"""
            )
        )

    both = coloured()
    drawn_after(page, lambda: page.uncheck("[data-outline=implant]"))
    bone = coloured()
    drawn_after(page, lambda: page.uncheck("[data-outline=bone]"))
    drawn_after(page, lambda: page.uncheck("[data-outline=cross]"))
    assert both > bone > 300
    assert coloured() == 0, "grey values alone"
    drawn_after(page, lambda: page.check("[data-outline=mirrored]"))
    assert coloured() > 300
    page.close()


def test_a_wheel_scrolls_the_page_until_the_view_is_clicked(browser: Any, folder: Path) -> None:
    page = open_report(browser, folder)
    page.wait_for_selector(".scene[data-drawn]", timeout=60_000)
    page.locator(".plot").scroll_into_view_if_needed()
    box = page.locator(".plot").bounding_box()

    def wheel_scrolls(expected: bool) -> bool:
        """Whether a wheel scrolls the page; one that does not has a second to do so."""
        before = page.evaluate("scrollY")
        page.mouse.wheel(0, 40)
        for _ in range(100 if expected else 5):
            page.wait_for_timeout(200)
            if page.evaluate("scrollY") != before:
                return True
        return False

    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 150)
    assert wheel_scrolls(True)
    page.mouse.down()
    page.mouse.up()
    assert not wheel_scrolls(False)
    page.mouse.move(5, 5)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 150)
    assert wheel_scrolls(True), "after the pointer has left"
    page.close()


def test_the_pointer_tells_place_value_and_distance(browser: Any, folder: Path) -> None:
    page = open_report(browser, folder)
    page.wait_for_selector(".scene[data-drawn]", timeout=60_000)
    page.select_option("[data-control=field]", "thickness")
    assert page.locator(".legend").is_visible()
    assert page.locator(".legend b").inner_text() == "thickness, mm"
    plot = page.locator(".plot")
    size = plot.bounding_box()
    x, y = size["width"] / 2, size["height"] / 2

    def tells(pattern: str) -> re.Match[str]:
        page.wait_for_function(f"() => /{pattern}/.test(document.querySelector('.told').textContent)", timeout=60_000)
        return re.search(pattern, page.locator(".told").inner_text())

    plot.hover(position={"x": x, "y": y})
    first = tells(r"[RL] \d+\xa0mm, [AP] \d+\xa0mm, [IS] \d+\xa0mm; thickness \d+\.\d\xa0mm")
    there = millimetres(first[0])
    assert np.linalg.norm(read_stl(folder / "implant.stl").vertices - there, axis=1).min() < 2.5, "on the implant"
    drawn_after(page, lambda: plot.click(position={"x": x, "y": y}))
    assert np.abs(millimetres(page.locator(".where").inner_text()) - there).max() <= 1, "the slices follow a click"
    page.check("[data-control=measure]")
    plot.click(position={"x": x, "y": y})
    plot.click(position={"x": x + 40, "y": y})
    assert 3 < float(tells(r"(\d+\.\d)\xa0mm in a straight line")[1]) < 60
    plot.click(position={"x": x + 40, "y": y})
    assert float(tells(r"\b(0\.0)\xa0mm in a straight line")[1]) == 0
    page.close()


def test_the_view_from_inside_gives_its_cut_back(browser: Any, folder: Path) -> None:
    page = open_report(browser, folder)
    page.wait_for_selector(".scene[data-drawn]", timeout=60_000)
    chosen = page.locator("[data-control=slice]")
    page.click("button[data-view=inside]")
    assert chosen.input_value() != "off"
    page.click("button[data-view=front]")
    assert chosen.input_value() == "off"
    page.select_option("[data-control=slice]", "axial")
    page.click("button[data-view=reset]")
    assert chosen.input_value() == "off"
    page.close()


def test_without_webgl_there_are_pictures_and_slices(browser: Any, folder: Path) -> None:
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    page.add_init_script(
        "const get = HTMLCanvasElement.prototype.getContext;"
        "HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {"
        " return kind.startsWith('webgl') ? null : get.call(this, kind, ...rest); };"
    )
    page.goto((folder / REPORT).as_uri())
    page.wait_for_selector(".slices[data-drawn]", timeout=60_000)
    assert page.locator(".fallback").is_visible()
    assert not page.locator(".plot").is_visible()
    page.close()
    page = open_report(browser, folder, java_script_enabled=False)
    assert page.locator(".fallback").is_visible()
    assert page.locator(".still").count() == 7
    assert page.locator(".still").first.is_visible()
    assert not page.locator(".panels").is_visible()
    page.close()


@pytest.mark.parametrize("size", [(210, 297), (216, 279)])
def test_the_first_printed_page_is_the_plan(browser: Any, folder: Path, size: tuple[int, int]) -> None:
    page = open_report(browser, folder)
    page.wait_for_selector(".slices[data-drawn]", timeout=60_000)
    dots = 96 / 25.4
    page.set_viewport_size({"width": round((size[0] - 28) * dots), "height": 900})
    page.emulate_media(media="print")
    page.wait_for_timeout(300)
    plan = page.locator(".plan").bounding_box()
    assert plan["y"] + plan["height"] < (size[1] - 34) * dots, "the plan fits on one page"
    assert plan["height"] > 0.75 * (size[1] - 34) * dots, "and fills it"
    assert page.locator(".sign").is_visible()
    assert not page.locator(".plot").is_visible()
    assert not page.locator(".panels").is_visible()
    assert page.locator(".still").count() == 7
    wide = [
        box["x"] + box["width"] for box in (item.bounding_box() for item in page.locator("section, svg").all()) if box
    ]
    assert max(wide) <= (size[0] - 28) * dots + 1
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


@pytest.mark.parametrize(("width", "media"), [(400, "screen"), (1600, "screen"), (700, "print")])
def test_a_failed_figure_is_readable_to_its_last_letter(browser: Any, folder: Path, width: int, media: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, java_script_enabled=False)
    page.goto((folder / REPORT).as_uri())
    page.emulate_media(media=media)
    assert page.locator(".check td .bad").inner_text() == "failed"
    wide = page.locator(".check .scroll").evaluate_all("tables => tables.map(one => one.scrollWidth - one.clientWidth)")
    assert max(wide) <= 0
    page.close()
