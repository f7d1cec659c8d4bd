"""Time and memory of the published networks at full size, on random weights and a synthetic head.

    python tools/benchmark_paper.py               # add --steps 50 to measure another number of steps
    python tools/benchmark_paper.py --device cuda # the noise network's steps alone, on a GPU

Each row comes from a process of its own: CPU-seconds of all threads, wall time, and the peak resident set, 10^6 bytes;
`before` is the peak when networks and points were ready. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from pcdiff.data.craniotomy import simulate_craniotomy
from pcdiff.environment import machine, peak_memory_mb
from pcdiff.evaluation.tables import markdown
from pcdiff.geometry.surface import sample_surface
from pcdiff.geometry.volume import Volume
from pcdiff.methods.friedrich2023.config import PaperConfig
from pcdiff.methods.friedrich2023.denoiser import Geometry, PaperDenoiser
from pcdiff.methods.friedrich2023.lattice import SPACING_MM, lattice_over
from pcdiff.methods.friedrich2023.points import PaperFrame, outer_mesh, surface_points
from pcdiff.methods.friedrich2023.sampling import sample_points
from pcdiff.methods.friedrich2023.volume import volume_from_points
from pcdiff.methods.friedrich2023.voxelisation import VoxelisationNetwork
from pcdiff.prior.model import ShapePrior
from pcdiff.reconstruct.dpsr import poisson_grid, poisson_region


def denoiser(config: PaperConfig) -> tuple[PaperDenoiser, torch.Tensor]:
    """The full-size network, and the points of a skull for it: (1, N, 3), network coordinates."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    skull, _ = simulate_craniotomy(ShapePrior.shipped().draw(rng), "skullfix", rng)
    points = surface_points(skull, config.network.skull_points, np.random.default_rng(0))
    seen = PaperFrame.of(points, skull.affine).to_network(points)
    return PaperDenoiser(config.network).eval(), torch.from_numpy(seen).float()[None]


def a_step(batch: int, device: str = "cpu") -> Callable[[], object]:
    """One call of the noise network, at the noisiest level; it waits for the result."""
    config = PaperConfig()
    network, skull = denoiser(config)
    noisy = torch.randn(1, config.network.implant_points, 3, generator=torch.Generator().manual_seed(0))
    points = torch.cat([skull, noisy], 1).expand(batch, -1, -1).contiguous().to(device)
    times = torch.full((batch,), 999, device=device)
    network.to(device)
    return lambda: network(points, times).cpu()


def geometry() -> Callable[[], object]:
    """Furthest points, neighbours and nearest centres of one such call."""
    config = PaperConfig()
    _, skull = denoiser(config)
    noisy = torch.randn(1, config.network.implant_points, 3, generator=torch.Generator().manual_seed(0))
    return lambda: Geometry.of(torch.cat([skull, noisy], 1), config.network)


def implant_points(steps: int, sampler: str) -> Callable[[], object]:
    """Stage 1 of one implant."""
    config = PaperConfig(steps=steps, sampler=sampler)
    network, skull = denoiser(config)
    return lambda: sample_points(network, skull, config, torch.Generator().manual_seed(0))


def case(spacing: float) -> tuple[Volume, Volume]:
    """A defective skull and its implant, voxels of `spacing` mm."""
    rng = np.random.default_rng(0)
    return simulate_craniotomy(ShapePrior.shipped().draw(rng, spacing=spacing), "skullfix", rng)


def oriented(skull: Volume, implant: Volume) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of a perfectly trained network: 7 points with normals on the implant's surface for each of 3,072."""
    count = 7 * PaperConfig().network.implant_points
    cloud = sample_surface(outer_mesh(implant), count, np.random.default_rng(0))
    lattice = lattice_over(skull.mask.shape, skull.affine, cloud.points)
    axes = lattice.affine[:3, :3] / SPACING_MM
    return torch.from_numpy(lattice.to_network(cloud.points)).float(), torch.from_numpy(cloud.normals @ axes).float()


