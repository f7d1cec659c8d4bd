"""The commands export hub and export bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; new, or empty.")]

HELP = """Write the shipped weights as a folder for other tools: of Hugging Face, or a MONAI bundle.

Nothing is uploaded, and no network is needed.
Each folder is new or empty, and holds the licence of the weights.

    pcdiff export hub out/hub
    pcdiff export bundle out/bundle
"""

app = typer.Typer(help=HELP, no_args_is_help=True)


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
