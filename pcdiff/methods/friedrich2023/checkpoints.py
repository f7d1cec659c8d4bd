"""Import and export of checkpoints: the original's files and those of its forks, and our own safetensors file."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pcdiff import __version__
from pcdiff.config import validate_config
from pcdiff.errors import InputError
from pcdiff.files import make_folder, written_beside
from pcdiff.foreign import check_file, parsing
from pcdiff.methods.friedrich2023.config import PaperConfig
from pcdiff.methods.friedrich2023.denoiser import PaperDenoiser
from pcdiff.methods.friedrich2023.denoiser_weights import denoiser_state_from, denoiser_state_to
from pcdiff.methods.friedrich2023.voxelisation import VoxelisationNetwork
from pcdiff.methods.friedrich2023.voxelisation_weights import voxelisation_state_from, voxelisation_state_to
from pcdiff.nets.states import load_network
from pcdiff.tensor_files import read_tensors, write_tensors

FORMAT = "pcdiff-paper-1"
MAX_BYTES = 4 * 2**30  # a larger file is refused
MAX_DEPTH = 4  # of mappings around the weights
ANOTHER = "weights of another network; import the checkpoint anew, or train one"
DENOISER, VOXELISATION = "denoiser.pth", "voxelisation.pt"  # of an export
CHECKPOINT = "a checkpoint of tensors and plain values"
SAVE_AGAIN = "save its state_dict alone with torch.save"
# Keys under which training scripts store weights; averaged weights are preferred to the last step's.
AVERAGED_KEYS = ("ema_state_dict", "ema_state", "model_ema", "ema")
WEIGHTS_KEYS = (*AVERAGED_KEYS, "model_state", "model_state_dict", "state_dict", "model")
WRAPPER_NAMES = {"module", "_orig_mod", "ema_model", "online_model"}  # parts of a name that wrappers of a model add
WIDTH_TENSOR = "model.sa_layers.0.0.voxel_layers.0.weight"  # (32 width, 3, 3, 3, 3): its shape gives the width


@dataclass(frozen=True)
class PaperModel:
    """The two networks, or one of them, and their settings."""

    config: PaperConfig
    denoiser: PaperDenoiser | None = None
    voxelisation: VoxelisationNetwork | None = None

    def save(self, path: Path, notes: Mapping[str, str] | None = None) -> None:
        """Writes one safetensors file, float32; `notes` go into its metadata."""
        tensors = {
            f"{name}.{key}": value.float()
            for name, network in self._networks().items()
            for key, value in network.state_dict().items()
        }
        metadata = {"format": FORMAT, "config": self.config.model_dump_json(), "pcdiff": __version__, **(notes or {})}
        write_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path) -> PaperModel:
        """Reads what `save` wrote. Raises InputError for any other file."""
        file = read_tensors(path, "the paper's weights", "make them with pcdiff import-checkpoint", FORMAT, "pt")
        config = file.config(PaperConfig)
        states: dict[str, dict[str, Tensor]] = {}
        for name, value in file.tensors.items():
            network, _, key = name.partition(".")
            states.setdefault(network, {})[key] = value
        if unknown := states.keys() - {"denoiser", "voxelisation"}:
            raise InputError(f"{path}: expected the paper's weights, got an unknown {min(unknown)[:80]}; {file.remedy}")
        return cls.of(config, states.get("denoiser"), states.get("voxelisation"), str(path))

    @classmethod
    def of(
        cls, config: PaperConfig, denoiser: dict[str, Tensor] | None, voxelisation: dict[str, Tensor] | None, where: str
    ) -> PaperModel:
        """Networks in evaluation mode from weights by our names, None for no weights.

        Raises InputError, which starts with `where`, if the weights do not fit.
        """
        networks: dict[str, Any] = {}
        if denoiser is not None:
            networks["denoiser"] = load_network(partial(PaperDenoiser, config.network), denoiser, where, ANOTHER)
        if voxelisation is not None:
            networks["voxelisation"] = load_network(VoxelisationNetwork, voxelisation, where, ANOTHER)
        return cls(config, **networks)

    def _networks(self) -> dict[str, nn.Module]:
        both = {"denoiser": self.denoiser, "voxelisation": self.voxelisation}
        return {name: network for name, network in both.items() if network is not None}


def import_checkpoints(files: Sequence[Path], config: PaperConfig | None = None) -> PaperModel:
    """Reads the noise network's .pth, the point-to-volume network's .pt, or both, in any order.

    config: None takes the paper's settings; the width is always that of the weights.
    Raises InputError for a file that is no checkpoint or not safe to read, a missing or unexpected name, a wrong shape,
    and for two files of one network.
    """
    found: dict[str, dict[str, Tensor]] = {}
    config = config or PaperConfig()
    for path in files:
        foreign = read_foreign(path)
        name = "denoiser" if any("sa_layers" in key for key in foreign) else "voxelisation"
        if name in found:
            raise InputError(f"{path}: expected one checkpoint of each network, got a second {name}; leave one out")
        try:
            if name == "denoiser":
                config = _at_width(config, foreign)
                found[name] = denoiser_state_from(foreign, config.network)
            else:
                found[name] = voxelisation_state_from(foreign)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    return PaperModel.of(config, found.get("denoiser"), found.get("voxelisation"), ", ".join(map(str, files)))


def export_checkpoints(model: PaperModel, folder: Path) -> list[Path]:
    """Writes denoiser.pth and voxelisation.pt as the original's training saves them; returns the paths."""
    make_folder(folder)
    written = []
    if model.denoiser is not None:
        written.append(folder / DENOISER)
        state = denoiser_state_to(model.denoiser.state_dict())
        with written_beside(written[-1]) as beside:
            torch.save({"epoch": 0, "model_state": state, "optimizer_state": {}}, beside)
    if model.voxelisation is not None:
        written.append(folder / VOXELISATION)
        theirs = voxelisation_state_to(model.voxelisation.state_dict())
        with written_beside(written[-1]) as beside:
            torch.save({"epoch_it": 0, "it": 0, "loss_val_best": float("inf"), "state_dict": theirs}, beside)
    return written