def point_to_volume() -> Callable[[], object]:
    """The network alone, on the implant points of one sample."""
    network, points = VoxelisationNetwork().eval(), oriented(*case(0.9))[0][::7]
    return lambda: network(points[None])


def poisson(resolution: int, region: bool = False) -> Callable[[], object]:
    """The solve in the whole cube, or around the points only."""
    points, normals = oriented(*case(0.9))
    if region:
        return lambda: poisson_region(points, normals, resolution)
    return lambda: poisson_grid(points[None], normals[None], resolution)


class Known(VoxelisationNetwork):
    """Runs the untrained network for its cost, and returns a given answer."""

    def __init__(self, answer: tuple[torch.Tensor, torch.Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        super().forward(points)
        return self.answer[0][None], self.answer[1][None]


def stage_2(samples: int) -> Callable[[], object]:
    """From implant points to the implant on a scan of 0.45 mm: network, Poisson, clean-up."""
    skull, implant = case(SPACING_MM)
    count = PaperConfig().network.implant_points
    clouds = [surface_points(implant, count, np.random.default_rng(k)) for k in range(samples)]
    network = Known(oriented(skull, implant)).eval()
    return lambda: volume_from_points(clouds, skull, network)


TASKS: dict[str, tuple[Callable[[], Callable[[], object]], int]] = {
    "noise network, one step": (lambda: a_step(1), 5),
    "of which geometry": (geometry, 5),
    "noise network, one step, batch 5": (lambda: a_step(5), 2),
    "point-to-volume network": (point_to_volume, 3),
    "Poisson in the cube, 128": (lambda: poisson(128), 3),
    "Poisson in the cube, 256": (lambda: poisson(256), 2),
    "Poisson in the cube, 512": (lambda: poisson(512), 1),
    "Poisson around the points, 512": (lambda: poisson(512, region=True), 3),
    "stage 2, one sample": (lambda: stage_2(1), 2),
    "stage 2, five samples": (lambda: stage_2(5), 1),
}


ON_DEVICES = {"noise network, one step": 1, "noise network, one step, batch 5": 5}  # name -> batch


def measure(name: str, steps: int, device: str) -> dict[str, float]:
    """Measures a task in this process: medians over the repeats, after a first call, and the peak memory."""
    if device != "cpu":
        make, repeats, warm_up = (lambda: a_step(ON_DEVICES[name], device)), 5, True
    elif name.startswith("implant"):
        make, repeats, warm_up = (lambda: implant_points(steps, "euler")), 1, False
    else:
        (make, repeats), warm_up = TASKS[name], True
    task = make()
    before = peak_memory_mb()
    seconds, walls = [], []
    with torch.inference_mode():
        if warm_up:
            task()
        for _ in range(repeats):
            cpu, wall = time.process_time(), time.perf_counter()
            task()
            seconds.append(time.process_time() - cpu)
            walls.append(time.perf_counter() - wall)
    found = {"cpu": np.median(seconds), "wall": np.median(walls), "peak": peak_memory_mb(), "before": before}
    return {name: float(value) for name, value in found.items()}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.steps, options.device)))
        return
    print(", ".join(f"{name} {value}" for name, value in machine().items()) + f", threads {torch.get_num_threads()}")
    print(f"\n{markdown(['what', 'CPU-s', 's', 'peak MB', 'before'], [])}")
    names = [*TASKS, f"implant's points, {options.steps} steps"] if options.device == "cpu" else list(ON_DEVICES)
    for name in names:
        command = [sys.executable, __file__, "--only", name, "--steps", str(options.steps), "--device", options.device]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"| {name} | {row['cpu']:.2f} | {row['wall']:.2f} | {row['peak']:.0f} | {row['before']:.0f} |", flush=True
        )


if __name__ == "__main__":
    main()
