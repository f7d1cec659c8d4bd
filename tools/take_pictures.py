#!/usr/bin/env python3
"""Takes the pictures of the documents again, from the synthetic case of `pcdiff demo`, in Chromium.

usage: take_pictures.py [--out docs]

    pcdiff demo -o out/demo
    pcdiff design out/demo/defective_skull.nrrd -o out/ensemble --ensemble 3 --keep-points
    pcdiff report out/demo && python tools/take_pictures.py

Needs playwright (extra `dev`) and Chromium on the PATH. The heads are synthetic: the shape model's samples.
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from pcdiff.cli.view import show_case

DEMO, ENSEMBLE = Path("out/demo"), Path("out/ensemble/defective_skull")
WIDTH = 960
CHROMIUM = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


def main() -> None:
    """Writes demo.png, and four pictures into pictures/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    out = parser.parse_args().out
    shutil.copyfile(DEMO / "preview.png", out / "demo.png")
    with sync_playwright() as play, tempfile.TemporaryDirectory() as name:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)
        error, points = Path(name) / "error.html", Path(name) / "points.html"
        list(show_case(DEMO, truth=DEMO / "implant_true.nrrd", html=error))
        list(show_case(ENSEMBLE, html=points))

        def opened(path: Path) -> Any:
            page = browser.new_page(viewport={"width": WIDTH, "height": 900})
            page.goto(path.resolve().as_uri())
            page.wait_for_selector(".scene[data-drawn]")
            return page

        def take(page: Any, part: str, picture: str) -> None:
            page.wait_for_timeout(1000)  # until the last change is drawn
            page.locator(part).first.screenshot(path=out / "pictures" / picture)

        page = opened(DEMO / "report.html")
        take(page, ".plan", "report.png")
        page.click("button[data-view=inside]")
        take(page, ".interactive", "inside.png")
        page = opened(error)
        take(page, ".scene", "error.png")
        page = opened(points)
        page.uncheck("[data-control=surface][value='1']")
        page.locator("[data-control=frame]").fill("1")
        take(page, ".scene", "diffusion.png")
        browser.close()


if __name__ == "__main__":
    main()
