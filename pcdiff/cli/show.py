"""The commands on a result: check, view, report, dicom-seg, dicom-stl."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcdiff import NOTICE, __version__
from pcdiff.cli import options
from pcdiff.cli.console import print_json, print_message

if TYPE_CHECKING:
    from pcdiff.checks.report import Check

MARKS = {True: "pass", False: "FAIL", None: "  - "}


def check(
    implant: Annotated[
        Path,
        typer.Argument(help="The implant: a mesh (.stl, .ply, .obj, .3mf, .glb), or a mask on the skull's grid."),
    ],
    skull: Annotated[Path, typer.Option(metavar="SCAN", help="The defective skull: a CT or a mask, as for `design`.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for checks.json and surface.npz.")] = None,
    threshold: options.Threshold = None,
    series: options.Series = None,
    label: options.Label = None,
    acquisition: options.Acquisition = None,
    ignore_metal: options.IgnoreMetal = False,
    defect: options.Defects = None,
    region: options.Region = None,
    clearance: options.Clearance = 0.0,
    criteria: options.Criteria = None,
    mesh_space: options.MeshSpaceIn = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Check any implant (mesh or mask) for fit and printability. Every value is printed with its limit.

    The checks are the six criteria of Ellis et al. (coverage of the defect, no implant over bone, insertion, shape,
    transition to the bone, thickness), the gap to the bone, and the printability of the mesh. The exit code is 1 if a
    check fails.

        pcdiff check implant.stl --skull dicom/ --series 2 --defect 1
        pcdiff check implant.nrrd --skull skull.nrrd --clearance 0.5 --criteria ours.yaml -o checked
    """
    from pcdiff.checks.criteria import load_criteria
    from pcdiff.checks.files import write_checks, write_surface
    from pcdiff.files import make_folder, refuse_to_replace
    from pcdiff.imaging.input_check import read_skull
    from pcdiff.pipeline.check import check_file
    from pcdiff.pipeline.settings import closing

    limits, chosen = load_criteria(criteria), options.chosen_defects(defect, region)  # refused before the scan is read
    if out is not None:
        for name in ("checks.json", "surface.npz"):
            refuse_to_replace(out / name, overwrite)
    bone, _ = read_skull(skull, threshold, series, label, acquisition, ignore_metal=ignore_metal)
    report = check_file(implant, bone, limits, clearance, closing(chosen, region, bone), mesh_space)
    if out is not None:
        make_folder(out)
        write_checks(report, out / "checks.json")
        write_surface(report, out / "surface.npz")
    if as_json:
        print_json(report.record(__version__, NOTICE))
    elif not quiet:
        for each in report.checks:
            typer.echo("\n".join(_check_lines(each)))
        typer.echo(NOTICE)
    if not report.passed:
        raise typer.Exit(1)


