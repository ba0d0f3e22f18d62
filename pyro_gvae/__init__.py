"""Categorical VAEs in Pyro: train one program by Gumbel-Softmax relaxation or by exact enumeration.

Shape letters, everywhere: B batch, P particles (samples per datum), N latents, K categories, D data dimensions, S = K^N
joint codes. `elbo` is maximized, `loss = -elbo` is minimized; values are in nats per datum unless the name says
otherwise. Names are imported on first use, so that the command line answers `--help` without importing torch. They are
listed in the order in which a program uses them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import exact
    from .config.train import TrainConfig
    from .data.dataset import Dataset
    from .data.datasets import load
    from .data.sliced import sliced_dataset
    from .data.splits import dataset_of
    from .distributions.concrete import ExpConcrete, RelaxedOneHotCategorical
    from .distributions.one_hot import FactorizedOneHotCategorical
    from .elbos.exact import ExactELBO, ExactEvidence
    from .estimators import ESTIMATORS, estimator
    from .evaluate.generate import encode, reconstruct, sample
    from .evaluate.impute import impute
    from .handlers import discretize, enumerated, relax, straight_through
    from .jit.traced_elbo import TracedELBO
    from .models.categorical_vae import CategoricalVAE
    from .train.fit import fit
    from .train.loaded import load_run
    from .train.step import make_step

__version__ = "0.1.0"

_HOME = {
    "CategoricalVAE": "models.categorical_vae",
    "relax": "handlers",
    "straight_through": "handlers",
    "discretize": "handlers",
    "enumerated": "handlers",
    "ExactELBO": "elbos.exact",
    "ExactEvidence": "elbos.exact",
    "TracedELBO": "jit.traced_elbo",
    "exact": "exact",
    "estimator": "estimators",
    "ESTIMATORS": "estimators",
    "make_step": "train.step",
    "fit": "train.fit",
    "TrainConfig": "config.train",
    "load_run": "train.loaded",
    "encode": "evaluate.generate",
    "reconstruct": "evaluate.generate",
    "sample": "evaluate.generate",
    "impute": "evaluate.impute",
    "load": "data.datasets",
    "Dataset": "data.dataset",
    "dataset_of": "data.splits",
    "sliced_dataset": "data.sliced",
    "RelaxedOneHotCategorical": "distributions.concrete",
    "ExpConcrete": "distributions.concrete",
    "FactorizedOneHotCategorical": "distributions.one_hot",
}

__all__ = [
    "ESTIMATORS",
    "CategoricalVAE",
    "Dataset",
    "ExactELBO",
    "ExactEvidence",
    "ExpConcrete",
    "FactorizedOneHotCategorical",
    "RelaxedOneHotCategorical",
    "TracedELBO",
    "TrainConfig",
    "dataset_of",
    "discretize",
    "encode",
    "enumerated",
    "estimator",
    "exact",
    "fit",
    "impute",
    "load",
    "load_run",
    "make_step",
    "reconstruct",
    "relax",
    "sample",
    "sliced_dataset",
    "straight_through",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pyro_gvae' has no attribute '{name}'")
    module = import_module(f".{_HOME[name]}", __name__)
    return module if name == _HOME[name] else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
