"""A stub of the parts of 3D Slicer's Python that the module in tools/slicer uses: a scene and its files.

Names and conduct follow the sources of Slicer 5 (slicer.util, MRML).
"""

from __future__ import annotations

import unittest
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nrrd
import numpy as np
import qt_stub
from scipy import ndimage

from pcdiff.geometry.mesh import in_space, read_stl

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS <-> LPS


class Node:
    """A node of the scene."""

    kinds: tuple[str, ...] = ()

    def __init__(self, scene: Scene, name: str) -> None:
        self.scene, self.name, self.transform = scene, name, ""
        self.display: Any = None

    def GetID(self) -> str:
        return f"node{id(self)}"

    def GetName(self) -> str:
        return self.name

    def SetName(self, name: str) -> None:
        self.name = name

    def IsA(self, kind: str) -> bool:
        return kind in self.kinds

    def GetDisplayNode(self) -> Any:
        return self.display

    def GetParentTransformNode(self) -> Any:
        return self.scene.nodes.get(self.transform)

    def SetAndObserveTransformNodeID(self, id_: str) -> None:
        self.transform = id_

    def to_world(self) -> np.ndarray:
        parent = self.GetParentTransformNode()
        return np.eye(4) if parent is None else parent.to_world() @ parent.matrix


class Transform(Node):
    """Linear: matrix to the parent, RAS."""

    kinds = ("vtkMRMLTransformNode", "vtkMRMLLinearTransformNode")
    linear = True
    matrix = np.eye(4)

    def IsTransformToWorldLinear(self) -> bool:
        parent = self.GetParentTransformNode()
        return self.linear and (parent is None or parent.IsTransformToWorldLinear())


class BSpline(Transform):
    """Not linear."""

    kinds = ("vtkMRMLTransformNode", "vtkMRMLBSplineTransformNode")
    linear = False


class Volume(Node):
    """array: indices k, j, i, as slicer.util gives it. matrix: i, j, k -> RAS mm, without the parent transform."""

    kinds = ("vtkMRMLVolumeNode", "vtkMRMLScalarVolumeNode")
    array = np.zeros((1, 1, 1), np.uint8)
    matrix = np.eye(4)

    def GetOrigin(self) -> tuple[float, ...]:
        return tuple(self.matrix[:3, 3])


class LabelMap(Volume):
    """A label volume."""

    kinds = (*Volume.kinds, "vtkMRMLLabelMapVolumeNode")


class Model(Node):
    """vertices: (V, 3) RAS mm."""

    kinds = ("vtkMRMLModelNode",)
    vertices = np.zeros((0, 3))


class Segmentation(Node):
    """segments: id -> (array, matrix), as of Volume."""

    kinds = ("vtkMRMLSegmentationNode",)

    def __init__(self, scene: Scene, name: str) -> None:
        super().__init__(scene, name)
        self.segments: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.reference: Node | None = None
        self.surface = False

    def GetSegmentation(self) -> Segmentation:
        return self

    def AddEmptySegment(self, name: str) -> str:
        self.segments[name] = Volume.array, Volume.matrix
        return name

    def CreateDefaultDisplayNodes(self) -> None:
        pass

    def CreateClosedSurfaceRepresentation(self) -> None:
        self.surface = True

    def GetReferenceImageGeometryReferenceRole(self) -> str:
        return "referenceImageGeometryRef"

    def GetNodeReference(self, role: str) -> Node | None:
        return self.reference if role == self.GetReferenceImageGeometryReferenceRole() else None

    def SetReferenceImageGeometryParameterFromVolumeNode(self, volume: Volume) -> None:
        self.reference = volume


class PointList(Node):
    """points: label -> RAS mm. Names and conduct of vtkMRMLMarkupsFiducialNode."""

    kinds = ("vtkMRMLMarkupsNode", "vtkMRMLMarkupsFiducialNode")
    locked = False

    def __init__(self, scene: Scene, name: str) -> None:
        super().__init__(scene, name)
        self.points: dict[str, tuple[float, float, float]] = {}
        self.display = scene.AddNewNodeByClass("vtkMRMLDisplayNode")  # the scene makes one for each markup

    def AddControlPoint(self, x: float, y: float, z: float, label: str = "") -> int:
        self.points[label] = x, y, z
        return len(self.points) - 1

    def SetLocked(self, locked: bool) -> None:
        self.locked = locked


