"""Schedules: each against the published loop or formula, at its ends, and as text."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from pyro_gvae.schedules import SCHEDULES, Schedule, article, constant, cosine, exponential, linear, schedule

EXAMPLES: dict[str, Schedule] = {
    "constant": constant(0.7),
    "exponential": exponential(1.0, 1e-3, 0.5, every=7),
    "linear": linear(1.0, 0.5, 300),
    "cosine": cosine(1.0, 0.5, 300),
    "article": article(600),
}


def test_every_schedule_has_an_example() -> None:
    assert EXAMPLES.keys() == SCHEDULES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_pure_function_of_the_step(name: str) -> None:
    forwards = [EXAMPLES[name](step) for step in range(1500)]
    backwards = [EXAMPLES[name](step) for step in reversed(range(1500))]
    assert forwards == backwards[::-1]
    assert all(type(value) is float and 0.5 <= value <= 1.0 for value in forwards)


@pytest.mark.parametrize("name", ["exponential", "linear", "cosine"])
def test_falls_from_the_start_to_the_end(name: str) -> None:
    values = np.array([EXAMPLES[name](step) for step in range(1500)])
    assert values[0] == 1.0
    assert values[-1] == 0.5
    assert (np.diff(values) <= 0).all()


def test_exponential_is_the_formula_of_jang() -> None:
    temperature = exponential(1.0, 3e-5, 0.5)
    for step in (0, 1, 777, 23_104, 23_105, 10**9):
        assert temperature(step) == pytest.approx(np.maximum(np.exp(-3e-5 * step), 0.5), rel=1e-14)


def test_exponential_holds_between_its_updates() -> None:
    every_step, held = exponential(2.0, 1e-3, 0.1), exponential(2.0, 1e-3, 0.1, every=500)
    assert [held(step) for step in (0, 499, 500, 999, 1000)] == [every_step(step) for step in (0, 0, 500, 500, 1000)]
    assert held(499) != every_step(499)


@pytest.mark.parametrize(("shape", "quarter"), [(linear, 2.5), (cosine, 1 + 2 * (1 + math.sqrt(0.5)) / 2)])
def test_linear_and_cosine_also_rise(shape: Callable[[float, float, int], Schedule], quarter: float) -> None:
    falling, rising = shape(3.0, 1.0, 400), shape(1.0, 3.0, 400)
    assert falling(100) == pytest.approx(quarter)
    assert falling(200) == pytest.approx(2.0)
    for step in (0, 1, 100, 399, 400, 401):
        assert falling(step) + rising(step) == pytest.approx(4.0)


@pytest.mark.parametrize("batches_per_epoch", [1, 2, 3, 100, 101, 102, 600, 3001])
def test_article_is_its_loop(batches_per_epoch: int) -> None:
    looped = []
    for _ in range(2):
        temperature = 1.0
        for batch in range(batches_per_epoch):
            looped.append(temperature)
            if batch % 100 == 1:
                temperature = np.maximum(temperature * np.exp(-0.00003 * batch), 0.5)
    ours = [article(batches_per_epoch)(step) for step in range(2 * batches_per_epoch)]
    np.testing.assert_allclose(ours, looped, rtol=1e-13)


def test_article_never_falls_below_095_but_long_epochs_reach_its_floor() -> None:
    assert min(article(600)(step) for step in range(3 * 600)) == pytest.approx(0.9558, abs=5e-5)
    assert min(article(3001)(step) for step in range(3001)) == 0.5


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("0.67", constant(0.67)),
        (" 2 ", constant(2)),
        ("constant:0.67", constant(0.67)),
        ("exponential:1.0,3e-3,0.5", exponential(1.0, 3e-3, 0.5)),
        ("exponential:1.0, 3e-3, 0.5, 100", exponential(1.0, 3e-3, 0.5, every=100)),
        ("linear:1,0.5,300", linear(1, 0.5, 300)),
        ("cosine:1,0.5,300", cosine(1, 0.5, 300)),
        ("article:60", article(60)),
    ],
)
def test_text(text: str, same: Schedule) -> None:
    assert [schedule(text)(step) for step in range(400)] == [same(step) for step in range(400)]


@pytest.mark.parametrize(
    ("text", "ends"),
    [("0", (0, 0)), ("linear:0,1,10", (0, 1)), ("linear:1,0,10", (1, 0)), ("cosine:0,2,10", (0, 2))],
)
def test_values_may_reach_0_where_they_need_not_be_positive(text: str, ends: tuple[float, float]) -> None:
    found = [schedule(text, positive=False)(step) for step in range(20)]
    assert (found[0], found[-1]) == ends and min(found) >= 0
    with pytest.raises(ValueError, match="to be positive and finite, but found 0"):
        schedule(text)
    with pytest.raises(ValueError, match="to be at least 0 and finite, but found -1"):
        schedule("linear:-1,1,10", positive=False)


BAD_TEXTS = ["", "warm", "1,2", "exp:1,2,3", "linear", "linear:", "linear:1,2", "cosine:1,x,3"]


@pytest.mark.parametrize("text", BAD_TEXTS)
def test_another_text_is_refused_with_all_the_forms(text: str) -> None:
    forms = r"^Expected a number or one of constant:value, .*floor,\[every\], .*, but found"
    with pytest.raises(ValueError, match=forms) as e:
        schedule(text)
    assert f"'{text}'" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: constant(0.0), "Expected value to be positive and finite, but found 0.0"),
        (lambda: constant(math.nan), "Expected value to be positive and finite, but found nan"),
        (
            lambda: exponential(1.0, -1e-5, 0.5),
            "Expected a rate that is finite and not negative, but found -1e-05",
        ),
        (lambda: exponential(1.0, 1e-5, 0.0), "Expected floor to be positive and finite, but found 0.0"),
        (lambda: exponential(0.5, 1e-5, 1.0), r"Expected a floor of at most initial=0\.5, but found 1\.0"),
        (lambda: exponential(1.0, 1e-5, 0.5, every=0), "Expected every to be a whole number of at least 1"),
        (lambda: linear(1.0, -1.0, 10), "Expected final to be positive and finite, but found -1.0"),
        (lambda: linear(math.inf, 1.0, 10), "Expected initial to be positive and finite, but found inf"),
        (lambda: cosine(1.0, 0.5, 0), "Expected steps to be a whole number of at least 1, but found 0"),
        (lambda: schedule("linear:1.0,0.5,10.5"), r"Expected steps to be a whole number .* but found 10\.5"),
        (
            lambda: article(-600),
            "Expected batches_per_epoch to be a whole number of at least 1, but found -600",
        ),
    ],
)
def test_bad_arguments_are_refused_at_once(make: Callable[[], Schedule], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()
