"""Foreign case folders: nothing in them reaches the report unescaped, asks for much memory, or ends in a traceback."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import fuzz, refused
from numpy.lib import format as npy

from pcdiff.array_files import ArrayKind, read_arrays
from pcdiff.errors import InputError
from pcdiff.geometry.mesh import Mesh, read_stl, write_stl
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume, write_volume
from pcdiff.methods.base import Proposal, Trajectory
from pcdiff.methods.candidates import OrientedPoints
from pcdiff.pipeline.case import design_case
from pcdiff.pipeline.contents import read_contents
from pcdiff.pipeline.record import SKULL, read_record
from pcdiff.pipeline.settings import Settings
from pcdiff.prior.fit import PriorFit
from pcdiff.report.case_report import REPORT, write_report
from pcdiff.report.contents import CaseContents
from pcdiff.report.scene import case_scene

PAYLOAD = "<img src=x onerror=alert(1)>\"'&"


@pytest.fixture(scope="module")
def whole(case: tuple[Volume, Volume], fitted: PriorFit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A case folder with two candidates and points."""
    skull = tmp_path_factory.mktemp("in") / "head.nrrd"
    write_volume(case[0], skull)

    def method(skull: Volume, *, ensemble: int = 1, seed: int = 0, device: str = "cpu") -> Proposal:
        surfaces = [fitted.completed_surface(fitted.outer + shift) for shift in (0.0, 0.8)]
        points = np.stack([[surface.points[:50] + away for away in (3, 0)] for surface in surfaces])
        return Proposal(
            [OrientedPoints(surface) for surface in surfaces],
            Trajectory(points.astype(np.float32), ("start", "result")),
        )

    folder = tmp_path_factory.mktemp("out") / "head"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pcdiff.pipeline.flow.fit_prior", lambda prior, skull, *_, **__: fitted)
        design_case(skull, folder, method, Settings("prior", 2, keep_points=True, report=False))
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "case"))


def poisoned(value: Any, text: str) -> Any:
    """The same JSON with a text in place of every text, and as a further name in every object."""
    if isinstance(value, dict):
        return {key: poisoned(each, text) for key, each in value.items()} | {text: text}
    if isinstance(value, list):
        return [poisoned(each, text) for each in value]
    return text if isinstance(value, str) else value


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where each value of a JSON stands that is no object and no list."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [found for key, each in items for found in leaves(each, (*path, key))]
    return [path]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The same JSON with another value at one place."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


