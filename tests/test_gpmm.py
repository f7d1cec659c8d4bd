"""The morphable model: its process, its matches, its labels without any outline, and its samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pcdiff.geometry.metrics import dice
from pcdiff.geometry.occupancy import head_occupancy
from pcdiff.geometry.volume import Volume
from pcdiff.methods.candidates import OrientedPoints, combine
from pcdiff.methods.gpmm import Bone, GpmmMethod, Labels, LowRank, Registration
from pcdiff.prior.direction_map import MAP, profiles
from pcdiff.prior.fit import PriorFit
from pcdiff.prior.model import ShapePrior

Z = MAP.directions[:, 2]
ALL = np.ones(len(Z), bool)


@pytest.fixture(scope="module")
def found(prior: ShapePrior, case: tuple[Volume, Volume], fitted: PriorFit) -> Registration:
    """The model registered to the defective skull of `case`."""
    return GpmmMethod(prior).register(case[0], fitted.pose)


def implant(fitted: PriorFit, tables: Sequence[np.ndarray], skull: Volume) -> np.ndarray:
    return combine([OrientedPoints(fitted.completed_surface(*tables))], skull)[0].mask


def test_the_implant_and_that_it_is_not_the_mean_head(
    prior: ShapePrior, case: tuple[Volume, Volume], fitted: PriorFit, found: Registration
) -> None:
    skull, truth = case
    ours = dice(implant(fitted, found.tables(found.weights), skull), truth.mask)
    assert ours > 0.9
    assert 1 - ours < 0.7 * (1 - dice(implant(fitted, prior.mean, skull), truth.mask))


def test_the_outliers_are_the_defect(
    prior: ShapePrior, case: tuple[Volume, Volume], fitted: PriorFit, found: Registration
) -> None:
    truth = head_occupancy(case[1])
    profile = profiles(truth.occupancy, truth.affine, fitted.pose, MAP.directions)
    true, defect = (profile >= 0.5).any(1), GpmmMethod(prior).defects(found.outlier) > 0
    assert (true & defect).sum() / (true | defect).sum() > 0.85


def test_samples_lie_around_the_mean_and_differ_where_bone_is_missing(
    fitted: PriorFit, found: Registration, depth: np.ndarray
) -> None:
    drawn = np.array([tables[0] for tables in found.samples(3, np.random.default_rng(0))])
    again = next(found.samples(1, np.random.default_rng(0)))
    assert np.array_equal(again[0], drawn[0])
    spread, around = drawn.std(0), (fitted.observation.distance > 3) & (fitted.observation.distance < 8)
    assert spread[depth > 10].mean() > 3 * spread[around].mean() > 0
    mean = found.tables(found.weights)[0]
    assert np.abs(drawn.mean(0) - mean)[depth > 10].mean() < 2


def test_the_basis_gives_the_kernel(prior: ShapePrior) -> None:
    process = LowRank.of(prior, 0, np.ones(len(Z)), 150)
    kernel, directions, modes = prior.settings.completion.outer, MAP.directions.astype(np.float32), prior.modes[:, 0]
    some = np.arange(0, len(Z), 997)
    exact = kernel(directions[some], directions[some], modes[:, some], modes[:, some])
    low_rank = process.basis[some] @ process.basis[some].T
    assert np.abs(low_rank - exact).max() < 0.06 * exact.max()


def test_a_match_is_mutual_and_meets_the_tangent_plane() -> None:
    hole = Z > 0.9
    distance, radius = Bone.of(np.where(hole, np.nan, 80.0)).match(np.full(len(Z), 78.0))
    deep = Z > 0.93
    assert np.isinf(distance[deep]).all()
    beside = (Z < 0.87) & (Z > -0.2)  # the map's edge has no normals
    assert np.allclose(distance[beside], 2, atol=0.1)
    assert np.allclose(radius[beside], 80, atol=0.1)


def test_labels_come_from_the_distance_and_in_regions() -> None:
    distance = np.full((2, len(Z)), 0.3)
    distance[:, Z > 0.9] = np.inf
    lonely = int(np.argmin(np.abs(Z)))
    distance[:, lonely] = 9.0
    labels = Labels.start(ALL)
    for _ in range(3):
        labels = labels.updated(distance, ALL)
    assert (labels.inlier[:, Z > 0.9] == 0).all()
    assert labels.inlier[0, lonely] > 0.9
    assert (labels.inlier[0] < 0.5).mean() == pytest.approx((Z > 0.9).mean(), rel=0.3)
    assert labels.std[0] == pytest.approx(0.9)
