"""Checks an implant's file, whoever made it, against the skull's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pcdiff.errors import InputError

if TYPE_CHECKING:
    from pcdiff.checks import Report
    from pcdiff.checks.criteria import Criteria
    from pcdiff.geometry.mesh import Mesh
    from pcdiff.geometry.volume import Volume


def check_files(implant: Path, skull: Path, criteria: Criteria, clearance: float = 0.0) -> tuple[Report, Mesh]:
    """Checks an implant from anywhere against a defective skull.

    implant: an STL (LPS, mm), or a mask on the skull's grid. skull: a CT or a mask, as `sample` takes them.
    The shape prior finds the defects. Of a mesh with open edges there is the print gate only: it has no inside.
    Raises InputError for files that cannot be read or do not belong together, and a skull without a defect.
    """
    from pcdiff.checks import Report, Vault, check_implant
    from pcdiff.checks.printable import printable
    from pcdiff.geometry.mesh import mesh_to_mask, read_stl
    from pcdiff.geometry.surface import volume_to_mesh
    from pcdiff.imaging.input_check import read_skull
    from pcdiff.imaging.volumes import read_volume
    from pcdiff.prior.fit import fit
    from pcdiff.prior.model import ShapePrior

    bone, _ = read_skull(skull)
    if implant.suffix.lower() == ".stl":
        mesh = read_stl(implant)
    else:
        solid = read_volume(implant)
        _on_one_grid(implant, solid, bone)
        mesh = volume_to_mesh(solid)
    vault = Vault.of(fit(ShapePrior.shipped(), bone))
    if not mesh.is_watertight:
        unknown = np.full(len(mesh.vertices), np.nan, np.float32)
        return Report((printable(mesh, vault.defects, float("nan"), criteria),), None, unknown, unknown), mesh
    if implant.suffix.lower() == ".stl":
        index = bone.to_index(mesh.vertices)
        low, high = np.floor(index.min(0)).astype(int), np.ceil(index.max(0)).astype(int) + 1
        mask = np.zeros_like(bone.mask)
        if (low < bone.mask.shape).all() and (high > 0).all():
            low, high = np.clip(low, 0, bone.mask.shape), np.clip(high, 0, bone.mask.shape)
            box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            mask[box] = mesh_to_mask(mesh, bone.crop(low, high))
        solid = bone.with_mask(mask)
        if not mask.any():
            raise InputError(f"{implant}: lies outside of {skull.name}; is it in LPS millimetres, of this patient?")
    return check_implant(bone, solid, mesh, vault, criteria, clearance), mesh


def _on_one_grid(path: Path, implant: Volume, skull: Volume) -> None:
    same = implant.mask.shape == skull.mask.shape and np.allclose(implant.affine, skull.affine, rtol=0, atol=1e-3)
    if not same:
        raise InputError(
            f"{path}: expected an implant on the skull's own grid, got {implant.mask.shape} and {skull.mask.shape} or "
            "other directions or origin; resample it, or give its STL"
        )
