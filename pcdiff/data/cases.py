"""The cases of a data set: their files, and what is read from them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pcdiff.data.layouts import head_of, read_dataset
from pcdiff.errors import ChoiceError, InputError
from pcdiff.geometry.mesh_reading import is_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.implants import read_implant
from pcdiff.imaging.input_check import read_skull
from pcdiff.imaging.volumes import read_volume


@dataclass(frozen=True)
class LoadedCase:
    """A case in memory, on one grid."""

    name: str
    defective_skull: Volume
    implant: Volume

    @property
    def complete_skull(self) -> Volume:
        """Union of defective skull and implant, which is how SkullFix and SkullBreak were made."""
        return self.defective_skull.with_mask(self.defective_skull.mask | self.implant.mask)

    @property
    def digest(self) -> str:
        """Of both masks and the grid: equal for two cases that scores may be compared on, whatever files hold them."""
        grid = np.round(self.implant.affine, 4) + 0.0  # without a negative zero
        found = hashlib.sha256(np.array(self.implant.mask.shape).tobytes() + grid.tobytes())
        for volume in (self.defective_skull, self.implant):
            found.update(np.packbits(volume.mask).tobytes())
        return found.hexdigest()[:16]


@dataclass(frozen=True)
class Case:
    """The files of one case; None for a file that the data set does not hold.

    name: `NNN`, or `<class>/NNN` where a head has several defects. refusal: a negative control. `defective_skull` has
    no defect, there is no implant, and a method must refuse to design one.

    Skulls are scans as `pcdiff design` reads them, masks or CTs; the implant is a mask or a mesh. skull_mesh: the
    defective skull's surface in the axes of the implant's mesh, which it gives away. mesh_space: `lps` or `ras`, where
    a mesh does not name its axes. label: of the implant in its file. split: empty without one.
    """

    name: str
    complete_skull: Path | None
    defective_skull: Path | None
    implant: Path | None
    refusal: bool = False
    skull_mesh: Path | None = None
    mesh_space: str | None = None
    label: str | None = None
    split: str = ""

    @property
    def head(self) -> str:
        """The name of the head: `NNN`."""
        return head_of(self.name)

    @property
    def files(self) -> tuple[Path | None, ...]:
        """All that `load` depends on."""
        return self.complete_skull, self.defective_skull, self.implant, self.skull_mesh

    @property
    def is_whole(self) -> bool:
        """Whether two of complete skull, defective skull and implant are there, which give the third."""
        return sum(path is not None for path in (self.complete_skull, self.defective_skull, self.implant)) > 1

    def load(self) -> LoadedCase:
        """Reads the case; of complete skull, defective skull and implant, any two give the third.

        The implant of a negative control is empty. Of an implant that is a mesh, voxels count whose centre is inside it
        and that are no bone. Raises InputError for a file that cannot be read, two missing files, and grids that
        differ.
        """
        if self.defective_skull and self.refusal:
            skull = read_volume(self.defective_skull)
            return LoadedCase(self.name, skull, skull.with_mask(np.zeros_like(skull.mask)))
        if self.defective_skull and self.implant:
            skull = read_case_skull(self.defective_skull)
            implant = self._read_implant(self.implant, skull)
            cut = implant.mask & ~skull.mask if is_mesh(self.implant) else implant.mask
            return LoadedCase(self.name, skull, implant.with_mask(cut))
        if self.complete_skull is None or not self.is_whole:
            raise InputError(
                f"case {self.name}: expected two of complete_skull, defective_skull and implant, got one; "
                "add the missing file"
            )
        complete = read_case_skull(self.complete_skull)
        if self.implant:
            implant = self._read_implant(self.implant, complete)
            return LoadedCase(self.name, complete.with_mask(complete.mask & ~implant.mask), implant)
        assert self.defective_skull is not None
        skull = read_case_skull(self.defective_skull)
        self._check_grids(complete, skull)
        return LoadedCase(self.name, skull, complete.with_mask(complete.mask & ~skull.mask))

    def _read_implant(self, path: Path, skull: Volume) -> Volume:
        return read_implant(path, skull, self.mesh_space, self.label, self.skull_mesh)

    def _check_grids(self, first: Volume, second: Volume) -> None:
        if first.mask.shape != second.mask.shape or not np.allclose(first.affine, second.affine, rtol=0, atol=1e-3):
            raise InputError(
                f"case {self.name}: expected both skulls on one grid, got {first.mask.shape} and "
                f"{second.mask.shape} or other directions or origin; resample one onto the other"
            )


def read_case_skull(path: Path) -> Volume:
    """A skull of a data set, a mask or a CT. Errors as `read_skull`; no option chooses in a data set."""
    try:
        return read_skull(path)[0]
    except ChoiceError as error:
        raise error.without_option() from None


def find_cases(source: Path, cases: str | None = None) -> list[Case]:
    """The cases of a data set, sorted by name.

    Args:
        source: A folder in one of `layouts.LAYOUTS`, or a YAML file that describes another: docs/datasets.md.
        cases: Numbers, ranges, names and splits, separated by commas, such as "000-059,063", "A0001-A0020",
            "bilateral/003" or "training"; a number means that head in every class. A range may have gaps, but its two
            ends must exist. None takes all cases.

    Raises:
        InputError: As `read_dataset`, an unknown case, and a head in two splits.
    """
    dataset = read_dataset(Path(source))
    found = [
        Case(
            name,
            files.get("complete_skull"),
            files.get("defective_skull"),
            files.get("implant"),
            skull_mesh=files.get("skull_mesh"),
            mesh_space=dataset.mesh_space,
            label=dataset.label,
        )
        for name, files in sorted(dataset.cases.items())
    ]
    found = _with_splits(found, dataset.splits, dataset.source)
    if cases is None:
        return found
    chosen = _choose(cases, found, dataset.source)
    return [case for case in found if case.name in chosen]


def _with_splits(cases: list[Case], splits: Mapping[str, str], source: Path) -> list[Case]:
    split_of: dict[str, str] = {}  # by head: defects of one head belong together
    for split, selection in splits.items():
        chosen = _choose(selection, cases, source)
        for head in sorted({head_of(name) for name in chosen}):
            if (other := split_of.setdefault(head, split)) != split:
                raise InputError(
                    f"{source}: expected each head in one split, got {head} in {other} and {split}; take it out of one"
                )
    return [replace(case, split=split_of.get(case.head, "")) for case in cases]


def _choose(selection: str, cases: list[Case], source: Path) -> set[str]:
    """The names that a selection means."""
    return set().union(*(_select(token.strip(), cases, source) for token in selection.split(",")))


def _select(token: str, cases: list[Case], source: Path) -> set[str]:
    """The names that one item of a selection means."""
    chosen = {case.name for case in cases if token and token in (case.name, case.head, case.split)}
    if not chosen and (ends := re.fullmatch(r"(.*?)(\d+)(?:-\1(\d+))?", token)):
        first, last = int(ends[2]), int(ends[3] or ends[2])
        places = {case.name: re.fullmatch(r"(.*?)(\d+)", case.head) for case in cases}
        numbers = {name: int(place[2]) for name, place in places.items() if place and place[1] == ends[1]}
        if {first, last} <= set(numbers.values()):
            chosen = {name for name, number in numbers.items() if first <= number <= last}
    if not chosen:
        splits = " and ".join(sorted({case.split for case in cases} - {""}))
        raise InputError(
            f"cases: expected numbers, ranges or names such as 060-074 or 003, got {token!r}; "
            f"{source} holds {cases[0].name} to {cases[-1].name}{splits and f', splits {splits}'}"
        )
    return chosen
