"""The cache of heads that training reads: every complete skull of a data set, reduced to about 1 mm."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import as_completed
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field
from tqdm import tqdm

from pcdiff import __version__
from pcdiff.data.cases import find_cases, read_case_skull
from pcdiff.environment import worker_pool
from pcdiff.errors import InputError
from pcdiff.files import make_folder
from pcdiff.geometry.occupancy import Head, head_occupancy
from pcdiff.imaging.scan import input_digest
from pcdiff.tensor_files import read_metadata, read_tensors, write_tensors

HEAD_FORMAT = "pcdiff-head-1"
REMEDY = "run `pcdiff prepare` again"
MIN_BLOCK_MM3 = 1e-3  # far below every scan


class _Notes(BaseModel):
    """What the metadata says of a head."""

    name: str = Field(max_length=200)


def load_head(path: Path) -> Head:
    """Reads a head that `prepare` wrote. Raises InputError for any other file."""
    file = read_tensors(path, "a head of the cache", REMEDY, HEAD_FORMAT)
    occupancy, affine = file.array("occupancy", "uint8", (None, None, None)), file.array("affine", "float", (4, 4))
    if abs(np.linalg.det(affine[:3, :3])) < MIN_BLOCK_MM3 or not occupancy.size:
        raise InputError(f"{path}: expected a head with axes in space, got an empty or a flat one; {REMEDY}")
    return Head(occupancy, affine, file.notes(_Notes).name)


def prepare(
    folder: Path,
    cache: Path,
    cases: str | None = None,
    workers: int = 1,
    progress: bool = True,
    on_failure: Callable[[Path, Exception], None] | None = None,
) -> list[Path]:
    """Writes `cache/heads/NNN.safetensors` for each *complete skull* of a data set: a mask or a CT, DICOM too.

    A head that was made from the same bytes by this version is kept, so an interrupted run continues where it stopped.

    Args:
        folder: The data set, see `find_cases`.
        cache: The folder to write to; it is created.
        cases: See `find_cases`.
        workers: Processes at a time.
        progress: Whether to show a progress bar.
        on_failure: Gets each skull that cannot be made a head, and why; the others go on. None raises at the first.

    Returns:
        The paths of the heads that were made.

    Raises:
        InputError: No complete skull, or a cache that cannot be written; one that cannot be read, without `on_failure`.
    """
    sources = {case.head: case.complete_skull for case in find_cases(folder, cases) if case.complete_skull}
    if not sources:
        raise InputError(f"{folder}: expected complete skulls, got none; heads are made from complete skulls")
    heads = Path(cache) / "heads"
    make_folder(heads)
    jobs = {source: heads / f"{name}.safetensors" for name, source in sources.items()}
    made = []

    def finish(source: Path, make: Callable[[], None]) -> None:
        try:
            make()
            made.append(jobs[source])
        except Exception as error:
            if on_failure is None:
                raise
            on_failure(source, error)
        bar.update()

    with tqdm(total=len(jobs), desc="heads", unit="head", disable=not progress) as bar:
        if workers <= 1:
            for source, target in jobs.items():
                finish(source, partial(_prepare_head, source, target))
            return made
        with worker_pool(workers) as pool:
            futures = {pool.submit(_prepare_head, *job): job[0] for job in jobs.items()}
            for future in as_completed(futures):
                finish(futures[future], future.result)
    return sorted(made)


def _prepare_head(source: Path, target: Path) -> None:
    origin = {"format": HEAD_FORMAT, "pcdiff": __version__, "sha256": input_digest(source), "source": source.name}
    if target.exists() and origin.items() <= (read_metadata(target) or {}).items():
        return
    head = head_occupancy(read_case_skull(source), target.stem)
    write_tensors(target, {"occupancy": head.occupancy, "affine": head.affine}, origin | {"name": head.name})
