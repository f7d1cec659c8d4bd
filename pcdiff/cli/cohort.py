"""The command cohort: many cases on many processes or machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pcdiff.cli import options
from pcdiff.cli.console import print_json
from pcdiff.cli.design_options import Settings, check_single, with_settings
from pcdiff.errors import InputError

if TYPE_CHECKING:
    from pcdiff.cohort.rows import Row


@with_settings
def cohort(
    scans: Annotated[
        list[str],
        typer.Argument(
            metavar="SCANS",
            help="Scans; patterns in quotes such as 'patient*/scan'; folders of image files; tables (.csv, .tsv) with "
            "a column `scan` and perhaps `case`.",
        ),
    ],
    out: options.Out,
    settings: Settings,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes on this machine, at most; by default one a core, as far as memory goes."),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Use the workers of this Dask scheduler (its address, or its scheduler file); see scale.md in the "
            "manual.",
        ),
    ] = None,
    slurm: Annotated[
        str | None,
        typer.Option(
            metavar="OPTIONS",
            help="Run --workers jobs of Slurm; options of sbatch for each, such as '--partition=cpu --time=8:00:00'.",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Time limit for a case, in seconds.")] = 3600,
    retry: Annotated[bool, typer.Option("--retry", help="Try cases again that failed before.")] = False,
    strict: options.Strict = False,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Design implants for many skulls, on all cores or on a cluster, with a table of all results.

    Each case gets the folder that `pcdiff design` gives it, which is the command for a few scans: it runs one after the
    other in one process. OUT gets cohort.html (a table with pictures, to sort and to filter; opens without a network),
    cohort.csv and cohort.jsonl, a line as soon as a case is done. A case that fails is a row with its reason. Run the
    same command again to go on after a break: cases that stand, of the same scan, settings and version, are not done
    again, nor are those that failed, unless --retry is given. Needs the extra `cohort` (see `pcdiff doctor`).

        pcdiff cohort 'scans/*.nii.gz' -o out
        pcdiff cohort 'patient*/scan' -o out --workers 4 --no-report
        pcdiff cohort cases.csv -o out --retry
        pcdiff cohort cases.csv -o out --scheduler tcp://head-node:8786
        pcdiff cohort cases.csv -o out --workers 32 --slurm '--partition=cpu --time=8:00:00'
    """
    from pcdiff.cli.progress import CohortProgress
    from pcdiff.cohort.cluster import check_installed
    from pcdiff.cohort.inputs import find_scans
    from pcdiff.cohort.page import PAGE
    from pcdiff.cohort.runner import Cohort
    from pcdiff.pipeline.names import as_text

    check_installed()
    if slurm is not None and (scheduler is not None or workers is None):
        raise InputError(
            "--slurm: expected --workers, the number of jobs, and no --scheduler; for example --workers 32"
        )
    found = find_scans(scans)
    check_single(settings, len(found))
    with CohortProgress(quiet) as progress:
        said = progress.start, progress.add, progress.note
        run = Cohort(out, settings, workers, scheduler, slurm, retry, overwrite, timeout, *said)
        rows = run.run(found)
    summary = _summary(rows, progress.stood)
    if as_json:
        print_json(summary | {"out": as_text(str(out))})
    elif not quiet:
        typer.echo(f"{_words(summary)} -> {out / PAGE}")
    codes = [row.exit_code for row in rows if row.failed] + [1] * (strict and summary["fail_a_check"] > 0)
    if codes:
        raise typer.Exit(min(codes))


def _summary(rows: Sequence[Row], stood: int) -> dict[str, int]:
    """Numbers of cases. stood: of those that were done before."""
    return {
        "cases": len(rows),
        "designed": sum(not row.failed for row in rows),
        "stood": stood,
        "fail_a_check": sum(bool(row.failed_checks) for row in rows),
        "failed": sum(row.failed for row in rows),
    }


def _words(summary: dict[str, int]) -> str:
    text = f"{summary['designed']} of {summary['cases']} cases have an implant"
    if summary["stood"]:
        text += f", {summary['stood']} of them from before"
    if summary["fail_a_check"]:
        one = summary["fail_a_check"] == 1
        text += f"; {summary['fail_a_check']} {'implant fails' if one else 'implants fail'} a check"
    if summary["failed"]:
        text += f"; {summary['failed']} {'case' if summary['failed'] == 1 else 'cases'} failed"
    return text
