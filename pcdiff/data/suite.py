"""Harder cases out of a data set's own: other defects in the same heads, other scans of the same defects; seeded.

And some for which an implant would be an invention: a whole skull, and bones that are none.
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

from pcdiff.data import craniotomy as defects
from pcdiff.data import phantoms as bones
from pcdiff.data.cases import Case, LoadedCase
from pcdiff.data.craniotomy import Cranium, cut
from pcdiff.errors import InputError
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import write_volume

Variant = Callable[[LoadedCase, np.random.Generator], LoadedCase]
Bone = Callable[[Volume, np.random.Generator], Volume]


def recut(case: LoadedCase, rng: np.random.Generator, kind: str, defects: int = 1) -> LoadedCase:
    """The same head with another defect."""
    return LoadedCase(case.name, *cut(case.complete_skull, kind, rng, defects))


def resampled(case: LoadedCase, rng: np.random.Generator, spacing: tuple[float | None, ...]) -> LoadedCase:
    """The same on voxels of other edges, mm: along the patient's x, y, z as nearly as the grid allows; None: as is."""
    affine = case.implant.affine
    nearest = np.abs(affine[:3, :3] / case.implant.spacing).argmax(0)  # the patient's axis of each axis of the grid
    ratio = np.array([(spacing[axis] or own) / own for axis, own in zip(nearest, case.implant.spacing, strict=True)])
    shape = np.maximum(1, np.floor(np.array(case.implant.mask.shape) / ratio)).astype(int)
    # the grids share their first corner; a hair beside it, or a flat wall that ends in the middle of a coarse voxel
    # would go up on both its sides
    offset = (ratio - 1) / 2 + 1e-3
    moved = affine.copy()
    moved[:3, :3] = affine[:3, :3] * ratio
    moved[:3, 3] = affine[:3, 3] + affine[:3, :3] @ offset

    def sampled(volume: Volume) -> np.ndarray:
        # a coarse voxel is bone where most of it is: a Gaussian as wide as its box
        smooth = ndimage.gaussian_filter(volume.mask.astype(np.float32), np.where(ratio > 1, ratio / np.sqrt(12), 0))
        return ndimage.affine_transform(smooth, ratio, offset, tuple(shape), order=1) >= 0.5

    implant = sampled(case.implant)
    skull = sampled(case.complete_skull) & ~implant
    return LoadedCase(case.name, Volume(skull, moved), Volume(implant, moved))


def placed(case: LoadedCase, rng: np.random.Generator, linear: np.ndarray) -> LoadedCase:
    """The same head turned or mirrored about the patient's origin: another affine, the same voxels."""
    moved = np.eye(4)
    moved[:3, :3] = linear
    return LoadedCase(
        case.name, *(Volume(volume.mask, moved @ volume.affine) for volume in (case.defective_skull, case.implant))
    )


def without_face(case: LoadedCase, rng: np.random.Generator, ahead: float = 20.0, beneath: float = 25.0) -> LoadedCase:
    """Bone more than so many mm in front of and beneath the cranial centre is gone."""
    skull = case.defective_skull
    centre = Cranium.from_volume(case.complete_skull).centre
    index = np.argwhere(skull.mask)
    from_centre = skull.to_mm(index) - centre
    face = (from_centre[:, 1] < -ahead) & (from_centre[:, 2] < -beneath)
    mask = skull.mask.copy()
    mask[tuple(index[face].T)] = False
    return replace(case, defective_skull=skull.with_mask(mask))


def without_base(case: LoadedCase, rng: np.random.Generator, beneath: float = 30.0) -> LoadedCase:
    """The scan ends so many mm beneath the cranial centre, along the grid's axis nearest to the patient's."""
    affine, shape = case.implant.affine, np.array(case.implant.mask.shape)
    axis = int(np.abs(affine[2, :3] / case.implant.spacing).argmax())
    centre = Cranium.from_volume(case.complete_skull).centre
    end = int(np.round(case.implant.to_index(centre - [0, 0, beneath])[axis]))
    low, high = np.zeros(3, int), shape.copy()
    (low if affine[2, axis] > 0 else high)[axis] = np.clip(end, 0, shape[axis])
    return LoadedCase(case.name, case.defective_skull.crop(low, high), case.implant.crop(low, high))


