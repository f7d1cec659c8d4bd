"""Scores derived by hand, and the fast computation on crops against the plain definition."""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter

from pcdiff.errors import InputError
from pcdiff.evaluation.rim_errors import RimErrors, rim_errors
from pcdiff.evaluation.spread import compare_spread
from pcdiff.geometry.metrics import Scores, border_dice, dice, distance_bands, scores, surface_distances
from pcdiff.geometry.surface import volume_to_mesh
from pcdiff.geometry.volume import Volume


def drawn(*rows: str) -> np.ndarray:
    """A mask one voxel thick in k: each string is a row i, each character a column j, '#' is true."""
    return np.array([[[character == "#"] for character in row] for row in rows])


def rows_mask(*filled: tuple[int, int], length: int = 40) -> np.ndarray:
    """A (length, 1, 1) mask with the ranges first <= i < last filled."""
    mask = np.zeros((length, 1, 1), bool)
    for first, last in filled:
        mask[first:last] = True
    return mask


def hd95(a: np.ndarray, b: np.ndarray, spacing: np.ndarray) -> float:
    return surface_distances(a, b, spacing).percentile(95)


def test_dice_counts_voxels():
    a = drawn(
        ".##.",
        ".##.",
    )
    b = drawn(
        "..##",
        "....",
    )
    assert dice(a, b) == pytest.approx(2 * 1 / (4 + 2))


def test_one_voxel_apart_in_anisotropic_spacing():
    # a: #.   b: .#   One step along i (2 mm) and one along j (0.5 mm): sqrt(4 + 0.25).
    #    ..      ..   Here only the step along j:
    a, b = drawn("#.", ".."), drawn(".#", "..")
    assert hd95(a, b, np.array([2.0, 0.5, 3.0])) == pytest.approx(0.5)
    b = drawn("..", ".#")
    assert hd95(a, b, np.array([2.0, 0.5, 3.0])) == pytest.approx(np.sqrt(4.25))


def test_nearest_is_nearest_in_mm_not_in_voxels():
    # i is 5 mm a step, j 1 mm: from the # of a, three columns aside (3 mm) is nearer than one row down (5 mm).
    #   a: #...     b: ...#
    #      ....        #...
    a, b = drawn("#...", "...."), drawn("...#", "#...")
    distances = surface_distances(a, b, np.array([5.0, 1.0, 1.0]))
    assert distances.a_to_b.tolist() == [3.0]
    assert sorted(distances.b_to_a.tolist()) == [3.0, 5.0]


def test_inner_voxels_are_not_surface():
    # A 5x5x5 cube in the open has 125 - 27 surface voxels; so has one that fills its grid, whose end is an outside.
    cube = np.zeros((9, 9, 9), bool)
    cube[2:7, 2:7, 2:7] = True
    spacing = np.ones(3)
    assert len(surface_distances(cube, cube, spacing).a_to_b) == 98
    full = np.ones((5, 5, 5), bool)
    assert len(surface_distances(full, full, spacing).a_to_b) == 98


def test_diagonal_neighbours_do_not_count():
    # Seen in the middle slice of a full 3x3x3 cube without one corner: the centre has all its six neighbours.
    mask = np.ones((3, 3, 3), bool)
    mask[0, 0, 0] = False
    assert len(surface_distances(mask, mask, np.ones(3)).a_to_b) == 27 - 1 - 1


def test_hd95_pools_both_directions():
    # a: ten voxels side by side, b: the first only, 1 mm apart.   a: ##########   b: #.........
    # a to b: 0 1 2 ... 9; b to a: 0. Pooled (11 values, sorted 0 0 1 ... 9) the 95th percentile sits at position
    # 0.95 * 10 = 9.5, half-way between 8 and 9. The larger of the two directed ones would be 8.55.
    a, b = drawn("##########"), drawn("#.........")
    assert hd95(a, b, np.ones(3)) == pytest.approx(8.5)


def test_mean_distance_is_that_of_the_directed_means():
    # As above: a to b is 0 1 ... 9, mean 4.5; b to a is 0. Pooled it would be 45 / 11.
    a, b = drawn("##########"), drawn("#.........")
    distances = surface_distances(a, b, np.ones(3))
    assert distances.mean == pytest.approx(2.25)
    assert distances.percentile(100) == 9


