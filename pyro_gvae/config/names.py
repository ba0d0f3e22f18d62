"""Names that settings accept as values; the command line lists them without importing torch."""

from typing import Annotated, Literal, TypeAlias, TypeVar, final

T = TypeVar("T")


@final
class IsPositional:
    """The mark in the type of a setting that the command line takes without an option."""


Positional: TypeAlias = Annotated[T, IsPositional]

#: Data sets of images, and tables.
ImagesName = Literal["digits", "mnist", "fashion_mnist", "kmnist", "omniglot", "teacher"]
TableName = Literal["breast_cancer", "wine", "diabetes"]
DatasetName = Literal[ImagesName, TableName]


EstimatorName = Literal[
    "gumbel-softmax",
    "straight-through",
    "st-gumbel-softmax",
    "decoupled-st-gumbel-softmax",
    "gumbel-rao",
    "gapped-straight-through",
    "reinmax",
    "reinmax-rao",
    "reinforce",
    "reinforce-baseline",
    "reinforce-loo",
    "unordered-set",
    "reinforce-wor",
    "vimco",
    "ovis",
    "tvo",
    "reweighted-wake-sleep",
    "daps",
    "local-expectation",
    "top-c",
    "disarm",
    "disarm-iw",
    "arms",
    "double-cv",
    "rebar",
    "relax",
    "exact",
    "exact-evidence",
    "exact-wake",
]


#: One estimator per site, as in per-site[y=exact,z=gumbel-softmax,default=reinforce-loo], and the one for other sites.
PER_SITE, DEFAULT = "per-site", "default"


Binarization = Literal["none", "threshold", "dynamic"]


#: Ready programs that commands train; the last two also take labels.
ModelName = Literal[
    "categorical", "bernoulli", "hierarchical", "joint", "gaussian-mixture", "semi-supervised", "conditional"
]


#: Priors of codes: independent digits of equal or of learned probabilities, and digits that depend on each other.
PriorName = Literal["uniform", "independent", "joint", "markov", "tree", "autoregressive", "mixture"]


NetworksName = Literal["mlp", "conv"]


#: Programs that show curves of many runs, to which a run can send its evaluations.
LoggerName = Literal["tensorboard", "wandb", "mlflow"]


#: What several processes split among themselves: the data of a batch, or the codes of an exact sum.
Shard = Literal["data", "codes"]


#: How the discrete ELBO is computed during training: summed over all codes, from one sample per datum, or not at all.
Judge = Literal["exact", "sampled", "none"]
#: What an evaluation of the discrete ELBO is: a sum over codes is exact unless continuous latents are drawn.
ElboIs = Literal[Judge, "codes summed"]
JudgeOrAuto = Literal["auto", Judge]


#: Kinds of the columns of a table.
ColumnKind = Literal["binary", "categorical", "real", "positive", "count", "word"]
#: Kinds of columns whose cells are counts, which are not changed when a table is encoded.
COUNTED: frozenset[ColumnKind] = frozenset({"count", "word"})


ObservationName = Literal["bernoulli", "continuous-bernoulli", "gaussian", "categorical", "multinomial"]
