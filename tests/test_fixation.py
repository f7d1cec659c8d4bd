"""Marks for plates and screws: on the rim, evenly spaced, and only where bone and implant are thick enough."""

from __future__ import annotations

import re
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import cKDTree

from pcdiff.checks.distances import outward_cosine, wall_thickness
from pcdiff.geometry.mesh import Mesh
from pcdiff.geometry.surface import volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import write_volume
from pcdiff.methods.prior import PriorMethod
from pcdiff.pipeline.case import design_case
from pcdiff.pipeline.fixation import MIN_BONE_MM, FixationPlace, fixation_places
from pcdiff.pipeline.record import case_record
from pcdiff.pipeline.settings import Settings
from pcdiff.prior.direction_map import MAP
from pcdiff.prior.fit import PriorFit, fit
from pcdiff.prior.model import ShapePrior

COUNT = 6


@pytest.fixture(scope="module")
def implant(case: tuple[Volume, Volume], fitted: PriorFit) -> tuple[Mesh, np.ndarray]:
    """The surface of the true implant, and its thickness at each vertex."""
    mesh = volume_to_mesh(case[1], case[0])
    return mesh, wall_thickness(mesh, outward_cosine(mesh, fitted.pose.shift))


def with_layer_removed(skull: Volume, fit: PriorFit, low: float, high: float) -> Volume:
    """The skull with a gap between two depths below its outer surface, model mm, on the patient's left."""
    voxels = np.argwhere(skull.mask)
    points = fit.pose.to_model(skull.to_mm(voxels.astype(float)))
    depth = MAP.nearest(MAP.filled(fit.outer), points) - np.linalg.norm(points, axis=1)
    middle = (MAP.directions[fit.defect > 0] * fit.outer[fit.defect > 0, None]).mean(axis=0)
    gone = voxels[(depth > low) & (depth < high) & (points[:, 0] > middle[0])]
    mask = skull.mask.copy()
    mask[tuple(gone.T)] = False
    return skull.with_mask(mask)


def on_left(places: list[FixationPlace], fit: PriorFit) -> list[bool]:
    middle = (MAP.directions[fit.defect > 0] * fit.outer[fit.defect > 0, None]).mean(axis=0)
    return [bool(fit.pose.to_model(place.point)[0] > middle[0] + 8) for place in places]


def test_places_lie_evenly_on_the_rim(
    case: tuple[Volume, Volume], fitted: PriorFit, implant: tuple[Mesh, np.ndarray]
) -> None:
    places = fixation_places(fitted, *case, *implant, COUNT)
    points = np.array([place.point for place in places])
    assert len(places) == COUNT
    for volume in case:
        surface = cKDTree(volume.to_mm(np.argwhere(volume.mask).astype(float)))
        assert surface.query(points)[0].max() < 3.5, "two voxels from both bone and implant"
    apart = np.linalg.norm(points - np.roll(points, 1, axis=0), axis=1)
    assert apart.min() > 0.6 * apart.max()
    for place in places:
        outward = place.point - fitted.pose.shift
        assert place.normal @ outward > 0.8 * np.linalg.norm(outward)
        middle = case[1].to_mm(np.argwhere(case[1].mask).astype(float)).mean(axis=0)
        assert place.across @ (middle - place.point) > 0, "from bone to implant"
        bone = np.linalg.norm(fitted.pose.linear @ np.array([0, 0, 1.0])) * fitted.thickness
        near = fitted.pose.to_model(place.point)
        ray = np.argmax(MAP.directions @ near)
        assert place.bone_mm == pytest.approx(bone[ray], abs=1.8)
    assert sum(on_left(places, fitted)) >= 2


