"""The command datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcdiff.cli import options
from pcdiff.cli.console import print_json
from pcdiff.errors import InputError


def datasets(
    data: Annotated[
        Path | None, typer.Argument(metavar="DATA", help="A data set's folder, or the YAML file that describes it.")
    ] = None,
    cases: options.Cases = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Write the heads in so many folds to the file --out.")
    ] = None,
    same: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME,NAME", help="Scans of one head, which stay in one fold; repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="File of the folds.")] = Path("splits.yaml"),
    as_json: options.AsJson = False,
) -> None:
    """List the layouts of data sets that are read; or what a data set holds, by split and class.

    `evaluate --data`, `score --truth`, `prepare` and the `run.data` of a recipe take each of them. A YAML file
    describes any other data set.

        pcdiff datasets
        pcdiff datasets data/MUG500 --cases craniotomy
        pcdiff datasets data/skullfix --folds 5 --same 000,052 --same 011,042 -o splits.yaml
    """
    from pcdiff.data.cases import find_cases
    from pcdiff.data.datasets import contents, contents_table, layouts_record, layouts_table, left_out
    from pcdiff.data.splits import write_folds

    if folds is not None:
        if data is None:
            raise InputError("--folds: expected the data set whose heads are split, got none; name it before --folds")
        heads = [case.head for case in find_cases(data, cases)]
        groups = [[name.strip() for name in group.split(",")] for group in same or ()]
        written = write_folds(out, heads, folds, groups)
        if as_json:
            print_json({"folds": {name: len(of) for name, of in written.items()}})
        else:
            typer.echo("\n".join(f"{name}: {len(of)} heads" for name, of in written.items()))
        return
    if same:
        raise InputError("--same: expected --folds, too, because it keeps heads in one fold; add --folds 5")
    if as_json:
        if data is None:
            print_json({"layouts": layouts_record()})
        else:
            print_json({"contents": contents(data, cases), "left_out": left_out(data, cases)})
        return
    typer.echo(layouts_table() if data is None else contents_table(data, cases))
