"""The outer surface near the rim against the bone around it, on a head of the shape model and on a sphere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from pcdiff.checks import CompletedVault
from pcdiff.checks.continuation import continued_surface
from pcdiff.checks.coverage import restores_shape
from pcdiff.checks.criteria import Criteria
from pcdiff.checks.ray_view import RayView
from pcdiff.checks.report import Check
from pcdiff.geometry.volume import Volume
from pcdiff.prior.direction_map import MAP, RADIUS
from pcdiff.prior.fit import PriorFit

BLEND_MM = 10.0  # from the rim to where the whole shift is reached


def blend(depth: np.ndarray) -> np.ndarray:
    """(R,) mm from the rim -> (R,) share of a shift."""
    share = np.clip(depth / BLEND_MM, 0, 1)
    return share**2 * (3 - 2 * share)


def moved(implant: Volume, fitted: PriorFit, depth: np.ndarray, shift_mm: float) -> Volume:
    """The implant moved outward along the rays by `shift_mm`, and by nothing at the rim."""
    at = np.argwhere(ndimage.binary_dilation(implant.mask, iterations=4))
    model = fitted.pose.to_model(implant.to_mm(at.astype(float)))
    direction = model / np.linalg.norm(model, axis=1, keepdims=True)
    shift = shift_mm * MAP.sample(MAP.to_image(blend(depth)), direction, 0.0)
    source = implant.to_index(fitted.pose.to_patient(model - shift[:, None] * direction))
    mask = np.zeros_like(implant.mask)
    mask[tuple(at.T)] = ndimage.map_coordinates(implant.mask.astype(np.float32), source.T, order=1) >= 0.5
    return implant.with_mask(mask)


def shape(vault: CompletedVault, skull: Volume, implant: Volume) -> Check:
    return restores_shape(RayView.of(vault, skull, implant), Criteria())


def test_an_implant_too_far_in_is_seen_though_the_shape_model_is_wrong_too(
    case: tuple[Volume, Volume], fitted: PriorFit, depth: np.ndarray
) -> None:
    skull, true = case
    vault = CompletedVault.of(fitted)
    assert shape(vault, skull, moved(true, fitted, depth, 0.0)).passed
    heights = {}
    for shift in (0.0, -2.5, -1.5):
        # a shape model that is wrong in the same way hides the error from the comparison with it
        agreeing = replace(vault, outer=vault.outer + shift * blend(depth))
        check = shape(agreeing, skull, moved(true, fitted, depth, shift))
        heights[shift] = check.figure("continuation_height")
    assert check.figure("surface_distance_p95") < Criteria().max_surface_distance_mm
    assert check.figure("continuation_mean") > Criteria().max_continuation_mm
    assert check.passed is False
    assert heights[0.0] - heights[-1.5] == pytest.approx(1.0, abs=0.35)
    assert heights[0.0] - heights[-2.5] == pytest.approx(1.6, abs=0.4)


def test_a_sphere_is_continued_as_a_sphere() -> None:
    defect = (MAP.directions[:, 2] > np.cos(0.5)).astype(int)
    outer = np.where(defect > 0, np.nan, RADIUS)
    rays, radius = continued_surface(outer, defect)
    assert len(rays) > 500
    assert radius == pytest.approx(RADIUS, abs=0.01)


def test_below_the_vault_nothing_is_continued() -> None:
    low = MAP.directions[:, 2] < np.cos(np.deg2rad(75))
    rays, radius = continued_surface(np.full(len(low), RADIUS), low.astype(int))
    assert len(rays) == len(radius) == 0
