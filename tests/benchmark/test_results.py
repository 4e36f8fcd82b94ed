"""A run is written as a whole or not at all."""

import json
import os
from pathlib import Path

import pytest

from sb3_trustregion.benchmark.results import INCOMING, RUN_FILE, Results

KEY = ("ALE/Pong-v5", "npg", 1000)


def record(status: str) -> dict[str, bytes]:
    content = {"task": "ALE/Pong-v5", "variant": {"name": "npg"}, "seed": 1000, "status": status}
    return {RUN_FILE: json.dumps(content).encode()}


def test_a_run_is_found_again(tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert results.find(KEY) is None
    results.write(KEY, record("finished"))
    run = results.find(KEY)
    assert run is not None
    assert run.is_finished
    assert run.key == KEY
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


def test_commands_are_kept_once(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for command in ("run a", "run b", "run a"):
        results.add_command(command)
    assert results.commands() == ["run a", "run b"]


def test_an_archive_holds_the_runs(tmp_path: Path) -> None:
    results = Results(tmp_path)
    with pytest.raises(ValueError, match="results must be a folder with runs to archive"):
        results.pack()
    results.write(KEY, record("finished") | {"episodes.csv": b"timesteps,return,length\n9,1.5,9\n"})
    results.pack()
    assert not results.runs_folder.exists()
    packed = results.archive.read_bytes()
    with results.reading() as readable:
        [run] = readable.all()
        assert run.key == KEY
        assert run.episodes()["return"].tolist() == [1.5]
    assert results.archive.read_bytes() == packed
    results.unpack()
    assert not results.archive.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    results.write((*KEY[:2], 1001), record("finished"))
    results.pack()
    assert results.archive.read_bytes() != packed
    results.unpack()
    assert len(list(results.all())) == 2


def test_the_same_runs_give_the_same_archive(tmp_path: Path) -> None:
    packed = []
    for name in ("one", "other"):
        results = Results(tmp_path / name)
        results.write(KEY, record("finished"))
        results.pack()
        packed.append(results.archive.read_bytes())
    assert packed[0] == packed[1]


def test_a_folder_without_runs_is_waiting_for_them(tmp_path: Path) -> None:
    results = Results(tmp_path)
    with pytest.raises(ValueError, match="results must be a folder that `run` wrote to"):
        results.is_waiting()
    results.add_command("run a")
    assert results.is_waiting()
    results.write(KEY, record("failed"))
    assert not results.is_waiting()
    results.pack()
    assert not results.is_waiting()


def test_what_came_beside_an_archive_is_kept_too(tmp_path: Path) -> None:
    """A grid was archived while it was under way: the next run begins a folder anew."""
    results, others = Results(tmp_path), [(*KEY[:2], seed) for seed in range(3)]
    for key in others[:2]:
        results.write(key, record("finished") | {"traceback.txt": b"old"})
    results.pack()
    for key in others[1:]:
        results.write(key, record("finished") | {"traceback.txt": b"new"})
    with results.reading() as there:
        told = [there.folder(key).joinpath("traceback.txt").read_text() for key in others]
    assert told == ["old", "new", "new"]
    results.pack()
    results.unpack()
    assert [results.folder(key).joinpath("traceback.txt").read_text() for key in others] == told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_another_grid_may_write_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, rename = Results(tmp_path), Path.rename

    def late(path: Path, target: Path) -> Path:
        if path.parent.name == INCOMING and not target.name.endswith(".old"):
            monkeypatch.setattr(Path, "rename", rename)
            Results(tmp_path).write(KEY, record("finished"))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    results.write(KEY, record("finished"))
    assert results.find(KEY) is not None
    assert [path.name for path in results.runs_folder.iterdir()] == ["ALE~Pong-v5"]


def test_runs_that_end_while_others_are_archived_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, late, replace = Results(tmp_path), (*KEY[:2], 1), Path.replace

    def and_meanwhile(path: Path, target: Path) -> Path:
        Results(tmp_path).write(late, record("finished"))
        return replace(path, target)

    results.write(KEY, record("finished"))
    monkeypatch.setattr(Path, "replace", and_meanwhile)
    results.pack()
    assert [run.folder for run in results.all()] == [results.folder(late)]
    results.unpack()
    assert len(list(results.all())) == 2
