"""Refuse sums over so many codes that they would not end within hours, before they start."""

from typing import Any

import torch

from ..programs.chains import Chains
from ..programs.joint import NOTHING_KEPT, Guide, read_guide_once
from ..programs.latents import TooManyJointCodesError
from ..programs.look import look
from ..programs.modes import without_trace
from ..programs.runs import Runs
from ..runtime.compat.torch import is_transformed
from ..runtime.work import count_operations
from .plan import Plan, plan_sum
from .sizes import read_codes

#: The largest number of operations of one sum: three hours on two cores, or a minute on a large GPU.
MOST_OPERATIONS = 1e15
#: Up to this many codes never take more than that, whatever the decoder; beyond it, operations are counted.
FEW_CODES = 2**20


def plan_to_end(runs: Runs, *, with_guide: bool = True, **options: Any) -> Plan | Chains:
    """Plan a sum as :func:`~pyro_gvae.exact.plan.plan_sum` does, and refuse one that takes too long.

    Raises:
        ValueError: as `plan_sum`; also if the sum over joint codes would not end within hours.
    """
    plan = plan_sum(runs, with_guide=with_guide, **options)
    if isinstance(plan, Plan) and plan.num_shared > FEW_CODES and not is_transformed():
        operations = _operations_of_code(runs.again(), plan, with_guide=with_guide) * plan.num_shared
        if operations > MOST_OPERATIONS:
            found = " x ".join(f"{one.num_categories}^{one.num_latents}" for one in plan.layout.space.latents)
            raise TooManyJointCodesError(
                f"Expected codes that can be summed in {MOST_OPERATIONS:g} operations, some hours on two cores, but "
                f"found K^N = {found} = {plan.num_codes:,}, which take {operations:.2g} per sum. Try fewer latents or "
                "categories, or sampling: another estimator, or the importance-weighted evidence."
            )
    return plan


def plan_and_guide(runs: Runs, **options: Any) -> tuple[Plan | Chains, Guide]:
    """Plan a sum that is taken once, and read the guide.

    Where no gradient is asked for, and a first look at the guide says all, this is the only run of it. Nothing is said
    where latents are summed one after another.

    Raises:
        ValueError: as :func:`plan_to_end`.
    """
    with_gradient, seen = torch.is_grad_enabled(), look(runs)
    with_guide = with_gradient or not seen.says_all
    plan = plan_to_end(runs, with_guide=with_guide, with_gradient=with_gradient, seen=seen, **options)
    return plan, NOTHING_KEPT if isinstance(plan, Chains) else read_guide_once(runs, plan.layout, seen)


@torch.no_grad()
def _operations_of_code(runs: Runs, plan: Plan, *, with_guide: bool) -> int:
    """Count the operations that one more code takes, without gradients, by runs on a few codes."""
    few, more = plan.layout.few()

    def counted(num_codes: int) -> int:
        with without_trace():
            codes = plan.layout.some_codes(num_codes)
            return count_operations(lambda: read_codes(runs, plan.layout, codes, with_guide))

    return max(counted(more) - counted(few), 0) // (more - few)
