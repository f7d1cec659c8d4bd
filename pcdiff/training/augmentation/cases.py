"""`pcdiff augment`: a data set of new heads with virtual defects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, field_validator
from tqdm import tqdm

from pcdiff.config import StrictConfig
from pcdiff.data.cases import LoadedCase
from pcdiff.data.craniotomy import KINDS, simulate_craniotomy
from pcdiff.data.heads import load_head
from pcdiff.data.healing import healed
from pcdiff.environment import worker_pool
from pcdiff.errors import InputError
from pcdiff.files import sha256, written_beside
from pcdiff.foreign import read_json
from pcdiff.geometry.occupancy import Head
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import write_volume
from pcdiff.prior.build import read_tables
from pcdiff.prior.direction_map import Pose
from pcdiff.prior.folds import cached_heads, load_population
from pcdiff.prior.model import ShapePrior
from pcdiff.prior.pose import largest_piece
from pcdiff.training.augmentation.generator import Generator
from pcdiff.training.augmentation.measures import Reference
from pcdiff.training.augmentation.shapes import GENERATED, SHAPES, Shape, draw, make_head
from pcdiff.training.augmentation.sheet import write_sheet
from pcdiff.training.augmentation.sources import Sources, load_sources
from pcdiff.training.run_state import same_recipe

HEALED, TWO = "healed", "two_defects"
DEFECTS = (*KINDS, TWO, HEALED)  # irregular ones in twos; one of any kind with a healed rim
ATTEMPTS = 8  # at a defect, on a head with little room for it
CONFIG = "config.json"
PARTS = ("implant", "defective_skull", "complete_skull")


class AugmentConfig(StrictConfig):
    """What a data set is made of. A case is a function of these and of its number alone."""

    cases: str = Field(default="000-059", description="heads of the cache")
    skip: tuple[str, ...] = ()
    shapes: tuple[str, ...] = Field(default=tuple(SHAPES), min_length=1, description="taken in turns")
    defects: tuple[str, ...] = Field(default=DEFECTS, min_length=1, description="taken in turns, for each shape")
    generator: str = Field(default="", description="sha256 of its weights")
    held_out: str = Field(default="", description="heads of the cache that coverage is measured on")
    spacing_mm: float = Field(default=0.9, ge=0.3, le=3)
    seed: int = Field(default=0, ge=0)

    @field_validator("shapes", "defects")
    @classmethod
    def _known(cls, names: tuple[str, ...], field: Any) -> tuple[str, ...]:
        known = (*SHAPES, GENERATED) if field.field_name == "shapes" else DEFECTS
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"expected some of {', '.join(known)}, got {', '.join(unknown)}")
        return names


class _Record(BaseModel, extra="allow"):
    """What the summary and the sheet read of a case's record."""

    case: str
    shape: str
    defect: str
    heads: list[str]
    bone_ml: float
    inside_ml: float
    thickness_mm: float
    thickness_spread_mm: float
    asymmetry_mm: float
    nearest_mm: float
    held_out_mm: dict[str, float]


@dataclass(frozen=True)
class _Job:
    """One case for a worker process."""

    number: int
    defect: str
    shape: Shape
    file: Path
    pose: Pose
    out: Path
    config: AugmentConfig


