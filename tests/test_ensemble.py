"""The ensemble: shares of votes, members that refuse, its file, and shares from scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pcdiff.errors import InputError
from pcdiff.evaluation.results import Results, write_results
from pcdiff.evaluation.rows import Row
from pcdiff.geometry.metrics import Scores, dice
from pcdiff.geometry.volume import Volume
from pcdiff.methods.base import Proposal
from pcdiff.methods.candidates import Mask, combine
from pcdiff.methods.ensemble import EnsembleMethod, load
from pcdiff.methods.registry import load_method, weights_of
from pcdiff.prior.fit import PriorFit
from pcdiff.prior.model import ShapePrior
from pcdiff.training.ensemble import train
from pcdiff.training.recipes import EnsembleTrainConfig


def fills(*voxels: int) -> Any:
    """A method that proposes some voxels of a row."""

    def method(skull: Volume, *, ensemble: int = 1, seed: int = 0, device: str = "cpu") -> Proposal:
        mask = np.zeros_like(skull.mask)
        mask[list(voxels)] = True
        return Proposal([Mask(skull.with_mask(mask))] * ensemble)

    return method


def refuses(skull: Volume, *, ensemble: int = 1, seed: int = 0, device: str = "cpu") -> Proposal:
    raise InputError("no other side")


def vote(prior: ShapePrior, fitted: PriorFit, *members: tuple[Any, float]) -> list[int]:
    """The voxels of a row of four, of which the first is bone, that win."""
    skull = Volume(np.array([True, False, False, False]).reshape(4, 1, 1), np.eye(4))
    method = EnsembleMethod(prior, {str(number): member for number, member in enumerate(members)})
    (candidate,) = method(skull, fitted, ensemble=2).candidates
    return np.flatnonzero(candidate.to_volume(skull).mask).tolist()


def test_more_than_half_of_the_shares_win(prior: ShapePrior, fitted: PriorFit) -> None:
    assert vote(prior, fitted, (fills(0, 1, 2), 1.0), (fills(2, 3), 1.0), (fills(2), 1.0)) == [2]
    assert vote(prior, fitted, (fills(0, 1, 2), 1.0), (fills(3), 2.5), (fills(2), 1.0)) == [3]
    assert vote(prior, fitted, (fills(1), 1.0), (fills(2), 1.0)) == []  # half is no majority


def test_a_member_that_refuses_has_no_vote(prior: ShapePrior, fitted: PriorFit) -> None:
    assert vote(prior, fitted, (fills(1, 2), 1.0), (refuses, 5.0)) == [1, 2]
    with pytest.raises(InputError, match="every member refuses the skull; no other side"):
        vote(prior, fitted, (refuses, 1.0), (refuses, 1.0))


def test_methods_on_the_fit_vote(tmp_path: Path, case: tuple[Volume, Volume], fitted: PriorFit) -> None:
    path = tmp_path / "members.yaml"
    path.write_text("members: {prior: 1, mean: 1, rbf: 1}\n")
    method = load_method("ensemble", path)
    assert isinstance(method, EnsembleMethod)
    assert list(method.members) == ["prior", "mean", "rbf"]
    assert dice(combine(method(case[0], fitted).candidates, case[0])[0].mask, case[1].mask) > 0.9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("members: {}\n", "members"),
        ("members: {prior: 0}\n", "greater than 0"),
        ("- prior\n", "expected a YAML file with members"),
        ("members: {magic: 1}\n", "unknown method 'magic'"),
        ("members: {paper: 1}\n", "method paper: expected --weights"),
        ("members: {ensemble: 1}\n", "expected methods other than ensemble"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "members.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load(weights_of("ensemble", path))


def test_the_shipped_ensemble_names_methods_that_need_nothing() -> None:
    assert isinstance(load_method("ensemble"), EnsembleMethod)


def test_shares_follow_from_the_scores(tmp_path: Path) -> None:
    scores = {"prior": (0.9, 0.7), "unet": (0.95, 0.85), "rbf": (0.0, 1.0)}  # mean error 0.2, 0.1 and 0.5
    rows = [
        Row(f"own/{head:03d}", name, 0, **vars(Scores(dsc, dsc, 1, 2, 0.3, dsc, dsc)))
        for name, values in scores.items()
        for head, dsc in enumerate(values)
    ]
    write_results(tmp_path, Results(rows, {"pcdiff": "0", "ensemble": 1}))
    recipe = {
        "method": "ensemble",
        "results": [tmp_path / "results.json"],
        "members": ["prior", "unet"],
        "out": tmp_path / "members.yaml",
    }
    shares = yaml.safe_load(train(EnsembleTrainConfig.model_validate(recipe)).read_text())["members"]
    assert shares == {"prior": 0.333, "unet": 0.667}
    with pytest.raises(InputError, match="got none of mirror among unet, prior, rbf"):
        train(EnsembleTrainConfig.model_validate(recipe | {"members": ["mirror"]}))
