"""The default method: its ensembles, its samplers where the flow is known, and a whole design by it."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_networks import DIFFUSION, SMALL, small_denoiser, small_unet

from pcdiff.errors import InputError
from pcdiff.geometry.mesh import label_bodies
from pcdiff.geometry.occupancy import head_occupancy
from pcdiff.methods.base import Proposal
from pcdiff.methods.candidates import Mask
from pcdiff.methods.prior import PriorMethod
from pcdiff.methods.registry import load_method
from pcdiff.methods.surface.anchors import Anchors, make_anchors, spread_vertices
from pcdiff.methods.surface.config import LAYOUT, SurfaceConfig
from pcdiff.methods.surface.method import SurfaceMethod
from pcdiff.methods.surface.network import SurfaceDenoiser
from pcdiff.methods.surface.weights import load_denoiser, save_denoiser
from pcdiff.methods.volumetric.method import VolumetricMethod
from pcdiff.pipeline.fit_options import FitOptions
from pcdiff.pipeline.flow import design
from pcdiff.pipeline.stages import Stopwatch

MAX, DATA = DIFFUSION.sigma_max, DIFFUSION.sigma_data


@pytest.fixture(scope="module")
def method(prior) -> SurfaceMethod:
    """Networks with something to say, whatever it is."""
    return SurfaceMethod(VolumetricMethod(prior, small_unet()), small_denoiser(), replace_steps(2))


@pytest.fixture(scope="module")
def silent(method) -> SurfaceMethod:
    """A denoiser before training, in eight steps: D = x sigma_data^2 / (sigma^2 + sigma_data^2)."""
    torch.manual_seed(0)
    return replace(method, network=SurfaceDenoiser(SMALL, DATA).eval(), diffusion=replace_steps(8))


@pytest.fixture(scope="module")
def anchors(method, case, fitted) -> Anchors:
    surroundings, surface = method.base.predict_surface(fitted, head_occupancy(case[0]))
    return make_anchors(surface, surroundings, spread_vertices(surface, LAYOUT.anchors))


@pytest.fixture(scope="module")
def proposal(method, case, fitted):
    return method(case[0], fitted, ensemble=2, seed=4)


def replace_steps(steps: int, sampler: str = "heun"):
    return DIFFUSION.model_copy(update={"steps": steps, "sampler": sampler})


def test_same_seed_same_candidates(method, proposal, case, fitted):
    again = method(case[0], fitted, ensemble=2, seed=4)
    for first, second in zip(proposal.candidates, again.candidates, strict=True):
        assert first.points.points.tobytes() == second.points.points.tobytes()
        assert first.points.normals.tobytes() == second.points.normals.tobytes()


def test_candidates_are_surfaces_of_one_layout(method, proposal, case, fitted):
    _, surface = method.base.predict_surface(fitted, head_occupancy(case[0]))
    plain = surface.in_patient(fitted)
    for candidate in (candidate.points for candidate in proposal.candidates):
        assert len(candidate) == len(plain)
        assert np.array_equal(candidate.defect, plain.defect)
        assert np.isfinite(candidate.points).all()
        assert np.allclose(np.linalg.norm(candidate.normals, axis=1), 1, atol=1e-6)


def test_the_way_begins_at_the_surface_and_ends_at_the_candidates(proposal):
    way = proposal.trajectory
    assert len(way.captions) == way.points.shape[1]
    assert way.captions[0] == "surface of shape model and networks"
    assert np.array_equal(way.points[0, 0], way.points[1, 0])
    assert np.median(np.linalg.norm(way.points[1, 1] - way.points[1, 0], axis=1)) > 1.0, "noised"
    assert np.linalg.norm(way.points[0, -1] - way.points[1, -1], axis=1).mean() > 0.1


def test_an_untrained_ensemble_spreads_as_the_flow_says(silent, anchors):
    # the ODE takes N(0, s^2) at sigma_max to s * sigma_data / sqrt(sigma_max^2 + sigma_data^2)
    moves, _ = silent.sample(anchors, 64, 0, "cpu")
    expected = MAX * DATA / np.hypot(MAX, DATA)
    assert np.sqrt((moves**2).mean()) == pytest.approx(expected, rel=0.12)


def test_a_temperature_widens_the_samples(silent, anchors):
    wider = replace(silent, diffusion=silent.diffusion.model_copy(update={"temperature": 2.0}))
    narrow, wide = (method.sample(anchors, 3, 0, "cpu")[0] for method in (silent, wider))
    assert np.allclose(wide, 2 * narrow, atol=1e-4)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_samplers_agree_where_the_flow_is_known(silent, anchors, sampler):
    x0, heun = (
        replace(silent, diffusion=replace_steps(30, name)).sample(anchors, 2, 0, "cpu")[0] for name in (sampler, "heun")
    )
    assert np.allclose(x0, heun, rtol=0.15, atol=0.02)


def test_the_ancestral_sampler_can_be_chosen(silent, anchors):
    chosen = replace(silent, diffusion=replace_steps(2, "ancestral"))
    assert np.isfinite(chosen.sample(anchors, 2, 0, "cpu")[0]).all()


def test_methods_by_name():
    assert isinstance(load_method("prior"), PriorMethod)
    assert isinstance(load_method(), VolumetricMethod)
    assert isinstance(load_method("diffusion"), SurfaceMethod)
    with pytest.raises(InputError, match="unknown method 'magic': expected one of unet, diffusion, prior, paper"):
        load_method("magic")


def test_a_denoiser_without_its_unet_is_refused(tmp_path: Path):
    path = tmp_path / "denoiser.safetensors"
    save_denoiser(path, small_denoiser().state_dict(), SurfaceConfig(network=SMALL), {})
    with pytest.raises(InputError, match=r"expected the U-Net's weights beside it, got no .*unet\.safetensors; copy"):
        load_method("diffusion", path)
    small_unet().save(tmp_path / "unet.safetensors")
    loaded = load_method("diffusion", path)
    assert isinstance(loaded, SurfaceMethod)
    assert loaded.base.model.config.network == small_unet().config.network


def test_weights_of_another_network_are_refused(tmp_path: Path):
    path = tmp_path / "denoiser.safetensors"
    wider = SMALL.model_copy(update={"width": 48})
    save_denoiser(path, small_denoiser().state_dict(), SurfaceConfig(network=wider), {})
    with pytest.raises(InputError, match="weights of another version's network; train anew"):
        load_denoiser(path)


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


def test_members_agree_in_the_middle_and_differ_at_the_surface(made):
    assert len(made.members) == len(made.proposal.candidates) == 3
    shares = np.stack([member.volume.mask for member in made.members]).mean(0)
    assert made.uncertainty.dtype == np.float32
    assert np.allclose(made.uncertainty, np.sqrt(shares * (1 - shares)), atol=1e-6)
    assert made.uncertainty.max() > 0.4
    assert (shares[made.implant.mask] > 0).mean() > 0.98


def test_candidates_are_printed_as_the_implant_is(case):
    skull, implant = case
    body = np.argwhere(implant.mask)
    top = body[body[:, 2].argmax()] + [0, 0, 6]
    crumb = np.stack(np.meshgrid(*[range(-1, 2)] * 3), -1).reshape(-1, 3) + top
    loose = skull.with_voxels(np.concatenate([body, crumb]))
    candidates = [Mask(implant), Mask(loose), Mask(skull.with_mask(np.zeros_like(skull.mask)))]

    def method(skull, **_):
        return Proposal(candidates)

    made = design(skull, method, ensemble=3, keep_members=True, options=FitOptions(engrave="7"))
    one, other, nothing = made.members
    assert nothing is None
    assert np.array_equal(one.volume.mask, other.volume.mask), "without its crumb"
    assert label_bodies(other.mesh).max() == 0
    for member in (one, other):
        assert [place.text for place in member.engraved] == ["7"]
        assert 0.001 < member.surface.volume_ml - member.mesh.volume_ml < 0.02


def test_a_design_of_one_candidate_has_no_members(method, case):
    assert design(case[0], method, ensemble=1, seed=4, keep_members=True).members == []


def test_an_error_in_the_meshing_of_candidates_is_there_at_once(case, monkeypatch):
    """Those that have not begun are not begun: a large defect's take ten seconds each, after Ctrl-C too."""
    begun = []

    def refused(*_):
        begun.append(1)
        time.sleep(0.2)
        raise InputError("no room")

    def method(skull, *, ensemble=1, **_):
        return Proposal([Mask(case[1])] * ensemble)

    monkeypatch.setattr("pcdiff.pipeline.flow.printed", refused)
    with pytest.raises(InputError, match="no room"):
        design(case[0], method, ensemble=9, keep_members=True)
    assert len(begun) < 6  # of 10
