"""The command augment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcdiff.cli import options


def augment(
    cache: Annotated[Path, typer.Argument(help="Cache folder that `pcdiff prepare` wrote.")],
    out: options.Out,
    count: Annotated[int, typer.Option(min=1, help="Number of cases.")] = 100,
    shapes: Annotated[
        str, typer.Option(help="Some of own, registered, mixed, deformed, generated, separated by commas.")
    ] = "own,registered,mixed,deformed",
    defects: Annotated[
        str | None,
        typer.Option(help="Kinds of defect: those of `pcdiff simulate --kind`, two_defects, healed; by default all."),
    ] = None,
    generator: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights that `pcdiff train generator` wrote, for generated.")
    ] = None,
    cases: Annotated[str, typer.Option(help="The heads to use, such as 000-059,063.")] = "000-059",
    skip: Annotated[list[str] | None, typer.Option(help="A head to leave out, such as a copy; repeatable.")] = None,
    held_out: Annotated[
        str, typer.Option(help="Heads of the cache, such as 060-074, whose coverage is measured.")
    ] = "",
    spacing: Annotated[float, typer.Option(metavar="MM", help="Voxel size.")] = 0.9,
    seed: options.Seed = 0,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
    quiet: options.Quiet = False,
) -> None:
    """Write a data set of new heads with virtual defects. An interrupted run continues.

    A case is a head of the cache in its own shape, in the shape of another head or of a mixture of heads, deformed at
    random, or with tables of a generative model; and a craniotomy of some kind. Shapes and kinds of defect take turns.
    OUT has complete_skull/, defective_skull/, implant/, records/, measures.json and sheet.png.

        pcdiff augment cache/skullfix -o data/augmented --count 1000 --skip 052 --workers 8
        pcdiff prepare data/augmented -o cache/augmented
    """
    from pcdiff.config import validate_config
    from pcdiff.training.augmentation.cases import AugmentConfig
    from pcdiff.training.augmentation.cases import augment as run

    values = {
        **{"cases": cases, "skip": tuple(skip or ()), "shapes": _names(shapes), "held_out": held_out},
        **{"spacing_mm": spacing, "seed": seed},
        **({} if defects is None else {"defects": _names(defects)}),
    }
    config = validate_config(AugmentConfig, values, "augment")
    measures = run(cache, out, count, config, generator, workers, progress=not quiet)
    if not quiet:
        for kind, found in measures.items():
            figures = (f"{name} {value['mean']:.2f}" for name, value in found.items() if isinstance(value, dict))
            typer.echo(f"{kind}: {found['heads']} heads, {', '.join(figures)}")
        typer.echo(f"{count} cases -> {out}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))
