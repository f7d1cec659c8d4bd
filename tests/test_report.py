"""The report of a case: what it says, that nothing in it can be injected or fetched, and that a browser draws it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pcdiff import NOTICE
from pcdiff.design.case import design_case
from pcdiff.design.record import RECORD, case_record, case_skull, renew_record
from pcdiff.design.settings import Settings
from pcdiff.errors import InputError
from pcdiff.files import sha256
from pcdiff.geometry.mesh import read_stl, write_stl
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import write_volume
from pcdiff.methods.base import Proposal, Trajectory
from pcdiff.methods.candidates import OrientedPoints
from pcdiff.prior.fit import PriorFit
from pcdiff.report.case_report import CHECKS, PREVIEW, REPORT, write_report
from pcdiff.report.html import LARGEST, scene_html
from pcdiff.report.scene import case_scene

NAME = "<script>alert(1)<script> & 'co'"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def checks(passed: bool) -> dict[str, Any]:
    figure = {"name": "collision", "value": 0.81, "unit": "ml", "limit": 0.1, "rule": "at most", "passed": passed}
    words = "It collides with bone on its <b>way</b> in."
    return {
        "pcdiff": "0",
        "notice": NOTICE,
        "passed": passed,
        "insertion_direction": [0.0, 0.6, 0.8],
        "checks": [
            {"name": "insertable", "title": "Can be put in", "passed": passed, "words": words, "figures": [figure]},
            {"name": "symmetry", "title": "Restores the shape", "passed": None, "words": "No side.", "figures": []},
        ],
    }


@pytest.fixture(scope="module")
def folder(case: tuple[Volume, Volume], fitted: PriorFit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A case of three candidates with points, checks, figures at its vertices and a name that must be escaped."""
    skull = tmp_path_factory.mktemp("in") / "head.nrrd"
    write_volume(case[0], skull)

    def method(skull: Volume, *, ensemble: int = 1, seed: int = 0, device: str = "cpu") -> Proposal:
        slabs = [fitted.completed_surface(fitted.outer + shift) for shift in (0.0, 0.8, -0.8)]
        points = np.stack(
            [[completed_surface.points[:500] + away for away in (9, 3, 0)] for completed_surface in slabs]
        ).astype(np.float32)
        return Proposal(
            [OrientedPoints(slab) for slab in slabs], Trajectory(points, ("the prior", "halfway", "the result"))
        )

    folder = tmp_path_factory.mktemp("out") / "head"
    record = design_case(skull, folder, method, Settings("prior", 3, keep_points=True, report=False))
    vertices = read_stl(folder / "implant.stl").vertices
    across = vertices[:, 0] - vertices[:, 0].min()
    np.savez(folder / "surface.npz", thickness_mm=across, gap_mm=across / 20 - 1, uncertainty=np.zeros(len(vertices)))
    (folder / CHECKS).write_text(json.dumps(checks(False)))
    for k in (1, 2, 3):
        (folder / "candidates" / f"checks_{k}.json").write_text(json.dumps(checks(k == 2)))
    told = {"kind": "ct", "tilt_deg": 12.5, "warnings": ["Slices are <thick>."]}
    told["defects"] = [{"label": 1, "area_cm2": 31.4, "side": "left", "place": "left parietal"}]
    record |= {
        "recommended": 2,
        "recommended_because": "It <fits> best.",
        "input_check": told,
        "input": record["input"] | {"path": f"/home/x/{NAME}"},
    }
    write_report(folder, record, case[0])
    return folder


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / REPORT).read_text(encoding="utf-8")


def test_it_says_what_the_records_say(text: str) -> None:
    said = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert said.count(NOTICE) == 2
    assert said.index(NOTICE) < said.index("<h1>") < said.rindex(NOTICE)
    for part in (
        "0 of 1 checks passed: look at the others below",
        '<span class="light bad">look at this</span>',
        '<span class="light none">not judged</span>',
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
        "(0.00, 0.60, 0.80)",
        "prior.safetensors",
    ):
        assert part in said, part
    for caption in ("front", "top, forehead up", "from inside", "the rim, close up", "axial section"):
        assert f"<figcaption>{caption}" in said, caption
    assert re.search(r"<figcaption>(left|right) side<", said)


def test_names_are_escaped_and_folders_are_not_told(text: str) -> None:
    assert escape(NAME) in text
    assert NAME not in text
    assert "/home/x" not in text
    assert "<b>way</b>" not in text
    assert "&lt;b&gt;way&lt;/b&gt;" in text


def test_it_is_one_small_file_that_asks_for_nothing(folder: Path, text: str) -> None:
    assert (folder / REPORT).stat().st_size < LARGEST
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy[1]
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]*"', own)
    with Image.open(folder / PREVIEW) as preview:
        assert preview.width > 300


def test_what_is_not_there_is_left_out(folder: Path, case: tuple[Volume, Volume], tmp_path: Path) -> None:
    for name in ("implant.nrrd", "implant.stl", RECORD):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    record = case_record(tmp_path)
    write_report(tmp_path, record | {"members_ml": []}, case[0])
    text = (tmp_path / REPORT).read_text(encoding="utf-8")
    assert "There is no checks.json" in text
    assert "not checked" in text
    assert "<h2>Candidates" not in text
    assert 'data-control="field"' not in text
    (tmp_path / CHECKS).write_text("[]")
    with pytest.raises(InputError, match=r"checks\.json: expected checks"):
        write_report(tmp_path, record, case[0])
    (tmp_path / CHECKS).unlink()
    np.savez(tmp_path / "surface.npz", gap_mm=np.zeros(3))
    with pytest.raises(InputError, match="values of gap_mm"):
        write_report(tmp_path, record, case[0])


