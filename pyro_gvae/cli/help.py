"""The help: what commands do, and their options; no torch."""

import inspect
import re
import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .examples import TOP, described
from .words import SHORT, is_switch, option_of, places_of, types_of

#: Type of an option's value -> its name in the help.
WORDS = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}
#: Settings by subject, for commands that have many; all others are listed under "Training".
DATA = ("dataset", "data", "columns", "labels", "test_share", "validation_share", "split_seed", "data_dir", "download")
OF_ROWS = ("data_memory", "labelled_share")
MODEL = ("model", "num_latents", "num_categories", "num_layers", "latent_dim", "sizes", "networks", "hidden")
OF_DISTRIBUTIONS = ("observation", "num_levels", "prior", "learn_prior", "relu_logits")
MACHINE = ("max_memory", "device", "compile", "shard", "workers", "backend", "scheduler", "checkpoint_every")
SUBJECTS = {
    "Data": (*DATA, *OF_ROWS, "binarize", "num_data"),
    "Model": (*MODEL, *OF_DISTRIBUTIONS),
    "Machine and output": (*MACHINE, "judge", "max_skipped", "log", "tensorboard", "parquet", "output"),
}
#: Commands with at most this many options list them without subjects.
FEW = 12
WIDTH = 100


def help_on_all(commands: Mapping[str, type[Any]]) -> str:
    """Return the help of the program: its purpose and its commands.

    Args:
        commands: name -> configuration.
    """
    lines = [_option(name, described(name, config, whole=False)) for name, config in commands.items()]
    return "\n".join([TOP, "", "Commands:", *lines])


def help_on(name: str, config: type[Any], default: Any, others: Mapping[str, str]) -> str:
    """Return the help of a command.

    Args:
        name: its name.
        config: the dataclass of its settings.
        default: its default settings; None for those of the dataclass.
        others: options that are not settings -> what they do.
    """
    places, texts = places_of(config), said_of(config)
    usage = usage_of(name, config)
    parts = [f"Usage: {usage}", described(name, config, whole=True)]
    kinds = get_type_hints(config)
    groups: dict[str, list[str]] = {}
    for field in fields(config):
        value = field.default if default is None else getattr(default, field.name)
        spelled = field.name.upper() if field.name in places else spelling(field.name, kinds[field.name])
        subject = next((subject for subject, names in SUBJECTS.items() if field.name in names), "Training")
        entry = _option(spelled, with_default(texts.get(field.name, ""), value))
        groups.setdefault(subject if len(kinds) > FEW else "Options", []).append(entry)
    general = {**others, "-h, --help": "Show this help."}
    groups["General"] = [_option(option, text) for option, text in general.items()]
    return "\n\n".join([*parts, *("\n".join([f"{subject}:", *entries]) for subject, entries in groups.items())])


def usage_of(name: str, config: type[Any]) -> str:
    """Return the usage line of a command, with brackets around optional parts.

    Example:
        >>> from ..config.gradients import GradientsConfig
        >>> usage_of("gradients", GradientsConfig)
        'pyro-gvae gradients [RUN] [options]'
    """
    needed = {field.name for field in fields(config) if field.default is MISSING}
    places = (place.upper() if place in needed else f"[{place.upper()}]" for place in places_of(config))
    return " ".join(["pyro-gvae", name, *places, "[options]"])


def said_of(config: type[Any]) -> dict[str, str]:
    """Return the descriptions of a configuration's settings, including inherited ones.

    Example:
        >>> from ..config.commands import ReconstructConfig
        >>> said_of(ReconstructConfig)["num_data"], said_of(ReconstructConfig)["seed"]
        ('Number of data, starting with the first.', 'Seed of the sampled codes.')
    """
    found: dict[str, str] = {}
    for one in reversed(config.__mro__):
        _, _, listed = (inspect.getdoc(one) or "").partition("\nArgs:\n")
        for name, text in re.findall(r"^    (\w+): (.*(?:\n     .*)*)", listed, re.MULTILINE):
            found[name] = " ".join(text.split())
    return found


def with_default(text: str, default: Any) -> str:
    """Return the description of a setting with its default, unless that is None, False or empty.

    Example:
        >>> with_default("The temperature.", 2 / 3), with_default("The seeds.", (0, 1))
        ('The temperature. Default: `0.666667`.', 'The seeds. Default: `0 1`.')
    """
    if default is MISSING or default is None or default is False or default == ():
        return text
    each = default if isinstance(default, tuple) else (default,)
    words = " ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in each)
    return f"{text} Default: `{words}`."


def spelling(name: str, kind: Any) -> str:
    """Return all spellings of a setting's option, with the kind of its value.

    Example:
        >>> spelling("learning_rate", float | str), spelling("seeds", tuple[int, ...]), spelling("download", bool)
        ('--learning-rate, --lr NUMBER|TEXT', '--seeds INT ...', '--download, --no-download')
    """
    long = option_of(name)
    if is_switch(kind):
        return f"{long}, --no-{long[2:]}"
    short = [one for one in SHORT if SHORT[one] == long]
    return f"{', '.join([long, *short])} {value_of(kind)}"


def value_of(kind: Any) -> str:
    """Return the kind of an option's value for the help."""
    return "|".join(dict.fromkeys(_word(one) for one in types_of(kind) if one is not NoneType))


def _word(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"{value_of(get_args(kind)[0])} ..."
    return WORDS.get(kind, "VALUE")


def _option(name: str, text: str) -> str:
    """Return an entry of the help: a name, and its description on the lines below."""
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    head = textwrap.fill(name.replace("|", " | "), width, initial_indent="  ", subsequent_indent="    ")
    said = textwrap.fill(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False)
    return f"{head}\n{said}"
