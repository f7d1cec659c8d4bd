"""Diffusion against closed forms: for Gaussian data the ideal denoiser and the sampling ODE are known exactly."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from pcdiff.diffusion import (
    SAMPLERS,
    Ema,
    add_noise,
    denoising_loss,
    karras_sigmas,
    log_normal_sigmas,
)
from pcdiff.diffusion.loss import loss_weight
from pcdiff.diffusion.preconditioning import per_sample, scaling

MU, S = 0.7, 0.5
SIGMA_MIN, SIGMA_MAX = 0.01, 20.0
DETERMINISTIC = ["euler", "heun", "dpmpp_2m"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def ideal(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x] for x0 ~ N(MU, S^2), elementwise."""
    variance = sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2
    return (S**2 * x + variance * MU) / (S**2 + variance)


def flow(x: Tensor, sigma_from: float, sigma_to: float) -> Tensor:
    """The probability-flow ODE's exact solution for that data."""
    return MU + (x - MU) * math.sqrt((S**2 + sigma_to**2) / (S**2 + sigma_from**2))


# --- schedule -------------------------------------------------------------------------------------------------------


def test_karras_sigmas() -> None:
    sigmas = karras_sigmas(18, 0.002, 80.0)
    assert sigmas.shape == (19,)
    assert sigmas.dtype == torch.float64
    assert sigmas[0] == 80
    assert sigmas[-2].item() == pytest.approx(0.002)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    root = sigmas[:-1] ** (1 / 7)
    torch.testing.assert_close(root.diff(), root.diff().mean().expand(17))  # evenly spaced in sigma^(1/rho)
    torch.testing.assert_close(karras_sigmas(3, 1.0, 3.0, rho=1.0), torch.tensor([3.0, 2.0, 1.0, 0.0]).double())
    assert karras_sigmas(1, 0.5, 3.0).tolist() == [3, 0]


@pytest.mark.parametrize(("n", "low", "high"), [(0, 0.1, 1.0), (5, 0.0, 1.0), (5, 2.0, 1.0)])
def test_karras_sigmas_refuses_nonsense(n: int, low: float, high: float) -> None:
    with pytest.raises(ValueError, match="must"):
        karras_sigmas(n, low, high)


def test_training_sigmas_have_their_distribution() -> None:
    log = log_normal_sigmas(40_000, -1.2, 0.9, seeded()).log()
    assert log.shape == (40_000,)
    assert log.mean().item() == pytest.approx(-1.2, abs=0.02)
    assert log.std().item() == pytest.approx(0.9, abs=0.02)
    assert torch.equal(log, log_normal_sigmas(40_000, -1.2, 0.9, seeded()).log())


# --- preconditioning --------------------------------------------------------------------------------------------------


def test_preconditioning_at_known_places() -> None:
    at_data = scaling(torch.tensor(0.5), 0.5)  # sigma = sigma_data: an even mixture
    assert at_data.c_skip.item() == pytest.approx(0.5)
    assert at_data.c_out.item() == pytest.approx(0.5 / 2**0.5)
    assert at_data.c_in.item() == pytest.approx(2**0.5)
    assert at_data.c_noise.item() == pytest.approx(math.log(0.5) / 4)
    # Hardly any noise: the sample is its own denoised version. Nothing but noise: the network alone answers.
    low, high = scaling(torch.tensor(1e-6), 0.5), scaling(torch.tensor(1e6), 0.5)
    assert low.c_skip.item() == pytest.approx(1)
    assert low.c_out.item() == pytest.approx(0, abs=2e-6)
    assert high.c_skip.item() == pytest.approx(0, abs=2e-6)
    assert high.c_out.item() == pytest.approx(0.5)


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 3, 7), (2, 1, 4, 4, 4)])
def test_scalar_sigma_and_any_trailing_shape(shape: tuple[int, ...]) -> None:
    x = normal(*shape, dtype=torch.float32)
    expected = torch.full((2, *[1] * (len(shape) - 1)), 2.0)
    assert torch.equal(per_sample(torch.tensor(2.0, dtype=torch.float64), x), expected)
    assert torch.equal(per_sample(torch.full((2,), 2.0), x), expected)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_design_criteria_by_monte_carlo(sigma: float) -> None:
    """Input and target of the network have unit variance, and c_skip leaves the smallest c_out (EDM, appendix B.6)."""
    sigma_data, level = 0.8, torch.tensor(sigma, dtype=torch.float64)
    clean, noise = sigma_data * normal(200_000), normal(200_000, seed=1)
    noisy, c = clean + sigma * noise, scaling(level, sigma_data)
    assert (c.c_in * noisy).var().item() == pytest.approx(1, abs=0.01)
    assert ((clean - c.c_skip * noisy) / c.c_out).var().item() == pytest.approx(1, abs=0.01)
    left = [(clean - (c.c_skip + change) * noisy).var() for change in (-0.05, 0.0, 0.05)]
    assert left[1] == min(left)


