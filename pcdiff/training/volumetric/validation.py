"""Validation of the volumetric U-Net on the lattice: held-out heads with defects of each class, made once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from pcdiff.data.cases import Case, find_cases
from pcdiff.data.suite import SKULLBREAK, write_suite
from pcdiff.errors import InputError
from pcdiff.geometry.grid import box_slices
from pcdiff.geometry.metrics import dice
from pcdiff.geometry.occupancy import head_occupancy
from pcdiff.methods.volumetric.config import FusionConfig
from pcdiff.methods.volumetric.features import LATTICE, Window, prior_log_odds, soft_occupancy
from pcdiff.methods.volumetric.model import VolumetricModel
from pcdiff.methods.volumetric.surroundings import Surroundings
from pcdiff.prior.fit import fit_head
from pcdiff.prior.model import ShapePrior
from pcdiff.training.recipes import RunConfig
from pcdiff.training.volumetric.fitted import FittedCase

log = logging.getLogger(__name__)

CLASSES = ("own", *SKULLBREAK)
FUSION = FusionConfig()
EVERYWHERE: Window = (slice(0, LATTICE.shape[0]), slice(0, LATTICE.shape[1]), slice(0, LATTICE.shape[2]))


def store_cases(run: RunConfig, prior: ShapePrior, pool: Executor, progress: bool = True) -> dict[str, list[Path]]:
    """Files of `run.validate_cases` cases of each class, fitted and reduced to the lattice; stored in the cache."""
    cases = find_cases(run.data, run.validation)[: run.validate_cases]
    folder = run.cache / "lattice-cases"
    suite = write_suite(CLASSES, cases, folder / "suite", progress=progress)
    key = hashlib.sha256(prior.digest.encode()).hexdigest()[:12]
    files = [folder / key / f"{case.name.replace('/', '-')}.safetensors" for case in suite]
    (folder / key).mkdir(parents=True, exist_ok=True)
    log.info("fitting the shape model to %d validation cases; they are stored in %s", len(suite), folder / key)
    storing = pool.map(partial(_store_case, prior=prior), suite, files)
    list(tqdm(storing, "validation cases", len(suite), disable=not progress))
    found: dict[str, list[Path]] = {}
    for case, file in zip(suite, files, strict=True):
        if file.exists():
            found.setdefault(case.name.split("/")[0], []).append(file)
    return found


def validate(model: VolumetricModel, files: dict[str, Sequence[Path]], device: str = "cpu") -> dict[str, float]:
    """Mean DSC at half the lattice's step, interpolated linearly.

    On the lattice itself a gain can hide a loss: a surface that is off by half a step flips few points.

    Returns:
        val_tables_CLASS, val_network_CLASS, val_fused_CLASS: by the completed tables, by the network alone, and by
        both. val_tables, val_network, val_fused: the means of the classes; absent without cases.
    """
    means: dict[str, list[float]] = {}
    scores = {}
    for kind, paths in files.items():
        rows = np.mean([_score(model, path, device) for path in paths], 0).tolist()
        for name, value in zip(("tables", "network", "fused"), rows, strict=True):
            scores[f"val_{name}_{kind}"] = value
            means.setdefault(f"val_{name}", []).append(value)
    return {name: float(np.mean(values)) for name, values in means.items()} | scores


def _score(model: VolumetricModel, path: Path, device: str) -> tuple[float, float, float]:
    """DSC of the completed tables, of the network from which they are hidden, and of both."""
    case = FittedCase.load(path)
    bone = case.bone.astype(np.float32) / 255
    tables = prior_log_odds(case.maps, EVERYWHERE, FUSION)
    alone = model.predict(bone, case.windows, None, device, mirror=False)
    both = tables + Surroundings.predict(model, bone, case.windows, case.maps, device, mirror=False).added
    a, b, c = (lattice_dice(case, values, level=0.0) for values in (tables, alone, both))
    return a, b, c


def lattice_dice(case: FittedCase, values: np.ndarray, level: float) -> float:
    """DSC of the missing bone around the case's windows, at half the lattice's spacing.

    values: (I, J, K) on the lattice; bone is missing where they, interpolated, are at least `level`.
    """
    sides = np.array([[[side.start, side.stop] for side in window] for window in case.windows])
    box = box_slices(sides[..., 0].min(0), sides[..., 1].max(0))
    bone, missing = (finer(share[box].astype(np.float32) / 255) for share in (case.bone, case.missing))
    truth = (bone + missing >= 0.5) & (bone < 0.5)
    return dice((finer(values[box]) >= level) & (bone < 0.5), truth)


def finer(values: np.ndarray) -> np.ndarray:
    """(I, J, K) -> (2 I - 1, 2 J - 1, 2 K - 1): the values and those half-way between them."""
    zoomed: np.ndarray = ndimage.zoom(values, [(2 * n - 1) / n for n in values.shape], order=1)
    return zoomed


def _store_case(case: Case, file: Path, prior: ShapePrior) -> None:
    """A case on the lattice, in the pose of the fitted shape model."""
    if file.exists():
        return
    loaded = case.load()
    head = head_occupancy(loaded.defective_skull)
    try:
        fit = fit_head(prior, head, loaded.defective_skull)
    except InputError as error:
        log.warning("validation case %s left out: %s", case.name, error)
        return
    bone, missing = (soft_occupancy(part, fit.pose) for part in (head, head_occupancy(loaded.implant)))
    FittedCase.of(fit, bone, missing).save(file)
