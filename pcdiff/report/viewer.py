"""The 3D view of a scene in HTML: its controls, and its data for `web/viewer.js`."""

from __future__ import annotations

import base64
import json
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from pcdiff import NOTICE
from pcdiff.report.colours import srgb
from pcdiff.report.page import write_page
from pcdiff.report.scene import Cloud, Scene, Surface
from pcdiff.report.surfaces import bounds, oblique_view, outward_direction

VIEW_BUTTONS = ("front", "back", "left", "right", "top", "oblique", "inside")
HINT = (
    "Drag to rotate, scroll to zoom, drag with the right button to move. "
    "R, L, A, P, S, I: right, left, anterior, posterior, superior, inferior."
)
SLICE_GROUP = (
    '<fieldset><legend>Slice</legend><select data-control="slice" aria-label="slice"><option>off</option>'
    "<option>axial</option><option>coronal</option><option>sagittal</option></select>"
    '<div class="slicing" hidden><input type="range" data-control="at" step="0.5" aria-label="position of the slice">'
    '<label><input type="checkbox" data-control="other"> other half</label></div></fieldset>'
)


def write_scene(scene: Scene, path: Path) -> None:
    """Writes a page that shows only a scene. Raises InputError as `write_page` does."""
    heading = f'<header class="bare"><h1>{escape(scene.title)}</h1></header>'
    write_page(
        path,
        f"{scene.title} - pcdiff",
        f'<p class="notice">{escape(NOTICE)}</p><main class="wide">{heading}{scene_html(scene)}</main>',
    )


def scene_html(scene: Scene) -> str:
    """A 3D view of a scene with its controls; `web/viewer.js` draws it."""
    groups = [_show_group(scene), _colour_group(scene), SLICE_GROUP, _step_group(scene), _view_group()]
    data = json.dumps(_scene_data(scene), allow_nan=False).replace("<", "\\u003c")
    return (
        f'<div class="scene"><div class="plot" role="img" aria-label="3D view"></div>'
        f'<div class="controls">{"".join(groups)}</div><p class="hint">{HINT}</p>'
        f'<script type="application/json">{data}</script></div>'
    )


def _show_group(scene: Scene) -> str:
    shows = [_checkbox("surface", n, s.name, s.shown, _hex(s.shape.colour)) for n, s in enumerate(scene.surfaces)]
    shows += [_checkbox("cloud", n, c.name, c.shown, _hex(c.colour)) for n, c in enumerate(scene.clouds)]
    return f'<fieldset><legend>Show</legend><div class="row">{"".join(shows)}</div></fieldset>'


def _colour_group(scene: Scene) -> str:
    """The distance to the true implant, where there is one, is selected at the start."""
    fields = scene.implant.fields
    if not fields:
        return ""
    options = "".join(
        f'<option value="{escape(f.name)}"{" selected" if f.name == "error" else ""}>{escape(f.title)}</option>'
        for f in fields
    )
    return (
        '<fieldset><legend>Colour the implant by</legend><select data-control="field" aria-label="colour by">'
        f'<option value="">nothing</option>{options}</select></fieldset>'
    )


def _step_group(scene: Scene) -> str:
    moving = next((cloud for cloud in scene.clouds if len(cloud.frames) > 1), None)
    if moving is None:
        return ""
    return (
        f'<fieldset><legend>Sampling step</legend><input type="range" data-control="frame" min="0" '
        f'max="{len(moving.frames) - 1}" value="0" step="1" aria-label="sampling step">'
        f'<output class="caption">{escape(moving.captions[0])}</output></fieldset>'
    )


def _view_group() -> str:
    views = "".join(f'<button type="button" data-view="{name}">{name}</button>' for name in VIEW_BUTTONS)
    return f'<fieldset><legend>View from</legend><div class="row">{views}</div></fieldset>'


def _checkbox(control: str, number: int, name: str, shown: bool, colour: str) -> str:
    checked = " checked" if shown else ""
    return (
        f'<label><input type="checkbox" data-control="{control}" value="{number}"{checked}>'
        f'<span class="swatch" style="background:{colour}"></span>{escape(name)}</label>'
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
                "unit": field.unit,
                "low": field.low,
                "high": field.high,
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
