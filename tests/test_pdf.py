"""A report as PDF: on A4, without scripts and network, by any of the browsers; one line where there is none."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from markupsafe import Markup

from pcdiff.errors import InputError
from pcdiff.report.page import write_page
from pcdiff.report.pdf import print_pdf

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs sh")
Browser = Callable[..., Path]


def page_boxes(pdf: Path) -> list[tuple[int, int]]:
    """Width and height of each page, in points."""
    boxes = re.findall(rb"/MediaBox ?\[0 0 ([\d.]+) ([\d.]+)\]", pdf.read_bytes())
    return [(round(float(width)), round(float(height))) for width, height in boxes]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    write_page(tmp_path / "report.html", "a plan", Markup("<main><h1>Plan</h1></main>"))
    return tmp_path / "report.html"


@pytest.fixture
def browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Browser:
    """Makes a program, the only one on the path, that keeps what it is called with and then does what `lines` say."""

    def make(*lines: str) -> Path:
        programs = tmp_path / "programs"
        programs.mkdir()
        program = programs / "chromium"
        program.write_text("\n".join(["#!/bin/sh", f"printf '%s\\n' \"$@\" >'{tmp_path}/called'", *lines, ""]))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(programs))
        return program

    return make


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_it_is_a4_and_its_scripts_do_not_run(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    policy = re.search(r"script-src '[^']*'", text)
    assert policy is not None
    script = "<script>document.body.innerHTML = '<p style=\"break-after: page\">x</p>'.repeat(9)</script></body>"
    page.write_text(text.replace(policy[0], "script-src 'unsafe-inline'").replace("</body>", script))
    print_pdf(page, tmp_path / "plan.pdf")
    assert page_boxes(tmp_path / "plan.pdf") == [(595, 842)]
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "plan.pdf"}


@POSIX
def test_the_browser_is_told_to_ask_no_network(page: Path, tmp_path: Path, browser: Browser) -> None:
    browser('for word; do case $word in --print-to-pdf=*) printf PDF >"${word#*=}";; esac; done')
    print_pdf(page, tmp_path / "plan.pdf")
    assert (tmp_path / "plan.pdf").read_text() == "PDF"
    called = (tmp_path / "called").read_text().splitlines()
    assert {"--headless=new", "--no-pdf-header-footer", "--host-resolver-rules=MAP * ~NOTFOUND"} <= {*called}
    (profile,) = [Path(word.partition("=")[2]) for word in called if word.startswith("--user-data-dir=")]
    assert profile.parent.parent == tmp_path  # nobody's own, and gone
    assert not profile.parent.exists()


@POSIX
def test_a_browser_that_fails_is_named(page: Path, tmp_path: Path, browser: Browser) -> None:
    program = browser("exit 3")
    with pytest.raises(InputError, match=f"expected {program} to print the PDF, got exit code 3; open {page} in any"):
        print_pdf(page, tmp_path / "plan.pdf")
    assert not (tmp_path / "plan.pdf").exists()


def test_without_a_browser_it_says_what_to_do(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATH", "PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr("pcdiff.report.pdf.MACOS", ())
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    with pytest.raises(InputError, match=f"none was found; install one .*, or open {page} in any browser and print it"):
        print_pdf(page, tmp_path / "plan.pdf")


def test_the_name_says_that_it_is_a_pdf(page: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a name that ends in \.pdf, got \.stl"):
        print_pdf(page, tmp_path / "implant.stl")
