"""Recipes: the shipped ones load, overrides apply, wrong keys and values are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcdiff.errors import InputError
from pcdiff.methods.friedrich2023.config import PaperConfig
from pcdiff.methods.surface.network import SurfaceDenoiser
from pcdiff.training.recipes import DiffusionTrainConfig, PaperTrainConfig, VolumetricTrainConfig, load_config

SHIPPED = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("method: diffusion\nrun: {data: heads, cache: cache, out: out}\noptimiser:\n  steps: 7\n")
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_load(path):
    config = load_config(path)
    if path.stem in ("paper_skullfix", "paper_skullbreak"):
        assert isinstance(config, PaperTrainConfig)
        assert config.paper == PaperConfig(spacing_mm=config.paper.spacing_mm)  # the paper's own, but for the grid
        assert config.denoiser.cooldown == config.voxelisation.cooldown == 0  # a constant rate
    if isinstance(config, VolumetricTrainConfig | DiffusionTrainConfig):
        assert sum(config.samples.kinds.values()) == pytest.approx(1)
    if isinstance(config, VolumetricTrainConfig):
        assert config.network.make()
    if isinstance(config, DiffusionTrainConfig):
        assert SurfaceDenoiser(config.network, config.diffusion.sigma_data)


@pytest.mark.parametrize(("line", "got"), [("", "none"), ("method: rbf\n", "rbf"), ("method: [unet]\n", "unet")])
def test_a_recipe_names_its_method(tmp_path, line, got):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{line}run: {{data: d, cache: c, out: o}}\n")
    with pytest.raises(InputError, match=rf"method: one of unet, diffusion, prior, paper, .*got .*{got}.*; add a line"):
        load_config(path)


def test_a_recipe_and_its_overrides(recipe):
    assert load_config(recipe).optimiser.steps == 7
    assert load_config(recipe).run.data == Path("heads")
    changed = load_config(recipe, {"optimiser.steps": "9", "pool": 5, "run.skip": "['052']"})
    assert changed.optimiser.steps == 9
    assert changed.pool == 5
    assert changed.run.skip == ("052",)
    assert changed.network == load_config(recipe).network


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"optimiser.stpes": 1}, r"optimiser\.stpes"),
        ({"optimizer.steps": 1}, "optimizer"),
        ({"optimiser.steps": 0, "network.width": 9}, r"network\.width: .*; optimiser\.steps: "),
        ({"optimiser.precision": "fp8"}, r"optimiser\.precision"),
        ({"samples.kinds": {"random_1": -1.0}}, r"samples\.kinds"),
    ],
)
def test_wrong_keys_and_values_are_named(recipe, overrides, named):
    with pytest.raises(InputError, match=named) as caught:
        load_config(recipe, overrides)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(InputError, match="expected a YAML recipe"):
        load_config(tmp_path / "missing.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("run: [1\n")
    with pytest.raises(InputError, match="expected a YAML recipe"):
        load_config(broken)
    broken.write_text("method: diffusion\nrun: {}\n")
    with pytest.raises(InputError, match=r"run\.data: Field required"):
        load_config(broken)


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("- a\n- b\n", {"optimiser.steps": 3}),
        ("method: diffusion\nrun: {data: d, cache: c, out: o}\nsamples:\n", {"samples.folds": 3}),
        ("method: diffusion\nrun: {data: d, cache: c, out: o}\n", {"run.data.x": "1"}),
        ("method: diffusion\nrun: {data: d, cache: c, out: o}\n", {"optimiser.steps": "[1"}),
    ],
)
def test_overrides_that_do_not_fit_are_the_user_s_mistake(tmp_path, text, overrides):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError):
        load_config(path, overrides)


def test_a_head_may_be_named_by_an_override(recipe):
    assert load_config(recipe, {"run.cases": "052"}).run.cases == "052"


@pytest.mark.parametrize(
    "overrides",
    [
        {"diffusion.sampler": "nonsense"},
        {"samples.kinds": {"nonsense": 1.0}},
        {"diffusion.sigma_min": 5.0},
        {"network.width": 24},
        {"network.heads": 5},
    ],
)
def test_recipes_that_cannot_run_are_refused(recipe, overrides):
    with pytest.raises(InputError):
        load_config(recipe, overrides)
