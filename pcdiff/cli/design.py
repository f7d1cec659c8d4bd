"""The commands that make a case: design, demo, simulate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcdiff import NOTICE
from pcdiff.cli import options
from pcdiff.cli.console import print_json, print_message
from pcdiff.cli.design_options import Settings, check_single, with_settings
from pcdiff.errors import InputError
from pcdiff.methods.registry import DEFAULT

if TYPE_CHECKING:
    from pcdiff.pipeline.info import ScanInfo


@with_settings
def design(
    out: options.Out,
    settings: Settings,
    skulls: Annotated[
        list[Path] | None,
        typer.Argument(metavar="SCAN", help="CT or mask of a skull with a defect; several are possible."),
    ] = None,
    inputs: Annotated[list[Path] | None, typer.Option("-i", "--input", hidden=True)] = None,
    mask_out: options.MaskOut = None,
    strict: options.Strict = False,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Design implants for skulls with defects.

    A scan is the folder or the zip archive of a CT's DICOM files, or a CT or mask as NRRD, NIfTI or MetaImage. It gets
    a folder OUT/NAME/ with implant.nrrd (on the scan's own grid), implant.stl, report.html, checks.json (fit and
    printability), surface.npz (thickness and gap at each vertex) and run.json. Results that exist are skipped. A case
    that fails does not stop the others. Checks that fail are reported and do not stop the design; with --strict the
    exit code is 1 then. Each of several candidates is checked, and one is recommended. Scans are designed one after
    the other; for many, `pcdiff cohort` uses all cores or a cluster.

        pcdiff design skull.nrrd -o out
        pcdiff design scans/*.nii.gz -o out --json
        pcdiff design dicom/ -o out --clearance 0.5 --thickness 3mm --make-insertable
        pcdiff design segmentation.seg.nrrd -o out --label Skull
        pcdiff design skull.nrrd -o out --ensemble 5 --drain-holes 2@12 --keep-points --mesh 3mf,glb
        pcdiff design skull.nrrd -o edited --edited implant-edited.stl --clearance 0.5
    """
    from pcdiff.cli.batch import Batch, as_scans

    given = [*(skulls or []), *(inputs or [])]
    if not given:
        raise InputError("expected a scan, got none; for example: pcdiff design skull.nrrd -o out")
    scans = as_scans(given, quiet)
    check_single(settings, len(scans))
    if mask_out is not None and len(scans) > 1:
        raise InputError(f"--mask-out is for one scan, got {len(scans)}; give one")
    if verbose:
        print_message(f"method {settings.method}, device {settings.device}, seed {settings.seed}")
    Batch(out, settings, overwrite, mask_out, quiet, strict, as_json, verbose).design(scans)


