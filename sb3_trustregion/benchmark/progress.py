"""Progress of a grid: a bar on a terminal, a line per run elsewhere, with the time that is left."""

import statistics
import sys
import time
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

from sb3_trustregion.benchmark.results import Key, Results
from sb3_trustregion.benchmark.runs import RunSpec

BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} runs{postfix}"


class TimeLeft:
    """
    An estimate from the runs that are done: seconds per step of the same variant and task, or the nearest to it.

    :param jobs: runs at a time
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._rates: dict[tuple[str, str], list[float]] = {}

    def learn(self, record: dict[str, Any]) -> None:
        """
        :param record: what is kept of a run
        """
        if record["status"] == "finished":
            rate = record["seconds"]["total"] / record["n_timesteps"]
            for key in ((record["task"], record["variant"]["name"]), (record["task"], ""), ("", "")):
                self._rates.setdefault(key, []).append(rate)

    def seconds(self, specs: Iterable[RunSpec]) -> float | None:
        """
        :param specs: what is still to be run
        :return: wall-clock seconds; None as long as nothing is known
        """
        if not self._rates:
            return None
        return sum(self._rate(spec) * spec.n_timesteps for spec in specs) / self.jobs

    def _rate(self, spec: RunSpec) -> float:
        for key in ((spec.task, spec.variant.name), (spec.task, ""), ("", "")):
            if key in self._rates:
                return statistics.fmean(self._rates[key])
        raise AssertionError("no rate is known")


class Progress:
    """
    Shows how far a grid is. A context manager.

    :param specs: the grid
    :param missing: the runs of it that are to be run
    :param results: what is there
    :param jobs: runs at a time
    :param stream: where to
    """

    def __init__(
        self, specs: list[RunSpec], missing: list[RunSpec], results: Results, jobs: int, stream: TextIO | None = None
    ) -> None:
        self.stream = sys.stderr if stream is None else stream
        self._waiting = {spec.key: spec for spec in missing}
        self._total, self._done = len(specs), len(specs) - len(missing)
        self._left = TimeLeft(jobs)
        self._started = time.monotonic()
        for spec in specs:
            run = results.find(spec.key)
            if run is not None and spec.key not in self._waiting:
                self._left.learn(run.record)
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        if self.stream.isatty():
            shape = {"bar_format": BAR, "dynamic_ncols": True}
            self._bar = tqdm(total=self._total, initial=self._done, file=self.stream, **shape)
            self._bar.set_postfix_str(self._remaining())
        else:
            self._say(f"{self._done} of {self._total} runs are there, {self._remaining()}")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, key: Key, record: dict[str, Any]) -> None:
        """
        :param key: of the run that is done
        :param record: what is kept of it
        """
        spec = self._waiting.pop(key)
        self._done += 1
        self._left.learn(record)
        line = f"{spec.title}: {_outcome(record)}"
        if self._bar is None:
            self._say(f"[{self._done}/{self._total}] {line}; {self._remaining()}")
            return
        if record["status"] != "finished":
            self._bar.write(line, file=self.stream)
        self._bar.set_postfix_str(self._remaining(), refresh=False)
        self._bar.update()

    def _say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def _remaining(self) -> str:
        seconds = self._left.seconds(self._waiting.values())
        if not self._waiting:
            return f"done in {duration(time.monotonic() - self._started)}"
        return "time left unknown" if seconds is None else f"about {duration(seconds)} left"


def duration(seconds: float) -> str:
    """
    :param seconds: a length of time
    :return: the same for people
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _outcome(record: dict[str, Any]) -> str:
    if record["status"] != "finished":
        return "FAILED"
    mean = statistics.fmean(record["evaluation"]["returns"])
    return f"{duration(record['seconds']['total'])}, return {mean:.5g}"
