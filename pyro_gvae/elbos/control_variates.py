r"""REBAR and RELAX: the score-function estimator with a relaxation of the same noise as its control variate.

The perturbed logits z = log pi + Gumbel noise give the code b = onehot(argmax z), and c(z) is a function of the soft
code softmax(z / t). Let z~ be another draw of the perturbed logits given b. The gradient of E[f(b)] with respect to log
pi is the mean of (Tucker et al. 2017, eq. 7)

    g = (f(b) - eta c(z~)) grad log q(b) + eta (grad c(z) - grad c(z~)),

for any c and eta: the two terms with z~ have the mean -eta grad E[c(z~)], and E[c(z~)] = E[c(z)]. Given b, the largest
entry z~_b is random but does not depend on b, and the other entries lie below it:

    z~_b = log sum_k pi_k - log E,    z~_k = -log(E / sum_k pi_k + E_k / pi_k),    E, E_k ~ Exp(1).

E and E_k must be independent of b, but not of z. As in REBAR (appendix G.2), they are chosen such that z~ equals z.
Then c is evaluated once, and only the derivatives of z and z~ differ. With the relative perturbed logits s_k = exp(z_k
- z_b), which lie in (0, 1],

    d z_k / d log pi_j = [j = k],    d z~_k / d log pi_j = s_k pi_j + (1 - s_k) [j = k],

so eta (grad c(z) - grad c(z~)) is the gradient of eta sum_k s_k (dc/dz_k) log softmax(log pi)_k with eta, s_k and
dc/dz_k held constant. No noise has to be inverted, and nothing underflows. (An independent z~ would take one more run
of the model; its variance was 2 to 10 % lower where we measured it.)

With several latents, each has such a gradient, given the latents that the guide declares before it. f(b) is the cost of
the whole sample. c(z) is the cost of a sample in which this latent is soft, earlier latents are unchanged, and later
ones are drawn again with the noise of f. These are soft too, since a one-hot code would have no derivative in z. The
identity holds for every value of that noise, because the noise depends on neither b, z nor z~. A later continuous
latent that is not a location plus a scale times noise is drawn anew, from q(x | z); then c(z) is a mean over x, whose
derivative includes the term c grad log q(x | z).
"""

from collections.abc import Iterable
from functools import partial
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ..handlers.sites import Kind
from ..programs.factors import Reading
from ..programs.latents import Latent
from ..programs.noise import by_gumbel_noise
from ..programs.samples import Sample
from ..programs.target import Target
from .control import Control, Network, later_terms, relative_perturbed_logits
from .rows import Rows, SiteEstimate, SiteGradient, weighed
from .sampled import Estimate, SampledELBO


@final
class REBAR(SampledELBO):
    """The ELBO of the discrete model, with c(z) = log p(x, softmax(z / t)) as a control variate for its gradient.

    Tucker, Mnih, Maddison, Lawson and Sohl-Dickstein 2017, "REBAR: Low-variance, unbiased gradient estimates for
    discrete latent variable models", arXiv 1703.07370, for categorical latents: f(b) = log p(x, b), and the entropy of
    q is summed exactly, given the latents before. The model's parameters get the gradient of log p(x, b) only.
    Continuous latents are reparameterized, or scored where they cannot be.

    eta and t are learned; gradients are unbiased for any values of them. Let S be the squared norm of g with respect to
    the logits, averaged over codes and summed over data and latents; its mean is the variance of g plus a constant. Let
    R be the same with eta = 0. The paper descends the gradient of S. That gradient grows with the square of log p, so
    the first steps of RAdam, or any step of SGD, move eta so far that it does not return. Here it is divided by S + R,
    which makes it the gradient of log(S + R); its component for eta is at most 2.5 / eta.

    *Approximates* the ELBO of the discrete model. *With* P samples for each datum and (1 + M) P runs of the decoder for
    M discrete latents. *Requires* one-hots or bits, and networks that take points of the simplex and can be
    differentiated twice. *Bias*: none.

    Args:
        num_particles: P, samples per datum; each is run once hard, and once soft for each discrete latent.
        temperature: the initial t.

    Attributes:
        own: a module with the parameters `eta`, initially 1, and `log_temperature`.

    Example:
        >>> import pyro
        >>> from pyro.infer import SVI
        >>> from pyro_gvae import CategoricalVAE, discretize
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> elbo = REBAR()
        >>> svi = SVI(discretize(vae.model), discretize(vae.guide), pyro.optim.Adam({"lr": 1e-2}), loss=elbo)
        >>> loss = svi.step(torch.ones(4, 6))
        >>> elbo.own.eta.item() != 1
        True
    """

    own: Control

    def __init__(self, *, num_particles: int = 1, temperature: float = 0.5) -> None:
        super().__init__(num_particles=num_particles)
        self.own = Control(temperature)

    @override
    def estimate(self, target: Target) -> Estimate:
        return controlled(target, self.own, self.num_particles)


