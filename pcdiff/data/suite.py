"""Harder cases made from those of a data set: other defects in the same heads, other scans of the same defects.

Negative controls are among them, for which an implant must be refused: a skull without a defect, and other bones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from pcdiff.data import craniotomy, defect_kinds, healing, outline, phantoms
from pcdiff.data.cases import Case, LoadedCase
from pcdiff.data.craniotomy import simulate_craniotomy
from pcdiff.data.healing import healed
from pcdiff.data.outline import Cranium
from pcdiff.errors import InputError
from pcdiff.geometry.grid import voxels_of
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import write_volume

Variant = Callable[[LoadedCase, np.random.Generator], LoadedCase]
Phantom = Callable[[Volume, np.random.Generator], Volume]


def with_other_defect(case: LoadedCase, rng: np.random.Generator, kind: str, defects: int = 1) -> LoadedCase:
    """The same head with another defect of a kind, see `simulate_craniotomy`."""
    return LoadedCase(case.name, *simulate_craniotomy(case.complete_skull, kind, rng, defects))


def resampled(case: LoadedCase, rng: np.random.Generator, spacing: tuple[float | None, ...]) -> LoadedCase:
    """The same case on another grid.

    spacing: (3,) mm along the grid axes nearest to the patient's x, y and z; None leaves an axis as it is.
    """
    affine = case.implant.affine
    nearest = np.abs(affine[:3, :3] / case.implant.spacing).argmax(0)  # the patient's axis of each axis of the grid
    ratio = np.array([(spacing[axis] or own) / own for axis, own in zip(nearest, case.implant.spacing, strict=True)])
    shape = np.maximum(1, np.floor(np.array(case.implant.mask.shape) / ratio)).astype(int)
    # The grids share their first corner, but for 1/1000 voxel: a flat surface in the middle of a coarse voxel would
    # otherwise be rounded up from both sides.
    offset = (ratio - 1) / 2 + 1e-3
    moved = affine.copy()
    moved[:3, :3] = affine[:3, :3] * ratio
    moved[:3, 3] = affine[:3, 3] + affine[:3, :3] @ offset

    def sampled(volume: Volume) -> np.ndarray:
        # A coarse voxel is bone where half of it is: the Gaussian has the standard deviation of its box.
        smooth = ndimage.gaussian_filter(volume.mask.astype(np.float32), np.where(ratio > 1, ratio / np.sqrt(12), 0))
        return ndimage.affine_transform(smooth, ratio, offset, tuple(shape), order=1) >= 0.5

    implant = sampled(case.implant)
    skull = sampled(case.complete_skull) & ~implant
    return LoadedCase(case.name, Volume(skull, moved), Volume(implant, moved))


def transformed(case: LoadedCase, rng: np.random.Generator, linear: np.ndarray) -> LoadedCase:
    """The head turned or mirrored about the patient's origin by `linear` (3, 3): another affine, the same voxels."""
    moved = np.eye(4)
    moved[:3, :3] = linear
    return LoadedCase(
        case.name, *(Volume(volume.mask, moved @ volume.affine) for volume in (case.defective_skull, case.implant))
    )


def without_face(case: LoadedCase, rng: np.random.Generator, ahead: float = 20.0, below: float = 25.0) -> LoadedCase:
    """The skull without the bone that lies more than `ahead` mm in front of its centre and `below` mm below it."""
    skull = case.defective_skull
    centre = Cranium.from_volume(case.complete_skull).centre
    index = voxels_of(skull.mask)
    from_centre = skull.to_mm(index) - centre
    face = (from_centre[:, 1] < -ahead) & (from_centre[:, 2] < -below)
    mask = skull.mask.copy(order="K")
    mask[tuple(index[face].T)] = False
    return replace(case, defective_skull=skull.with_mask(mask))


def without_base(case: LoadedCase, rng: np.random.Generator, below: float = 30.0) -> LoadedCase:
    """A scan that ends `below` mm below the cranial centre, along the grid's axis nearest to the patient's z."""
    affine, shape = case.implant.affine, np.array(case.implant.mask.shape)
    axis = int(np.abs(affine[2, :3] / case.implant.spacing).argmax())
    centre = Cranium.from_volume(case.complete_skull).centre
    end = int(np.round(case.implant.to_index(centre - [0, 0, below])[axis]))
    low, high = np.zeros(3, int), shape.copy()
    (low if affine[2, axis] > 0 else high)[axis] = np.clip(end, 0, shape[axis])
    return LoadedCase(case.name, case.defective_skull.crop(low, high), case.implant.crop(low, high))


