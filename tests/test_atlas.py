"""The atlas: its file, and drawn heads that deform onto the bone of another one."""

from __future__ import annotations

import zlib
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pcdiff.data.augmentation.registration import Box, register
from pcdiff.errors import InputError
from pcdiff.geometry.metrics import dice
from pcdiff.geometry.occupancy import head_occupancy
from pcdiff.geometry.volume import Volume
from pcdiff.methods import atlas as module
from pcdiff.methods.atlas import LATTICE, LAYOUT, Around, Atlas, AtlasMethod, distance
from pcdiff.methods.candidates import combine
from pcdiff.methods.volumetric.features import soft_occupancy
from pcdiff.prior.direction_map import Pose
from pcdiff.prior.fit import PriorFit
from pcdiff.prior.model import ShapePrior
from pcdiff.tensor_files import read_tensors, write_tensors
from pcdiff.training import atlas as training
from pcdiff.training.recipes import AtlasTrainConfig
from pcdiff.training.volumetric.heads import Heads
from pcdiff.training.volumetric.warps import BOX, HEAD_SHAPE

OWN = Pose(np.eye(3), np.zeros(3))


@pytest.fixture(scope="module")
def atlas(prior: ShapePrior) -> Atlas:
    """Three heads that are not the patient's."""
    drawn = [head_occupancy(prior.draw(np.random.default_rng(seed), spacing=1.6)) for seed in range(20, 23)]
    return Atlas.of(np.stack([np.round(soft_occupancy(head, OWN, LATTICE) * 255) for head in drawn]).astype(np.uint8))


@pytest.fixture(scope="module")
def around(case: tuple[Volume, Volume], fitted: PriorFit) -> Around:
    return Around.of(fitted, head_occupancy(case[0]))


def test_the_implant(prior: ShapePrior, atlas: Atlas, case: tuple[Volume, Volume], fitted: PriorFit) -> None:
    skull, truth = case
    proposal = AtlasMethod(prior, atlas)(skull, fitted)
    assert len(proposal.candidates) == 1
    assert dice(combine(proposal.candidates, skull)[0].mask, truth.mask) > 0.85


def test_deformed_heads_fit_the_bone_better_and_the_best_comes_first(atlas: Atlas, around: Around) -> None:
    heads = around.best(atlas, 3)
    target, weight = distance(around.bone).numpy(), around.weight

    def misfit(vote: np.ndarray) -> float:
        return float((weight * (vote - target) ** 2).sum() / weight.sum())

    moved = around.deformed(heads)
    each = [misfit(vote) for vote in moved]
    assert each == sorted(each)
    assert each[0] < 0.5 * misfit(distance(heads[0]).numpy())


def test_a_vote_is_moved_to_the_rim(around: Around, fitted: PriorFit) -> None:
    even = np.linalg.norm(around.lattice.points, axis=-1)
    shell = np.maximum(even - (even.mean() + 2), even.mean() - 3 - even) / 2  # a ball's shell of 5 mm, lattice steps
    outer, thickness = around.tables(shell, fitted)
    rim = (fitted.observation.distance > 2) & (fitted.observation.distance < 8)
    assert np.nanmedian(np.abs(outer - fitted.observation.outer)[rim]) < 0.1
    assert np.nanmedian(np.abs(thickness - fitted.observation.thickness)[rim]) < 0.2


def test_an_ensemble_has_a_candidate_of_each_head(
    prior: ShapePrior,
    atlas: Atlas,
    case: tuple[Volume, Volume],
    fitted: PriorFit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SCHEDULE", ((4, 1),))
    monkeypatch.setattr(module, "VOTERS", 2)
    candidates = AtlasMethod(prior, atlas)(case[0], fitted, ensemble=2).candidates
    first, second = (candidate.points.points for candidate in candidates)  # type: ignore[attr-defined]
    assert first.shape != second.shape or not np.allclose(first, second)


def test_bone_of_weight_0_does_not_pull() -> None:
    box = Box((-40.0, -40.0, -40.0), (40.0, 40.0, 40.0))
    points = box.points((21, 21, 21))
    ball, shifted = (points.norm(dim=-1) / 4 - 5).clamp(-3, 8), ((points - 6).norm(dim=-1) / 4 - 5).clamp(-3, 8)
    moved = register(ball, shifted[None], box, ((2, 10),))
    assert moved.abs().max() > 1
    held = register(ball, shifted[None], box, ((2, 10),), torch.zeros_like(ball) + 1e-9 * (points[..., 0] > 38))
    assert held.abs().mean() < 0.5 * moved.abs().mean()


# --- the file -------------------------------------------------------------------------------------------------------


def small() -> Atlas:
    """Two heads of noise; a few values, so that it is quick."""
    heads = np.zeros((2, *LAYOUT.shape), np.uint8)
    heads[:, 30:40, 30:40, 30:40] = np.random.default_rng(0).integers(0, LAYOUT.levels, (2, 10, 10, 10))
    return Atlas(heads)


def test_a_file_holds_the_heads(tmp_path: Path) -> None:
    path = tmp_path / "atlas.safetensors"
    small().save(path)
    assert np.array_equal(Atlas.load(path).heads, small().heads)
    assert path.stat().st_size < 20_000


@pytest.mark.parametrize(
    "content", [b"no zlib", zlib.compress(b"\x00" * 10), zlib.compress(b"\x09" * small().heads.size)]
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "atlas.safetensors"
    small().save(path)
    file = read_tensors(path, "", "")
    write_tensors(path, {"heads": np.frombuffer(content, np.uint8)}, file.metadata)
    with pytest.raises(InputError, match="expected an atlas of heads"):
        Atlas.load(path)


def test_the_shipped_atlas_is_loaded() -> None:
    path = Path(module.__file__).parents[1] / "weights" / "atlas.safetensors"
    assert 50 <= len(Atlas.load(path).heads) < 60


def test_training_stores_one_scan_of_each_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "heads").mkdir()
    for name in ("000", "001", "002"):
        (tmp_path / "heads" / f"{name}.safetensors").touch()
    occupancy = torch.zeros(3, *HEAD_SHAPE, dtype=torch.uint8)
    occupancy[0, 50], occupancy[2, 60] = 255, 170  # planes at x = 0 and x = 20 mm

    def heads(cache: Path, names: list[str], same: Any, prior: ShapePrior, pool: Executor, progress: bool) -> Heads:
        assert names == ["000", "001", "002"]
        return Heads(occupancy, torch.zeros(3, 3, *BOX.knots), (0, 0, 2))

    monkeypatch.setattr(training, "load_heads", heads)
    run = {"data": "d", "cache": tmp_path, "out": tmp_path / "out", "cases": "000-002"}
    path = training.train(AtlasTrainConfig.model_validate({"method": "atlas", "run": run}))
    stored = Atlas.load(path).heads
    assert len(stored) == 2
    assert np.flatnonzero(stored[0].any((1, 2))).tolist() == [40]
    assert np.flatnonzero(stored[1].any((1, 2))).tolist() == [50]
    assert stored[1].max() == 2
    with pytest.raises(InputError, match="expected heads 900-901, got none"):
        training.train(AtlasTrainConfig.model_validate({"method": "atlas", "run": run | {"cases": "900-901"}}))
