"""Every check on shapes with known answers: a spherical shell of 6 mm with a defect at its top, and plugs for it."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from pcdiff.checks import CompletedVault, Report, check_implant, removal_paths, surroundings
from pcdiff.checks.criteria import Criteria
from pcdiff.checks.distances import bone_gap, voxel_gap
from pcdiff.checks.insertion import best_removal_path
from pcdiff.checks.printable import printable, self_intersections
from pcdiff.checks.ray_view import RayView
from pcdiff.checks.recommend import disagreement
from pcdiff.checks.report import Figure
from pcdiff.errors import InputError
from pcdiff.geometry.mesh import Mesh
from pcdiff.geometry.surface import volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.prior.direction_map import MAP, PIXEL, RADIUS, Pose

OUTER, INNER, HOLE = 80.0, 74.0, np.deg2rad(15)
CAP = 2 * np.pi * OUTER**2 * (1 - np.cos(HOLE))  # mm2 of the defect at the outer surface


class Shell:
    """The top of the shell on a grid, which can be rotated about the centre of the sphere."""

    def __init__(self, spacing: tuple[float, float, float] = (0.8, 0.8, 0.8), turn: float = 0.0) -> None:
        rotation = Rotation.from_euler("xyz", [turn, -turn, 2 * turn], degrees=True).as_matrix()
        extent = np.array([68.0, 68.0, 30.0])
        affine = np.eye(4)
        affine[:3, :3] = rotation * spacing
        affine[:3, 3] = rotation @ [-34.0, -34.0, 56.0]
        self.empty = Volume(np.zeros(np.ceil(extent / spacing).astype(int), bool), affine)
        points = self.empty.to_mm(np.stack(np.indices(self.empty.mask.shape), -1).astype(float)) @ rotation
        self.x, self.y, self.z = np.moveaxis(points, -1, 0)
        self.r = np.linalg.norm(points, axis=-1)
        self.rho = np.hypot(self.x, self.y)
        self.angle = np.arccos(self.z / self.r)
        self.wall = (self.r < OUTER) & (self.r > INNER)
        directions = MAP.directions @ rotation
        defect = (directions[:, 2] > np.cos(HOLE)).astype(int)
        rays = np.full(len(directions), OUTER)
        self.vault = CompletedVault(Pose(np.eye(3), np.zeros(3)), rays, rays - INNER, defect, rays)
        self.defect = self.angle < HOLE

    @property
    def skull(self) -> Volume:
        return self.empty.with_mask(self.wall & ~self.defect)

    def check(self, mask: np.ndarray, clearance: float = 0.0, mesh: Mesh | None = None) -> Report:
        implant = self.empty.with_mask(mask)
        return check_implant(self.skull, implant, mesh or volume_to_mesh(implant), self.vault, clearance=clearance)


@pytest.fixture(scope="module")
def shell() -> Shell:
    return Shell()


@pytest.fixture(scope="module")
def flush(shell: Shell) -> Report:
    return shell.check(shell.wall & shell.defect)


def test_a_flush_plug_passes_everything(flush: Report) -> None:
    assert flush.failed == []
    assert [check.passed for check in flush.checks] == [True] * 8
    assert flush["complete"].figure("defect_area") == pytest.approx(CAP / 100, rel=0.03)
    assert flush["complete"].figure("coverage_with_narrow_gaps") > 0.999
    assert flush["no_false_positive_area"].figure("overlap_area") == 0
    assert flush["implantable"].figure("collision_volume") == 0
    (vector,) = flush.insertion_vectors
    assert vector[2] < -0.9
    assert flush.insertion == ["from above"]
    assert flush["implantable"].words.startswith("Insertion direction: from above (unit vector ")
    assert flush["restores_shape"].figure("asymmetry_mean") < 0.25
    assert flush["smooth_transition"].figure("step_p95") < 0.35
    assert flush["thickness"].figure("thickness_mean") == pytest.approx(6, abs=0.2)
    assert flush["thickness"].figure("bone_thickness") == pytest.approx(6, abs=0.2)
    assert flush["clearance"].figure("gap_min") == 0


@pytest.mark.parametrize("lift", [1.0, -1.0, 2.0])
def test_a_plug_that_is_lifted_makes_a_step(shell: Shell, lift: float) -> None:
    lifted = (shell.r < OUTER + lift) & (shell.r > INNER + lift) & shell.defect
    report = shell.check(lifted)
    step = report["smooth_transition"]
    assert step.passed is False
    assert step.figure("step_mean") == pytest.approx(abs(lift), abs=0.15)
    assert step.figure("step_outward_mean") == pytest.approx(lift, abs=0.15)
    shape = report["restores_shape"]
    assert shape.figure("surface_distance_mean") == pytest.approx(abs(lift), abs=0.15)
    assert shape.figure("height_mean") == pytest.approx(lift, abs=0.15)


def test_half_a_plug_leaves_half_the_defect(shell: Shell) -> None:
    complete = shell.check(shell.wall & shell.defect & (shell.x > 0))["complete"]
    assert complete.passed is False
    assert complete.figure("coverage") == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("across", "passed"), [(8.0, False), (2.0, True)])
def test_a_gap_of_known_size(shell: Shell, across: float, passed: bool) -> None:
    axis = np.array([np.sin(0.1), 0, np.cos(0.1)])
    along = shell.x * axis[0] + shell.z * axis[2]
    bore = shell.r**2 - along**2 < (across / 2) ** 2
    complete = shell.check(shell.wall & shell.defect & ~bore)["complete"]
    lost = np.pi * across**2 / 4 / CAP
    assert complete.passed is passed
    assert 1 - complete.figure("coverage_with_narrow_gaps") == pytest.approx(lost, rel=0.15, abs=0.001)
    assert complete.figure("widest_gap") == pytest.approx(across, abs=1.1)
    if not passed:
        assert 1 - complete.figure("coverage") == pytest.approx(lost, rel=0.2)


@pytest.mark.parametrize("outside", [True, False])
def test_a_flange_of_known_area(shell: Shell, outside: bool) -> None:
    low, high = (OUTER, OUTER + 2) if outside else (INNER - 2, INNER)
    rim = np.deg2rad(20)
    flange = (shell.r > low) & (shell.r < high) & (shell.angle < rim)
    check = shell.check((shell.wall & shell.defect) | flange)["no_false_positive_area"]
    ring = 2 * np.pi * (np.cos(HOLE) - np.cos(rim))
    assert check.passed is False
    assert check.figure("overlap_area") == pytest.approx(ring * OUTER**2 / 100, rel=0.08)
    # on both sides the volume is that over the area of the outer surface
    assert check.figure("overlap_volume") == pytest.approx(2 * ring * OUTER**2 / 1000, rel=0.12)


def undercut(shell: Shell, tilt: float = 30.0) -> tuple[Shell, np.ndarray]:
    """A defect of 20 mm radius that widens inward by tan(tilt) mm per mm, and the plug that fills it."""
    top = np.sqrt(OUTER**2 - 20**2)
    other = object.__new__(Shell)
    other.__dict__.update(shell.__dict__)
    other.defect = shell.rho < 20 + (top - shell.z) * np.tan(np.deg2rad(tilt))
    return other, shell.wall & other.defect


def test_an_undercut_of_known_size(shell: Shell) -> None:
    other, plug = undercut(shell)
    check = other.check(plug)["implantable"]
    # all voxels beyond the narrowest place collide, except for one voxel of play, or two where bone overhangs by an
    # edge that is two voxels thin
    voxel = shell.empty.voxel_ml
    most, least = (np.count_nonzero(plug & (shell.rho > 20 + play)) * voxel for play in (0, 1.6))
    assert check.passed is False
    assert least < check.figure("collision_volume") < most
    reach = shell.rho[plug].max() - 20
    assert reach - 1.7 < check.figure("undercut_depth") < reach


def test_trimming_makes_it_insertable(shell: Shell) -> None:
    from pcdiff.pipeline.fitting import remove_undercuts

    other, plug = undercut(shell)
    bone, solid = surroundings(other.skull, shell.empty.with_mask(plug))
    trimmed = remove_undercuts(solid, bone, np.zeros(3))
    (path,) = removal_paths(trimmed, bone, np.zeros(3), exact=True)
    assert path.collision_ml < 0.02
    assert solid.ml - trimmed.ml > 0.5
    (before,) = removal_paths(solid, bone, np.zeros(3), exact=True)
    assert before.collision_ml == pytest.approx(solid.ml - trimmed.ml, rel=0.02)


@pytest.mark.parametrize(
    ("tilt", "asked", "trimmed"), [(12, None, True), (12, False, False), (30, None, False), (30, True, True)]
)
def test_small_undercuts_are_removed_by_default(shell: Shell, tilt: float, asked: bool | None, trimmed: bool) -> None:
    from pcdiff.pipeline.fitting import FitOptions, apply_fit_options

    other, plug = undercut(shell, tilt)  # at 12 degrees it holds 0.7 % of the volume, at 30 degrees 8 %
    made = apply_fit_options(shell.empty.with_mask(plug), other.skull, np.zeros(3), FitOptions(make_insertable=asked))
    assert (made.trimmed_ml > 0.01) == trimmed
    assert (made.implant.mask.sum() < plug.sum()) == trimmed


@pytest.mark.parametrize("turn", [0.0, 25.0])
def test_gaps_are_those_between_boxes(turn: float) -> None:
    rng = np.random.default_rng(3)
    grid = Shell((0.5, 0.7, 1.9), turn).empty
    mask = np.zeros((14, 12, 9), bool)
    mask[tuple(rng.integers(0, (14, 12, 9), (12, 3)).T)] = True
    bone = Volume(mask, grid.affine)
    voxels = np.argwhere(~mask)
    steps = np.abs(voxels[:, None] - np.argwhere(mask)[None])
    expected = np.linalg.norm(np.maximum(steps - 1, 0) * (0.5, 0.7, 1.9), axis=-1).min(1)
    np.testing.assert_allclose(voxel_gap(voxels, bone, 100.0), expected, atol=1e-9)
    points = rng.uniform(0, (13, 11, 8), (200, 3))
    offset = np.maximum(np.abs(points[:, None] - np.argwhere(mask)[None]) - 0.5, 0) * (0.5, 0.7, 1.9)
    expected = np.linalg.norm(offset, axis=-1).min(1)
    got = bone_gap(bone.to_mm(points), bone)
    near = (expected > 0) & (expected < 2)
    np.testing.assert_allclose(got[near], expected[near], atol=0.02)
    assert (got[expected == 0] <= 0).all()


def test_far_from_bone_the_gap_is_right_to_a_tenth() -> None:
    grid = Shell((0.5, 0.7, 1.1), 20.0).empty
    index = np.stack(np.indices((60, 50, 40)), -1) * (0.5, 0.7, 1.1)
    mask = np.abs(np.linalg.norm(index - (15, 17, 22), axis=-1) - 26) < 2  # a bowl around the points
    bone = Volume(mask, grid.affine)
    points = np.random.default_rng(0).uniform((25, 20, 16), (35, 30, 24), (500, 3))
    expected = np.abs(np.linalg.norm(points * (0.5, 0.7, 1.1) - (15, 17, 22), axis=-1) - 24)
    assert (expected > 15).all()
    got = bone_gap(bone.to_mm(points), bone)
    assert (got > 0.97 * expected).all()
    assert (got < 1.1 * expected).all()


def test_thickness_and_gap_lie_at_the_vertices(shell: Shell, flush: Report) -> None:
    mesh = volume_to_mesh(shell.empty.with_mask(shell.wall & shell.defect))
    assert flush.thickness_mm.shape == flush.gap_mm.shape == (len(mesh.vertices),)
    assert flush.thickness_mm.dtype == np.float32
    top = np.linalg.norm(mesh.vertices - [0, 0, OUTER], axis=1).argmin()
    assert flush.thickness_mm[top] == pytest.approx(6, abs=0.8)  # a voxel
    assert flush.gap_mm[top] == pytest.approx(OUTER * np.sin(HOLE), abs=1.2)


def sphere(radius: float = 10.0, at: float = 0.0) -> Mesh:
    body = trimesh.creation.icosphere(subdivisions=3, radius=radius)
    return Mesh(np.asarray(body.vertices) + np.array([at, 0, 0]), np.asarray(body.faces))


def together(*meshes: Mesh) -> Mesh:
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    faces = [mesh.faces + start for mesh, start in zip(meshes, starts, strict=False)]
    return Mesh(np.concatenate([mesh.vertices for mesh in meshes]), np.concatenate(faces))


def faults(mesh: Mesh, bodies: int = 1, wall: float = 2.0) -> dict[str, bool | None]:
    check = printable(mesh, bodies, wall, Criteria())
    assert check.passed is all(figure.passed is not False for figure in check.figures)
    return {figure.key: figure.passed for figure in check.figures if figure.passed is False}


def test_printability_of_good_and_bad_meshes() -> None:
    good = sphere()
    assert faults(good) == {}
    assert printable(good, 1, 2.0, Criteria()).figure("volume") == pytest.approx(4 / 3 * np.pi, rel=0.02)
    assert faults(together(good, sphere(at=30.0)), bodies=2) == {}
    assert faults(together(good, sphere(at=30.0))).keys() == {"bodies"}
    assert faults(together(good, sphere(at=5.0)), bodies=2).keys() == {"self_intersections"}
    assert faults(Mesh(good.vertices, good.faces[:, ::-1])).keys() == {"inverted_bodies"}
    flipped = good.faces.copy()
    flipped[7] = flipped[7, ::-1]
    assert faults(Mesh(good.vertices, flipped)).keys() == {"consistent_winding", "manifold"}
    assert {"watertight", "manifold"} <= faults(Mesh(good.vertices, good.faces[1:])).keys()
    assert faults(good, wall=0.5).keys() == {"wall"}
    assert faults(sphere(130.0)).keys() == {"longest_side"}


def test_triangles_that_cross_are_counted_across_sizes() -> None:
    plate = Mesh(np.array([[-50.0, -50, 0], [50, -50, 0], [0, 80, 0]]), np.array([[0, 1, 2]]))
    ball = sphere()
    pairs = self_intersections(together(ball, plate))
    height = ball.vertices[ball.faces][:, :, 2]
    crossed = np.flatnonzero((height.min(1) < -1e-9) & (height.max(1) > 1e-9))
    assert set(pairs.min(1)) == set(crossed)
    assert set(pairs.max(1)) == {len(ball.faces)}
    assert len(self_intersections(ball)) == 0


@pytest.mark.parametrize(("largest", "reach"), [(1, 2.0), (100, 3.0)])
def test_triangles_of_all_sizes_cross_as_they_do_two_by_two(largest: float, reach: float) -> None:
    rng = np.random.default_rng(0)
    middles, sizes = rng.uniform(-reach, reach, (40, 1, 3)), largest ** rng.uniform(-0.5, 0.5, (40, 1, 1))
    corners, faces = middles + sizes * rng.normal(size=(40, 3, 3)), np.arange(120).reshape(40, 3)

    def crossing(some: np.ndarray) -> list[list[int]]:
        return sorted(np.sort(self_intersections(Mesh(corners.reshape(-1, 3), some)), axis=1).tolist())

    two_by_two = [[a, b] for a, b in combinations(range(40), 2) if crossing(faces[[a, b]])]
    assert crossing(faces) == two_by_two
    assert len(two_by_two) > 20


def test_triangles_on_one_pile_are_refused_at_once() -> None:
    pile = Mesh(np.random.default_rng(0).random((90_000, 3)), np.arange(90_000).reshape(-1, 3))
    with pytest.raises(InputError, match="triangles lie on top of each other; export it again"):
        self_intersections(pile)


def test_a_limit_decides(shell: Shell, flush: Report) -> None:
    strict = Criteria(max_step_mean_mm=0.0, min_thickness_mm=7)
    implant = shell.empty.with_mask(shell.wall & shell.defect)
    report = check_implant(shell.skull, implant, volume_to_mesh(implant), shell.vault, strict)
    assert report.failed == ["smooth_transition", "thickness"]
    assert flush.failed == []
    figure = Figure("x", "Step", 1.0, "mm", maximum=1.0)
    assert figure.passed
    assert not replace(figure, value=1.01).passed
    assert figure.record()["rule"] == "at most"
    assert Figure("x", "Step", 1.0, "mm").passed is None


def test_one_sided_bone_is_not_compared(shell: Shell) -> None:
    alone = Shell.__new__(Shell)
    alone.__dict__.update(shell.__dict__)
    alone.vault = replace(shell.vault, measured=np.where(shell.vault.defect > 0, np.nan, OUTER))
    check = alone.check(shell.wall & shell.defect)["restores_shape"]
    assert check.passed
    assert "no intact other side" in check.words
    assert check.figure("mirrored_share") == 0


def test_an_unknown_key_is_an_error(flush: Report) -> None:
    with pytest.raises(KeyError, match=r"smooth_transition: expected one of step_mean, .*, got step, mean"):
        flush["smooth_transition"].figure("step, mean")


def test_keys_are_unique_and_the_recommendation_finds_its_own(flush: Report) -> None:
    keys = [figure.key for check in flush.checks for figure in check.figures]
    assert len(keys) == len(set(keys))
    expected = flush["smooth_transition"].figure("step_mean") + flush["restores_shape"].figure("continuation_mean")
    assert disagreement(flush) == pytest.approx(expected)
    assert disagreement(flush) > 0


def test_the_documents_list_every_key(flush: Report) -> None:
    text = (Path(__file__).parents[1] / "docs" / "checks.md").read_text(encoding="utf-8")
    for check in flush.checks:
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{check.name}` | `"))
        missing = [figure.key for figure in check.figures if f"`{figure.key}`" not in row]
        assert not missing, check.name
    for name in Criteria.model_fields:
        assert f"`{name}`" in text


def test_a_defect_cut_aslant_is_left_along_its_axis(shell: Shell) -> None:
    """A cylinder 30 degrees off the skull's normal: nothing is in the way along its axis, much along the normal."""
    axis = np.array([np.sin(np.deg2rad(30)), 0, np.cos(np.deg2rad(30))])
    points = np.stack([shell.x, shell.y, shell.z], -1) - [0, 0, (OUTER + INNER) / 2]
    across = np.linalg.norm(points - (points @ axis)[..., None] * axis, axis=-1)
    implant, bone = (shell.empty.with_mask(shell.wall & part) for part in (across < 18, across >= 18))
    path = best_removal_path(implant, bone, np.array([0, 0, 1.0]), exact=True)
    assert path.direction @ axis > np.cos(np.deg2rad(10))
    assert path.collision_ml < 0.05


