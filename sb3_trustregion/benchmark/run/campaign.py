"""Carries out what is missing of a grid, on this machine's cores or on a Dask cluster, a run on each core."""

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import joblib

from sb3_trustregion.benchmark.mixtures import mixtures
from sb3_trustregion.benchmark.results import RUN_FILE, Key, Results, Run
from sb3_trustregion.benchmark.run.grid import check_results
from sb3_trustregion.benchmark.run.process import MISMATCH_FILE, execute, failed
from sb3_trustregion.benchmark.run.progress import Progress
from sb3_trustregion.benchmark.run.spec import RunSpec
from sb3_trustregion.common.validation import check_integer

SECONDS_FOR_WORKERS = 60
CONNECTION_TIMEOUT = "10s"


def carry_out(
    specs: list[RunSpec],
    results: Results,
    jobs: int | None = None,
    address: str = "",
    retry_failed: bool = False,
    rerun_outdated: bool = False,
    command: str = "",
) -> list[Run]:
    """
    Run what is missing of a grid. May be stopped at any time and called again. Returns its runs, finished or failed.

    :param jobs: runs at a time, by default one per core; on a cluster its workers decide
    :param address: of a Dask cluster's scheduler; none for this machine
    :param command: as given, kept with the results
    """
    jobs = joblib.cpu_count() if jobs is None else jobs
    check_integer("jobs", jobs, at_least=1)
    results.unpack()
    check_results(specs, results, rerun_outdated)
    if command:
        results.add_command(command)

    def is_missing(spec: RunSpec) -> bool:
        run = results.find(spec.key)
        if run is None or (retry_failed and not run.is_finished):
            return True
        return rerun_outdated and bool(mixtures([spec.record, run.record]))

    missing = [spec for spec in specs if is_missing(spec)]
    with _parallel(jobs, address) as parallel, Progress(specs, missing) as progress:
        # Whoever goes by another run's record comes when there is one.
        for stage in (False, True):
            waiting = [spec for spec in missing if bool(spec.variant.replays) is stage]
            calls = (joblib.delayed(execute)(*arguments) for arguments in _ready(waiting, results, progress))
            for key, files in parallel(calls):
                _keep(key, files, results, progress)
    return [run for spec in specs if (run := results.find(spec.key)) is not None]


def _keep(key: Key, files: dict[str, bytes], results: Results, progress: Progress) -> None:
    if MISMATCH_FILE in files:  # a grid is of one version: it ends where that is no longer so
        raise ValueError(
            f"code and packages must stay as they were when the grid began, got {files[MISMATCH_FILE].decode()} for "
            f"{key[1]} on {key[0]}: run it from a checkout of its own"
        )
    results.write(key, files)
    progress.advance(key, json.loads(files[RUN_FILE]))


def _ready(specs: Iterable[RunSpec], results: Results, progress: Progress) -> Iterator[tuple[str, str]]:
    """Arguments of ``execute`` for each run; those whose record to replay will never be there fail here."""
    for spec in specs:
        if spec.variant.replays:
            assert spec.replayed_seed is not None
            recorded = results.find((spec.task, spec.variant.replays, spec.replayed_seed))
            if recorded is None or not recorded.is_finished:
                reason = f"there is no finished run of {spec.variant.replays} with seed {spec.replayed_seed} to replay"
                _keep(spec.key, failed(spec, reason), results, progress)
                continue
            columns = ["timesteps", "radius", "actual_improvement", "improvement_stderr"]
            rows = recorded.progress().reindex(columns=columns).dropna(subset=["radius"])
            spec = replace(spec, recording=rows.to_numpy().tolist())
        yield spec.to_json(), progress.steps_file(spec.key)


@contextlib.contextmanager
def _parallel(jobs: int, address: str) -> Iterator[Any]:
    """Make joblib's ``Parallel``, which hands back each run as soon as it is done."""
    shared = {"return_as": "generator_unordered", "batch_size": 1}
    if not address:
        # Threads: each of them waits for a process.
        yield joblib.Parallel(n_jobs=jobs, backend="threading", **shared)
        return
    from distributed import Client

    client: Any = Client(address, timeout=CONNECTION_TIMEOUT, set_as_default=False)  # type: ignore[no-untyped-call]
    with client, joblib.parallel_config(backend="dask", client=client):
        client.wait_for_workers(1, timeout=SECONDS_FOR_WORKERS)
        # Everything at once, so that workers which join late have something to do.
        yield joblib.Parallel(n_jobs=-1, pre_dispatch="all", **shared)
