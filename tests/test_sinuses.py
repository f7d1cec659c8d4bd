"""Large frontal sinuses in CTs and masks: their thin walls are bone, and no defect is found where they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from sinus_phantom import SKIN, SinusHead

from pcdiff.data.craniotomy import simulate_craniotomy
from pcdiff.errors import InputError
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.scan import Scan
from pcdiff.imaging.segment import THRESHOLD, segment
from pcdiff.prior.fit import fit
from pcdiff.prior.model import ShapePrior

Phantom = tuple[np.ndarray, Volume]
COARSE = (1.5, 1.5, 1.8)
HEADS = {
    "large": SinusHead(wall=1.6, spacing=COARSE),
    "deep": replace(SinusHead.drawn(3), wall=1.6, spacing=COARSE),
    "noisy": replace(SinusHead.drawn(0), wall=1.6, spacing=COARSE),
}


@pytest.fixture(scope="module", params=HEADS)
def phantom(prior: ShapePrior, request: pytest.FixtureRequest) -> Phantom:
    """HU of a head with a large sinus and without a defect, and its bone."""
    return HEADS[request.param].ct(prior)


@pytest.fixture(scope="module")
def large(prior: ShapePrior) -> Phantom:
    """One of them."""
    return HEADS["large"].ct(prior)


def scan_of(hu: np.ndarray, grid: Volume) -> Scan:
    return Scan(hu, grid.affine, None, "NRRD", float(grid.spacing.max()))


def forehead(grid: Volume) -> np.ndarray:
    """Voxels in front of the sinus' back wall and over the nasal bones."""
    x, y, z = np.moveaxis(grid.to_mm(np.moveaxis(np.indices(grid.mask.shape), 0, -1).astype(float)), -1, 0)
    return (np.abs(x) < 30) & (y < -60) & (z > -34) & (z < 30)


def test_the_sinus_of_the_phantom_opens_into_the_room(phantom: Phantom) -> None:
    hu, grid = phantom
    air, _ = ndimage.label(hu < -500)
    behind_the_wall = ndimage.binary_dilation(grid.mask & forehead(grid), iterations=2) & (air > 0) & forehead(grid)
    assert (air[behind_the_wall] == air[0, 0, 0]).mean() > 0.95


def test_walls_over_air_are_bone_and_holder_strap_table_and_tube_are_not(phantom: Phantom) -> None:
    hu, grid = phantom
    found = segment(scan_of(hu, grid)).skull.mask
    thin = grid.mask & (hu >= THRESHOLD) & forehead(grid)
    assert (found & thin).sum() > 0.97 * thin.sum()
    outside = ndimage.distance_transform_edt(~grid.mask, grid.spacing)
    x, y, z = np.moveaxis(grid.to_mm(np.argwhere(found & (outside > 4))), -1, 0)
    in_mouth = (np.abs(x) < 6) & (y > -100) & (z < -60)
    assert in_mouth.all()  # the tube, inside the head


def test_no_defect_is_found_over_a_sinus(phantom: Phantom, prior: ShapePrior) -> None:
    hu, grid = phantom
    skull = segment(scan_of(hu, grid)).skull
    for each in (skull, grid):  # from the CT, and the mask of its true bone
        with pytest.raises(InputError, match="no defect found: expected bone to be absent"):
            fit(prior, each)


def test_the_defect_alone_is_found(large: Phantom, prior: ShapePrior) -> None:
    hu, grid = large
    _, implant = simulate_craniotomy(grid, "parietotemporal", np.random.default_rng(2))
    cut = np.where(ndimage.binary_dilation(implant.mask), np.minimum(hu, SKIN), hu).astype(np.int16)
    found = fit(prior, segment(scan_of(cut, grid)).skull)
    assert found.defects == 1
    assert found.notes == ()
    assert (found.defect_at(implant.to_mm(np.argwhere(implant.mask))) > 0).mean() > 0.95


def test_bone_that_hangs_together_with_the_skull_is_kept_where_slices_are_open(large: Phantom) -> None:
    """A wound opens the sinus in every slice, so that filling slices closes nothing."""
    hu, grid = large
    x, y, z = np.moveaxis(grid.to_mm(np.moveaxis(np.indices(grid.mask.shape), 0, -1).astype(float)), -1, 0)
    wound = (np.abs(x - 4) < 2) & (y < -65) & (z > -40) & (z < 12)
    opened = np.where(wound, -1000, hu).astype(np.int16)
    thin = grid.mask & (opened >= THRESHOLD) & forehead(grid) & ~wound
    found = segment(scan_of(opened, grid)).skull.mask
    assert (found & thin).sum() > 0.97 * thin.sum()


def test_a_dropped_wall_is_no_defect(large: Phantom, prior: ShapePrior) -> None:
    """Where segmentation loses the front wall, the CT still holds it."""
    hu, grid = large
    skull = segment(scan_of(hu, grid)).skull
    wall = skull.mask & forehead(grid)
    with pytest.raises(InputError, match="no defect found"):
        fit(prior, replace(skull, mask=skull.mask & ~wall, loose=skull.loose | wall))
    assert fit(prior, skull.with_mask(skull.mask & ~wall)).defects == 1
