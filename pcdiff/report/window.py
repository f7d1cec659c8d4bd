"""A window that shows a scene in 3D, drawn by open3d where it is installed."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from pcdiff import install_hint
from pcdiff.report.colours import srgb

if TYPE_CHECKING:
    from pcdiff.report.scene import Scene
    from pcdiff.report.surfaces import Shape

KEYS = "1 to 9: show or hide, left and right arrow: sampling step, C: colour the implant, Q: close"
RIGHT_ARROW, LEFT_ARROW = 262, 263  # GLFW's key codes


def show(scene: Scene, title: str) -> str | None:
    """Opens a window and returns None when the user closes it, or one line why no window can be opened."""
    # Without a display open3d draws into memory, and its window would never be closed.
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        return "no window: no display found (neither DISPLAY nor WAYLAND_DISPLAY is set)"
    try:
        import open3d as o3d
    except (ImportError, OSError) as error:  # OSError: the package is installed, libusb-1.0 or libGL is missing
        return f"no window: open3d cannot be imported ({str(error).splitlines()[0]}); {install_hint('open3d')}"
    viewer = o3d.visualization.VisualizerWithKeyCallback()
    if not viewer.create_window(f"{title}: {KEYS}"):
        return "no window: open3d cannot open one on this display"
    layers = Layers(scene, o3d)
    for layer in layers.visible():
        viewer.add_geometry(layer)
    for number in range(min(9, len(layers.geometry))):
        viewer.register_key_callback(ord(str(number + 1)), lambda v, n=number: layers.toggle(v, n))
    for key, step in ((RIGHT_ARROW, 1), (LEFT_ARROW, -1)):
        viewer.register_key_callback(key, lambda v, by=step: layers.step(v, by))
    viewer.register_key_callback(ord("C"), layers.colour)
    viewer.run()
    viewer.destroy_window()
    return None


class Layers:
    """The open3d geometry of a scene, surfaces first, then clouds, and what the window's keys do with it.

    Each key's method takes the open3d visualizer and returns True, as open3d's callbacks do.
    """

    def __init__(self, scene: Scene, o3d: Any) -> None:
        self.scene, self.o3d = scene, o3d
        self.geometry = [self._mesh(surface.shape) for surface in scene.surfaces]
        self.geometry += [self._points(cloud.frames[0], cloud.colour) for cloud in scene.clouds]
        self.shown = [surface.shown for surface in scene.surfaces] + [cloud.shown for cloud in scene.clouds]
        self.frame = self.field = 0

    def visible(self) -> list[Any]:
        """The geometry that is shown."""
        return [layer for layer, shown in zip(self.geometry, self.shown, strict=True) if shown]

    def toggle(self, viewer: Any, number: int) -> bool:
        """Shows or hides a layer."""
        self.shown[number] = not self.shown[number]
        change = viewer.add_geometry if self.shown[number] else viewer.remove_geometry
        change(self.geometry[number], reset_bounding_box=False)
        return True

    def step(self, viewer: Any, by: int) -> bool:
        """Moves every cloud `by` sampling steps, not beyond its first or last."""
        last = max((len(cloud.frames) for cloud in self.scene.clouds), default=1) - 1
        self.frame = min(max(self.frame + by, 0), last)
        for layer, cloud in zip(self.geometry[len(self.scene.surfaces) :], self.scene.clouds, strict=True):
            frame = cloud.frames[min(self.frame, len(cloud.frames) - 1)]
            layer.points = self.o3d.utility.Vector3dVector(frame.astype(np.float64))
            viewer.update_geometry(layer)
        return True

    def colour(self, viewer: Any) -> bool:
        """Colours surfaces by their next field; after the last field in one colour."""
        for layer, surface in zip(self.geometry, self.scene.surfaces, strict=False):
            if surface.fields:
                self.field = (self.field + 1) % (len(surface.fields) + 1)
                if self.field:
                    field = surface.fields[self.field - 1]
                    self._paint(layer, field.scale.at(field.values, field.low, field.high))
                else:
                    self._paint(layer, surface.shape.colour)
                viewer.update_geometry(layer)
        return True

    def _mesh(self, shape: Shape) -> Any:
        mesh = self.o3d.geometry.TriangleMesh(
            self.o3d.utility.Vector3dVector(shape.vertices), self.o3d.utility.Vector3iVector(shape.faces)
        )
        mesh.vertex_normals = self.o3d.utility.Vector3dVector(shape.normals)
        self._paint(mesh, shape.colour)
        return mesh

    def _points(self, points: np.ndarray, colour: Any) -> Any:
        cloud = self.o3d.geometry.PointCloud(self.o3d.utility.Vector3dVector(points.astype(np.float64)))
        cloud.paint_uniform_color(srgb(np.array(colour)))
        return cloud

    def _paint(self, mesh: Any, colour: Any) -> None:
        """Colour: linear RGB, one or (V, 3); open3d takes sRGB."""
        each = np.broadcast_to(np.asarray(colour, float), np.asarray(mesh.vertices).shape)
        mesh.vertex_colors = self.o3d.utility.Vector3dVector(srgb(each))
