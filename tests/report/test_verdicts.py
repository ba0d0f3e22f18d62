"""What the page of a training run says of it, from literal numbers."""

import numpy as np
import pandas as pd
import pytest

from pyro_gvae.report.verdicts import Baseline, training_finding, training_remarks

LAST = {"test_elbo": -17.25, "train_elbo": -16.5, "elbo_is": "exact"}


@pytest.mark.parametrize(
    ("last", "baseline", "sentence"),
    [
        (LAST, -44.35, "on test: <b>27.10 above</b> the mean image, which reaches −44.35 without a code."),
        (
            LAST,
            -17.0,
            "<b>0.25 below</b> the mean image, which reaches −17.00 without a code, so the model has learned",
        ),
        (LAST | {"test_elbo": None}, -20.0, "ends at <b>−16.50</b> nats per datum on train: <b>3.50 above</b>"),
        (LAST | {"elbo_is": "sampled"}, None, "on test, from one sample for each datum."),
        (
            LAST | {"elbo_is": "codes summed"},
            None,
            "on test, with all codes summed and continuous latents drawn once",
        ),
        (LAST | {"test_elbo": float("nan"), "train_elbo": float("nan")}, -20.0, "<b>nan</b> nats per datum on train."),
    ],
)
def test_an_elbo_is_judged_by_a_baseline(last, baseline, sentence):
    assert sentence in training_finding(last, None if baseline is None else Baseline("the mean image", baseline))


def evaluations(*elbos: float) -> pd.DataFrame:
    steps = [10 * place for place in range(len(elbos))]
    return pd.DataFrame({"step": steps, "test_elbo": elbos, "train_elbo": np.array(elbos) + 0.5})


@pytest.mark.parametrize(
    ("elbos", "sentence"),
    [
        ((-50.0, -18.0, -18.5), "The test ELBO was highest at step 10, −18.00, and then fell by 0.50: train for fewer"),
        ((-50.0, -20.0, -18.0), "The test ELBO rose by 2.00 in the last fifth of the training, so it may rise further"),
        ((-50.0, -18.0, -18.05), None),
    ],
)
def test_the_length_of_a_training_is_judged(elbos, sentence):
    told = training_remarks(evaluations(*elbos), None, go_on="pyro-gvae resume runs/a --more 10")
    assert told[0].endswith("0.50 above test.") and len(told) == (1 if sentence is None else 2)
    if sentence is not None:
        assert sentence in told[1]


def test_idle_latents_are_named_by_their_numbers():
    usage = np.array([[0.25] * 4, [1.0, 0.0, 0.0, 0.0]])
    told = training_remarks(evaluations(-9.0, -9.0), usage, go_on="")
    assert (
        told[-1]
        == "On average 2.5 of the 4 categories of a latent are in use (perplexity); 1 of 2 latents hardly vary: 1."
    )
