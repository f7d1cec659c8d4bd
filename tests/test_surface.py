"""The diffusion of a surface's points: noise, anchors, network, moved surfaces, pairs, weights and training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from scipy.spatial import cKDTree
from small_networks import DIFFUSION, SMALL, small_denoiser, small_unet
from torch.nn import functional

from pcdiff.data.craniotomy import simulate_craniotomy
from pcdiff.diffusion.preconditioning import per_sample, scaling
from pcdiff.errors import InputError
from pcdiff.geometry.directions import unit
from pcdiff.geometry.mesh import Mesh
from pcdiff.geometry.occupancy import head_occupancy
from pcdiff.geometry.volume import Volume
from pcdiff.methods.registry import load_method
from pcdiff.methods.surface.anchors import Anchors, make_anchors, spread_vertices, stacked
from pcdiff.methods.surface.config import LAYOUT, SurfaceConfig, SurfaceDiffusionConfig
from pcdiff.methods.surface.method import SurfaceMethod
from pcdiff.methods.surface.moved import move
from pcdiff.methods.surface.network import SurfaceDenoiser, read_profile
from pcdiff.methods.surface.noise import normal_noise
from pcdiff.methods.surface.sampling import sample_displacements
from pcdiff.methods.surface.weights import load_denoiser, save_denoiser
from pcdiff.methods.volumetric.features import LATTICE, soft_occupancy
from pcdiff.methods.volumetric.fused import FusedSurface
from pcdiff.methods.volumetric.lattice import TableMaps
from pcdiff.methods.volumetric.method import VolumetricMethod
from pcdiff.methods.volumetric.model import VolumetricModel
from pcdiff.methods.volumetric.surroundings import Surroundings
from pcdiff.prior.fit import PriorFit, fit
from pcdiff.training.loop import Loop, make_accelerator
from pcdiff.training.recipes import DiffusionTrainConfig, load_config
from pcdiff.training.surface.dataset import Pairs
from pcdiff.training.surface.pairs import make_pair, mirrored, true_displacements
from pcdiff.training.surface.train import SurfaceTask
from pcdiff.training.surface.validation import validate
from pcdiff.training.volumetric.fitted import FittedCase

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def unet() -> VolumetricModel:
    return small_unet()


@pytest.fixture(scope="module")
def base(prior, unet) -> VolumetricMethod:
    return VolumetricMethod(prior, unet)


@pytest.fixture(scope="module")
def skull_and_surface(base, fitted, case) -> tuple[Surroundings, FusedSurface]:
    return base.predict_surface(fitted, head_occupancy(case[0]))


@pytest.fixture(scope="module")
def anchors(skull_and_surface) -> Anchors:
    skull, surface = skull_and_surface
    return make_anchors(surface, skull, spread_vertices(surface, LAYOUT.anchors))


@pytest.fixture(scope="module")
def fitted_case(fitted, case) -> FittedCase:
    bone, missing = (soft_occupancy(head_occupancy(part), fitted.pose) for part in case)
    return FittedCase.of(fitted, bone, missing)


def inputs(anchors: Anchors) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in stacked([anchors]).items()}


# --- noise ------------------------------------------------------------------------------------------------------------


def test_noise_is_gaussian_and_shared_by_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.tensor([[0.0, 0, 0], [4, 0, 0], [25, 0, 0], [300, 0, 0]]).expand(4000, -1, -1)
    normals = torch.tensor([0.0, 0, 1]).expand(4000, 4, -1)
    noise = normal_noise(points, normals, DIFFUSION, generator)
    assert noise.std() == pytest.approx(1, abs=0.03)
    assert float((noise**4).mean() / (noise**2).mean() ** 2) == pytest.approx(3, abs=0.25)
    near, middle, far = np.corrcoef(noise.T.numpy())[0, 1:]
    expected = [
        sum(s * np.exp(-((d / n) ** 2) / 2) for n, s in zip(DIFFUSION.lengths_mm, DIFFUSION.shares, strict=True))
        for d in (4, 25, 300)
    ]
    assert [near, middle, far] == pytest.approx(expected, abs=0.06)


def test_opposite_sides_of_a_wall_move_together() -> None:
    points = torch.tensor([[0.0, 0, 0], [0, 0, 1]]).expand(2000, -1, -1)
    normals = torch.tensor([[0.0, 0, -1], [0, 0, 1]]).expand(2000, -1, -1)
    noise = normal_noise(points, normals, DIFFUSION, torch.Generator().manual_seed(0))
    assert np.corrcoef(noise.T.numpy())[0, 1] < -0.9


def test_a_larger_ensemble_begins_with_the_members_of_a_smaller_one() -> None:
    points, normals = torch.randn(5, 7, 3) * 20, functional.normalize(torch.randn(5, 7, 3), dim=-1)
    few, many = (normal_noise(points[:k], normals[:k], DIFFUSION, torch.Generator().manual_seed(3)) for k in (2, 5))
    assert few.shape == (2, 7)
    assert torch.allclose(few, many[:2], atol=1e-5)


# --- anchors and network ----------------------------------------------------------------------------------------------


def test_profiles_are_read_linearly_and_end_flat() -> None:
    offsets = torch.tensor(LAYOUT.offsets_mm)
    profile = offsets[None, None, :, None]
    x = torch.tensor([-9.0, -6.0, -3.1, 0.3, 5.9, 8.0])[None]
    found = read_profile(profile.expand(1, 6, -1, 1), offsets, x)[0, :, 0]
    assert torch.allclose(found, x[0].clamp(-6, 6), atol=1e-5)


def test_anchors_lie_on_the_defect_and_read_bone_inside(anchors: Anchors, fitted) -> None:
    assert anchors.profile.shape == (LAYOUT.anchors, len(LAYOUT.offsets_mm), LAYOUT.channels)
    assert np.allclose(np.linalg.norm(anchors.normals, axis=1), 1, atol=1e-4)
    log_odds = anchors.profile[..., LAYOUT.fields.index("log_odds")]
    middle = LAYOUT.offsets_mm.index(0.0)
    assert np.abs(log_odds[:, middle]).mean() < 0.2
    assert log_odds[:, middle - 1].mean() > 0.2
    assert log_odds[:, middle + 1].mean() < -0.2
    labels = fitted.defect_at(fitted.pose.to_patient(anchors.positions))
    assert (labels > 0).mean() > 0.9


def test_anchors_are_spread_evenly(skull_and_surface) -> None:
    _, surface = skull_and_surface
    chosen = spread_vertices(surface, LAYOUT.anchors)
    assert len(set(chosen)) == LAYOUT.anchors
    points = surface.points[chosen]
    between = cKDTree(points).query(points, 2)[0][:, 1]
    to_all = cKDTree(points).query(surface.points[surface.of_defect])[0]
    assert between.min() >= 0.99 * to_all.max()  # no vertex is farther from them than they are from each other


def test_a_surface_of_few_vertices_gives_each_of_them(skull_and_surface) -> None:
    _, surface = skull_and_surface
    few = FusedSurface(*(values[:5] for values in vars(surface).values()))
    few = FusedSurface(few.points, few.normals, few.faces, few.border, np.array([True, False, True, True, False]))
    assert set(spread_vertices(few, 8)) == {0, 2, 3}
    none = FusedSurface(few.points, few.normals, few.faces, few.border, np.zeros(5, bool))
    with pytest.raises(ValueError, match="vertices of a defect"):
        spread_vertices(none, 8)


def test_an_untrained_network_is_the_gaussian_skip(anchors: Anchors) -> None:
    network = SurfaceDenoiser(SMALL, DIFFUSION.sigma_data).eval()
    batch = inputs(anchors)
    x, sigma = torch.randn(1, LAYOUT.anchors), torch.tensor([0.7])
    with torch.no_grad():
        found = network(x, sigma, network.encode(batch["positions"], batch["static"], batch["profile"]))
    assert torch.allclose(found, x * 0.64 / (0.64 + 0.49), atol=1e-5)


@pytest.mark.parametrize("part", ["x", "sigma", "static", "profile", "positions"])
def test_every_part_of_the_input_changes_the_output(anchors: Anchors, part: str) -> None:
    """A network that drowns one of its inputs has collapsed."""
    network, batch = small_denoiser(), inputs(anchors)
    x, sigma = torch.randn(1, LAYOUT.anchors, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5])

    def raw() -> torch.Tensor:
        surface = network.encode(batch["positions"], batch["static"], batch["profile"])
        return network.raw(x, torch.ones(1, 1), sigma.log() / 4, surface)

    with torch.no_grad():
        before = raw()
        if part == "x":
            x = x + 1
        elif part == "sigma":
            sigma = sigma * 4
            network.blocks[0].modulate.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
            before = network.raw(
                x,
                torch.ones(1, 1),
                torch.tensor([0.5]).log() / 4,
                network.encode(batch["positions"], batch["static"], batch["profile"]),
            )
        elif part == "positions":
            batch[part] = batch[part].flip(1)
        else:
            batch[part] = batch[part] + 0.5
        after = raw()
    assert (after - before).std() > 0.02 * before.std()
    assert before.std() > 0.01


def test_seeds_differ_from_the_first_member_on_and_come_back(anchors: Anchors) -> None:
    def member(seed: int) -> torch.Tensor:
        return sample_displacements(
            small_denoiser(), DIFFUSION, inputs(anchors), 1, torch.Generator().manual_seed(seed)
        )

    first, again, other = member(0), member(0), member(1)
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 0.05


# --- moved surfaces and the method ------------------------------------------------------------------------------------


def test_a_surface_follows_its_anchors_and_stays_on_the_bone(skull_and_surface, anchors: Anchors) -> None:
    _, surface = skull_and_surface
    outward = np.where((anchors.positions * anchors.normals).sum(1) > 0, 1.0, -1.0)  # 1 mm away from the centre
    still, moved = move(surface, anchors, np.stack([0 * outward, outward]))
    assert np.allclose(still.points, surface.points)
    shift = ((moved.points - surface.points) * surface.points).sum(1) / np.linalg.norm(surface.points, axis=1)
    inside = surface.border > 4
    assert shift[inside].mean() == pytest.approx(1, abs=0.15)
    bone = (surface.border < -4.1) & ~surface.of_defect
    assert bone.any()
    assert np.abs(shift[bone]).max() < 1e-6
    assert np.allclose(np.linalg.norm(moved.normals, axis=1), 1, atol=1e-6)


def test_normals_turn_with_the_surface(skull_and_surface, anchors: Anchors) -> None:
    _, surface = skull_and_surface
    before = Mesh(surface.points, surface.faces).vertex_normals
    inside = surface.border > 6
    assert (before * surface.normals).sum(1)[inside].mean() > 0.9  # the faces look out of the bone
    axis = unit(np.cross(surface.normals[inside].mean(0), [0.3, 0.5, 0.8])[None])[0]
    outward = np.where((anchors.positions * anchors.normals).sum(1) > 0, 1.0, -1.0)
    (moved,) = move(surface, anchors, (0.2 * outward * (anchors.positions @ axis))[None])
    turned = Mesh(moved.points, surface.faces).vertex_normals - before
    expected, found = turned[inside], (moved.normals - surface.normals)[inside]
    assert np.linalg.norm(expected, axis=1).mean() > 0.05
    assert (expected * found).sum() / (np.linalg.norm(expected) * np.linalg.norm(found)) > 0.9


def test_the_method_gives_members_that_differ_and_a_path(base, fitted, case) -> None:
    method = SurfaceMethod(base, small_denoiser(), DIFFUSION)
    proposal = method(case[0], fitted, ensemble=2, seed=4)
    first, second = (candidate.points for candidate in proposal.candidates)
    assert np.abs(first.points - second.points).max() > 0.1
    assert first.defect is not None
    assert (first.defect > 0).any()
    path = proposal.trajectory
    assert path is not None
    assert path.points.shape == (2, DIFFUSION.steps + 2, LAYOUT.anchors, 3)
    assert len(path.captions) == DIFFUSION.steps + 2
    assert np.linalg.norm(path.points[0, 1] - path.points[0, -1], axis=-1).mean() > 0.5  # the points move
    (again, *_) = method(case[0], fitted, ensemble=3, seed=4).candidates
    assert np.allclose(again.points.points, first.points, atol=1e-3)


def test_one_candidate_is_the_mean_of_several_samples(base, anchors: Anchors) -> None:
    method = SurfaceMethod(base, small_denoiser(), DIFFUSION)
    samples, steps = method.sample(anchors, DIFFUSION.draws, 4, "cpu")
    alone, path = method.candidates(anchors, 1, 4, "cpu")
    assert np.allclose(alone[0], samples.mean(0), atol=1e-4)
    assert np.allclose(path[0], steps.mean(0), atol=1e-4)
    several, _ = method.candidates(anchors, 3, 4, "cpu")
    assert np.allclose(several, samples[:3], atol=1e-3)
    assert np.abs(samples[0] + samples[1]).mean() < np.abs(samples[0] + samples[2]).mean()  # opposite noise cancels
    other, _ = method.candidates(anchors, 1, 5, "cpu")
    assert np.abs(other - alone).mean() > 0.0005


def test_weights_come_back_and_others_are_refused(tmp_path: Path) -> None:
    network, path = small_denoiser(), tmp_path / "denoiser.safetensors"
    save_denoiser(path, network.state_dict(), SurfaceConfig(network=SMALL), {"step": "1"})
    loaded, config = load_denoiser(path)
    assert config.network == SMALL
    assert all(torch.allclose(v, network.state_dict()[k], atol=1e-3) for k, v in loaded.state_dict().items())
    other = SurfaceConfig(network=SMALL, layout=LAYOUT.model_copy(update={"anchors": 7}))
    save_denoiser(path, network.state_dict(), other, {})
    with pytest.raises(InputError, match="anchors is 7, expected 512"):
        load_denoiser(path)
    save_file({"x": np.zeros(1)}, path)
    with pytest.raises(InputError, match="expected weights of a denoiser"):
        load_denoiser(path)


# --- shipped weights --------------------------------------------------------------------------------------------------

AXES = ("skulls", "noise levels", "displacements", "points")
LEAST = 0.05  # variation over each axis, as a share of the root mean square
SIGMAS = (4.0, 0.5, 0.05)
DISPLACEMENTS = (-1.5, -0.5, 0.0, 0.5, 1.5)  # mm, the same for all points: then only the skull tells them apart


@pytest.fixture(scope="module")
def variation(case, fitted, prior) -> dict[str, float]:
    """How far the output of the shipped network, without skip and scaling, varies over each of `AXES`."""
    head = prior.draw(np.random.default_rng(3), spacing=2.0)
    skull, _ = simulate_craniotomy(head, "frontoorbital", np.random.default_rng(1))
    method = load_method("diffusion")
    assert isinstance(method, SurfaceMethod)
    raw = torch.stack([raw_output(method, *given) for given in ((case[0], fitted), (skull, fit(prior, skull)))])
    size = raw.square().mean().sqrt()
    return {name: float(raw.var(axis, correction=0).mean().sqrt() / size) for axis, name in enumerate(AXES)}


@torch.no_grad()
def raw_output(method: SurfaceMethod, skull: Volume, fit: PriorFit) -> torch.Tensor:
    """(noise levels, displacements, points)."""
    surroundings, surface = method.base.predict_surface(fit, head_occupancy(skull))
    batch = inputs(make_anchors(surface, surroundings, spread_vertices(surface, LAYOUT.anchors)))
    bound = method.network.encode(batch["positions"], batch["static"], batch["profile"])
    bound = bound.repeated(len(DISPLACEMENTS))
    x = torch.tensor(DISPLACEMENTS)[:, None].expand(-1, LAYOUT.anchors)
    rows = []
    for sigma in SIGMAS:
        _, _, c_in, c_noise = scaling(per_sample(torch.tensor(sigma), x), method.network.sigma_data)
        rows.append(method.network.raw(x, c_in, c_noise.expand(len(x), 1), bound))
    return torch.stack(rows)


@pytest.mark.parametrize("axis", AXES)
def test_the_shipped_denoiser_has_not_collapsed(variation: dict[str, float], axis: str) -> None:
    """A network whose output is constant still gives good scores: the surface that it starts from is good."""
    assert variation[axis] > LEAST, variation


# --- training ---------------------------------------------------------------------------------------------------------


def test_true_displacements_are_those_of_a_shifted_wall() -> None:
    z = LATTICE.low[2] + LATTICE.step * np.arange(LATTICE.shape[2])
    offsets = np.linspace(-1, 1, 201)[1:-1] * LATTICE.step  # a plate between -5.7 and 5.7 mm, averaged by a tent
    share = np.average(np.abs(z[:, None] + offsets) <= 5.7, 1, 1 - np.abs(offsets) / LATTICE.step)
    complete = np.broadcast_to(share, LATTICE.shape).astype(np.float32)
    up = np.array([[0.0, 0, 1], [0, 0, -1], [0, 0, 1], [0, 0, 1]])
    at = np.array([[0.0, 0, 4], [0, 0, -7], [0, 0, 5.7], [0, 0, 30]])
    empty = np.zeros((4, 0), np.float32)
    target, valid = true_displacements(Anchors(at, up, empty, empty), complete)
    assert valid.tolist() == [1, 1, 1, 0]
    assert target[:3] == pytest.approx([1.7, -1.3, 0], abs=0.1)


def test_a_pair_of_the_mirror_image_is_mirrored(fitted_case: FittedCase, base: VolumetricMethod) -> None:
    pair, other = (make_pair(c, base, 64) for c in (fitted_case, mirrored(fitted_case)))
    assert pair.valid.mean() > 0.9
    assert np.abs(pair.target).mean() < 3
    assert other.anchors.positions[:, 0].mean() == pytest.approx(-pair.anchors.positions[:, 0].mean(), abs=3)
    assert np.abs(other.target).mean() == pytest.approx(np.abs(pair.target).mean(), rel=0.3)


@pytest.fixture(scope="module")
def pair_file(fitted_case: FittedCase, base: VolumetricMethod, tmp_path_factory) -> Path:
    pair = make_pair(fitted_case, base, LAYOUT.anchors + 30)
    arrays = vars(pair.anchors) | {"target": pair.target, "valid": pair.valid}
    path = tmp_path_factory.mktemp("pairs") / "pair.safetensors"
    save_file({name: np.ascontiguousarray(value, np.float16) for name, value in arrays.items()}, path)
    return path


def test_an_item_is_a_function_of_its_number(pair_file: Path) -> None:
    pairs = Pairs([pair_file], LAYOUT.anchors)
    assert torch.equal(pairs[0]["target"], pairs[0]["target"])
    assert pairs[0]["target"].shape == (LAYOUT.anchors,)
    assert not torch.equal(pairs[0]["positions"], pairs[1]["positions"])


def recipe(out: Path, **changes: object) -> DiffusionTrainConfig:
    values = {"run.out": str(out), "run.workers": 0, "optimiser.steps": 2, "optimiser.batch": 2}
    values |= {"network.width": 32, "network.blocks": 1, "network.heads": 2, "network.dropout": 0.0}
    config = load_config(ROOT / "configs" / "diffusion.yaml", values | changes)
    assert isinstance(config, DiffusionTrainConfig)
    return config


def test_training_learns_one_skull_and_its_output_varies(pair_file: Path, tmp_path: Path) -> None:
    config = recipe(tmp_path, **{"optimiser.steps": 150, "optimiser.rate": 3e-3, "optimiser.warmup": 5})
    task = SurfaceTask(
        config, Pairs([pair_file], LAYOUT.anchors), Pairs([pair_file], LAYOUT.anchors), torch.device("cpu")
    )
    state = Loop(task, make_accelerator(), progress=False).run()
    assert state.step == 150
    network, settings = load_denoiser(task.weights)
    pair = {name: value[None] for name, value in Pairs([pair_file], LAYOUT.anchors)[0].items()}
    scores = validate(network, settings.diffusion, [pair])
    assert scores["val_mean"] < 0.95 * scores["val_still"]
    assert scores["val_spread"] > 0.02
    batch = {name: value.float() for name, value in pair.items()}
    with torch.no_grad():
        surface = network.encode(batch["positions"], batch["static"], batch["profile"])
        raw = [
            network.raw(k * torch.ones_like(batch["target"]), torch.ones(1, 1), torch.zeros(1), surface)
            for k in (-1.0, 1.0)
        ]
    assert raw[0].std() > 0.05  # over points
    assert (raw[0] - raw[1]).std() > 0.02  # over x


def test_validation_knows_a_sure_from_an_unsure_ensemble(pair_file: Path) -> None:
    pair = {name: value[None] for name, value in Pairs([pair_file], LAYOUT.anchors)[0].items()}
    sure = SurfaceDiffusionConfig(sigma_max=0.1, sigma_min=0.05, sigma_data=0.05)
    unsure = SurfaceDiffusionConfig(sigma_max=20.0, sigma_data=30.0)
    small, large = (validate(SurfaceDenoiser(SMALL, d.sigma_data).eval(), d, [pair]) for d in (sure, unsure))
    assert small["val_2sd"] < large["val_2sd"]
    assert small["val_spread"] < large["val_spread"]


def test_the_maps_of_a_fit_are_those_of_its_case(fitted, fitted_case: FittedCase) -> None:
    assert np.array_equal(fitted_case.maps.outer, TableMaps.of(fitted).outer)