def test_a_new_report_is_what_the_record_knows(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "case")
    (tmp_path / "case" / REPORT).write_text("new")
    renew_record(tmp_path / "case", case_record(tmp_path / "case"), (REPORT,))
    record = case_record(tmp_path / "case")
    assert record["files"][REPORT] == sha256(tmp_path / "case" / REPORT)
    assert record["files"].keys() == case_record(folder)["files"].keys() | {REPORT}


def test_a_scene_holds_everything_once(folder: Path, case: tuple[Volume, Volume], tmp_path: Path) -> None:
    mesh = read_stl(folder / "implant.stl")
    write_stl(replace(mesh, vertices=mesh.vertices + np.array([0, 0, 1.0])), tmp_path / "true.stl")
    scene = case_scene(folder, case_skull(folder, case_record(folder)), tmp_path / "true.stl")
    names = ["skull", "implant", "candidate 1", "candidate 2", "candidate 3", "true implant"]
    assert [surface.name for surface in scene.surfaces] == names
    assert [surface.shown for surface in scene.surfaces] == [True, True, False, False, False, False]
    implant = scene.surfaces[1]
    assert [field.name for field in implant.fields] == ["thickness", "gap", "error"]
    thickness = implant.fields[0].values
    np.testing.assert_allclose(thickness, implant.shape.vertices[:, 0] - implant.shape.vertices[:, 0].min(), atol=1.5)
    assert 0.2 < np.median(implant.fields[2].values) < 1.0
    assert '<option value="error" selected>' in scene_html(scene)  # who gives the truth sees the error at once
    write_volume(case[1], tmp_path / "true.nrrd")
    scene = case_scene(folder, case[0], tmp_path / "true.nrrd")
    assert np.median(scene.surfaces[1].fields[2].values) < 0.8  # half a voxel
    assert [len(cloud.frames) for cloud in scene.clouds] == [1, 1, 1, 1, 3, 3, 3]
    assert scene.clouds[4].captions == ("the prior", "halfway", "the result")
    with pytest.raises(InputError, match="found none; give it with --skull"):
        case_skull(folder, case_record(folder) | {"input": {"path": "moved.nrrd"}})
    with pytest.raises(InputError, match="expected a case folder"):
        case_record(tmp_path)


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
    """Of the processes that hold pages."""
    session = browser.new_browser_cdp_session()
    processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
    session.detach()
    return float(sum(process["cpuTime"] for process in processes if process["type"] == "renderer"))


def test_a_browser_draws_it_and_its_buttons_work(browser: Any, folder: Path) -> None:
    page = browser.new_page(viewport={"width": 600, "height": 560})
    errors: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    started = cpu_seconds(browser)
    page.goto((folder / REPORT).as_uri())
    assert cpu_seconds(browser) - started < 3.0  # on a machine with nothing else to do, the seconds that pass
    page.wait_for_selector(".scene[data-drawn]", timeout=60_000)
    plot = page.locator(".plot")

    def seen() -> np.ndarray:
        """(H, W, 3) of the plot, after all drawing."""
        page.wait_for_timeout(150)
        file = folder / "seen.png"
        plot.screenshot(path=file)
        with Image.open(file) as image:
            picture = np.asarray(image.convert("RGB")).astype(int)
        file.unlink()
        return picture

    def after(act: Any) -> np.ndarray:
        drawn = int(page.locator(".scene").get_attribute("data-drawn"))
        act()
        page.wait_for_selector(f".scene[data-drawn='{drawn + 1}']", timeout=60_000)
        return seen()

    def blue(picture: np.ndarray) -> int:
        return int((picture[..., 2] > picture[..., 0] + 40).sum())

    def ink(picture: np.ndarray) -> int:
        return int((picture.min(axis=2) < 235).sum())

    whole = seen()
    assert ink(whole) > 20_000 and blue(whole) > 2_000, "skull and implant are drawn"
    alone = after(lambda: page.uncheck("[data-control=surface][value='0']"))
    assert ink(alone) < 0.8 * ink(whole)
    assert blue(alone) >= blue(whole)
    bone = after(lambda: page.check("[data-control=surface][value='0']"))
    bone = after(lambda: page.uncheck("[data-control=surface][value='1']"))
    assert blue(bone) < 0.1 * blue(whole)
    after(lambda: page.check("[data-control=surface][value='1']"))
    coloured = after(lambda: page.select_option("[data-control=field]", "thickness"))
    assert ((coloured[..., 0] > 150) & (coloured[..., 2] < 90)).sum() > 50, "the scale's red is there"
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
def test_it_is_as_wide_as_the_window(browser: Any, folder: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, java_script_enabled=False)
    page.goto((folder / REPORT).as_uri())
    wide = (
        page.locator("body").bounding_box()["width"],
        max(box["x"] + box["width"] for box in (item.bounding_box() for item in page.locator("section").all()) if box),
    )
    assert max(wide) <= width
    page.close()
