"""Dataset folders (SkullFix, SkullBreak) as cases, and the cache of healthy heads that training draws from."""

from __future__ import annotations

import math
import re
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from tqdm import tqdm

from pcdiff import __version__
from pcdiff.errors import InputError
from pcdiff.files import sha256, written_beside
from pcdiff.metrics import bounding_box
from pcdiff.volume import Volume, read_volume

HEAD_FORMAT = "pcdiff-head-1"
HEAD_SPACING_MM = 0.9  # block size that heads come nearest to; half a millimetre of bone is still seen in the mean
HEAD_MARGIN = 2  # blocks of air around the bone


@dataclass(frozen=True)
class LoadedCase:
    """A case in memory, on one grid."""

    name: str
    defective_skull: Volume
    implant: Volume

    @property
    def complete_skull(self) -> Volume:
        """Defective skull and implant together: both data sets are made so, voxel for voxel."""
        return self.defective_skull.with_mask(self.defective_skull.mask | self.implant.mask)


@dataclass(frozen=True)
class Case:
    """The files of one case; None for what the folder does not hold. name: `NNN`, or `<class>/NNN` in SkullBreak.

    refusal: there is nothing to close in `defective_skull`, and no implant: the right answer is to say so.
    """

    name: str
    complete_skull: Path | None
    defective_skull: Path | None
    implant: Path | None
    refusal: bool = False

    def load(self) -> LoadedCase:
        """Reads the case; of complete skull, defective skull and implant, any two give the third.

        Where an implant is to be refused it is empty.

        Raises InputError if a file cannot be read, if two are missing, or if the grids differ.
        """
        if self.defective_skull and self.refusal:
            skull = read_volume(self.defective_skull)
            return LoadedCase(self.name, skull, skull.with_mask(np.zeros_like(skull.mask)))
        if self.defective_skull and self.implant:
            defective_skull, implant = read_volume(self.defective_skull), read_volume(self.implant)
            self._check_grids(defective_skull, implant)
            return LoadedCase(self.name, defective_skull, implant)
        part = self.implant or self.defective_skull
        if self.complete_skull is None or part is None:
            raise InputError(
                f"case {self.name}: expected two of complete_skull, defective_skull and implant, got one; "
                "add the missing file"
            )
        complete_skull, taken = read_volume(self.complete_skull), read_volume(part)
        self._check_grids(complete_skull, taken)
        rest = complete_skull.with_mask(complete_skull.mask & ~taken.mask)
        return LoadedCase(self.name, rest, taken) if self.implant else LoadedCase(self.name, taken, rest)

    def _check_grids(self, first: Volume, second: Volume) -> None:
        if first.mask.shape != second.mask.shape or not np.allclose(first.affine, second.affine, rtol=0, atol=1e-3):
            raise InputError(
                f"case {self.name}: expected skull and implant on one grid, got {first.mask.shape} and "
                f"{second.mask.shape} or other directions or origin; resample one onto the other"
            )


@dataclass(frozen=True)
class Head:
    """A skull at about 0.9 mm, cut to its bone.

    occupancy: (I, J, K) uint8, 255 times the share of bone in each block of voxels.
    affine:    (4, 4) float64, block index -> mm of the block's centre, LPS.

    There is air around the bone, except where the scan itself ends: bone in the array's first or last layer was
    cut off by the field of view.
    """

    occupancy: np.ndarray
    affine: np.ndarray
    name: str

    def __post_init__(self) -> None:
        if self.occupancy.ndim != 3 or self.occupancy.dtype != np.uint8:
            raise ValueError(f"occupancy must be 3D uint8, got {self.occupancy.ndim}D {self.occupancy.dtype}")
        if self.affine.shape != (4, 4):
            raise ValueError(f"affine must have shape (4, 4), got {self.affine.shape}")


def find_cases(folder: Path, cases: str | None = None) -> list[Case]:
    """The cases of a data set, in order of name.

    folder: SkullFix layout, `complete_skull/NNN.nrrd`, `defective_skull/NNN.nrrd`, `implant/NNN.nrrd`, or SkullBreak
    layout, the last two with one folder per class: `implant/<class>/NNN.nrrd`. A folder of the three may be missing.
    cases: numbers, ranges and names with commas between, "000-059,063" or "bilateral/003"; a number stands for that
    head in every class. None takes all. A range may have gaps, its two ends must exist.

    Raises InputError for a folder in neither layout and for an unknown case.
    """
    folder = Path(folder)
    complete_skulls, defective_skulls, implants = (
        {
            path.relative_to(folder / part).with_suffix("").as_posix(): path
            for pattern in ("*.nrrd", "*/*.nrrd")
            for path in (folder / part).glob(pattern)
            if not path.name.startswith(".")
        }
        for part in ("complete_skull", "defective_skull", "implant")
    )
    names = defective_skulls.keys() | implants.keys()
    names |= complete_skulls.keys() - {_head(name) for name in names}
    if not names:
        came = "an empty folder" if folder.is_dir() and not any(folder.iterdir()) else "none of them"
        raise InputError(
            f"{folder}: expected complete_skull/, defective_skull/ or implant/ with NNN.nrrd or <class>/NNN.nrrd, "
            f"got {came if folder.is_dir() else 'no such folder'}; give the data set's own folder"
        )
    found = [
        Case(name, complete_skulls.get(_head(name)), defective_skulls.get(name), implants.get(name))
        for name in sorted(names)
    ]
    if cases is None:
        return found
    chosen = set().union(*(_select(token.strip(), found, folder) for token in cases.split(",")))
    return [case for case in found if case.name in chosen]


