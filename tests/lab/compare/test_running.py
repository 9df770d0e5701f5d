"""Promise: every job of a grid is run once, whoever runs it; one that fails or is killed harms no other."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace

import pytest
import torch

from cyclofocal.lab.compare import display, local
from cyclofocal.lab.compare import grid as grid_module
from cyclofocal.lab.compare.grid import ONE_CORE, JobError, Resources, finished, grid, run_job
from cyclofocal.lab.compare.local import run_local
from cyclofocal.lab.data.config import TableData
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.loss import CROSS_ENTROPY, CYCLICAL, MAJORITY
from cyclofocal.lab.records import RunRecord, write_record
from cyclofocal.lab.training import checkpoint, epoch
from cyclofocal.lab.training import run_folder as runs
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.run_folder import RunFolder, RunMismatchError, identity, lock_run, run_folder
from cyclofocal.lab.training.train import train
from evidence import untimed

RECIPE = replace(digits(), epochs=2, warmup_epochs=1)

posix = pytest.mark.skipif(os.name != "posix", reason="forks and kills processes")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_grid_is_paired_and_holds_every_fold(tmp_path):
    crossed = replace(RECIPE, name="crossed", data=TableData("t.csv", target="label", folds=3))
    jobs = grid([RECIPE, crossed], [CROSS_ENTROPY, CYCLICAL], range(2), tmp_path)
    assert len(jobs) == len({job.folder for job in jobs}) == (1 + 3) * 2 * 2
    first = jobs[: len(jobs) // 2]
    assert {job.seed for job in first} == {0}  # a comparison that is stopped has whole pairs
    for one, two in zip(jobs[::2], jobs[1::2], strict=True):
        assert (one.recipe, one.seed) == (two.recipe, two.seed)
        assert (one.loss, two.loss) == (CROSS_ENTROPY, CYCLICAL)
    crossed_jobs = [job for job in first if job.recipe.name == "crossed" and job.loss == CYCLICAL]
    assert [job.recipe.data.cross_validation for job in crossed_jobs] == [(0, 3), (1, 3), (2, 3)]
    assert "fold 3 of 3" in first[-1].title


@pytest.mark.parametrize("name", ["keel:ecoli1", "cyclical:gamma_hc=2,cyclical_factor=4", "a/../b", "x" * 500])
def test_any_name_gives_a_folder_within_the_root(name, tmp_path):
    folder = run_folder(tmp_path, replace(RECIPE, name=name), replace(CYCLICAL, name=name), 0)
    assert folder.parent.parent == tmp_path
    assert not set(":/\\ ") & set(folder.name + folder.parent.name)
    folder.mkdir(parents=True)


def test_the_processes_give_the_numbers_of_this_one(tmp_path):
    jobs = grid([RECIPE], [CROSS_ENTROPY, CYCLICAL], range(2), tmp_path)
    records = dict(run_local(jobs, workers=2))
    assert records.keys() == set(jobs)
    assert finished(jobs)[0] == records
    for job in jobs[1:3]:
        alone = train(Job(job.recipe, job.loss, job.seed, options=RunOptions(cpu=True)))
        assert untimed(records[job]) == untimed(alone)
        assert records[job].threads == 1


def test_failed_run_is_reported_others_finish(tmp_path):
    recipes = [RECIPE, replace(RECIPE, name="wild", learning_rate=1e30)]
    jobs = grid(recipes, [CROSS_ENTROPY], range(1), tmp_path)
    outcomes = {job.recipe.name: outcome for job, outcome in run_local(jobs, workers=1)}
    assert isinstance(outcomes["digits"], RunRecord)
    assert isinstance(outcomes["wild"], JobError)
    message = str(outcomes["wild"])
    assert message.startswith("wild, cross-entropy, seed 0: FloatingPointError: ")
    assert "the training loss is" in message
    assert "\n" not in message


@pytest.fixture
def deadly(tmp_path, monkeypatch):
    """Kill the process of a seed at each of its first attempts; return the file that counts them."""
    attempts = tmp_path / "attempts"
    monkeypatch.setattr(local, "_start_method", lambda resources: "fork")  # so that processes have the patch below
    monkeypatch.setattr(local, "RESTART_METHOD", "fork")

    def kill(seed, times):
        def deadly_cell(job, resources, wait):
            if job.seed == seed:
                with attempts.open("a") as file:
                    file.write("x")
                if len(attempts.read_text()) <= times:
                    os.kill(os.getpid(), signal.SIGKILL)
            return run_job(job, resources, wait)

        monkeypatch.setattr(local, "run_job", deadly_cell)
        return attempts

    return kill


@posix
@pytest.mark.parametrize(("kills", "survives"), [(1, True), (9, False)])
def test_killed_process_is_replaced_and_its_run_retried_once(kills, survives, deadly, tmp_path):
    attempts = deadly(1, kills)
    jobs = grid([RECIPE], [CROSS_ENTROPY], range(3), tmp_path)
    outcomes = {job.seed: outcome for job, outcome in run_local(jobs, workers=2)}
    assert len(attempts.read_text()) == 2
    assert {seed for seed, outcome in outcomes.items() if isinstance(outcome, RunRecord)} == {0, 1, 2} - {
        *(() if survives else (1,))
    }
    if not survives:
        assert str(outcomes[1]) == "digits, cross-entropy, seed 1: its process was killed, twice (out of memory?)"
    assert not multiprocessing.active_children()


def test_closing_stops_the_runs(tmp_path):
    jobs = grid([replace(RECIPE, epochs=100_000)], [CROSS_ENTROPY], range(1), tmp_path)
    jobs += grid([RECIPE], [CROSS_ENTROPY], range(1), tmp_path)
    outcomes = run_local(jobs, workers=2)
    job, _ = next(outcomes)
    assert job.recipe == RECIPE
    outcomes.close()
    assert not multiprocessing.active_children()


def test_two_comparisons_on_one_folder_run_every_job_once(tmp_path):
    jobs = grid([RECIPE], [CROSS_ENTROPY, CYCLICAL], range(3), tmp_path)
    one, two = run_local(jobs, workers=1), run_local(jobs, workers=1)
    both = [next(one), next(two)]  # from here on both are at work
    records, others = dict([both[0], *one]), dict([both[1], *two])
    assert records == others  # to the seconds, so none was run twice
    assert finished(jobs) == (records, [])


def test_job_of_another_process_is_left_alone(tmp_path):
    (job,) = grid([RECIPE], [CROSS_ENTROPY], range(1), tmp_path)
    with lock_run(job.folder) as held:
        assert held
        assert run_job(job, ONE_CORE, wait=False) is None
    assert run_job(job, ONE_CORE, wait=False) == finished([job])[0][job]


def test_finished_job_is_shared_with_other_commands(tmp_path, monkeypatch):
    folder = run_folder(tmp_path, RECIPE, CYCLICAL, 1)
    record = train(Job(RECIPE, CYCLICAL, 1, folder, RunOptions(cpu=True)))
    monkeypatch.setattr("cyclofocal.lab.training.train.train", None)
    (job,) = grid([RECIPE], [CYCLICAL], [1], tmp_path)
    assert run_job(job, Resources()) == record


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """Record of a run on one thread, as jobs run: the number of threads changes the last digits."""
    (job,) = grid([RECIPE], [CYCLICAL], [1], tmp_path_factory.mktemp("record"))
    return run_job(job, ONE_CORE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 0}, "seed: 0 there, 1 now"),
        ({"loss": {"name": "ce", "title": "cross-entropy"}}, "name: 'ce' there, 'cyclical' now"),
        ({"metrics": {}, "per_class": []}, "test: False there"),
    ],
)
def test_record_of_another_run_is_refused(change, words, record, tmp_path, monkeypatch):
    """The error comes at once; nothing is trained or overwritten."""
    monkeypatch.setattr("cyclofocal.lab.training.train.train", None)
    (job,) = grid([RECIPE], [CYCLICAL], [1], tmp_path)
    write_record(replace(record, **change), job.record_path)
    before = job.record_path.read_bytes()
    assert finished([job]) == ({}, [])
    with pytest.raises(RunMismatchError, match=words) as error:
        run_job(job, ONE_CORE)
    assert str(error.value).startswith(f"{job.record_path} is of another run (")
    ((_, outcome),) = run_local([job], workers=1)
    assert str(outcome).startswith(f"{job.title}: RunMismatchError: {job.record_path} is of another run")
    assert job.record_path.read_bytes() == before


def test_record_of_other_package_versions_is_accepted(record, tmp_path):
    (job,) = grid([RECIPE], [CYCLICAL], [1], tmp_path)
    write_record(replace(record, versions={"torch": "2.6"}), job.record_path)
    assert run_job(job, ONE_CORE).versions == {"torch": "2.6"}


def test_tuned_job_takes_the_chosen_settings(record, tmp_path):
    tuned = replace(CYCLICAL, name="cyclical:tuned", title="cyclical focal, tuned", trials=3)
    (job,) = grid([RECIPE], [tuned], [1], tmp_path)
    chosen = {**vars(tuned), "gamma_hc": 1.5, "learning_rate_scale": 0.4}
    write_record(replace(record, loss=chosen), job.record_path)
    assert finished([job])[0][job].loss == chosen
    write_record(replace(record, loss={**chosen, "trials": 4}), job.record_path)
    assert finished([job]) == ({}, [])


def test_damaged_record_is_named_and_its_job_runs_again(record, tmp_path, monkeypatch):
    (job,) = grid([RECIPE], [CYCLICAL], [1], tmp_path)
    write_record(replace(record, seconds="long"), job.record_path)
    found, (error,) = finished([job])
    assert found == {}
    assert str(error) == f'{job.record_path}, line 1: seconds is "long"; it must be a number'
    assert untimed(run_job(job, ONE_CORE)) == untimed(record)


def test_damaged_line_after_a_whole_record_is_no_reason_to_run(record, tmp_path):
    (job,) = grid([RECIPE], [CYCLICAL], [1], tmp_path)
    write_record(record, job.record_path)
    with job.record_path.open("a") as file:
        file.write('{"recipe": ')
    assert finished([job]) == ({job: record}, [])


@pytest.mark.parametrize("rows", [1, 3])
def test_record_with_other_epochs_than_its_recipe_runs_again(rows, record, tmp_path):
    (job,) = grid([RECIPE], [CYCLICAL], [1], tmp_path)
    write_record(replace(untimed(record), epochs=(2 * record.epochs)[:rows]), job.record_path)
    found, (error,) = finished([job])
    assert found == {}
    fault = f"epochs has {rows} rows; it must have 2, as the recipe says"
    assert str(error) == f"{job.record_path}, line 1: {fault}"
    assert untimed(run_job(job, ONE_CORE)) == untimed(record)


def test_a_cooldown_counts_among_the_epochs_of_a_record(record, tmp_path):
    (job,) = grid([replace(RECIPE, epochs=1, warmup_epochs=0, cooldown_epochs=1)], [CYCLICAL], [1], tmp_path)
    write_record(replace(record, recipe=job.identity["recipe"]), job.record_path)
    records, damaged = finished([job])
    assert [*records] == [job]
    assert damaged == []


def test_a_short_run_writes_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "save_checkpoint", None)
    (job,) = grid([RECIPE], [CROSS_ENTROPY], range(1), tmp_path)
    run_job(job, ONE_CORE)
    lines = (job.folder / "epochs.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1]


def test_long_run_resumes_from_its_checkpoint_then_removes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(grid_module, "CHECKPOINT_SECONDS", 1e-9)
    (job,) = grid([RECIPE], [CYCLICAL], range(1), tmp_path)
    real = runs.RunFolder.save_epoch

    def stop(self, epoch, content):
        real(self, epoch, content)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs.RunFolder, "save_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            run_job(job, ONE_CORE)
    assert len(checkpoint.checkpoints(job.folder)) == 1

    begun = []
    real_epoch = epoch.run_epoch
    monkeypatch.setattr(
        "cyclofocal.lab.training.loop.run_epoch", lambda *args: begun.append(args[2]) or real_epoch(*args)
    )
    record = run_job(job, ONE_CORE)
    assert begun == [1]
    assert not checkpoint.checkpoints(job.folder)
    assert untimed(record) == untimed(train(Job(RECIPE, CYCLICAL, 0, options=RunOptions(cpu=True))))


def test_checkpoints_are_as_far_apart_as_asked(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])
    run = RunFolder(tmp_path, identity(RECIPE, CYCLICAL, 0), checkpoint_seconds=30)
    for number in range(10):
        now[0] += 11
        run.save_epoch(number, {"rows": [{"epoch": number}]})
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["checkpoint-00008.pt", "checkpoint-00005.pt"]


def test_eta_leaves_out_start_up_and_waits_for_a_network(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    jobs = grid([RECIPE], [MAJORITY, CROSS_ENTROPY], range(3), tmp_path)
    record = RunRecord(
        recipe={}, loss={}, seed=0, versions={}, device="cpu", train_counts=[], epochs=[], metrics={}, seconds=2
    )
    networks = [job for job in jobs if not job.loss.estimator]
    estimator = display.EtaEstimator(jobs, {})
    now[0] = 30.0
    estimator.end(next(job for job in jobs if job.loss.estimator), replace(record, seconds=0.0))
    assert estimator.seconds_left() is None
    now[0] = 32.0
    estimator.end(networks[0], record)
    assert estimator.seconds_left() == pytest.approx(4, rel=0.01)


def test_eta_uses_finished_runs_of_the_same_recipe(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    jobs = grid([RECIPE, replace(RECIPE, name="long")], [CROSS_ENTROPY], range(3), tmp_path)
    record = RunRecord(
        recipe={}, loss={}, seed=0, versions={}, device="cpu", train_counts=[], epochs=[], metrics={}, seconds=2
    )
    estimator = display.EtaEstimator(
        jobs, {jobs[0]: record}
    )  # finished before: says what a run costs, not how many run at once
    assert estimator.seconds_left() is None
    now[0] = 11.0  # two processes
    estimator.end(jobs[1], replace(record, seconds=20))
    estimator.end(jobs[2], record)
    assert estimator.seconds_left() == pytest.approx((2 + 2 * 20) / 2)
    estimator.end(jobs[3], JobError("failed"))
    assert estimator.seconds_left() == pytest.approx((2 + 20) / 2)