def info(
    scan: Annotated[Path | None, typer.Argument(metavar="SCAN", help="CT or mask of a skull with a defect.")] = None,
    threshold: options.Threshold = None,
    series: options.Series = None,
    label: options.Label = None,
    acquisition: options.Acquisition = None,
    ignore_metal: options.IgnoreMetal = False,
    assume_orientation: options.AssumeOrientation = False,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a picture of each defect to this file.")
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """List what a scan is and which defects it has, without a design. `pcdiff design --defect N` closes one of them.

    Without a scan it says what this installation can do: version, methods that are ready, extras, devices and weights.
    That takes a second; `pcdiff doctor` looks closer.

        pcdiff info
        pcdiff info dicom/ --png defects.png
        pcdiff info skull.nrrd --json
    """
    if scan is None:
        if png is not None:
            raise InputError("expected a scan to draw with --png, got none; name the scan")
        from pcdiff.cli.capabilities import capabilities, capability_lines

        found_here = capabilities()
        if as_json:
            print_json(found_here)
        else:
            typer.echo("\n".join(capability_lines(found_here)))
        return

    from pcdiff.files import refuse_to_replace
    from pcdiff.pipeline.info import scan_info
    from pcdiff.pipeline.settings import Settings

    if png is not None:
        refuse_to_replace(png, overwrite)
    settings = Settings(
        DEFAULT,
        threshold=threshold,
        series=series,
        label=label,
        acquisition=acquisition,
        ignore_metal=ignore_metal,
        assume_orientation=assume_orientation,
    )
    found = scan_info(scan, settings, png)
    if as_json:
        print_json(found.record())
    else:
        typer.echo("\n".join(_scan_lines(found)))
    if found.why_none:
        raise InputError(f"{scan}: {found.why_none}")


def _scan_lines(found: ScanInfo) -> list[str]:
    """What a scan is and which defects it has, for people."""
    check = found.check
    size, spacing = (" x ".join(f"{value:g}" for value in values) for values in (check.shape, check.spacing_mm))
    lines = [f"{'CT' if check.kind == 'ct' else 'mask'}, {check.format}: {size} voxels of {spacing} mm"]
    lines += [f"warning: {warning}" for warning in (*check.warnings, *found.notes)]
    for defect in found.defects:
        doubt = "; doubtful: many healthy heads have no bone there" if defect.label in found.doubtful else ""
        size = f"{defect.length_mm:.0f} x {defect.width_mm:.0f} mm"
        lines.append(f"defect {defect.label}: {defect.place}, {size}, {defect.area_cm2:.0f} cm2{doubt}")
    return lines


def demo(
    out: options.Out,
    method: options.Method = None,
    weights: options.Weights = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Design an implant for a built-in case: a synthetic head, sampled from the statistical shape model, with a defect.

    OUT gets the files that `pcdiff design` writes, and skull.nrrd (the whole head), defective_skull.nrrd, and
    implant_true.nrrd (the bone that was removed).

        pcdiff demo -o out/demo
        pcdiff demo -o out/other --seed 7
    """
    from pcdiff.cli.batch import case_record_line, result_line
    from pcdiff.pipeline.demo import demo as run
    from pcdiff.pipeline.settings import Settings

    if not quiet:
        print_message("sampling a head from the statistical shape model, cutting a defect, designing the implant ...")
    record = run(out, Settings(method or DEFAULT, seed=seed, weights=weights), overwrite)
    if as_json:
        print_json(case_record_line(out, record))
    if quiet or as_json:
        return
    scores = record["scores"]
    typer.echo(f"""
{result_line(record)}
compared with the true implant ({record["true_ml"]:.1f} ml): DSC {scores["dsc"]:.3f}, border DSC {scores["bdsc"]:.3f}, \
HD95 {scores["hd95"]:.2f} mm

{out / "report.html"}: the whole case with a 3D view; opens in any browser
{out / "preview.png"}: the defect, the implant in it, and the implant alone
{out / "implant.stl"}: the implant in millimetres, LPS; opens beside the scan in any viewer
{out / "implant.nrrd"}: the implant on the grid of {out / "defective_skull.nrrd"}

Next, your own scan:  pcdiff design SKULL.nrrd -o out
{NOTICE}""")


def simulate(
    skull: Annotated[Path, typer.Argument(metavar="SCAN", help="CT or mask of a healthy skull.")],
    out: options.Out,
    kind: Annotated[
        str,
        typer.Option(
            help="skullfix; bilateral, frontoorbital, parietotemporal, random_1, random_2 (the classes of SkullBreak); "
            "or irregular."
        ),
    ] = "skullfix",
    label: options.Label = None,
    defects: Annotated[int, typer.Option(min=1, max=3, help="Number of defects, with bone between them.")] = 1,
    seed: options.Seed = 0,
    threshold: options.Threshold = None,
    series: options.Series = None,
    acquisition: options.Acquisition = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Simulate a craniotomy on a healthy skull: OUT gets defective_skull.nrrd and implant.nrrd, the bone removed.

    The scan is a CT or a mask, as for `pcdiff design`.

    pcdiff simulate healthy.nrrd -o out/cut --kind irregular --defects 2
    """
    from pcdiff.pipeline.names import as_text
    from pcdiff.pipeline.simulate import write_simulation

    record = write_simulation(
        skull,
        out,
        kind,
        defects,
        seed,
        overwrite,
        threshold=threshold,
        series=series,
        acquisition=acquisition,
        label=label,
        on_warning=None if quiet else lambda text: print_message(f"warning: {text}"),
    )
    if as_json:
        print_json({"folder": as_text(str(out)), **record})
    elif not quiet:
        typer.echo(
            f"{record['implant_ml']:.1f} ml of bone removed -> {out}\n"
            f"Next, design the implant:  pcdiff design {out / 'defective_skull.nrrd'} -o out"
        )
