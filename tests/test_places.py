"""OccupancyQueries around a defect: they see what is there, and overrule rays where a network says so and nowhere
else.
"""

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
from pcdiff.methods.occupancy.features import (
    CERTAIN,
    FEATURES,
    MARGIN,
    MEAN_LOW,
    MEAN_SHAPE,
    OWN,
    PAD,
    STEP,
    Lattice,
    Rays,
    X,
    along_rays,
    build_occupancy_features,
    lattice_around,
    logit,
    missing_surface_points,
    occupancy_at,
)
from pcdiff.methods.occupancy.model import LIFT, SMALLEST, OccupancyCorrection, OccupancyModel, fused_surfaces
from pcdiff.methods.occupancy.network import TRUST, OccupancyNetwork
from pcdiff.prior.direction_map import MAP
from pcdiff.reconstruct import reconstruct

TOOL = Path(__file__).parents[1] / "tools" / "train_occupancy.py"
NO_HEAD = np.zeros(MEAN_SHAPE, np.uint8)


@pytest.fixture(scope="module")
def places(fitted, case):
    return build_occupancy_features(fitted, head_occupancy(case[0]), NO_HEAD)


@pytest.fixture(scope="module")
def plain(fitted, case):
    """The implant by rays alone."""
    return reconstruct(fitted.completed_surface(), case[0])


def test_a_finer_lattice_holds_the_same_box():
    coarse = Lattice(np.array([1.0, 2, 3]), (4, 5, 6))
    fine = coarse.finer(2)
    assert fine.step == STEP / 2
    np.testing.assert_allclose(fine.points[::2, ::2, ::2], coarse.points)


def test_the_lattice_holds_the_implant_and_what_lies_behind(fitted, case):
    lattice = lattice_around(fitted)
    implant = fitted.pose.to_model(case[1].to_mm(np.argwhere(case[1].mask)))
    top = lattice.low + STEP * (np.array(lattice.shape) - 1)
    assert (implant.min(0) - lattice.low > 15).all()
    assert (top - implant.max(0) > 15).all()


def test_rays_say_bone_between_their_walls_and_nowhere_else(fitted):
    ray = np.flatnonzero(fitted.observation.depth > 8)[0]
    middle = fitted.outer[ray] - fitted.thickness[ray] / 2
    beyond = 2 + fitted.thickness[ray]
    points = MAP.directions[ray] * np.array([[middle], [middle + beyond], [middle - beyond]])
    pixels, radius = along_rays(points)
    outer, inner, edge = Rays.of(fitted).at(pixels, "outer", "inner", "edge")
    odds = logit(outer - radius, radius - inner, edge)
    assert odds[0] > 2
    assert (odds[1:] < -2).all()
    assert np.abs(odds).max() <= CERTAIN
    assert edge[0] == pytest.approx(fitted.observation.depth[ray], abs=1.5)


def test_places_see_the_bone_that_stands_and_its_mirror(fitted, case, places):
    head = head_occupancy(case[0])
    assert places.bone.max() > 0.9
    assert (places.bone[tuple(places.index.T)] < 0.5).all()
    some = slice(0, len(places.index), 97)
    features = places.features(some).astype(float)
    assert features.shape == (len(places.index[some]), FEATURES)
    assert np.isfinite(features).all()
    at = places.lattice.low + STEP * places.index[some]
    centre = OWN + 13  # of the first patch, and of the second
    np.testing.assert_allclose(features[:, centre], occupancy_at(head, fitted.pose, at), atol=2e-3)
    np.testing.assert_allclose(features[:, centre + 27], occupancy_at(head, fitted.pose, at * [-1, 1, 1]), atol=2e-3)
    next_to_it = occupancy_at(head, fitted.pose, at + np.array([0, 0, STEP]))
    np.testing.assert_allclose(features[:, centre + 1], next_to_it, atol=2e-3)


def test_a_deformed_head_is_seen_where_it_was_moved_to(fitted, case, places):
    shift = np.array([0.0, 0, 4 * STEP])
    moved = build_occupancy_features(
        fitted, head_occupancy(case[0]), NO_HEAD, moved=np.broadcast_to(shift, (2, 1, 1, 1, 3))
    )
    np.testing.assert_allclose(moved.bone[:, :, :-4], places.bone[:, :, 4:], atol=1e-4)
    np.testing.assert_allclose(moved.logit[:, :, :-4], places.logit[:, :, 4:], atol=1e-3)