@pytest.mark.parametrize(
    ("low", "high"), [(2.0, 5.0), (2.0, 30.0), (-20.0, 30.0)], ids=["over a sinus", "thin", "missing"]
)
def test_no_place_is_where_bone_is_thin_or_missing(
    case: tuple[Volume, Volume], fitted: PriorFit, implant: tuple[Mesh, np.ndarray], low: float, high: float
) -> None:
    places = fixation_places(fitted, with_layer_removed(case[0], fitted, low, high), case[1], *implant, COUNT)
    assert 2 <= len(places) < COUNT
    assert not any(on_left(places, fitted))
    assert all(place.bone_mm >= MIN_BONE_MM for place in places)


def test_the_rim_is_that_of_the_outer_surface_where_the_cut_slants(
    case: tuple[Volume, Volume], fitted: PriorFit, prior: ShapePrior
) -> None:
    """The inner half of the bone is cut 8 mm farther out, as on the sides of a cut that is parallel to the saw."""
    skull, implant = case
    voxels = np.argwhere(skull.mask)
    points = skull.to_mm(voxels.astype(float))
    model = fitted.pose.to_model(points)
    depth = MAP.nearest(MAP.filled(fitted.outer), model) - np.linalg.norm(model, axis=1)
    rim = cKDTree(implant.to_mm(np.argwhere(implant.mask).astype(float)))
    under = voxels[(depth > 3.5) & (depth < 20) & (rim.query(points)[0] < 8)]
    bone, solid = skull.mask.copy(), implant.mask.copy()
    bone[tuple(under.T)], solid[tuple(under.T)] = False, True
    skull, cut = skull.with_mask(bone), implant.with_mask(solid)
    refit = fit(prior, skull)
    assert (refit.defect > 0).sum() > 1.2 * (fitted.defect > 0).sum(), "rays over the undercut count as defect"
    mesh = volume_to_mesh(cut, skull)
    thickness = wall_thickness(mesh, outward_cosine(mesh, refit.pose.shift))
    places = fixation_places(refit, skull, cut, mesh, thickness, COUNT)
    assert places
    assert max(rim.query(np.array([place.point for place in places]))[0]) < 3.5
    assert min(place.bone_mm for place in places) < 5.0, "above the undercut the bone is thin"


def test_a_thin_implant_has_no_place(
    case: tuple[Volume, Volume], fitted: PriorFit, implant: tuple[Mesh, np.ndarray]
) -> None:
    assert fixation_places(fitted, *case, implant[0], np.full_like(implant[1], 1.0), COUNT) == []


def test_record_and_report_list_the_marks(
    case: tuple[Volume, Volume], prior: ShapePrior, fitted: PriorFit, tmp_path: Path
) -> None:
    write_volume(with_layer_removed(case[0], fitted, 2.0, 30.0), tmp_path / "head.nrrd")
    warned: list[str] = []
    record = design_case(
        tmp_path / "head.nrrd",
        tmp_path / "out",
        PriorMethod(prior),
        Settings("prior", fixation=COUNT),
        on_warning=warned.append,
    )
    marks = record["fixation"]
    assert 0 < len(marks) < COUNT
    assert case_record(tmp_path / "out")["fixation"] == marks
    (few,) = (line for line in warned if f"6 places for fixation asked for, {len(marks)} found" in line)
    assert few in record["input_check"]["warnings"], "a reader of the report sees it too"
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    plan, _, rest = page.partition("<h2>Slices")
    line = ", ".join(f"{mark['bone_mm']:.1f} / {mark['implant_mm']:.1f}" for mark in marks)
    assert f"Thickness of bone / implant in mm, from mark 1 on: {line}." in plan.replace("\u00a0", " ")
    section = rest.partition("<h2>Fixation marks")[2].partition("<h2>Checks</h2>")[0]
    assert section.count("<tr>") == len(marks) + 1
    assert "fixation marks, seen from outside" in section
    assert '"name": "fixation marks"' in page
    picture = Image.open(BytesIO(b64decode(re.findall(r"base64,([\w+/=]+)", section)[-1]))).convert("L")
    shades, counts = np.unique(np.asarray(picture), return_counts=True)
    assert counts[shades < 25].sum() > 10 * len(marks), "each has its number, in nearly black"
