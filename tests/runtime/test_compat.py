"""A canary for each function of `compat` that uses private names: a small program of stock Pyro or torch.

A canary fails if a new release has changed a name. The message tells the name and the release it was tested with.
"""

import inspect
import linecache
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import infer, poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.discrete import TraceEnumSample_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from pyro_gvae.runtime.compat import enumeration as of_enumeration
from pyro_gvae.runtime.compat import pyro as of_pyro
from pyro_gvae.runtime.compat import torch as of_torch

aten = torch.ops.aten
#: Library -> the release that the canaries were written for, and the installed one.
TESTED = {"pyro": ("pyro-ppl 1.9.2", pyro), "torch": ("torch 2.14.1", torch)}
#: Function of `compat` -> its private names, and the canary.
CANARIES: dict[str, tuple[str, Callable[[], None]]] = {}


def canary(private: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a canary under the name of the function that it tests; `private` is the name that may change."""

    def enter(check: Callable[[], None]) -> Callable[[], None]:
        CANARIES[check.__name__] = private, check
        return check

    return enter


@contextmanager
def failure_names(private: str) -> Iterator[None]:
    """Turn any failure into one that tells the private name, the tested release and the installed one."""
    library = private.partition(".")[0]
    tested, installed = TESTED[library]
    try:
        yield
    except Exception as error:
        raise AssertionError(
            f"Expected {private} to be what it was in {tested}, but found it to behave otherwise in the installed "
            f"{installed.__version__}: {error!r}. Try to mend pyro_gvae/runtime/compat/{library}.py."
        ) from error


# Pyro.


@canary("pyro.poutine.subsample_messenger.SubsampleMessenger")
def state_of_plate() -> None:
    first, second, other = (of_pyro.state_of_plate(pyro.plate("data", size)) for size in (3, 3, 4))
    assert first is not None and first == second != other
    assert of_pyro.state_of_plate("data") is None


@canary("pyro.poutine.subsample_messenger.SubsampleMessenger._indices")
def indices_of_full_plate() -> None:
    plate = pyro.plate("data", 3)
    found = of_pyro.indices_of_full_plate(plate)
    with plate as indices:
        assert found is indices
    assert of_pyro.indices_of_full_plate(pyro.plate("part", 3, 2)) is None


@canary("pyro.poutine.runtime._PYRO_STACK")
def handlers_on_stack() -> None:
    assert of_pyro.handlers_on_stack() == ()
    with poutine.trace() as outer, poutine.scale(scale=2.0), poutine.block() as inner:
        found = of_pyro.handlers_on_stack()
    assert len(found) == 3 and found[0] is outer and found[-1] is inner


@canary("pyro.poutine.trace_messenger.TraceMessenger.param_only")
def only_records_parameters() -> None:
    with poutine.trace(param_only=True) as of_svi, poutine.trace() as of_all, poutine.block() as other:
        assert of_pyro.only_records_parameters(of_svi)
        assert not of_pyro.only_records_parameters(of_all) and not of_pyro.only_records_parameters(other)


def several_kinds_of_sites() -> None:
    with pyro.plate("rows", 4, subsample_size=2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.deterministic("twice", 2 * z)
    pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=torch.tensor(0.5))


@canary("pyro.poutine.do_messenger's message key _intervener_id")
def is_intervened_on() -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, 1.0))

    with poutine.trace() as outer, poutine.do(data={"z": torch.tensor(2.0)}):
        model()
    found = {name: of_pyro.is_intervened_on(site) for name, site in outer.trace.nodes.items()}
    assert {name for name, is_cut_off in found.items() if is_cut_off} == {"z"}


@canary("pyro.deterministic's infer key _deterministic")
def is_random() -> None:
    sites = poutine.trace(several_kinds_of_sites).get_trace().nodes.items()
    samples = {name: site for name, site in sites if site["type"] == "sample"}
    assert samples.keys() == {"rows", "z", "twice", "x"}
    assert {name for name, site in samples.items() if of_pyro.is_random(site)} == {"z", "x"}


@canary("pyro.deterministic's infer key _deterministic")
def settings_of_deterministic_site() -> None:
    nodes = poutine.trace(several_kinds_of_sites).get_trace().nodes
    assert nodes["twice"]["infer"] == of_pyro.settings_of_deterministic_site()


@canary("pyro.distributions.MaskedDistribution._mask")
def mask_of() -> None:
    mask = torch.tensor([True, False])
    assert of_pyro.mask_of(dist.Normal(torch.zeros(2), 1.0).mask(mask)) is mask


@canary("pyro.params.module_from_param_with_module_name")
def is_of_module() -> None:
    def program() -> None:
        pyro.module("net", nn.Linear(2, 1))
        pyro.param("scale", torch.tensor(1.0))

    nodes = poutine.trace(program).get_trace().nodes.items()
    names = {name: of_pyro.is_of_module(name) for name, site in nodes if site["type"] == "param"}
    assert len(names) == 3 and [name for name, is_of_module in names.items() if not is_of_module] == ["scale"]


@canary("pyro.infer.SVI, which trains what a parameter's unconstrained() gives,")
def give_leaf() -> None:
    parameter = nn.Parameter(torch.tensor(1.0))
    of_pyro.give_leaf(parameter, parameter)

    def model() -> None:
        mean = effectful(type="param")(lambda: parameter)(name="mean")
        pyro.sample("x", dist.Normal(mean, 1.0), obs=torch.tensor(0.0))

    SVI(model, lambda: None, pyro.optim.SGD({"lr": 0.5}), Trace_ELBO()).step()
    assert parameter.item() == 0.5 and not pyro.get_param_store().keys()


@canary("pyro.param's unconstrained()")
def leaf_of() -> None:
    value = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
    [(_, leaf)] = pyro.get_param_store().named_parameters()
    assert of_pyro.leaf_of(value) is leaf and leaf is not value
    assert of_pyro.leaf_of(leaf) is leaf


@canary("pyro.param's unconstrained, a weak reference,")
def forget_leaf() -> None:
    parameter = nn.Parameter(torch.tensor(1.0))
    pyro.param("mean", parameter)
    with pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(parameter)
    of_pyro.forget_leaf(parameter)
    assert pickle.loads(pickle.dumps(parameter)) == 1
    of_pyro.forget_leaf(parameter)
    assert pyro.param("mean", parameter) is parameter and of_pyro.leaf_of(parameter) is parameter


@canary("pyro.infer.ELBO._get_trace, the one abstract method,")
def LossOnlyELBO() -> None:
    assert infer.ELBO.__abstractmethods__ == {"_get_trace"}
    with pytest.raises(TypeError, match="Expected a call of LossOnlyELBO for its loss"):
        of_pyro.LossOnlyELBO()._get_trace()


def normal() -> None:
    with pyro.plate("data", 2):
        pyro.sample("z", dist.Normal(pyro.param("mean", torch.tensor(0.0)), 1.0))


#: Stock ELBOs, on a program that they accept.
STOCK = [
    infer.Trace_ELBO(),
    infer.Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1),
    infer.TraceGraph_ELBO(),
    infer.TraceMeanField_ELBO(),
    infer.TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
    infer.TraceTMC_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
    infer.RenyiELBO(alpha=0.5, num_particles=2),
    infer.RenyiELBO(alpha=0.5, num_particles=2, vectorize_particles=True, max_plate_nesting=1),
]


@canary("pyro.infer.ELBO._get_trace and _get_traces, called by loss where no gradient is asked for,")
def running_elbo() -> None:
    requests = []

    def guide() -> None:
        requests.append(of_pyro.running_elbo())
        normal()

    for elbo in STOCK:
        for method, wants_gradient in (("loss", False), ("loss_and_grads", True)):
            requests.clear()
            getattr(elbo, method)(normal, guide)
            assert requests and set(requests) == {(elbo, wants_gradient)}, f"{type(elbo).__name__}.{method}"
    distance = infer.EnergyDistance(max_plate_nesting=1)  # no ELBO, but called in the same way
    with pytest.raises(ValueError, match="no observations"):
        distance(normal, guide)
    assert requests[-1] == (distance, True)
    guide()
    assert requests[-1] is None


@canary("pyro.infer.ELBO._guess_max_plate_nesting and pyro.infer.autoguide's _setup_prototype")
def runs_for_a_loss() -> None:
    found = []

    def model() -> None:
        found.append(of_pyro.runs_for_a_loss())
        normal()

    TraceEnum_ELBO(strict_enumeration_warning=False).loss(model, normal)
    assert found == [False, True], "first for its shapes, then for its loss"
    infer.autoguide.AutoNormal(poutine.block(model, hide=["mean"]))()
    model()
    assert found[2:] == [False, False]


def mixture() -> None:
    z = pyro.sample("z", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
    pyro.sample("x", dist.Normal(z.float(), 1.0), obs=torch.tensor(0.0))


def answers_of(question: Callable[[], object]) -> list[object]:
    """Return a function's answer in each run of a program: for marginals, two kinds of samples, later ones, a loss."""
    found = []

    def model() -> None:
        found.append(question())
        mixture()

    TraceEnum_ELBO(max_plate_nesting=0).compute_marginals(model, lambda: None)
    infer.infer_discrete(model, first_available_dim=-1)()
    TraceEnum_ELBO(max_plate_nesting=0).sample_posterior(model, lambda: None)
    TraceEnumSample_ELBO(max_plate_nesting=0).loss(model, lambda: None)
    TraceEnum_ELBO(max_plate_nesting=0).loss(model, lambda: None)
    return found


@canary("pyro.infer.TraceEnum_ELBO.compute_marginals")
def computes_marginals() -> None:
    assert answers_of(of_pyro.computes_marginals) == [True, *5 * [False], False]
    marginals = TraceEnum_ELBO(max_plate_nesting=0).compute_marginals(mixture, lambda: None)
    assert type(marginals["z"]) is dist.Categorical, "made by type(fn)(logits=...)"


@canary("pyro.infer.discrete._sample_posterior, pyro.infer.TraceEnum_ELBO.sample_posterior or their kin")
def samples_posterior() -> None:
    assert answers_of(of_pyro.samples_posterior) == [False, *5 * [True], False]


@canary("pyro.infer.discrete.SamplePosteriorMessenger")
def replayed_number() -> None:
    _, enumerates, replays, *others = answers_of(lambda: of_pyro.replayed_number("z"))
    assert isinstance(replays, Tensor) and replays in (0, 1) and {enumerates, *others} == {None}


@canary("pyro.infer.traceenum_elbo.BackwardSampleMessenger")
def outside_of_backward_sampling() -> None:
    with poutine.block() as outermost:
        found = answers_of(of_pyro.outside_of_backward_sampling)
    assert found.pop(4) == (outermost,) and set(found) == {()}


class Answers(TorchFunctionMode):
    """Answer Pyro's questions as a recording does, and keep the questions."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        answer = of_pyro.answer_without_value(func)
        if answer is None:
            return func(*args, **(kwargs or {}))
        self.asked.append(func.__name__)
        return answer(*args)


def enumerated_categories() -> None:
    with pyro.plate("data", 2):
        logits = pyro.param("logits", torch.zeros(3))
        z = pyro.sample("z", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(z.float(), 1.0), obs=torch.zeros(2))


def enumerated_guide() -> None:
    poutine.block(enumerated_categories, hide=["x"])()


@canary("pyro.util.warn_if_nan, pyro.infer.util.torch_item or Dice.compute_expectation, or an ELBO's loss,")
def answer_without_value() -> None:
    for elbo in STOCK:
        for method in ("loss", "loss_and_grads"):
            with Answers():
                loss = getattr(elbo, method)(normal, normal)
            assert isinstance(loss, Tensor), f"{type(elbo).__name__}.{method} gave {loss!r}"
    with Answers() as answers, pyro.validation_enabled(False):
        found = TraceEnum_ELBO(max_plate_nesting=1).loss(enumerated_categories, enumerated_guide)
    expected = TraceEnum_ELBO(max_plate_nesting=1).loss(enumerated_categories, enumerated_guide)
    assert {"masked_select", "__bool__", "item"} <= set(answers.asked)
    assert found.item() == pytest.approx(expected)
    with Answers(), warnings.catch_warnings():
        warnings.simplefilter("error")
        pyro.util.warn_if_nan(torch.tensor(torch.nan))
        assert isinstance(torch.ones(()).item(), float), "another's question is not answered"


@canary("pyro.util.warn_if_nan")
def looks_for_nan() -> None:
    found = []

    class Watch(of_torch.Watching):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is aten._local_scalar_dense.default:
                found.append(of_pyro.looks_for_nan())
            return func(*args, **(kwargs or {}))

    x = torch.ones((), requires_grad=True)
    with Watch():
        loss = pyro.util.warn_if_nan(2 * x)
        loss.backward()  # a hook looks at the gradient
        loss.item()
    assert found == [True, True, False]


# torch.


@canary("torch.utils._pytree")
def flattened() -> None:
    leaves, nesting = of_torch.flattened(((1, None), {"a": [2.0]}))
    assert leaves == [1, None, 2.0] and isinstance(nesting, of_torch.Nesting)
    assert nesting == of_torch.flattened(((3, None), {"a": [4.0]}))[1] != of_torch.flattened(((3,), {}))[1]


@canary("torch.utils._pytree")
def nested() -> None:
    tree = ((1, None), {"a": [2.0]})
    assert of_torch.nested(*of_torch.flattened(tree)) == tree


@canary("torch.utils._pytree")
def leaves_of() -> None:
    assert of_torch.leaves_of([1, (2, {"a": None})]) == [1, 2, None]


@canary("torch.utils._pytree")
def tensors_in() -> None:
    one, two = torch.ones(1), torch.ones(2)
    assert [id(tensor) for tensor in of_torch.tensors_in([one, (None, {"a": two, "b": 3.0})])] == [id(one), id(two)]


@canary("torch.utils._pytree")
def tensors_mapped() -> None:
    assert of_torch.tensors_mapped(Tensor.item, (torch.tensor(2.0), 3)) == (2.0, 3)


@canary("torch._ops.OpOverload")
def is_operation() -> None:
    graph = make_fx(lambda x: x.sort().values)(torch.ones(2)).graph
    calls = [of_torch.is_operation(node.target) for node in graph.nodes if node.op == "call_function"]
    assert calls == [True, False, False], "sort, then its results"


@canary("torch._ops.OpOverload._schema")
def name_of_operation() -> None:
    assert of_torch.name_of_operation(aten.add.Tensor) == "add"


@canary("torch._ops.OpOverload._schema")
def shares_memory() -> None:
    x = torch.ones(4)
    for operation, arguments in ((aten.view.default, ([2, 2],)), (aten._unsafe_view.default, ([2, 2],))):
        assert of_torch.shares_memory(operation) and operation(x, *arguments).data_ptr() == x.data_ptr()
    assert not of_torch.shares_memory(aten.add.Tensor)


@canary("torch._ops.OpOverload._schema")
def written_arguments() -> None:
    assert of_torch.written_arguments(aten.add_.Tensor) == [(0, "self")]
    assert of_torch.written_arguments(aten.add.out) == [(3, "out")]
    assert of_torch.written_arguments(aten.add.Tensor) == []


@canary("torch._guards.tracing or torch._subclasses.FakeTensorMode")
def one_mode_for_shapes() -> None:
    def modes() -> int:
        graph = make_fx(lambda x: (x + 1).exp())(torch.ones(2)).graph
        return len({id(node.meta["val"].fake_mode) for node in graph.nodes if "val" in node.meta})

    alone = modes()
    with of_torch.one_mode_for_shapes():
        together = modes()
    assert together == 1 < alone


@canary("torch.fx.graph_module._loader.eval_cache")
def no_sources_kept() -> None:
    def kept(number: int) -> int:
        make_fx(lambda x: x + number)(torch.ones(2))
        return len(linecache.cache)

    before = len(linecache.cache)
    with of_torch.no_sources_kept():
        inside = kept(1)
    assert inside > before == len(linecache.cache) < kept(2)


@canary("torch._inductor.compile")
def compiled() -> None:
    graph = make_fx(lambda x: (x + 1,))(torch.ones(2))
    with torch.no_grad():
        [found] = of_torch.compiled(graph, [torch.ones(2)], {"fallback_random": True})(torch.ones(2))
    assert torch.equal(found, torch.full((2,), 2.0))


@canary("torch._C._set_mkldnn_enabled")
def without_mkldnn() -> None:
    layer, x = nn.LSTM(2, 2), torch.ones(3, 2)
    with of_torch.without_mkldnn():
        graph = make_fx(lambda x: layer(x)[0].sum().backward())(x).graph
        assert not any("mkldnn" in str(node.target) for node in graph.nodes)
    assert torch.backends.mkldnn.enabled == torch._C._get_mkldnn_enabled()


@canary("torch.utils._python_dispatch._disable_current_modes")
def outside_of_recordings() -> None:
    def program(x: Tensor) -> Tensor:
        with of_torch.outside_of_recordings():
            number = torch.arange(3)[2].item()
        return x * number

    assert len(make_fx(program)(torch.ones(2)).graph.nodes) == 3, "input, product and output"


@canary("torch._C._functorch.peek_interpreter_stack")
def is_transformed() -> None:
    seen = []
    torch.func.vmap(lambda x: seen.append(of_torch.is_transformed()) or x)(torch.ones(2))
    assert seen == [True] and not of_torch.is_transformed()


@canary("torch._C._DisableFuncTorch")
def outside_of_transforms() -> None:
    def program(x: Tensor) -> Tensor:
        with of_torch.outside_of_transforms():
            torch.ones(2).numpy()
        return x.square()

    assert torch.func.grad(program)(torch.tensor(3.0)) == 6


@canary("torch.utils._python_dispatch.TorchDispatchMode")
def Results() -> None:
    with of_torch.Results() as results:
        torch.func.grad(lambda x: x.exp().sum())(torch.ones(8))
    assert results.num_bytes >= 2 * 8 * 4, "the exponential and its derivative"


@canary("torch.Tensor._backward_hooks")
def hooks_of() -> None:
    x = torch.ones((), requires_grad=True)
    before = of_torch.hooks_of(x)
    handle = x.register_hook(torch.neg)
    assert torch.neg in of_torch.hooks_of(x) and of_torch.hooks_of(x) != before
    handle.remove()
    assert of_torch.hooks_of(x) == before


@canary("torch.Tensor._post_accumulate_grad_hooks")
def acts_when_graded() -> None:
    x = torch.ones((), requires_grad=True)
    assert not of_torch.acts_when_graded(x)
    x.register_post_accumulate_grad_hook(lambda x: None)
    assert of_torch.acts_when_graded(x)


@canary("torch.Tensor._backward_hooks and torch.Tensor._post_accumulate_grad_hooks, read of many")
def hooks_of_each() -> None:
    plain, hooked, graded = (torch.ones(1, requires_grad=True) for _ in range(3))
    assert of_torch.hooks_of_each([plain, hooked, graded]) == []
    hooked.register_hook(torch.neg)
    assert of_torch.hooks_of_each([plain, hooked, graded]) == [(False,), (torch.neg, False), (False,)]
    graded.register_post_accumulate_grad_hook(lambda _: None)
    assert of_torch.hooks_of_each([plain, graded]) == [(False,), (True,)]


@canary("torch.nn.modules.module._global_forward_hooks and its like")
def hooks_of_all_modules() -> None:
    here = nn.modules.module
    enter: list[Any] = [
        here.register_module_forward_pre_hook,
        here.register_module_forward_hook,
        here.register_module_full_backward_pre_hook,
        here.register_module_full_backward_hook,
    ]
    handles = [register(lambda *_: None) for register in enter]
    counts = [len(hooks) for hooks in of_torch.hooks_of_all_modules()]
    for handle in handles:
        handle.remove()
    assert counts == [1, 1, 1, 1] and not any(of_torch.hooks_of_all_modules())


@canary("torch.UntypedStorage._cdata")
def storage_id() -> None:
    x = torch.ones(4)
    assert of_torch.storage_id(x) == of_torch.storage_id(x[2:]) != of_torch.storage_id(x.clone())


@canary("torch.Tensor._base")
def without_repeats() -> None:
    base = torch.ones(3, requires_grad=True)
    found = of_torch.without_repeats((2 * base).reshape(3, 1).expand(3, 4), 2)
    assert found.shape == (3, 1) and found.grad_fn is not None and found.grad_fn.name() == "ViewBackward0"
    part = of_torch.without_repeats((2 * base)[1:].reshape(2, 1).expand(2, 4), 2)
    assert part.shape == (2, 1) and part.grad_fn is not None and part.grad_fn.name() == "AsStridedBackward0"
    with torch.no_grad():
        cut = base.view(3, 1)
    found = of_torch.without_repeats(cut.requires_grad_().expand(3, 4), 2)
    assert torch.autograd.grad(found.sum(), cut)[0].tolist() == [[1.0]] * 3


@canary("torch.distributions.OneHotCategorical._categorical and ._param")
def parameters_of() -> None:
    for family in (dist.Bernoulli, dist.OneHotCategorical):
        fn = family(logits=torch.ones(2))
        assert fn.probs.shape == (2,)  # computed, and kept from now on
        assert list(of_torch.parameters_of(fn.expand([3, *fn.batch_shape]))) == ["logits"]
    fn = dist.Binomial(4, torch.full((2,), 0.5)).expand([3, 2])
    assert fn.logits.shape == (3, 2) and set(of_torch.parameters_of(fn)) == {"total_count", "probs"}


@canary("torch.distributions.Distribution._validate_args")
def validates() -> None:
    assert [of_torch.validates(dist.Bernoulli(0.5, validate_args=flag)) for flag in (True, False)] == [True, False]


@canary("torch.utils._python_dispatch.TorchDispatchMode")
def Watching() -> None:
    seen = []

    class Watch(of_torch.Watching):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func)
            return func(*args, **(kwargs or {}))

    x = torch.ones((), requires_grad=True)
    with Watch():
        x.exp().backward()
    assert seen[0] is aten.exp.default and aten.mul.Tensor in seen, "the backward pass as well"


# Pyro's parallel enumeration.


def chain() -> None:
    z = torch.tensor(0)
    other = pyro.sample("other", dist.Normal(0.0, 1.0))
    for t in pyro.markov(range(3)):
        z = pyro.sample(f"z{t}", dist.Categorical(torch.ones(2, 2)[z] + 0 * other), infer={"enumerate": "parallel"})


def chain_in(first: int) -> Any:
    return poutine.trace(poutine.enum(chain, first_available_dim=first)).get_trace().nodes


@canary("pyro.poutine.enum_messenger's infer key _enumerate_dim")
def enumerated_dim() -> None:
    nodes = chain_in(-2)
    assert [of_enumeration.enumerated_dim(nodes[name]) for name in ("z0", "z1", "z2", "other")] == [-2, -3, -2, None]


@canary("pyro.poutine.markov_messenger's infer key _markov_depth")
def in_markov() -> None:
    nodes = chain_in(-2)
    assert of_enumeration.in_markov(nodes["z1"]) and not of_enumeration.in_markov(nodes["other"])


@canary("pyro.poutine.enum_messenger's infer key _dim_to_id")
def axes_in_reach() -> None:
    nodes = chain_in(-2)
    assert of_enumeration.axes_in_reach(nodes["other"]) == {}
    first, second, third = (of_enumeration.axes_in_reach(nodes[f"z{t}"]) for t in range(3))
    assert first.keys() == {-2} and second.keys() == third.keys() == {-2, -3}
    assert second[-3] == third[-3] and first[-2] == second[-2] != third[-2]


@canary("pyro.poutine.enum_messenger's infer key _dim_to_id")
def give_axes() -> None:
    seen = {}

    class Give(Messenger):
        def _pyro_sample(self, msg: Any) -> None:
            if msg["name"] == "z0":
                msg["value"] = torch.tensor([0, 1]).reshape(2, 1)
                del msg["infer"]["enumerate"]
                of_enumeration.give_axes(msg, {-2: 77})

        def _pyro_post_sample(self, msg: Any) -> None:
            seen[msg["name"]] = of_enumeration.axes_in_reach(msg)

    with poutine.enum(first_available_dim=-2), Give():
        chain()
    assert seen["z0"] == {-2: 77} and seen["z1"][-2] == 77


@canary("pyro.poutine.runtime._ENUM_ALLOCATOR")
def leave_dims() -> None:
    with poutine.enum(first_available_dim=-2):
        chain()
    of_enumeration.leave_dims(-3)
    nodes = poutine.trace(poutine.enum(chain)).get_trace().nodes
    assert [of_enumeration.enumerated_dim(nodes[f"z{t}"]) for t in range(3)] == [-4, -5, -4]


@canary("pyro.poutine.markov_messenger's infer key _markov_scope")
def sites_in_reach() -> None:
    nodes = chain_in(-2)
    assert of_enumeration.sites_in_reach(nodes["z2"]) == {"z1"} and not of_enumeration.sites_in_reach(nodes["other"])


@canary("pyro.poutine.markov_messenger's infer keys _markov_scope and _markov_depth")
def is_in_reach() -> None:
    seen: dict[str, Any] = {}
    reached = {}

    def nested() -> None:
        for i in pyro.markov(range(2)):
            for j in pyro.markov(range(2)):
                seen[f"{i}{j}"] = poutine.trace(lambda i=i, j=j: pyro.sample(f"z{i}{j}", dist.Normal(0.0, 1.0)))
                seen[f"{i}{j}"] = seen[f"{i}{j}"].get_trace().nodes[f"z{i}{j}"]
        reached["11"] = {key for key, msg in seen.items() if of_enumeration.is_in_reach(seen["11"], msg)}

    nested()
    assert reached["11"] == {"10"}, "those of an inner loop that has ended are in scope, and out of reach"


@canary("pyro.poutine.runtime._PYRO_STACK")
def loop_around() -> None:
    seen = []
    for _ in pyro.markov(range(2)):
        for _ in pyro.markov(range(2)):
            seen.append(of_enumeration.loop_around())
    assert of_enumeration.loop_around() is None
    assert seen[0] is not None and all(loop is seen[0] for loop in seen)


@canary("pyro.poutine.markov_messenger's infer key _markov_scope")
def bring_into_reach() -> None:
    seen: dict[str, Any] = {}

    class Bring(Messenger):
        def _pyro_sample(self, msg: Any) -> None:
            seen[msg["name"]] = msg
            if msg["name"] == "z2":
                of_enumeration.bring_into_reach(msg, seen["z0"])
                of_enumeration.bring_into_reach(msg, seen["other"])

    with poutine.enum(first_available_dim=-2), Bring():
        chain()
    assert of_enumeration.sites_in_reach(seen["z2"]) == {"z0", "z1"}
    assert of_enumeration.enumerated_dim(seen["z2"]) == -4


@canary("pyro.poutine.markov_messenger's infer key _markov_scope")
def take_out_of_reach() -> None:
    msg = {"infer": {"_markov_scope": {"a": 1, "b": 1}}}
    of_enumeration.take_out_of_reach(msg, "a")
    of_enumeration.take_out_of_reach({"infer": {}}, "a")
    assert of_enumeration.sites_in_reach(msg) == {"b"}


@canary("pyro.poutine.markov_messenger's infer keys _markov_scope and _markov_depth")
def markov_settings() -> None:
    nodes = chain_in(-2)
    assert len(of_enumeration.markov_settings(nodes["z1"]["infer"])) == 2
    assert of_enumeration.markov_settings(nodes["other"]["infer"]) == {}


# The canaries themselves.

SLOW = {"compiled"}
QUESTIONS = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CANARIES]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_private_name_is_what_it_was(question: str) -> None:
    private, check = CANARIES[question]
    with failure_names(private):
        check()


def test_each_question_has_a_canary() -> None:
    def questions(module: object) -> set[str]:
        found = inspect.getmembers(module, lambda thing: inspect.isfunction(thing) or inspect.isclass(thing))
        return {name for name, thing in found if thing.__module__ == module.__name__ and not name.startswith("_")}

    answers = {"Request"}  # a return type, not a function
    assert CANARIES.keys() == (questions(of_pyro) | questions(of_enumeration) | questions(of_torch)) - answers


@pytest.mark.parametrize(
    ("question", "module", "name", "other"),
    [
        ("handlers_on_stack", of_pyro, "_PYRO_STACK", []),
        ("answer_without_value", of_pyro, "_ANSWERS", {}),
        ("looks_for_nan", of_pyro, "warn_if_nan", SVI.step),
        ("one_mode_for_shapes", of_torch, "tracing", lambda context: poutine.block()),
        ("leaves_of", of_torch, "pytree", None),
    ],
)
def test_a_name_that_has_changed_is_told(question, module, name, other, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """The negative control."""
    private, check = CANARIES[question]
    monkeypatch.setattr(module, name, other)
    library = private.partition(".")[0]
    tested = TESTED[library][0]
    sentence = f"Expected {private} to be what it was in {tested}, .* installed {TESTED[library][1].__version__}"
    with pytest.raises(AssertionError, match=sentence.replace("+", r"\+")), failure_names(private):
        check()
