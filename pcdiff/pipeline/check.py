"""Checks any implant, as values or as files, against the defective skull that it is meant for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from pcdiff.errors import InputError
from pcdiff.geometry.mesh import in_space

if TYPE_CHECKING:
    from pcdiff.checks.criteria import Criteria
    from pcdiff.checks.report import Report
    from pcdiff.geometry.mesh import Mesh
    from pcdiff.geometry.volume import Volume
    from pcdiff.prior.defects import DefectChoice
    from pcdiff.prior.fit import PriorFit

NEAR_MM = 8.0  # from a place of the completed surface to the implant's mesh
MIN_FITTING = 0.8  # of a defect's surface near its implant
MAX_ELSEWHERE = 0.6  # of that share near an implant in another place: about the vertex both overlap


def check(
    skull: Volume,
    implant: Volume,
    mesh: Mesh | None = None,
    *,
    criteria: Criteria | None = None,
    clearance: float = 0.0,
    defects: DefectChoice = "clear",
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
        defects: Those that the implant is meant to close, chosen as for `design`.
        name: What errors call the implant, such as its path.

    Returns:
        The checks; the report's per-vertex values follow the order of the mesh's vertices.

    Raises:
        InputError: Another lattice, an empty implant, no head, a skull without a defect, or a mesh that lies elsewhere
            and would fit with x and y negated.
    """
    from pcdiff.checks import CompletedVault, Report, check_implant
    from pcdiff.checks.criteria import Criteria
    from pcdiff.checks.printable import printable
    from pcdiff.geometry.surface import volume_to_mesh
    from pcdiff.imaging.implants import on_skull_grid
    from pcdiff.prior.fit import fit
    from pcdiff.prior.model import ShapePrior

    criteria = criteria or Criteria()
    implant = on_skull_grid(name, implant, skull)
    fitted = fit(ShapePrior.shipped(), skull, axes="assumed", defects=defects)  # what was designed is checked
    if mesh is None:
        mesh = volume_to_mesh(implant, skull)
    else:
        _check_axes(name, mesh, fitted)
    vault = CompletedVault.of(fitted)
    if not mesh.is_watertight:
        unknown = np.full(len(mesh.vertices), np.nan, np.float32)
        return Report((printable(mesh, vault.defects, float("nan"), criteria),), (), unknown, unknown)
    if not implant.mask.any():
        raise InputError(
            f"{name}: expected an implant inside the scan, but it lies outside; is it in LPS millimetres, of this "
            "patient?"
        )
    return check_implant(skull, implant, mesh, vault, criteria, clearance)


def check_file(
    implant: Path,
    skull: Volume,
    criteria: Criteria,
    clearance: float = 0.0,
    defects: DefectChoice = "clear",
    space: str | None = None,
) -> Report:
    """Checks an implant's file against a defective skull, see `check`.

    implant: a mesh, see `read_mesh`, or a mask on the skull's lattice. space: of the mesh, `lps` or `ras`; None takes
    what the file says, else LPS.

    Raises InputError for a file that cannot be read or does not belong to the skull, and as `check`.
    """
    from pcdiff.geometry.mesh_reading import is_mesh, read_mesh
    from pcdiff.imaging.implants import inside_mesh, read_other_mask

    if is_mesh(implant):
        mesh = read_mesh(implant, space)
        solid = inside_mesh(mesh, skull)
    else:
        mesh, solid = None, read_other_mask(implant, "an implant")
    return check(skull, solid, mesh, criteria=criteria, clearance=clearance, defects=defects, name=str(implant))


def _check_axes(name: str, mesh: Mesh, fitted: PriorFit) -> None:
    """Raises InputError for a mesh beside the defects that would lie in them with x and y negated: it is in RAS."""
    missing = fitted.completed_surface()
    missing = missing[np.asarray(missing.defect) > 0]

    def share_near(vertices: np.ndarray) -> float:
        return float((cKDTree(vertices).query(missing.points, distance_upper_bound=NEAR_MM)[0] < NEAR_MM).mean())

    fits = share_near(in_space(mesh.vertices, "ras"))
    if fits > MIN_FITTING and share_near(mesh.vertices) < MAX_ELSEWHERE * fits:
        raise InputError(
            f"{name}: expected an implant in a defect, got one elsewhere; with x and y negated it fits, so its "
            "coordinates are RAS: pass --mesh-space ras, or export it in LPS"
        )
