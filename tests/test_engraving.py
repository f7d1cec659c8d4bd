"""A text in the inner surface of an implant: what is cut, that it reads from inside the head, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy.interpolate import LinearNDInterpolator
from scipy.ndimage import gaussian_filter, label

from pcdiff.checks.criteria import Criteria
from pcdiff.checks.distances import outward_cosine
from pcdiff.checks.printable import printable, self_intersections
from pcdiff.data.craniotomy import simulate_craniotomy
from pcdiff.errors import InputError
from pcdiff.geometry.mesh import Mesh, read_stl, write_stl
from pcdiff.geometry.mesh_reading import read_mesh
from pcdiff.geometry.stroke_font import GLYPHS, LETTER_MM, stroked, text_strokes
from pcdiff.geometry.surface import volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume, write_volume
from pcdiff.methods.base import Proposal
from pcdiff.methods.prior import PriorMethod
from pcdiff.pipeline.case import design_case
from pcdiff.pipeline.engraving import DEPTH_MM, Engraving, engrave
from pcdiff.pipeline.fit_options import FitOptions
from pcdiff.pipeline.settings import Settings
from pcdiff.prior.fit import PriorFit
from pcdiff.prior.model import ShapePrior
from pcdiff.report.gallery import engraving_picture
from pcdiff.report.render import view_axes

TEXT = "F2-7GP"
PIXEL_MM = 0.1
Run = Callable[..., tuple[int, str, str]]
Engraved = tuple[Mesh, Mesh, Engraving]


@pytest.fixture(scope="module")
def engraved(case: tuple[Volume, Volume], fitted: PriorFit) -> Engraved:
    """The surface of the true implant, the same with `TEXT` in it, and where that is."""
    mesh = volume_to_mesh(case[1], case[0])
    cut, (place,) = engrave(mesh, case[0], fitted.pose.shift, TEXT, 1.5)
    return mesh, cut, place


def letters_seen(mesh: Mesh, cut: Mesh, place: Engraving, view: np.ndarray) -> np.ndarray:
    """(H, W) bool: the cut faces as a reader sees them who looks against `view`; rows from above, columns from left."""
    axes = view_axes(view)
    before, after = ((each.vertices - place.point) @ axes.T for each in (mesh, cut))
    near = np.abs(before[:, 2]) < 4
    surface = LinearNDInterpolator(before[near, :2], before[near, 2])
    depth = surface(after[:, :2]) - after[:, 2]
    floor = ((depth > DEPTH_MM / 2) & (depth < 2 * DEPTH_MM))[cut.faces].all(axis=1)
    size = 600
    canvas = Image.new("1", (size, size))
    draw = ImageDraw.Draw(canvas)
    for triangle in after[cut.faces[floor]][:, :, :2] / PIXEL_MM:
        draw.polygon([(size / 2 + x, size / 2 - y) for x, y in triangle], fill=1)
    seen = np.array(canvas)
    rows, columns = (np.flatnonzero(seen.any(axis=axis)) for axis in (1, 0))
    return seen[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def reads(seen: np.ndarray, text: str) -> bool:
    """Whether each letter is more like that of a printed font than mirrored or upside down."""
    columns = seen.any(axis=0)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], columns, [False]]).astype(int)))
    letters = [seen[:, first:last] for first, last in edges.reshape(-1, 2)]
    if len(letters) != len(text):
        return False
    return all(_is_letter(shape, letter) for shape, letter in zip(letters, text, strict=True) if letter != "-")


def _is_letter(shape: np.ndarray, letter: str) -> bool:
    font = ImageFont.load_default(size=80)
    left, top, right, bottom = (int(x) for x in font.getbbox(letter))
    printed = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(printed).text((-left, -top), letter, fill=255, font=font)
    images = (printed, Image.fromarray(shape.astype(np.uint8) * 255))
    small, given = (gaussian_filter(np.array(image.resize((16, 24)), float), 2.0) for image in images)
    turned = (given, given[:, ::-1], given[::-1], given[::-1, ::-1])
    likeness = [np.corrcoef(small.ravel(), each.ravel())[0, 1] for each in turned]
    return bool(likeness[0] > 0.6 and likeness[0] == max(likeness))


def test_the_volume_of_the_letters_is_cut_and_the_solid_stays_closed(
    engraved: Engraved, fitted: PriorFit, tmp_path: Path
) -> None:
    mesh, cut, _ = engraved
    area = stroked(text_strokes(TEXT)).area()
    assert (mesh.volume_ml - cut.volume_ml) * 1000 == pytest.approx(area * DEPTH_MM, rel=0.1)
    outer = outward_cosine(mesh, fitted.pose.shift) > 0
    assert set(map(tuple, mesh.vertices[outer])) <= set(map(tuple, cut.vertices)), "outside nothing changes"
    write_stl(cut, tmp_path / "cut.stl")
    assert printable(read_stl(tmp_path / "cut.stl"), 1, np.nan, Criteria()).passed


@pytest.mark.parametrize("text", ["A", "A0A"])
def test_acute_letters_leave_no_triangles_that_intersect(
    text: str, case: tuple[Volume, Volume], fitted: PriorFit, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = volume_to_mesh(case[1], case[0])
    cut, _ = engrave(mesh, case[0], fitted.pose.shift, text, 1.5)
    assert not len(self_intersections(Mesh(cut.vertices.astype(np.float32), cut.faces)))
    # A mesh that intersects is given anew without its slivers.
    asked: list[int] = []
    monkeypatch.setattr(
        "pcdiff.pipeline.engraving.self_intersections",
        lambda mesh: asked.append(len(mesh.faces)) or np.zeros((3 - len(asked), 2)),
    )
    engrave(mesh, case[0], fitted.pose.shift, text, 1.5)
    assert len(asked) == 3
    assert asked[1] < asked[0]


def test_the_letters_read_from_inside_the_head(engraved: Engraved, fitted: PriorFit) -> None:
    mesh, cut, place = engraved
    inward = np.cross(place.right, place.up)
    assert inward @ (fitted.pose.shift - place.point) > 0
    seen = letters_seen(mesh, cut, place, inward)
    assert reads(seen, TEXT)
    assert not reads(seen[:, ::-1], TEXT), "mirrored"
    assert not reads(seen[::-1], TEXT), "upside down"
    height, width = np.array(seen.shape) * PIXEL_MM
    assert height == pytest.approx(LETTER_MM, abs=0.3)
    assert width == pytest.approx(len(TEXT) * 3.9, rel=0.1)


def test_the_letters_are_dark_in_the_picture(engraved: Engraved) -> None:
    _, cut, place = engraved
    picture = engraving_picture(cut, place.record()).mean(axis=-1)
    labels, _ = label(picture < 60)
    sizes = np.bincount(labels.ravel())[1:]
    assert np.count_nonzero(sizes > 40) == len(TEXT), "each letter is one patch"
    assert np.median(picture[picture < 250]) > 100, "on a brighter surface"
    middle = picture[:, picture.shape[1] // 4 : -picture.shape[1] // 4] < 250
    assert middle[[0, -1]].mean() > 0.9, "which goes on beyond the edges of the picture"


def test_the_letters_lie_away_from_bone_and_leave_a_wall(
    engraved: Engraved, case: tuple[Volume, Volume], fitted: PriorFit
) -> None:
    mesh, cut, place = engraved
    new = cut.vertices[~np.isin(cut.vertices, mesh.vertices).all(axis=1)]
    assert np.linalg.norm(new - place.point, axis=1).max() < 15
    bone = case[0].to_mm(np.argwhere(case[0].mask))
    nearest = np.linalg.norm(bone[:, None] - new[::20], axis=-1).min()
    assert nearest > 4.0
    with pytest.raises(InputError, match=rf"leave a wall of \d+\.\d mm, expected {place.wall_mm + 9:g} mm at least"):
        engrave(mesh, case[0], fitted.pose.shift, TEXT, place.wall_mm + 9)
    middle = mesh.vertices.mean(axis=0)
    small = Mesh(middle + (mesh.vertices - middle) * 0.5, mesh.faces)
    with pytest.raises(InputError, match="takes 46 x 5 mm, and no place"):
        engrave(small, case[0], fitted.pose.shift, "ABCDEFGHIJKL", 1.5)


@pytest.mark.parametrize("text", ["", " ", "ABCDEFGHIJKLM", "M\u00fcller", "a\nb", "#1"])
def test_other_texts_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match="--engrave: expected 1 to 12 letters A to Z, digits, spaces or") as refused:
        FitOptions(engrave=text)
    assert "\n" not in str(refused.value)
    assert FitOptions(engrave=" op-7 ").parse_engraving() == "OP-7"


def test_letters_stand_apart_and_differ() -> None:
    shapes = {}
    for letter in GLYPHS:
        if letter != " ":
            shapes[letter] = stroked(text_strokes(letter))
            (left, low, right, high) = shapes[letter].bounds()
            assert -1.56 < left < right < 1.56, letter
            assert -2.51 < low < high < 2.51, letter
    names = list(shapes)
    for n, one in enumerate(names):
        for other in names[n + 1 :]:
            apart = (shapes[one] - shapes[other]).area() + (shapes[other] - shapes[one]).area()
            assert apart > 0.7, f"{one} and {other}"


def test_a_design_with_a_text(case: tuple[Volume, Volume], prior: ShapePrior, tmp_path: Path, run: Run) -> None:
    write_volume(case[0], tmp_path / "head.nrrd")
    settings = Settings("prior", fitting=FitOptions(engrave="op-7f"), mesh="3mf,glb")
    record = design_case(tmp_path / "head.nrrd", tmp_path / "out", PriorMethod(prior), settings)
    (text,) = record["fitting"]["engraved"]
    assert (text["text"], text["depth_mm"]) == ("OP-7F", DEPTH_MM)
    plain = replace(settings, fitting=FitOptions(), report=False)
    without = design_case(tmp_path / "head.nrrd", tmp_path / "plain", PriorMethod(prior), plain)
    assert without["fitting"]["engraved"] == []
    assert record["stl"]["triangles"] > without["stl"]["triangles"]
    assert record["checks"] == without["checks"]
    for kind in ("3mf", "glb"):
        loaded = read_mesh(tmp_path / "out" / f"implant.{kind}")
        assert len(loaded.faces) == pytest.approx(record["stl"]["triangles"], abs=20)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8").replace("\u00a0", " ")
    assert "<dt>Engraved</dt><dd>OP-7F, in the inner surface, 0.4 mm deep</dd>" in page
    assert "<figcaption>engraved, seen from inside: OP-7F" in page
    code, _, error = run("design", tmp_path / "head.nrrd", "-o", tmp_path / "o", "--engrave", "zu lang, viel zu lang")
    assert (code, len(error.splitlines())) == (2, 1)
    assert not (tmp_path / "o").exists()


class _Twice(PriorMethod):
    """An ensemble of two equal candidates."""

    def __call__(self, *args: Any, **options: Any) -> Proposal:
        proposal = super().__call__(*args, **options)
        return replace(proposal, candidates=proposal.candidates * 2)


def test_pieces_texts_and_marks_carry_the_number_of_their_defect(
    healthy: Volume, prior: ShapePrior, tmp_path: Path
) -> None:
    skull, _ = simulate_craniotomy(healthy, "random_1", np.random.default_rng(5), defects=2)
    write_volume(skull, tmp_path / "head.nrrd")
    settings = Settings("prior", ensemble=2, fixation=2, fitting=FitOptions(engrave="7"))
    record = design_case(tmp_path / "head.nrrd", tmp_path / "out", _Twice(prior), settings)
    assert [piece["defect"] for piece in record["pieces"]] == [1, 2]
    sizes = {defect["label"]: defect["length_mm"] for defect in record["input_check"]["defects"]}
    assert [piece["length_mm"] for piece in record["pieces"]] == pytest.approx([sizes[1], sizes[2]], abs=1.6)  # a voxel
    texts = record["fitting"]["engraved"]
    assert {text["defect"] for text in texts} == {1, 2}
    bodies = {piece["defect"]: piece["length_mm"] for piece in record["pieces"]}
    assert texts[0]["defect"] == max(bodies, key=lambda label: bodies[label]), "the largest body is cut first"
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8").replace("\u00a0", " ")
    for number in (1, 2):
        assert f"<dt>Length x width x height, defect {number}</dt>" in page
        assert f"<figcaption>engraved, seen from inside, defect {number}: 7" in page
        assert f"<figcaption>fixation marks of defect {number}, seen from outside" in page
    assert "7, in the inner surface of each piece, 0.4 mm deep" in page
    assert "Thickness of bone / implant in mm, of defect 1, from mark 1 on: " in page
    candidates = [read_stl(tmp_path / "out" / "candidates" / f"implant_{k}.stl") for k in (1, 2)]
    assert [each["engraved"] for each in record["candidates"]] == [True, True]
    smooth = [volume_to_mesh(read_volume(tmp_path / "out" / "candidates" / f"implant_{k}.nrrd"), skull) for k in (1, 2)]
    for printed, designed in zip(candidates, smooth, strict=True):
        assert len(printed.faces) > len(designed.faces)
        assert 0.001 < designed.volume_ml - printed.volume_ml < 0.02
