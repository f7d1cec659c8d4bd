"""The pairs that the surface denoiser is trained on and validated with, made once and stored in the cache."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from pcdiff.files import sha256
from pcdiff.methods.registry import weights_files, weights_of
from pcdiff.methods.surface.config import LAYOUT
from pcdiff.methods.volumetric.method import VolumetricMethod, load_from
from pcdiff.tensor_files import read_tensors, write_tensors
from pcdiff.training.surface.pairs import make_pair, mirrored
from pcdiff.training.volumetric.fitted import FittedCase

log = logging.getLogger(__name__)

VERSION = 1  # of the pairs: raised when the same cases give others


@dataclass(frozen=True)
class Pairs(Dataset[dict[str, Tensor]]):
    """Item k holds the fields of `Anchors` and `Pair` by name, half precision, for some of the points of pair k % n.

    It is a function of (seed, k) alone. anchors: number of points of an item.
    """

    files: Sequence[Path]
    anchors: int
    seed: int = 0

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        """Points drawn at random."""
        pair = _load_pair(self.files[item % len(self.files)])
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence([self.seed, item]).generate_state(1)[0]))
        some = torch.randperm(len(pair["target"]), generator=generator)[: self.anchors]
        return {name: values[some] for name, values in pair.items()}


def _load_pair(path: Path) -> dict[str, Tensor]:
    """Reads what `store_pairs` wrote. Raises InputError for another file."""
    file = read_tensors(path, "a training pair", "remove it and run again", framework="pt")
    count = len(file.array("target", "float", (None,)))
    profile = (count, len(LAYOUT.offsets_mm), LAYOUT.channels)
    shapes = {"valid": (count,), "positions": (count, 3), "normals": (count, 3), "static": (count, len(LAYOUT.static))}
    for name, shape in (shapes | {"profile": profile}).items():
        file.array(name, "float", shape)
    return {name: file.tensors[name] for name in ("target", "profile", *shapes)}


def store_pairs(
    cache: Path, cases: Sequence[Path], unet: Path, count: int, pool: Executor, mirror: bool, progress: bool = True
) -> list[Path]:
    """Files of the pairs of fitted cases, and, with `mirror`, of their mirror images.

    count: points of each. Cases whose surface has no point are left out.
    """
    key = hashlib.sha256(
        f"{VERSION},{count},{[*map(sha256, weights_files('unet', unet))]},{LAYOUT.model_dump_json()}".encode()
    ).hexdigest()[:12]
    folder = cache / "surface-pairs" / key
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(case, flip) for case in cases for flip in ((False, True) if mirror else (False,))]
    log.info("making %d pairs, a few seconds each; they are stored in %s", len(jobs), folder)
    making = pool.map(partial(_store, folder=folder, unet=unet, count=count), jobs, chunksize=8)
    files = list(tqdm(making, "pairs", len(jobs), disable=not progress))
    return [file for file in files if file is not None]


@cache
def _base(unet: Path) -> VolumetricMethod:
    """The method without the diffusion, in a worker process."""
    return load_from(weights_of("unet", unet), unet)


def _store(job: tuple[Path, bool], folder: Path, unet: Path, count: int) -> Path | None:
    """The file of one pair; None where there is none."""
    case_file, flip = job
    path = folder / f"{case_file.parent.name}-{case_file.stem}{'-mirrored' if flip else ''}.safetensors"
    if path.exists():
        return path
    case = FittedCase.load(case_file)
    try:
        pair = make_pair(mirrored(case) if flip else case, _base(unet), count)
    except ValueError as error:
        log.warning("%s left out: %s", case_file, error)
        return None
    arrays = {name: value.astype(np.float16) for name, value in vars(pair.anchors).items()}
    arrays |= {"target": pair.target.astype(np.float16), "valid": pair.valid.astype(np.float16)}
    write_tensors(path, arrays, {})
    return path
