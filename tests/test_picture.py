"""Pictures of spheres, whose outline, place and colour are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcdiff.errors import InputError
from pcdiff.picture import BONE, IMPLANT, MARGIN_MM, case_picture, render, shape_of, sheet, write_png
from pcdiff.volume import Volume


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
    picture = case_picture(bone, piece, mm_per_pixel=1.0)
    assert np.array_equal(picture, case_picture(bone, piece, mm_per_pixel=1.0))
    write_png(picture, tmp_path / "case.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "case.png")), picture)


def test_a_sheet_centres_pictures_on_white() -> None:
    tall, low = np.zeros((9, 4, 3), np.uint8), np.zeros((3, 2, 3), np.uint8)
    joined = sheet([tall, low])
    assert joined.shape == (9, 6, 3)
    assert (joined[3:6, 4:] == 0).all() and (joined[:3, 4:] == 255).all() and (joined[6:, 4:] == 255).all()


def test_nothing_to_draw_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="empty"):
        shape_of(Volume(np.zeros((8, 8, 8), bool), np.eye(4)), BONE)
    with pytest.raises(InputError, match="folder"):
        write_png(np.zeros((2, 2, 3), np.uint8), tmp_path / "gone" / "x.png")
