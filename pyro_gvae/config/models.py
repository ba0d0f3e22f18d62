"""The ready-made programs that commands train: their sizes, and the settings they do not have; no torch."""

from collections.abc import Iterable
from enum import Enum
from typing import Any, Literal, NamedTuple, Protocol, cast, get_args

from .checks import at_least, at_most, nearest
from .names import ModelName, NetworksName, PriorName
from .stages import Named, Stage

#: Estimators of log p(x) itself, and estimators for latents of two categories.
OF_EVIDENCE, OF_BITS = frozenset({"exact-evidence"}), frozenset({"disarm", "arms"})
#: Soft samples with the KL of the relaxed distributions.
RELAXED = "gumbel-softmax[kl=relaxed]"
#: Settings of `categorical` alone, and their values in other programs, which have their own networks and priors.
OF_CATEGORICAL = {"networks": "mlp", "prior": "uniform", "learn_prior": False, "relu_logits": False}
#: Settings of programs that learn from labels, and their values in other programs.
OF_LABELS = {"labelled_share": 1.0, "label_weight": 10.0}
#: Priors whose digits are independent.
INDEPENDENT = ("uniform", "independent")
#: The most layers of a hierarchy.
MOST_LAYERS = 100


class Labels(Enum):
    """How a program uses labels y of its data x."""

    #: It takes data alone.
    UNUSED = "unused"
    #: It learns from the known labels, and is evaluated on data alone; its latent "y" is the class.
    LEARNED = "learned"
    #: It models data given their labels.
    GIVEN = "given"


class NamedPrior(NamedTuple):
    """The name of a prior, and options of its constructor."""

    name: PriorName
    options: dict[str, Any]


class HasModel(Protocol):
    """The settings of a program."""

    @property
    def model(self) -> ModelName:
        """The program."""

    @property
    def num_latents(self) -> int:
        """N."""

    @property
    def num_categories(self) -> int:
        """K."""

    @property
    def num_layers(self) -> int:
        """The number of layers of one-hots."""

    @property
    def latent_dim(self) -> int:
        """The dimension of the Gaussian latent; 0 if there is none."""

    @property
    def networks(self) -> NetworksName:
        """The kind of networks."""


class Facts(NamedTuple):
    """Properties of a program.

    Attributes:
        sizes: default sizes on the command line, where they differ from those of `categorical`.
        fixed: sizes that cannot be changed, and why.
        has_layers: whether there may be several layers of one-hots.
        has_gaussian: whether there is a Gaussian latent besides the discrete ones.
        soft_kl: the KL used with soft samples: that of the categorical distributions if it is a term of the ELBO. It is
            not if model and guide go through the layers in opposite orders.
        labels: how it uses labels.
    """

    sizes: dict[str, int]
    fixed: dict[str, str]
    has_layers: bool = False
    has_gaussian: bool = False
    soft_kl: Literal["relaxed", "categorical"] = "categorical"
    labels: Labels = Labels.UNUSED

    @property
    def soft(self) -> str:
        """The estimator of soft samples."""
        return RELAXED if self.soft_kl == "relaxed" else "gumbel-softmax"


MODELS: dict[ModelName, Facts] = {
    "categorical": Facts({}, {}),
    "bernoulli": Facts({"num_latents": 12, "num_categories": 2}, {"num_categories": "whose latents are bits"}),
    "hierarchical": Facts({"num_latents": 2, "num_layers": 2}, {}, has_layers=True, soft_kl="relaxed"),
    "joint": Facts({"num_latents": 1, "num_categories": 10, "latent_dim": 10}, {}, has_gaussian=True),
    "gaussian-mixture": Facts(
        {"num_latents": 1, "num_categories": 10, "latent_dim": 10},
        {"num_latents": "whose one discrete latent is the component"},
        has_gaussian=True,
    ),
    "semi-supervised": Facts(
        {"num_latents": 1, "num_categories": 0, "latent_dim": 10},
        {"num_latents": "whose one discrete latent is the class"},
        has_gaussian=True,
        labels=Labels.LEARNED,
    ),
    "conditional": Facts({"num_latents": 2}, {}, labels=Labels.GIVEN),
}


def check_model(config: HasModel) -> None:
    """Refuse sizes and settings that the program does not have.

    Raises:
        ValueError: if there is one.
    """
    _check_sizes(config)
    _check_prior(config)
    _check_settings(config)


