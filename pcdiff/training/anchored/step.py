"""The losses of one training step of the anchored denoiser."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from pcdiff.diffusion.loss import add_noise, denoising_loss, pseudo_huber
from pcdiff.methods.anchored.method import bind
from pcdiff.methods.anchored.network import AnchoredDenoiser
from pcdiff.training.recipes import TrainConfig

KNEE = 0.7  # mm: larger errors of the guide count linearly, as evaluation scores do


class TrainingStep(nn.Module):
    """All of a step that needs gradients, in one forward, so that a distributed wrapper sees it."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.denoiser = AnchoredDenoiser(config.network)
        self.encoded = config.optimiser.encoded
        self.noises = config.optimiser.noises

    def forward(self, batch: dict[str, Tensor], sigma: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The losses of denoising, of the guide's mean and of the normals, each a scalar.

        The guide is cheap and learns from all B pairs; the rest of the network from the first E of them, each under k
        noises.

        Args:
            batch: fields of `Condition` and `Pair` by name, (B, ...) float32.
            sigma: (E k,) noise levels.
            noise: (E k, P) draws of the prior's posterior, in its standard deviations.
        """
        guide = self._guide_loss(batch)
        batch = {name: value[: self.encoded] for name, value in batch.items()}
        skull = bind(self.denoiser, batch).repeated(self.noises)
        target, valid, std_mm, true_normals = (
            batch[name].repeat_interleave(self.noises, 0)
            for name in ("target", "valid", "prior_std_mm", "true_normals")
        )
        denoised = self.denoiser(add_noise(target, sigma, noise), sigma, skull)
        # a compromise: squared millimetres would favour a few wide defects, the prior's own units the rims
        weight = valid * std_mm
        weight = weight / weight.mean()
        loss = denoising_loss(denoised.x0[:, None], target[:, None], sigma, weight, sigma_data=1.0)
        cosine = (denoised.normals * rearrange(true_normals, "b p xyz -> b xyz p")).sum(1)
        return loss, guide, ((1 - cosine) * valid).mean()

    def _guide_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Pseudo-Huber loss of the predicted mean, in mm."""
        error = self.denoiser.predict_mean(batch["anchor_features"]) - batch["target"]
        return (batch["valid"] * pseudo_huber(error * batch["prior_std_mm"], KNEE)).mean()
