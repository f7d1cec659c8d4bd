"""The cases of one `pcdiff design`: planned, designed one after the other, summarised."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pcdiff.cli.console import debugging, print_json, print_message
from pcdiff.cli.progress import Progress, print_above_bars
from pcdiff.errors import InputError, error_line, exit_code
from pcdiff.files import absolute
from pcdiff.imaging.scan import scan_source
from pcdiff.pipeline.case import design_case, is_done
from pcdiff.pipeline.names import as_text, case_name, shown_name
from pcdiff.pipeline.plan import PlannedCase, planned_cases
from pcdiff.pipeline.record import case_record
from pcdiff.pipeline.stages import STAGES

if TYPE_CHECKING:
    from pcdiff.methods.base import Method, PriorBasedMethod
    from pcdiff.pipeline.settings import Settings


@dataclass
class Batch:
    """Designs implants into `out`, one folder for each case. A case that fails does not stop the others.

    mask_out: a file for the mask of the skull, for a single case. strict: an implant that fails a check is a failure.
    as_json: what stdout gets of a case is its record, one line of JSON. verbose: a line on stderr for each stage.
    failed: the cases that failed so far. unfit: names of the cases whose implant fails a check.
    """

    out: Path
    settings: Settings
    overwrite: bool = False
    mask_out: Path | None = None
    quiet: bool = False
    strict: bool = False
    as_json: bool = False
    verbose: bool = False
    failed: dict[Path, Exception] = field(default_factory=dict)
    unfit: list[str] = field(default_factory=list)

    def design(self, skulls: list[Path]) -> None:
        """Designs all cases that are not done yet. Raises typer.Exit with the lowest exit code if any failed."""
        planned = self._plan(skulls)
        if planned:
            method = self.settings.load()
            if len(planned) == 1:
                self._note(f"{next(iter(planned)).name}: designing the implant ...")
            with Progress(len(planned), self.quiet) as progress:
                for folder, skull in planned.items():
                    self._run(folder, skull, method, progress)
        if self.failed and (count := len({absolute(skull) for skull in skulls})) > 1:
            print_above_bars(f"{len(self.failed)} of {count} cases failed")
        codes = [exit_code(error) for error in self.failed.values()] + [1] * (self.strict and bool(self.unfit))
        if codes:
            raise typer.Exit(min(codes))

    def _plan(self, skulls: list[Path]) -> dict[Path, Path]:
        """The folder of each case to design -> its scan, without those that are done."""
        planned: dict[Path, Path] = {}
        for case in planned_cases(skulls, self.out, self.overwrite, self._refuse):
            try:
                if not self._is_done(case):
                    planned[case.folder] = case.scan
            except Exception as error:
                if debugging():
                    raise
                self._fail(case.scan, error)
        return planned

    def _is_done(self, case: PlannedCase) -> bool:
        """Whether the case is designed already; says so, or where it goes if not to the folder of its own name."""
        folder = case.folder
        if not self.overwrite and not self.mask_out and is_done(folder, case.scan, self.settings):
            self._note(f"{folder.name}: already designed in {folder}; --overwrite designs it again")
            if self.as_json:
                print_json(case_record_line(folder, case_record(folder)))
            self._name_failed_checks(folder)
            return True
        if folder.name not in (case.name, case_name(case.scan)):
            self._note(
                f"{case.scan}: {self.out / case.name} holds the result of another input; this one goes to {folder}"
            )
        return False

    def _refuse(self, skull: Path, error: Exception) -> None:
        """A case that cannot be planned: its failure is its alone."""
        if debugging():
            raise error
        self._fail(skull, error)

    def _run(self, folder: Path, skull: Path, method: Method | PriorBasedMethod, progress: Progress) -> None:
        """Designs one case and prints its result, or the reason why it failed."""
        name = folder.name
        progress.start_case(name)
        try:
            record = design_case(
                skull,
                folder,
                method,
                self.settings,
                self.overwrite,
                self.mask_out,
                on_warning=lambda text: self._note(f"{name}: warning: {text}"),
                on_stage=self._stages_of(name, progress),
            )
            if self.as_json:
                print_json(case_record_line(folder, record))
            elif not self.quiet:
                print_above_bars(f"{name}: {result_line(record)} -> {folder}", stderr=False)
            self._name_failed_checks(folder)
        except Exception as error:
            if debugging():
                raise
            self._fail(skull, error)
        finally:
            progress.finish_case()

    def _stages_of(self, name: str, progress: Progress) -> Callable[[str], None]:
        """What gets the name of each stage of a case as it begins."""
        started = time.perf_counter()

        def begin(stage: str) -> None:
            progress.start_stage(stage)
            if self.verbose:
                print_above_bars(f"{name}: {time.perf_counter() - started:6.1f} s  {STAGES[stage].title}")

        return begin

    def _fail(self, skull: Path, error: Exception) -> None:
        self.failed[skull] = error
        line = error_line(error)
        if self.as_json:
            print_json({"input": {"path": shown_name(skull)}, "error": line, "exit_code": exit_code(error)})
        print_above_bars(line if skull.name in line else f"{skull.name}: {line}")

    def _name_failed_checks(self, folder: Path) -> None:
        if failed := failed_checks(folder):
            self.unfit.append(folder.name)
            text = f"{folder.name}: checks that failed: {'; '.join(failed)}; see report.html or checks.json"
            if self.strict or not self.quiet:
                print_above_bars(text)

    def _note(self, text: str) -> None:
        if not self.quiet:
            print_above_bars(text)


def as_scans(paths: list[Path], quiet: bool = False) -> list[Path]:
    """The scans that paths stand for, each once: DICOM slices (`dicom/*.dcm`) for the CT in their folder."""
    scans: dict[Path, int] = {}
    for path in paths:
        try:
            scan = scan_source(path)
        except InputError:
            scan = path  # its own case says why it cannot be read
        scans[scan] = scans.get(scan, 0) + (scan != path)
    for scan, slices in scans.items():
        if slices and not quiet:
            print_message(f"{_count(slices, 'DICOM file')} of {scan.resolve()} given: the CT in this folder is read")
    return list(scans)


def case_record_line(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """What `--json` prints of a case: its name, its folder, and the record that run.json holds."""
    return {"case": as_text(folder.name), "folder": as_text(str(folder)), **record}


def failed_checks(folder: Path) -> list[str]:
    """Titles, as in the report, of the checks that the implant of a case failed."""
    checks = json.loads((folder / "checks.json").read_text(encoding="utf-8"))["checks"]
    return [check["title"] for check in checks if check["passed"] is False]


def result_line(record: dict[str, Any]) -> str:
    """The result of a case in one line."""
    defects, pieces = record["defects"], len(record["pieces"])
    volume, seconds = record["implant_ml"], record["seconds"]["total"]
    text = f"{_count(defects, 'defect')}, implant {volume:.1f} ml, {seconds:.1f} s"
    trimmed, holes = record["fitting"]["trimmed_ml"], record["fitting"]["drain_holes"]
    if holes:
        text += f", {_count(holes, 'drain hole')}"
    if trimmed:
        text += f", {trimmed:.2f} ml of undercuts trimmed"
    if not record["checks"]["failed"]:
        text += ", passes every check"
    if left := record["left_open"]:
        text += f"; left open: {'; '.join(_open_words(defect) for defect in left)}"
    if len(record["members_ml"]) > 1:
        text += f"; recommended: {record['recommended_because']}"
    if pieces != defects:
        text += f" (the implant has {_count(pieces, 'piece')}: look at it closely)"
    if record["unusual_head"]:
        text += (
            f" (the head differs from those the shape model knows by {record['prior_residual_mm']:.1f} mm: is it in "
            "patient axes?)"
        )
    return text


def _open_words(defect: dict[str, Any]) -> str:
    return f"{defect['place']}, {defect['area_cm2']:.0f} cm2 ({defect['why']})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