def _head(name: str) -> str:
    """`NNN` of `NNN` or `<class>/NNN`."""
    return name.rsplit("/", 1)[-1]


def _select(token: str, cases: list[Case], folder: Path) -> set[str]:
    """The names that one item of a selection stands for."""
    chosen = {case.name for case in cases if token in (case.name, _head(case.name))}
    if not chosen and (ends := re.fullmatch(r"(\d+)(?:-(\d+))?", token)):
        first, last = int(ends[1]), int(ends[2] or ends[1])
        numbers = {case.name: int(_head(case.name)) for case in cases if _head(case.name).isdecimal()}
        if {first, last} <= set(numbers.values()):
            chosen = {name for name, number in numbers.items() if first <= number <= last}
    if not chosen:
        raise InputError(
            f"cases: expected numbers, ranges or names such as 060-074 or 003, got {token!r}; "
            f"{folder} holds {cases[0].name} to {cases[-1].name}"
        )
    return chosen


def head_occupancy(volume: Volume, name: str = "") -> Head:
    """The whole mask averaged over blocks of voxels of about 0.9 mm, cut to the bone and two blocks around it.

    A 0.45 mm axis is averaged in twos, one of 0.7 mm or more is kept. A last block that reaches beyond the grid counts
    air there. Nothing is removed: loose pieces stay. Raises InputError if there is no bone.
    """
    factor = np.maximum(1, np.round(HEAD_SPACING_MM / volume.spacing)).astype(int)  # (3,)
    low, high = bounding_box(volume.mask)
    if not (high > low).all():
        raise InputError(f"{name or 'skull'}: expected a mask of bone, got an empty one; check the file")
    low = np.maximum(low - HEAD_MARGIN * factor, 0)
    high = high + HEAD_MARGIN * factor
    bone = volume.mask[tuple(slice(first, last) for first, last in zip(low, high, strict=True))]

    block = math.prod(factor.tolist())
    counts = bone.view(np.uint8) if block <= 255 else bone.astype(np.uint16)
    # The slowest axis first: whole rows are added, and the axis that must be gathered is done on what is left.
    for axis in np.argsort(counts.strides)[::-1]:
        counts = _block_sums(counts, int(axis), int(factor[axis]))
    share = np.round(np.arange(block + 1) * (255 / block)).astype(np.uint8)

    affine = volume.affine.astype(np.float64)
    affine[:3, :3] *= factor
    # The centre of a block of n voxels lies (n - 1) / 2 voxels beyond the centre of its first.
    affine[:3, 3] = volume.to_mm(low + (factor - 1) / 2)
    return Head(np.ascontiguousarray(share[counts]), affine, name)


def _block_sums(counts: np.ndarray, axis: int, factor: int) -> np.ndarray:
    """Sums of `factor` neighbours along an axis; the last block may be short. Memory order is kept."""
    if factor == 1:
        return counts
    along = np.moveaxis(counts, axis, 0)
    sums = along[::factor].copy(order="K")
    for offset in range(1, factor):
        rest = along[offset::factor]
        sums[: len(rest)] += rest
    return np.moveaxis(sums, 0, axis)


def load_head(path: Path) -> Head:
    """Reads a head that `prepare` wrote. Raises InputError for any other file."""
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != HEAD_FORMAT:
                raise InputError(f"{path}: expected a head of format {HEAD_FORMAT}; run `pcdiff prepare` again")
            return Head(file.get_tensor("occupancy"), file.get_tensor("affine"), metadata["name"])
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: expected a head of the cache, got {error}; run `pcdiff prepare` again") from error


def prepare(folder: Path, cache: Path, cases: str | None = None, workers: int = 1, progress: bool = True) -> list[Path]:
    """Writes `cache/heads/NNN.safetensors` for each *complete skull* of a data set, each head once; returns the paths.

    folder, cases: see `find_cases`. workers: processes. A head of the same source bytes and pcdiff version is left
    alone, so an interrupted run goes on where it stopped; files appear whole or not at all.

    Raises InputError if there is no complete skull, one cannot be read, or the cache cannot be written.
    """
    sources = sorted({case.complete_skull for case in find_cases(folder, cases) if case.complete_skull})
    if not sources:
        raise InputError(f"{folder}: expected complete_skull/NNN.nrrd, got none; heads are made from complete skulls")
    heads = Path(cache) / "heads"
    try:
        heads.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{heads}: expected a folder to write to, got {error.strerror}; choose another") from error
    targets = [heads / f"{source.stem}.safetensors" for source in sources]
    jobs = list(zip(sources, targets, strict=True))
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
    origin = {"format": HEAD_FORMAT, "pcdiff": __version__, "sha256": sha256(source), "source": source.name}
    if target.exists():
        try:
            with safe_open(target, "np") as existing:
                if origin.items() <= (existing.metadata() or {}).items():
                    return
        except (OSError, SafetensorError):
            pass  # not whole: made anew
    head = head_occupancy(read_volume(source), source.stem)
    with written_beside(target) as beside:
        beside.write_bytes(save({"occupancy": head.occupancy, "affine": head.affine}, origin | {"name": head.name}))
