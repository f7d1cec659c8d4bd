"""Mesh files, read back by trimesh in the units and axes of each format."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import SimpleITK as sitk
import trimesh

from pcdiff.errors import InputError
from pcdiff.geometry.mesh import Mesh, mesh_to_mask, read_stl
from pcdiff.geometry.mesh_files import MESH_KINDS, mesh_kinds, write_mesh
from pcdiff.geometry.metrics import dice
from pcdiff.geometry.surface import volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import write_volume


def box(low: tuple[float, float, float], high: tuple[float, float, float]) -> Mesh:
    solid = trimesh.creation.box(bounds=np.array([low, high]))
    return Mesh(np.asarray(solid.vertices), np.asarray(solid.faces))


BOX = box((10, -40, 50), (20, -20, 80))  # left, anterior and superior


def solid(path: Path) -> trimesh.Trimesh:
    """Reads a mesh; a 3MF by its XML, since trimesh needs another package for it."""
    if path.suffix != ".3mf":
        return trimesh.load_mesh(str(path))
    with ZipFile(path) as archive:
        assert {"[Content_Types].xml", "_rels/.rels"} <= set(archive.namelist())
        text = archive.read("3D/3dmodel.model").decode()
    assert '<model unit="millimeter"' in text
    vertices = np.array(re.findall(r'<vertex x="([^"]*)" y="([^"]*)" z="([^"]*)"/>', text), float)
    faces = np.array(re.findall(r'<triangle v1="(\d+)" v2="(\d+)" v3="(\d+)"/>', text), int)
    return trimesh.Trimesh(vertices, faces, process=False)


@pytest.mark.parametrize("space", ["lps", "ras"])
@pytest.mark.parametrize("kind", MESH_KINDS)
def test_each_kind_holds_the_solid_in_its_units_and_axes(kind: str, space: str, tmp_path: Path) -> None:
    path = tmp_path / f"implant.{kind}"
    write_mesh(BOX, path, space)
    found = solid(path)
    assert found.is_watertight
    if kind == "glb":  # metres; x left, y superior, z anterior, in both spaces
        expected = [[0.010, 0.050, 0.020], [0.020, 0.080, 0.040]]
    elif space == "lps":
        expected = [[10, -40, 50], [20, -20, 80]]
    else:
        expected = [[-20, 20, 50], [-10, 40, 80]]
    np.testing.assert_allclose(found.bounds, expected, atol=1e-5)
    assert found.volume == pytest.approx(6000e-9 if kind == "glb" else 6000, rel=1e-5), "outward"
    if kind in ("stl", "ply", "obj"):
        assert f"SPACE={space.upper()}; UNIT=mm".encode() in path.read_bytes()[:300]
    before = path.read_bytes()
    write_mesh(BOX, path, space)
    assert path.read_bytes() == before


def test_an_stl_in_ras_is_read_as_the_same_patient(tmp_path: Path) -> None:
    write_mesh(BOX, tmp_path / "implant.stl", "ras")
    mesh = read_stl(tmp_path / "implant.stl")
    np.testing.assert_allclose(mesh.vertices.min(axis=0), [10, -40, 50])
    assert mesh.volume_ml == pytest.approx(6)


def oblique() -> Volume:
    """An egg with a horn, no symmetry, on an anisotropic grid turned about all axes, mirrored, far from the origin."""
    turn = trimesh.transformations.euler_matrix(0.3, -0.5, 0.7)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-0.6, 0.8, 1.2])
    affine[:3, 3] = [40, -70, 900]
    index = np.stack(np.indices((80, 60, 50)), -1)
    mm = (index - [40, 30, 25]) * [0.6, 0.8, 1.2]
    egg = (mm / [18, 14, 20]) ** 2
    horn = np.linalg.norm(mm - [12, 10, 14], axis=-1) < 9
    return Volume((egg.sum(axis=-1) < 1) | horn, affine)


@pytest.mark.parametrize("space", ["lps", "ras"])
def test_the_mesh_lies_where_the_implant_is(space: str, tmp_path: Path) -> None:
    """On a third grid along the patient's axes: the volume resampled by ITK, and the mask of the mesh."""
    implant = oblique()
    write_volume(implant, tmp_path / "implant.nrrd")
    write_mesh(volume_to_mesh(implant), tmp_path / "implant.stl", space)
    raw = trimesh.load_mesh(str(tmp_path / "implant.stl"))
    points = np.asarray(raw.vertices) * (1 if space == "lps" else np.array([-1, -1, 1]))  # ITK's space is LPS
    mm = implant.to_mm(np.argwhere(implant.mask))
    low, size = mm.min(axis=0) - 5, np.ceil(np.ptp(mm, axis=0) / 0.5 + 20).astype(int)
    straight = np.diag([0.5, 0.5, 0.5, 1.0])
    straight[:3, 3] = low
    grid = Volume(np.zeros(tuple(size), bool), straight)
    filled = mesh_to_mask(replace(BOX, vertices=points, faces=np.asarray(raw.faces)), grid)
    image = sitk.Image([int(n) for n in size], sitk.sitkUInt8)
    image.SetSpacing([0.5] * 3)
    image.SetOrigin([float(x) for x in low])
    itk = sitk.ReadImage(str(tmp_path / "implant.nrrd"))
    resampled = sitk.Resample(itk, image, sitk.Transform(), sitk.sitkNearestNeighbor)
    expected = sitk.GetArrayFromImage(resampled).T.astype(bool)
    assert expected.sum() * 0.125 == pytest.approx(implant.ml * 1000, rel=0.01)
    assert dice(filled, expected) > 0.97
    assert dice(np.roll(filled, 4, axis=0), expected) < 0.95, "a shift of two millimetres shows"


def test_kinds_are_separated_by_commas() -> None:
    assert mesh_kinds("GLB, .stl,glb") == ("stl", "glb")
    with pytest.raises(InputError, match="unknown mesh file 'step': expected some of stl, ply"):
        mesh_kinds("stl,step")


def test_impossible_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mesh space 'las'"):
        write_mesh(BOX, tmp_path / "a.stl", "las")
    with pytest.raises(InputError, match="unknown mesh file"):
        write_mesh(BOX, tmp_path / "a")
    for kind in MESH_KINDS:
        with pytest.raises(InputError, match="there is no implant to write"):
            write_mesh(Mesh(np.zeros((0, 3)), np.zeros((0, 3), int)), tmp_path / f"a.{kind}")
    assert not list(tmp_path.iterdir())
