"""Statistics of gradients from sums: unbiased, with standard errors of the right size."""

import math

import pytest
import torch

from pyro_gvae.diagnostics.moments import Reference, gather, summarize

M, SAMPLES, REPEATS = 5, 256, 200
TRUTH = torch.tensor([2.0, -1.0, 0.5, 0.0, 1.0], dtype=torch.float64)
STD = torch.tensor([4.0, 1.0, 2.0, 3.0, 0.5], dtype=torch.float64)


def repeated(bias, reference=None):
    """Return many reports on Gaussian estimates with mean TRUTH + bias, as tensors by name."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(REPEATS):
        noise = torch.randn(SAMPLES, M, generator=generator, dtype=torch.float64)
        g = TRUTH + bias + STD * noise
        against = Reference(TRUTH) if reference is None else reference(generator)
        sums = gather(g.split(100), against.gradient, num_samples=SAMPLES, num_groups=16)
        rows.append(summarize(sums, against, samples_per_budget=10.0))
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def expected(bias):
    mean, noise, scale = TRUTH + bias, STD.square().sum(), TRUTH.square().sum()
    squared_bias = mean.sub(TRUTH).square().sum()
    values = {
        "squared_bias": squared_bias / scale,
        "relative_std": (noise / mean.square().sum()).sqrt(),
        "cosine": torch.cosine_similarity(mean, TRUTH, dim=0),
        "mse": (squared_bias + noise) / scale,
        "mse_at_budget": (squared_bias + noise / 10) / scale,
        "progress": (mean @ TRUTH).square() / ((mean.square().sum() + noise) * scale),
    }
    return {name: float(value) for name, value in values.items()}


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_statistics_are_right_on_average_and_know_their_errors(bias):
    found = repeated(bias)
    for name, value in expected(bias).items():
        spread = found[name].std()
        if not (name == "cosine" and bias == 0):  # it is 1, and can be no larger
            # The bias of a ratio is of second order: a fifth of its standard error.
            assert abs(found[name].mean() - value) < 5 * spread / math.sqrt(REPEATS) + 0.2 * spread, name
            assert 0.75 < found[f"{name}_se"].mean() / spread < 1.6, name
        covered = (found[name] - value).abs() < 3 * found[f"{name}_se"]
        assert covered.double().mean() > 0.95, name


def test_the_squared_bias_of_the_plain_mean_is_inflated():
    noise = float(STD.square().sum() / TRUTH.square().sum()) / SAMPLES
    found = repeated(0.0)["squared_bias"]
    assert abs(found.mean()) < 5 * found.std() / math.sqrt(REPEATS)
    assert noise > 10 * found.std() / math.sqrt(REPEATS)  # the inflation is visible at this size


def test_a_sampled_reference_is_known_to_be_one():
    n = 64

    def reference(generator):
        noise = torch.randn(M, generator=generator, dtype=torch.float64)
        return Reference(TRUTH + STD * noise / math.sqrt(n), float(STD.square().sum()) / n, "sampled")

    found = repeated(0.0, reference)
    spread = found["squared_bias"].std() / math.sqrt(REPEATS)
    assert abs(found["squared_bias"].mean()) < 5 * spread
    assert float(STD.square().sum() / TRUTH.square().sum()) / n > 10 * spread


def test_one_estimate_is_taken_for_exact():
    sums = gather([TRUTH.unsqueeze(0)], TRUTH, num_samples=1, num_groups=1)
    row = summarize(sums, Reference(TRUTH), samples_per_budget=1.0)
    assert row["squared_bias"] == row["relative_std"] == row["mse"] == 0 and row["cosine"] == pytest.approx(1)
    assert row["snr"] == math.inf and all(value == 0 for name, value in row.items() if name.endswith("_se"))


def test_noise_without_a_signal_is_no_number():
    g = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64).repeat(16, 1)
    row = summarize(
        gather([g], torch.ones(2, dtype=torch.float64), num_samples=32, num_groups=4),
        Reference(torch.ones(2, dtype=torch.float64)),
        samples_per_budget=1.0,
    )
    assert math.isnan(row["relative_std"]) and math.isnan(row["cosine"]) and row["squared_bias"] < 1


@pytest.mark.parametrize("blocks", [[40], [1, 13, 26], [1] * 40])
def test_blocks_do_not_matter(blocks):
    g = torch.randn(40, M, dtype=torch.float64)
    whole, cut = (gather(g.split(b), TRUTH, num_samples=40, num_groups=7) for b in ([40], blocks))
    for one, other in zip(whole, cut, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(whole.mean, g.mean(0))
    torch.testing.assert_close(whole.variance, g.var(0))
    assert whole.counts.sum() == 40 and whole.counts.max() - whole.counts.min() <= 1


def test_noise_of_the_mean_is_no_signal():
    """By hand: the signal of a coordinate is its squared mean minus that of the noise; one coordinate does not vary."""
    g = torch.randn(64, 40, dtype=torch.float64) + torch.linspace(0, 1, 40)
    g[:, 0] = 1.0
    sums = gather([g], torch.ones(40).double(), num_samples=64, num_groups=4)
    row = summarize(sums, Reference(torch.ones(40).double()), samples_per_budget=1.0)
    squares, variance = g[:, 1:].mean(0).square(), g[:, 1:].var(0)
    expected = ((squares - variance / 64).clamp_min(0) / variance).sqrt().mean().item()
    assert row["snr"] == pytest.approx(expected)
    assert (squares < variance / 64).any()
