"""docs/first_use.sh: from an installation to a printed plan, with five commands at most, on a CT of a phantom."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from phantom import SECRETS, head_ct, write_dicom
from test_pdf import CHROMIUM, page_boxes

from pcdiff.geometry.mesh import read_stl
from pcdiff.geometry.metrics import dice
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "docs" / "first_use.sh"
PREPARATION = re.compile(r"(#.*|set -eu|dicom=\$1 out=\$2|shift 2|)")
PROGRAM = re.compile(r"python3 |\.venv/bin/(pip|pcdiff) ")


def program(path: Path, *lines: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


def test_it_has_five_commands_at_most() -> None:
    commands = [line for line in SCRIPT.read_text().splitlines() if not PREPARATION.fullmatch(line)]
    assert all(PROGRAM.match(command) for command in commands)
    assert sum(" install " in command for command in commands) == 1
    assert len(commands) <= 5


@pytest.mark.timeout(300)  # reads a CT twice, designs and prints, each in a process of its own
@pytest.mark.skipif(sys.platform == "win32", reason="needs sh")
def test_one_dicom_folder_becomes_a_printed_plan(case: tuple[Volume, Volume], tmp_path: Path) -> None:
    hu, head = head_ct(case[0])
    write_dicom(tmp_path / "dicom", hu, head.affine)
    # The environment that the script makes is the one that runs this test.
    programs = tmp_path / "programs"
    program(programs / "pip", f'echo "$@" >"{tmp_path}/installed"')
    program(programs / "pcdiff", f'exec "{sys.executable}" -m pcdiff "$@"')
    program(programs / "python3", f'mkdir -p "$3/bin" && cp "{programs}/pip" "{programs}/pcdiff" "$3/bin"')
    paths = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["sh", SCRIPT, "dicom", "out"],
        cwd=tmp_path,
        env=os.environ | paths,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (tmp_path / "installed").read_text() == "install .\n"
    folder = tmp_path / "out" / "dicom"
    if CHROMIUM is None:  # the report is there, and the last line says what to do with it
        assert done.returncode == 2
        assert done.stderr.rstrip().endswith("open out/dicom/report.html in any browser and print it to PDF")
    else:
        assert done.returncode == 0, done.stderr
        assert set(page_boxes(tmp_path / "out" / "plan.pdf")) == {(595, 842)}
    assert re.search(r"defect 1: .*\bcm2\b", done.stdout), done.stdout
    assert {"implant.nrrd", "implant.stl", "report.html", "preview.png", "checks.json", "run.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert read_stl(folder / "implant.stl").is_watertight
    implant, truth = read_volume(folder / "implant.nrrd"), case[1]
    offset = np.rint(head.to_index(truth.to_mm(np.zeros(3)))).astype(int)
    true = np.zeros_like(implant.mask)
    true[tuple(slice(at, at + n) for at, n in zip(offset, truth.mask.shape, strict=True))] = truth.mask
    assert dice(implant.mask, true) > 0.8
    said = done.stdout + done.stderr + (folder / "report.html").read_text() + (folder / "run.json").read_text()
    assert not [name for name, value in SECRETS.items() if value in said]
