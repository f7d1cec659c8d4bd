"""Options that several commands share, and the help that lists the methods."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from pcdiff.errors import InputError

if TYPE_CHECKING:
    from pcdiff.prior.defects import DefectNumbers

SCAN, FIT, FILES = "Scan", "Fit", "Files"  # panels of the help

Out = Annotated[Path, typer.Option("-o", "--out", help="Output folder.")]
Method = Annotated[str | None, typer.Option(metavar="NAME")]  # `MethodCommand` adds the help
Weights = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Your own weights (.safetensors) instead of the shipped ones.")
]
Ensemble = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of candidates, by default of the method diffusion; more than one also gives an uncertainty map.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(min=0, help="Reproducible: on one machine the same seed gives identical files (timestamps aside)."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto (a GPU if one can be used, else the CPU).")]
Backend = Annotated[str, typer.Option(help="Surface reconstruction: spectral, or screened (needs open3d).")]
Threshold = Annotated[
    int | None, typer.Option(rich_help_panel=SCAN, metavar="HU", help="CT only: lowest HU of bone [300].")
]
Series = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=SCAN, metavar="N|UID", help="DICOM folder with several series: number in the list, or UID."
    ),
]
Label = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=SCAN, metavar="N|NAME", help="Segmentation with several labels: number in the list, or name."
    ),
]
Acquisition = Annotated[
    int | None,
    typer.Option(rich_help_panel=SCAN, metavar="N", help="DICOM series with several acquisitions: its number."),
]
IgnoreMetal = Annotated[bool, typer.Option("--ignore-metal", rich_help_panel=SCAN, help="CT only: metal is no bone.")]
AssumeOrientation = Annotated[
    bool,
    typer.Option(
        "--assume-orientation",
        rich_help_panel=SCAN,
        help="Go on with a head that is not upright in the file's axes, or of unusual size.",
    ),
]
Defects = Annotated[
    list[int] | None,
    typer.Option("--defect", rich_help_panel=SCAN, metavar="N", help="Only this defect of `pcdiff info`; repeatable."),
]
Region = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=SCAN,
        metavar="FILE",
        help="A mask on the scan's grid: all bone that is absent within it is completed, also of a small or natural "
        "opening. The implant may end some millimetres beyond the mask's edge.",
    ),
]
MaskOut = Annotated[
    Path | None, typer.Option(rich_help_panel=SCAN, metavar="FILE", help="Write the mask of the skull to this file.")
]
Clearance = Annotated[
    float,
    typer.Option(rich_help_panel=FIT, metavar="MM", help="Gap between implant and bone, in mm; 0.5 is usual."),
]
Edited = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=FIT,
        metavar="FILE",
        help="An implant edited by hand (mask or mesh), instead of a designed one: its rim is closed, the options "
        "above apply to it, and it is checked anew.",
    ),
]
Criteria = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=FIT,
        metavar="FILE",
        help="YAML file with your own limits for the checks; see checks.md in the manual.",
    ),
]
Strict = Annotated[
    bool,
    typer.Option("--strict", rich_help_panel=FIT, help="Exit with code 1 if a check fails, after writing everything."),
]
Thickness = Annotated[
    str,
    typer.Option(
        rich_help_panel=FIT,
        metavar="bone|MM|FRACTION",
        help="Implant thickness: bone (as the bone around it), a value such as 3mm, or a fraction such as 0.6. "
        "Material is removed on the inner (dural) side.",
    ),
]
Smooth = Annotated[
    float,
    typer.Option(
        rich_help_panel=FIT,
        metavar="MM",
        help="Smooth the outer and inner surface, in mm (0.8 is enough); the edge that meets bone is left alone.",
    ),
]
DrainHoles = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=FIT,
        metavar="MM@MM",
        help="Perforation holes, DIAMETER@SPACING in mm, for example 2@12.",
    ),
]
MakeInsertable = Annotated[
    bool | None,
    typer.Option(
        "--make-insertable/--keep-undercuts",
        rich_help_panel=FIT,
        show_default=False,
        help="Remove undercuts so that the implant can be inserted in a straight line, or keep them. "
        "By default they are removed if that costs at most 1 % of the volume.",
    ),
]
Engrave = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=FIT,
        metavar="TEXT",
        help="Cut a text, such as a case's number, into the inner surface of the mesh, to tell prints apart; at most "
        "12 letters A to Z, digits, spaces or - . _ / +.",
    ),
]
Fixation = Annotated[
    int,
    typer.Option(
        rich_help_panel=FIT,
        metavar="N",
        min=0,
        max=12,
        help="Mark up to N places for plates and screws along the rim of each piece, where bone and implant are thick "
        "enough; nothing is cut.",
    ),
]
MeshKinds = Annotated[
    str,
    typer.Option(
        rich_help_panel=FILES,
        metavar="KINDS",
        help="Mesh files beside the STL, separated by commas: ply, obj, 3mf, glb.",
    ),
]
MeshSpace = Annotated[str, typer.Option(rich_help_panel=FILES, help="Axes of the mesh files: lps (DICOM, ITK) or ras.")]
MeshSpaceIn = Annotated[
    str | None, typer.Option("--mesh-space", help="Axes of mesh files, lps or ras, if they do not name them.")
]
KeepPoints = Annotated[
    bool, typer.Option("--keep-points", rich_help_panel=FILES, help="Keep the points for `pcdiff view`.")
]
WithReport = Annotated[
    bool, typer.Option("--report/--no-report", rich_help_panel=FILES, help="Write report.html and preview.png.")
]
CaseId = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=FILES,
        metavar="TEXT",
        help="Name of the case on the report's plan; without it the report names no patient.",
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Write even if the result exists, or if the folder holds other files.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result on stdout as one line of JSON, instead of text; also with -q.")
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print each stage and its time on stderr.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")]
CaseFolder = Annotated[Path, typer.Argument(metavar="CASE", help="A folder that `pcdiff design` or `demo` wrote.")]
MovedSkull = Annotated[Path | None, typer.Option(metavar="FILE", help="The defective skull, if it has moved.")]
SplitsFile = Annotated[
    Path | None,
    typer.Option("--splits", metavar="FILE", help="Splits of heads, as `pcdiff datasets --folds` writes them."),
]
Cases = Annotated[str | None, typer.Option(help="Use some cases or splits only, for example 000-059,063.")]


def method_lines() -> dict[str, str]:
    """The name of each method and one line on it: those of the table, and those of other installed packages."""
    from pcdiff.methods.registry import METHODS, installed_methods

    return {name: entry.help for name, entry in (METHODS | installed_methods()).items()}


def chosen_defects(numbers: list[int] | None, region: Path | None) -> DefectNumbers:
    """The defects that --defect chooses. Raises InputError for --region beside it."""
    if numbers and region is not None:
        raise InputError("--region and --defect both say what is to be closed; leave one of them out")
    return tuple(numbers) if numbers else "clear"


class MethodCommand(TyperCommand):
    """A command with `--method`: its help lists the methods, installed ones too, which are looked for only then."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help into the formatter; see click."""
        for parameter in self.params:
            if isinstance(parameter, TyperOption) and parameter.name == "method":
                lines = [f"{name} ({line})" for name, line in method_lines().items()]
                parameter.help = f"{parameter.help or 'One of:'} {'; '.join(lines)}."
        super().format_help(ctx, formatter)
