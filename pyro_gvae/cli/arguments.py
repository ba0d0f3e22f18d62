"""Parse command-line arguments into the configuration of a command, or show help; no torch."""

import sys
from dataclasses import field, fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn, Union, get_type_hints

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
from ..config.names import ModelName
from ..config.presets import PRESETS
from ..config.stages import Amount, parse_stages
from ..config.train import TrainConfig
from ..runs.config import CONFIG as RUN_CONFIG
from ..runs.config import allowed_memory
from .help import help_on, help_on_all
from .settings import settings_of
from .terminal import check_letters, discard, say
from .words import DRY_RUN, GENERAL, Told, places_of, read_words


class Command(NamedTuple):
    """A command: its configuration, and the function of `cli/` that takes it and returns the output.

    Attributes:
        config: the class of its configuration.
        module: the module of its function.
        function: the name of its function.
        needs_torch: whether it imports torch.
        plan: the name of the function in `PLANS` for `--dry-run`; None if the command does not have it.
    """

    config: type[Any]
    module: str
    function: str
    needs_torch: bool = True
    plan: str | None = None


#: The module with the functions for `--dry-run`.
PLANS = "planned"


#: In the order of the help.
COMMANDS = {
    "train": Command(TrainConfig, "commands", "train_command", plan="plan_train_command"),
    "compare": Command(CompareConfig, "commands", "compare_command", plan="plan_compare_command"),
    "advise": Command(AdviseConfig, "commands", "advise_command"),
    "resume": Command(ResumeConfig, "commands", "resume_any_command"),
    "report": Command(ReportConfig, "pages", "report_command"),
    "explore": Command(ExploreConfig, "pages", "explore_command"),
    "encode": Command(EncodeConfig, "trained", "encode_command"),
    "reconstruct": Command(ReconstructConfig, "trained", "reconstruct_command"),
    "sample": Command(SampleConfig, "trained", "sample_command"),
    "impute": Command(ImputeConfig, "trained", "impute_command"),
    "evaluate": Command(EvaluateConfig, "trained", "evaluate_command"),
    "gaps": Command(GapsConfig, "pages", "gaps_command"),
    "gradients": Command(GradientsConfig, "commands", "gradients_command"),
    "list": Command(ListConfig, "about", "list_command", needs_torch=False),
    "doctor": Command(DoctorConfig, "about", "doctor_command", needs_torch=False),
}
#: Options that change a command's defaults, and are not settings -> what they do.
CONFIG = {
    "--config FILE": "Begin with the settings of a JSON or TOML file, such as the config.json of a run; other options "
    "override them."
}
BEGIN: dict[str, dict[str, str]] = {
    "train": {
        "--epochs N": "Epochs of the only stage, or of stages without an amount, as in --stages exact --epochs 5.",
        "--preset NAME": "Begin with published settings: article, jang, maddison, or reinmax-KxN, where KxN is 8x4, "
        "4x24, 8x16, 16x12, 64x8 or 10x30.",
        **CONFIG,
    },
    **dict.fromkeys(("compare", "gradients", "advise"), CONFIG),
}


def parse(arguments: list[str]) -> Any:
    """Parse arguments.

    Raises:
        ValueError: if a name, a value or a file is wrong.
        SystemExit: after showing help.
    """
    check_letters(arguments)
    name, *words = arguments or [""]
    if name in ("-h", "--help"):
        _show(help_on_all({one: command.config for one, command in COMMANDS.items()}))
    if name.startswith("--tyro-"):
        _complete(arguments)
    if name not in COMMANDS:
        found = f"'{name}'" if name else "none"
        raise ValueError(
            f"Expected a command among {', '.join(COMMANDS)}, but found {found}."
            + (nearest(name, COMMANDS) or " Try pyro-gvae --help.")
        )
    config, others = COMMANDS[name].config, BEGIN.get(name, {})
    asked = [word for word in words if word not in ("-h", "--help")]
    is_help = len(asked) < len(words)
    told = read_words(name, config, asked, [option.split()[0] for option in others], all_places=not is_help)
    begun = _begun(name, told)
    if is_help:
        _show(help_on(name, config, begun, others_of(name)))
    return config(**told.settings) if begun is None else replace(begun, **told.settings)


