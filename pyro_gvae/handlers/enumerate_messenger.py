"""The messenger behind `enumerated`."""

from typing import Any, NamedTuple

from pyro.distributions import Categorical, TorchDistribution
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor

from ..distributions.codes import num_codes, numbered_codes
from ..runtime.compat.enumeration import enumerated_dim
from ..runtime.compat.pyro import (
    computes_marginals,
    is_random,
    outside_of_backward_sampling,
    replayed_number,
    running_elbo,
    runs_for_a_loss,
    samples_posterior,
)
from ..runtime.memory import in_words, memory_limit
from .chosen import EVERY_SITE, Sites
from .one_hot_messenger import OneHotMessenger
from .sites import Discrete, Kind, Messages, Program, plates_of
from .upstream import direct_upstream


class Enumerated(NamedTuple):
    """The position of an enumerated site's codes."""

    dim: int  # the batch dimension of the codes, negative
    size: int  # S
    plates: frozenset[str]


class EnumeratedMessenger(OneHotMessenger):
    """Marks discrete latents for parallel enumeration, and refuses programs that enumeration would get wrong."""

    def __init__(self, max_memory: float | None, on: Sites = EVERY_SITE) -> None:
        super().__init__(on)
        self.max_memory = max_memory

    def __enter__(self) -> Any:
        self.enumerated: dict[str, Enumerated] = {}
        self.at_dim: dict[int, str] = {}  # the site that uses a dimension now; pyro.markov reuses dimensions
        self.numbered: set[str] = set()  # sites whose codes are enumerated by their numbers
        self.unread: set[str] = set()  # of these, sites whose value is still the number
        self.suspects: dict[tuple[str, str], ValueError] = {}
        return super().__enter__()

    def declare(self, msg: Messages, site: Discrete) -> None:
        """Replace the site's distribution by exact values, and mark it for enumeration."""
        _check_shape(msg["name"], site)
        check_memory(msg["name"], site, self.max_memory)
        # Drop settings that ask Pyro to sample the site.
        kept = {key: value for key, value in msg["infer"].items() if key not in ("num_samples", "tmc", "expand")}
        msg["infer"] = kept | {"enumerate": "parallel"}
        if samples_posterior():
            self._declare_number(msg, site)
        else:
            msg["fn"] = _with_all_plates(site.joint() if computes_marginals() else site.discrete())

    def _declare_number(self, msg: Messages, site: Discrete) -> None:
        """Enumerate the integer number of the code instead of the code.

        To draw from a posterior, stock Pyro gathers values as it gathers log-probabilities, which works only for values
        without event dimensions. The program gets the code in both runs.
        """
        self.numbered.add(msg["name"])
        number = replayed_number(msg["name"])
        if number is None:
            self.unread.add(msg["name"])
            msg["fn"] = Categorical(logits=site.code_logits())
        else:
            msg["fn"], msg["value"] = site.discrete(), _code(number, site)
            del msg["infer"]["enumerate"]  # otherwise the replay would replace the code by its number

    def _pyro_post_sample(self, msg: Messages) -> None:
        super()._pyro_post_sample(msg)
        name, dim = msg["name"], enumerated_dim(msg)
        if not is_random(msg):
            return
        if name not in self.sites:
            self._check(msg)
        elif dim is None and not msg["is_observed"] and name not in self.numbered:
            _check_enumerator(name)
        if dim is not None:
            self.at_dim[dim] = name
            if name in self.sites:
                size = msg["value"].shape[dim - msg["fn"].event_dim]
                self.enumerated[name] = Enumerated(dim, size, plates_of(msg))
        if name in self.unread:
            self.unread.remove(name)
            self._give_code(msg, self.sites[name])

    def _give_code(self, msg: Messages, site: Discrete) -> None:
        """Replace the number by the code, in the program and in handlers that have recorded a posterior sample."""
        code = {"fn": site.discrete(), "value": _code(msg["value"], site)}
        msg.update(code)
        for handler in outside_of_backward_sampling():
            if isinstance(handler, TraceMessenger):
                recorded: Messages = handler.trace.nodes[msg["name"]]
                recorded.update(code)

    def _check(self, msg: Messages) -> None:
        """Refuse a site that mixes latents of a plate; note it as a suspect if its shape does not show that."""
        batch_shape = getattr(msg["fn"], "batch_shape", ())
        for name, found in self.enumerated.items():
            has_axis = self.at_dim[found.dim] == name
            depends = has_axis and len(batch_shape) >= -found.dim and batch_shape[found.dim] > 1
            left = found.plates - plates_of(msg)
            if depends and left:
                raise _mixes(name, msg["name"], left)
            if left:
                self.suspects[name, msg["name"]] = _mixes(name, msg["name"], left)
            elif has_axis and not depends and found.size in batch_shape:
                self.suspects[name, msg["name"]] = pairs_codes(name, msg["name"], found.size)

    def check(self, program: Program, args: Any, kwargs: Any) -> None:
        """Refuse suspects that do depend on an enumerated site, which their shapes did not show."""
        super().check(program, args, kwargs)
        if self.suspects:
            upstream = direct_upstream(program, args, kwargs)
            for (name, other), error in self.suspects.items():
                if name in upstream.get(other, ()):
                    raise error