class ColorTable(Node):
    """Names and colours of labels."""


class Display(Node):
    """How a node is shown."""

    colours: Node | None = None
    visible = True
    labels_visible = False

    def GetColorNode(self) -> Node | None:
        return self.colours

    def SetColor(self, red: float, green: float, blue: float) -> None:
        pass

    def SetVisibility(self, visible: bool) -> None:
        self.visible = visible

    def SetVisibility2D(self, visible: bool) -> None:
        pass

    def SetSelectedColor(self, red: float, green: float, blue: float) -> None:
        pass

    def SetPointLabelsVisibility(self, visible: bool) -> None:
        self.labels_visible = visible


KINDS = {
    "vtkMRMLLinearTransformNode": Transform,
    "vtkMRMLBSplineTransformNode": BSpline,
    "vtkMRMLScalarVolumeNode": Volume,
    "vtkMRMLLabelMapVolumeNode": LabelMap,
    "vtkMRMLSegmentationNode": Segmentation,
    "vtkMRMLModelNode": Model,
    "vtkMRMLMarkupsFiducialNode": PointList,
    "vtkMRMLColorTableNode": ColorTable,
    "vtkMRMLDisplayNode": Display,
}


class Scene:
    """The nodes by ID."""

    def __init__(self) -> None:
        self.nodes: dict[str, Any] = {}

    def AddNewNodeByClass(self, kind: str, name: str = "") -> Any:
        node = KINDS[kind](self, name)
        self.nodes[node.GetID()] = node
        return node

    def RemoveNode(self, node: Node) -> None:
        del self.nodes[node.GetID()]

    def IsNodePresent(self, node: Node) -> bool:
        return node.GetID() in self.nodes

    def GetNumberOfNodes(self) -> int:
        return len(self.nodes)

    def Clear(self) -> None:
        self.nodes.clear()

    def of(self, kind: str) -> list[Any]:
        return [node for node in self.nodes.values() if node.IsA(kind)]


