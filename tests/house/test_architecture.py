"""Check the picture in docs/design.md against the code.

Imports only go down the list of "The modules", there is no cycle, no module is too long, and picture and code
name the same modules. A check takes the package's folder and the text of the design and returns one sentence
for each violation, so that negative controls can apply it to a house with deliberate faults.

A module is named by its path below the package, as in the picture: `train.py`, `elbos/exact.py`.
"""

import ast
import graphlib
import json
import re
import subprocess
import sys
from collections.abc import Container
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pyro_gvae"
DESIGN = ROOT / "docs" / "design.md"
MAX_LINES = 300


def floors(package: Path, design: str) -> list[str]:
    """Return the modules and folders ("rooms/") in the picture under "## The modules", from the top down."""
    picture = re.search(
        rf"^## The modules$.*?^```.*?^{package.name}/[^\n]*\n(.*?)^\S", design, re.MULTILINE | re.DOTALL
    )
    if picture is None:
        raise ValueError(f"Expected a fenced block with {package.name}/ under '## The modules', found none.")
    found, folders = [], [""]  # the folders that contain a line, from the outermost
    for indent, name in re.findall(r"^((?:  ){1,3})(\w+(?:\.py|/))(?: |$)", picture[1], re.MULTILINE):
        del folders[len(indent) // 2 :]
        found.append(folders[-1] + name)
        folders.append(found[-1])
    return found


def modules(package: Path) -> dict[str, str]:
    """Return name -> source of every module."""
    paths = sorted(package.rglob("*.py"))
    return {path.relative_to(package).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def heights(package: Path, design: str) -> dict[str, int]:
    """Return module -> line of the picture, 0 at the top; a folder's `__init__.py` has the line of the folder."""
    height = {name: line for line, name in enumerate(floors(package, design))}
    found = {module: height.get(module.replace("/__init__.py", "/")) for module in modules(package)}
    return {module: line for module, line in found.items() if line is not None}


def imports(package: Path) -> dict[str, list[str]]:
    """Return module -> modules of the package that its import statements name, anywhere in the module."""
    sources = modules(package)
    found: dict[str, set[str]] = {module: set() for module in sources}
    for module, source in sources.items():
        home = [package.name, *PurePosixPath(module).parent.parts]
        for node in ast.walk(ast.parse(source)):
            for first, *rest in dotted_names(node, home):
                if first == package.name:
                    found[module].add(resolve(rest, sources))
    return {module: sorted(targets - {module}) for module, targets in found.items()}


def dotted_names(node: ast.AST, home: list[str]) -> list[list[str]]:
    """Return the names in an import statement: `from a import b` is a.b, and a leading dot is `home`, its folder."""
    match node:
        case ast.Import():
            return [alias.name.split(".") for alias in node.names]
        case ast.ImportFrom():
            base = home[: len(home) + 1 - node.level] if node.level else []
            base += node.module.split(".") if node.module else []
            return [[*base, alias.name] for alias in node.names]
    return []


def resolve(names: list[str], known: Container[str]) -> str:
    """Return the longest prefix of the names that is a module; the rest are its attributes."""
    if not names:
        return "__init__.py"
    path = "/".join(names)
    for module in (f"{path}.py", f"{path}/__init__.py"):
        if module in known:
            return module
    return resolve(names[:-1], known)


def upward_imports(package: Path, design: str) -> list[str]:
    height = heights(package, design)
    return [
        f"{module} imports {target}, which stands above it"
        for module, targets in imports(package).items()
        for target in targets
        if module in height and target in height and height[target] < height[module]
    ]


def import_cycles(package: Path, _design: str) -> list[str]:
    try:
        graphlib.TopologicalSorter(imports(package)).prepare()
    except graphlib.CycleError as error:
        return [" imports ".join(reversed(error.args[1]))]
    return []


def long_modules(package: Path, _design: str) -> list[str]:
    lengths = {module: len(source.splitlines()) for module, source in modules(package).items()}
    return [f"{module} has {length} lines" for module, length in lengths.items() if length > MAX_LINES]


def missing_from_picture(package: Path, design: str) -> list[str]:
    return [f"{module} is not in the picture" for module in modules(package).keys() - heights(package, design)]


def missing_from_code(package: Path, design: str) -> list[str]:
    return [f"{name} does not exist" for name in floors(package, design) if not (package / name).exists()]


def shadowed_modules(package: Path, _design: str) -> list[str]:
    """Find packages that export a function under the name of one of their modules, which hides one of the two."""
    known = modules(package)
    return [
        f"{folder}{name} is both a module and a name that {folder}__init__.py exports"
        for init, source in known.items()
        if (folder := init.removesuffix("__init__.py")) != init
        for name in exported(source)
        if f"{folder}{name}.py" in known
        or (f"{folder}{name}/__init__.py" in known and not is_the_package(source, name))
    ]


def exported(source: str) -> list[str]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return []


def is_the_package(source: str, name: str) -> bool:
    """Return whether the folder itself is exported, as in `from . import exact`."""
    return any(
        isinstance(node, ast.ImportFrom) and node.module is None and name in {alias.name for alias in node.names}
        for node in ast.walk(ast.parse(source))
    )


CHECKS = (upward_imports, import_cycles, long_modules, missing_from_picture, missing_from_code, shadowed_modules)


@pytest.mark.parametrize("check", CHECKS)
def test_picture_and_code_agree(check):
    assert check(PACKAGE, DESIGN.read_text(encoding="utf-8")) == []


# Negative controls: a small house without faults, and the same house with one fault.

SMALL_DESIGN = """
## What it is for
```
house/
  not_this_one.py
```
## The modules

Imports only go down.

```
house/
  __init__.py        the facade; says nothing about elsewhere.py
  cli.py             commands
  rooms/             a folder
    second.py        with a note
    third.py
    first.py
  cellar.py
  garden.py
tests/
```
"""
SMALL_HOUSE = {
    "__init__.py": "from house.rooms import first",
    "cli.py": "import json\nfrom house.rooms import FIRST",
    "rooms/__init__.py": "from house.rooms.first import FIRST\n__all__ = ['FIRST']",
    "rooms/first.py": "FIRST = 1",
    "rooms/second.py": "from .. import cellar\nfrom . import first",
    "rooms/third.py": "",
    "cellar.py": "CELLAR = 1",
    "garden.py": "\n" * MAX_LINES,
}


def build(folder: Path, changes: dict[str, str | None]) -> Path:
    """Build the small house with these modules changed; None leaves a module out."""
    house = folder / "house"
    for name, source in (SMALL_HOUSE | changes).items():
        if source is not None:
            (house / name).parent.mkdir(parents=True, exist_ok=True)
            (house / name).write_text(source)
    return house


@pytest.mark.parametrize(
    ("changes", "check", "sentence"),
    [
        ({}, None, None),
        (
            {"cellar.py": "def late():\n    import house.cli"},
            upward_imports,
            "cellar.py imports cli.py, which stands above it",
        ),
        (
            {"rooms/third.py": "from house import ANYTHING"},
            upward_imports,
            "rooms/third.py imports __init__.py, which stands above it",
        ),
        (
            {"rooms/first.py": "from . import third"},
            upward_imports,
            "rooms/first.py imports rooms/third.py, which stands above it",
        ),
        ({"garden.py": "\n" * (MAX_LINES + 1)}, long_modules, f"garden.py has {MAX_LINES + 1} lines"),
        ({"not_this_one.py": ""}, missing_from_picture, "not_this_one.py is not in the picture"),
        ({"garden.py": None}, missing_from_code, "garden.py does not exist"),
        ({"rooms/third.py": None}, missing_from_code, "rooms/third.py does not exist"),
        (
            {"rooms/__init__.py": "from .third import third\n__all__ = ['third']", "cli.py": ""},
            shadowed_modules,
            "rooms/third is both a module and a name that rooms/__init__.py exports",
        ),
    ],
)
def test_each_check_finds_its_fault_and_nothing_else(tmp_path, changes, check, sentence):
    house = build(tmp_path, changes)
    found = {other: other(house, SMALL_DESIGN) for other in CHECKS}
    assert found == {other: [sentence] if other is check else [] for other in CHECKS}


@pytest.mark.parametrize(
    ("statement", "target"),
    [
        ("import house", "__init__.py"),
        ("import house.rooms.second", "rooms/second.py"),
        ("from house.rooms.second import *", "rooms/second.py"),
        ("from house.rooms import second", "rooms/second.py"),
        ("from house.rooms import ANYTHING", "rooms/__init__.py"),
        ("from . import second", "rooms/second.py"),
        ("from .second import ANYTHING", "rooms/second.py"),
        ("from ..cellar import CELLAR", "cellar.py"),
        ("from .. import ANYTHING", "__init__.py"),
    ],
)
def test_every_form_of_import_is_seen(tmp_path, statement, target):
    house = build(tmp_path, {"rooms/third.py": f"def late():\n    {statement}\nimport os.path, housekeeping\n"})
    assert imports(house)["rooms/third.py"] == [target]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"rooms/first.py": "from house.rooms.second import SECOND"},
            "rooms/first.py imports rooms/second.py imports rooms/first.py",
        ),
        (
            {"rooms/first.py": "if TYPE_CHECKING:\n    from . import FIRST"},
            "rooms/first.py imports rooms/__init__.py imports rooms/first.py",
        ),
    ],
)
def test_a_cycle_is_found(tmp_path, changes, sentence):
    """One of the imports of the cycle also goes up."""
    house = build(tmp_path, changes)
    assert import_cycles(house, SMALL_DESIGN) == [sentence]
    assert len(upward_imports(house, SMALL_DESIGN)) == 1


