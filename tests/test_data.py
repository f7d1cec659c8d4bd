"""Cases of dataset folders, and reduced heads with exact geometry."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from phantom import coarse, head_ct, write_dicom

from pcdiff.data import heads
from pcdiff.data.cases import Case, find_cases
from pcdiff.data.heads import load_head, prepare
from pcdiff.errors import InputError
from pcdiff.geometry.grid import box_slices
from pcdiff.geometry.occupancy import head_occupancy
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import write_map, write_volume

OBLIQUE = np.array([[0.36, -0.24, 0, -20], [0.27, 0.32, 0, 5], [0, 0, -0.9, 40], [0, 0, 0, 1]])  # 0.45 x 0.4 x 0.9 mm


def box(low: tuple[int, int, int], high: tuple[int, int, int], shape: tuple[int, int, int] = (12, 10, 8)) -> np.ndarray:
    mask = np.zeros(shape, bool, order="F")
    mask[box_slices(low, high)] = True
    return mask


COMPLETE, IMPLANT = box((2, 2, 2), (10, 8, 6)), box((6, 2, 2), (8, 5, 6))


def put(path: Path, mask: np.ndarray, affine: np.ndarray = OBLIQUE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(Volume(mask, affine), path)
    return path


def skullfix(folder: Path, *names: str) -> Path:
    for name in names:
        put(folder / "complete_skull" / f"{name}.nrrd", COMPLETE)
        put(folder / "implant" / f"{name}.nrrd", IMPLANT)
    return folder


def skullbreak(folder: Path) -> Path:
    for name in ("000", "001"):
        put(folder / "complete_skull" / f"{name}.nrrd", COMPLETE)
        for kind in ("bilateral", "random_1"):
            put(folder / "implant" / kind / f"{name}.nrrd", IMPLANT)
            put(folder / "defective_skull" / kind / f"{name}.nrrd", COMPLETE & ~IMPLANT)
    return folder


def test_a_digest_is_of_masks_and_grid_whatever_files_hold_them(tmp_path):
    def digest(name: str, implant: np.ndarray = IMPLANT, affine: np.ndarray = OBLIQUE) -> str:
        complete = put(tmp_path / name / "complete.nrrd", COMPLETE, affine)
        return Case("000", complete, None, put(tmp_path / name / "implant.nrrd", implant, affine)).load().digest

    first = digest("a")
    skull = put(tmp_path / "b" / "skull.nrrd", COMPLETE & ~IMPLANT)
    assert Case("001", None, skull, tmp_path / "a" / "implant.nrrd").load().digest == first
    moved = OBLIQUE.copy()
    moved[0, 3] += 0.01
    assert len({first, digest("c", np.roll(IMPLANT, 1, 1)), digest("d", affine=moved)}) == 3


def test_any_two_parts_give_the_third(tmp_path):
    parts = {"complete_skull": COMPLETE, "defective_skull": COMPLETE & ~IMPLANT, "implant": IMPLANT}
    paths = {name: put(tmp_path / f"{name}.nrrd", mask) for name, mask in parts.items()}
    for missing in (None, *parts):
        loaded = Case("000", **{name: None if name == missing else path for name, path in paths.items()}).load()
        for name, mask in parts.items():
            assert np.array_equal(getattr(loaded, name).mask, mask), (missing, name)
            assert np.allclose(getattr(loaded, name).affine, OBLIQUE)
    with pytest.raises(InputError, match="expected two of"):
        Case("000", paths["complete_skull"], None, None).load()
    elsewhere = put(tmp_path / "elsewhere.nrrd", IMPLANT, np.diag([0.45, 0.4, 0.9, 1]))
    with pytest.raises(InputError, match="on the skull's own grid"):
        Case("000", paths["complete_skull"], None, elsewhere).load()
    with pytest.raises(InputError, match="both skulls on one grid"):
        Case("000", paths["complete_skull"], elsewhere, None).load()


def test_skullfix_layout(tmp_path):
    skullfix(tmp_path, "000", "003", "010")
    put(tmp_path / "complete_skull" / "020.nrrd", COMPLETE)  # a head without a defect is used in training
    cases = find_cases(tmp_path)
    assert [case.name for case in cases] == ["000", "003", "010", "020"]
    assert cases[1].implant == tmp_path / "implant" / "003.nrrd"
    assert cases[1].defective_skull is None
    assert cases[3].implant is None
    assert cases[3].complete_skull == tmp_path / "complete_skull" / "020.nrrd"


def test_skullbreak_layout(tmp_path):
    cases = find_cases(skullbreak(tmp_path))
    assert [case.name for case in cases] == ["bilateral/000", "bilateral/001", "random_1/000", "random_1/001"]
    assert cases[2].complete_skull == tmp_path / "complete_skull" / "000.nrrd"
    assert cases[2].defective_skull == tmp_path / "defective_skull" / "random_1" / "000.nrrd"
    assert [case.name for case in find_cases(tmp_path, "001")] == ["bilateral/001", "random_1/001"]
    assert [case.name for case in find_cases(tmp_path, "random_1/000")] == ["random_1/000"]


@pytest.mark.parametrize(
    ("selection", "names"),
    [
        ("003", "003"),
        ("3", "003"),
        ("000-004", "000 003 004"),
        ("010, 000-003", "000 003 010"),
        ("003-010,004", "003 004 010"),
    ],
)
def test_selections(tmp_path, selection, names):
    assert [
        case.name for case in find_cases(skullfix(tmp_path, "000", "003", "004", "010"), selection)
    ] == names.split()


@pytest.mark.parametrize("selection", ["005", "000-011", "004-000", "", "x", "000,,003", "3-"])
def test_unknown_cases_are_refused(tmp_path, selection):
    with pytest.raises(InputError, match="holds 000 to 004"):
        find_cases(skullfix(tmp_path, "000", "003", "004"), selection)


def test_folders_without_a_data_set_are_refused(tmp_path):
    with pytest.raises(InputError, match="got an empty folder"):
        find_cases(tmp_path)
    with pytest.raises(InputError, match="got no such folder"):
        find_cases(tmp_path / "nowhere")
    put(tmp_path / "skulls" / "000.nrrd", COMPLETE)
    with pytest.raises(InputError, match="got none of them"):
        find_cases(tmp_path)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_head_is_the_mean_over_blocks(order):
    # 0.45 x 0.4 x 0.9 mm: blocks of 2 x 2 x 1. The position of every block in mm gives its voxels in the mask.
    rng = np.random.default_rng(3)
    mask = np.zeros((23, 31, 14), bool, order=order)
    mask[5:16, 7:20, 3:9] = rng.random((11, 13, 6)) < 0.5
    volume = Volume(mask, OBLIQUE)
    head = head_occupancy(volume, "007")
    assert head.name == "007"
    assert head.occupancy.dtype == np.uint8
    assert head.occupancy.flags.c_contiguous
    assert np.allclose(np.linalg.norm(head.affine[:3, :3], axis=0), [0.9, 0.8, 0.9])
    blocks = np.argwhere(np.ones(head.occupancy.shape, bool))
    centres = volume.to_index(blocks @ head.affine[:3, :3].T + head.affine[:3, 3])  # half-way between two voxels
    half = np.array([0.5, 0.5, 0])
    first = np.round(centres - half).astype(int)
    assert np.allclose(first + half, centres)
    padded = np.pad(mask, ((0, 2), (0, 2), (0, 1)))
    i, j, k = first.T
    mean = sum(padded[i + a, j + b, k].astype(float) for a in (0, 1) for b in (0, 1)) / 4
    assert np.abs(head.occupancy.ravel() - 255 * mean).max() <= 0.5
    assert head.occupancy.sum() / 255 * 4 == pytest.approx(mask.sum(), rel=0.01)  # no bone is lost


def test_a_head_keeps_the_centre_of_mass():
    mask = box((20, 30, 10), (60, 70, 50), (90, 96, 61))
    volume = Volume(mask, np.diag([0.3, 0.45, 0.7, 1.0]))
    head = head_occupancy(volume)
    assert np.allclose(np.diag(head.affine)[:3], [0.9, 0.9, 0.7])
    blocks, weights = np.argwhere(head.occupancy), head.occupancy[head.occupancy > 0].astype(float)
    centre = np.average(blocks, axis=0, weights=weights) @ head.affine[:3, :3].T + head.affine[:3, 3]
    assert np.allclose(centre, volume.to_mm(np.argwhere(mask).mean(axis=0)), atol=1e-2)  # uint8 rounds thirds


def test_air_around_the_bone_unless_the_scan_ends_there():
    mask = box((10, 0, 10), (20, 30, 16), (40, 30, 16))  # out of view at both ends of j and at the upper end of k
    head = head_occupancy(Volume(mask, np.eye(4)))
    assert head.occupancy.shape == (10 + 4, 30, 6 + 2)
    assert np.array_equal(head.affine[:3, 3], [8, 0, 8])
    assert not head.occupancy[:2].any()
    assert head.occupancy[:, 0].any()
    assert head.occupancy[:, :, -1].any()


def test_many_voxels_to_a_block_do_not_overflow():
    head = head_occupancy(Volume(np.ones((27, 27, 27), bool), np.diag([0.1, 0.1, 0.1, 1.0])))
    assert np.array_equal(head.occupancy, np.full((3, 3, 3), 255))


def test_no_bone_is_refused():
    with pytest.raises(InputError, match="expected a mask of bone"):
        head_occupancy(Volume(np.zeros((4, 4, 4), bool), np.eye(4)))


def test_prepare_round_trip_and_resume(tmp_path, monkeypatch):
    folder, cache = skullfix(tmp_path / "set", "000", "003", "010"), tmp_path / "cache"
    paths = prepare(folder, cache, "000-003", progress=False)
    assert paths == [cache / "heads" / "000.safetensors", cache / "heads" / "003.safetensors"]
    assert sorted(path.name for path in (cache / "heads").iterdir()) == ["000.safetensors", "003.safetensors"]
    head, expected = load_head(paths[1]), head_occupancy(Volume(COMPLETE, OBLIQUE), "003")
    assert head.name == "003"
    assert np.array_equal(head.occupancy, expected.occupancy)
    assert head.affine.dtype == np.float64
    assert np.allclose(head.affine, expected.affine, atol=1e-12)

    written = []
    monkeypatch.setattr(heads, "read_case_skull", lambda path: written.append(path.stem) or Volume(COMPLETE, OBLIQUE))
    before = [path.stat().st_mtime_ns for path in paths]
    prepare(folder, cache, "000-003", progress=False)
    assert written == []
    assert [path.stat().st_mtime_ns for path in paths] == before
    # A changed source, a truncated head and a missing one are made anew; others stay.
    put(folder / "complete_skull" / "000.nrrd", COMPLETE & ~IMPLANT)
    paths[1].write_bytes(paths[1].read_bytes()[:-5])
    prepare(folder, cache, progress=False)
    assert written == ["000", "003", "010"]
    monkeypatch.setattr(heads, "__version__", "another")
    prepare(folder, cache, "010", progress=False)
    assert written == ["000", "003", "010", "010"]


def test_prepare_takes_every_format_and_dicom(tmp_path, healthy):
    hu, whole = head_ct(coarse(healthy), noise=0, table=False)
    folder = tmp_path / "set" / "complete_skull"
    names = ("000.nrrd", "001.nii.gz", "002.mha")
    for name in names:
        put(folder / name, whole.mask, whole.affine)
    write_dicom(folder / "003", hu, whole.affine)
    write_dicom(folder / "004" / "series", hu, whole.affine)
    with zipfile.ZipFile(folder / "005.zip", "w") as archive:
        for path in (folder / "003").iterdir():
            archive.write(path, path.name)
    (folder / ".hidden").mkdir()
    paths = prepare(tmp_path / "set", tmp_path / "cache", progress=False)
    assert [path.name for path in paths] == [f"00{number}.safetensors" for number in range(6)]
    first, *others = (load_head(path) for path in paths)
    assert [head.name for head in others] == ["001", "002", "003", "004", "005"]
    for head in others:
        assert np.allclose(head.affine, first.affine, atol=1e-3)
        assert np.abs(head.occupancy.astype(float) - first.occupancy).mean() < 1, head.name
    before = [path.stat().st_mtime_ns for path in paths]
    prepare(tmp_path / "set", tmp_path / "cache", progress=False)
    assert [path.stat().st_mtime_ns for path in paths] == before
    put(folder / "001.nrrd", whole.mask, whole.affine)
    with pytest.raises(InputError, match=r"001\.nii\.gz is of case 001, too; keep one of the two"):
        prepare(tmp_path / "set", tmp_path / "cache", progress=False)


def test_a_head_of_several_series_or_labels_is_refused_without_an_option_that_data_sets_lack(tmp_path, healthy, run):
    hu, whole = head_ct(coarse(healthy), noise=0, table=False)
    folder = tmp_path / "set" / "complete_skull"
    for series in (3, 4):
        write_dicom(folder / "003", hu, whole.affine, series)
    halves = 1 + (np.arange(whole.mask.shape[0]) > whole.mask.shape[0] // 2)
    write_map(whole.mask * halves[:, None, None], whole, folder / "004.nrrd")
    put(tmp_path / "set" / "implant" / "003.nrrd", whole.mask, whole.affine)
    put(tmp_path / "set" / "implant" / "004.nrrd", whole.mask, whole.affine)
    remedies = ("leave one of them in the folder", "save the bone as a mask of its own")
    code, _, errors = run("prepare", tmp_path / "set", "-o", tmp_path / "cache")
    assert code == 2
    for case, remedy in zip(find_cases(tmp_path / "set"), remedies, strict=True):
        with pytest.raises(InputError, match=remedy) as refused:
            case.load()
        assert str(refused.value) in errors
    assert "several CT series: 1: " in errors
    assert "--" not in errors


def test_prepare_in_processes_makes_each_skullbreak_head_once(tmp_path):
    paths = prepare(skullbreak(tmp_path / "set"), tmp_path / "cache", workers=2, progress=False)
    assert [path.name for path in paths] == ["000.safetensors", "001.safetensors"]
    assert [load_head(path).name for path in paths] == ["000", "001"]


def test_prepare_names_what_is_wrong(tmp_path):
    folder = skullfix(tmp_path / "set", "000")
    (folder / "complete_skull" / "001.nrrd").write_bytes(b"")
    with pytest.raises(InputError, match=r"001\.nrrd"):
        prepare(folder, tmp_path / "cache", progress=False)
    assert [path.name for path in (tmp_path / "cache" / "heads").iterdir()] == ["000.safetensors"]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="expected a folder to write to"):
        prepare(folder, tmp_path / "file", progress=False)
    put(tmp_path / "only" / "implant" / "000.nrrd", IMPLANT)
    with pytest.raises(InputError, match="heads are made from complete skulls"):
        prepare(tmp_path / "only", tmp_path / "cache", progress=False)


@pytest.mark.parametrize("workers", [1, 2])
def test_prepare_goes_on_after_a_broken_head_and_reports_it(run, tmp_path, workers):
    folder = skullfix(tmp_path / "set", "000", "002")
    (folder / "complete_skull" / "001.nrrd").write_bytes(b"NRRD0004 broken")
    code, printed, errors = run("prepare", folder, "-o", tmp_path / "cache", "--workers", workers)
    assert code == 2
    assert "2 heads -> " in printed
    assert "001.nrrd" in errors
    assert errors.splitlines()[-1].endswith("1 of 3 skulls failed")
    made = sorted(path.name for path in (tmp_path / "cache" / "heads").iterdir())
    assert made == ["000.safetensors", "002.safetensors"]


def test_other_files_are_refused_as_heads(tmp_path):
    from safetensors.numpy import save_file

    save_file({"occupancy": np.zeros((2, 2, 2), np.uint8)}, tmp_path / "weights.safetensors")
    (tmp_path / "text.safetensors").write_text("no")
    for name, message in (("weights", "of format"), ("text", "a head of the cache"), ("none", "a head of the cache")):
        with pytest.raises(InputError, match=message):
            load_head(tmp_path / f"{name}.safetensors")
