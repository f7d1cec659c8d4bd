"""The volumetric U-Net: its network, its input, its weights, its samples and its training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from scipy import ndimage
from scipy.special import logit

from pcdiff.errors import InputError
from pcdiff.geometry.metrics import dice
from pcdiff.geometry.occupancy import Head, head_occupancy
from pcdiff.methods.candidates import combine
from pcdiff.methods.registry import load_method
from pcdiff.methods.volumetric import method as method_module
from pcdiff.methods.volumetric.config import LAYOUT, FusionConfig, UNetConfig, VolumetricConfig
from pcdiff.methods.volumetric.features import (
    LATTICE,
    STEP,
    coordinates,
    defect_windows,
    mirrored,
    network_inputs,
    prior_log_odds,
    prior_tables,
    soft_occupancy,
    window_around,
    windows_occupancy,
)
from pcdiff.methods.volumetric.lattice import Lattice, TableMaps, missing_table_points
from pcdiff.methods.volumetric.method import VolumetricMethod
from pcdiff.methods.volumetric.model import UNET_FORMAT, VolumetricModel
from pcdiff.methods.volumetric.surroundings import Surroundings, fused
from pcdiff.nets.unet3d import INITIAL_LOG_ODDS, UNet3d, fold, unfold
from pcdiff.prior.direction_map import MAP, SIZE, Pose
from pcdiff.training.loop import Loop, make_accelerator
from pcdiff.training.recipes import VolumetricSamplesConfig, VolumetricTrainConfig, WindowsConfig, load_config
from pcdiff.training.volumetric import fitted as fitted_module
from pcdiff.training.volumetric.cuts import SHAPES, Cuts, Windows
from pcdiff.training.volumetric.fitted import FittedCase, make_fitted_case
from pcdiff.training.volumetric.heads import Heads
from pcdiff.training.volumetric.task import missing_loss
from pcdiff.training.volumetric.train import VolumetricTask
from pcdiff.training.volumetric.validation import EVERYWHERE, validate
from pcdiff.training.volumetric.warps import BOX, HEAD_LOW, HEAD_SHAPE, interpolation

ROOT = Path(__file__).parents[1]
TINY = UNetConfig(widths=(8, 16))
NO_MEAN = np.zeros(LATTICE.shape, np.uint8)
FINE, COARSE = len(LAYOUT.fine), len(LAYOUT.coordinates) + len(LAYOUT.tables)
WINDOW = window_around(np.array([-50.0, -40.0, 30.0]), np.array([-20.0, 0.0, 60.0]))
LIMIT = 2 * FusionConfig().max_log_odds


@pytest.fixture(scope="module")
def heads() -> Heads:
    """Three ellipsoid shells in the shape model's pose, and random velocity fields of 2 mm."""
    points = Lattice(HEAD_LOW, HEAD_SHAPE, 2.0).points
    shells = []
    for scale in (0.96, 1.0, 1.04):
        radius = np.linalg.norm(points / (np.array([70.0, 88.0, 82.0]) * scale), axis=-1) * 78
        shells.append(np.clip((4 - np.abs(radius - 78)) / 2 + 0.5, 0, 1))
    occupancy = torch.from_numpy(np.round(np.stack(shells) * 255).astype(np.uint8))
    generator = torch.Generator().manual_seed(0)
    velocity = torch.nn.functional.avg_pool3d(torch.randn(3, 3, *BOX.knots, generator=generator), 7, 1, 3) * 20
    return Heads(occupancy, velocity, (0, 1, 2))


def constant(log_odds: float) -> VolumetricModel:
    """A small model that predicts the same log-odds everywhere, which count in full."""
    network = TINY.make().eval()
    torch.nn.init.constant_(network.leave.bias, log_odds)
    config = VolumetricConfig(network=TINY, fusion=FusionConfig(near=1.0))
    return VolumetricModel(network, NO_MEAN, config)


