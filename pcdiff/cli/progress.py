"""Progress bars: over the stages of a single case, over the cases of many."""

from __future__ import annotations

import sys
from types import TracebackType

from tqdm import tqdm

from pcdiff.cli.console import one_line
from pcdiff.pipeline.stages import STAGES


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


def print_above_bars(text: str, stderr: bool = True) -> None:
    """Prints a line on stderr, or on stdout, without breaking a bar that is shown."""
    tqdm.write(f"pcdiff: {one_line(text)}" if stderr else one_line(text), file=sys.stderr if stderr else sys.stdout)
