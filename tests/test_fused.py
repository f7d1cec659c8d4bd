"""The surface that the shape model's tables and a correction on a lattice give together."""

from __future__ import annotations

import numpy as np
import pytest

from pcdiff.geometry.metrics import dice
from pcdiff.methods.volumetric.config import FusionConfig
from pcdiff.methods.volumetric.features import STEP
from pcdiff.methods.volumetric.fused import fused_surface
from pcdiff.methods.volumetric.lattice import Lattice, TableMaps, lattice_around, map_position, table_log_odds
from pcdiff.prior.direction_map import MAP
from pcdiff.reconstruct import reconstruct

FUSION = FusionConfig()
LIMIT = FUSION.max_log_odds


@pytest.fixture(scope="module")
def plain(fitted, case):
    """The implant of the shape model alone."""
    return reconstruct(fitted.completed_surface(), case[0])


def test_a_finer_lattice_holds_the_same_box():
    coarse = Lattice(np.array([1.0, 2, 3]), (4, 5, 6), STEP)
    fine = coarse.finer(2)
    assert fine.step == STEP / 2
    np.testing.assert_allclose(fine.points[::2, ::2, ::2], coarse.points)


def test_the_lattice_covers_the_implant_and_its_surroundings(fitted, case):
    lattice = lattice_around(fitted, FUSION)
    implant = fitted.pose.to_model(case[1].to_mm(np.argwhere(case[1].mask)))
    top = lattice.low + STEP * (np.array(lattice.shape) - 1)
    assert (implant.min(0) - lattice.low > 15).all()
    assert (top - implant.max(0) > 15).all()


def test_tables_give_bone_between_them_and_nowhere_else(fitted, depth):
    ray = np.flatnonzero(depth > 8)[0]
    middle = fitted.outer[ray] - fitted.thickness[ray] / 2
    beyond = 2 + fitted.thickness[ray]
    points = MAP.directions[ray] * np.array([[middle], [middle + beyond], [middle - beyond]])
    pixels, radius = map_position(points)
    outer, inner, border = TableMaps.of(fitted).sample(pixels, "outer", "inner", "border")
    odds = table_log_odds(outer - radius, radius - inner, border, FUSION)
    assert odds[0] > 2
    assert (odds[1:] < -2).all()
    assert np.abs(odds).max() <= LIMIT
    assert border[0] == pytest.approx(depth[ray], abs=1.5)


def test_without_a_correction_the_fused_surface_is_the_completed_surface(fitted, case, plain):
    lattice = lattice_around(fitted, FUSION)
    nothing = np.zeros(lattice.shape, np.float32)
    points = fused_surface(TableMaps.of(fitted), lattice, nothing, FUSION).in_patient(fitted)
    assert np.allclose(np.linalg.norm(points.normals, axis=1), 1, atol=1e-6)
    assert dice(reconstruct(points, case[0]).mask, plain.mask) > 0.97


def test_bone_added_by_the_correction_is_built(fitted, case, depth):
    lattice = lattice_around(fitted, FUSION)
    nothing = np.zeros(lattice.shape, np.float32)
    ray = depth.argmax()
    middle = MAP.directions[ray] * (fitted.outer[ray] - fitted.thickness[ray] - 8)  # under the defect, connected to it
    ball = np.linalg.norm(lattice.points - middle, axis=-1) < 9
    correction = np.where(ball, 2 * LIMIT, 0).astype(np.float32)
    maps = TableMaps.of(fitted)
    surfaces = [fused_surface(maps, lattice, added, FUSION) for added in (nothing, correction)]
    before, built = (reconstruct(surface.in_patient(fitted), case[0]) for surface in surfaces)
    more = built.mask & ~before.mask
    scale = abs(np.linalg.det(fitted.pose.linear))
    assert more.sum() * case[0].voxel_ml == pytest.approx(4 / 3 * np.pi * 9**3 / 1000 * scale, rel=0.35)
    away = np.linalg.norm(case[0].to_mm(np.argwhere(more)) - fitted.pose.to_patient(middle), axis=1)
    assert np.quantile(away, 0.95) < 12
