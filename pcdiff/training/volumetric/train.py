"""Training of the volumetric U-Net."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from pcdiff.environment import worker_pool
from pcdiff.methods.volumetric.config import VolumetricConfig
from pcdiff.methods.volumetric.model import VolumetricModel
from pcdiff.nets.unet3d import UNet3d
from pcdiff.training.loop import Loop, make_accelerator
from pcdiff.training.prior import shape_model
from pcdiff.training.recipes import BaselineTrainConfig, VolumetricTrainConfig, WindowsConfig
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
    return train_on_windows(config, VolumetricTask, config.samples.windows, progress)


def train_on_windows(
    config: VolumetricTrainConfig | BaselineTrainConfig,
    task_of: Callable[..., WindowsTask],
    windows: WindowsConfig,
    progress: bool,
) -> Path:
    """What every training on windows of fitted cuts does: makes heads, cuts and cases, and runs the task."""
    run = config.run
    accelerator = make_accelerator(config.optimiser.precision)
    with clean_exit_on_sigterm(), accelerator.main_process_first():
        log.info("training %s; the resolved recipe is %s", config.method, run.out / "config.json")
        prior = shape_model(run)
        with worker_pool(run.workers) as pool:
            heads, fitted = load_sources(run, config.samples, prior, pool, progress)
            cases = store_cases(run, prior, pool, progress)
        same_recipe(run.out / "config.json", config)
    cuts = Cuts(fitted, heads, windows, accelerator.device)
    task = task_of(config, cuts, heads.mean(), cases, accelerator.device)
    state = Loop(task, accelerator, progress).run()
    return task.weights if math.isfinite(state.best) else task.checkpoint


class VolumetricTask(WindowsTask):
    """The volumetric U-Net as a `Task` of the training loop."""

    score = "val_fused"
    config: VolumetricTrainConfig

    def make(self) -> UNet3d:
        """See `WindowsTask`."""
        return self.config.network.make()

    def load(self, path: Path) -> VolumetricModel:
        """See `WindowsTask`."""
        return VolumetricModel.load(path)

    def loss(self, model: nn.Module, windows: Windows) -> Tensor:
        """See `WindowsTask`."""
        return missing_loss(model(windows.fine, windows.coarse).float() + windows.tables, windows.missing)

    def validate(self) -> dict[str, float]:
        """See `Task`."""
        return validate(self.averaged(), dict(self.cases), str(self.device))

    def averaged(self) -> VolumetricModel:
        """See `WindowsTask`."""
        network = self.averaged_network()
        assert isinstance(network, UNet3d)
        return VolumetricModel(network, self.mean, VolumetricConfig(network=self.config.network))
