"""Checks any implant, as values or as files, against the defective skull that it is meant for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pcdiff.errors import InputError

if TYPE_CHECKING:
    from pcdiff.checks.criteria import Criteria
    from pcdiff.checks.report import Report
    from pcdiff.geometry.mesh import Mesh
    from pcdiff.geometry.volume import Volume


def check(
    skull: Volume,
    implant: Volume,
    mesh: Mesh | None = None,
    *,
    criteria: Criteria | None = None,
    clearance: float = 0.0,
    name: str = "implant",
) -> Report:
    """Measures whether an implant fits a defective skull and can be printed.

    The statistical shape model, fitted to the skull here, gives the defects and the surface that the skull should have.

    Args:
        skull: Mask of the defective skull.
        implant: Mask of the implant on the skull's grid. It may be empty beside a mesh with open edges.
        mesh: Its surface, mm, LPS; by default that of the mask. A mesh with open edges has no inside, so only its
            printability is checked.
        criteria: Limits of the checks; by default those of docs/checks.md.
        clearance: The gap between implant and bone that was designed, mm.
        name: What errors call the implant, such as its path.

    Returns:
        The checks; the report's per-vertex values follow the order of the mesh's vertices.

    Raises:
        InputError: Another grid, an empty implant, no head, or a skull without a defect.
    """
    from pcdiff.checks import CompletedVault, Report, check_implant
    from pcdiff.checks.criteria import Criteria
    from pcdiff.checks.printable import printable
    from pcdiff.geometry.surface import volume_to_mesh
    from pcdiff.prior.fit import fit
    from pcdiff.prior.model import ShapePrior

    criteria = criteria or Criteria()
    _check_grid(name, implant, skull)
    if mesh is None:
        mesh = volume_to_mesh(implant)
    vault = CompletedVault.of(fit(ShapePrior.shipped(), skull, axes="assumed"))  # what was designed is checked
    if not mesh.is_watertight:
        unknown = np.full(len(mesh.vertices), np.nan, np.float32)
        return Report((printable(mesh, vault.defects, float("nan"), criteria),), None, unknown, unknown)
    if not implant.mask.any():
        raise InputError(
            f"{name}: expected an implant inside the scan, but it lies outside; is it in LPS millimetres, of this "
            "patient?"
        )
    return check_implant(skull, implant, mesh, vault, criteria, clearance)


def check_files(
    implant: Path, skull: Path, criteria: Criteria, clearance: float = 0.0, label: str | None = None
) -> Report:
    """Checks an implant's file against a skull's, see `check`.

    implant: an STL (LPS, mm), or a mask on the skull's grid. skull: a CT or a mask, as `read_skull` takes them.
    label: of the skull, if its file holds several.
    Raises InputError for files that cannot be read or do not belong together, and as `check`.
    """
    from pcdiff.geometry.mesh import read_stl
    from pcdiff.imaging.input_check import read_skull
    from pcdiff.imaging.volumes import read_volume

    bone, _ = read_skull(skull, label=label)
    if implant.suffix.lower() == ".stl":
        mesh = read_stl(implant)
        solid = _inside(mesh, bone)
    else:
        mesh, solid = None, read_volume(implant)
    return check(bone, solid, mesh, criteria=criteria, clearance=clearance, name=str(implant))


def _inside(mesh: Mesh, skull: Volume) -> Volume:
    """The inside of a mesh on the skull's grid; empty for a mesh that is open or lies outside of the grid."""
    from pcdiff.geometry.grid import box_slices
    from pcdiff.geometry.mesh import mesh_to_mask

    index = skull.to_index(mesh.vertices)
    low, high = np.floor(index.min(0)).astype(int), np.ceil(index.max(0)).astype(int) + 1
    mask = np.zeros_like(skull.mask)
    if mesh.is_watertight and (low < skull.mask.shape).all() and (high > 0).all():
        low, high = np.clip(low, 0, skull.mask.shape), np.clip(high, 0, skull.mask.shape)
        mask[box_slices(low, high)] = mesh_to_mask(mesh, skull.crop(low, high))
    return skull.with_mask(mask)


def _check_grid(name: str, implant: Volume, skull: Volume) -> None:
    same = implant.mask.shape == skull.mask.shape and np.allclose(implant.affine, skull.affine, rtol=0, atol=1e-3)
    if not same:
        raise InputError(
            f"{name}: expected a mask on the skull's own grid, got shape {implant.mask.shape} beside "
            f"{skull.mask.shape}, or other directions or origin; resample it to that grid, or give its STL"
        )
