"""One run: what it is, and how it is carried out in a process of its own."""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sb3_trustregion.benchmark.provenance import PACKAGE
from sb3_trustregion.benchmark.variants import Variant

# Changes when runs are measured otherwise than before.
PROTOCOL = 1
POLL_SECONDS = 0.5
LOG_TAIL = 6000
SINGLE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

SPEC_FILE = "spec.json"
RUN_FILE = "run.json"
EPISODES_FILE = "episodes.csv.gz"
PROGRESS_FILE = "progress.csv.gz"
TRACEBACK_FILE = "traceback.txt"
# Instead of a result: why it would be one of another version.
MISMATCH_FILE = "mismatch.txt"
RESULT_FOLDER = "result"


class OwnerDiedError(BaseException):
    """There is nobody left to give the result to."""


@dataclass(frozen=True)
class RunSpec:
    """
    All that decides what a run gives.

    :param variant: the competitor
    :param task: id of the environment
    :param seed: of everything
    :param n_timesteps: wanted length
    :param hyperparameters: as in one of RL Zoo's files
    :param versions: of the packages that compute
    :param code: hash of the modules of ours that take part; empty for stock
    :param modules: hash of each of them by name
    :param gym_packages: modules to import so that the task is known
    :param replayed_seed: whose record takes the place of feedback
    :param recording: that record: as in :class:`~sb3_trustregion.benchmark.ablations.Recorded`
    """

    variant: Variant
    task: str
    seed: int
    n_timesteps: int
    hyperparameters: dict[str, Any]
    versions: dict[str, str]
    code: str = ""
    modules: dict[str, str] = field(default_factory=dict)
    gym_packages: list[str] = field(default_factory=list)
    replayed_seed: int | None = None
    recording: list[list[float]] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, int]:
        """Task, variant and seed: what names a run within a folder of results."""
        return self.task, self.variant.name, self.seed

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.variant.name} on {self.task}, seed {self.seed}"

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for two results to be of the same thing."""
        identity = {
            "n_timesteps": self.n_timesteps,
            "hyperparameters": self.hyperparameters,
            "versions": self.versions,
            "code": self.code,
            "replayed_seed": self.replayed_seed,
            "protocol": PROTOCOL,
        }
        # As it comes back from a file: tuples are lists there.
        plain: dict[str, Any] = json.loads(json.dumps(identity))
        return plain

    def replaying(self, recording: list[list[float]]) -> "RunSpec":
        """
        :param recording: of another run
        :return: the run that goes by it
        """
        return replace(self, recording=recording)

    def to_json(self) -> str:
        """:return: the same as text"""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "RunSpec":
        """
        :param text: what ``to_json`` gave
        :return: the run
        """
        values = json.loads(text)
        return cls(**{**values, "variant": Variant(**values["variant"])})


def execute(spec_json: str, owner: int) -> dict[str, bytes]:
    """
    Carry out a run in a process of its own. Returns what is to be kept, so that no folder need be shared.

    :param spec_json: a :class:`RunSpec` as text: Dask hands texts over as they are, other objects it may leave on a
        worker that dies
    :param owner: id of the process whose death ends the run, where that is our parent
    :return: contents of the run's files by name
    """
    try:
        with tempfile.TemporaryDirectory(prefix="sb3_trustregion-") as name:
            folder = Path(name)
            (folder / SPEC_FILE).write_text(spec_json, "utf-8")
            with (folder / "log.txt").open("wb") as log:
                returncode = _supervise(folder, log.fileno(), owner)
            return _collect(folder, RunSpec.from_json(spec_json), returncode)
    except OwnerDiedError:
        os._exit(1)


def _supervise(folder: Path, log: int, owner: int) -> int:
    """Wait for the process of the run; whatever ends this one ends that one."""
    command = [sys.executable, "-m", "sb3_trustregion.benchmark.training", str(folder)]
    environment = {**os.environ, **SINGLE_THREAD}
    # In a session of its own, so that Ctrl-C reaches the grid alone: RL Zoo would take it for an early end of training.
    # Its standard input closes when this process dies, however it dies, and that is its sign to go.
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
    )
    is_watched = os.getppid() == owner
    try:
        while True:
            try:
                return child.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                if is_watched and os.getppid() != owner:
                    raise OwnerDiedError from None
    finally:
        child.kill()
        child.wait()
        assert child.stdin is not None
        child.stdin.close()


def _collect(folder: Path, spec: RunSpec, returncode: int) -> dict[str, bytes]:
    result = folder / RESULT_FOLDER
    files = {path.name: path.read_bytes() for path in result.iterdir()} if result.is_dir() else {}
    if MISMATCH_FILE in files or (returncode == 0 and RUN_FILE in files):
        return files
    traceback = files.get(TRACEBACK_FILE) or _epitaph(folder, returncode).encode()
    record = {**run_record(spec), "status": "failed"}
    return {RUN_FILE: record_text(record).encode(), TRACEBACK_FILE: traceback}


def _epitaph(folder: Path, returncode: int) -> str:
    """For a process that left no traceback."""
    cause = f"the process ended with exit code {returncode}"
    if returncode < 0:
        cause = f"the process was ended by signal {-returncode}" + (" (out of memory?)" if returncode == -9 else "")
    tail = (folder / "log.txt").read_text("utf-8", errors="replace")[-LOG_TAIL:]
    return f"{cause}\n\n{without_machine(tail.replace(str(folder), 'run'))}"


def without_machine(text: str) -> str:
    """
    :param text: of a traceback
    :return: the same with paths that mean something on other machines too
    """
    paths = sysconfig.get_paths()
    places = {str(PACKAGE.parent) + os.sep: "", paths["purelib"]: "site-packages", paths["stdlib"]: "python"}
    for place, name in places.items():
        text = text.replace(place, name)
    return text


def record_text(record: dict[str, Any]) -> str:
    """
    :param record: what is kept of a run
    :return: JSON, one entry a line
    """
    lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in record.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def run_record(spec: RunSpec) -> dict[str, Any]:
    """
    :param spec: the run
    :return: what is kept of it in any case
    """
    variant = spec.variant.as_dict()
    return {"task": spec.task, "variant": variant, "seed": spec.seed, **spec.identity, "modules": spec.modules}
