"""Training of the networks of the field, on the heads, cuts and deformations of the volumetric U-Net."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pcdiff.methods.networks.base import BoneNetwork
from pcdiff.methods.networks.config import BaselineConfig, NetworkConfig
from pcdiff.methods.networks.make import make_network
from pcdiff.methods.networks.model import BaselineModel
from pcdiff.methods.networks.planning import planned_widths
from pcdiff.training.recipes import BaselineTrainConfig
from pcdiff.training.volumetric.cuts import Windows
from pcdiff.training.volumetric.fitted import FittedCase
from pcdiff.training.volumetric.task import WindowsTask, missing_loss
from pcdiff.training.volumetric.train import train_on_windows
from pcdiff.training.volumetric.validation import lattice_dice

log = logging.getLogger(__name__)


def train(config: BaselineTrainConfig, progress: bool = True) -> Path:
    """Runs a recipe to its end, or goes on with it; returns the weights' file, or the checkpoint if there is none yet.

    Writes into `config.run.out`: config.json, log.jsonl, checkpoint.safetensors, and METHOD.safetensors, the averaged
    weights that did best on the held-out heads so far. At SIGTERM the checkpoint is written and the run ends.
    Raises InputError if the cache lacks heads or the folder holds a run of another recipe.
    """
    hidden = config.samples.windows.model_copy(update={"hidden": 1.0})
    return train_on_windows(config, NetworkTask, hidden, progress)


class NetworkTask(WindowsTask):
    """A network of the field as a `Task` of the training loop."""

    score = "val_dsc"
    config: BaselineTrainConfig
    chosen: NetworkConfig

    def choose(self) -> NetworkConfig:
        """See `WindowsTask`; nnU-Net's block plans its widths from the cuts."""
        network = self.config.network
        if network.block != "nnunet":
            return network
        return network.model_copy(update={"widths": planned_widths(self.cuts.sides)})

    def make(self) -> BoneNetwork:
        """See `WindowsTask`."""
        return make_network(self.chosen)

    def load(self, path: Path) -> BaselineModel:
        """See `WindowsTask`."""
        return BaselineModel.load(path)

    def loss(self, model: nn.Module, windows: Windows) -> Tensor:
        """See `WindowsTask`: the mean over the network's answers, and the symmetry loss of the last one."""
        answers = model(windows.fine, windows.coarse, windows.missing)
        losses = [missing_loss(answer.odds.float(), answer.missing) for answer in answers]
        total = torch.stack(losses).mean()
        if self.config.loss.symmetry:
            total = total + self.config.loss.symmetry * asymmetry(answers[-1].odds.float(), windows.fine)
        return total

    def validate(self) -> dict[str, float]:
        """See `Task`."""
        return validate(self.averaged(), self.cases, str(self.device))

    def averaged(self) -> BaselineModel:
        """See `WindowsTask`."""
        network = self.averaged_network()
        assert isinstance(network, BoneNetwork)
        mean = self.mean if "mean" in self.chosen.inputs else None
        return BaselineModel(network, mean, BaselineConfig(network=self.chosen))


def asymmetry(odds: Tensor, fine: Tensor) -> Tensor:
    """1 - soft DSC of the completed head with its mirror image (Wodzinski 2025, the loss SL).

    The plane of symmetry is that of the pose. Where the other side is cut, too, it is as empty as here and asks for
    nothing. odds: (B, I, J, K). fine: (B, 3, I, J, K), bone first, its mirror image second.
    """
    completed, other = fine[:, 0] + (1 - fine[:, 0]) * odds.sigmoid(), fine[:, 1]
    both = (completed.square() + other.square()).sum((1, 2, 3))
    return (1 - 2 * (completed * other).sum((1, 2, 3)) / both.clamp(min=1)).mean()


def validate(model: BaselineModel, files: dict[str, list[Path]], device: str = "cpu") -> dict[str, float]:
    """Mean DSC at half the lattice's step: val_dsc_CLASS, and val_dsc, the mean of the classes, if there are cases."""
    scores = {
        kind: float(np.mean([score_case(model, path, device) for path in paths])) for kind, paths in files.items()
    }
    mean = {"val_dsc": float(np.mean(list(scores.values())))} if scores else {}
    return mean | {f"val_dsc_{kind}": score for kind, score in scores.items()}


def score_case(model: BaselineModel, path: Path, device: str = "cpu") -> float:
    """DSC of a fitted case, see `validate`."""
    case = FittedCase.load(path)
    bone = case.bone.astype(np.float32) / 255
    share = model.completed_share(bone, case.windows, device, mirror=False)
    return lattice_dice(case, share, level=0.5)
