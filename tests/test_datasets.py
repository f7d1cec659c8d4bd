"""Data sets of other layouts than SkullFix's, each as a miniature: MUG500+, nnU-Net, and any by a YAML file."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from phantom import coarse, head_ct, write_dicom
from scipy import ndimage

from pcdiff.data.cases import find_cases
from pcdiff.data.heads import load_head
from pcdiff.data.patterns import find_files
from pcdiff.errors import InputError
from pcdiff.evaluation.runner import evaluate
from pcdiff.geometry.mesh import Mesh, write_stl
from pcdiff.geometry.metrics import dice
from pcdiff.geometry.surface import volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import write_volume

AXES: dict[str, Callable[[np.ndarray, Volume], np.ndarray]] = {
    "lps": lambda points, grid: points,
    "ras": lambda points, grid: points * [-1, -1, 1],
    "mm of the grid": lambda points, grid: grid.to_index(points) * grid.spacing,
    "voxels": lambda points, grid: grid.to_index(points),
}


@pytest.fixture(scope="module")
def pair(case: tuple[Volume, Volume]) -> tuple[Volume, Volume]:
    """(defective skull, implant) at 3.2 mm, with one axis reversed."""
    parts = []
    for part in case:
        mask = part.mask[::-2, ::2, ::2]
        last = np.array([part.mask.shape[0] - 1, 0, 0], float)
        affine = part.affine @ np.diag([-2.0, 2, 2, 1])
        affine[:3, 3] = part.to_mm(last)
        parts.append(Volume(np.ascontiguousarray(mask), affine))
    return parts[0], parts[1]


def put(volume: Volume, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(volume, path)
    return path


def put_stl(volume: Volume, path: Path, axes: str = "lps", shift: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mesh = volume_to_mesh(volume, smooth=False)
    write_stl(Mesh(AXES[axes](mesh.vertices + np.array([0, 0, shift]), volume), mesh.faces), path)


def mug500(folder: Path, pair: tuple[Volume, Volume], axes: str = "lps", shift: float = 0.0) -> Path:
    """Two healthy heads of one batch, and a craniotomy, as they are published."""
    skull, implant = pair
    for name in ("A0001", "A0002"):
        put(skull.with_mask(skull.mask | implant.mask), folder / "A0001-A0020" / name / f"{name}.nrrd")
    for file in ("A0001.png", "A0001.stl", "A0001_clear.stl"):
        (folder / "A0001-A0020" / "A0001" / file).touch()
    put(skull, folder / "craniotomy_skull" / "B0001" / "B0001.nrrd")
    put_stl(skull, folder / "craniotomy_skull" / "B0001" / "B0001.stl", axes, shift)
    put_stl(implant, folder / "craniotomy_skull" / "B0001" / "B0001_implant.stl", axes)
    return folder


@pytest.mark.parametrize("axes", AXES)
def test_mug500_in_whichever_axes_its_meshes_are(tmp_path: Path, pair: tuple[Volume, Volume], axes: str) -> None:
    cases = find_cases(mug500(tmp_path, pair, axes))
    assert [(case.name, case.split) for case in cases] == [
        ("A0001", "healthy"),
        ("A0002", "healthy"),
        ("B0001", "craniotomy"),
    ]
    loaded = cases[2].load()
    assert dice(loaded.implant.mask, pair[1].mask) == 1
    assert np.array_equal(loaded.defective_skull.mask, pair[0].mask)


def test_mug500_by_every_command(run, tmp_path: Path, pair: tuple[Volume, Volume]) -> None:
    folder = mug500(tmp_path / "mug", pair, "ras")
    code, said, _ = run("datasets", folder)
    assert code == 0
    lines = [line.split() for line in said.splitlines()]
    assert lines[0][-1] == "MUG500+"
    assert lines[2:] == [
        ["healthy", "-", "2", "2", "2", "0", "0", "0"],
        ["craniotomy", "-", "1", "1", "0", "1", "1", "1"],
        ["images,", "meshes", "and", "archives", "of", "no", "case:", "1", "(A0001-A0020/A0001/A0001_clear.stl)"],
    ]
    assert run("prepare", folder, "-o", tmp_path / "cache", "--cases", "healthy", "-q")[0] == 0
    assert load_head(tmp_path / "cache" / "heads" / "A0002.safetensors").name == "A0002"
    put(pair[1], tmp_path / "theirs" / "B0001.nii.gz")
    code, said, _ = run("score", tmp_path / "theirs", "--truth", folder, "--cases", "craniotomy", "-o", tmp_path / "s")
    assert code == 0
    assert "| theirs | B0001 | 1.0000 |" in said
    assert [case.name for case in find_cases(folder, "A0001-A0002")] == ["A0001", "A0002"]
    with pytest.raises(InputError, match="A0001 to B0001, splits craniotomy and healthy"):
        find_cases(folder, "001")


def test_the_part_of_a_mesh_that_lies_in_bone_is_no_missing_bone(tmp_path: Path, pair: tuple[Volume, Volume]) -> None:
    skull, implant = pair
    mug500(tmp_path, pair)
    put_stl(implant.with_mask(ndimage.binary_dilation(implant.mask)), tmp_path / "B0001" / "B0001_implant.stl")
    put(skull, tmp_path / "B0001" / "B0001.nrrd")
    put_stl(skull, tmp_path / "B0001" / "B0001.stl")
    shutil.rmtree(tmp_path / "craniotomy_skull")
    loaded = find_cases(tmp_path, "B0001")[0].load()
    assert not (loaded.implant.mask & skull.mask).any()
    assert np.array_equal(loaded.implant.mask, ndimage.binary_dilation(implant.mask) & ~skull.mask)


def test_a_mesh_of_another_skull_is_refused(tmp_path: Path, pair: tuple[Volume, Volume]) -> None:
    (case,) = find_cases(mug500(tmp_path, pair, shift=25.0), "B0001")
    with pytest.raises(InputError, match=r"B0001\.stl: expected the surface of the skull beside it, got one of whose"):
        case.load()


def test_a_mesh_without_the_surface_of_its_skull_is_refused(tmp_path: Path, pair: tuple[Volume, Volume]) -> None:
    (mug500(tmp_path, pair, "ras") / "craniotomy_skull" / "B0001" / "B0001.stl").unlink()
    (case,) = find_cases(tmp_path, "B0001")
    with pytest.raises(
        InputError, match=r"B0001\.stl: expected .* the axes of B0001_implant\.stl, found none; copy it"
    ):
        case.load()


def nnunet(folder: Path, pair: tuple[Volume, Volume], labels: dict, values: np.ndarray | None = None) -> Path:
    import nrrd

    for end, name in (("Tr", "own_000"), ("Ts", "own_001")):
        path = put(pair[0], folder / f"images{end}" / f"{name}_0000.nrrd")
        put(pair[0], folder / f"images{end}" / f"{name}_0001.nrrd")  # a second channel
        label = put(pair[1], folder / f"labels{end}" / f"{name}.nrrd")
        if values is not None:
            nrrd.write(str(label), values, nrrd.read_header(str(path)))
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nrrd", "numTraining": 1}))
    return folder


def test_nnunet(tmp_path: Path, pair: tuple[Volume, Volume]) -> None:
    cases = find_cases(nnunet(tmp_path, pair, {"background": 0, "implant": 1}))
    assert [(case.name, case.split) for case in cases] == [("own_000", "training"), ("own_001", "test")]
    assert np.array_equal(cases[0].load().implant.mask, pair[1].mask)
    assert [case.name for case in find_cases(tmp_path, "test")] == ["own_001"]
    assert [case.name for case in find_cases(tmp_path, "own_000-own_001")] == ["own_000", "own_001"]


def test_nnunet_with_several_labels_and_of_complete_skulls(tmp_path: Path, pair: tuple[Volume, Volume]) -> None:
    skull, implant = pair
    values = skull.mask.astype(np.uint8) + 2 * implant.mask
    both = find_cases(nnunet(tmp_path / "a", pair, {"0": "background", "1": "bone", "2": "implant"}, values))
    assert np.array_equal(both[0].load().implant.mask, implant.mask)
    complete = (skull.mask | implant.mask).astype(np.uint8)
    whole = find_cases(nnunet(tmp_path / "b", pair, {"background": 0, "complete skull": 1}, complete))
    assert whole[0].implant is None
    assert np.array_equal(whole[0].load().implant.mask, implant.mask)
    named = find_cases(nnunet(tmp_path / "d", pair, {"background": 0, "skull implant": 1}))
    assert named[0].complete_skull is None
    for names in (("bone", "air"), ("implant left", "implant right")):
        labels = {"background": 0, names[0]: 1, names[1]: 2}
        expected = rf"dataset\.json: expected one label, or one called implant, got {', '.join(names)}; "
        with pytest.raises(InputError, match=expected):
            find_cases(nnunet(tmp_path / "c", pair, labels))
    (tmp_path / "c" / "dataset.json").unlink()
    with pytest.raises(InputError, match=r"dataset\.json: expected the dataset\.json of nnU-Net.*; write it, such as"):
        find_cases(tmp_path / "c")


def described(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "ours.yaml").write_text(text)
    return folder / "ours.yaml"


def test_any_folder_by_a_yaml(tmp_path: Path, pair: tuple[Volume, Volume]) -> None:
    skull, implant = pair
    for head, visit in (("p1", "first"), ("p1", "second"), ("p2", "first")):
        put(skull, tmp_path / "data" / head / f"{visit}_skull.nii.gz")
        put_stl(implant, tmp_path / "data" / head / f"{visit}_implant.stl", "ras")
    text = (
        "folder: ../data\ndefective_skull: '{head}/{kind}_skull'\nimplant: '{head}/{kind}_implant.stl'\n"
        "mesh_space: ras\nsplit:\n  training: p1\n  validation: p2\n"
    )
    file = described(tmp_path / "here", text)
    cases = find_cases(file)
    assert [(case.name, case.head, case.split) for case in cases] == [
        ("first/p1", "p1", "training"),
        ("first/p2", "p2", "validation"),
        ("second/p1", "p1", "training"),
    ]
    assert np.array_equal(cases[0].load().implant.mask, implant.mask)
    assert [case.name for case in find_cases(file, "validation")] == ["first/p2"]

    script = "import sys, shutil, pathlib as p; o = p.Path(sys.argv[2]) / 'x'; o.mkdir(parents=True)"
    script += "; shutil.copy(sys.argv[3], o / 'implant.nrrd')"
    command = [sys.executable, "-c", script, "{skull}", "{out}", str(put(implant, tmp_path / "i.nrrd"))]
    rows = evaluate(["m"], cases[:1], tmp_path / "out", command=command, progress=False, weights={"m": {}}).rows
    assert (rows[0].dsc, rows[0].error) == (1, None)


def test_cq500_and_a_ct_with_a_defect_as_dicom(run, tmp_path: Path, healthy: Volume) -> None:
    hu, whole = head_ct(coarse(healthy), noise=0, table=False)
    study = tmp_path / "cq500" / "CQ500CT7 CQ500CT7" / "Unknown Study"
    write_dicom(study / "CT Thin Plain", hu, whole.affine)
    write_dicom(study / "CT Plain", hu[:, :, ::2], whole.affine @ np.diag([1, 1, 2, 1]))
    pattern = "CQ500CT{head} CQ500CT{head}/Unknown Study/CT"
    file = described(tmp_path / "cq500", f"complete_skull: '{pattern} Thin*'\nsplit: {{test: '7'}}\n")
    assert run("prepare", file, "-o", tmp_path / "cache", "--cases", "test", "-q")[0] == 0
    assert load_head(tmp_path / "cache" / "heads" / "7.safetensors").occupancy.any()
    described(tmp_path / "cq500", f"complete_skull: '{pattern}*'\n")
    with pytest.raises(
        InputError, match="CT Thin Plain: CT Plain is of case 7, too; keep one of the two, or name it first"
    ):
        find_cases(file)
    described(tmp_path / "cq500", f"complete_skull: ['{pattern} Thin*', '{pattern}*']\nsplit: {{test: 7}}\n")
    (case,) = find_cases(file, "test")  # of a list, the first pattern has priority
    assert case.complete_skull == study / "CT Thin Plain"

    cut = whole.mask.copy()
    cut[:, :, : cut.shape[2] // 2] = False
    put(whole.with_mask(cut), tmp_path / "cq500" / "implants" / "7.nrrd")
    described(tmp_path / "cq500", f"defective_skull: '{pattern} Thin Plain'\nimplant: implants/{{head}}\n")
    loaded = find_cases(file)[0].load()
    assert dice(loaded.defective_skull.mask, whole.mask) > 0.95


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("implants: '{head}'", "implants: Extra inputs are not permitted; .*docs/datasets.md lists the names"),
        ("implant: 'x/*'", r"ours\.yaml: x/\*: expected a path below the folder with {head}"),
        ("implant: '../{head}'", r"expected a path below the folder"),
        ("implant: 'x/{head}/{number}'", r"expected a path below the folder"),
        ("implant: 'y/{head}'", r"implant: expected files that fit y/{head}, found none in .*; correct the pattern"),
        ("folder: z\nimplant: 'x/{head}'", "expected folder: to be that of the data set, got .*z, which is none"),
        ("split: {a: '1'}", "expected patterns for two of complete_skull, defective_skull, implant; got none"),
        ("implant: 'x/{head}'\nsplit: {a: '1', b: '1-2'}", "expected each head in one split, got 1 in a and b; take"),
        ("implant: 'x/{head}'\nsplit: {a: '3'}", "expected numbers, ranges or names .* got '3'"),
    ],
)
def test_a_wrong_yaml_is_one_line(tmp_path: Path, pair: tuple[Volume, Volume], text: str, message: str) -> None:
    for name in ("1", "2"):
        put(pair[1], tmp_path / "x" / f"{name}.nrrd")
    with pytest.raises(InputError, match=message) as error:
        find_cases(described(tmp_path, text))
    assert "\n" not in str(error.value)


def test_patterns(tmp_path: Path) -> None:
    def found(pattern: str, heads: str = "*", *, meshes: bool = False) -> dict[str, str]:
        files = find_files(tmp_path, pattern, heads, meshes=meshes)
        return {name: path.relative_to(tmp_path).as_posix() for name, path in files.items()}

    names = (
        "random_1_003.nrrd",
        "own_004.nii.gz",
        "005_x_y.mha",
        ".own_006.nrrd",
        "a/007.stl",
        "a/007.nrrd",
        "a/8.zip",
    )
    for name in (*names, "b[1]/9.nrrd", "c/C1/C1.nrrd", "c/C2/C1.nrrd", "c/dicom/IM1"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert found("{kind}_{head}", "0*") == {"random_1/003": "random_1_003.nrrd", "own/004": "own_004.nii.gz"}
    assert found("{head}_{kind}.mha") == {"x_y/005": "005_x_y.mha"}
    assert found("a/{head}", meshes=True) == {"007": "a/007.nrrd"}  # a mask goes before a mesh, and a zip is none
    assert found("a/{head}.stl", meshes=True) == {"007": "a/007.stl"}
    assert found("a/{head}") == {"007": "a/007.nrrd", "8": "a/8.zip"}
    assert found("b[1]/{head}") == {"9": "b[1]/9.nrrd"}
    assert found("?/{head}/{head}") == {"C1": "c/C1/C1.nrrd"}
    assert found("c/{head}") == {"dicom": "c/dicom"}
    shutil.copy(tmp_path / "own_004.nii.gz", tmp_path / "own_004.nrrd")
    with pytest.raises(InputError, match=r"own_004\.nrrd: own_004\.nii\.gz is of case 004, too"):
        found("own_{head}")
    assert found("own_{head}.nrrd") == {"004": "own_004.nrrd"}


def test_the_layouts_are_listed_and_archives_must_be_unpacked(run, tmp_path: Path) -> None:
    code, said, _ = run("datasets")
    assert code == 0
    assert all(name in said for name in ("SkullFix, SkullBreak", "nnU-Net", "MUG500+", "YAML"))
    (tmp_path / "A0001-A0020.zip").touch()
    code, _, error = run("datasets", tmp_path)
    assert (code, error.count("\n")) == (2, 1)
    assert "got zip archives, which must be unpacked" in error


def test_files_of_no_case_are_listed(run, tmp_path: Path, pair: tuple[Volume, Volume]) -> None:
    folder = mug500(tmp_path / "data", pair)
    clear = "A0001-A0020/A0001/A0001_clear.stl"
    assert run("datasets", folder)[1].splitlines()[-1] == f"images, meshes and archives of no case: 1 ({clear})"
    craniotomy = folder / "craniotomy_skull" / "B0001"
    (craniotomy / "B0001_implant.stl").rename(craniotomy / "B0001-implant.stl")
    (folder / "A0021-A0040.zip").touch()
    *_, alone, others = run("datasets", folder)[1].splitlines()
    assert alone == "cases with a defective skull or an implant alone: 1 (B0001)"
    mesh = "craniotomy_skull/B0001/B0001-implant.stl"
    assert others == f"images, meshes and archives of no case: 3 (A0021-A0040.zip, {clear}, {mesh})"
    found = json.loads(run("datasets", folder, "--json")[1])["left_out"]
    assert found == {"single_file": ["B0001"], "other_files": ["A0021-A0040.zip", clear, mesh]}


def test_what_belongs_to_a_case_is_not_listed_as_left_out(run, tmp_path: Path, pair: tuple[Volume, Volume]) -> None:
    folder = nnunet(tmp_path / "a", pair, {"background": 0, "implant": 1})
    assert (
        run("datasets", folder)[1].splitlines()[-1].startswith("images, meshes and archives of no case: 2 (imagesTr/")
    )
    put(pair[1], tmp_path / "b" / "implant" / "1.nrrd")
    put_stl(pair[1], tmp_path / "b" / "implant" / "1.stl")  # a mask goes before it
    scan = tmp_path / "b" / "defective_skull" / "1" / "s"
    scan.mkdir(parents=True)
    (scan / "IM1").touch()
    (scan.parent / "a.zip").touch()  # in a folder of DICOM
    assert len(run("datasets", tmp_path / "b")[1].splitlines()) == 3
