"""The learned baselines: their networks, input and output, weights, training, and the methods that use them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from pcdiff.errors import InputError
from pcdiff.geometry.metrics import dice
from pcdiff.geometry.volume import Volume
from pcdiff.methods.networks import coarse_to_fine
from pcdiff.methods.networks.base import Answer, BoneNetwork
from pcdiff.methods.networks.config import BLOCKS, BaselineConfig, Kind, NetworkConfig
from pcdiff.methods.networks.make import make_network
from pcdiff.methods.networks.method import BaselineMethod, lattice_index, load_slices, on_grid
from pcdiff.methods.networks.model import BaselineModel
from pcdiff.methods.networks.planning import planned_widths
from pcdiff.methods.networks.slices import BidirectionalConvLstm
from pcdiff.methods.networks.sparse import CHILDREN, NEIGHBOURS, Grow, Points, Shrink, SparseConvolution
from pcdiff.methods.registry import WeightsFiles, weights_of
from pcdiff.methods.volumetric.config import LAYOUT
from pcdiff.methods.volumetric.features import LATTICE, coordinates
from pcdiff.nets.unet3d import INITIAL_LOG_ODDS
from pcdiff.prior.direction_map import Pose
from pcdiff.prior.fit import fit
from pcdiff.training.loop import Loop, make_accelerator
from pcdiff.training.networks import NetworkTask, asymmetry
from pcdiff.training.recipes import BaselineTrainConfig, load_config
from pcdiff.training.run_state import trained_seconds
from pcdiff.training.volumetric.cuts import Windows
from pcdiff.training.volumetric.task import missing_loss

ROOT = Path(__file__).parents[1]
EVERY = [(kind, block) for kind, blocks in BLOCKS.items() for block in blocks]
RECIPES = ("encoder_decoder", "symmetry", "slices", "patches", "coarse_to_fine", "sparse")
SIDES = (40, 32, 24)


@pytest.fixture(autouse=True)
def small_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second network of coarse_to_fine sees less than the test's windows."""
    monkeypatch.setattr(coarse_to_fine, "MARGIN", 2)


def small(kind: Kind, block: Any = "plain", **config: Any) -> BoneNetwork:
    torch.manual_seed(0)
    return make_network(NetworkConfig(kind=kind, block=block, **{"widths": (8, 16), **config}))


