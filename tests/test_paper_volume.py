"""The second stage of the published method: against the original, against closed forms, from points to an implant."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import nn

from pcdiff.data.craniotomy import simulate_craniotomy
from pcdiff.errors import InputError
from pcdiff.geometry.grid import largest_components
from pcdiff.geometry.metrics import dice
from pcdiff.geometry.points import PointCloud
from pcdiff.geometry.surface import sample_surface
from pcdiff.geometry.volume import Volume
from pcdiff.methods.friedrich2023.clean import (
    ball,
    defects_of,
    filled,
    piece_per_defect,
    smoothed,
    within_reach,
)
from pcdiff.methods.friedrich2023.lattice import lattice_over
from pcdiff.methods.friedrich2023.points import outer_mesh
from pcdiff.methods.friedrich2023.volume import volume_from_points
from pcdiff.methods.friedrich2023.voxelisation import VoxelisationConfig, VoxelisationNetwork
from pcdiff.methods.friedrich2023.voxelisation_weights import voxelisation_state_from, voxelisation_state_to, weight_map
from pcdiff.reconstruct.dpsr import poisson_grid, poisson_region
from pcdiff.training.friedrich2023.data import Surfaces
from pcdiff.training.friedrich2023.voxelisation_training import target_field, training_loss, voxelisation_sample

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import make_parity_vectors as vectors  # noqa: E402

ORIGINAL = ROOT.parent / "shared" / "parity"
original = pytest.mark.skipif(not ORIGINAL.is_dir(), reason="the original's vectors lie outside the repository")
TOLERANCE = 1e-4  # absolute, float32
# Of the field's largest value. The field's scale is one value near zero, which amplifies float32's rounding: on the
# same points the original's own field lies 1.7e-5 from the field in float64, and processors differ by 1.4e-5.
FIELD_TOLERANCE = 5e-5


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in one order: the field's scale is one small value, which amplifies rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- parity ---------------------------------------------------------------------------------------------------


@original
@pytest.mark.usefixtures("one_thread")
def test_network_and_fields_agree_with_the_original() -> None:
    network = VoxelisationNetwork().eval()
    foreign = torch.load(ORIGINAL / "voxelisation.pt", weights_only=True)["state_dict"]
    network.load_state_dict(voxelisation_state_from(foreign))
    known = {name: torch.from_numpy(value) for name, value in np.load(ORIGINAL / "voxelisation.npz").items()}
    with torch.inference_mode():
        grid = network.encoder(known["p"])
        points, normals = network(known["p"])
        taps = {"encoder_grid": grid, "points_every16": points[:, ::16], "normals_every16": normals[:, ::16]}
        fields = {f"psr{r}": poisson_grid(points, normals, r) for r in (32, 64)}
    for name, ours in taps.items():
        torch.testing.assert_close(ours, known[name], rtol=0, atol=TOLERANCE, msg=lambda text, n=name: f"{n}: {text}")
    for name, ours in fields.items():
        largest = known[name].abs().max()
        assert (ours - known[name]).abs().max() < FIELD_TOLERANCE * largest, name


def test_network_and_field_agree_with_their_stored_vectors() -> None:
    stored = np.load(vectors.FOLDER / "voxelisation.npz")
    made = vectors.voxelisation_vectors()
    assert stored.files == list(made)
    for name, value in made.items():
        np.testing.assert_allclose(value, stored[name], rtol=0, atol=TOLERANCE, err_msg=name)


# --- weights --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def foreign() -> dict[str, torch.Tensor]:
    """The original's names, random values."""
    torch.manual_seed(0)
    return voxelisation_state_to(VoxelisationNetwork().state_dict())


@original
def test_names_and_shapes_are_those_of_the_original(foreign: dict[str, torch.Tensor]) -> None:
    lines = (ORIGINAL / "voxelisation_keys.txt").read_text().splitlines()
    assert [f"{name} {tuple(value.shape)}" for name, value in foreign.items()] == lines


