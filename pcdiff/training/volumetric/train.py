"""Training of the volumetric U-Net."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pcdiff.environment import worker_pool
from pcdiff.errors import InputError
from pcdiff.methods.volumetric.config import VolumetricConfig
from pcdiff.methods.volumetric.model import VolumetricModel
from pcdiff.training.loop import Loop, make_accelerator
from pcdiff.training.prior import shape_model
from pcdiff.training.recipes import VolumetricTrainConfig
from pcdiff.training.run_state import same_recipe
from pcdiff.training.stopping import clean_exit_on_sigterm
from pcdiff.training.volumetric.cuts import Cuts, Windows
from pcdiff.training.volumetric.sources import load_sources
from pcdiff.training.volumetric.task import WindowsTask, missing_loss
from pcdiff.training.volumetric.validation import store_cases, validate

log = logging.getLogger(__name__)


def train(config: VolumetricTrainConfig, progress: bool = True) -> Path:
    """Runs a recipe to its end, or goes on with it; returns the weights' file, or the checkpoint if there is none yet.

    Writes into `config.run.out`: config.json, log.jsonl, checkpoint.safetensors, and unet.safetensors, the averaged
    weights that did best on the held-out heads so far. At SIGTERM the checkpoint is written and the run ends.
    Raises InputError if the cache lacks heads or the folder holds a run of another recipe.
    """
    run = config.run
    accelerator = make_accelerator(config.optimiser.precision)
    with clean_exit_on_sigterm(), accelerator.main_process_first():
        log.info("training the volumetric U-Net; the resolved recipe is %s", run.out / "config.json")
        prior = shape_model(run)
        with worker_pool(run.workers) as pool:
            heads, fitted = load_sources(run, config.samples, prior, pool, progress)
            cases = store_cases(run, prior, pool, progress)
        same_recipe(run.out / "config.json", config)
    cuts = Cuts(fitted, heads, config.samples.windows, accelerator.device)
    task = VolumetricTask(config, cuts, heads.mean(), cases, accelerator.device)
    state = Loop(task, accelerator, progress).run()
    return task.weights if math.isfinite(state.best) else task.checkpoint


class VolumetricTask(WindowsTask):
    """The volumetric U-Net as a `Task` of the training loop.

    A new run starts from `config.weights`, or from an untrained network. Raises InputError for weights of another size.
    """

    score = "val_fused"
    config: VolumetricTrainConfig

    def __init__(
        self,
        config: VolumetricTrainConfig,
        cuts: Cuts,
        mean: np.ndarray,
        cases: dict[str, list[Path]],
        device: torch.device,
    ) -> None:
        super().__init__(config, cuts, cases, device)
        self.mean = mean

    def start(self) -> nn.Module:
        """See `WindowsTask`."""
        network = self.config.network.make()
        if self.config.weights is not None:
            start = VolumetricModel.load(self.config.weights)
            if start.config.network != self.config.network:
                raise InputError(
                    f"{self.config.weights}: weights of another network: {start.config.network}; change `network`"
                )
            network.load_state_dict(start.network.state_dict())
        return network

    def loss(self, model: nn.Module, windows: Windows) -> Tensor:
        """See `WindowsTask`."""
        return missing_loss(model(windows.fine, windows.coarse).float() + windows.tables, windows.missing)

    def validate(self) -> dict[str, float]:
        """See `Task`."""
        return validate(self.averaged(), dict(self.cases), str(self.device))

    def averaged(self) -> VolumetricModel:
        """See `WindowsTask`."""
        network = self.config.network.make()
        self.copy_average(network)
        return VolumetricModel(network, self.mean, VolumetricConfig(network=self.config.network))
