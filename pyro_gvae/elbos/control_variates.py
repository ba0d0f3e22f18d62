r"""REBAR and RELAX: the score function's gradient, less what a relaxation of the same noise explains of it.

The heights z = log pi + Gumbel noise have the code b = onehot(argmax z), and c(z) is a function of the soft code
softmax(z / t). With z~ another draw of the heights given b, the gradient of E[f(b)] with respect to log pi is the mean
of (Tucker et al. 2017, eq. 7)

    g = (f(b) - eta c(z~)) grad log q(b) + eta (grad c(z) - grad c(z~)),

for any c and eta: the two terms of z~ are, in the mean, the gradient of -eta E[c(z~)], and E[c(z~)] = E[c(z)]. What is
random in z~ is the height of the winner, which does not depend on b, and those of the others below it:

    z~_b = log sum_k pi_k - log E,    z~_k = -log(E / sum_k pi_k + E_k / pi_k),    E, E_k ~ Exp(1).

E and E_k have to be independent of b, but not of z. As in REBAR (appendix G.2) they are tied to it: they are those that
make z~ equal to z. Then c is evaluated once, and only the derivatives of z and z~ differ. With the relative heights
s_k = exp(z_k - z_b), which lie in (0, 1],

    d z_k / d log pi_j = [j = k],    d z~_k / d log pi_j = s_k pi_j + (1 - s_k) [j = k],

so that eta (grad c(z) - grad c(z~)) is the gradient of eta sum_k s_k (dc/dz_k) log softmax(log pi)_k, its first
factors held fixed. No noise is ever inverted, and nothing underflows. (A fresh z~ would take one more run of the model,
for 2 to 10 % less variance where we measured it.)
"""

import math
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from ..distributions.parameters import gumbel_like
from ..programs.target import Target
from .sampled import Estimate, SampledELBO

#: Lower relative heights are zero to any softmax; infinite ones, of excluded categories, would make 0 * inf.
LOWEST = -1e4


@final
class Network(nn.Module):
    """r(y) = v . tanh(W y + a) of soft codes y, one hidden layer; v = 0 at first, so that RELAX begins as REBAR.

    W is empty until the first codes tell its width. It is the same tensor before and after, which an optimizer and a
    recording may hold; those of `nn.LazyLinear` they may not.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden, 0))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.output = nn.Parameter(torch.zeros(hidden))

    def take_width(self, width: int) -> None:
        """Draw W if there is none yet.

        Raises:
            ValueError: if there is one of another width.
        """
        if self.weight.numel() == 0:
            self.weight.data = nn.init.xavier_uniform_(self.bias.new_empty(len(self.bias), width))
        elif self.weight.shape[1] != width:
            raise ValueError(
                f"Expected codes of N x K = {self.weight.shape[1]} numbers, as before, but found {width}. Try another "
                "RELAX() for another model."
            )

    def forward(self, soft: Tensor) -> Tensor:
        """r, shape (P, B), of soft codes (P, B, N, K)."""
        return torch.tanh(F.linear(soft.flatten(-2), self.weight, self.bias)) @ self.output


@final
class Control(nn.Module):
    """What REBAR and RELAX learn: the scale eta, the temperature t, and RELAX its network r."""

    def __init__(self, temperature: float, network: Network | None = None) -> None:
        super().__init__()
        self.eta = nn.Parameter(torch.tensor(1.0))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.network = network
        self.register_load_state_dict_pre_hook(_take_types_and_width)

    def fit_to(self, log_probs: Tensor) -> None:
        """Take on the type and the device of log pi (B, N, K), and their width, where they are not known yet."""
        if (self.eta.dtype, self.eta.device) != (log_probs.dtype, log_probs.device):
            self.to(log_probs)
        if self.network is not None:
            self.network.take_width(log_probs.shape[-2:].numel())

    def forward(self, target: Target, heights: Tensor) -> Tensor:
        """c(z), shape (P, B), of heights z (P, B, N, K)."""
        soft = torch.softmax(heights / self.log_temperature.exp(), -1)
        value = target.log_joint(soft)
        return value if self.network is None else value + target.q.weigh(self.network(soft))


def _take_types_and_width(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before a checkpoint is loaded: what a new loss would learn from its first batch, it learns from there."""
    for name, parameter in module.named_parameters():
        saved = state.get(prefix + name)
        if saved is not None:
            shape = parameter.shape if parameter.numel() else saved.shape
            parameter.data = torch.empty(shape, dtype=saved.dtype, device=parameter.device)


