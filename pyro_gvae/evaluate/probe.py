"""Fit a linear classifier to codes, to measure how much they tell about the labels."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .code_statistics import Measured

#: As in scikit-learn's `LogisticRegression(max_iter=1000)`.
OPTIONS = {"maxiter": 1000, "maxls": 50, "gtol": 1e-4, "ftol": 64 * torch.finfo(torch.float64).eps}


def linear_probe(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> Measured | None:
    """Fit a logistic regression from codes to labels on training data, and return its accuracy on test data.

    It is multinomial with an L2 penalty C = 1, as scikit-learn's default, on one-hots of all latents (the idea is that
    of Alain and Bengio 2017, arXiv 1610.01644).

    Args:
        train: codes of training data as category numbers, shape (M, N), or one-hots, shape (M, N, K); for several
            latents, one-hots (M, F, 1) of all of them.
        train_labels: integers (M,).
        test: codes of test data, in the same form.
        test_labels: integers (M',).

    Returns:
        The accuracy and its binomial standard error; None if the training data have only one class, or the test data
        have classes that the training data lack.

    Example:
        >>> codes = torch.tensor([[0], [1]] * 20)
        >>> linear_probe(codes, codes[:, 0], codes, codes[:, 0]).value
        1.0
    """
    classes, train_labels = train_labels.unique(return_inverse=True)
    if len(classes) < 2 or not torch.isin(test_labels, classes).all():
        return None
    if train.dim() == 2:
        num_categories = int(max(train.max(), test.max())) + 1
        train, test = one_hot(train, num_categories), one_hot(test, num_categories)
    # Data with the same code differ only in their labels, so it is enough to count the labels of each code.
    codes, code = train.flatten(1).cpu().unique(dim=0, return_inverse=True)
    counts = torch.zeros(len(codes), len(classes), dtype=torch.float64)
    counts.index_put_((code, train_labels.cpu()), torch.ones((), dtype=torch.float64), accumulate=True)
    weights = _fitted(codes.double(), counts)
    found = classes.cpu()[_scores(test.flatten(1).cpu().double(), weights).argmax(1)]
    accuracy = (found == test_labels.cpu()).double().mean().item()
    return Measured(accuracy, math.sqrt(accuracy * (1 - accuracy) / len(test)))


def _scores(codes: Tensor, weights: Tensor) -> Tensor:
    """Return unnormalized log-probabilities (M, C) from weights (C, F + 1), or (1, F + 1) for two classes."""
    scores = codes @ weights[:, :-1].T + weights[:, -1]
    return scores if len(weights) > 1 else torch.cat([torch.zeros_like(scores), scores], 1)


def _fitted(codes: Tensor, counts: Tensor) -> Tensor:
    """Return the weights of classes that minimize the mean loss and the penalty, in float64.

    Args:
        codes: different codes (U, F).
        counts: how many data of each class have each code, (U, C).
    """
    from scipy.optimize import minimize  # imported here, since few evaluations have labels

    num_classes, num_data = counts.shape[1], counts.sum()
    shape = (num_classes if num_classes > 2 else 1, codes.shape[1] + 1)

    def loss_and_gradient(flat: Any) -> tuple[float, Any]:
        weights = torch.from_numpy(flat).reshape(shape)
        log_probs = _scores(codes, weights).log_softmax(1)
        residual = (log_probs.exp() * counts.sum(1, keepdim=True) - counts)[:, -shape[0] :].T  # (C, U)
        loss = (0.5 * weights[:, :-1].square().sum() - (counts * log_probs).sum()) / num_data
        gradient = torch.cat([residual @ codes + weights[:, :-1], residual.sum(1, keepdim=True)], 1) / num_data
        return loss.item(), gradient.flatten().numpy()

    found = minimize(
        loss_and_gradient, torch.zeros(shape).double().flatten().numpy(), jac=True, method="L-BFGS-B", options=OPTIONS
    )
    return torch.from_numpy(found.x).reshape(shape)
