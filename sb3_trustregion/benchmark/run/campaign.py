"""Carries a grid out: what is missing of it, on this machine's cores or on a Dask cluster, one run each."""

import asyncio
import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import joblib

from sb3_trustregion.benchmark.mixtures import mixtures
from sb3_trustregion.benchmark.results import RUN_FILE, Key, Results, Run, check_folder
from sb3_trustregion.benchmark.run import provenance
from sb3_trustregion.benchmark.run.grid import Grid, check_results
from sb3_trustregion.benchmark.run.process import MISMATCH_FILE, execute, failed
from sb3_trustregion.benchmark.run.progress import Progress
from sb3_trustregion.benchmark.run.spec import RunSpec
from sb3_trustregion.common.validation import check_integer

SECONDS_FOR_WORKERS = 60
CONNECTION_TIMEOUT = "10s"


@dataclass(frozen=True)
class Options:
    """
    How a grid is carried out.

    :param jobs: runs at a time; on a cluster its workers decide
    :param address: of a Dask cluster's scheduler; none for this machine
    :param retry_failed: whether runs that failed are run again
    :param rerun_outdated: whether results of other versions are run again
    :param command: as given, kept with the results
    """

    jobs: int = field(default_factory=joblib.cpu_count)
    address: str = ""
    retry_failed: bool = False
    rerun_outdated: bool = False
    command: str = ""


@dataclass(frozen=True)
class Summary:
    """
    How it went.

    :param n_runs: size of the grid
    :param finished: runs that have a result
    :param failed: runs that failed, now or before
    :param left_out: what the grid lacks, for want of tuned hyperparameters
    """

    n_runs: int
    finished: list[RunSpec]
    failed: list[RunSpec]
    left_out: list[str]


def carry_out(grid: Grid, options: Options) -> Summary:
    """
    Run what is missing. May be stopped at any time and called again.

    :param grid: what is compared on what
    :param options: how
    :return: how it went
    :raises ValueError: before anything is run, where something is wrong
    """
    check_integer("jobs", options.jobs, at_least=1)
    specs, left_out = grid.specs()
    results = Results(grid.output)
    check_folder(grid.output)
    results.unpack()
    check_results(specs, results, options.rerun_outdated)
    results.tidy()
    if options.command:
        results.add_command(options.command)
    missing = [spec for spec in specs if _is_missing(spec, results, options)]
    with _parallel(options) as parallel, Progress(specs, missing) as progress:
        # Whoever goes by another run's record comes when there is one.
        for stage in (False, True):
            waiting = [spec for spec in missing if bool(spec.variant.replays) is stage]
            calls = (joblib.delayed(_execute)(*arguments) for arguments in _ready(waiting, results, progress))
            for key, files in parallel(calls):
                _keep(key, files, results, progress)
    runs = {spec.key: results.find(spec.key) for spec in specs}
    done = {key: run.is_finished for key, run in runs.items() if run is not None}
    finished = [spec for spec in specs if done.get(spec.key) is True]
    return Summary(len(specs), finished, [spec for spec in specs if done.get(spec.key) is False], left_out)


def _execute(spec_json: str, steps_file: str) -> tuple[Key, dict[str, bytes]]:
    return RunSpec.from_json(spec_json).key, execute(spec_json, steps_file)


def _keep(key: Key, files: dict[str, bytes], results: Results, progress: Progress) -> None:
    if MISMATCH_FILE in files:  # a grid is of one version: it ends where that is no longer so
        raise ValueError(
            f"code and packages must stay as they were when the grid began, got {files[MISMATCH_FILE].decode()} for "
            f"{key[1]} on {key[0]}: run it from a checkout of its own"
        )
    results.write(key, files)
    progress.advance(key, json.loads(files[RUN_FILE]))


def _is_missing(spec: RunSpec, results: Results, options: Options) -> bool:
    run = results.find(spec.key)
    if run is None or (options.retry_failed and not run.is_finished):
        return True
    return options.rerun_outdated and bool(mixtures([spec.record, run.record]))


def _ready(specs: Iterable[RunSpec], results: Results, progress: Progress) -> Iterator[tuple[str, str]]:
    """Arguments of runs with all that they need; those that will never have it fail here."""
    for spec in specs:
        recording: list[list[float]] = []
        if spec.variant.replays:
            assert spec.replayed_seed is not None
            recorded = results.find((spec.task, spec.variant.replays, spec.replayed_seed))
            if recorded is None or not recorded.is_finished:
                reason = (
                    f"there is no finished run of {spec.variant.replays} with seed {spec.replayed_seed} to replay\n"
                )
                _keep(spec.key, failed(spec, reason), results, progress)
                continue
            recording = _recording(recorded)
        yield replace(spec, recording=recording).to_json(), progress.steps_file(spec)


def _recording(run: Run) -> list[list[float]]:
    columns = ["timesteps", "radius", "actual_improvement", "improvement_stderr"]
    rows: list[list[float]] = run.progress().reindex(columns=columns).dropna(subset=["radius"]).to_numpy().tolist()
    return rows


@contextlib.contextmanager
def _parallel(options: Options) -> Iterator[Any]:
    """A ``Parallel`` of joblib's, which hands back each run as soon as it is done."""
    shared = {"return_as": "generator_unordered", "batch_size": 1}
    if not options.address:
        # Threads: each of them waits for a process.
        yield joblib.Parallel(n_jobs=options.jobs, backend="threading", **shared)
        return
    with _client(options.address) as client, joblib.parallel_config(backend="dask", client=client):
        # Everything at once, so that workers which join late have something to do.
        yield joblib.Parallel(n_jobs=-1, pre_dispatch="all", **shared)


@contextlib.contextmanager
def _client(address: str) -> Iterator[Any]:
    try:
        from distributed import Client
    except ImportError as error:
        raise ValueError("a cluster needs the package distributed: pip install 'dask[distributed]'") from error
    try:
        client: Any = Client(address, timeout=CONNECTION_TIMEOUT, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise ValueError(f"address must be that of a Dask scheduler, got {address!r}: {error}") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=SECONDS_FOR_WORKERS)
        except (TimeoutError, asyncio.TimeoutError) as error:  # two classes before Python 3.11
            raise ValueError(f"address must be of a scheduler that has workers, got none at {address!r}") from error
        here = provenance.package_versions("")
        for worker, there in client.run(provenance.package_versions, "").items():
            if there != here:
                raise ValueError(f"workers must have the packages of this machine, {here}, got {there} on {worker}")
        yield client
