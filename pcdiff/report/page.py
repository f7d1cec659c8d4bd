"""Self-contained HTML pages: style, scripts and pictures in one file that needs no network."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from importlib import resources
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
from markupsafe import Markup

from pcdiff.errors import InputError
from pcdiff.files import written_beside
from pcdiff.report.templates import fill

MAX_PAGE_BYTES = 15_000_000
SCRIPTS = {
    "scene": "viewer.js",
    "slices": "slices.js",
    "cases": "cases.js",
}  # class: what draws it


def three_js() -> str:
    """three.js with TrackballControls (MIT licence), out of the page that trimesh brings for its own scenes.

    Raises:
        RuntimeError: the installed trimesh brings another page.
    """
    template = _folder_of("trimesh") / "resources" / "templates" / "viewer.zip"
    with template.open("rb") as file, zipfile.ZipFile(file) as archive:
        page = archive.read("viewer.html.template").decode()
    script = page.partition("<script>")[2].partition("(function(){class GLTFLoader")[0]
    if not script.startswith("/**\n * @license") or "THREE.TrackballControls=" not in script:
        raise RuntimeError("expected three.js in the viewer of trimesh (4.12 or later), found none; install it again")
    return script


LIBRARIES = {"scene": three_js}


def write_page(path: Path, title: str, body: Markup, header: str = "") -> None:
    """Writes a page whose content security policy forbids every request and every script but its own.

    Args:
        path: the file.
        title: title of the page, plain text.
        body: what `templates.fill` made.
        header: stands above each printed page, plain text.

    Raises:
        InputError: the page is larger than MAX_PAGE_BYTES, or the file cannot be written.
    """
    drawn = {kind for kind in SCRIPTS if f'class="{kind}"' in body}
    scripts = [LIBRARIES[kind]() for kind in SCRIPTS if kind in drawn and kind in LIBRARIES]
    scripts += [_asset(script) for kind, script in SCRIPTS.items() if kind in drawn]
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts) or "'none'"
    policy = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    ours = {"policy": Markup(policy), "style": Markup(_asset("style.css")), "scripts": list(map(Markup, scripts))}
    data = fill("page.html", title=title, body=body, header=_css_text(header), **ours).encode("utf-8")
    if len(data) > MAX_PAGE_BYTES:
        raise InputError(
            f"{path}: expected a page of at most {MAX_PAGE_BYTES / 1e6:.0f} MB, got {len(data) / 1e6:.1f} MB; "
            "design fewer candidates, or without --keep-points"
        )
    with written_beside(path) as part:
        part.write_bytes(data)


def picture_html(picture: np.ndarray, caption: str, kind: str = "") -> Markup:
    """(H, W, 3) uint8 as a figure with a caption, the PNG embedded. kind: CSS class."""
    from PIL import Image

    file = BytesIO()
    Image.fromarray(picture).save(file, format="PNG", compress_level=4)
    height, width, _ = picture.shape
    data = base64.b64encode(file.getvalue()).decode()
    return fill("figure.html", caption=caption, kind=kind, width=width, height=height, data=data)


def _css_text(text: str) -> Markup:
    """A text as a CSS string within <style>: whatever is no letter, digit or space is written as its number."""
    plain = (
        character if character.isascii() and character.isalnum() else f"\\{ord(character):x} " for character in text
    )
    return Markup('"' + "".join(plain) + '"')


def _folder_of(package: str) -> Path:
    """Where a package is installed; unlike `resources.files` it does not import it, which takes most of a second."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _asset(name: str) -> str:
    return (resources.files("pcdiff.report") / "web" / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()
