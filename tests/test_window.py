"""The window's layers and keys, on real open3d geometry and a viewer that records the calls it gets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pcdiff.report import window
from pcdiff.report.scene import Cloud, Field, Scene, Surface
from pcdiff.report.surfaces import Shape


class Viewer:
    """Records which geometry is shown and how often geometry was updated."""

    def __init__(self, layers: window.Layers) -> None:
        self.shown = list(layers.visible())
        self.updated = 0

    def add_geometry(self, layer: Any, reset_bounding_box: bool) -> None:
        self.shown.append(layer)

    def remove_geometry(self, layer: Any, reset_bounding_box: bool) -> None:
        self.shown.remove(layer)

    def update_geometry(self, layer: Any) -> None:
        self.updated += 1


def test_keys_show_step_and_colour() -> None:
    o3d = pytest.importorskip("open3d", reason="needs open3d", exc_type=ImportError)
    corner = Shape(np.eye(3), np.full((3, 3), 3**-0.5), np.array([[0, 1, 2]]), (0.2, 0.4, 0.6))
    thickness = Field("thickness", "thickness, mm", np.array([0.0, 1.0, 2.0]), 0.0, 2.0)
    frames = np.stack([np.zeros((4, 3)), np.ones((4, 3))])
    surfaces = (Surface("skull", corner), Surface("implant", corner, shown=False, fields=(thickness,)))
    layers = window.Layers(Scene("case", surfaces, (Cloud("sampling steps", frames, (1, 0, 0), ("a", "b")),)), o3d)
    viewer = Viewer(layers)
    skull, implant, cloud = layers.geometry
    assert viewer.shown == [skull]
    for number in (1, 2, 0):
        layers.toggle(viewer, number)
    assert viewer.shown == [implant, cloud]
    for _ in range(3):
        layers.step(viewer, 1)
    np.testing.assert_array_equal(np.asarray(cloud.points), frames[1])
    layers.step(viewer, -1)
    np.testing.assert_array_equal(np.asarray(cloud.points), frames[0])
    plain = np.asarray(implant.vertex_colors).copy()
    layers.colour(viewer)
    assert len(np.unique(np.asarray(implant.vertex_colors), axis=0)) == 3
    layers.colour(viewer)
    np.testing.assert_array_equal(np.asarray(implant.vertex_colors), plain)
    assert viewer.updated == 6


def test_without_a_display_the_reason_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert "no display" in str(window.show(Scene("case", ()), "case"))
