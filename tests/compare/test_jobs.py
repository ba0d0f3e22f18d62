"""A comparison as a grid of cells: which cells there are, where they run, and how they fail, die and resume."""

import json
import multiprocessing
import os
import signal
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pandas as pd
import psutil
import pytest
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.backend import context as loky
from processes import forking
from small_jobs import add_a_line, attempt, die, die_once, refuse_second

from pyro_gvae.cli.main import main
from pyro_gvae.compare import cell as cells_module
from pyro_gvae.compare import jobs as sweep
from pyro_gvae.compare.grid import make_cells
from pyro_gvae.compare.jobs import Outcome
from pyro_gvae.compare.run import compare
from pyro_gvae.config.compare import CompareConfig
from pyro_gvae.runs.checkpoint import load_checkpoint
from pyro_gvae.runs.folder import ERROR, PICTURES, cell_folder, sole_writer
from pyro_gvae.runs.frames import read_json_lines
from pyro_gvae.train.trained import load_model

SMALL = CompareConfig(
    num_latents=2, num_categories=3, hidden=(8,), epochs=1, evaluations=2, seeds=(0,), estimators=("exact",)
)
#: Results of a cell that depend on the model alone; seconds vary from run to run.
NUMBERS = ["train_objective", "train_elbo", "test_objective", "test_elbo", "test_log_evidence"]


def by_cell(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "results.csv").set_index(["estimator", "seed"]).sort_index()


# ----------------------------------------------------------------------------------------------- grid


def test_the_grid_is_every_combination_and_nothing_twice():
    config = CompareConfig(
        estimators=("gumbel-softmax[kl=categorical]", "reinmax[temperature=1.3]", "gumbel-softmax:20,exact:3", "exact"),
        seeds=(0, 1),
        sizes=("2x3", "4x2"),
        temperatures=(0.5, 1.0),
        learning_rates=(1e-3, 3e-3),
    )
    cells = make_cells(config, num_data=640)
    # Two seeds, sizes and rates; two temperatures for estimators that have one and do not set it.
    assert len(cells) == 2 * 2 * 2 * (2 + 1 + 2 + 1)
    assert len({(cell.label, cell.seed) for cell in cells}) == len(cells)
    assert len({cell.train for cell in cells}) == len(cells)
    first, last = cells[0], cells[-1]
    assert first.label == "gumbel-softmax[kl=categorical], 2x3, learning rate 0.001, temperature 0.5"
    assert first.train.stages == "gumbel-softmax[kl=categorical,temperature=0.5]:60epochs"
    assert (first.train.num_categories, first.train.num_latents, first.train.learning_rate) == (2, 3, 1e-3)
    assert first.train.evaluate_every == "30steps"  # 100 epochs of 10 steps, evaluated 20 times
    assert last.label == "exact, 4x2, learning rate 0.003" and last.values["temperature"] is None
    plan = next(cell for cell in cells if cell.estimator == "gumbel-softmax:20,exact:3")
    assert plan.train.stages == "gumbel-softmax[temperature=0.5]:20epochs,exact:3epochs"
    assert plan.train.evaluate_every == "12steps"


def test_a_setting_that_does_not_vary_is_not_named():
    (cell,) = make_cells(replace(SMALL, sizes=("2x3",), learning_rates=(0.01,)), num_data=100)
    assert cell.label == "exact" and cell.train.num_latents == 3 and cell.train.learning_rate == 0.01


def test_a_plan_in_seconds_is_evaluated_by_seconds():
    timed, mixed = (
        make_cells(replace(SMALL, estimators=(plan,)), num_data=100)[0].train.evaluate_every
        for plan in ("gumbel-softmax:4s,exact:2s", "gumbel-softmax:4s,exact:2")
    )
    assert (timed, mixed) == ("3s", "1epochs")


def test_two_names_of_one_folder_are_refused():
    with pytest.raises(ValueError, match=r"differ in letters or digits"):
        make_cells(replace(SMALL, estimators=("exact:1,exact:1", "exact:1, exact:1")), num_data=100)


# -------------------------------------------------------------------------------------------- results


@pytest.fixture(scope="module")
def grid(tmp_path_factory, without_rendering):
    config = replace(
        SMALL,
        estimators=("gumbel-softmax", "gumbel-softmax:4steps,exact:5steps", "exact"),
        seeds=(0, 1),
        epochs=3,
        batch_size=479,  # a third of the data
        temperatures=(0.5, 1.0),
        output=tmp_path_factory.mktemp("runs") / "run",
    )
    with without_rendering():
        return compare(config)


