"""Splits in files, and a cross-validation from a data set to a comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from pcdiff import training
from pcdiff.data.craniotomy import simulate_craniotomy
from pcdiff.data.splits import assign_folds, expand, leave_out, read_splits, write_folds
from pcdiff.errors import InputError
from pcdiff.evaluation.comparison import compare
from pcdiff.files import sha256
from pcdiff.imaging.volumes import write_volume
from pcdiff.prior.folds import cached_heads
from pcdiff.prior.model import ShapePrior
from pcdiff.training.prior import shape_model
from pcdiff.training.recipes import PaperTrainConfig, RunRecipe, for_fold, load_config
from pcdiff.training.surface import train as surface

NAMES = [f"{number:03d}" for number in range(12)]


def test_folds_hold_each_head_once_and_scans_of_one_together(tmp_path: Path) -> None:
    path = tmp_path / "splits.yaml"
    written = write_folds(path, [*NAMES, *NAMES], 3, [("000", "011"), ("002", "004")])
    splits = read_splits(path)
    assert splits == written
    assert sorted(head for heads in splits.values() for head in heads) == NAMES
    assert list(splits) == ["fold1", "fold2", "fold3"]
    fold = {head: name for name, heads in splits.items() for head in heads}
    assert fold["000"] == fold["011"]
    assert fold["002"] == fold["004"]
    assert max(map(len, splits.values())) - min(map(len, splits.values())) <= 2


def test_groups_of_one_head_that_share_a_scan_are_one_group() -> None:
    fold = assign_folds(NAMES, 4, [("000", "001"), ("006", "005"), ("001", "002"), ("002", "005")])
    assert len({fold[k] for k in (0, 1, 2, 5, 6)}) == 1


def test_folds_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got fold3 empty"):
        write_folds(tmp_path / "s.yaml", ["000", "001", "002"], 3, [("000", "001")])
    with pytest.raises(InputError, match="expected names of heads such as 000, got 99"):
        write_folds(tmp_path / "s.yaml", NAMES, 3, [("000", "99")])
    assert write_folds(tmp_path / "s.yaml", NAMES, 3) == write_folds(tmp_path / "s.yaml", NAMES, 3)
    with pytest.raises(InputError, match=r"s\.yaml: expected no file, or these splits, got others"):
        write_folds(tmp_path / "s.yaml", NAMES, 4)
    assert len(read_splits(tmp_path / "s.yaml")) == 3


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("a: ['000']\nb: ['001', '000']\n", "head 000 stands in a and in b"),
        ("a: []\n", "at least 1 item"),
        ("a: [12]\n", "valid string"),
        ("a: '000'\n", "valid list"),
        ("- a\n", "a YAML file of splits"),
    ],
)
def test_another_file_of_splits_is_refused(tmp_path: Path, text: str, got: str) -> None:
    path = tmp_path / "splits.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=got):
        read_splits(path)


def test_selections_of_splits() -> None:
    splits = {"fold1": ["000", "003"], "fold2": ["001"], "fold3": ["002"]}
    assert expand("fold2, 007-009,fold1", splits) == "001,007-009,000,003"
    assert leave_out("fold1", splits) == ("001,002", "000,003")
    with pytest.raises(InputError, match="expected one of fold1, fold2, fold3, got 1"):
        leave_out("1", splits)
    with pytest.raises(InputError, match="nothing is left to train on"):
        leave_out("a", {"a": ["000"]})


def test_heads_of_a_cache_by_ranges_and_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "heads").mkdir()
    for name in (*NAMES, "patient-7"):
        (tmp_path / "heads" / f"{name}.safetensors").touch()
    caplog.set_level("INFO")
    assert cached_heads(tmp_path, "002-004") == ["002", "003", "004"]
    assert caplog.messages == [f"3 heads of {tmp_path}, 002 to 004"]  # a range holds what the cache has of it
    assert cached_heads(tmp_path, "009,002-004, patient-7", skip=["003", "052"]) == ["002", "004", "009", "patient-7"]
    assert cached_heads(tmp_path, "001,052", skip=["052"]) == ["001"]  # left out, so the cache need not have it
    with pytest.raises(InputError, match="expected head 052, got none; run `pcdiff prepare`"):
        cached_heads(tmp_path, "001,052")
    with pytest.raises(InputError, match="expected heads 800-900, got none; run `pcdiff prepare`"):
        cached_heads(tmp_path, "800-900")


def test_a_recipe_of_a_fold(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: atlas\nrun: {data: d, cache: c, out: runs/atlas, skip: ['052']}\n")
    found = for_fold(load_config(recipe), "fold2", {"fold1": ["000", "052"], "fold2": ["001"]}).run
    assert (found.cases, found.validation, found.out) == ("000,052", "001", Path("runs/atlas/fold2"))
    assert found.skip == ("052",)
    recipe.write_text("method: ensemble\nresults: [a]\nmembers: [unet]\nout: e.yaml\n")
    with pytest.raises(InputError, match="expected a recipe that trains on heads, got ensemble"):
        for_fold(load_config(recipe), "fold2", {"fold1": ["000"], "fold2": ["001"]})
    assert RunRecipe.on_shape_model
    assert not PaperTrainConfig.on_shape_model


def test_every_trainer_builds_on_the_shape_model_of_its_run() -> None:
    """A trainer that took the shipped one would cross-validate on heads that it has seen."""
    folder = Path(training.__file__).parent
    shipped = [path.name for path in folder.rglob("*.py") if "ShapePrior.shipped()" in path.read_text()]
    assert sorted(shipped) == ["cases.py", "prior.py"]  # cases.py trains nothing: it writes a data set


def test_a_denoiser_needs_a_unet_on_its_own_shape_model(tmp_path: Path, prior: ShapePrior) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"method: diffusion\nrun: {{data: d, cache: c, out: {tmp_path}}}\n")
    replace(prior, mean=prior.mean + 1).save(tmp_path / "prior.safetensors")
    with pytest.raises(InputError, match="expected a U-Net on the shape model of this run, got one on another"):
        surface.train(load_config(recipe), progress=False)  # type: ignore[arg-type]


def test_splits_and_fold_belong_together(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    for options in (["--fold", "fold1"], ["--splits", tmp_path / "splits.yaml"]):
        code, _, error = run("train", "atlas", *options)
        assert code == 2
        assert "expected --splits and --fold together" in error
    code, _, error = run("evaluate", "--data", tmp_path, "--splits", tmp_path / "splits.yaml", "--method", "prior")
    assert code == 2
    assert "expected --cases with the name of a split" in error
    code, _, error = run("datasets", "--folds", "3")
    assert code == 2
    assert "expected the data set whose heads are split" in error
    (tmp_path / "implant").mkdir()
    for name in NAMES:
        (tmp_path / "implant" / f"{name}.nrrd").touch()
    for options, line in (
        (("--same", "000,001"), "--same: expected --folds, too"),
        (("--same", "000", "--folds", "3"), "expected two names of one head at least, got 000 alone"),
    ):
        code, _, error = run("datasets", tmp_path, *options, "-o", tmp_path / "splits.yaml")
        assert code == 2
        assert line in error
    assert run("datasets", tmp_path, "--folds", "3", "--same", "000, 001", "-o", tmp_path / "splits.yaml")[0] == 0
    code, _, error = run(
        *("evaluate", "--data", tmp_path, "--splits", tmp_path / "splits.yaml", "--method", "prior", "--cases", "fold9")
    )
    assert code == 2
    assert "got 'fold9'" in error
    assert "splits.yaml has the splits fold1, fold2, fold3" in error
    code, _, error = run(
        *("evaluate", "--data", tmp_path / "no", "--splits", tmp_path / "splits.yaml", "--method", "prior"),
        *("--cases", "fold1"),
    )
    assert code == 2
    assert "has the splits" not in error  # the split is not what is wrong


@pytest.mark.timeout(300)  # four fits of a shape model and two designs, each in a process of its own
def test_a_cross_validation(
    tmp_path: Path,
    prior: ShapePrior,
    run: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two heads in two folds: each gets an implant from a shape model that was built from the other."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pcdiff.evaluation.runner.write_error_maps", lambda *_: None)
    for number in range(2):
        complete = prior.draw(np.random.default_rng(number), spacing=1.6)
        skull, implant = simulate_craniotomy(complete, "random_1", np.random.default_rng(number))
        parts = {"complete_skull": complete, "defective_skull": skull, "implant": implant}
        for part, volume in parts.items():
            (tmp_path / "data" / part).mkdir(parents=True, exist_ok=True)
            write_volume(volume, tmp_path / "data" / part / f"{number:03d}.nrrd")
    recipe = {"method": "prior", "run": {"data": "data", "cache": "cache", "out": "runs", "workers": 0}}
    Path("prior.yaml").write_text(yaml.safe_dump(recipe))
    assert run("prepare", "data", "-o", "cache", "-q")[0] == 0
    code, said, _ = run("datasets", "data", "--folds", "2", "-o", "splits.yaml")
    assert (code, said) == (0, "fold1: 1 heads\nfold2: 1 heads\n")
    for fold in ("fold1", "fold2"):
        assert run("train", "prior.yaml", "--splits", "splits.yaml", "--fold", fold, "-q")[0] == 0
        weights = Path("runs") / fold / "prior.safetensors"
        options = ("--splits", "splits.yaml", "--cases", fold, "--method", "prior", "--weights", weights)
        code, _, error = run("evaluate", "--data", "data", *options, "-o", Path("cv") / fold, "-q")
        assert code == 0, error
        (row,) = json.loads((Path("cv") / fold / "results.json").read_text())["rows"]
        assert row["case"] == {"fold1": "000", "fold2": "001"}[fold]
    trained = [json.loads((Path("runs") / fold / "config.json").read_text())["run"] for fold in ("fold1", "fold2")]
    assert [(of["cases"], of["validation"]) for of in trained] == [("001", "000"), ("000", "001")]
    config = load_config(Path("prior.yaml"), {"run.out": "runs/fold1"})
    assert isinstance(config, RunRecipe)
    assert shape_model(config.run).heads == 1
    first, second = (sha256(Path("runs") / fold / "prior.safetensors") for fold in ("fold1", "fold2"))
    assert first != second
    found = compare([Path("cv") / fold / "results.json" for fold in ("fold1", "fold2")])
    assert (found.methods, found.heads, found.cases) == (["prior"], ["000", "001"], 2)
    assert found.values("dsc").min() > 0.8
