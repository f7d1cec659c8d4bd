"""A window to turn a scene in, by open3d where it is installed."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from pcdiff.report.render import srgb

if TYPE_CHECKING:
    from pcdiff.report.scene import Scene

KEYS = "1 to 9 show or hide, left and right step through the diffusion, C colours the implant, Q closes"


def show(scene: Scene, title: str) -> str | None:
    """Opens a window and returns None when it is closed, or says in one sentence why there is none."""
    # Without a display open3d draws into memory, and its window would wait for ever to be closed.
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        return "no window: there is no display (neither DISPLAY nor WAYLAND_DISPLAY is set)"
    try:
        import open3d as o3d
    except (ImportError, OSError) as error:  # OSError: the wheel is there, libusb-1.0 or libGL is not
        return f"no window: open3d cannot be imported ({str(error).splitlines()[0]}); pip install 'pcdiff[open3d]'"
    viewer = o3d.visualization.VisualizerWithKeyCallback()
    if not viewer.create_window(f"{title}: {KEYS}"):
        return "no window: open3d cannot open one on this display"
    layers = Layers(scene, o3d)
    for layer in layers.shown():
        viewer.add_geometry(layer)
    for number in range(min(9, len(layers.geometry))):
        viewer.register_key_callback(ord(str(number + 1)), lambda v, n=number: layers.toggle(v, n))
    for key, step in ((262, 1), (263, -1)):  # GLFW's right and left
        viewer.register_key_callback(key, lambda v, by=step: layers.step(v, by))
    viewer.register_key_callback(ord("C"), layers.colour)
    viewer.run()
    viewer.destroy_window()
    return None


class Layers:
    """What the window holds of a scene, in its order: surfaces, then clouds; and what its keys change."""

    def __init__(self, scene: Scene, o3d: Any) -> None:
        self.scene, self.o3d = scene, o3d
        self.geometry = [self._mesh(surface.shape) for surface in scene.surfaces]
        self.geometry += [self._points(cloud.frames[0], cloud.colour) for cloud in scene.clouds]
        self.on = [surface.shown for surface in scene.surfaces] + [cloud.shown for cloud in scene.clouds]
        self.frame = self.field = 0

    def shown(self) -> list[Any]:
        """The geometry that is shown."""
        return [layer for layer, on in zip(self.geometry, self.on, strict=True) if on]

    def toggle(self, viewer: Any, number: int) -> bool:
        """Shows or hides a layer."""
        self.on[number] = not self.on[number]
        change = viewer.add_geometry if self.on[number] else viewer.remove_geometry
        change(self.geometry[number], reset_bounding_box=False)
        return True

    def step(self, viewer: Any, by: int) -> bool:
        """Moves every cloud that moves to its next or last frame."""
        last = max((len(cloud.frames) for cloud in self.scene.clouds), default=1) - 1
        self.frame = min(max(self.frame + by, 0), last)
        for layer, cloud in zip(self.geometry[len(self.scene.surfaces) :], self.scene.clouds, strict=True):
            frame = cloud.frames[min(self.frame, len(cloud.frames) - 1)]
            layer.points = self.o3d.utility.Vector3dVector(frame.astype(np.float64))
            viewer.update_geometry(layer)
        return True

    def colour(self, viewer: Any) -> bool:
        """Colours the surfaces by the next of their fields, after the last plainly."""
        from pcdiff.report.render import scale_colours

        for layer, surface in zip(self.geometry, self.scene.surfaces, strict=False):
            if surface.fields:
                self.field = (self.field + 1) % (len(surface.fields) + 1)
                if self.field:
                    field = surface.fields[self.field - 1]
                    self._paint(layer, scale_colours(field.values, field.low, field.high))
                else:
                    self._paint(layer, surface.shape.colour)
                viewer.update_geometry(layer)
        return True

    def _mesh(self, shape: Any) -> Any:
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
        """The window takes colours as they are shown, a shape's are linear light."""
        each = np.broadcast_to(np.asarray(colour, float), np.asarray(mesh.vertices).shape)
        mesh.vertex_colors = self.o3d.utility.Vector3dVector(srgb(each))
