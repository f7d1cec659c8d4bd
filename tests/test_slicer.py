"""The 3D Slicer module, driven through a stub of Slicer's API, with pcdiff and with a program that imitates it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer_stub
import typer

import pcdiff
from pcdiff.cli.app import app
from pcdiff.geometry.metrics import dice
from pcdiff.geometry.volume import Volume
from pcdiff.pipeline.stages import STAGES

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the programs of these tests are scripts with a first line #!")

EXTENSION = Path(__file__).parents[1] / "tools" / "slicer"
MODULE = EXTENSION / "PcdiffImplant"
PCDIFF = "from pcdiff.cli import main\nmain()\n"
# Answers `info`; of `design` it begins a stage and waits, whatever it is told, if its folder holds `deaf`.
IMITATION = """
import json, os, signal, sys, time
from pathlib import Path
here = Path(sys.argv[0]).parent
(here / "environment.json").write_text(json.dumps(dict(os.environ)))
(here / "arguments.json").write_text(json.dumps(sys.argv[1:]))
if sys.argv[1] == "info":
    methods = {"unet": {"ready": True, "help": "a"}, "paper": {"ready": False, "help": "b"}}
    stages = [{"title": "reading the scan", "share": 1}, {"title": "checking", "share": 3}]
    names = {"default_method": "unet", "default_method_of_ensemble": "diffusion"}
    print(json.dumps({"pcdiff": "1", "methods": methods, "stages": stages, **names}))
elif (here / "fails").exists():
    print(json.dumps({"input": {}, "error": "scan.nrrd: no defect found", "exit_code": 2}))
    sys.exit(2)
else:
    import shutil
    for path in Path(sys.argv[2]).parent.glob("*.nrrd"):
        shutil.copy(path, here)
    if (here / "deaf").exists():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("pcdiff: scan:    0.1 s  checking", file=sys.stderr, flush=True)
    time.sleep(120)
