"""The commands that make a model: prepare, train, import-checkpoint, export-checkpoint."""

from __future__ import annotations

import logging
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from pcdiff import install_hint
from pcdiff.cli import options
from pcdiff.cli.console import debugging
from pcdiff.errors import InputError, error_line, exit_code


def prepare(
    dataset: Annotated[Path, typer.Argument(help="Data set: a folder or a YAML file, see `pcdiff datasets`.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Cache folder.")],
    cases: options.Cases = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
    quiet: options.Quiet = False,
) -> None:
    """Make the training cache from the complete skulls of a data set. An interrupted run continues.

    A skull that cannot be read is reported, and does not stop the others; the exit code is then 2.

    pcdiff prepare data/skullfix -o cache/skullfix --workers 8
    """
    from pcdiff.cli.progress import print_above_bars
    from pcdiff.data.heads import prepare as run

    failed: list[Exception] = []

    def report(source: Path, error: Exception) -> None:
        if debugging():
            raise error
        failed.append(error)
        line = error_line(error)
        print_above_bars(line if source.name in line else f"{source}: {line}")

    written = run(dataset, out, cases, workers, progress=not quiet, on_failure=report)
    if not quiet:
        typer.echo(f"{len(written)} heads -> {out}")
    if failed:
        print_above_bars(f"{len(failed)} of {len(written) + len(failed)} skulls failed")
        raise typer.Exit(min(exit_code(error) for error in failed))


def train(
    recipe: Annotated[
        str, typer.Argument(help="A recipe file (.yaml), or the name of a shipped recipe, such as unet.")
    ],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe, such as optimiser.steps=100."),
    ] = None,
    splits: options.SplitsFile = None,
    fold: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Train on the other splits of --splits, in a folder of this name."),
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Train a model from a recipe, on the CPU or a GPU. An interrupted run continues from its last checkpoint.

    Several GPUs: `torchrun --nproc_per_node 8 -m pcdiff train RECIPE`. Shipped recipes: unet (the default method),
    diffusion (that of an ensemble), atlas, prior, ensemble, paper_skullfix, paper_skullbreak, paper_reduced, the
    networks of the field (encoder_decoder, symmetry, slices, patches, coarse_to_fine, sparse), and generator, for
    `pcdiff augment`; copy and change one.

        pcdiff train diffusion --set run.data=/elsewhere
        pcdiff train ours.yaml
        pcdiff train atlas --splits splits.yaml --fold fold1
    """
    from pcdiff.data.splits import read_splits
    from pcdiff.training.recipes import for_fold, load_config

    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="pcdiff: %(message)s")
    config = load_config(recipe_file(recipe), _parse_changes(changes))
    if (splits is None) != (fold is None):
        raise InputError("expected --splits and --fold together, got one of them; name the file and the fold")
    if splits is not None and fold is not None:
        config = for_fold(config, fold, read_splits(splits))
        if config.on_shape_model:  # the shipped shape model may have been built from heads of the fold
            from pcdiff.training.prior import build_own_prior

            build_own_prior(config.run)
    try:
        training = import_module(config.trainer)
    except ModuleNotFoundError as error:
        if error.name in (None, "pcdiff") or str(error.name).startswith("pcdiff."):
            raise
        raise InputError(f"training needs {error.name}, which is missing; run {install_hint('train')}") from error
    typer.echo(training.train(config, progress=not quiet))


def recipe_file(name: str) -> Path:
    """The file of a recipe: the path itself, or the shipped recipe of that name.

    Raises InputError for a name without a suffix that is neither a file nor a shipped recipe.
    """
    from pcdiff.files import shipped_file

    path = Path(name)
    if path.suffix or path.is_file() or path.name != name:
        return path
    shipped = shipped_file("configs") / f"{name}.yaml"
    if not shipped.is_file():
        names = ", ".join(sorted(path.stem for path in shipped.parent.glob("*.yaml")))
        raise InputError(
            f"{name}: expected a recipe file or one of {names}, found neither; the recipes are in {shipped.parent}"
        )
    return shipped


def import_checkpoint(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Checkpoints: denoiser .pth, voxelisation .pt, or both.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Weights file to write (.safetensors).")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change how they are used, such as steps=50 or sampler=euler."),
    ] = None,
    quiet: options.Quiet = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Import checkpoints of the original code of Friedrich et al. (2023), or of its forks, for `--method paper`.

    `pcdiff design` needs both networks. No code in a file is executed: tensors are read, their names and shapes are
    compared, and differences are listed. The keys for --set are those under `paper:` in the recipe paper_skullfix.
    """
    from pcdiff.files import refuse_to_replace, sha256
    from pcdiff.methods.friedrich2023.checkpoints import import_checkpoints
    from pcdiff.methods.friedrich2023.config import parse_paper_config

    refuse_to_replace(out, overwrite, "network")
    model = import_checkpoints(files, parse_paper_config(_parse_changes(changes)))
    model.save(out, {f"sha256 {path.name}": sha256(path) for path in files})
    if not quiet:
        found = " and ".join(name for name in ("denoiser", "voxelisation") if getattr(model, name) is not None)
        typer.echo(f"{found} -> {out}\nNext:  pcdiff design SKULL.nrrd -o out --method paper --weights {out}")


def export_checkpoint(
    weights: Annotated[Path, typer.Argument(help="Weights of the published networks (.safetensors).")],
    out: options.Out,
    overwrite: options.Overwrite = False,
) -> None:
    """Write the published networks in the format of their original code: OUT/denoiser.pth, OUT/voxelisation.pt."""
    from pcdiff.files import refuse_to_replace
    from pcdiff.methods.friedrich2023.checkpoints import DENOISER, VOXELISATION, PaperModel, export_checkpoints

    for name in (DENOISER, VOXELISATION):
        refuse_to_replace(out / name, overwrite, "network")
    for path in export_checkpoints(PaperModel.load(weights), out):
        typer.echo(path)


def _parse_changes(changes: list[str] | None) -> dict[str, str]:
    """The keys and values of --set. Raises InputError for anything but KEY=VALUE."""
    found = {}
    for change in changes or []:
        key, equals, value = change.partition("=")
        if not equals:
            raise InputError(f"--set: expected KEY=VALUE, got {change!r}; for example optimiser.steps=100")
        found[key.strip()] = value.strip()
    return found
