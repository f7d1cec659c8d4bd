"""The published noise network against vectors of the original code, and against small ones in the repository."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pcdiff.diffusion import SAMPLERS, linear_sigmas
from pcdiff.diffusion import samplers as samplers_module
from pcdiff.errors import InputError
from pcdiff.geometry.volume import Volume
from pcdiff.methods.friedrich2023.config import PaperConfig, PaperNetworkConfig
from pcdiff.methods.friedrich2023.denoiser import PaperDenoiser, _furthest
from pcdiff.methods.friedrich2023.denoiser_weights import denoiser_names, denoiser_state_from, denoiser_state_to
from pcdiff.methods.friedrich2023.points import PaperFrame, outer_mesh
from pcdiff.methods.friedrich2023.sampling import NoisePrediction, evenly_spaced_sigmas, sample_points
from pcdiff.nets.pvcnn import Cloud, Neighbourhoods, Norm, PointLayers

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import make_parity_vectors as vectors  # noqa: E402

ORIGINAL = ROOT.parent / "shared" / "parity"
original = pytest.mark.skipif(not ORIGINAL.is_dir(), reason="the original's vectors lie outside the repository")
TOLERANCE = 1e-4  # absolute, float32
SMALL = PaperNetworkConfig(
    width=0.25, skull_points=1792, implant_points=256, centres=(1024, 256, 64, 16), neighbours=32
)


# --- parity ---------------------------------------------------------------------------------------------------


@original
def test_the_network_agrees_with_the_original() -> None:
    network = PaperDenoiser(SMALL).eval()
    foreign = torch.load(ORIGINAL / "denoiser_small.pth", weights_only=True)["model_state"]
    network.load_state_dict(denoiser_state_from(foreign, SMALL))
    known = {name: torch.from_numpy(value) for name, value in np.load(ORIGINAL / "denoiser_small.npz").items()}
    taps = vectors.stages(network)
    points = known["x"].transpose(1, 2).contiguous()
    with torch.inference_mode():
        out = network(points, known["t"])
    assert torch.equal(_furthest(points, 1024), known["fps0"].long())
    for k, count in enumerate(SMALL.centres):
        assert torch.equal(known[f"fps{k}"].long(), torch.arange(count).expand(2, -1)) or k == 0  # prefixes
    names = {f"down{k}": f"sa{k}" for k in range(4)} | {f"up{k}": f"fp{k}" for k in range(4)}
    for ours, theirs in (names | {"attention": "global_att"}).items():
        torch.testing.assert_close(taps[ours].transpose(1, 2), known[theirs], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(network.embed(known["t"]), known["temb_in"], rtol=0, atol=1e-6)
    torch.testing.assert_close(out.transpose(1, 2), known["out"][..., -256:], rtol=0, atol=TOLERANCE)


def test_the_network_agrees_with_its_stored_vectors() -> None:
    stored = np.load(vectors.FOLDER / "denoiser.npz")
    for name, value in vectors.denoiser_vectors().items():
        np.testing.assert_allclose(value, stored[name], rtol=0, atol=TOLERANCE, err_msg=name)


@original
@pytest.mark.parametrize("t", [500, 999])
def test_a_step_of_ddpm_is_ancestral_sampling(t: int, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: torch.from_numpy(value) for name, value in np.load(ORIGINAL / "sampler.npz").items()}
    torch.testing.assert_close(linear_sigmas().float(), known["sqrt_recipm1_alphas_cumprod"], rtol=1e-4, atol=1e-6)
    level = torch.cat([linear_sigmas()[: t + 1].flip(0), torch.zeros(1, dtype=torch.float64)])[:2]
    stepped = one_step("ancestral", known, level, monkeypatch)
    torch.testing.assert_close(stepped, known[f"ddpm_t{t}"][..., 64:], rtol=0, atol=TOLERANCE)


@original
@pytest.mark.parametrize("t", [0, 1])
def test_the_last_steps_differ_by_the_rounding_of_the_original(t: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its float32 table has 0.99983 of x0 where the formula gives 1, since 1 - 0.9999 has four digits: 0.02 mm."""
    known = {name: torch.from_numpy(value) for name, value in np.load(ORIGINAL / "sampler.npz").items()}
    level = torch.cat([linear_sigmas()[: t + 1].flip(0), torch.zeros(1, dtype=torch.float64)])[:2]
    stepped = one_step("ancestral", known, level, monkeypatch)
    theirs = known[f"ddpm_t{t}"][..., 64:]
    torch.testing.assert_close(stepped, theirs, rtol=2e-4, atol=1e-5)
    x0 = (known["x_t"] - known["eps"][..., 64:] * (level[0] / (1 + level[0] ** 2).sqrt()).float()) * (
        (1 + level[0] ** 2).sqrt().float()
    )
    rounded = known["posterior_mean_coef1"][t] * x0 + known["posterior_mean_coef2"][t] * known["x_t"]
    rounded += (t > 0) * (known["posterior_log_variance_clipped"][t] / 2).exp() * known["noise"]
    torch.testing.assert_close(rounded, theirs, rtol=0, atol=1e-5)


