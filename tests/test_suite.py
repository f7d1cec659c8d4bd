"""Variants of a data set's cases: bone stays bone and stays in place; negative controls have no implant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from pcdiff.data.cases import LoadedCase, find_cases
from pcdiff.data.phantoms import jaw, knee
from pcdiff.data.suite import (
    NEGATIVE_CONTROLS,
    SKULLBREAK,
    SUITES,
    VARIANTS,
    resampled,
    transformed,
    variants_named,
    without_base,
    without_face,
    write_suite,
)
from pcdiff.errors import InputError
from pcdiff.geometry.metrics import dice
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import write_volume
from pcdiff.prior.fit import fit

RNG = np.random.default_rng(0)  # for variants that are not random


@pytest.fixture(scope="module")
def loaded(case: tuple[Volume, Volume]) -> LoadedCase:
    return LoadedCase("001", *case)


@pytest.fixture
def folder(case: tuple[Volume, Volume], tmp_path: Path) -> Path:
    for part, volume in zip(("defective_skull", "implant"), case, strict=True):
        (tmp_path / "data" / part).mkdir(parents=True)
        write_volume(volume, tmp_path / "data" / part / "001.nrrd")
    return tmp_path / "data"


def bone_mm(volume: Volume) -> np.ndarray:
    """(N, 3) mm, sorted, of all bone."""
    points = volume.to_mm(np.argwhere(volume.mask))
    return points[np.lexsort(points.round(3).T)]


def turned_grid(volume: Volume) -> Volume:
    """The same head, its axes permuted and two of them flipped."""
    mask, affine = volume.mask.transpose(2, 0, 1), volume.affine[:, [2, 0, 1, 3]]
    flip = np.eye(4)
    for axis in (0, 1):
        flip[axis, axis], flip[axis, 3] = -1, mask.shape[axis] - 1
    return Volume(np.ascontiguousarray(mask[::-1, ::-1]), affine @ flip)


@pytest.mark.parametrize("name", ["random_2", "irregular", "two_defects"])
def test_another_defect_in_the_same_head(loaded, name):
    varied = VARIANTS[name](loaded, np.random.default_rng(3))
    assert not (varied.defective_skull.mask & varied.implant.mask).any()
    assert np.array_equal(varied.complete_skull.mask, loaded.complete_skull.mask)
    assert not np.array_equal(varied.implant.mask, loaded.implant.mask)


def test_a_healed_rim_recedes_and_grows_spurs(loaded, monkeypatch):
    near = ndimage.distance_transform_edt(~loaded.implant.mask, sampling=loaded.implant.spacing)
    bone = []
    for spurs in (0, 3):
        monkeypatch.setattr("pcdiff.data.healing.SPURS", (spurs, spurs))
        made = VARIANTS["healed"](loaded, np.random.default_rng(2))
        skull, implant = made.defective_skull.mask, made.implant.mask
        assert not (skull & implant).any()
        assert np.array_equal(skull | implant, loaded.complete_skull.mask)
        resorbed = implant & ~loaded.implant.mask
        assert 0.02 < resorbed.sum() / loaded.implant.mask.sum() < 0.5
        assert near[resorbed].max() < 15
        bone.append(np.count_nonzero(skull))
    assert bone[1] > bone[0]


@pytest.mark.parametrize("grid", [lambda volume: volume, turned_grid])
@pytest.mark.parametrize("spacing", [(2.4, 2.4, 2.4), (None, None, 3.2), (1.0, None, None)])
def test_other_voxels_hold_the_same_bone_at_the_same_place(loaded, grid, spacing):
    case = LoadedCase("001", grid(loaded.defective_skull), grid(loaded.implant))
    varied = resampled(case, RNG, spacing)
    along = np.abs(varied.implant.affine[:3, :3]).max(1)  # of the patient's x, y, z
    assert np.allclose(along, [edge or 1.6 for edge in spacing])
    assert not (varied.defective_skull.mask & varied.implant.mask).any()
    for mine, theirs in ((varied.implant, case.implant), (varied.complete_skull, case.complete_skull)):
        assert mine.ml == pytest.approx(theirs.ml, rel=0.06)
        assert np.allclose(bone_mm(mine).mean(0), bone_mm(theirs).mean(0), atol=0.3 * along.max())


def test_a_turned_and_a_mirrored_head(loaded):
    tilted, mirrored = (VARIANTS[name](loaded, RNG) for name in ("tilted", "mirrored"))
    before = loaded.implant.to_mm(np.argwhere(loaded.implant.mask))
    after = tilted.implant.to_mm(np.argwhere(tilted.implant.mask))
    c, s = np.cos(np.radians(20)), np.sin(np.radians(20))
    assert np.allclose(
        after, np.stack([before[:, 0], c * before[:, 1] - s * before[:, 2], s * before[:, 1] + c * before[:, 2]], 1)
    )
    assert np.allclose(mirrored.implant.to_mm(np.argwhere(mirrored.implant.mask)), before * [-1, 1, 1])
    same = transformed(loaded, RNG, np.eye(3))
    assert np.array_equal(same.implant.affine, loaded.implant.affine)


def test_a_head_without_its_face(loaded):
    varied = without_face(loaded, RNG, ahead=20, below=0)  # a head drawn from the prior has no face
    assert np.array_equal(varied.implant.mask, loaded.implant.mask)
    lost = loaded.defective_skull.mask & ~varied.defective_skull.mask
    assert lost.any()
    assert not (varied.defective_skull.mask & ~loaded.defective_skull.mask).any()
    lowest, foremost = loaded.defective_skull.to_mm(np.argwhere(lost)).max(0)[[2, 1]]
    bone = bone_mm(varied.defective_skull)
    assert not ((bone[:, 2] < lowest - 2) & (bone[:, 1] < foremost - 2)).any()


@pytest.mark.parametrize("grid", [lambda volume: volume, turned_grid])
def test_a_scan_that_ends_above_the_base(loaded, grid):
    case = LoadedCase("001", grid(loaded.defective_skull), grid(loaded.implant))
    varied = without_base(case, RNG)
    assert varied.implant.mask.shape == varied.defective_skull.mask.shape != case.implant.mask.shape
    assert np.allclose(bone_mm(varied.implant), bone_mm(case.implant))
    mine, theirs = bone_mm(varied.defective_skull), bone_mm(case.defective_skull)
    assert np.allclose(mine, theirs[theirs[:, 2] >= mine[:, 2].min() - 1e-6])
    assert mine[:, 2].min() > theirs[:, 2].min() + 5


def test_a_suite_is_made_once_and_the_same_in_parts(folder, tmp_path):
    cases = find_cases(folder)
    made = write_suite(variants_named("random_1,tilted"), cases, tmp_path / "out", seed=2, progress=False)
    assert [case.name for case in made] == ["random_1/001", "tilted/001"]
    (section,) = (tmp_path / "out").iterdir()
    assert [case.name for case in find_cases(section)] == ["random_1/001", "tilted/001"]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in section.rglob("*.nrrd")}
    write_suite(variants_named("tilted,random_1"), cases, tmp_path / "out", seed=2, progress=False)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in section.rglob("*.nrrd")} == before
    (alone,) = write_suite(variants_named("random_1"), cases, tmp_path / "alone", seed=2, progress=False)
    assert alone.implant.read_bytes() == before[made[0].implant][1]
    (other,) = write_suite(variants_named("random_1"), cases, tmp_path / "out", seed=3, progress=False)
    assert other.implant != made[0].implant
    assert other.implant.read_bytes() != before[made[0].implant][1]


@pytest.mark.parametrize(("phantom", "ml"), [(jaw, (30, 90)), (knee, (120, 400))])
def test_phantoms_are_refused(loaded, prior, phantom, ml):
    made = phantom(loaded.implant, np.random.default_rng(4))
    assert made.mask.shape == loaded.implant.mask.shape
    assert np.array_equal(made.affine, loaded.implant.affine)
    assert ml[0] < made.ml < ml[1]
    assert np.array_equal(made.mask, phantom(loaded.implant, np.random.default_rng(4)).mask)
    other = phantom(loaded.implant, np.random.default_rng(5))
    assert dice(made.mask, other.mask) < 0.95
    # on another grid it is the same bone
    turned = phantom(turned_grid(loaded.implant), np.random.default_rng(4))
    assert turned.ml == pytest.approx(made.ml, rel=0.02)
    assert np.allclose(bone_mm(turned).mean(0), bone_mm(made).mean(0), atol=0.5)
    with pytest.raises(InputError):
        fit(prior, made)


def test_negative_controls_have_no_implant(folder, tmp_path, loaded):
    made = write_suite([*NEGATIVE_CONTROLS, "own"], find_cases(folder), tmp_path / "out", progress=False)
    assert [case.name for case in made] == ["no_defect/001", "jaw/001", "knee/001", "own/001"]
    assert [case.refusal for case in made] == [True, True, True, False]
    assert [case.implant is None for case in made] == [True, True, True, False]
    assert len(list((tmp_path / "out").rglob("*.nrrd"))) == 5
    whole = made[0].load()
    assert np.array_equal(whole.defective_skull.mask, loaded.complete_skull.mask)
    assert not whole.implant.mask.any()
    before = made[1].defective_skull.stat().st_mtime_ns
    write_suite(["jaw"], find_cases(folder), tmp_path / "out", progress=False)
    assert made[1].defective_skull.stat().st_mtime_ns == before  # made once


def test_suites_and_variants_by_name():
    assert variants_named("skullbreak") == SKULLBREAK
    assert variants_named("full") == tuple(VARIANTS) == SUITES["full"]
    assert variants_named("tilted, own") == ("tilted", "own")
    with pytest.raises(InputError, match="unknown variant 'odd': expected full or skullbreak, or some of own"):
        variants_named("own,odd")
