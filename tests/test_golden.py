"""Figures that no tidying may change: each shipped weights file, and the whole way from file to STL, as kept.

Where a figure is meant to change, run tools/make_golden.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import make_golden as golden  # noqa: E402

KEPT = json.loads(golden.GOLDEN.read_text(encoding="utf-8"))
WEIGHTS = dict(rel=1e-3, abs=1e-3)
CASE = dict(rel=0.02, abs=0.02)  # of checks, elsewhere than where they were written: voxels at the border may differ
FINE = {"dsc": dict(rel=0, abs=0.002), "implant_ml": dict(rel=0.005), "members_ml": dict(rel=0.005)}
FINE |= {"triangles": dict(rel=0.01), "defects": dict(rel=0, abs=0)}
same_machine = pytest.mark.skipif(
    golden.machine() != KEPT["machine"], reason="bytes are the same only on the machine that wrote golden.json"
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The built-in case at full resolution. The one test of more than five seconds: it guards what users see."""
    return golden.demo_figures(tmp_path_factory.mktemp("golden") / "demo")


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The case of two candidates."""
    return golden.ensemble_figures(tmp_path_factory.mktemp("golden"))


def test_the_prior_says_what_it_said():
    assert not differences(golden.prior_figures(), KEPT["prior"])


def test_the_denoiser_says_what_it_said():
    figures, kept = golden.denoiser_figures(), dict(KEPT["denoiser"])
    assert not differences(figures.pop("positions"), kept.pop("positions"), rel=0, abs=0.02)
    assert not differences(figures, kept, rel=0.01, abs=0.01)


def test_the_unet_gives_the_kept_log_odds():
    assert not differences(golden.unet_figures(), KEPT["unet"], rel=1e-3, abs=0.01)


def test_the_demo_finds_the_implant_that_was_cut_out(demo):
    assert demo["dsc"] > 0.95
    assert demo["defects"] == 1
    assert all(demo["verdicts"].values())


def test_the_demo_gives_what_it_gave(demo):
    assert not case_differences(demo, KEPT["demo"])


@same_machine
def test_the_demo_gives_the_same_bytes(demo):
    assert demo == KEPT["demo"]


def test_two_candidates_give_what_they_gave(ensemble):
    assert not case_differences(ensemble, KEPT["ensemble"])


@same_machine
def test_two_candidates_give_the_same_bytes(ensemble):
    assert ensemble == KEPT["ensemble"]


def case_differences(now: dict[str, Any], kept: dict[str, Any]) -> list[str]:
    """All but the digests, each figure by its own tolerance."""
    assert now.keys() == kept.keys()
    return [
        line
        for name in kept.keys() - {"digests"}
        for line in differences(now[name], kept[name], name, **FINE.get(name, CASE))
    ]


def differences(now: Any, kept: Any, name: str = "", **tolerance: float) -> list[str]:
    """A line for each value that is not what was kept."""
    tolerance = tolerance or WEIGHTS
    if isinstance(kept, dict):
        if now.keys() != kept.keys():
            return [f"{name}: expected {', '.join(kept)}; got {', '.join(now)}"]
        pairs = [(f"{name} > {key}".removeprefix(" > "), now[key], kept[key]) for key in kept]
    elif isinstance(kept, list):
        if len(now) != len(kept):
            return [f"{name}: expected {len(kept)} values, got {len(now)}"]
        pairs = [(f"{name} [{k}]", *pair) for k, pair in enumerate(zip(now, kept, strict=True))]
    else:
        number = isinstance(kept, float | int) and not isinstance(kept, bool)
        same = now == (pytest.approx(kept, **tolerance) if number else kept)
        return [] if same else [f"{name}: expected {kept}, got {now}"]
    return [line for pair_name, *pair in pairs for line in differences(*pair, pair_name, **tolerance)]
