"""The shipped weights as a Hugging Face folder and as a MONAI bundle, and that each can be used."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import trimesh
import yaml
from stub_method import Run, Stub

import pcdiff
from pcdiff.files import sha256
from pcdiff.geometry.mesh import read_stl
from pcdiff.methods.registry import weights_files
from pcdiff.pipeline.export import write_bundle, write_hub
from pcdiff.pipeline.record import read_record
from pcdiff.pipeline.settings import Settings

ROOT = Path(__file__).parents[1]


def test_a_scene_stands_as_the_patient(run: Run, skull: Path, stub: Stub, tmp_path: Path) -> None:
    assert run("design", skull, "-o", tmp_path, "-q", "--no-report")[0] == 0
    case = tmp_path / "head"
    code, printed, _ = run("export", "scene", case)
    assert code == 0
    assert printed.strip() == str(case / "scene.glb")
    assert read_record(case)["files"]["scene.glb"] == sha256(case / "scene.glb")
    scene = trimesh.load_scene(case / "scene.glb")
    assert sorted(scene.geometry) == ["implant", "skull"]
    vertices = read_stl(case / "implant.stl").vertices / 1000
    low, high = scene.geometry["implant"].bounds
    expected = np.stack([vertices[:, 0], vertices[:, 2], -vertices[:, 1]], axis=1)
    np.testing.assert_allclose([low, high], [expected.min(axis=0), expected.max(axis=0)], atol=0.002)
    assert scene.geometry["implant"].volume > 0, "its triangles face outward"
    red, _, blue, _ = scene.geometry["implant"].visual.material.baseColorFactor
    assert blue > red
    again = tmp_path / "again.glb"
    assert run("export", "scene", case, "-o", again)[0] == 0
    assert again.read_bytes() == (case / "scene.glb").read_bytes()
    code, _, error = run("dicom-stl", case, "--scan", case)
    assert code == 2
    assert "expected a folder of DICOM files" in error
    assert not (case / "implant_stl.dcm").exists()
    code, _, error = run("export", "scene", case, "-o", tmp_path / "scene.usdz")
    assert code == 2
    assert "ends in .glb" in error


def test_a_hub_folder(run: Run, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    code, printed, _ = run("export", "hub", hub)
    assert code == 0
    assert printed.splitlines() == [str(path) for path in sorted(hub.iterdir())]
    empty, front, card = (hub / "README.md").read_text().split("---\n", 2)
    assert empty == ""
    assert yaml.safe_load(front)["license"] == "cc-by-nc-sa-4.0"
    assert yaml.safe_load(front)["library_name"] == "pcdiff"
    assert card.lstrip().startswith("# Model card")
    assert "](docs/" not in card
    config = json.loads((hub / "config.json").read_text())
    assert config["default_method"] == "unet"
    assert config["files"]["unet.safetensors"]["metadata"]["format"] == "pcdiff-unet-2"
    for name, entry in config["files"].items():
        assert sha256(hub / name) == entry["sha256"]
    for names in config["methods"].values():
        assert {*names} <= config["files"].keys()
    assert "CC BY-NC-SA" in (hub / "LICENSE").read_text()
    record = Settings("unet", weights=hub / "unet.safetensors").record()
    assert record["weights"] == {path.name: sha256(path) for path in weights_files("unet")}
    pcdiff.load_method("unet", hub / "unet.safetensors")


def test_the_hub_reads_the_card(tmp_path: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    write_hub(tmp_path / "hub")
    card = huggingface_hub.ModelCard.load(tmp_path / "hub" / "README.md")
    assert card.data.license == "cc-by-nc-sa-4.0"
    assert "statistical-shape-model" in card.data.tags


def test_a_folder_with_files_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for kind in ("hub", "bundle"):
        code, _, error = run("export", kind, tmp_path)
        assert code == 2
        assert "expected a new or an empty folder" in error
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_monai_bundle_designs(stub: Stub, skull: Path, tmp_path: Path) -> None:
    bundle = pytest.importorskip("monai.bundle")
    written = {path.relative_to(tmp_path / "bundle").as_posix() for path in write_bundle(tmp_path / "bundle")}
    names = {"configs/metadata.json", "configs/inference.json", "docs/README.md", "LICENSE"}
    assert written == names | {f"models/{path.name}" for path in weights_files("unet")}
    parser = bundle.ConfigParser()
    parser.read_config(tmp_path / "bundle" / "configs" / "inference.json")
    parser.read_meta(tmp_path / "bundle" / "configs" / "metadata.json")
    parser.update({"bundle_root": str(tmp_path / "bundle"), "scan": str(skull), "output_dir": str(tmp_path / "out")})
    assert parser["_meta_"]["version"] == pcdiff.__version__
    parser.get_parsed_content("run")
    record = read_record(tmp_path / "out" / "head")
    assert record
    assert record["weights"] == {path.name: sha256(path) for path in weights_files("unet")}
    assert (tmp_path / "out" / "head" / "implant.stl").is_file()


def test_the_wheel_holds_the_card(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("pcdiff_cranial-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("pcdiff/MODEL_CARD.md") == (ROOT / "MODEL_CARD.md").read_bytes()
