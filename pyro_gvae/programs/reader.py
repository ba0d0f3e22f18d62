"""Reads a Pyro program with one site of one-hots or bits: its distribution, and the score of each code."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.inspect import get_dependencies
from torch import Tensor

from ..distributions.lowered import log_prob
from ..distributions.parameters import at_least_float32
from ..handlers.discretize_messenger import DiscretizeMessenger
from ..handlers.one_hot_messenger import OneHotMessenger
from ..handlers.sites import Discrete, Kind, Messages, Run, plates_of
from ..runtime.compat.pyro import is_random
from ..runtime.memory import is_out_of_memory


class Site(NamedTuple):
    """The one-hot site of a program, after a run."""

    name: str
    logits: Tensor  # (*batch_shape, N, K)
    plates: frozenset[str]
    scale: float | Tensor
    mask: bool | Tensor | None

    @property
    def batch_shape(self) -> torch.Size:
        """The sizes of the site's plates."""
        return self.logits.shape[:-2]

    @property
    def log_probs(self) -> Tensor:
        """log pi (B, N, K), or (1, N, K) if all data share it; excluded categories have the lowest finite number."""
        batch_rank = len(self.batch_shape)
        strides = zip(self.batch_shape, self.logits.stride()[:batch_rank], strict=True)
        shared = all(size == 1 or stride == 0 for size, stride in strides)
        logits = self.logits[(slice(1),) * batch_rank] if shared else self.logits
        log_probs = torch.log_softmax(logits.reshape(-1, *self.logits.shape[-2:]), -1)
        return log_probs.clamp_min(torch.finfo(log_probs.dtype).min)

    def weigh(self, per_datum: Tensor) -> Tensor:
        """Apply the site's scale and mask to values (..., B)."""
        others = per_datum.shape[:-1]
        per_datum = per_datum.expand(*others, self.batch_shape.numel()).reshape((*others, *self.batch_shape))
        weighed: Tensor = scale_and_mask(per_datum, self.scale, self.mask)
        return weighed.reshape(*others, -1)


def negative_kl(q: Site, log_q: Tensor, p: Site) -> Tensor:
    """Compute -KL(q || p) of factorized one-hots, in nats (B,), from log_q (B or 1, N, K); both sites are weighed."""
    probs = log_q.exp()
    return p.weigh((probs * p.log_probs).sum((-2, -1))) - q.weigh((probs * log_q).sum((-2, -1)))


class Scores(NamedTuple):
    """The scores of a slice of codes under a model."""

    prior: Site
    table: Tensor  # (s, B): log p(x | z), with the program's scales and masks
    scales: tuple[float | Tensor, ...]  # of all its sites
    nesting: int  # the number of batch dimensions that its plates take
    sizes: frozenset[int]  # of these dimensions

    @property
    def common_scale(self) -> float | Tensor:
        """The one scale of all sites, which multiplies the logarithm of a sum over codes.

        Raises:
            ValueError: if sites are scaled differently.
        """
        one_each = all(not isinstance(scale, Tensor) or scale.numel() == 1 for scale in self.scales)
        if not one_each or len({float(scale) for scale in self.scales}) > 1:
            raise ValueError(
                "Expected all sites of the model to share one scale, but found several: log p(x) is not defined if "
                "likelihood and prior, or the data, are scaled differently. Try the ELBO, or one poutine.scale around "
                "the model."
            )
        return self.scales[0]


