"""Run a comparison: train one network with several estimators, from the same weights on the same batches."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from signal import SIGINT
from typing import Any, NamedTuple

from .. import exact
from ..config.checks import MOST_OPERATIONS
from ..config.compare import OUTSIDE, CompareConfig
from ..config.stages import Amount, parse_stages
from ..config.units import codes_in_words, in_bytes
from ..data.batches import check_batch_size
from ..data.columns import first
from ..data.labels import given
from ..data.sliced import AnyDataset
from ..report.comparison import write_report
from ..report.explorer import explorer_if_possible
from ..runs.config import CONFIG, earlier_run, read_compare_config, read_config, typed, write_config
from ..runs.contents import read_compared
from ..runs.files import remove, write_json, write_text_atomic
from ..runs.folder import ERROR, cell_folder, new_run_folder, sole_writer
from ..runs.frames import require_parquet, write_parquet
from ..runs.inside import staying_inside
from ..runs.tables import label
from ..runtime.progress import Progress
from ..runtime.signals import raise_on_signal
from ..train.checks import check_training
from ..train.result import Interrupted
from ..train.setup import initial_model, load_or_slice, read_in_words, with_classes, with_widths
from ..train.source import check_source, source_of
from . import jobs as sweep
from .cell import Job, train_cell
from .gather import gather, is_finished
from .grid import Cell, make_cells

#: Settings that may change when a comparison is continued: where files are, which workers train, limits of memory.
CHANGEABLE = OUTSIDE | {"checkpoint_every", "max_memory", "parquet"}
#: Settings to which more can be added when a comparison is continued.
EXTENSIBLE = frozenset({"estimators", "seeds", "epochs"})


class Prepared(NamedTuple):
    """What a comparison is made of, before it is begun.

    Attributes:
        config: what to compare, with what follows from the data.
        data: of all cells.
        cells: the training runs.
        earlier: the folder of an earlier call, which is continued; None if there is none.
        has_more: whether there are further cells, or more epochs, than in an earlier call.
    """

    config: CompareConfig
    data: AnyDataset
    cells: list[Cell]
    earlier: Path | None
    has_more: bool


def prepare(config: CompareConfig, *, tell: Callable[[str], None] = lambda text: None) -> Prepared:
    """Read the data of a comparison and check that all of its cells can be trained. Nothing is written.

    Args:
        config: what to compare.
        tell: a function that is told which data were read.

    Raises:
        ValueError: if a setting, the data or the run folder is invalid.
        OSError: if data files are absent.
    """
    if config.parquet:
        require_parquet()
    data = load_or_slice(config.training())
    tell(read_in_words(config, data))
    config = with_classes(config, data)
    free = CHANGEABLE | EXTENSIBLE | ({"hidden"} if config.hidden is None else set())  # those of the folder
    earlier = earlier_run(config.output, config.as_json(), free=free, known_by="cells")
    known: set[tuple[str, int]] = set()
    if earlier is not None:
        check_source(earlier, config)
        config = _extended(earlier, config)
        known = {(label(cell["estimator"], cell["setting"]), cell["seed"]) for cell in read_compared(earlier)["cells"]}
    config = with_widths(config, data)
    cells = make_cells(config, len(data.train), begun_with=None if earlier is None else _begun_with(earlier))
    new = [cell for cell in cells if (cell.label, cell.seed) not in known]
    _check_cells(config, new, data)
    if earlier is None:
        return Prepared(config, data, cells, None, has_more=True)
    if new:
        tell(f"'{earlier}' gets {len(new)} further cell{'s' * (len(new) != 1)} beside its {len(known)}.")
    before = read_compare_config(earlier).epochs
    if config.epochs > before:
        tell(_longer_in_words(config, before))
    return Prepared(config, data, cells, earlier, has_more=bool(new) or config.epochs > before)


def _extended(earlier: Path, config: CompareConfig) -> CompareConfig:
    """Return a comparison with the estimators and seeds of its folder, followed by those that were asked for."""
    written = read_compare_config(earlier)
    estimators = written.each_estimator() + (config.estimators or ())  # no estimators are no wish for others
    seeds = dict.fromkeys(written.seeds + config.seeds)
    if config.epochs < written.epochs:
        raise ValueError(
            f"Expected at least the {written.epochs} epochs of '{earlier}', since training cannot be undone, but found "
            f"{config.epochs}. Try another folder."
        )
    hidden = written.hidden if config.hidden is None else config.hidden
    return replace(config, estimators=tuple(dict.fromkeys(estimators)), seeds=tuple(seeds), hidden=hidden)


def _begun_with(earlier: Path) -> int | None:
    """Return the epochs with which a comparison was begun, if it has more now or did not record more."""
    extended = read_config(earlier).get("extended", [])
    epochs = [one["before"].get("epochs") for one in extended] if isinstance(extended, list) else []
    return next(filter(None, epochs), read_compare_config(earlier).epochs)


def _longer_in_words(config: CompareConfig, before: int) -> str:
    """Say which estimators are trained for longer; those with an amount of their own are not."""
    names = config.each_estimator()
    fixed = [name for name in names if parse_stages(name, Amount.parse(before)) == config.plan(name)]
    said = f"Trained for {config.epochs} epochs in place of {before}: {', '.join(set(names) - set(fixed)) or 'none'}."
    return said + (f" With amounts of their own, and unchanged: {', '.join(fixed)}." if fixed else "")


def _keep_cells(run: Path, config: CompareConfig, cells: Sequence[Cell]) -> None:
    """Write the cells of an extended comparison into its config.json, with what it was before and the command."""
    written, now = read_config(run), config.as_json()
    before = {name: written.get(name) for name in sorted(EXTENSIBLE)}
    extended = [*written.get("extended", []), {"before": before, "command": typed()}]
    new = {name: now[name] for name in EXTENSIBLE} | {"cells": _listed(cells), "extended": extended}
    write_json(run / CONFIG, written | new)


def _listed(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    return [{"estimator": cell.estimator, "setting": cell.setting, "seed": cell.seed} for cell in cells]


def compare(config: CompareConfig, *, tell: Callable[[str], None] = lambda text: None) -> Path:
    """Train the cells that the run folder of a comparison lacks, and write its results and its report.

    The run folder has config.json, the files of :func:`~pyro_gvae.compare.gather.gather`, report.html with figures/,
    and for each cell a folder cells/NAME: a run folder of `train` with checkpoint, weights and pictures, or with
    error.txt if it failed. Failed cells are trained again.

    Args:
        config: what to compare; if `output` exists, it must be a folder of the same comparison, which is continued,
            and gets the estimators, seeds and epochs that it lacks.
        tell: a function that is called with a sentence about the data that were read.

    Returns:
        The run folder.

    Raises:
        ValueError: if a setting, the data or the run folder is invalid, or another process writes to the folder; in
            these cases nothing has been written.
        OSError: if data files are absent or the folder cannot be written.
        Interrupted: after a SIGINT, SIGTERM or SIGHUP; finished cells are reported, and the same call continues the
            rest.
    """
    config, data, cells, earlier, has_more = prepare(config, tell=tell)
    with _run_on(config) as run_jobs:
        run = earlier or new_run_folder(config.output, prefix="compare")
        with staying_inside(run), sole_writer(run):
            if earlier is None:
                write_config(run, config.as_json() | source_of(config, data) | {"cells": _listed(cells)})
            elif has_more:
                _keep_cells(run, config, cells)
            try:
                with raise_on_signal():
                    _train(run, config, cells, run_jobs)
            except KeyboardInterrupt as interrupt:
                raise Interrupted(run, getattr(interrupt, "signal", SIGINT)) from interrupt
            else:
                gather(run, cells)
                explorer_if_possible(run, data_dir=config.data_dir)  # the report, which comes last, links to it
            finally:  # an interrupted comparison reports its finished cells
                results = gather(run, cells)
                if config.parquet:
                    write_parquet(run / "results.parquet", results)
                write_report(run)
    return run


def _train(run: Path, config: CompareConfig, cells: Sequence[Cell], run_jobs: sweep.RunJobs) -> None:
    """Train the cells that are not finished; write the error of a cell that fails into its folder."""
    left = [cell for cell in cells if not is_finished(run, cell)]
    file = None if config.data is None else config.data.absolute()
    jobs = [
        # Workers may have other working directories.
        Job(
            cell_folder(run, cell.label, cell.seed).absolute(),
            replace(cell.train, data_dir=config.data_dir.absolute(), data=file),
        )
        for cell in left
    ]
    for job in jobs:
        remove(job.folder / ERROR)
    bar = Progress(total=len(cells), initial=len(cells) - len(left), desc="compare", unit="cell")
    with bar, closing(run_jobs(train_cell, jobs)) as outcomes:
        for outcome in outcomes:
            cell, came_to = left[outcome.number], "held by another process" if outcome.is_held else "finished"
            if outcome.error is not None:
                came_to = "failed"
                write_text_atomic(jobs[outcome.number].folder / ERROR, outcome.error)
            bar.set_postfix_str(f"{cell.label}, seed {cell.seed} {came_to}")
            bar.update(not outcome.is_held)


@contextmanager
def _run_on(config: CompareConfig) -> Iterator[sweep.RunJobs]:
    if config.scheduler is None:
        yield sweep.on_processes(config.workers)
    else:
        with sweep.on_cluster(config.scheduler) as run:
            yield run


def _check_cells(config: CompareConfig, cells: Sequence[Cell], data: AnyDataset) -> None:
    """Refuse, before a folder is created, cells that cannot be trained or have too many codes for an exact sum."""
    check_batch_size(config.batch_size, len(data.train))
    for cell in {cell.label: cell for cell in cells}.values():  # seeds do not matter
        vae = initial_model(cell.train, data)
        test: Any = given(vae, data).test
        cost = exact.sum_cost(vae, first(test, config.batch_size), max_memory=in_bytes(config.max_memory))
        if cost.operations > MOST_OPERATIONS:
            num_latents = cell.train.num_latents * cell.train.num_layers
            codes = codes_in_words(num_latents, cell.train.num_categories)
            raise ValueError(
                f"Expected codes that can be summed in {MOST_OPERATIONS:g} operations, about a minute on two cores, "
                f"but found S = K^N = {cell.train.num_categories}^{num_latents} = {codes}, which take "
                f"{cost.operations:.2g} per sum. Try fewer latents or categories."
            )
        check_training(vae, data, cell.train)
