"""Files of others at every border: each mutation is read, or refused in one line."""

from __future__ import annotations

import dataclasses
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import fuzz, refused
from safetensors import safe_open
from safetensors.torch import save_file
from small_networks import SMALL, small_denoiser
from torch import nn

from pcdiff.checks.criteria import load_criteria
from pcdiff.config import override, read_yaml
from pcdiff.data.heads import load_head
from pcdiff.diffusion.ema import Ema
from pcdiff.errors import InputError
from pcdiff.evaluation.rows import Journal, Row
from pcdiff.foreign import check_file, parsing, read_bytes
from pcdiff.geometry.occupancy import Head
from pcdiff.methods.friedrich2023.checkpoints import import_checkpoints, read_foreign
from pcdiff.methods.surface.config import SurfaceConfig
from pcdiff.methods.surface.weights import load_denoiser, save_denoiser
from pcdiff.tensor_files import write_tensors
from pcdiff.training.recipes import PaperTrainConfig, load_config
from pcdiff.training.run_state import State, same_recipe

ROOT = Path(__file__).parents[1]


def without_checksum(path: Path) -> None:
    """Rewrites a file as earlier versions did: then its schema alone has to notice."""
    with safe_open(path, "pt") as file:
        metadata = {name: value for name, value in file.metadata().items() if name != "checksum"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("checksum", [True, False])
def test_mutated_weights_are_refused(tmp_path: Path, checksum: bool) -> None:
    path = tmp_path / "denoiser.safetensors"
    save_denoiser(path, small_denoiser().state_dict(), SurfaceConfig(network=SMALL), {"step": "3"})
    if not checksum:
        without_checksum(path)
    assert fuzz(path, load_denoiser, 60) > (55 if checksum else 20)
    assert fuzz(path, load_denoiser, 80, head=3500) > (75 if checksum else 40)


def test_mutated_heads_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    arrays = {"occupancy": np.zeros((4, 5, 6), np.uint8), "affine": np.eye(4)}
    write_tensors(path, arrays, {"format": "pcdiff-head-1", "name": "007"})
    assert isinstance(load_head(path), Head)
    without_checksum(path)
    assert fuzz(path, load_head, 300) > 100
    write_tensors(path, arrays | {"affine": np.diag([1.0, 1, 0, 1])}, {"format": "pcdiff-head-1", "name": "007"})
    with pytest.raises(InputError, match="a flat one"):
        load_head(path)
    write_tensors(path, arrays, {"format": "pcdiff-head-1"})
    with pytest.raises(InputError, match="name: Field required"):
        load_head(path)


class Run:
    """A network of one layer with its optimiser and averages, after a step."""

    def __init__(self, width: int = 3) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(2, width)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), 0.1)
        self.state = State(self.model, self.optimiser, Ema(self.model))

    def step(self) -> None:
        self.model(torch.ones(1, 2)).sum().backward()
        self.optimiser.step()
        self.state.step += 1
        assert self.state.ema is not None
        self.state.ema.update(self.model, self.state.step)


