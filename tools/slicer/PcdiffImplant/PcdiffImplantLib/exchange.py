"""Nodes of the scene to files for pcdiff, and its files to nodes. Files are in world coordinates.

A node's parent transform is applied to what is written, so results need none: they lie where the scan is shown.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer

from .commands import Inputs

IMPLANT_COLOUR = (0.28, 0.66, 0.77)
MARK_COLOUR = (0.85, 0.30, 0.0)  # as in the report


class ExchangeError(Exception):
    """A node that cannot be exchanged; the text says in one line why, and what to do."""


@dataclass(frozen=True)
class Segment:
    """A segment of a segmentation node."""

    node: "slicer.vtkMRMLSegmentationNode"
    id: str


def case_name(node) -> str:
    """The node's name as the name of a file: it becomes that of the case."""
    return re.sub(r"[^\w-]+", "_", node.GetName()).strip("_") or "scan"


def write_inputs(folder: Path, scan, edited: Segment | None = None, region: Segment | None = None) -> Inputs:
    """Writes what pcdiff reads into a folder: the scan, and the edited implant and the region on the scan's grid.

    scan: a volume node, or a Segment of bone, which is exported on the grid of its reference volume.

    Raises ExchangeError for a node under a non-linear transform, and one that Slicer cannot write.
    """
    with ExitStack() as stack:
        grid = stack.enter_context(_labelmap(scan, reference_volume(scan.node))) if isinstance(scan, Segment) else scan
        name = case_name(scan.node if isinstance(scan, Segment) else scan)
        inputs = Inputs(
            folder / f"{name}.nrrd",
            folder / "pcdiff.region.nrrd" if region else None,
            folder / "pcdiff.edited.nrrd" if edited else None,
        )
        _write(grid, inputs.scan)
        for segment, path in ((region, inputs.region), (edited, inputs.edited)):
            if segment is not None:
                _write(stack.enter_context(_labelmap(segment, grid)), path)
    return inputs


def reference_volume(segmentation):
    """The volume that the segmentation was drawn on, or None."""
    return segmentation.GetNodeReference(segmentation.GetReferenceImageGeometryReferenceRole())


def load_case(folder: Path):
    """Loads the implant of a case folder: (its label volume, its model).

    Both nodes keep the files in this folder, so it must stay. Slicer reads from the STL that its axes are LPS.
    """
    name = f"{folder.name} implant"
    # A dict of its own for each call: Slicer's functions write into their default argument.
    volume = slicer.util.loadLabelVolume(str(folder / "implant.nrrd"), {"name": name})
    model = slicer.util.loadModel(str(folder / "implant.stl"))
    model.SetName(f"{name} model")
    model.GetDisplayNode().SetColor(*IMPLANT_COLOUR)
    model.GetDisplayNode().SetVisibility2D(True)
    return volume, model


def show_marks(name: str, places: Sequence[Mapping[str, Any]]):
    """The fixation marks of a design as a list of points with the report's numbers; None without any.

    places: `fixation` of run.json, in LPS. The points are locked, so that no click moves them.
    """
    if not places:
        return None
    marks = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name)
    for number, place in enumerate(places, 1):
        x, y, z = place["point"]
        marks.AddControlPoint(-x, -y, z, str(number))  # RAS
    marks.SetLocked(True)
    display = marks.GetDisplayNode()
    display.SetSelectedColor(*MARK_COLOUR)  # points are selected when they are added
    display.SetPointLabelsVisibility(True)
    return marks


def edit_in_segment_editor(implant, model, source):
    """Makes a segmentation of an implant's label volume and opens it in the Segment Editor.

    model: the implant's, hidden, as it would not follow the edits. source: the volume whose grey values the editor
    shows, or None. Returns the segmentation node.
    """
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{implant.GetName()} edited")
    segmentation.CreateDefaultDisplayNodes()
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(implant)
    slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(implant, segmentation)
    segmentation.CreateClosedSurfaceRepresentation()
    slicer.util.setSliceViewerLayers(label=None)
    model.GetDisplayNode().SetVisibility(False)
    slicer.util.selectModule("SegmentEditor")
    editor = slicer.modules.segmenteditor.widgetRepresentation().self().editor
    editor.setSegmentationNode(segmentation)
    if source is not None:
        editor.setSourceVolumeNode(source)
    return segmentation


@contextmanager
def _labelmap(segment: Segment, grid) -> Iterator:
    """While entered, a label volume of a segment on the grid of a volume, or on the segmentation's own for None."""
    _require_linear(segment.node)
    if grid is not None:
        _require_linear(grid)
    labelmap = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "pcdiff exchange")
    added = [labelmap]
    try:
        logic, extent = slicer.modules.segmentations.logic(), slicer.vtkSegmentation.EXTENT_REFERENCE_GEOMETRY
        if not logic.ExportSegmentsToLabelmapNode(segment.node, [segment.id], labelmap, grid, extent):
            raise ExchangeError(
                f"{segment.node.GetName()}: expected a segment that Slicer exports as a labelmap, but it does not; "
                "choose another segment"
            )
        display = labelmap.GetDisplayNode()
        added = [display.GetColorNode(), display, labelmap]  # the export made a table of the segment's colour
        yield labelmap
    finally:
        for node in added:
            slicer.mrmlScene.RemoveNode(node)


def _write(volume, path: Path) -> None:
    _require_linear(volume)
    if not slicer.util.exportNode(volume, str(path), {"useCompression": 0}, world=True):
        raise ExchangeError(f"{volume.GetName()}: Slicer cannot write it to {path.parent}; is the disk full?")


def _require_linear(node) -> None:
    transform = node.GetParentTransformNode()
    if transform is not None and not transform.IsTransformToWorldLinear():
        raise ExchangeError(
            f"{node.GetName()}: expected no transform or a linear one, got the non-linear {transform.GetName()}, which "
            "would resample it; harden it in the module Transforms if that is wanted"
        )
