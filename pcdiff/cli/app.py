"""The command line: a thin layer over functions that can be imported.

The commands import heavy packages when they run, so `pcdiff --help` loads neither numpy nor torch. Results go to
stdout, progress and errors to stderr. Exit codes: 2 for input that the user can correct, 3 for
a disk that cannot be written to, 1 for another failure or a check that fails.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import typer

from pcdiff import NOTICE, __version__
from pcdiff.cli import augment, cohort, datasets, design, doctor, evaluate, export, mcp_server, show, train
from pcdiff.cli.console import debugging, print_message
from pcdiff.cli.options import MethodCommand
from pcdiff.environment import collect_garbage_rarely, keep_freed_memory, let_waiting_threads_sleep
from pcdiff.errors import error_line, exit_code
from pcdiff.files import shipped_file

HELP = f"""Designs patient-specific cranial implants: from a skull with a defect to the missing piece of bone, as a
volume on the scan's own grid and as an STL in patient millimetres (LPS).

{NOTICE}

    pcdiff demo -o out/demo            design an implant for a built-in case
    pcdiff design skull.nrrd -o out    design an implant for your own scan
    pcdiff view out/skull              look at the result in 3D
    pcdiff doctor                      check the installation

`pcdiff COMMAND --help` explains a command. `pcdiff --install-completion` completes commands and options with Tab.

Manual: {shipped_file("docs")} (tutorial.md, commands.md, errors.md, api.md)"""

PRIVATE = 0o077  # permissions that new files do not get: results are a patient's

DESIGN, RESULTS, MODELS, SETUP = "Design", "Results", "Models and evaluation", "Installation"  # panels of the help

app = typer.Typer(help=HELP, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown")

app.command("demo", rich_help_panel=DESIGN, cls=MethodCommand)(design.demo)
app.command("design", rich_help_panel=DESIGN, cls=MethodCommand)(design.design)
app.command("sample", hidden=True, cls=MethodCommand)(design.design)  # the earlier name of `design`
app.command("cohort", rich_help_panel=DESIGN, cls=MethodCommand)(cohort.cohort)
app.command("info", rich_help_panel=DESIGN)(design.info)
app.command("simulate", rich_help_panel=DESIGN)(design.simulate)
app.command("check", rich_help_panel=RESULTS)(show.check)
app.command("view", rich_help_panel=RESULTS)(show.view)
app.command("report", rich_help_panel=RESULTS)(show.report)
app.command("dicom-seg", rich_help_panel=RESULTS)(show.dicom_seg)
app.command("dicom-stl", rich_help_panel=RESULTS)(show.dicom_stl)
app.command("evaluate", rich_help_panel=MODELS, cls=MethodCommand)(evaluate.evaluate)
app.command("score", rich_help_panel=MODELS)(evaluate.score)
app.command("compare", rich_help_panel=MODELS)(evaluate.compare)
app.command("datasets", rich_help_panel=MODELS)(datasets.datasets)
app.command("augment", rich_help_panel=MODELS)(augment.augment)
app.command("prepare", rich_help_panel=MODELS)(train.prepare)
app.command("train", rich_help_panel=MODELS)(train.train)
app.command("import-checkpoint", rich_help_panel=MODELS)(train.import_checkpoint)
app.command("export-checkpoint", rich_help_panel=MODELS)(train.export_checkpoint)
app.add_typer(export.app, name="export", rich_help_panel=MODELS)
app.command("mcp", rich_help_panel=SETUP)(mcp_server.mcp)
app.command("doctor", rich_help_panel=SETUP)(doctor.doctor)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits: 0, 2 for input to correct, 3 for a full disk, 1 for another failure.

    An error is one line on stderr; PCDIFF_DEBUG=1 shows the traceback instead.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may hold bytes that are no text
            stream.reconfigure(errors="backslashreplace")
    try:
        with _exit_on_signals(), _umask_restored():
            sys.exit(app(args=arguments, prog_name="pcdiff", standalone_mode=False))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's, of a wrong command line: their class has no public name
            _print_wrong_use(error)
            sys.exit(2)
        if debugging():
            raise
        print_message(error_line(error))
        sys.exit(exit_code(error))


def _print_wrong_use(error: Any) -> None:
    """Prints what is wrong with a command line and which help to read. Without arguments the help has been printed."""
    if message := " ".join(error.format_message().split()).rstrip("."):
        end = "" if message.endswith("?") else "."
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "pcdiff"
        print_message(f"{message[0].lower()}{message[1:]}{end} See {command} --help")


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """While entered, SIGTERM and SIGHUP end the program with 128 and their number, so temporary files are removed.

    They are named on stderr once that is done: a handler must not write.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def end(number: int, _: object) -> None:
        came.append(number)
        sys.exit(128 + number)

    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            with suppress(OSError):  # SIGHUP: the terminal is gone
                print_message(f"ended by {signal.Signals(came[0]).name} before it was done")


@contextmanager
def _umask_restored() -> Iterator[None]:
    """On leaving, new files get the permissions that they got before."""
    before = os.umask(PRIVATE)
    os.umask(before)
    try:
        yield
    finally:
        os.umask(before)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"pcdiff {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    shared: Annotated[
        bool,
        typer.Option("--shared", help="Let other users read what is written, as your umask says; else only you can."),
    ] = False,
) -> None:
    let_waiting_threads_sleep()
    keep_freed_memory()
    collect_garbage_rarely()
    if not shared:
        os.umask(os.umask(PRIVATE) | PRIVATE)
