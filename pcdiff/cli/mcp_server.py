"""The command mcp: a server for agents, by the Model Context Protocol over stdin and stdout.

Each tool runs a command of pcdiff with `--json` in a process of its own, so that nothing but the protocol reaches
stdout, a design that fails or is cancelled takes nothing with it, and a tool answers what the command would print.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pcdiff import NOTICE, __version__, install_hint
from pcdiff.cli.console import one_line
from pcdiff.errors import InputError

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

COMMAND = (sys.executable, "-m", "pcdiff")
Tool = Callable[..., Awaitable[dict[str, Any]]]
DONE = (0, 1)  # exit codes of commands with a result: 1 where a check fails
INSTRUCTIONS = f"""Designs and checks patient-specific cranial implants. Paths are relative to the server's root, and
nothing outside of it is read or written. Coordinates are patient millimetres (LPS). {NOTICE}"""


def mcp(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder beneath which all paths of the tools must lie.")],
) -> None:
    """Serve the tools info, design, check and score to an agent, by the Model Context Protocol over stdin and stdout.

    Needs the extra `mcp` (see `pcdiff doctor`). Paths are taken beneath ROOT, links resolved; others are refused.

        pcdiff mcp scans/
    """
    server_of(root).run("stdio")


def server_of(root: Path) -> MCPServer[Any]:
    """The server with its tools; they read and write only beneath `root`.

    Raises InputError for a missing folder, and without the package `mcp`.
    """
    if not root.is_dir():
        raise InputError(f"{root}: expected a folder for the tools to work in, found none; check the path")
    try:
        from mcp.server.mcpserver import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
        from mcp.server.mcpserver.tools import Tool as ServedTool
    except ModuleNotFoundError as error:
        raise InputError(f"pcdiff mcp needs the package mcp, version 2; run {install_hint('mcp')}") from error

    def told(tool: Tool) -> Tool:
        """The tool with errors that the protocol passes on."""

        @wraps(tool)
        async def run(*arguments: Any, **options: Any) -> dict[str, Any]:
            try:
                return await tool(*arguments, **options)
            except InputError as error:
                raise ToolError(one_line(str(error))) from error

        return run

    class StrictTool(ServedTool):
        """A tool that refuses options that it does not have: a misspelt one must not be left out in silence."""

        async def run(self, arguments: dict[str, Any], *context: Any, **options: Any) -> Any:
            known = self.parameters["properties"]
            if unknown := sorted(arguments.keys() - known.keys()):
                raise ToolError(f"{self.name}: expected options among {', '.join(known)}, got {', '.join(unknown)}")
            return await super().run(arguments, *context, **options)

    tools = Tools(root)
    served: list[ServedTool] = []
    for tool in (tools.info, tools.design, tools.check, tools.score):
        served.append(StrictTool.from_function(told(tool)))
        served[-1].parameters["additionalProperties"] = False
    return MCPServer("pcdiff", instructions=INSTRUCTIONS, version=__version__, log_level="WARNING", tools=served)


class Tools:
    """The tools. Each takes paths beneath `root`, and raises InputError in one line."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def info(
        self,
        scan: str | None = None,
        threshold: int | None = None,
        series: str | None = None,
        label: str | None = None,
    ) -> dict[str, Any]:
        """What a scan is, its warnings and its defects; without a scan, what this installation can do.

        scan: a CT or a mask of a skull with a defect: NRRD, NIfTI, MetaImage, a DICOM folder or its zip archive.
        threshold: HU of bone, CT only. series: of DICOM. label: number or name, of a segmentation.
        """
        given = [] if scan is None else [self._path(scan)]
        return await _record("info", *given, threshold=threshold, series=series, label=label)

    async def design(
        self,
        scan: str,
        out: str,
        method: str | None = None,
        ensemble: int | None = None,
        seed: int = 0,
        defect: int | None = None,
        threshold: int | None = None,
        series: str | None = None,
        label: str | None = None,
        clearance: float | None = None,
        thickness: str | None = None,
        drain_holes: str | None = None,
        engrave: str | None = None,
        fixation: int = 0,
        report: bool = True,
        overwrite: bool = False,
    ) -> dict[str, Any]:
        """Designs an implant; writes a case folder into `out` and returns its record. Takes seconds to minutes.

        The record's `folder` holds implant.nrrd, implant.stl, checks.json, report.html and run.json. `checks.failed`
        names the checks that failed. defect: its number in `info`. clearance: mm. thickness: bone, 3mm, or 0.6.
        drain_holes: DIAMETER@SPACING in mm. engrave: a text of at most 12 capitals, digits, spaces or - . _ / + in the
        inner surface of the mesh. fixation: marks, in the record, up to so many places for plates a piece; nothing is
        cut.
        """
        options: dict[str, Any] = {
            "method": method,
            "ensemble": ensemble,
            "seed": seed,
            "defect": defect,
            "threshold": threshold,
        }
        options |= {"series": series, "label": label, "clearance": clearance, "thickness": thickness}
        options |= {"drain-holes": drain_holes, "engrave": engrave, "fixation": fixation}
        options |= {"no-report": not report, "overwrite": overwrite}
        return await _record("design", self._path(scan), "--out", self._path(out), **options)

    async def check(
        self,
        implant: str,
        skull: str,
        defect: int | None = None,
        threshold: int | None = None,
        series: str | None = None,
        label: str | None = None,
        clearance: float | None = None,
        mesh_space: str | None = None,
    ) -> dict[str, Any]:
        """Measures whether any implant fits a defective skull and can be printed: each check with figures and limits.

        implant: a mesh (STL, PLY, OBJ, 3MF, GLB) or a mask on the skull's grid. mesh_space: lps or ras.
        """
        options: dict[str, Any] = {"defect": defect, "threshold": threshold, "series": series, "label": label}
        options |= {"clearance": clearance, "mesh-space": mesh_space}
        return await _record("check", self._path(implant), "--skull", self._path(skull), **options)

    async def score(
        self,
        predictions: str,
        truth: str,
        out: str,
        cases: str | None = None,
        name: str | None = None,
        overwrite: bool = False,
    ) -> dict[str, Any]:
        """Scores a folder of implants against a data set's folder with the true ones; writes results into `out`."""
        given = [self._path(predictions), "--truth", self._folder(truth), "--out", self._path(out)]
        return await _record("score", *given, cases=cases, name=name, overwrite=overwrite)

    def _path(self, text: str) -> str:
        return str(beneath(self._root, text))

    def _folder(self, text: str) -> str:
        """A data set; its YAML file could name other places."""
        folder = beneath(self._root, text)
        if not folder.is_dir():
            raise InputError(f"{text}: expected a data set's folder, found none; check the path")
        return str(folder)


