"""What is written for a case: the implant as volume and STL, checked, and the record of how it came about."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from pcdiff import NOTICE
from pcdiff.checks.files import write_checks, write_surface
from pcdiff.checks.recommend import recommend, spread
from pcdiff.design.record import SKULL, case_folder, read_record, write_record
from pcdiff.environment import machine, peak_memory_mb
from pcdiff.files import sha256, written_beside
from pcdiff.geometry.grid import bounding_box
from pcdiff.geometry.mesh import mesh_to_mask, read_stl, write_stl
from pcdiff.geometry.mesh_files import mesh_kinds, write_mesh
from pcdiff.geometry.metrics import dice
from pcdiff.geometry.surface import volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.formats import FORMATS, format_of, suffix_of
from pcdiff.imaging.input_check import read_skull
from pcdiff.imaging.scan import input_digest
from pcdiff.imaging.volumes import write_map, write_volume
from pcdiff.prior.regions import defects_of

if TYPE_CHECKING:
    from pcdiff.checks import Report
    from pcdiff.design.flow import Design
    from pcdiff.geometry.mesh import Mesh
    from pcdiff.methods.base import Method, Proposal
from pcdiff.design.settings import Settings

STL_DSC = 0.97  # the least agreement of an STL with its volume
STAGES = {"reading": 1, "designing": 14, "writing": 1, "checking": 4, "reporting": 3}  # of a case, and usual shares


class OutputError(RuntimeError):
    """A result did not pass its own check; nothing was written."""


def case_name(path: Path) -> str:
    """A scan file's name without its image suffix, or a DICOM folder's. Raises InputError where neither is there."""
    if path.is_dir():
        return path.resolve().name
    named = [suffix for suffix in FORMATS if path.name.lower().endswith(suffix)]
    if not named and path.is_file():
        format_of(path)
    elif not named and path.suffix:
        suffix_of(path)
    return path.name[: -len(named[-1])] if named else path.stem


def is_done(folder: Path, source: Path, settings: Settings) -> bool:
    """Does the folder hold this very result: same input bytes, settings, weights and version, every file as written?"""
    record = read_record(folder)
    if record is None:
        return False
    return (
        settings.record().items() <= record.items()
        and record.get("input", {}).get("sha256") == input_digest(source)
        and all((folder / name).is_file() and sha256(folder / name) == was for name, was in record["files"].items())
    )


def design_case(
    source: Path,
    folder: Path,
    method: Method,
    settings: Settings,
    overwrite: bool = False,
    mask_out: Path | None = None,
    warn: Callable[[str], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Reads a defective skull, designs its implant and writes the case folder; returns the record.

    source: a CT or a mask, see `input_check.read_skull`. mask_out: a file for the mask that was used, written before
    the design, so that it can be looked at where that fails. warn: is told what the input check finds, at once.
    tell: is told each stage as it begins, one of `STAGES`.
    Raises InputError for a skull that cannot be used and a folder that cannot be written or holds other files,
    OutputError for a result that does not pass its check. Either way the folder stays as it was.
    """
    with case_folder(folder, overwrite, source) as part:
        record = write_case(part, source, method, settings, mask_out, warn, tell)
        write_record(part, record)
    return record


