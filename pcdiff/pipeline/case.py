"""A case from file to files: read the scan, design the implant, write, check and report it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcdiff.checks.files import write_checks, write_surface
from pcdiff.checks.recommend import recommend, surface_std
from pcdiff.environment import machine, peak_memory_mb, side_by_side
from pcdiff.errors import InputError
from pcdiff.files import refuse_to_replace, sha256
from pcdiff.geometry.grey import write_grey
from pcdiff.geometry.mesh import Mesh
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.scan import input_digest
from pcdiff.imaging.volumes import write_volume
from pcdiff.methods.registry import DEFAULT_OF_ENSEMBLE
from pcdiff.pipeline.case_folder import case_folder, changed_implants, kept_name
from pcdiff.pipeline.description import Checked, Given, describe
from pcdiff.pipeline.fixation import few_places, fixation_places
from pcdiff.pipeline.names import as_text, case_name
from pcdiff.pipeline.record import (
    GREY,
    SKULL,
    read_record,
    recorded_digest,
    refuse_other_input,
    write_record,
)
from pcdiff.pipeline.settings import Settings
from pcdiff.pipeline.stages import Stopwatch
from pcdiff.report.shown_skull import ShownSkull

if TYPE_CHECKING:
    from pcdiff.checks import Report
    from pcdiff.methods.base import Method, PriorBasedMethod
    from pcdiff.pipeline.flow import Design


def is_done(folder: Path, source: Path, settings: Settings) -> bool:
    """Whether the folder holds this very result: the same input, settings, weights and version, every file intact."""
    record = read_record(folder)
    if record is None:
        return False
    return (
        settings.record().items() <= record.items()
        and recorded_digest(record) == input_digest(source)
        and all((folder / name).is_file() and sha256(folder / name) == was for name, was in record["files"].items())
    )


def design_case(
    source: Path,
    folder: Path,
    method: Method | PriorBasedMethod,
    settings: Settings,
    overwrite: bool = False,
    mask_out: Path | None = None,
    on_warning: Callable[[str], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Reads a defective skull, designs its implant and writes the case folder; returns the record.

    source: a CT or a mask, see `input_check.read_head`. mask_out: a file for the mask of the skull; it is written
    before the design, so that it can be looked at if the design fails, and never over the scan itself. on_warning: gets
    each warning of the input check and of the fit. on_stage: gets the name of each stage as it begins, see
    `stages.STAGES`.

    Raises InputError for a skull that cannot be used, for a folder that cannot be written or holds other files, and,
    without `overwrite`, for a folder with the result of another input and for a mask_out that exists; OutputError for a
    result that does not pass its own check. Then the folder stays as it was.
    """
    if mask_out is not None:
        refuse_to_replace(mask_out, overwrite)
        if mask_out.exists() and mask_out.resolve().is_relative_to(source.resolve()):
            raise InputError(f"{mask_out}: expected a file for the mask, got the scan itself; choose another name")
    for file in (settings.weights, settings.region):
        if file is not None and file.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"{file}: lies in the case folder, which the result replaces; choose another output folder"
            )
    if not overwrite and read_record(folder) is not None:
        refuse_other_input(folder, input_digest(source), overwrite)
    if on_warning is not None:
        for name in changed_implants(folder):
            on_warning(
                f"{name} has been changed since it was designed: it is kept as {kept_name(folder, name)}; "
                "--edited FILE makes an edited implant fit"
            )
    with case_folder(folder, overwrite, source) as part:
        record = write_case(part, source, method, settings, mask_out, on_warning, on_stage)
        write_record(part, record)
    return record


