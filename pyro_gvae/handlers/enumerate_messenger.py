"""What `enumerated` does to a one-hot site."""

import inspect
from typing import Any

from pyro import poutine
from pyro.infer.inspect import get_dependencies
from pyro.poutine.util import site_is_subsample

from ..distributions.codes import num_codes
from ..runtime.memory import in_words, memory_limit
from .discretize_messenger import DiscretizeMessenger
from .one_hot_messenger import OneHotMessenger
from .sites import Messages, OneHotSite, Program, plates_of


class EnumeratedMessenger(OneHotMessenger):
    """Marks one-hot sites for parallel enumeration and refuses what enumeration would get wrong."""

    def __init__(self, max_memory: float | None) -> None:
        super().__init__()
        self.max_memory = max_memory

    def __enter__(self) -> Any:
        self.plates_of_dim: dict[int, tuple[str, frozenset[str]]] = {}
        self.suspects: dict[tuple[str, str], frozenset[str]] = {}
        self.others: set[bool] = set()  # whether the sites that are not latent one-hots are observed
        return super().__enter__()

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> Any:
        # A guide without one-hots leaves them to the model; a model has observations.
        guide_of_others = self.others == {False}
        nothing_found = kind is None and self.decides() and not (self.sites or self.observed or guide_of_others)
        result = super().__exit__(kind, value, traceback)
        if nothing_found:
            raise ValueError(
                "Expected a one-hot site to enumerate, but found none. Try OneHotCategorical or "
                "RelaxedOneHotCategorical sites, or remove enumerated()."
            )
        return result

    def declare(self, msg: Messages, site: OneHotSite) -> None:
        check_memory(msg["name"], site, self.max_memory)
        msg["fn"] = site.discrete()
        # Settings that ask Pyro for samples of the site give way.
        kept = {key: value for key, value in msg["infer"].items() if key not in ("num_samples", "tmc", "expand")}
        msg["infer"] = kept | {"enumerate": "parallel"}

    def _pyro_post_sample(self, msg: Messages) -> None:
        name, dim = msg["name"], msg["infer"].get("_enumerate_dim")
        if name in self.sites:
            if dim is not None:
                self.plates_of_dim[dim] = name, plates_of(msg)
            elif not msg["is_observed"]:
                _check_enumerator(name)
        elif not (site_is_subsample(msg) or msg["infer"].get("_deterministic")):
            self.others.add(bool(msg["is_observed"]))
            self._check_plates(msg)

    def _check_plates(self, msg: Messages) -> None:
        batch_shape = getattr(msg["fn"], "batch_shape", ())
        for dim, (name, plates) in self.plates_of_dim.items():
            depends = len(batch_shape) >= -dim and batch_shape[dim] > 1
            left = plates - plates_of(msg)
            if depends and left:
                raise _mixes(name, msg["name"], left)
            if left:
                self.suspects[name, msg["name"]] = left

    def check(self, program: Program, args: Any, kwargs: Any) -> None:
        """Refuse sites outside of a latent's plates that depend on it, although their shapes do not tell."""
        if self.suspects:
            with poutine.block(), DiscretizeMessenger():
                upstream: Any = get_dependencies(program, args, kwargs)["prior_dependencies"]
            for (name, other), left in self.suspects.items():
                if name in upstream.get(other, ()):
                    raise _mixes(name, other, left)


def _mixes(name: str, other: str, plates: frozenset[str]) -> ValueError:
    return ValueError(
        f"Expected every site that depends on the enumerated site '{name}' to be inside its plate(s) {sorted(plates)}, "
        f"but found '{other}' outside of them: it mixes latents that enumeration would give equal values. Try one site "
        "of event shape (N, K), OneHotCategorical(...).to_event(1), in place of the plate."
    )


def _check_enumerator(name: str) -> None:
    """Let a marked site be sampled only where `TraceEnum_ELBO` looks at shapes, which nothing but its name tells."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "_guess_max_plate_nesting":
            return
        frame = frame.f_back
    raise ValueError(
        f"Expected site '{name}' to be enumerated, but it was sampled. Try TraceEnum_ELBO, which enumerates, "
        "or discretize() in place of enumerated()."
    )


def check_memory(name: str, site: OneHotSite, max_memory: float | None) -> None:
    """Refuse, before anything is allocated, to enumerate what cannot fit.

    The codes (S, N, K) and their log-probabilities (S, B) are the least that an enumeration holds; a decoder adds to
    it.

    Raises:
        ValueError: if they alone take more than `max_memory` bytes (a quarter of the free memory if None).
    """
    logits = site.logits
    num_latents, num_categories = logits.shape[-2:] if site.num_event_dims == 2 else (1, logits.shape[-1])
    batch_size = logits.shape[: -site.num_event_dims].numel()
    total = num_codes(num_latents, num_categories)
    needed = total * (num_latents * num_categories + batch_size) * logits.element_size()
    limit = memory_limit(max_memory, logits.device)
    if needed > limit:
        raise ValueError(
            f"Expected the joint codes of site '{name}' to fit into {in_words(limit)}, but found S = K^N = "
            f"{num_categories}^{num_latents} = {total:,} codes, at least {in_words(needed)}. Try ExactELBO, which sums "
            "them in slices, a larger max_memory, fewer latents or categories, or relax() in place of enumeration."
        )
