"""Virtual craniotomy on an ellipsoidal skull, whose surfaces, sides and volumes are known."""

import numpy as np
import pytest
from scipy import ndimage

from pcdiff.data.craniotomy import BRIDGE, KINDS, ML_RANGE, draw_outlines, simulate_craniotomy
from pcdiff.data.defect_kinds import random_curve
from pcdiff.data.outline import Cranium, Outline
from pcdiff.errors import InputError
from pcdiff.geometry.volume import Volume

MIDDLE = np.array([12.0, -30.0, 140.0])  # of the head, mm
SEMI_AXES = np.array([75.0, 90.0, 75.0])
THICK = 6.0


def ellipsoid(points: np.ndarray, inwards: float) -> np.ndarray:
    return (((points - MIDDLE) / (SEMI_AXES - inwards)) ** 2).sum(axis=-1) <= 1


@pytest.fixture(scope="module")
def skull() -> Volume:
    """A shell open below, its grid turned by 14 degrees about x and flipped along the first axis."""
    turn = np.radians(14)
    spacing = np.array([1.6, 1.5, 1.8])
    affine = np.eye(4)
    affine[:3, :3] = [[-1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]] * spacing
    shape = (100, 136, 92)
    affine[:3, 3] = MIDDLE + np.array([0, 0, 17]) - affine[:3, :3] @ (np.array(shape) / 2)
    grid = Volume(np.zeros(shape, bool), affine)
    points = grid.to_mm(np.moveaxis(np.indices(shape), 0, -1))
    return grid.with_mask(ellipsoid(points, 0) & ~ellipsoid(points, THICK) & (points[..., 2] > MIDDLE[2] - 45))


@pytest.fixture(scope="module")
def cranium(skull: Volume) -> Cranium:
    return Cranium.from_volume(skull)


def points_of(volume: Volume) -> np.ndarray:
    return volume.to_mm(np.argwhere(volume.mask))


def tube(radius: float = 20.0, bevel: float = 0.0, burr_holes: np.ndarray | None = None) -> Outline:
    """A round outline at the vertex of a sphere of radius 80 about the origin, its plane touching the sphere."""
    return Outline(
        kind="round",
        origin=np.array([0, 0, 80.0]),
        axes=np.eye(3),
        radii=np.full(360, radius),
        bevel=np.full(2, bevel),
        burr_holes=np.zeros((0, 3)) if burr_holes is None else burr_holes,
        centre=np.zeros(3),
        outer=np.array([80.0, 0, 0, 0, 0, 0]),
    )


def test_an_outline_without_a_bevel_cuts_a_cylinder() -> None:
    across = np.array([0, 19.9, 20.1])
    for height in (76.0, 70.0):
        points = np.stack([across, np.zeros(3), np.full(3, height)], axis=1)
        assert tube().contains(points).tolist() == [True, True, False]


def test_a_bevel_of_one_over_the_radius_cuts_towards_the_centre() -> None:
    edge = np.arctan(20 / 80)  # of a cone whose tip is the sphere's centre
    for radius in (60.0, 70.0, 80.0):
        angles = edge + np.array([-0.005, 0.005])
        points = radius * np.stack([np.sin(angles), np.zeros(2), np.cos(angles)], axis=1)
        assert tube(bevel=1 / 80).contains(points).tolist() == [True, False]


def test_an_outline_holds_the_vault_but_neither_the_base_nor_the_other_side() -> None:
    heights = np.array([85.0, 79.0, 60.0, 50.0, 0.5, -79.0])
    points = np.stack([np.zeros(6), np.zeros(6), heights], axis=1)
    assert tube().contains(points).tolist() == [True, True, True, False, False, False]


def test_a_burr_hole_widens_the_defect_only_where_it_lies() -> None:
    outline = tube(burr_holes=np.array([[20.0, 0, 5.0]]))
    points = np.array([[24.5, 0, 72], [25.5, 0, 72], [-24.5, 0, 72]])
    assert outline.contains(points).tolist() == [True, False, False]