def shell(seed: int = 0, count: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Fine and coarse channels of curved plates of bone in windows, each with a hole, and the missing bone."""
    rng = np.random.default_rng(seed)
    points = np.stack(np.meshgrid(*(np.arange(n) for n in SIDES), indexing="ij"), -1)
    heads, holes = [], []
    for _ in range(count):
        radius = np.linalg.norm(points - [20, 16, -30 + rng.uniform(-4, 4)], axis=-1)
        whole = np.clip(3.5 - abs(radius - 44), 0, 1)
        hole = np.linalg.norm(points[..., :2] - [20, 16] - rng.uniform(-4, 4, 2), axis=-1) < 8
        heads.append(whole * ~hole)
        holes.append(whole * hole)
    bone, missing = (torch.from_numpy(np.stack(each)).float() for each in (heads, holes))
    where = coordinates(tuple(slice(0, n) for n in SIDES))  # type: ignore[arg-type]
    coarse = torch.cat([where, torch.zeros(6, *where.shape[1:])])[None].expand(count, -1, -1, -1, -1)
    return torch.stack([bone, bone.flip(1), bone], 1), coarse, missing


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "block"), EVERY)
def test_every_network_takes_a_window_and_all_of_it_is_trained(kind: Kind, block: str) -> None:
    network = small(kind, block, inputs=("bone", "mean"), widths=(8, 16, 24))
    fine, coarse, missing = shell()
    answers = network(fine, coarse, missing)
    torch.stack([missing_loss(answer.odds, answer.missing) for answer in answers]).mean().backward()
    still = [name for name, value in network.named_parameters() if value.grad is None]
    assert still == []
    network.eval()
    with torch.no_grad():
        odds = network(fine, coarse)
    assert odds.shape == missing.shape
    assert odds.isfinite().all()
    assert (odds.sigmoid() > 0.5).float().mean() < 0.05 or block == "nnunet"


@pytest.mark.parametrize(("kind", "block"), [(kind, blocks[0]) for kind, blocks in BLOCKS.items()])
def test_every_kind_learns_to_fill_a_hole(kind: Kind, block: str) -> None:
    widths = (8, 16, 24, 32, 32) if kind == "sparse" else (8, 16, 24)
    network = small(kind, block, widths=widths)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-2)
    for step in range(40):
        fine, coarse, missing = shell(step % 4)
        answers = network(fine, coarse, missing)
        loss = torch.stack([missing_loss(answer.odds, answer.missing) for answer in answers]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    fine, coarse, missing = shell(9)
    network.eval()
    with torch.no_grad():
        found = network(fine, coarse)[0] > 0
    assert dice(found.numpy() & (fine[0, 0] < 0.5).numpy(), (missing[0] > 0.5).numpy()) > 0.6  # doing nothing: 0


def test_a_block_belongs_to_a_kind() -> None:
    with pytest.raises(ValueError, match="sparse has the blocks plain, got dense"):
        NetworkConfig(kind="sparse", block="dense")


def test_only_the_inputs_named_are_read() -> None:
    fine, coarse, _ = shell()
    other = fine.clone()
    other[:, 1:] = torch.rand_like(other[:, 1:])
    for inputs, same in ((("bone",), True), (("bone", "mirrored"), False)):
        network = small("encoder_decoder", inputs=inputs).eval()
        with torch.no_grad():
            assert torch.equal(network(fine, coarse), network(other, coarse)) == same


def test_patches_do_not_see_beyond_themselves() -> None:
    network = small("patches").eval()
    fine, coarse = torch.zeros(1, 3, 64, 32, 32), torch.zeros(1, 9, 32, 16, 16)
    other = fine.clone()
    other[:, :, 48:] = 1
    with torch.no_grad():
        one, two = (network.answers(x[:, :1], coarse[:, :3], x[:, 0])[0].odds for x in (fine, other))
    assert torch.equal(one[:, :32], two[:, :32])
    assert not torch.equal(one[:, 32:], two[:, 32:])


def test_the_memory_runs_through_all_slices_both_ways() -> None:
    memory = BidirectionalConvLstm(8)
    slices = torch.randn(1, 6, 8, 3, 3, requires_grad=True)
    for at, far in ((0, 5), (5, 0)):
        (gradient,) = torch.autograd.grad(memory(slices)[0, at].sum(), slices)
        assert gradient[0, far].abs().sum() > 0


def test_the_box_lies_around_what_is_found() -> None:
    found = torch.zeros(40, 32, 20, dtype=torch.bool)
    assert coarse_to_fine.box_around(found) is None
    found[31:39, 8:12, 2:18] = True
    box = coarse_to_fine.box_around(found)
    assert box == (slice(24, 40), slice(6, 14), slice(2, 18))  # 12 points, at the end; 8; 20, of which 16 fit
    found[:] = True
    assert coarse_to_fine.box_around(found) == (slice(0, 40), slice(0, 32), slice(2, 18))


def test_the_second_network_answers_in_the_box_alone() -> None:
    network = small("coarse_to_fine").eval()
    assert isinstance(network, coarse_to_fine.CoarseToFine)
    fine, coarse, missing = shell()
    with torch.no_grad():
        rough, refined = (answer.odds for answer in network(fine, coarse, missing))
        box = coarse_to_fine.box_around(missing[0] >= coarse_to_fine.SURE)
        assert box is not None
        inside = torch.zeros_like(rough, dtype=torch.bool)
        inside[(0, *box)] = True
        assert torch.equal(rough[~inside], refined[~inside])
        assert (rough[inside] != refined[inside]).all()
        half = tuple(slice(side.start // 2, side.stop // 2) for side in box)
        alone = network.refine.predict(fine[(slice(None), network.channels, *box)], coarse[:, :3][(..., *half)])
        assert torch.equal(refined[(0, *box)], alone[0])


# --- sparse convolutions ----------------------------------------------------------------------------------------------


@pytest.fixture
def points() -> tuple[Points, Tensor]:
    """Some points of two grids, and the same features on the whole grid."""
    generator = torch.Generator().manual_seed(0)
    places = torch.nonzero(torch.rand(2, 6, 5, 7, generator=generator) < 0.3)
    features = torch.randn(len(places), 3, generator=generator)
    dense = torch.zeros(2, 6, 5, 7, 3)
    dense[tuple(places.T)] = features
    return Points(places, features, (2, 6, 5, 7)), dense.movedim(-1, 1)


def test_a_sparse_convolution_is_a_convolution_at_the_points(points: tuple[Points, Tensor]) -> None:
    sparse, dense = points
    at, layer = tuple(sparse.places.T), SparseConvolution(3, 4)
    weight = torch.zeros(4, 3, 3, 3, 3)
    for offset, part in zip(NEIGHBOURS, layer.weight.detach(), strict=True):
        weight[(..., *(n + 1 for n in offset))] = part.T
    weight.requires_grad_()
    dense.requires_grad_()
    sparse.features.requires_grad_()
    expected = functional.conv3d(dense, weight, padding=1).movedim(1, -1)[at]
    found = layer(sparse).features
    assert torch.allclose(found, expected, atol=1e-5)
    downstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * downstream).sum().backward()
    (expected * downstream).sum().backward()
    assert dense.grad is not None
    assert weight.grad is not None
    assert torch.allclose(sparse.features.grad, dense.grad.movedim(1, -1)[at], atol=1e-5)
    for offset, part in zip(NEIGHBOURS, layer.weight.grad, strict=True):
        assert torch.allclose(part, weight.grad[(..., *(n + 1 for n in offset))].T, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(layer(sparse).features, expected, atol=0.1)


def test_shrinking_and_growing_are_strided_convolutions(points: tuple[Points, Tensor]) -> None:
    sparse, dense = points
    padded = functional.pad(dense, (0, 1, 0, 1))
    shrink, grow = Shrink(3, 4), Grow(4, 3)
    down, up = torch.zeros(4, 3, 2, 2, 2), torch.zeros(4, 3, 2, 2, 2)
    for child, shrunk, grown in zip(CHILDREN, shrink.weight.detach(), grow.weight.detach(), strict=True):
        down[(..., *child)], up[(..., *child)] = shrunk.T, grown
    small_grid = shrink(sparse)
    coarse = functional.conv3d(padded, down, stride=2)
    assert torch.allclose(small_grid.features, coarse.movedim(1, -1)[tuple(small_grid.places.T)], atol=1e-5)
    assert small_grid.shape == (2, 3, 3, 4)
    fine = grow(small_grid, sparse.shape)
    occupied = torch.zeros_like(coarse).movedim(1, -1)
    occupied[tuple(small_grid.places.T)] = small_grid.features.detach()
    expected = functional.conv_transpose3d(occupied.movedim(-1, 1), up, stride=2).movedim(1, -1)
    assert torch.allclose(fine.features, expected[tuple(fine.places.T)], atol=1e-5)


def test_a_sparse_network_answers_at_every_level_and_misses_no_missing_bone() -> None:
    network = small("sparse", widths=(8, 8, 8, 8, 8, 8))
    fine, coarse, missing = shell()
    answers = network(fine, coarse, missing)
    assert len(answers) == 5
    assert answers[-1].missing.sum() == pytest.approx(float(missing.sum()))
    assert all(a.odds.numel() < b.odds.numel() for a, b in pairwise(answers))


def test_a_sparse_network_leaves_out_only_what_it_is_sure_of() -> None:
    network = small("sparse", widths=(8, 8, 8, 8)).eval()
    fine, coarse, _ = shell()

    def visited(log_odds: float) -> int:
        for layer in network.occupied:
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.constant_(layer.bias, log_odds)
        with torch.no_grad():
            return int((network(fine, coarse) == log_odds).sum())

    assert visited(-3.0) > 2 * visited(-5.0) > 0


# --- on the scan's grid -----------------------------------------------------------------------------------------------


def test_the_lattice_is_read_on_a_grid_that_is_turned_and_coarser() -> None:
    centre = np.array([30.0, -20.0, 40.0])  # model mm
    values = np.clip(1.5 - np.linalg.norm(LATTICE.points - centre, axis=-1) / 20, 0, 1).astype(np.float32)
    angle = np.radians(20)
    linear = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.1]])
    pose = Pose(linear, np.array([5.0, 6.0, 7.0]))
    affine = np.diag([-1.5, 1.5, 2.5, 1.0])
    affine[:3, 3] = pose.to_patient(centre) - affine[:3, :3] @ [40, 40, 25]
    skull = Volume(np.zeros((80, 80, 50), bool), affine)
    found = on_grid(values, pose, skull)
    index = np.argwhere(np.ones(skull.mask.shape, bool))
    at = pose.to_model(index @ affine[:3, :3].T + affine[:3, 3])
    assert np.allclose(lattice_index()[:3, :3] @ at[0] + lattice_index()[:3, 3], (at[0] - LATTICE.low) / LATTICE.step)
    expected = np.clip(1.5 - np.linalg.norm(at - centre, axis=-1) / 20, 0, 1).reshape(skull.mask.shape)
    assert np.abs(found - expected).max() < 0.1
    assert not on_grid(np.zeros_like(values), pose, skull).any()


class Fixed(BoneNetwork):
    """Answers with log-odds that a test chooses."""

    def __init__(self, odds: Tensor) -> None:
        super().__init__([0])
        self.odds = nn.Parameter(odds)

    def predict(self, bone: Tensor, where: Tensor) -> Tensor:
        return self.odds[None]


def test_at_the_rim_missing_and_present_bone_are_one() -> None:
    window = (slice(0, 8), slice(0, 8), slice(0, 8))
    bone, odds = np.zeros(LATTICE.shape, np.float32), torch.full((8, 8, 8), -10.0)
    bone[3, :8, :8], odds[2], odds[3] = 0.4, 10.0, 0.0
    bone[6] = 1
    config = BaselineConfig(network=NetworkConfig(kind="encoder_decoder"))
    share = BaselineModel(Fixed(odds), None, config).completed_share(bone, [window], mirror=False)
    assert share[3, 4, 4] == pytest.approx(0.9, abs=0.01)
    assert share[6, 4, 4] < 0.01  # bone away from the rim is not missing
    assert not share[8:].any()


# --- weights and methods ----------------------------------------------------------------------------------------------


def model(kind: Kind = "slices", **config: Any) -> BaselineModel:
    config = {"block": "plain", "widths": (8, 16), **config}
    network, chosen = small(kind, **config), NetworkConfig(kind=kind, **config)
    mean = np.full(LATTICE.shape, 7, np.uint8) if "mean" in chosen.inputs else None
    return BaselineModel(network.eval(), mean, BaselineConfig(network=chosen))


@pytest.mark.parametrize("inputs", [("bone",), ("bone", "mean")])
def test_weights_come_back(inputs: tuple[Any, ...], tmp_path: Path) -> None:
    path = tmp_path / "slices.safetensors"
    model(inputs=inputs).save(path, {"windows": "8"})
    again = BaselineModel.load(path)
    assert again.config.network.inputs == inputs
    assert (again.mean is not None) == ("mean" in inputs)
    with safe_open(path, "np") as file:
        assert file.metadata()["windows"] == "8"
    assert BaselineMethod is type(load_slices(WeightsFiles(path, weights_of("prior").prior)))


def test_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    model("encoder_decoder").save(path)
    with pytest.raises(InputError, match="expected weights of slices, got those of encoder_decoder"):
        load_slices(WeightsFiles(path, weights_of("prior").prior))
    with pytest.raises(InputError, match="predicts missing bone of format pcdiff-baseline-1"):
        BaselineModel.load(weights_of("unet").own or path)


def test_a_method_fills_what_its_network_finds_and_nothing_of_the_skull(fitted, case, prior) -> None:
    skull, truth = case
    to_lattice = lattice_index() @ np.linalg.inv(
        np.vstack([np.c_[fitted.pose.linear, fitted.pose.shift], [0, 0, 0, 1]])
    )
    index = np.argwhere(truth.mask)
    places = index @ truth.affine[:3, :3].T + truth.affine[:3, 3]
    at = np.round(places @ to_lattice[:3, :3].T + to_lattice[:3, 3]).astype(int)
    known = np.zeros(LATTICE.shape, bool)
    known[tuple(at.T)] = True
    odds = torch.from_numpy(np.where(ndimage.binary_closing(known), 8.0, -8.0).astype(np.float32))
    whole = Fixed(odds[:80, :112, :104])
    whole.whole = True
    config = BaselineConfig(network=NetworkConfig(kind="encoder_decoder"))
    method = BaselineMethod(prior, BaselineModel(whole, None, config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pcdiff.methods.networks.model.run_in_windows", one_sided)
        (candidate,) = method(skull, fitted).candidates
        left = truth.mask & (np.indices(truth.mask.shape)[0] < index.mean(0)[0])
        part = fit(prior, skull, defects=skull.with_mask(ndimage.binary_dilation(left)))  # what is to be closed alone
        (half,) = method(skull, part).candidates
    found = candidate.to_volume(skull).mask & ~skull.mask
    assert dice(found, truth.mask) > 0.7
    filled = half.to_volume(skull).mask & truth.mask
    assert (filled & ~left).sum() < 0.3 * filled.sum()
    assert (filled & left).sum() > 0.6 * left.sum()


def one_sided(network: Fixed, mean: np.ndarray, bone: np.ndarray, windows: Any, *_: Any) -> np.ndarray:
    """The network's log-odds, which are not to be mirrored."""
    odds = np.full(LATTICE.shape, np.nan, np.float32)
    odds[windows[0]] = network.odds.detach().numpy()
    return odds


# --- training ---------------------------------------------------------------------------------------------------------


def recipe(name: str, out: Path, **changes: Any) -> BaselineTrainConfig:
    widths = [8, 8, 8] if name == "sparse" else [8, 16]
    values = {"run.out": str(out), "run.workers": 0, "network.widths": widths, "optimiser.steps": 3}
    values |= {"optimiser.precision": "'no'", "optimiser.warmup": 0, "optimiser.cooldown": 0}
    config = load_config(ROOT / "configs" / f"{name}.yaml", values | changes)
    assert isinstance(config, BaselineTrainConfig)
    return config


class Shells:
    """Windows of shells, for which no head must be cut."""

    def draw(self, count: int, rng: np.random.Generator) -> Windows:
        fine, coarse, missing = shell(int(rng.integers(100)), count)
        return Windows(fine, coarse, missing, torch.zeros_like(missing))

    @property
    def sides(self) -> list[tuple[int, int, int]]:
        return [(16, 16, 16)]

    def mean_count(self, count: int) -> float:
        return float(count)


def task(config: BaselineTrainConfig) -> NetworkTask:
    mean = np.zeros(LATTICE.shape, np.uint8)
    return NetworkTask(config, Shells(), mean, {}, torch.device("cpu"))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_and_a_stopped_run_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    whole, stopped = (task(recipe(name, tmp_path / each)) for each in ("whole", "stopped"))
    for each in (whole, stopped):
        each.config.run.out.mkdir()
    stopped.steps = 2
    Loop(stopped, make_accelerator(), progress=False).run()
    resumed = task(recipe(name, tmp_path / "stopped"))
    for each in (whole, resumed):
        Loop(each, make_accelerator(), progress=False).run()
    mine, theirs = (BaselineModel.load(each.weights).network.state_dict() for each in (whole, resumed))
    assert all(torch.equal(value, theirs[part]) for part, value in mine.items())
    with safe_open(whole.weights, "np") as file:
        notes = file.metadata()
    assert whole.weights.name == f"{name}.safetensors"
    assert notes["windows"] == str(3 * whole.config.optimiser.batch)
    assert json.loads(notes["recipe"])["method"] == name


def test_a_run_goes_on_from_weights_and_counts_their_windows(tmp_path: Path) -> None:
    first = tmp_path / "first.safetensors"
    model("slices", block="residual", widths=(8, 16), inputs=("bone", "mirrored", "mean")).save(
        first, {"windows": "100", "seconds": "7"}
    )
    config = recipe("slices", tmp_path / "run", weights=str(first), **{"optimiser.steps": 1, "optimiser.rate": 1e-9})
    config.run.out.mkdir()
    Loop(task(config), make_accelerator(), progress=False).run()
    with safe_open(tmp_path / "run" / "slices.safetensors", "np") as file:
        assert int(file.metadata()["windows"]) == 100 + config.optimiser.batch
        assert file.metadata()["earlier_windows"] == "100"
    mine, theirs = (BaselineModel.load(p).network.state_dict() for p in (first, config.run.out / "slices.safetensors"))
    assert all(torch.allclose(value, theirs[name], atol=1e-3) for name, value in mine.items())
    with pytest.raises(InputError, match="weights of another network"):
        task(recipe("slices", tmp_path / "run", weights=str(first), **{"network.widths": [16, 16]}))


def test_the_seconds_of_all_parts_of_a_run_count(tmp_path: Path) -> None:
    run = recipe("slices", tmp_path).run
    assert trained_seconds(run) == 0
    rows = [{"step": 1, "seconds": 5.0}, {"step": 2, "seconds": 9.0}, {"step": 2, "val_dsc": 0.5}]
    rows += [{"step": 3, "seconds": 4.0}, {"step": 4, "seconds": 6.0}]  # gone on
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert trained_seconds(run) == 15


def test_the_loss_of_symmetry_asks_for_the_other_side_s_bone() -> None:
    fine, _, missing = shell()
    fine[:, 1] = (fine[:, 0] + missing).flip(1).flip(1)  # the other side is whole
    empty, filled = (torch.where(missing > 0.5, value, -8.0) for value in (-8.0, 8.0))
    assert asymmetry(filled, fine) < 0.02 < 0.06 < asymmetry(empty, fine)
    config = recipe("symmetry", Path("o"))
    windows = Windows(fine, torch.zeros(1, 9, *(n // 2 for n in SIDES)), missing, torch.zeros_like(missing))
    with_it, without = task(config), task(recipe("symmetry", Path("o"), **{"loss.symmetry": 0.0}))
    answers = [Answer(empty, missing)]
    difference = with_it.loss(lambda *_: answers, windows) - without.loss(lambda *_: answers, windows)  # type: ignore[arg-type]
    assert float(difference) == pytest.approx(config.loss.symmetry * float(asymmetry(empty, fine)))


def test_nnunet_plans_its_levels_from_the_windows() -> None:
    assert planned_widths([(56, 64, 64)]) == (32, 64, 128, 256)
    assert planned_widths([(56, 64, 64), (80, 112, 96), (80, 112, 96)]) == (32, 64, 128, 256, 320)
    assert planned_widths([(16, 16, 16)]) == (32, 64, 128)


def test_a_run_of_nnunet_takes_its_widths_from_its_cuts(tmp_path: Path) -> None:
    config = recipe("encoder_decoder", tmp_path, **{"network.block": "nnunet", "network.widths": [8, 8]})
    assert task(config).chosen.widths == (32, 64, 128)


def test_an_untrained_network_says_little_bone() -> None:
    fine, coarse, _ = shell()
    with torch.no_grad():
        odds = small("encoder_decoder").eval()(fine, coarse)
    assert float(odds.median()) == pytest.approx(INITIAL_LOG_ODDS, abs=1.0)
    assert LAYOUT.fine == ("bone", "mirrored", "mean")
