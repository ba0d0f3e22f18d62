"""The messenger behind `relax`."""

from collections.abc import Container
from typing import Any

import pyro
import torch
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor

from ..runtime.compat.enumeration import markov_settings, take_out_of_reach
from ..runtime.compat.pyro import settings_of_deterministic_site
from .chosen import EVERY_SITE
from .one_hot_messenger import (
    DrawingMessenger,
    has_relaxation,
    refuse_coupled_guide,
    temperature_of,
    without_enumeration,
)
from .sites import Discrete, Messages


class RelaxMessenger(DrawingMessenger):
    """Samples one-hots and bits as Concrete variables, in log space."""

    def __init__(
        self,
        temperature: float | Tensor | None,
        on: Container[str] = EVERY_SITE,
        otherwise: float | Tensor | None = None,
    ) -> None:
        super().__init__(on)
        self.temperature = temperature
        self.otherwise = otherwise

    def __enter__(self) -> Any:
        self.samples: dict[str, Tensor] = {}
        self.logs: dict[str, str] = {}  # name of the site of log z -> name of the relaxed site around it
        return super().__enter__()

    def draws(self, name: str) -> bool:
        """Return whether a site is log z of a relaxed site z, which is a function of it."""
        return name in self.logs

    def _pyro_sample(self, msg: Messages) -> None:
        if msg["name"] in self.logs:
            take_out_of_reach(msg, self.logs[msg["name"]])
        super()._pyro_sample(msg)

    def declare(self, msg: Messages, site: Discrete) -> None:
        """Replace the site by a function of a Concrete variable in log space."""
        if not has_relaxation(msg, site):
            return
        refuse_coupled_guide(msg, site)
        name = msg["name"]
        temperature = temperature_of(
            msg, site, self.temperature, self.otherwise, attempt="relax(program, temperature=0.5)"
        )
        # The guide passes log z to the model, because z and its density underflow at low temperature. z is a function
        # of log z, as in Pyro's reparameterizers.
        self.logs[f"{name}_log"] = name
        markov = markov_settings(msg["infer"])
        infer: Any = {key: value for key, value in without_enumeration(msg).items() if key not in markov}
        log_z = pyro.sample(f"{name}_log", site.log_relaxed(temperature), infer=infer)  # (..., K)
        msg["fn"] = site.relaxed(temperature).mask(False)
        msg["value"] = self.samples[name] = site.values_of(log_z.exp())
        msg["is_observed"] = True
        # Auxiliary: Pyro then allows it in the guide, although in the model it is only a function of log z.
        msg["infer"] = markov | settings_of_deterministic_site() | {"is_auxiliary": True}
        # `uncondition` samples each observed site, and EnergyDistance treats all sites sampled in this way as data.
        msg["stop"] = any(isinstance(handler, UnconditionMessenger) for handler in self.outside())

    def _pyro_post_sample(self, msg: Messages) -> None:
        super()._pyro_post_sample(msg)
        expected, found = self.samples.get(msg["name"]), msg["value"]
        if expected is None or found is expected:
            return
        if found.shape != expected.shape or not torch.allclose(found, expected, atol=1e-6):
            name = msg["name"]
            raise ValueError(
                f"Expected the relaxed site '{name}' to be exp('{name}_log'), but a handler outside of relax() gave it "
                f"another value. Try relax(condition(program, ..)) to observe a one-hot, or condition '{name}_log'."
            )
