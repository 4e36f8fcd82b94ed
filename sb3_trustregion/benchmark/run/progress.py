"""How far a grid is: one bar over the time steps of all of its runs, those in flight included."""

import contextlib
import statistics
import tempfile
import threading
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from sb3_trustregion.benchmark.results import Key
from sb3_trustregion.benchmark.run.spec import RunSpec

SECONDS = 1.0
# Where there is no terminal, every state of the bar is a line.
SECONDS_IN_A_FILE = 60.0


class Progress:
    """
    Shows the bar, and a line for each run that is done. A context manager.

    Runs on other machines of a cluster move it when they are done.

    :param specs: the grid
    :param missing: the runs of it that are to be run
    :param stream: where to, by default standard error
    """

    def __init__(self, specs: list[RunSpec], missing: list[RunSpec], stream: TextIO | None = None) -> None:
        self._missing = {spec.key: spec for spec in missing}
        self._steps = dict.fromkeys(self._missing, 0)
        self._n_done, self._n_runs = len(specs) - len(missing), len(specs)
        total = sum(spec.n_timesteps for spec in specs)
        there = total - sum(spec.n_timesteps for spec in missing)
        look = {"unit": "step", "unit_scale": True, "miniters": 1, "smoothing": 0.05, "dynamic_ncols": True}
        self._bar: Any = tqdm(total=total, initial=there, file=stream, **look)
        self._bar.mininterval = SECONDS if self._bar.fp.isatty() else SECONDS_IN_A_FILE
        self._there = there
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="sb3_trustregion-")
        self._is_over = threading.Event()
        self._watch = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Progress":
        self._show()
        self._watch.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        self._watch.join()
        self._bar.close()
        self._folder.cleanup()

    def steps_file(self, spec: RunSpec) -> str:
        """
        :param spec: a run
        :return: where it tells its time steps
        """
        return str(Path(self._folder.name, "~".join(map(str, spec.key)).replace("/", "~")))

    def advance(self, key: Key, record: dict[str, Any]) -> None:
        """
        :param key: of the run that is done
        :param record: what is kept of it
        """
        spec = self._missing.pop(key)
        self._steps[key] = spec.n_timesteps
        self._n_done += 1
        self._bar.write(f"[{self._n_done}/{self._n_runs}] {spec.title}: {_outcome(record)}", file=self._bar.fp)
        self._show()

    def _follow(self) -> None:
        while not self._is_over.wait(SECONDS):
            self.look()

    def look(self) -> None:
        """Ask the runs in flight how far they are."""
        for key, spec in list(self._missing.items()):
            with contextlib.suppress(OSError, ValueError):  # not begun, or being written
                steps = int(Path(self.steps_file(spec)).read_text("utf-8"))
                if key in self._missing:
                    self._steps[key] = min(steps, spec.n_timesteps)
        self._show()

    def _show(self) -> None:
        with self._lock:
            self._bar.set_postfix_str(f"{self._n_done} of {self._n_runs} runs", refresh=False)
            self._bar.update(self._there + sum(self._steps.values()) - self._bar.n)


def _outcome(record: dict[str, Any]) -> str:
    if record["status"] != "finished":
        return "FAILED"
    mean = statistics.fmean(record["evaluation"]["returns"])
    return f"{tqdm.format_interval(record['seconds']['total'])}, return {mean:.5g}"
