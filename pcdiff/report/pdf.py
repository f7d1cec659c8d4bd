"""A page as PDF on A4, printed by a browser that is installed already: without scripts, and nothing is loaded.

The page is printed from a copy with one more policy, which forbids scripts, and the size of the paper.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from pcdiff.errors import InputError
from pcdiff.files import written_beside

ON_PATH = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
MACOS = ("Google Chrome", "Chromium", "Microsoft Edge")
WINDOWS = ("Google/Chrome/Application/chrome.exe", "Microsoft/Edge/Application/msedge.exe")
SECONDS = 120  # to print; a report takes 5
PAPER = (
    '<meta http-equiv="Content-Security-Policy" content="script-src \'none\'"><style>@page { size: A4; }</style></head>'
)
OPTIONS = (
    *("--headless=new", "--disable-gpu", "--no-first-run", "--no-pdf-header-footer", "--disable-extensions"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no name of a host leads anywhere
)


def print_pdf(page: Path, path: Path) -> None:
    """Prints a page that `page.write_page` wrote.

    Args:
        page: the HTML file.
        path: the PDF to write.

    Raises:
        InputError: see `find_browser`; a browser that fails or takes more than SECONDS, a file that cannot be written.
    """
    browser, by_hand = find_browser(page, path), _by_hand(page)
    # The folder is beside the file: a browser that is packed as a snap sees no other temporary folder.
    with (
        written_beside(path) as part,
        TemporaryDirectory(prefix="pcdiff-", dir=path.parent, ignore_cleanup_errors=True) as name,
    ):
        folder = Path(name).resolve()
        copy, printed = folder / "page.html", folder / "page.pdf"
        copy.write_text(page.read_text("utf-8").replace("</head>", PAPER, 1), "utf-8")
        command = [browser, *OPTIONS, f"--user-data-dir={folder / 'profile'}", f"--print-to-pdf={printed}"]
        if sys.platform != "win32" and os.geteuid() == 0:
            command.append("--no-sandbox")  # Chromium has none for root, and refuses to start
        try:
            done = subprocess.run(
                [*command, copy.as_uri()], stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False
            )
            reason = f"exit code {done.returncode}"
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = getattr(error, "strerror", None) or f"no PDF after {SECONDS} s"
        if not printed.is_file():
            raise InputError(f"{path}: expected {browser} to print the PDF, got {reason}; {by_hand}")
        shutil.copyfile(printed, part)


def find_browser(page: Path, path: Path) -> str:
    """The program that can print a page to `path`.

    Raises InputError for another suffix than .pdf, a folder that is not there, and where there is no browser.
    """
    if path.suffix.lower() != ".pdf":
        raise InputError(f"{path}: expected a name that ends in .pdf, got {path.suffix or 'none'}; choose such a name")
    if not path.parent.is_dir():
        raise InputError(f"{path}: expected an existing output folder, found none; create {path.parent} first")
    browser = next(_browsers(), None)
    if browser is None:
        raise InputError(
            f"{path}: a PDF needs Chromium, Chrome or Edge, and none was found; install one (pip install playwright && "
            f"playwright install chromium), or {_by_hand(page)}"
        )
    return browser


def _by_hand(page: Path) -> str:
    return f"open {page} in any browser and print it to PDF"


def _browsers() -> Iterator[str]:
    """The programs that can print, the system's before the one that Playwright has downloaded."""
    yield from filter(None, map(shutil.which, ON_PATH))
    homes = [Path(home) for name in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA") if (home := os.getenv(name))]
    places = [home / program for home in homes for program in WINDOWS]
    if sys.platform == "darwin":
        places += [Path(f"/Applications/{name}.app/Contents/MacOS/{name}") for name in MACOS]
    yield from (str(place) for place in places if place.is_file())
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        return
    try:
        with sync_playwright() as play:
            own = play.chromium.executable_path
    except Error:
        return
    if Path(own).is_file():
        yield own
