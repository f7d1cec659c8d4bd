"""The files of a designed implant: volumes, meshes, candidates, points."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pcdiff.environment import side_by_side
from pcdiff.errors import OutputError
from pcdiff.files import sha256, written_beside
from pcdiff.geometry.grid import bounding_box, nothing_like
from pcdiff.geometry.mesh import Mesh, mesh_to_mask, read_stl, write_stl
from pcdiff.geometry.mesh_files import mesh_kinds, write_mesh
from pcdiff.geometry.metrics import dice
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import write_map, write_volume
from pcdiff.pipeline.flow import Design
from pcdiff.pipeline.printing import Printed

STL_DSC = 0.97  # the least agreement of an STL with its volume
WRITERS = 4  # threads: compressing takes most of the time and releases the interpreter's lock


def write_implant(folder: Path, result: Design, kinds: str, space: str) -> tuple[Mesh, dict[str, Any]]:
    """Writes implant.nrrd, implant.stl and the other kinds of mesh; reads the STL back and compares it.

    kinds: with commas, see `mesh_files`. space: of the mesh files, `lps` or `ras`. Returns the mesh of the STL, with
    its vertices in the file's order, and what `compare_stl` says of it with the file's sha256. Raises
    OutputError as `compare_stl`.
    """
    with ThreadPoolExecutor(1) as beside:
        written = beside.submit(write_volume, result.implant, folder / "implant.nrrd")
        for kind in ("stl", *(kind for kind in mesh_kinds(kinds) if kind != "stl")):
            write_mesh(result.mesh, folder / f"implant.{kind}", space)
        mesh = read_stl(folder / "implant.stl")
        compared = compare_stl(mesh, result.implant)
        written.result()
    return mesh, compared | {"sha256": sha256(folder / "implant.stl")}


def write_members(folder: Path, result: Design, space: str) -> None:
    """Writes candidates/implant_K.nrrd and .stl of each member, and uncertainty.nrrd.

    A member without a voxel has an empty volume, and no mesh.
    """
    candidates = folder / "candidates"
    candidates.mkdir()

    def write(numbered: tuple[int, Printed | None]) -> None:
        number, member = numbered
        if member is None:
            nothing = result.implant.with_mask(nothing_like(result.implant.mask))
            write_volume(nothing, candidates / f"implant_{number}.nrrd")
        else:
            write_volume(member.volume, candidates / f"implant_{number}.nrrd")
            write_stl(member.mesh, candidates / f"implant_{number}.stl", space)

    side_by_side(write, enumerate(result.members, 1), WRITERS)
    write_map(result.uncertainty, result.implant, folder / "uncertainty.nrrd")


def point_arrays(result: Design) -> dict[str, np.ndarray]:
    """The points behind an implant, mm, LPS, float32, by name.

    `prior` (N, 3): the missing surface as the shape model has it. `candidate_K` (N, 3): of each candidate that holds
    points. `trajectory` (K, T, N, 3) and its `captions` (T,), where points moved.
    """
    clouds = {"prior": result.fit.completed_surface()}
    for number, candidate in enumerate(result.proposal.candidates, 1):
        if (points := getattr(candidate, "points", None)) is not None:
            clouds[f"candidate_{number}"] = points
    arrays: dict[str, Any] = {}
    for name, cloud in clouds.items():
        missing = cloud if cloud.defect is None else cloud[cloud.defect > 0]
        arrays[name] = missing.points.astype(np.float32)
    if (trajectory := result.proposal.trajectory) is not None:
        arrays |= {"trajectory": trajectory.points, "captions": np.array(trajectory.captions)}
    return arrays


def write_points(result: Design, path: Path) -> dict[str, np.ndarray]:
    """Writes `point_arrays` as points.npz, and returns them."""
    arrays = point_arrays(result)
    with written_beside(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return arrays


def compare_stl(mesh: Mesh, implant: Volume) -> dict[str, Any]:
    """Fills the mesh of an STL with voxels and compares it with the volume whose surface it is.

    Returns triangles, volume_ml and dsc. Raises OutputError unless the mesh is closed, its normals point outward and
    its DSC with the volume is 0.97 at least.
    """
    if not mesh.is_watertight or mesh.volume_ml <= 0:
        raise OutputError("STL: expected a closed surface with outward normals, got another; please report it")
    index = implant.to_index(mesh.vertices)
    low, high = bounding_box(implant.mask)
    crop = implant.crop(np.minimum(low, np.floor(index.min(axis=0))), np.maximum(high, np.ceil(index.max(axis=0)) + 1))
    dsc = float(dice(mesh_to_mask(mesh, crop), crop.mask))
    if dsc < STL_DSC:
        raise OutputError(
            f"STL: expected a surface that agrees with its volume, DSC {STL_DSC} or more, got {dsc:.3f}; "
            "the implant may be thinner than the voxels can show: use a finer scan"
        )
    return {"triangles": len(mesh.faces), "volume_ml": round(mesh.volume_ml, 3), "dsc": round(dsc, 4)}