def read_foreign(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint by the original's names, without names that wrappers add. No code in it is run.

    Raises InputError for a file that holds anything but tensors and plain values, or no weights.
    """
    path = Path(path)
    check_file(path, CHECKPOINT, SAVE_AGAIN, MAX_BYTES)
    if path.suffix == ".safetensors":
        content: Any = read_tensors(path, CHECKPOINT, SAVE_AGAIN, framework="pt").tensors
    else:
        with parsing(path, CHECKPOINT, SAVE_AGAIN):
            _check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    weights = _find_weights(content)
    if not weights:
        raise InputError(
            f"{path}: expected weights at the top or under one of {', '.join(WEIGHTS_KEYS)}, found none; "
            "save the network's state_dict alone with torch.save"
        )
    return {_without_wrappers(name): value for name, value in weights.items()}


def _check_archive(path: Path) -> None:
    """Raises ValueError for a ZIP archive that unpacks to more than it holds; torch.save never compresses."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("a compressed archive, which torch.save does not write")


def _at_width(config: PaperConfig, foreign: Mapping[str, Tensor]) -> PaperConfig:
    """The configuration with the width of the weights."""
    tensor = foreign.get(WIDTH_TENSOR, foreign.get(WIDTH_TENSOR.removeprefix("model.")))
    if tensor is None or tensor.ndim != 5 or tensor.shape[0] % 8:
        return config  # the later check of names and shapes reports what is wrong
    network = config.network.model_dump() | {"width": tensor.shape[0] / 32}
    return config.model_copy(update={"network": validate_config(type(config.network), network, WIDTH_TENSOR)})


def _find_weights(content: Any, depth: int = 0) -> dict[str, Tensor]:
    """The tensors under the first of `WEIGHTS_KEYS` that has any, else those at the top; {} for none."""
    if not isinstance(content, Mapping) or depth > MAX_DEPTH:
        return {}
    for key in WEIGHTS_KEYS:
        if weights := _find_weights(content.get(key), depth + 1):
            return weights
    return {str(name): value for name, value in content.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor that holds all its values; a few bytes can stand for a sparse or repeated one."""
    if not isinstance(value, Tensor) or value.ndim == 0 or value.layout != torch.strided or value.is_quantized:
        return False
    return value.device.type == "cpu" and value.untyped_storage().nbytes() >= value.numel() * value.element_size()


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPER_NAMES)
