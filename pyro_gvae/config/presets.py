"""Published settings, by name; no torch."""

from typing import NamedTuple, get_args

from .names import EstimatorName
from .train import TrainConfig

#: Kravets 2023: see `schedules.article`. Its training loop resets the temperature in every epoch.
ARTICLE = TrainConfig(
    dataset="mnist",
    binarize="none",
    stages="gumbel-softmax[kl=categorical]:3",
    num_latents=20,
    num_categories=10,
    hidden=(512, 256),
    relu_logits=True,
    batch_size=100,
    learning_rate=1e-3,
    temperature="article:600",
)

#: Jang, Gu and Poole 2017, arXiv 1611.01144, section 4: stochastic gradient descent with momentum 0.9, temperature
#: max(0.5, exp(-rate * step)) updated every 1000 steps, analytic KL of the categoricals.
JANG = TrainConfig(
    dataset="mnist",
    binarize="threshold",
    stages="gumbel-softmax[kl=categorical]:160",
    num_latents=20,
    num_categories=10,
    hidden=(512, 256),
    batch_size=100,
    optimizer="SGD[momentum=0.9]",
    learning_rate=1e-4,
    clip_norm=10.0,
    temperature="exponential:1.0,3e-5,0.5,1000",
)

#: Maddison, Mnih and Teh 2017, arXiv 1611.00712: 8-ary, relaxed KL, temperatures 2/3 (posterior) and 2/5 (prior).
MADDISON = TrainConfig(
    dataset="mnist",
    binarize="threshold",
    stages="gumbel-softmax[kl=relaxed]:160",
    num_latents=80,
    num_categories=8,
    hidden=(240,),
    batch_size=64,
    learning_rate=3e-4,
    temperature=2 / 3,
    prior_temperature=2 / 5,
)


class BestSettings(NamedTuple):
    """The best settings that a search under the ReinMax protocol found."""

    optimizer: str
    learning_rate: float
    temperature: float


#: Liu et al. 2023, arXiv 2304.08612, and Wang and Bui 2026, arXiv 2603.08257: estimator -> K x N -> settings.
SEARCHED: dict[str, dict[str, BestSettings]] = {
    "reinmax": {
        "8x4": BestSettings("Adam", 5e-4, 1.3),
        "4x24": BestSettings("RAdam", 5e-4, 1.5),
        "8x16": BestSettings("RAdam", 7e-4, 1.5),
        "16x12": BestSettings("RAdam", 7e-4, 1.5),
        "64x8": BestSettings("RAdam", 5e-4, 1.5),
        "10x30": BestSettings("RAdam", 5e-4, 1.3),
    },
    "st-gumbel-softmax": {
        "8x4": BestSettings("Adam", 3e-4, 0.5),
        "4x24": BestSettings("RAdam", 5e-4, 0.3),
        "8x16": BestSettings("RAdam", 5e-4, 0.5),
        "16x12": BestSettings("RAdam", 7e-4, 0.7),
        "64x8": BestSettings("RAdam", 7e-4, 0.7),
        "10x30": BestSettings("RAdam", 5e-4, 0.5),
    },
    "gumbel-rao": {
        "8x4": BestSettings("Adam", 5e-4, 0.5),
        "4x24": BestSettings("RAdam", 5e-4, 0.3),
        "8x16": BestSettings("RAdam", 7e-4, 0.7),
        "16x12": BestSettings("Adam", 5e-4, 1.0),
        "64x8": BestSettings("Adam", 7e-4, 2.0),
        "10x30": BestSettings("RAdam", 5e-4, 1.0),
    },
    "gapped-straight-through": {
        "8x4": BestSettings("Adam", 5e-4, 1.0),
        "4x24": BestSettings("RAdam", 5e-4, 0.5),
        "8x16": BestSettings("RAdam", 7e-4, 0.5),
        "16x12": BestSettings("RAdam", 7e-4, 0.5),
        "64x8": BestSettings("RAdam", 7e-4, 0.7),
        "10x30": BestSettings("RAdam", 5e-4, 0.5),
    },
    "straight-through": {
        "8x4": BestSettings("Adam", 1e-3, 1.3),
        "4x24": BestSettings("RAdam", 1e-3, 1.5),
        "8x16": BestSettings("RAdam", 1e-3, 1.5),
        "16x12": BestSettings("Adam", 5e-4, 1.5),
        "64x8": BestSettings("Adam", 5e-4, 1.5),
        "10x30": BestSettings("RAdam", 7e-4, 1.4),
    },
}


def reinmax_protocol(estimator: str, size: str) -> TrainConfig:
    """Return the settings of the ReinMax benchmark for categorical VAEs: grey MNIST, 160 epochs, batches of 100.

    Args:
        estimator: a key of `SEARCHED`.
        size: K x N, such as "8x4": K = 8 categories, N = 4 latents.
    """
    num_categories, num_latents = map(int, size.split("x"))
    searched = SEARCHED[estimator][size]
    return TrainConfig(
        dataset="mnist",
        binarize="none",
        stages=f"{estimator}[temperature={searched.temperature}]:160",
        num_latents=num_latents,
        num_categories=num_categories,
        hidden=(512, 256),
        batch_size=100,
        optimizer=searched.optimizer,
        learning_rate=searched.learning_rate,
    )


#: name -> configuration. `reinmax-8x4` is tuned for ReinMax; `reinmax-8x4-gumbel-rao` is the same protocol tuned for
#: Gumbel-Rao.
PRESETS: dict[str, TrainConfig] = {
    "article": ARTICLE,
    "jang": JANG,
    "maddison": MADDISON,
    **{
        f"reinmax-{size}" + ("" if estimator == "reinmax" else f"-{estimator}"): reinmax_protocol(estimator, size)
        for estimator, sizes in SEARCHED.items()
        if estimator in get_args(EstimatorName)
        for size in sizes
    },
}
