"""Fit options in millimetres are right in millimetres on any grid; the default changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from pcdiff.checks import surroundings
from pcdiff.checks.criteria import MIN_WALL_MM, Criteria
from pcdiff.checks.distances import OUTER_COSINE, bone_gap, outward_cosine, voxel_gap, wall_thickness
from pcdiff.checks.report import Check
from pcdiff.checks.thickness import thick_enough
from pcdiff.errors import InputError
from pcdiff.geometry.mesh import Mesh, label_bodies
from pcdiff.geometry.surface import volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.methods.base import Proposal
from pcdiff.pipeline.fitting import HOLE_MARGIN, SMOOTHING_RIM, FitOptions, apply_fit_options
from pcdiff.pipeline.flow import design
from pcdiff.pipeline.printing import printed

OUTER, INNER = 80.0, 74.0
CENTRE = np.array([12.0, -7.0, 30.0])


def skull_and_plug(spacing: tuple[float, float, float] = (0.8, 0.8, 0.8), turn: float = 0.0) -> tuple[Volume, Volume]:
    """(skull with a defect of 15 degrees, plug): the top of a shell about CENTRE, on a grid turned about it."""
    rotation = Rotation.from_euler("xyz", [turn, -turn, 2 * turn], degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing
    affine[:3, 3] = CENTRE + rotation @ [-34.0, -34.0, 56.0]
    empty = Volume(np.zeros(np.ceil(np.array([68.0, 68.0, 30.0]) / spacing).astype(int), bool), affine)
    points = (empty.to_mm(np.stack(np.indices(empty.mask.shape), -1).astype(float)) - CENTRE) @ rotation
    radius = np.linalg.norm(points, axis=-1)
    shell = (radius < OUTER) & (radius > INNER)
    defect = points[..., 2] / radius > np.cos(np.deg2rad(15))
    return empty.with_mask(shell & ~defect), empty.with_mask(shell & defect)


@pytest.fixture(scope="module")
def case() -> tuple[Volume, Volume]:
    return skull_and_plug()


def radii(volume: Volume) -> np.ndarray:
    return np.linalg.norm(volume.to_mm(np.argwhere(volume.mask).astype(float)) - CENTRE, axis=1)


def fit(case: tuple[Volume, Volume], **options: object) -> Volume:
    skull, implant = case
    before = skull.mask.copy(), implant.mask.copy()
    made = apply_fit_options(implant, skull, CENTRE, FitOptions(**options)).implant  # type: ignore[arg-type]
    np.testing.assert_array_equal(skull.mask, before[0])
    np.testing.assert_array_equal(implant.mask, before[1])
    assert not (made.mask & skull.mask).any()
    np.testing.assert_array_equal(made.affine, skull.affine)
    return made


def test_an_implant_without_undercuts_stays_as_designed(case: tuple[Volume, Volume]) -> None:
    for options in (FitOptions(), FitOptions(make_insertable=False)):
        assert np.array_equal(apply_fit_options(case[1], case[0], CENTRE, options).implant.mask, case[1].mask)


def test_a_crumb_on_a_thin_neck_is_no_second_body(case: tuple[Volume, Volume]) -> None:
    skull, implant = case
    with_crumb = implant.mask.copy()
    i, j = (n // 2 for n in with_crumb.shape[:2])
    top = int(np.flatnonzero(with_crumb[i, j])[-1])
    with_crumb[i, j, top + 1 : top + 4] = True  # the neck, one voxel wide
    with_crumb[i - 2 : i + 3, j - 2 : j + 3, top + 4 : top + 8] = True
    shaped = printed(implant.with_mask(with_crumb), skull, CENTRE, 1)
    made, mesh = shaped.volume, shaped.mesh
    assert label_bodies(mesh).max() == 0
    assert not made.mask[:, :, top + 4 :].any()
    assert np.array_equal(made.mask[:, :, : top + 1], implant.mask[:, :, : top + 1])
    halves = implant.mask & (np.arange(with_crumb.shape[0]) // 4 != 10)[:, None, None]
    mesh = printed(implant.with_mask(halves), skull, CENTRE, 2).mesh
    assert label_bodies(mesh).max() == 1
    loose = implant.mask.copy()
    loose[i, j, top + 4] = True  # so small that the smooth surface has none of it
    made = printed(implant.with_mask(loose), skull, CENTRE, 1).volume
    assert np.array_equal(made.mask, implant.mask)


def test_an_edge_too_thin_to_print_ends_earlier() -> None:
    skull, implant = skull_and_plug((0.5, 0.5, 0.5))
    wall = skull.mask | implant.mask
    points = skull.to_mm(np.argwhere(wall).astype(float)) - CENTRE
    radius = np.linalg.norm(points, axis=1)
    bevelled = np.zeros_like(wall)
    bevelled[wall] = np.degrees(np.arccos(points[:, 2] / radius)) < 8 + 10 * (radius - INNER) / (OUTER - INNER)
    skull, implant = skull.with_mask(wall & ~bevelled), implant.with_mask(bevelled)

    def thin(mesh: Mesh) -> float:
        cosine = outward_cosine(mesh, CENTRE)
        return float((wall_thickness(mesh, cosine)[cosine > OUTER_COSINE] < MIN_WALL_MM).mean())

    shaped = printed(implant, skull, CENTRE, 1)
    made, mesh = shaped.volume, shaped.mesh
    assert thin(volume_to_mesh(implant)) > 0.02
    assert thin(mesh) < 0.01
    assert 0.95 < made.ml / implant.ml < 0.999
    assert not (made.mask & ~implant.mask).any()


@pytest.mark.parametrize("spacing", [(0.8, 0.8, 0.8), (0.6, 0.7, 1.5)])
@pytest.mark.parametrize("turn", [0.0, 20.0])
def test_clearance_is_kept_and_not_exceeded(spacing: tuple[float, float, float], turn: float) -> None:
    skull, implant = case = skull_and_plug(spacing, turn)
    made = fit(case, clearance=1.0)  # more than one voxel, less than two
    bone, solid = surroundings(skull, made)
    gap = voxel_gap(np.argwhere(solid.mask), bone, 10.0)
    assert 1 - 1e-9 <= gap.min() < 1 + max(spacing)
    # The same by the centres of all bone voxels: only voxels that were too near are gone, except for thin films.
    gone = np.argwhere(implant.mask & ~made.mask)
    steps = cKDTree(skull.to_mm(np.argwhere(skull.mask).astype(float))).query(skull.to_mm(gone.astype(float)))[0]
    assert np.mean(steps < 1 + np.linalg.norm(spacing) + 1e-6) > 0.98
    assert 0.8 < made.ml / implant.ml < 0.95


def test_a_fixed_thickness_is_measured_from_the_outer_surface(case: tuple[Volume, Volume]) -> None:
    made = fit(case, thickness="3mm")
    assert not (made.mask & ~case[1].mask).any()
    assert radii(made).max() == radii(case[1]).max()
    middle = np.abs(radii(made) - OUTER) < 20
    assert np.percentile(radii(made)[middle], 0.5) == pytest.approx(OUTER - 3, abs=0.5)
    assert made.ml == pytest.approx(case[1].ml * (80**3 - 77**3) / (80**3 - 74**3), rel=0.08)


def test_a_share_of_the_bones_thickness(case: tuple[Volume, Volume]) -> None:
    half, third = fit(case, thickness="0.5"), fit(case, thickness="3mm")
    assert half.ml == pytest.approx(third.ml, rel=0.05)
    assert fit(case, thickness="9mm").ml == case[1].ml  # never beyond the completed skull's inner surface


def test_smoothing_takes_bumps_and_leaves_the_rim(case: tuple[Volume, Volume]) -> None:
    skull, implant = case
    rng = np.random.default_rng(0)
    surface = implant.mask & ~ndimage.binary_erosion(implant.mask)
    inside = ndimage.distance_transform_edt(~skull.mask, sampling=skull.spacing) > 8
    rough = implant.mask & ~(surface & inside & (rng.random(surface.shape) < 0.3))
    made = fit((skull, skull.with_mask(rough)), smooth=1.0)
    wrong = [np.count_nonzero(mask & inside ^ implant.mask & inside) for mask in (rough, made.mask)]
    assert wrong[1] < 0.6 * wrong[0]
    near = ndimage.distance_transform_edt(~skull.mask, sampling=skull.spacing) <= SMOOTHING_RIM
    np.testing.assert_array_equal(made.mask & near, implant.mask & near)
    assert made.ml == pytest.approx(implant.ml, rel=0.02)


def test_drain_holes_have_their_size_and_keep_the_rim(case: tuple[Volume, Volume]) -> None:
    skull, implant = case
    result = apply_fit_options(implant, skull, CENTRE, FitOptions(drain_holes="3@10"))
    gone = implant.mask & ~result.implant.mask
    count = ndimage.label(gone, np.ones((3, 3, 3)))[1]
    assert count == result.drain_holes >= 5
    assert gone.sum() * skull.voxel_ml * 1000 / count == pytest.approx(np.pi * 1.5**2 * 6, rel=0.12)
    distance = ndimage.distance_transform_edt(~skull.mask, sampling=skull.spacing)
    assert distance[gone].min() > HOLE_MARGIN - 1.5
    with pytest.raises(InputError, match="three voxels"):
        fit(skull_and_plug((0.8, 0.8, 1.2)), drain_holes="2@10")


def thickness_check(each: Volume, skull: Volume) -> Check:
    mesh = volume_to_mesh(each, skull)
    cosine = outward_cosine(mesh, CENTRE)
    wall, gap = wall_thickness(mesh, cosine), bone_gap(mesh.vertices, skull)
    return thick_enough(mesh.vertices, wall, gap, cosine, np.nan, float(each.spacing.max()), Criteria())


def test_drain_holes_are_no_thin_places_and_a_thin_wall_is_one() -> None:
    skull, implant = skull_and_plug((0.5, 0.5, 0.5))
    holes = apply_fit_options(implant, skull, CENTRE, FitOptions(drain_holes="2.5@9")).implant
    thin = apply_fit_options(implant, skull, CENTRE, FitOptions(thickness="1.2mm", drain_holes="2.5@9")).implant

    def measured(each: Volume) -> list[float]:
        check = thickness_check(each, skull)
        return [float(check.figure(f"thickness_{name}")) for name in ("min", "p5", "median", "p95")]

    assert measured(holes)[0] == pytest.approx(measured(implant)[0], abs=1.5), "the edge of a hole is rounded"
    assert measured(holes)[1] == pytest.approx(measured(implant)[1], abs=0.8)
    assert measured(holes)[2:] == pytest.approx(measured(implant)[2:], abs=0.05)
    assert measured(thin)[0] < Criteria().min_thickness_mm


def test_an_edge_is_rounded_over_a_voxel() -> None:
    skull, implant = skull_and_plug((0.8, 0.8, 0.8))
    holes = apply_fit_options(implant, skull, CENTRE, FitOptions(thickness="3mm", drain_holes="3@12")).implant
    assert thickness_check(holes, skull).passed


def test_too_coarse_voxels_are_refused_before_the_design() -> None:
    def method(*_: object, **__: object) -> Proposal:
        raise AssertionError("designed in vain")

    with pytest.raises(InputError, match=r"at least three voxels, 3\.6 mm here, got 2 mm"):
        design(skull_and_plug((0.8, 0.8, 1.2))[0], method, options=FitOptions(drain_holes="2@10"))


def test_two_pieces_stay_two(case: tuple[Volume, Volume]) -> None:
    skull, implant = case
    cut = implant.mask.copy()
    cut[:, 40:44] = False
    made = fit((skull, skull.with_mask(cut)), clearance=0.5)
    assert ndimage.label(made.mask)[1] == 2


@pytest.mark.parametrize(
    "options",
    [
        {"clearance": -0.1},
        {"clearance": 50.0},
        {"thickness": "thin"},
        {"thickness": "0.2mm"},
        {"thickness": "7"},
        {"smooth": 5.0},
        {"drain_holes": "1@9"},
        {"drain_holes": "3@4"},
        {"drain_holes": "3"},
    ],
)
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"--{next(iter(options)).replace('_', '-')}: expected"):
        FitOptions(**options)  # type: ignore[arg-type]


def test_an_implant_with_nothing_left_is_refused(case: tuple[Volume, Volume]) -> None:
    skull, implant = case
    thin = implant.mask & (ndimage.distance_transform_edt(~skull.mask, sampling=skull.spacing) < 2)
    with pytest.raises(InputError, match="nothing is left"):
        fit((skull, skull.with_mask(thin)), clearance=3.0)


def test_drain_holes_are_the_same_whichever_way_a_defect_faces() -> None:
    """Seen from the side, a defect at the top of the head would get a row of holes instead of a pattern."""
    for turn in (0.0, 90.0):  # the defect at the top of the head, and at its back
        skull, implant = skull_and_plug(turn=turn)
        fitted = apply_fit_options(implant, skull, CENTRE, FitOptions(drain_holes="3@10"))
        gone = implant.mask & ~fitted.implant.mask
        labels, count = ndimage.label(gone, np.ones((3, 3, 3)))
        middles = skull.to_mm(np.array(ndimage.center_of_mass(gone, labels, range(1, count + 1))))
        assert count == fitted.drain_holes >= 7
        np.testing.assert_allclose(cKDTree(middles).query(middles, 2)[0][:, 1], 10, atol=1.6)
