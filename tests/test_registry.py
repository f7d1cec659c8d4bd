"""The table of methods: ours, and those that other packages register; what candidates become together."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcdiff.cli import doctor
from pcdiff.errors import InputError, MethodError
from pcdiff.geometry.metrics import dice
from pcdiff.geometry.points import PointCloud
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume, write_volume
from pcdiff.methods.base import Proposal
from pcdiff.methods.candidates import Field, Mask, OrientedPoints, combine
from pcdiff.methods.registry import (
    DEFAULT,
    DEFAULT_OF_ENSEMBLE,
    METHODS,
    default_method,
    installed_methods,
    load_method,
    method_entry,
    ready_methods,
    weights_files,
    weights_of,
)
from pcdiff.pipeline import flow
from pcdiff.prior.fit import PriorFit

Run = Callable[..., tuple[int, str, str]]
# A package with a method of its own: the mirror image of the bone, left to right about the grid's middle, as far as it
# is in one piece and thicker than two voxels.
MODULE = """
import numpy as np
from pcdiff.methods.base import Proposal
from pcdiff.methods.candidates import Mask
from scipy import ndimage

def load(files):
    return mirror

def mirror(skull, *, ensemble=1, seed=0, device="cpu"):
    missing = ndimage.binary_opening(skull.mask[::-1] & ~skull.mask, iterations=1)
    labels, _ = ndimage.label(missing)
    missing = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    return Proposal([Mask(skull.with_mask(missing))] * ensemble)
"""
METADATA = "Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\nLicense: BSD-3-Clause\n"


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package as pip would leave it, in this process and in those that it starts."""
    site = tmp_path / "site"
    (site / "theirs-1.0.dist-info").mkdir(parents=True)
    (site / "theirs.py").write_text(MODULE)
    (site / "theirs-1.0.dist-info" / "METADATA").write_text(METADATA)
    (site / "theirs-1.0.dist-info" / "entry_points.txt").write_text(
        "[pcdiff.methods]\ntheirs = theirs:load\nprior = theirs:load\n"
    )
    monkeypatch.syspath_prepend(site)
    paths = [str(site), str(Path(import_module("pcdiff").__file__ or "").parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))


@pytest.fixture
def data(tmp_path: Path, case: tuple[Volume, Volume]) -> Path:
    """A data set of one case."""
    for part, volume in zip(("defective_skull", "implant"), case, strict=True):
        (tmp_path / "data" / part).mkdir(parents=True)
        write_volume(volume, tmp_path / "data" / part / "001.nrrd")
    return tmp_path / "data"


def test_a_package_s_method_is_found_by_its_name(theirs: None) -> None:
    entry = method_entry("theirs")
    assert entry.help == "from the package theirs"
    assert entry.licence == "BSD-3-Clause"
    assert installed_methods().keys() == {"theirs"}  # the name of one of ours is not taken
    assert method_entry("prior") is METHODS["prior"]
    assert [path.name for path in weights_files("theirs")] == ["prior.safetensors"]  # locates the defects


def test_a_package_s_method_designs(run: Run, theirs: None, data: Path, tmp_path: Path) -> None:
    skull = data / "defective_skull" / "001.nrrd"
    code, said, _ = run("sample", skull, "-o", tmp_path / "out", "--method", "theirs", "--no-report")
    assert code == 0
    assert "001: 1 defect" in said
    record = json.loads((tmp_path / "out" / "001" / "run.json").read_text())
    assert record["settings"]["method"] == "theirs"
    implant, bone = read_volume(tmp_path / "out" / "001" / "implant.nrrd"), read_volume(skull)
    assert implant.mask.any()
    assert not (implant.mask & ~(bone.mask[::-1] & ~bone.mask)).any()


def test_a_package_s_method_is_evaluated(run: Run, theirs: None, data: Path, tmp_path: Path) -> None:
    code, _, errors = run("evaluate", "--data", data, "-o", tmp_path / "results", "--method", "theirs")
    assert code == 0, errors
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert results["weights"]["theirs"].keys() == {"prior.safetensors"}


def test_an_unknown_method_is_refused_with_the_names_there_are(theirs: None) -> None:
    with pytest.raises(InputError, match=r"unknown method 'magic'.*diffusion, prior, .*, theirs"):
        method_entry("magic")


@pytest.mark.parametrize("name", METHODS)
def test_each_method_s_loader_is_there(name: str) -> None:
    entry = METHODS[name]
    module, _, function = entry.loader.partition(":")
    assert callable(getattr(import_module(module), function))
    assert entry.help
    assert "\n" not in entry.help


def test_all_methods_are_those_that_have_their_weights() -> None:
    ready = ready_methods()
    assert {"unet", "diffusion", "prior", "mirror", "rbf", "mean", "ssm", "gpmm", "atlas", "ensemble"} <= set(ready)
    assert "paper" not in ready
    assert all(path.is_file() for name in ready for path in weights_files(name))


def test_an_ensemble_is_of_a_method_that_has_several_answers() -> None:
    assert (default_method(), default_method(1), default_method(2)) == (DEFAULT, DEFAULT, DEFAULT_OF_ENSEMBLE)


def test_weights_beside_ones_own_are_taken_and_the_shipped_ones_else(tmp_path: Path) -> None:
    own = tmp_path / "denoiser.safetensors"
    alone = weights_of(DEFAULT_OF_ENSEMBLE, own)
    assert alone.own == own
    assert alone.prior.parent.name == "weights"
    assert alone.companions == ()
    for name in ("prior", *(Path(companion).stem for companion in METHODS[DEFAULT_OF_ENSEMBLE].companions)):
        (tmp_path / f"{name}.safetensors").touch()
    together = weights_of(DEFAULT_OF_ENSEMBLE, own)
    assert {path.parent for path in together.all} == {tmp_path}
    assert len(together.all) == 3
    assert weights_of("prior", own).all == [own]


