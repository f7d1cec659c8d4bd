"""The occupancy network: features at query points, and corrections only where the networks ask for them."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from safetensors.torch import save_file
from scipy.spatial import cKDTree

from pcdiff.data.heads import HEAD_FORMAT
from pcdiff.errors import InputError
from pcdiff.geometry.metrics import dice
from pcdiff.geometry.occupancy import head_occupancy
from pcdiff.methods.occupancy.config import SETTINGS, OccupancySettings
from pcdiff.methods.occupancy.features import OccupancyQueries, build_occupancy_features, occupancy_at
from pcdiff.methods.occupancy.fused import OccupancyCorrection, fused_surface
from pcdiff.methods.occupancy.lattice import (
    Lattice,
    TableMaps,
    lattice_around,
    map_position,
    missing_table_points,
    table_log_odds,
)
from pcdiff.methods.occupancy.model import OccupancyModel
from pcdiff.methods.occupancy.network import OccupancyNetwork
from pcdiff.prior.direction_map import MAP
from pcdiff.reconstruct import reconstruct

TOOL = Path(__file__).parents[1] / "tools" / "train_occupancy.py"
SMALL = SETTINGS.model_copy(update={"width": 16})
STEP, LIMIT = SETTINGS.step_mm, SETTINGS.max_log_odds
MEAN_LOW, MEAN_SHAPE = np.array(SETTINGS.mean_low_mm), SETTINGS.mean_shape
POINT_FEATURES, X = len(SETTINGS.point_features), SETTINGS.point_features.index("x")
NO_HEAD = np.zeros(MEAN_SHAPE, np.uint8)


@pytest.fixture(scope="module")
def queries(fitted, case) -> OccupancyQueries:
    return build_occupancy_features(fitted, head_occupancy(case[0]), NO_HEAD, SETTINGS)


@pytest.fixture(scope="module")
def plain(fitted, case):
    """The implant of the shape model alone."""
    return reconstruct(fitted.completed_surface(), case[0])


def test_a_finer_lattice_holds_the_same_box():
    coarse = Lattice(np.array([1.0, 2, 3]), (4, 5, 6), STEP)
    fine = coarse.finer(2)
    assert fine.step == STEP / 2
    np.testing.assert_allclose(fine.points[::2, ::2, ::2], coarse.points)


def test_the_lattice_covers_the_implant_and_its_surroundings(fitted, case):
    lattice = lattice_around(fitted, SETTINGS)
    implant = fitted.pose.to_model(case[1].to_mm(np.argwhere(case[1].mask)))
    top = lattice.low + STEP * (np.array(lattice.shape) - 1)
    assert (implant.min(0) - lattice.low > 15).all()
    assert (top - implant.max(0) > 15).all()


def test_tables_give_bone_between_them_and_nowhere_else(fitted, depth):
    ray = np.flatnonzero(depth > 8)[0]
    middle = fitted.outer[ray] - fitted.thickness[ray] / 2
    beyond = 2 + fitted.thickness[ray]
    points = MAP.directions[ray] * np.array([[middle], [middle + beyond], [middle - beyond]])
    pixels, radius = map_position(points)
    outer, inner, border = TableMaps.of(fitted).sample(pixels, "outer", "inner", "border")
    odds = table_log_odds(outer - radius, radius - inner, border, SETTINGS)
    assert odds[0] > 2
    assert (odds[1:] < -2).all()
    assert np.abs(odds).max() <= LIMIT
    assert border[0] == pytest.approx(depth[ray], abs=1.5)


def test_patches_hold_the_bone_and_the_mirrored_bone(fitted, case, queries):
    head = head_occupancy(case[0])
    assert queries.bone.max() > 0.9
    assert (queries.bone[tuple(queries.index.T)] < 0.5).all()
    some = slice(0, len(queries.index), 97)
    features = queries.features(some).astype(float)
    assert features.shape == (len(queries.index[some]), SETTINGS.features)
    assert np.isfinite(features).all()
    at = queries.lattice.low + STEP * queries.index[some]
    centre = POINT_FEATURES + 13  # of the first patch, and of the second
    np.testing.assert_allclose(features[:, centre], occupancy_at(head, fitted.pose, at), atol=2e-3)
    np.testing.assert_allclose(features[:, centre + 27], occupancy_at(head, fitted.pose, at * [-1, 1, 1]), atol=2e-3)
    neighbour = occupancy_at(head, fitted.pose, at + np.array([0, 0, STEP]))
    np.testing.assert_allclose(features[:, centre + 1], neighbour, atol=2e-3)


def test_a_deformed_head_is_read_at_the_displaced_points(fitted, case, queries):
    shift = np.array([0.0, 0, 4 * STEP])
    moved = build_occupancy_features(
        fitted, head_occupancy(case[0]), NO_HEAD, SETTINGS, displacement=np.broadcast_to(shift, (2, 1, 1, 1, 3))
    )
    np.testing.assert_allclose(moved.bone[:, :, :-4], queries.bone[:, :, 4:], atol=1e-4)
    np.testing.assert_allclose(moved.table_log_odds[:, :, :-4], queries.table_log_odds[:, :, 4:], atol=1e-3)


def test_the_mean_head_is_read_at_its_position(fitted, case):
    mean = np.zeros(MEAN_SHAPE, np.uint8)
    mean[..., 60:] = 255
    made = build_occupancy_features(fitted, head_occupancy(case[0]), mean, SETTINGS)
    height = (made.lattice.points - MEAN_LOW)[..., 2] / STEP
    pad = SETTINGS.padding
    usual = made._maps["mean"][pad:-pad, pad:-pad, pad:-pad]
    inside = ((made.lattice.points - MEAN_LOW) / STEP < np.array(MEAN_SHAPE) - 1).all(-1)
    assert (usual[(height > 60) & inside] == 1).all()
    assert (usual[height < 59] == 0).all()


def test_query_points_lie_near_the_defect(fitted, case):
    everywhere = np.full(MEAN_SHAPE, 255, np.uint8)
    made = build_occupancy_features(fitted, head_occupancy(case[0]), everywhere, SETTINGS)
    distance = cKDTree(missing_table_points(fitted)).query(made.lattice.low + STEP * made.index)[0]
    assert abs(distance.max() - SETTINGS.margin_mm) < STEP


def test_mirrored_queries_are_the_mirror_image(queries):
    mirrored = queries.mirrored()
    assert mirrored.lattice.low[0] == pytest.approx(-(queries.lattice.points[-1, 0, 0, 0]))
    some = np.arange(0, len(queries.index), 211)
    mine, theirs = queries.features(some).astype(float), mirrored.features(some).astype(float)
    flip = np.ones(POINT_FEATURES)
    flip[X] = -1
    np.testing.assert_array_equal(mine[:, :POINT_FEATURES] * flip, theirs[:, :POINT_FEATURES])
    first = slice(POINT_FEATURES, POINT_FEATURES + 27)
    np.testing.assert_array_equal(mine[:, first].reshape(-1, 3, 3, 3)[:, ::-1], theirs[:, first].reshape(-1, 3, 3, 3))
    assert np.abs(mine[:, X]).max() > 0.05


def test_zero_output_corrects_nothing(fitted, case):
    model = OccupancyModel((OccupancyNetwork(SMALL).eval(),), NO_HEAD, SMALL)
    assert model.predict_correction(fitted, head_occupancy(case[0])) is None


def test_a_network_corrects_only_at_query_points(fitted, case, queries):
    network = OccupancyNetwork(SMALL).eval()
    torch.nn.init.constant_(network.leave.bias, 10.0)
    correction = OccupancyModel((network,), NO_HEAD, SMALL).predict_correction(fitted, head_occupancy(case[0]))
    assert correction is not None
    corrected = np.argwhere(correction.log_odds != 0)
    allowed = {tuple(index) for index in queries.index.tolist()}
    assert len(corrected) > 1000
    assert all(tuple(index) in allowed for index in corrected.tolist())
    assert (correction.log_odds[correction.log_odds != 0] > 0).all()


def test_without_a_correction_the_fused_surface_is_the_completed_surface(fitted, case, plain):
    lattice = lattice_around(fitted, SETTINGS)
    nothing = OccupancyCorrection(lattice, np.zeros(lattice.shape, np.float32), SETTINGS)
    points = fused_surface(TableMaps.of(fitted), nothing).in_patient(fitted)
    assert np.allclose(np.linalg.norm(points.normals, axis=1), 1, atol=1e-6)
    assert dice(reconstruct(points, case[0]).mask, plain.mask) > 0.97


def test_bone_added_by_the_correction_is_built(fitted, case, depth):
    lattice = lattice_around(fitted, SETTINGS)
    nothing = OccupancyCorrection(lattice, np.zeros(lattice.shape, np.float32), SETTINGS)
    ray = depth.argmax()
    middle = MAP.directions[ray] * (fitted.outer[ray] - fitted.thickness[ray] - 8)  # under the defect, connected to it
    ball = np.linalg.norm(lattice.points - middle, axis=-1) < 9
    correction = OccupancyCorrection(lattice, np.where(ball, 2 * LIMIT, 0).astype(np.float32), SETTINGS)
    maps = TableMaps.of(fitted)
    before, built = (
        reconstruct(fused_surface(maps, added).in_patient(fitted), case[0]) for added in (nothing, correction)
    )
    more = built.mask & ~before.mask
    scale = abs(np.linalg.det(fitted.pose.linear))
    assert more.sum() * case[0].voxel_ml == pytest.approx(4 / 3 * np.pi * 9**3 / 1000 * scale, rel=0.35)
    away = np.linalg.norm(case[0].to_mm(np.argwhere(more)) - fitted.pose.to_patient(middle), axis=1)
    assert np.quantile(away, 0.95) < 12


def random_model(members: int) -> OccupancyModel:
    """Networks with random, different outputs."""
    torch.manual_seed(0)
    networks = tuple(OccupancyNetwork(SMALL).eval() for _ in range(members))
    for network in networks:
        torch.nn.init.normal_(network.leave.weight)
    mean = np.arange(np.prod(MEAN_SHAPE), dtype=np.uint8).reshape(MEAN_SHAPE)
    return OccupancyModel(networks, mean, SMALL)


def test_log_odds_are_averaged_over_networks_and_mirror_images(queries):
    few = replace(queries, index=queries.index[:500])
    model = random_model(2)
    together = model.log_odds(few)
    np.testing.assert_allclose(model.log_odds(few.mirrored()), together, atol=1e-3)
    alone = [replace(model, networks=(network,)).log_odds(few) for network in model.networks]
    assert np.abs(alone[0] - alone[1]).max() > 0.1
    np.testing.assert_allclose(together, np.mean(alone, 0), atol=1e-3)


def test_the_offset_adds_bone_off_the_tables_and_does_not_move_them(fitted, case, queries):
    network = OccupancyNetwork(SMALL).eval()
    model = OccupancyModel((network,), NO_HEAD, SMALL)
    head = head_occupancy(case[0])
    tables = queries.table_log_odds[tuple(queries.index.T)]
    weight, offset = SETTINGS.table_weight, SETTINGS.offset
    # beside the tables the offset alone makes the log-odds positive
    assert (weight * tables[tables <= 0] + offset > 0).sum() > SETTINGS.min_region
    assert model.predict_correction(fitted, head) is None
    torch.nn.init.constant_(network.leave.bias, LIMIT * weight - 0.8 * offset)
    correction = model.predict_correction(fitted, head)
    assert correction is not None
    assert (correction.log_odds[queries.table_log_odds <= -LIMIT] > LIMIT).any()


def test_saved_weights_are_read_back_and_other_files_refused(tmp_path, queries):
    model = random_model(2)
    path = tmp_path / "occupancy.safetensors"
    model.save(path)
    loaded = OccupancyModel.load(path)
    assert np.array_equal(loaded.mean, model.mean)
    assert loaded.settings == SMALL
    assert not any(network.training for network in loaded.networks)
    few = replace(queries, index=queries.index[:500])
    np.testing.assert_allclose(loaded.log_odds(few), model.log_odds(few), atol=0.02)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="expected weights of an occupancy network of format"):
        OccupancyModel.load(path)
    path.write_text("no tensors")
    with pytest.raises(InputError, match="expected weights of an occupancy network, got"):
        OccupancyModel.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"point_features": ("x", "y")}, "point_features.*this version computes depth_below_outer"),
        ({"patches": (("sky", 3, 1),)}, "patches.*got sky"),
    ],
)
def test_other_features_are_refused_by_name(tmp_path, change, message):
    path = tmp_path / "occupancy.safetensors"
    replace(random_model(1), settings=SMALL.model_copy(update=change)).save(path)
    with pytest.raises(InputError, match=message):
        OccupancyModel.load(path)


def test_thresholds_are_read_from_the_weights(tmp_path, fitted, case):
    network = OccupancyNetwork(SMALL).eval()
    torch.nn.init.constant_(network.leave.bias, 10.0)
    path = tmp_path / "occupancy.safetensors"
    for offset, corrected in ((0.5, True), (-20.0, False)):
        settings: OccupancySettings = SMALL.model_copy(update={"offset": offset, "removal": -100.0})
        OccupancyModel((network,), NO_HEAD, settings).save(path)
        found = OccupancyModel.load(path).predict_correction(fitted, head_occupancy(case[0]))
        assert (found is not None) == corrected


@pytest.fixture(scope="module")
def tool():
    return runpy.run_path(str(TOOL))


def test_training_learns_from_the_features(tmp_path, tool):
    rng = np.random.default_rng(0)
    files = []
    for number in range(3):
        features = rng.standard_normal((4000, SETTINGS.features)).astype(np.float16)
        features[:, :100] = features[:, :1]
        samples = {
            "features": features,
            "logit": rng.standard_normal(4000).astype(np.float32),
            "missing": features[:, 3] > 0.5,
            "weight": np.ones(4000, np.float32),
        }
        files.append(tmp_path / f"{number}.safetensors")
        files[-1].write_bytes(save(samples))
    (network,), loss = tool["train"](files, 20, [0])
    with torch.inference_mode():
        predicted = network(torch.from_numpy(features).float(), torch.zeros(4000)).numpy() > 0
    assert loss < 0.3
    assert (predicted == samples["missing"]).mean() > 0.85


@pytest.fixture(scope="module")
def sample_again(tmp_path_factory, tool, prior, healthy):
    """Samples the same craniotomy of a head at every call."""
    folder = tmp_path_factory.mktemp("cache")
    head = head_occupancy(healthy, "000")
    (folder / "heads").mkdir()
    path = folder / "heads" / "000.safetensors"
    path.write_bytes(save({"occupancy": head.occupancy, "affine": head.affine}, {"format": HEAD_FORMAT, "name": "000"}))
    arguments = {"cache": folder, "priors": [prior], "means": NO_HEAD[None], "fold": {"000": 0}, "seed": 3}
    return lambda: tool["sample"](index=0, **arguments)


@pytest.fixture(scope="module")
def samples(sample_again):
    return sample_again()


def test_samples_of_a_craniotomy(samples):
    assert samples["features"].shape == (len(samples["missing"]), SETTINGS.features)
    assert len({len(value) for value in samples.values()}) == 1
    assert 0.02 < samples["missing"].mean() < 0.8
    agree = (samples["logit"] > 0) == samples["missing"]
    assert agree.mean() > 0.8, "the head was sampled from this shape model"


def test_samples_are_a_function_of_the_seed(samples, sample_again):
    again = sample_again()
    assert all(np.array_equal(samples[name], again[name]) for name in samples)


def test_the_distance_to_the_border_is_a_feature_as_far_as_16_mm(fitted, queries):
    pixels, _ = map_position(queries.lattice.low + STEP * queries.index)
    (border,) = TableMaps.of(fitted).sample(pixels, "border")
    assert border.min() < -12
    column = SETTINGS.point_features.index("border_distance")
    np.testing.assert_allclose(8 * queries.features()[:, column].astype(float), np.clip(border, -16, 16), atol=0.02)