def test_the_mean_head_is_read_where_it_lies(fitted, case):
    mean = np.zeros(MEAN_SHAPE, np.uint8)
    mean[..., 60:] = 255
    seen = build_occupancy_features(fitted, head_occupancy(case[0]), mean)
    height = (seen.lattice.points - MEAN_LOW)[..., 2] / STEP
    usual = seen._maps["mean"][PAD:-PAD, PAD:-PAD, PAD:-PAD]
    inside = ((seen.lattice.points - MEAN_LOW) / STEP < np.array(MEAN_SHAPE) - 1).all(-1)
    assert (usual[(height > 60) & inside] == 1).all()
    assert (usual[height < 59] == 0).all()


def test_only_what_lies_near_the_defect_is_judged(fitted, case):
    everywhere = np.full(MEAN_SHAPE, 255, np.uint8)
    seen = build_occupancy_features(fitted, head_occupancy(case[0]), everywhere)
    distance = cKDTree(missing_surface_points(fitted)).query(seen.lattice.low + STEP * seen.index)[0]
    assert MARGIN - STEP < distance.max() < MARGIN + STEP


def test_mirrored_places_are_the_mirror_image(places):
    mirrored = places.mirrored()
    assert mirrored.lattice.low[0] == pytest.approx(-(places.lattice.points[-1, 0, 0, 0]))
    some = np.arange(0, len(places.index), 211)
    mine, theirs = places.features(some).astype(float), mirrored.features(some).astype(float)
    flip = np.ones(OWN)
    flip[X] = -1
    np.testing.assert_array_equal(mine[:, :OWN] * flip, theirs[:, :OWN])
    first = slice(OWN, OWN + 27)
    np.testing.assert_array_equal(mine[:, first].reshape(-1, 3, 3, 3)[:, ::-1], theirs[:, first].reshape(-1, 3, 3, 3))
    assert np.abs(mine[:, X]).max() > 0.05


def test_a_silent_network_overrules_no_ray(fitted, case):
    assert (
        OccupancyModel((OccupancyNetwork(16).eval(),), NO_HEAD).predict_correction(fitted, head_occupancy(case[0]))
        is None
    )


def test_a_network_that_knows_better_is_heard_but_not_where_bone_stands(fitted, case, places):
    network = OccupancyNetwork(16).eval()
    torch.nn.init.constant_(network.leave.bias, 10.0)
    verdict = OccupancyModel((network,), NO_HEAD).predict_correction(fitted, head_occupancy(case[0]))
    assert verdict is not None
    overruled = np.argwhere(verdict.correction != 0)
    judged = {tuple(index) for index in places.index.tolist()}
    assert len(overruled) > 1000
    assert all(tuple(index) in judged for index in overruled.tolist())
    assert (verdict.correction[verdict.correction != 0] > 0).all()


def test_without_a_verdict_the_solid_is_the_slab(fitted, case, plain):
    lattice = lattice_around(fitted)
    nothing = OccupancyCorrection(lattice, np.zeros(lattice.shape, np.float32))
    (points,) = fused_surfaces(fitted, [(fitted.outer, fitted.thickness)], nothing)
    assert np.allclose(np.linalg.norm(points.normals, axis=1), 1, atol=1e-6)
    assert dice(reconstruct(points, case[0]).mask, plain.mask) > 0.97


def test_bone_that_only_the_places_know_of_is_built(fitted, case):
    lattice = lattice_around(fitted)
    nothing = OccupancyCorrection(lattice, np.zeros(lattice.shape, np.float32))
    ray = fitted.observation.depth.argmax()
    middle = MAP.directions[ray] * (fitted.outer[ray] - fitted.thickness[ray] - 8)  # beneath the defect, joined to it
    ball = np.linalg.norm(lattice.points - middle, axis=-1) < 9
    verdict = OccupancyCorrection(lattice, np.where(ball, 2 * CERTAIN, 0).astype(np.float32))
    table_radii = [(fitted.outer, fitted.thickness)]
    before, built = (reconstruct(fused_surfaces(fitted, table_radii, said), case[0]) for said in (nothing, verdict))
    more = built.mask & ~before.mask
    scale = abs(np.linalg.det(fitted.pose.linear))
    assert more.sum() * case[0].voxel_ml == pytest.approx(4 / 3 * np.pi * 9**3 / 1000 * scale, rel=0.35)
    away = np.linalg.norm(case[0].to_mm(np.argwhere(more)) - fitted.pose.to_patient(middle), axis=1)
    assert np.quantile(away, 0.95) < 12


