"""Texts of the help: what each command is for, in groups, with examples; no torch."""

import inspect
from typing import Any

#: The text above the list of all commands.
TOP = """Categorical VAEs in Pyro: relaxed sampling and exact enumeration on one program.

  Train:    train, compare, advise, resume
  Look:     report, explore, encode, reconstruct, sample, impute
  Measure:  evaluate, gaps, gradients
  Help:     list, doctor, and COMMAND --help

  pyro-gvae train --epochs 20 -o runs/first      train one model, with a report
  pyro-gvae explore runs/first --open            look at its codes
  pyro-gvae compare                              compare estimators, a minute or two

--json prints the results of any command as JSON, --quiet shows no progress, --version the version."""

#: Command -> example command lines.
EXAMPLES = {
    "train": [
        "pyro-gvae train --epochs 20 -o runs/first",
        "pyro-gvae train --stages gumbel-softmax:20,exact:3 --lr 1e-3 -o runs/staged",
        "pyro-gvae train --data people.csv --columns age=real -o runs/table",
        "pyro-gvae train --config runs/first/config.json --seed 1 -o runs/second",
        "pyro-gvae train --stages exact:100 --num-latents 6 --dry-run",
    ],
    "compare": [
        "pyro-gvae compare --epochs 20 -o runs/compare",
        "pyro-gvae compare --estimators exact reinmax --sizes 8x4 4x6 --json",
    ],
    "advise": ["pyro-gvae advise --num-latents 4 --num-categories 8 --seconds 30"],
    "resume": ["pyro-gvae resume runs/first", "pyro-gvae resume runs/first --more exact:5"],
    "report": ["pyro-gvae report runs/first --open"],
    "explore": ["pyro-gvae explore runs/first --open"],
    "encode": ["pyro-gvae encode runs/first --kind exact --num-data 100"],
    "reconstruct": ["pyro-gvae reconstruct runs/first"],
    "sample": ["pyro-gvae sample runs/first --num-samples 64"],
    "impute": ["pyro-gvae impute runs/table people.csv"],
    "evaluate": ["pyro-gvae evaluate runs/first --json"],
    "gaps": ["pyro-gvae gaps runs/first"],
    "gradients": ["pyro-gvae gradients --estimators gumbel-softmax reinmax -o runs/gradients"],
    "list": ["pyro-gvae list estimators", "pyro-gvae list runs --json"],
    "doctor": ["pyro-gvae doctor"],
}


def described(name: str, config: type[Any], *, whole: bool) -> str:
    """Return the description of a command in the help.

    Args:
        name: the command's name.
        config: its configuration, whose docstring without the arguments is the description.
        whole: include all paragraphs and the examples, as in the command's own help.
    """
    text = (inspect.getdoc(config) or "").partition("\nArgs:")[0].strip()
    if not whole:
        return text.partition("\n\n")[0]
    return "\n".join([text, "", "Examples:", *(f"  {line}" for line in EXAMPLES[name])])
