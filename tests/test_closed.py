"""Defects that something closes: a flap in place, the film of a network, mesh; and what is dense in a CT."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from pcdiff.data.craniotomy import simulate_craniotomy
from pcdiff.errors import InputError
from pcdiff.geometry.volume import Volume
from pcdiff.prior.fit import fit
from pcdiff.prior.model import ShapePrior


@pytest.fixture(scope="module")
def cut(prior: ShapePrior) -> tuple[Volume, Volume]:
    """(defective skull, flap) at 0.8 mm, so that a gap of 1.6 mm is two voxels."""
    head = prior.draw(np.random.default_rng(0), spacing=0.8)
    return simulate_craniotomy(head, "parietotemporal", np.random.default_rng(3))


def inside(skull: Volume, flap: Volume, mm: float) -> np.ndarray:
    """The flap without what lies within `mm` of the skull."""
    return flap.mask & (ndimage.distance_transform_edt(~skull.mask, skull.spacing) > mm)


def film(skull: Volume, flap: Volume, thickness: float) -> np.ndarray:
    """The innermost layer of the flap."""
    bone = skull.to_mm(np.argwhere(skull.mask))
    centre = np.array([*bone[:, :2].mean(0), bone[:, 2].max() - 75])
    outside = flap.mask | skull.mask
    index = np.argwhere(flap.mask)
    points = skull.to_mm(index)
    towards = centre - points
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    deeper = np.rint(skull.to_index(points + thickness * towards)).astype(int)
    layer = np.zeros_like(flap.mask)
    chosen = index[~outside[tuple(deeper.T)]]
    layer[tuple(chosen.T)] = True
    return layer


def side(volume: Volume, mask: np.ndarray) -> np.ndarray:
    """The front half of a mask."""
    y = volume.to_mm(np.argwhere(mask))[:, 1]
    front = np.argwhere(mask)[y < np.median(y)]
    half = np.zeros_like(mask)
    half[tuple(front.T)] = True
    return half


def test_a_flap_back_in_place_is_named(prior, cut):
    skull, flap = cut
    back = skull.with_mask(skull.mask | inside(skull, flap, 1.6))
    with pytest.raises(InputError, match=r"the bone flap is in place: .* a narrow gap") as refused:
        fit(prior, back)
    assert "finer" not in str(refused.value)


def sunk(skull: Volume, flap: Volume, mm: float) -> np.ndarray:
    """The flap, moved towards the middle of the head without a turn."""
    bone, removed = (volume.to_mm(np.argwhere(volume.mask)) for volume in (skull, flap))
    inward = np.array([*bone[:, :2].mean(0), bone[:, 2].max() - 75]) - removed.mean(0)
    step = mm * inward / np.linalg.norm(inward)
    return np.roll(flap.mask, np.rint(skull.to_index(skull.affine[:3, 3] + step)).astype(int), (0, 1, 2))


@pytest.mark.parametrize("gap", [0.0, 1.6])
def test_a_sunk_flap_is_named(prior, cut, gap):
    skull, flap = cut
    back = sunk(skull, flap.with_mask(inside(skull, flap, gap)), 4)
    with pytest.raises(InputError, match=r"the bone flap is in place, too deep: .* remove it"):
        fit(prior, skull.with_mask(skull.mask | back))


def test_a_bridged_flap_is_named(prior, cut):
    skull, flap = cut
    gap = flap.mask & ~inside(skull, flap, 1.6)
    places = np.argwhere(gap)
    bridges = np.zeros_like(gap)
    for place in places[:: len(places) // 5 + 1]:
        near = places[np.linalg.norm(skull.spacing * (places - place), axis=1) < 3]
        bridges[tuple(near.T)] = True
    back = skull.mask | flap.mask & (~gap | bridges)
    with pytest.raises(InputError, match=r"the bone flap is in place: .* a bridged gap around it; .* remove it"):
        fit(prior, skull.with_mask(back))


@pytest.mark.parametrize("seed", [0, 3, 4])
def test_a_healthy_head_has_no_flap(prior, seed):
    head = prior.draw(np.random.default_rng(seed), spacing=1.2)
    with pytest.raises(InputError, match=r"no defect found: .* is this the defective skull, not the complete one"):
        fit(prior, head)


def test_a_flap_beside_a_defect_is_bone(prior):
    head = prior.draw(np.random.default_rng(0), spacing=1.2)
    skull, holes = simulate_craniotomy(head, "random_1", np.random.default_rng(5), defects=2)
    labels, count = ndimage.label(holes.mask)
    assert count == 2
    flap = holes.with_mask(labels == 1)
    found = fit(prior, skull.with_mask(skull.mask | inside(skull, flap, 1.3)))
    assert found.defects == 1
    assert any("a loose piece of bone" in note for note in found.notes)
    other = holes.to_mm(np.argwhere(labels == 2))
    assert (found.defect_at(other) > 0).mean() > 0.9
    assert (found.defect_at(flap.to_mm(np.argwhere(flap.mask))) > 0).mean() < 0.05


def test_a_defect_half_closed_by_a_film_is_said(prior, cut):
    skull, flap = cut
    whole = fit(prior, skull)
    assert whole.notes == ()
    half = side(skull, film(skull, flap, 1.0))
    found = fit(prior, skull.with_mask(skull.mask | half))
    (note,) = found.notes
    assert "the film of a segmentation network" in note
    assert "--ignore-metal" in note
    assert (found.defect > 0).sum() < 0.8 * (whole.defect > 0).sum()


def test_a_defect_closed_by_a_film_is_said(prior, cut):
    skull, flap = cut
    with pytest.raises(InputError, match=r"no defect found: .* mm thick over .* closes the defect"):
        fit(prior, skull.with_mask(skull.mask | film(skull, flap, 1.0)))


def test_where_a_ct_is_dense_there_is_no_defect(prior, case, fitted):
    """A part of the skull that segmentation dropped."""
    skull, truth = case
    half = side(skull, truth.mask)
    found = fit(prior, replace(skull, loose=half))
    held, free = (skull.to_mm(np.argwhere(mask)) for mask in (half, truth.mask & ~half))
    assert (found.defect_at(held) > 0).mean() < 0.1
    assert (found.defect_at(free) > 0).mean() > 0.8
    with pytest.raises(InputError, match="no defect found"):
        fit(prior, replace(skull, loose=truth.mask))
    noise = np.random.default_rng(0).random(skull.mask.shape) < 1e-3
    assert np.array_equal(fit(prior, replace(skull, loose=noise & ~skull.mask)).defect, fitted.defect)


@pytest.mark.parametrize("spacing", [2.0, 2.5, 3.0])
def test_the_steps_of_coarse_voxels_are_no_flap(prior, spacing):
    healthy = prior.draw(np.random.default_rng(1), spacing=spacing)
    with pytest.raises(InputError, match="no defect found: expected bone to be absent"):
        fit(prior, healthy)
