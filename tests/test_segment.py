"""Segmentation, input check and design of phantom CTs whose true skull is known."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from phantom import AIR, BONE, BRAIN, SECRETS, head_ct, write_dicom
from scipy import ndimage

from pcdiff.data.craniotomy import simulate_craniotomy
from pcdiff.errors import InputError
from pcdiff.geometry.grey import read_grey
from pcdiff.geometry.metrics import dice
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.input_check import WARN_SLICE_MM, describe, read_skull
from pcdiff.imaging.scan import Scan, read_scan
from pcdiff.imaging.segment import THRESHOLD, segment
from pcdiff.imaging.volumes import read_volume, write_volume
from pcdiff.pipeline.case import is_done
from pcdiff.pipeline.settings import Settings
from pcdiff.prior.defects import open_rays
from pcdiff.prior.direction_map import MAP
from pcdiff.prior.fit import PriorFit
from pcdiff.prior.model import ShapePrior
from pcdiff.prior.regions import BONES, bone_at, openings_of, ray_areas

Phantom = tuple[np.ndarray, Volume]
SPACING = 2.4
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def whole(prior: ShapePrior) -> Volume:
    """A healthy vault at 2.4 mm."""
    return prior.draw(np.random.default_rng(0), spacing=SPACING)


@pytest.fixture(scope="module")
def craniotomy(whole: Volume) -> tuple[Volume, Volume]:
    """(defective skull, true implant)."""
    return simulate_craniotomy(whole, "random_1", np.random.default_rng(1))


@pytest.fixture(scope="module")
def phantom(craniotomy: tuple[Volume, Volume]) -> Phantom:
    """HU of the defective head, and its skull on the same grid."""
    return head_ct(craniotomy[0])


@pytest.fixture(scope="module")
def blurred(craniotomy: tuple[Volume, Volume]) -> Phantom:
    """The same with a soft kernel and the noise of a low dose."""
    return head_ct(craniotomy[0], noise=60, blur=0.9)


@pytest.fixture(scope="module")
def truth(phantom: Phantom, craniotomy: tuple[Volume, Volume]) -> Volume:
    """The true implant on the phantom's grid."""
    return on_grid(craniotomy[1], phantom[1])


