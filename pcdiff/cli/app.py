"""The command line: a thin layer over functions that can be imported.

What is heavy is imported inside the commands, so that `pcdiff --help` answers at once. Results are told on stdout,
progress and errors on stderr; exit code 2 is for bad input, 1 for a failure.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pcdiff import NOTICE, __version__
from pcdiff.cli.console import debugging, device_that_is_there, exit_code, line_on, say
from pcdiff.errors import InputError

HELP = f"""Designs patient-specific cranial implants: a skull with a defect goes in, the missing piece comes out,
as a volume on the scan's own grid and as an STL in patient millimetres (LPS).

{NOTICE}

    pcdiff demo -o out/demo            a built-in case: see what comes
    pcdiff sample skull.nrrd -o out    your own skull
    pcdiff view out/skull              turn it, slice it, compare it
    pcdiff doctor                      what is installed, what is missing

Tab completes commands and options after `pcdiff --install-completion`. Manual: docs/tutorial.md, docs/commands.md."""

app = typer.Typer(help=HELP, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown")

SCAN, FIT, FILES = "Scan", "Fit", "Files"  # panels of the help
Out = Annotated[Path, typer.Option("-o", "--out", help="Output folder.")]
DEFAULT_METHOD = "diffusion"
Method = Annotated[
    str, typer.Option(help="diffusion; prior (the statistical shape prior alone); or paper (with --weights).")
]
VERDICTS = {True: "pass", False: "FAIL", None: "  - "}
Weights = Annotated[Path | None, typer.Option(help="Weights of your own (.safetensors) in place of the shipped ones.")]
Ensemble = Annotated[int | None, typer.Option(min=1, help="Candidates; more than one gives an uncertainty map too.")]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same machine, same bytes.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto: a GPU where there is one.")]
Backend = Annotated[str, typer.Option(help="Surface reconstruction: spectral, or screened (needs open3d).")]
Clearance = Annotated[
    float,
    typer.Option(rich_help_panel=FIT, metavar="MM", help="Gap to the bone, all around; 0.5 is usual in practice."),
]
Criteria = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=FIT, metavar="FILE", help="YAML with thresholds of your own for the checks: docs/checks.md."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Design again what is done already.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")]
Threshold = Annotated[
    int | None, typer.Option(rich_help_panel=SCAN, metavar="HU", help="Of a CT: HU from which it is bone [300].")
]
Series = Annotated[
    str | None, typer.Option(rich_help_panel=SCAN, metavar="N|UID", help="Of a DICOM folder with several series.")
]
MaskOut = Annotated[
    Path | None, typer.Option(rich_help_panel=SCAN, metavar="FILE", help="Write the mask that was used to this file.")
]
CaseFolder = Annotated[Path, typer.Argument(metavar="CASE", help="A folder that `pcdiff sample` or `demo` wrote.")]
Moved = Annotated[Path | None, typer.Option(help="The defective skull, where it has moved since.")]
Cases = Annotated[str | None, typer.Option(help="Some cases only: 000-059,063.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits: 0, 2 for bad input, 1 for a failure; one line on stderr, unless PCDIFF_DEBUG=1."""
    try:
        app(args=arguments, prog_name="pcdiff")
    except Exception as error:
        if debugging():
            raise
        say(line_on(error))
        sys.exit(exit_code(error))


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"pcdiff {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def sample(
    skulls: Annotated[list[Path], typer.Argument(metavar="SCAN...", help="CTs of defective skulls, or masks.")],
    out: Out,
    method: Method = DEFAULT_METHOD,
    weights: Weights = None,
    ensemble: Ensemble = None,
    seed: Seed = 0,
    device: Device = "cpu",
    backend: Backend = "spectral",
    threshold: Threshold = None,
    series: Series = None,
    mask_out: MaskOut = None,
    clearance: Clearance = 0.0,
    thickness: Annotated[
        str,
        typer.Option(
            rich_help_panel=FIT,
            metavar="bone|MM|SHARE",
            help="As bone; or 3mm; or 0.6 of the bone's. Off the brain's side.",
        ),
    ] = "bone",
    smooth: Annotated[
        float, typer.Option(rich_help_panel=FIT, metavar="MM", help="Smooth what is free of the rim; 0.8 is plenty.")
    ] = 0.0,
    drain_holes: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=FIT, metavar="MM@MM", help="Perforations, across @ apart: 2@12. The rim stays whole."
        ),
    ] = None,
    make_insertable: Annotated[
        bool,
        typer.Option(
            "--make-insertable", rich_help_panel=FIT, help="Trim what bone would catch on the way in, and say how much."
        ),
    ] = False,
    criteria: Criteria = None,
    mesh: Annotated[
        str, typer.Option(rich_help_panel=FILES, help="Mesh files beside the STL, with commas: ply, obj, 3mf, glb.")
    ] = "stl",
    mesh_space: Annotated[
        str, typer.Option(rich_help_panel=FILES, help="Axes of the mesh files: lps (DICOM, ITK) or ras.")
    ] = "lps",
    keep_points: Annotated[
        bool, typer.Option("--keep-points", rich_help_panel=FILES, help="Keep the points, for `pcdiff view`.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report/--no-report", rich_help_panel=FILES, help="Write report.html and preview.png.")
    ] = True,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Design implants for skulls with defects: a CT's DICOM folder, or a CT or mask as .nrrd, .nii, .nii.gz, .mha,
    .mhd.

    Each becomes a folder OUT/NAME/ with implant.nrrd (on the scan's own grid), implant.stl, report.html, checks.json
    (does it fit, can it be printed?), surface.npz (wall and gap at each vertex) and run.json. What is done already is
    skipped; a case that fails does not stop the others; a check that fails is told, and stops nothing. Of several
    candidates each is checked, and one recommended.

        pcdiff sample skull.nrrd -o out
        pcdiff sample scans/*.nii.gz -o out --device auto
        pcdiff sample dicom/ -o out --clearance 0.5 --thickness 3mm --make-insertable
        pcdiff sample skull.nrrd -o out --ensemble 5 --drain-holes 2@12 --keep-points --mesh 3mf,glb
    """
    from tqdm import tqdm

    from pcdiff.checks.criteria import load_criteria
    from pcdiff.design.case import case_name, design_case, is_done
    from pcdiff.design.fitting import FitOptions
    from pcdiff.design.settings import DEFAULT_ENSEMBLE, Settings
    from pcdiff.design.stages import STAGES

    members, there = ensemble or DEFAULT_ENSEMBLE, device_that_is_there(device)
    fitting = FitOptions(clearance, thickness, smooth, drain_holes, make_insertable)
    made: dict[str, Any] = {"fitting": fitting, "criteria": load_criteria(criteria)}
    files: dict[str, Any] = {"mesh": mesh, "mesh_space": mesh_space, "keep_points": keep_points, "report": report}
    settings = Settings(method, members, seed, there, backend, weights, threshold, series, **made, **files)
    if mask_out is not None and len(skulls) > 1:
        raise InputError(f"--mask-out writes one mask, got {len(skulls)} scans; give one scan")
    settings.record()  # an unknown method or missing weights are told once, not for every case
    failed: dict[Path, Exception] = {}
    todo: dict[str, Path] = {}
    seen: dict[str, Path] = {}

    def fails(skull: Path, error: Exception) -> None:
        if debugging():
            raise error
        failed[skull] = error
        line = line_on(error)
        tqdm.write(f"pcdiff: {line if skull.name in line else f'{skull.name}: {line}'}", file=sys.stderr)

    for skull in dict.fromkeys(skulls):
        try:
            name = case_name(skull)
            if seen.setdefault(name, skull) != skull:
                raise InputError(f"{skull}: {seen[name]} goes to {out / name} too; give them different output folders")
            if overwrite or mask_out or not is_done(out / name, skull, settings):
                todo[name] = skull
            elif not quiet:
                say(f"{name}: is done already in {out / name}; --overwrite designs it again")
        except Exception as error:
            fails(skull, error)
    loaded = settings.load() if todo else None
    if len(todo) == 1 and not quiet:
        say(f"{next(iter(todo))}: designing the implant ...")
    stages = tqdm(
        total=sum(stage.share for stage in STAGES.values()),
        disable=True if quiet or len(todo) != 1 else None,  # None: plain where stderr is no terminal
        bar_format="{desc}: {bar:30} {elapsed}, about {remaining} left",
        leave=False,
    )

    def tell(stage: str) -> None:
        before = list(STAGES).index(stage)
        stages.update(sum(earlier.share for earlier in list(STAGES.values())[:before]) - stages.n)
        stages.set_description(STAGES[stage].title)

    bar = tqdm(todo.items(), unit="case", disable=quiet or len(todo) < 2)
    for name, skull in bar:
        assert loaded is not None
        bar.set_description(name)

        def warn(text: str, name: str = name) -> None:
            tqdm.write(f"pcdiff: {name}: warning: {text}", file=sys.stderr)

        try:
            record = design_case(
                skull, out / name, loaded, settings, overwrite, mask_out, None if quiet else warn, tell
            )
            if not quiet:
                tqdm.write(f"{name}: {_summary(record)} -> {out / name}")
                if failing := record["checks"]["failed"]:
                    tqdm.write(f"pcdiff: {name}: look at {', '.join(failing)} in checks.json", file=sys.stderr)
        except Exception as error:
            fails(skull, error)
        finally:
            stages.close()
    if failed:
        if len(skulls) > 1:
            say(f"{len(failed)} of {len(skulls)} cases failed")
        raise typer.Exit(min(exit_code(error) for error in failed.values()))


@app.command()
def check(
    implant: Annotated[Path, typer.Argument(help="An implant: STL (LPS, mm), or a mask on the skull's grid.")],
    skull: Annotated[Path, typer.Option(help="The defective skull it is meant for: a CT or a mask, as in sample.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for checks.json and surface.npz.")] = None,
    clearance: Clearance = 0.0,
    criteria: Criteria = None,
    quiet: Quiet = False,
) -> None:
    """Does an implant fit, and can it be printed? Whoever made it; every figure measured, with its limit.

    Complete, no area over bone, implantable, restores the shape, smooth transition, thickness (the six criteria of
    Ellis et al.), the gap to the bone, and the print gate of the mesh. The exit code is 1 where a check fails.

        pcdiff check implant.stl --skull dicom/
        pcdiff check implant.nrrd --skull skull.nrrd --clearance 0.5 --criteria ours.yaml -o checked
    """
    from pcdiff.checks.criteria import load_criteria
    from pcdiff.checks.files import write_checks, write_surface
    from pcdiff.design.check import check_files

    report, _ = check_files(implant, skull, load_criteria(criteria), clearance)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_checks(report, out / "checks.json")
        write_surface(report, out / "surface.npz")
    if not quiet:
        for each in report.checks:
            typer.echo(f"{VERDICTS[each.passed]}  {each.title}: {each.words}")
            for figure in each.figures:
                limit = "" if figure.rule is None else f"  ({figure.rule} {figure.limit:g})"
                typer.echo(f"        {figure.name}: {figure.value:.4g} {figure.unit}".rstrip() + limit)
        typer.echo(NOTICE)
    if not report.passed:
        raise typer.Exit(1)


@app.command()
def demo(
    out: Out,
    method: Method = DEFAULT_METHOD,
    weights: Weights = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Design an implant for a built-in case: a head drawn from the shape prior, with a defect cut into it.

    OUT gets what `pcdiff sample` writes, and skull.nrrd, the head as it was drawn, defective_skull.nrrd, and
    implant_true.nrrd, which was cut out.

        pcdiff demo -o out/demo
        pcdiff demo -o out/other --seed 7
    """
    from pcdiff.design.demo import demo as run
    from pcdiff.design.settings import Settings

    if not quiet:
        say("drawing a head from the shape prior, cutting a defect, designing the implant ...")
    record = run(out, Settings(method, seed=seed, weights=weights), overwrite)
    if quiet:
        return
    figures = record["scores"]
    typer.echo(f"""
{_summary(record)}
against the true implant ({record["true_ml"]:.1f} ml): DSC {figures["dsc"]:.3f}, border DSC {figures["bdsc"]:.3f}, \
HD95 {figures["hd95"]:.2f} mm

{out / "report.html"}: all there is to know about it, with a 3D view; opens in any browser
{out / "preview.png"}: the defect, the implant in it, and the implant alone
{out / "implant.stl"}: the implant, millimetres, LPS; opens in any viewer beside the scan
{out / "implant.nrrd"}: the same on the grid of {out / "defective_skull.nrrd"}

Now a skull of your own:  pcdiff sample SKULL.nrrd -o out
{NOTICE}""")


@app.command()
def simulate(
    skull: Annotated[Path, typer.Argument(help="Mask of a healthy skull.")],
    out: Out,
    kind: Annotated[
        str,
        typer.Option(
            help="skullfix, bilateral, frontoorbital, parietotemporal, random_1, random_2 (the classes of SkullBreak), "
            "or irregular."
        ),
    ] = "skullfix",
    defects: Annotated[int, typer.Option(min=1, max=3, help="Defects, with bone between them.")] = 1,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Cut a defect into a healthy skull: OUT gets defective_skull.nrrd and implant.nrrd, its exact complement.

    pcdiff simulate healthy.nrrd -o out/cut --kind irregular --defects 2
    """
    from pcdiff.design.simulate import write_simulation

    record = write_simulation(skull, out, kind, defects, seed, overwrite)
    if not quiet:
        defective = out / "defective_skull.nrrd"
        typer.echo(f"{record['implant_ml']:.1f} ml cut out -> {out}\nNow close it:  pcdiff sample {defective} -o out")


@app.command()
def prepare(
    dataset: Annotated[Path, typer.Argument(help="Folder in the layout of SkullFix or SkullBreak.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Cache folder.")],
    cases: Cases = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    quiet: Quiet = False,
) -> None:
    """Make the training cache from a data set's complete skulls; goes on where it was interrupted.

    pcdiff prepare data/skullfix -o cache/skullfix --workers 8
    """
    from pcdiff.data.heads import prepare as run

    written = run(dataset, out, cases, workers, progress=not quiet)
    if not quiet:
        typer.echo(f"{len(written)} heads -> {out}")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A recipe, such as configs/default.yaml.")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Changes the recipe: optimiser.steps=100.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train a model by a recipe, or go on with it; on the GPU where there is one, on many by `accelerate launch`.

    pcdiff train configs/default.yaml --set run.data=/elsewhere
    """
    from pcdiff.training.recipes import PaperTrainConfig, load_config

    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="pcdiff: %(message)s")
    recipe = load_config(config, _changes(changes))
    try:
        from pcdiff.training.anchored.train import train as run
        from pcdiff.training.friedrich2023.train import train as run_paper
    except ModuleNotFoundError as error:
        if error.name in (None, "pcdiff") or str(error.name).startswith("pcdiff."):
            raise
        raise InputError(f"training needs {error.name}, which is missing; run pip install 'pcdiff[train]'") from error
    if isinstance(recipe, PaperTrainConfig):
        typer.echo(run_paper(recipe, progress=not quiet))
    else:
        typer.echo(run(recipe, progress=not quiet))


@app.command("import-checkpoint")
def import_checkpoint(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="denoiser .pth, voxelisation .pt, or both.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Weights to write (.safetensors).")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="How they are used: steps=50, sampler=euler.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Bring checkpoints of the paper's original code, or of its forks, into `pcdiff sample --method paper`.

    Both networks' files together give what `sample` needs. Nothing in a file is run: tensors are read, names and shapes
    compared, and what does not fit is named. Keys for --set are those of `paper:` in configs/paper_skullfix.yaml.
    """
    from pcdiff.files import sha256
    from pcdiff.methods.friedrich2023.checkpoints import import_checkpoints
    from pcdiff.methods.friedrich2023.config import parse_paper_config

    model = import_checkpoints(files, parse_paper_config(_changes(changes)))
    model.save(out, {f"sha256 {path.name}": sha256(path) for path in files})
    if not quiet:
        found = " and ".join(name for name in ("denoiser", "voxelisation") if getattr(model, name) is not None)
        typer.echo(f"{found} -> {out}\nNow use it:  pcdiff sample SKULL.nrrd -o out --method paper --weights {out}")


@app.command("export-checkpoint")
def export_checkpoint(
    weights: Annotated[Path, typer.Argument(help="Weights of the paper's networks (.safetensors).")], out: Out
) -> None:
    """Write the paper's networks back as its original code saves them: OUT/denoiser.pth, OUT/voxelisation.pt."""
    from pcdiff.methods.friedrich2023.checkpoints import PaperModel, export_checkpoints

    for path in export_checkpoints(PaperModel.load(weights), out):
        typer.echo(path)


@app.command()
def evaluate(
    data: Annotated[Path, typer.Option(help="Folder in the layout of SkullFix or SkullBreak.")],
    out: Out = Path("out/evaluation"),
    cases: Cases = None,
    method: Annotated[str, typer.Option(help="One or more, with commas.")] = "prior,diffusion",
    suite: Annotated[
        str | None, typer.Option(help="Harder cases made of these: full, skullbreak, or variants with commas.")
    ] = None,
    ensemble: Ensemble = None,
    weights: Weights = None,
    seed: Seed = 0,
    device: Device = "cpu",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds after which a case has failed.")] = 900,
    workers: Annotated[int, typer.Option(min=1, help="Cases at once; seconds can be compared with 1 only.")] = 1,
    quiet: Quiet = False,
) -> None:
    """Score methods on cases, from file to file: DSC, border DSC, HD95, seconds, memory; as table, CSV and JSON.

    Of an ensemble also how well its spread tells its error. OUT keeps the implants, and pictures of the error of the
    best, the median and the worst case. The exit code is 1 where a case failed, or an implant was made where there is
    nothing to close.

        pcdiff evaluate --data skullfix --cases 060-074 --method prior,diffusion -o results
        pcdiff evaluate --data skullfix --suite tilted,two_defects --ensemble 5 -o results
    """
    from pcdiff.data.cases import find_cases
    from pcdiff.data.suite import variants_named, write_suite
    from pcdiff.design.settings import DEFAULT_ENSEMBLE
    from pcdiff.evaluation.measure import COMMAND
    from pcdiff.evaluation.runner import evaluate as run
    from pcdiff.files import sha256
    from pcdiff.methods.registry import weights_files

    variants = None if suite is None else variants_named(suite)
    methods = [name.strip() for name in method.split(",")]
    if weights is not None and len(methods) > 1:
        raise InputError(f"--weights belong to one method, got {method}; name it with --method")
    notes = {
        "suite": suite,
        "ensemble": ensemble or DEFAULT_ENSEMBLE,
        "weights": {name: {path.name: sha256(path) for path in weights_files(name, weights)} for name in methods},
    }
    command = [*COMMAND, "--device", device_that_is_there(device)]
    if ensemble is not None:
        command += ["--ensemble", str(ensemble)]
    if weights is not None:
        command += ["--weights", str(weights.resolve())]
    found = find_cases(data, cases)
    if variants is not None:
        found = write_suite(variants, found, out, seed, progress=not quiet)
    results = run(methods, found, out, seed, command, timeout, workers, notes, progress=not quiet)
    if not quiet:
        typer.echo(results.table())
    if any(row.error for row in results.rows):
        raise typer.Exit(1)


@app.command()
def view(
    case: CaseFolder,
    skull: Moved = None,
    truth: Annotated[
        Path | None, typer.Option(help="The true implant (a mask or an STL): adds a map of the distance to it.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the scene here as one page, open no window.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write a picture here, open no window.")] = None,
) -> None:
    """Look at a case: skull, implant, candidates, points, and the diffusion step by step.

    In a window where open3d is installed and there is a display, else as a page CASE/view.html that any browser opens
    without a network. Points and their way are there after `pcdiff sample --keep-points`.

        pcdiff view out/head
        pcdiff view out/demo --truth out/demo/implant_true.nrrd --html demo.html --png demo.png
    """
    from pcdiff.cli.view import show_case

    for written in show_case(case, skull, truth, html, png, say):
        typer.echo(written)


@app.command()
def report(case: CaseFolder, skull: Moved = None) -> None:
    """Write report.html and preview.png of a case again, after new checks or with another version.

    Both draw the defective skull: that after --skull, else the one in the case folder, else the one that the implant
    was designed from.

        pcdiff report out/head
        pcdiff report out/head --skull scans/head.nrrd
    """
    from pcdiff.design.contents import read_contents
    from pcdiff.design.record import renew_record
    from pcdiff.report.case_report import PREVIEW, REPORT, write_report

    contents = read_contents(case, skull)
    write_report(case, contents)
    renew_record(case, dict(contents.record), (REPORT, PREVIEW))
    typer.echo(case / REPORT)


@app.command("dicom-seg")
def dicom_seg(
    case: CaseFolder,
    scan: Annotated[Path, typer.Option(help="Folder of the DICOM slices that the implant was designed from.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write [CASE/implant.dcm].")] = None,
) -> None:
    """Write a case's implant as DICOM Segmentation, which a PACS and a planning station take.

    Needs highdicom: pip install 'pcdiff[dicom]'. The file names the patient, as the scan does, and refers to its slices
    and its frame of reference.

        pcdiff dicom-seg out/head --scan dicom/series3
    """
    from pcdiff.design.record import case_record, renew_record
    from pcdiff.imaging.dicom_seg import SEGMENTATION, write_dicom_seg
    from pcdiff.imaging.volumes import read_volume

    record = case_record(case)
    path = out or case / SEGMENTATION
    write_dicom_seg(read_volume(case / "implant.nrrd"), scan, path)
    if out is None:
        renew_record(case, record, [SEGMENTATION])
    typer.echo(path)


@app.command()
def doctor(
    try_it: Annotated[bool, typer.Option("--try", help="Design the built-in case too, and measure it.")] = False,
) -> None:
    """Say what is installed, which weights, which device, and how long a case takes.

    With --try the built-in case is designed too, into a folder that is thrown away. The exit code is 1 if something
    is missing or wrong.

        pcdiff doctor
        pcdiff doctor --try
    """
    from pcdiff.cli.doctor import examine

    marks = {True: "ok ", False: "BAD", None: "   "}
    ill = 0
    for finding in examine(try_it):
        ill += finding.good is False
        typer.echo(f"{marks[finding.good]} {finding.name:<22}{finding.words}")
    if ill:
        say(f"{ill} thing{'s' * (ill != 1)} to mend, see BAD above")
        raise typer.Exit(1)
    typer.echo("all there")


def _changes(changes: list[str] | None) -> dict[str, str]:
    """What --set says. Raises InputError where that is no KEY=VALUE."""
    found = {}
    for change in changes or []:
        key, equals, value = change.partition("=")
        if not equals:
            raise InputError(f"--set: expected KEY=VALUE, got {change!r}; for example optimiser.steps=100")
        found[key.strip()] = value.strip()
    return found


def _summary(record: dict[str, Any]) -> str:
    """One line on a result."""
    from pcdiff.prior.fit import WARN_POSE_RESIDUAL_MM

    defects, pieces = record["defects"], len(record["pieces_ml"])
    volume, seconds = record["implant_ml"], record["seconds"]["total"]
    text = f"{defects} defect{'s' * (defects != 1)}, implant {volume:.1f} ml, {seconds:.1f} s"
    if not record["checks"]["failed"]:
        text += ", passes every check"
    if record["members_ml"]:
        text += f"; recommended: {record['recommended_because']}"
    if pieces != defects:
        text += f" (the implant has {pieces} piece{'s' * (pieces != 1)}: look at it closely)"
    if record["prior_residual_mm"] > WARN_POSE_RESIDUAL_MM:
        text += f" (a head unlike those known, {record['prior_residual_mm']:.1f} mm off: is it in patient axes?)"
    return text