def test_a_design_without_the_picture_is_an_error():
    with pytest.raises(ValueError, match="under '## The modules'"):
        floors(PACKAGE, "## Another house\n```\npyro_gvae/\n  cli.py\n```\n")


# Effects of importing, observed in a new process.

IMPORT_EVERYTHING = """
import importlib, json, os, pkgutil, random, signal, sys, threading, warnings
import numpy, pyro, torch

def state():
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "denormals": (torch.full((8,), 1e-40) / 2).sum().item(),
        "torch's generator": torch.get_rng_state().tolist(),
        "numpy's generator": repr(numpy.random.get_state()),
        "Python's generator": random.getstate(),
        "warnings": list(map(repr, warnings.filters)) + [repr(warnings.showwarning)],
        "environment": dict(os.environ),
        "path": list(sys.path),
        "threads of Python": threading.active_count(),
        "signals": list(map(signal.getsignal, (signal.SIGINT, signal.SIGTERM))),
        "param store": sorted(pyro.get_param_store().keys()),
    } | {f"pyro setting {name}": value for name, value in pyro.settings.get().items()}

before = state()
package = importlib.import_module(sys.argv[1])
names = [found.name for found in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    if not name.endswith(".__main__"):
        importlib.import_module(name)
after = state()
print(json.dumps({"names": names, "changed": [key for key in before if before[key] != after[key]]}))
"""


