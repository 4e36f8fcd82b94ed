"""A folder of results: one folder per run, written as a whole or not at all; of a finished grid, one archive."""

import contextlib
import json
import os
import shutil
import tarfile
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sb3_trustregion.benchmark.variants import Variant

Key = tuple[str, str, int]

RUN_FILE = "run.json"
EPISODES_FILE = "episodes.csv"
PROGRESS_FILE = "progress.csv"
TRACEBACK_FILE = "traceback.txt"
COMMANDS_FILE = "commands.txt"
ARCHIVE_FILE = "runs.tar.xz"
INCOMING = ".incoming"


@dataclass(frozen=True)
class Run:
    """The result of a run."""

    folder: Path
    record: dict[str, Any]  # what ``run.json`` says

    @property
    def variant(self) -> Variant:
        """The competitor, as it was defined when it ran."""
        return Variant(**self.record["variant"])

    @property
    def key(self) -> Key:
        """Task, variant and seed."""
        return self.record["task"], self.record["variant"]["name"], self.record["seed"]

    @property
    def is_finished(self) -> bool:
        """Whether it ran to its end; it failed otherwise."""
        return bool(self.record["status"] == "finished")

    def episodes(self) -> pd.DataFrame:
        """The training episodes: ``timesteps`` of training at their end, raw ``return``, ``length``."""
        return pd.read_csv(self.folder / EPISODES_FILE)

    def progress(self) -> pd.DataFrame:
        """What the updates logged, by ``timesteps``."""
        return pd.read_csv(self.folder / PROGRESS_FILE)

    def traceback(self) -> str:
        """Why the run failed."""
        return (self.folder / TRACEBACK_FILE).read_text("utf-8", errors="replace")


class Results:
    """The runs in a folder."""

    def __init__(self, output: Path) -> None:
        self.output, self.runs_folder, self.archive = output, output / "runs", output / ARCHIVE_FILE

    def folder(self, key: Key) -> Path:
        """The folder where a run is or would be."""
        task, variant, seed = key
        return self.runs_folder / task.replace("/", "~") / variant / str(seed)

    def find(self, key: Key) -> Run | None:
        """A run, finished or failed; None where there is none."""
        path = self.folder(key) / RUN_FILE
        return Run(path.parent, json.loads(path.read_text("utf-8"))) if path.is_file() else None

    def all(self) -> Iterator[Run]:
        """Every run, by task, variant and seed."""
        for path in sorted(self.runs_folder.glob(f"*/*/*/{RUN_FILE}")):
            yield Run(path.parent, json.loads(path.read_text("utf-8")))

    def is_waiting(self) -> bool:
        """Whether ``run`` wrote here and no run has ended yet; it is an error where it never did."""
        if self.archive.is_file() or any(self.all()):
            return False
        if not self.commands():
            raise ValueError(f"results must be a folder that `run` wrote to, got {str(self.output)!r}")
        return True

    def write(self, key: Key, files: dict[str, bytes]) -> None:
        """Put a run where it belongs, in place of a failed one, by renaming a folder that is complete."""
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
        try:
            incoming.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            shutil.rmtree(incoming)  # another grid was faster
        shutil.rmtree(old, ignore_errors=True)
        with contextlib.suppress(OSError):  # another grid may be writing
            incoming.parent.rmdir()

    def add_command(self, command: str) -> None:
        """Keep, once, the command that results are made by."""
        if command not in self.commands():
            self.output.mkdir(parents=True, exist_ok=True)
            with (self.output / COMMANDS_FILE).open("a", encoding="utf-8") as file:  # another grid may do so now
                file.write(f"{command}\n")

    def commands(self) -> list[str]:
        """The commands that the results were made by."""
        path = self.output / COMMANDS_FILE
        return path.read_text("utf-8").splitlines() if path.is_file() else []

    def pack(self) -> None:
        """Put all runs into one archive, in place of their folders. The same runs give the same file."""
        self.unpack()
        folders = [run.folder for run in self.all()]
        if not folders:
            raise ValueError(f"results must be a folder with runs to archive, got {str(self.output)!r}")
        incoming = self.output / f"{ARCHIVE_FILE}{INCOMING}"
        with tarfile.open(incoming, "w:xz") as archive:
            for path in sorted(path for folder in folders for path in folder.iterdir()):
                entry = tarfile.TarInfo(path.relative_to(self.output).as_posix())
                entry.size = path.stat().st_size
                with path.open("rb") as file:
                    archive.addfile(entry, file)
        incoming.replace(self.archive)
        # Renamed first: whatever is cut off, the runs are in the folder or in the archive; those that came since stay.
        old = self.output / f"runs{INCOMING}"
        shutil.rmtree(old, ignore_errors=True)
        old.mkdir()
        for number, folder in enumerate(folders):
            folder.rename(old / str(number))
        shutil.rmtree(old)
        for folder in sorted(self.runs_folder.glob("**"), reverse=True):
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()

    def unpack(self) -> None:
        """Put the runs of an archive, if there is one, into folders of their own again: where none has come since."""
        if self.archive.is_file():
            with self._extracted(self.output) as folder:
                for run in folder.glob("runs/*/*/*"):
                    place = self.output / run.relative_to(folder)
                    if not place.is_dir():
                        place.parent.mkdir(parents=True, exist_ok=True)
                        run.rename(place)
            self.archive.unlink()

    @contextlib.contextmanager
    def reading(self) -> Iterator["Results"]:
        """The same results with the runs as files: those of an archive for as long as the context lasts."""
        if self.runs_folder.is_dir():
            self.unpack()  # archived while a grid was under way
            yield self
        else:
            with self._extracted() as folder:
                yield Results(folder)

    @contextlib.contextmanager
    def _extracted(self, place: Path | None = None) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=place) as folder, tarfile.open(self.archive) as archive:
            archive.extractall(folder, filter="data")
            yield Path(folder)