# --- samplers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_order_of_convergence(name: str, order: int) -> None:
    x = MU + SIGMA_MAX * normal(4, 3, 10)
    exact = flow(x, SIGMA_MAX, SIGMA_MIN)
    errors = []
    for n in (41, 81, 161):  # 40, 80, 160 steps, without the one to 0, which is first order for all
        out = SAMPLERS[name](ideal, x, karras_sigmas(n, SIGMA_MIN, SIGMA_MAX)[:-1])
        errors.append((out - exact).abs().max().item())
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


def test_dpmpp_2m_extrapolates_to_the_middle_of_uneven_steps() -> None:
    """For x0 linear in lambda = -ln(sigma), the second step must use x0 at its mid-lambda, whatever the first's length.

    The order of convergence does not show it: with a wrong ratio of steps the errors telescope.
    """
    start, sigmas = torch.full((1, 3, 2), 5.0).double(), torch.tensor([4.0, 3.0, 0.5]).double()
    x1 = -math.log(4) + 3 / 4 * (5 + math.log(4))
    middle = -(math.log(3) + math.log(0.5)) / 2
    x2 = middle + 0.5 / 3 * (x1 - middle)
    out = SAMPLERS["dpmpp_2m"](lambda x, sigma: -sigma.log()[:, None, None].expand_as(x), start, sigmas)
    torch.testing.assert_close(out, torch.full_like(start, x2))


