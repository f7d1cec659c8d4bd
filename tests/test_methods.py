"""Methods against what they must be: the prior where the network says nothing, its uncertainty in an ensemble."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.spatial import cKDTree

from pcdiff.errors import InputError
from pcdiff.methods.anchored.condition import ANCHORS, choose_rays, make_condition
from pcdiff.methods.anchored.config import DenoiserConfig, DiffusionConfig, NetworkConfig
from pcdiff.methods.anchored.method import DiffusionMethod, _moved, draw_noise
from pcdiff.methods.anchored.network import AnchoredDenoiser
from pcdiff.methods.anchored.weights import save_denoiser
from pcdiff.methods.prior import PriorMethod
from pcdiff.methods.registry import load_method
from pcdiff.pipeline.flow import design
from pcdiff.pipeline.stages import Stopwatch

NETWORK = NetworkConfig(width=16, grid=8, step_grid=4, blocks=1, heads=2)
DIFFUSION = DiffusionConfig(steps=2)


@pytest.fixture(scope="module")
def silent(prior) -> DiffusionMethod:
    """A network before training: it says what the prior says."""
    torch.manual_seed(0)
    return DiffusionMethod(prior, AnchoredDenoiser(NETWORK).eval(), DIFFUSION)


@pytest.fixture(scope="module")
def method(prior) -> DiffusionMethod:
    """A network with something to say, whatever it is."""
    torch.manual_seed(1)
    network = AnchoredDenoiser(NETWORK)
    with torch.no_grad():
        for parameter in network.leave[-1].parameters():
            parameter.normal_(0, 0.1)
    return DiffusionMethod(prior, network.eval(), DIFFUSION)


@pytest.fixture(scope="module")
def condition(fitted):
    return make_condition(fitted, *choose_rays(fitted.observation))


@pytest.fixture(scope="module")
def proposal(method, case, fitted):
    return method(case[0], fitted, ensemble=3, seed=4)


def test_a_silent_network_is_the_prior(silent, fitted, case):
    (candidate,), theirs = silent(case[0], fitted).candidates, fitted.completed_surface()
    mine = candidate.points
    assert np.allclose(mine.points, theirs.points, atol=1e-4)
    assert np.array_equal(mine.defect, theirs.defect)
    same = (mine.normals * theirs.normals).sum(1)
    assert same.min() > 0.99
    assert np.median(same[theirs.defect > 0]) > 0.9995


def test_candidates_are_slabs_of_one_layout(proposal, fitted):
    assert len(proposal.candidates) == 3
    plain = fitted.completed_surface()
    for candidate in (candidate.points for candidate in proposal.candidates):
        assert len(candidate) == len(plain)
        assert np.array_equal(candidate.defect, plain.defect)
        assert np.isfinite(candidate.points).all()
        assert np.allclose(np.linalg.norm(candidate.normals, axis=1), 1, atol=1e-6)


def test_both_walls_go_where_the_network_says(silent, fitted, condition):
    anchors, _ = choose_rays(fitted.observation)
    shifts = silent.sample(condition, 3, torch.Generator().manual_seed(0)).x0.double().numpy() * condition.prior_std_mm
    outer, thickness = _moved(fitted, condition, anchors, shifts).transpose(1, 0, 2)
    moved = np.concatenate([outer - fitted.outer, outer - thickness - (fitted.outer - fitted.thickness)], 1)
    told = np.concatenate([anchors, anchors + len(fitted.outer)])
    rms = np.sqrt(np.mean(shifts[1:] ** 2))
    assert rms > 0.3
    assert np.sqrt(np.mean((moved[:, told] - shifts) ** 2)) < 0.05 * rms
    assert np.array_equal(moved[0, told], np.zeros(2 * ANCHORS))
    elsewhere = np.setdiff1d(np.arange(len(fitted.outer)), fitted.targets)
    assert np.array_equal(outer[1, elsewhere], fitted.outer[elsewhere], equal_nan=True)


def test_shifts_end_at_the_rim(proposal, fitted):
    plain = fitted.completed_surface()
    moved = np.linalg.norm(proposal.candidates[1].points.points - plain.points, axis=1)
    far = cKDTree(plain.points[plain.defect > 0]).query(plain.points)[0] > 8
    assert np.median(moved[plain.defect > 0]) > 5 * np.median(moved[far])


def test_the_way_begins_at_the_prior_and_ends_at_the_candidates(proposal, fitted):
    way = proposal.trajectory
    assert way is not None
    assert way.points.shape == (3, DIFFUSION.steps + 2, 2 * ANCHORS, 3)
    assert len(way.captions) == way.points.shape[1]
    assert way.captions[0] == "surface of the shape model"
    plain = cKDTree(fitted.completed_surface().points)
    for member, candidate in zip(way.points, proposal.candidates, strict=True):
        assert np.median(plain.query(member[0])[0]) < 0.6  # the points lie about 0.75 mm apart
        assert np.median(cKDTree(candidate.points.points).query(member[-1])[0]) < 0.6
    assert np.median(np.linalg.norm(way.points[1, 1] - way.points[1, 0], axis=1)) > 1.0, "noised"


def test_same_seed_same_candidates(method, proposal, case, fitted):
    again = method(case[0], fitted, ensemble=3, seed=4)
    for first, second in zip(proposal.candidates, again.candidates, strict=True):
        assert first.points.points.tobytes() == second.points.points.tobytes()
        assert first.points.normals.tobytes() == second.points.normals.tobytes()


def test_other_seeds_draw_other_members(method, condition):
    first, other = (method.sample(condition, 2, torch.Generator().manual_seed(seed)).x0[1] for seed in (4, 5))
    assert (first - other).abs().mean() > 0.1


def test_member_0_is_the_likeliest_whatever_the_seed_and_the_ensemble(method, condition):
    members = [
        method.sample(condition, ensemble, torch.Generator().manual_seed(seed)).x0[0]
        for ensemble, seed in ((1, 0), (1, 9), (2, 0), (5, 3))
    ]
    assert torch.equal(members[0], members[1])
    for member in members[2:]:
        assert torch.allclose(member, members[0], atol=1e-5)  # a batch of another size may add in another order


def test_a_larger_ensemble_begins_with_the_smaller(method, condition):
    few, many = (method.sample(condition, n, torch.Generator().manual_seed(2)).x0 for n in (3, 7))
    assert torch.allclose(many[:3], few, atol=1e-4)


def test_members_come_in_pairs_of_opposite_noise(silent, condition):
    x0 = silent.sample(condition, 6, torch.Generator().manual_seed(0)).x0
    assert torch.equal(x0[0], torch.zeros(2 * ANCHORS))
    assert torch.allclose(x0[1], -x0[2], atol=1e-6)
    assert torch.allclose(x0[3], -x0[4], atol=1e-6)
    assert not torch.allclose(x0[1], x0[3], atol=0.1)


def test_an_untrained_ensemble_is_as_uncertain_as_the_prior(prior, silent, condition):
    # D = x / (1 + sigma^2): the ODE takes N(0, s^2) at sigma_max to s / sqrt(1 + sigma_max^2), hardly below 1
    fine = replace(silent, diffusion=DiffusionConfig(steps=8))
    x0 = fine.sample(condition, 101, torch.Generator().manual_seed(0)).x0
    spread = x0[1:].std(0)
    assert float(spread.mean()) == pytest.approx(4 / np.sqrt(17), rel=0.1)
    inner_follows = torch.corrcoef(torch.stack([x0[1:, 100], x0[1:, ANCHORS + 100]]))[0, 1]
    assert inner_follows > 0.1  # the inner table is the outer minus a thickness


def test_four_members_spread_as_the_posterior_everywhere(silent, condition):
    fine = replace(silent, diffusion=DiffusionConfig(steps=8))
    x0 = fine.sample(condition, 5, torch.Generator().manual_seed(0)).x0
    spread = x0[1:].pow(2).mean(0).sqrt()  # in the prior's standard deviations
    # of two independent draws a tenth of the points would lie below a third, and a tenth above one and a half
    assert spread.quantile(0.1) > 0.6
    assert spread.quantile(0.9) < 1.1


def test_noise_has_the_prior_s_covariance():
    generator = torch.Generator().manual_seed(0)
    factors = torch.tril(torch.rand(1, 2, 3, 3, generator=generator)) + 0.5 * torch.eye(3)
    outer, thickness = (factors[0] @ factors[0].transpose(1, 2)).unbind(0)
    unit = torch.cat([outer.diag().sqrt(), (outer + thickness).diag().sqrt()])[None]
    noise = draw_noise(factors, unit, 40_000, generator)
    assert noise.shape == (40_000, 6)
    covariance = torch.cat([torch.cat([outer, outer], 1), torch.cat([outer, outer + thickness], 1)])
    expected = covariance / (unit[0, :, None] * unit[0])
    assert torch.allclose(torch.cov(noise.T), expected, atol=0.03)
    assert torch.allclose(expected.diag(), torch.ones(6))


def test_noise_of_a_batch_is_that_of_each_skull():
    factors = torch.stack([torch.eye(3).expand(2, 3, 3), 10 * torch.eye(3).expand(2, 3, 3)])
    noise = draw_noise(factors, torch.ones(2, 6), 500, torch.Generator().manual_seed(0))
    assert noise.shape == (1000, 6)
    assert noise[:500, :3].std() < 2
    assert noise[500:, :3].std() > 8


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_samplers_agree_where_the_flow_is_known(silent, condition, sampler):
    fine = replace(silent, diffusion=DiffusionConfig(steps=30, sampler=sampler))
    x0 = fine.sample(condition, 2, torch.Generator().manual_seed(0)).x0[1]
    heun = replace(silent, diffusion=DiffusionConfig(steps=30)).sample(condition, 2, torch.Generator().manual_seed(0))
    assert torch.allclose(x0, heun.x0[1], rtol=0.15, atol=0.02)


def test_the_ancestral_sampler_can_be_chosen(silent, condition):
    chosen = replace(silent, diffusion=DiffusionConfig(steps=2, sampler="ancestral"))
    assert chosen.sample(condition, 2, torch.Generator().manual_seed(0)).x0.isfinite().all()


def test_sampling_starts_at_the_predicted_mean(prior, condition):
    torch.manual_seed(0)
    network = AnchoredDenoiser(NETWORK).eval()
    torch.nn.init.normal_(network.guide[-1].weight)
    guided = DiffusionMethod(prior, network, DIFFUSION)
    steps: list[torch.Tensor] = []
    found = guided.sample(condition, 1, torch.Generator(), callback=lambda step, x, x0: steps.append(x))
    mean = network.predict_mean(torch.from_numpy(condition.anchor_features)[None])
    assert mean.abs().max() > 0.1
    assert torch.allclose(steps[0], mean, atol=1e-6)
    assert torch.allclose(found.x0, mean, atol=1e-5)  # the rest of the network is zero, so there is nothing to remove


# --- weights --------------------------------------------------------------------------------------------------------


def recipe(**network: object) -> DenoiserConfig:
    return DenoiserConfig(network=NETWORK.model_copy(update=network), diffusion=DIFFUSION)


def test_weights_are_kept_in_half_precision_with_their_recipe(method, prior, condition, tmp_path):
    path = tmp_path / "denoiser.safetensors"
    save_denoiser(path, method.network.state_dict(), recipe(), {"step": "7"})
    loaded = DiffusionMethod.load(path, prior)
    assert loaded.diffusion == DIFFUSION
    assert len(loaded.digest) == 64
    assert not loaded.network.training
    for name, value in loaded.network.state_dict().items():
        assert torch.equal(value, method.network.state_dict()[name].half().float())
    mine, theirs = (m.sample(condition, 1, torch.Generator().manual_seed(0)) for m in (loaded, method))
    assert torch.allclose(mine.x0, theirs.x0, atol=0.05)


def test_other_files_are_no_weights(prior, tmp_path):
    (tmp_path / "text").write_text("no weights")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign")
    for name in ("text", "foreign", "missing"):
        with pytest.raises(InputError, match="expected weights of a denoiser"):
            DiffusionMethod.load(tmp_path / name, prior)


def test_weights_of_another_network_are_refused(method, prior, tmp_path):
    save_denoiser(tmp_path / "w", method.network.state_dict(), recipe(width=32), {})
    with pytest.raises(InputError, match="weights of another version's network; train anew"):
        DiffusionMethod.load(tmp_path / "w", prior)


def test_methods_by_name():
    assert isinstance(load_method("prior"), PriorMethod)
    with pytest.raises(InputError, match="unknown method 'magic': expected one of diffusion, prior, paper"):
        load_method("magic")


def test_the_prior_alone_needs_no_torch():
    program = """
