"""The cache of heads that training reads: every complete skull of a data set, reduced to about 1 mm."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from safetensors.numpy import save
from tqdm import tqdm

from pcdiff import __version__
from pcdiff.data.cases import find_cases
from pcdiff.errors import InputError
from pcdiff.files import written_beside
from pcdiff.geometry.occupancy import Head, head_occupancy
from pcdiff.imaging.input_check import read_skull
from pcdiff.imaging.scan import input_digest
from pcdiff.tensor_files import read_metadata, read_tensors

HEAD_FORMAT = "pcdiff-head-1"


def load_head(path: Path) -> Head:
    """Reads a head that `prepare` wrote. Raises InputError for any other file."""
    file = read_tensors(path, "a head of the cache", "run `pcdiff prepare` again", HEAD_FORMAT)
    return Head(file.tensors["occupancy"], file.tensors["affine"], file.metadata["name"])


def prepare(folder: Path, cache: Path, cases: str | None = None, workers: int = 1, progress: bool = True) -> list[Path]:
    """Writes `cache/heads/NNN.safetensors` for each *complete skull* of a data set: a mask or a CT, DICOM too.

    A head that was made from the same bytes by this version is kept, so an interrupted run continues where it stopped.

    Args:
        folder: The data set, see `find_cases`.
        cache: The folder to write to; it is created.
        cases: See `find_cases`.
        workers: Processes at a time.
        progress: Whether to show a progress bar.

    Returns:
        The paths of the heads.

    Raises:
        InputError: No complete skull, one that cannot be read, or a cache that cannot be written.
    """
    sources = {case.head: case.complete_skull for case in find_cases(folder, cases) if case.complete_skull}
    if not sources:
        raise InputError(f"{folder}: expected complete_skull/NNN.nrrd, got none; heads are made from complete skulls")
    heads = Path(cache) / "heads"
    try:
        heads.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{heads}: expected a folder to write to, got {error.strerror}; choose another") from error
    targets = [heads / f"{name}.safetensors" for name in sources]
    jobs = list(zip(sources.values(), targets, strict=True))
    with tqdm(total=len(jobs), desc="heads", unit="head", disable=not progress) as bar:
        if workers <= 1:
            for job in jobs:
                _prepare_head(*job)
                bar.update()
            return targets
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            futures = [pool.submit(_prepare_head, *job) for job in jobs]
            try:
                for future in as_completed(futures):
                    future.result()
                    bar.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return targets


def _prepare_head(source: Path, target: Path) -> None:
    origin = {"format": HEAD_FORMAT, "pcdiff": __version__, "sha256": input_digest(source), "source": source.name}
    if target.exists() and origin.items() <= (read_metadata(target) or {}).items():
        return
    head = head_occupancy(read_skull(source)[0], target.stem)
    with written_beside(target) as beside:
        beside.write_bytes(save({"occupancy": head.occupancy, "affine": head.affine}, origin | {"name": head.name}))
