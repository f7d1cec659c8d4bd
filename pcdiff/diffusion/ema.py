"""A running average of a model's weights whose memory grows with training: one setting for any length of run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# ----------------------------------------------------------------------------
# Power-function average (Karras et al. 2024, EDM2, Section 3.1 and Equation 127): the weights after step t count as
# t^power. The update at step t is average <- beta * average + (1 - beta) * weights, beta = (1 - 1/t)^(power + 1).
# The profile's standard deviation, as a fraction of all steps so far, is ((p + 1) / (p + 2)^2 / (p + 3))^0.5:
# 0.10 at p = 7, 0.05 at p = 17.


class Ema:
    """Average of a model's weights, on the device that the model is on at construction.

    Unlike a constant decay it needs no warm-up: the first update forgets the initial weights. Averages are float32 at
    least. What is not floating point (counters in buffers) is copied.
    """

    def __init__(self, model: nn.Module, power: float = 7.0) -> None:
        if not power >= 0:
            raise ValueError(f"power must be 0 (flat average) or more, got {power}")
        self.power = power
        self.step = 0
        self.average = {name: _float32_at_least(value).clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Adds the weights after optimiser step `step` = 1, 2, ...; steps may be left out, never repeated.

        Raises ValueError for a step not after the last one.
        """
        if step <= self.step:
            raise ValueError(f"step must grow, got {step} after {self.step}")
        # the product of Equation 127 over all steps since the last update telescopes to this
        beta = (self.step / step) ** (self.power + 1)
        for name, value in model.state_dict().items():
            average = self.average[name]
            if average.is_floating_point():
                average.lerp_(value.to(average), 1 - beta)
            else:
                average.copy_(value)
        self.step = step

    def copy_to(self, model: nn.Module) -> None:
        """Writes the averages into a model of the same architecture, in its own dtype and on its device."""
        model.load_state_dict(self.average)

    def state_dict(self) -> dict[str, Tensor]:
        """All that `update` needs to go on, as flat tensors (copies), for safetensors or torch.save."""
        averages = {f"average.{name}": value.clone() for name, value in self.average.items()}
        return {"step": torch.tensor(self.step), **averages}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores a saved state on the present devices. Raises ValueError if its names are not those of the model."""
        expected = {"step", *(f"average.{name}" for name in self.average)}
        if state.keys() != expected:
            odd = sorted(state.keys() ^ expected)
            raise ValueError(f"the state must be of an Ema of this model; names that differ: {', '.join(odd[:5])}")
        for name, average in self.average.items():
            average.copy_(state[f"average.{name}"])
        self.step = int(state["step"])


def _float32_at_least(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32)) if value.is_floating_point() else value
