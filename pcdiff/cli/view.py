"""Looking at a case: in a window where there is one, else as a page or a picture of the same scene."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pcdiff.design.record import case_record, case_skull, renew_record
from pcdiff.report import window
from pcdiff.report.gallery import scene_picture
from pcdiff.report.html import write_scene
from pcdiff.report.render import write_png
from pcdiff.report.scene import case_scene

PAGE = "view.html"


def look(
    case: Path,
    skull: Path | None = None,
    truth: Path | None = None,
    html: Path | None = None,
    png: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Path]:
    """Shows a case folder and yields each file that was written.

    skull: where it has moved since; truth: the true implant. With neither `html` nor `png` a window opens, or, where
    there is none, which `say` is told of, the page is written into the case folder. Raises InputError for a folder
    that is none of a case, and files that cannot be read or written.
    """
    record = case_record(case)
    scene = case_scene(case, case_skull(case, record, skull), truth)
    if html is None and png is None:
        hindrance = window.show(scene, f"pcdiff: {scene.title}")
        if hindrance is None:
            return
        say(hindrance)
        html = case / PAGE
        write_scene(scene, html)
        renew_record(case, record, [PAGE])
        yield html
    elif html is not None:
        write_scene(scene, html)
        yield html
    if png is not None:
        write_png(scene_picture(scene), png)
        yield png