@final
class RELAX(SampledELBO):
    """:class:`REBAR` with c(z) = log p(x, softmax(z / t)) + r(softmax(z / t)), where r is a small learned network.

    Grathwohl, Choi, Wu, Roeder and Duvenaud 2018, "Backpropagation through the void: Optimizing control variates for
    black-box gradient estimation", arXiv 1711.00123. Initially r = 0. The network is a function of the codes of all
    latents. This is not the handler :func:`~pyro_gvae.relax`: codes are one-hot.

    *Approximates* the ELBO of the discrete model. *With* P samples for each datum and (1 + M) P runs of the decoder for
    M discrete latents. *Requires* one-hots or bits, and networks that take points of the simplex and can be
    differentiated twice. *Bias*: none.

    Args:
        num_particles: P, samples per datum; each is run once hard, and once soft for each discrete latent.
        temperature: the initial t.
        hidden: units of the network's hidden layer.

    Attributes:
        own: a module with the parameters `eta`, `log_temperature` and `network`.

    Example:
        >>> from pyro_gvae import CategoricalVAE
        >>> vae = CategoricalVAE(data_dim=6, num_latents=2, num_categories=3, hidden=(5,))
        >>> RELAX(hidden=8).loss(vae.model, vae.guide, torch.ones(4, 6)) > 0
        True
    """

    own: Control

    def __init__(self, *, num_particles: int = 1, temperature: float = 0.5, hidden: int = 32) -> None:
        super().__init__(num_particles=num_particles)
        self.own = Control(temperature, Network(hidden))

    @override
    def estimate(self, target: Target) -> Estimate:
        return controlled(target, self.own, self.num_particles)


def controlled(target: Target, control: Control, num_particles: int) -> Estimate:
    """Return the ELBO of each datum from P codes, its gradient's surrogate, and the loss of the control variate."""
    check_relaxable(target.layout.space.latents)
    control.fit_to(target.layout)
    base = target.drawn(num_particles, by_gumbel_noise)
    q, rows = base.q, (num_particles, target.layout.batch_size)
    model = target.read(base.values)
    check_continuous(q, model)
    log_joint = model.log_prob(base.codes).expand(rows)  # (P, B)
    entropy = sum((site.entropy() for site in q.sites.values()), log_joint.new_zeros(1))  # (B,) or (P, B)
    bound = (log_joint - q.log_prob(base.codes, base.codes) + entropy).mean(0)  # (B,)
    paths = (log_joint - q.log_prob(base.codes, base.without_path) + entropy).mean(0)
    surrogate = paths.sum() + base.score_function(log_joint - q.log_prob(base.codes, base.codes) + entropy)
    squares = log_joint.new_zeros(())
    for name, site in q.sites.items():
        log_probs, codes = site.rows(), base.codes[name]  # (P or 1, B, N, K)
        probs = log_probs.detach().exp()
        perturbed = relative_perturbed_logits(log_probs.detach(), base.noise[name]).requires_grad_()  # (P, B, N, K)
        value = (log_joint + later_terms(base, name)).detach()  # (P, B): f(b)
        variate, sloping = control(target, base, name, perturbed, partial(_soft_cost, target, name))  # (P, B): c(z)
        slope = _slope(sloping, perturbed)  # (P, B, N, K)

        learning_signal = (value - control.eta * variate)[..., None, None]
        weight = learning_signal * codes + control.eta * slope * perturbed.detach().exp()  # (P, B, N, K)
        surrogate = surrogate + (weight.detach() * log_probs).sum() / num_particles
        # The gradient of sum(weight * log softmax(logits)), one for each code, and the same with eta = 0.
        gradient = site.by_cell(weight - probs * weight.sum(-1, keepdim=True))
        without = site.by_cell(value[..., None, None] * (codes - probs))
        squares = squares + (gradient.square() + without.square()).mean(0).sum()  # S + R
    return Estimate(
        bound=bound.detach(),
        surrogate=surrogate,
        own_loss=squares.clamp_min(torch.finfo(squares.dtype).tiny).log() if q.sites else None,
    )


