"""Slices of a head: where a voxel appears, which side is where, lengths, and the planes across the rim."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from phantom import head_ct
from scipy import ndimage

from pcdiff.errors import InputError
from pcdiff.geometry.extents import extents
from pcdiff.geometry.grey import (
    LEVEL_HU,
    WIDTH_HU,
    GreyHead,
    Grid,
    grey_head,
    occupancy,
    packed,
    read_grey,
    tiled,
    untiled,
    write_grey,
)
from pcdiff.geometry.mesh import Mesh
from pcdiff.geometry.surface import volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.report.contents import CaseContents
from pcdiff.report.rim import mesh_pieces, rim_planes
from pcdiff.report.shown_skull import ShownSkull
from pcdiff.report.slices import Slices, letters, place, position

SIZE = 60
MARK = np.array([18.0, -12.0, 7.0])  # mm: to the left, in front, above
TURN = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
AXES = {
    "straight": np.eye(3),
    "flipped": np.diag([-1.0, -1.0, 1.0]),
    "swapped": np.eye(3)[[2, 0, 1]],
    "turned": TURN,
    "thick": np.diag([-0.8, 0.9, 3.0]),
}


def marked(axes: np.ndarray) -> tuple[np.ndarray, np.ndarray, Volume]:
    """HU, affine and bone of a ball of 25 mm with a dense ball of 4 mm in it around MARK."""
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = -axes @ (np.full(3, (SIZE - 1) / 2))
    shape = np.ceil(SIZE / np.linalg.norm(axes, axis=0)).astype(int)
    affine[:3, 3] = -axes @ ((shape - 1) / 2)
    points = np.moveaxis(np.indices(shape), 0, -1) @ axes.T + affine[:3, 3]
    bone = np.linalg.norm(points, axis=-1) < 25
    hu = np.where(bone, 300, -1000).astype(np.int16)
    hu[np.linalg.norm(points - MARK, axis=-1) < 4] = 1400
    return hu, affine, Volume(bone, affine)


@pytest.fixture(scope="module", params=AXES)
def head(request: pytest.FixtureRequest) -> tuple[GreyHead, Volume]:
    hu, affine, bone = marked(AXES[request.param])
    return grey_head(hu, affine, Grid.around(bone)), bone


def contents(head: GreyHead | None, skull: Volume, implant: np.ndarray, **changes: object) -> CaseContents:
    solid = skull.with_mask(implant)
    record = {"settings": {"fitting": {"clearance": 0.0}}, "midplane": None}
    return replace(CaseContents("a", record, ShownSkull(skull, head), solid, volume_to_mesh(solid)), **changes)  # type: ignore[arg-type]


def test_a_voxel_is_where_its_millimetres_say_whatever_the_axes(head: tuple[GreyHead, Volume]) -> None:
    grey, _ = head
    bright = np.argwhere(grey.values > 200)
    assert len(bright) > 100
    np.testing.assert_allclose(bright.mean(axis=0) + grey.grid.low, MARK, atol=0.6)
    at = np.rint(np.array([0, 0, 0]) - grey.grid.low).astype(int)
    expected = 255 * (300 - LEVEL_HU + WIDTH_HU / 2) / WIDTH_HU
    assert grey.values[tuple(at)] == pytest.approx(expected, abs=6)
    assert grey.values[0, 0, 0] < 6, "air, and what lies outside of the scan"


def test_shares_keep_volume_and_place_of_a_mask(head: tuple[GreyHead, Volume]) -> None:
    grey, bone = head
    shares = occupancy(bone, grey.grid) / 255
    assert shares.sum() / 1000 == pytest.approx(bone.ml, rel=0.02)
    centre = ndimage.center_of_mass(shares) + np.array(grey.grid.low)
    np.testing.assert_allclose(centre, bone.to_mm(np.argwhere(bone.mask)).mean(axis=0), atol=0.2)


def test_pictures_follow_the_radiological_convention(head: tuple[GreyHead, Volume]) -> None:
    grey, bone = head
    index = np.argwhere(bone.mask)
    near = np.linalg.norm(bone.to_mm(index) - MARK, axis=1) < 4
    implant = np.zeros_like(bone.mask)
    implant[tuple(index[near].T)] = True
    slices = Slices(contents(grey, bone, implant))
    np.testing.assert_allclose(slices.focus, MARK, atol=2)
    sides = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
    for name, plane in zip(sides, slices.planes(), strict=True):
        picture = plane.sampled(grey.values, grey.grid)
        row, column = np.argwhere(picture > 200).mean(axis=0)
        place_ = plane.corner + row * plane.step * plane.down + column * plane.step * plane.right
        np.testing.assert_allclose(place_, MARK, atol=2, err_msg=name)
        shown = "".join(map(letters, (-plane.right, plane.right, -plane.down, plane.down)))
        assert shown == sides[name]
        middle = (np.array(picture.shape) - 1) / 2
        # MARK is left, anterior, superior.
        assert (column > middle[1]) == (name != "sagittal"), name
        assert row < middle[0], name
        assert name in plane.title


def test_a_scale_bar_is_as_long_as_it_says(head: tuple[GreyHead, Volume]) -> None:
    grey, bone = head
    text = str(Slices(contents(grey, bone, bone.mask)).html())
    stills = re.findall(r"<svg.*?</svg>", text, flags=re.S)
    assert len(stills) == 3
    for still in stills:
        width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', still).groups())  # type: ignore[union-attr]
        bar = re.search(r'class="ruler" d="M\S+?h(\S+?)"', still)
        assert bar
        assert f">{float(bar[1]):.0f} mm</text>" in still
        assert 0.1 * width < float(bar[1]) < 0.4 * width
        # The unit is the millimetre: the ball of 25 mm is drawn with its true diameter.
        outline = re.search(r'class="outline bone" d="M([^"]*)"', still)
        assert outline
        points = np.array([pair.split(",") for pair in re.split("[ML]", outline[1])], float)
        assert points.min() > 0
        assert (points.max(axis=0) < (width, height)).all()


def test_the_outline_has_the_true_size(head: tuple[GreyHead, Volume]) -> None:
    grey, bone = head
    for still in re.findall(r"<svg.*?</svg>", str(Slices(contents(grey, bone, bone.mask)).html()), flags=re.S):
        outline = re.search(r'class="outline bone" d="M([^"]*)"', still)
        assert outline
        points = np.array([pair.split(",") for pair in re.split("[ML]", outline[1])], float)
        np.testing.assert_allclose(np.ptp(points, axis=0), 50, atol=2.5)


def test_a_mask_shows_mask_slices(case: tuple[Volume, Volume]) -> None:
    skull, truth = case
    slices = Slices(contents(None, skull, truth.mask))
    assert "The scan is a mask" in slices.html()
    assert "bone window" not in slices.html()
    assert '"grey": null' in slices.html()


def test_letters_and_places_in_words() -> None:
    assert [letters(v) for v in np.eye(3)] == ["L", "P", "S"]
    assert [letters(-v) for v in np.eye(3)] == ["R", "A", "I"]
    assert letters(np.array([-0.8, 0.1, 0.6])) == "RS"
    assert position(1, -37.2) == "A 37 mm"
    assert place(np.array([-41.2, 12.4, -3.0])) == "R 41, P 12, I 3 mm"


def test_tiles_are_put_back() -> None:
    values = np.random.default_rng(0).integers(0, 255, (17, 23, 11), np.uint8)
    assert np.array_equal(untiled(tiled(values), values.shape), values)
    width = tiled(values).shape[1]
    assert np.array_equal(tiled(values)[:23, :17].T, values[:, :, 0])
    assert width % 17 == 0


def test_grey_values_are_kept_in_a_file(head: tuple[GreyHead, Volume], tmp_path: Path) -> None:
    grey, _ = head
    write_grey(grey, tmp_path / "grey.npz")
    assert read_grey(tmp_path / "grey.npz") == grey
    assert read_grey(tmp_path / "none.npz") is None
    write_grey(GreyHead(Grid((0.0, 0.0, 0.0), (9, 9, 9)), packed(np.zeros((8, 8, 8), np.uint8))), tmp_path / "grey.npz")
    with pytest.raises(InputError, match=r"grey\.npz: expected the grey values of a CT by pcdiff"):
        read_grey(tmp_path / "grey.npz")
    (tmp_path / "grey.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"grey\.npz: expected the grey values"):
        read_grey(tmp_path / "grey.npz")


def test_a_head_fits_into_its_grid(case: tuple[Volume, Volume]) -> None:
    hu, grid = head_ct(case[0])
    grey = grey_head(hu, grid.affine, Grid.around(grid))
    low = np.array(grey.grid.low)
    bone = grid.to_mm(np.argwhere(grid.mask))
    assert (bone.min(axis=0)[:2] - low[:2] > 10).all()
    assert (low + grey.grid.shape - bone.max(axis=0) > 10).all()
    assert grey.grid.shape[2] <= 171
    assert len(grey.picture) < 500_000


def test_planes_across_the_rim_of_a_cap() -> None:
    """A cap of a shell, opening 40 degrees around the direction (1, 0, 1): its rim is a circle."""
    points = np.moveaxis(np.indices((90, 90, 90)), 0, -1) - 44.5
    radius = np.linalg.norm(points, axis=-1)
    axis = np.array([1.0, 0.0, 1.0]) / np.sqrt(2)
    angle = np.degrees(np.arccos(np.clip(points @ axis / radius, -1, 1)))
    affine = np.eye(4)
    affine[:3, 3] = -44.5
    mesh = volume_to_mesh(Volume((radius < 40) & (radius > 34) & (angle < 40), affine))
    away = np.degrees(np.arccos(mesh.vertices @ axis / np.linalg.norm(mesh.vertices, axis=1)))
    gap = (40 - away) * np.pi / 180 * np.linalg.norm(mesh.vertices, axis=1)
    planes = rim_planes(mesh, gap, 0.0, np.zeros(3))
    assert len(planes) > 40
    assert planes[0].point[2] == max(plane.point[2] for plane in planes)
    for plane in planes:
        assert np.degrees(np.arccos(plane.point @ axis / np.linalg.norm(plane.point))) == pytest.approx(39, abs=2)
        assert plane.outward @ plane.point / np.linalg.norm(plane.point) > 0.98
        assert abs(plane.outward @ plane.across) < 1e-6
        assert plane.across @ (axis * 37 - plane.point) > 0, "to the right lies the implant"
    steps = np.linalg.norm(np.diff([plane.point for plane in planes], axis=0), axis=1)
    assert steps.max() < 8, "one beside the other"


def test_pieces_come_by_size_without_crumbs() -> None:
    def box(size: int, at: float) -> Mesh:
        return volume_to_mesh(
            Volume(np.ones((size,) * 3, bool), np.block([[np.eye(3), np.full((3, 1), at)], [0, 0, 0, 1]]))
        )

    parts = [box(8, 0), box(30, 50), box(2, 150)]
    firsts = np.cumsum([0, *(len(part.vertices) for part in parts)])
    mesh = Mesh(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.faces + first for part, first in zip(parts, firsts, strict=False)]),
    )
    large, small = mesh_pieces(mesh)
    assert mesh.vertices[large].min() > 40
    assert len(small) == len(parts[0].vertices)


def test_extents_are_those_of_a_calliper() -> None:
    corners = np.stack(np.meshgrid(*(np.linspace(-n / 2, n / 2, 25) for n in (60, 40, 12))), -1).reshape(-1, 3)
    diagonal = np.hypot(60, 40)
    length, width, height = extents(corners @ TURN.T + 7)
    assert length == pytest.approx(diagonal, rel=1e-3)
    assert height == pytest.approx(12, rel=1e-6)
    assert width == pytest.approx(2 * 60 * 40 / diagonal, rel=0.02)