def augment(
    cache: Path,
    out: Path,
    count: int,
    config: AugmentConfig,
    generator: Path | None = None,
    workers: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Writes a data set in SkullFix's layout, `complete_skull/a00000.nrrd` and so on, and returns its measures.

    Beside it: records/a00000.json, which shape and defect each case has; measures.json; sheet.png, a picture of some.
    Cases that are there already are kept, so an interrupted run continues, and a larger count adds cases.

    Args:
        cache: What `pcdiff prepare` wrote.
        out: The folder to write to.
        count: Number of cases.
        config: What they are made of.
        generator: Weights of a generative model, for generated shapes.
        workers: Processes at a time.
        progress: Whether to show progress bars.

    Raises:
        InputError: No heads in the cache, generated shapes without weights, and a folder with another data set.
    """
    if (generator is not None) != (GENERATED in config.shapes):
        raise InputError(
            "--generator: expected the weights of a generative model for generated shapes, and only for those; train "
            "one with `pcdiff train generator`, and name generated among the shapes"
        )
    config = config.model_copy(update={"generator": sha256(generator) if generator else ""})
    cached_heads(cache, config.cases, config.skip)  # a refusal leaves no folder behind
    held_out_names = cached_heads(cache, config.held_out) if config.held_out else []
    _check_folder(Path(out))
    same_recipe(Path(out) / CONFIG, config, "--out")
    for part in (*PARTS, "records"):
        (Path(out) / part).mkdir(exist_ok=True)
    prior = ShapePrior.shipped()
    with worker_pool(workers) as pool:
        sources = load_sources(cache, config.cases, config.skip, prior, pool, workers, progress)
        held_out = _held_out(cache, held_out_names, prior, workers)
        reference = Reference(prior, sources.names, prior.mean + sources.deviations, sources.scales, held_out)
        model = None if generator is None else Generator.load(generator, prior)
        records = {n: record for n in range(count) if (record := _record(out, n)) is not None}
        jobs = (_job(n, sources, reference, model, Path(out), config) for n in range(count) if n not in records)
        bar = tqdm(total=count, initial=len(records), desc="cases", unit="case", disable=not progress)
        with bar:
            for job, tables in _made(pool, jobs, workers):
                records[job.number] = _write_record(job, tables, reference)
                bar.update()
    chosen = [records[n] for n in sorted(records)]
    kinds = dict.fromkeys(record["shape"] for record in chosen)
    measures = reference.summary({kind: [each for each in chosen if each["shape"] == kind] for kind in kinds})
    with written_beside(Path(out) / "measures.json") as beside:
        beside.write_text(json.dumps(measures, indent=1) + "\n", encoding="utf-8")
    write_sheet(Path(out), chosen)
    return measures


def _check_folder(out: Path) -> None:
    """Raises InputError for a folder with files of something else, which could be another data set."""
    if (out / CONFIG).exists() or not out.is_dir():
        return
    if others := sorted(path.name for path in out.iterdir() if not path.name.startswith(".")):
        raise InputError(
            f"{out}: expected a new or empty folder, or that of an earlier `pcdiff augment`, got one with {others[0]}; "
            "the new cases would mix with it: choose another --out"
        )


def _job(
    number: int, sources: Sources, reference: Reference, model: Generator | None, out: Path, config: AugmentConfig
) -> _Job:
    """Shapes take turns; each shape's defects take turns."""
    kind = config.shapes[number % len(config.shapes)]
    defect = config.defects[number // len(config.shapes) % len(config.defects)]
    shape = draw(kind, sources, reference, model, np.random.default_rng([config.seed, number]))
    return _Job(number, defect, shape, sources.files[shape.source], sources.poses[shape.source], out, config)


def _made(pool: Executor, jobs: Iterable[_Job], workers: int) -> Iterator[tuple[_Job, np.ndarray]]:
    """Each job with its head's tables, in order; few are under way at a time, because a shape takes memory."""
    waiting: list[tuple[_Job, Future[np.ndarray]]] = []
    for job in jobs:
        waiting.append((job, pool.submit(_make, job)))
        if len(waiting) > 2 * workers:
            first, future = waiting.pop(0)
            yield first, future.result()
    for job, future in waiting:
        yield job, future.result()


def _make(job: _Job) -> np.ndarray:
    """Writes the files of a case; returns the tables (2, R) mm of its head, in model space."""
    volume = make_head(_source(job.file), job.pose, job.shape, job.config.spacing_mm)
    case = _with_defect(volume, job)
    for part in PARTS:
        write_volume(getattr(case, part), job.out / part / f"{_name(job.number)}.nrrd")
    prior = _prior()
    occupancy = largest_piece(np.where(volume.mask, 255, 0).astype(np.uint8))
    pose = Pose(np.diag(job.shape.scales), np.zeros(3))
    return read_tables(occupancy, volume.affine, pose, prior.mean, prior.settings.population).both.astype(np.float32)


def _with_defect(volume: Volume, job: _Job) -> LoadedCase:
    """A virtual craniotomy; another draw where the head has no room for one."""
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng([job.config.seed, job.number, 1 + attempt])
        kind = {TWO: "irregular", HEALED: str(rng.choice(list(KINDS)))}.get(job.defect, job.defect)
        try:
            skull, implant = simulate_craniotomy(volume, kind, rng, 2 if job.defect == TWO else 1)
        except InputError as error:
            problem = error
            continue
        case = LoadedCase(_name(job.number), skull, implant)
        return healed(case, rng) if job.defect == HEALED else case
    raise InputError(f"case {_name(job.number)}: {problem}")


@lru_cache(4)
def _source(file: Path) -> Head:
    head = load_head(file)
    return Head(largest_piece(head.occupancy), head.affine, head.name)


@lru_cache(1)
def _prior() -> ShapePrior:
    return ShapePrior.shipped()


def _held_out(cache: Path, names: Sequence[str], prior: ShapePrior, workers: int) -> dict[str, np.ndarray]:
    """Tables (2, R) mm of the held-out heads by name."""
    if not names:
        return {}
    deviations = load_population(cache, names, workers, prior).deviations(prior.mean)
    return {name: prior.mean + deviations[k] for k, name in enumerate(names)}


def _write_record(job: _Job, tables: np.ndarray, reference: Reference) -> dict[str, Any]:
    """Writes the record of a case last: a case with a record is whole."""
    record = {
        "case": _name(job.number),
        "shape": job.shape.kind,
        "defect": job.defect,
        "heads": [reference.names[k] for k in job.shape.used],
        **reference.record(tables, job.shape.scales),
    }
    with written_beside(_record_file(job.out, job.number)) as beside:
        beside.write_text(json.dumps(record) + "\n", encoding="utf-8")
    return record


def _record(out: Path, number: int) -> dict[str, Any] | None:
    """The record of a case that is whole."""
    files = [Path(out) / part / f"{_name(number)}.nrrd" for part in PARTS]
    if not all(file.exists() for file in (*files, _record_file(out, number))):
        return None
    return read_json(_record_file(out, number), _Record, "the record of a case", "remove it, and the case is made anew")


def _record_file(out: Path, number: int) -> Path:
    return Path(out) / "records" / f"{_name(number)}.json"


def _name(number: int) -> str:
    return f"a{number:05d}"  # apart from the heads of a data set, also in one cache with them
