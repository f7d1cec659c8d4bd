"""The mesh of a mask is smooth across its terraces: an analytic vault, sampled at coarse and fine voxels."""

from __future__ import annotations

import numpy as np
import pytest

from pcdiff.checks.distances import bone_gap
from pcdiff.checks.printable import self_intersections
from pcdiff.geometry.mesh import Mesh, label_bodies, mesh_to_mask
from pcdiff.geometry.surface import INTO_BONE_MM, volume_to_mesh
from pcdiff.geometry.volume import Volume

OUTER, INNER, HOLE = 80.0, 74.0, np.deg2rad(22)
CENTRE = np.array([0.13, -0.21, 0.33])
SPACINGS = [(0.5, 0.5, 0.5), (0.8, 0.8, 0.8), (1.5, 1.5, 1.5), (3.0, 3.0, 3.0), (0.7, 0.7, 3.0)]


def vault(spacing: tuple[float, float, float]) -> tuple[Volume, Volume]:
    """(skull with a round defect at its top, the plug that fills it)."""
    extent = np.array([68.0, 68.0, 24.0])
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-34.0, -34.0, 61.0]
    empty = Volume(np.zeros(np.ceil(extent / spacing).astype(int), bool), affine)
    points = empty.to_mm(np.stack(np.indices(empty.mask.shape), -1).astype(float)) - CENTRE
    radius = np.linalg.norm(points, axis=-1)
    wall, defect = (radius < OUTER) & (radius > INNER), points[..., 2] / radius > np.cos(HOLE)
    return empty.with_mask(wall & ~defect), empty.with_mask(wall & defect)


def free_surface(mesh: Mesh, radius: float, spacing: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Away from the rim: mm of the vertices above a sphere, and degrees of their normals from the sphere's."""
    rays = mesh.vertices - CENTRE
    distance = np.linalg.norm(rays, axis=1)
    rays = rays / distance[:, None]
    inside = (np.arccos(rays[:, 2]) < HOLE - (3 + max(spacing)) / OUTER) & (np.abs(distance - radius) < 2.9)
    cosine = np.abs((mesh.vertex_normals * rays).sum(1))[inside]
    return distance[inside] - radius, np.rad2deg(np.arccos(np.minimum(cosine, 1)))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_mesh_of_a_vault_is_smooth(spacing: tuple[float, float, float]) -> None:
    skull, plug = vault(spacing)
    stairs, mesh = volume_to_mesh(plug, smooth=False), volume_to_mesh(plug, skull)
    for radius in (OUTER, INNER):
        (rough, jagged), (height, jitter) = (free_surface(each, radius, spacing) for each in (stairs, mesh))
        assert np.abs(height).max() < max(spacing) / 2
        assert height.std() < 0.5 * rough.std()
        assert jitter.mean() < 0.3 * jagged.mean()


@pytest.mark.parametrize("spacing", SPACINGS)
def test_it_is_one_closed_body_of_the_same_voxels_that_spares_the_bone(spacing: tuple[float, float, float]) -> None:
    skull, plug = vault(spacing)
    mesh = volume_to_mesh(plug, skull)
    assert mesh.is_watertight
    assert mesh.volume_ml == pytest.approx(plug.ml, rel=0.03 * max(spacing))  # along the rim it may not reach into bone
    assert label_bodies(mesh).max() == 0
    assert len(self_intersections(mesh)) == 0
    assert not (mesh_to_mask(mesh, plug) & ~plug.mask).any()
    assert bone_gap(mesh.vertices, skull).min() > -INTO_BONE_MM - 1e-6
    assert bone_gap(volume_to_mesh(plug).vertices, skull).min() < -INTO_BONE_MM


def test_a_plane_and_its_edges_stay() -> None:
    mask = np.zeros((50, 50, 20), bool)
    mask[4:46, 4:46, 6:14] = True
    block = Volume(mask, np.diag([0.8, 0.8, 0.8, 1.0]))
    mesh = volume_to_mesh(block)
    plain = volume_to_mesh(block, smooth=False)
    index = block.to_index(mesh.vertices)
    inside = (index[:, :2] > 8).all(1) & (index[:, :2] < 42).all(1)
    np.testing.assert_allclose(np.abs(index[inside, 2] - 9.5), 4, atol=0.2)
    assert np.abs(index[:, 2] - 9.5).max() < 4.2  # no ridge along the edge
    np.testing.assert_allclose(mesh.vertices.max(0), plain.vertices.max(0), atol=0.5 * 0.8)
