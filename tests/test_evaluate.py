"""Evaluation from file to file, with a small program instead of `pcdiff design`."""

import csv
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pcdiff.data.cases import Case, find_cases
from pcdiff.errors import InputError
from pcdiff.evaluation import runner
from pcdiff.evaluation.measure import _PROGRAM, COMMAND, measure
from pcdiff.evaluation.plan import package_digest
from pcdiff.evaluation.results import Results
from pcdiff.evaluation.rows import Journal, Row
from pcdiff.evaluation.spread import Spread
from pcdiff.evaluation.statistics import paired_differences, summarise
from pcdiff.files import sha256
from pcdiff.geometry.mesh import Mesh, write_stl
from pcdiff.geometry.surface import volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume, write_volume

AFFINE = np.diag([1.0, 2.0, 0.5, 1.0])

# Arguments: SKULL OUT METHOD SEED. The implant of these cases fills i = 4 ... 7 of a completed surface. The method
# "shifted" writes it one voxel further along i, "graded" as many voxels as the case's number, the others in place.
PROGRAM = r"""
import pathlib, sys, time
skull, out, method, seed = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
with open({log!r}, "a") as log:
    log.write(f"{{method}} {{skull.stem}} {{seed}}\n")
if method == "fails" and skull.stem.endswith("001"):
    sys.exit("Traceback ...\n  somewhere\nInputError: no defect found; is it a defective skull?\n")
if method == "silent":
    sys.exit(0)
if method == "refuses":
    print("pcdiff: no defect found", file=sys.stderr)
if method in ("refuses", "refuses without a reason"):
    sys.exit(2)
if method == "meets":  # waits until another process runs at the same time
    for _ in range(600):
        time.sleep(0.05)
        if len(open({log!r}).read().splitlines()) > 1:
            break
    else:
        sys.exit("alone")
if method == "sleeps":
    time.sleep(0.4)
if method == "hangs":
    time.sleep(60)
header, data = skull.read_bytes().split(b"\n\n", 1)
import gzip
size = [int(n) for n in header.split(b"sizes:")[1].split(b"\n")[0].split()]
mask = bytearray(size[0] * size[1] * size[2])
assert len(gzip.decompress(data)) == len(mask)
first = 4 + {{"shifted": 1, "graded": int(skull.stem[-1])}}.get(method, 0)
for k in range(2, 6):
    for j in range(2, 6):
        for i in range(first, first + 4):
            mask[i + size[0] * (j + size[1] * k)] = 1
(out / skull.stem).mkdir(parents=True)
(out / skull.stem / "implant.nrrd").write_bytes(header + b"\n\n" + gzip.compress(bytes(mask), mtime=0))
if method == "checked":
    import json
    passed = {{"complete": True, "thickness": skull.stem.endswith("000"), "fits": skull.stem.endswith("000")}}
    checks = [{{"name": name, "passed": value}} for name, value in passed.items()]
    (out / skull.stem / "checks.json").write_text(json.dumps({{"checks": checks}}))
if method == "ensemble":
    import shutil
    shutil.copytree({members!r}, out / skull.stem / "candidates")
if method == "refuses too late":
    print("no defect found", file=sys.stderr)
    sys.exit(2)
"""


