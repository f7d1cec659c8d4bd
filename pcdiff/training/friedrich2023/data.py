"""Training samples of the published networks: at each step new points of each case, drawn from stored surfaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pcdiff.data.cases import Case
from pcdiff.geometry.surface import sample_surface
from pcdiff.methods.friedrich2023.config import PaperConfig
from pcdiff.methods.friedrich2023.points import PaperFrame, outer_mesh
from pcdiff.tensor_files import read_tensors, write_tensors

FORMAT = "pcdiff-surfaces-2"


@dataclass(frozen=True)
class Surfaces:
    """Points of a case's two surfaces, mm, LPS.

    skull, implant: (P, 3) float32. normals: (P, 3) float32, outward, of the implant. affine: (4, 4), shape: (3,)
    of their scan.
    """

    skull: np.ndarray
    implant: np.ndarray
    normals: np.ndarray
    affine: np.ndarray
    shape: np.ndarray


def store_surfaces(cases: Sequence[Case], cache: Path, pool: int, progress: bool = True) -> list[Path]:
    """Writes `cache/surfaces-<pool>/<case>.safetensors` for each case that lacks it; half a minute each at full size.

    Raises InputError for a case without an implant and for one that cannot be read.
    """
    folder = Path(cache) / f"surfaces-{pool}"
    paths = []
    for case in tqdm(cases, unit="case", desc="surfaces", disable=not progress):
        path = folder / f"{case.name}.safetensors"
        if not path.exists():
            loaded = case.load()
            rng = np.random.default_rng([pool, *case.name.encode()])
            skull = sample_surface(outer_mesh(loaded.defective_skull), pool, rng)
            implant = sample_surface(outer_mesh(loaded.implant), pool, rng)
            tensors: dict[str, np.ndarray] = {
                "skull": skull.points.astype(np.float32),
                "implant": implant.points.astype(np.float32),
                "normals": implant.normals.astype(np.float32),
                "affine": loaded.implant.affine.astype(np.float64),
                "shape": np.array(loaded.implant.mask.shape),
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(path, tensors, {"format": FORMAT})
        paths.append(path)
    return paths


def load_surfaces(path: Path) -> Surfaces:
    """Reads what `store_surfaces` wrote. Raises InputError for any other file."""
    file = read_tensors(path, "surfaces of a case", "remove the file, and they are made anew", FORMAT)
    skull, implant = (file.array(name, "float", (None, 3)) for name in ("skull", "implant"))
    normals = file.array("normals", "float", implant.shape)
    return Surfaces(
        skull, implant, normals, file.array("affine", "float", (4, 4)), file.array("shape", "integer", (3,))
    )


def denoiser_sample(surfaces: Surfaces, config: PaperConfig, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Skull (S, 3) and implant (P, 3) points in network units, float32, drawn with replacement.

    The frame is that of the defective skull, as in use; with `faithful`, that of skull and implant together.
    """
    skull = surfaces.skull[rng.integers(len(surfaces.skull), size=config.network.skull_points)]
    implant = surfaces.implant[rng.integers(len(surfaces.implant), size=config.network.implant_points)]
    seen = np.concatenate([skull, implant]) if config.faithful else skull
    frame = PaperFrame.of(seen.astype(np.float64), surfaces.affine, config.faithful)
    return frame.to_network(skull).astype(np.float32), frame.to_network(implant).astype(np.float32)