@pytest.mark.parametrize("checksum", [True, False])
def test_mutated_checkpoints_are_refused_and_change_nothing(tmp_path: Path, checksum: bool) -> None:
    path, run = tmp_path / "checkpoint.safetensors", Run()
    run.step()
    run.state.save(path, SurfaceConfig())
    if not checksum:
        without_checksum(path)

    def load(path: Path) -> None:
        other = Run()
        before = [value.clone() for value in other.model.state_dict().values()]
        try:
            other.state.load(path)
        except InputError:
            assert other.state.step == 0
            assert all(map(torch.equal, before, other.model.state_dict().values()))
            raise
        other.step()  # what was accepted can be used

    load(path)
    assert fuzz(path, load, 150) > (140 if checksum else 60)
    with pytest.raises(InputError, match="checkpoint of another network"):
        Run(4).state.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": "-1"}, "step: .*greater than or equal to 0"),
        ({"step": "x"}, "step: .*valid integer"),
        ({"step": "9" * 5000}, "step: "),
        ({"best": "nan"}, "best: "),
        ({"validated": None}, "validated: Field required"),
        ({"step": "0"}, "expected averages of step 0, got 1"),
    ],
)
def test_the_numbers_of_a_checkpoint_are_checked(tmp_path: Path, change: dict[str, str | None], message: str) -> None:
    path, run = tmp_path / "checkpoint.safetensors", Run()
    run.step()
    run.state.save(path, SurfaceConfig())
    with safe_open(path, "pt") as file:
        metadata = {**file.metadata(), **change}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    write_tensors(
        path, tensors, {name: value for name, value in metadata.items() if value is not None and name != "checksum"}
    )
    with pytest.raises(InputError, match=message):
        Run().state.load(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_mutated_foreign_checkpoints_are_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "voxelisation.pt"
    content = {"it": 3, "state_dict": {f"encoder.fc_{k}.weight": torch.ones(3, 4) for k in range(5)}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert read_foreign(path).keys() == content["state_dict"].keys()
    assert fuzz(path, lambda path: import_checkpoints([path]), 150) == 150  # it is no network of ours anyway


def test_small_checkpoints_do_not_become_large(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    wide = {"model.sa_layers.0.0.voxel_layers.0.weight": torch.zeros(1).expand(32_000, 3, 3, 3, 3)}
    torch.save({"model_state": wide | {"model.x": torch.zeros(3)}}, path)
    assert read_foreign(path).keys() == {"model.x"}
    torch.save({"model_state": {"a": torch.zeros(2**20)}}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    with pytest.raises(InputError, match="a compressed archive"):
        read_foreign(path)
    nested: dict[str, object] = {}
    nested["model"] = nested
    torch.save(nested, path)
    with pytest.raises(InputError, match="found none"):
        read_foreign(path)


def test_mutated_rows_are_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [Row("003", "prior", 0, 0.9, 0.8, 2.5, seconds=3.0), Row("a/003", "prior", 1, error="why")]
    with Journal(path) as journal:
        for row in rows:
            journal.add(row)
    with Journal(path) as journal:
        assert [dataclasses.astuple(row)[:6] for row in journal.earlier.values()] == [
            dataclasses.astuple(row)[:6] for row in rows
        ]

    def read(path: Path) -> None:
        with Journal(path) as journal:
            for row in journal.earlier.values():
                assert isinstance(row.case, str)
                assert isinstance(row.dsc, float)
                assert hash(row.key)
                row.to_json()

    assert fuzz(path, read, 300) == 0
    for line in (
        b"[" * 9999,
        b"9" * 9999,
        b'{"case": 1}',
        b"\xff",
        b'{"case": "a", "method": "b", "seed": 0, "more": 1}',
    ):
        path.write_bytes(line)
        with Journal(path) as journal:
            assert not journal.earlier
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="got: a folder"):
        Journal(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 5000, "nested too deeply"),
        ("a: " + "{a: " * 3000, "nested too deeply"),
        ("seed: " + "9" * 5000, r"Exceeds the limit|beyond 64 bits"),
        ("seed: 99999999999999999999", "an integer beyond 64 bits"),
        ("a: &x [1]\nb: *x", "an alias"),
        ("a: &x [*x]", "an alias"),
        ("a: &x {b: *x}", "an alias"),
        ("run: 1\nrun: 2", "a key that stands twice"),
        ("a: 2020-99-99", "month must be in"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("? [1]\n: 2", "unhashable key"),
        ("a: \x07", "special characters"),
        ("- 1", "got a list"),
    ],
)
def test_yaml_of_every_kind_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    for read in (lambda: read_yaml(path, "a recipe"), lambda: load_config(path), lambda: load_criteria(path)):
        with pytest.raises(InputError, match=message) as caught:
            read()
        assert "\n" not in str(caught.value)
    if "got a list" not in message:
        with pytest.raises(InputError, match=message):
            override({}, "run.a", text)


def test_mutated_recipes_and_criteria_are_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for name in ("diffusion", "paper_skullfix"):
        path.write_bytes((ROOT / "configs" / f"{name}.yaml").read_bytes())
        assert fuzz(path, load_config, 60) > 20
    path.write_text("max_gap_mm: 2.5\nmin_closed: 0.9\n")
    assert fuzz(path, load_criteria, 60) > 20
    for value in (".inf", ".nan", "-.inf", "1e999"):
        path.write_text(f"max_gap_mm: {value}")
        assert refused(lambda: load_criteria(path)), value


def test_the_recipe_of_a_run_may_be_any_file(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / "paper_skullfix.yaml")
    assert isinstance(config, PaperTrainConfig)
    same_recipe(tmp_path / "config.json", config)
    same_recipe(tmp_path / "config.json", config)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="a run of another recipe"):
        same_recipe(tmp_path / "config.json", config)


READERS: dict[str, Callable[[Path], object]] = {
    "weights": load_denoiser,
    "checkpoint": read_foreign,
    "recipe": load_config,
    "criteria": load_criteria,
    "bytes": lambda path: read_bytes(path, "a file", "give another", 1000),
    "check": lambda path: check_file(path, "a file", "give another"),
}


@pytest.mark.parametrize("reader", READERS)
def test_paths_that_are_no_files_are_refused(tmp_path: Path, reader: str) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pipe link").symlink_to("pipe")
    paths = [tmp_path / "a", tmp_path / "pipe", tmp_path / "pipe link", Path("/"), Path("/proc"), Path("/dev/zero")]
    for path in [*paths, tmp_path / "none", tmp_path / ("x" * 300), tmp_path / "a" / "c"]:
        assert refused(lambda path=path: READERS[reader](path)), path


def test_a_file_without_a_size_ends_at_the_limit() -> None:
    with pytest.raises(InputError, match="a larger file"):
        read_bytes(Path("/proc/self/smaps"), "a file", "give another", 100)


def test_an_error_of_ours_passes_a_parser_unchanged() -> None:
    with pytest.raises(InputError, match=r"^ours$"), parsing("x", "a file", "give another"):
        raise InputError("ours")
    for error, words in (
        (MemoryError(), "more than fits into the memory"),
        (RecursionError("deep"), "nested too deeply"),
        (KeyError("a\nb"), "got: 'a"),
        (OSError(5, "Input/output error"), "got: Input/output error; give another"),
    ):
        with pytest.raises(InputError, match=words), parsing("x", "a file", "give another"):
            raise error
