"""A run is written as a whole or not at all."""

import os
from pathlib import Path

import pytest

from sb3_trustregion.benchmark.results import INCOMING, Results
from sb3_trustregion.benchmark.runs import RUN_FILE

KEY = ("ALE/Pong-v5", "npg", 1000)


def record(status: str) -> dict[str, bytes]:
    return {RUN_FILE: f'{{"task": "ALE/Pong-v5", "seed": 1000, "status": "{status}"}}'.encode()}


def test_a_run_is_found_again(tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert results.find(KEY) is None
    results.write(KEY, record("finished"))
    run = results.find(KEY)
    assert run is not None
    assert run.is_finished
    assert run.task == "ALE/Pong-v5"
    assert len(list(results.all())) == 1
    assert not (results.runs_folder / INCOMING).exists()


def test_a_retried_run_takes_the_place_of_the_failed_one(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.write(KEY, record("failed") | {"traceback.txt": b"why"})
    results.write(KEY, record("finished"))
    assert [path.name for path in results.folder(KEY).iterdir()] == [RUN_FILE]


def test_nothing_is_there_until_all_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(tmp_path)

    def fail(descriptor: int) -> None:
        raise OSError("disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk is full"):
        results.write(KEY, record("finished"))
    assert results.find(KEY) is None
    assert list(results.all()) == []
    monkeypatch.undo()
    monkeypatch.setattr("sb3_trustregion.benchmark.results.STALE_SECONDS", -1.0)
    results.tidy()
    assert list((results.runs_folder / INCOMING).iterdir()) == []


def test_another_grid_may_be_writing(tmp_path: Path) -> None:
    results = Results(tmp_path)
    incoming = results.runs_folder / INCOMING / "of-the-other"
    incoming.mkdir(parents=True)
    results.check_writable()
    assert [path.name for path in incoming.parent.iterdir()] == ["of-the-other"]


def test_commands_are_kept_once(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for command in ("run a", "run b", "run a"):
        results.add_command(command)
    assert results.commands() == ["run a", "run b"]