import sys
from pcdiff.methods.registry import load_method
load_method('prior')
assert 'torch' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# --- design ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watch():
    return Stopwatch()


@pytest.fixture(scope="module")
def made(method, case, watch):
    return design(case[0], method, ensemble=3, seed=4, keep_members=True, watch=watch)


def test_a_design_fits_the_skull(made, case, watch):
    skull, implant = case
    assert not (made.implant.mask & skull.mask).any()
    assert made.implant.mask.shape == skull.mask.shape
    assert np.array_equal(made.implant.affine, skull.affine)
    assert 0.5 * implant.ml < made.implant.ml < 1.5 * implant.ml
    assert watch.seconds.keys() == {"fit", "points", "reconstruct", "mesh"}
    assert min(watch.seconds.values()) > 0
    low, high = made.mesh.vertices.min(0), made.mesh.vertices.max(0)
    where = skull.to_mm(np.argwhere(made.implant.mask))
    assert np.allclose(low, where.min(0), atol=1.6)
    assert np.allclose(high, where.max(0), atol=1.6)


def test_members_agree_in_the_middle_and_differ_at_the_surface(made, case):
    assert len(made.members) == len(made.proposal.candidates) == 3
    shares = np.stack([member.mask for member in made.members]).mean(0)
    assert made.uncertainty.dtype == np.float32
    assert np.allclose(made.uncertainty, np.sqrt(shares * (1 - shares)), atol=1e-6)
    assert made.uncertainty.max() > 0.4
    assert (shares[made.implant.mask] > 0).mean() > 0.98


def test_one_member_of_an_ensemble_is_the_design_made_alone(made, method, case):
    alone = design(case[0], method, ensemble=1, seed=4)
    assert alone.members == []
    differing = np.count_nonzero(alone.implant.mask ^ made.members[0].mask)
    assert differing < 0.02 * np.count_nonzero(alone.implant.mask)
