"""The 3D view of a scene in HTML: its controls, and its data for `web/viewer.js`."""

from __future__ import annotations

import base64
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
    few = len(shape.vertices) <= 2**16
    return {
        "name": surface.name,
        "shown": surface.shown,
        "colour": _hex(shape.colour),
        "edge": _hex(np.asarray(shape.colour) * 0.3),
        "points": _packed(shape.vertices, "f4"),
        "faces": _packed(shape.faces, "u2" if few else "u4"),
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
                "values": _packed(field.values, "f4"),
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
        "frames": [_packed(frame, "f4") for frame in cloud.frames],
    }


def _packed(values: np.ndarray, kind: str) -> dict[str, str]:
    """Little-endian numbers in base64, for a typed array in JavaScript."""
    return {"type": kind, "data": base64.b64encode(np.ascontiguousarray(values, f"<{kind}").tobytes()).decode()}


def _hex(colour: Any) -> str:
    """Linear RGB, (3,) or the mean of (V, 3) -> #rrggbb, sRGB."""
    mean = np.asarray(colour, float).reshape(-1, 3).mean(axis=0)
    return "#" + "".join(f"{round(255 * float(value)):02x}" for value in srgb(mean))
