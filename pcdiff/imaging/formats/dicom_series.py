"""The series among DICOM slices: what belongs together, which one is wanted, and its acquisitions and copies.

What the header says is not always so. Anonymisers give slices of one series UIDs of their own, or several slices one
UID; and the last digits of numbers differ between slices that were scanned alike.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcdiff.errors import ChoiceError, InputError
from pcdiff.imaging.formats.dicom_header import Slice
from pcdiff.imaging.formats.dicom_pixels import read_hu
from pcdiff.imaging.formats.dicom_stack import SAME_MM, axes_of, heights_of, stack_of

MIN_SLICES = 16  # of a head; fewer are a localiser or a selection of slices
MAX_LISTED = 20  # series without a CT of a head
SAME_DEG = 0.2  # between directions of slices of one stack
AGAIN_SHARE = 0.25  # of places, held by two acquisitions; parts of one that overlap share fewer
SAME_EDGE_MM = 0.2  # by which the last column or row may lie elsewhere, as spacings differ


@dataclass(frozen=True)
class Series:
    """Slices that share size, spacing and directions, in ascending order. problem: why it is no CT of a head, or None.

    merged: number of UIDs that slices of this one stack have, 1 for a series as it should be.
    """

    slices: list[Slice]
    problem: str | None
    merged: int = 1

    @property
    def places(self) -> int:
        """Number of positions at which it has slices; of one with a problem, the number of slices."""
        if self.slices[0].problem is not None:
            return len(self.slices)
        return 1 + int(np.count_nonzero(np.diff(_heights(self.slices)) >= SAME_MM))

    def __str__(self) -> str:
        first = self.slices[0]
        text = f"{self.places} slice{'s' * (self.places != 1)} of {first.pixels.size[0]}x{first.pixels.size[1]}"
        if self.problem is not None:
            return f"{text} ({self.problem})"
        text += f", {first.spacing[0]:.2f} mm" + (f" by {first.thickness:g} mm" if first.thickness else "")
        return f"{text}, kernel {first.kernel}" if first.kernel else text


def find_series(slices: list[Slice]) -> list[Series]:
    """The series of slices, ordered by series number."""
    groups: dict[tuple, list[list[Slice]]] = defaultdict(list)
    for part in sorted(slices, key=lambda part: (part.directions, part.spacing, part.position, part.instance)):
        key = (part.series, part.pixels.size, part.kernel, part.problem or "")
        stack = next((stack for stack in groups[key][-8:] if _alike(stack[0], part)), None)
        if stack is None:
            groups[key].append([part])
        else:
            stack.append(part)
    return [_series(stack) for stack in _joined([stack for key in sorted(groups) for stack in groups[key]])]


def choose(source: Path, found: list[Series], wanted: str | None) -> tuple[Series, tuple[str, ...]]:
    """(the series, notes for the user): the only CT of a head, or the one whose number in the list or UID is `wanted`.

    Raises InputError for no CT, several without a choice, and an unknown series.
    """
    shown = [f"{number}: {one}" for number, one in enumerate(found, 1) if one.problem is None or number <= MAX_LISTED]
    listed = "; ".join(shown) + (f"; {len(found) - len(shown)} more" if len(found) > len(shown) else "")
    if not found:
        raise InputError(f"{source}: expected a CT, got DICOM files without a slice of one; give the CT's own folder")
    if wanted is not None:
        return _series_named(source, found, wanted, listed), ()
    usable = [one for one in found if one.problem is None]
    if len(usable) > 1:
        remedy = "leave one of them in the folder"
        raise ChoiceError(f"{source}: several CT series", "choose one with --series N", listed, remedy)
    if not usable:
        raise InputError(f"{source}: expected a CT of a head in slices, got {listed}; give the CT's own folder")
    if len(found) == 1:
        return usable[0], ()
    return usable[0], (f"series {found.index(usable[0]) + 1} of {len(found)} taken, the only CT of a head: {listed}",)


def one_acquisition(source: Path, series: Series, wanted: int | None) -> list[Slice]:
    """The slices of a series, or of one acquisition where several lie at the same place.

    Raises InputError for several without a choice, and an unknown one.
    """
    kinds: list[dict[int, list[Slice]]] = [defaultdict(list), defaultdict(list)]
    for part in series.slices:
        for groups, number in zip(kinds, part.acquisitions, strict=True):
            groups[number].append(part)
    kinds.append(_by_time(series.slices))
    several = next((groups for groups in kinds if _overlap(list(groups.values()))), None)
    if several is None and wanted is None:
        return series.slices
    named = several or kinds[0]
    if wanted in named:
        return named[wanted]
    listed = "; ".join(f"{number}: {len(group)} slices" for number, group in sorted(named.items()))
    if wanted is None:
        what, remedy = f"{source}: several acquisitions in one series", "leave one of them in the folder"
        raise ChoiceError(what, "choose one with --acquisition N", listed, remedy)
    raise InputError(f"{source}: --acquisition {wanted} is none of the series: {listed}; choose one")


def without_copies(source: Path, slices: list[Slice]) -> tuple[list[Slice], tuple[str, ...]]:
    """(slices in ascending order without copies of one, notes for the user).

    A copy has the position and the pixels of another slice, whatever its UID. Where pixels differ two slices stay,
    which are no stack. Pixels are read only of slices at one position.
    """
    heights = _heights(slices)
    breaks = np.flatnonzero(np.diff(heights) >= SAME_MM) + 1
    kept: list[Slice] = []
    for group in np.split(np.arange(len(slices)), breaks):
        first, *others = (slices[k] for k in group)
        kept.append(first)
        if others:
            values = read_hu([part.pixels for part in (first, *others)])
            hu = next(values)
            differ = [
                np.abs(np.subtract(part.position, first.position)).max() >= SAME_MM or not np.array_equal(hu, value)
                for part, value in zip(others, values, strict=True)
            ]
            kept += [part for part, other in zip(others, differ, strict=True) if other][:1]
    shared = Counter(part.instance for part in kept)
    count = sum(number for number in shared.values() if number > 1)
    if not count:
        return kept, ()
    return kept, (
        f"{count} slices share their SOPInstanceUID with another, as some anonymisers leave them: all are used, since "
        "they lie at different positions",
    )


def _series(parts: list[Slice]) -> Series:
    problem, merged = parts[0].problem, len({part.series for part in parts})
    if problem is not None:
        return Series(parts, problem, merged)
    one = Series([parts[k] for k in np.argsort(_heights(parts), kind="stable")], None, merged)
    return one if one.places >= MIN_SLICES else Series(one.slices, "too few for a head", merged)


def _joined(stacks: list[list[Slice]]) -> list[list[Slice]]:
    """The stacks, with small ones put together that have a UID each and are one stack: so anonymisers leave them."""
    parts: dict[tuple, list[list[Slice]]] = defaultdict(list)
    for stack in stacks:
        first = stack[0]
        if first.problem is None and len(stack) < MIN_SLICES:
            parts[first.number, first.pixels.size, first.kernel].append(stack)
    for small in parts.values():
        whole = [part for stack in small if _alike(small[0][0], stack[0]) for part in stack]
        one = _series(whole)
        if one.merged > 1 and one.problem is None and _is_stack(one):
            taken = {id(stack) for stack in small}
            stacks = [stack for stack in stacks if id(stack) not in taken]
            stacks += [whole, *(stack for stack in small if not _alike(small[0][0], stack[0]))]
    return sorted(stacks, key=lambda stack: (stack[0].number, stack[0].series))


def _is_stack(series: Series) -> bool:
    """Whether the slices lie in steps of which a grid can be made."""
    heights = _heights(series.slices)
    apart = [0, *(np.flatnonzero(np.diff(heights) >= SAME_MM) + 1)]
    try:
        stack_of(Path(), [series.slices[k] for k in apart])
    except InputError:
        return False
    return True


def _alike(one: Slice, other: Slice) -> bool:
    """Whether two slices of one size have the same directions and spacing, but for last digits."""
    if one.problem is not None:
        return True
    turn = np.abs(np.subtract(one.directions, other.directions)).max()
    shift = np.abs(np.subtract(one.spacing, other.spacing)) * one.pixels.size
    return bool(turn <= np.radians(SAME_DEG) and shift.max() <= SAME_EDGE_MM)


def _overlap(groups: list[list[Slice]]) -> bool:
    """Whether two groups of slices, each enough for a head, lie at the same place."""
    heads = [group for group in groups if len(group) >= MIN_SLICES]
    if len(heads) < 2:
        return False
    normal = axes_of(heads[0])[2]
    spans = sorted((heights.min(), heights.max()) for heights in (heights_of(group, normal) for group in heads))
    step = max((high - low) / (MIN_SLICES - 1) for low, high in spans)
    ends = np.maximum.accumulate([high for _, high in spans])
    return any(low < end - step for (low, _), end in zip(spans[1:], ends[:-1], strict=True))


def _by_time(slices: list[Slice]) -> dict[int, list[Slice]]:
    """The slices in groups 1, 2, ... by the time at which they were acquired.

    Times alone say nothing: a scanner may give each slice its own, one to each step of the table, or take every other
    slice first. They count where many places hold two slices with different pixels; else all are one group.
    """
    times = np.array([np.nan if part.time is None else part.time for part in slices])
    again = np.diff(_heights(slices)) < SAME_MM
    places = np.cumsum(np.append(True, ~again))
    if np.isnan(times).any() or np.ptp(times) == 0 or again.sum() < AGAIN_SHARE * places[-1]:
        return {1: slices}
    if all(_same_pixels(slices[k], slices[k + 1]) for k in np.flatnonzero(again & (np.diff(times) != 0))):
        return {1: slices}
    groups: dict[int, list[Slice]] = defaultdict(list)
    for number, part in zip(_rounds(times, places), slices, strict=True):
        groups[int(number)].append(part)
    return groups


def _same_pixels(one: Slice, other: Slice) -> bool:
    first, second = read_hu([one.pixels, other.pixels])
    return np.array_equal(first, second)


def _rounds(times: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(N,) numbers from 1 of the rounds in which slices were taken, each place once; places: (N,) int, ascending.

    A round begins after the longest pause before a place comes again.
    """
    order = np.lexsort((places, times))
    pauses = np.diff(times[order], prepend=times[order[0]])
    begins = [0]
    last: dict[int, int] = {}
    for k, place in enumerate(places[order]):
        earlier = last.get(place, -1)
        pause = pauses[earlier + 1 : k + 1]
        if earlier >= begins[-1] and pause.max() > 0:
            begins.append(k - int(pause[::-1].argmax()))  # the last of pauses that are equal
        last[place] = k
    numbers = np.empty(len(order), int)
    numbers[order] = np.searchsorted(begins, np.arange(len(order)), side="right")
    return numbers


def _series_named(source: Path, found: list[Series], wanted: str, listed: str) -> Series:
    """The series of a number in the list, or of a UID."""
    if wanted.isdecimal():
        named = found[int(wanted) - 1 : int(wanted)] if int(wanted) else []
    else:
        named = [one for one in found if any(part.series == wanted for part in one.slices)]
        named = [one for one in named if one.problem is None] or named
    if len(named) != 1:
        raise InputError(f"{source}: --series {wanted} names {len(named)} of its series: {listed}; choose one")
    if named[0].problem is not None:
        raise InputError(f"{source}: series {wanted} cannot be used: {named[0]}; choose another of {listed}")
    return named[0]


def _heights(slices: list[Slice]) -> np.ndarray:
    """(N,) mm of each slice along their normal."""
    return heights_of(slices, axes_of(slices)[2])
