"""Reconstruction from points of spheres and spherical shells, whose solids are known in closed form."""

import sys

import numpy as np
import pytest
from scipy.ndimage import label

from pcdiff.errors import InputError
from pcdiff.geometry.grid import box_slices, voxels_per_mm
from pcdiff.geometry.points import PointCloud
from pcdiff.geometry.volume import Volume
from pcdiff.reconstruct import indicator, reconstruct, region
from pcdiff.reconstruct.finish import REACH_MM, close_seam, finish, one_piece_per_defect, without_slivers
from pcdiff.reconstruct.spectral import local_areas

OUTER, INNER = 30.0, 24.0  # mm, of a small vault
DEFECT, BAND = np.radians(28), np.radians(48)  # half angles at the centre
TURN = np.linalg.qr(np.array([[0.9, 0.3, -0.2], [-0.3, 0.95, 0.1], [0.25, 0.0, 0.97]]))[0]
AFFINES = {
    "isotropic": np.eye(3),
    "anisotropic": np.diag([0.8, 1.0, 1.4]),
    "oblique": TURN @ np.diag([0.8, 1.0, 1.3]),
    "flipped": TURN @ np.diag([-1.0, 0.9, 1.2]),
    "sheared": np.array([[1.0, 0.6, 0.0], [0.0, 0.8, 0.0], [0.0, 0.4, 1.0]]),
}


def grid(matrix: np.ndarray, half_mm: float) -> Volume:
    """An empty grid centred on the origin that holds a ball of the given radius."""
    shape = 2 * np.ceil(half_mm * voxels_per_mm(matrix)).astype(int) + 1
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = -matrix @ ((shape - 1) / 2)
    return Volume(np.zeros(shape, bool), affine)


def centres(volume: Volume) -> np.ndarray:
    """(I, J, K, 3) mm of every voxel centre."""
    return volume.to_mm(np.moveaxis(np.indices(volume.mask.shape), 0, -1).astype(float))


