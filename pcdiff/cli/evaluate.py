"""The commands evaluate, score and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pcdiff.cli import options
from pcdiff.cli.console import available_device, print_json, print_message
from pcdiff.errors import InputError


def evaluate(
    data: Annotated[
        Path, typer.Option(metavar="DATA", help="Data set: a folder or a YAML file, see `pcdiff datasets`.")
    ],
    out: options.Out = Path("out/evaluation"),
    cases: options.Cases = None,
    splits: options.SplitsFile = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="One or more, separated by commas, by default prior and the default method; `all`: those with weights."
            " They are",
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="Make harder cases from these: full, skullbreak, or variants separated by commas."),
    ] = None,
    ensemble: options.Ensemble = None,
    weights: options.Weights = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    timeout: Annotated[float, typer.Option(min=1, help="Time limit for a case, in seconds.")] = 900,
    workers: Annotated[
        int, typer.Option(min=1, help="Number of cases at the same time; use 1 to compare run times.")
    ] = 1,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Evaluate methods on a data set, from file to file: overlap, surface distances, volume, time and memory.

    OUT gets a table, CSV and JSON, the implants, and error maps of the best, the median and the worst case. For an
    ensemble the correlation of spread and error is measured too. The exit code is 1 if a case fails, or if a skull
    without a defect gets an implant.

        pcdiff evaluate --data skullfix --cases 060-074 --method prior,unet -o results
        pcdiff evaluate --data skullfix --splits splits.yaml --cases fold1 --method ssm --weights FILE
        pcdiff evaluate --data skullfix --suite tilted,two_defects --ensemble 5 -o results
    """
    _refuse_windows()
    from pcdiff.data.cases import find_cases
    from pcdiff.data.splits import expand, read_splits
    from pcdiff.data.suite import variants_named, write_suite
    from pcdiff.evaluation.runner import evaluate as run
    from pcdiff.methods.registry import default_method, ready_methods
    from pcdiff.pipeline.settings import DEFAULT_ENSEMBLE

    variants = None if suite is None else variants_named(suite)
    names = method or f"prior,{default_method(ensemble or DEFAULT_ENSEMBLE)}"
    methods = [name.strip() for name in names.split(",")] if names != "all" else ready_methods()
    if weights is not None and len(methods) > 1:
        raise InputError(f"--weights belong to one method, got {names}; name it with --method")
    digests, training = _about_weights(methods, weights)
    notes = {"suite": suite, "ensemble": ensemble or DEFAULT_ENSEMBLE, "training": training}
    command = _command(ensemble, weights, device)
    if splits is not None:
        if cases is None:
            raise InputError("--splits: expected --cases with the name of a split, got none; for example --cases fold1")
        named = read_splits(splits)
        try:
            found = find_cases(data, expand(cases, named))
        except InputError as error:
            if all(token.strip() in named for token in cases.split(",")):
                raise
            raise InputError(f"{error}; {splits} has the splits {', '.join(named)}") from error
    else:
        found = find_cases(data, cases)
    if variants is not None:
        found = write_suite(variants, found, out, seed, progress=not quiet)
    results = run(methods, found, out, seed, command, timeout, workers, notes, progress=not quiet, weights=digests)
    if as_json:
        print_json(results.record())
    elif not quiet:
        typer.echo(results.table())
    if any(row.error for row in results.rows):
        raise typer.Exit(1)