def test_every_tensor_has_exactly_one_original_name(foreign: dict[str, torch.Tensor]) -> None:
    names = weight_map(VoxelisationConfig())
    assert sorted(names.values()) == sorted(VoxelisationNetwork().state_dict())
    assert len(foreign) == len(names) == len(set(names.values()))
    assert sum(value.numel() for value in foreign.values()) == 1_085_272


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_are_imported_and_exported_unchanged(foreign: dict[str, torch.Tensor], prefix: str) -> None:
    network = VoxelisationNetwork()
    network.load_state_dict(voxelisation_state_from({prefix + name: value for name, value in foreign.items()}))
    back = voxelisation_state_to(network.state_dict())
    assert list(back) == list(foreign)
    assert all(torch.equal(back[name], value) for name, value in foreign.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.fc_c.bias": None}, "expected encoder.fc_c.bias, found none"),
        ({"encoder.fc_d.bias": torch.zeros(3)}, "unknown encoder.fc_d.bias"),
        ({"encoder.fc_c.bias": torch.zeros(31)}, r"encoder.fc_c.bias of shape \(32,\), got \(31,\)"),
        ({"encoder.fc_c.bias": torch.zeros(32, dtype=torch.int64)}, "encoder.fc_c.bias to be a tensor of floats"),
    ],
)
def test_weights_that_do_not_fit_are_named(foreign: dict[str, torch.Tensor], change: dict, message: str) -> None:
    changed = {name: value for name, value in (foreign | change).items() if value is not None}
    with pytest.raises(InputError, match=message):
        voxelisation_state_from(changed)


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(InputError, match="expected encoder"):
        voxelisation_state_from({})


# --- Poisson --------------------------------------------------------------------------------------------------