@pytest.fixture(scope="module")
def folder(phantom: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom as DICOM, with a patient's name in every header."""
    folder = tmp_path_factory.mktemp("dicom") / "head_ct"
    write_dicom(folder, *(phantom[0], phantom[1].affine))
    return folder


def on_grid(volume: Volume, grid: Volume) -> Volume:
    """Nearest voxels of another grid."""
    index = np.rint(volume.to_index(grid.to_mm(np.moveaxis(np.indices(grid.mask.shape), 0, -1)))).astype(int)
    inside = ((index >= 0) & (index < volume.mask.shape)).all(-1)
    index[~inside] = 0
    return grid.with_mask(volume.mask[tuple(np.moveaxis(index, -1, 0))] & inside)


def scan_of(phantom: Phantom, hu: np.ndarray | None = None) -> Scan:
    values, grid = phantom
    return Scan(values if hu is None else hu, grid.affine, None, "NRRD", SPACING)


def ball(grid: Volume, middle: np.ndarray, radius: float) -> np.ndarray:
    return np.linalg.norm(grid.to_mm(np.moveaxis(np.indices(grid.mask.shape), 0, -1)) - middle, axis=-1) <= radius


def test_the_mask_is_the_skull_with_its_defect(phantom: Phantom, truth: Volume) -> None:
    found = segment(scan_of(phantom))
    assert dice(found.skull.mask, phantom[1].mask) > 0.99
    assert not (found.skull.mask & truth.mask).any()  # scalp and brain in the defect are no bone
    assert not (found.skull.mask & ~phantom[1].mask).any()  # no table and no holder
    assert found.noise == pytest.approx(15, rel=0.1)
    assert found.metal_ml == 0
    assert found.streaks is None
    dense = np.count_nonzero(phantom[0] >= THRESHOLD) - np.count_nonzero(found.skull.mask)
    assert found.removed_ml == pytest.approx(dense * found.skull.voxel_ml)
    assert found.removed_ml > 100


def test_a_blurred_noisy_ct(blurred: Phantom, truth: Volume) -> None:
    grid = blurred[1]
    found = segment(scan_of(blurred))
    assert dice(found.skull.mask, grid.mask) > 0.93
    inside = np.count_nonzero(found.skull.mask & truth.mask) / np.count_nonzero(truth.mask)
    assert inside < 0.02  # half a voxel at the rim, and no noise in the defect
    assert found.noise == pytest.approx(60, rel=0.35)  # noise was added after the blur
    outside = ndimage.distance_transform_edt(~grid.mask, grid.spacing)[found.skull.mask]
    assert outside.max() < 3.5


@pytest.mark.parametrize("threshold", [200, 800])
def test_the_threshold_is_adjustable(blurred: Phantom, threshold: int) -> None:
    usual, other = segment(scan_of(blurred)).skull.ml, segment(scan_of(blurred), threshold).skull.ml
    assert (other > usual) == (threshold < THRESHOLD)


def test_islands_stay_and_other_loose_pieces_are_removed(phantom: Phantom, truth: Volume) -> None:
    hu, grid = phantom
    centre, defect = (volume.to_mm(np.argwhere(volume.mask)).mean(0) for volume in (grid, truth))
    inward = (centre - defect) / np.linalg.norm(centre - defect)
    across = np.cross(inward, [0, 1, 0])
    island, crumb = (ball(grid, defect + 14 * inward + shift * across, r) for shift, r in ((0, 7.5), (15, 3.5)))
    deep = ball(grid, centre, 7.5)
    pieces = island | crumb | deep
    assert crumb.any()
    assert not (grid.mask & ndimage.binary_dilation(pieces)).any()
    skull = segment(scan_of(phantom, np.where(pieces, 900, hu).astype(np.int16))).skull.mask
    assert skull[island].all()
    assert not skull[crumb].any()
    assert not skull[deep].any()


def test_metal_counts_as_bone_and_is_reported(phantom: Phantom) -> None:
    hu, grid = phantom
    bone = grid.to_mm(np.argwhere(grid.mask))
    beside = bone.mean(0) + np.array([70, 0, 0])
    plate = ball(grid, bone[np.linalg.norm(bone - beside, axis=1).argmin()], 8) & grid.mask
    changed = np.where(plate, 3071, hu).astype(np.int16)
    found = segment(scan_of(phantom, changed))
    assert found.metal_ml == pytest.approx(np.count_nonzero(plate) * grid.voxel_ml)
    assert found.skull.mask[plate].all()
    said = describe(scan_of(phantom, changed), found, THRESHOLD)
    assert any("ml of metal" in line for line in said.warnings)
    assert found.streaks is not None
    assert found.streaks < 5
    assert not any("varies" in line for line in said.warnings)
    assert not any("metal" in line for line in describe(scan_of(phantom), segment(scan_of(phantom)), 300).warnings)
    across = np.arctan2(*np.moveaxis(grid.to_mm(np.moveaxis(np.indices(hu.shape), 0, -1))[..., :2] - 5.0, -1, 0))
    streaked = changed + np.where(plate.any((0, 1)) & (hu > -900), 150 * np.sign(np.sin(15 * across)), 0)
    found = segment(scan_of(phantom, np.clip(streaked, -1024, 3071).astype(np.int16)))
    assert found.streaks == pytest.approx(150, rel=0.5)
    assert any("varies" in line for line in describe(scan_of(phantom), found, THRESHOLD).warnings)


def test_metal_is_left_out_if_asked(phantom: Phantom, truth: Volume, tmp_path: Path) -> None:
    """A mesh over half of the defect: neither bone nor what the scan holds in place of it."""
    hu, grid = phantom
    y = grid.to_mm(np.argwhere(truth.mask))[:, 1]
    mesh = np.zeros_like(truth.mask)
    mesh[tuple(np.argwhere(truth.mask)[y < np.median(y)].T)] = True
    ct = scan_of(phantom, np.where(mesh, 3071, hu).astype(np.int16))
    kept, left_out = segment(ct), segment(ct, ignore_metal=True)
    assert kept.skull.mask[mesh].all()
    assert not left_out.skull.mask[mesh].any()
    assert left_out.skull.loose is not None
    assert not left_out.skull.loose[mesh].any()
    far = ndimage.distance_transform_edt(~mesh, grid.spacing) > 2 * SPACING
    np.testing.assert_array_equal(left_out.skull.mask[far], segment(scan_of(phantom)).skull.mask[far])
    assert left_out.metal_ml == kept.metal_ml
    assert left_out.removed_ml > kept.removed_ml
    assert any("counts as bone (--ignore-metal" in line for line in describe(ct, kept, THRESHOLD).warnings)
    assert any("it is left out" in line for line in describe(ct, left_out, THRESHOLD).warnings)
    write_volume(grid, tmp_path / "mask.nrrd")
    with pytest.raises(InputError, match="--ignore-metal is for a CT"):
        read_skull(tmp_path / "mask.nrrd", ignore_metal=True)


def test_bone_without_soft_tissue(phantom: Phantom) -> None:
    values = np.where(phantom[1].mask, BONE, AIR).astype(np.int16)
    found = segment(scan_of(phantom, values))
    assert dice(found.skull.mask, phantom[1].mask) > 0.99
    assert found.noise is None


def test_a_ct_without_bone_is_refused(phantom: Phantom) -> None:
    with pytest.raises(InputError, match="no bone: expected voxels of 1500 HU or more"):
        segment(scan_of(phantom, np.minimum(phantom[0], 1400)), 1500)
    for threshold in (-100, 3000):
        with pytest.raises(InputError, match=f"expected 100 to 1500 HU, got {threshold}"):
            segment(scan_of(phantom), threshold)
    only_table = np.where((phantom[0] >= THRESHOLD) & (phantom[0] < 3000), BRAIN, phantom[0]).astype(np.int16)
    with pytest.raises(InputError, match="within the head"):
        segment(scan_of(phantom, only_table))


@pytest.mark.parametrize("degrees", [-20.0, 12.0])
def test_a_tilted_gantry_leaves_the_skull_in_its_place(
    phantom: Phantom, truth: Volume, degrees: float, tmp_path: Path
) -> None:
    hu, grid = phantom
    affine = grid.affine.copy()
    affine[1, 2] = np.tan(np.radians(degrees)) * affine[2, 2]
    affine[1, 3] -= affine[1, 2] * hu.shape[2] / 2
    sheared = Volume(np.zeros(hu.shape, bool), affine)
    index = np.moveaxis(grid.to_index(sheared.to_mm(np.moveaxis(np.indices(hu.shape), 0, -1))), -1, 0)
    write_dicom(tmp_path, ndimage.map_coordinates(hu, index, order=1, mode="nearest"), affine)
    skull, said = read_skull(tmp_path)
    assert said.tilt_deg == pytest.approx(abs(degrees), abs=0.01)
    assert any("gantry tilt" in line for line in said.warnings)
    expected = on_grid(grid, sheared)
    assert dice(skull.mask, expected.mask) > 0.9
    shift = skull.to_mm(np.argwhere(skull.mask)).mean(0) - grid.to_mm(np.argwhere(grid.mask)).mean(0)
    assert np.abs(shift).max() < grid.spacing.min() / 4
    surface = ndimage.distance_transform_edt(~grid.mask, grid.spacing)
    back = np.rint(grid.to_index(skull.to_mm(np.argwhere(skull.mask)))).astype(int)
    inside = ((back >= 0) & (back < hu.shape)).all(1)
    assert np.percentile(surface[tuple(back[inside].T)], 99) <= grid.spacing.max() + 1e-6
    write_volume(skull, tmp_path / "mask.nrrd")  # the sheared grid is kept
    np.testing.assert_array_equal(read_volume(tmp_path / "mask.nrrd").affine, skull.affine)


def test_formats_and_orientations_give_the_same_mask(phantom: Phantom, folder: Path, tmp_path: Path) -> None:
    hu, grid = phantom
    expected = read_skull(folder)[0]
    image = sitk.GetImageFromArray(hu.T)
    image.SetSpacing(grid.spacing.tolist())
    image.SetOrigin(grid.affine[:3, 3].tolist())
    for name in ("a.nrrd", "a.nii.gz", "a.mha"):
        sitk.WriteImage(image, str(tmp_path / name))
        skull, said = read_skull(tmp_path / name)
        np.testing.assert_array_equal(skull.mask, expected.mask)
        np.testing.assert_allclose(skull.affine, expected.affine, atol=1e-4)
        assert said.kind == "ct"
        assert said.threshold_hu == THRESHOLD
    prone = np.diag([-1.0, -1, 1, 1])
    write_dicom(tmp_path / "prone", hu[::-1, ::-1], prone @ grid.affine @ flip(hu.shape, prone))
    skull = read_skull(tmp_path / "prone")[0]
    moved = skull.to_mm(np.argwhere(skull.mask)).mean(0) * [-1, -1, 1]
    np.testing.assert_allclose(moved, expected.to_mm(np.argwhere(expected.mask)).mean(0), atol=0.2)


def flip(shape: tuple[int, ...], turn: np.ndarray) -> np.ndarray:
    """Index of an array flipped along the axes that `turn` mirrors -> index of the array."""
    signs = np.diag(turn)[:3]
    matrix = turn.copy()
    matrix[:3, 3] = np.where(signs < 0, np.array(shape) - 1, 0)
    return matrix


def test_the_input_check_of_a_mask(case: tuple[Volume, Volume], tmp_path: Path) -> None:
    write_volume(case[0], tmp_path / "a.nii.gz")
    skull, said = read_skull(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(skull.mask, case[0].mask)
    assert (said.kind, said.format, said.threshold_hu, said.metal_ml, said.removed_ml) == (
        "mask",
        "NIfTI",
        None,
        None,
        None,
    )
    assert said.shape == case[0].mask.shape
    assert said.spacing_mm == pytest.approx((1.6, 1.6, 1.6))
    assert said.field_of_view_mm == pytest.approx(1.6 * np.array(said.shape), abs=0.1)
    assert said.slice_thickness_mm == pytest.approx(1.6)
    assert said.tilt_deg == 0
    assert [line for line in said.warnings if f"more than {WARN_SLICE_MM} mm" in line]
    with pytest.raises(InputError, match="--threshold is for a CT"):
        read_skull(tmp_path / "a.nii.gz", threshold=300)
    fine = Scan(case[0].mask, np.eye(4), None, "NRRD", 1.0)
    assert describe(fine).warnings == ()
    assert any("only 89 mm" in line for line in describe(replace(fine, values=fine.values[:, :, :89])).warnings)


def test_defects_have_a_place_a_side_and_a_size(fitted: PriorFit, case: tuple[Volume, Volume]) -> None:
    (defect,), _ = openings_of(fitted, case[0])
    middle = fitted.pose.to_model(case[1].to_mm(np.argwhere(case[1].mask))).mean(0)
    left = (fitted.pose.to_model(case[1].to_mm(np.argwhere(case[1].mask)))[:, 0] > 0).mean()
    assert defect.label == 1
    assert defect.side == ("left" if left > 0.85 else "right" if left < 0.15 else "both")
    # The cut-out's area in the middle of the bone is a little smaller than the missing outer surface.
    thickness = np.median(fitted.thickness[fitted.defect == 1])
    assert defect.area_cm2 == pytest.approx(case[1].ml / thickness * 10, rel=0.25)
    bone = BONES[int(bone_at(middle[None] / np.linalg.norm(middle))[0])]
    assert bone[:5] in defect.place


def test_areas_are_those_of_a_sphere(fitted: PriorFit) -> None:
    round_head = replace(fitted, outer=np.full_like(fitted.outer, 60.0))
    pose = replace(fitted.pose, linear=np.eye(3) * 1.5, shift=np.zeros(3))
    areas = ray_areas(replace(round_head, pose=pose))
    assert np.percentile(areas, [1, 50, 99]) == pytest.approx(0.0225 * (90 / 85) ** 2, rel=0.03)
    assert areas.sum() == pytest.approx(2 * np.pi * 81 * (1 - np.cos(np.radians(120))), rel=0.02)


@pytest.mark.parametrize(
    ("direction", "bone"),
    [
        ((0, -0.9, 0.4), "frontal"),
        ((0, -0.5, 0.86), "frontal"),
        ((0.7, 0.2, 0.7), "parietal"),
        ((0, 0.5, 0.86), "parietal"),
        ((-0.98, 0, -0.1), "temporal"),
        ((0, 0.98, 0), "occipital"),
    ],
)
def test_bones_by_direction(direction: tuple[float, ...], bone: str) -> None:
    assert BONES[int(bone_at(np.array([direction]))[0])] == bone


def test_defects_in_words(fitted: PriorFit, case: tuple[Volume, Volume]) -> None:
    x, y, z = MAP.directions.T
    no_bone = case[0].with_mask(np.zeros_like(case[0].mask))

    def place(inside: np.ndarray) -> tuple[str, str]:
        observation = open_rays(fitted.outer, fitted.thickness, inside.astype(int))
        (defect,), _ = openings_of(replace(fitted, observation=observation), no_bone)
        return defect.place, defect.side

    assert place((np.abs(x) < 0.3) & (y < -0.6)) == ("frontal, across the midline", "both")
    assert place((x > 0.9) & (np.abs(z - 0.1) < 0.2) & (np.abs(y) < 0.3)) == ("left temporo-parietal", "left")
    assert place((x < -0.2) & (x > -0.5) & (y > 0.85)) == ("right occipital", "right")


def test_from_a_dicom_folder_to_an_implant(run: Run, folder: Path, truth: Volume, tmp_path: Path) -> None:
    command = ("sample", folder, "-o", tmp_path / "out", "--method", "prior")
    code, said, errors = run(*command, "--mask-out", tmp_path / "mask.nii.gz")
    assert code == 0
    assert "head_ct: 1 defect" in said
    assert "warning: slices of 2.4 mm" in errors
    out = tmp_path / "out" / "head_ct"
    implant, skull = read_volume(out / "implant.nrrd"), read_volume(out / "defective_skull.nrrd")
    np.testing.assert_allclose(implant.affine, truth.affine, atol=1e-9)
    assert implant.mask.shape == truth.mask.shape
    assert dice(implant.mask, truth.mask) > 0.85
    np.testing.assert_array_equal(read_volume(tmp_path / "mask.nii.gz").mask, skull.mask)
    record = json.loads((out / "run.json").read_text())
    assert read_grey(out / "grey.npz") is not None
    assert {"grey.npz", "report.html"} <= record["files"].keys()
    found = record["input_check"]
    assert found == json.loads(json.dumps(asdict(read_skull(folder)[1]) | {"defects": found["defects"]}))
    assert found["kind"] == "ct"
    assert found["format"] == "DICOM"
    assert len(found["defects"]) == record["defects"] == 1
    assert found["defects"][0].keys() == {"label", "area_cm2", "side", "place", "length_mm", "width_mm"}
    for path in [*(tmp_path / "out").rglob("*.*"), tmp_path / "mask.nii.gz"]:  # no patient data in any file
        data = path.read_bytes()
        data += gzip.decompress(data) if path.suffix == ".gz" else b""
        for secret in SECRETS.values():
            assert secret.encode() not in data, path
            assert secret not in said + errors, path
    code, said, errors = run(*command)
    assert code == 0
    assert "already designed" in errors
    assert is_done(out, folder, Settings("prior"))
    assert not is_done(out, folder, Settings("prior", threshold=310))
    assert not is_done(out, folder, Settings("prior", series="1"))
    assert run("view", out, "--png", tmp_path / "view.png")[0] == 0  # the mask, not the CT


def test_the_mask_is_written_even_if_the_design_fails(run: Run, whole: Volume, tmp_path: Path) -> None:
    hu, grid = head_ct(whole)
    write_dicom(tmp_path / "whole", hu, grid.affine)
    code, said, errors = run(
        "sample", tmp_path / "whole", "-o", tmp_path / "out", "--method", "prior", "--mask-out", tmp_path / "m.nrrd"
    )
    assert code == 2
    assert said == ""
    assert "no defect found" in errors.splitlines()[-1]
    assert dice(read_volume(tmp_path / "m.nrrd").mask, grid.mask) > 0.99
    assert not (tmp_path / "out").exists()


def test_one_mask_out_for_one_scan(run: Run, folder: Path, tmp_path: Path) -> None:
    code, _, errors = run("sample", folder, folder / "..", "-o", tmp_path, "--mask-out", tmp_path / "m.nrrd")
    assert code == 2
    assert "--mask-out is for one scan, got 2" in errors
    code, _, errors = run("design", folder, folder / "..", "-o", tmp_path, "--case-id", "OP-7")
    assert code == 2
    assert "--case-id is for one scan, got 2" in errors


def test_unreadable_scans_give_one_line(run: Run, folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        write = tmp_path / "ct" / path.name
        write.parent.mkdir(exist_ok=True)
        write.write_bytes(path.read_bytes()[: 3000 if path.name.endswith("7") else None])
    code, said, errors = run("sample", tmp_path / "ct", "-o", tmp_path / "out", "--method", "prior", "-q")
    assert code == 2
    assert said == ""
    assert len(errors.splitlines()) == 1
    assert "truncated or damaged" in errors
    assert not any(secret in errors for secret in SECRETS.values())


def test_reading_a_scan_twice_is_the_same(folder: Path) -> None:
    first, second = read_scan(folder), read_scan(folder)
    np.testing.assert_array_equal(first.values, second.values)


def test_a_piece_that_reaches_the_skin_is_no_bone(phantom: Phantom, truth: Volume) -> None:
    """The pin of a head holder: as large as an island of bone, but a part of it lies flush with the skin."""
    hu, grid = phantom
    centre, defect = (volume.to_mm(np.argwhere(volume.mask)).mean(0) for volume in (grid, truth))
    outward = (defect - centre) / np.linalg.norm(defect - centre)
    pin = ball(grid, defect - 4 * outward, 9.0)
    assert not (grid.mask & ndimage.binary_dilation(pin)).any()
    assert not segment(scan_of(phantom, np.where(pin, 900, hu).astype(np.int16))).skull.mask[pin].any()