"""

Panel = Any


@pytest.fixture
def slicer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Slicer's stub. As in Slicer, PYTHONHOME is that of its own Python, which no other Python survives."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    before = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
    before["PYTHONPATH"] = str(Path(pcdiff.__file__).parents[1])
    monkeypatch.setenv("PYTHONHOME", str(tmp_path / "python-of-slicer"))
    stub = slicer_stub.modules(tmp_path / "documents", before)
    for name, module in stub.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys, "path", [str(MODULE), *sys.path])
    yield stub["slicer"]
    for name in [name for name in sys.modules if name.startswith("PcdiffImplant")]:
        del sys.modules[name]


@pytest.fixture
def open_panel(slicer: Any, tmp_path: Path) -> Iterator[Callable[[str], Panel]]:
    """Source of a program -> the panel, after it has asked that program what it can do."""
    opened = []

    def open_(source: str) -> Panel:
        program = tmp_path / "program" / "pcdiff"
        program.parent.mkdir()
        program.write_text(f"#!{sys.executable}\n{source}")
        program.chmod(0o755)
        sys.modules["qt"].QSettings().setValue("pcdiff/program", str(program))
        panel = import_module("PcdiffImplant").PcdiffImplantWidget()
        opened.append(panel)
        panel.setup()
        wait(panel)
        return panel

    yield open_
    for panel in opened:
        panel.cleanup()


def wait(panel: Panel, seconds: float = 300, until: Callable[[], object] = lambda: False) -> None:
    """Lets the timer tick until no run is left, or until something holds."""
    end = time.monotonic() + seconds
    while panel.timer.active and not until():
        panel.timer.tick()
        time.sleep(0.02)
        assert time.monotonic() < end, "the run does not end"


def temporary(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "temporary").iterdir())


def scan_node(slicer: Any, skull: Volume, under: np.ndarray | None = None) -> Any:
    """A label volume of a skull, in its place after the parent transform `under` (RAS)."""
    under = np.eye(4) if under is None else under
    matrix = np.linalg.inv(under) @ slicer_stub.LPS @ skull.affine
    node = slicer.util.addVolumeFromArray(
        skull.mask.T.astype(np.uint8), matrix, "a/b scan", "vtkMRMLLabelMapVolumeNode"
    )
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    slicer.util.updateTransformMatrixFromArray(transform, under)
    node.SetAndObserveTransformNodeID(transform.GetID())
    return node


def segmentation_of(slicer: Any, volume: Any, array: np.ndarray) -> Any:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "segments")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    slicer.util.updateSegmentBinaryLabelmapFromArray(array, node, node.AddEmptySegment("bone"), volume)
    return node


@pytest.mark.timeout(600)
def test_an_implant_is_designed_edited_fitted_and_checked(
    slicer: Any, open_panel: Callable[[str], Panel], case: tuple[Volume, Volume], tmp_path: Path
) -> None:
    skull, truth = case
    cos, sin = np.cos(0.5), np.sin(0.5)
    scan_node(slicer, skull, np.array([[cos, -sin, 0, 40], [sin, cos, 0, -30], [0, 0, 1, 20], [0, 0, 0, 1]]))
    panel = open_panel(PCDIFF)
    methods = [data for _, data in panel.form.method.items]
    assert methods[0] is None
    assert "paper" not in methods
    panel.form.method.currentIndex = methods.index("rbf")
    panel.form.fixation.value = 3
    panel.design_button.click()
    assert not panel.design_button.enabled
    seen: list[tuple[str, int]] = []
    wait(panel, until=lambda: seen.append((panel.stage.text, panel.progress.value)))
    assert {"fitting the shape model", "writing the report"} <= {text for text, _ in seen}
    assert [value for _, value in seen] == sorted(value for _, value in seen)
    assert not temporary(tmp_path)
    folder = tmp_path / "documents" / "pcdiff" / "a_b_scan"
    assert "fronto" in panel.message.text or "pariet" in panel.message.text or "occip" in panel.message.text
    assert f'href="{(folder / "report.html").as_uri()}"' in panel.message.text
    assert (folder / "report.html").is_file()
    (implant,) = [node for node in slicer.mrmlScene.of("vtkMRMLLabelMapVolumeNode") if "implant" in node.GetName()]
    (model,) = slicer.mrmlScene.of("vtkMRMLModelNode")
    assert dice(implant.array.T > 0, truth.mask) > 0.7
    np.testing.assert_allclose(implant.matrix, slicer_stub.LPS @ skull.affine, atol=1e-4)  # where the scan is shown
    voxels = np.linalg.inv(implant.matrix) @ np.vstack([model.vertices.T, np.ones(len(model.vertices))])
    assert np.abs(voxels[:3].mean(1) - np.argwhere(implant.array.T).mean(0)).max() < 3

    (marks,) = slicer.mrmlScene.of("vtkMRMLMarkupsFiducialNode")
    places = json.loads((folder / "run.json").read_text())["fixation"]
    assert list(marks.points) == ["1", "2", "3"], "the numbers of the report"
    np.testing.assert_allclose(list(marks.points.values()), [np.multiply(p["point"], [-1, -1, 1]) for p in places])
    assert marks.locked
    assert marks.display.labels_visible
    panel.form.fixation.value = 0

    panel.edit_button.click()
    edited = panel.edited.currentNode()
    assert edited.surface
    assert not model.display.visible
    assert slicer.selected == ["SegmentEditor"]
    assert slicer.editor.shown == [edited, panel.form.scan.currentNode()]
    panel.fit_button.click()
    wait(panel)
    assert "a_b_scan-2" in panel.message.text
    assert json.loads((folder.parent / "a_b_scan-2" / "run.json").read_text())["settings"]["method"] == "edited"
    array, _ = edited.segments["1"]
    array[:, :, : int(np.median(np.nonzero(array)[2]))] = 0
    panel.check_button.click()
    wait(panel)
    assert "Covers the whole defect: no." in panel.message.text
    assert not temporary(tmp_path)


def test_the_program_gets_the_environment_from_before_slicer(
    open_panel: Callable[[str], Panel], tmp_path: Path
) -> None:
    panel = open_panel(IMITATION)
    environment = json.loads((tmp_path / "program" / "environment.json").read_text())
    assert "PYTHONHOME" in os.environ
    assert "PYTHONHOME" not in environment
    assert environment["PATH"] == os.environ["PATH"]
    assert [data for _, data in panel.form.method.items] == [None, "unet"]
    assert not temporary(tmp_path)


@pytest.mark.parametrize("deaf", [False, True])
def test_cancel_leaves_nothing(
    slicer: Any, open_panel: Callable[[str], Panel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf: bool
) -> None:
    volume = slicer.util.addVolumeFromArray(np.ones((4, 5, 6), np.int16), name="ct")
    panel = open_panel(IMITATION)
    monkeypatch.setattr("PcdiffImplantLib.job.GRACE_S", 0.3 if deaf else 60)
    if deaf:
        (tmp_path / "program" / "deaf").touch()
    panel.design_button.click()
    wait(panel, 60, until=lambda: panel.stage.text == "checking")
    assert (panel.progress.range, panel.progress.value) == ((0, 100), 25)
    assert panel.cancel_button.enabled
    process = panel._job._process
    panel.cancel_button.click()
    wait(panel, 60)
    assert process.returncode == (-9 if deaf else -15)
    assert panel.message.text == "Cancelled."
    assert list(slicer.mrmlScene.nodes.values()) == [volume]
    assert not temporary(tmp_path)
    assert not (tmp_path / "documents").exists()
    assert panel.design_button.enabled


def test_closing_slicer_ends_the_run(slicer: Any, open_panel: Callable[[str], Panel], tmp_path: Path) -> None:
    slicer.util.addVolumeFromArray(np.ones((4, 5, 6), np.int16), name="ct")
    panel = open_panel(IMITATION)
    panel.design_button.click()
    process = panel._job._process
    panel.cleanup()
    assert process.returncode is not None
    assert not temporary(tmp_path)


def test_failures_are_one_line(slicer: Any, open_panel: Callable[[str], Panel], tmp_path: Path) -> None:
    panel = open_panel(IMITATION)
    panel.design_button.click()
    assert "Choose a CT, a mask, or a segmentation" in panel.message.text
    panel.form.scan.setCurrentNode(slicer.util.addVolumeFromArray(np.ones((4, 5, 6), np.int16), name="ct"))
    panel.check_button.click()
    assert "Choose the edited implant first" in panel.message.text
    (tmp_path / "program" / "fails").touch()
    panel.design_button.click()
    wait(panel)
    assert "scan.nrrd: no defect found" in panel.message.text
    panel.form.program.currentPath = str(tmp_path / "nothing")
    panel.design_button.click()
    assert "cannot be started" in panel.message.text
    assert not temporary(tmp_path)
    assert len(slicer.mrmlScene.nodes) == 1


@pytest.mark.parametrize("which", ["scan", "region"])
def test_non_linear_transforms_are_refused(
    slicer: Any, open_panel: Callable[[str], Panel], tmp_path: Path, which: str
) -> None:
    scan = slicer.util.addVolumeFromArray(np.ones((4, 5, 6), np.int16), name="ct")
    region = segmentation_of(slicer, scan, np.ones((4, 5, 6), np.uint8))
    panel = open_panel(IMITATION)
    panel.form.region.setCurrentNode(region)
    warp = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "warp")
    {"scan": scan, "region": region}[which].SetAndObserveTransformNodeID(warp.GetID())
    panel.design_button.click()
    assert "got the non-linear warp" in panel.message.text
    assert not panel.timer.active
    assert not temporary(tmp_path)
    assert len(slicer.mrmlScene.nodes) == 3


def test_segments_are_written_on_the_grid_of_the_scan(
    slicer: Any, open_panel: Callable[[str], Panel], tmp_path: Path
) -> None:
    """Bone from a segmentation under a transform; a region that was drawn on another volume."""
    bone = np.zeros((4, 5, 6), np.uint8)
    bone[1:3, 1:4, 2:5] = 1
    volume = slicer.util.addVolumeFromArray(np.ones(bone.shape, np.int16), name="ct")
    shift = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "shift")
    slicer.util.updateTransformMatrixFromArray(
        shift, np.array([[1, 0, 0, 7.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    )
    volume.SetAndObserveTransformNodeID(shift.GetID())
    scan = segmentation_of(slicer, volume, bone)
    other = slicer.util.addVolumeFromArray(np.ones((4, 5, 2), np.uint8), np.diag([1.0, 1, 1, 1]), "other")
    other.matrix[0, 3] = 10  # i = 0 and 1 there are i = 3 and 4 of the scan
    panel = open_panel(IMITATION)
    panel.form.scan.setCurrentNode(scan)
    assert panel.form.bone.visible
    panel.form.region.setCurrentNode(segmentation_of(slicer, other, other.array))
    panel.form.threshold.value = 200
    panel.form.fixation.value = 3
    panel.form.engrave.text = " OP-7 "
    before = set(slicer.mrmlScene.nodes)
    panel.design_button.click()
    wait(panel, 60, until=lambda: panel.stage.text == "checking")
    panel.cancel_button.click()
    wait(panel)
    assert set(slicer.mrmlScene.nodes) == before
    arguments = json.loads((tmp_path / "program" / "arguments.json").read_text())
    assert "--threshold" not in arguments  # of a mask pcdiff refuses it
    assert arguments[arguments.index("--fixation") + 1] == "3"
    assert "--engrave=OP-7" in arguments
    written = {
        name: slicer.util.loadVolume(str(tmp_path / "program" / Path(name).name))
        for name in arguments[1:]
        if name.endswith(".nrrd")
    }
    found, region = written.values()
    assert found.GetOrigin() == region.GetOrigin() == (7, 0, 0)
    assert np.array_equal(found.array, bone)
    assert region.array.sum(axis=(0, 1)).tolist() == [0, 0, 0, 20, 20, 0]


def test_commands_are_those_of_pcdiff(slicer: Any, tmp_path: Path) -> None:
    commands = import_module("PcdiffImplantLib.commands")
    scan = tmp_path / "scan.nrrd"
    every = commands.Choices(200, 0.5, "3mm", True, 4, "-7", 3, "unet")
    inputs = commands.Inputs(scan, tmp_path / "region.nrrd", tmp_path / "edited.nrrd")
    design = parsed(commands.design("pcdiff", commands.Inputs(scan, inputs.region), every, tmp_path))
    expected = dict(threshold=200, clearance=0.5, thickness="3mm", make_insertable=True, ensemble=3, method="unet")
    expected |= dict(fixation=4, engrave="-7")
    assert design.items() >= dict(expected, skulls=[scan], region=inputs.region, as_json=True, verbose=True).items()
    fit = parsed(commands.design("pcdiff", inputs, every, tmp_path))
    assert fit.items() >= dict(edited=inputs.edited, method=None, ensemble=None, fixation=4, engrave="-7").items()
    plain = parsed(commands.design("pcdiff", commands.Inputs(scan), commands.Choices(), tmp_path))
    assert plain.items() >= dict.fromkeys(("threshold", "method", "ensemble", "make_insertable", "region")).items()
    assert plain.items() >= dict(fixation=0, engrave=None).items()
    check = parsed(commands.check("pcdiff", inputs, every))
    assert check.items() >= dict(implant=inputs.edited, skull=scan, threshold=200, clearance=0.5).items()
    assert parsed(commands.info("pcdiff"))["as_json"]
    for stage in STAGES.values():
        assert commands.stage_of(f"pcdiff: scan: {12.3:6.1f} s  {stage.title}") == stage.title


def parsed(command: list[str]) -> dict[str, Any]:
    """The parameters that pcdiff reads from a command. Fails for an option that it does not have."""
    program, name, *arguments = command
    assert program == "pcdiff"
    return typer.main.get_command(app).commands[name].make_context(name, arguments).params  # type: ignore[attr-defined]


def test_results_are_said_in_words(slicer: Any) -> None:
    words = import_module("PcdiffImplantLib.words")
    record = {
        "implant_ml": 45.52,
        "pieces": [{"ml": 40.0}, {"ml": 5.52}],
        "defects": 1,
        "members_ml": [45.0, 46.0],
        "recommended_because": "it passes every check",
        "unusual_head": False,
        "fitting": {"engraved": [{"text": "A+B"}]},
        "fixation": [{}, {}],
        "input_check": {"warnings": ["slices of 3 mm <b>"], "defects": [{"place": "left parietal", "area_cm2": 44.7}]},
    }
    checks = [
        {"title": "Covers the whole defect", "passed": False, "words": "The widest gap is 5.0 mm wide."},
        {"title": "Thickness", "passed": True, "words": "Good."},
        {"title": "Shape", "passed": None, "words": "Unknown."},
    ]
    html = words.design_words(record, checks, "file:///r.html")
    for part in (
        "Implant of 45.5 ml",
        'href="file:///r.html"',
        "it passes every check",
        "2 pieces for 1 defect",
        "not in the volume: A+B.",
        "Scene and report show 2 fixation marks",
        "<li>slices of 3 mm &lt;b&gt;</li>",
        "<li>left parietal, 45 cm²</li>",
        "<li>Covers the whole defect: no. The widest gap is 5.0 mm wide.</li>",
    ):
        assert part in html
    assert "Good" not in html
    plain = words.design_words(record | {"fitting": {"engraved": []}, "fixation": []}, checks, "file:///r.html")
    assert "ngraved" not in plain
    assert "fixation" not in plain
    assert "Passes every check" in words.check_words(checks[1:])


def test_the_tests_that_slicer_runs_pass_with_the_stub(slicer: Any) -> None:
    import_module("PcdiffImplant").PcdiffImplantTest().runTest()


def test_the_extension_lists_its_files() -> None:
    listed = (MODULE / "CMakeLists.txt").read_text()
    for path in (*MODULE.rglob("*.py"), *MODULE.rglob("*.png")):
        assert f"  {path.relative_to(MODULE).as_posix()}\n" in listed
    index = json.loads((EXTENSION / "pcdiff.json").read_text())
    assert {"$schema", "category", "scm_url"} <= index.keys() <= {*ALLOWED}
    project = (EXTENSION / "CMakeLists.txt").read_text()
    assert "project(pcdiff)" in project  # the file of the index is named after it
    assert f'set(EXTENSION_CATEGORY "{index["category"]}")' in project


ALLOWED = (  # by slicer-extension-catalog-entry-schema-v1.0.1.json
    *("$schema", "category", "scm_url", "scm_revision", "scm_type"),
    *("build_dependencies", "build_subdirectory", "enabled", "tier"),
)
