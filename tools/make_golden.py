"""Writes tests/golden.json: what the shipped weights and the whole path to the STL give on synthetic heads.

Run it when figures are meant to change, on one thread as `make test` runs, and say in the commit which and why:

    OMP_NUM_THREADS=1 python tools/make_golden.py
"""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import replace
from functools import cache
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from pcdiff.data.craniotomy import simulate_craniotomy
from pcdiff.geometry.metrics import dice
from pcdiff.geometry.occupancy import head_occupancy
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume, write_volume
from pcdiff.methods.anchored.condition import ANCHORS, BONE, make_condition
from pcdiff.methods.anchored.method import DiffusionMethod, batch, bind
from pcdiff.methods.registry import weights_of
from pcdiff.methods.volumetric.features import defect_windows, soft_occupancy
from pcdiff.methods.volumetric.model import VolumetricModel
from pcdiff.pipeline.case import design_case
from pcdiff.pipeline.demo import demo
from pcdiff.pipeline.settings import Settings
from pcdiff.prior.fit import PriorFit, fit

GOLDEN = Path(__file__).parents[1] / "tests" / "golden.json"
DEFAULT = Settings("diffusion", report=False)
TWO = replace(DEFAULT, ensemble=2, seed=1)
SPACING = 2.0  # mm
KIND = "frontoorbital"  # here the occupancy network corrects the shape model
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SIGMAS = (4.0, 0.5, 0.05)
DIGITS = 5


# --- what is given ----------------------------------------------------------------------------------------------------


@cache
def method() -> DiffusionMethod:
    """The default method with the weights that are shipped."""
    return DEFAULT.load()


@cache
def case() -> tuple[Volume, Volume]:
    """(defective skull, true implant) of a coarse head drawn from the shipped prior, its forehead cut out."""
    head = method().prior.draw(np.random.default_rng(0), spacing=SPACING)
    return simulate_craniotomy(head, KIND, np.random.default_rng(1))


@cache
def fitted() -> PriorFit:
    """The shipped prior on the defective skull of `case`."""
    return fit(method().prior, case()[0])


# --- a figure each ----------------------------------------------------------------------------------------------------


def prior_figures() -> dict[str, Any]:
    """Pose; outer radius, thickness and their uncertainty over the defect, mm, and along every 90th ray of the map."""
    found = fitted()
    rays = np.arange(0, len(found.defect), 90)
    rays = rays[found.defect[rays] > 0][:16]
    over = found.defect > 0
    table_radii = {
        "outer": found.outer,
        "thickness": found.thickness,
        "outer_std": found.std[0],
        "thickness_std": found.std[1],
    }
    return {
        "linear": _listed(found.pose.linear),
        "shift": _listed(found.pose.shift),
        "residual": _listed(found.residual),
        "rays": rays.tolist(),
        **{name: _summed_up(values[over], values[rays]) for name, values in table_radii.items()},
    }