def score(
    predictions: Annotated[Path, typer.Argument(help="Folder of implants: masks or meshes, named as the cases are.")],
    truth: Annotated[
        Path,
        typer.Option(
            metavar="DATA", help="Data set with the implants: a folder or a YAML file, see `pcdiff datasets`."
        ),
    ],
    out: options.Out = Path("out/score"),
    name: Annotated[
        str | None, typer.Option(help="What designed them, for the tables [the name of the folder].")
    ] = None,
    cases: options.Cases = None,
    mesh_space: options.MeshSpaceIn = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Score the implants of any program (a colleague's, nnU-Net's) as `evaluate` scores its methods.

    OUT gets results.csv and results.json, which `pcdiff compare` reads. A missing implant and an empty mask have the
    worst scores, and the exit code is 1. A mask on another grid than the skull's is refused.

        pcdiff score nnunet/predictions --truth skullfix --cases 060-074 --name nnU-Net -o results/nnunet
        pcdiff score stl/ --truth skullfix --mesh-space ras -o results/colleague
    """
    from pcdiff.data.cases import find_cases
    from pcdiff.evaluation.predictions import other_files, score_predictions
    from pcdiff.evaluation.results import Results, conditions_of, write_results
    from pcdiff.files import make_folder, refuse_to_replace

    refuse_to_replace(out / "results.json", overwrite, "evaluation")
    method = name or predictions.resolve().name
    rows = score_predictions(predictions, find_cases(truth, cases), method, mesh_space, progress=not quiet)
    if not quiet and (others := other_files(predictions, find_cases(truth))):
        print_message(
            f"warning: {len(others)} {'file is' if len(others) == 1 else 'files are'} of no case of {truth} and left "
            f"out: {', '.join(others[:3])}{', ...' * (len(others) > 3)}; a name must be that of a case, or end in it "
            "after an underscore, as 003.nrrd or theirs_003.stl do for case 003"
        )
    conditions = conditions_of(["pcdiff", "score", predictions.name, "--truth", truth.name])
    results = Results(rows, {**conditions, "workers": 1, "weights": {method: {}}, "suite": None, "ensemble": 1})
    make_folder(out)
    write_results(out, results)
    if not quiet and (apart := [row.case for row in rows if row.error is None and not row.dsc]):
        print_message(
            f"warning: {len(apart)} of {len(rows)} implants share no voxel with the true one, such as that of "
            f"{apart[0]}; check the names of the files, and the axes (--mesh-space) and unit of a mesh"
        )
    if as_json:
        print_json(results.record())
    elif not quiet:
        typer.echo(results.table())
    if any(row.error for row in rows):
        raise typer.Exit(1)


def compare(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS...", help="results.json of `pcdiff evaluate` or `pcdiff score`.")
    ],
    out: options.Out = Path("out/comparison"),
    runs: Annotated[
        list[Path] | None,
        typer.Option("--run", metavar="FOLDER", help="Folder of a training run, for its learning curve; repeatable."),
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare methods on the cases that all of them have: intervals, paired tests, ranks, figures.

    OUT gets comparison.html (one file that opens without a network), the tables as tables.md and tables.tex, and all
    figures as scores.csv, places.csv, tests.csv and ranks.csv.

        pcdiff compare results/*/results.json -o comparison
        pcdiff compare results/*/results.json --run runs/unet --run runs/slices -o comparison
    """
    from pcdiff.evaluation.comparison import compare as compared
    from pcdiff.evaluation.comparison_page import PAGE, write_comparison_page
    from pcdiff.evaluation.comparison_tables import TABLES, comparison_record, describe, score_tables, write_tables
    from pcdiff.evaluation.learning import read_curves
    from pcdiff.files import make_folder, refuse_to_replace

    for name in (PAGE, *TABLES):
        refuse_to_replace(out / name, overwrite, "comparison")
    found, curves = compared(results), read_curves(runs or [])
    make_folder(out)
    write_tables(out, found)
    write_comparison_page(out, found, curves)
    if as_json:
        print_json(comparison_record(found))
    elif not quiet:
        typer.echo("\n".join([*describe(found), "", score_tables(found)[0].to_markdown()]))


def _about_weights(
    methods: list[str], weights: Path | None
) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, Any]]]:
    """Method -> name and sha256 of each weights file; method -> what its own file says of its training."""
    from pcdiff.evaluation.training_notes import training_notes
    from pcdiff.files import sha256
    from pcdiff.methods.registry import weights_of

    files = {name: weights_of(name, weights) for name in methods}
    digests = {name: {path.name: sha256(path) for path in of.all} for name, of in files.items()}
    return digests, {name: training_notes(of.own) for name, of in files.items()}


def _refuse_windows() -> None:
    """Raises InputError where the time and memory of a process cannot be measured from outside."""
    import signal

    from pcdiff.errors import InputError

    if not hasattr(signal, "setitimer"):
        raise InputError(
            "evaluate: expected a system that can measure seconds and memory of a process from outside, got Windows; "
            "run it in WSL, or have pcdiff score read implants that pcdiff design made"
        )


def _command(ensemble: int | None, weights: Path | None, device: str) -> list[str]:
    """The command that designs a case."""
    from pcdiff.evaluation.measure import COMMAND

    command = [*COMMAND, "--device", available_device(device)]
    if ensemble is not None:
        command += ["--ensemble", str(ensemble)]
    if weights is not None:
        command += ["--weights", str(weights.resolve())]
    return command
