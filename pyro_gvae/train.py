"""One training step: loss, gradients, one fused optimizer."""

from collections.abc import Callable

import pyro
import torch
from torch import Tensor, nn

from .estimators import Estimator

Step = Callable[[Tensor], Tensor]


def make_step(vae: nn.Module, estimator: Estimator, *, lr: float = 1e-3) -> Step:
    """A training step `step(x) -> loss` of the module's parameters by the estimator's loss.

    Args:
        vae: a module with `.model(x)` and `.guide(x)`, such as `CategoricalVAE`.
        estimator: the handler and the ELBO.
        lr: learning rate of Adam.

    Returns:
        A function of a batch x (B, D) that updates the parameters and returns the loss before, -ELBO in nats per datum.
    """
    model, guide, elbo = estimator.bind(vae)
    # One fused optimizer for all parameters: Pyro's steps one optimizer per tensor.
    optimizer = torch.optim.Adam(vae.parameters(), lr=lr, fused=True)

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        with pyro.get_param_store().scope():
            loss = elbo.loss_and_grads(model, guide, x)
        optimizer.step()
        return torch.as_tensor(loss) / len(x)

    return step
