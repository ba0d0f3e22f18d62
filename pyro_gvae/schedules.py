"""Schedules of temperatures, learning rates and KL weights, as pure functions of the step.

A factory checks its arguments once and returns a pure function ``step -> value``. It has no state, so a resumed run, a
plot and a test get the same number for the same step. Values are positive, as temperatures must be; with
``positive=False`` they may reach 0, as KL weights do. ``SCHEDULES`` lists the factories by name, and ``schedule``
parses the short text that a command line or a configuration file contains.
"""

import inspect
import math
from collections.abc import Callable
from numbers import Integral
from typing import TypeAlias

Schedule: TypeAlias = Callable[[int], float]


def constant(value: float, *, positive: bool = True) -> Schedule:
    """Return a constant schedule: the same value at every step.

    Args:
        value: the value, positive.
        positive: whether the value must be positive; if False, it may be 0.

    Returns:
        A pure function from the step (0, 1, 2, ...) to the value.

    Raises:
        ValueError: if the value is out of range or not finite.

    Example:
        >>> constant(0.67)(1000)
        0.67
    """
    _check_values(positive, value=value)
    return lambda step: value


def exponential(initial: float, rate: float, floor: float, every: int = 1, *, positive: bool = True) -> Schedule:
    """Return an exponential decay down to a floor: ``max(floor, initial * exp(-rate * step))``.

    The schedule of Jang, Gu and Poole, *Categorical Reparameterization with Gumbel-Softmax* (2017, arXiv 1611.01144),
    who use ``max(0.5, exp(-rate * step))`` with a rate of 1e-5 or 1e-4, recomputed only at each 500th or 1000th step.

    Args:
        initial: the value at step 0, positive.
        rate: the decay per step, not negative.
        floor: the lowest value, positive and at most ``initial``.
        every: recompute the value once in this number of steps and hold it in between.
        positive: whether values must be positive; if False, they may be 0.

    Returns:
        A pure function from the step (0, 1, 2, ...) to the value.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> jang = exponential(1.0, 1e-4, 0.5, every=1000)
        >>> [round(jang(step), 4) for step in (0, 999, 1000, 100_000)]
        [1.0, 1.0, 0.9048, 0.5]
    """
    _check_values(positive, initial=initial, floor=floor)
    _check_count(every=every)
    if not (math.isfinite(rate) and rate >= 0):
        raise ValueError(f"Expected a rate that is finite and not negative, but found {rate}. Try 3e-5.")
    if floor > initial:
        raise ValueError(f"Expected a floor of at most initial={initial}, but found {floor}. Try a lower one.")
    return lambda step: max(floor, initial * math.exp(-rate * (step - step % every)))


def linear(initial: float, final: float, steps: int, *, positive: bool = True) -> Schedule:
    """Return a straight line from ``initial`` at step 0 to ``final`` at step ``steps``; constant afterwards.

    Args:
        initial: the value at step 0, positive.
        final: the value at step ``steps`` and later, positive; it may be above ``initial``.
        steps: the length of the line, at least 1.
        positive: whether values must be positive; if False, they may be 0.

    Returns:
        A pure function from the step (0, 1, 2, ...) to the value.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> [linear(1.0, 0.5, 100)(step) for step in (0, 50, 100, 1000)]
        [1.0, 0.75, 0.5, 0.5]
    """
    _check_values(positive, initial=initial, final=final)
    _check_count(steps=steps)
    return lambda step: final + (initial - final) * (1 - min(step / steps, 1.0))


def cosine(initial: float, final: float, steps: int, *, positive: bool = True) -> Schedule:
    """Return half a cosine wave from ``initial`` at step 0 to ``final`` at step ``steps``; constant afterwards.

    The formula is ``final + (initial - final) * (1 + cos(pi * step / steps)) / 2``, the shape that Loshchilov and
    Hutter, *SGDR: Stochastic Gradient Descent with Warm Restarts* (2017, arXiv 1608.03983, eq. 5), used for learning
    rates.

    Args:
        initial: the value at step 0, positive.
        final: the value at step ``steps`` and later, positive; it may be above ``initial``.
        steps: the length of the half wave, at least 1.
        positive: whether values must be positive; if False, they may be 0.

    Returns:
        A pure function from the step (0, 1, 2, ...) to the value.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> [round(cosine(1.0, 0.5, 100)(step), 3) for step in (0, 25, 50, 100, 1000)]
        [1.0, 0.927, 0.75, 0.5, 0.5]
    """
    _check_values(positive, initial=initial, final=final)
    _check_count(steps=steps)
    return lambda step: final + (initial - final) * (1 + math.cos(math.pi * min(step / steps, 1.0))) / 2


