"""Self-contained HTML pages: style, scripts and pictures in one file that needs no network."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib import resources
from io import BytesIO
from pathlib import Path

import numpy as np

from pcdiff.errors import InputError
from pcdiff.files import written_beside

MAX_PAGE_BYTES = 15_000_000


def write_page(path: Path, title: str, body: str) -> None:
    """Writes a page whose content security policy forbids every request and every script but its own two.

    Args:
        path: the file.
        title: title of the page, plain text.
        body: HTML in which all foreign text is escaped.

    Raises:
        InputError: the page is larger than MAX_PAGE_BYTES, or the file cannot be written.
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
    if len(data) > MAX_PAGE_BYTES:
        raise InputError(
            f"{path}: expected a page of at most {MAX_PAGE_BYTES / 1e6:.0f} MB, got {len(data) / 1e6:.1f} MB; "
            "design fewer candidates, or without --keep-points"
        )
    with written_beside(path) as part:
        part.write_bytes(data)


def picture_html(picture: np.ndarray, caption: str, kind: str = "") -> str:
    """(H, W, 3) uint8 as a figure with a caption, the PNG embedded. kind: CSS class."""
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


def _asset(name: str) -> str:
    return (resources.files("pcdiff.report") / "web" / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()
