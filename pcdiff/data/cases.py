"""The cases of a dataset folder in the layout of SkullFix or SkullBreak."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcdiff.errors import ChoiceError, InputError
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.formats import FORMATS
from pcdiff.imaging.input_check import read_skull
from pcdiff.imaging.volumes import read_volume

SUFFIXES = [suffix for suffix in FORMATS if not suffix.startswith(".img")]  # an .img is named by its header


@dataclass(frozen=True)
class LoadedCase:
    """A case in memory, on one grid."""

    name: str
    defective_skull: Volume
    implant: Volume

    @property
    def complete_skull(self) -> Volume:
        """Union of defective skull and implant, which is how both data sets were made."""
        return self.defective_skull.with_mask(self.defective_skull.mask | self.implant.mask)


@dataclass(frozen=True)
class Case:
    """The files of one case; None for a file that the folder does not hold.

    name: `NNN`, or `<class>/NNN` in SkullBreak. refusal: a negative control. `defective_skull` has no defect, there is
    no implant, and a method must refuse to design one.
    """

    name: str
    complete_skull: Path | None
    defective_skull: Path | None
    implant: Path | None
    refusal: bool = False

    @property
    def head(self) -> str:
        """The name of the head: `NNN`."""
        return _head(self.name)

    def load(self) -> LoadedCase:
        """Reads the case; of complete skull, defective skull and implant, any two give the third.

        The implant of a negative control is empty. Raises InputError for a file that cannot be read, two missing
        files, and grids that differ.
        """
        if self.defective_skull and self.refusal:
            skull = read_volume(self.defective_skull)
            return LoadedCase(self.name, skull, skull.with_mask(np.zeros_like(skull.mask)))
        if self.defective_skull and self.implant:
            defective_skull, implant = read_volume(self.defective_skull), read_volume(self.implant)
            self._check_grids(defective_skull, implant)
            return LoadedCase(self.name, defective_skull, implant)
        part = self.implant or self.defective_skull
        if self.complete_skull is None or part is None:
            raise InputError(
                f"case {self.name}: expected two of complete_skull, defective_skull and implant, got one; "
                "add the missing file"
            )
        complete_skull, given = read_complete_skull(self.complete_skull), read_volume(part)
        self._check_grids(complete_skull, given)
        rest = complete_skull.with_mask(complete_skull.mask & ~given.mask)
        return LoadedCase(self.name, rest, given) if self.implant else LoadedCase(self.name, given, rest)

    def _check_grids(self, first: Volume, second: Volume) -> None:
        if first.mask.shape != second.mask.shape or not np.allclose(first.affine, second.affine, rtol=0, atol=1e-3):
            raise InputError(
                f"case {self.name}: expected skull and implant on one grid, got {first.mask.shape} and "
                f"{second.mask.shape} or other directions or origin; resample one onto the other"
            )


def read_complete_skull(path: Path) -> Volume:
    """The skull of a head in a data set, a mask or a CT. Errors as `read_skull`; no option chooses in a data set."""
    try:
        return read_skull(path)[0]
    except ChoiceError as error:
        raise error.without_option() from None


def find_cases(folder: Path, cases: str | None = None) -> list[Case]:
    """The cases of a data set, sorted by name.

    Args:
        folder: SkullFix layout, `complete_skull/NNN.nrrd`, `defective_skull/NNN.nrrd`, `implant/NNN.nrrd`, or
            SkullBreak layout, where the last two have a folder per class: `implant/<class>/NNN.nrrd`. One of the three
            folders may be missing. Other image formats are as good as NRRD; a complete skull may also be a CT, as a
            folder `complete_skull/NNN/` of DICOM slices too.
        cases: Numbers, ranges and names, separated by commas, such as "000-059,063" or "bilateral/003"; a number means
            that head in every class. A range may have gaps, but its two ends must exist. None takes all cases.

    Raises:
        InputError: A folder in neither layout, or an unknown case.
    """
    folder = Path(folder)
    complete_skulls, defective_skulls, implants = (
        _images(folder / part) for part in ("complete_skull", "defective_skull", "implant")
    )
    complete_skulls |= _dicom(folder / "complete_skull", complete_skulls)
    names = defective_skulls.keys() | implants.keys()
    names |= complete_skulls.keys() - {_head(name) for name in names}
    if not names:
        if not folder.is_dir():
            found = "no such folder"
        else:
            found = "none of them" if any(folder.iterdir()) else "an empty folder"
        raise InputError(
            f"{folder}: expected complete_skull/, defective_skull/ or implant/ with NNN.nrrd or <class>/NNN.nrrd, "
            f"got {found}; give the folder of the data set itself"
        )
    all_cases = [
        Case(name, complete_skulls.get(_head(name)), defective_skulls.get(name), implants.get(name))
        for name in sorted(names)
    ]
    if cases is None:
        return all_cases
    chosen = set().union(*(_select(token.strip(), all_cases, folder) for token in cases.split(",")))
    return [case for case in all_cases if case.name in chosen]


def _images(folder: Path) -> dict[str, Path]:
    """The images in a folder and in folders in it, by name. Raises InputError for two of one name."""
    found: dict[str, Path] = {}
    for path in sorted(path for pattern in ("*", "*/*") for path in folder.glob(pattern)):
        suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
        if suffix is None or path.name.startswith(".") or not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()[: -len(suffix)]
        if name in found:
            raise InputError(f"{path}: {found[name].name} has the same name; keep one of the two")
        found[name] = path
    return found


def _dicom(folder: Path, images: dict[str, Path]) -> dict[str, Path]:
    """The zip archives of DICOM files, and the folders without images, which are those of DICOM slices, by name."""
    parts = [path for path in sorted(folder.glob("*")) if not path.name.startswith(".")]
    found = {path.name[: -len(".zip")]: path for path in parts if path.name.lower().endswith(".zip")}
    with_images = {path.parent for path in images.values()}
    return found | {path.name: path for path in parts if path.is_dir() and path not in with_images}


def _head(name: str) -> str:
    """`NNN` of `NNN` or `<class>/NNN`."""
    return name.rsplit("/", 1)[-1]


def _select(token: str, cases: list[Case], folder: Path) -> set[str]:
    """The names that one item of a selection means."""
    chosen = {case.name for case in cases if token in (case.name, _head(case.name))}
    if not chosen and (ends := re.fullmatch(r"(\d+)(?:-(\d+))?", token)):
        first, last = int(ends[1]), int(ends[2] or ends[1])
        numbers = {case.name: int(_head(case.name)) for case in cases if _head(case.name).isdecimal()}
        if {first, last} <= set(numbers.values()):
            chosen = {name for name, number in numbers.items() if first <= number <= last}
    if not chosen:
        raise InputError(
            f"cases: expected numbers, ranges or names such as 060-074 or 003, got {token!r}; "
            f"{folder} holds {cases[0].name} to {cases[-1].name}"
        )
    return chosen
