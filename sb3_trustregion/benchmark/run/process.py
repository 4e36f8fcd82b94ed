"""A run in a process of its own: how that is started, watched and brought home."""

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from sb3_trustregion.benchmark.results import RUN_FILE, TRACEBACK_FILE, record_text
from sb3_trustregion.benchmark.run.provenance import PACKAGE
from sb3_trustregion.benchmark.run.spec import RunSpec

LOG_TAIL = 6000
SINGLE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

SPEC_FILE = "spec.json"
RESULT_FOLDER = "result"
# Instead of a result: why it would be one of another version.
MISMATCH_FILE = "mismatch.txt"


def execute(spec_json: str, steps_file: str) -> dict[str, bytes]:
    """
    Carry out a run. Returns what is to be kept, so that no folder need be shared.

    :param spec_json: a :class:`RunSpec` as text: Dask hands texts over as they are, other objects it may leave on a
        worker that dies
    :param steps_file: where the run tells how far it is; on another machine nobody reads it
    :return: contents of the run's files by name
    """
    with tempfile.TemporaryDirectory(prefix="sb3_trustregion-") as name:
        folder = Path(name)
        (folder / SPEC_FILE).write_text(spec_json, "utf-8")
        with (folder / "log.txt").open("wb") as log:
            returncode = _wait_for_training(folder, log.fileno(), steps_file)
        return collect(folder, RunSpec.from_json(spec_json), returncode)


def _wait_for_training(folder: Path, log: int, steps_file: str) -> int:
    command = [sys.executable, "-m", "sb3_trustregion.benchmark.run.training", str(folder), steps_file]
    environment = {**os.environ, **SINGLE_THREAD}
    # In a session of its own, so that Ctrl-C reaches the grid alone: RL Zoo would take it for an early end of training.
    # Its standard input closes when this process dies, however it dies, and that is its sign to go.
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
    )
    with child:
        try:
            return child.wait()
        finally:
            child.kill()


def collect(folder: Path, spec: RunSpec, returncode: int) -> dict[str, bytes]:
    """
    :param folder: of a process that has ended
    :param spec: the run
    :param returncode: of the process
    :return: contents of the run's files by name, whatever became of it
    """
    result = folder / RESULT_FOLDER
    files = {path.name: path.read_bytes() for path in result.iterdir()} if result.is_dir() else {}
    if MISMATCH_FILE in files or (returncode == 0 and RUN_FILE in files):
        return files
    return failed(spec, files.get(TRACEBACK_FILE, b"").decode() or _epitaph(folder, returncode))


def failed(spec: RunSpec, reason: str) -> dict[str, bytes]:
    """
    :param spec: the run
    :param reason: why there is no result
    :return: contents of its files by name
    """
    record = {**spec.record, "status": "failed"}
    return {RUN_FILE: record_text(record).encode(), TRACEBACK_FILE: reason.encode()}


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
