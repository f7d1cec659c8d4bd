"""Writes tests/parity/*.npz: outputs of the published networks for seeded inputs and weights, at a small size.

Run it only when our networks agree with the original's (the tests marked `original` in tests/test_paper*.py):

    python tools/make_parity_vectors.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pcdiff.methods.friedrich2023.config import PaperNetworkConfig
from pcdiff.methods.friedrich2023.denoiser import PaperDenoiser
from pcdiff.methods.friedrich2023.denoiser_weights import denoiser_state_from, denoiser_state_to
from pcdiff.methods.friedrich2023.voxelisation import VoxelisationConfig, VoxelisationNetwork
from pcdiff.methods.friedrich2023.voxelisation_weights import voxelisation_state_from, voxelisation_state_to
from pcdiff.reconstruct.dpsr import poisson_grid

FOLDER = Path(__file__).parents[1] / "tests" / "parity"
DENOISER = PaperNetworkConfig(
    width=0.25, skull_points=448, implant_points=64, centres=(256, 64, 16, 8), radii=(0.6, 1.0, 1.6, 2.4), neighbours=16
)
VOXELISATION = VoxelisationConfig(width=8, cells=8, blocks=3, levels=2, copies=3)


def seeded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that depend on name and shape only, the same on every machine, scaled to activations of about 1."""
    drawn = {}
    for name, value in state.items():
        rng = np.random.default_rng(list(name.encode()))
        scale = 1.0 if value.ndim == 1 else np.sqrt(value[0].numel())
        drawn[name] = torch.from_numpy(rng.normal(size=tuple(value.shape)) / scale).float()
    return drawn


def seeded_denoiser() -> PaperDenoiser:
    """The small noise network, with weights that passed through the importer."""
    network = PaperDenoiser(DENOISER)
    foreign = seeded(denoiser_state_to(network.state_dict()))
    network.load_state_dict(denoiser_state_from(foreign, DENOISER))
    return network.eval()


def denoiser_vectors() -> dict[str, np.ndarray]:
    """Input, output, and the output of each stage."""
    network = seeded_denoiser()
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(2, DENOISER.points, 3))
    points = 3 * direction / np.linalg.norm(direction, axis=-1, keepdims=True) + 0.1 * rng.normal(size=direction.shape)
    points = torch.from_numpy(points).float()
    t = torch.tensor([700, 3])
    taps = stages(network)
    with torch.inference_mode():
        out = network(points, t)
    return {"points": points.numpy(), "t": t.numpy(), "out": out.numpy(), **{k: v.numpy() for k, v in taps.items()}}


def seeded_voxelisation() -> VoxelisationNetwork:
    """The small point-to-volume network, with weights that passed through the importer."""
    network = VoxelisationNetwork(VOXELISATION)
    foreign = seeded(voxelisation_state_to(network.state_dict(), VOXELISATION))
    network.load_state_dict(voxelisation_state_from(foreign, VOXELISATION))
    return network.eval()


def voxelisation_vectors() -> dict[str, np.ndarray]:
    """Input, encoder's grid, oriented points, and a sphere's Poisson field."""
    network = seeded_voxelisation()
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(1, 300, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    points = torch.from_numpy(0.5 + 0.3 * normals).float()
    with torch.inference_mode():
        oriented, directions = network(points)
        return {
            "points": points.numpy(),
            "grid": network.encoder(points).numpy(),
            "oriented": oriented.numpy(),
            "normals": directions.numpy(),
            "field": poisson_grid(points, torch.from_numpy(normals).float(), 24).numpy(),
        }


def stages(network: PaperDenoiser) -> dict[str, Tensor]:
    """A dictionary that the next forward pass fills with the stages' outputs: down0-3, attention, up0-3."""
    taps: dict[str, Tensor] = {}

    def record(name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda *args: taps.__setitem__(name, args[2]) and None)

    for k in range(4):
        record(f"down{k}", network.down[k])
        record(f"up{k}", network.up[k])
    record("attention", network.attention)
    return taps


def main() -> None:
    """See the module."""
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(FOLDER / "denoiser.npz", **denoiser_vectors())
    np.savez_compressed(FOLDER / "voxelisation.npz", **voxelisation_vectors())
    for path in sorted(FOLDER.glob("*.npz")):
        print(f"{path.relative_to(FOLDER.parents[1])}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