def _code(number: Tensor, site: Discrete) -> Tensor:
    """Return the value of the code with this number, (...) -> (..., *event_shape)."""
    codes = numbered_codes(number, *site.code_shape)  # (..., N, K)
    return site.values_of(codes.reshape(*number.shape, *site.shape, site.num_categories))


def _with_all_plates(fn: TorchDistribution) -> TorchDistribution:
    """Give a site the batch dimensions of all plates that the ELBO counts, with size 1 for plates that it is not in.

    Stock Pyro compares the batch shapes of model and guide by counting plates from the right. With two event dimensions
    and fewer plates, it would start at a negative index, inside the event shape.
    """
    request = running_elbo()
    if request is None or request.elbo.max_plate_nesting == float("inf"):
        return fn
    missing = int(request.elbo.max_plate_nesting) - len(fn.batch_shape)
    return fn.expand((1,) * missing + fn.batch_shape) if missing > 0 else fn


def pairs_codes(name: str, other: str, num_codes: int) -> ValueError:
    """Return the error for a statement that pairs the codes of a latent with data."""
    return ValueError(
        f"Expected site '{other}', which depends on the enumerated site '{name}', to have an axis for its {num_codes} "
        "codes left of its plates, but found none: the program pairs code number s with datum number s. Try operations "
        "on only the last two dimensions of z (..., N, K), such as z.flatten(-2) instead of z.reshape(-1, N * K)."
    )


def _mixes(name: str, other: str, plates: frozenset[str]) -> ValueError:
    return ValueError(
        f"Expected every site that depends on the enumerated site '{name}' to be inside its plate(s) {sorted(plates)}, "
        f"but found '{other}' outside of them: it mixes latents that enumeration would give equal values. Try one site "
        "of event shape (N, K), OneHotCategorical(...).to_event(1), in place of the plate."
    )


def _check_enumerator(name: str) -> None:
    """Refuse a loss that samples a marked site: only `TraceEnum_ELBO` enumerates it.

    Outside a loss (`Predictive`, an autoguide's prototype, a trace) the site may be sampled, and so may it be when
    `TraceEnum_ELBO` first runs a program to see its shapes.
    """
    if runs_for_a_loss():
        raise ValueError(
            f"Expected site '{name}' to be enumerated, but it was sampled. Try TraceEnum_ELBO, which enumerates, "
            "or discretize() instead of enumerated()."
        )


def _check_shape(name: str, site: Discrete) -> None:
    if site.kind is Kind.INTEGER and site.num_event_dims:
        raise ValueError(
            f"Expected one integer to enumerate for each datum, but found '{name}' of event shape "
            f"{tuple(site.event_shape)}: stock Pyro does not enumerate a vector of integers, but samples it. Try "
            "OneHotCategorical(...).to_event(1), or ExactELBO, which sums over either."
        )


def check_memory(name: str, site: Discrete, max_memory: float | None) -> None:
    """Refuse to enumerate codes that do not fit into memory, before anything is allocated.

    An enumeration holds at least the codes (S, N, K) and their log-probabilities (S, B); a decoder takes more.

    Raises:
        ValueError: if these take more than `max_memory` bytes (4 GB if None).
    """
    num_latents, num_categories = site.code_shape
    batch_size = site.batch_shape.numel()
    total = num_codes(num_latents, num_categories)
    needed = total * (num_latents * num_categories + batch_size) * site.natural.element_size()
    limit = memory_limit(max_memory)
    if needed > limit:
        raise ValueError(
            f"Expected the joint codes of site '{name}' to fit into {in_words(limit)}, but found S = K^N = "
            f"{num_categories}^{num_latents} = {total:,} codes, at least {in_words(needed)}. Try ExactELBO, which sums "
            "them in slices, a larger max_memory, fewer latents or categories, or relax() instead of enumerated()."
        )