def view(
    case: options.CaseFolder,
    skull: options.MovedSkull = None,
    truth: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The true implant (mask or STL): adds a map of the distance to it."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the scene to this page and open no window.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a picture to this file and open no window.")
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Show a case in 3D: skull, implant, candidates, points, and their path in steps.

    Opens a window if open3d is installed and there is a display. Otherwise it writes CASE/view.html, a page that any
    browser opens without a network. Points and their path need a case designed with `--keep-points`.

        pcdiff view out/head
        pcdiff view out/demo --truth out/demo/implant_true.nrrd --html demo.html --png demo.png
    """
    from pcdiff.cli.view import show_case
    from pcdiff.files import refuse_to_replace

    for file in (html, png):
        if file is not None:
            refuse_to_replace(file, overwrite)
    for path in show_case(case, skull, truth, html, png, print_message):
        typer.echo(path)


def report(
    case: options.CaseFolder,
    skull: options.MovedSkull = None,
    pdf: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Print the report to this file, too: A4, by Chromium, Chrome or Edge."),
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Write report.html and preview.png of a case again, for example after an update of pcdiff; print it as PDF.

    Both show the defective skull: the file given with --skull, else the one in the case folder, else the one that the
    implant was designed from.

        pcdiff report out/head --pdf plan.pdf
        pcdiff report out/head --skull scans/head.nrrd
    """
    from pcdiff.errors import InputError
    from pcdiff.files import refuse_to_replace
    from pcdiff.pipeline.case_folder import changed_implants
    from pcdiff.pipeline.contents import read_contents
    from pcdiff.pipeline.record import renew_record
    from pcdiff.report.case_report import PREVIEW, REPORT, write_report
    from pcdiff.report.pdf import find_browser, print_pdf

    if pdf is not None:
        refuse_to_replace(pdf, overwrite)
        find_browser(case / REPORT, pdf)  # before the report is written again
    if changed := changed_implants(case):
        raise InputError(
            f"{case}: expected the implant that was checked, got another {' and '.join(changed)}, changed since; "
            "`pcdiff design --edited FILE` checks an edited implant and reports on it"
        )
    contents = read_contents(case, skull)
    write_report(case, contents)
    written = [REPORT, PREVIEW]
    renew_record(case, dict(contents.record), written)
    typer.echo(case / REPORT)
    if pdf is not None:
        print_pdf(case / REPORT, pdf)
        if pdf.parent.samefile(case):  # a later design in this folder removes it with the others
            renew_record(case, dict(contents.record), [*written, pdf.name])
        typer.echo(pdf)


def dicom_seg(
    case: options.CaseFolder,
    scan: Annotated[Path, typer.Option(metavar="FOLDER", help="The DICOM slices that the implant was designed from.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="File to write [CASE/implant.dcm].")
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Write the implant of a case as DICOM Segmentation, for a PACS or a planning station.

    Needs the extra `dicom` (see `pcdiff doctor`). The file names the patient, as the scan does, and refers to the
    scan's slices and frame of reference.

        pcdiff dicom-seg out/head --scan dicom/series3
    """
    from pcdiff.imaging.dicom_seg import SEGMENTATION, write_dicom_seg
    from pcdiff.imaging.volumes import read_volume

    with _file_of_case(case, SEGMENTATION, out, overwrite) as path:
        write_dicom_seg(read_volume(case / "implant.nrrd"), scan, path)


def dicom_stl(
    case: options.CaseFolder,
    scan: Annotated[Path, typer.Option(metavar="FOLDER", help="The DICOM slices that the implant was designed from.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="File to write [CASE/implant_stl.dcm].")
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Write the STL of a case within a DICOM file (Encapsulated STL), for a PACS that keeps models to print.

    The file names the patient, as the scan does, and holds implant.stl byte for byte in the scan's frame of reference.

        pcdiff dicom-stl out/head --scan dicom/series3
    """
    from pcdiff.imaging.dicom_stl import ENCAPSULATED, write_dicom_stl
    from pcdiff.imaging.volumes import read_volume

    with _file_of_case(case, ENCAPSULATED, out, overwrite) as path:
        write_dicom_stl(case / "implant.stl", read_volume(case / "implant.nrrd"), scan, path)


@contextmanager
def _file_of_case(case: Path, name: str, out: Path | None, overwrite: bool) -> Iterator[Path]:
    """Where to write a file of a case: `out`, or `name` in its folder, whose record then gets the file, too."""
    from pcdiff.files import refuse_to_replace
    from pcdiff.pipeline.record import case_record, renew_record

    if out is not None:
        refuse_to_replace(out, overwrite)
    record = case_record(case)
    path = out or case / name
    yield path
    if out is None:
        renew_record(case, record, [name])
    typer.echo(path)


def _check_lines(check: Check) -> list[str]:
    """A check with its figures and their limits."""
    return [f"{MARKS[check.passed]}  {check.title}: {check.words}", *(f"        {each.text}" for each in check.figures)]
