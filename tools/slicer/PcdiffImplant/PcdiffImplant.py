"""3D Slicer module: designs an implant for the open scan with `pcdiff design` and loads it into the scene.

Slicer and pcdiff need not share a Python: the module runs the program and exchanges files with it.
"""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

try:
    import ctk
    import qt
    import slicer
    from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleWidget
except ImportError:  # outside of Slicer: `command` and `design` still work, and are tested
    ScriptedLoadableModule = ScriptedLoadableModuleWidget = object

NOTICE = "Not a medical device: for research only, not for diagnosis or treatment."
COLOUR = (0.28, 0.66, 0.77)


def command(program: str, scan: Path, out: Path, candidates: int) -> list[str]:
    """The arguments of `pcdiff design` for a scan."""
    return [program, "design", str(scan), "-o", str(out), "--ensemble", str(candidates), "--overwrite", "-q"]


def design(program: str, scan: Path, out: Path, candidates: int = 1) -> dict:
    """Runs pcdiff on a file and returns the record of the case, with its `folder`.

    Raises RuntimeError with the last line of pcdiff's errors.
    """
    done = subprocess.run(command(program, scan, out, candidates), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["pcdiff failed without a message"])[-1])
    folder = out / scan.name.removesuffix(".nrrd")
    return json.loads((folder / "run.json").read_text(encoding="utf-8")) | {"folder": folder}


class PcdiffImplant(ScriptedLoadableModule):
    """The module's entry in Slicer."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "Cranial implant (pcdiff)"
        parent.categories = ["Segmentation"]
        parent.contributors = ["the pcdiff authors"]
        parent.helpText = (
            "Choose a CT or a mask of the skull with its defect and press Design. The implant is loaded as a "
            f"segmentation on the scan's grid and as a model.<br><b>{NOTICE}</b>"
        )


class PcdiffImplantWidget(ScriptedLoadableModuleWidget):
    """The panel: scan, program, number of candidates, Design."""

    def setup(self):
        """Builds the panel."""
        ScriptedLoadableModuleWidget.setup(self)
        box = ctk.ctkCollapsibleButton()
        box.text = "Cranial implant"
        self.layout.addWidget(box)
        form = qt.QFormLayout(box)
        self.scan = slicer.qMRMLNodeComboBox()
        self.scan.nodeTypes = ["vtkMRMLScalarVolumeNode", "vtkMRMLLabelMapVolumeNode"]
        self.scan.addEnabled = self.scan.removeEnabled = False
        self.scan.setMRMLScene(slicer.mrmlScene)
        form.addRow("Scan or mask:", self.scan)
        self.program = ctk.ctkPathLineEdit()
        self.program.currentPath = shutil.which("pcdiff") or "pcdiff"
        self.program.settingKey = "pcdiff/program"
        form.addRow("pcdiff program:", self.program)
        self.candidates = qt.QSpinBox()
        self.candidates.minimum, self.candidates.maximum = 1, 20
        form.addRow("Candidates:", self.candidates)
        self.button = qt.QPushButton("Design")
        self.button.connect("clicked()", self.design)
        form.addRow(self.button)
        self.message = qt.QLabel(NOTICE)
        self.message.wordWrap = True
        form.addRow(self.message)
        self.layout.addStretch(1)

    def design(self):
        """Writes the scan to a file, runs pcdiff on it, and loads the implant."""
        node = self.scan.currentNode()
        if node is None:
            self.message.text = "Choose a CT or a mask first."
            return
        out = Path(tempfile.mkdtemp(prefix="pcdiff-"))
        scan = out / "scan.nrrd"
        with slicer.util.WaitCursor():
            slicer.util.saveNode(node, str(scan))
            try:
                record = design(self.program.currentPath, scan, out / "cases", self.candidates.value)
            except (RuntimeError, OSError) as error:
                self.message.text = str(error)
                return
            model = slicer.util.loadModel(str(record["folder"] / "implant.stl"))  # its header says LPS
            model.SetName(f"{node.GetName()} implant")
            model.GetDisplayNode().SetColor(*COLOUR)
            slicer.util.loadSegmentation(str(record["folder"] / "implant.nrrd"))
        report = (record["folder"] / "report.html").as_uri()
        self.message.openExternalLinks = True
        self.message.text = f'{record["implant_ml"]:.1f} ml. <a href="{report}">Report</a>. {NOTICE}'
