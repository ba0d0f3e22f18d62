"""Seconds are divided by counted work: who gets them does not depend on a clock."""

import pytest
import torch

from pyro_gvae import CategoricalVAE, estimator
from pyro_gvae.diagnostics import advise as advice_module
from pyro_gvae.diagnostics.advise import advise_on
from pyro_gvae.diagnostics.budget import FEWEST, MOST, Budget, Counted, count_gradient
from pyro_gvae.diagnostics.candidates import candidates
from pyro_gvae.diagnostics.probe import WARMUP, make_problem

COSTS = {"gumbel-softmax": 1e-3, "exact": 2e-3, "reinforce-loo": 1e-3, "local-expectation": 0.05, "vimco": 1e-3}


def budget_of(names, refused=()):
    """Return a budget of candidates with literal costs, their grid, and the names that were counted."""
    counted = []

    def count(one):
        counted.append(one.name)
        if one.name in refused:
            raise ValueError("no")
        return Counted(COSTS[one.name], COSTS[one.name], 1000, 0)

    return Budget(count), candidates(names, temperatures=(0.5, 1.0)), counted


def test_what_does_not_fit_is_left_out_and_what_is_left_is_divided():
    budget, grid, _ = budget_of(COSTS)
    shares, left_out = budget.divide(grid, 2.0, all_of_them=False)
    assert left_out == ["local-expectation"]
    assert [share.candidate.name for share in shares] == ["gumbel-softmax"] * 2 + ["exact", "reinforce-loo", "vimco"]
    spent = sum(share.num_samples * share.counted.seconds for share in shares)
    assert 0 < spent < 2.0 and all(FEWEST < share.num_samples <= MOST for share in shares)


def test_the_first_two_are_measured_in_no_time_and_nobody_else_is_counted():
    budget, grid, counted = budget_of(COSTS)
    shares, left_out = budget.divide(grid, 1e-6, all_of_them=False)
    assert {share.candidate.name for share in shares} == {"gumbel-softmax", "exact"}
    assert left_out == ["reinforce-loo", "local-expectation", "vimco"] and counted == ["gumbel-softmax", "exact"]
    assert {share.num_samples for share in shares} == {FEWEST}


def test_named_estimators_are_all_measured():
    budget, grid, _ = budget_of(["local-expectation", "vimco"])
    shares, left_out = budget.divide(grid, 1e-6, all_of_them=True)
    assert len(shares) == 2 and left_out == []


def test_a_candidate_that_refuses_costs_nothing():
    budget, grid, _ = budget_of(["gumbel-softmax", "vimco"], refused=("vimco",))
    shares, _ = budget.divide(grid, 1.0, all_of_them=False)
    assert [share.counted is None for share in shares] == [False, False, True] and budget.affordable(grid[-1], 9.0) == 0


def test_estimates_that_standard_errors_need_are_affordable_or_none():
    budget, grid, _ = budget_of(["vimco"])
    fits = [budget.affordable(grid[0], seconds) for seconds in (1e-3 * (FEWEST - 1), 1e-3 * FEWEST, 9.0)]
    assert fits == [0, FEWEST, MOST] and budget.least(grid) == pytest.approx(1e-3 * FEWEST)


def test_work_is_counted_with_the_estimates_that_come_before():
    torch.manual_seed(0)
    problem = make_problem(CategoricalVAE(6, 2, 3, (5,)), torch.ones(4, 6))
    before = torch.random.get_rng_state()
    found = {name: count_gradient(problem, estimator(name)) for name in ("gumbel-softmax", "rebar")}
    assert found["gumbel-softmax"].warm_up == 0 and found["rebar"].warm_up == WARMUP
    assert 0 < found["gumbel-softmax"].seconds < found["rebar"].seconds and found["rebar"].memory > 1000
    assert torch.equal(torch.random.get_rng_state(), before)
    assert count_gradient(problem, estimator("rebar")) == found["rebar"]


@pytest.mark.usefixtures("slow_clock")
def test_a_slow_machine_measures_the_same(monkeypatch):
    """The seconds of a step are other ones, but not the estimators, nor the numbers of their gradients."""
    torch.manual_seed(0)
    vae, x = CategoricalVAE(6, 2, 3, (5,)), torch.rand(8, 6).round()
    monkeypatch.setattr(advice_module, "ESTIMATORS", dict.fromkeys(("gumbel-softmax", "exact", "vimco", "reinmax")))
    tables = [advise_on(vae, x, seconds=0.05) for _ in range(2)]
    names = ["estimator", "samples", "relative_bias", "progress"]
    assert tables[0][0][names].equals(tables[1][0][names])
    assert set(tables[0][0]["estimator"]) == {"gumbel-softmax", "exact"}
    assert "Not measured, since 0.05 seconds are too few for all: reinmax." in tables[0][1].reasons[-1]
