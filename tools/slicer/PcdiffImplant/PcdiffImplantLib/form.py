"""The panel's form: its widgets, and what they say."""

import shutil
from pathlib import Path

import ctk
import qt
import slicer

from .commands import Choices
from .exchange import Segment, reference_volume

PROGRAM, RESULTS = "pcdiff/program", "pcdiff/results"  # keys of Slicer's settings
INSERTABLE = (
    ("if that costs at most 1 % of the volume", None),
    ("always", True),
    ("never", False),
)


class Form:
    """Widgets in the order of the panel. `layout` is the panel's."""

    def __init__(self, layout) -> None:
        scan = section(layout, "Scan")
        self.scan = slicer.qMRMLNodeComboBox()
        self.scan.nodeTypes = ["vtkMRMLScalarVolumeNode", "vtkMRMLLabelMapVolumeNode", "vtkMRMLSegmentationNode"]
        self.scan.showChildNodeTypes = self.scan.addEnabled = self.scan.removeEnabled = False
        self.bone = segment_selector()
        self.bone.segmentationNodeSelectorVisible = False
        self.region = segment_selector()
        self.threshold = _number(qt.QSpinBox(), 0, 3000, 0, " HU")
        self.threshold.singleStep = 10
        self.threshold.specialValueText = "default"
        for label, widget, tip in (
            ("CT, mask or segmentation:", self.scan, "The skull with its defect."),
            ("Segment of bone:", self.bone, "Of a segmentation: the segment that is the skull's bone."),
            ("Threshold of bone:", self.threshold, "Of a CT: its lowest value of bone."),
            ("Close only this region:", self.region, "A segment: all bone that is absent in it is completed."),
        ):
            _row(scan, label, widget, tip)

        implant = section(layout, "Implant")
        self.method = qt.QComboBox()
        self.method.addItem("default", None)
        self.candidates = _number(qt.QSpinBox(), 1, 20, 1, "")
        self.clearance = _number(qt.QDoubleSpinBox(), 0, 5, 0, " mm")
        self.clearance.singleStep = 0.1
        self.thickness = qt.QLineEdit("bone")
        self.insertable = qt.QComboBox()
        for text, value in INSERTABLE:
            self.insertable.addItem(text, value)
        self.fixation = _number(qt.QSpinBox(), 0, 12, 0, "")
        self.fixation.specialValueText = "none"
        self.engrave = qt.QLineEdit("")
        for label, widget, tip in (
            ("Method:", self.method, "The methods that are ready in this installation of pcdiff."),
            ("Candidates:", self.candidates, "Several are designed and checked, and one is recommended."),
            ("Gap to bone:", self.clearance, "Between implant and bone; 0.5 mm is usual."),
            (
                "Thickness:",
                self.thickness,
                "bone (as the bone around), a value such as 3mm, or a fraction such as 0.6.",
            ),
            ("Remove undercuts:", self.insertable, "So that the implant can be inserted in a straight line."),
            (
                "Fixation marks:",
                self.fixation,
                "At most so many places for plates and screws along the rim of each piece; nothing is cut.",
            ),
            (
                "Engrave:",
                self.engrave,
                "A text in the inner surface of the mesh, to tell prints apart: 12 letters A to Z, digits, spaces or "
                "- . _ / + at most.",
            ),
        ):
            _row(implant, label, widget, tip)

        place = section(layout, "Program and results")
        path = slicer.util.startupEnvironment().get("PATH")
        self.program = _path(ctk.ctkPathLineEdit.Files, PROGRAM, shutil.which("pcdiff", path=path) or "pcdiff")
        self.results = _path(ctk.ctkPathLineEdit.Dirs, RESULTS, str(Path(slicer.app.defaultScenePath) / "pcdiff"))
        _row(place, "Program:", self.program, "The pcdiff program of the Python environment that it is installed in.")
        _row(place, "Results:", self.results, "Each case gets a folder here; the scene refers to its files.")

        self.scan.setMRMLScene(slicer.mrmlScene)
        self.scan.connect("currentNodeChanged(vtkMRMLNode*)", self._on_scan)
        self._on_scan(self.scan.currentNode())

    def selected_scan(self):
        """The volume node or the Segment that is the scan; None if nothing is chosen."""
        node = self.scan.currentNode()
        if not _is_segmentation(node):
            return node
        return Segment(node, self.bone.currentSegmentID()) if self.bone.currentSegmentID() else None

    def selected_region(self) -> Segment | None:
        """The segment that is to be closed, or None."""
        return selected_segment(self.region)

    def source_volume(self):
        """The volume with grey values that belongs to the scan, or None."""
        node = self.scan.currentNode()
        return reference_volume(node) if _is_segmentation(node) else node

    def choices(self) -> Choices:
        """What the form says. The threshold is for a CT, so it is left out for masks."""
        return Choices(
            threshold=self.threshold.value if self.threshold.enabled and self.threshold.value else None,
            clearance=self.clearance.value,
            thickness=self.thickness.text.strip(),
            insertable=self.insertable.itemData(self.insertable.currentIndex),
            fixation=self.fixation.value,
            engrave=self.engrave.text.strip(),
            candidates=self.candidates.value,
            method=self.method.itemData(self.method.currentIndex),
        )

    def list_methods(self, info: dict) -> None:
        """Lists the methods that are ready. info: what `pcdiff info --json` printed."""
        self.method.clear()
        default, several = info["default_method"], info["default_method_of_ensemble"]
        self.method.addItem(f"default ({default}; {several} for several candidates)", None)
        for name, method in info["methods"].items():
            if method["ready"]:
                self.method.addItem(f"{name}: {method['help']}", name)

    def _on_scan(self, node) -> None:
        self.bone.visible = _is_segmentation(node)
        self.bone.setCurrentNode(node if _is_segmentation(node) else None)
        self.threshold.enabled = node is not None and node.IsA("vtkMRMLScalarVolumeNode") and not _is_label(node)


def selected_segment(selector) -> Segment | None:
    """The segment that is chosen in a qMRMLSegmentSelectorWidget, or None."""
    node, id_ = selector.currentNode(), selector.currentSegmentID()
    return Segment(node, id_) if node is not None and id_ else None


def _is_segmentation(node) -> bool:
    return node is not None and node.IsA("vtkMRMLSegmentationNode")


def _is_label(node) -> bool:
    return node.IsA("vtkMRMLLabelMapVolumeNode")


def section(layout, title: str):
    """The rows of a new part of the panel."""
    box = ctk.ctkCollapsibleButton()
    box.text = title
    layout.addWidget(box)
    return qt.QFormLayout(box)


def _row(form, label: str, widget, tip: str) -> None:
    widget.toolTip = tip
    form.addRow(label, widget)


def segment_selector():
    """A widget to choose a segment, with none chosen."""
    selector = slicer.qMRMLSegmentSelectorWidget()
    selector.horizontalLayout = selector.noneEnabled = True
    selector.setMRMLScene(slicer.mrmlScene)
    selector.setCurrentNode(None)
    return selector


def _number(box, minimum: float, maximum: float, value: float, suffix: str):
    box.minimum, box.maximum, box.value, box.suffix = minimum, maximum, value, suffix
    return box


def _path(kind, key: str, default: str):
    """A path that Slicer's settings keep."""
    edit = ctk.ctkPathLineEdit()
    edit.filters = kind
    edit.currentPath = slicer.util.settingsValue(key, default)
    edit.connect("currentPathChanged(QString)", lambda path: qt.QSettings().setValue(key, path))
    return edit
