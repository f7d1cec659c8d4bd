"""Which folder each of several scans goes to: one list for `design`, which runs them here, and for `cohort`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pcdiff.errors import InputError
from pcdiff.files import absolute
from pcdiff.pipeline.names import case_folder_for, case_name, check_name, distinct_names


@dataclass(frozen=True)
class PlannedCase:
    """A scan and the folder of its case. name: of the case; the folder has another where that one is taken."""

    scan: Path
    name: str
    folder: Path


def planned_cases(
    scans: Sequence[Path],
    out: Path,
    overwrite: bool,
    refuse: Callable[[Path, Exception], None],
    given: Mapping[Path, str] | None = None,
) -> Iterator[PlannedCase]:
    """The case of each scan, each scan and each folder once.

    refuse: gets a scan that cannot be planned, and why. given: names that scans have from elsewhere.
    """
    given = given or {}
    named = []
    for scan in [*{absolute(scan): scan for scan in reversed(scans)}.values()][::-1]:
        try:
            check_name(given[scan], scan) if scan in given else case_name(scan)
            named.append(scan)
        except Exception as error:  # noqa: BLE001 - a case that fails does not stop the others
            refuse(scan, error)
    names = distinct_names([scan for scan in named if scan not in given]) | dict(given)
    owner: dict[Path, Path] = {}
    for scan in named:
        try:
            folder = case_folder_for(scan, names[scan], out, overwrite)
            if owner.setdefault(folder, scan) != scan:
                raise InputError(f"{scan}: {owner[folder]} also goes to {folder}; give them different output folders")
        except Exception as error:  # noqa: BLE001
            refuse(scan, error)
            continue
        yield PlannedCase(scan, names[scan], folder)
