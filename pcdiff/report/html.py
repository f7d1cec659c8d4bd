"""One file of HTML that opens without a network: style, scripts, pictures and scenes are all within it."""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from pcdiff import NOTICE
from pcdiff.errors import InputError
from pcdiff.files import written_beside
from pcdiff.report.render import srgb
from pcdiff.report.scene import Cloud, Scene, Surface, bounds
from pcdiff.report.surfaces import facing, slanted

LARGEST = 15_000_000  # bytes of a page


def write_page(path: Path, title: str, body: str) -> None:
    """Writes a page. body: HTML of your own making, its texts escaped. Raises InputError where it cannot be written.

    Its content security policy allows no request at all, and no script but the two that are in it, by their hashes.
    """
    plotly = (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    scripts = [plotly, _asset("viewer.js")] if 'class="scene"' in body else []
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts) or "'none'"
    policy = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    text = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{_asset("style.css")}</style>
</head>
<body>
{body}
{"".join(f"<script>{script}</script>" for script in scripts)}
</body>
</html>
"""
    data = text.encode("utf-8")
    if len(data) > LARGEST:
        raise InputError(f"{path}: expected a page under {LARGEST / 1e6:.0f} MB, got {len(data) / 1e6:.1f}; show less")
    with written_beside(path) as part:
        part.write_bytes(data)


def write_scene(scene: Scene, path: Path) -> None:
    """A page that shows a scene and nothing else. Errors as `write_page`."""
    heading = f'<header class="bare"><h1>{escape(scene.title)}</h1></header>'
    write_page(
        path,
        f"{scene.title} - pcdiff",
        f'<p class="notice">{escape(NOTICE)}</p><main class="wide">{heading}{scene_html(scene)}</main>',
    )


def picture_html(picture: np.ndarray, caption: str, kind: str = "") -> str:
    """(H, W, 3) uint8 as a figure with its caption, the picture within the text."""
    from PIL import Image

    file = BytesIO()
    Image.fromarray(picture).save(file, format="PNG", compress_level=4)
    data = base64.b64encode(file.getvalue()).decode()
    alt = escape(caption, quote=True)
    size = f'width="{picture.shape[1]}" height="{picture.shape[0]}"'
    return (
        f'<figure class="{escape(kind, quote=True)}"><img alt="{alt}" {size} src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def scene_html(scene: Scene) -> str:
    """A scene and its controls: what is shown, what the implant is coloured by, the slice, the trajectory, the view."""
    shows = [_check("surface", n, s.name, s.shown, _hex(s.shape.colour)) for n, s in enumerate(scene.surfaces)]
    shows += [_check("cloud", n, c.name, c.shown, _hex(c.colour)) for n, c in enumerate(scene.clouds)]
    groups = [f'<fieldset><legend>Show</legend><div class="row">{"".join(shows)}</div></fieldset>']
    fields = [field for surface in scene.surfaces for field in surface.fields]
    if fields:
        options = "".join(  # whoever gives the truth wants to see the error
            f'<option value="{escape(f.name)}"{" selected" if f.name == "error" else ""}>{escape(f.title)}</option>'
            for f in fields
        )
        groups.append(
            '<fieldset><legend>Colour the implant by</legend><select data-control="field" aria-label="colour by">'
            f'<option value="">nothing</option>{options}</select></fieldset>'
        )
    groups.append(
        '<fieldset><legend>Slice</legend><select data-control="slice" aria-label="slice"><option>off</option>'
        "<option>axial</option><option>coronal</option><option>sagittal</option></select>"
        '<div class="slicing" hidden><input type="range" data-control="at" step="0.5" aria-label="place of the slice">'
        '<label><input type="checkbox" data-control="other"> other half</label></div></fieldset>'
    )
    moving = next((cloud for cloud in scene.clouds if len(cloud.frames) > 1), None)
    if moving is not None:
        groups.append(
            f'<fieldset><legend>Diffusion</legend><input type="range" data-control="frame" min="0" '
            f'max="{len(moving.frames) - 1}" value="0" step="1" aria-label="step of the diffusion">'
            f'<output class="caption">{escape(moving.captions[0])}</output></fieldset>'
        )
    names = ("front", "back", "left", "right", "top", "oblique", "inside")
    views = "".join(f'<button type="button" data-view="{name}">{name}</button>' for name in names)
    groups.append(f'<fieldset><legend>Look from</legend><div class="row">{views}</div></fieldset>')
    data = json.dumps(_scene_data(scene), allow_nan=False).replace("<", "\\u003c")
    return (
        f'<div class="scene"><div class="plot" role="img" aria-label="3D view"></div>'
        f'<div class="controls">{"".join(groups)}</div><p class="hint">Drag turns, the wheel zooms, the right button '
        f"shifts. R, L, A, P, S, I: the patient's right, left, front, back, top, bottom.</p>"
        f'<script type="application/json">{data}</script></div>'
    )


def _scene_data(scene: Scene) -> dict[str, Any]:
    low, high = bounds([surface.shape for surface in scene.surfaces])
    implant = scene.surface("implant") or scene.surfaces[-1]
    focus = implant.shape.vertices.mean(axis=0)
    outward = facing(scene.surfaces[0].shape, implant.shape)
    view = slanted(outward)
    rounded = {"low": low, "high": high, "focus": focus, "outward": outward, "view": view}
    return {name: [round(float(value), 4) for value in values] for name, values in rounded.items()} | {
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
    """Little-endian numbers in base64, for a typed array."""
    return {"type": kind, "data": base64.b64encode(np.ascontiguousarray(values, f"<{kind}").tobytes()).decode()}


def _check(control: str, number: int, name: str, on: bool, colour: str) -> str:
    checked = " checked" if on else ""
    return (
        f'<label><input type="checkbox" data-control="{control}" value="{number}"{checked}>'
        f'<span class="swatch" style="background:{colour}"></span>{escape(name)}</label>'
    )


def _hex(colour: Any) -> str:
    """Linear RGB, one colour or the mean of many -> #rrggbb."""
    mean = np.asarray(colour, float).reshape(-1, 3).mean(axis=0)
    return "#" + "".join(f"{round(255 * float(value)):02x}" for value in srgb(mean))


def _asset(name: str) -> str:
    return (resources.files("pcdiff.report") / "web" / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()