def others_of(name: str) -> dict[str, str]:
    """Return the options of a command that are not settings -> what they do."""
    planned = {} if COMMANDS[name].plan is None else {DRY_RUN: "Check everything, and show what would be done."}
    return BEGIN.get(name, {}) | planned | GENERAL


def _show(text: str) -> NoReturn:
    say(text, sys.stdout)
    sys.exit(0)


def _complete(arguments: list[str]) -> NoReturn:
    """Write a shell's completion script."""
    import tyro  # imported here, since no other command needs it

    mark: Any = tyro.conf.Positional

    def marked(config: type[Any]) -> Any:
        """Mark positional settings as tyro does."""
        settings, kinds = {one.name: one for one in fields(config)}, get_type_hints(config)
        places = [(name, mark[kinds[name]], field(default=settings[name].default)) for name in places_of(config)]
        return make_dataclass(
            config.__name__, places, bases=(config,), frozen=True, namespace={"__doc__": config.__doc__}
        )

    kinds = (
        Annotated[marked(command.config), tyro.conf.subcommand(one, prefix_name=False)]
        for one, command in COMMANDS.items()
    )
    union: Any = Union[tuple(kinds)]  # noqa: UP007 (a union of any number of types)
    try:
        tyro.cli(union, args=arguments, prog="pyro-gvae")
    except BrokenPipeError:  # the reader has closed the pipe
        discard(sys.stdout)
    sys.exit(0)


def _begun(name: str, told: Told) -> Any:
    """Return the settings that a command starts from; None for the defaults of its configuration."""
    if name not in BEGIN:
        return None
    preset, continued = told.others.get("--preset"), _continued(name, told)
    file = told.others.get("--config") or continued
    if preset is not None and preset not in PRESETS:
        raise ValueError(
            f"Expected a preset among {', '.join(PRESETS)}, but found '{preset}'.{nearest(preset, PRESETS)}"
        )
    config = COMMANDS[name].config() if preset is None else PRESETS[preset]
    if file is not None:
        config = replace(config, **settings_of(Path(file), type(config)))
    if continued is not None:
        allowed_memory(config.max_memory)
    if "model" in told.settings:
        config = _of_model(config, told.settings["model"], is_preset=not preset is file is None)
    if "--epochs" in told.others:
        config = _for_epochs(config, told)
    return config


def _continued(name: str, told: Told) -> str | None:
    """Return the folder of the comparison that `compare --output` continues; None if it begins one."""
    output = told.settings.get("output")
    if name != "compare" or output is None or not (output / RUN_CONFIG).is_file():
        return None
    return str(output)


def _for_epochs(config: TrainConfig, told: Told) -> TrainConfig:
    """Apply `--epochs N` to the only stage, or to the stages without an amount."""
    amount = Amount.parse(told.others["--epochs"])
    is_given = "stages" in told.settings
    text = told.settings.pop("stages", config.stages)
    try:
        stages = parse_stages(text)
    except ValueError:
        stages = parse_stages(text, amount)  # some have no amount
    else:
        if is_given or len(stages) > 1:
            raise ValueError(
                f"Expected --epochs for a stage without an amount, but found '{text}' with --epochs {amount.number}. "
                f"Try --stages {stages[0].estimator} --epochs {amount.number}."
            )
        stages = (stages[0]._replace(amount=amount),)
    return replace(config, stages=",".join(map(str, stages)))


def _of_model(config: Any, name: ModelName, *, is_preset: bool) -> Any:
    """Return a configuration with the model of `--model NAME` and its default sizes.

    In a preset, only settings that the model cannot have are changed.
    """
    facts = MODELS[name]
    kept = {"num_latents", "num_categories"} - facts.fixed.keys() if is_preset else set()
    new: dict[str, Any] = {size: value for size, value in facts.sizes.items() if size not in kept}
    new["kl"] = facts.soft_kl
    if name != "categorical":
        new |= OF_CATEGORICAL
    if isinstance(config, TrainConfig) and not is_preset:
        new["stages"] = config.stages.replace("gumbel-softmax", facts.soft)
    return replace(config, model=name, **{key: value for key, value in new.items() if hasattr(config, key)})
