"""What a training run is told, as a frozen dataclass, checked when made; no torch."""

import dataclasses
import math
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from ..schedules import schedule
from .json import plain_settings, read_settings
from .names import Binarization, DatasetName, JudgeOrAuto, NetworksName, ObservationName, Shard
from .stages import Amount, Named, Stage, parse_stages


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train one categorical VAE, in one or several stages of estimators, and keep it in a run folder.

    Amounts of training are epochs (`20`), steps (`500steps`) or seconds (`60s`).

    Schedules are functions of the step: a number, or `exponential:initial,rate,floor`, `linear:initial,final,steps`,
    `cosine:initial,final,steps`.

    `--preset NAME` takes published settings in place of the defaults: article, jang, maddison, or reinmax-KxN, KxN
    being one of 8x4, 4x24, 8x16, 16x12, 64x8 and 10x30; other options override them.

    Args:
        dataset: What to train on; digits and teacher need no files.
        data_dir: The folder of the data sets that have files, as torchvision lays them out.
        download: Fetch absent files into the data folder.
        binarize: Grey pixels as they are (none), black or white at 1/2, or drawn anew for every batch (dynamic).
        stages: Estimators in their order, and how much each trains, with options in brackets:
            gumbel-softmax[kl=categorical]:20,exact:3.
        num_latents: N, one-hots in the code.
        num_categories: K, categories of each.
        networks: Multilayer perceptrons (mlp), or convolutions below them (conv).
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse.
        observation: Distribution of a pixel.
        num_levels: L, of categorical pixels, to whose levels 0 .. L - 1 grey ones are rounded.
        learn_prior: Learn the prior of the code, in place of a uniform one.
        relu_logits: A ReLU on the encoder's logits too, as in the article.
        batch_size: B, images in a batch.
        optimizer: A class of torch.optim, with options in brackets: SGD[momentum=0.9].
        learning_rate: Step size of the optimizer, a number or a schedule.
        clip_norm: The largest norm of the gradient, in nats per datum.
        temperature: Temperature of the guide's relaxation: a number or a schedule; 2/3 if not given.
        prior_temperature: Temperature of the model's relaxation: a number or a schedule; 2/5 if not given.
        beta: Weight of the KL in the objective, a number or a schedule that may touch 0, such as linear:0,1,1000; no
            weight if not given. The reported ELBO is never weighed.
        free_bits: The KL in nats that each latent may have for free in the objective, on average over a batch.
        seed: Seed of initial weights, order of the data and all random draws.
        steps: Stop after so many steps in all.
        seconds: Stop after so many seconds of training in all, evaluations not counted.
        patience: End a stage after so many evaluations in a row without a better discrete test ELBO.
        evaluate_every: Evaluate the discrete model each so many epochs (1), steps (500steps) or seconds (60s).
        judge: How to find the discrete ELBO: summed over all codes, sampled, or not at all; auto sums where that takes
            fewer than 1e12 operations, about ten seconds on two cores. What was taken is written into config.json.
        checkpoint_every: Write a checkpoint each so many epochs, steps or seconds.
        max_skipped: Stop after so many steps in a row whose loss or gradient is not finite.
        max_memory: Gigabytes that an exact sum may take.
        device: Where to train: cpu, cuda, cuda:1.
        compile: Compile the recorded step by Inductor; needs a compiler, and half a minute.
        shard: What the processes of torchrun divide: the data of each batch, or the codes of exact sums.
        tensorboard: Write TensorBoard's files too, into the run folder; needs the extra tensorboard.
        output: The run folder, which must not exist; runs/train-DATE-TIME if not given.
    """

    dataset: DatasetName = "digits"
    data_dir: Path = Path("data")
    download: bool = False
    binarize: Binarization = "threshold"
    stages: str = "gumbel-softmax:100"
    num_latents: int = 4
    num_categories: int = 8
    networks: NetworksName = "mlp"
    hidden: tuple[int, ...] = (128,)
    observation: ObservationName = "bernoulli"
    num_levels: int = 256
    learn_prior: bool = False
    relu_logits: bool = False
    batch_size: int = 64
    optimizer: str = "Adam"
    learning_rate: float | str = 3e-3
    clip_norm: float | None = None
    temperature: float | str | None = None
    prior_temperature: float | str | None = None
    beta: float | str | None = None
    free_bits: float | None = None
    seed: int = 0
    steps: int | None = None
    seconds: float | None = None
    patience: int | None = None
    evaluate_every: str = "1"
    judge: JudgeOrAuto = "auto"
    checkpoint_every: str = "30s"
    max_skipped: int = 10
    max_memory: float = 4.0
    device: str = "cpu"
    compile: bool = False
    shard: Shard = "data"
    tensorboard: bool = False
    output: Path | None = None

    def __post_init__(self) -> None:
        for name in ("num_latents", "batch_size", "steps", "patience", "max_skipped"):
            at_least(name, getattr(self, name), 1)
        for name in ("num_categories", "num_levels"):
            at_least(name, getattr(self, name), 2)
        at_least("seed", self.seed, 0)
        if self.seed >= 2**32:
            raise ValueError(f"Expected a seed below 2^32, but found {self.seed}.")
        for width in self.hidden:
            at_least("hidden", width, 1)
        for name in ("clip_norm", "seconds", "max_memory"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"Expected a positive {name}, but found {value}.")
        for name in ("learning_rate", "temperature", "prior_temperature"):
            if getattr(self, name) is not None:
                _check_schedule(name, getattr(self, name))
        if self.beta is not None:
            _check_schedule("beta", self.beta, positive=False)
        if self.free_bits is not None and not 0 <= self.free_bits < math.inf:
            raise ValueError(f"Expected free_bits of at least 0 nats, but found {self.free_bits}.")
        # What stands in texts is read here and once.
        _ = self.plan, self.between_evaluations, self.between_checkpoints, self.named_optimizer

    @cached_property
    def plan(self) -> tuple[Stage, ...]:
        """The stages, read."""
        return parse_stages(self.stages)

    @cached_property
    def between_evaluations(self) -> Amount:
        """How much training lies between two evaluations."""
        return Amount.parse(self.evaluate_every)

    @cached_property
    def between_checkpoints(self) -> Amount:
        """How much training lies between two checkpoints."""
        return Amount.parse(self.checkpoint_every)

    @cached_property
    def named_optimizer(self) -> Named:
        """The optimizer's name and its options."""
        return Named.parse(self.optimizer)

    @classmethod
    def from_json(cls, written: dict[str, Any]) -> Self:
        """The configuration that `as_json` wrote.

        Raises:
            ValueError: if a setting is unknown, of the wrong type, or cannot be.
        """
        for name in written:
            if name not in cls.__dataclass_fields__:
                raise ValueError(f"Expected settings of TrainConfig, but found '{name}', which it does not have.")
        return cls(**read_settings(cls, written))

    def as_json(self) -> dict[str, Any]:
        """The configuration as JSON writes it."""
        return plain_settings(self)


def _check_schedule(name: str, value: float | str, *, positive: bool = True) -> None:
    try:
        schedule(str(value), positive=positive)
    except ValueError as error:
        kind = "a positive number" if positive else "a number of at least 0"
        raise ValueError(f"Expected {kind} or a schedule as {name}, but found {value}. {error}") from error


def at_least(name: str, value: int | None, least: int) -> None:
    """Refuse a setting below the least that it may be; None is no setting."""
    if value is not None and value < least:
        raise ValueError(f"Expected {name} of at least {least}, but found {value}.")