@pytest.fixture
def plain_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn does not depend on texts: one picture of few pixels stands for all."""
    tiny = np.zeros((2, 2, 3), np.uint8)
    monkeypatch.setattr("pcdiff.report.case_report.case_picture", lambda *arguments: tiny)
    monkeypatch.setattr("pcdiff.report.case_report.render", lambda *arguments: tiny)
    monkeypatch.setattr("pcdiff.report.case_report.views", lambda *arguments: [("front", tiny)])
    monkeypatch.setattr("pcdiff.report.case_report.Slices.__init__", lambda slices, contents: None)
    monkeypatch.setattr("pcdiff.report.case_report.Slices.html", lambda slices: "")


def test_no_text_of_a_foreign_folder_reaches_the_page_unescaped(folder: Path, plain_pictures: None) -> None:
    for path in (folder / "run.json", folder / "checks.json", *folder.glob("candidates/*.json")):
        values = poisoned(json.loads(path.read_text()), PAYLOAD)
        if "seconds" in values:
            values["seconds"] |= {PAYLOAD: 1.0}
        path.write_text(json.dumps(values))
    record = json.loads((folder / "run.json").read_text())
    for name in ("seconds", "files"):
        record[name] = {
            key: value for key, value in record[name].items() if isinstance(value, str) == (name == "files")
        }
    record["seconds"] |= {PAYLOAD: 1.0}
    record["input_check"]["defects"] = [{"label": 1, "area_cm2": 3.0, "side": PAYLOAD, "place": PAYLOAD}]
    record["input_check"]["warnings"] = [PAYLOAD]
    (folder / "run.json").write_text(json.dumps(record))
    points = dict(np.load(folder / "points.npz"))
    points["captions"] = np.array([PAYLOAD] * len(points["captions"]))
    np.savez(folder / "points.npz", **points)
    contents = read_contents(folder)
    write_report(folder, replace(contents, title=PAYLOAD, stage_titles={PAYLOAD: PAYLOAD}))
    page = (folder / REPORT).read_text(encoding="utf-8")
    ours = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") > 20
    assert "<img src=x" not in ours
    assert "onerror=alert(1)>" not in ours


def test_letters_that_cannot_be_engraved_are_refused(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    vectors = {name: [1.0, 0.0, 0.0] for name in ("point", "right", "up")}
    record["fitting"]["engraved"] = [{"text": "M\u00fcller", "defect": 1, **vectors, "wall_mm": 2.0, "depth_mm": 0.4}]
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="not all of its letters can be engraved"):
        read_contents(folder)


def test_every_value_is_of_its_kind_or_refused(
    folder: Path, plain_pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = read_contents(folder)
    scene, pages = case_scene(contents), []
    monkeypatch.setattr("pcdiff.report.case_report.case_scene", lambda contents: scene)
    monkeypatch.setattr("pcdiff.report.case_report.scene_html", lambda scene: "")
    monkeypatch.setattr("pcdiff.report.case_report.write_png", lambda picture, path: None)
    monkeypatch.setattr("pcdiff.report.case_report.write_page", lambda path, title, body, header: pages.append(body))
    unchanged(monkeypatch, contents)
    monkeypatch.setattr("pcdiff.pipeline.contents.read_arrays", lambda *arguments: {})
    monkeypatch.setattr("pcdiff.pipeline.contents._read_points", lambda path: contents.points)
    rng, refusals = np.random.default_rng(16), 0
    for name in ("run.json", "checks.json", "candidates/checks_1.json"):
        text = (folder / name).read_text()
        values = json.loads(text)
        for payload in (PAYLOAD, [PAYLOAD], {PAYLOAD: PAYLOAD}, 10**400, -1, None):
            before, places = len(pages), leaves(values)
            if name != "run.json" or payload != PAYLOAD:
                places = [places[k] for k in rng.permutation(len(places))[:8]]
            for place in places:
                (folder / name).write_text(json.dumps(changed(values, place, payload)))
                refused(lambda: write_report(folder, read_contents(folder)))
            refusals += len(places) - (len(pages) - before)
        (folder / name).write_text(text)
    assert len(pages) > 20
    assert refusals > 50
    assert not [page for page in pages if "<img src=x" in page]


def unchanged(monkeypatch: pytest.MonkeyPatch, contents: CaseContents) -> None:
    """The volumes and surfaces of a folder are not read again; to read them takes most of the time."""
    monkeypatch.setattr("pcdiff.pipeline.contents.case_skull", lambda folder, skull: contents.skull.volume)
    monkeypatch.setattr("pcdiff.pipeline.contents.read_volume", lambda path: contents.implant)
    monkeypatch.setattr("pcdiff.pipeline.contents.read_stl", lambda path: contents.mesh)


def test_the_skull_of_a_foreign_folder_is_not_read_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / SKULL, tmp_path / "elsewhere.nrrd")
    record = json.loads((folder / "run.json").read_text())
    record["input"]["path"] = str(tmp_path / "elsewhere.nrrd")
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="give it with --skull"):
        read_contents(folder)
    assert read_contents(folder, tmp_path / "elsewhere.nrrd").title == "case"


def vertices(folder: Path) -> int:
    return len(read_stl(folder / "implant.stl").vertices)


def bomb(path: Path, name: str, shape: tuple[int, ...], descr: str = "<f4") -> None:
    """An NPZ file whose array declares a shape and holds zeros, as many as deflate packs into about a megabyte."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(f"{name}.npy", "w") as file:
        npy.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        file.write(bytes(min(2**24, 4 * int(np.prod(shape, dtype=object)))))