def uneven() -> VolumetricModel:
    """A small model whose output depends on its input."""
    torch.manual_seed(0)
    network = TINY.make().eval()
    torch.nn.init.normal_(network.leave.weight)
    return VolumetricModel(network, NO_MEAN, VolumetricConfig(network=TINY))


# --- network and input ------------------------------------------------------------------------------------------------


def test_folding_comes_back_and_an_untrained_network_predicts_little_bone() -> None:
    x = torch.randn(2, 3, 8, 4, 6)
    assert torch.equal(unfold(fold(x)), x)
    network = UNet3d(3, 2, (8, 16))
    odds = network(torch.randn(1, 3, 16, 8, 8), torch.randn(1, 2, 8, 4, 4))
    assert odds.shape == (1, 16, 8, 8)
    assert torch.allclose(odds, torch.full_like(odds, INITIAL_LOG_ODDS))
    with pytest.raises(ValueError, match="multiples of 4"):
        network(torch.randn(1, 3, 16, 8, 6), torch.randn(1, 2, 8, 4, 3))


def test_soft_occupancy_keeps_the_volume_of_thin_walls() -> None:
    occupancy = np.zeros((60, 60, 60), np.uint8)
    occupancy[10:50, 10:50, 30] = 255  # a wall of 1 mm, thinner than the lattice's step
    lattice = Lattice(np.array([0.5, 0.3, 0.1]), (30, 30, 30), STEP)
    share = soft_occupancy(Head(occupancy, np.eye(4), ""), Pose(np.eye(3), np.zeros(3)), lattice)
    assert share.sum() * STEP**3 == pytest.approx(40 * 40, rel=0.02)


def test_bone_is_read_where_windows_and_their_mirror_images_lie(fitted, case, bone) -> None:
    windows = defect_windows(fitted)
    found = windows_occupancy(head_occupancy(case[0]), fitted.pose, windows)
    for window in windows:
        strip = (slice(None), *window[1:])
        assert np.allclose(found[strip], bone[strip])
    assert not windows_occupancy(head_occupancy(case[0]), fitted.pose, []).any()