def test_the_centre_lies_75_mm_under_the_vertex_and_the_surface_on_the_outer_table(cranium: Cranium) -> None:
    np.testing.assert_allclose(cranium.centre, MIDDLE, atol=2.5)
    vault = cranium.surface[cranium.surface[:, 2] > MIDDLE[2]]
    assert (~ellipsoid(vault, 4.0)).mean() > 0.99


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_kind_cuts_one_piece_through_the_whole_vault(
    kind: str, seed: int, skull: Volume, cranium: Cranium
) -> None:
    before = skull.mask.copy()
    defective, implant = simulate_craniotomy(skull, kind, np.random.default_rng(seed))
    assert np.array_equal(skull.mask, before)
    assert not (defective.mask & implant.mask).any()
    assert np.array_equal(defective.mask | implant.mask, skull.mask)
    assert ML_RANGE[0] <= implant.ml <= ML_RANGE[1]
    assert 0.8 * KINDS[kind].ml[0] < implant.ml < 1.1 * KINDS[kind].ml[2]
    assert ndimage.label(implant.mask)[1] == 1
    assert ndimage.label(defective.mask)[1] == 1  # no loose bone in the defect

    (outline,) = draw_outlines(kind, np.random.default_rng(seed), cranium)
    aim = outline.origin - cranium.centre
    aim /= np.linalg.norm(aim)
    rays = aim + np.tan(np.radians(4)) * np.array([[0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, -1]])
    index = np.round(skull.to_index(cranium.centre + rays[:, None] * np.arange(0, 110, 0.7)[:, None])).astype(int)
    index = index[((index >= 0) & (index < skull.mask.shape)).all(axis=-1)]
    assert skull.mask[tuple(index.T)].any()
    assert not defective.mask[tuple(index.T)].any()

    away = (points_of(implant) - cranium.centre) @ aim
    assert away.min() > 0  # the opposite side stays


@pytest.mark.parametrize("seed", range(4))
def test_each_kind_lies_where_its_name_says(seed: int, cranium: Cranium) -> None:
    def middle(kind: str) -> np.ndarray:
        (outline,) = draw_outlines(kind, np.random.default_rng(seed), cranium)
        return cranium.bone[outline.contains(cranium.bone)] - cranium.centre

    bilateral = middle("bilateral")
    assert bilateral[:, 0].min() < -25
    assert bilateral[:, 0].max() > 25
    assert bilateral[:, 2].mean() > 30
    frontal = middle("frontoorbital").mean(axis=0)
    assert frontal[1] < -45
    assert abs(frontal[2]) < 35
    side = middle("parietotemporal").mean(axis=0)
    assert abs(side[0]) > 35
    posterior = middle("skullfix").mean(axis=0)
    assert posterior[1] > 30
    assert posterior[2] > 30
    assert abs(posterior[0]) < 12


def test_the_first_side_is_random(cranium: Cranium) -> None:
    sides = {
        np.sign(draw_outlines("parietotemporal", np.random.default_rng(seed), cranium)[0].origin[0] - MIDDLE[0])
        for seed in range(8)
    }
    assert sides == {-1.0, 1.0}


def test_random_2_is_larger_than_random_1() -> None:
    assert KINDS["random_2"].ml[0] > KINDS["random_1"].ml[2]


def test_the_same_seed_gives_the_same_defect_and_another_one_does_not(skull: Volume) -> None:
    first, again, other = (
        simulate_craniotomy(skull, "irregular", np.random.default_rng(seed))[1].mask for seed in (5, 5, 6)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("kind", "defects"), [("bilateral", 2), ("parietotemporal", 2), ("random_1", 3), ("skullfix", 2)]
)
def test_a_bridge_of_bone_separates_defects(kind: str, defects: int, skull: Volume) -> None:
    defective, implant = simulate_craniotomy(skull, kind, np.random.default_rng(2), defects)
    labels, count = ndimage.label(implant.mask)
    assert count == defects
    for defect in range(1, count):
        gap = ndimage.distance_transform_edt(labels != defect, sampling=skull.spacing)
        assert gap[labels > defect].min() > BRIDGE
    assert np.array_equal(defective.mask ^ implant.mask, skull.mask)
    assert 10 * defects * 0.9 < implant.ml <= ML_RANGE[1]


