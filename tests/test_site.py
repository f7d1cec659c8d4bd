"""The site; recipes for conda and containers and files for a public forge, beside pyproject.toml and the Makefile."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = [name.rsplit(" ", 1)[1] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)]
TORCH = next(text.removeprefix("torch") for text in PROJECT["dependencies"] if text.startswith("torch"))
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())


def pages(nav: Any) -> Iterator[str]:
    """The files that a navigation names."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from pages(part)


def runs(job: str) -> list[str]:
    """The commands of a job of the workflow."""
    return [step["run"].split("  #")[0] for step in WORKFLOW["jobs"][job]["steps"] if "run" in step]


def test_the_navigation_has_every_page_once() -> None:
    named = [*pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])]
    found = [path for suffix in ("md", "ipynb") for path in (ROOT / "docs").rglob(f"*.{suffix}")]
    documents = {path.relative_to(ROOT).as_posix() for path in found}
    assert len(named) == len(set(named))
    assert {name for name in named if name.startswith("docs/")} == documents
    assert all((ROOT / name).is_file() for name in named)


def test_the_reference_names_what_import_pcdiff_offers() -> None:
    import pcdiff

    text = (ROOT / "docs" / "site" / "python.md").read_text()
    for name, module in pcdiff._MODULES.items():
        assert f"::: {module}.{name}\n" in text, name


def test_the_site_builds_strictly_and_asks_no_network(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="needs the extra docs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    html = [*tmp_path.rglob("*.html")]
    assert len(html) > 20
    for page in html:
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]* src=\"([^\"]*)\"", page.read_text())
        loaded += re.findall(r"<link[^>]* rel=\"(?:stylesheet|icon|preload)\"[^>]* href=\"([^\"]*)\"", page.read_text())
        assert loaded
        for target in loaded:
            assert not re.match(r"(https?:)?//", target), f"{page.name} loads {target}"
            assert page.name == "404.html" or (page.parent / target).is_file(), f"{page.name} lacks {target}"


def test_conda_has_the_bounds_of_pip() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    wanted = dict(text.split(" ") for text in environment["dependencies"] if isinstance(text, str) and " " in text)
    assert wanted["python"].startswith(PROJECT["requires-python"])
    assert wanted["pytorch-cpu"] == TORCH
    assert {"pip": ["."]} in environment["dependencies"]


def test_the_image_runs_without_rights() -> None:
    lines = [line.split() for line in (ROOT / "Dockerfile").read_text().splitlines() if line and line[0] not in "# "]
    (image,) = [line[1] for line in lines if line[0] == "FROM"]
    assert re.fullmatch(rf"python:({'|'.join(map(re.escape, PYTHONS))})-slim", image)
    copied = [name for line in lines if line[0] == "COPY" for name in line[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    assert {"pyproject.toml", PROJECT["readme"], "LICENSE", "pcdiff", "configs", "docs", "requirements"} == {*copied}
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line[0] == "!"} == {*copied}
    extras = {extra for line in lines for word in line for extra in re.findall(r"/source\[(.*)\]", word)}
    assert extras <= PROJECT["optional-dependencies"].keys()
    orders = [line[0] for line in lines]
    assert next(line[1] for line in lines if line[0] == "USER") != "root"
    assert orders.index("RUN") < orders.index("USER") < orders.index("ENTRYPOINT")
    assert "RUN" not in orders[orders.index("USER") :]


def test_the_forge_runs_what_make_runs() -> None:
    makefile = (ROOT / "Makefile").read_text()
    called = [re.sub(r"\$\(BIN\)/", "", line) for line in re.findall(r"^\t(?:\w+=\w+ )*(\$\(BIN\)/.*)", makefile, re.M)]
    assert len(called) > 8
    assert all(command in called for command in runs("lint")[2:])
    assert runs("docs")[-1] in called
    (pytest_call,) = [command for command in runs("test") if command.startswith("pytest")]
    assert any(command.startswith(pytest_call.split(" -o ")[0]) for command in called)
    for job in WORKFLOW["jobs"]:
        extras = {
            extra
            for command in runs(job)
            for found in re.findall(r"\.\[(.*?)\]", command)
            for extra in found.split(",")
        }
        assert extras
        assert extras <= PROJECT["optional-dependencies"].keys()


def test_the_forge_has_each_python_and_each_system() -> None:
    matrix = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == PYTHONS
    assert [name.split("-")[0] for name in sorted(matrix["os"])] == ["macos", "ubuntu", "windows"]
    systems = [name for name in PROJECT["classifiers"] if name.startswith("Operating System")]
    assert systems == ["Operating System :: POSIX :: Linux"]  # the others when their tests have been seen to pass


def test_the_hooks_are_the_programs_of_this_environment(tmp_path: Path) -> None:
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [part["repo"] for part in repositories] == ["local"]
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "module.py").write_text('"""Sums."""\n\nimport os\n\nTWO = 1+1\n')
    output = {}
    for hook in repositories[0]["hooks"]:
        assert hook["language"] == "system"
        command = [sys.executable, *hook["entry"].split()[1:], "module.py"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        output[hook["id"]] = done.stdout
    assert "F401" in output["ruff-check"]
    assert "TWO = 1 + 1" in (tmp_path / "module.py").read_text()


def test_security_names_files_that_exist() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
    for name in re.findall(r"`((?:pcdiff/)?\w+\.py)`", text):
        assert (ROOT / "pcdiff" / name.removeprefix("pcdiff/")).is_file(), name