def test_a_window_holds_its_box_and_a_margin_within_the_lattice() -> None:
    low, high = np.array([-50.0, -100.0, 10.0]), np.array([20.0, -20.0, 60.0])
    window, multiple = window_around(low, high, margin=4), LAYOUT.window_multiple
    for side, first, last, least, most in zip(window, low, high, LATTICE.low, LATTICE.shape, strict=True):
        assert least + STEP * side.start <= max(first - 3 * STEP, least)
        assert least + STEP * (side.stop - 1) >= last + 3 * STEP
        assert side.start % 2 == 0
        assert (side.stop - side.start) % multiple == 0
        assert side.stop <= most
    everything = window_around(LATTICE.low - 50, LATTICE.low + 500)
    assert [s.stop - s.start for s in everything] == [n // multiple * multiple for n in LATTICE.shape]


def test_windows_hold_the_missing_tables(fitted) -> None:
    (window,) = defect_windows(fitted)
    low = LATTICE.low + STEP * np.array([s.start for s in window])
    high = LATTICE.low + STEP * np.array([s.stop - 1 for s in window])
    rays = np.flatnonzero(fitted.defect > 0)
    table = MAP.directions[rays] * fitted.outer[rays, None]
    assert (table > low).all()
    assert (table < high).all()


def test_tables_are_positive_within_the_bone_and_within_the_defect(fitted, depth) -> None:
    tables = prior_tables(TableMaps.of(fitted), EVERYWHERE).astype(float)
    rays = np.flatnonzero(fitted.defect > 0)
    deep = rays[np.argsort(-depth[rays])[:20]]
    middle = MAP.directions[deep] * (fitted.outer[deep] - fitted.thickness[deep] / 2)[:, None]
    index = np.round((middle - LATTICE.low - STEP / 2) / (2 * STEP)).astype(int)
    below, above, _, _, border, present = tables[:, *index.T]
    assert (below + above) * 4 == pytest.approx(fitted.thickness[deep], abs=1.5)
    assert (border > 0).all()
    assert (present == 1).all()


def test_inputs_are_cut_from_one_lattice() -> None:
    bone = np.random.default_rng(0).random(LATTICE.shape, np.float32)
    maps = flat_maps()
    ((fine, coarse),) = network_inputs(bone, bone, [WINDOW], maps)
    assert np.array_equal(fine[0, 0].numpy(), bone[WINDOW])
    assert np.array_equal(fine[0, 1].numpy(), bone[::-1][WINDOW])
    first = [s.start // 2 for s in WINDOW]
    assert coarse[0, 3, 5, 6, 7] == pytest.approx(
        float(prior_tables(maps, EVERYWHERE)[0, first[0] + 5, first[1] + 6, first[2] + 7])
    )
    assert torch.equal(coarse[0, :3], coordinates(WINDOW))
    twice = mirrored(*mirrored(fine, coarse))
    assert torch.equal(twice[0], fine)
    assert torch.equal(twice[1], coarse)


def test_mirrored_input_is_that_of_the_mirrored_head() -> None:
    rng = np.random.default_rng(0)
    bone, mean = rng.random((2, *LATTICE.shape), np.float32)
    mean = (mean + mean[::-1]) / 2
    (first,), (second,) = network_inputs(bone, mean, [WINDOW]), network_inputs(bone[::-1], mean, [opposite()])
    for found, expected in zip(mirrored(*first), second, strict=True):
        assert torch.allclose(found, expected, atol=1e-6)


def opposite() -> tuple[slice, slice, slice]:
    """The mirror image of `WINDOW`."""
    width = LATTICE.shape[0]
    return slice(width - WINDOW[0].stop, width - WINDOW[0].start), WINDOW[1], WINDOW[2]


def flat_maps(border: float = 5.0) -> TableMaps:
    """Tables of a sphere, 80 and 74 mm from the centre."""
    flat = np.ones((SIZE, SIZE), np.float32)
    return TableMaps(80 * flat, 74 * flat, flat, flat, border * flat)


# --- method and weights -----------------------------------------------------------------------------------------------


def test_weights_come_back_and_mirrored_heads_give_mirrored_log_odds(tmp_path: Path) -> None:
    path = tmp_path / "unet.safetensors"
    uneven().save(path, {"step": "1"})
    model = VolumetricModel.load(path)
    bone = np.random.default_rng(1).random(LATTICE.shape, np.float32)
    odds = model.predict(bone, [WINDOW])
    assert odds[WINDOW].std() > 0.1
    assert np.isnan(odds[:, -1]).all()
    other = model.predict(bone[::-1].copy(), [opposite()])
    assert np.allclose(odds[::-1], other, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(("processor", "dtype"), [("AVX512", torch.bfloat16), ("AVX2", torch.float32)])
def test_processors_that_are_slow_at_bfloat16_compute_in_float32(
    processor: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    monkeypatch.setattr("pcdiff.training.loop.Accelerator", lambda mixed_precision, **_: mixed_precision)
    model, seen = uneven(), []
    model.network.enter.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    assert np.isfinite(model.predict(np.zeros(LATTICE.shape, np.float32), [WINDOW])[WINDOW]).all()
    assert set(seen) == {dtype}
    assert make_accelerator("bf16") == ("bf16" if dtype == torch.bfloat16 else "no")


def test_other_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"x": np.zeros(1)}, path)
    with pytest.raises(InputError, match="expected weights of a volumetric U-Net of format pcdiff-unet-2"):
        VolumetricModel.load(path)
    config = VolumetricConfig(network=TINY)
    other = config.model_copy(update={"layout": LAYOUT.model_copy(update={"step_mm": 3.0})})
    for wrong, message in ((other, "step_mm is 3.0, expected 2.0"), (config, "got one without mean")):
        save_file({"x": np.zeros(1)}, path, {"format": UNET_FORMAT, "config": wrong.model_dump_json()})
        with pytest.raises(InputError, match=message):
            VolumetricModel.load(path)
    save_file({"mean": NO_MEAN}, path, {"format": UNET_FORMAT, "config": config.model_dump_json()})
    with pytest.raises(InputError, match="another version's network"):
        VolumetricModel.load(path)


def test_log_odds_are_added_outside_bone_and_within_windows() -> None:
    odds = np.array([4.0, -4.0, np.nan, 100.0, 4.0, 4.0], np.float32)
    tables = np.array([-5.0, 5.0, 5.0, 5.0, 0.0, -2.0], np.float32)
    fusion = FusionConfig(near=0.5, near_mm=(0.5, 1.5), slope_mm=0.5)
    assert fused(odds, np.zeros(6), tables, fusion) == pytest.approx([4, -4, 0, LIMIT, 2, 3])


def test_at_the_rim_missing_and_present_bone_are_one() -> None:
    share = np.array([0.9, 0.9, 0.6, 0.2, 1e-6, 1e-6])  # of missing bone, along a line that leaves the defect
    bone = np.array([0.0, 0.0, 0.3, 0.3, 0.6, 0.6])
    tables = np.full(6, 4.0)
    odds = tables + fused(logit(share) - tables, bone, tables, FusionConfig())
    assert odds[:4] == pytest.approx(logit([0.9, 0.9, 0.9, 0.5]), abs=1e-4)
    assert odds[4:] == pytest.approx(tables[4:])  # present bone away from the rim stays with the tables


@pytest.fixture(scope="module")
def bone(fitted, case) -> np.ndarray:
    return soft_occupancy(head_occupancy(case[0]), fitted.pose)


@pytest.fixture
def same_bone(bone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the head at half steps takes most of the time of a small network: do it once for all tests."""
    monkeypatch.setattr(method_module, "windows_occupancy", lambda head, pose, windows: bone)


def test_log_odds_are_added_where_the_defect_is(fitted, case, prior, same_bone) -> None:
    skull, surface = VolumetricMethod(prior, constant(2.0)).predict_surface(fitted, head_occupancy(case[0]))
    index = np.round((missing_table_points(fitted) - LATTICE.low) / STEP).astype(int)
    values = skull.added[tuple(index.T)]
    away = ndimage.binary_dilation(skull.bone > 0, iterations=1)[tuple(index.T)] == 0  # from bone
    assert values[away & (values != 0)] == pytest.approx(2, abs=0.01)
    assert (values != 0).mean() > 0.8
    _, still = VolumetricMethod(prior, constant(0.0)).predict_surface(fitted, head_occupancy(case[0]))
    outer = (still.border > 6) & ((still.points * still.normals).sum(1) > 0)
    moved = (surface.border > 6) & ((surface.points * surface.normals).sum(1) > 0)
    grown = np.linalg.norm(surface.points[moved], axis=1).mean() - np.linalg.norm(still.points[outer], axis=1).mean()
    assert grown == pytest.approx(2 * FusionConfig().slope_mm, abs=0.3)


def test_the_tables_log_odds_are_those_of_bone_inside_the_defect(fitted) -> None:
    odds = prior_log_odds(TableMaps.of(fitted), EVERYWHERE, FusionConfig())
    index = np.round((missing_table_points(fitted) - LATTICE.low) / STEP).astype(int)
    assert odds[tuple(index.T)].mean() > -1
    assert odds.mean() < -4


def test_the_shipped_method_fills_the_defect(fitted, case, same_bone) -> None:
    method = load_method("unet")
    assert isinstance(method, VolumetricMethod)
    skull, truth = case
    implant, _ = combine(method(skull, fitted).candidates, skull)
    assert dice(implant.mask, truth.mask) > 0.85


def test_the_seed_and_the_call_change_nothing(fitted, case, prior, same_bone) -> None:
    method, head = VolumetricMethod(prior, uneven()), head_occupancy(case[0])
    first, again = (method.predict_surface(fitted, head)[1].points for _ in range(2))
    assert np.array_equal(first, again)


def test_beyond_the_lattice_the_tables_stand_alone(fitted) -> None:
    added = np.ones(LATTICE.shape, np.float32)
    skull = Surroundings(added, added, added, TableMaps.of(fitted), FusionConfig())
    first, last = np.array([-4, 10, 60]), np.array([30, 60, 106 + 3])
    inside = skull.surface(np.maximum(first, 0), np.minimum(last, LATTICE.shape))
    assert len(skull.surface(first, last).points) >= len(inside.points)


# --- samples ----------------------------------------------------------------------------------------------------------


def test_interpolation_is_exact_at_knots_and_on_lines() -> None:
    at = np.linspace(0, 30, 61)
    matrix = interpolation(at, 0.0, 30.0, 7).double().numpy()
    assert np.allclose(matrix[::10], np.eye(7), atol=1e-6)
    assert np.allclose((matrix @ np.linspace(0, 30, 7))[10:-10], at[10:-10], atol=1e-5)
    assert np.allclose(matrix.sum(1), 1, atol=1e-6)


def test_the_mean_head_leaves_out_the_persons_of_a_cut(heads: Heads) -> None:
    only = replace(heads, occupancy=heads.occupancy * torch.tensor([1, 0, 0], dtype=torch.uint8)[:, None, None, None])
    assert only.mean(without=[1]).any()
    assert not only.mean(without=[0, 2]).any()
    assert not replace(only, person=(0, 0, 2)).mean(without=[1]).any()  # a second scan of the first head


@pytest.fixture(scope="module")
def fitted_case(heads: Heads, fitted) -> FittedCase:
    """A cut in one of the shells; the fit is that of another head, in the pose of the shells."""
    at_rest = replace(fitted, pose=Pose(np.eye(3), np.zeros(3)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitted_module, "_fit", lambda *_: at_rest)
        return make_fitted_case(heads, [1], fitted.prior, VolumetricSamplesConfig(), np.random.default_rng(0))


def test_a_fitted_case_is_a_head_with_a_hole_of_air(heads: Heads, fitted_case: FittedCase) -> None:
    bone, missing = fitted_case.bone.astype(int), fitted_case.missing.astype(int)
    assert (bone + missing).max() <= 256  # rounded apart
    assert np.count_nonzero(missing >= 128) > 600
    assert bone[missing >= 250].max() <= 5
    assert set(fitted_case.used) == {1}
    whole = heads.share_of_bone(1).sum() * 2.0**3
    assert (bone + missing).sum() / 255 * STEP**3 == pytest.approx(float(whole), rel=0.15)


def test_a_fitted_case_comes_back(fitted_case: FittedCase, tmp_path: Path) -> None:
    fitted_case.save(tmp_path / "case.safetensors")
    again = FittedCase.load(tmp_path / "case.safetensors")
    assert np.array_equal(again.missing, fitted_case.missing)
    assert np.array_equal(again.maps.border, fitted_case.maps.border)
    assert (again.windows, again.used) == (fitted_case.windows, fitted_case.used)


@pytest.fixture
def cuts_of(heads: Heads, fitted_case: FittedCase, tmp_path: Path) -> Callable[..., Cuts]:
    """Makes the cut of `fitted_case` as `Cuts`, from settings of the windows; by default nothing happens to them."""
    fitted_case.save(tmp_path / "case.safetensors")

    def make(**config: float) -> Cuts:
        chosen = WindowsConfig.model_validate({"hidden": 0, "deformed": 0} | config)
        return Cuts([tmp_path / "case.safetensors"], heads, chosen, torch.device("cpu"))

    return make


def test_windows_hold_what_the_network_gets_in_use(cuts_of, heads: Heads, fitted_case: FittedCase) -> None:
    cuts = cuts_of()
    places = next(places for places in cuts.places if places)
    shape = SHAPES[cuts.places.index(places)]
    for seed in range(4):  # some are mirrored
        made = cuts.windows(places, shape, np.random.default_rng(seed))
        corner = cuts._corner(places[0], np.array(shape), np.random.default_rng(seed))
        window = tuple(slice(int(first), int(first) + side) for first, side in zip(corner, shape, strict=True))
        mean = heads.mean(without=fitted_case.used).astype(np.float32) / 255
        ((fine, coarse),) = network_inputs(fitted_case.bone.astype(np.float32) / 255, mean, [window], fitted_case.maps)
        tables = torch.from_numpy(prior_log_odds(fitted_case.maps, window, FusionConfig()))
        missing = torch.from_numpy(fitted_case.missing[window] / np.float32(255))
        if made.coarse[0, 0, 0, 0, 0] != coarse[0, 0, 0, 0, 0]:
            fine, coarse = mirrored(fine, coarse)
            tables, missing = tables.flip(0), missing.flip(0)
        expected = (fine[0], coarse[0], missing, tables)
        for found, right in zip((made.fine, made.coarse, made.missing, made.tables), expected, strict=True):
            assert torch.allclose(found[0], right, atol=2e-3)
    assert np.count_nonzero(fitted_case.missing >= 128) == np.count_nonzero(made.missing >= 0.5)


def test_tables_are_shown_or_hidden(cuts_of) -> None:
    for hidden in (0.0, 1.0):
        windows = cuts_of(hidden=hidden).draw(1, np.random.default_rng(0))
        assert (windows.coarse[:, -1] == 1 - hidden).all()
        assert bool((windows.tables == 0).all()) == bool(hidden)


def test_every_second_window_is_mirrored(cuts_of) -> None:
    cuts, rng = cuts_of(), np.random.default_rng(0)
    made = [cuts.draw(1, rng) for _ in range(20)]
    right = [float((w.missing[0, ::2, ::2, ::2] * w.coarse[0, 0]).sum()) > 0 for w in made]
    assert 3 < sum(right) < 17


def test_deformed_windows_agree_in_themselves(cuts_of) -> None:
    """Bone, missing bone and tables move together, by some millimetres; what is missing stays air."""
    cuts, still = cuts_of(deformed=1.0), cuts_of()
    for seed in range(3):
        moved, before = (each.draw(1, np.random.default_rng(seed)) for each in (cuts, still))
        assert not torch.allclose(moved.missing, before.missing, atol=0.1)
        assert moved.missing.sum() == pytest.approx(float(before.missing.sum()), rel=0.25)
        assert (moved.fine[:, 0] + moved.missing).max() <= 1 + 1e-2
        assert moved.fine[:, 0][moved.missing > 0.98].max() < 0.05
        agree = ((moved.tables > 0) == (before.tables > 0)).float().mean()
        assert 0.9 < agree < 1


def test_windows_depend_on_the_generator_alone(cuts_of) -> None:
    cuts = cuts_of(deformed=0.5, hidden=0.5)
    a, b, c = (cuts.draw(1, np.random.default_rng(seed)).fine for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert a.shape != c.shape or not torch.equal(a, c)


# --- training ---------------------------------------------------------------------------------------------------------


def recipe(out: Path, **changes: object) -> VolumetricTrainConfig:
    values = {"run.out": str(out), "run.workers": 0, "network.widths": [8, 16], "optimiser.steps": 3}
    values |= {"optimiser.precision": "'no'", "optimiser.warmup": 0, "optimiser.cooldown": 0}
    config = load_config(ROOT / "configs" / "unet.yaml", values | changes)
    assert isinstance(config, VolumetricTrainConfig)
    return config


class Noise:
    """Windows of noise, for which no head must be cut."""

    def draw(self, count: int, rng: np.random.Generator) -> Windows:
        return noise(int(rng.integers(1000)))

    def mean_count(self, count: int) -> float:
        return 1.0


def noise(seed: int) -> Windows:
    generator = torch.Generator().manual_seed(seed)
    fine = torch.rand(1, FINE, 16, 8, 8, generator=generator)
    missing = (fine[:, 0] > 0.7).float()
    return Windows(fine, torch.rand(1, COARSE, 8, 4, 4, generator=generator), missing, torch.zeros_like(missing))


def small_task(config: VolumetricTrainConfig, cuts: Cuts | Noise | None = None) -> VolumetricTask:
    """Learns from noise, or from cuts."""
    source = Noise() if cuts is None else cuts
    return VolumetricTask(config, source, NO_MEAN, {}, torch.device("cpu"))  # type: ignore[arg-type]


def test_a_stopped_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = small_task(recipe(tmp_path / "whole"))
    stopped = small_task(recipe(tmp_path / "stopped"))
    for task in (whole, stopped):
        task.config.run.out.mkdir()
    stopped.steps = 2
    Loop(stopped, make_accelerator(), progress=False).run()
    resumed = small_task(recipe(tmp_path / "stopped"))
    for task in (whole, resumed):
        Loop(task, make_accelerator(), progress=False).run()
    mine, theirs = (VolumetricModel.load(task.weights).network.state_dict() for task in (whole, resumed))
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_a_run_starts_from_weights(tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    uneven().save(path)
    task = small_task(recipe(tmp_path, weights=str(path)))
    loaded = VolumetricModel.load(path).network.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in task.network.state_dict().items())
    wider = recipe(tmp_path, weights=str(path), **{"network.blocks": 2})
    with pytest.raises(InputError, match="weights of another network"):
        small_task(wider)


def test_the_loop_gets_real_windows(cuts_of, tmp_path: Path) -> None:
    config = recipe(tmp_path, **{"optimiser.steps": 1, "optimiser.batch": 1})
    state = Loop(small_task(config, cuts_of()), make_accelerator(), progress=False).run()
    assert state.step == 1
    assert (tmp_path / "checkpoint.safetensors").is_file()


def test_training_learns_what_the_input_shows(tmp_path: Path) -> None:
    task = small_task(recipe(tmp_path))
    windows = noise(0)
    missing = torch.zeros_like(windows.missing)
    missing[:, :8] = 1
    shown = replace(windows, fine=windows.fine + missing[:, None], missing=missing)
    task.cuts.draw = lambda *_: shown  # type: ignore[method-assign]
    losses = []
    for group in task.optimiser.param_groups:
        group["lr"] = 1e-2
    for _ in range(15):
        loss, _ = task.losses(task.model, torch.tensor([0]), torch.Generator())
        task.optimiser.zero_grad()
        loss.backward()
        task.optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_the_loss_weights_defects_alike() -> None:
    missing = torch.zeros(1, 40, 40, 20)
    missing[:, :20, :20, :10] = 1
    right = (missing * 2 - 1) * 20
    assert missing_loss(right, missing) < 1e-3
    nothing = torch.cat([right, torch.full_like(right, -20)])
    assert missing_loss(nothing, torch.cat([missing, torch.zeros_like(missing)])) < 0.51


def test_rates_rise_stay_and_fall(tmp_path: Path) -> None:
    changes = {"optimiser.rate": 1.0, "optimiser.warmup": 100, "optimiser.steps": 1000, "optimiser.cooldown": 200}
    task = small_task(recipe(tmp_path, **changes))
    assert [task.rate(step) for step in (49, 500, 900)] == pytest.approx([0.5, 1, 0.5])


def test_validation_scores_tables_network_and_both(tmp_path: Path) -> None:
    window = window_around(np.full(3, -30.0), np.full(3, 30.0))
    missing = np.zeros(LATTICE.shape, np.uint8)
    missing[window] = 255
    path = tmp_path / "case.safetensors"
    FittedCase(NO_MEAN, missing, flat_maps(border=-5.5), (window,)).save(path)  # log-odds of -3 at most
    found = validate(constant(1.0), {"random_1": [path]})
    assert [found[f"val_{name}"] for name in ("tables", "network", "fused")] == [0, 1, 0]
    assert found["val_network_random_1"] == 1
    everywhere = LIMIT / 2 + 0.1  # more than tables can speak against
    assert validate(constant(everywhere), {"random_1": [path]})["val_fused"] == 1
