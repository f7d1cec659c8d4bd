"""The cases of one `pcdiff design`: planned, designed one after the other, summarised."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pcdiff.cli.console import debugging, error_line, exit_code, print_message
from pcdiff.cli.progress import Progress, print_above_bars
from pcdiff.errors import InputError
from pcdiff.imaging.scan import scan_source
from pcdiff.pipeline.case import case_name, design_case, is_done

if TYPE_CHECKING:
    from pcdiff.methods.base import Method, PriorBasedMethod
    from pcdiff.pipeline.settings import Settings


@dataclass
class Batch:
    """Designs implants into `out`, one folder for each case. A case that fails does not stop the others.

    mask_out: a file for the mask of the skull, for a single case. failed: the cases that failed so far.
    """

    out: Path
    settings: Settings
    overwrite: bool = False
    mask_out: Path | None = None
    quiet: bool = False
    failed: dict[Path, Exception] = field(default_factory=dict)

    def design(self, skulls: list[Path]) -> None:
        """Designs all cases that are not done yet. Raises typer.Exit with the lowest exit code if any failed."""
        planned = self._plan(skulls)
        if planned:
            method = self.settings.load()
            if len(planned) == 1:
                self._note(f"{next(iter(planned))}: designing the implant ...")
            with Progress(len(planned), self.quiet) as progress:
                for name, skull in planned.items():
                    self._run(name, skull, method, progress)
        if self.failed:
            if len(skulls) > 1:
                print_above_bars(f"{len(self.failed)} of {len(skulls)} cases failed")
            raise typer.Exit(min(exit_code(error) for error in self.failed.values()))

    def _plan(self, skulls: list[Path]) -> dict[str, Path]:
        """The cases to design, by the name of their folder: each name once, without those that are done."""
        planned: dict[str, Path] = {}
        owner: dict[str, Path] = {}
        for skull in skulls:
            try:
                name = case_name(skull)
                folder = self.out / name
                if owner.setdefault(name, skull) != skull:
                    raise InputError(
                        f"{skull}: {owner[name]} also goes to {folder}; give them different output folders"
                    )
                if self.overwrite or self.mask_out or not is_done(folder, skull, self.settings):
                    planned[name] = skull
                else:
                    self._note(f"{name}: already designed in {folder}; --overwrite designs it again")
            except Exception as error:
                if debugging():
                    raise
                self._fail(skull, error)
        return planned

    def _run(self, name: str, skull: Path, method: Method | PriorBasedMethod, progress: Progress) -> None:
        """Designs one case and prints its result, or the reason why it failed."""
        folder = self.out / name
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
                on_stage=progress.start_stage,
            )
            if not self.quiet:
                print_above_bars(f"{name}: {result_line(record)} -> {folder}", stderr=False)
            if failed := failed_checks(folder, record):
                self._note(f"{name}: checks that failed: {'; '.join(failed)}; see report.html or checks.json")
        except Exception as error:
            if debugging():
                raise
            self._fail(skull, error)
        finally:
            progress.finish_case()

    def _fail(self, skull: Path, error: Exception) -> None:
        self.failed[skull] = error
        line = error_line(error)
        print_above_bars(line if skull.name in line else f"{skull.name}: {line}")

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


def failed_checks(folder: Path, record: dict[str, Any]) -> list[str]:
    """Titles, as in the report, of the checks that the implant of a case failed."""
    checks = json.loads((folder / "checks.json").read_text(encoding="utf-8"))["checks"]
    return [check["title"] for check in checks if check["name"] in record["checks"]["failed"]]


def result_line(record: dict[str, Any]) -> str:
    """The result of a case in one line."""
    defects, pieces = record["defects"], len(record["pieces_ml"])
    volume, seconds = record["implant_ml"], record["seconds"]["total"]
    text = f"{_count(defects, 'defect')}, implant {volume:.1f} ml, {seconds:.1f} s"
    if not record["checks"]["failed"]:
        text += ", passes every check"
    if record["members_ml"]:
        text += f"; recommended: {record['recommended_because']}"
    if pieces != defects:
        text += f" (the implant has {_count(pieces, 'piece')}: look at it closely)"
    if record["unusual_head"]:
        text += (
            f" (the head differs from those the shape model knows by {record['prior_residual_mm']:.1f} mm: is it in "
            "patient axes?)"
        )
    return text


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
