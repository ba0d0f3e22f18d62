"""The configuration of a training run: a frozen dataclass, checked when created; no torch."""

import dataclasses
import math
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from ..schedules import schedule
from .checks import MOST_UNITS, at_least, at_most, positive
from .data import DataConfig
from .json import plain_settings, read_settings
from .models import check_model, check_stages
from .names import Binarization, JudgeOrAuto, LoggerName, ModelName, NetworksName, ObservationName, Shard
from .pruning import Pruning
from .stages import MOST, Amount, Named, Stage, parse_stages

#: Settings of the machine, not of the run: each call gives them, and they are never read from a run folder.
OUTSIDE = frozenset({"data_dir", "download", "device", "compile", "log", "output"})
#: Settings that `fit` ignores, since it is given the data and the program.
OF_DATA_AND_PROGRAM = frozenset(
    {
        *("dataset", "data_dir", "download", "binarize", "model", "num_latents", "num_categories", "num_layers"),
        *("latent_dim", "networks", "hidden", "observation", "num_levels", "learn_prior", "relu_logits"),
        *("label_weight", "labelled_share"),
    }
)


@dataclasses.dataclass(frozen=True)
class TrainConfig(DataConfig):
    """Train one VAE with discrete latents by one or several estimators in turn, and save it in a run folder.

    Amounts of training are epochs (`20`), steps (`500steps`) or seconds (`60s`).

    A schedule is a function of the step: a number, `exponential:initial,rate,floor`, `linear:initial,final,steps` or
    `cosine:initial,final,steps`.

    Args:
        data_dir: The folder of the data sets that have files, as torchvision lays them out.
        download: Download missing files into the data folder.
        binarize: For images: keep grey pixels (none), round them to black or white at 1/2 (threshold), or sample them
            for every batch (dynamic).
        stages: The estimators to train with in turn, each with options in brackets and an amount of training:
            gumbel-softmax:20,exact:3. Estimators of single discrete sites:
            per-site[y=exact,z=gumbel-softmax,default=reinforce-loo]:20.
        model: The program: N one-hots (categorical) or N bits (bernoulli); layers of N one-hots (hierarchical); N
            one-hots and a Gaussian (joint); a component and a Gaussian that depends on it (gaussian-mixture); a
            class, known for labelled rows, and a Gaussian (semi-supervised); or N one-hots given the label
            (conditional). Each program has its own default sizes; `--model NAME --help` shows them.
        num_latents: N, the number of one-hots (per layer, if there are several) or of bits; 1 for gaussian-mixture
            and semi-supervised.
        num_categories: K, the number of categories of each one-hot, or of components; 2 for bits; for
            semi-supervised, by default the number of classes of the labels.
        num_layers: The number of layers of hierarchical; 1 for other programs.
        latent_dim: The dimension of the Gaussian of joint, gaussian-mixture and semi-supervised; 0 for other programs.
        label_weight: For semi-supervised: weight of the mean cross-entropy of the labelled rows, which trains the
            classifier, in nats per row.
        networks: Multilayer perceptrons (mlp), or convolutions followed by multilayer perceptrons (conv).
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse order. By default one layer of
            twice as many units as the encoder has inputs, rounded to a power of two from 32 to 256.
        observation: Distribution of a pixel; the columns of a table have distributions of their own.
        num_levels: L, the number of levels of a categorical pixel; grey values are rounded to the levels 0 .. L - 1.
        prior: The prior of a categorical code: uniform or independent digits, or digits that depend on each other by a
            joint, markov, tree, autoregressive or mixture prior, with options in brackets:
            autoregressive[network=transformer], mixture[num_components=32].
        learn_prior: The same as --prior independent.
        relu_logits: Apply a ReLU to the encoder's logits, as in the preset article.
        batch_size: B, the number of data in a batch.
        optimizer: A class of torch.optim, with options in brackets: SGD[momentum=0.9].
        learning_rate: Step size of the optimizer, a number or a schedule.
        clip_norm: The largest norm of the gradient, in nats per datum.
        temperature: Temperature of the guide's relaxation: a number or a schedule; by default 2/3.
        prior_temperature: Temperature of the model's relaxation: a number or a schedule; by default 2/5.
        beta: Weight of the KL in the objective: a number or a schedule, which may reach 0, such as linear:0,1,1000; by
            default 1. The reported ELBO is never weighted.
        unimix: Share of the uniform distribution that is mixed into the guide, so that no category's probability
            vanishes: a schedule that ends at 0, such as linear:0.01,0,2000. Evaluations never mix the guide.
        usage_entropy: Weight of a reward for using all categories, the entropy of the mean posterior of a batch: a
            schedule that ends at 0, such as linear:1,0,2000.
        revive: Share of the training data below which a category counts as unused. At the beginning of each epoch but
            the first, it gets a copy of the weights of its latent's most used category, with a little noise.
        prune: When to remove latents that carry no information about the data, and categories that are not used: every
            so many epochs (5) or steps (500steps), or at the start of each stage but the first (stages). For the codes
            that remain, the networks compute the same as before, and training continues with the smaller program.
            Thresholds in brackets: stages[information=0.01,usage=0.001], nats of mutual information and share of the
            data.
        free_bits: Nats of KL per latent, averaged over a batch, below which the objective does not penalize the KL.
        seed: Seed of the initial weights, the order of the data and all random draws.
        steps: Stop after this many steps in total.
        seconds: Stop after this many seconds of training in total, not counting evaluations.
        patience: End a stage after this many consecutive evaluations without a better discrete ELBO of the
            validation data, or of the test data if there are none.
        evaluate_every: Training between two evaluations of the discrete model, in epochs (1), steps (500steps) or
            seconds (60s).
        judge: How to compute the discrete ELBO during training: summed over all codes, with one draw of continuous
            latents for each (exact), sampled, or not at all (none); auto sums if that takes fewer than 1e12 operations,
            about ten seconds on two cores, and writes its choice into config.json.
        checkpoint_every: Training between two checkpoints, in epochs, steps or seconds.
        max_skipped: Stop after this many consecutive steps with a loss or gradient that is not finite.
        max_memory: Gigabytes that an exact sum may use.
        device: Where to train: cpu, cuda, cuda:1.
        compile: Compile the recorded step with Inductor; needs a C++ compiler and about half a minute. By default if
            there is a compiler and the run is long enough to gain from it. The choice is written into config.json
            and kept when the run is resumed.
        shard: What the processes of torchrun split: the data of each batch, or the codes of exact sums.
        log: Also send evaluations to TensorBoard (files in the run folder), Weights & Biases or MLflow; each needs the
            extra of the same name.
        tensorboard: The same as --log tensorboard.
        output: The run folder, which must not exist; by default runs/train-DATE-TIME.
    """

    data_dir: Path = Path("data")
    download: bool = False
    binarize: Binarization = "threshold"
    stages: str = "gumbel-softmax:100"
    model: ModelName = "categorical"
    num_latents: int = 4
    num_categories: int = 8
    num_layers: int = 1
    latent_dim: int = 0
    label_weight: float = 10.0
    networks: NetworksName = "mlp"
    hidden: tuple[int, ...] | None = None
    observation: ObservationName = "bernoulli"
    num_levels: int = 256
    prior: str = "uniform"
    learn_prior: bool = False
    relu_logits: bool = False
    batch_size: int = 64
    optimizer: str = "Adam"
    learning_rate: float | str = 3e-3
    clip_norm: float | None = None
    temperature: float | str | None = None
    prior_temperature: float | str | None = None
    beta: float | str | None = None
    unimix: float | str | None = None
    usage_entropy: float | str | None = None
    revive: float | None = None
    prune: str | None = None
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
    compile: bool | None = None
    shard: Shard = "data"
    log: tuple[LoggerName, ...] = ()
    tensorboard: bool = False
    output: Path | None = None

    def __post_init__(self) -> None:
        self.check_data()
        self._check_numbers()
        self._check_schedules()
        check_model(self)
        # Parse the text settings now, so that errors show early.
        _ = self.plan, self.between_evaluations, self.between_checkpoints, self.named_optimizer
        if self.pruning is not None and self.pruning.every is None and len(self.plan) < 2:
            raise ValueError(
                f"Expected several stages with prune='stages', which prunes between stages, but found "
                f"'{self.stages}'. Try prune='5', which is every five epochs."
            )

    def _check_numbers(self) -> None:
        for name in ("num_latents", "batch_size", "steps", "patience", "max_skipped"):
            at_least(name, getattr(self, name), 1)
        at_least("num_levels", self.num_levels, 2)
        if not 0 <= self.label_weight < math.inf:
            raise ValueError(f"Expected a finite label_weight of at least 0, but found {self.label_weight}.")
        for name in ("num_latents", "num_categories", "latent_dim"):
            at_most(name, getattr(self, name), MOST_UNITS)
        at_most("num_levels", self.num_levels, 2**16)
        at_most("the number of hidden layers", len(self.hidden or ()), 100)
        at_least("seed", self.seed, 0)
        if self.seed >= 2**32:
            raise ValueError(f"Expected a seed below 2^32, but found {self.seed}.")
        for width in self.hidden or ():
            at_least("hidden", width, 1)
            at_most("hidden", width, MOST_UNITS)
        for name in ("clip_norm", "seconds", "max_memory"):
            positive(name, getattr(self, name))
        at_most("max_memory", self.max_memory, 1e9)
        if self.revive is not None and not 0 < self.revive < 1:
            raise ValueError(f"Expected a share of the data between 0 and 1 as revive, but found {self.revive}.")
        if self.free_bits is not None and not 0 <= self.free_bits < math.inf:
            raise ValueError(f"Expected free_bits of at least 0 nats, but found {self.free_bits}.")

    def _check_schedules(self) -> None:
        for name in ("learning_rate", "temperature", "prior_temperature"):
            if getattr(self, name) is not None:
                _check_schedule(name, getattr(self, name))
        if self.beta is not None:
            _check_schedule("beta", self.beta, positive=False)
        if self.unimix is not None:
            _check_ends_at_zero("unimix", self.unimix, most=1)
        if self.usage_entropy is not None:
            _check_ends_at_zero("usage_entropy", self.usage_entropy)

    @property
    def loggers(self) -> tuple[LoggerName, ...]:
        """The names of all loggers."""
        named = ("tensorboard", *self.log) if self.tensorboard else self.log
        return tuple(dict.fromkeys(named))

    @cached_property
    def plan(self) -> tuple[Stage, ...]:
        """The stages, parsed."""
        return parse_stages(self.stages)

    @cached_property
    def pruning(self) -> Pruning | None:
        """When to prune, and the thresholds; None without pruning."""
        return None if self.prune is None else Pruning.parse(self.prune)

    @cached_property
    def between_evaluations(self) -> Amount:
        """The amount of training between two evaluations."""
        return Amount.parse(self.evaluate_every)

    @cached_property
    def between_checkpoints(self) -> Amount:
        """The amount of training between two checkpoints."""
        return Amount.parse(self.checkpoint_every)

    @cached_property
    def named_optimizer(self) -> Named:
        """The optimizer's name and options."""
        if not isinstance(self.optimizer, str):
            raise ValueError(
                f"Expected the name of an optimizer, since a run makes its own, but found "
                f"{type(self.optimizer).__name__}. Try 'Adam', or make_step for an optimizer object."
            )
        named = Named.parse(self.optimizer)
        if "lr" in named.options:
            raise ValueError(
                f"Expected the learning rate as learning_rate, but found it in '{self.optimizer}'. Try --learning-rate."
            )
        return named

    def check_estimators(self) -> None:
        """Refuse estimators that do not work with the configured program; `fit` may be given another program.

        Raises:
            ValueError: if there is one.
        """
        check_stages(self, self.plan)

    @classmethod
    def from_json(cls, written: dict[str, Any]) -> Self:
        """Read the configuration that `as_json` wrote.

        Raises:
            ValueError: if a setting is unknown, has the wrong type, or has an invalid value.
        """
        for name in written:
            if name not in cls.__dataclass_fields__:
                raise ValueError(f"Expected settings of TrainConfig, but found '{name}', which it does not have.")
        return cls(**read_settings(cls, written))

    def as_json(self) -> dict[str, Any]:
        """Convert the configuration to values that JSON can write."""
        return plain_settings(self)


def _check_schedule(name: str, value: float | str, *, positive: bool = True) -> None:
    try:
        schedule(str(value), positive=positive)
    except ValueError as error:
        kind = "a positive number" if positive else "a number of at least 0"
        tried = "Try 0.5, or a schedule such as linear:1,0.5,1000 or cosine:1e-3,1e-5,2000."
        raise ValueError(f"Expected {kind} or a schedule as {name}, but found {value}. {tried}") from error


def _check_ends_at_zero(name: str, value: float | str, most: float = math.inf) -> None:
    """Refuse a schedule that does not end at 0, for a setting that evaluations leave out."""
    _check_schedule(name, value, positive=False)
    values = schedule(str(value), positive=False)
    if values(int(MOST)) != 0:
        raise ValueError(
            f"Expected a schedule that ends at 0 as {name}, since evaluations leave it out, but found {value}. Try "
            "linear:0.01,0,2000."
        )
    if values(0) > most:
        raise ValueError(f"Expected {name} of at most {most:g}, but found {value}.")
