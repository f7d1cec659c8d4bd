"""The error picture of balls: the colours of small and large distances, and of a defect left open."""

from __future__ import annotations

import numpy as np
import pytest
from balls import ball

from pcdiff.report.colours import ERROR_MM, SCALE, error_colours
from pcdiff.report.error_picture import error_picture


def test_the_error_scale_ends_at_its_upper_limit() -> None:
    colours = error_colours(np.array([0.0, ERROR_MM / 4, ERROR_MM, 10.0]))
    assert np.allclose(colours, SCALE[[0, 1, -1, -1]])


def count(picture: np.ndarray, colour: str) -> int:
    """Pixels above the scale that are strongly red, blue or violet."""
    r, g, b = np.moveaxis(picture[: picture.shape[0] - 90].astype(int), -1, 0)
    here = {"red": (r > b + 60) & (r > g + 60), "blue": b > r + 40, "violet": (r > g + 50) & (b > g + 50)}[colour]
    return int(here.sum())


def test_the_error_picture_is_blue_where_the_implant_fits_and_red_where_not() -> None:
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
    assert count(small, "violet") > 100  # the open part of the defect is drawn


def test_the_error_picture_has_one_row_per_piece() -> None:
    bone, one = ball((0, 0, 0), 20), ball((0, -18, 0), 6)
    two = one.with_mask(one.mask | ball((0, 18, 0), 6).mask)
    single, double = (error_picture(bone, truth, truth, "", mm_per_pixel=1.0) for truth in (one, two))
    scale = 40 + 90
    assert double.shape[0] - scale == pytest.approx(2 * (single.shape[0] - scale), rel=0.2)
    crumb = one.mask.copy()
    crumb[1, 1, 1] = True
    with_crumb = error_picture(bone, one.with_mask(crumb), one, "", mm_per_pixel=1.0)
    assert with_crumb.shape == single.shape
