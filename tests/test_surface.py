"""Spheres and boxes with known area, volume and normals on anisotropic, sheared and flipped grids."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pcdiff.errors import InputError
from pcdiff.geometry.mesh import Mesh
from pcdiff.geometry.surface import distance_to, sample_surface, vertex_normals, volume_to_mesh
from pcdiff.geometry.volume import Volume

RADIUS = 17.0  # mm
# spacing (mm), shear of a gantry tilt, flipped axes
GRIDS = [
    ((0.5, 0.5, 0.5), 0.0, (1, 1, 1)),
    ((0.5, 0.6, 0.9), 0.0, (-1, 1, 1)),
    ((0.45, 0.45, 1.2), 0.2, (-1, -1, 1)),
    ((0.8, 0.45, 0.6), -0.3, (-1, -1, -1)),
]


def grid(spacing: tuple[float, ...], shear: float, flips: tuple[int, ...], size_mm: float = 44.0) -> Volume:
    """An empty oblique volume of about size_mm per side."""
    sheared = np.eye(3)
    sheared[1, 2] = shear
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix() @ sheared * spacing * flips
    affine[:3, 3] = -80.0, 40.0, 1200.0
    return Volume(np.zeros(np.ceil(size_mm / np.array(spacing)).astype(int), bool), affine)


def centres(volume: Volume) -> np.ndarray:
    return volume.to_mm(np.stack(np.indices(volume.mask.shape), axis=-1).astype(float))


def middle(volume: Volume) -> np.ndarray:
    return volume.to_mm(np.array(volume.mask.shape) / 2)


def ball(volume: Volume) -> Volume:
    return volume.with_mask(np.linalg.norm(centres(volume) - middle(volume), axis=-1) < RADIUS)


def area_of(mesh: Mesh) -> float:
    """Surface area in mm2."""
    return float(np.linalg.norm(mesh.area_vectors, axis=1).sum())


def octahedron() -> Mesh:
    """Radius 10 mm about (100, 0, 0), outward."""
    vertices = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]]) * 10.0 + [100, 0, 0]
    faces = [[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]]
    return Mesh(vertices, np.array(faces))


@pytest.mark.parametrize(("spacing", "shear", "flips"), GRIDS)
def test_sphere(spacing: tuple[float, ...], shear: float, flips: tuple[int, ...]) -> None:
    volume = ball(grid(spacing, shear, flips))
    before = volume.mask.copy()
    mesh = volume_to_mesh(volume)
    assert mesh.is_watertight
    assert mesh.volume_ml == pytest.approx(4 / 3 * np.pi * RADIUS**3 / 1000, rel=0.01)  # positive: wound outward
    assert area_of(mesh) == pytest.approx(4 * np.pi * RADIUS**2, rel=0.01)
    radii = np.linalg.norm(mesh.vertices - middle(volume), axis=1)
    assert abs(radii.mean() - RADIUS) < 0.1
    assert np.abs(radii - RADIUS).max() < 0.6 * max(spacing)
    np.testing.assert_array_equal(volume.mask, before)

    cloud = sample_surface(mesh, 2000, np.random.default_rng(0))
    outward = (cloud.points - middle(volume)) / np.linalg.norm(cloud.points - middle(volume), axis=1)[:, None]
    cosine = (outward * cloud.normals).sum(axis=1)
    assert cosine.min() > 0.75
    assert np.degrees(np.arccos(cosine.clip(max=1))).mean() < 5
    np.testing.assert_allclose(np.linalg.norm(cloud.normals, axis=1), 1)


@pytest.mark.parametrize(("spacing", "shear", "flips"), GRIDS)
def test_box(spacing: tuple[float, ...], shear: float, flips: tuple[int, ...]) -> None:
    volume = grid(spacing, shear, flips, size_mm=64)
    mask = np.zeros(volume.mask.shape, bool)
    mask[3:-4, 5:-3, 4:-5] = True
    edges = volume.affine[:3, :3] * (np.array(mask.shape) - [7, 8, 9])
    area = 2 * sum(np.linalg.norm(np.cross(edges[:, a], edges[:, b])) for a, b in ((0, 1), (1, 2), (2, 0)))
    box = volume.with_mask(mask)
    assert volume_to_mesh(box).volume_ml == pytest.approx(box.ml, rel=0.01)
    sharp = volume_to_mesh(box, sigma_mm=0)  # smoothing would round the edges
    assert sharp.volume_ml == pytest.approx(box.ml, rel=0.002)
    assert area_of(sharp) == pytest.approx(area, rel=0.01)


def test_a_mask_at_the_border_is_closed_there() -> None:
    volume = grid((0.9, 0.9, 1.2), 0.1, (-1, 1, 1), size_mm=30)
    whole = volume.with_mask(np.ones(volume.mask.shape, bool))
    mesh = volume_to_mesh(whole)
    assert mesh.is_watertight
    assert mesh.volume_ml == pytest.approx(whole.ml, rel=0.01)


def test_a_crop_has_the_same_surface() -> None:
    volume = ball(grid((0.9, 0.9, 1.2), 0.1, (-1, 1, 1), size_mm=60))
    used = np.argwhere(volume.mask)
    cropped = volume.crop(used.min(axis=0), used.max(axis=0) + 1)
    np.testing.assert_allclose(volume_to_mesh(cropped).vertices, volume_to_mesh(volume).vertices, atol=1e-9)


def test_noise_has_a_closed_surface() -> None:
    volume = grid((0.9, 0.9, 1.2), 0.1, (-1, 1, 1), size_mm=25)
    noisy = volume.with_mask(np.random.default_rng(0).random(volume.mask.shape) < 0.5)
    mesh = volume_to_mesh(noisy)
    assert mesh.is_watertight
    edges = mesh.vertices[mesh.faces] - mesh.vertices[np.roll(mesh.faces, 1, axis=1)]
    assert np.linalg.norm(edges, axis=-1).min() > 5e-4  # mm; float32 steps are 1.2e-4 mm at 1,200 mm


def test_masks_without_a_surface_are_refused() -> None:
    volume = grid((0.9, 0.9, 0.9), 0, (1, 1, 1), size_mm=10)
    with pytest.raises(InputError, match="empty"):
        volume_to_mesh(volume)
    speck = np.zeros(volume.mask.shape, bool)
    speck[5, 5, 5] = True
    with pytest.raises(InputError, match="smaller sigma"):
        volume_to_mesh(volume.with_mask(speck))


def test_area_sampling_is_uniform_per_area() -> None:
    big, small = octahedron(), octahedron()
    both = Mesh(
        np.concatenate([big.vertices * 3, small.vertices]),
        np.concatenate([big.faces, small.faces + len(big.vertices)]),
    )
    cloud = sample_surface(both, 10_000, np.random.default_rng(0))
    on_big = cloud.points[:, 0] > 200  # around x = 300, nine times the area
    assert on_big.mean() == pytest.approx(0.9, abs=0.015)
    np.testing.assert_allclose(cloud.points[on_big].mean(axis=0), [300, 0, 0], atol=0.8)
    # |x| + |y| + |z| = radius on an octahedron: every point lies on a face
    np.testing.assert_allclose(np.abs(cloud.points[~on_big] - [100, 0, 0]).sum(axis=1), 10)


def test_sampling_is_uniform_inside_a_triangle() -> None:
    triangle = Mesh(np.array([[0.0, 0, 0], [8, 0, 0], [0, 4, 0]]), np.array([[0, 1, 2]]))
    cloud = sample_surface(triangle, 4000, np.random.default_rng(0))
    np.testing.assert_allclose(cloud.points.mean(axis=0), [8 / 3, 4 / 3, 0], atol=0.1)
    near_the_corner = cloud.points @ [1, 2, 0] < 4  # a quarter of the area
    assert near_the_corner.mean() == pytest.approx(0.25, abs=0.02)
    np.testing.assert_array_equal(cloud.normals, np.broadcast_to([0, 0, 1], (4000, 3)))


def test_both_sides_of_a_sheet_keep_their_normals() -> None:
    sheet = Mesh(np.array([[0.0, 0, 0], [8, 0, 0], [0, 4, 0]]), np.array([[0, 1, 2], [0, 2, 1]]))
    normals = sample_surface(sheet, 500, np.random.default_rng(0)).normals  # at the vertices, they cancel
    np.testing.assert_array_equal(np.abs(normals), np.broadcast_to([0, 0, 1], (500, 3)))
    assert 200 < (normals[:, 2] > 0).sum() < 300


def test_same_seed_same_points() -> None:
    first, again, other = (sample_surface(octahedron(), 100, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.points, again.points)
    np.testing.assert_array_equal(first.normals, again.normals)
    assert not np.array_equal(first.points, other.points)


def test_sampling_refuses() -> None:
    with pytest.raises(InputError, match="area"):
        sample_surface(Mesh(np.zeros((3, 3)), np.array([[0, 1, 2]])), 5, np.random.default_rng(0))
    with pytest.raises(InputError, match="area"):
        sample_surface(Mesh(np.zeros((0, 3)), np.zeros((0, 3), int)), 5, np.random.default_rng(0))


def test_distances_to_a_ball_are_finer_than_its_triangles():
    volume = ball(grid((0.9, 0.9, 0.9), 0.0, (1, 1, 1)))
    mesh = volume_to_mesh(volume)
    directions = np.random.default_rng(0).normal(size=(500, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for offset in (-3.0, -0.2, 0.0, 0.2, 3.0):
        found = distance_to(mesh, middle(volume) + (RADIUS + offset) * directions)
        assert np.median(found) == pytest.approx(offset, abs=0.05 + 0.03 * abs(offset))
        assert np.percentile(np.abs(found - np.median(found)), 95) < 0.3  # a third of an edge


def test_beside_a_surface_the_distance_is_to_its_edge():
    sheet = Mesh(np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0.0]]), np.array([[0, 1, 2], [1, 3, 2]]))
    assert np.allclose(vertex_normals(sheet), [0, 0, 1])
    height, beside = distance_to(sheet, np.array([[0.3, 0.4, 0.25], [11.0, 0, -0.25]]))
    assert height == pytest.approx(0.25)
    assert beside == pytest.approx(-np.hypot(0.25, 9))  # 10 mm from the corner, an edge of 1 mm counts as the surface
