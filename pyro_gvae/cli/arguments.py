"""Command-line arguments -> the configuration of a command; wrong names are told with the nearest; no torch."""

import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import tyro

from ..config.checks import nearest
from ..config.commands import (
    DoctorConfig,
    EncodeConfig,
    EvaluateConfig,
    ExploreConfig,
    GapsConfig,
    ImputeConfig,
    ListConfig,
    ReconstructConfig,
    ReportConfig,
    ResumeConfig,
    SampleConfig,
)
from ..config.compare import CompareConfig
from ..config.gradients import AdviseConfig, GradientsConfig
from ..config.models import MODELS, OF_CATEGORICAL
from ..config.presets import PRESETS
from ..config.stages import Amount, parse_stages
from ..config.train import TrainConfig
from .examples import TOP, described
from .settings import settings_of
from .terminal import check_letters, discard


class Command(NamedTuple):
    """A configuration, and the module of `cli/` and its function that takes it and returns what to print."""

    config: type[Any]
    module: str
    function: str
    needs_torch: bool = True


#: In the order of the help.
COMMANDS = {
    "train": Command(TrainConfig, "commands", "train_command"),
    "compare": Command(CompareConfig, "commands", "compare_command"),
    "advise": Command(AdviseConfig, "commands", "advise_command"),
    "resume": Command(ResumeConfig, "commands", "resume_any_command"),
    "report": Command(ReportConfig, "commands", "report_command"),
    "explore": Command(ExploreConfig, "commands", "explore_command"),
    "encode": Command(EncodeConfig, "trained", "encode_command"),
    "reconstruct": Command(ReconstructConfig, "trained", "reconstruct_command"),
    "sample": Command(SampleConfig, "trained", "sample_command"),
    "impute": Command(ImputeConfig, "trained", "impute_command"),
    "evaluate": Command(EvaluateConfig, "trained", "evaluate_command"),
    "gaps": Command(GapsConfig, "commands", "gaps_command"),
    "gradients": Command(GradientsConfig, "commands", "gradients_command"),
    "list": Command(ListConfig, "about", "list_command", needs_torch=False),
    "doctor": Command(DoctorConfig, "about", "doctor_command", needs_torch=False),
}
#: Short names of options.
SHORT = {"-o": "--output", "--lr": "--learning-rate"}
#: Options that change what a command begins with, and are no settings.
BEGIN: dict[str, tuple[str, ...]] = {
    "train": ("--preset", "--config", "--epochs"),
    **dict.fromkeys(("compare", "gradients", "advise"), ("--config",)),
}


def parse(arguments: list[str]) -> Any:
    """Parse arguments.

    Raises:
        ValueError: if a name, a value or a file is wrong.
        SystemExit: after help, and of what the parser refuses itself.
    """
    check_letters(arguments)
    name = arguments[0] if arguments else ""
    if name in COMMANDS:
        arguments = [name, *_known(name, arguments[1:])]
    elif name and not name.startswith("-"):
        raise ValueError(
            f"Expected a command among {', '.join(COMMANDS)}, but found '{name}'." + nearest(name, COMMANDS)
        )
    defaults = _defaults(arguments)
    asked = arguments[:1]
    kinds = (
        Annotated[command.config, tyro.conf.subcommand(one, **_options(one, defaults, is_asked=[one] == asked))]
        for one, command in COMMANDS.items()
    )
    union: Any = Union[tuple(kinds)]  # noqa: UP007 (of as many as there are)
    try:
        return tyro.cli(union, args=arguments, prog="pyro-gvae", description=TOP)
    except BrokenPipeError:  # of help that goes on where its reader has read enough
        discard(sys.stdout)
        sys.exit(0)


def _options(name: str, defaults: dict[str, Any], *, is_asked: bool) -> dict[str, Any]:
    default = {"default": defaults[name]} if name in defaults else {}
    return {"prefix_name": False, "description": described(name, COMMANDS[name].config, whole=is_asked)} | default


def _known(name: str, words: list[str]) -> list[str]:
    """Return the arguments of a command with their full names, and values in the letters that they have.

    Raises:
        ValueError: if it has no such option, or an option no such value.
    """
    kinds = get_type_hints(COMMANDS[name].config)
    settings = {f"--{field.name.replace('_', '-')}": field.name for field in fields(COMMANDS[name].config)}
    open_ = {option for option, field in settings.items() if kinds[field] == bool | None}  # None: as it is found best
    off = {f"--no-{option[2:]}" for option, field in settings.items() if kinds[field] is bool or option in open_}
    known = {*settings, *off, *BEGIN.get(name, ()), "--help"}
    found: list[str] = []
    choices: tuple[str, ...] = ()
    current = ""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        option = SHORT.get(option, option) if SHORT.get(option) in known else option
        if option.startswith("--") and len(option) > 2:
            current = option.replace("_", "-")
            if current not in known and not current.startswith("--tyro-"):
                tried = nearest(current, [*known, "--json"]) or f" Try pyro-gvae {name} --help."
                raise ValueError(f"Expected an option of {name}, but found '{option}'.{tried}")
            if not equals and current in open_ and following not in ("True", "False", "None"):
                current = f"{current}=True"
            elif current.replace("--no-", "--") in open_ - {current}:
                current = f"{current.replace('--no-', '--')}=False"
            choices = _choices(kinds[settings[current]]) if current in settings else ()
            found.append(current + equals + (_chosen(current, value, choices) if equals else ""))
        else:
            found.append(_chosen(current, word, choices))
    return found