@pytest.mark.parametrize(("name", "tolerance"), [("euler", 0.06), ("heun", 4e-3), ("dpmpp_2m", 4e-3)])
def test_sampling_reaches_the_data(name: str, tolerance: float) -> None:
    x = MU + SIGMA_MAX * normal(4, 3, 10)
    out = SAMPLERS[name](ideal, x, karras_sigmas(64, 1e-3, SIGMA_MAX))
    torch.testing.assert_close(out, flow(x, SIGMA_MAX, 0.0), atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_known_data_is_reached_in_one_step(name: str) -> None:
    truth = normal(2, 3, 5, seed=3)
    out = SAMPLERS[name](lambda x, sigma: truth, normal(2, 3, 5) * 4, karras_sigmas(1, 1.0, 4.0), generator=seeded())
    torch.testing.assert_close(out, truth)


def test_ancestral_sampling_reproduces_mean_and_variance() -> None:
    x = MU + SIGMA_MAX * normal(2, 3, 5000)
    out = SAMPLERS["ancestral"](ideal, x, karras_sigmas(400, 1e-3, SIGMA_MAX), generator=seeded(1))
    assert out.mean().item() == pytest.approx(MU, abs=0.01)
    assert out.std().item() == pytest.approx(S, abs=0.015)
    # The start is all but forgotten: what is left is the correlation of x0 and x0 + SIGMA_MAX n.
    left = torch.corrcoef(torch.stack([x.flatten(), out.flatten()]))[0, 1].item()
    assert left == pytest.approx(S / math.hypot(S, SIGMA_MAX), abs=0.02)


def test_variance_of_few_ancestral_steps_is_the_exact_one() -> None:
    """All is linear for Gaussian data, so the variance follows a recursion: 0.40^2 after 20 steps, not yet 0.5^2."""
    sigmas = karras_sigmas(20, 1e-3, SIGMA_MAX)
    variance = SIGMA_MAX**2
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        gain, k = S**2 / (S**2 + sigma**2), (sigma_next / sigma) ** 2
        variance = (gain + k * (1 - gain)) ** 2 * variance + sigma_next**2 * (1 - k)
    x = MU + SIGMA_MAX * normal(4, 3, 10_000)
    out = SAMPLERS["ancestral"](ideal, x, sigmas, generator=seeded(1))
    assert out.std().item() == pytest.approx(math.sqrt(variance), rel=0.01)


def linear_ddpm(steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """betas, alpha_bars of the linear schedule, and the sigmas they stand for, in descending order, then 0."""
    betas = torch.linspace(1e-4, 0.5, steps, dtype=torch.float64)
    bars = (1 - betas).cumprod(0)
    return betas, bars, torch.cat([((1 - bars) / bars).sqrt().flip(0), torch.zeros(1, dtype=torch.float64)])


def test_ancestral_equals_ddpm() -> None:
    """Ho et al. 2020, algorithm 2 with the posterior variance, on x / (1 + sigma^2)^0.5 and the same noise."""
    betas, bars, sigmas = linear_ddpm(12)
    start = normal(1, 3, 6)
    ours = SAMPLERS["ancestral"](ideal, start / bars[-1].sqrt(), sigmas, generator=seeded(5))
    x, noises = start, seeded(5)
    for t in reversed(range(12)):
        x0 = ideal(x / bars[t].sqrt(), ((1 - bars[t]) / bars[t]).sqrt())
        eps = (x - bars[t].sqrt() * x0) / (1 - bars[t]).sqrt()
        x = (x - betas[t] / (1 - bars[t]).sqrt() * eps) / (1 - betas[t]).sqrt()
        if t > 0:
            variance = betas[t] * (1 - bars[t - 1]) / (1 - bars[t])
            x = x + variance.sqrt() * torch.randn(x.shape, generator=noises, dtype=x.dtype)
    torch.testing.assert_close(ours, x)


def test_euler_equals_ddim() -> None:
    """Song et al. 2021, eq. 12 with sigma_t = 0."""
    _, bars, sigmas = linear_ddpm(12)
    x = start = normal(1, 3, 6)
    for t in reversed(range(12)):
        x0 = ideal(x / bars[t].sqrt(), ((1 - bars[t]) / bars[t]).sqrt())
        eps = (x - bars[t].sqrt() * x0) / (1 - bars[t]).sqrt()
        before = bars[t - 1] if t > 0 else torch.ones(())
        x = before.sqrt() * x0 + (1 - before).sqrt() * eps
    torch.testing.assert_close(SAMPLERS["euler"](ideal, start / bars[-1].sqrt(), sigmas), x)


def test_ancestral_needs_a_generator_and_obeys_it() -> None:
    sample = partial(SAMPLERS["ancestral"], ideal, normal(2, 3, 5), karras_sigmas(5, 0.01, 1.0))
    assert torch.equal(sample(generator=seeded(1)), sample(generator=seeded(1)))
    assert not torch.equal(sample(generator=seeded(1)), sample(generator=seeded(2)))
    with pytest.raises(ValueError, match="generator"):
        sample()


@pytest.mark.parametrize("name", SAMPLERS)
def test_callback_and_evaluations(name: str) -> None:
    sigmas, start = karras_sigmas(6, 0.01, 3.0), normal(2, 3, 5)
    seen: list[tuple[int, Tensor, Tensor]] = []
    levels: list[float] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == (2,)
        levels.append(sigma[0].item())
        return ideal(x, sigma)

    SAMPLERS[name](denoise, start, sigmas, generator=seeded(), callback=lambda *event: seen.append(event))
    assert [step for step, _, _ in seen] == list(range(6))
    assert torch.equal(seen[0][1], start)
    for step, x, x0 in seen:
        torch.testing.assert_close(x0, ideal(x, sigmas[step]))
    assert len(levels) == (11 if name == "heun" else 6)
    assert min(levels) > 0


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_samplers_keep_dtype_accumulate_wide_and_do_not_mutate(name: str, dtype: torch.dtype) -> None:
    x = normal(2, 3, 5).to(dtype)
    before, widths = x.clone(), set()

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        widths.add(x.dtype)
        return ideal(x, sigma).bfloat16()  # as under autocast

    out = SAMPLERS[name](denoise, x, karras_sigmas(4, 0.01, 1.0), generator=seeded())
    assert out.dtype == dtype
    assert out.device == x.device
    assert widths == {torch.float64 if dtype == torch.float64 else torch.float32}
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("sigmas", [[1.0, 2.0, 0.0], [2.0, 2.0, 0.0], [1.0, -0.5]])
def test_sigmas_must_descend(name: str, sigmas: list[float]) -> None:
    with pytest.raises(ValueError, match="descend"):
        SAMPLERS[name](ideal, normal(1, 3, 5), torch.tensor(sigmas), generator=seeded())


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_ensemble_in_one_batch_is_the_loop(name: str) -> None:
    x, sigmas = normal(3, 3, 5), karras_sigmas(5, 0.01, 2.0)
    single = [SAMPLERS[name](ideal, x[b : b + 1], sigmas) for b in range(3)]
    torch.testing.assert_close(SAMPLERS[name](ideal, x, sigmas), torch.cat(single))


# --- loss -----------------------------------------------------------------------------------------------------------


def test_loss_weight_is_one_over_c_out_squared() -> None:
    sigma = torch.tensor([0.1, 0.5, 3.0])
    torch.testing.assert_close(loss_weight(sigma, 0.5), scaling(sigma, 0.5).c_out ** -2)
    assert loss_weight(torch.tensor(0.5), 0.5).item() == pytest.approx(8)  # 2 s^2 / s^4


def test_loss_is_the_weighted_mean_by_hand() -> None:
    clean, noise = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    sigma, weight = torch.tensor([0.2, 2.0]).double(), torch.tensor([[1.0, 1, 0, 0.5], [0, 1, 1, 1]]).double()
    expected = 0.0
    for b in range(2):
        given = ideal(clean[b] + sigma[b] * noise[b], sigma[b])
        weighting = (sigma[b] ** 2 + S**2) / (sigma[b] * S) ** 2
        expected += (weight[b] * weighting * ((given - clean[b]) ** 2).mean(0)).sum().item()
    loss = denoising_loss(ideal(add_noise(clean, sigma, noise), sigma), clean, sigma, weight, S)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected / weight.sum().item())


def test_loss_of_a_perfect_denoiser_and_of_an_idle_network() -> None:
    clean, noise = 0.5 * normal(64, 3, 500), normal(64, 3, 500, seed=1)
    sigma, weight = log_normal_sigmas(64, -1.0, 1.0, seeded()), torch.ones(64, 500)
    assert denoising_loss(clean, clean, sigma, weight, 0.5) == 0
    # The target has unit variance at every noise level: a network that outputs 0 scores 1.
    noisy = add_noise(clean, sigma, noise)
    idle = scaling(per_sample(sigma, noisy), 0.5).c_skip * noisy
    assert denoising_loss(idle, clean, sigma, weight, 0.5).item() == pytest.approx(1, abs=0.02)


def test_padding_has_no_part_in_loss_or_gradient() -> None:
    raw, weight = nn.Parameter(normal(1, 3, 4)), torch.tensor([[1.0, 1, 0, 0]]).double()
    clean, sigma = normal(1, 3, 4, seed=1), torch.ones(1)

    def loss(clean: Tensor) -> Tensor:
        return denoising_loss(raw, clean, sigma, weight, S)

    other = clean.clone()
    other[..., 2:] = 99
    assert loss(clean) == loss(other)
    loss(clean).backward()
    assert (raw.grad[..., 2:] == 0).all()
    assert (raw.grad[..., :2] != 0).all()


# --- averaged weights -----------------------------------------------------------------------------------------------


class Counter(nn.Module):
    """One weight and a counter in a buffer."""

    def __init__(self, value: float, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value], dtype=dtype))
        self.register_buffer("seen", torch.tensor(0))


