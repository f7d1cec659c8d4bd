"""`pcdiff augment`: heads in other shapes, and the data set that is written of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from pcdiff.data.cases import find_cases
from pcdiff.data.heads import HEAD_FORMAT
from pcdiff.errors import InputError
from pcdiff.geometry.occupancy import Head, head_occupancy
from pcdiff.geometry.volume import Volume
from pcdiff.prior.build import read_tables
from pcdiff.prior.defects import VAULT
from pcdiff.prior.direction_map import MAP, Pose
from pcdiff.prior.model import ShapePrior
from pcdiff.tensor_files import write_tensors
from pcdiff.training.augmentation import cases, sources
from pcdiff.training.augmentation.cases import AugmentConfig, augment
from pcdiff.training.augmentation.measures import Reference, head_measures
from pcdiff.training.augmentation.shapes import Shape, make_head
from pcdiff.training.volumetric.heads import Heads
from pcdiff.training.volumetric.warps import BOX

OWN = Pose(np.eye(3), np.zeros(3))
STILL = torch.zeros(1, 3, *BOX.knots)
ONES = np.ones(3)


@pytest.fixture(scope="module")
def drawn(prior: ShapePrior) -> list[Head]:
    """Three heads in the model's pose."""
    return [head_occupancy(prior.draw(np.random.default_rng(k), spacing=1.6), f"{k:03d}") for k in range(3)]


def overlap(made: Volume, head: Head) -> float:
    """DSC of a made head with the one it is made of, on the grid of the made one."""
    own = Volume(head.occupancy >= 128, head.affine)
    index = np.rint(own.to_index(made.to_mm(np.argwhere(made.mask)))).astype(int)
    inside = ((index >= 0) & (index < own.mask.shape)).all(1)
    hit = np.count_nonzero(own.mask[tuple(index[inside].T)])
    return 2 * hit * made.voxel_ml / (made.ml + own.ml)


def test_a_head_in_its_own_shape_stays(drawn: list[Head]) -> None:
    made = make_head(drawn[0], OWN, Shape("own", 0, (0,), ONES, STILL), 1.6)
    assert overlap(made, drawn[0]) > 0.95
    moved = STILL.clone()
    moved[:, 0] = 8.0
    assert overlap(make_head(drawn[0], OWN, Shape("own", 0, (0,), ONES, moved), 1.6), drawn[0]) < 0.7


def test_a_head_takes_the_size_of_a_shape(drawn: list[Head]) -> None:
    small, large = (make_head(drawn[0], OWN, Shape("own", 0, (0,), s * ONES, STILL), 1.6).ml for s in (1.0, 1.1))
    assert large / small == pytest.approx(1.1**3, rel=0.03)


def test_a_head_takes_tables(drawn: list[Head], prior: ShapePrior) -> None:
    limits = prior.settings.population
    read = read_tables(drawn[0].occupancy, drawn[0].affine, OWN, prior.mean, limits)
    own = np.stack([MAP.filled(part)[MAP.inside] for part in (read.outer, read.outer - read.thickness)])
    new = own + np.array([[2.0], [-1.0]])  # further out, and three millimetres thicker
    made = make_head(drawn[0], OWN, Shape("generated", 0, (0,), ONES, tables=np.stack([own, new])), 1.2)
    found = read_tables(made.mask.astype(np.uint8) * 255, made.affine, OWN, prior.mean, limits)
    assert np.nanmean(found.outer[VAULT] - read.outer[VAULT]) == pytest.approx(2, abs=0.2)
    assert np.nanmean(found.thickness[VAULT] - read.thickness[VAULT]) == pytest.approx(3, abs=0.3)


def test_measures_of_a_shell(prior: ShapePrior) -> None:
    rays = len(MAP.directions)
    ball = np.stack([np.full(rays, 80.0), np.full(rays, 6.0)])
    found = head_measures(ball, 2 * ONES, prior)
    share = (prior.present >= 0.9).sum() * (1.5 / 85) ** 2 / (4 * np.pi)
    assert found["bone_ml"] == pytest.approx(share * 8 * 4 / 3 * np.pi * (80**3 - 74**3) / 1000, rel=1e-3)
    assert found["thickness_mm"] == pytest.approx(12)
    assert found["asymmetry_mm"] == pytest.approx(0)
    other = ball + np.array([[1.0], [0.0]])
    reference = Reference(prior, ("a",), np.stack([ball, ball]), ONES[None], {"b": other})
    near = reference.record(ball + np.array([[0.75], [0.0]]), ONES)
    assert near["nearest_mm"] == pytest.approx(0.75, abs=1e-5)
    assert near["held_out_mm"]["b"] == pytest.approx(0.25, abs=1e-5)
    summary = reference.summary({"new": [near], "far": [reference.record(ball - np.array([[3.0], [0.0]]), ONES)]})
    assert summary["new"]["coverage"] == 1
    assert summary["far"]["coverage"] == 0
    assert summary["real"]["held_out_nearest_mm"] == pytest.approx(1, abs=1e-3)