def _check_sizes(config: HasModel) -> None:
    name, facts = config.model, MODELS[config.model]
    for size, reason in facts.fixed.items():
        if getattr(config, size) != facts.sizes[size]:
            raise ValueError(
                f"Expected {size}={facts.sizes[size]} with model='{name}', {reason}, but found "
                f"{getattr(config, size)}. Try {size}={facts.sizes[size]}."
            )
    if not (facts.labels is Labels.LEARNED and config.num_categories == 0):  # 0: the number of classes of the labels
        at_least("num_categories", config.num_categories, 2)
    at_least("num_layers", config.num_layers, 1)
    at_most("num_layers", config.num_layers, MOST_LAYERS)
    if config.num_layers > 1 and not facts.has_layers:
        raise ValueError(
            f"Expected one layer of codes with model='{name}', but found num_layers={config.num_layers}. Try "
            "model='hierarchical'."
        )
    if config.latent_dim and not facts.has_gaussian:
        raise ValueError(
            f"Expected no Gaussian latent with model='{name}', but found latent_dim={config.latent_dim}. Try "
            "model='joint', 'gaussian-mixture' or 'semi-supervised'."
        )
    if config.latent_dim < 1 and facts.has_gaussian:
        raise ValueError(
            f"Expected a Gaussian latent with model='{name}', but found latent_dim={config.latent_dim}. Try "
            f"latent_dim={facts.sizes['latent_dim']}."
        )


def _check_prior(config: HasModel) -> None:
    prior = getattr(config, "prior", "uniform")
    if named_prior(prior).name not in INDEPENDENT and getattr(config, "learn_prior", False):
        raise ValueError(f"Expected learn_prior=False with prior='{prior}', which is learned, but found True.")


def _check_settings(config: HasModel) -> None:
    """Refuse settings of other programs."""
    name, facts = config.model, MODELS[config.model]
    for setting, plain in OF_CATEGORICAL.items():
        found: Any = getattr(config, setting, plain)
        if found != plain and name != "categorical":
            raise ValueError(
                f"Expected {setting}={plain!r} with model='{name}', which has networks and a prior of its own, but "
                f"found {found!r}. Try model='categorical', or without {setting}."
            )
    for setting, plain in OF_LABELS.items():
        found = getattr(config, setting, plain)
        if found != plain and facts.labels is not Labels.LEARNED:
            raise ValueError(
                f"Expected {setting}={plain!r} with model='{name}', which does not learn from labels, but found "
                f"{found!r}. Try model='semi-supervised', or without {setting}."
            )


def named_prior(text: str) -> NamedPrior:
    """Parse the name of a prior, with options in brackets if any.

    Raises:
        ValueError: if there is no such prior, or independent digits are given options.

    Example:
        >>> named_prior("autoregressive[network=transformer]")
        NamedPrior(name='autoregressive', options={'network': 'transformer'})
    """
    found, known = Named.parse(text), get_args(PriorName)
    if found.name not in known:
        raise ValueError(
            f"Expected a prior among {', '.join(known)}, but found '{found.name}'.{nearest(found.name, known)}"
        )
    if found.options and found.name in INDEPENDENT:
        raise ValueError(f"Expected no options of the prior '{found.name}', but found '{text}'.")
    return NamedPrior(cast(PriorName, found.name), found.options)


def check_stages(config: HasModel, stages: Iterable[Stage]) -> None:
    """Refuse estimators that do not work with the program's latents.

    Raises:
        ValueError: if there is one.
    """
    for stage in stages:
        for one in stage.estimators:
            if one.name in OF_BITS and config.num_categories not in (0, 2):  # 0 is replaced by the number of classes
                raise ValueError(
                    f"Expected latents of K=2 categories for '{one.name}', but found K={config.num_categories}."
                )
            if one.name in OF_EVIDENCE and MODELS[config.model].has_gaussian:
                raise ValueError(
                    f"Expected latents that are all discrete for '{one.name}', but found model='{config.model}', whose "
                    "log p(x) is an integral over its Gaussian latent, not a sum. Try exact, and pyro-gvae evaluate, "
                    "whose collapsed_iwae_bound is a bound of log p(x)."
                )


def code_in_words(model: ModelName, num_latents: int, num_categories: int, num_layers: int, latent_dim: int) -> str:
    """Describe the latents of a program.

    Example:
        >>> code_in_words("categorical", 4, 8, 1, 0), code_in_words("joint", 1, 10, 1, 5)
        ('4 categorical latents of 8 categories', '1 categorical latent of 10 categories and a Gaussian of dimension 5')
    """
    if model == "bernoulli":
        return f"{num_latents} bits"
    if model == "gaussian-mixture":
        return f"one of {num_categories} components and a Gaussian of dimension {latent_dim} that depends on it"
    if model == "semi-supervised":
        return f"one of {num_categories} classes and a Gaussian of dimension {latent_dim}"
    one_layer = f"{num_latents} categorical latent{'s' * (num_latents > 1)} of {num_categories} categories"
    layers = f"{num_layers} layers of {one_layer}" if model == "hierarchical" else one_layer
    if model == "conditional":
        return f"{one_layer}, beside the class that is given"
    return f"{layers} and a Gaussian of dimension {latent_dim}" if model == "joint" else layers