def negative_control(case: LoadedCase, rng: np.random.Generator, phantom: Phantom | None = None) -> LoadedCase:
    """A case without a defect: the complete skull, or another bone on the same grid. Its implant is empty."""
    skull = case.complete_skull if phantom is None else phantom(case.implant, rng)
    return LoadedCase(case.name, skull, skull.with_mask(np.zeros_like(skull.mask)))


def _turned(degrees: float) -> np.ndarray:
    """(3, 3) rotation about the patient's x axis, chin towards the chest."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


SKULLBREAK = ("bilateral", "frontoorbital", "parietotemporal", "random_1", "random_2")
VARIANTS: dict[str, Variant] = {
    "own": lambda case, rng: case,
    **{kind: partial(with_other_defect, kind=kind) for kind in (*SKULLBREAK, "irregular")},
    "healed": healed,
    "two_defects": partial(with_other_defect, kind="irregular", defects=2),
    "isotropic_1mm": partial(resampled, spacing=(1.0, 1.0, 1.0)),
    "slices_2mm": partial(resampled, spacing=(None, None, 2.0)),
    "without_face": without_face,
    "without_base": without_base,
    "tilted": partial(transformed, linear=_turned(20)),
    "mirrored": partial(transformed, linear=np.diag([-1.0, 1, 1])),
    "no_defect": negative_control,
    "jaw": partial(negative_control, phantom=phantoms.jaw),
    "knee": partial(negative_control, phantom=phantoms.knee),
}
NEGATIVE_CONTROLS = ("no_defect", "jaw", "knee")
SUITES = {"full": tuple(VARIANTS), "skullbreak": SKULLBREAK}


def variants_named(suite: str) -> tuple[str, ...]:
    """The variants of a suite, or those named, separated by commas. Raises InputError for an unknown one."""
    names = SUITES.get(suite, tuple(name.strip() for name in suite.split(",")))
    if unknown := [name for name in names if name not in VARIANTS]:
        raise InputError(
            f"unknown variant {unknown[0]!r}: expected {' or '.join(SUITES)}, or some of {', '.join(VARIANTS)}"
        )
    return names


def write_suite(
    variants: Sequence[str], cases: Sequence[Case], folder: Path, seed: int = 0, progress: bool = True
) -> list[Case]:
    """Writes each variant of each case once, as `<variant>/<case>`, and returns them in the order of the variants.

    The files lie in a folder of their own for each seed and each version of the code that makes them. The same seed
    gives the same files, whichever other cases and variants are written. A negative control has no implant's file.

    Raises InputError for a case that cannot be read and a head without room for the defect.
    """
    modules = (str(module.__file__) for module in (craniotomy, defect_kinds, healing, outline, phantoms))
    code = b"".join(Path(path).read_bytes() for path in (__file__, *modules))
    section = Path(folder) / f"cases-{hashlib.sha256(code + str(seed).encode()).hexdigest()[:12]}"
    made = []
    with tqdm(total=len(variants) * len(cases), unit="case", disable=not progress, desc="suite") as bar:
        for case in cases:
            loaded = None
            for variant in variants:
                target = _target(section, variant, case)
                if target.defective_skull is not None and not target.defective_skull.exists():
                    loaded = loaded or case.load()
                    rng = np.random.default_rng([seed, *f"{variant}/{case.name}".encode()])
                    _write(VARIANTS[variant](loaded, rng), target)
                made.append(target)
                bar.update()
    return sorted(made, key=lambda case: (variants.index(case.name.split("/")[0]), case.name))


def _target(section: Path, variant: str, case: Case) -> Case:
    """Where a variant of a case lies."""
    name = f"{variant}/{case.name.replace('/', '_')}"
    skull, implant = (section / part / f"{name}.nrrd" for part in ("defective_skull", "implant"))
    refusal = variant in NEGATIVE_CONTROLS
    return Case(name, None, skull, None if refusal else implant, refusal)


def _write(made: LoadedCase, target: Case) -> None:
    """Writes a case; its skull last, so that a skull's file stands for the whole case."""
    for path, volume in ((target.implant, made.implant), (target.defective_skull, made.defective_skull)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_volume(volume, path)