@pytest.mark.parametrize("name", ["surface.npz", "points.npz"])
@pytest.mark.parametrize("shape", [(800_000_000,), (10**12, 3), (2**62, 4), (0, 3), (3,)])
def test_a_small_file_does_not_become_gigabytes(folder: Path, name: str, shape: tuple[int, ...]) -> None:
    bomb(folder / name, "thickness_mm" if name == "surface.npz" else "prior", shape)
    assert (folder / name).stat().st_size < 1e6
    with pytest.raises(InputError, match=name):
        read_contents(folder)


def test_declared_shapes_are_compared_before_anything_is_unpacked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = vertices(folder)
    bomb(folder / "surface.npz", "gap_mm", (count + 1,))
    read: list[int] = []
    original = zipfile.ZipExtFile.read
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda file, size=-1: (read.append(size), original(file, size))[1])
    with pytest.raises(InputError, match=rf"values of gap_mm of shape \({count + 1},\) .*expected shape \({count}\)"):
        read_contents(folder)
    assert sum(read) < 1000
    assert min(read) >= 0


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"prior": np.zeros((3, 3), np.float32), "candidate_x": np.zeros((3, 3), np.float32)}, "points of a design"),
        ({"candidate_1": np.zeros((3, 3), np.float32)}, "points of a design"),
        ({"prior": np.full((3, 3), np.nan, np.float32)}, "points without a place"),
        ({"prior": np.full((3, 3), 1e30, np.float32)}, "points without a place"),
        ({"prior": np.zeros((3, 3), int)}, "values of prior"),
        (
            {"prior": np.zeros((3, 3), np.float32), "trajectory": np.zeros((1, 2, 3, 3), np.float32)},
            "points of a design",
        ),
    ],
)
def test_points_are_those_of_a_design(folder: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(folder / "points.npz", **arrays)
    with pytest.raises(InputError, match=message):
        read_contents(folder)


def test_objects_are_not_unpickled(folder: Path) -> None:
    with (folder / "surface.npz").open("wb") as file:
        np.savez(file, gap_mm=np.array([{}] * vertices(folder), object))
    with pytest.raises(InputError, match=r"surface\.npz"):
        read_contents(folder)


def test_other_arrays_of_a_file_are_left_out(tmp_path: Path) -> None:
    values = {"gap_mm": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "more": np.zeros(3)}
    np.savez_compressed(tmp_path / "a.npz", **values)
    found = read_arrays(tmp_path / "a.npz", {"gap_mm": ArrayKind("f", (None, 3))}, "arrays", "make others")
    assert found.keys() == {"gap_mm"}
    np.testing.assert_array_equal(found["gap_mm"], values["gap_mm"])


def test_an_implant_of_another_scan_is_refused(folder: Path) -> None:
    skull = read_volume(folder / SKULL)
    write_volume(skull.crop(np.zeros(3), np.array(skull.mask.shape) - 1), folder / SKULL)
    with pytest.raises(InputError, match=r"expected implant\.nrrd on the grid of the defective skull"):
        read_contents(folder)


@pytest.mark.parametrize("shift", [500.0, 1e30, np.nan])
def test_a_surface_beside_the_scan_is_refused(folder: Path, shift: float) -> None:
    mesh = read_stl(folder / "implant.stl")
    moved = mesh.vertices.copy()
    moved[0] += shift
    with np.errstate(all="ignore"):
        write_stl(Mesh(moved, mesh.faces), folder / "implant.stl")
    with pytest.raises(InputError, match=r"implant\.stl"):
        read_contents(folder)


@pytest.mark.parametrize(
    "name", ["run.json", "checks.json", "candidates/checks_2.json", "surface.npz", "points.npz", "implant.stl"]
)
def test_mutated_files_are_read_or_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if name == "implant.stl":
        assert fuzz(folder / name, read_stl, 20, head=200) > 5
        return
    unchanged(monkeypatch, read_contents(folder))
    assert fuzz(folder / name, lambda path: (read_record(folder), read_contents(folder)), 60) > 20
