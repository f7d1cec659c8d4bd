"""Augmentation of heads: poses found without the defect, moved features, smooth fields."""

from __future__ import annotations

import numpy as np
import pytest

from pcdiff.prior.direction_map import MAP, RADIUS, Pose
from pcdiff.prior.model import ShapePrior
from pcdiff.training.anchored.augment import ORIGIN, jittered, pose_without, seen_in, smooth_field, warped

RAYS = len(MAP.directions)
HIGH = MAP.directions[:, 2] > 0


def sphere(radius: float, thickness: float = 6.0) -> np.ndarray:
    return np.stack([np.full(RAYS, radius), np.full(RAYS, thickness)])


def test_a_sphere_from_beside_its_centre():
    # seen from c, a sphere of radius R lies at -c.d + sqrt((c.d)^2 + R^2 - c^2) along d
    centre = np.array([3.0, -4.0, 2.0])
    table_radii, defect = seen_in(Pose(np.eye(3), centre), sphere(80.0), (MAP.directions[:, 2] > 0.8).astype(int))
    along = MAP.directions @ centre
    for radius, seen in ((80.0, table_radii[0]), (74.0, table_radii[0] - table_radii[1])):
        expected = -along + np.sqrt(along**2 + radius**2 - centre @ centre)
        assert np.abs(seen - expected)[HIGH].max() < 1e-3
    point = table_radii[0, :, None] * MAP.directions + centre
    clear = np.abs(point[:, 2] / 80 - 0.8) > 0.03  # a label is that of the nearest ray
    assert ((defect > 0) == (point[:, 2] / 80 > 0.8))[clear & HIGH].all()


def test_its_own_pose_changes_nothing(population):
    table_radii = np.stack([population.outer[0], population.thickness[0]])
    again, _ = seen_in(ORIGIN, table_radii, np.zeros(RAYS, int))
    assert np.allclose(again, table_radii, atol=1e-3, equal_nan=True)


def test_unmeasured_rays_stay_unmeasured():
    table_radii = sphere(80.0)
    gap = MAP.directions[:, 2] > 0.9
    table_radii[1, gap] = np.nan
    assert np.array_equal(np.isnan(seen_in(ORIGIN, table_radii, gap.astype(int))[0][1]), gap)
    still = warped(table_radii, np.zeros((2, RAYS)))
    assert np.array_equal(np.isnan(still[1]), gap)
    assert np.isfinite(still[0]).all()
    assert np.allclose(still[:, ~gap], table_radii[:, ~gap])


def test_features_move_by_the_given_shift(prior):
    bump = 5 * np.exp(-0.5 * ((MAP.directions @ MAP.from_pixel(np.array([99.0, 99.0])) - 1) / 0.01) ** 2)
    table_radii = sphere(80.0) + np.stack([bump, 0 * bump])
    moved = warped(
        table_radii, np.stack([np.full(RAYS, 6.0), np.zeros(RAYS)])
    )  # 6 mm are 4 pixels along the first axis
    image, expected = MAP.to_image(moved[0]), MAP.to_image(table_radii[0])
    assert np.allclose(image[60:140, 60:140], expected[64:144, 60:140], atol=0.02)


def test_the_pose_does_not_depend_on_the_defect(prior: ShapePrior):
    defect = (MAP.directions @ np.array([0.0, 0.6, 0.8]) > 0.85).astype(int)
    nothing = np.zeros(RAYS)
    still = pose_without(prior, prior.mean, defect)  # the mean lies on itself
    assert np.abs(still.to_patient(80 * MAP.directions) - 80 * MAP.directions).max() < 0.05
    table_radii = prior.mean + np.stack([smooth_field(np.random.default_rng(1)), nothing])
    bulging = table_radii + np.stack([np.where(defect > 0, 2.0, 0.0), nothing])
    plain, other = (pose_without(prior, w, defect) for w in (table_radii, bulging))
    assert np.array_equal(plain.linear, other.linear)
    assert np.array_equal(plain.shift, other.shift)
    whole = pose_without(prior, bulging, np.zeros(RAYS, int))
    assert (
        np.abs(whole.to_patient(80 * MAP.directions) - plain.to_patient(80 * MAP.directions)).max() > 0.3
    )  # else the comparison above shows nothing


def test_jitter_is_measured_at_the_reference_radius():
    rng = np.random.default_rng(0)
    poses = [jittered(ORIGIN, 0.5, rng) for _ in range(300)]
    shifts = np.array([pose.shift for pose in poses])
    turns = np.array([pose.linear - np.eye(3) for pose in poses]) * RADIUS
    assert shifts.std() == pytest.approx(0.5, rel=0.1)
    assert turns.std() == pytest.approx(0.5, rel=0.1)
    still = jittered(ORIGIN, 0.0, rng)
    assert np.array_equal(still.linear, np.eye(3))
    assert not still.shift.any()


def test_smooth_fields_have_unit_variance_and_are_smooth():
    fields = np.array([smooth_field(np.random.default_rng(seed)) for seed in range(60)])
    assert fields[:, ::50].std() == pytest.approx(1.0, rel=0.15)
    step = np.diff(np.array([MAP.to_image(f)[99, 40:160] for f in fields]), axis=1)
    assert np.abs(step).mean() < 0.06  # per pixel of 1.5 mm
    assert np.array_equal(fields[3], smooth_field(np.random.default_rng(3)))