def _choices(kind: Any) -> tuple[str, ...]:
    """Return the words that are the values of a setting; none if it has others."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    if get_origin(kind) is tuple:
        return _choices(get_args(kind)[0])
    parts = [part for part in get_args(kind) if part is not type(None)]
    return _choices(parts[0]) if len(parts) == 1 and type(None) in get_args(kind) else ()


def _chosen(option: str, word: str, choices: tuple[str, ...]) -> str:
    by_letters = {choice.lower(): choice for choice in choices}
    if not choices or word in (*choices, "None"):
        return word
    if word.lower() in by_letters:
        return by_letters[word.lower()]
    raise ValueError(f"Expected {option} among {', '.join(choices)}, but found '{word}'.{nearest(word, choices)}")


def _defaults(arguments: list[str]) -> dict[str, Any]:
    """Return the settings that a command begins with, by its name, and remove the options that say so."""
    name = arguments[0] if arguments else ""
    if name not in BEGIN:
        return {}
    preset = _taken(arguments, "--preset") if name == "train" else None
    if preset is not None and preset not in PRESETS:
        raise ValueError(
            f"Expected a preset among {', '.join(PRESETS)}, but found '{preset}'.{nearest(preset, PRESETS)}"
        )
    config = COMMANDS[name].config() if preset is None else PRESETS[preset]
    file = _taken(arguments, "--config")
    if file is not None:
        config = replace(config, **settings_of(Path(file), type(config)))
    if hasattr(config, "model"):
        config = _of_model(config, arguments, is_preset=not preset is file is None)
    if name == "train":
        config = _for_epochs(config, arguments)
    return {name: config}


def _for_epochs(config: TrainConfig, arguments: list[str]) -> TrainConfig:
    """Return a configuration whose stages take the epochs of `--epochs N`."""
    epochs = _taken(arguments, "--epochs")
    if epochs is None:
        return config
    amount, given = Amount.parse(epochs), _place(arguments, "--stages")
    text = config.stages if given is None else _value(arguments, given)
    try:
        stages = parse_stages(text)
    except ValueError:
        stages = parse_stages(text, amount)  # some have no amount of their own
    else:
        if given is not None or len(stages) > 1:
            raise ValueError(
                f"Expected --epochs for a stage without an amount, but found '{text}' with --epochs {epochs}. Try "
                f"--stages {stages[0].estimator} --epochs {epochs}."
            )
        stages = (stages[0]._replace(amount=amount),)
    if given is not None:
        _taken(arguments, "--stages")
    return replace(config, stages=",".join(map(str, stages)))


def _of_model(config: Any, arguments: list[str], *, is_preset: bool) -> Any:
    """Return a configuration with the model of `--model NAME` and the sizes that it begins with.

    Of a preset, only that changes which the model cannot have.
    """
    index = _place(arguments, "--model")
    name = None if index is None else _value(arguments, index)
    if name not in MODELS:
        return config  # a name that there is not is refused with all others
    facts = MODELS[name]
    kept = {"num_latents", "num_categories"} - facts.fixed.keys() if is_preset else set()
    new: dict[str, Any] = {size: value for size, value in facts.sizes.items() if size not in kept}
    new["kl"] = facts.soft_kl
    if name != "categorical":
        new |= OF_CATEGORICAL
    if isinstance(config, TrainConfig) and not is_preset:
        new["stages"] = config.stages.replace("gumbel-softmax", facts.soft)
    return replace(config, model=name, **{key: value for key, value in new.items() if hasattr(config, key)})


def _taken(arguments: list[str], option: str) -> str | None:
    """Remove an option and return its value; None if it is not there."""
    index = _place(arguments, option)
    if index is None:
        return None
    value = _value(arguments, index)
    del arguments[index : index + (1 if "=" in arguments[index] else 2)]
    return value


def _place(arguments: list[str], option: str) -> int | None:
    return next((index for index, word in enumerate(arguments) if word.partition("=")[0] == option), None)


def _value(arguments: list[str], index: int) -> str:
    """Return the value of the option there, which follows it or its equals sign; nothing if it has none."""
    _, equals, value = arguments[index].partition("=")
    return value if equals else "".join(arguments[index + 1 : index + 2])
