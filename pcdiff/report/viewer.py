"""The 3D view of a scene in HTML: its controls, and its data for `web/viewer.js`."""

from __future__ import annotations

import base64
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from pcdiff import NOTICE
from pcdiff.report.colours import srgb
from pcdiff.report.page import write_page
from pcdiff.report.scene import Cloud, Scene, Surface
from pcdiff.report.surfaces import bounds, oblique_view, outward_direction
from pcdiff.report.templates import fill

POINT_MM, FIELD_MM, NORMAL = 0.02, 0.01, 0.02  # steps of what the page holds: a pixel of the view is 0.3 mm or more
DEFLATE = 4  # level 9 takes ten times as long for 2 % less
VIEW_BUTTONS = ("front", "back", "left", "right", "top", "oblique", "inside", "reset")


def write_scene(scene: Scene, path: Path, slices: Markup | None = None, picture: Markup | None = None) -> None:
    """Writes a page with a scene and slices. picture: for browsers without WebGL. Raises InputError as `write_page`."""
    view = scene_html(scene, picture)
    body = fill("scene_page.html", notice=NOTICE, title=scene.title, scene=view, slices=slices)
    write_page(path, f"{scene.title} - pcdiff", body)


def scene_html(scene: Scene, fallback: Markup | None = None) -> Markup:
    """A 3D view of a scene with its controls; `web/viewer.js` draws it. fallback: shown in browsers without WebGL."""
    captions = next((cloud.captions for cloud in scene.clouds if len(cloud.frames) > 1), ())
    return fill(
        "scene.html",
        data=_scene_data(scene),
        fields=scene.implant.fields,
        captions=captions,
        views=VIEW_BUTTONS,
        fallback=fallback,
    )


def _scene_data(scene: Scene) -> dict[str, Any]:
    low, high = bounds([surface.shape for surface in scene.surfaces])
    focus = scene.implant.shape.vertices.mean(axis=0)
    outward = outward_direction(scene.skull.shape, scene.implant.shape)
    vectors = {"low": low, "high": high, "focus": focus, "outward": outward, "view": oblique_view(outward)}
    return {name: [round(float(value), 4) for value in values] for name, values in vectors.items()} | {
        "surfaces": [_surface_data(surface) for surface in scene.surfaces],
        "clouds": [_cloud_data(cloud) for cloud in scene.clouds],
    }


def _surface_data(surface: Surface) -> dict[str, Any]:
    shape = surface.shape
    return {
        "name": surface.name,
        "shown": surface.shown,
        "colour": _hex(shape.colour),
        "edge": _hex(np.asarray(shape.colour) * 0.3),
        "points": _packed(shape.vertices, POINT_MM),
        "normals": _packed(shape.normals, NORMAL),
        "faces": _packed(_sorted_faces(shape.faces), 1),
        "fields": [
            {
                "name": field.name,
                "title": field.title,
                "low": field.low,
                "from": field.scale.start(field.low, field.high),
                "high": field.high,
                "scale": [
                    [round(place, 4), _hex(colour)] for place, colour in field.scale.stops(field.low, field.high)
                ],
                "ticks": field.ticks,
                "values": _packed(field.values, FIELD_MM),
            }
            for field in surface.fields
        ],
    }


def _cloud_data(cloud: Cloud) -> dict[str, Any]:
    return {
        "name": cloud.name,
        "shown": cloud.shown,
        "colour": _hex(cloud.colour),
        "captions": list(cloud.captions),
        "frames": [_packed(frame, POINT_MM) for frame in cloud.frames],
    }


def _packed(values: np.ndarray, step: float) -> dict[str, Any]:
    """(N,) or (N, C) numbers as multiples of a step above the lowest, for `numbers` in `web/viewer.js`.

    The differences from row to row, column by column, as 16-bit integers that wrap around, deflated: neighbours in
    space are neighbours in the order of the vertices, so that most differences are small. Beyond 2**16 steps the step
    is larger.
    """
    columns = np.asarray(values, float).reshape(len(values), -1).T
    low, high = (float(columns.min()), float(columns.max())) if columns.size else (0.0, 0.0)
    step = max(step, (high - low) / 65535)
    steps = np.round((columns - low) / step).astype(np.int64)
    data = zlib.compress(np.diff(steps, axis=1, prepend=0).astype("<u2").tobytes(), DEFLATE)
    return {"data": base64.b64encode(data).decode(), "columns": len(columns), "low": low, "step": step}


def _sorted_faces(faces: np.ndarray) -> np.ndarray:
    """(F, 3) triangles, each beginning with its lowest vertex, in ascending order: they pack better."""
    turned = np.take_along_axis(faces, (faces.argmin(axis=1)[:, None] + np.arange(3)) % 3, axis=1)
    return turned[np.lexsort(turned.T[::-1])]


def _hex(colour: Any) -> str:
    """Linear RGB, (3,) or the mean of (V, 3) -> #rrggbb, sRGB."""
    mean = np.asarray(colour, float).reshape(-1, 3).mean(axis=0)
    return "#" + "".join(f"{round(255 * float(value)):02x}" for value in srgb(mean))
