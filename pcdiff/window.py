"""A window to turn shapes in, by open3d where it is installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pcdiff.picture import Shape


def show(shapes: Sequence[Shape], title: str) -> str | None:
    """Opens a window and returns None when it is closed, or says in one sentence why there is none."""
    # Without a display open3d draws into memory, and its window would wait for ever to be closed.
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        return "no window: there is no display (neither DISPLAY nor WAYLAND_DISPLAY is set)"
    try:
        import open3d as o3d
    except (ImportError, OSError) as error:  # OSError: the wheel is there, libusb-1.0 or libGL is not
        return f"no window: open3d cannot be imported ({str(error).splitlines()[0]}); pip install 'pcdiff[open3d]'"
    viewer = o3d.visualization.Visualizer()
    if not viewer.create_window(title):
        return "no window: open3d cannot open one on this display"
    for shape in shapes:
        mesh = o3d.geometry.TriangleMesh(
            o3d.utility.Vector3dVector(shape.vertices), o3d.utility.Vector3iVector(shape.faces)
        )
        mesh.vertex_normals = o3d.utility.Vector3dVector(shape.normals)
        # The window takes colours as they are shown, a shape's are linear light.
        mesh.paint_uniform_color([value ** (1 / 2.2) for value in shape.colour])
        viewer.add_geometry(mesh)
    viewer.run()
    viewer.destroy_window()
    return None
