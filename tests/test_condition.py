"""The network's inputs, which do not depend on the bone in the defect; and training pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pcdiff.errors import InputError
from pcdiff.geometry.points import surface_normals
from pcdiff.methods.anchored.condition import (
    ANCHORS,
    BONE,
    FEATURES,
    Condition,
    choose_rays,
    jittered_cholesky,
    make_condition,
    make_frame,
    table_normals,
)
from pcdiff.methods.anchored.config import LAYOUT
from pcdiff.prior.defects import Observation, open_rays
from pcdiff.prior.direction_map import MAP, PIXEL, Pose
from pcdiff.prior.fit import PriorFit, complete
from pcdiff.prior.folds import assign_folds
from pcdiff.training.anchored.pairs import Pairs, cut_rays, flatten, make_pair, mirrored
from pcdiff.training.recipes import PairsConfig

ORIGIN = Pose(np.eye(3), np.zeros(3))


@pytest.fixture(scope="module")
def chosen(fitted) -> tuple[np.ndarray, np.ndarray]:
    return choose_rays(fitted.observation)


@pytest.fixture(scope="module")
def condition(fitted, chosen) -> Condition:
    return make_condition(fitted, *chosen)


@pytest.fixture(scope="module")
def table_radii(population) -> np.ndarray:
    """(2, R) of a complete head that the model `left_out` was built without."""
    return np.stack([population.outer[0], population.thickness[0]])


@pytest.fixture(scope="module")
def left_out(population):
    return population.prior([False] + [True] * 5)


@pytest.fixture(scope="module")
def defect(table_radii) -> np.ndarray:
    return cut_rays(table_radii, "random_1", 1, np.random.default_rng(3))


def completed(prior, table_radii: np.ndarray, defect: np.ndarray) -> tuple[PriorFit, np.ndarray, np.ndarray]:
    observation = open_rays(*table_radii, defect)
    anchors, bone = choose_rays(observation)
    return complete(prior, ORIGIN, observation, 0.0, anchors), anchors, bone


# --- rays and frame -------------------------------------------------------------------------------------------------


def test_anchors_lie_in_the_defect_and_bone_points_around_it(fitted, chosen):
    observation = fitted.observation
    anchors, bone = chosen
    for rays, count in ((anchors, ANCHORS), (bone, BONE)):
        assert len(rays) == count
        assert (np.diff(rays) > 0).all()
    assert observation.distance[anchors].max() <= PIXEL
    assert (observation.defect[anchors] > 0).mean() > 0.8
    assert (observation.defect[bone] == 0).all()
    assert observation.distance[bone].max() <= LAYOUT.reach_mm
    assert np.isfinite(observation.outer[bone]).all()
    assert np.isfinite(observation.thickness[bone]).all()


def test_anchors_are_spread_evenly(fitted, chosen):
    anchors = chosen[0]
    cosine = np.clip(MAP.directions[anchors] @ MAP.directions[anchors].T, -1, 1)
    np.fill_diagonal(cosine, -1)
    nearest = np.arccos(cosine.max(1))
    inside = np.flatnonzero(fitted.defect > 0)
    reach = np.arccos(np.clip((MAP.directions[inside] @ MAP.directions[anchors].T).max(1), -1, 1)).max()
    assert reach < 2 * nearest.min()  # as for any furthest-point sample


def test_a_small_defect_takes_in_the_rays_next_to_it():
    middle = MAP.directions @ MAP.directions[len(MAP.directions) // 2]
    defect = np.where(middle > np.cos(0.12), 1, 0)
    assert 100 < defect.sum() < ANCHORS
    observation = open_rays(np.full(len(defect), 80.0), np.full(len(defect), 6.0), defect)
    anchors, _ = choose_rays(observation)
    assert np.isin(np.flatnonzero(defect), anchors).all()
    left = np.setdiff1d(np.arange(len(defect)), anchors)
    assert observation.distance[left].min() >= observation.distance[anchors].max()


@pytest.mark.parametrize("site", [(0, 0.9, -0.2), (0, 0.8, 0.6), (0, -1, 0.5), (0.9, 0, 0.4), (0, 0.97, -0.24)])
@pytest.mark.parametrize("radius", [10.0, 14.0])
def test_a_small_defect_has_a_condition_at_every_site(prior, table_radii, site, radius):
    direction = np.array(site) / np.linalg.norm(site)
    defect = np.where(np.arccos(np.clip(MAP.directions @ direction, -1, 1)) * 85 < radius, 1, 0)
    fit = complete(prior, ORIGIN, open_rays(*table_radii, defect), 0.0)
    anchors, bone = choose_rays(fit.observation)
    assert np.isin(anchors, fit.targets).all()
    condition = make_condition(fit, anchors, bone)
    assert all(np.isfinite(value).all() for value in vars(condition).values())


def test_a_covariance_made_indefinite_by_rounding_is_factored():
    direction = np.linspace(0, 1, ANCHORS)
    covariance = np.outer(direction, direction) - 1e-5 * np.eye(ANCHORS)
    factor = jittered_cholesky(covariance)
    assert np.isfinite(factor).all()
    assert np.abs(factor @ factor.T - covariance).max() < 1e-3
    with pytest.raises(np.linalg.LinAlgError):
        jittered_cholesky(-np.eye(3))
    fine = np.eye(ANCHORS) + np.outer(direction, direction)
    assert np.abs(jittered_cholesky(fine) @ jittered_cholesky(fine).T - fine).max() < 2.1e-3  # the usual jitter


def test_too_little_bone_is_a_value_error():
    few = np.full(len(MAP.directions), np.nan)
    few[:10] = 80.0
    observation = Observation(few, few, np.ones(len(few), int), np.arange(len(few), dtype=float))
    with pytest.raises(ValueError, match="at least 640 rays"):
        choose_rays(observation)


@pytest.mark.parametrize("towards", [(0, 0.3, 1), (1, 0, 0.2), (-0.5, 0.8, 0), (0, -1, 0.3)])
def test_the_frame_points_outwards_and_is_upright(towards):
    direction = np.array(towards) / np.linalg.norm(towards)
    anchors = np.argsort(-(MAP.directions @ direction))[:ANCHORS]
    frame = make_frame(anchors)
    assert np.linalg.det(frame.rotation) == pytest.approx(1)
    up = 2 if direction[2] < 0.9 else 1  # towards the vertex; near the vertex, backwards
    assert frame.rotation[2] @ direction > 0.99
    assert frame.rotation[1, up] > 0
    assert np.allclose(frame.centre, 80 * frame.rotation[2])
    assert abs(frame.rotation[0, 2]) < 0.2  # x is level


# --- condition ------------------------------------------------------------------------------------------------------


def test_shapes_and_sizes(condition):
    assert condition.anchors.shape == (2 * ANCHORS, 3)
    assert condition.bone.shape == (2 * BONE, 3)
    assert condition.anchor_features.shape == (2 * ANCHORS, FEATURES)
    assert condition.bone_features.shape == (2 * BONE, FEATURES)
    assert condition.cholesky.shape == (2, ANCHORS, ANCHORS)
    assert condition.prior_std_mm.shape == (2 * ANCHORS,)
    for name, value in vars(condition).items():
        assert value.dtype == np.float32, name
        assert np.isfinite(value).all(), name
    assert np.abs(condition.anchors).max() < 1.5
    assert np.abs(condition.bone).max() < 1.5
    assert np.abs(condition.anchor_features).max() <= 4.01
    assert np.abs(condition.bone_features).max() <= 4.01


def test_positions_are_the_tables_in_the_local_frame(fitted, chosen, condition):
    anchors, _ = chosen
    points = make_frame(anchors).to_mm(condition.anchors.astype(float)).reshape(2, ANCHORS, 3)
    radius = np.stack([fitted.outer, fitted.outer - fitted.thickness])[:, anchors]
    assert np.allclose(points, radius[..., None] * MAP.directions[anchors], atol=1e-3)


def test_the_noise_has_the_posterior_covariance(fitted, chosen, condition):
    rows = np.searchsorted(fitted.targets, chosen[0])
    for factor, posterior in zip(condition.cholesky.astype(float), fitted.posteriors, strict=True):
        assert np.allclose(factor, np.tril(factor))
        covariance = posterior.covariance(rows, rows)
        assert np.allclose(factor @ factor.T, covariance, atol=3e-3 * np.diag(covariance).mean() + 1e-5)
    outer, thickness = fitted.std[:, chosen[0]]
    assert np.allclose(condition.prior_std_mm[:ANCHORS], outer, atol=0.02)
    assert np.allclose(condition.prior_std_mm[ANCHORS:], np.hypot(outer, thickness), atol=0.02)


def test_normals_are_unit_and_point_out_of_the_bone(chosen, condition):
    assert np.allclose(np.linalg.norm(condition.normals, axis=1), 1, atol=1e-5)
    outward = make_frame(chosen[0]).rotate_to_network(MAP.directions[chosen[0]])
    outer, inner = (condition.normals.reshape(2, ANCHORS, 3) * outward).sum(-1)
    assert outer.min() > 0.5
    assert inner.max() < -0.5


def test_normals_are_those_of_the_completed_surface(fitted, chosen, condition):
    anchors, _ = chosen
    found = make_frame(anchors).rotate_to_patient(condition.normals.astype(float)).reshape(2, ANCHORS, 3)
    fine = table_normals(np.stack([fitted.outer, fitted.thickness]))[:, anchors]
    mean = table_normals(fitted.prior.mean)[:, anchors]
    off, mean_off = (np.nanmean(np.degrees(np.arccos(np.clip((n * fine).sum(-1), -1, 1)))) for n in (found, mean))
    assert off < 1.5
    assert off < mean_off / 2


@pytest.mark.parametrize("where", ["everywhere", "on one side"])
def test_a_paraboloid_finds_a_sphere_s_normals(where):
    rng = np.random.default_rng(0)
    true = rng.normal(size=(6000, 3))
    true = true[true[:, 2] > 0.6 * np.linalg.norm(true, axis=1)]
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    edge = np.argsort(true[:, 2])[: 40 if where == "on one side" else None]
    towards = true[edge] + 0.2 * rng.normal(size=(len(edge), 3))
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    for sign in (1, -1):
        found = surface_normals(80 * true, 80 * true[edge], sign * towards)
        assert np.allclose(np.linalg.norm(found, axis=1), 1)
        assert np.degrees(np.arccos((found * sign * true[edge]).sum(1))).mean() < 0.5


def test_bone_features_are_the_same_in_inference_and_training(prior, fitted, chosen, condition):
    anchors, bone = chosen
    as_in_training = complete(prior, fitted.pose, fitted.observation, fitted.residual, anchors)
    trained_on = make_condition(as_in_training, anchors, bone)
    clear = np.tile(fitted.observation.distance[bone] > 4.5, 2)  # training has no bevel, which lies nearer
    assert np.allclose(condition.bone_features[clear], trained_on.bone_features[clear], atol=1e-5)


def test_the_condition_does_not_depend_on_the_bone_in_the_defect(left_out, table_radii, defect):
    fit, anchors, bone = completed(left_out, table_radii, defect)
    altered = table_radii.copy()
    altered[0, defect > 0] += 4 * np.random.default_rng(0).normal(size=np.count_nonzero(defect))
    altered[1, defect > 0] = 3.0
    other, other_anchors, other_bone = completed(left_out, altered, defect)
    assert np.array_equal(anchors, other_anchors)
    assert np.array_equal(bone, other_bone)
    pair, changed = make_pair(fit, table_radii, anchors, bone), make_pair(other, altered, other_anchors, other_bone)
    for name, value in vars(pair.condition).items():
        assert value.tobytes() == getattr(changed.condition, name).tobytes(), name
    assert np.abs(pair.target - changed.target).mean() > 0.1


def test_an_outer_table_is_used_where_the_inner_is_unknown(left_out, table_radii, defect):
    fit, anchors, _ = completed(left_out, table_radii, defect)
    near = (open_rays(*table_radii, defect).distance < 20) & (
        MAP.directions[:, 2] < np.median(MAP.directions[anchors, 2])
    )
    sinus, gone = table_radii.copy(), table_radii.copy()
    sinus[1, near & (defect == 0)] = np.nan
    gone[:, near & (defect == 0)] = np.nan
    other, less = (completed(left_out, changed, defect)[0] for changed in (sinus, gone))
    assert np.array_equal(other.outer[anchors], fit.outer[anchors])
    assert np.abs(less.outer - fit.outer)[anchors].max() > 0.02 < np.abs(other.thickness - fit.thickness)[anchors].max()


def test_the_condition_depends_on_bone_around_the_defect(left_out, table_radii, defect):
    fit, anchors, bone = completed(left_out, table_radii, defect)
    altered = table_radii.copy()
    altered[0, open_rays(*table_radii, defect).distance > 6] += 1.0
    other, _, _ = completed(left_out, altered, defect)
    before, after = (make_condition(f, anchors, bone).anchors for f in (fit, other))
    assert np.linalg.norm(before - after, axis=1).mean() * 80 > 0.5  # mm: the completion follows the bone around it


# --- pairs ----------------------------------------------------------------------------------------------------------


def test_the_target_moves_the_completion_onto_the_truth(left_out, table_radii, defect):
    fit, anchors, bone = completed(left_out, table_radii, defect)
    pair = make_pair(fit, table_radii, anchors, bone)
    outer, inner = (pair.target * pair.condition.prior_std_mm).reshape(2, ANCHORS)
    right = pair.valid.reshape(2, ANCHORS).all(0)
    assert right.mean() > 0.9
    assert np.allclose((fit.outer[anchors] + outer)[right], table_radii[0, anchors][right], atol=1e-2)
    true = (table_radii[0] - table_radii[1])[anchors]
    assert np.allclose((fit.outer - fit.thickness)[anchors][right] + inner[right], true[right], atol=1e-2)
    assert np.allclose(np.linalg.norm(pair.normals, axis=1), 1, atol=1e-5)


def test_unknown_tables_are_not_valid(left_out, table_radii, defect):
    fit, anchors, bone = completed(left_out, table_radii, defect)
    patchy = table_radii.copy()
    patchy[1, anchors[:50]] = np.nan  # an inner table that was not measured
    patchy[0, anchors[60]] += 30.0
    pair = make_pair(fit, patchy, anchors, bone)
    outer, inner = pair.valid.reshape(2, ANCHORS)
    assert not inner[:50].any()
    assert outer[:50].all()
    assert not outer[60]
    assert not inner[60]
    assert np.isfinite(pair.target).all()
    assert np.isfinite(pair.normals).all()


def test_the_mirrored_batch_is_that_of_the_mirrored_head(left_out, table_radii, defect):
    fit, anchors, bone = completed(left_out, table_radii, defect)
    there = np.sort(MAP.mirror[anchors]), np.sort(MAP.mirror[bone])
    other = complete(left_out, ORIGIN, open_rays(*table_radii[:, MAP.mirror], defect[MAP.mirror]), 0.0, there[0])
    order = [np.tile(np.searchsorted(t, MAP.mirror[r]), 2) for t, r in zip(there, (anchors, bone), strict=True)]
    for index, count in zip(order, (ANCHORS, BONE), strict=True):
        index[count:] += count
    expected = flatten(make_pair(other, table_radii[:, MAP.mirror], *there))
    batch = {name: torch.from_numpy(v)[None] for name, v in flatten(make_pair(fit, table_radii, anchors, bone)).items()}
    flipped = mirrored(batch)
    assert flipped.keys() == batch.keys() == expected.keys()
    for name in (
        "anchors",
        "bone",
        "normals",
        "true_normals",
        "anchor_features",
        "bone_features",
        "prior_std_mm",
        "valid",
    ):
        index = order[1] if name.startswith("bone") else order[0]
        # sites are not chosen symmetrically, so that standard deviations differ by hundredths of a millimetre
        assert np.allclose(flipped[name][0].numpy(), expected[name][index], atol=0.06), name
    again = mirrored(flipped)
    assert all(torch.equal(again[name], value) for name, value in batch.items())


@pytest.fixture(scope="module")
def pairs(population) -> Pairs:
    fold = assign_folds(population.names, 2)
    config = PairsConfig(pool=8, kinds={"random_1": 1.0}, folds=2, mix=1.0, deform=1.0, seed=7)
    return Pairs(population, fold, [population.prior(fold != k) for k in range(2)], config)


def test_a_pair_is_a_function_of_its_number(pairs):
    first, again, other = flatten(pairs.make(3)), flatten(pairs.make(3)), flatten(pairs.make(4))
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    assert not np.array_equal(first["target"], other["target"])
    assert len(pairs) == 8
    reseeded = replace(pairs, config=pairs.config.model_copy(update={"seed": 8}))
    assert not np.array_equal(flatten(reseeded.make(3))["target"], first["target"])
    longer = replace(pairs, config=pairs.config.model_copy(update={"pool": 100}))
    assert flatten(longer.make(3))["target"].tobytes() == first["target"].tobytes()


def test_a_stored_pair_is_the_pair_in_half_precision(pairs, tmp_path):
    made = flatten(pairs.make(3))
    stored = replace(pairs, store=tmp_path)
    written, read = stored[3], stored[3]
    assert [path.name for path in tmp_path.iterdir()] == ["0000003.safetensors"]
    assert made.keys() == written.keys() == read.keys()
    for name, value in made.items():
        assert written[name].dtype == np.float16
        assert np.array_equal(written[name], read[name])
        assert np.allclose(written[name], value, rtol=1e-3, atol=1e-3), name


def test_the_pairs_of_a_fold_come_from_its_heads_and_the_model_without_them(pairs, population):
    # heads far from all others, so that a mixture of folds would be visible
    outer = population.outer.copy()
    outer[pairs.fold == 0] += 20
    far = replace(population, outer=outer)
    priors = [far.prior(pairs.fold != k) for k in range(2)]
    far_pairs = replace(pairs, population=far, priors=priors)
    far_pairs = replace(far_pairs, config=pairs.config.model_copy(update={"deform": 0.0}))
    rng = np.random.default_rng(0)
    for _ in range(60):
        fold, head = far_pairs._head(rng)
        assert (np.nanmean(head[0]) > 95) == (fold == 0)
        assert (priors[fold].mean[0].mean() > 95) == (fold == 1)


def test_a_pair_uses_the_model_of_its_fold(pairs):
    marked = [replace(prior, present=np.full_like(prior.present, k)) for k, prior in enumerate(pairs.priors)]
    marked_pairs = replace(pairs, priors=marked)
    folds = set()
    for seed in range(4):
        fold, _ = marked_pairs._head(np.random.default_rng(seed))
        features = marked_pairs._draw(np.random.default_rng(seed)).condition.anchor_features
        assert (features[:, LAYOUT.features.index("presence")] == fold).all()
        folds.add(fold)
    assert folds == {0, 1}


def test_defects_along_rays(table_radii):
    two = cut_rays(table_radii, "random_1", 2, np.random.default_rng(1))
    assert set(np.unique(two)) == {0, 1, 2}
    shell = (PIXEL / 85) ** 2 * (table_radii[0] ** 3 - (table_radii[0] - table_radii[1]) ** 3) / 3000
    assert 10 < shell[cut_rays(table_radii, "random_1", 1, np.random.default_rng(2)) > 0].sum() < 50  # ml
    unknown = table_radii.copy()
    unknown[:, np.flatnonzero(two == 1)[:20]] = np.nan
    assert not cut_rays(unknown, "random_1", 2, np.random.default_rng(1))[np.isnan(unknown[0])].any()


def test_opened_rays_have_no_tables(table_radii, defect):
    observation = open_rays(*table_radii, defect)
    assert np.isnan(observation.outer[defect > 0]).all()
    assert np.isnan(observation.thickness[defect > 0]).all()
    assert np.array_equal(observation.outer[defect == 0], table_radii[0][defect == 0])
    assert (observation.distance[defect > 0] == 0).all()
    assert observation.distance[defect == 0].min() == PIXEL


def test_an_unknown_kind_of_defect_is_named(pairs):
    wrong = replace(pairs, config=pairs.config.model_copy(update={"kinds": {"nonsense": 1.0}, "deform": 0.0}))
    with pytest.raises(InputError, match="nonsense"):
        wrong.make(0)