def write_case(
    part: Path,
    source: Path,
    method: Method | PriorBasedMethod,
    settings: Settings,
    mask_out: Path | None = None,
    on_warning: Callable[[str], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Writes all files of a case into the folder `part`, except the record, which is returned. Errors as `design_case`.

    Files: defective_skull.nrrd (the mask of the scan's bone), grey.npz (of a CT), implant.nrrd, implant.stl,
    checks.json and surface.npz (see `checks.files`), and what the settings ask for. Of several candidates
    candidates/implant_K.nrrd, .stl and checks_K.json, and uncertainty.nrrd: each voxel's standard deviation over the
    candidates, 0 where they agree, 0.5 where half of them hold the voxel. A failed check stops nothing.
    """
    from pcdiff.pipeline.flow import design
    from pcdiff.pipeline.write import write_implant, write_members, write_points

    watch = Stopwatch(on_stage)
    with watch("read"):
        given = _read(source, settings, mask_out, on_warning)
    skull = ShownSkull(given.skull, given.grey)
    with ThreadPoolExecutor(1) as beside:  # the skull is kept and drawn meanwhile: that does not depend on the implant
        kept = beside.submit(_keep, given, part, skull if settings.report else None)
        result = design(
            given.skull,
            method,
            ensemble=settings.ensemble,
            seed=settings.seed,
            backend=settings.backend,
            device=settings.device,
            keep_members=settings.ensemble > 1,
            options=settings.fitting,
            min_thickness_mm=settings.criteria.min_thickness_mm,
            defects=settings.closing(given.skull),
            axes=settings.axes_of(given.check),
            watch=watch,
        )
        kept.result()
    notes = _notes(result, settings)
    if on_warning is not None:
        for note in notes:
            on_warning(note)
    with watch("write"):
        mesh, stl = write_implant(part, result, settings.mesh, settings.mesh_space)
        if result.members:
            write_members(part, result, settings.mesh_space)
        points = write_points(result, part / "points.npz") if settings.keep_points else None
    with watch("check"):
        checked = _check(part, given.skull, result, mesh, settings)
        fixation = _fixation(given.skull, result, mesh, checked.report, settings)
    if len(fixation) < settings.fixation * result.fit.defects:
        notes.append(few_places(len(fixation), settings.fixation, result.fit.defects))
        if on_warning is not None:
            on_warning(notes[-1])
    record = describe(given, result, checked, notes, settings) | {"fixation": fixation, "stl": stl, **_times(watch)}
    if settings.report:
        from pcdiff.pipeline.contents import designed_contents
        from pcdiff.report.case_report import write_report

        with watch("report"):
            reports = [checked.report, *checked.candidates]
            title, implant, spread_mm = as_text(case_name(source)), result.implant, checked.uncertainty_mm
            surfaces = [None if member is None else member.mesh for member in result.members]
            contents = designed_contents(title, record, skull, implant, mesh, reports, surfaces, spread_mm, points)
            write_report(part, contents)
    return record


def _read(source: Path, settings: Settings, mask_out: Path | None, on_warning: Callable[[str], None] | None) -> Given:
    digest = input_digest(source)
    skull, check, grey = settings.read_head(source, with_grey=True)
    if on_warning is not None:
        for warning in check.warnings:
            on_warning(warning)
    if mask_out is not None:
        write_volume(skull, mask_out)
    return Given(source, skull, check, digest, grey)


def _keep(given: Given, part: Path, shown: ShownSkull | None) -> None:
    """Writes the skull, and the grey values of a CT, into the folder; then draws what the report shows of them."""
    if given.path != part / SKULL:
        write_volume(given.skull, part / SKULL)
    if given.grey is not None:
        write_grey(given.grey, part / GREY)
    if shown is not None:
        shown.draw()


def _check(part: Path, skull: Volume, result: Design, mesh: Mesh, settings: Settings) -> Checked:
    """Checks the implant and every candidate, and writes checks.json, surface.npz and candidates/checks_K.json.

    mesh: of the implant, as the STL has it.
    """
    from pcdiff.checks import CompletedVault, check_implant

    vault = CompletedVault.of(result.fit)

    def check(implant: tuple[Volume, Mesh] | None) -> Report | None:
        if implant is None:
            return None
        return check_implant(skull, *implant, vault, settings.criteria, settings.fitting.clearance)

    members = [None if member is None else (member.volume, member.mesh) for member in result.members]
    report, *candidates = side_by_side(check, [(result.implant, mesh), *members])
    assert report is not None
    surfaces = [member.surface for member in result.members if member is not None]
    write_checks(report, part / "checks.json")
    uncertainty_mm = surface_std(mesh.vertices, surfaces) if len(surfaces) > 1 else None
    write_surface(report, part / "surface.npz", uncertainty_mm)
    for number, each in enumerate(candidates, 1):
        if each is not None:
            write_checks(each, part / "candidates" / f"checks_{number}.json")
    return Checked(report, candidates, recommend([report, *candidates]), uncertainty_mm)


def _fixation(skull: Volume, result: Design, mesh: Mesh, report: Report, settings: Settings) -> list[dict[str, Any]]:
    """The marks for plates, for the record."""
    if not settings.fixation:
        return []
    places = fixation_places(result.fit, skull, result.implant, mesh, report.thickness_mm, settings.fixation)
    return [place.record() for place in places]


def _notes(result: Design, settings: Settings) -> list[str]:
    """What the fit found, and whether candidates are fewer than asked for."""
    count = len(result.proposal.candidates)
    if count >= settings.ensemble:
        return list(result.fit.notes)
    few = "one answer" if count == 1 else f"{count} candidates"
    advice = f"leave out --ensemble, or choose --method {DEFAULT_OF_ENSEMBLE}"
    return [*result.fit.notes, f"{settings.ensemble} candidates asked for: {settings.method} gives {few}; {advice}"]


def _times(watch: Stopwatch) -> dict[str, Any]:
    """Seconds of each stage, peak memory, machine and date."""
    return {
        "seconds": {name: round(value, 3) for name, value in watch.seconds.items()} | {"total": round(watch.total, 3)},
        "peak_memory_mb": round(peak_memory_mb()),
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
