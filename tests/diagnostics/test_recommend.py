"""The recommendation from a table of measurements: the rule on literal tables, with ties and gaps."""

import math

import pandas as pd
import pytest

from pyro_gvae.diagnostics.recommend import recommend

NAN = math.nan
COMMON = {"relative_std": 1.0, "progress_se": 0.0, "relative_bias": 0.0, "relative_bias_se": 0.01}
COMMON |= {"temperature": NAN, "reference": "exact", "refused": None, "unbiased": True, "memory": 1e6}
EXACT = COMMON | {"estimator": "exact", "progress": 1.0, "seconds": 0.1, "relative_std": 0.0, "memory": 5e7}
SOFT = COMMON | {"estimator": "gumbel-softmax", "unbiased": False, "seconds": 0.001}
COOL = SOFT | {"temperature": 0.5, "progress": 0.2, "relative_bias": 0.1}
WARM = SOFT | {"temperature": 1.0, "progress": 0.4, "relative_bias": 0.3}
SCORE = COMMON | {"estimator": "reinforce-loo", "progress": 0.1, "seconds": 0.002}


def advice(*rows, obstacle=None):
    return recommend(pd.DataFrame(list(rows)), obstacle)


def test_the_most_progress_per_second_wins_and_bias_asks_for_another_end():
    found = advice(EXACT, COOL, WARM, SCORE)
    assert (found.estimator, found.temperature, found.finish) == ("gumbel-softmax", 1.0, "exact")
    said = found.in_words()
    assert said.startswith("Train with 'gumbel-softmax' at temperature 1, then 'exact' for the last epochs.\n- ")
    assert "a step takes 1 ms and makes 0.4 times the progress of a step along the exact gradient" in said
    assert "takes 100 ms per step, 1e+02 times as long" in said and "40 times the progress" in said
    assert "0.5: bias 0.1, s.d. 1, progress 0.2" in said and "1: bias 0.3, s.d. 1, progress 0.4" in said
    assert "is 0.3 ± 0.01 times" in said and "uses 1.0 MB of memory, a sum over all codes 50.0 MB" in said


def test_a_cheap_sum_is_taken():
    found = advice(EXACT | {"seconds": 0.002}, COOL, WARM)
    assert (found.estimator, found.temperature, found.finish) == ("exact", None, None)
    assert "Next is 'gumbel-softmax' at temperature 1" in found.in_words() and "tie with" not in found.in_words()


def test_a_tie_is_told_with_its_rule():
    found = advice(EXACT | {"seconds": 0.00255}, WARM)
    assert "2 measurements tie with the fastest" in found.in_words() and found.estimator == "exact"


def test_without_the_exact_gradient_an_unbiased_one_finishes():
    standin = {"reference": "the mean of 900 estimates by reinforce-loo"}
    found = advice(WARM | standin, SCORE | standin, obstacle="One exact gradient takes a year.")
    assert (found.estimator, found.finish) == ("gumbel-softmax", "reinforce-loo")
    assert "One exact gradient takes a year." in found.reasons and "mean of 900 estimates" in found.in_words()


@pytest.mark.parametrize(
    ("rows", "winner"),
    [
        ((WARM, EXACT | {"seconds": 0.0026}), ("exact", None)),  # speeds 400 and 385: the unbiased one is preferred
        ((SCORE | {"progress": 1.0, "seconds": 0.1}, EXACT), ("exact", None)),
        ((WARM | {"progress": 0.21}, COOL), ("gumbel-softmax", 0.5)),  # the less biased of two temperatures
        ((WARM, SCORE | {"progress": 0.5, "progress_se": 0.2}), ("reinforce-loo", None)),  # within two errors
        ((WARM, SCORE | {"progress": 0.5, "progress_se": 0.1}), ("gumbel-softmax", 1.0)),
        ((SCORE, SCORE | {"estimator": "vanilla", "progress": 0.05, "seconds": 0.001}), ("vanilla", None)),
    ],
)
def test_ties(rows, winner):
    for order in (rows, rows[::-1]):
        found = advice(*order)
        assert (found.estimator, found.temperature) == winner


def test_without_a_reference_only_noise_is_compared_and_that_is_said():
    blind = {"progress": NAN, "relative_bias": NAN, "reference": "none"}
    hasty = SCORE | blind | {"relative_std": 12.0, "seconds": 0.0001}  # four times the noise, a tenth of the time
    rows = (WARM | blind, COOL | blind | {"relative_std": 3.0}, hasty)
    found = advice(*rows, obstacle="Too many codes.")
    assert (found.estimator, found.temperature, found.finish) == ("gumbel-softmax", 0.5, None)
    assert "Neither bias nor the best temperature could be measured" in found.in_words()
    assert "Too many codes." in found.reasons


def test_who_refused_is_named():
    refused = dict.fromkeys(COMMON) | {"estimator": "disarm", "progress": None, "seconds": None, "refused": "K > 2."}
    assert "'disarm' was left out: K > 2." in advice(EXACT, refused).reasons
    with pytest.raises(ValueError, match=r"Expected an estimator that accepts the problem.*'disarm' was left out"):
        advice(refused)


def test_no_progress_is_no_recommendation():
    assert advice(EXACT, WARM | {"progress": -0.01}).estimator == "exact"
