"""Generative models of maps: training moves what they make towards the data; a trained one comes back from its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pcdiff.data.augmentation.generators import (
    GENERATORS,
    OF_VOLUMES,
    GeneratorConfig,
    ImageGenerator,
    divergence,
    draw,
    make_generator,
)
from pcdiff.errors import InputError
from pcdiff.prior.direction_map import MAP
from pcdiff.training.augmentation import train as training
from pcdiff.training.augmentation.generator import Generator, GeneratorFile
from pcdiff.training.augmentation.maps import image_weight, to_images, to_rays
from pcdiff.training.augmentation.train import GeneratorTask
from pcdiff.training.recipes import load_config
from pcdiff.training.stopping import Sigterm

SMALL = GeneratorConfig(size=16, latent=4, width=8)
OF_MAPS = [model for model in GENERATORS if model not in OF_VOLUMES]
STEPS = {"wgan_gp": 600, "vae_gan": 300, "latent_diffusion": 300}
RECIPE = Path(__file__).parents[1] / "configs" / "generator.yaml"


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Twelve smooth images, all far from 0."""
    line = torch.linspace(-1, 1, SMALL.size)
    waves = torch.stack([line[:, None].expand(-1, SMALL.size), line.expand(SMALL.size, -1)])
    heights = torch.randn(12, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    return 2 + heights * waves


@pytest.fixture
def untrained() -> Any:
    def make(model: Any) -> ImageGenerator:
        torch.manual_seed(0)
        return make_generator(model, SMALL, torch.ones(SMALL.size, SMALL.size))

    return make


def taught(generator: ImageGenerator, images: Tensor, steps: int) -> list[dict[str, float]]:
    """Runs some steps as the training loop does; the losses of each."""
    optimiser = torch.optim.Adam(generator.parameters(), betas=generator.betas)
    rows = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 5 * generator.rate(step / steps)
        losses = generator(images, step, step / steps)
        losses["loss"].backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        rows.append({name: float(value.detach()) for name, value in losses.items()})
    generator.eval()
    return rows


@pytest.mark.parametrize("model", OF_MAPS)
def test_what_a_model_makes_approaches_the_data(model: Any, images: Tensor, untrained: Any) -> None:
    generator = untrained(model)
    before = (draw(generator.eval(), 16, 0).mean(0) - images.mean(0)).abs().mean()
    rows = taught(generator.train(), images, STEPS.get(model, 120))
    after = (draw(generator, 16, 0).mean(0) - images.mean(0)).abs().mean()
    assert after < 0.7 * before
    assert len({tuple(row) for row in rows}) == 1, "the log needs the same names at each step"
    if model == "vae":
        assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]


@pytest.mark.parametrize("model", OF_MAPS)
def test_samples_follow_the_seed(model: Any, untrained: Any) -> None:
    generator = untrained(model).eval()
    first, again, other = (draw(generator, 3, seed) for seed in (1, 1, 2))
    assert first.shape == (3, 2, SMALL.size, SMALL.size)
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-3
    assert (first[0] - first[1]).abs().max() > 1e-3
    assert torch.allclose(draw(generator, 3, 1, batch=2), first, atol=1e-5)


@pytest.mark.parametrize("model", ["wgan_gp", "vae_gan", "intro_vae", "latent_diffusion"])
def test_one_network_learns_at_a_time(model: Any, images: Tensor, untrained: Any) -> None:
    generator = untrained(model)
    changed = []
    for step in (10, 11):  # of a GAN the last step of the critic and the one of the generator: 10 % 6 is 4
        generator(images, step, 0.9)["loss"].backward()
        changed.append({name for name, value in generator.named_parameters() if value.grad is not None})
        generator.zero_grad(set_to_none=True)
    if model == "latent_diffusion":
        assert all(name.startswith("denoiser") for name in changed[0] | changed[1])
    else:
        assert changed[0]
        assert changed[1]
        assert not changed[0] & changed[1]


def test_the_divergence_of_gaussians() -> None:
    assert divergence(torch.zeros(1, 3), torch.zeros(1, 3)) == pytest.approx([0])
    assert divergence(torch.full((1, 2), 2.0), torch.zeros(1, 2)) == pytest.approx([4])


def test_maps_come_back_from_images(population, prior) -> None:
    deviations = population.deviations(prior.mean)
    count = len(population.names)
    assert deviations.shape == (2 * count, 2, len(MAP.directions))
    images = to_images(deviations, 64)
    assert np.abs(to_rays(images) - deviations).mean() < 0.1
    assert torch.allclose(images[count:], images[:count].flip(2), atol=1e-2)  # the second half are mirror images


@pytest.fixture
def recipe(tmp_path: Path, population, prior, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(training, "cached_heads", lambda *_: list(population.names))
    monkeypatch.setattr(training, "load_population", lambda *_: population)
    monkeypatch.setattr(Sigterm, "__enter__", lambda self: self)
    changes = {"run.cache": str(tmp_path), "run.out": str(tmp_path / "out"), "network": SMALL.model_dump()}
    return load_config(RECIPE, changes | {"optimiser.steps": 3, "optimiser.batch": 4})


def test_a_recipe_trains_and_its_weights_come_back(recipe: Any, prior) -> None:
    weights = training.train(recipe, progress=False)
    assert weights.name == "generator.safetensors"
    generator = Generator.load(weights, prior)
    first, again, other = (generator.tables(2, seed) for seed in (0, 0, 1))
    assert first.shape == (2, 2, len(MAP.directions))
    assert np.isfinite(first).all()
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (recipe.run.out / "log.jsonl").read_text().count("val_thickness_spread") == 1
    assert training.train(recipe, progress=False) == weights  # done: nothing more to train


def test_a_task_draws_the_same_heads_at_a_step(recipe: Any, population, prior) -> None:
    images = to_images(population.deviations(prior.mean), SMALL.size)
    losses = []
    for _ in range(2):
        task = GeneratorTask(recipe, images, prior, torch.device("cpu"))
        torch.manual_seed(3)
        losses.append(float(task.losses(task.model, torch.tensor([1]), torch.Generator())[0].detach()))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("model", OF_MAPS)
def test_weights_come_back(model: Any, tmp_path: Path, prior, untrained: Any) -> None:
    generator = Generator(untrained(model).eval(), GeneratorFile(model=model, network=SMALL), prior)
    generator.save(tmp_path / "generator.safetensors")
    loaded = Generator.load(tmp_path / "generator.safetensors", prior)
    assert torch.equal(draw(loaded.network, 2, 0), draw(generator.network, 2, 0))


def test_another_file_is_refused(tmp_path: Path, prior, untrained: Any) -> None:
    file = GeneratorFile(model="vae", network=SMALL)
    path = tmp_path / "generator.safetensors"
    generator = Generator(untrained("vae"), file, prior)
    generator.save(path)
    assert Generator.load(path, prior).config == file
    generator.save(path, {"prior": "another"})
    with pytest.raises(InputError, match="got another's; train one"):
        Generator.load(path, prior)
    with pytest.raises(InputError, match=r"method: one of .*generator, got vae"):
        load_config(RECIPE, {"method": "vae"})
    with pytest.raises(InputError, match="model"):
        load_config(RECIPE, {"model": "gan"})


def test_weights_of_pixels_are_shares_of_heads(prior) -> None:
    weight = image_weight(prior, 64)
    assert weight[32, 32] == pytest.approx(1, abs=0.05)
    assert weight[0, 0] == 0
