"""Recipes: the shipped ones load, overrides apply, wrong keys and values are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcdiff.errors import InputError
from pcdiff.methods.anchored.network import AnchoredDenoiser
from pcdiff.methods.friedrich2023.config import PaperConfig
from pcdiff.training.recipes import PaperTrainConfig, VolumetricTrainConfig, load_config

RECIPES = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("run: {data: heads, cache: cache, out: out}\noptimiser:\n  steps: 7\n")
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_load(path):
    config = load_config(path)
    if isinstance(config, PaperTrainConfig):
        assert config.paper == PaperConfig(spacing_mm=config.paper.spacing_mm)  # the paper's own, but for the grid
        return
    if isinstance(config, VolumetricTrainConfig):
        assert sum(config.samples.kinds.values()) == pytest.approx(1)
        assert config.network.make()
        return
    assert sum(config.pairs.kinds.values()) == pytest.approx(1)
    assert AnchoredDenoiser(config.network)


def test_a_recipe_and_its_overrides(recipe):
    assert load_config(recipe).optimiser.steps == 7
    assert load_config(recipe).run.data == Path("heads")
    changed = load_config(recipe, {"optimiser.steps": "9", "pairs.pool": 5, "run.skip": "['052']"})
    assert changed.optimiser.steps == 9
    assert changed.pairs.pool == 5
    assert changed.run.skip == ("052",)
    assert changed.network == load_config(recipe).network


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"optimiser.stpes": 1}, r"optimiser\.stpes"),
        ({"optimizer.steps": 1}, "optimizer"),
        ({"optimiser.steps": 0, "network.grid": 9}, r"network\.grid: .*; optimiser\.steps: "),
        ({"optimiser.precision": "fp8"}, r"optimiser\.precision"),
        ({"pairs.kinds": {"random_1": -1.0}}, r"pairs\.kinds"),
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
    broken.write_text("run: {}\n")
    with pytest.raises(InputError, match=r"run\.data: Field required"):
        load_config(broken)


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("- a\n- b\n", {"optimiser.steps": 3}),
        ("run: {data: d, cache: c, out: o}\npairs:\n", {"pairs.pool": 3}),
        ("run: {data: d, cache: c, out: o}\n", {"run.data.x": "1"}),
        ("run: {data: d, cache: c, out: o}\n", {"optimiser.steps": "[1"}),
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
        {"pairs.kinds": {"nonsense": 1.0}},
        {"diffusion.sigma_min": 5.0},
        {"network.width": 24},
        {"network.heads": 3},
    ],
)
def test_recipes_that_cannot_run_are_refused(recipe, overrides):
    with pytest.raises(InputError):
        load_config(recipe, overrides)
