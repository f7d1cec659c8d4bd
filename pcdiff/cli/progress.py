"""Progress bars: over the stages of a single case, over the cases of many."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

from tqdm import tqdm

from pcdiff.cli.console import one_line
from pcdiff.pipeline.stages import STAGES

if TYPE_CHECKING:
    from pcdiff.cohort.rows import Row


BAR = "{desc}{percentage:3.0f}% |{bar:30}| {n_fmt} of {total_fmt}, {elapsed}, about {remaining} left"


class Progress:
    """A bar on stderr for the cases that one command designs.

    A single case shows its stages and the time that is left, on a terminal only; several cases show their number.
    """

    def __init__(self, cases: int, quiet: bool) -> None:
        self._single = cases == 1
        if self._single:
            self._bar = tqdm(
                total=sum(stage.share for stage in STAGES.values()),
                disable=True if quiet else None,  # None: disabled unless stderr is a terminal
                bar_format="{desc}: {bar:30} {elapsed}, about {remaining} left",
                leave=False,
            )
        else:
            self._bar = tqdm(total=cases, unit="case", disable=quiet)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def start_case(self, name: str) -> None:
        """Shows the name of the case that begins."""
        if not self._single:
            self._bar.set_description(name)

    def start_stage(self, stage: str) -> None:
        """Shows the stage that begins, one of `STAGES`."""
        if self._single:
            earlier = list(STAGES.values())[: list(STAGES).index(stage)]
            self._bar.update(sum(each.share for each in earlier) - self._bar.n)
            self._bar.set_description(STAGES[stage].title)

    def finish_case(self) -> None:
        """Counts a case, designed or failed."""
        if self._single:
            self._bar.close()
        else:
            self._bar.update()


class CohortProgress:
    """A bar on stderr over the cases to design, and a line for each case that fails."""

    def __init__(self, quiet: bool) -> None:
        """quiet: no bar and no notes."""
        self._quiet = quiet
        self._bar = tqdm(total=0, disable=True)
        self.stood = 0

    def __enter__(self) -> CohortProgress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def start(self, count: int) -> None:
        """Shows a bar for so many cases."""
        if count:
            self._bar = tqdm(total=count, disable=self._quiet, bar_format=BAR)

    def add(self, row: Row, stood: bool) -> None:
        """Counts a case, and says why it failed."""
        if row.failed:
            before = " (failed before; --retry tries again)" if stood else ""
            print_above_bars(f"{row.case}: {row.reason}{before}")
        if stood:
            self.stood += not row.failed
        else:
            self._bar.update()

    def note(self, text: str) -> None:
        """Prints what the user may know."""
        if not self._quiet:
            print_above_bars(text)


def print_above_bars(text: str, stderr: bool = True) -> None:
    """Prints a line on stderr, or on stdout, without breaking a bar that is shown."""
    tqdm.write(f"pcdiff: {one_line(text)}" if stderr else one_line(text), file=sys.stderr if stderr else sys.stdout)
