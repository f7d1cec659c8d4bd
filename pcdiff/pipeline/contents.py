"""What the report draws of a case: from the values of a design that has just been made, or from a case folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pcdiff import NOTICE, __version__
from pcdiff.array_files import ArrayKind, read_arrays
from pcdiff.errors import InputError
from pcdiff.foreign import read_json
from pcdiff.geometry.grey import read_grey
from pcdiff.geometry.mesh import Mesh, read_stl
from pcdiff.geometry.mesh_reading import is_mesh, read_mesh
from pcdiff.geometry.surface import volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume
from pcdiff.pipeline.names import shown_name
from pcdiff.pipeline.record import GREY, case_record, case_skull
from pcdiff.pipeline.schemas import ChecksRecord
from pcdiff.pipeline.stages import STAGES
from pcdiff.report.contents import CaseContents
from pcdiff.report.shown_skull import ShownSkull

if TYPE_CHECKING:
    from pcdiff.checks import Report

ARRAYS = "an NPZ file by pcdiff"
BESIDE_MM = 50.0  # an implant lies inside its scan, or reaches out of it by this at most
FAR_MM = 1e4  # no point of a scan is so far from its origin
STAGE_TITLES = {name: stage.title for name, stage in STAGES.items()}


def designed_contents(
    title: str,
    record: Mapping[str, Any],
    skull: ShownSkull,
    implant: Volume,
    mesh: Mesh,
    reports: Sequence[Report | None],
    candidates: Sequence[Mesh | None] = (),
    uncertainty_mm: np.ndarray | None = None,
    points: Mapping[str, np.ndarray] | None = None,
) -> CaseContents:
    """The contents of a case that has just been designed; reads no file.

    Args:
        title: name of the case.
        record: what is written as run.json.
        skull: the defective skull, and the grey values of its CT.
        implant: mask of the implant, on the skull's grid.
        mesh: the implant's surface, with its vertices in the order of implant.stl.
        reports: checks of the implant, then of each candidate; None for a candidate that was not checked.
        candidates: surface of each candidate; None for one without a surface.
        uncertainty_mm: (V,) standard deviation of the candidates' surfaces; None for a single candidate.
        points: what is written as points.npz.
    """
    report, *others = reports
    assert report is not None
    fields = {"thickness_mm": report.thickness_mm, "gap_mm": report.gap_mm}
    if uncertainty_mm is not None:
        fields["uncertainty"] = uncertainty_mm.astype(np.float32)
    return CaseContents(
        title,
        record,
        skull,
        implant,
        mesh,
        report.record(__version__, NOTICE),
        fields,
        {number: surface for number, surface in enumerate(candidates, 1) if surface is not None},
        {number: each.record(__version__, NOTICE) for number, each in enumerate(others, 1) if each is not None},
        points,
        stage_titles=STAGE_TITLES,
    )


def read_contents(folder: Path, skull: Path | None = None, truth: Path | None = None) -> CaseContents:
    """Reads a case folder.

    Args:
        folder: what `pcdiff design` wrote.
        skull: the defective skull, if it has moved; by default the one in the folder.
        truth: the true implant, a mask or a mesh.

    Raises:
        InputError: the folder is not a case folder, or a file is missing or cannot be read.
    """
    record = case_record(folder)
    scan, implant = case_skull(folder, skull), read_volume(folder / "implant.nrrd")
    if implant.mask.shape != scan.mask.shape or not np.allclose(implant.affine, scan.affine, rtol=0, atol=1e-3):
        raise InputError(
            f"{folder}: expected implant.nrrd on the grid of the defective skull, got {implant.mask.shape} and "
            f"{scan.mask.shape}, or other axes; is it the skull that the implant was designed for?"
        )
    mesh = _read_stl_of(scan, folder / "implant.stl")
    numbered = _numbered(folder / "candidates", "implant_*.stl")
    checked = {k: read_checks(path) for k, path in _numbered(folder / "candidates", "checks_*.json").items()}
    return CaseContents(
        shown_name(folder),
        record,
        ShownSkull(scan, read_grey(folder / GREY)),
        implant,
        mesh,
        read_checks(folder / "checks.json"),
        _read_vertex_fields(folder / "surface.npz", len(mesh.vertices)),
        {number: _read_stl_of(scan, path) for number, path in numbered.items()},
        {number: checks for number, checks in checked.items() if checks is not None},
        _read_points(folder / "points.npz"),
        None if truth is None else _read_surface(truth),
        STAGE_TITLES,
    )


def read_checks(path: Path) -> dict[str, Any] | None:
    """The checks of an implant from checks.json; None without that file. Raises InputError for another file."""
    if not path.is_file():
        return None
    return read_json(path, ChecksRecord, "checks by `pcdiff check`", "run pcdiff check again")


def _read_stl_of(skull: Volume, path: Path) -> Mesh:
    """The mesh of an STL file. Raises InputError where it lies beside the scan, and as `read_stl`."""
    mesh = read_stl(path)
    corners = skull.to_mm(np.stack(np.meshgrid(*((-1, n) for n in skull.mask.shape)), -1).reshape(-1, 3))
    low, high = corners.min(0) - BESIDE_MM, corners.max(0) + BESIDE_MM
    if (mesh.vertices < low).any() or (mesh.vertices > high).any():
        raise InputError(f"{path}: expected a surface inside the scan, got one beside it; design the case again")
    return mesh


def _read_vertex_fields(path: Path, vertices: int) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    kind = ArrayKind("f", (vertices,))  # one value per vertex of implant.stl
    names = ("thickness_mm", "gap_mm", "uncertainty")
    return read_arrays(path, dict.fromkeys(names, kind), ARRAYS, "design the case again")


def _read_points(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of points.npz, see docs/files.md; None without that file."""
    if not path.is_file():
        return None
    cloud, remedy = ArrayKind("f", (None, 3)), "design the case again with --keep-points"
    expected = {"prior": cloud, "candidate_*": cloud, "trajectory": ArrayKind("f", (None, None, None, 3))}
    points = read_arrays(path, expected | {"captions": ArrayKind("U", (None,))}, ARRAYS, remedy)
    named = all(re.fullmatch(r"candidate_[1-9]\d{0,3}", name) for name in points if name.startswith("candidate_"))
    complete = "prior" in points and ("trajectory" in points) == ("captions" in points)
    if complete and "captions" in points:
        complete = points["trajectory"].shape[1] == len(points["captions"])
    values = [values for name, values in points.items() if name != "captions"]
    if not (named and complete and all(each.size and np.abs(each).max() < FAR_MM for each in values)):
        raise InputError(f"{path}: expected the points of a design, got others, or points without a place; {remedy}")
    return points


def _numbered(folder: Path, pattern: str) -> dict[int, Path]:
    """Files whose stem ends in `_NUMBER`, by number."""
    found = {path: re.fullmatch(r".*_([1-9]\d{0,3})", path.stem) for path in folder.glob(pattern)}
    return dict(sorted((int(match[1]), path) for path, match in found.items() if match))


def _read_surface(path: Path) -> Mesh:
    return read_mesh(path) if is_mesh(path) else volume_to_mesh(read_volume(path))