def dsc(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def cap(n: int, rng: np.random.Generator, angle: float = np.pi) -> np.ndarray:
    """(n, 3) unit vectors, uniform over the cap of half angle `angle` around +z."""
    z = rng.uniform(np.cos(angle), 1, n)
    phi = rng.uniform(0, 2 * np.pi, n)
    return np.stack([np.sqrt(1 - z**2) * np.cos(phi), np.sqrt(1 - z**2) * np.sin(phi), z], -1)


def ball(radius: float, n: int, rng: np.random.Generator, shift: float = 0.0) -> PointCloud:
    normals = cap(n, rng)
    return PointCloud(radius * normals + [shift, 0, 0], normals, np.ones(n, int))


def completed_surface(
    rng: np.random.Generator, pole: int = 1, defect: int = 1, shift: float = 0.0, n: int = 5000
) -> PointCloud:
    """The completed shell around one pole (+z or -z): both tables and the cone at the end of the band.

    shift: mm by which the tables are moved outward inside the defect, less near its rim.
    """
    outer, inner = cap(n, rng, BAND), cap(int(n * (INNER / OUTER) ** 2), rng, BAND)
    table = np.concatenate([outer, inner])
    radius = np.r_[np.full(len(outer), OUTER), np.full(len(inner), INNER)]
    theta = np.arccos(table[:, 2])
    radius += shift * np.clip((DEFECT - theta) / 0.1, 0, 1)
    side = n // 3
    phi, r = rng.uniform(0, 2 * np.pi, side), np.sqrt(rng.uniform(INNER**2, OUTER**2, side))
    ring = np.stack([np.cos(phi), np.sin(phi), np.zeros(side)], -1)
    cone = np.sin(BAND) * ring + [0, 0, np.cos(BAND)]
    cone_normal = np.cos(BAND) * ring - [0, 0, np.sin(BAND)]
    points = np.concatenate([table * radius[:, None], cone * r[:, None]])
    normals = np.concatenate([outer, -inner, cone_normal])
    label = np.r_[np.where(theta < DEFECT, defect, 0), np.zeros(side, int)]
    return PointCloud(points * [1, 1, pole], normals * [1, 1, pole], label)


def joined(*clouds: PointCloud) -> PointCloud:
    return PointCloud(*(np.concatenate([getattr(c, f) for c in clouds]) for f in ("points", "normals", "defect")))


def skull_with_defects(matrix: np.ndarray, poles: tuple[int, ...]) -> tuple[Volume, list[np.ndarray]]:
    """A spherical shell with a defect at each pole, and the true implant of each."""
    empty = grid(matrix, OUTER + 3)
    x = centres(empty)
    radius = np.linalg.norm(x, axis=-1)
    shell = (radius <= OUTER) & (radius >= INNER)
    implants = [shell & (pole * x[..., 2] > np.cos(DEFECT) * radius) for pole in poles]
    return empty.with_mask(shell & ~np.any(implants, axis=0)), implants


@pytest.mark.parametrize("matrix", AFFINES.values(), ids=AFFINES)
def test_ball_on_any_grid(matrix: np.ndarray) -> None:
    volume = grid(matrix, 22)
    truth = np.linalg.norm(centres(volume), axis=-1) < 18
    field = indicator(ball(18, 8000, np.random.default_rng(0)), volume, box=(np.zeros(3, int), volume.mask.shape))
    assert dsc(field.values > 0.5, truth) > 0.98
    deep = np.linalg.norm(centres(volume), axis=-1)
    assert field.values.dtype == np.float32
    # A true indicator, not just a level set; smoothing takes sigma / radius off the value at so small a ball's surface.
    assert np.median(field.values[deep < 12]) == pytest.approx(1, abs=0.08)
    assert np.median(field.values[deep > 21]) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("matrix", AFFINES.values(), ids=AFFINES)
def test_completed_surface_on_any_grid(matrix: np.ndarray) -> None:
    skull, _ = skull_with_defects(matrix, (1,))
    x = centres(skull)
    radius = np.linalg.norm(x, axis=-1)
    truth = (radius <= OUTER) & (radius >= INNER) & (x[..., 2] > np.cos(BAND) * radius)
    field = indicator(completed_surface(np.random.default_rng(0)), skull)
    solid = np.zeros_like(truth)
    solid[box_slices(field.low, field.low + field.values.shape)] = field.values > 0.5
    assert dsc(solid, truth) > 0.97


def test_region_holds_the_points_with_a_margin_and_stays_on_the_grid() -> None:
    volume = grid(AFFINES["oblique"], 25)
    points = ball(10, 500, np.random.default_rng(0))
    low, high = region(points, volume, margin_mm=4)
    index = volume.to_index(points.points)
    assert (low >= 0).all()
    assert (high <= volume.mask.shape).all()
    assert ((index.min(0) - low) * volume.spacing >= 4).all()
    assert ((high - 1 - index.max(0)) * volume.spacing >= 4).all()
    assert region(points.moved(points.points + np.array([20, 0, 0])), volume)[1].max() <= max(volume.mask.shape)


def test_areas_sum_to_the_surface_at_any_density() -> None:
    points = ball(18, 12000, np.random.default_rng(0))
    dense_on_one_side = points[(points.points[:, 0] > 0) | (np.arange(len(points)) % 8 == 0)]
    for cloud in (points, dense_on_one_side):
        assert local_areas(cloud).sum() == pytest.approx(4 * np.pi * 18**2, rel=0.05)


def test_areas_are_those_of_one_table_of_thin_bone() -> None:
    rng = np.random.default_rng(0)
    flat = np.c_[rng.uniform(-20, 20, (4000, 2)), np.zeros(4000)]
    flat[2000:, 2] = -0.5
    normals = np.tile([0.0, 0, 1], (4000, 1))
    normals[2000:] *= -1
    middle = np.abs(flat[:, :2]).max(1) < 17
    # Few neighbours of the same table among 16: the mean of 1 / m is 6 % over 1 / mean of m.
    assert local_areas(PointCloud(flat, normals))[middle].mean() == pytest.approx(1600 / 2000, rel=0.1)


def test_uneven_density_does_not_bend_the_surface() -> None:
    volume = grid(np.eye(3), 22)
    points = ball(18, 16000, np.random.default_rng(1))
    uneven = points[(points.points[:, 0] > 0) | (np.arange(len(points)) % 8 == 0)]
    x = centres(volume)
    field = indicator(uneven, volume, box=(np.zeros(3, int), volume.mask.shape))
    truth = np.linalg.norm(x, axis=-1) < 18
    for half in (x[..., 0] > 0, x[..., 0] < 0):
        assert np.count_nonzero((field.values > 0.5) & half) == pytest.approx(np.count_nonzero(truth & half), rel=0.02)


def test_less_noise_less_error() -> None:
    skull, (truth,) = skull_with_defects(np.eye(3), (1,))
    rng = np.random.default_rng(0)
    points = completed_surface(rng)
    noise = rng.standard_normal(points.points.shape)
    coarse, fine = (dsc(reconstruct(points.moved(points.points + s * noise), skull).mask, truth) for s in (1.2, 0.6))
    assert 0.9 < coarse < fine < 1


@pytest.mark.parametrize("poles", [(1,), (1, -1)], ids=["one defect", "two defects"])
@pytest.mark.parametrize("matrix", [AFFINES["isotropic"], AFFINES["flipped"]], ids=["isotropic", "flipped"])
def test_implant_fills_each_defect_in_one_piece(matrix: np.ndarray, poles: tuple[int, ...]) -> None:
    skull, truths = skull_with_defects(matrix, poles)
    before = skull.mask.copy()
    rng = np.random.default_rng(0)
    points = joined(*(completed_surface(rng, pole, k) for k, pole in enumerate(poles, start=1)))
    implant = reconstruct(points, skull)

    assert np.array_equal(skull.mask, before)
    assert implant.affine is skull.affine
    assert not (implant.mask & skull.mask).any()
    assert label(implant.mask)[1] == len(poles)
    for truth, pole in zip(truths, poles, strict=True):
        assert dsc(implant.mask & (pole * centres(skull)[..., 2] > 0), truth) > 0.95
    x = centres(skull)[implant.mask]
    beyond = np.arccos(np.abs(x[:, 2]) / np.linalg.norm(x, axis=1)) - DEFECT
    assert beyond.max() * OUTER < 3  # no sliver on the surrounding bone
    assert np.array_equal(implant.mask, reconstruct(points, skull).mask)


def test_ensemble_yields_the_surface_midway() -> None:
    skull, (truth,) = skull_with_defects(np.eye(3), (1,))
    rng = np.random.default_rng(0)
    out, back = completed_surface(rng, shift=1.0), completed_surface(rng, shift=-1.0)
    singles = [dsc(reconstruct(c, skull).mask, truth) for c in (out, back)]
    assert max(singles) < 0.93
    assert dsc(reconstruct([out, back], skull).mask, truth) > 0.96


def test_small_islands_and_voxels_of_no_defect_are_removed() -> None:
    mask, owner = np.zeros((20, 10, 10), bool), np.zeros((20, 10, 10), np.int16)
    owner[:8], owner[12:] = 1, 3  # label 2 has no voxel
    owner[2, 8, 8] = 3  # the boxes around the labels overlap
    mask[1:4, 1:4, 1:4] = True
    mask[6, 6, 6] = True  # island of defect 1
    mask[10, 5, 5] = True  # of no defect
    mask[13:15, 2:4, 2:4] = True  # smaller than defect 1's piece, but the largest of defect 3
    expected = mask.copy()
    expected[6, 6, 6] = expected[10, 5, 5] = False
    assert np.array_equal(one_piece_per_defect(mask, owner), expected)


@pytest.mark.parametrize(("too_far_out", "reach"), [(1.0, 2.5), (3.0, REACH_MM + 2.5)], ids=["flake", "shell"])
def test_no_shell_on_top_of_the_surrounding_bone(too_far_out: float, reach: float) -> None:
    skull, _ = skull_with_defects(np.eye(3), (1,))
    points = completed_surface(np.random.default_rng(0))
    implant = reconstruct(points.moved(points.points * (1 + too_far_out / OUTER)), skull)
    x = centres(skull)[implant.mask]
    beyond = np.arccos(x[:, 2] / np.linalg.norm(x, axis=1)) - DEFECT
    assert beyond.max() * OUTER < reach


def test_slivers_are_removed_and_solids_stay() -> None:
    block = np.zeros((24, 12, 12), bool)
    block[2:10, 2:10, 2:10] = True
    assert np.array_equal(without_slivers(block), block)
    flake = block.copy()
    flake[10:22, 5:10, 9] = True
    assert np.array_equal(without_slivers(flake)[:10], block[:10])
    assert not without_slivers(flake)[12:].any()


def test_the_seam_is_closed_where_bone_is_likely() -> None:
    bone, implant = np.zeros((20, 12, 12), bool), np.zeros((20, 12, 12), bool)
    bone[:6, 2:10, 2:10] = True
    implant[8:18, 2:10, 2:10] = True  # a gap of two voxels
    implant[13, 5, 5] = False  # a void
    everywhere = np.ones_like(bone)
    closed = close_seam(implant, bone, everywhere)
    assert closed[6:8, 4:8, 4:8].all()
    assert closed[13, 5, 5]
    assert not (closed & bone).any()
    assert not closed[:, :2].any()
    assert not closed[18:].any()
    unlikely = close_seam(implant, bone, ~everywhere)
    assert not unlikely[6:8].any()
    assert unlikely[13, 5, 5]
    wide = implant.copy()
    wide[8:14] = False
    assert not close_seam(wide, bone, everywhere)[7:13].any()


def test_impossible_reconstructions_are_refused() -> None:
    volume = grid(np.eye(3), 22)
    points = ball(18, 2000, np.random.default_rng(0))
    with pytest.raises(InputError, match="spectral, screened"):
        indicator(points, volume, backend="magic")
    with pytest.raises(InputError, match="LPS"):
        region(points.moved(points.points + np.array([0, 500, 0])), volume)
    with pytest.raises(ValueError, match="finite"):
        region(points.moved(np.full_like(points.points, np.nan)), volume)
    with pytest.raises(ValueError, match="flip the normals"):
        indicator(points.moved(points.points, -points.normals), volume)
    with pytest.raises(ValueError, match="at least 4"):
        indicator(points[:3], volume)
    with pytest.raises(ValueError, match="labelled"):
        reconstruct(PointCloud(points.points, points.normals), volume)
    bone_only = PointCloud(points.points, points.normals, np.zeros(len(points), int))
    with pytest.raises(ValueError, match="labelled"):
        finish(np.zeros((5, 5, 5), np.float32), np.zeros(3, int), volume, bone_only)
    with pytest.raises(ValueError, match="at least one"):
        reconstruct([], volume)


def test_missing_open3d_is_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(InputError) as caught:
        indicator(ball(18, 200, np.random.default_rng(0)), grid(np.eye(3), 22), backend="screened")
    message = str(caught.value)
    assert "pip install 'pcdiff-cranial[open3d]'" in message
    assert "libusb-1.0-0 libgl1 libgomp1" in message
    assert "\n" not in message


def test_screened_backend_agrees() -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    volume = grid(AFFINES["oblique"], 22)
    truth = np.linalg.norm(centres(volume), axis=-1) < 18
    points = ball(18, 8000, np.random.default_rng(0))
    field = indicator(points, volume, backend="screened", box=(np.zeros(3, int), volume.mask.shape))
    assert dsc(field.values > 0.5, truth) > 0.97


def test_an_implant_reaches_the_rim_although_labels_end_before_it() -> None:
    """A plate with a square defect: the labels stop 2.5 mm before its edge, on a grid finer than that."""
    spacing, half, thickness = 0.4, 10.0, 4.0
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -15.0, -15.0, -5.0
    empty = Volume(np.zeros((76, 76, 26), bool), affine)
    x, y, z = np.moveaxis(centres(empty), -1, 0)
    plate = np.abs(z) < thickness / 2
    truth = plate & (np.maximum(np.abs(x), np.abs(y)) < half)
    skull = empty.with_mask(plate & ~truth)
    across = np.arange(-14.5, 15, 0.7)
    points = np.stack(np.meshgrid(across, across, [-thickness / 2, thickness / 2], indexing="ij"), -1).reshape(-1, 3)
    out = np.maximum(np.abs(points[:, 0]), np.abs(points[:, 1]))
    cloud = PointCloud(points, np.sign(points * [0, 0, 1]), (out < half - 2.5).astype(int))
    implant = finish(plate.astype(np.float32), np.zeros(3, int), skull, cloud)
    beside = np.minimum(np.abs(x), np.abs(y)) < half - 3  # a square's corners lie farther from the labels
    np.testing.assert_array_equal(implant.mask & beside, truth & beside)
