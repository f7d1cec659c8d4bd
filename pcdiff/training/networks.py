"""Training of the networks of the field, on the heads, cuts and deformations of the volumetric U-Net."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pcdiff.environment import worker_pool
from pcdiff.errors import InputError
from pcdiff.geometry.grid import box_slices
from pcdiff.geometry.metrics import dice
from pcdiff.methods.networks.base import BoneNetwork
from pcdiff.methods.networks.config import BaselineConfig
from pcdiff.methods.networks.make import make_network
from pcdiff.methods.networks.model import BaselineModel
from pcdiff.methods.networks.planning import planned_widths
from pcdiff.training.loop import Loop, make_accelerator
from pcdiff.training.prior import shape_model
from pcdiff.training.recipes import BaselineTrainConfig
from pcdiff.training.run_state import same_recipe
from pcdiff.training.stopping import clean_exit_on_sigterm
from pcdiff.training.volumetric.cuts import Cuts, Windows
from pcdiff.training.volumetric.fitted import FittedCase
from pcdiff.training.volumetric.sources import load_sources
from pcdiff.training.volumetric.task import WindowsTask, missing_loss
from pcdiff.training.volumetric.validation import finer, store_cases

log = logging.getLogger(__name__)


def train(config: BaselineTrainConfig, progress: bool = True) -> Path:
    """Runs a recipe to its end, or goes on with it; returns the weights' file, or the checkpoint if there is none yet.

    Writes into `config.run.out`: config.json, log.jsonl, checkpoint.safetensors, and METHOD.safetensors, the averaged
    weights that did best on the held-out heads so far. At SIGTERM the checkpoint is written and the run ends.
    Raises InputError if the cache lacks heads or the folder holds a run of another recipe.
    """
    run = config.run
    accelerator = make_accelerator(config.optimiser.precision)
    with clean_exit_on_sigterm(), accelerator.main_process_first():
        log.info("training %s; the resolved recipe is %s", config.method, run.out / "config.json")
        prior = shape_model(run)
        with worker_pool(run.workers) as pool:
            heads, fitted = load_sources(run, config.samples, prior, pool, progress)
            cases = store_cases(run, prior, pool, progress)
        same_recipe(run.out / "config.json", config)
    hidden = config.samples.windows.model_copy(update={"hidden": 1.0})
    cuts = Cuts(fitted, heads, hidden, accelerator.device)
    task = NetworkTask(config, cuts, heads.mean(), cases, accelerator.device)
    state = Loop(task, accelerator, progress).run()
    return task.weights if math.isfinite(state.best) else task.checkpoint


class NetworkTask(WindowsTask):
    """A network of the field as a `Task` of the training loop.

    chosen: the network; nnU-Net's block plans its widths from the cuts. A new run starts from `config.weights`, or from
    an untrained network. Raises InputError for weights of another network.
    """

    score = "val_dsc"
    config: BaselineTrainConfig

    def __init__(
        self,
        config: BaselineTrainConfig,
        cuts: Cuts,
        mean: np.ndarray,
        cases: dict[str, list[Path]],
        device: torch.device,
    ) -> None:
        self.chosen = config.network
        if config.network.block == "nnunet":
            self.chosen = self.chosen.model_copy(update={"widths": planned_widths(cuts.sides)})
        super().__init__(config, cuts, cases, device)
        self.mean = mean

    def start(self) -> nn.Module:
        """See `WindowsTask`."""
        network = make_network(self.chosen)
        if self.config.weights is not None:
            start = BaselineModel.load(self.config.weights)
            if start.config.network != self.chosen:
                raise InputError(
                    f"{self.config.weights}: weights of another network: {start.config.network}; change `network`"
                )
            network.load_state_dict(start.network.state_dict())
        return network

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
        network = self.copy_average(make_network(self.chosen))
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
    scores = {kind: float(np.mean([_score(model, path, device) for path in paths])) for kind, paths in files.items()}
    mean = {"val_dsc": float(np.mean(list(scores.values())))} if scores else {}
    return mean | {f"val_dsc_{kind}": score for kind, score in scores.items()}


def _score(model: BaselineModel, path: Path, device: str) -> float:
    case = FittedCase.load(path)
    bone, missing = (values.astype(np.float32) / 255 for values in (case.bone, case.missing))
    share = model.completed_share(bone, case.windows, device, mirror=False)
    sides = np.array([[[side.start, side.stop] for side in window] for window in case.windows])
    box = box_slices(sides[..., 0].min(0), sides[..., 1].max(0))
    present = finer(bone[box])
    truth = (present + finer(missing[box]) >= 0.5) & (present < 0.5)
    return dice((finer(share[box]) >= 0.5) & (present < 0.5), truth)
