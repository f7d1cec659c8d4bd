"""Implants that another program designed, scored against a data set: masks or meshes in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm

from pcdiff.data.cases import Case
from pcdiff.data.patterns import MESHES, SUFFIXES
from pcdiff.errors import InputError
from pcdiff.evaluation.rim_errors import rim_errors
from pcdiff.evaluation.rows import Row
from pcdiff.files import sha256
from pcdiff.geometry.mesh_reading import is_mesh
from pcdiff.geometry.metrics import scores
from pcdiff.imaging.implants import read_implant
from pcdiff.imaging.volumes import EmptyMask

ENDS = (*SUFFIXES, *MESHES)


def score_predictions(
    folder: Path, cases: Sequence[Case], method: str, space: str | None = None, progress: bool = True
) -> list[Row]:
    """A row for each case, with the scores of the implant that the folder holds for it.

    A case without a file, or with an empty mask, is a failure and has the worst scores. Seconds and memory are not
    known. A mesh stands for the voxels whose centre is inside it.

    Args:
        folder: see `find_predictions`.
        cases: the true implants and the skulls, see `find_cases`.
        method: the name of what designed the implants.
        space: of meshes, `lps` or `ras`; None takes what the file says, else LPS.
        progress: show a progress bar.

    Raises:
        InputError: no case has a file, or a file cannot be read, lies on another grid, or is an open mesh.
    """
    found = find_predictions(folder, cases)
    return [
        _row(case, found.get(case.name), method, space)
        for case in tqdm(cases, unit="case", disable=not progress, desc=method)
    ]


def find_predictions(folder: Path, cases: Sequence[Case]) -> dict[str, Path]:
    """The name of a case -> its file in the folder or in a folder of it; cases without a file are left out.

    A file belongs to a case whose name it has: `003`, `bilateral/003` or `bilateral_003`, with anything before it that
    ends in an underscore, as nnU-Net names cases, or `003/implant` as `pcdiff design` writes it. A file with the very
    name goes before others, and a mask before a mesh. Raises InputError for two files of one case, and if there is none
    for any case.
    """
    if not folder.is_dir():
        got = "a file" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: expected the folder of the implants, got {got}; correct the path")
    named = _named(folder)
    found = {}
    for case in cases:
        fits = [path for name, path in named if name == case.name] or [
            path for name, path in named if _belongs(name, case)
        ]
        fits = [path for path in fits if not is_mesh(path)] or fits
        if len(fits) > 1:
            raise InputError(
                f"{folder}: expected one file for case {case.name}, got {fits[0].relative_to(folder)} and "
                f"{fits[1].relative_to(folder)}; keep one of them"
            )
        if fits:
            found[case.name] = fits[0]
    if not found:
        got = f"{len(named)} of other names, such as {named[0][1].name}" if named else "none"
        raise InputError(
            f"{folder}: expected masks or meshes named as the cases are, such as {cases[0].name}.nrrd, got {got}; "
            "rename them, or choose cases with --cases"
        )
    return found


def other_files(folder: Path, cases: Sequence[Case]) -> list[str]:
    """The masks and meshes of a folder, by their places in it, that `find_predictions` takes for none of the cases.

    What lies beside an `implant`, as `pcdiff design` writes it, belongs to that one's case.
    """
    named = _named(folder)
    taken = {path for name, path in named if any(_belongs(name, case) for case in cases)}
    designs = {path.parent for path in taken if path.name.startswith("implant.")}
    return [
        path.relative_to(folder).as_posix() for _, path in named if path not in taken and path.parent not in designs
    ]


def _named(folder: Path) -> list[tuple[str, Path]]:
    """The masks and meshes of a folder and of the folders in it: the name that tells their case, and the file."""
    named = []
    for path in sorted(path for pattern in ("*", "*/*") for path in folder.glob(pattern)):
        end = next((end for end in ENDS if path.name.lower().endswith(end)), None)
        if end is not None and not path.name.startswith(".") and path.is_file():
            named.append((path.relative_to(folder).as_posix()[: -len(end)].removesuffix("/implant"), path))
    return named


def _belongs(name: str, case: Case) -> bool:
    return f"_{name}".replace("/", "_").endswith(f"_{case.name.replace('/', '_')}")


def _row(case: Case, path: Path | None, method: str, space: str | None) -> Row:
    truth = case.load()
    missing = Row(case.name, method, 0, ml_true=truth.implant.ml, truth=truth.digest, error="no file for this case")
    if path is None:
        return missing
    try:
        implant = read_implant(path, truth.defective_skull, space)
    except EmptyMask:
        return replace(missing, error="the mask is empty")
    found = {
        **asdict(scores(implant, truth.implant, truth.defective_skull)),
        **asdict(rim_errors(implant, truth.implant, truth.defective_skull)),
    }
    return replace(missing, **found, ml_predicted=implant.ml, error=None, implant=sha256(path))