def test_bone_that_the_cut_detaches_belongs_to_the_implant(skull: Volume) -> None:
    """A bar below the vault, beyond the depth of the cut, would float in the defect."""
    seed = 3
    (outline,) = draw_outlines("random_2", np.random.default_rng(seed), Cranium.from_volume(skull))
    points = skull.to_mm(np.moveaxis(np.indices(skull.mask.shape), 0, -1))
    height = (points - outline.origin) @ outline.axes[2]
    aside = np.linalg.norm(points - outline.origin - height[..., None] * outline.axes[2], axis=-1)
    bar = (aside < 3) & (height > -60) & ellipsoid(points, 0) & ~ellipsoid(points, 31)
    spiked = skull.with_mask(skull.mask | bar)
    defective, implant = simulate_craniotomy(spiked, "random_2", np.random.default_rng(seed))
    assert (implant.mask & bar & ellipsoid(points, 28)).any()
    assert ndimage.label(defective.mask)[1] == 1


def test_bone_in_layers_is_refused(skull: Volume) -> None:
    points = skull.to_mm(np.moveaxis(np.indices(skull.mask.shape), 0, -1))
    table = ellipsoid(points, 0) & ~ellipsoid(points, 4)
    inner_table = ellipsoid(points, 9) & ~ellipsoid(points, 13)
    layers = skull.with_mask((table | inner_table) & (points[..., 2] > MIDDLE[2] - 45))
    with pytest.raises(InputError, match="in one piece"):
        simulate_craniotomy(layers, "random_1", np.random.default_rng(0))


def test_outlines_hold_the_volume_of_bone_of_their_kind() -> None:
    """On a spherical shell of known volume."""
    count = 6000
    z = 1 - 1.6 * (np.arange(count) + 0.5) / count  # down to z = -0.6
    turn = np.pi * (3 - 5**0.5) * np.arange(count)
    rays = np.stack([np.cos(turn) * np.sqrt(1 - z * z), np.sin(turn) * np.sqrt(1 - z * z), z], axis=1)
    ml = np.full(count, 3.2 * np.pi / count * (80**3 - 74**3) / 3 / 1000)
    cranium = Cranium(MIDDLE, MIDDLE + 80 * rays, MIDDLE + 77 * rays, ml)
    for kind in KINDS:
        (outline,) = draw_outlines(kind, np.random.default_rng(1), cranium)
        ml = cranium.ml[outline.contains(cranium.bone)].sum()
        assert 0.8 * KINDS[kind].ml[0] < ml < 1.1 * KINDS[kind].ml[2]


def test_wrong_arguments_are_refused_in_one_line(skull: Volume) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match=r"bilateral, frontoorbital, .*irregular; got 'cube'"):
        simulate_craniotomy(skull, "cube", rng)
    with pytest.raises(InputError, match="1 to 3 defects, got 7"):
        simulate_craniotomy(skull, "random_1", rng, defects=7)
    with pytest.raises(InputError, match="expected a skull"):
        simulate_craniotomy(skull.with_mask(np.zeros_like(skull.mask)), "random_1", rng)


def test_a_jagged_outline_closes() -> None:
    """The curve goes on from 359 to 0 degrees as it does between any two neighbours."""
    for seed in range(40):
        radii = random_curve(KINDS["irregular"], 1.0, np.random.default_rng(seed))
        steps = np.abs(np.diff(radii, append=radii[0]))
        assert steps[-1] <= 1.5 * steps[:-1].max(), seed