def test_ema_is_the_power_weighted_mean() -> None:
    power, steps = 3.0, 20
    ema, values = Ema(Counter(99.0), power), normal(steps).tolist()
    for t, value in enumerate(values, start=1):
        ema.update(Counter(value), t)
    weights = [(t / steps) ** (power + 1) - ((t - 1) / steps) ** (power + 1) for t in range(1, steps + 1)]
    assert sum(weights) == pytest.approx(1)  # so nothing is left of the initial 99
    assert ema.average["weight"].item() == pytest.approx(sum(w * v for w, v in zip(weights, values, strict=True)))
    flat = Ema(Counter(99.0), 0.0)
    for t, value in enumerate(values, start=1):
        flat.update(Counter(value), t)
    assert flat.average["weight"].item() == pytest.approx(sum(values) / steps)


def test_ema_does_not_mind_steps_left_out() -> None:
    often, seldom = Ema(Counter(0.0)), Ema(Counter(0.0))
    for t in range(1, 41):
        model = Counter(float((t - 1) // 8))  # constant between the seldom updates
        often.update(model, t)
        if t % 8 == 0:
            seldom.update(model, t)
    torch.testing.assert_close(often.average["weight"], seldom.average["weight"])
    with pytest.raises(ValueError, match="grow"):
        seldom.update(model, 40)


def test_ema_resumes_bit_for_bit() -> None:
    straight, before = Ema(Counter(0.0)), Ema(Counter(0.0))
    for t in range(1, 6):
        straight.update(Counter(t**0.5), t)
        before.update(Counter(t**0.5), t)
    state = before.state_dict()
    before.update(Counter(7.0), 6)  # the saved state is a copy
    after = Ema(Counter(5.0))
    after.load_state_dict(state)
    for t in range(6, 10):
        straight.update(Counter(t**0.5), t)
        after.update(Counter(t**0.5), t)
    resumed = after.state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in straight.state_dict().items())
    with pytest.raises(ValueError, match=r"average\.seen"):
        after.load_state_dict({name: value for name, value in state.items() if "seen" not in name})


def test_ema_averages_half_precision_in_float32_and_copies_counters() -> None:
    model = Counter(1.0, torch.bfloat16)
    ema = Ema(model)
    model.seen += 7
    ema.update(model, 1)
    assert ema.average["seen"] == 7
    model.weight.data += 1
    ema.update(model, 1000)  # hardly remembers step 1
    ema.update(Counter(1.0, torch.bfloat16), 1001)
    assert ema.average["weight"].dtype == torch.float32
    assert ema.average["weight"].item() == pytest.approx(2 - (1 - (1000 / 1001) ** 8))
    model.seen.zero_()
    ema.average["seen"].fill_(3)
    ema.copy_to(model)
    assert model.weight.dtype == torch.bfloat16
    assert model.weight.item() == 1.9921875  # in bf16's steps of 1/128
    assert model.seen == 3
    with pytest.raises(ValueError, match="power"):
        Ema(model, -1.0)