@torch.inference_mode()
def denoiser_figures() -> dict[str, Any]:
    """The guide's mean; displacement and normals at three noise levels, with the surroundings and without."""
    network = method().network
    skull = bind(network, batch(make_condition(fitted(), *_plain_rays()), "cpu"))
    noise = torch.from_numpy(np.random.default_rng(2).standard_normal((1, 2 * ANCHORS))).float()
    some = slice(7, None, 2 * ANCHORS // 16)  # of both tables
    figures = {"gate": _listed(skull.gate.squeeze()), "guide": _summed_up(skull.mean[0], skull.mean[0, some])}
    for gate, bound in (("open", skull), ("shut", skull._replace(gate=torch.zeros_like(skull.gate)))):
        for sigma in SIGMAS:
            said = network(skull.mean + sigma * noise, torch.tensor(sigma), bound)
            figures[f"gate {gate}, sigma {sigma:g}"] = {
                "x0": _summed_up(said.x0[0], said.x0[0, some]),
                "normals": _summed_up(said.normals[0], said.normals[0, :, some][:, ::2].T),
            }
    return figures


def occupancy_figures() -> dict[str, Any]:
    """Log-odds on every other lattice point along each axis around the defect."""
    network = method().occupancy
    queries = network.build_queries(fitted(), head_occupancy(case()[0]))
    queries = replace(queries, index=queries.index[(queries.index % 2 == 0).all(1)])
    odds = network.log_odds(queries)
    at = np.flatnonzero((queries.index % 6 == 0).all(1))[:32]
    return {
        "networks": len(network.networks),
        "count": len(odds),
        "index": queries.index[at].tolist(),
        "odds": _summed_up(odds, odds[at]),
    }


def unet_figures() -> dict[str, Any]:
    """Log-odds of the volumetric U-Net in the first window, at every eighth point along each axis."""
    model = VolumetricModel.load(weights_of("unet").all[0])
    windows = defect_windows(fitted())[:1]
    odds = model.log_odds(soft_occupancy(head_occupancy(case()[0]), fitted().pose), windows, mirror=False)
    some = odds[windows[0]][4::8, 4::8, 4::8]
    return {
        "window": [[side.start, side.stop] for side in windows[0]],
        "odds": _summed_up(odds[windows[0]], some.ravel()[:32]),
    }


def demo_figures(folder: Path) -> dict[str, Any]:
    """The built-in case by the default method: file in, STL out."""
    return _result(folder, demo(folder, DEFAULT)["scores"]["dsc"])


def ensemble_figures(folder: Path) -> dict[str, Any]:
    """The coarse head's case by two candidates: file in, STL out."""
    skull, truth = case()
    source = folder / "skull.nrrd"
    write_volume(skull, source)
    design_case(source, folder / "case", method(), TWO)
    return _result(folder / "case", dice(read_volume(folder / "case" / "implant.nrrd").mask, truth.mask))


def machine() -> dict[str, Any]:
    """What the bytes of a result depend on beside the code."""
    cpuinfo = Path("/proc/cpuinfo")
    said = dict(re.findall(r"(model name|model|stepping)\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.is_file() else [])
    return {
        "platform": " ".join((platform.system(), platform.machine(), *platform.libc_ver())),
        "cpu": " / ".join(said.values()) or platform.processor(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("numpy", "scipy", "scikit-image", "torch")},
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "OPENBLAS_NUM_THREADS": os.environ.get("OPENBLAS_NUM_THREADS"),
    }


# --- how figures are kept ---------------------------------------------------------------------------------------------


def _result(folder: Path, dsc: float) -> dict[str, Any]:
    """Of a case folder; `digests` hold on one machine alone."""
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    checks = json.loads((folder / "checks.json").read_text(encoding="utf-8"))["checks"]
    return {
        "weights": record["weights"],
        "dsc": round(float(dsc), DIGITS),
        "defects": record["defects"],
        "implant_ml": record["implant_ml"],
        "members_ml": record["members_ml"],
        "triangles": record["stl"]["triangles"],
        "checks": {check["name"]: {f["key"]: f["value"] for f in check["figures"]} for check in checks},
        "verdicts": {check["name"]: check["passed"] for check in checks},
        "digests": {name: record["files"][name] for name in ("implant.nrrd", "implant.stl")},
    }


def _plain_rays() -> tuple[np.ndarray, np.ndarray]:
    """Anchors and rays of bone by rank of their distance: `choose_rays` breaks ties by the last bit."""
    seen = fitted().observation
    order = np.argsort(seen.distance, kind="stable")
    inside = np.count_nonzero(seen.defect > 0)
    bone = order[(np.isfinite(seen.outer) & np.isfinite(seen.thickness) & (seen.distance > 0))[order]]
    return _every(order[: max(inside, ANCHORS)], ANCHORS), _every(bone[: 4 * BONE], BONE)


def _every(rays: np.ndarray, count: int) -> np.ndarray:
    return np.sort(rays[np.linspace(0, len(rays) - 1, count).astype(int)])


def _summed_up(values: Any, some: Any) -> dict[str, Any]:
    """Of all the values mean and quantiles; and some of them."""
    values = np.asarray(values, float)
    return {
        "mean": _listed(values.mean()),
        "quantiles": _listed(np.quantile(values, QUANTILES)),
        "values": _listed(some),
    }


def _listed(values: Any) -> Any:
    return np.round(np.asarray(values, float), DIGITS).tolist()


# --- the file ---------------------------------------------------------------------------------------------------------


def figures() -> dict[str, Any]:
    """All that is kept."""
    with TemporaryDirectory() as folder:
        return {
            "machine": machine(),
            "prior": prior_figures(),
            "denoiser": denoiser_figures(),
            "occupancy": occupancy_figures(),
            "unet": unet_figures(),
            "demo": demo_figures(Path(folder) / "demo"),
            "ensemble": ensemble_figures(Path(folder)),
        }


def main() -> None:
    """See the module."""
    text = json.dumps(figures(), indent=1, allow_nan=False)
    text = re.sub(r"\[([^][{}]*)\]", lambda numbers: f"[{' '.join(numbers[1].split())}]", text)  # a list, one line
    GOLDEN.write_text(text + "\n", encoding="utf-8")
    print(f"tests/{GOLDEN.name}: {len(text) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
