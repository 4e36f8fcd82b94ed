"""Shows how far a grid is: one bar over the time steps of all of its runs, those in flight included."""

import contextlib
import statistics
import tempfile
import threading
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from sb3_trustregion.benchmark.results import Key
from sb3_trustregion.benchmark.run.spec import RunSpec, title

SECONDS = 1.0
# Where there is no terminal, every state of the bar is a line.
SECONDS_IN_A_FILE = 60.0


class Progress:
    """Shows the bar of a grid, by default on standard error, and a line for each missing run as soon as it is done."""

    def __init__(self, specs: list[RunSpec], missing: list[RunSpec], stream: TextIO | None = None) -> None:
        self._lengths = {spec.key: spec.n_timesteps for spec in missing}
        self._steps = dict.fromkeys(self._lengths, 0)
        self._n_done, self._n_runs = len(specs) - len(missing), len(specs)
        total = sum(spec.n_timesteps for spec in specs)
        self._there = total - sum(self._lengths.values())
        look = {"unit": "step", "unit_scale": True, "miniters": 1, "smoothing": 0.05, "dynamic_ncols": True}
        self._bar: Any = tqdm(total=total, initial=self._there, file=stream, **look)
        self._bar.mininterval = SECONDS if self._bar.fp.isatty() else SECONDS_IN_A_FILE
        self._folder = tempfile.TemporaryDirectory(prefix="sb3_trustregion-")
        self._lock, self._is_over = threading.Lock(), threading.Event()
        self._watch = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Progress":
        self._watch.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        self._watch.join()
        self._bar.close()
        self._folder.cleanup()

    def steps_file(self, key: Key) -> str:
        """The file in which a run tells its time steps."""
        return str(Path(self._folder.name, "~".join(map(str, key)).replace("/", "~")))

    def advance(self, key: Key, record: dict[str, Any]) -> None:
        """Take note of a run that is done, by its record."""
        self._n_done += 1
        outcome = "FAILED"
        if record["status"] == "finished":
            mean = statistics.fmean(record["evaluation"]["returns"])
            outcome = f"{tqdm.format_interval(record['seconds']['total'])}, return {mean:.5g}"
        self._bar.write(f"[{self._n_done}/{self._n_runs}] {title(key)}: {outcome}", file=self._bar.fp)
        self._move(key, self._lengths[key])

    def _follow(self) -> None:
        while not self._is_over.wait(SECONDS):
            for key, length in self._lengths.items():
                with contextlib.suppress(OSError, ValueError):  # not begun, or being written
                    self._move(key, min(int(Path(self.steps_file(key)).read_text("utf-8")), length))

    def _move(self, key: Key, steps: int) -> None:
        with self._lock:
            self._steps[key] = max(self._steps[key], steps)
            self._bar.set_postfix_str(f"{self._n_done} of {self._n_runs} runs", refresh=False)
            self._bar.update(self._there + sum(self._steps.values()) - self._bar.n)