def write_case(
    part: Path,
    source: Path,
    method: Method,
    settings: Settings,
    mask_out: Path | None = None,
    warn: Callable[[str], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """All files of a case but the record, which is returned. part: an existing folder. Errors as `design_case`.

    Files: implant.nrrd, implant.stl, checks.json and surface.npz (see `proof`), and what else the settings ask for; of
    a CT also defective_skull.nrrd, the mask that was used; of several members candidates/implant_K.nrrd, .stl and
    checks_K.json, and uncertainty.nrrd, each voxel's standard deviation over the members: 0 where they agree, 0.5
    where half hold it. A check that fails stops nothing.
    """
    from pcdiff.checks import Vault, check_implant
    from pcdiff.design.flow import design

    tell = tell or (lambda stage: None)
    tell("reading")
    started = time.perf_counter()
    digest = input_digest(source)
    skull, check = read_skull(source, settings.threshold, settings.series)
    if warn is not None:
        for warning in check.warnings:
            warn(warning)
    if mask_out is not None:
        write_volume(skull, mask_out)
    was_read = time.perf_counter()
    tell("designing")
    result = design(
        skull,
        method,
        settings.ensemble,
        settings.seed,
        settings.backend,
        settings.device,
        keep_members=settings.ensemble > 1,
        fitting=settings.fitting,
    )
    designed = time.perf_counter()
    tell("writing")
    if check.kind == "ct":
        write_volume(skull, part / SKULL)
    write_volume(result.implant, part / "implant.nrrd")
    kinds = ("stl", *(kind for kind in mesh_kinds(settings.mesh) if kind != "stl"))
    for kind in kinds:
        write_mesh(result.mesh, part / f"implant.{kind}", settings.mesh_space)
    members = _write_members(part, result, settings.mesh_space) if len(result.members) > 1 else []
    if settings.keep_points:
        write_points(result.proposal, part / "points.npz")
    written = time.perf_counter()
    tell("checking")
    stl = check_stl(part / "implant.stl", result.implant)
    vault = Vault.of(result.proposal.fit)
    mesh = read_stl(part / "implant.stl")  # what is printed, with its vertices in the file's order

    def proof(pair: tuple[Volume, Mesh | None]) -> Report | None:
        volume, surface = pair
        if surface is None:
            return None
        return check_implant(skull, volume, surface, vault, settings.criteria, settings.fitting.clearance)

    with ThreadPoolExecutor() as pool:  # a few seconds each, half of them outside the interpreter's lock
        reports = list(pool.map(proof, [(result.implant, mesh), *zip(result.members, members, strict=False)]))
    report = reports[0]
    assert report is not None
    write_checks(report, part / "checks.json")
    surfaces = [member for member in members if member is not None]
    write_surface(report, part / "surface.npz", spread(mesh, surfaces) if len(surfaces) > 1 else None)
    for k, each in enumerate(reports[1:], 1):
        if each is not None:
            write_checks(each, part / "candidates" / f"checks_{k}.json")
    choice = recommend(reports)
    checked = time.perf_counter()
    seconds = {"read": was_read - started, **result.seconds, "write": written - designed, "check": checked - written}
    fit = result.proposal.fit
    record = {
        **settings.record(),
        "notice": NOTICE,
        "input": {
            "path": source.name if source.parent == part else str(source.resolve()),
            "sha256": digest,
            "shape": list(skull.mask.shape),
            "spacing_mm": [round(float(s), 6) for s in skull.spacing],
        },
        "input_check": asdict(check) | {"defects": [asdict(defect) for defect in defects_of(fit)]},
        "defects": fit.defects,
        "implant_ml": round(result.implant.ml, 3),
        "pieces_ml": pieces_ml(result.implant),
        "members_ml": [round(member.ml, 3) for member in result.members],
        "prior_residual_mm": round(float(fit.residual), 3),
        "stl": stl,
        "fitting": {"trimmed_ml": round(result.trimmed_ml, 3), "drain_holes": result.drains},
        "checks": _verdict(report),
        "candidates": [None if each is None else _verdict(each) for each in reports[1:]],
        "recommended": choice.candidate,
        "recommended_because": choice.why,
        "seconds": {name: round(value, 3) for name, value in seconds.items()} | {"total": round(checked - started, 3)},
        "peak_memory_mb": round(peak_memory_mb()),
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if settings.report:
        from pcdiff.report.case_report import write_report

        tell("reporting")
        write_report(part, record, skull)
    return record


def write_points(proposal: Proposal, path: Path) -> None:
    """The points an implant was made of, mm, LPS, float32: `prior` (N, 3) of the missing surface as the prior has it,
    `candidate_K` (N, 3) of each member, and `trajectory` (K, T, N, 3) with its `captions` (T,) where there is one.
    """
    clouds = {"prior": proposal.fit.completed_surface()}
    clouds |= {f"candidate_{k}": candidate for k, candidate in enumerate(proposal.candidates, 1)}
    arrays: dict[str, Any] = {}
    for name, cloud in clouds.items():
        missing = cloud if cloud.defect is None else cloud[cloud.defect > 0]
        arrays[name] = missing.points.astype(np.float32)
    if proposal.trajectory is not None:
        arrays |= {"trajectory": proposal.trajectory.points, "captions": np.array(proposal.trajectory.captions)}
    with written_beside(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, **arrays)


def check_stl(path: Path, implant: Volume) -> dict[str, Any]:
    """Reads an STL back, fills it with voxels and compares it with the volume it is the surface of.

    Returns triangles, volume_ml and dsc. Raises OutputError unless it is closed, its normals point outward and its
    DSC with the volume is 0.97 at least.
    """
    mesh = read_stl(path)
    index = implant.to_index(mesh.vertices)
    low, high = bounding_box(implant.mask)
    crop = implant.crop(np.minimum(low, np.floor(index.min(axis=0))), np.maximum(high, np.ceil(index.max(axis=0)) + 1))
    if not mesh.is_watertight or mesh.volume_ml <= 0:
        raise OutputError(f"{path.name}: expected a closed surface with outward normals, got another; please report it")
    dsc = float(dice(mesh_to_mask(mesh, crop), crop.mask))
    if dsc < STL_DSC:
        raise OutputError(
            f"{path.name}: expected a surface that agrees with its volume, DSC {STL_DSC} or more, got {dsc:.3f}; "
            "the implant may be thinner than the voxels can show: use a finer scan"
        )
    return {"triangles": len(mesh.faces), "volume_ml": round(mesh.volume_ml, 3), "dsc": round(dsc, 4)}


def pieces_ml(implant: Volume) -> list[float]:
    """Volume of each connected piece (26-neighbourhood), largest first."""
    low, high = bounding_box(implant.mask)
    labels, _ = ndimage.label(implant.crop(low, high).mask, np.ones((3, 3, 3)))
    counts = np.sort(np.bincount(labels.ravel())[1:])[::-1]
    return [round(float(count) * implant.voxel_ml, 3) for count in counts]


def _verdict(report: Report) -> dict[str, Any]:
    """What of a report belongs in the record; the figures are in `checks.json`."""
    return {"passed": report.passed, "failed": {name: report[name].words for name in report.failed}}


def _write_members(part: Path, result: Design, space: str) -> list[Mesh | None]:
    """Also returns their surfaces; None for a candidate that leaves a small defect open."""
    candidates = part / "candidates"
    candidates.mkdir()

    def write(k: int, member: Volume) -> Mesh | None:
        write_volume(member, candidates / f"implant_{k}.nrrd")
        if not member.mask.any():
            return None
        surface = volume_to_mesh(member)
        write_stl(surface, candidates / f"implant_{k}.stl", space)
        return surface

    with ThreadPoolExecutor() as pool:  # compressing takes most of the time, and no lock
        surfaces = list(pool.map(write, range(1, len(result.members) + 1), result.members))
    write_map(result.uncertainty, result.implant, part / "uncertainty.nrrd")
    return surfaces