# --- candidates -----------------------------------------------------------------------------------------------------

AFFINE = np.diag([1.0, 1.0, 1.0, 1.0])


@pytest.fixture
def skull() -> Volume:
    """Bone where x = 0 on a grid of 4 x 2 x 2."""
    mask = np.zeros((4, 2, 2), bool)
    mask[0] = True
    return Volume(mask, AFFINE)


def mask_until(skull: Volume, x: int) -> Mask:
    """A candidate that holds all voxels with an index below x along the first axis."""
    values = np.zeros_like(skull.mask)
    values[:x] = True
    return Mask(skull.with_mask(values))


def test_masks_vote_and_never_hold_bone(skull: Volume) -> None:
    implant, members = combine([mask_until(skull, x) for x in (2, 3, 4)], skull, each=True)
    assert implant.mask[:, 0, 0].tolist() == [False, True, True, False]
    assert [member.mask[:, 0, 0].sum() for member in members] == [1, 2, 3]
    assert not any((member.mask & skull.mask).any() for member in members)
    tie, none = combine([mask_until(skull, x) for x in (2, 4)], skull)
    assert tie.mask[:, 0, 0].tolist() == [False, True, False, False]  # half is no majority
    assert none == []


def test_fields_are_averaged_before_the_threshold(skull: Volume) -> None:
    ramp = np.broadcast_to(np.array([1.0, 0.9, 0.45, 0.0])[:, None, None], skull.mask.shape)
    implant, members = combine([Field(ramp), Field(np.minimum(ramp + 0.2, 1))], skull, each=True)
    assert implant.mask[:, 0, 0].tolist() == [False, True, True, False]  # (0.45 + 0.65) / 2 > 0.5
    assert [member.mask[:, 0, 0].sum() for member in members] == [1, 2]
    assert combine([Field(ramp, level=0.4)], skull)[0].mask[:, 0, 0].sum() == 2


def test_candidates_of_different_kinds_vote(skull: Volume) -> None:
    ramp = np.broadcast_to(np.array([1.0, 0.9, 0.45, 0.0])[:, None, None], skull.mask.shape)
    implant, _ = combine([Field(ramp), mask_until(skull, 3), mask_until(skull, 4)], skull)
    assert implant.mask[:, 0, 0].tolist() == [False, True, True, False]


def test_a_candidate_on_another_grid_and_an_empty_proposal_are_refused(skull: Volume) -> None:
    with pytest.raises(ValueError, match="grid's shape"):
        combine([Mask(Volume(np.ones((3, 2, 2), bool), AFFINE))], skull)
    with pytest.raises(ValueError, match="at least one candidate"):
        combine([], skull)


# --- methods that break the contract --------------------------------------------------------------------------------


@pytest.fixture
def quick_fit(fitted: PriorFit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shape model's fit, made once for all tests."""
    monkeypatch.setattr(flow, "fit_prior", lambda prior, skull, *_, **__: fitted)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "expected the method to return a Proposal, got NoneType"),
        (Proposal([]), "expected at least one candidate, got none"),
        (Proposal([np.zeros(3)]), "expected candidates with to_volume"),  # type: ignore[list-item]
        (Proposal([Field(np.ones((3, 4, 5)))]), r"grid's shape .* got \(3, 4, 5\)"),
    ],
)
def test_an_answer_against_the_contract_is_named(
    case: tuple[Volume, Volume], quick_fit: None, answer: Any, message: str
) -> None:
    with pytest.raises(MethodError, match=message):
        flow.design(case[0], lambda *_, **__: answer)


def test_what_is_no_method_and_no_ensemble_is_refused(case: tuple[Volume, Volume], quick_fit: None) -> None:
    with pytest.raises(MethodError, match="load_method"):
        flow.design(case[0], "prior")  # type: ignore[arg-type]
    for options in ({"ensemble": 0}, {"seed": -1}):
        with pytest.raises(InputError, match="ensemble of 1 or more and a seed of 0 or more"):
            flow.design(case[0], lambda *_, **__: Proposal([]), **options)  # type: ignore[arg-type]


def test_points_without_labels_close_the_defect_they_lie_in(
    case: tuple[Volume, Volume], quick_fit: None, fitted: PriorFit
) -> None:
    surface = fitted.completed_surface()
    unlabelled = PointCloud(surface.points, surface.normals)
    labelled, without = (
        flow.design(case[0], lambda *_, points=points, **__: Proposal([OrientedPoints(points)])).implant
        for points in (surface, unlabelled)
    )
    assert dice(without.mask, labelled.mask) > 0.99


@pytest.mark.parametrize("value", ["theirs:not_there", "no_such_module:load"])
def test_a_package_that_cannot_be_imported_is_named_by_the_doctor(
    theirs: None, tmp_path: Path, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    points = tmp_path / "site" / "theirs-1.0.dist-info" / "entry_points.txt"
    points.write_text(f"[pcdiff.methods]\ntheirs = {value}\n")
    with pytest.raises(MethodError, match=r"method theirs \(from the package theirs\): cannot import"):
        load_method("theirs")
    (found,) = (finding for finding in doctor._methods() if finding.name == "method theirs")
    assert found.good is False
    assert "cannot import" in found.words
