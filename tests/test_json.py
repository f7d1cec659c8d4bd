"""`--json`: one line of JSON on stdout and nothing else there; `pcdiff info` without a scan; `-v`, `-i`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from stub_method import Run, Stub

import pcdiff
from pcdiff.cli.batch import result_line
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import write_volume
from pcdiff.methods.registry import METHODS
from pcdiff.pipeline.record import read_record
from pcdiff.pipeline.stages import STAGES

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def lines(printed: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed.splitlines()]


def test_info_without_a_scan_says_what_is_here(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    extras = PROJECT["optional-dependencies"].items()
    required = [f"{text}; extra == '{extra}'" for extra, texts in extras for text in texts]
    required = ["numpy; extra == 'open3d'" if "open3d" in text else text for text in required]
    required = ["no-such-package; extra == 'triton'" if "triton" in text else text for text in required]
    monkeypatch.setattr(metadata, "requires", lambda name: required)
    code, printed, _ = run("info", "--json")
    (found,) = lines(printed)
    assert code == 0
    assert found["pcdiff"] == pcdiff.__version__
    assert found["methods"].keys() >= METHODS.keys()
    assert found["methods"]["unet"]["ready"] is True
    assert found["methods"]["paper"]["ready"] is False
    assert "import-checkpoint" in found["methods"]["paper"]["needs"]
    assert [stage["title"] for stage in found["stages"]] == [stage.title for stage in STAGES.values()]
    assert found["extras"]["open3d"] is True
    assert found["extras"]["triton"] is False
    assert found["devices"]["cpu_cores"] >= 1
    assert found["weights"]["unet.safetensors"]["as_shipped"] is True
    code, printed, _ = run("info")
    assert code == 0
    assert "method unet (default): ready" in printed


def test_info_without_a_scan_loads_no_torch() -> None:
    code = (
        "import sys\nfrom pcdiff.cli import main\ntry:\n    main(['info', '--json'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_info_of_a_scan(run: Run, skull: Path, healthy: Volume, tmp_path: Path) -> None:
    code, printed, _ = run("info", skull, "--json")
    (found,) = lines(printed)
    assert code == 0
    assert found["kind"] == "mask"
    assert found["why_none"] is None
    assert [(each["label"], each["doubtful"]) for each in found["defects"]] == [(1, False)]
    write_volume(healthy, tmp_path / "whole.nrrd")
    code, printed, error = run("info", tmp_path / "whole.nrrd", "--json")
    assert code == 2
    assert lines(printed)[0]["defects"] == []
    assert "no defect found" in lines(printed)[0]["why_none"]
    assert error.count("\n") == 1


def test_design_prints_a_record_for_each_case(run: Run, stub: Stub, skull: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    broken = tmp_path / "broken.nrrd"
    broken.write_text("no image")
    code, printed, _ = run("design", "-i", skull, "-i", broken, "-o", out, "--no-report", "--json", "-q")
    assert code == 2
    failed, designed = sorted(lines(printed), key=lambda line: "case" in line)
    assert failed.keys() == {"input", "error", "exit_code"}
    assert failed["input"] == {"path": "broken.nrrd"}
    assert failed["exit_code"] == 2
    assert designed["case"] == "head"
    assert designed["folder"] == str(out / "head")
    assert designed["settings"]["device"] == "cpu"  # `auto` says what it became
    record = read_record(out / "head")
    assert record
    assert {key: designed[key] for key in record if key != "files"} == {
        key: value for key, value in record.items() if key != "files"
    }
    code, printed, error = run("design", skull, "-o", out, "--no-report", "--json")
    assert code == 0
    assert lines(printed)[0]["implant_ml"] == record["implant_ml"]
    assert "already designed" in error


def test_design_without_a_scan(run: Run, tmp_path: Path) -> None:
    code, printed, error = run("design", "-o", tmp_path / "out")
    assert (code, printed) == (2, "")
    assert "expected a scan, got none" in error


def test_a_verbose_design_names_each_stage(run: Run, stub: Stub, skull: Path, tmp_path: Path) -> None:
    code, printed, error = run("design", skull, "-o", tmp_path / "out", "--no-report", "-v")
    assert code == 0
    assert len(printed.splitlines()) == 1
    assert "device cpu, seed 0" in error
    assert re.search(r"head: +\d+\.\d s +fitting the shape model\n", error)


def test_a_result_names_drain_holes_and_what_was_trimmed() -> None:
    record: dict[str, Any] = {
        "defects": 1,
        "pieces": [{"ml": 20.0}],
        "members_ml": [20.0],
        "implant_ml": 20.0,
        "left_open": [],
    }
    record |= {"seconds": {"total": 3.0}, "checks": {"failed": {}}, "unusual_head": False}
    plain = result_line(record | {"fitting": {"trimmed_ml": 0.0, "drain_holes": 0}})
    assert "hole" not in plain
    assert "trimmed" not in plain
    line = result_line(record | {"fitting": {"trimmed_ml": 0.254, "drain_holes": 7}})
    assert "7 drain holes, 0.25 ml of undercuts trimmed" in line


def test_check_and_simulate(run: Run, case: tuple[Volume, Volume], healthy: Volume, tmp_path: Path) -> None:
    for name, volume in (("skull", case[0]), ("implant", case[1]), ("whole", healthy)):
        write_volume(volume, tmp_path / f"{name}.nrrd")
    code, printed, _ = run("check", tmp_path / "implant.nrrd", "--skull", tmp_path / "skull.nrrd", "--json")
    (found,) = lines(printed)
    assert code == (0 if found["passed"] else 1)
    assert "complete" in {check["name"] for check in found["checks"]}
    code, printed, _ = run("simulate", tmp_path / "whole.nrrd", "-o", tmp_path / "cut", "--json")
    (found,) = lines(printed)
    assert code == 0
    assert found["folder"] == str(tmp_path / "cut")
    assert found["implant_ml"] > 1


def test_doctor_and_datasets(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pcdiff.cli.doctor.examine", lambda try_it: iter([]))
    assert run("doctor", "--json") == (0, '{"problems": 0, "findings": []}\n', "")
    (found,) = lines(run("datasets", "--json")[1])
    assert "skullfix" in found["layouts"]


def test_score_and_compare(run: Run, case: tuple[Volume, Volume], tmp_path: Path) -> None:
    for name in ("001", "002"):
        for folder, volume in (("defective_skull", case[0]), ("implant", case[1])):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            write_volume(volume, tmp_path / "data" / folder / f"{name}.nrrd")
    truth = tmp_path / "data"
    (counted,) = lines(run("datasets", truth, "--json")[1])
    assert counted["contents"][0]["cases"] == 2
    for name in ("one", "two"):
        code, printed, _ = run(
            *("score", truth / "implant", "--truth", truth, "--name", name, "-o", tmp_path / name, "--json")
        )
        (found,) = lines(printed)
        assert code == 0
        assert [row["dsc"] for row in found["rows"]] == [1, 1]
    files = [tmp_path / name / "results.json" for name in ("one", "two")]
    code, printed, _ = run("compare", *files, "-o", tmp_path / "compared", "--json")
    (found,) = lines(printed)
    assert code == 0
    assert found["methods"] == ["one", "two"]
    assert found["metrics"]["dsc"]["scores"]["one"]["mean"] == 1