@original
@pytest.mark.parametrize("t", [999, 489, 20, 0])
def test_a_step_of_ddim_is_an_euler_step(t: int, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: torch.from_numpy(value) for name, value in np.load(ORIGINAL / "sampler.npz").items()}
    place = known["ddim50_ts"].tolist().index(t)
    assert torch.equal(evenly_spaced_sigmas(50)[:-1], linear_sigmas()[known["ddim50_ts"]])
    stepped = one_step("euler", known, evenly_spaced_sigmas(50)[place : place + 2], monkeypatch)
    torch.testing.assert_close(stepped, known[f"ddim50_t{t}"][..., 64:], rtol=0, atol=TOLERANCE)


def one_step(
    sampler: str, known: dict[str, torch.Tensor], level: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> torch.Tensor:
    """From the original's x_t, noise and predicted noise to its next x, through our samplers in sigma space."""
    before, after = (1 + level**2).sqrt()
    noise = known["eps"][..., 64:]
    monkeypatch.setattr(samplers_module.torch, "randn", lambda *_, **__: known["noise"])

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x - sigma[:, None, None] * noise

    x = known["x_t"] * before.float()
    return SAMPLERS[sampler](denoise, x, level, generator=torch.Generator()) / after.float()


def test_noise_prediction_calls_the_network_at_its_own_scale_and_step() -> None:
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Recorder(nn.Module):
        def forward(self, points: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            calls.append((points, t))
            return torch.full((2, 5, 3), 0.5)

    skull, x = torch.rand(2, 7, 3), torch.rand(2, 5, 3)
    denoise = NoisePrediction(Recorder(), skull)
    sigma = linear_sigmas()[torch.tensor([123, 999])].float()
    x0 = denoise(x, sigma)
    points, t = calls[0]
    assert t.tolist() == [123, 999]
    assert torch.equal(points[:, :7], skull)
    torch.testing.assert_close(points[:, 7:], x * (1 + sigma**2).rsqrt()[:, None, None])
    torch.testing.assert_close(x0, x - 0.5 * sigma[:, None, None])
    held = NoisePrediction(Recorder(), skull, limit=0.4)(x, sigma)
    assert x0.min() < -70  # half of the noisiest level's sigma
    assert torch.equal(held, x0.clamp(-0.4, 0.4))


# --- faster computation, same result ------------------------------------------------------------------------------


def test_distinct_neighbours_with_counts_equal_the_padded_group() -> None:
    """A group with repeats, convolved, normalised and pooled by plain torch, against distinct neighbours and counts."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(2, 60, 3, generator=generator)
    centres, features = points[:, :9], torch.randn(2, 60, 16, generator=generator)
    layers = PointLayers(16, (16, 24))
    for norm in layers.norms:
        nn.init.normal_(norm.weight)
    around = Neighbourhoods.within(centres, points, 0.3, 12)
    assert max(count.max() for count in around.count) > 2  # there are spare slots
    for b in range(2):
        assert int(around.count[b].sum()) == 9 * 12
        padded = features[b][around.point[b]].repeat_interleave(around.count[b], 0)  # (9 12, 16)
        x = padded.T[None]
        for linear, norm in zip(layers.linears, layers.norms, strict=True):
            x = nn.functional.conv1d(x, linear.weight[..., None], linear.bias)
            x = nn.functional.silu(nn.functional.group_norm(x, 8, norm.weight, norm.bias))
        expected = x[0].T.reshape(9, 12, -1).amax(1)
        pairs = layers.after_first(layers.linears[0](features[b][around.point[b]])[None], around.count[b])[0]
        found = torch.stack([pairs[around.centre[b] == m].amax(0) for m in range(9)])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_norm_is_torch_group_norm_with_gradients() -> None:
    norm = Norm(16).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (3 + 5 * torch.rand(2, 11, 16, dtype=torch.float64)).requires_grad_()
    expected = nn.functional.group_norm(x.transpose(1, 2), 8, norm.weight, norm.bias).transpose(1, 2)
    torch.testing.assert_close(norm(x, active=False), expected)
    torch.testing.assert_close(norm(x), nn.functional.silu(expected))
    (ours,) = torch.autograd.grad(norm(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(nn.functional.silu(expected).square().sum(), x)
    torch.testing.assert_close(ours, theirs)


def test_voxelise_averages_and_devoxelise_interpolates() -> None:
    cloud = Cloud(torch.rand(2, 50, 3, generator=torch.Generator().manual_seed(0)))
    ones = cloud.voxelise(torch.ones(2, 50, 4), 5)
    assert set(ones.unique().tolist()) <= {0.0, 1.0}
    assert ones.shape == (2, 4, 5, 5, 5)
    back = cloud.devoxelise(torch.ones(2, 125, 4), 5)
    torch.testing.assert_close(back, torch.ones(2, 50, 4))


def test_the_order_of_the_points_matters() -> None:
    network = vectors.seeded_denoiser()
    points = torch.from_numpy(np.load(vectors.FOLDER / "denoiser.npz")["points"])
    shuffled = points.clone()
    shuffled[:, :448] = points[:, torch.randperm(448, generator=torch.Generator().manual_seed(0))]
    with torch.inference_mode():
        first, second = (network(p, torch.tensor([700, 3])) for p in (points, shuffled))
    assert (first - second).abs().max() > 0.01


def test_the_network_refuses_another_number_of_points() -> None:
    with pytest.raises(ValueError, match="points must be 512"):
        vectors.seeded_denoiser()(torch.zeros(1, 100, 3), torch.tensor([0]))


# --- weights ---------------------------------------------------------------------------------------------------


def test_every_tensor_has_exactly_one_original_name() -> None:
    state = PaperDenoiser(vectors.DENOISER).state_dict()
    names = denoiser_names()
    assert set(names.values()) == set(state)
    assert len(set(names.values())) == len(names)


@original
def test_names_and_shapes_at_full_size_are_those_of_the_original() -> None:
    with torch.device("meta"):
        network = PaperDenoiser(PaperNetworkConfig())
    assert sum(parameter.numel() for parameter in network.parameters()) == 27_648_963
    ours = {name: str(tuple(value.shape)) for name, value in denoiser_state_to(network.state_dict()).items()}
    lines = (ORIGINAL / "denoiser_keys.txt").read_text().splitlines()
    assert ours == dict(line.split(" ", 1) for line in lines if line)


def test_weights_are_exported_and_imported_unchanged() -> None:
    state = vectors.seeded_denoiser().state_dict()
    back = denoiser_state_from(denoiser_state_to(state), vectors.DENOISER)
    assert state.keys() == back.keys()
    assert all(torch.equal(state[name], back[name]) for name in state)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_are_named(change: str) -> None:
    foreign = denoiser_state_to(vectors.seeded_denoiser().state_dict())
    name = "model.fp_layers.2.1.voxel_layers.4.weight"
    if change == "missing":
        del foreign[name]
    elif change == "unexpected":
        name = "model.another.weight"
        foreign[name] = torch.zeros(3)
    else:
        foreign[name] = foreign[name][:-1]
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        denoiser_state_from(foreign, vectors.DENOISER)


# --- the frame ---------------------------------------------------------------------------------------------------


def test_points_lie_half_a_voxel_outside_and_fill_the_frame() -> None:
    mask = np.zeros((20, 20, 20), bool)
    mask[5:15, 4:16, 6:10] = True
    volume = Volume(mask, np.diag([0.5, 0.5, 2.0, 1.0]))
    mesh = outer_mesh(volume)
    np.testing.assert_allclose(mesh.vertices.min(0), [2.0, 1.5, 10.0], atol=2e-3)
    np.testing.assert_allclose(mesh.vertices.max(0), [7.5, 8.0, 20.0], atol=4e-3)
    frame = PaperFrame.of(mesh.vertices, volume.affine)
    network = frame.to_network(mesh.vertices)
    assert np.abs(network).max() == pytest.approx(3.0)
    np.testing.assert_allclose(frame.to_mm(network), mesh.vertices)


def test_faithful_takes_the_diagonal_of_the_directions_for_the_spacing() -> None:
    angle = np.radians(30)
    affine = np.eye(4)
    affine[:2, :2] = 0.5 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = np.stack(np.meshgrid([0, 10], [0, 10], [0, 10]), -1).reshape(-1, 3) @ affine[:3, :3].T
    frame = PaperFrame.of(corners, affine, faithful=True)
    back = frame.to_network(corners)
    np.testing.assert_allclose(frame.to_mm(back), corners, atol=1e-12)
    # a box along its own axes, ten voxels of 0.5 cos 30 mm by ten of 1 mm
    np.testing.assert_allclose(np.ptp(back, axis=0), [6 * 0.5 * np.cos(angle), 6 * 0.5 * np.cos(angle), 6.0])
    right = PaperFrame.of(corners, affine).to_network(corners)
    assert np.ptp(right, axis=0)[0] > np.ptp(back, axis=0)[0]


# --- sampling ---------------------------------------------------------------------------------------------------


def test_samplers_repeat_with_the_same_seed() -> None:
    network = vectors.seeded_denoiser()
    skull = torch.from_numpy(np.load(vectors.FOLDER / "denoiser.npz")["points"][:1, :448])
    for sampler, steps in (("ancestral", 2), ("euler", 1), ("dpmpp_2m", 2)):
        config = PaperConfig(network=vectors.DENOISER, steps=steps, sampler=sampler)
        first, second = (sample_points(network, skull, config, torch.Generator().manual_seed(1)) for _ in range(2))
        assert first.shape == (1, 64, 3)
        assert torch.isfinite(first).all()
        assert torch.equal(first, second)


def test_half_precision_changes_the_noise_by_a_few_per_cent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcdiff.nets.devices.computes_bfloat16", lambda device: True)
    network = vectors.seeded_denoiser()
    points = torch.from_numpy(np.load(vectors.FOLDER / "denoiser.npz")["points"])[:1]  # emulated, it takes its time
    sigma = linear_sigmas()[torch.tensor([700])]
    with torch.inference_mode():
        whole, half = (
            NoisePrediction(network, points[:, :448], half)(points[:, 448:], sigma) for half in (False, True)
        )
    noise = ((whole - half) / sigma.float()[:, None, None]).abs().mean()
    assert whole.dtype == half.dtype == torch.float32
    assert 1e-4 < noise < 0.05


@pytest.mark.skipif(os.environ.get("CI") == "true", reason="takes five seconds and covers what the others cover")
def test_full_size_runs() -> None:
    config = PaperNetworkConfig()
    network = PaperDenoiser(config).eval()
    with torch.inference_mode():
        out = network(torch.randn(1, config.points, 3), torch.tensor([10]))
    assert out.shape == (1, 3072, 3)
    assert torch.isfinite(out).all()