# --- data sets --------------------------------------------------------------------------------------------------------


def write_cache(heads: list[Head], folder: Path) -> Path:
    """Heads as `pcdiff prepare` writes them."""
    (folder / "heads").mkdir(parents=True)
    for head in heads:
        tensors = {"occupancy": head.occupancy, "affine": head.affine}
        write_tensors(
            folder / "heads" / f"{head.name}.safetensors", tensors, {"format": HEAD_FORMAT, "name": head.name}
        )
    return folder


@contextmanager
def quickly() -> Iterator[None]:
    """Heads are registered on themselves, and one process does all."""

    def registered(cache: Path, names: list[str], *_: Any) -> Heads:
        count = len(names)
        return Heads(torch.zeros(count, 1), torch.zeros(count, 3, *BOX.knots), tuple(range(count)))

    @contextmanager
    def threads(workers: int) -> Iterator[Executor]:
        with ThreadPoolExecutor(workers) as pool:
            yield pool

    with mock.patch.object(sources, "load_heads", registered), mock.patch.object(cases, "worker_pool", threads):
        yield


@pytest.fixture
def cache(drawn: list[Head], tmp_path: Path) -> Iterator[Path]:
    """The cache of three heads."""
    with quickly():
        yield write_cache(drawn, tmp_path / "cache")


CONFIG = AugmentConfig(
    cases="000-001", held_out="002-002", shapes=("own", "deformed"), defects=("random_1", "healed"), spacing_mm=2.0
)


def test_a_data_set_is_written_read_and_continued(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    augment(cache, out, 2, CONFIG, progress=False)
    found = find_cases(out)
    assert [case.name for case in found] == ["a00000", "a00001"]
    assert all(case.is_whole and case.complete_skull for case in found)
    loaded = found[1].load()
    assert not (loaded.defective_skull.mask & loaded.implant.mask).any()
    assert loaded.implant.ml > 5
    records = [json.loads((out / "records" / f"{case.name}.json").read_text()) for case in found]
    assert [record["shape"] for record in records] == ["own", "deformed"]
    assert [records[0]["nearest"]] == records[0]["heads"]
    assert records[0]["nearest_mm"] < 0.5 < records[1]["nearest_mm"]  # voxels of 2 mm; then a deformation, too

    before = {path: path.read_bytes() for path in sorted(out.rglob("*.nrrd"))}
    (out / "records" / "a00001.json").unlink()  # as if the run had been interrupted in this case
    kept = out / "implant" / "a00000.nrrd"
    stamp = kept.stat().st_mtime_ns
    measures = augment(cache, out, 3, CONFIG, progress=False)
    assert kept.stat().st_mtime_ns == stamp
    assert {path: path.read_bytes() for path in before} == before
    assert len(find_cases(out)) == 3
    assert measures["own"]["heads"] == 2
    assert set(measures) == {"real", "own", "deformed"}
    assert json.loads((out / "measures.json").read_text()) == measures
    assert (out / "sheet.png").stat().st_size > 10_000
    with pytest.raises(InputError, match=r"another recipe \(seed 0, not 1\); choose another --out"):
        augment(cache, out, 3, CONFIG.model_copy(update={"seed": 1}), progress=False)

    (out / "implant" / "a00000.nrrd").unlink()  # a case that has lost a file is made anew
    augment(cache, out, 3, CONFIG, progress=False)
    assert {path: path.read_bytes() for path in before} == before
    (out / "records" / "a00000.json").write_text("{}")
    with pytest.raises(InputError, match=r"a00000\.json: expected the record of a case, .*; remove it, and"):
        augment(cache, out, 3, CONFIG, progress=False)


def test_another_data_set_is_left_alone(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "out" / "implant" / "a00000.nrrd"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"theirs")
    with pytest.raises(InputError, match=r"expected a new or empty folder, or .* got one with implant; .* --out"):
        augment(cache, tmp_path / "out", 1, CONFIG, progress=False)
    assert file.read_bytes() == b"theirs"
    assert [path.name for path in file.parent.parent.iterdir()] == ["implant"]


def test_what_cannot_be_written_is_refused(cache: Path, tmp_path: Path, run: Any) -> None:
    out = tmp_path / "out"
    for arguments, line in (
        (("--shapes", "own,melted"), "expected some of own, registered, .*, got melted"),
        (("--defects", "bite"), "expected some of bilateral, .*, got bite"),
        (("--shapes", "generated"), "expected the weights of a generative model"),
        (("--cases", "800-900"), "expected heads 800-900, got none; run `pcdiff prepare` first"),
        (
            ("--cases", "000-001", "--held-out", "800-900"),
            "expected heads 800-900, got none; run `pcdiff prepare` first",
        ),
    ):
        code, _, error = run("augment", cache, "-o", out / line[-4:], "--count", 1, *arguments)
        assert code == 2
        assert re.search(line, error), error


def test_a_refusal_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected heads 000-059, got none"):
        augment(tmp_path / "cache", tmp_path / "out", 1, AugmentConfig())
    assert not (tmp_path / "out").exists()
