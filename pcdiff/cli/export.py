"""The commands export scene, export hub and export bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcdiff.cli import options

Folder = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; new, or empty.")]

SCENE = "scene.glb"  # in a case folder
HELP = """Write a case as a 3D scene, or the shipped weights as a folder: of Hugging Face, or a MONAI bundle.

Nothing is uploaded, and no network is needed.
Each folder is new or empty, and holds the licence of the weights.

    pcdiff export scene out/head
    pcdiff export hub out/hub
    pcdiff export bundle out/bundle
"""

app = typer.Typer(help=HELP, no_args_is_help=True)


@app.command()
def scene(
    case: options.CaseFolder,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="File to write [CASE/scene.glb].")
    ] = None,
    skull: options.MovedSkull = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Write skull and implant of a case as one GLB file (glTF 2.0), for augmented reality and 3D viewers.

    Two meshes with names and colours, in metres, as they stand in the patient. The surfaces are those of the report,
    simplified for display: print implant.stl.

        pcdiff export scene out/head
    """
    from pcdiff.files import refuse_to_replace
    from pcdiff.pipeline.contents import read_contents
    from pcdiff.pipeline.record import renew_record
    from pcdiff.report.glb import write_glb
    from pcdiff.report.scene import case_scene

    if out is not None:
        refuse_to_replace(out, overwrite)
    contents = read_contents(case, skull)
    path = out or case / SCENE
    write_glb(case_scene(contents), path)
    if out is None:
        renew_record(case, dict(contents.record), [SCENE])
    typer.echo(path)


@app.command()
def hub(out: Folder) -> None:
    """Write a Hugging Face folder: README.md (the model card with YAML front matter), config.json, weights, LICENSE.

    pcdiff export hub out/hub
    """
    from pcdiff.pipeline.export import write_hub

    for path in write_hub(out):
        typer.echo(path)


@app.command()
def bundle(out: Folder) -> None:
    """Write a MONAI bundle whose inference calls pcdiff: configs/metadata.json, configs/inference.json, models/.

    `monai.bundle.run` designs an implant with it: see commands.md in the manual.

        pcdiff export bundle out/bundle
    """
    from pcdiff.pipeline.export import write_bundle

    for path in write_bundle(out):
        typer.echo(path)