@pytest.mark.slow
def test_one_tidy_table(grid):
    results = pd.read_csv(grid / "results.csv")
    assert len(results) == 2 * (2 + 2 + 1) and set(results["status"]) == {"finished"}
    assert results.query("estimator == 'exact'")["temperature"].isna().all()
    assert set(results["temperature"].dropna()) == {0.5, 1.0} and set(results["step"]) == {9}
    summary = pd.read_csv(grid / "summary.csv")
    assert len(summary) == 5 and (summary["seeds"] == 2).all()


@pytest.mark.slow
def test_differences_are_paired_on_seed_and_setting(grid):
    results = pd.read_csv(grid / "results.csv")
    differences = pd.read_csv(grid / "differences.csv").set_index("setting")
    assert len(differences) == 4
    relaxed = results.query("estimator == 'gumbel-softmax' and temperature == 1").set_index("seed")["test_elbo"]
    exact = results.query("estimator == 'exact'").set_index("seed")["test_elbo"]
    expected = relaxed - exact
    found = differences.query("estimator == 'gumbel-softmax'").loc["temperature 1"]
    assert found["test_elbo"] == pytest.approx(expected.mean()) and found["test_elbo_se"] == pytest.approx(
        expected.sem()
    )


@pytest.mark.slow
def test_stages_stand_in_the_curves_and_in_the_report(grid):
    metrics = read_json_lines(grid / "metrics.jsonl")
    plan = metrics[metrics["estimator"].str.contains(",")]
    assert set(plan["stage"]) == {0, 1} and 4 in set(plan["step"])
    page = (grid / "report.html").read_text()
    assert "gumbel-softmax:4steps,exact:5steps, temperature 0.5" in page and "Missing from this run" not in page


@pytest.mark.slow
def test_each_model_of_a_grid_comes_back(grid):
    trained = load_model(grid, "gumbel-softmax, temperature 0.5", 1)
    assert trained.name == "gumbel-softmax-temperature-0.5-seed1" and trained.vae.num_latents == 2


# -------------------------------------------------------------------------------------------- resuming


@pytest.mark.slow
def test_a_cell_goes_on_from_its_checkpoint(tmp_path, monkeypatch, unreported):
    config = replace(SMALL, evaluations=4, checkpoint_every="1steps")
    whole = compare(replace(config, output=tmp_path / "whole"))
    judged, measure = [], cells_module._measure

    def killed(training):
        judged.append(training.state.step)
        if training.state.step == 12 and judged.count(12) == 1:
            raise KeyboardInterrupt
        return measure(training)

    monkeypatch.setattr(cells_module, "_measure", killed)
    with pytest.raises(KeyboardInterrupt):
        compare(replace(config, output=tmp_path / "run"))
    assert set(by_cell(tmp_path / "run")["status"]) == {"unfinished"}
    compare(replace(config, output=tmp_path / "run"))
    assert judged == [0, 6, 12, 12, 18, 23]  # not from the beginning
    names = ["step", *NUMBERS]
    first, second = (read_json_lines(run / "metrics.jsonl")[names] for run in (whole, tmp_path / "run"))
    pd.testing.assert_frame_equal(first, second, check_exact=True)