def speaking(members: int) -> OccupancyModel:
    """Networks that say something, each something else."""
    torch.manual_seed(0)
    networks = tuple(OccupancyNetwork(16).eval() for _ in range(members))
    for network in networks:
        torch.nn.init.normal_(network.leave.weight)
    mean = np.arange(np.prod(MEAN_SHAPE), dtype=np.uint8).reshape(MEAN_SHAPE)
    return OccupancyModel(networks, mean)


def test_a_head_and_its_mirror_image_are_told_the_same_by_all_networks(places):
    few = replace(places, index=places.index[:500])
    model = speaking(2)
    said = model.odds(few)
    np.testing.assert_allclose(model.odds(few.mirrored()), said, atol=1e-3)
    alone = [replace(model, networks=(network,)).odds(few) for network in model.networks]
    assert np.abs(alone[0] - alone[1]).max() > 0.1
    np.testing.assert_allclose(said, np.mean(alone, 0), atol=1e-3)


def test_a_place_of_less_than_even_odds_is_built_but_no_wall_moved_by_it(fitted, case, places):
    network = OccupancyNetwork(16).eval()
    model = OccupancyModel((network,), NO_HEAD)
    head = head_occupancy(case[0])
    rays = places.logit[tuple(places.index.T)]
    assert (TRUST * rays[rays <= 0] + LIFT > 0).sum() > SMALLEST  # beside the tables the silent network would add
    assert model.predict_correction(fitted, head) is None
    torch.nn.init.constant_(network.leave.bias, CERTAIN * TRUST - 0.8 * LIFT)
    verdict = model.predict_correction(fitted, head)
    assert verdict is not None
    assert (verdict.correction[places.logit <= -CERTAIN] > CERTAIN).any()


def test_weights_come_back_and_other_files_do_not(tmp_path, places):
    model = speaking(2)
    path = tmp_path / "places.safetensors"
    model.save(path)
    loaded = OccupancyModel.load(path)
    assert np.array_equal(loaded.mean, model.mean)
    assert not any(network.training for network in loaded.networks)
    few = replace(places, index=places.index[:500])
    np.testing.assert_allclose(loaded.odds(few), model.odds(few), atol=0.02)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="expected weights of format"):
        OccupancyModel.load(path)
    path.write_text("no tensors")
    with pytest.raises(InputError, match="expected a network of places"):
        OccupancyModel.load(path)


@pytest.fixture(scope="module")
def tool():
    return runpy.run_path(str(TOOL))


def test_training_learns_what_features_tell(tmp_path, tool):
    rng = np.random.default_rng(0)
    files = []
    for number in range(3):
        features = rng.standard_normal((4000, FEATURES)).astype(np.float16)
        features[:, :100] = features[:, :1]
        cut = {
            "features": features,
            "logit": rng.standard_normal(4000).astype(np.float32),
            "missing": features[:, 3] > 0.5,
            "weight": np.ones(4000, np.float32),
        }
        files.append(tmp_path / f"{number}.safetensors")
        files[-1].write_bytes(save(cut))
    (network,), loss = tool["train"](files, 20, [0])
    with torch.inference_mode():
        said = network(torch.from_numpy(features).float(), torch.zeros(4000)).numpy() > 0
    assert loss < 0.3
    assert (said == cut["missing"]).mean() > 0.85


def test_a_cut_asks_about_what_is_missing(tmp_path, tool, prior, healthy):
    head = head_occupancy(healthy, "000")
    (tmp_path / "heads").mkdir()
    path = tmp_path / "heads" / "000.safetensors"
    path.write_bytes(save({"occupancy": head.occupancy, "affine": head.affine}, {"format": HEAD_FORMAT, "name": "000"}))
    arguments = {"cache": tmp_path, "priors": [prior], "means": NO_HEAD[None], "fold": {"000": 0}, "seed": 3}
    first = tool["asked"](index=0, **arguments)
    assert first["features"].shape == (len(first["missing"]), FEATURES)
    assert len({len(value) for value in first.values()}) == 1
    assert 0.02 < first["missing"].mean() < 0.8
    agree = (first["logit"] > 0) == first["missing"]
    assert agree.mean() > 0.8, "the prior, which this head was drawn from, knows most of it"
    again = tool["asked"](index=0, **arguments)
    assert all(np.array_equal(first[name], again[name]) for name in first)
