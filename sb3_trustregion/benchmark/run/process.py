"""Starts and watches a run in a process of its own, and brings its files home."""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from sb3_trustregion.benchmark.results import RUN_FILE, TRACEBACK_FILE, Key
from sb3_trustregion.benchmark.run.provenance import PACKAGE
from sb3_trustregion.benchmark.run.spec import RunSpec

LOG_TAIL = 6000
SINGLE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

SPEC_FILE = "spec.json"
RESULT_FOLDER = "result"
# Instead of a result: why it would be one of another version.
MISMATCH_FILE = "mismatch.txt"


def execute(spec_json: str, steps_file: str) -> tuple[Key, dict[str, bytes]]:
    """
    Carry out a run. Returns its key and the contents of its files by name, so that no folder need be shared.

    The :class:`RunSpec` comes as text: Dask hands texts over as they are, other objects it may leave on a worker that
    dies. The run tells in ``steps_file`` how far it is; on another machine nobody reads it.
    """
    with tempfile.TemporaryDirectory(prefix="sb3_trustregion-") as name:
        folder = Path(name)
        (folder / SPEC_FILE).write_text(spec_json, "utf-8")
        command = [sys.executable, "-m", "sb3_trustregion.benchmark.run.training", str(folder), steps_file]
        with (folder / "log.txt").open("wb") as log:
            # In a session of its own, so that Ctrl-C reaches the grid alone: RL Zoo would take it for an early end of
            # training. Its standard input closes when this process dies, however it dies, and that is its sign to go.
            options = {"stdout": log, "stderr": log, "env": {**os.environ, **SINGLE_THREAD}, "start_new_session": True}
            with subprocess.Popen(command, stdin=subprocess.PIPE, **options) as child:  # type: ignore[call-overload]
                try:
                    child.wait()
                finally:
                    child.kill()
        spec = RunSpec.from_json(spec_json)
        return spec.key, collect(folder, spec, child.returncode)


def collect(folder: Path, spec: RunSpec, returncode: int) -> dict[str, bytes]:
    """The contents of a run's files by name, whatever became of its process."""
    result = folder / RESULT_FOLDER
    files = {path.name: path.read_bytes() for path in result.iterdir()} if result.is_dir() else {}
    if MISMATCH_FILE in files or (returncode == 0 and RUN_FILE in files):
        return files
    if TRACEBACK_FILE in files:
        return failed(spec, files[TRACEBACK_FILE].decode())
    cause = f"the process ended with exit code {returncode}"
    if returncode < 0:
        cause = f"the process was ended by signal {-returncode}" + (" (out of memory?)" if returncode == -9 else "")
    tail = (folder / "log.txt").read_text("utf-8", errors="replace")[-LOG_TAIL:]
    return failed(spec, f"{cause}\n\n{without_machine(tail.replace(str(folder), 'run'))}")


def failed(spec: RunSpec, reason: str) -> dict[str, bytes]:
    """The contents by name of the files of a run that has no result."""
    return {RUN_FILE: json.dumps({**spec.record, "status": "failed"}).encode(), TRACEBACK_FILE: reason.encode()}


def without_machine(text: str) -> str:
    """A traceback's text with paths that mean something on other machines too."""
    paths = sysconfig.get_paths()
    places = {str(PACKAGE.parent) + os.sep: "", paths["purelib"]: "site-packages", paths["stdlib"]: "python"}
    for place, name in places.items():
        text = text.replace(place, name)
    return text
