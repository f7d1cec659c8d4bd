"""Segmentations with several labels: what is listed, and which voxels a number or a name chooses."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from test_formats import AFFINE, DIRECTIONS, metaimage, nifti, nrrd

from pcdiff.errors import InputError
from pcdiff.imaging.formats import streams
from pcdiff.imaging.input_check import read_skull
from pcdiff.imaging.scan import read_scan
from pcdiff.imaging.volumes import read_volume

SHAPE = (7, 6, 5)
LABELS = np.random.default_rng(5).integers(0, 4, SHAPE).astype(np.uint8)  # 0 to 3
LAYERED = {"kinds": "list domain domain domain", "space_directions": f"none {DIRECTIONS}"}


def segment(number: int, name: str, value: int, layer: int = 0) -> str:
    key = f"Segment{number}_"
    return f"{key}ID:=x\n{key}Name:={name}\n{key}LabelValue:={value}\n{key}Layer:={layer}\n{key}Color:=1 0 0\n"


def chosen(path: Path, label: str, mask: np.ndarray) -> None:
    scan = read_scan(path, label=label)
    assert not scan.is_ct
    np.testing.assert_array_equal(scan.values, mask)
    np.testing.assert_allclose(scan.affine, AFFINE, atol=1e-6)
    assert "is used" in scan.notes[-1]


@pytest.mark.parametrize("layers", [False, True])
def test_a_command_without_the_option_does_not_advise_it(tmp_path: Path, layers: bool) -> None:
    path = tmp_path / "a.nrrd"
    if layers:
        nrrd(path, np.stack([LABELS == 1, LABELS == 2]).astype(np.uint8), **LAYERED)
    else:
        nrrd(path, LABELS)
    with pytest.raises(InputError, match=r"got .* as a mask of its own$") as refused:
        read_volume(path)
    assert "--label" not in str(refused.value)


def listing(path: Path, label: str | None = None) -> str:
    """The message that lists the labels."""
    with pytest.raises(InputError, match="label") as caught:
        read_scan(path, label=label)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def ml(mask: np.ndarray) -> str:
    return f"({np.count_nonzero(mask) * abs(np.linalg.det(AFFINE[:3, :3])) / 1000:.1f} ml)"


def test_segments_of_slicer_by_number_and_by_name(tmp_path: Path) -> None:
    lines = segment(0, "Sch\xe4del", 2) + segment(1, "Haut", 1) + segment(2, "leer", 9)
    path = nrrd(tmp_path / "a.seg.nrrd", LABELS, lines)
    one, two, three = (value == LABELS for value in (1, 2, 3))
    expected = (
        f"got 3 labels; choose the bone with --label N or --label NAME: 1: Haut {ml(one)}; 2: Sch\xe4del {ml(two)}"
    )
    assert listing(path).endswith(f"{expected}; 3 {ml(three)}")
    chosen(path, "2", two)
    chosen(path, "SCH\xc4DEL", two)
    chosen(path, "3", three)
    assert "names none of its labels; choose one of 1: Haut" in listing(path, "bone")
    assert "label 9: leer (0.0 ml) holds no voxel" in listing(path, "leer")
    path = nrrd(tmp_path / "b.seg.nrrd", LABELS, segment(0, "Bone", 1) + segment(1, "bone", 2))
    assert "names 2 of its labels" in listing(path, "Bone")
    chosen(path, "1", one)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("run", [37, streams.RUN])
def test_layers_of_a_file_are_numbered_as_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool, run: int
) -> None:
    monkeypatch.setattr(streams, "RUN", run)
    layers = np.stack([LABELS, (LABELS > 1) * np.uint8(7)], axis=0 if first else -1)
    kinds = LAYERED if first else {"kinds": "domain domain domain list", "space_directions": f"{DIRECTIONS} none"}
    lines = segment(0, "Bone", 1, 0) + segment(1, "Head", 7, 1) + segment(2, "Skin", 2, 0)
    path = nrrd(tmp_path / "a.seg.nrrd", layers, lines, **kinds)
    text = listing(path)
    assert ("2x7x6x5" if first else "7x6x5x2") in text
    assert "1: Bone" in text
    assert "2: Head" in text
    assert "3: Skin" in text
    assert "4: layer 1, value 3" in text
    chosen(path, "2", LABELS > 1)
    chosen(path, "head", LABELS > 1)
    chosen(path, "3", LABELS == 2)
    chosen(path, "4", LABELS == 3)
    chosen(path, "Bone", LABELS == 1)


def test_segments_of_an_older_slicer_are_layers(tmp_path: Path) -> None:
    layers = np.stack([LABELS == 1, LABELS > 1]).astype(np.uint8)
    lines = "Segment1_Name:=Head\nSegment0_Name:=Bone\nSegment2_Name:=\nSegment2_Layer:=-1\n"
    path = nrrd(tmp_path / "a.seg.nrrd", layers, lines, **LAYERED)
    chosen(path, "bone", LABELS == 1)
    chosen(path, "2", LABELS > 1)


def test_one_hot_in_every_format(tmp_path: Path) -> None:
    hot = np.stack([value == LABELS for value in range(4)], axis=-1)
    paths = [nifti(tmp_path / "a.nii.gz", hot), nifti(tmp_path / "b.nii", np.moveaxis(hot, -1, 0))]
    paths.append(nrrd(tmp_path / "a.nrrd", np.moveaxis(hot, -1, 0), **LAYERED))
    paths.append(metaimage(tmp_path / "a.mha", hot))
    data = np.moveaxis(hot, -1, 0).tobytes(order="F")
    paths.append(metaimage(tmp_path / "b.mha", hot[..., 0], data, ElementNumberOfChannels="4"))
    for path in paths:
        _fix_matrix(path)
        assert "one value per voxel" in listing(path)
        assert "3: layer 3 (" in listing(path)
        for layer in range(4):
            chosen(path, str(layer + 1), hot[..., layer])
    two = nifti(tmp_path / "c.nii", hot[:, :, :, None, 2:])  # an axis of time of one, and vectors
    chosen(two, "2", hot[..., 3])


def _fix_matrix(path: Path) -> None:
    """`metaimage` writes steps of 1, and NIfTI needs no spacing of the fourth axis."""
    if path.suffix == ".nii":
        head = bytearray(path.read_bytes())
        head[76:108] = struct.pack("<8f", 1, 0.5, 0.75, 1.25, 1, 1, 1, 1)
        path.write_bytes(head)


def test_a_label_map_of_nnunet(tmp_path: Path) -> None:
    folder = tmp_path / "labelsTr"
    folder.mkdir()
    path = nifti(folder / "a.nii.gz", LABELS)
    assert f"1 {ml(LABELS == 1)}; 2 {ml(LABELS == 2)}; 3" in listing(path)
    chosen(path, "2", LABELS == 2)
    names = tmp_path / "dataset.json"
    for labels in (
        {"background": 0, "skin": 1, "skull": 2, "whole": [1, 2]},
        {"0": "background", "1": "skin", "2": "skull", "300": "jaw"},
    ):
        names.write_text(json.dumps({"labels": labels, "numTraining": 1}))
        assert "1: skin" in listing(path)
        chosen(path, "skull", LABELS == 2)
        names.rename(folder / "dataset.json")  # where its predictions lie
        chosen(path, "skull", LABELS == 2)
        (folder / "dataset.json").unlink()
    for text in ("[" * 10**5, "{", '{"labels": {"a": "b", "c": null}}', '{"labels": {"\xb2": "x"}}', "[]", "\0"):
        names.write_text(text)
        chosen(path, "2", LABELS == 2)  # by number still


def test_a_label_map_of_totalsegmentator(tmp_path: Path) -> None:
    names = {1: "spleen", 2: "skull", 3: "brain", 117: "costal_cartilages"}
    rows = "".join(
        f'<Label Key="{key}" Red="1.0" Green="0.0" Blue="0.5" Alpha="1"><![CDATA[{name}]]></Label>\n'
        for key, name in names.items()
    )
    text = f"<?xml version='1.0'?> <CaretExtension><LabelTable>{rows}</LabelTable></CaretExtension>".encode()
    text += b" " * (-(len(text) + 8) % 16)
    extension = struct.pack("<2i", len(text) + 8, 0) + text
    for version in (1, 2):
        path = nifti(tmp_path / "ct_seg.nii.gz", LABELS, version, extension=extension)
        assert "1: spleen (0.0 ml); 2: skull (0.0 ml); 3: brain (0.0 ml)" in listing(path)
        assert "costal" not in listing(path)  # not in this scan
        chosen(path, "skull", LABELS == 2)
        chosen(path, "2", LABELS == 2)


def test_labels_of_other_types(tmp_path: Path) -> None:
    chosen(nrrd(tmp_path / "a.nrrd", LABELS.astype("<f4")), "3", LABELS == 3)
    chosen(nrrd(tmp_path / "a.nrrd", LABELS.astype("<i2") * 2000), "4000", LABELS == 2)
    chosen(nrrd(tmp_path / "a.nrrd", (LABELS == 1).astype("u1")), "1", LABELS == 1)


def test_what_holds_no_labels_is_refused(tmp_path: Path) -> None:
    hu = np.random.default_rng(0).integers(-1000, 3071, SHAPE).astype("<i2")
    path = nrrd(tmp_path / "a.nrrd", hu)
    assert "got values of -989 to 3059; leave it out" in listing(path, "1")
    soft = np.random.default_rng(0).random((*SHAPE, 3)).astype("<f4")
    path = nifti(tmp_path / "a.nii", soft)
    with pytest.raises(
        InputError, match=r"3 volumes .* with values of 0\..* probabilities\? threshold them at 0.5; export one"
    ):
        read_scan(path)
    with pytest.raises(InputError, match="got DICOM; leave it out"):
        read_scan(tmp_path, label="1")


def test_a_chosen_label_is_a_warning_of_the_input_check(tmp_path: Path) -> None:
    skull, check = read_skull(nrrd(tmp_path / "a.nrrd", LABELS), label="2")
    np.testing.assert_array_equal(skull.mask, LABELS == 2)
    assert check.kind == "mask"
    assert "label 2 (0.0 ml) is used, one of 3 in the file" in check.warnings