@final
class ControlledGradient(SiteGradient):
    """The gradient of one latent by REBAR or RELAX; the other latents may be treated in any way.

    Args:
        temperature: the initial t.
        hidden: units of RELAX's network; None for REBAR, which has none.
    """

    sums_entropy = True

    def __init__(self, temperature: float, hidden: int | None = None) -> None:
        super().__init__()
        self.control = Control(temperature, None if hidden is None else Network(hidden))

    @override
    def check(self, latent: Latent) -> None:
        check_relaxable([latent])

    @override
    def forward(self, rows: Rows, name: str) -> SiteEstimate:
        control, base, target, site = self.control, rows.base, rows.target, rows.base.q.sites[name]
        control.fit_to(target.layout)
        check_continuous(base.q, rows.model)
        log_probs, codes = site.rows(), base.codes[name]  # (R or 1, B, N, K)
        probs = log_probs.detach().exp()
        perturbed = relative_perturbed_logits(log_probs.detach(), base.noise[name]).requires_grad_()  # (R, B, N, K)

        def cost(drawn: Sample, model: Reading) -> Tensor:
            return rows.model_terms(drawn, model) + later_terms(drawn, name, rows.analytic)

        def soft_cost(relaxed: Sample, learned: Tensor) -> Tensor:
            return weighed(rows.weights(relaxed), cost(relaxed, target.read(relaxed.values)) + learned)

        value = weighed(rows.weights(base), cost(base, rows.model)).detach()  # (R, B): w f(b)
        variate, sloping = control(target, base, name, perturbed, soft_cost)
        slope = _slope(sloping, perturbed)
        learning_signal = (value - control.eta * variate)[..., None, None]
        weight = learning_signal * codes + control.eta * slope * perturbed.detach().exp()  # (R, B, N, K)
        gradient = rows.by_cell(name, weight - probs * weight.sum(-1, keepdim=True))
        without = rows.by_cell(name, value[..., None, None] * (codes - probs))
        squares = gradient.square().sum() + without.square().sum()
        return SiteEstimate(
            (weight.detach() * log_probs).sum(), squares.clamp_min(torch.finfo(squares.dtype).tiny).log()
        )


def _soft_cost(target: Target, name: str, relaxed: Sample, learned: Tensor) -> Tensor:
    """Return the cost of a soft sample (P or 1, B or 1), for the latent with this name."""
    return target.read(relaxed.values).log_prob(relaxed.codes) + later_terms(relaxed, name) + learned


def check_continuous(*readings: Reading) -> None:
    """Refuse programs in which the weight of a statement depends on codes.

    Such a scale or mask jumps somewhere between soft codes, and so does c(z). The derivative of its mean would then
    not be the mean of its derivative, and the gradient would be biased.

    Raises:
        ValueError: if there is such a statement.
    """
    for reading in readings:
        for name, one in (reading.sites | reading.factors).items():
            if one.weight_depends:
                raise ValueError(
                    "Expected scales and masks that do not depend on codes, since a control variate of soft codes must "
                    f"not jump, but found one at '{name}'. Try reinforce-loo or disarm-iw, which relax nothing."
                )


def check_relaxable(latents: Iterable[Latent]) -> None:
    """Refuse latents that have no values between their codes.

    Raises:
        ValueError: if a latent is an integer.
    """
    for latent in latents:
        if latent.kind is Kind.INTEGER:
            raise ValueError(
                f"Expected one-hots or bits to relax, but found integers at '{latent.name}': an integer has no "
                "relaxation. Try OneHotCategorical, or disarm-iw, which relaxes nothing."
            )


def _slope(variate: Tensor, perturbed: Tensor) -> Tensor:
    """Return the derivative of c(z) (P, B, N, K), zero if the program masks out everything that depends on z."""
    if not variate.requires_grad:
        return torch.zeros_like(perturbed)
    [slope] = torch.autograd.grad(
        variate.sum(), perturbed, create_graph=True, allow_unused=True, materialize_grads=True
    )
    return slope
