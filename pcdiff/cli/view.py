"""`pcdiff view`: a case in a window where one can be opened, else as an HTML page, or as a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pcdiff.pipeline.contents import read_contents
from pcdiff.pipeline.record import renew_record
from pcdiff.report import window
from pcdiff.report.case_report import PREVIEW_CAPTION
from pcdiff.report.gallery import case_picture, scene_picture
from pcdiff.report.page import picture_html
from pcdiff.report.render import write_png
from pcdiff.report.scene import case_scene
from pcdiff.report.slices import Slices
from pcdiff.report.viewer import write_scene

PAGE = "view.html"


def show_case(
    case: Path,
    skull: Path | None = None,
    truth: Path | None = None,
    html: Path | None = None,
    png: Path | None = None,
    on_warning: Callable[[str], None] = lambda text: None,
) -> Iterator[Path]:
    """Shows a case folder and yields each file that it wrote.

    Without `html` and `png` a window opens. Where none can be opened, `on_warning` gets the reason in one line and the
    page is written into the case folder.

    Args:
        case: the case folder.
        skull: the defective skull, if it has moved.
        truth: the true implant, a mask or an STL.
        html: page to write instead of opening a window.
        png: picture to write instead of opening a window.
        on_warning: gets one line where no window can be opened.

    Raises:
        InputError: the folder is not a case folder, or a file cannot be read or written.
    """
    contents = read_contents(case, skull, truth)
    scene = case_scene(contents)

    def write_page(path: Path) -> None:
        picture = picture_html(case_picture(scene.skull.shape, scene.implant.shape), PREVIEW_CAPTION)
        write_scene(scene, path, Slices(contents).html(), picture)

    if html is None and png is None:
        obstacle = window.show(scene, f"pcdiff: {scene.title}")
        if obstacle is None:
            return
        on_warning(obstacle)
        html = case / PAGE
        write_page(html)
        renew_record(case, dict(contents.record), [PAGE])
        yield html
    elif html is not None:
        write_page(html)
        yield html
    if png is not None:
        write_png(scene_picture(scene), png)
        yield png