@pytest.fixture
def program(tmp_path):
    """The command with its placeholders; it logs its arguments for `calls`."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.format(log=str(tmp_path / "calls"), members=str(tmp_path / "members")))
    return [sys.executable, "-S", str(path), "{skull}", "{out}", "{method}", "{seed}"]


@pytest.fixture
def calls(tmp_path):
    """A function that returns the method, the case and the seed of every call of the program so far."""
    log = tmp_path / "calls"
    return lambda: log.read_text().splitlines() if log.exists() else []


def evaluate(methods: list[str], cases: list[Case], out: Path, **options) -> Results:
    """Without weights, unless the test gives some."""
    weights = options.pop("weights", {method: {} for method in methods})
    return runner.evaluate(methods, cases, out, weights=weights, **options)


def write_boxes(folder: Path) -> Path:
    """A data set of three complete skulls, which are boxes, and their implants."""
    implant = np.zeros((12, 8, 8), bool)
    implant[4:8, 2:6, 2:6] = True
    complete = implant.copy()
    complete[2:10, 1:7, 2:6] = True
    for name in ("000", "001", "002"):
        for part, mask in (("complete_skull", complete), ("implant", implant)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            write_volume(Volume(mask, AFFINE), folder / part / f"{name}.nrrd")
    return folder


@pytest.fixture
def cases(tmp_path) -> list[Case]:
    return find_cases(write_boxes(tmp_path / "set"))


def test_the_written_files_are_scored(tmp_path, cases, program, calls):
    results = evaluate(["exact", "shifted"], cases[:2], tmp_path / "out", seed=7, command=program, progress=False)
    assert calls() == ["exact 000 7", "exact 001 7", "shifted 000 7", "shifted 001 7"]
    exact, shifted = results.rows[0], results.rows[2]
    assert (exact.method, exact.case, exact.dsc, exact.bdsc, exact.hd95) == ("exact", "000", 1, 1, 0)
    # 64 voxels of 1 mm3 each, a quarter of them moved by 1 mm along i.
    assert shifted.dsc == shifted.bdsc == pytest.approx(0.75)
    assert shifted.hd95 == shifted.hd == pytest.approx(1.0)
    # Of each mask's 56 surface voxels 16 are 1 mm off, and 4, inside the other mask, 0.5 mm along k.
    assert (shifted.masd, shifted.nsd_05mm) == pytest.approx((18 / 56, 40 / 56))
    assert (shifted.nsd_1mm, shifted.volume_error) == (1, 0)
    assert shifted.ml_true == shifted.ml_predicted == pytest.approx(0.064)
    assert shifted.error is None
    assert (exact.error_0_5mm, math.isnan(exact.error_10_20mm)) == (0, True)
    assert exact.truth == shifted.truth == cases[0].load().digest
    assert 0 < shifted.seconds < 10


def test_defective_skull_on_disk_is_used_as_it_is(tmp_path, cases, program, calls):
    skull = tmp_path / "given" / "frontal" / "000.nrrd"
    skull.parent.mkdir(parents=True)
    write_volume(cases[0].load().defective_skull, skull)
    case = Case("frontal/000", None, skull, cases[0].implant)
    whole = Case("frontal/001", cases[1].complete_skull, None, cases[1].implant)
    results = evaluate(["exact"], [case, whole], tmp_path / "out", command=program, progress=False)
    assert calls() == ["exact 000 0", "exact frontal_001 0"]
    assert [row.dsc for row in results.rows] == [1, 1]


def test_a_failure_is_a_row_and_does_not_stop_the_others(tmp_path, cases, program):
    broken = Case("009", cases[0].complete_skull, None, None)
    results = evaluate(["fails", "silent"], [*cases, broken], tmp_path / "out", command=program, progress=False)
    rows = {(row.method, row.case): row for row in results.rows}
    assert len(rows) == 8
    failed = rows["fails", "001"]
    assert failed.error == "InputError: no defect found; is it a defective skull?"
    assert (failed.dsc, failed.bdsc, failed.hd95) == (0, 0, math.inf)
    assert (failed.hd, failed.masd, failed.volume_error) == (math.inf,) * 3
    assert (failed.nsd_05mm, failed.nsd_1mm) == (0, 0)
    assert failed.seconds > 0
    assert rows["fails", "002"].dsc == 1
    assert "expected an image file, found none" in rows["silent", "000"].error
    assert "expected two of" in rows["fails", "009"].error
    summary = results.summary()["fails"]
    assert summary["cases"] == 4
    assert summary["failed"] == ["001", "009"]
    assert summary["mean"]["dsc"] == 0.5
    assert summary["mean"]["hd95"] == math.inf
    assert summary["median"]["dsc"] == 0.5
    assert summary["worst"] == summary["worst"] | {"dsc": 0, "hd95": math.inf}
    assert "failed: fails on 001: InputError: no defect found" in results.table()


def test_a_hanging_case_is_stopped(tmp_path, cases, program):
    row = evaluate(["hangs"], cases[:1], tmp_path / "out", command=program, timeout_s=0.5, progress=False).rows[0]
    assert row.error == "no implant after 0.5 s"
    assert 0.5 <= row.seconds < 5


def test_a_command_that_cannot_start_is_a_row(tmp_path, cases):
    row = evaluate(["x"], cases[:1], tmp_path / "out", command=["/no/such/program"], progress=False).rows[0]
    assert row.error.startswith("could not start /no/such/program: FileNotFoundError")
    assert row.dsc == 0


def test_seconds_are_of_the_process(tmp_path, cases, program):
    quick, slow = evaluate(["exact", "sleeps"], cases[:1], tmp_path / "out", command=program, progress=False).rows
    assert 0.4 <= slow.seconds < 10
    assert quick.seconds > 0


def test_cpu_seconds_are_those_of_the_command():
    work = "import time\nwhile time.process_time() < 0.5: pass"
    for program, low, high in ((work, 0.45, 1.5), ("import time; time.sleep(0.5)", 0.0, 0.4)):
        assert low < measure([sys.executable, "-S", "-c", program], 60).cpu_seconds < high


def test_memory_is_of_the_command_alone():
    here = np.ones(300_000_000, np.uint8)  # the memory of this process must not count
    _, small, _, error, _ = measure([sys.executable, "-S", "-c", "pass"], 60)
    assert error is None
    assert 2 < small < 100
    _, large, _, error, _ = measure([sys.executable, "-S", "-c", "b'x' * 200_000_000"], 60)
    assert error is None
    assert 190 < large - small < 230
    assert here[-1] == 1


@pytest.mark.parametrize("end", ["kill", "end_all"])
def test_no_command_outlives_the_process_that_measures_it(end, tmp_path):
    told = tmp_path / "pid"
    command = f"import os, time; open({str(told)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    program = (
        "import sys, threading, time\nfrom pathlib import Path\n"
        "from pcdiff.evaluation.measure import end_all, measure\n"
        f"threading.Thread(target=measure, args=([sys.executable, '-S', '-c', {command!r}], 60)).start()\n"
        f"while not Path({str(told)!r}).exists(): time.sleep(0.05)\n"
        f"time.sleep(0.2); {'end_all()' if end == 'end_all' else 'time.sleep(60)'}\n"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        while not (told.exists() and told.read_text()):
            time.sleep(0.05)
        if end == "kill":
            parent.kill()
        assert parent.wait(20) == (-9 if end == "kill" else 0)
    began = time.monotonic()
    while is_running(int(told.read_text())) and time.monotonic() - began < 10:
        time.sleep(0.05)
    assert not is_running(int(told.read_text()))


def is_running(number: int) -> bool:
    """Whether a process is there and no zombie."""
    state = Path(f"/proc/{number}/stat")
    try:
        return state.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_command_reports_the_signal():
    _, _, code, error, _ = measure([sys.executable, "-S", "-c", "import os; os.kill(os.getpid(), 15)"], 60)
    assert code == -15
    assert error == "killed by SIGTERM: nothing on stderr"


def test_the_timer_does_not_end_what_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    often = _PROGRAM.replace("min(limit, 0.5), 0.5", "0.01, 0.0003")  # alarms while its interpreter ends
    assert often != _PROGRAM
    monkeypatch.setattr("pcdiff.evaluation.measure._PROGRAM", often)
    assert {measure([sys.executable, "-S", "-c", "pass"], 60).error for _ in range(10)} == {None}


def test_rows_are_reused_and_only_missing_ones_run(tmp_path, cases, program, calls):
    out = tmp_path / "out"
    first = evaluate(["exact"], cases[:2], out, command=program, progress=False)
    again = evaluate(["exact", "fails"], cases, out, command=program, progress=False)
    assert calls()[2:] == ["exact 002 0", "fails 000 0", "fails 001 0", "fails 002 0"]
    assert [row.seconds for row in again.rows[:2]] == [row.seconds for row in first.rows]
    evaluate(["exact", "fails"], cases, out, command=program, progress=False)
    assert calls()[6:] == ["fails 001 0"]  # a failure is tried again
    # another seed, another command, or other files need a new run
    evaluate(["exact"], cases[:1], out, seed=1, command=program, progress=False)
    evaluate(["exact"], cases[:1], out, command=[*program, "--more"], progress=False)
    truth = cases[0].load().implant
    write_volume(truth.with_mask(np.roll(truth.mask, 1, 1)), tmp_path / "other.nrrd")
    other = Case("000", cases[0].complete_skull, None, tmp_path / "other.nrrd")
    evaluate(["exact"], [other], out, command=program, progress=False)
    assert calls()[7:] == ["exact 000 1", "exact 000 0", "exact 000 0"]


def test_figures_do_not_outlive_their_weights(tmp_path, cases, program, calls):
    own, prior, other = (tmp_path / "own" / f"{name}.safetensors" for name in ("denoiser", "prior", "occupancy"))
    own.parent.mkdir()
    command = [*program, "--weights", str(own)]
    for path, content in ((own, b"1"), (own, b"1"), (own, b"2"), (prior, b"1"), (prior, b"2"), (other, b"1")):
        path.write_bytes(content)
        weights = {"exact": {file.name: sha256(file) for file in (own, prior, other) if file.is_file()}}
        evaluate(["exact"], cases[:1], tmp_path / "out", command=command, progress=False, weights=weights)
    assert len(calls()) == 5


def test_the_fingerprint_covers_the_whole_package(tmp_path, monkeypatch):
    monkeypatch.setattr("pcdiff.evaluation.plan.resources.files", lambda name: tmp_path / name)
    (tmp_path / "pcdiff" / "methods").mkdir(parents=True)
    digests = set()
    for name, content in (("errors.py", "1"), ("methods/mirror.py", "1"), ("methods/mirror.py", "2"), ("a.md", "1")):
        (tmp_path / "pcdiff" / name).write_text(content)
        digests.add(package_digest())
    assert len(digests) == 3


def test_a_method_without_weights_must_be_named(tmp_path, cases, program):
    with pytest.raises(KeyError, match="exact"):
        evaluate(["exact"], cases, tmp_path / "out", command=program, progress=False, weights={})


def test_each_kind_of_case_has_its_own_summary(tmp_path, cases, program):
    kinds = [replace(case, name=f"{kind}/{case.name}") for kind, case in zip(("a", "a", "b"), cases, strict=True)]
    results = evaluate(["exact", "fails"], kinds, tmp_path / "out", command=program, progress=False)
    assert results.kinds == ["a", "b"]
    assert results.summary("a")["fails"]["mean"]["dsc"] == 0.5
    assert results.summary("b")["fails"]["mean"]["dsc"] == 1
    assert any(line.startswith("| fails | **a**, mean of 2 | 0.5000 |") for line in results.table().splitlines())
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["kinds"]["a"]["fails"]["mean"]["dsc"] == 0.5
    assert not evaluate(["exact"], cases, tmp_path / "plain", command=program, progress=False).kinds


def test_implants_that_pass_every_check_are_counted(tmp_path, cases, program):
    results = evaluate(["checked", "exact"], cases, tmp_path / "out", command=program, progress=False)
    assert [row.failed_checks for row in results.rows] == ["", *2 * ["thickness fits"], None, None, None]
    summary = results.record()["summary"]
    assert [(summary[name]["passed"], summary[name]["checked"]) for name in ("checked", "exact")] == [(1, 3), (0, 0)]
    table = results.table().splitlines()
    assert "pass every check: checked on all cases: 1 of 3" in table
    assert "checks failed: checked on 001: thickness fits" in table
    assert not any("check: exact" in line for line in table)


def test_the_criteria_of_the_challenge_are_shares_of_implants_that_pass() -> None:
    criteria = ("complete", "no_false_positive_area", "fit", "feasible")

    def shares(**values) -> list[float]:
        row = Row("000", "a", 0, **values)
        return [getattr(row, name) for name in criteria]

    assert shares(failed_checks="") == [1, 1, 1, 1]
    assert shares(failed_checks="thickness") == [1, 1, 1, 0]
    assert shares(failed_checks="complete no_false_positive_area") == [0, 0, 1, 0]
    for name in ("implantable", "smooth_transition", "clearance"):
        assert shares(failed_checks=name) == [1, 1, 0, 0]
    assert shares(error="why") == [0, 0, 0, 0]
    assert all(map(math.isnan, shares()))  # not checked
    rows = [Row(f"00{n}", "a", 0, failed_checks=failed) for n, failed in enumerate(["", "", "printable"])]
    mean = summarise([*rows, Row("003", "a", 0, error="why")])["a"]["mean"]
    assert [mean[name] for name in criteria] == [0.75, 0.75, 0.75, 0.5]


def test_a_skull_with_several_defects_counts_once_in_a_difference() -> None:
    def rows(method: str, scores: dict[str, float]) -> list[Row]:
        return [Row(case, method, 0, dsc=dsc, bdsc=1, hd95=2 - dsc) for case, dsc in scores.items()]

    reference = rows("a", {"own/000": 0.5, "bilateral/000": 0.5, "own/001": 0.5, "own/002": 0.5})
    other = rows("b", {"own/000": 0.9, "bilateral/000": 0.7, "own/001": 0.4, "own/003": 0.9})
    found = paired_differences([*reference, *other, replace(other[0], case="whole/009", refusal=True)], "b", "a")
    dsc = found["dsc"]  # of skulls 000 (+0.3, the mean of two) and 001 (-0.1)
    assert (dsc.mean, dsc.standard_error) == pytest.approx((0.1, 0.2))
    assert (dsc.better, dsc.skulls) == (1, 2)
    assert found["hd95"].mean == pytest.approx(-0.1)
    assert found["hd95"].better == 1
    assert math.isnan(paired_differences(reference[:1] + other[:1], "b", "a")["dsc"].standard_error)
    assert not paired_differences(reference, "b", "a")


def test_the_table_gives_differences_to_the_first_method(tmp_path, cases, program):
    table = evaluate(["exact", "shifted"], cases[:2], tmp_path / "out", command=program, progress=False).table()
    line = next(line for line in table.splitlines() if line.startswith("shifted minus exact: "))
    assert line.startswith("shifted minus exact: DSC -0.2500 ± 0.0000 (0 of 2 better), bDSC -0.2500")
    assert line.endswith("HD95 mm +1.00 ± 0.00 (0 of 2 better)")


def test_braces_in_a_path_are_no_placeholders(tmp_path, cases, program):
    command = [*program, "w{x}/{seed"]
    assert evaluate(["exact"], cases[:1], tmp_path / "out", command=command, progress=False).rows[0].dsc == 1


def test_a_row_cut_short_by_a_crash_runs_again(tmp_path, cases, program, calls):
    out = tmp_path / "out"
    evaluate(["exact"], cases, out, command=program, progress=False)
    whole = (out / "rows.jsonl").read_text()
    (out / "rows.jsonl").write_text(whole[:-30])
    results = evaluate(["exact"], cases, out, command=program, progress=False)
    assert calls()[3:] == ["exact 002 0"]
    assert [row.dsc for row in results.rows] == [1, 1, 1]
    evaluate(["exact"], cases, out, command=program, progress=False)
    assert len(calls()) == 4


def test_written_results(tmp_path, cases, program):
    results = evaluate(["shifted", "fails"], cases[:2], tmp_path / "out", command=program, progress=False)
    report = json.loads((tmp_path / "out" / "results.json").read_text(), parse_constant=pytest.fail)
    assert report["summary"]["shifted"]["mean"]["dsc"] == pytest.approx(0.75)
    assert report["rows"][3]["hd95"] is None
    assert report["rows"][3]["case"] == "001"
    assert {"pcdiff", "platform", "cpu_count", "date"} <= report.keys()
    assert report["weights"] == {"shifted": {}, "fails": {}}
    assert report == json.loads(json.dumps(results.record()))
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["000", "001", "000", "001"]
    assert float(rows[0]["dsc"]) == results.rows[0].dsc
    assert float(rows[3]["hd95"]) == math.inf
    table = results.table().splitlines()
    assert {line.count("|") for line in table if line.startswith("|")} == {22}
    assert re.match(
        r"\| shifted \| 000 \| 0\.7500 \| 0\.7500 \| 1\.00 \| 1\.00 \| 0\.321 \| 0\.7143 \| 1\.0000 \| 0\.0 \|"
        r"  \|  \|  \|  \|  \|  \|  \| \d+\.\d \| \d+ \| 0\.1 \| 0\.1 \|",
        table[2],
    )
    assert any(re.match(r"\| \*\*fails\*\* \| \*\*mean\*\* of 2 \| 0\.5000 \| 0\.5000 \| inf ", line) for line in table)


@pytest.fixture
def whole(tmp_path, cases) -> Case:
    """A skull without a defect."""
    (tmp_path / "whole").mkdir()
    write_volume(cases[0].load().complete_skull, tmp_path / "whole" / "001.nrrd")
    return Case("no_defect/001", None, tmp_path / "whole" / "001.nrrd", None, refusal=True)


def test_a_skull_without_a_defect_must_be_refused(tmp_path, cases, program, calls, whole):
    run = partial(evaluate, ["refuses"], [whole], tmp_path / "out", command=program, progress=False)
    results = run()
    (row,) = results.rows
    assert row.refusal
    assert row.error is None
    assert row.reason == "pcdiff: no defect found"
    assert all(math.isnan(value) for value in (row.dsc, row.bdsc, row.hd95, row.masd, row.nsd_1mm, row.volume_error))
    assert row.seconds > 0
    assert results.summary()["refuses"].items() >= {"cases": 0, "failed": [], "refusals": 1, "refused": 1}.items()
    assert "correctly refused: refuses on no_defect: 1 of 1" in results.table()
    assert "of 0" not in results.table()
    (again,) = run().rows
    assert len(calls()) == 1
    assert math.isnan(again.hd95)
    (refused,) = evaluate(["refuses"], cases[:1], tmp_path / "defect", command=program, progress=False).rows
    assert not refused.refusal
    assert refused.error == "pcdiff: no defect found"
    assert refused.dsc == 0


@pytest.mark.parametrize(
    ("method", "got"),
    [
        ("exact", "exit code 0 and an implant: nothing"),
        ("silent", "exit code 0: nothing"),
        ("fails", "exit code 1: InputError: no defect found"),
        ("refuses too late", "exit code 2 and an implant: no defect found"),
        ("refuses without a reason", "exit code 2: nothing"),
    ],
)
def test_anything_but_a_refusal_is_a_failure(tmp_path, cases, program, whole, method, got):
    results = evaluate([method], [cases[0], whole], tmp_path / "out", command=program, progress=False)
    assert f"no implant), got {got}" in results.rows[1].error
    assert results.rows[1].reason is None
    summary = results.summary()[method]
    assert summary["cases"] == 1
    assert summary["refusals"] == 1
    assert summary["refused"] == 0
    table = results.table()
    assert f"failed: {method} on no_defect/001: " in table
    assert f"correctly refused: {method} on no_defect: 0 of 1" in table


def test_a_row_is_reused_only_with_its_implant(tmp_path, cases, program, calls):
    run = partial(evaluate, ["exact"], cases[:1], tmp_path / "out", command=program, progress=False)
    (row,) = run().rows
    kept = tmp_path / "out" / "implants" / "exact" / "000.nrrd"
    assert row.implant == sha256(kept)
    assert np.array_equal(read_volume(kept).mask, cases[0].load().implant.mask)
    kept.write_bytes(b"of another run")
    run()
    assert len(calls()) == 2
    assert row.implant == sha256(kept)


def test_maps_of_best_median_and_worst(tmp_path, cases, program):
    kinds = [replace(case, name=f"own/{case.name}") for case in reversed(cases)]
    evaluate(["graded"], kinds, tmp_path / "out", command=program, progress=False)
    maps = tmp_path / "out" / "error_maps"
    names = {"graded-best-own-000.png", "graded-median-own-001.png", "graded-worst-own-002.png"}
    assert {path.name for path in maps.iterdir()} == names
    assert len({path.read_bytes() for path in maps.iterdir()}) == 3
    evaluate(["silent"], kinds, tmp_path / "out", command=program, progress=False)
    assert not list(maps.iterdir())  # a case without an implant has none


def test_the_candidates_on_disk_give_the_spread(tmp_path, cases, program, monkeypatch):
    implant = cases[0].load().implant
    (tmp_path / "members").mkdir()
    for k, longer in enumerate((0, 1, 2), 1):
        mask = implant.mask.copy()
        mask[8 : 8 + longer] = mask[7]
        write_stl(volume_to_mesh(implant.with_mask(mask), smooth=False), tmp_path / "members" / f"implant_{k}.stl")

    def longest(implant: Volume, members: list[Mesh], truth: Volume, skull: Volume) -> Spread:
        return Spread(float(sum(np.ptp(member.vertices[:, 0]) for member in members)), 0.5, 1.0)

    monkeypatch.setattr("pcdiff.evaluation.scoring.compare_spread", longest)  # these implants are too small
    results = evaluate(["exact", "ensemble"], cases[:1], tmp_path / "out", command=program, progress=False)
    assert [row.spread_error for row in results.rows] == [0, pytest.approx(4 + 5 + 6)]
    assert results.summary()["ensemble"]["mean"]["spread_error"] == pytest.approx(15)
    assert results.summary()["ensemble"]["mean"]["within_1sd"] == 0.5


def test_cases_run_side_by_side(tmp_path, cases, program, calls):
    results = evaluate(["meets"], cases[:2], tmp_path / "out", command=program, workers=2, progress=False)
    assert [(row.case, row.error) for row in results.rows] == [("000", None), ("001", None)]
    evaluate(["meets"], cases[:2], tmp_path / "out", command=program, workers=1, progress=False)
    assert len(calls()) == 2  # the rows are reused, and with them the number of processes that ran at once
    assert json.loads((tmp_path / "out" / "results.json").read_text())["workers"] == 2
    evaluate(["exact"], cases[:2], tmp_path / "out", command=program, workers=1, progress=False)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["workers"] == 1


def test_results_name_no_folder_of_this_machine(tmp_path, cases, program):
    command = [*program, "--weights", str(tmp_path / "mine.safetensors")]
    notes = {"ensemble": 5}
    evaluate(["silent"], cases[:1], tmp_path / "out", command=command, notes=notes, progress=False)
    text = (tmp_path / "out" / "results.json").read_text()
    assert json.loads(text)["ensemble"] == 5
    assert "mine.safetensors" in text
    assert "found none" in text
    assert str(tmp_path) not in text
    assert tempfile.gettempdir() not in text
    assert sys.prefix not in text
    evaluate(["silent"], cases[:1], tmp_path / "out", command=[*COMMAND, "--odd"], progress=False)
    command = json.loads((tmp_path / "out" / "results.json").read_text())["command"]
    assert command == "pcdiff design {skull} -o {out} --method {method} --seed {seed} --no-report -q --odd"


def test_no_method_or_no_folder_is_an_input_error(tmp_path, cases):
    with pytest.raises(InputError, match="a method and a case at least"):
        evaluate([], cases, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a folder to write to"):
        evaluate(["prior"], cases, tmp_path / "file")


def test_two_evaluations_do_not_write_into_one_folder(tmp_path, cases):
    tmp_path.joinpath("out").mkdir()
    refused = pytest.raises(InputError, match=r"out: another `pcdiff evaluate` writes here; wait for it")
    with Journal(tmp_path / "out" / "rows.jsonl"), refused:
        evaluate(["prior"], cases, tmp_path / "out")


def test_the_default_command_is_the_installed_one():
    filled = [part.format(skull="S", out="O", method="prior", seed=3) for part in COMMAND]
    assert " ".join(filled[1:]) == "-m pcdiff design S -o O --method prior --seed 3 --no-report -q"
    assert filled[0] == sys.executable


def test_a_row_of_an_earlier_version_has_no_figures_that_it_did_not_measure():
    failure, success = (
        Row("000", "a", 0, error="why"),
        Row("001", "a", 0, 1, 1, 0, 0, 0, 1, 1, ml_true=2, ml_predicted=3),
    )
    for row in (failure, success):
        values = row.to_json()
        assert Row.from_json(values).to_json() == values
        assert Row.from_json(values).hd == row.hd
        old = Row.from_json({name: value for name, value in values.items() if name not in ("hd", "masd", "nsd_1mm")})
        assert (old.dsc, old.hd95) == (row.dsc, row.hd95)
        assert all(math.isnan(value) for value in (old.hd, old.masd, old.nsd_1mm))
    assert success.volume_error == 50
