"""Writes tests/golden.json: what the shipped weights and the whole path to the STL give on synthetic heads.

Networks compute in float32 for it, as they do on a processor that is slow at bfloat16, so that all processors agree.
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
from unittest.mock import patch

import numpy as np
import torch
from scipy.spatial import cKDTree

from pcdiff.data.craniotomy import simulate_craniotomy
from pcdiff.diffusion.preconditioning import per_sample, scaling
from pcdiff.geometry.metrics import dice
from pcdiff.geometry.occupancy import head_occupancy
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume, write_volume
from pcdiff.methods.registry import weights_of
from pcdiff.methods.surface.anchors import Anchors, make_anchors, stacked
from pcdiff.methods.surface.config import LAYOUT
from pcdiff.methods.surface.method import SurfaceMethod
from pcdiff.methods.surface.noise import normal_noise
from pcdiff.methods.volumetric.features import defect_windows, soft_occupancy
from pcdiff.methods.volumetric.lattice import TableMaps
from pcdiff.methods.volumetric.model import VolumetricModel
from pcdiff.pipeline.case import design_case
from pcdiff.pipeline.demo import demo
from pcdiff.pipeline.settings import Settings
from pcdiff.prior.direction_map import MAP
from pcdiff.prior.fit import PriorFit, fit

GOLDEN = Path(__file__).parents[1] / "tests" / "golden.json"
WHOLE = Settings("diffusion", report=False)
TWO = replace(WHOLE, ensemble=2, seed=1)
SPACING = 2.0  # mm
KIND = "frontoorbital"  # here the U-Net corrects the shape model most
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SIGMAS = (4.0, 0.5, 0.05)
DIGITS = 5
in_float32 = patch("pcdiff.nets.devices.computes_bfloat16", lambda device: False)


# --- what is given ----------------------------------------------------------------------------------------------------


@cache
def method() -> SurfaceMethod:
    """The method that uses every network, with the weights that are shipped."""
    return WHOLE.load()


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


@in_float32
@torch.inference_mode()
def denoiser_figures() -> dict[str, Any]:
    """Positions of the anchors; output F of the denoiser and x0, mm, at three noise levels."""
    network, diffusion = method().network, method().diffusion
    batch = {name: torch.from_numpy(value) for name, value in stacked([_anchors()]).items()}
    surface = network.encode(batch["positions"], batch["static"], batch["profile"])
    noise = normal_noise(batch["positions"], batch["normals"], diffusion, torch.Generator().manual_seed(2))
    some = slice(7, None, LAYOUT.anchors // 16)  # of both tables
    figures: dict[str, Any] = {"positions": _listed(batch["positions"][0, some])}
    for level in SIGMAS:
        x, sigma = level * noise, torch.tensor(level)
        _, _, c_in, c_noise = scaling(per_sample(sigma, x), network.sigma_data)
        said = {"raw": network.raw(x, c_in, c_noise, surface)[0], "x0": network(x, sigma, surface)[0]}
        figures[f"sigma {level:g}"] = {
            name: _summed_up(values, values[some]) | {"std": _listed(values.std())} for name, values in said.items()
        }
    return figures


@in_float32
def unet_figures() -> dict[str, Any]:
    """Log-odds of the volumetric U-Net in the first window, at every eighth point along each axis."""
    model = VolumetricModel.load(weights_of("unet").all[0])
    windows, bone = defect_windows(fitted())[:1], soft_occupancy(head_occupancy(case()[0]), fitted().pose)
    odds = model.predict(bone, windows, TableMaps.of(fitted()), mirror=False)
    some = odds[windows[0]][4::8, 4::8, 4::8]
    return {
        "window": [[side.start, side.stop] for side in windows[0]],
        "odds": _summed_up(odds[windows[0]], some.ravel()[:32]),
    }


@in_float32
def demo_figures(folder: Path) -> dict[str, Any]:
    """The built-in case by the default method: file in, STL out."""
    return _result(folder, demo(folder, WHOLE)["scores"]["dsc"])


@in_float32
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


def _anchors() -> Anchors:
    """At the vertices nearest to the shape model's tables along some rays: `spread_vertices` hangs on the last bit."""
    found = fitted()
    surroundings, surface = method().base.predict_surface(found, head_occupancy(case()[0]))
    rays = np.flatnonzero(found.defect > 0)
    rays = rays[np.linspace(0, len(rays) - 1, LAYOUT.anchors // 2).astype(int)]
    radius = np.stack([found.outer[rays], found.outer[rays] - found.thickness[rays]])
    places = (radius[..., None] * MAP.directions[rays]).reshape(-1, 3)
    return make_anchors(surface, surroundings, cKDTree(surface.points).query(places)[1])


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
