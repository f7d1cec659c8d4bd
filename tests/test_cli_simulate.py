"""`pcdiff simulate`, in process: a skull, its defect and the implant that was cut out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from phantom import coarse, head_ct, write_dicom
from stub_method import Run, files

from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume, write_volume
from pcdiff.pipeline.record import pieces_ml


def test_pieces_are_counted_largest_first() -> None:
    mask = np.zeros((9, 9, 9), bool)
    mask[1:3, 1:3, 1:3] = mask[5:8, 5:8, 5:8] = True
    assert pieces_ml(Volume(mask, np.diag([10.0, 10.0, 5.0, 1.0]))) == [13.5, 4.0]


def test_a_simulation_is_not_written_into_the_folder_of_its_skull(run: Run, healthy: Volume, tmp_path: Path) -> None:
    skull = tmp_path / "head" / "skull.nrrd"
    skull.parent.mkdir()
    write_volume(healthy, skull)
    assert run("simulate", skull, "-o", tmp_path / "other")[0] == 0
    assert run("simulate", skull, "-o", tmp_path / "label", "--label", 1)[0] == 0
    for name in ("implant.nrrd", "defective_skull.nrrd"):
        assert (tmp_path / "label" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert "--label 5 names none" in run("simulate", skull, "-o", tmp_path / "none", "--label", 5)[2]
    (tmp_path / "other" / "run.json").rename(tmp_path / "head" / "run.json")  # an earlier result, as it seems
    before = files(tmp_path / "head")
    code, _, error = run("simulate", skull, "-o", tmp_path / "head", "--overwrite")
    assert code == 2
    assert "holds the input skull.nrrd" in error
    assert files(tmp_path / "head") == before


def test_the_simulated_implant_is_the_exact_complement(run: Run, healthy: Volume, tmp_path: Path) -> None:
    write_volume(healthy, tmp_path / "skull.nrrd")
    for name in ("a", "b"):
        code, printed, _ = run(
            "simulate", tmp_path / "skull.nrrd", "-o", tmp_path / name, "--kind", "random_1", "--seed", 4
        )
        assert code == 0
        assert "ml of bone removed" in printed
    assert files(tmp_path / "a")["implant.nrrd"] == files(tmp_path / "b")["implant.nrrd"]
    defective, implant = (read_volume(tmp_path / "a" / f"{name}.nrrd") for name in ("defective_skull", "implant"))
    assert implant.mask.any()
    assert not (defective.mask & implant.mask).any()
    np.testing.assert_array_equal(defective.mask | implant.mask, healthy.mask)


def test_a_craniotomy_is_simulated_on_a_ct(run: Run, healthy: Volume, tmp_path: Path) -> None:
    hu, whole = head_ct(coarse(healthy), noise=0, table=False)
    for series in (3, 4):
        write_dicom(tmp_path / "dicom", hu, whole.affine, series)
    image = sitk.GetImageFromArray(hu.T)
    image.SetSpacing(whole.spacing.tolist())
    image.SetOrigin(whole.affine[:3, 3].tolist())
    sitk.WriteImage(image, str(tmp_path / "ct.nii.gz"))
    assert run("simulate", tmp_path / "dicom", "-o", tmp_path / "a")[0] == 2
    for scan, options in (("dicom", ("--series", 1)), ("ct.nii.gz", ("--threshold", 301))):
        code, _, error = run("simulate", tmp_path / scan, "-o", tmp_path / "out" / scan, *options)
        assert code == 0
        assert "warning: slices of 3.2 mm" in error
    a, b = (read_volume(tmp_path / "out" / scan / "implant.nrrd") for scan in ("dicom", "ct.nii.gz"))
    np.testing.assert_array_equal(a.mask, b.mask)
    defective = read_volume(tmp_path / "out" / "dicom" / "defective_skull.nrrd")
    assert not (defective.mask & a.mask).any()
    assert np.count_nonzero((defective.mask | a.mask) != whole.mask) < 0.01 * whole.mask.sum()  # pieces at the base
