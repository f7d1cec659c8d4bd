"""Area and volume in closed form, STL files, and the mask of a mesh against the solid that it encloses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from skimage.measure import marching_cubes

from pcdiff.errors import InputError
from pcdiff.geometry.mesh import Mesh, mesh_to_mask, read_stl, write_stl
from pcdiff.geometry.surface import isosurface, volume_to_mesh
from pcdiff.geometry.volume import Volume


def box(low: list[float], high: list[float]) -> Mesh:
    """Outward: two triangles on each of six sides, every one cut along a diagonal."""
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), axis=-1).reshape(8, 3)  # 4 x + 2 y + z
    sides = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    return Mesh(corners.astype(float), np.array([half for a, b, c, d in sides for half in ([a, b, c], [a, c, d])]))


def oblique(shape: tuple[int, int, int], spacing: tuple[float, float, float], flip: int = -1) -> Volume:
    affine = np.eye(4)
    shear = np.eye(3)
    shear[1, 2] = 0.15
    rotation = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix()
    affine[:3, :3] = rotation @ shear * spacing * (flip, 1, 1)
    affine[:3, 3] = -80.0, 140.0, 1200.0
    return Volume(np.zeros(shape, bool), affine)


def centres(volume: Volume) -> np.ndarray:
    return volume.to_mm(np.stack(np.indices(volume.mask.shape), axis=-1).astype(float))


def bowl() -> Volume:
    """A cap of a spherical shell, 60 to 65 mm from its centre: 5 mm of bone in voxels of 0.45 mm."""
    volume = oblique((112, 112, 50), (0.45, 0.45, 0.5))
    points = centres(volume)
    axis = volume.affine[:3, 2] / np.linalg.norm(volume.affine[:3, 2])
    centre = volume.to_mm(np.array([56.0, 56, 44])) - 65 * axis
    radius = np.linalg.norm(points - centre, axis=-1)
    cosine = (points - centre) @ axis / radius
    return volume.with_mask((radius > 60) & (radius < 65) & (cosine > np.cos(np.radians(19))))


def dsc(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_box_in_numbers() -> None:
    mesh = box([1000, -3, 5], [1002, 0, 9])  # 2 x 3 x 4 mm
    assert np.linalg.norm(mesh.area_vectors, axis=1).sum() == pytest.approx(2 * (6 + 8 + 12))
    assert mesh.volume_ml == pytest.approx(0.024, rel=1e-12)
    assert Mesh(mesh.vertices, mesh.faces[:, ::-1]).volume_ml == pytest.approx(-0.024, rel=1e-12)
    assert mesh.is_watertight
    assert not Mesh(mesh.vertices, mesh.faces[1:]).is_watertight
    assert Mesh(np.zeros((0, 3)), np.zeros((0, 3), int)).volume_ml == 0
    with pytest.raises(ValueError, match="faces"):
        Mesh(mesh.vertices, mesh.faces[0])


def test_stl_format(tmp_path: Path) -> None:
    mesh = box([10, 20, 30], [12, 23, 34])
    path = tmp_path / "a.stl"
    write_stl(mesh, path)
    raw = path.read_bytes()
    assert len(raw) == 84 + 50 * 12
    assert b"SPACE=LPS" in raw[:80]
    assert not raw.startswith(b"solid")
    assert int.from_bytes(raw[80:84], "little") == 12
    first = np.frombuffer(raw[84:132], "<f4").reshape(4, 3)
    np.testing.assert_array_equal(first[0], [-1, 0, 0])  # the side at low x looks to -x
    np.testing.assert_array_equal(first[1:], mesh.vertices[mesh.faces[0]])
    again = read_stl(path)
    assert again.vertices.shape == (8, 3)
    assert again.is_watertight
    assert again.volume_ml == pytest.approx(0.024)
    assert list(tmp_path.iterdir()) == [path]


def test_a_bowl_is_the_same_after_writing_and_reading(tmp_path: Path) -> None:
    volume = bowl()
    mesh = volume_to_mesh(volume)
    write_stl(mesh, tmp_path / "a.stl")
    again = read_stl(tmp_path / "a.stl")
    assert again.is_watertight
    assert again.volume_ml == pytest.approx(mesh.volume_ml, rel=1e-5)
    assert dsc(mesh_to_mask(again, volume), volume.mask) >= 0.97  # the required value
    assert dsc(mesh_to_mask(again, volume), volume.mask) > 0.99


def test_slivers_that_float32_collapses_leave_no_defect(tmp_path: Path) -> None:
    mesh = box([1000, 1000, 1000], [1010, 1010, 1010])
    # Split the edge 0-1 of two sides close to its end: that triangle's corners coincide in float32.
    near = mesh.vertices[0] + [0, 0, 1e-6]
    faces = []
    for face in mesh.faces.tolist():
        for k in range(3):
            a, b, c = face[k], face[(k + 1) % 3], face[(k + 2) % 3]
            if {a, b} == {0, 1}:
                faces += [[a, 8, c], [8, b, c]]
                break
        else:
            faces.append(face)
    split = Mesh(np.vstack([mesh.vertices, near]), np.array(faces))
    assert split.is_watertight
    assert len(split.faces) == 14
    write_stl(split, tmp_path / "a.stl")
    again = read_stl(tmp_path / "a.stl")
    assert len(again.faces) == 12
    assert again.is_watertight


def test_refused_meshes_and_files(tmp_path: Path) -> None:
    empty = Mesh(np.zeros((0, 3)), np.zeros((0, 3), int))
    with pytest.raises(InputError, match="empty"):
        write_stl(empty, tmp_path / "a.stl")
    with pytest.raises(InputError, match="create"):
        write_stl(box([0, 0, 0], [1, 1, 1]), tmp_path / "missing" / "a.stl")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="found none"):
        read_stl(tmp_path / "a.stl")
    write_stl(box([0, 0, 0], [1, 1, 1]), tmp_path / "a.stl")
    whole = (tmp_path / "a.stl").read_bytes()
    for broken in (b"", b"hello", b"solid a", whole[:50], whole[:-70], whole[:80] + bytes(4)):
        (tmp_path / "a.stl").write_bytes(broken)
        with pytest.raises(InputError, match="STL"):
            read_stl(tmp_path / "a.stl")


def test_mask_of_a_box_is_exact() -> None:
    grid = Volume(np.zeros((9, 8, 7), bool), np.diag([1.0, 1.0, 1.0, 1.0]))
    expected = np.zeros((9, 8, 7), bool)
    expected[2:6, 1:5, 3:6] = True
    between = box([1.5, 0.5, 2.5], [5.5, 4.5, 5.5])
    np.testing.assert_array_equal(mesh_to_mask(between, grid), expected)
    # Through voxel centres, all edges and diagonals on the lattice: still every column in and out again, and the box
    # of 4 x 4 x 3 steps holds as many centres as its volume.
    through = mesh_to_mask(box([2, 1, 3], [6, 5, 6]), grid)
    assert through.sum() == 48
    assert through[3:6, 2:5, 4:6].all()
    inward = Mesh(between.vertices, between.faces[:, ::-1])
    np.testing.assert_array_equal(mesh_to_mask(inward, grid), expected)
    beyond = mesh_to_mask(box([-40, 2.5, -9], [90, 3.5, 50]), grid)  # larger than the grid
    np.testing.assert_array_equal(beyond, np.broadcast_to(np.arange(8)[None, :, None] == 3, beyond.shape))
    assert not mesh_to_mask(box([20, 20, 20], [30, 30, 30]), grid).any()
    assert not mesh_to_mask(Mesh(np.zeros((0, 3)), np.zeros((0, 3), int)), grid).any()
    with pytest.raises(ValueError, match="4096 voxels"):
        mesh_to_mask(box([0, 0, 0], [5000, 1, 1]), grid)


@pytest.mark.parametrize("order", ["C", "F"])
def test_mask_of_an_unsmoothed_surface_is_the_mask(order: str) -> None:
    # Noise: thousands of vertices straight above voxel centres, where parity leaks if edges are decided one by one.
    volume = oblique((21, 23, 19), (0.5, 0.8, 1.1), flip=1)
    noise = np.asarray(np.random.default_rng(0).random((21, 23, 19)) < 0.4, order=order)  # type: ignore[call-overload]
    solid = volume.with_mask(noise)
    np.testing.assert_array_equal(mesh_to_mask(volume_to_mesh(solid, smooth=False), volume), solid.mask)


def test_mask_of_a_ball_is_its_centres() -> None:
    volume = oblique((40, 30, 24), (0.9, 1.2, 1.5))
    centre = volume.to_mm(np.array([20.2, 14.9, 11.7]))
    distance = np.linalg.norm(centres(volume) - centre, axis=-1)
    affine = np.diag([0.4, 0.4, 0.4, 1.0])
    affine[:3, 3] = centre - 0.4 * 34.5
    fine = Volume(np.zeros((70, 70, 70), bool), affine)
    ball = fine.with_mask(np.linalg.norm(centres(fine) - centre, axis=-1) < 12)
    mask = mesh_to_mask(volume_to_mesh(ball), volume)
    sure = np.abs(distance - 12) > 0.3  # the fine mesh is that good
    np.testing.assert_array_equal(mask[sure], distance[sure] < 12)
    assert 3000 < mask.sum() < 6000


def test_sheets_between_ambiguous_cells_are_left_out() -> None:
    rng, grid = np.random.default_rng(0), Volume(np.zeros((5, 5, 5), bool), np.eye(4))
    with_sheets = 0
    for _ in range(400):
        values = np.zeros((5, 5, 5), np.float32)
        values[1:4, 1:4, 1:4] = rng.random((3, 3, 3)) < 0.5
        _, faces, _, _ = marching_cubes(values, 0.5, allow_degenerate=False)
        with_sheets += len(np.unique(np.sort(faces, axis=1), axis=0)) < len(faces)
        assert isosurface(values, 0.5, grid, np.zeros(3)).is_watertight
    assert with_sheets > 0