def sphere(n: int, radius: float, centre: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 3) points and outward normals, evenly spread."""
    k = torch.arange(n, dtype=torch.float64) + 0.5
    height, angle = 1 - 2 * k / n, torch.pi * (1 + 5**0.5) * k
    beside = (1 - height**2).sqrt()
    normals = torch.stack([beside * angle.cos(), beside * angle.sin(), height], 1)
    return centre + radius * normals, normals


def test_a_sphere_has_its_volume_and_two_levels() -> None:
    points, normals = sphere(20_000, 0.3)
    field = poisson_grid(points[None], normals[None], 64)[0]
    assert field[0, 0, 0] == pytest.approx(0.5)
    inside = float((field <= 0).double().mean())
    assert inside == pytest.approx(4 / 3 * np.pi * 0.3**3, rel=0.01)
    # Gauss: the field jumps by the flux through the surface, so both sides are flat and equally far from it.
    assert float(field[32, 32, 32]) == pytest.approx(-0.5, abs=0.05)
    assert float(field[4:8, 4:8, 4:8].std()) < 0.01


def test_a_batch_equals_its_members_and_the_field_moves_with_the_points() -> None:
    first, second = sphere(500, 0.2), sphere(500, 0.15)
    both = poisson_grid(torch.stack([first[0], second[0]]), torch.stack([first[1], second[1]]), 16)
    torch.testing.assert_close(both[1], poisson_grid(second[0][None], second[1][None], 16)[0])
    moved = poisson_grid(first[0][None] + torch.tensor([0.125, 0, -0.0625]), first[1][None], 16)[0]
    level = both[0, -2, 0, 1].abs()  # the cell that comes to lie at (0, 0, 0)
    torch.testing.assert_close(moved, both[0].roll((2, 0, -1), (0, 1, 2)) * (0.5 / level))


def test_gradients_reach_points_and_normals() -> None:
    points, normals = sphere(12, 0.3)
    points, normals = (value[None].requires_grad_() for value in (points + 0.013, normals))
    assert torch.autograd.gradcheck(lambda p, n: poisson_grid(p, n, 8).tanh(), (points, normals), atol=1e-4)


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("centre", [0.5, 0.13])
def test_the_solve_around_the_points_equals_the_one_in_the_cube(uneven: bool, centre: float) -> None:
    points, normals = (value.float() for value in sphere(4000, 0.11, centre))
    if uneven:  # the cloud then has a dipole moment, whose field reaches far
        normals = normals * (1 + 0.9 * normals[:, :1])
    whole = poisson_grid(points[None], normals[None], 128)[0]
    region = poisson_region(points, normals, 128)
    assert max(region.values.shape) <= 64  # an eighth of the cells
    axes = [torch.arange(low, low + n) % 128 for low, n in zip(region.low, region.values.shape, strict=True)]
    there = whole[torch.meshgrid(*axes, indexing="ij")]
    assert float((region.values - there).abs().max()) < 0.01 * float(there.abs().max())
    assert dice((region.values <= 0).numpy(), (there <= 0).numpy()) > 0.999
    assert int((whole <= 0).sum()) == int((there <= 0).sum())  # nothing of the solid lies outside the box


def test_a_region_as_large_as_the_cube_gives_the_same_field() -> None:
    points, normals = sphere(1000, 0.45)
    region = poisson_region(points, normals, 64)
    assert region.values.shape == (64, 64, 64)
    assert not region.low.any()
    whole = poisson_grid(points[None], normals[None], 64)[0]
    torch.testing.assert_close(region.values, whole, rtol=0, atol=1e-4)  # the scale is the coarse grid's


# --- lattice --------------------------------------------------------------------------------------------------

TILTED = np.array([[0.5, 0.0, 0.1, -90.0], [0.05, 0.45, -0.3, -80.0], [0.0, 0.2, 1.2, 30.0], [0, 0, 0, 1.0]])


def test_the_lattice_of_a_scan_of_the_published_size_is_its_grid() -> None:
    affine = np.diag([-0.4, -0.4, 0.4, 1.0])
    affine[:3, 3] = 100.0, 90.0, -300.0
    points = np.array([[0.0, 0.0, -200.0]])
    for faithful in (False, True):
        lattice = lattice_over((512, 512, 512), affine, points, 0.4, faithful=faithful)
        np.testing.assert_allclose(lattice.affine, affine, atol=1e-9)
    np.testing.assert_allclose(lattice.to_network(points)[0] * 512, [250, 225, 250])
    np.testing.assert_allclose(lattice.to_mm(lattice.to_network(points)), points)


def test_the_lattice_is_cubic_on_a_tilted_scan_and_moves_for_points_outside() -> None:
    shape = (512, 512, 200)
    middle = TILTED[:3, :3] @ (np.array(shape) - 1) / 2 + TILTED[:3, 3]
    lattice = lattice_over(shape, TILTED, middle[None])
    gram = lattice.affine[:3, :3].T @ lattice.affine[:3, :3]
    np.testing.assert_allclose(gram, 0.45**2 * np.eye(3), atol=1e-12)
    np.testing.assert_allclose(lattice.to_network(middle), 511 / 1024)
    outside = middle + lattice.affine[:3, :3] @ [300, 0, 0]
    moved = lattice_over(shape, TILTED, np.stack([middle, outside]))
    assert lattice.to_network(outside)[0] > 1 > moved.to_network(outside)[0] > 0.98
    with pytest.raises(InputError, match="within the paper's cube"):
        lattice_over(shape, TILTED, np.stack([middle - 150, middle + 150]))
    with pytest.raises(InputError, match="within the paper's cube"):
        lattice_over(shape, TILTED, np.stack([middle, outside]), faithful=True)


def test_faithful_takes_the_diagonal_of_the_directions_for_the_spacing() -> None:
    shape = (512, 512, 200)
    middle = TILTED[:3, :3] @ (np.array(shape) - 1) / 2 + TILTED[:3, 3]
    lattice = lattice_over(shape, TILTED, middle[None], faithful=True)
    np.testing.assert_allclose(
        np.linalg.inv(lattice.affine)[:3, :3] @ TILTED[:3, :3], np.diag([0.5, 0.45, 1.2]) / 0.45, atol=1e-9
    )
    permuted = TILTED[[1, 2, 0, 3]]
    permuted[:3, :3] = np.eye(3)[[1, 2, 0]]
    with pytest.raises(InputError, match="diagonal"):
        lattice_over((9, 9, 9), permuted, np.zeros((1, 3)), faithful=True)


# --- clean-up -------------------------------------------------------------------------------------------------


def test_smoothing_equals_scipy() -> None:
    mask = np.pad(ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(24, 20, 22)), 1.5) > 0, 3)
    cube = np.ones((3, 3, 3))
    expected = ndimage.binary_opening(mask, cube)
    expected = ndimage.median_filter(expected, 3, mode="constant")
    expected = ndimage.binary_fill_holes(ndimage.binary_closing(expected, cube))
    assert expected.any()
    assert not np.array_equal(expected, mask)
    assert np.array_equal(smoothed(mask, lambda mask: mask), expected)


def test_voids_are_filled_and_cups_are_not() -> None:
    mask = np.ones((5, 5, 5), bool)
    mask[2, 2, 2] = mask[0, 0, 2] = False
    assert np.array_equal(np.argwhere(~filled(mask)), [[0, 0, 2]])


def test_largest_piece_and_a_piece_per_defect() -> None:
    mask = np.zeros((20, 6, 6), bool)
    mask[:8], mask[9:15], mask[16:] = True, True, True
    assert largest_components(mask).sum() == 8 * 36
    assert not largest_components(np.zeros_like(mask)).any()
    points = np.array([[3.0, 3, 3], [11, 3, 3], [17.4, 3, 3], [18, 3, 3]])
    assert piece_per_defect(mask, points, np.array([1, 2, 2, 0])).sum() == 14 * 36  # strays select nothing
    assert piece_per_defect(mask, points, np.array([1, 1, 1, 1])).sum() == 8 * 36


def test_connected_points_fill_one_defect() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.uniform(0, 20, (300, 3)), rng.uniform((30, 0, 0), (50, 20, 20), (200, 3))
    stray = np.array([[100.0, 100, 100]])
    label = defects_of(np.concatenate([left, right, stray]))
    assert np.unique(label[:300]).size == np.unique(label[300:500]).size == 1
    assert {label[0], label[300]} == {1, 2}
    assert label[-1] == 0
    many = rng.permutation(np.concatenate([left] * 20 + [right] * 20))  # more than are compared pair by pair
    assert np.unique(defects_of(many)).tolist() == [1, 2]
    assert np.array_equal(defects_of(rng.uniform(0, 1e4, (30, 3))), np.ones(30))  # no group: all have label 1


def test_the_ball_reaches_beyond_the_points() -> None:
    points = np.array([[10.0, 10, 10], [10, 10, 20], [10, 10, 0]])
    assert ball(points)[1] == pytest.approx(11)
    mask = within_reach((30, 30, 30), points)
    assert mask[10, 10, 21]
    assert not mask[10, 10, 22]
    assert mask[10, 21, 10]


# --- from points to an implant --------------------------------------------------------------------------------


class Oracle(nn.Module):
    """A network that returns the true normals, to test all that is not learned."""

    def __init__(self, cloud: PointCloud, skull: Volume, spacing_mm: float, resolution: int, faithful: bool) -> None:
        super().__init__()
        self.float32 = nn.Parameter(torch.zeros(1))
        lattice = lattice_over(skull.mask.shape, skull.affine, cloud.points, spacing_mm, resolution, faithful)
        self.tree = cKDTree(lattice.to_network(cloud.points))
        self.known = torch.from_numpy(cloud.normals @ lattice.affine[:3, :3] / spacing_mm).float()

    def forward(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        return points, self.known[self.tree.query(points[0].numpy())[1]][None]


def solid(
    implant: Volume, skull: Volume, samples: int = 1, noise: float = 0.0, faithful: bool = False, points: int = 6000
) -> Volume:
    """The implant made from points of the true implant's surface, in a cube with the scan's spacing."""
    rng = np.random.default_rng(3)
    spacing = float(skull.spacing.min())
    cloud = sample_surface(outer_mesh(implant), points, rng)
    network = Oracle(cloud, skull, spacing, 160, faithful)
    clouds = [cloud.points + noise * rng.normal(size=cloud.points.shape) for _ in range(samples)]
    return volume_from_points(clouds if samples > 1 else clouds[0], skull, network, spacing, 160, faithful)


def test_true_points_become_the_true_implant(case: tuple[Volume, Volume]) -> None:
    skull, implant = case
    before = skull.mask.copy()
    found = solid(implant, skull)
    assert dice(found.mask, implant.mask) > 0.95
    assert not np.any(found.mask & skull.mask)
    assert np.array_equal(skull.mask, before)
    assert found.header is skull.header
    assert np.array_equal(found.affine, skull.affine)
    assert np.array_equal(found.mask, solid(implant, skull).mask)


def test_the_published_implant_is_a_voxel_too_thick(case: tuple[Volume, Volume]) -> None:
    skull, implant = case
    corrected, published = solid(implant, skull), solid(implant, skull, faithful=True)
    assert dice(published.mask & ~skull.mask, implant.mask) < dice(corrected.mask, implant.mask) - 0.05
    assert (published.mask & ~skull.mask).sum() > 1.1 * implant.mask.sum()


def test_the_published_implant_includes_bone(case: tuple[Volume, Volume]) -> None:
    """Where the solid does not reach the bone, voxels of bone have -1 and count as implant."""
    skull, implant = case
    found = solid(implant.with_mask(ndimage.binary_erosion(implant.mask)), skull, faithful=True)
    assert np.any(found.mask & skull.mask)


def test_several_samples_give_their_majority(case: tuple[Volume, Volume]) -> None:
    skull, implant = case
    one, five = solid(implant, skull, noise=1.0), solid(implant, skull, samples=5, noise=1.0)
    assert dice(five.mask, implant.mask) > dice(one.mask, implant.mask)


def test_two_defects_get_two_pieces(healthy: Volume) -> None:
    skull, implant = simulate_craniotomy(healthy, "random_1", np.random.default_rng(4), defects=2)
    found = solid(implant, skull)
    assert ndimage.label(found.mask)[1] == 2
    assert dice(found.mask, implant.mask) > 0.94
    assert dice(solid(implant, skull, faithful=True).mask, implant.mask) < 0.8  # the largest piece only


def test_a_tilted_scan_gets_its_implant(case: tuple[Volume, Volume]) -> None:
    skull, implant = case
    shear = np.eye(4)
    shear[:3, :3] = [[0.98, -0.2, 0.0], [0.2, 0.98, 0.15], [0.0, 0.0, -1.0]]
    shear[:3, 3] = 40.0, -10.0, 25.0
    tilted = [Volume(volume.mask, shear @ volume.affine) for volume in (skull, implant)]
    assert dice(solid(tilted[1], tilted[0]).mask, implant.mask) > 0.92


@pytest.mark.parametrize(
    "samples", [np.zeros((4, 2)), np.zeros((0, 3)), np.full((4, 3), np.nan), [], [np.zeros((1, 3)), np.zeros(3)]]
)
def test_other_arrays_than_points_are_refused(samples: np.ndarray, case: tuple[Volume, Volume]) -> None:
    with pytest.raises(InputError, match="implant points"):
        volume_from_points(samples, case[0], VoxelisationNetwork(vectors.VOXELISATION))


# --- training -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def surfaces(case: tuple[Volume, Volume]) -> Surfaces:
    """The case's implant, as `store_surfaces` stores it."""
    skull, implant = case
    cloud = sample_surface(outer_mesh(implant), 5000, np.random.default_rng(0))
    return Surfaces(cloud.points, cloud.points, cloud.normals, skull.affine, np.array(skull.mask.shape))