def test_surface_dice_pools_voxels_up_to_the_tolerance():
    # Of 11 distances 0 0 1 2 ... 9, in steps of 0.5 mm: three are at most 0.5 mm, four at most 1 mm.
    a, b = drawn("##########"), drawn("#.........")
    distances = surface_distances(a, b, np.full(3, 0.5))
    assert distances.share_within(0.5) == pytest.approx(3 / 11)
    assert distances.share_within(1.0) == pytest.approx(4 / 11)
    assert distances.share_within(0.49) == pytest.approx(2 / 11)


def test_a_missing_implant_has_the_worst_of_all_scores():
    some, none = Volume(np.ones((3, 3, 3), bool), np.eye(4)), Volume(np.zeros((3, 3, 3), bool), np.eye(4))
    worst = Scores(0, 0, np.inf, np.inf, np.inf, 0, 0)
    assert scores(none, some, some) == scores(some, none, some) == worst
    assert scores(none, none, some) == Scores(1, 1, 0, 0, 0, 1, 1)


def test_empty_masks():
    none, some = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    spacing = np.ones(3)
    assert dice(none, none) == 1
    assert hd95(none, none, spacing) == 0
    assert border_dice(none, none, some, spacing) == 1
    for pair in ((none, some), (some, none)):
        assert dice(*pair) == 0
        assert border_dice(*pair, some, spacing) == 0
        assert hd95(*pair, spacing) == np.inf


def test_border_is_ten_millimetres_from_the_skull():
    # Along i, 2.5 mm a voxel; S skull, reach 10 mm = 4 voxels:  SS....|......   (| ends the border)
    #                                                         a:   #### ######
    #                                                         b:   ....#.######   from index 6 on
    skull = rows_mask((0, 2))
    a, b = rows_mask((2, 12)), rows_mask((5, 12))
    spacing = np.array([2.5, 1.0, 1.0])
    assert border_dice(a, b, skull, spacing) == pytest.approx(2 * 1 / (4 + 1))  # a: 2 3 4 5, b: 5
    # The same indices 5 mm apart: only 2 and 3 lie within 10 mm, and b has neither.
    assert border_dice(a, b, skull, spacing * 2) == 0


def test_a_voxel_at_exactly_ten_millimetres_counts_on_oblique_grids_too():
    skull, a = rows_mask((0, 1)), rows_mask((25, 26))
    assert border_dice(a, np.zeros_like(a), skull, np.array([0.4, 1.0, 1.0])) == 0
    assert border_dice(a, np.zeros_like(a), skull, np.array([np.nextafter(0.4, 1), 1.0, 1.0])) == 0
    assert border_dice(a, np.zeros_like(a), skull, np.array([0.401, 1.0, 1.0])) == 1  # out of reach: both empty


def test_mask_inside_the_skull_is_border():
    # Deep in thick bone its *surface* is far, the bone itself is not.
    skull = np.ones((25, 25, 25), bool)
    a, b = np.zeros_like(skull), np.zeros_like(skull)
    a[8:17, 8:17, 8:17] = b[12, 12, 12] = True
    assert border_dice(a, b, skull, np.ones(3), border_mm=2) == pytest.approx(2 / (9**3 + 1))


def blob(rng: np.random.Generator, shape: tuple[int, int, int], level: float) -> np.ndarray:
    return gaussian_filter(rng.standard_normal(shape), 2.0, mode="constant") > level


