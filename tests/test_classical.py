"""The methods without training: what each computes where the answer is known, and whole designs by them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pcdiff.data.craniotomy import simulate_craniotomy
from pcdiff.errors import InputError
from pcdiff.geometry.metrics import dice
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume, write_volume
from pcdiff.methods.base import PriorBasedMethod
from pcdiff.methods.candidates import combine
from pcdiff.methods.mean import MeanMethod
from pcdiff.methods.mirror import MirrorMethod
from pcdiff.methods.rbf import RbfMethod, spline
from pcdiff.methods.registry import load_method
from pcdiff.methods.ssm import SsmMethod
from pcdiff.prior.defects import open_rays
from pcdiff.prior.direction_map import MAP
from pcdiff.prior.fit import PriorFit, fit
from pcdiff.prior.model import ShapePrior

X, Y, Z = MAP.directions.T
ONE_SIDED = (X > 0.3) & (np.abs(Y) < 0.35) & (Z > 0.2)


def over(fitted: PriorFit, outer: np.ndarray, thickness: np.ndarray, defect: np.ndarray) -> PriorFit:
    """A fit to bone with these tables, (R,) mm, and a defect, (R,) int."""
    observation = open_rays(outer, thickness, defect)
    return replace(fitted, observation=observation, targets=np.flatnonzero(observation.distance <= 12))


@pytest.fixture(scope="module")
def one_sided(prior: ShapePrior, healthy: Volume) -> tuple[Volume, Volume, PriorFit]:
    """Defective skull, true implant and fit: a defect of one side."""
    skull, truth = simulate_craniotomy(healthy, "random_1", np.random.default_rng(3))
    return skull, truth, fit(prior, skull)


@pytest.mark.parametrize(("name", "least"), [("mirror", 0.93), ("rbf", 0.9), ("mean", 0.93), ("ssm", 0.93)])
def test_implants(name: str, least: float, one_sided: tuple[Volume, Volume, PriorFit]) -> None:
    skull, truth, fitted = one_sided
    method = load_method(name)
    assert isinstance(method, PriorBasedMethod)
    implant, _ = combine(method(skull, fitted).candidates, skull)
    assert dice(implant.mask, truth.mask) > least


def test_the_command_designs_by_one_and_says_why_mirror_cannot(
    run: Callable[..., tuple[int, str, str]], case: tuple[Volume, Volume], tmp_path: Path
) -> None:
    skull = tmp_path / "central.nrrd"
    write_volume(case[0], skull)
    code, _, errors = run("design", skull, "-o", tmp_path, "--method", "rbf", "--no-report", "-q")
    assert code == 0, errors
    assert dice(read_volume(tmp_path / "central" / "implant.nrrd").mask, case[1].mask) > 0.85
    code, _, errors = run("design", skull, "-o", tmp_path / "mirrored", "--method", "mirror", "--no-report", "-q")
    assert code == 2
    assert re.search(r"method mirror: .*defect 1, got it for 6\d%; the defect reaches the midline.*\n$", errors)
    assert errors.count("\n") == 1
    assert not (tmp_path / "mirrored" / "central").exists()


def test_a_spline_continues_what_is_linear_over_directions(fitted: PriorFit) -> None:
    linear = 80 + 3 * X - 2 * Y + 5 * Z
    continued = spline(fitted, np.where(fitted.defect > 0, np.nan, linear))
    assert np.allclose(continued[fitted.targets], linear[fitted.targets], atol=0.01)
    assert np.isnan(continued).sum() == len(X) - len(fitted.targets)


def test_rbf_takes_nothing_of_the_surface_from_the_shape_model(fitted: PriorFit, prior: ShapePrior) -> None:
    ball = over(fitted, np.full(len(X), 80.0), 5 + Z, (ONE_SIDED).astype(int))
    outer, thickness = RbfMethod(prior).tables(ball)
    assert np.allclose(outer[ball.targets], 80, atol=0.01)
    assert np.allclose(thickness[ball.targets], (5 + Z)[ball.targets], atol=0.01)


def test_the_mean_follows_the_rim(fitted: PriorFit, prior: ShapePrior) -> None:
    larger = prior.mean + np.array([[2.0], [-1.0]]) * (1 + Y)
    skull = over(fitted, larger[0], larger[1], ONE_SIDED.astype(int))
    outer, thickness = MeanMethod(prior).tables(skull)
    assert np.allclose(outer[skull.targets], larger[0][skull.targets], atol=0.01)
    assert np.allclose(thickness[skull.targets], larger[1][skull.targets], atol=0.01)


def test_ssm_finds_the_modes_of_a_head_from_its_intact_bone(fitted: PriorFit, prior: ShapePrior) -> None:
    weights = np.random.default_rng(2).standard_normal(len(prior.modes))
    head = prior.mean + np.tensordot(weights, prior.modes, 1)
    skull = over(fitted, head[0], head[1], ONE_SIDED.astype(int))
    outer, thickness = SsmMethod(prior).tables(skull)
    error = np.abs(np.stack([outer, thickness]) - head)[:, ONE_SIDED].mean(1)
    nothing = np.abs(prior.mean - head)[:, ONE_SIDED].mean(1)
    assert (error < 0.35 * nothing).all()


def test_ssm_does_not_hear_far_bone(fitted: PriorFit, prior: ShapePrior) -> None:
    far = over(fitted, *prior.mean, ONE_SIDED.astype(int)).observation.distance > 60
    changed = over(fitted, prior.mean[0] + 3 * far, prior.mean[1], ONE_SIDED.astype(int))
    assert np.abs(SsmMethod(prior).tables(changed)[0] - prior.mean[0])[ONE_SIDED].max() < 0.1


def test_the_mirrored_side_is_moved_onto_the_bone_around(fitted: PriorFit, prior: ShapePrior) -> None:
    even = (prior.mean + prior.mean[:, MAP.mirror]) / 2
    moved = even[0] + np.where(X > 0, 1.5 * X, 0)  # to first order, the left side is 1.5 mm farther left
    skull = over(fitted, moved, even[1], ONE_SIDED.astype(int))
    outer, thickness = MirrorMethod(prior).tables(skull)
    assert np.abs(outer - moved)[ONE_SIDED].mean() < 0.2
    assert np.abs(even[0] - moved)[ONE_SIDED].mean() > 0.6
    assert np.abs(thickness - even[1])[ONE_SIDED].mean() < 0.2


def test_mirror_refuses_a_defect_over_the_midline(fitted: PriorFit, prior: ShapePrior) -> None:
    central = ((np.abs(X) < 0.3) & (np.abs(Y) < 0.3) & (Z > 0)).astype(int)
    with pytest.raises(InputError, match="expected bone on the other side of the whole defect 1, got it for 0%; the"):
        MirrorMethod(prior).tables(over(fitted, *prior.mean, central))