async def _record(command: str, *arguments: str, **options: Any) -> dict[str, Any]:
    (record,) = await records([command, *arguments, *_as_options(options), "--json"])
    return record


def beneath(root: Path, text: str) -> Path:
    """The path, links resolved. Raises InputError if it, or a link in it if it is a folder, leads out of the root."""
    top = root.resolve()
    path = (top / text.replace("\0", "")).resolve()
    if not path.is_relative_to(top):
        raise InputError(f"{one_line(text)}: expected a path beneath the server's root, got one that leads out of it")
    for place, folders, files in os.walk(path):
        for link in (Path(place, name) for name in (*folders, *files)):
            if link.is_symlink() and not link.resolve().is_relative_to(top):
                raise InputError(
                    f"{one_line(text)}: expected a folder without links out of the server's root, but "
                    f"{one_line(link.name)} leads out of it; copy what it names"
                )
    return path


async def records(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Runs a command of pcdiff and returns the lines of JSON that it printed.

    A command that is cancelled is ended. Raises InputError with the last line of its messages if it has no result.
    """
    import asyncio
    from asyncio.subprocess import DEVNULL, PIPE

    process = await asyncio.create_subprocess_exec(*COMMAND, *arguments, stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
    try:
        printed, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()  # it removes its temporary files
    lines = printed.decode().splitlines()
    found = [json.loads(line) for line in lines]
    if process.returncode not in DONE or not found or "error" in found[0]:
        messages = said.decode(errors="backslashreplace").splitlines()
        raise InputError(messages[-1] if messages else f"pcdiff ended with exit code {process.returncode}")
    return found


def _as_options(values: dict[str, Any]) -> list[str]:
    """Options of the command line: `--name=value`, so that no value is taken for an option; flags where True."""
    given = {name: value for name, value in values.items() if value is not None and value is not False}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]