def refused(case: LoadedCase, rng: np.random.Generator, bone: Bone | None = None) -> LoadedCase:
    """Nothing to close: the whole skull, or another bone on the same grid; the implant is empty."""
    skull = case.complete_skull if bone is None else bone(case.implant, rng)
    return LoadedCase(case.name, skull, skull.with_mask(np.zeros_like(skull.mask)))


def _turned(degrees: float) -> np.ndarray:
    """(3, 3) about the patient's x: the chin towards the chest."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


SKULLBREAK = ("bilateral", "frontoorbital", "parietotemporal", "random_1", "random_2")
VARIANTS: dict[str, Variant] = {
    "own": lambda case, rng: case,
    **{kind: partial(recut, kind=kind) for kind in (*SKULLBREAK, "irregular")},
    "two_defects": partial(recut, kind="irregular", defects=2),
    "isotropic_1mm": partial(resampled, spacing=(1.0, 1.0, 1.0)),
    "slices_2mm": partial(resampled, spacing=(None, None, 2.0)),
    "without_face": without_face,
    "without_base": without_base,
    "tilted": partial(placed, linear=_turned(20)),
    "mirrored": partial(placed, linear=np.diag([-1.0, 1, 1])),
    "no_defect": refused,
    "jaw": partial(refused, bone=bones.jaw),
    "knee": partial(refused, bone=bones.knee),
}
REFUSALS = ("no_defect", "jaw", "knee")
SUITES = {"full": tuple(VARIANTS), "skullbreak": SKULLBREAK}


def variants_named(suite: str) -> tuple[str, ...]:
    """The variants of a suite, or those named with commas between. Raises InputError for an unknown one."""
    names = SUITES.get(suite, tuple(name.strip() for name in suite.split(",")))
    if unknown := [name for name in names if name not in VARIANTS]:
        raise InputError(
            f"unknown variant {unknown[0]!r}: expected {' or '.join(SUITES)}, or some of {', '.join(VARIANTS)}"
        )
    return names


def write_suite(
    variants: Sequence[str], cases: Sequence[Case], folder: Path, seed: int = 0, progress: bool = True
) -> list[Case]:
    """Makes each of the variants of each case, `<variant>/<case>`, once, in a folder of its own for each seed and code.

    The same seed gives the same files, whichever cases and variants are asked for. What is to be refused has no implant
    on disk. Raises InputError for a case that
    cannot be read, and a head in which a defect finds no room.
    """
    code = b"".join(Path(str(module)).read_bytes() for module in (__file__, defects.__file__, bones.__file__))
    room = Path(folder) / f"cases-{hashlib.sha256(code + str(seed).encode()).hexdigest()[:12]}"
    made = []
    with tqdm(total=len(variants) * len(cases), unit="case", disable=not progress, desc="suite") as bar:
        for case in cases:
            loaded = None
            for name in variants:
                whole = f"{name}/{case.name.replace('/', '_')}"
                skull, implant = (room / part / f"{whole}.nrrd" for part in ("defective_skull", "implant"))
                refusal = name in REFUSALS
                if not skull.exists():  # written last
                    loaded = loaded or case.load()
                    rng = np.random.default_rng([seed, *f"{name}/{case.name}".encode()])
                    varied = VARIANTS[name](loaded, rng)
                    parts = [(implant, varied.implant), (skull, varied.defective_skull)]
                    for path, volume in parts[1:] if refusal else parts:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        write_volume(volume, path)
                made.append(Case(whole, None, skull, None if refusal else implant, refusal))
                bar.update()
    return sorted(made, key=lambda case: (variants.index(case.name.split("/")[0]), case.name))