class _Reader(OneHotMessenger):
    """Gives latent one-hot sites a value instead of sampling them, and records the messages of all sites."""

    def __init__(self, value: Callable[[Discrete], Tensor]) -> None:
        super().__init__()
        self.value = value

    def __enter__(self) -> Any:
        self.messages: dict[str, Messages] = {}
        return super().__enter__()

    def declare(self, msg: Messages, site: Discrete) -> None:
        if site.kind is Kind.INTEGER:
            raise ValueError(
                f"Expected one-hots or bits, but found '{msg['name']}', a Categorical: an integer has no digits that a "
                "program could take apart. Try OneHotCategorical, or exact, which sums over it."
            )
        msg["value"] = self.value(site)

    def _pyro_post_sample(self, msg: Messages) -> None:
        if is_random(msg):
            self.messages[msg["name"]] = msg

    def run(self, role: str, program: Run) -> Site:
        """Run the program, and return its one-hot site."""
        with self:
            program()
        if len(self.sites) != 1:
            found = ", ".join(f"'{name}'" for name in self.sites) or "none"
            raise ValueError(
                f"Expected the {role} to have one latent one-hot site, but found {found}. Try one site of event shape "
                "(N, K): OneHotCategorical(...).to_event(1)."
            )
        [(name, site)] = self.sites.items()
        msg = self.messages.pop(name)
        logits = at_least_float32(site.logits).reshape(*site.batch_shape, *site.code_shape)
        masks = [mask for mask in (site.mask, msg["mask"]) if mask is not None]
        mask = masks[0] & masks[-1] if masks else None
        return Site(name, logits, plates_of(msg), msg["scale"], mask)


def read_guide(guide: Run) -> Site:
    """Run the guide, and return its site with q(z | x). No random number is drawn.

    Raises:
        ValueError: if the guide has any sample site besides one latent one-hot.
    """
    reader = _Reader(lambda site: site.values_of(_first_code(site.logits)))
    site = reader.run("guide", guide)
    for name in reader.messages:
        raise ValueError(
            f"Expected the guide to have no site but the one-hot '{site.name}', but found '{name}'. Try TraceEnum_ELBO "
            "with enumerated(), which samples other sites."
        )
    return site


def score(model: Run, codes: Tensor | None = None, nesting: int = 0) -> Scores:
    """Score codes under a model, in one run with the codes in a batch dimension left of its plates.

    A site outside the one-hot's plates that does not depend on the code is a constant, divided equally among the data.

    Args:
        model: the program with its data bound.
        codes: joint codes of shape (s, N, K), shared by all data, or (s, B, N, K), for each datum its own; they may be
            soft. If None, only the first code, s = 1.
        nesting: the number of batch dimensions of the model's plates, which a run without codes returns.

    Returns:
        The scores of the codes, and what the run has shown of the model.

    Raises:
        ValueError: if the model has another latent variable, a site outside the one-hot's plates that depends on the
            code, or operations that do not accept another dimension of codes.
    """
    reader = _Reader(functools.partial(_placed, codes=codes, nesting=nesting))
    try:
        site = reader.run("model", model)
    except (RuntimeError, ValueError, IndexError) as error:
        if codes is None or is_out_of_memory(error):
            raise
        if _needs_plain_codes(model, codes, nesting):
            raise _needs_another_decoder(codes, error) from error
        raise
    if not reader.messages:
        raise ValueError(
            f"Expected the model to observe data, but found no site except '{site.name}'. Try obs= at a sample site."
        )
    frames = [frame for msg in reader.messages.values() for frame in msg["cond_indep_stack"] if frame.vectorized]
    deepest = max([len(site.batch_shape), *(-frame.dim for frame in frames)])
    outside = [name for name, msg in reader.messages.items() if site.plates - plates_of(msg)]
    if codes is None and outside:
        _check_constant(model, site, {name: reader.messages[name] for name in outside})
    log_probs = []
    for msg in reader.messages.values():
        _check_observed(site, msg)
        log_probs.append(_log_prob(msg, site, deepest if codes is None else nesting))
    table = functools.reduce(torch.add, log_probs)  # (s or 1, B)
    return Scores(
        prior=site,
        table=table.expand(1 if codes is None else len(codes), -1),
        scales=(site.scale, *(msg["scale"] for msg in reader.messages.values())),
        nesting=deepest,
        sizes=frozenset([*site.batch_shape, *(frame.size for frame in frames)]),
    )


