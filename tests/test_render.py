"""Pictures of spheres, whose outline, place and colour are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from balls import ball
from PIL import Image

from pcdiff.errors import InputError
from pcdiff.geometry.volume import Volume
from pcdiff.report.colours import BONE, IMPLANT
from pcdiff.report.gallery import case_picture
from pcdiff.report.render import BORDER_MM, Canvas, render, sheet, stack, write_png
from pcdiff.report.surfaces import shape_of


def drawn(picture: np.ndarray) -> np.ndarray:
    return (picture < 250).any(axis=2)


@pytest.mark.parametrize("view", ["front", "back", "left", "right", "top", "oblique"])
@pytest.mark.parametrize("flip", [False, True])
def test_a_ball_is_drawn_as_a_disc_to_scale_in_each_view(view: str, flip: bool) -> None:
    picture = render([shape_of(ball((5, -3, 4), 20, flip), BONE)], view, mm_per_pixel=0.5)
    assert picture.dtype == np.uint8
    assert drawn(picture).sum() * 0.25 == pytest.approx(np.pi * 20.0**2, rel=0.05)
    assert max(picture.shape[:2]) * 0.5 == pytest.approx(2 * (20 + BORDER_MM), abs=2.0)


def test_normals_point_outward_for_both_orientations() -> None:
    for flip in (False, True):
        shape = shape_of(ball((0, 0, 0), 20, flip), BONE)
        outward = shape.vertices / np.linalg.norm(shape.vertices, axis=1, keepdims=True)
        assert (shape.normals * outward).sum(axis=1).min() > 0.9


def test_the_nearer_shape_hides_the_farther() -> None:
    bone, piece = shape_of(ball((0, 0, 0), 20), BONE), shape_of(ball((0, -15, 0), 10), IMPLANT)
    bluish = {}
    for view in ("front", "back"):
        picture = render([bone, piece], view).astype(int)
        bluish[view] = (drawn(picture) & (picture[..., 2] > picture[..., 0])).sum()
    assert bluish["front"] > 500  # anterior is -y
    assert bluish["back"] == 0


def test_the_patients_left_is_on_the_right_from_the_front() -> None:
    shapes = [shape_of(ball((0, 0, 0), 10), BONE), shape_of(ball((18, 0, 0), 6), IMPLANT)]
    picture = render(shapes, "front").astype(int)
    columns = np.nonzero(drawn(picture) & (picture[..., 2] > picture[..., 0]))[1]
    assert columns.mean() > picture.shape[1] / 2


@pytest.mark.parametrize("view", ["front", "oblique"])
def test_a_point_has_the_pixel_where_it_is_drawn(view: str) -> None:
    point = np.array([[6.0, -30.0, 14.0]])
    shapes = [shape_of(ball((0, 0, 0), 25), BONE), shape_of(ball(tuple(point[0]), 3), IMPLANT)]
    canvas = Canvas(shapes, view, 0.4)
    for shape in shapes:
        canvas.add(shape)
    picture = canvas.picture().astype(int)
    rows, columns = np.nonzero(drawn(picture) & (picture[..., 2] > picture[..., 0]))
    assert canvas.pixels(point)[0] == pytest.approx([columns.mean(), rows.mean()], abs=2)


def test_a_case_picture_is_reproducible_and_survives_png(tmp_path: Path) -> None:
    bone, piece = ball((0, 0, 0), 20), ball((0, -15, 8), 10)
    bone, piece = shape_of(bone, BONE), shape_of(piece, IMPLANT)
    picture = case_picture(bone, piece, mm_per_pixel=1.0)
    assert np.array_equal(picture, case_picture(bone, piece, mm_per_pixel=1.0))
    write_png(picture, tmp_path / "case.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "case.png")), picture)


def test_a_sheet_puts_pictures_side_by_side_on_white() -> None:
    tall, low = np.zeros((9, 4, 3), np.uint8), np.zeros((3, 2, 3), np.uint8)
    joined = sheet([tall, low])
    assert joined.shape == (9, 6, 3)
    assert (joined[3:6, 4:] == 0).all()
    assert (joined[:3, 4:] == 255).all()
    assert (joined[6:, 4:] == 255).all()


def test_a_stack_puts_pictures_below_each_other_on_white() -> None:
    wide, narrow = np.zeros((3, 6, 3), np.uint8), np.zeros((2, 4, 3), np.uint8)
    joined = stack([wide, narrow])
    assert joined.shape == (5, 6, 3)
    assert (joined[3:, :4] == 0).all()
    assert (joined[3:, 4:] == 255).all()


def test_vertices_may_have_different_colours() -> None:
    shape = shape_of(ball((0, 0, 0), 20), BONE)
    halves = np.where(shape.vertices[:, :1] > 0, [[1.0, 0, 0]], [[0, 0, 1.0]])
    picture = render([replace(shape, colour=halves)], "front").astype(int)
    reddish, bluish = (drawn(picture) & (picture[..., a] > picture[..., b] + 30) for a, b in ((0, 2), (2, 0)))
    # seen from the front, +x, the patient's left, is on the right
    assert np.nonzero(reddish)[1].min() >= np.nonzero(bluish)[1].max() - 4
    assert reddish.sum() == pytest.approx(bluish.sum(), rel=0.05)


def test_an_empty_mask_and_unusable_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="empty"):
        shape_of(Volume(np.zeros((8, 8, 8), bool), np.eye(4)), BONE)
    with pytest.raises(InputError, match="folder"):
        write_png(np.zeros((2, 2, 3), np.uint8), tmp_path / "gone" / "x.png")
    with pytest.raises(InputError, match=r"a name that ends in \.png"):
        write_png(np.zeros((2, 2, 3), np.uint8), tmp_path / "x.jpg")
