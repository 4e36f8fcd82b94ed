"""A folder of results: one folder per run, written as a whole or not at all."""

import contextlib
import gzip
import io
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sb3_trustregion.benchmark.runs import EPISODES_FILE, PROGRESS_FILE, RUN_FILE, TRACEBACK_FILE, RunSpec
from sb3_trustregion.benchmark.variants import Variant

Key = tuple[str, str, int]
INCOMING = ".incoming"
COMMANDS_FILE = "commands.txt"
STALE_SECONDS = 60.0
# Of a variant: what its name must always stand for. Its hyperparameters are compared as they came out.
DECISIVE = ("algorithm", "replays")


@dataclass(frozen=True)
class Run:
    """
    The result of a run.

    :param folder: where it is
    :param record: what ``run.json`` says
    """

    folder: Path
    record: dict[str, Any]

    @property
    def task(self) -> str:
        """Id of the environment."""
        return str(self.record["task"])

    @property
    def variant(self) -> Variant:
        """The competitor, as it was defined when it ran."""
        return Variant(**self.record["variant"])

    @property
    def seed(self) -> int:
        """The seed."""
        return int(self.record["seed"])

    @property
    def key(self) -> Key:
        """Task, variant and seed."""
        return self.task, self.variant.name, self.seed

    @property
    def is_finished(self) -> bool:
        """Whether it ran to its end; it failed otherwise."""
        return bool(self.record["status"] == "finished")

    def episodes(self) -> pd.DataFrame:
        """:return: training episodes: ``timesteps`` of training at their end, raw ``return``, ``length``"""
        return _read_table(self.folder / EPISODES_FILE)

    def progress(self) -> pd.DataFrame:
        """:return: what the updates logged, by ``timesteps``"""
        return _read_table(self.folder / PROGRESS_FILE)

    def traceback(self) -> str:
        """:return: why it failed"""
        path = self.folder / TRACEBACK_FILE
        return path.read_text("utf-8", errors="replace") if path.is_file() else ""


class Results:
    """
    The runs in a folder.

    :param output: the folder
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.runs_folder = output / "runs"

    def folder(self, key: Key) -> Path:
        """
        :param key: task, variant and seed
        :return: where that run is or would be
        """
        task, variant, seed = key
        return self.runs_folder / task.replace("/", "~") / variant / str(seed)

    def find(self, key: Key) -> Run | None:
        """
        :param key: task, variant and seed
        :return: that run, finished or failed; None where there is none
        """
        folder = self.folder(key)
        path = folder / RUN_FILE
        return Run(folder, json.loads(path.read_text("utf-8"))) if path.is_file() else None

    def all(self) -> Iterator[Run]:
        """:return: every run, by task, variant and seed"""
        for path in sorted(self.runs_folder.glob(f"*/*/*/{RUN_FILE}")):
            yield Run(path.parent, json.loads(path.read_text("utf-8")))

    def check_writable(self) -> None:
        """
        :raises ValueError: where nothing can be written to the folder
        """
        check_folder(self.output, self.runs_folder / INCOMING)

    def write(self, key: Key, files: dict[str, bytes]) -> None:
        """
        Put a run where it belongs, in place of a failed one, by renaming a folder that is complete.

        :param key: task, variant and seed
        :param files: contents by name
        """
        incoming = self.runs_folder / INCOMING / uuid.uuid4().hex
        incoming.mkdir(parents=True)
        for name, content in files.items():
            with (incoming / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        folder = self.folder(key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        old = incoming.with_suffix(".old")
        with contextlib.suppress(FileNotFoundError):
            folder.rename(old)
        incoming.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
        with contextlib.suppress(OSError):
            incoming.parent.rmdir()

    def add_command(self, command: str) -> None:
        """
        :param command: that the results are made by; kept once
        """
        commands = self.commands()
        if command not in commands:
            incoming = self.output / f"{COMMANDS_FILE}.incoming"
            incoming.write_text("\n".join([*commands, command]) + "\n", "utf-8")
            incoming.replace(self.output / COMMANDS_FILE)

    def commands(self) -> list[str]:
        """:return: what the results were made by"""
        path = self.output / COMMANDS_FILE
        return path.read_text("utf-8").splitlines() if path.is_file() else []

    def tidy(self) -> None:
        """Remove what a killed process left half-written: nothing else is there for long."""
        for path in self.runs_folder.glob(f"{INCOMING}/*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(path)


def check_folder(output: Path, place: Path | None = None) -> None:
    """
    :param output: a folder, which need not be there yet
    :param place: where in it to try, if not in itself
    :raises ValueError: where nothing can be written to it
    """
    probe = (place or output) / uuid.uuid4().hex
    try:
        probe.mkdir(parents=True)
        (probe / "probe").write_bytes(b"")
    except OSError as error:
        message = f"output must be a folder that can be written to, got {str(output)!r}: {error}"
        raise ValueError(message) from error
    shutil.rmtree(probe, ignore_errors=True)
    # If it is empty: another grid may be writing to the same folder.
    with contextlib.suppress(OSError):
        probe.parent.rmdir()


def outdated(spec: RunSpec, run: Run) -> list[str]:
    """
    :param spec: a run that is wanted
    :param run: a result under the same names
    :return: what differs between them, for people; empty where the result is of that very run
    """
    differences = []
    variant = spec.variant.as_dict()
    ran = {f"variant's {name}": (variant[name], run.record["variant"].get(name)) for name in DECISIVE}
    same = {name: (wanted, run.record.get(name)) for name, wanted in spec.identity.items()}
    for name, (wanted, found) in {**ran, **same}.items():
        if isinstance(wanted, dict) and isinstance(found, dict):
            names = sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key))
            differences += [f"{name}: {key} {found.get(key)!r} instead of {wanted.get(key)!r}" for key in names]
        elif found != wanted:
            differences.append(f"{name} {found!r} instead of {wanted!r}")
    return differences


def _read_table(path: Path) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(gzip.decompress(path.read_bytes())))