def test_heights_above_a_noisily_measured_sphere_are_millimetres(shell: Shell) -> None:
    """A ray from its centre meets a sphere at a right angle, however noisy the radius of single rays is."""
    noise = np.random.default_rng(0).normal(0, 0.5, len(MAP.directions))
    implant = shell.empty.with_mask(shell.wall & shell.defect)
    view = RayView.of(replace(shell.vault, outer=shell.vault.outer + noise), shell.skull, implant)
    assert view.mm.mean() == pytest.approx(1.0, abs=0.01)
    assert view.area[view.defect > 0].sum() == pytest.approx(CAP, rel=0.05)


def test_rays_cover_the_defect_and_a_centimetre_around_it(shell: Shell) -> None:
    view = RayView.of(shell.vault, shell.skull, shell.empty.with_mask(shell.wall & shell.defect))
    across = 2 * (RADIUS * 2 * np.sin(HOLE / 2) + 10)  # mm on the map
    assert np.array(view.mm.shape) * PIXEL / 2 == pytest.approx(across, rel=0.08)


@pytest.mark.parametrize("spacing", [(0.45, 0.45, 0.45), (0.8, 0.8, 0.8), (0.5, 0.5, 2.0), (1.6, 1.6, 1.6)])
def test_an_undercut_counts_on_every_grid(spacing: tuple[float, float, float]) -> None:
    """A wall without an undercut, aslant to the grid; and one in which bone overhangs by 2 mm, 0.5 mm of it play."""
    grid = Shell(spacing, turn=10.0)
    axis = np.array(Rotation.from_euler("xyz", [10, -10, 20], degrees=True).as_matrix()[:, 2])
    for wider, least, most in ((0.0, 0.0, 0.001), (2.0, 0.1, 0.75)):
        radius = np.where(grid.z < 74.5, 18.0 + wider, 18.0)
        implant, bone = (grid.empty.with_mask(grid.wall & part) for part in (grid.rho < radius, grid.rho >= radius))
        path = best_removal_path(implant, bone, axis, exact=True)
        assert least <= path.collision_ml <= most
        if wider and max(spacing) < 1:
            assert path.collision_ml == pytest.approx(0.56, abs=0.06)


@pytest.mark.parametrize(("too_wide", "passed"), [(0.0, True), (0.75, False)])
def test_a_mesh_in_bone_by_three_quarters_of_a_millimetre_does_not_fit(
    shell: Shell, too_wide: float, passed: bool
) -> None:
    plug = shell.wall & shell.defect
    mesh = volume_to_mesh(shell.empty.with_mask(plug))
    across = np.linalg.norm(mesh.vertices[:, :2], axis=1, keepdims=True)
    wider = mesh.vertices[:, :2] * (1 + too_wide / np.maximum(across, 1))
    check = shell.check(plug, mesh=Mesh(np.c_[wider, mesh.vertices[:, 2]], mesh.faces))["clearance"]
    assert check.passed is passed