@pytest.mark.slow
def test_another_comparison_is_refused(grid, capsys):
    before = (grid / "config.json").read_bytes()
    assert main(["compare", "--batch-size", "7", "--hidden", "9", "--output", str(grid)]) == 2
    said = capsys.readouterr().err
    assert (
        f"Expected the settings that '{grid}' was started with, but found other values of hidden, batch_size." in said
    )
    assert (grid / "config.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_cell_that_fails_fails_alone(tmp_path, capsys, unrendered):
    size = ["--num-latents", "2", "--num-categories", "3", "--hidden", "8", "--epochs", "1", "--evaluations", "1"]
    arguments = ["compare", *size, "--estimators", "exact", "--seeds", "0", "--learning-rates", "1e30", "0.003"]
    arguments += ["--output", str(tmp_path / "run")]
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert "exact, learning rate 0.003" in out and "report.html" in out
    assert (
        "Expected 2 finished cells, but found that 1 failed, first exact, learning rate 1e+30, seed 0: Expected fin"
        in err
    )
    assert "Traceback" not in err
    results = pd.read_csv(tmp_path / "run" / "results.csv").set_index("learning_rate")
    assert results["status"].to_dict() == {1e30: "failed", 0.003: "finished"}
    assert results.loc[1e30, "error"].startswith("Expected finite losses and gradients, but found 10 steps in a row")
    assert "exact, learning rate 1e+30, seed 0: failed. Expected finite" in (tmp_path / "run/report.html").read_text()
    # A second call tries this cell again, but not the other one.
    failed = cell_folder(tmp_path / "run", "exact, learning rate 1e+30", 0) / ERROR
    failed.write_text("of old")
    assert main(arguments) == 1 and failed.read_text().startswith("Expected finite")


# ------------------------------------------------------------------------------------------ processes


def test_one_worker_is_this_process(tmp_path):
    paths = [tmp_path / "first", tmp_path / "second"]
    outcomes = list(sweep.on_processes(1)(add_a_line, paths))
    assert outcomes == [Outcome(0), Outcome(1)]
    assert {path.read_text() for path in paths} == {f"{os.getpid()}\n"}
    outcomes = list(sweep.on_processes(1)(refuse_second, paths))
    assert outcomes == [Outcome(0), Outcome(1, "Expected another.")]


@pytest.fixture
def forked_workers(monkeypatch):
    """Fork workers from a process that has imported everything. It is their parent, so they do not watch this one."""
    get_reusable_executor().shutdown(wait=True)  # of workers that were started otherwise
    forking()
    monkeypatch.setattr(loky, "_DEFAULT_START_METHOD", "forkserver")
    monkeypatch.setattr(sweep, "_attempt_in_worker", attempt)
    yield
    get_reusable_executor().shutdown(wait=True)


@pytest.mark.slow
def test_a_worker_that_dies_takes_no_job_with_it(tmp_path, forked_workers):
    paths = [tmp_path / name for name in ("first", "dying", "third")]
    outcomes = sorted(sweep.on_processes(2)(die_once, paths))
    assert outcomes == [Outcome(0), Outcome(1), Outcome(2)]
    assert len(paths[1].read_text().splitlines()) >= 2 and str(os.getpid()) not in paths[0].read_text()


@pytest.mark.slow
def test_a_job_that_kills_its_worker_each_time_is_given_up(tmp_path, monkeypatch, forked_workers):
    monkeypatch.setattr(sweep, "MOST_DEATHS", 2)
    (outcome,) = sweep.on_processes(2)(die, [tmp_path / "dying"])
    assert outcome.error.startswith(
        "Expected worker processes to survive, but found that they died repeatedly (Terminated"
    )


@pytest.mark.slow
def test_two_processes_give_the_same_numbers_as_one(grid, tmp_path, unreported):
    config = CompareConfig.from_json(json.loads((grid / "config.json").read_text()))
    config = replace(config, estimators=("gumbel-softmax", "exact"), temperatures=(0.5,), seeds=(1,))
    run = compare(replace(config, workers=2, output=tmp_path / "run"))
    numbers = [*NUMBERS, "estimator"]
    found = pd.read_csv(run / "results.csv")[numbers]
    one = pd.read_csv(grid / "results.csv").query("seed == 1 and temperature != 1 and estimator in @config.estimators")
    pd.testing.assert_frame_equal(found, one[numbers].reset_index(drop=True), rtol=1e-5)


def test_a_machine_without_semaphores_is_one_sentence(tmp_path, capsys, monkeypatch):
    """This happens if /dev/shm is not writable; a single worker needs no semaphores."""

    def absent(self):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(type(multiprocessing.get_context("spawn")), "Semaphore", absent)
    assert main(["compare", "--workers", "2", "--output", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "processes can wait for each other, but found no semaphores ([Errno 30] Read-only file system). Try" in said
    assert list(tmp_path.iterdir()) == []
    assert len(list(sweep.on_processes(1)(add_a_line, [tmp_path / "first"]))) == 1


def alive(processes):
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_workers_end_with_the_comparison_which_goes_on_when_called_again(server, tmp_path):
    """The comparison is killed, then ended by a signal. Its cells are too long to finish within the test."""
    run = tmp_path / "run"
    options = ["--workers", "2", "--seeds", "0", "--num-latents", "2", "--num-categories", "3", "--hidden", "8"]
    options += ["--estimators", "gumbel-softmax", "exact", "--batch-size", "479", "--evaluations", "2"]
    options += ["--checkpoint-every", "2steps", "--epochs", "100000"]

    def steps():
        return {path: load_checkpoint(path)["state"]["step"] for path in run.glob("cells/*/checkpoint.safetensors")}

    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 128 + signal.SIGTERM)):
        before = steps()
        script = Path(__file__).parents[1] / "forked_workers.py"
        process = psutil.Process(server.start("compare", *options, "--output", str(run), script=script))
        while len(found := steps()) < 2 or any(step <= before.get(path, 0) for path, step in found.items()):
            assert process.is_running(), server.end()
            time.sleep(0.05)
        workers = process.children()
        assert len(alive(workers)) >= 2  # the control
        process.send_signal(number)
        left = alive(psutil.wait_procs(workers, timeout=60)[1])
        for worker in left:  # they would keep on working
            worker.kill()
        done = server.end()
        assert done.code == code and "Traceback" not in done.err and not left
        assert not list(run.glob("cells/*/error.txt"))
        assert all(step >= found[path] for path, step in steps().items())
    assert "stopped; resume with: pyro-gvae resume" in done.err
    assert set(by_cell(run)["status"]) == {"unfinished"} and (run / "report.html").exists()


@pytest.mark.slow
def test_a_cell_that_another_process_holds_is_unfinished(tmp_path, capsys, unreported):
    size = ["--num-latents", "2", "--num-categories", "3", "--hidden", "8", "--epochs", "1", "--evaluations", "1"]
    size += ["--estimators", "gumbel-softmax", "exact", "--batch-size", "479"]
    arguments = ["compare", *size, "--seeds", "0", "--output", str(tmp_path / "run")]
    cell = cell_folder(tmp_path / "run", "exact", 0)
    assert main(arguments) == 0
    (cell / PICTURES).unlink()  # makes the cell unfinished
    with sole_writer(cell):
        assert main(arguments) == 1
    said = capsys.readouterr().err
    assert f"1 that other processes work on: exact, seed 0, held by process {os.getpid()}. Try the same" in said
    results = by_cell(tmp_path / "run")
    assert results["status"].to_dict() == {("exact", 0): "unfinished", ("gumbel-softmax", 0): "finished"}
    assert not (cell / ERROR).exists()
    assert main(arguments) == 0 and set(by_cell(tmp_path / "run")["status"]) == {"finished"}


# ---------------------------------------------------------------------------------------------- dask


def test_a_scheduler_that_does_not_answer_is_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "PATIENCE", 0.5)
    arguments = ["compare", "--backend", "dask", "--scheduler", "tcp://127.0.0.1:9", "--output", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert "Expected a Dask scheduler at 'tcp://127.0.0.1:9', but found none that answers." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_dask_cluster_of_which_a_worker_is_killed(tmp_path, unreported):
    import dask
    from distributed import LocalCluster
    from distributed.utils import get_mp_context

    config = replace(SMALL, batch_size=479, epochs=9, seeds=(0, 1), checkpoint_every="1steps")
    run, killed = tmp_path / "run", []

    def kill_when_a_cell_is_under_way(worker) -> None:
        while not list(run.glob("cells/*/checkpoint.safetensors")):
            time.sleep(0.02)
        killed.append(worker.pid)
        os.kill(worker.pid, signal.SIGKILL)

    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}), ExitStack() as stack:
        get_mp_context()  # it sets the preloaded modules, which are set again below
        forking()
        cluster = stack.enter_context(LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0"))
        killer = threading.Thread(target=kill_when_a_cell_is_under_way, args=[cluster.workers[0]])
        killer.start()
        compare(replace(config, backend="dask", scheduler=cluster.scheduler_address, output=run))
        killer.join()
    assert killed and set(by_cell(run)["status"]) == {"finished"}
    alone = compare(replace(config, seeds=(0,), output=tmp_path / "alone"))
    assert by_cell(run).loc[("exact", 0), "test_elbo"] == pytest.approx(
        by_cell(alone).loc[("exact", 0), "test_elbo"], rel=1e-5
    )


@pytest.mark.slow
def test_dask_workers_of_several_threads_are_refused(tmp_path):
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster:
        config = replace(SMALL, backend="dask", scheduler=cluster.scheduler_address, output=tmp_path / "run")
        refused = pytest.raises(ValueError, match=r"one thread each, but found one of 2. Try: dask worker --nthreads 1")
        with refused:
            compare(config)
    assert not (tmp_path / "run").exists()
