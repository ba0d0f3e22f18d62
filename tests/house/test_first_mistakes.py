"""What a user may pass by mistake is answered in one sentence: expected, found, and mostly what to try."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_gvae import (
    CategoricalVAE,
    RelaxedOneHotCategorical,
    TrainConfig,
    estimator,
    exact,
    fit,
    make_step,
    relax,
    sample,
)

X = torch.zeros(2, 3)


def vae(**changes):
    return CategoricalVAE(**{"data_dim": 3, "num_latents": 1, "num_categories": 2, "hidden": (4,)} | changes)


def pair():
    return exact.Pair(vae().model, vae().guide)


def functions():
    def model(x):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Bernoulli(0.5)), 1.0), obs=x)

    return exact.Pair(model, lambda x: pyro.sample("z", dist.Bernoulli(0.5)))


MISTAKES = {
    "a word as temperature": (lambda: relax(vae().guide, temperature="cold")(X), "positive temperature, .* 'cold'"),
    "a list as temperature": (
        lambda: RelaxedOneHotCategorical([1.0], logits=torch.ones(3)),
        r"but found \[1\.0\]",
    ),
    "a temperature of 0": (lambda: relax(vae().guide, temperature=0)(X), "positive temperature, but found 0"),
    "no estimator": (lambda: estimator(3), "name of an estimator, but found 3"),
    "a name that is none": (lambda: make_step(vae(), "exakt"), "Try 'exact'"),
    "a step of two functions": (lambda: make_step(pair(), "exact"), r"found a Pair, .* Try fit\(pair, x\)"),
    "a word as width of the data": (lambda: vae(data_dim="wide"), "whole number as data_dim, but found 'wide'"),
    "one width": (lambda: vae(hidden=5), r"widths of the hidden layers, but found 5\. Try hidden="),
    "a width of 0": (lambda: vae(hidden=(0,)), r"hidden\[0\] of at least 1"),
    "a word as number of samples": (lambda: sample(vae(), "ten"), "whole number as num_samples"),
    "stages as configuration": (lambda: fit(vae(), X, "exact:1"), "Expected a TrainConfig, .* Try fit"),
    "a negative learning rate": (
        lambda: TrainConfig(learning_rate=-1),
        "positive number or a schedule",
    ),
    "data of another width": (lambda: exact.elbo(vae(), X[:, :2]), r"shape \(B, 3\), but found \(2, 2\)"),
    "no data": (
        lambda: exact.elbo(functions()),
        r"Expected the arguments of 'model', .* missing a required argument: 'x'",
    ),
    "a dictionary for one argument": (
        lambda: exact.elbo(functions(), {"batch": X}),
        r"by name: .* Try \(\{\.\.\},\) for",
    ),
    "integers as data": (lambda: exact.elbo(vae(), X.long()), r"Try x\.to\(torch\.float32\)"),
    "an array as data": (lambda: exact.elbo(vae(), X.numpy()), r"Try torch\.as_tensor\(x\)"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_in_one_sentence(name):
    call, said = MISTAKES[name]
    with pytest.raises(ValueError, match=said):
        call()


def test_a_step_takes_the_name_of_an_estimator():
    torch.manual_seed(0)
    program = vae()
    before = make_step(program, "exact", lr=0.0)(X)
    torch.testing.assert_close(before, make_step(program, estimator("exact"), lr=0.0)(X))
