"""Where a data set's files lie, as patterns with the name of the head in them: `{kind}/{head}/skull`."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Container
from fnmatch import fnmatchcase
from glob import glob
from pathlib import Path

from pcdiff.errors import InputError
from pcdiff.geometry.mesh_files import MESH_KINDS
from pcdiff.geometry.mesh_reading import is_mesh
from pcdiff.imaging.formats import FORMATS

SUFFIXES = [suffix for suffix in FORMATS if not suffix.startswith(".img")]  # an .img is named by its header
SCANS = (*SUFFIXES, ".zip")  # of DICOM files; a folder of them has no suffix
MESHES = tuple(f".{kind}" for kind in MESH_KINDS)
ENDS = (*SCANS, *MESHES)
NAMES = {"head": "[^/]+?", "kind": "[^/]+"}  # a longer kind goes first: `random_1_003` is the kind random_1


def find_files(
    folder: Path, pattern: str, heads: str = "*", *, meshes: bool = False, known: Container[str] = ()
) -> dict[str, Path]:
    """The files that fit a pattern, by the name of their case: `<head>`, or `<kind>/<head>`.

    A pattern is a path in the folder. `{head}` is the name of the head and `{kind}`, which may be left out, its class
    or visit; each may stand twice, and is the same then. `*` stands for any text within a name and `?` for one
    character. The suffix may be left out: an image of any format fits, and of a skull a zip archive of DICOM files or a
    folder without images, which is one of DICOM slices. Names that begin with a dot are left out.

    Args:
        folder: The data set.
        pattern: See above.
        heads: Only heads whose name fits it, such as `A*`.
        meshes: Whether these are meshes or masks, and no scans. A mask goes before a mesh of the same name.
        known: Cases that have their file already, and are left out.

    Raises:
        InputError: A pattern without `{head}`, a path that leads out of the folder, and two files of one case.
    """
    unknown = set(re.findall(r"{(.*?)}", pattern)) - NAMES.keys()
    if "{head}" not in pattern or unknown or {"", "..", "**"} & set(pattern.split("/")):
        raise InputError(
            f"{pattern}: expected a path below the folder with {{head}} and perhaps {{kind}}, such as "
            "scans/{head}/skull.nii.gz; put {head} where the name of the head stands"
        )
    form, suffixes = _expression(pattern), (*SUFFIXES, *MESHES) if meshes else SCANS
    wide = pattern.replace("[", "[[]").replace("{head}", heads, 1).replace("{head}", "*").replace("{kind}", "*")
    found: dict[str, Path] = {}
    for path in _listed(folder, re.sub(r"\*+", "*", f"{wide}*")):  # two would mean folders in folders
        place = path.relative_to(folder).as_posix()
        suffix = next((suffix for suffix in suffixes if place.lower().endswith(suffix)), "")
        fits = form.fullmatch(place[: len(place) - len(suffix)]) or form.fullmatch(place)
        if not fits or not fnmatchcase(fits["head"], heads) or any(part.startswith(".") for part in place.split("/")):
            continue
        try:
            if not (path.is_file() if suffix else not meshes and _is_dicom_folder(path)):
                continue
        except (FileNotFoundError, ProcessLookupError):  # it has just gone
            continue
        name = "/".join(filter(None, (fits.groupdict().get("kind"), fits["head"])))
        if name in known:
            continue
        if name in found and not is_mesh(path) and not is_mesh(found[name]):
            raise InputError(
                f"{path}: {found[name].name} is of case {name}, too; keep one of the two, or name it first in a list "
                "of patterns in a YAML file"
            )
        if name not in found or is_mesh(found[name]):
            found[name] = path
    return found


def other_files(folder: Path, taken: Collection[Path]) -> list[Path]:
    """Images, meshes and archives below a folder that are not taken, nor lie in a folder that is.

    A mesh beside a mask of its name, which goes before it, counts as taken. Names that begin with a dot are left out.
    """
    stems = {_stem(path) for path in taken}
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and Path(place, name) not in stems)
        paths = [Path(place, name) for name in sorted(files) if not name.startswith(".")]
        found += [path for path in paths if path.name.lower().endswith(ENDS) and _stem(path) not in stems]
    return found


def _stem(path: Path) -> Path:
    """The path without the suffix of an image, a mesh or an archive."""
    end = next((end for end in ENDS if path.name.lower().endswith(end)), "")
    return path.parent / path.name[: len(path.name) - len(end)]


def _listed(folder: Path, pattern: str) -> list[Path]:
    """Paths below a folder that fit a pattern; what goes while they are listed is left out."""
    return sorted(folder / name for name in glob(pattern, root_dir=folder))  # noqa: PTH207  Path.glob fails then


def _expression(pattern: str) -> re.Pattern[str]:
    """The regular expression of a pattern; a name's second place must hold what the first holds."""
    form, seen = "", set()
    for part in re.split(r"({head}|{kind}|\*|\?)", pattern):
        name = part.strip("{}")
        if part in ("*", "?"):
            form += "[^/]" + part.replace("?", "")
        elif name not in NAMES or name == part:
            form += re.escape(part)
        else:
            form += f"(?P={name})" if name in seen else f"(?P<{name}>{NAMES[name]})"
            seen.add(name)
    return re.compile(form)


def _is_dicom_folder(path: Path) -> bool:
    """A folder without images: a class of SkullBreak holds some."""
    return path.is_dir() and not any(file.name.lower().endswith(tuple(SUFFIXES)) for file in path.iterdir())
