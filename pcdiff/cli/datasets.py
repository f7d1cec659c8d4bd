"""The command datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcdiff.cli import options


def datasets(
    data: Annotated[
        Path | None, typer.Argument(metavar="DATA", help="A data set's folder, or the YAML file that describes it.")
    ] = None,
    cases: options.Cases = None,
) -> None:
    """List the layouts of data sets that are read; or what a data set holds, by split and class.

    `evaluate --data`, `score --truth`, `prepare` and the `run.data` of a recipe take each of them. A YAML file
    describes any other data set.

        pcdiff datasets
        pcdiff datasets data/MUG500 --cases craniotomy
    """
    from pcdiff.data.datasets import contents_table, layouts_table

    typer.echo(layouts_table() if data is None else contents_table(data, cases))