def python(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in `folder`; it must not fail."""
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def import_everything(package: Path) -> tuple[list[str], list[str]]:
    """Return the names of the submodules, and the changes in the process after importing all of them."""
    report = json.loads(python("-c", IMPORT_EVERYTHING, package.name, folder=package.parent).stdout)
    return report["names"], report["changed"]


def test_import_changes_no_global_state():
    names, changed = import_everything(PACKAGE)
    assert len(names) == len(modules(PACKAGE)) - 1  # all but the package itself
    assert changed == []


def test_a_change_of_global_state_is_noticed(tmp_path):
    meddling = """
import pyro, torch
torch.set_default_dtype(torch.float64)
torch.set_num_threads(torch.get_num_threads() + 1)
torch.set_flush_denormal(True)
torch.randn(1)
pyro.enable_validation(False)
pyro.param("left_behind", torch.zeros(1))
"""
    _, changed = import_everything(build(tmp_path, {"cellar.py": meddling}))
    expected = {"default dtype", "threads", "denormals", "torch's generator", "param store"}
    assert expected | {"pyro setting validate_poutine"} <= set(changed)


#: Libraries of the application, which imports of library users must not load.
APPLICATION = ("pandas", "matplotlib", "tyro", "jinja2", "joblib", "sklearn", "torchvision")
LIBRARY = (
    "distributions",
    "handlers",
    "models",
    "jit",
    "data",
    "exact",
    "elbos",
    "estimators",
    "train/step",
    "train/fit",
)


def imported_by(modules_: list[str], watched: tuple[str, ...], folder: Path) -> list[str]:
    """Return which of the watched libraries a new process has loaded after importing these modules."""
    code = "import importlib, sys\nfor name in sys.argv[2:]: importlib.import_module(name)\n"
    code += "print(*sorted(set(sys.argv[1].split(',')) & set(sys.modules)))"
    return python("-c", code, ",".join(watched), *modules_, folder=folder).stdout.split()


def test_the_library_imports_no_application() -> None:
    inside = [
        module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for module in modules(PACKAGE)
        if module.startswith(LIBRARY)
    ]
    assert len(inside) > 40
    assert imported_by([f"pyro_gvae.{module}" for module in inside], APPLICATION, ROOT) == []


def test_what_has_one_use_is_imported_where_it_is_used() -> None:
    names = [module.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for module in modules(PACKAGE)]
    everything = [f"pyro_gvae.{name}" for name in names if name not in ("__init__", "__main__")]
    watched = ("joblib", "sklearn", "torchvision", "tensorboard", "distributed", "pandas")
    assert imported_by(everything, watched, ROOT) == ["pandas"]  # pandas shows that the application was imported


def test_an_application_library_is_noticed(tmp_path):
    house = build(tmp_path, {"cellar.py": "import jinja2"})
    assert imported_by(["house.rooms.second"], APPLICATION, house.parent) == ["jinja2"]


def test_configurations_import_no_torch() -> None:
    inside = [module for module in modules(PACKAGE) if module.startswith("config/")]
    names = [f"pyro_gvae.{module.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}" for module in inside]
    assert imported_by(names, ("torch", "pyro", "numpy"), ROOT) == []


def test_help_imports_nothing_heavy():
    answer = python("-X", "importtime", "-m", "pyro_gvae", "--help", folder=ROOT)
    imported = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    assert "pyro_gvae.cli.main" in imported
    assert "compare" in answer.stdout
    assert not imported & {"torch", "pyro", "torchvision", "pandas", "matplotlib", "sklearn"}
