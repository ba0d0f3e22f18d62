"""Private names of torch and Pyro are used only in `pyro_gvae/runtime/compat/`, the place to check for a new release.

In the syntax tree of each module, the tests look for: an import with a part that begins with an underscore; an
attribute that begins with one and that nothing in the package defines; known private names without one; keys of a
site's settings that begin with one; the divider in names of Pyro's parameters; and overridden private methods.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pyro_gvae"
COMPAT = "runtime/compat/"
LIBRARIES = ("torch", "pyro")

#: Names for subclasses of `Distribution` and `Messenger`, which torch's and Pyro's own subclasses use.
HOOKS = {
    *("_batch_shape", "_extended_shape", "_get_checked_instance", "_validate_args", "_validate_sample"),
    *("_pyro_param", "_pyro_post_sample", "_pyro_sample"),
}
#: Methods of named tuples.
PUBLIC = {"_asdict", "_fields", "_make", "_replace"}
#: Private despite their names: frames of Python's stack, and attributes that Pyro and torch set for their own use.
KNOWN = {"currentframe", "f_back", "f_code", "f_locals", "unconstrained", "param_only", "eval_cache"}
#: Private methods of Pyro that a subclass could override.
OVERRIDDEN = {"_get_trace", "_get_traces", "_guess_max_plate_nesting"}


def sources(package: Path) -> dict[str, str]:
    """Return the text of each module by its path in the package."""
    return {path.relative_to(package).as_posix(): path.read_text("utf-8") for path in sorted(package.rglob("*.py"))}


def private_uses(modules: dict[str, str]) -> list[str]:
    """Return one sentence for each private name in these modules."""
    trees = {module: ast.parse(source) for module, source in modules.items()}
    own = {name for tree in trees.values() for node in ast.walk(tree) for name in defined(node)}
    return [
        f"{module}:{node.lineno} {use}"
        for module, tree in trees.items()
        for imported in [set(names_of_libraries(tree))]
        for node in ast.walk(tree)
        for use in uses(node, own, imported)
    ]


def defined(node: ast.AST) -> Iterator[str]:
    """Return names that a node gives a class or an object: methods, annotated attributes, `self.name = ..`, buffers."""
    match node:
        case ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
            yield name
        case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
            yield name


def names_of_libraries(tree: ast.AST) -> Iterator[str]:
    """Return the names under which a module imports things from torch or Pyro."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.asname or alias.name for alias in node.names if alias.name.split(".")[0] in LIBRARIES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES and not node.level:
            yield from (alias.asname or alias.name for alias in node.names)


def uses(node: ast.AST, own: set[str], imported: set[str]) -> Iterator[str]:
    """Return the private names of torch and Pyro that a node uses; `own` are names that the package defines."""
    match node:
        case ast.Import(names=names):
            yield from (f"imports {alias.name}" for alias in names if is_private_path(alias.name))
        case ast.ImportFrom(level=0, module=str(module), names=names):
            full = (f"{module}.{alias.name}" for alias in names)
            yield from (f"imports {name}" for name in full if is_private_path(name))
        case ast.Attribute(attr=name):
            if is_private_attribute(node, own, imported):
                yield f"reads .{name}"
        case ast.FunctionDef(name=name) if name in OVERRIDDEN:
            yield f"overrides {name}"
        case ast.Name(id="__slots__"):
            yield "hides state in __slots__"
        case ast.Constant(value=str(text)) if "$$$" in text:
            yield "writes '$$$'"
        case ast.Subscript(slice=ast.Constant(value=str(key))) if is_private(key):
            yield f"reads the key {key}"
        case ast.Call(func=ast.Attribute(attr="get" | "pop" | "setdefault"), args=[ast.Constant(value=str(key)), *_]):
            if is_private(key):
                yield f"reads the key {key}"
        case ast.Dict(keys=keys):
            texts = (key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str))
            yield from (f"writes the key {text}" for text in texts if is_private(text))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def is_private_path(name: str) -> bool:
    first, *rest = name.split(".")
    return first in LIBRARIES and any(map(is_private, rest))


def is_private_attribute(node: ast.Attribute, own: set[str], imported: set[str]) -> bool:
    root: ast.AST = node
    while isinstance(root, ast.Attribute):
        root = root.value
    name = root.id if isinstance(root, ast.Name) else ""
    if node.attr in KNOWN or (node.attr == "__code__" and name in imported):
        return True
    # A graph consists of torch's operations, including those with an underscore: a missing one is an error at import.
    if not is_private(node.attr) or node.attr in HOOKS | PUBLIC or name == "aten":
        return False
    return node.attr not in own or name in imported


def test_private_names_stand_in_one_place() -> None:
    outside = {module: source for module, source in sources(PACKAGE).items() if not module.startswith(COMPAT)}
    assert len(outside) > 100
    assert private_uses(outside) == []


def test_the_one_place_has_some() -> None:
    """The negative control: the check finds the private names of `compat`."""
    inside = {module: source for module, source in sources(PACKAGE).items() if module.startswith(COMPAT)}
    found = {use.partition(":")[0] for use in private_uses(inside)}
    assert found == {f"{COMPAT}{name}.py" for name in ("enumeration", "pyro", "torch")}


@pytest.mark.parametrize(
    ("source", "use"),
    [
        ("from pyro.poutine.runtime import _PYRO_STACK", "imports pyro.poutine.runtime._PYRO_STACK"),
        ("from torch._guards import tracing", "imports torch._guards.tracing"),
        ("from torch.utils import _pytree as pytree", "imports torch.utils._pytree"),
        ("import torch._dynamo", "imports torch._dynamo"),
        ("import torch\ntorch._ops.OpOverload", "reads ._ops"),
        ("operation._schema", "reads ._schema"),
        ("fn._mask", "reads ._mask"),
        ("tensor.untyped_storage()._cdata", "reads ._cdata"),
        ("import sys\nsys._getframe(1)", "reads ._getframe"),
        ("import inspect\ninspect.currentframe()", "reads .currentframe"),
        ("from pyro.util import warn_if_nan\nwarn_if_nan.__code__", "reads .__code__"),
        ("frame.f_back", "reads .f_back"),
        ("leaf.unconstrained = None", "reads .unconstrained"),
        ("handler.param_only", "reads .param_only"),
        ("msg['infer'].get('_deterministic')", "reads the key _deterministic"),
        ("msg['infer']['_enumerate_dim']", "reads the key _enumerate_dim"),
        ("msg['infer'] = {'_deterministic': True}", "writes the key _deterministic"),
        ("f'{name}$$${part}'", "writes '$$$'"),
        ("class Own(ELBO):\n    def _get_trace(self): ...", "overrides _get_trace"),
        ("class Hidden:\n    __slots__ = ('tensor',)", "hides state in __slots__"),
    ],
)
def test_each_kind_is_found(source: str, use: str) -> None:
    assert [found.partition(" ")[2] for found in private_uses({"module.py": source})] == [use]


def test_what_is_ones_own_or_public_is_let_pass() -> None:
    source = """
import torch
from pyro import poutine
from .base import _Own
class Mine(torch.nn.Module):
    _temperature: torch.Tensor
    def __init__(self):
        self._kept = self._made()
    def _made(self):
        return function.__code__, self._temperature, other._kept, site._replace(name="z")
aten = torch.ops.aten
aten._softmax.default
poutine.trace(param_only=True)
value = row["value"], {"value_se": 1}, text.endswith("_se")
"""
    assert private_uses({"module.py": source}) == []