def _placed(site: Discrete, codes: Tensor | None, nesting: int) -> Tensor:
    """Reshape codes to a value of the site: (s, 1, .., 1, N, K), or with the plates' sizes if codes have them."""
    batch_shape = site.batch_shape
    given = _first_code(site.logits[(slice(1),) * len(batch_shape)]) if codes is None else codes
    rank = len(batch_shape) if codes is None else nesting
    own = tuple(batch_shape) if codes is not None and codes.dim() == 4 else ()
    # Use the dtype of the program's samples, which its decoder expects. Scores are computed in float32 at least.
    return site.values_of(given.reshape(-1, *(1,) * (rank - len(own)), *own, *site.shape, site.num_categories))


def _needs_plain_codes(model: Run, codes: Tensor, nesting: int) -> bool:
    """Return whether a model runs on codes as they are sampled, (B, N, K), but not with another dimension."""
    try:
        _Reader(lambda site: site.values_of(_first_code(site.logits))).run("model", model)
    except Exception:
        return False
    try:
        _Reader(functools.partial(_placed, codes=codes, nesting=nesting)).run("model", model)
    except Exception:
        return True
    return False


def _needs_another_decoder(codes: Tensor, error: Exception) -> ValueError:
    return ValueError(
        f"Expected a decoder that takes codes of shape (..., N, K), here {len(codes)} codes in a dimension left of the "
        f"plates, but found: {str(error).splitlines()[0]}. Try operations on only the last two dimensions, such as "
        "z.flatten(-2) instead of z.reshape(len(x), -1), and nn.Flatten(-2) instead of nn.Flatten()."
    )


def _first_code(logits: Tensor) -> Tensor:
    value = torch.zeros_like(logits)
    value[..., 0] = 1.0
    return value


def _check_observed(site: Site, msg: Messages) -> None:
    if not msg["is_observed"]:
        raise ValueError(
            f"Expected '{site.name}' to be the model's only latent variable, but found '{msg['name']}', which cannot "
            "be summed. Try conditioning on it, or TraceEnum_ELBO with enumerated(), which samples it."
        )


def _check_constant(model: Run, site: Site, outside: dict[str, Messages]) -> None:
    """Refuse sites outside the one-hot's plates that depend on it, which their shapes do not tell."""
    for msg in outside.values():
        _check_observed(site, msg)
    with torch.no_grad(), poutine.block(), DiscretizeMessenger():
        upstream: Any = get_dependencies(model)["prior_dependencies"]
    for name, msg in outside.items():
        if site.name in upstream.get(name, ()):
            raise _mixes_data(site, msg, site.plates - plates_of(msg))


def _mixes_data(site: Site, msg: Messages, plates: frozenset[str]) -> ValueError:
    return ValueError(
        f"Expected every site to be inside the plate(s) {sorted(plates)} of '{site.name}' and to have its batch shape "
        f"{tuple(site.batch_shape)}, but found '{msg['name']}' outside of them: it belongs to no single datum. Try "
        "moving it into the plate or, for a plate of latents, one site of event shape (N, K), such as "
        "OneHotCategorical(...).to_event(1)."
    )


def _log_prob(msg: Messages, site: Site, nesting: int) -> Tensor:
    """Return a site's log-probability, scaled and masked, summed over plates that the one-hot lacks: (s or 1, B)."""
    scores = log_prob(msg["fn"], msg["value"], *msg["args"], **msg["kwargs"])
    scores = scale_and_mask(scores, msg["scale"], msg["mask"])
    scores = scores.reshape((1,) * (nesting + 1 - scores.dim()) + scores.shape)  # (s or 1, *plates)
    own = (1,) * (nesting - len(site.batch_shape)) + tuple(site.batch_shape)
    left = site.plates - plates_of(msg)
    if left:
        if len(scores) > 1:
            raise _mixes_data(site, msg, left)
        return (scores.sum() / site.batch_shape.numel()).expand(1, site.batch_shape.numel())
    plates = {frame.dim: frame.size for frame in msg["cond_indep_stack"] if frame.vectorized}
    found = scores.shape[1:]
    for dim in range(-len(found), 0):
        expected = own[dim] if -dim <= nesting else 0
        if found[dim] != expected and not (expected == 1 and found[dim] == plates.get(dim)):
            raise _mixes_data(site, msg, site.plates)
    return scores.sum_to_size(len(scores), *own).reshape(len(scores), -1)
