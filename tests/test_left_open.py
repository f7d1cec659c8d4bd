"""The openings that a design leaves open: how many, where, how large, and why; in the fit, the record and the plan."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from pcdiff.cli.batch import result_line
from pcdiff.data.craniotomy import simulate_craniotomy
from pcdiff.geometry.extents import extents
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import write_volume
from pcdiff.methods.base import Proposal
from pcdiff.methods.candidates import Mask
from pcdiff.methods.prior import PriorMethod
from pcdiff.pipeline.case import design_case
from pcdiff.pipeline.fit_options import FitOptions
from pcdiff.pipeline.record import case_record
from pcdiff.pipeline.settings import Settings
from pcdiff.prior.fit import PriorFit, fit
from pcdiff.prior.model import ShapePrior
from pcdiff.prior.regions import openings_of

BURR_MM = 7.0  # radius of a burr hole


@pytest.fixture(scope="module")
def head(healthy: Volume, prior: ShapePrior) -> tuple[Volume, Volume, PriorFit]:
    """A skull with two defects and a burr hole, the true implant of the two, and a fit to all."""
    skull, implant = simulate_craniotomy(healthy, "random_1", np.random.default_rng(5), defects=2)
    centre = fit(prior, skull).pose.shift
    bone = np.argwhere(skull.mask)
    offset = skull.to_mm(bone.astype(float)) - centre
    axis = np.array([-0.75, 0.25, 0.6]) / np.linalg.norm([-0.75, 0.25, 0.6])
    along = offset @ axis
    drilled = (np.linalg.norm(offset - along[:, None] * axis, axis=1) < BURR_MM) & (along > 0)
    mask = skull.mask.copy()
    mask[tuple(bone[drilled].T)] = False
    skull = skull.with_mask(mask)
    return skull, implant, fit(prior, skull, defects="all")


def test_what_is_not_chosen_is_left_open_with_its_number_place_and_size(
    head: tuple[Volume, Volume, PriorFit], prior: ShapePrior
) -> None:
    skull, implant, both = head
    _, (burr,) = openings_of(both, skull)
    assert (burr.number, burr.side, burr.place, burr.why) == (None, "right", "right parietal", "smaller than 3 cm2")
    assert burr.area_cm2 == pytest.approx(np.pi * (BURR_MM / 10) ** 2, rel=0.3)
    assert (burr.length_mm, burr.width_mm) == pytest.approx((2 * BURR_MM, 2 * BURR_MM), abs=skull.spacing.max())

    (_, listed), _ = openings_of(both, skull)
    _, (left, small) = openings_of(fit(prior, skull, defects=(1,)), skull)
    assert (left.number, left.place, left.why) == (2, listed.place, "not chosen")
    piece = implant.to_mm(np.argwhere(implant.mask))
    piece = piece[both.defect_at(piece) == 2]
    voxel = skull.spacing.max()  # from the border of a voxel to its centre, on either side
    assert (left.length_mm, left.width_mm) == pytest.approx(np.add(extents(piece)[:2], voxel), abs=voxel)
    assert (small.number, small.place, small.why) == (None, burr.place, burr.why)


def test_an_opening_has_one_size_whether_it_is_closed_or_left_open(
    head: tuple[Volume, Volume, PriorFit], prior: ShapePrior, tmp_path: Path
) -> None:
    skull, _, both = head
    write_volume(skull, tmp_path / "head.nrrd")
    settings = Settings("prior", defects=(2,), report=False, fitting=FitOptions(clearance=1.0))
    record = design_case(tmp_path / "head.nrrd", tmp_path / "out", PriorMethod(prior), settings)
    (closed,), (left, _) = record["input_check"]["defects"], record["left_open"]

    def size(defect: dict[str, Any]) -> tuple[float, float, float]:
        return defect["area_cm2"], defect["length_mm"], defect["width_mm"]

    listed, _ = openings_of(both, skull)  # as pcdiff info says
    assert [size(left), size(closed)] == [size(asdict(defect)) for defect in listed]


def test_a_region_leaves_the_rest_of_its_defect_open(head: tuple[Volume, Volume, PriorFit], prior: ShapePrior) -> None:
    skull, implant, both = head
    voxels = np.argwhere(implant.mask)
    second = voxels[both.defect_at(implant.to_mm(voxels)) == 2]

    def left(chosen: np.ndarray) -> list[tuple[int | None, str]]:
        region = skull.with_voxels(chosen)
        return [(each.number, each.why) for each in openings_of(fit(prior, skull, defects=region), skull)[1]]

    burr = (None, "smaller than 3 cm2")
    assert left(second) == [(1, "outside the region"), burr], "no strip along the region's edge"
    upper = second[second[:, 2] > np.median(second[:, 2])]
    assert left(upper) == [(1, "outside the region"), (2, "the part outside the region"), burr]


def test_a_natural_opening_is_named_as_one(head: tuple[Volume, Volume, PriorFit], prior: ShapePrior) -> None:
    skull, _, both = head
    present = prior.present.copy()
    rays = np.flatnonzero(both.defect == 2)
    present[rays[: len(rays) // 2]] = 0
    _, left = openings_of(fit(replace(prior, present=present), skull), skull)
    assert (left[0].number, left[0].why) == (2, "may be natural, such as an orbit")


def test_record_plan_and_result_say_what_stays_open(
    head: tuple[Volume, Volume, PriorFit], prior: ShapePrior, tmp_path: Path
) -> None:
    write_volume(head[0], tmp_path / "head.nrrd")
    record = design_case(tmp_path / "head.nrrd", tmp_path / "out", PriorMethod(prior), Settings("prior", defects=(2,)))
    left, small = record["left_open"]
    assert (left["number"], small["number"]) == (1, None)
    line = result_line(record)
    assert f"left open: {left['place']}, 30 cm2 (not chosen); right parietal, {small['area_cm2']:.0f} cm2 (sm" in line
    assert case_record(tmp_path / "out")["left_open"] == record["left_open"]
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    plan = text[text.index('class="plan"') : text.index("<h2>Slices")]
    size = f"{left['length_mm']:.0f} x {left['width_mm']:.0f}\u00a0mm, {left['area_cm2']:.0f}\u00a0cm\u00b2"
    assert "<h2>Left open: 2</h2>" in plan
    assert f"<li>Defect 1: {left['place']}, {size} (not chosen)</li>" in plan
    assert "(smaller than 3\u00a0cm\u00b2)</li>" in plan


def test_a_defect_without_a_piece_of_the_implant_is_left_open(
    head: tuple[Volume, Volume, PriorFit], prior: ShapePrior, tmp_path: Path
) -> None:
    skull, implant, both = head
    write_volume(skull, tmp_path / "head.nrrd")
    voxels = np.argwhere(implant.mask)
    labels, _ = ndimage.label(implant.mask)
    first = voxels[both.defect_at(implant.to_mm(voxels)) == 1][0]
    one = implant.with_mask(labels == labels[tuple(first)])

    def method(skull: Volume, *, ensemble: int = 1, seed: int = 0, device: str = "cpu") -> Proposal:
        return Proposal([Mask(one)])

    record = design_case(tmp_path / "head.nrrd", tmp_path / "out", method, Settings("prior", report=False))
    small, left = record["left_open"]
    assert (small["why"], left["number"]) == ("smaller than 3 cm2", 2)
    assert re.fullmatch(r"implant and bone cover \d% of it", left["why"])
