"""What the report draws of a case: from the values of a design that has just been made, or from a case folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from pcdiff import NOTICE, __version__
from pcdiff.errors import InputError
from pcdiff.geometry.mesh import Mesh, read_stl
from pcdiff.geometry.surface import volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume
from pcdiff.pipeline.record import case_record, case_skull
from pcdiff.pipeline.stages import STAGES
from pcdiff.report.contents import CaseContents

if TYPE_CHECKING:
    from pcdiff.checks import Report

STAGE_TITLES = {name: stage.title for name, stage in STAGES.items()}


def designed_contents(
    title: str,
    record: Mapping[str, Any],
    skull: Volume,
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
        skull: the defective skull.
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
        skull: the defective skull, if it has moved; by default the one in the folder or named by run.json.
        truth: the true implant, a mask or an STL.

    Raises:
        InputError: the folder is not a case folder, or a file is missing or cannot be read.
    """
    record = case_record(folder)
    mesh = read_stl(folder / "implant.stl")
    numbered = _numbered(folder / "candidates", "implant_*.stl")
    checked = {k: read_checks(path) for k, path in _numbered(folder / "candidates", "checks_*.json").items()}
    return CaseContents(
        folder.resolve().name,
        record,
        case_skull(folder, record, skull),
        read_volume(folder / "implant.nrrd"),
        mesh,
        read_checks(folder / "checks.json"),
        _read_vertex_fields(folder / "surface.npz", len(mesh.vertices)),
        {number: read_stl(path) for number, path in numbered.items()},
        {number: checks for number, checks in checked.items() if checks is not None},
        _read_arrays(folder / "points.npz"),
        None if truth is None else _read_surface(truth),
        STAGE_TITLES,
    )


def read_checks(path: Path) -> dict[str, Any] | None:
    """The checks of an implant from checks.json; None without that file. Raises InputError for another file."""
    if not path.is_file():
        return None
    try:
        checks = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: expected checks by `pcdiff check`, got no JSON; run pcdiff check again") from error
    if not isinstance(checks, dict) or not isinstance(checks.get("checks"), list):
        raise InputError(f"{path}: expected checks by `pcdiff check`, got other JSON; run pcdiff check again")
    return checks


def _read_vertex_fields(path: Path, vertices: int) -> dict[str, np.ndarray]:
    fields = _read_arrays(path) or {}
    for name, values in fields.items():
        if values.shape != (vertices,):
            raise InputError(
                f"{path}: expected {vertices} values of {name}, one per vertex of implant.stl, got shape "
                f"{values.shape}; the two files belong to different designs: design the case again"
            )
    return fields


def _read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of an NPZ file by name; None without that file."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise InputError(f"{path}: expected an NPZ file by pcdiff, got: {error}; design the case again") from error


def _numbered(folder: Path, pattern: str) -> dict[int, Path]:
    """Files whose stem ends in `_NUMBER`, by number."""
    paths = {path.stem.rpartition("_")[2]: path for path in folder.glob(pattern)}
    return {int(number): paths[number] for number in sorted(filter(str.isdecimal, paths), key=int)}


def _read_surface(path: Path) -> Mesh:
    return read_stl(path) if path.suffix.lower() == ".stl" else volume_to_mesh(read_volume(path))