@final
class REBAR(SampledELBO):
    """The ELBO of the discrete model, its gradient with a control variate c(z) = log p(x, softmax(z / t)).

    Tucker, Mnih, Maddison, Lawson and Sohl-Dickstein 2017, "REBAR: Low-variance, unbiased gradient estimates for
    discrete latent variable models", arXiv 1703.07370, for categories: f(b) = log p(x, b), while the entropy of q is
    summed exactly. Gradients are unbiased for any eta and t. These two are learned, by the gradient of S, the
    square of g with respect to the logits of each datum and for one code: its mean is the variance of g and a constant.
    It is divided by S + R, R being the same square with eta = 0, which makes it the gradient of log(S + R). That of S
    alone, the published one, grows with the square of log p, and the first steps of RAdam, or any of SGD, take eta away
    for good; relative to S + R that of eta is at most 2.5 / eta. The model's parameters get the gradient of log p(x, b)
    and nothing else.

    Args:
        num_particles: P, codes for each datum; the model runs on 2 P of them.
        temperature: t to begin with.

    Attributes:
        own: a module with the parameters `eta` (1 to begin with) and `log_temperature`.

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
    """:class:`REBAR` with c(z) = log p(x, softmax(z / t)) + r(softmax(z / t)), r a small network that is learned too.

    Grathwohl, Choi, Wu, Roeder and Duvenaud 2018, "Backpropagation through the void: Optimizing control variates for
    black-box gradient estimation", arXiv 1711.00123. r = 0 to begin with. It is not the handler
    :func:`~pyro_gvae.relax`: codes are one-hot.

    Args:
        num_particles: P, codes for each datum; the model runs on 2 P of them.
        temperature: t to begin with.
        hidden: units of the network's hidden layer.

    Attributes:
        own: a module with the parameters `eta`, `log_temperature` and `network`.
    """

    own: Control

    def __init__(self, *, num_particles: int = 1, temperature: float = 0.5, hidden: int = 32) -> None:
        super().__init__(num_particles=num_particles)
        self.own = Control(temperature, Network(hidden))

    @override
    def estimate(self, target: Target) -> Estimate:
        return controlled(target, self.own, self.num_particles)


def controlled(target: Target, control: Control, num_particles: int) -> Estimate:
    """The ELBO of each datum from P codes, the estimate of its gradient, and what its own parameters descend."""
    log_probs = target.log_probs  # (B, N, K)
    control.fit_to(log_probs)
    heights = relative_heights(log_probs.detach(), num_particles).requires_grad_()  # (P, B, N, K)
    codes = torch.zeros_like(heights).scatter(-1, heights.argmax(-1, keepdim=True), 1.0)
    value = target.log_joint(codes)  # (P, B): f(b)
    variate = control(target, heights)  # (P, B): c(z)
    [slope] = torch.autograd.grad(variate.sum(), heights, create_graph=True)  # (P, B, N, K)

    learning_signal = (value.detach() - control.eta * variate)[..., None, None]
    weight = learning_signal * codes + control.eta * slope * heights.detach().exp()  # (P, B, N, K)
    # The gradient of sum(weight * log softmax(logits)), one for each code.
    gradient = weight - log_probs.detach().exp() * weight.sum(-1, keepdim=True)

    without = value.detach()[..., None, None] * (codes - log_probs.detach().exp())  # eta = 0
    squares = (gradient.square() + without.square()).mean(0).sum()  # S + R

    entropy = target.q.weigh(-(log_probs.exp() * log_probs).sum((-2, -1)))  # (B,)
    bound = value.mean(0) + entropy
    return Estimate(
        bound=bound.detach(),
        surrogate=bound.sum() + (weight.detach().mean(0) * log_probs).sum(),
        own_loss=squares.clamp_min(torch.finfo(squares.dtype).tiny).log(),
    )


def relative_heights(log_probs: Tensor, num_particles: int) -> Tensor:
    """log pi (B, N, K) + Gumbel noise, less the largest of each latent: shape (P, B, N, K), at most 0.

    Neither softmax nor argmax changes when a number is taken from all heights of a latent.
    """
    heights = log_probs + gumbel_like(log_probs, torch.Size((num_particles, *log_probs.shape)))
    return (heights - heights.amax(-1, keepdim=True)).clamp_min(LOWEST)
