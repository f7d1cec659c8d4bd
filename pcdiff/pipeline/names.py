"""The names of cases, from those of their scans, and the folders of their results: checked in this one place."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pcdiff.errors import InputError
from pcdiff.files import absolute
from pcdiff.imaging.formats import FORMATS, format_of, suffix_of
from pcdiff.imaging.scan import input_digest, is_dicom_scan, scan_source
from pcdiff.pipeline.record import read_record, recorded_digest

DICOM_SUFFIXES = (".zip", ".dcm", ".ima")  # of files that hold a whole CT
MAX_PARENTS = 8  # folders above a scan that may become part of its case's name


def case_name(scan: Path, parents: int = 0) -> str:
    """A scan file's name without its image suffix, or a DICOM folder's name, after the names of folders above it.

    parents: their number; `patient1_skull` for 1 and `patient1/skull.nrrd`. Raises InputError for another file, and for
    a name that would lead out of the output folder.
    """
    scan = scan_source(scan)
    whole = absolute(scan)
    above = whole.parent.parts[1:]  # without the root
    name = "_".join([*above[len(above) - min(parents, len(above)) :], _own_name(scan)])
    return check_name(name, scan)


def check_name(name: str, scan: Path) -> str:
    """The name of a scan's case. Raises InputError for one that would lead out of the output folder."""
    if not names_a_folder(name):
        raise InputError(
            f"{scan}: expected a scan whose name, without its suffix, can name a folder, got {name!r}; rename it, or "
            "give the folder by its name"
        )
    return name


def names_a_folder(name: str) -> bool:
    """Whether a folder in the output folder can have this name."""
    return bool(name.strip(".")) and not any(character in "/\\" or ord(character) < 32 for character in name)


def shown_name(scan: Path) -> str:
    """The name of a scan's file or folder as text, without its folder; bytes that are not UTF-8 are replaced."""
    return as_text(absolute(scan).name)


def as_text(name: str) -> str:
    """A file's name as text that can be written; bytes that are not UTF-8 are replaced."""
    return os.fsencode(name).decode("utf-8", "replace")


def without_folders(text: str, scan: Path) -> str:
    """A text for others, such as a warning, without the folders that lead to a scan and to the slices in it."""
    whole = absolute(scan)
    for folder in (whole, whole.parent, scan, scan.parent):
        text = text.replace(f"{folder}{os.sep}", "")
    return as_text(text)


def distinct_names(scans: Sequence[Path]) -> dict[Path, str]:
    """The name of each scan's case. Those that would be the same take as many folders above as tell them apart.

    Two files of one folder, such as head.nrrd and head.nii.gz, keep the same name. Raises InputError as `case_name`.
    """
    names = {scan: case_name(scan) for scan in scans}
    clashing = [name for name, count in Counter(names.values()).items() if count > 1]
    for name in clashing:
        group = [scan for scan in scans if names[scan] == name]
        for parents in range(1, MAX_PARENTS + 1):
            longer = {scan: case_name(scan, parents) for scan in group}
            if len(set(longer.values())) == len(group):
                names |= longer
                break
    return names


def case_folder_for(scan: Path, name: str, out: Path, overwrite: bool = False) -> Path:
    """The folder in `out` for the result of a scan; not that of another input's result, unless `overwrite` says so.

    name: see `distinct_names`. An earlier result of the same input keeps its folder. Where the scan's own name holds
    the result of another input, the name of the folder above the scan comes before it.

    Raises InputError where that name holds the result of another input, too.
    """
    own, longer = case_name(scan), case_name(scan, 1)
    choices = list(dict.fromkeys(out / each for each in ((own, longer) if name == own else (name,))))
    records = {folder: read_record(folder) for folder in dict.fromkeys([out / own, *choices])}
    earlier = {folder: recorded_digest(record) for folder, record in records.items() if record is not None}
    digest = input_digest(scan) if earlier else None
    for folder, its in earlier.items():
        if its == digest:
            return folder
    taken = [folder for folder in choices if folder in earlier]
    if overwrite:
        return taken[-1] if taken else choices[0]
    if len(taken) == len(choices):
        raise InputError(
            f"{scan}: {' and '.join(map(str, taken))} {'holds the result' if len(taken) == 1 else 'hold results'} of "
            "another input; choose another output folder, or pass --overwrite to replace it"
        )
    return next(folder for folder in choices if folder not in earlier)


def _own_name(scan: Path) -> str:
    if scan.is_dir():
        return absolute(scan).name
    named = [suffix for suffix in (*FORMATS, *DICOM_SUFFIXES) if scan.name.lower().endswith(suffix)]
    if not named and scan.is_file():
        if is_dicom_scan(scan):
            return scan.name
        format_of(scan)
    elif not named and scan.suffix:
        suffix_of(scan)
    return scan.name[: -len(named[-1])] if named else scan.stem
