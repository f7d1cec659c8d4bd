"""Shape models in folds: a network is trained on residuals of models that were built without their head."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pcdiff.data.heads import load_head
from pcdiff.environment import worker_pool
from pcdiff.errors import InputError
from pcdiff.files import sha256
from pcdiff.prior.build import TableRadii, average, build, filled_deviations, measure_tables, population_mean
from pcdiff.prior.direction_map import MAP, Pose
from pcdiff.prior.model import PRIOR_FORMAT, ShapePrior
from pcdiff.prior.settings import SETTINGS, PopulationSettings
from pcdiff.tensor_files import read_tensors, write_tensors

TABLES_FORMAT = "pcdiff-tables-1"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Population:
    """Tables of healthy heads along the rays of the map, all posed on one mean.

    names: (H,). outer, thickness: (H, R) mm, NaN where no table was found. present: (H, R) 1 with bone, 0 without, NaN
    out of view.
    """

    names: tuple[str, ...]
    outer: np.ndarray
    thickness: np.ndarray
    present: np.ndarray

    def prior(self, chosen: Sequence[bool] | np.ndarray) -> ShapePrior:
        """The shape model of some of the heads; chosen: (H,) bool."""
        table_radii = [self._table_radii(k) for k in np.flatnonzero(np.asarray(chosen)).tolist()]
        return build(table_radii, *average(table_radii))

    def deviations(self, mean: np.ndarray, settings: PopulationSettings = SETTINGS.population) -> np.ndarray:
        """(2 H, 2, R) float32 mm, deviations from a mean (2, R) of heads, then of their mirror images; without gaps."""
        table_radii = [self._table_radii(k) for k in range(len(self.names))]
        return filled_deviations(table_radii, mean, settings).reshape(2 * len(self.names), *mean.shape)

    def _table_radii(self, head: int) -> TableRadii:
        return TableRadii(self.outer[head], self.thickness[head], self.present[head], Pose(np.eye(3), np.zeros(3)))


def load_population(cache: Path, names: Sequence[str], workers: int = 1, prior: ShapePrior | None = None) -> Population:
    """Reads the tables of heads that `pcdiff prepare` cached; they are computed once and stored in the cache.

    prior: the model to pose the heads on, for heads that it was not built from; None poses them on their own mean.
    Raises InputError if a head is missing from the cache.
    """
    paths = [Path(cache) / "heads" / f"{name}.safetensors" for name in names]
    if missing := [path.stem for path in paths if not path.exists()]:
        raise InputError(f"{cache}: expected heads {', '.join(missing[:5])}, got none; run `pcdiff prepare` first")
    key = hashlib.sha256(",".join(f"{path.stem}:{sha256(path)}" for path in paths).encode())
    key.update(b"" if prior is None else prior.mean.tobytes())
    stored = Path(cache) / f"tables-{key.hexdigest()[:12]}.safetensors"
    if not stored.exists():
        heads = [load_head(path) for path in paths]
        with worker_pool(workers) as pool:
            mean, std = population_mean(heads, pool) if prior is None else (prior.mean, prior.std)
            table_radii = list(pool.map(partial(measure_tables, mean=mean, std=std), heads))
        fields = {name: np.stack([getattr(w, name) for w in table_radii]) for name in ("outer", "thickness", "present")}
        arrays = {name: value.astype(np.float32) for name, value in fields.items()}
        write_tensors(stored, arrays, {"format": TABLES_FORMAT})
    tables = read_tensors(stored, "tables of the heads of a cache", "remove it and run again", TABLES_FORMAT)
    shape = (len(names), len(MAP.directions))
    outer, thickness, present = (
        tables.array(name, "float", shape, finite=False) for name in ("outer", "thickness", "present")
    )
    return Population(tuple(names), outer, thickness, present)


def cached_heads(cache: Path, cases: str, skip: Sequence[str] = ()) -> list[str]:
    """Names of the heads in a cache: ranges such as 000-059 and single names, with commas; without those to skip.

    A range holds what the cache has of it. Raises InputError for a single name that the cache lacks, and where no head
    is left.
    """
    stored = [path.stem for path in sorted((Path(cache) / "heads").glob("*.safetensors"))]
    chosen = set(skip)
    for token in (part.strip() for part in cases.split(",")):
        ends = re.fullmatch(r"(.*?\d+)-(.*\d+)", token)
        if token in stored or token in skip or not ends:
            chosen.add(token)
        else:
            chosen.update(name for name in stored if ends[1] <= name <= ends[2])
    if missing := sorted(chosen.difference(stored, skip)):
        raise InputError(f"{cache}: expected head {missing[0]}, got none; run `pcdiff prepare` first")
    names = [name for name in stored if name in chosen and name not in skip]
    if not names:
        raise InputError(f"{cache}: expected heads {cases}, got none; run `pcdiff prepare` first")
    log.info("%d heads of %s, %s to %s", len(names), cache, names[0], names[-1])
    return names


def cached_prior(cache: Path, people: Population, chosen: np.ndarray) -> ShapePrior:
    """The shape model of some heads, (H,) bool, built once and stored in the cache."""
    tables = (people.outer[chosen], people.thickness[chosen], people.present[chosen])
    key = hashlib.sha256(b"".join(values.tobytes() for values in tables) + PRIOR_FORMAT.encode()).hexdigest()[:12]
    path = Path(cache) / "priors" / f"{key}.safetensors"
    if path.exists():
        with suppress(InputError):  # damaged, or of a version without checksums: built again
            return ShapePrior.load(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    people.prior(chosen).save(path)
    return ShapePrior.load(path)
