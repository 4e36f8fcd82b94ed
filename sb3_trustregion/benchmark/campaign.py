"""Carries a grid out: what is missing of it, on this machine's cores or on a Dask cluster, one run each."""

import asyncio
import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import joblib

from sb3_trustregion.benchmark import provenance
from sb3_trustregion.benchmark.grid import Grid, check_results
from sb3_trustregion.benchmark.progress import Progress
from sb3_trustregion.benchmark.results import Key, Results, Run, outdated
from sb3_trustregion.benchmark.runs import (
    MISMATCH_FILE,
    RUN_FILE,
    TRACEBACK_FILE,
    RunSpec,
    execute,
    record_text,
    run_record,
)
from sb3_trustregion.validation import check_choice, check_integer

BACKENDS = ("loky", "dask")
SECONDS_FOR_WORKERS = 60
# After which a worker with nothing to do goes, as it must when the grid was killed.
IDLE_SECONDS = 10
CONNECTION_TIMEOUT = "10s"


@dataclass(frozen=True)
class Options:
    """
    How a grid is carried out.

    :param jobs: runs at a time; on a cluster its workers decide
    :param backend: of joblib: ``loky`` for this machine, ``dask`` for a cluster
    :param address: of the cluster's scheduler
    :param retry_failed: whether runs that failed are run again
    :param rerun_outdated: whether results of other versions are run again
    :param command: as given, kept with the results
    """

    jobs: int = field(default_factory=joblib.cpu_count)
    backend: str = "loky"
    address: str = ""
    retry_failed: bool = False
    rerun_outdated: bool = False
    command: str = ""

    def check(self) -> None:
        """
        :raises ValueError: where an option is out of range
        """
        check_integer("jobs", self.jobs, at_least=1)
        check_choice("backend", self.backend, BACKENDS)
        if bool(self.address) != (self.backend == "dask"):
            raise ValueError(f"address must be given with backend 'dask' and only there, got {self.address!r}")


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
    options.check()
    grid.check()
    specs, left_out = grid.specs()
    results = Results(grid.output)
    check_results(specs, results, options.rerun_outdated)
    results.check_writable()
    results.tidy()
    if options.command:
        results.add_command(options.command)
    missing = [spec for spec in specs if _is_missing(spec, results, options)]
    with _backend(options) as (parallel, jobs), Progress(specs, missing, results, jobs) as progress:
        # Whoever goes by another run's record comes when there is one.
        for stage in (False, True):
            tasks = _ready((spec for spec in missing if bool(spec.variant.replays) is stage), results, progress)
            for key, files in parallel(joblib.delayed(_execute)(spec.to_json(), os.getpid()) for spec in tasks):
                _check_match(key, files)
                results.write(key, files)
                progress.advance(key, json.loads(files[RUN_FILE]))
    finished = [spec for spec in specs if _status(spec, results) == "finished"]
    failed = [spec for spec in specs if _status(spec, results) == "failed"]
    return Summary(len(specs), finished, failed, left_out)


def _execute(spec_json: str, owner: int) -> tuple[Key, dict[str, bytes]]:
    return RunSpec.from_json(spec_json).key, execute(spec_json, owner)


def _check_match(key: Key, files: dict[str, bytes]) -> None:
    """A grid is of one version: it ends where that is no longer so."""
    if MISMATCH_FILE in files:
        raise ValueError(
            f"code and packages must stay as they were when the grid began, got {files[MISMATCH_FILE].decode()} for "
            f"{key[1]} on {key[0]}: run it from a checkout of its own"
        )


def _status(spec: RunSpec, results: Results) -> str:
    run = results.find(spec.key)
    return "" if run is None else str(run.record["status"])


def _is_missing(spec: RunSpec, results: Results, options: Options) -> bool:
    run = results.find(spec.key)
    if run is None:
        return True
    if not run.is_finished and options.retry_failed:
        return True
    return options.rerun_outdated and bool(outdated(spec, run))


def _ready(specs: Iterable[RunSpec], results: Results, progress: Progress) -> Iterator[RunSpec]:
    """Runs with all that they need; those that will never have it fail here."""
    for spec in specs:
        if not spec.variant.replays:
            yield spec
            continue
        assert spec.replayed_seed is not None
        recorded = results.find((spec.task, spec.variant.replays, spec.replayed_seed))
        if recorded is not None and recorded.is_finished:
            yield spec.replaying(_recording(recorded))
            continue
        record = run_record(spec) | {"status": "failed"}
        reason = f"there is no finished run of {spec.variant.replays} with seed {spec.replayed_seed} to replay\n"
        results.write(spec.key, {RUN_FILE: record_text(record).encode(), TRACEBACK_FILE: reason.encode()})
        progress.advance(spec.key, record)


def _recording(run: Run) -> list[list[float]]:
    columns = ["timesteps", "radius", "actual_improvement", "improvement_stderr"]
    rows: list[list[float]] = run.progress().reindex(columns=columns).dropna(subset=["radius"]).to_numpy().tolist()
    return rows


@contextlib.contextmanager
def _backend(options: Options) -> Iterator[tuple[Any, int]]:
    """A ``Parallel`` of joblib's, which hands back each run as soon as it is done; and how many it runs at a time."""
    shared = {"return_as": "generator_unordered", "batch_size": 1}
    if options.backend == "loky":
        with joblib.parallel_config(backend="loky", idle_worker_timeout=IDLE_SECONDS):
            yield joblib.Parallel(n_jobs=options.jobs, **shared), options.jobs
        return
    with _client(options.address) as client, joblib.parallel_config(backend="dask", client=client):
        # Everything at once, so that workers which join late have something to do.
        yield joblib.Parallel(n_jobs=-1, pre_dispatch="all", **shared), sum(client.ncores().values())


@contextlib.contextmanager
def _client(address: str) -> Iterator[Any]:
    try:
        from distributed import Client
    except ImportError as error:
        raise ValueError("backend 'dask' needs the package distributed: pip install 'dask[distributed]'") from error
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