@pytest.mark.parametrize("faithful", [False, True])
def test_a_sample_is_the_implant_in_the_cube(surfaces: Surfaces, case: tuple[Volume, Volume], faithful: bool) -> None:
    points, *oriented = voxelisation_sample(surfaces, 300, 64, np.random.default_rng(0), 3.6, faithful)
    field = target_field(*(torch.from_numpy(array)[None] for array in oriented), 64)[0].numpy()
    assert points.shape == (300, 3)
    assert points.dtype == field.dtype == np.float32
    at = np.clip(np.round(points * 64).astype(int), 0, 63)
    assert np.abs(field[tuple(at.T)]).mean() < 0.25 < field[0, 0, 0] == pytest.approx(0.5)
    ml = np.count_nonzero(field <= 0) * 3.6**3 / 1000
    assert case[1].ml < ml < 2.2 * case[1].ml  # half a voxel outside of 1.6 mm voxels


def test_the_loss_falls(surfaces: Surfaces) -> None:
    torch.manual_seed(0)
    made = [voxelisation_sample(surfaces, 200, 24, np.random.default_rng(k), 9.6) for k in range(2)]
    points, *oriented = (torch.from_numpy(np.stack(part)) for part in zip(*made, strict=True))
    truth = target_field(*oriented, 24)
    network = VoxelisationNetwork(VoxelisationConfig(width=8, cells=8, blocks=2, levels=2))
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    losses = []
    for _ in range(25):
        loss = training_loss(network, points, truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
