"""Latent diffusion of whole heads at 2 mm: it learns, its file comes back, and a data set takes its heads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from test_generators import RECIPE, taught

from pcdiff.data.augmentation import latent_diffusion
from pcdiff.data.augmentation.generators import VOLUME, GeneratorConfig, draw
from pcdiff.data.augmentation.latent_diffusion import VolumeDiffusion
from pcdiff.errors import InputError
from pcdiff.geometry.metrics import dice
from pcdiff.geometry.occupancy import Head
from pcdiff.prior.direction_map import Pose
from pcdiff.prior.model import ShapePrior
from pcdiff.training.augmentation import generator, shapes
from pcdiff.training.augmentation import train as training
from pcdiff.training.augmentation.generator import Generator
from pcdiff.training.augmentation.shapes import GENERATED, make_head
from pcdiff.training.augmentation.volumes import AFFINE, to_heads, to_images
from pcdiff.training.recipes import load_config
from pcdiff.training.stopping import Sigterm
from pcdiff.training.volumetric.heads import Heads
from pcdiff.training.volumetric.warps import BOX, HEAD_SHAPE

SMALL = GeneratorConfig(width=8)


@pytest.fixture(scope="module")
def shells() -> np.ndarray:
    """(2, *HEAD_SHAPE) uint8: bone of 6 mm around ellipsoids, the second one narrower on its left."""
    points = BOX.points(HEAD_SHAPE).numpy()
    narrow = points * np.where(points[..., :1] > 0, [1.2, 1.0, 1.0], 1.0)
    radius = np.stack([np.linalg.norm(each / [0.8, 1.0, 0.9], axis=-1) for each in (points, narrow)])
    return (np.clip(3.0 - np.abs(radius - 80) + 0.5, 0, 1) * 255).astype(np.uint8)


def test_heads_come_back_from_images(shells: np.ndarray) -> None:
    images = to_images(torch.from_numpy(shells))
    assert images.shape == (2, *VOLUME)
    assert images.float().abs().max() == 1
    for head, back in zip(shells, to_heads(images), strict=True):
        assert dice(back >= 128, head >= 128) > 0.97
    assert np.array_equal(to_heads(to_images(torch.from_numpy(shells[:1]).flip(1))), to_heads(images[:1])[:, ::-1])


def test_it_approaches_the_data_and_follows_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_diffusion, "VOLUME", (8, 8, 8, 8))
    line = torch.linspace(-1, 1, 8)
    images = 2 + torch.randn(12, 8, 1, 1, 1, generator=torch.Generator().manual_seed(0)) * line
    images = images.expand(-1, -1, 8, 8, -1).contiguous()
    torch.manual_seed(0)
    model = VolumeDiffusion(SMALL, torch.ones(1, 1, 1))
    before = (draw(model.eval(), 8, 0).mean(0) - images.mean(0)).abs().mean()
    taught(model.train(), images, 120)
    first, again, other = (draw(model, 8, seed) for seed in (0, 0, 1))
    assert (first.mean(0) - images.mean(0)).abs().mean() < 0.7 * before
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-3


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shells: np.ndarray, prior: ShapePrior) -> Iterator[Generator]:
    """By its recipe, two steps on two heads; its diffusion has two steps, too."""
    folder = tmp_path_factory.mktemp("generator")
    changes: dict[str, Any] = {"run.cache": str(folder), "run.out": str(folder / "out"), "network.width": 8}
    changes |= {"model": "volume_diffusion", "optimiser.steps": 2, "optimiser.batch": 2}
    heads = Heads(torch.from_numpy(shells), torch.zeros(2, 3), (0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "cached_heads", lambda *_: ["000", "001"])
        patch.setattr(training, "load_heads", lambda *_: heads)
        patch.setattr(training, "VOLUMES", 2)
        patch.setattr(latent_diffusion, "SAMPLING_STEPS", 2)
        patch.setattr(Sigterm, "__enter__", lambda self: self)
        weights = training.train(load_config(RECIPE, changes), progress=False)
        assert "val_distance_spread" in (folder / "out" / "log.jsonl").read_text()
        yield Generator.load(weights, prior)


def test_a_recipe_trains_and_its_weights_make_heads(trained: Generator) -> None:
    first, again, other = (trained.heads(1, seed)[0] for seed in (0, 0, 1))
    assert first.occupancy.shape == HEAD_SHAPE
    assert np.array_equal(first.occupancy, again.occupancy)
    assert not np.array_equal(first.occupancy, other.occupancy)


def test_a_model_that_makes_no_bone_says_so(trained: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "draw", lambda network, count, seed, batch: torch.ones(count, *VOLUME))
    with pytest.raises(InputError, match="got one without bone; train it for more steps"):
        trained.heads(1, 0)


def test_a_data_set_takes_whole_heads(
    trained: Generator, shells: np.ndarray, prior: ShapePrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Head(shells[1], AFFINE, "")
    monkeypatch.setattr(Generator, "heads", lambda self, count, seed: [whole] * count)
    tables = trained.tables(2, 0)
    assert tables.shape == (2, *prior.mean.shape)
    assert np.nanmedian(tables[:, 1]) == pytest.approx(5.4, abs=0.3)  # the ellipsoid is narrower than 6 mm at its sides
    sources = type("Sources", (), {"names": ("a",), "scales": np.array([[1.1, 1.1, 1.1]])})
    shape = shapes.draw(GENERATED, sources, None, trained, np.random.default_rng(0))  # type: ignore[arg-type]
    nowhere = Head(np.zeros((2, 2, 2), np.uint8), AFFINE, "")  # of the source only the size counts
    made = make_head(nowhere, Pose(2 * np.eye(3), np.ones(3)), shape, 2.0)
    assert made.ml == pytest.approx(1.1**3 * np.count_nonzero(shells[1] >= 128) * 8e-3, rel=0.03)
    assert shape.used == (0,)
