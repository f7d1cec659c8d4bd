"""Boxes, borders, components and interpolation weights on a voxel grid, counted by hand or against a plain loop."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from pcdiff.geometry.directions import orthonormal_pair
from pcdiff.geometry.grid import (
    bounding_box,
    box_slices,
    components,
    dilated,
    eroded,
    largest_components,
    voxel_border,
    voxels_per_mm,
)
from pcdiff.geometry.interpolator import Interpolator
from pcdiff.geometry.trilinear import trilinear_corners
from pcdiff.geometry.volume import Volume


def test_the_box_of_a_mask() -> None:
    mask = np.zeros((6, 7, 8), bool)
    assert [side.tolist() for side in bounding_box(mask)] == [[0, 0, 0], [0, 0, 0]]
    mask[2, 3, 4] = mask[5, 3, 6] = True
    low, high = bounding_box(mask)
    assert (low.tolist(), high.tolist()) == ([2, 3, 4], [6, 4, 7])
    assert mask[box_slices(low, high)].shape == (4, 1, 3)


def test_a_crop_returns_to_its_place() -> None:
    mask = np.random.default_rng(0).random((6, 7, 8)) < 0.3
    volume = Volume(np.asfortranarray(mask), np.eye(4), {"space": "LPS"})
    low, high = np.array([1, 2, 3]), np.array([4, 6, 8])
    whole = volume.with_crop(volume.crop(low, high).mask, low)
    np.testing.assert_array_equal(whole.mask[box_slices(low, high)], mask[box_slices(low, high)])
    assert whole.mask.sum() == mask[box_slices(low, high)].sum()
    assert whole.mask.flags.f_contiguous
    assert whole.header is volume.header


def test_the_border_at_the_end_of_the_grid() -> None:
    bar = np.zeros((5, 5, 5), bool)
    bar[:, 1:4, 1:4] = True  # through the whole grid: only the voxels of its axis are not at its sides
    closed, cut_off = voxel_border(bar, "background"), voxel_border(bar, "edge")
    assert np.argwhere(bar & ~closed).tolist() == [[1, 2, 2], [2, 2, 2], [3, 2, 2]]
    assert np.argwhere(bar & ~cut_off).tolist() == [[i, 2, 2] for i in range(5)]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_masks_grow_and_shrink_from_face_to_face(steps: int, order: Literal["C", "F"]) -> None:
    mask = np.asarray(np.random.default_rng(0).random((9, 10, 11)) < 0.1, order=order)
    np.testing.assert_array_equal(dilated(mask, steps), ndimage.binary_dilation(mask, iterations=steps))
    np.testing.assert_array_equal(eroded(~mask, steps), ndimage.binary_erosion(~mask, iterations=steps))


def test_voxels_per_mm_of_a_sheared_grid() -> None:
    axes = np.diag([0.5, 0.8, 1.25])
    np.testing.assert_allclose(voxels_per_mm(axes), [2, 1.25, 0.8])
    axes[1, 2] = 1.25  # each slice lies further along j: its planes keep their distance, those along j come closer
    np.testing.assert_allclose(voxels_per_mm(axes), [2, 1.25 * np.sqrt(2), 0.8])
    affine = np.eye(4)
    affine[:3, :3] = axes
    np.testing.assert_array_equal(Volume(np.zeros((1, 1, 1), bool), affine).voxels_per_mm, voxels_per_mm(axes))


def test_components_by_size() -> None:
    mask = np.zeros((10, 3, 3), bool)
    mask[0, 0, 0] = mask[1, 1, 0] = True  # connected by an edge
    mask[4:6, 0, 0] = mask[8:10, 2, 2] = True
    assert not largest_components(np.zeros_like(mask)).any()
    assert np.argwhere(largest_components(mask)).tolist() == [[4, 0, 0], [5, 0, 0]]  # the first of equals
    assert largest_components(mask, 2).sum() == 4
    np.testing.assert_array_equal(largest_components(mask, 9), mask)
    assert np.argwhere(largest_components(mask, corners=True)).tolist() == [[0, 0, 0], [1, 1, 0]]
    mask[4, 0, 2] = True
    parts = [voxels.tolist() for voxels in components(mask)]
    assert parts == [[[0, 0, 0], [1, 1, 0]], [[4, 0, 0], [5, 0, 0]], [[8, 2, 2], [9, 2, 2]], [[4, 0, 2]]]
    assert components(np.zeros_like(mask)) == []


@pytest.mark.parametrize("periodic", [True, False])
def test_trilinear_weights_interpolate(periodic: bool) -> None:
    rng = np.random.default_rng(0)
    shape = (4, 5, 6)
    field, index = rng.random(shape), rng.random((50, 3)) * (np.array(shape) - 1)
    flat, weight = trilinear_corners(index, shape, periodic)
    np.testing.assert_allclose((field.ravel()[flat] * weight).sum(-1), map_coordinates(field, index.T, order=1))
    for like in (torch.from_numpy(index), torch.from_numpy(index).reshape(2, 25, 3)):
        cells, weights = trilinear_corners(like, shape, periodic)
        assert cells.dtype == torch.int64
        assert cells.shape == weights.shape == (*like.shape[:-1], 8)
        np.testing.assert_array_equal(cells.reshape(-1, 8).numpy(), flat)
        np.testing.assert_array_equal(weights.reshape(-1, 8).numpy(), weight)


def test_trilinear_cells_at_the_end_of_the_grid() -> None:
    index = np.array([[3.25, 0.0, 0.0]])
    (wrapped,), _ = trilinear_corners(index, (4, 1, 1), periodic=True)
    (clamped,), _ = trilinear_corners(index, (4, 1, 1), periodic=False)
    assert set(wrapped) == {0, 3}
    assert set(clamped) == {3}


@pytest.mark.parametrize("shape", [(3,), (20, 3)])
def test_axes_at_right_angles(shape: tuple[int, ...]) -> None:
    direction = np.random.default_rng(0).normal(size=shape)
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    axes = np.stack([direction, *orthonormal_pair(direction)], -2)
    np.testing.assert_allclose(axes @ np.swapaxes(axes, -1, -2), np.broadcast_to(np.eye(3), axes.shape), atol=1e-12)


def test_a_volume_knows_its_grid() -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix() * (0.45, 0.7, 1.25)
    affine[:3, 3] = -120.2, 1 / 3, 1234.5678
    volume = Volume(np.random.default_rng(3).random((7, 6, 5)) < 0.4, affine)
    np.testing.assert_allclose(volume.spacing, [0.45, 0.7, 1.25])
    assert volume.ml == pytest.approx(volume.mask.sum() * 0.45 * 0.7 * 1.25 / 1000)
    index = np.random.default_rng(0).random((4, 3)) * 5
    np.testing.assert_allclose(volume.to_index(volume.to_mm(index)), index)
    crop = volume.crop(np.array([1, 2, -3]), np.array([4, 99, 3]))
    np.testing.assert_array_equal(crop.mask, volume.mask[1:4, 2:, :3])
    np.testing.assert_allclose(crop.to_mm(np.zeros(3)), volume.to_mm(np.array([1.0, 2, 0])))
    with pytest.raises(ValueError, match="bool"):
        Volume(volume.mask.astype(int), volume.affine)
    with pytest.raises(ValueError, match="shape"):
        volume.with_mask(volume.mask[1:])


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_mostly_empty_volume_is_interpolated_as_any_other(order: Literal["C", "F"]) -> None:
    rng = np.random.default_rng(0)
    values = np.zeros((9, 12, 7), np.uint8, order)
    values[tuple(rng.integers(0, values.shape, (40, 3)).T)] = 200
    whole = np.stack(np.meshgrid(*(np.arange(n) for n in values.shape), indexing="ij")).reshape(3, -1)
    index = np.concatenate([rng.uniform(-3, 15, (3, 4000)), whole, whole - 1e-7], axis=1).astype(np.float32)
    expected = map_coordinates(values, index, np.float32, order=1)
    assert 200 < np.count_nonzero(expected) < len(expected) / 2
    assert np.array_equal(Interpolator(values)(index), expected)
