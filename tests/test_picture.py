"""Pictures of spheres, whose outline, place and colour are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcdiff.errors import InputError
from pcdiff.geometry.volume import Volume
from pcdiff.report.render import (
    BONE,
    ERROR_MM,
    ERRORS,
    IMPLANT,
    MARGIN_MM,
    case_picture,
    error_colours,
    error_picture,
    render,
    shape_of,
    sheet,
    write_png,
)


def ball(centre: tuple[float, float, float], radius: float, flip: bool = False) -> Volume:
    """A ball (mm) on a 1 mm grid of 64 voxels about the origin; flip: the first axis runs to the right."""
    affine = np.eye(4)
    affine[:3, 3] = -31.5
    if flip:
        affine[0] *= -1
    index = np.moveaxis(np.indices((64, 64, 64)), 0, -1).astype(float)
    mm = index @ affine[:3, :3].T + affine[:3, 3]
    return Volume(np.linalg.norm(mm - centre, axis=-1) <= radius, affine)


def drawn(picture: np.ndarray) -> np.ndarray:
    return (picture < 250).any(axis=2)


@pytest.mark.parametrize("view", ["front", "back", "left", "right", "top", "oblique"])
@pytest.mark.parametrize("flip", [False, True])
def test_a_ball_is_a_disc_to_scale_from_everywhere(view: str, flip: bool) -> None:
    picture = render([shape_of(ball((5, -3, 4), 20, flip), BONE)], view, mm_per_pixel=0.5)
    assert picture.dtype == np.uint8
    assert drawn(picture).sum() * 0.25 == pytest.approx(np.pi * 20.0**2, rel=0.05)
    assert max(picture.shape[:2]) * 0.5 == pytest.approx(2 * (20 + MARGIN_MM), abs=2.0)


def test_normals_point_out_whatever_the_axes_do() -> None:
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


def test_left_and_right_are_the_patients() -> None:
    shapes = [shape_of(ball((0, 0, 0), 10), BONE), shape_of(ball((18, 0, 0), 6), IMPLANT)]
    picture = render(shapes, "front").astype(int)
    columns = np.nonzero(drawn(picture) & (picture[..., 2] > picture[..., 0]))[1]
    # who looks the patient in the face sees the patient's left on the right
    assert columns.mean() > picture.shape[1] / 2


def test_the_same_case_gives_the_same_picture_and_the_png_keeps_it(tmp_path: Path) -> None:
    bone, piece = ball((0, 0, 0), 20), ball((0, -15, 8), 10)
    bone, piece = shape_of(bone, BONE), shape_of(piece, IMPLANT)
    picture = case_picture(bone, piece, mm_per_pixel=1.0)
    assert np.array_equal(picture, case_picture(bone, piece, mm_per_pixel=1.0))
    write_png(picture, tmp_path / "case.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "case.png")), picture)


def test_a_sheet_centres_pictures_on_white() -> None:
    tall, low = np.zeros((9, 4, 3), np.uint8), np.zeros((3, 2, 3), np.uint8)
    joined = sheet([tall, low])
    assert joined.shape == (9, 6, 3)
    assert (joined[3:6, 4:] == 0).all()
    assert (joined[:3, 4:] == 255).all()
    assert (joined[6:, 4:] == 255).all()


def test_each_vertex_may_have_a_colour_of_its_own() -> None:
    shape = shape_of(ball((0, 0, 0), 20), BONE)
    halves = np.where(shape.vertices[:, :1] > 0, [[1.0, 0, 0]], [[0, 0, 1.0]])
    picture = render([replace(shape, colour=halves)], "front").astype(int)
    reddish, bluish = (drawn(picture) & (picture[..., a] > picture[..., b] + 30) for a, b in ((0, 2), (2, 0)))
    # who looks the patient in the face sees +x, the patient's left, on the right
    assert np.nonzero(reddish)[1].min() >= np.nonzero(bluish)[1].max() - 4
    assert reddish.sum() == pytest.approx(bluish.sum(), rel=0.05)


def test_the_scale_of_errors_ends_where_it_says() -> None:
    colours = error_colours(np.array([0.0, ERROR_MM / 4, ERROR_MM, 10.0]))
    assert np.allclose(colours, ERRORS[[0, 1, -1, -1]])


def count(picture: np.ndarray, colour: str) -> int:
    """Pixels above the scale that are strongly red, blue or violet."""
    r, g, b = np.moveaxis(picture[: picture.shape[0] - 90].astype(int), -1, 0)
    here = {"red": (r > b + 60) & (r > g + 60), "blue": b > r + 40, "violet": (r > g + 50) & (b > g + 50)}[colour]
    return int(here.sum())


def test_an_error_map_is_blue_where_it_fits_and_red_where_it_does_not() -> None:
    bone, truth = ball((0, 0, 0), 20), ball((0, -15, 8), 8)
    bone = bone.with_mask(bone.mask & ~truth.mask)
    fits = error_picture(bone, truth, truth, "fits", mm_per_pixel=1.0)
    assert count(fits, "blue") > 100
    assert count(fits, "red") == 0
    assert count(fits, "violet") == 0
    proud = error_picture(bone, ball((0, -15, 8), 13), truth, "proud", mm_per_pixel=1.0)
    assert count(proud, "red") > 100
    assert count(proud, "blue") == 0
    assert count(proud, "violet") == 0
    small = error_picture(bone, ball((0, -15, 8), 3), truth, "small", mm_per_pixel=1.0)
    assert count(small, "violet") > 100  # what is left open is drawn


def test_an_error_map_has_a_row_for_each_of_two_pieces() -> None:
    bone, one = ball((0, 0, 0), 20), ball((0, -18, 0), 6)
    two = one.with_mask(one.mask | ball((0, 18, 0), 6).mask)
    single, double = (error_picture(bone, truth, truth, "", mm_per_pixel=1.0) for truth in (one, two))
    scale = 40 + 90
    assert double.shape[0] - scale == pytest.approx(2 * (single.shape[0] - scale), rel=0.2)


def test_nothing_to_draw_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="empty"):
        shape_of(Volume(np.zeros((8, 8, 8), bool), np.eye(4)), BONE)
    with pytest.raises(InputError, match="folder"):
        write_png(np.zeros((2, 2, 3), np.uint8), tmp_path / "gone" / "x.png")
    with pytest.raises(InputError, match=r"a name that ends in \.png"):
        write_png(np.zeros((2, 2, 3), np.uint8), tmp_path / "x.jpg")