def article(batches_per_epoch: int) -> Schedule:
    """Return the annealing schedule of the article on which this package is based, exactly as in its loop.

    Kravets, *Variational Autoencoder (VAE) with Discrete Distribution using Gumbel Softmax* (Towards Data
    Science, 2023) starts every epoch at temperature 1 and runs, after the optimizer's step on each batch::

        if batch_idx % 100 == 1:
            temp = np.maximum(temp * np.exp(-ANNEAL_RATE * batch_idx), temp_min)    # 3e-5, 0.5

    Batch ``b`` of an epoch therefore comes after ``n = (b + 98) // 100`` updates, those made after batches 1, 101, 201,
    ... Its temperature is ``max(0.5, exp(-3e-5 * (50 * n * (n - 1) + n)))``. The last of the article's 600 batches has
    temperature 0.956, and the next epoch starts at 1 again, so there is hardly any annealing. (Jang's own notebook
    computes ``tau0 * exp(-ANNEAL_RATE * i)`` from the start value over all steps, which is ``exponential``.)

    Args:
        batches_per_epoch: the number of batches after which the temperature starts at 1 again, at least 1.

    Returns:
        A pure function from the step (0, 1, 2, ..., counted through all epochs) to the temperature.

    Raises:
        ValueError: if ``batches_per_epoch`` is not a whole number of at least 1.

    Example:
        >>> [round(article(600)(step), 4) for step in (0, 2, 102, 599, 600)]
        [1.0, 1.0, 0.9969, 0.9558, 1.0]
    """
    _check_count(batches_per_epoch=batches_per_epoch)

    def temperature(step: int) -> float:
        updates = (step % batches_per_epoch + 98) // 100
        return max(0.5, math.exp(-3e-5 * (50 * updates * (updates - 1) + updates)))

    return temperature


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "exponential": exponential,
    "linear": linear,
    "cosine": cosine,
    "article": article,
}


def schedule(text: str, *, positive: bool = True) -> Schedule:
    """Parse a schedule: ``name:number,number,...``, or a number alone for a constant.

    Args:
        text: a name in ``SCHEDULES``, a colon, and the factory's arguments in their order.
        positive: whether values must be positive; if False, they may be 0.

    Returns:
        The schedule, a pure function from the step to the value.

    Raises:
        ValueError: if the text cannot be parsed, or the factory refuses its arguments.

    Example:
        >>> schedule("0.67")(0), schedule("linear:1.0,0.5,100")(50)
        (0.67, 0.75)
        >>> schedule("linear:0,1,1000", positive=False)(0)
        0.0
    """
    name, colon, arguments = text.strip().partition(":")
    if not colon:
        name, arguments = "constant", name
    try:
        factory = SCHEDULES[name]
        numbers = [_number(part) for part in arguments.split(",")]
        parameters = inspect.signature(factory)
        parameters.bind(*numbers)
    except (KeyError, ValueError, TypeError):
        forms = ", ".join(_form(name) for name in SCHEDULES)
        raise ValueError(
            f"Expected a number or one of {forms}, but found '{text}'. Try 'exponential:1.0,3e-5,0.5'."
        ) from None
    options = {"positive": positive} if "positive" in parameters.parameters else {}
    return factory(*numbers, **options)


def _form(name: str) -> str:
    """Return the form of a schedule's text, such as ``linear:initial,final,steps``; optional arguments in brackets."""
    parameters = [p for p in inspect.signature(SCHEDULES[name]).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    return f"{name}:" + ",".join(p.name if p.default is p.empty else f"[{p.name}]" for p in parameters)


def _number(text: str) -> float:
    """Convert to an int if the text is one, so that a number of steps remains whole; else to a float."""
    try:
        return int(text) if len(text) < 20 else float(text)
    except ValueError:
        return float(text)


def _check_values(positive: bool, **named: float) -> None:
    for name, value in named.items():
        if not (math.isfinite(value) and (value > 0 or (value == 0 and not positive))):
            range_ = "positive" if positive else "at least 0"
            raise ValueError(f"Expected {name} to be {range_} and finite, but found {value}. Try 1.0.")


def _check_count(**named: int) -> None:
    for name, value in named.items():
        if not (isinstance(value, Integral) and value >= 1):
            raise ValueError(f"Expected {name} to be a whole number of at least 1, but found {value}. Try 1000.")