def plain_surface_mm(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    return np.argwhere(mask & ~binary_erosion(mask)) * spacing


@pytest.mark.parametrize("seed", range(6))
def test_crops_give_the_same_scores(seed):
    """Random blobs, some touching the grid's ends: equal to the definition computed on the whole grid."""
    rng = np.random.default_rng(seed)
    shape = (24, 30, 18)
    spacing = rng.uniform(0.4, 2.5, 3)
    window = np.zeros(shape, bool)
    low = rng.integers(0, 8, 3)
    window[low[0] : low[0] + 13, low[1] : low[1] + 13, low[2] : low[2] + 10] = True
    a, b = blob(rng, shape, 0.02) & window, blob(rng, shape, 0.03) & window
    skull = blob(rng, shape, 0.09)
    assert a.any()
    assert b.any()
    assert skull.any()
    for order in "CF":  # readers return either memory order
        a, b, skull = (np.array(mask, order=order) for mask in (a, b, skull))
        border = distance_transform_edt(~skull, sampling=spacing) <= 3.0
        assert 0 < np.count_nonzero(border[a | b]) < np.count_nonzero(a | b)
        assert border_dice(a, b, skull, spacing, border_mm=3.0) == dice(a & border, b & border)
        points_a, points_b = plain_surface_mm(a, spacing), plain_surface_mm(b, spacing)
        apart = np.linalg.norm(points_a[:, None] - points_b[None], axis=-1)
        pooled = np.concatenate([apart.min(axis=1), apart.min(axis=0)])
        assert hd95(a, b, spacing) == pytest.approx(np.percentile(pooled, 95), abs=1e-9)


def test_scores_use_the_true_spacing_of_an_oblique_grid():
    # Turned by 60 degrees about k, the affine's diagonal would halve the first two spacings.
    turn = np.radians(60)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation * [0.5, 0.5, 2.0]
    truth, prediction, skull = (np.zeros((20, 12, 6), bool) for _ in range(3))
    truth[4:12, 4:8, 2] = True
    prediction[6:14, 4:8, 2] = True  # 2 voxels = 1 mm along i
    skull[0] = True
    result = scores(Volume(prediction, affine), Volume(truth, affine), Volume(skull, affine))
    assert result.dsc == pytest.approx(0.75)
    assert result.bdsc == pytest.approx(0.75)  # the whole grid is 10 mm long
    # 8 of each mask's 32 voxels are off: 4 by 1 mm, 4 by 0.5 mm. 8 of the 64 pooled distances are 1 mm.
    assert (result.hd95, result.hd) == pytest.approx((1, 1))
    assert result.masd == pytest.approx(6 / 32)
    assert (result.nsd_05mm, result.nsd_1mm) == pytest.approx((56 / 64, 1))


def test_a_tilted_gantry_is_measured_in_patient_space():
    # Axes 60 degrees apart, 2 mm a step: i + k is 2 sqrt(3) mm long, i - k is 2 mm; spacing alone says 2 sqrt(2).
    sheared = np.array([[2, 0, 1], [0, 2, 0], [0, 0, np.sqrt(3)]])
    a, far, near = (np.zeros((3, 1, 3), bool) for _ in range(3))
    a[1, 0, 1] = far[2, 0, 2] = near[0, 0, 2] = True
    assert hd95(a, far, sheared) == pytest.approx(2 * np.sqrt(3))
    assert hd95(a, near, sheared) == pytest.approx(2)
    assert border_dice(near, near & far, a, sheared, border_mm=2.1) == 0
    assert border_dice(far, far & near, a, sheared, border_mm=2.1) == 1  # out of reach: both empty
    # 8 along i and -4 along k is 13.86 mm away, although 14 mm is 7 steps along each.
    voxel, skull = np.zeros((9, 1, 5), bool), np.zeros((9, 1, 5), bool)
    voxel[0, 0, 4] = skull[8, 0, 0] = True
    assert border_dice(voxel, voxel & skull, skull, sheared, border_mm=14.0) == 0


def test_scores_refuse_another_grid():
    mask = np.ones((3, 3, 3), bool)
    here, elsewhere = Volume(mask, np.eye(4)), Volume(mask, np.diag([1.0, 1.0, 2.0, 1.0]))
    with pytest.raises(InputError, match="prediction must have the true implant's directions"):
        scores(elsewhere, here, here)
    with pytest.raises(InputError, match="defective skull must lie on the true implant's grid"):
        scores(here, here, Volume(np.ones((3, 3, 4), bool), np.eye(4)))


def plate(top: np.ndarray, margin: int = 0) -> Volume:
    """60 x 24 mm at half a millimetre, from z = 6 mm up to (120,) heights along x, mm, less a margin in voxels."""
    mask = np.zeros((120, 48, 40), bool)
    for i in range(margin, 120 - margin):
        mask[i, margin : 48 - margin, 12 : round(2 * top[i])] = True
    return Volume(mask, np.diag([0.5, 0.5, 0.5, 1.0]))


X = np.arange(120) / 2  # mm
FLAT = plate(np.full(120, 10.0), margin=3)
NO_BONE = FLAT.with_mask(np.zeros_like(FLAT.mask))


def test_spread_is_set_against_error_point_by_point():
    truth = plate(10 + X / 20)  # the error is large where x is large, on the upper side
    there = [volume_to_mesh(plate(10 + k * X / 15)) for k in (-1, 0, 1)]
    elsewhere = [volume_to_mesh(plate(10 + k * (60 - X) / 15)) for k in (-1, 0, 1)]
    assert compare_spread(FLAT, there, truth, NO_BONE).spread_error > 0.6
    assert compare_spread(FLAT, elsewhere, truth, NO_BONE).spread_error < 0.45


def test_the_rim_takes_no_part_in_spread_against_error():
    truth = plate(10 + X / 20)
    members = [volume_to_mesh(plate(10 + k * X / 15)) for k in (-1, 0, 1)]
    assert np.isnan(compare_spread(FLAT, members, truth, FLAT.with_mask(~FLAT.mask)).spread_error)  # nothing but rim
    half = np.zeros_like(FLAT.mask)
    half[60:] = True
    there = compare_spread(FLAT, members, truth, FLAT.with_mask(half & ~FLAT.mask)).spread_error
    other = compare_spread(FLAT.with_mask(FLAT.mask & ~half), members, truth, NO_BONE)
    assert there == pytest.approx(other.spread_error, abs=0.1)


def test_one_candidate_has_no_spread():
    one = volume_to_mesh(FLAT)
    assert np.isnan(compare_spread(FLAT, [one], plate(10 + X / 20), NO_BONE).spread_error)
    assert np.isnan(
        compare_spread(FLAT, [one, one], plate(10 + X / 20), NO_BONE).spread_error
    )  # nor have two that are the same


def test_candidates_hold_a_truth_that_is_as_near_as_they_are_to_each_other():
    members = [volume_to_mesh(plate(np.full(120, height))) for height in (9.0, 10.0, 11.0)]  # 1 mm apart
    near, middle, far = (
        compare_spread(FLAT, members, plate(np.full(120, height)), NO_BONE) for height in (10.5, 11.5, 13.0)
    )
    # the lower side and the edges, where the members agree, count, too
    assert near.within_1sd > middle.within_1sd + 0.3
    assert middle.within_2sd > far.within_2sd + 0.3
    assert middle.within_2sd == pytest.approx(near.within_2sd, abs=1e-3)  # but for a vertex or two at the edges


def test_the_error_by_the_distance_from_the_bone():
    # Bone: 0 to 4. True implant: 5 to 44; the designed one ends at 34, so that the last ten voxels are 1 to 10 mm off.
    # A voxel i is i - 4 mm from the bone: 24 to 44 are 20 mm and more, 11 voxels of the one and 21 of the other.
    skull, truth, implant = (Volume(rows_mask(part, length=60), np.eye(4)) for part in ((0, 5), (5, 45), (5, 35)))
    assert rim_errors(implant, truth, skull) == RimErrors(0, 0, 0, pytest.approx(55 / 32))
    # In steps of 0.5 mm, bone to 24: the last ten voxels, 55 to 64, are 0.5 to 5 mm off, and 64 is 20 mm from the bone.
    skull, truth, implant = (
        Volume(rows_mask(part, length=90), np.diag([0.5, 1, 1, 1])) for part in ((20, 25), (25, 65), (25, 55))
    )
    assert rim_errors(implant, truth, skull) == RimErrors(0, 0, pytest.approx(22.5 / (11 + 20)), 5)
    nothing = Volume(rows_mask(length=90), truth.affine)
    assert all(np.isnan(value) for value in vars(rim_errors(nothing, truth, skull)).values())


def test_bands_of_distance_are_those_of_each_point() -> None:
    """Most points are decided by their block: none wrongly, also on both sides of the origin."""
    rng = np.random.default_rng(0)
    points, others = rng.uniform(-30, 30, (4000, 3)), rng.uniform(-30, 5, (60, 3))
    limits = [4.0, 9.0, 20.0]
    expected = np.digitize(np.linalg.norm(points[:, None] - others, axis=-1).min(1), limits)
    assert set(expected) == {0, 1, 2, 3}
    assert np.array_equal(distance_bands(points, others, limits), expected)
    assert np.array_equal(distance_bands(points, others[:0], limits), np.full(len(points), 3))
    assert not len(distance_bands(points[:0], others, limits))