def modules(documents: Path, startup_environment: dict[str, str]) -> dict[str, ModuleType]:
    """Name -> stub module, with a scene of their own. documents: where Slicer would keep a user's scenes."""
    scene, settings = Scene(), {}

    def exportSegments(
        node: Segmentation, ids: list[str], labelmap: LabelMap, grid: Volume | None, extent: int
    ) -> bool:
        assert extent == 0  # else Slicer crops the labelmap to what it holds
        (id_,) = ids
        array, matrix = node.segments[id_]
        labelmap.transform = (grid or node).transform
        labelmap.array, labelmap.matrix = array, matrix
        if grid is not None:
            back = np.linalg.inv(node.to_world() @ matrix) @ grid.to_world() @ grid.matrix
            shape = grid.array.shape[::-1]
            moved = ndimage.affine_transform(array.T, back[:3, :3], back[:3, 3], shape, order=0, mode="constant")
            labelmap.array, labelmap.matrix = moved.T, grid.matrix
        labelmap.display = scene.AddNewNodeByClass("vtkMRMLDisplayNode")  # these two stay in the scene
        labelmap.display.colours = scene.AddNewNodeByClass("vtkMRMLColorTableNode", "colours")
        return True

    def importLabelmap(labelmap: LabelMap, node: Segmentation) -> bool:
        assert labelmap.transform == node.transform
        node.segments["1"] = (labelmap.array.copy(), labelmap.matrix)
        return True

    def exportNode(node: Volume, filename: str, properties: dict[str, Any], world: bool = False) -> bool:
        affine = LPS @ (node.to_world() if world else np.eye(4)) @ node.matrix
        header = {
            "space": "left-posterior-superior",
            "space directions": affine[:3, :3].T,
            "space origin": affine[:3, 3],
        }
        nrrd.write(filename, np.ascontiguousarray(node.array.T), header)
        return True

    def load(kind: str) -> Callable[..., Volume]:
        def loadVolume(filename: str, properties: dict[str, Any] | None = None) -> Volume:
            array, header = nrrd.read(filename)
            node = scene.AddNewNodeByClass(kind, (properties or {}).get("name", Path(filename).stem))
            node.array, node.matrix = array.T, np.eye(4)
            node.matrix[:3, :3] = header["space directions"].T
            node.matrix[:3, 3] = header["space origin"]
            node.matrix = LPS @ node.matrix
            return node

        return loadVolume

    def loadModel(filename: str) -> Model:
        node = scene.AddNewNodeByClass("vtkMRMLModelNode", Path(filename).stem)
        node.display = scene.AddNewNodeByClass("vtkMRMLDisplayNode")
        node.vertices = in_space(read_stl(filename).vertices, "ras")  # the reader takes the space from the header
        return node

    def addVolumeFromArray(
        array: np.ndarray, ijkToRAS: np.ndarray | None = None, name: str = "", nodeClassName: str | None = None
    ) -> Volume:
        node = scene.AddNewNodeByClass(nodeClassName or "vtkMRMLScalarVolumeNode", name)
        node.array, node.matrix = array.copy(), np.eye(4) if ijkToRAS is None else ijkToRAS
        return node

    def updateSegment(array: np.ndarray, node: Segmentation, id_: str, volume: Volume) -> None:
        node.segments[id_] = array.copy(), np.linalg.inv(node.to_world()) @ volume.to_world() @ volume.matrix

    editor = SimpleNamespace(shown=[])
    editor.setSegmentationNode = editor.setSourceVolumeNode = editor.shown.append
    selected: list[str] = []
    util = ModuleType("slicer.util")
    util.__dict__.update(
        exportNode=exportNode,
        loadLabelVolume=load("vtkMRMLLabelMapVolumeNode"),
        loadVolume=load("vtkMRMLScalarVolumeNode"),
        loadModel=loadModel,
        addVolumeFromArray=addVolumeFromArray,
        arrayFromVolume=lambda node: node.array,
        updateTransformMatrixFromArray=lambda node, matrix: setattr(node, "matrix", matrix),
        updateSegmentBinaryLabelmapFromArray=updateSegment,
        settingsValue=lambda key, default: settings.get(key, default),
        setSliceViewerLayers=lambda label: None,
        selectModule=selected.append,
        startupEnvironment=lambda: dict(startup_environment),
        WaitCursor=nullcontext,
    )
    slicer = ModuleType("slicer")
    slicer.__dict__.update(
        mrmlScene=scene,
        util=util,
        app=SimpleNamespace(defaultScenePath=str(documents)),
        qMRMLNodeComboBox=qt_stub.NodeSelector,
        qMRMLSegmentSelectorWidget=qt_stub.NodeSelector,
        vtkSegmentation=SimpleNamespace(EXTENT_REFERENCE_GEOMETRY=0),
        modules=SimpleNamespace(
            segmentations=SimpleNamespace(
                logic=lambda: SimpleNamespace(
                    ExportSegmentsToLabelmapNode=exportSegments, ImportLabelmapToSegmentationNode=importLabelmap
                )
            ),
            segmenteditor=SimpleNamespace(
                widgetRepresentation=lambda: SimpleNamespace(self=lambda: SimpleNamespace(editor=editor))
            ),
        ),
        selected=selected,
        editor=editor,
    )
    scripted = ModuleType("slicer.ScriptedLoadableModule")
    scripted.__dict__.update(
        ScriptedLoadableModule=type("ScriptedLoadableModule", (), {"__init__": lambda self, parent: None}),
        ScriptedLoadableModuleWidget=type(
            "ScriptedLoadableModuleWidget", (), {"layout": qt_stub.Layout(), "setup": lambda self: None}
        ),
        ScriptedLoadableModuleTest=unittest.TestCase,
    )
    return {
        "slicer": slicer,
        "slicer.util": util,
        "slicer.ScriptedLoadableModule": scripted,
        **qt_stub.modules(settings),
    }
