"""The commands of pcdiff that the panel runs, as lists of arguments; and its lines about stages."""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Choices:
    """What the panel's form says.

    threshold: lowest HU of bone, for a CT. insertable: None removes undercuts if that costs little. fixation: marks a
    piece, at most. engrave: a text, or nothing. method, threshold: None for pcdiff's default.
    """

    threshold: int | None = None
    clearance: float = 0.0
    thickness: str = "bone"
    insertable: bool | None = None
    fixation: int = 0
    engrave: str = ""
    candidates: int = 1
    method: str | None = None


@dataclass(frozen=True)
class Inputs:
    """Files for pcdiff, all on the scan's grid. region: what is to be closed. edited: an implant."""

    scan: Path
    region: Path | None = None
    edited: Path | None = None


def info(program: str) -> list[str]:
    """The command that says which methods are ready, and which stages a design has."""
    return [program, "info", "--json"]


def design(program: str, inputs: Inputs, choices: Choices, out: Path) -> list[str]:
    """The command that designs an implant into a folder in `out`, or makes the edited one fit."""
    command = [program, "design", str(inputs.scan), "-o", str(out), "--json", "-v", *_common(inputs, choices)]
    command += ["--thickness", choices.thickness, "--fixation", str(choices.fixation)]
    command += [f"--engrave={choices.engrave}"] if choices.engrave else []  # a text may begin with -
    if choices.insertable is not None:
        command.append("--make-insertable" if choices.insertable else "--keep-undercuts")
    if inputs.edited is not None:
        return [*command, "--edited", str(inputs.edited)]
    command += ["--ensemble", str(choices.candidates)] if choices.candidates > 1 else []
    return [*command, "--method", choices.method] if choices.method else command


def check(program: str, inputs: Inputs, choices: Choices) -> list[str]:
    """The command that checks the edited implant."""
    return [program, "check", str(inputs.edited), "--skull", str(inputs.scan), "--json", *_common(inputs, choices)]


def stage_of(line: str) -> str | None:
    """The title of the stage that begins, from a line that `pcdiff design -v` prints; None for another line."""
    found = re.search(r": +\d+\.\d s  (.+)$", line)
    return found[1] if found else None


def _common(inputs: Inputs, choices: Choices) -> list[str]:
    options = ["--clearance", f"{choices.clearance:g}"]
    if choices.threshold is not None:
        options += ["--threshold", str(choices.threshold)]
    return [*options, "--region", str(inputs.region)] if inputs.region is not None else options
