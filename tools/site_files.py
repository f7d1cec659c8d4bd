"""A hook of mkdocs: the site gets the repository's own folders, so links between documents hold in both.

mkdocs reads one folder of documents; README.md, MODEL_CARD.md and others lie outside of docs/. Notebooks become pages.
"""

import json
import os
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
WORKER = "https://unpkg.com/iframe-worker/shim"  # what the theme would load where no worker may start
OUTSIDE = (
    "*.md",
    "LICENSE",
    "CITATION.cff",
    "environment.yml",
    "Dockerfile",
    "pcdiff/weights/LICENSE",
    "tools/slicer/README.md",
)


class Notebook(File):
    """A notebook as a page: its text, and its code in blocks. Notebooks are kept without outputs."""

    def is_documentation_page(self) -> bool:
        """What mkdocs asks before it makes a page of a file."""
        return True

    @property
    def content_string(self) -> str:
        """The notebook as Markdown."""
        cells = json.loads((ROOT / self.src_uri).read_text("utf-8"))["cells"]
        marks = {"code": "```python\n{}\n```", "markdown": "{}"}
        parts = [marks[cell["cell_type"]].format("".join(cell["source"])) for cell in cells]
        return "\n\n".join([*parts, f"*This page is the notebook `{self.src_uri}` of the repository.*", ""])


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Replaces the files of docs/ by the same files, and those of OUTSIDE, under their paths in the repository."""
    theme = [file for file in files if file.src_dir != config.docs_dir]
    found = [path for pattern in (*OUTSIDE, "docs/**/*") for path in sorted(ROOT.glob(pattern)) if path.is_file()]
    kinds = {".ipynb": Notebook}
    own = [
        kinds.get(path.suffix, File)(
            path.relative_to(ROOT).as_posix(), str(ROOT), config.site_dir, config.use_directory_urls
        )
        for path in found
    ]
    return Files([*theme, *own])


def on_post_build(config: MkDocsConfig) -> None:
    """Makes each page take the search's helper from the site itself: no page asks the network for anything."""
    site = Path(config.site_dir)
    for page in site.rglob("*.html"):
        own = os.path.relpath(site / "docs" / "site" / "worker.js", page.parent)
        page.write_text(page.read_text("utf-8").replace(WORKER, Path(own).as_posix()), "utf-8")
