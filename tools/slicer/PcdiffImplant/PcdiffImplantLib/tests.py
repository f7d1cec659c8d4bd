"""The test that Slicer runs by *Reload and Test*, and in the build of the extension. Needs no pcdiff."""

import tempfile
from pathlib import Path

import numpy as np
import slicer
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleTest

from .exchange import ExchangeError, Segment, write_inputs


class PcdiffImplantTest(ScriptedLoadableModuleTest):
    """That Slicer writes files as `exchange` means them to be."""

    def setUp(self):
        """Begins with an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self):
        """Runs every test."""
        for test in (self.test_world_coordinates, self.test_segment_on_grid, self.test_non_linear):
            self.setUp()
            test()

    def test_world_coordinates(self):
        """The parent transform is in the file."""
        volume = _block("scan")
        volume.SetAndObserveTransformNodeID(_shift(5.0).GetID())
        with tempfile.TemporaryDirectory() as folder:
            read = slicer.util.loadVolume(str(write_inputs(Path(folder), volume).scan))
        assert tuple(read.GetOrigin()) == (5.0, 0.0, 0.0)

    def test_segment_on_grid(self):
        """A segment is written on the grid of the scan, and no node is left."""
        volume = _block("scan")
        segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "bone")
        segmentation.CreateDefaultDisplayNodes()
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        id_ = segmentation.GetSegmentation().AddEmptySegment("skull")
        array = slicer.util.arrayFromVolume(volume)
        slicer.util.updateSegmentBinaryLabelmapFromArray(array, segmentation, id_, volume)
        before = slicer.mrmlScene.GetNumberOfNodes()
        with tempfile.TemporaryDirectory() as folder:
            inputs = write_inputs(Path(folder), Segment(segmentation, id_))
            assert slicer.mrmlScene.GetNumberOfNodes() == before
            read = slicer.util.loadVolume(str(inputs.scan))
        assert (slicer.util.arrayFromVolume(read) == array).all()

    def test_non_linear(self):
        """A non-linear transform is refused."""
        volume = _block("scan")
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "warp")
        volume.SetAndObserveTransformNodeID(transform.GetID())
        with tempfile.TemporaryDirectory() as folder, self.assertRaises(ExchangeError):  # noqa: PT027
            write_inputs(Path(folder), volume)


def _block(name: str):
    """A volume with a box of ones."""
    array = np.zeros((6, 7, 8), np.uint8)
    array[2:4, 2:5, 2:6] = 1
    return slicer.util.addVolumeFromArray(array, name=name)


def _shift(x: float):
    matrix = np.eye(4)
    matrix[0, 3] = x
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "shift")
    slicer.util.updateTransformMatrixFromArray(transform, matrix)
    return transform
