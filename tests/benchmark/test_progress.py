"""Progress and the time that is left."""

import io
from pathlib import Path
from typing import Any

import pytest

from sb3_trustregion.benchmark.progress import Progress, TimeLeft, duration
from sb3_trustregion.benchmark.results import Results
from tests.benchmark.synthetic import make_grid, write_results


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.2, "3 s"), (59.4, "59 s"), (61, "1 min"), (3599, "1 h 00 min"), (7500, "2 h 05 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def record(task: str, variant: str, seconds: float, n_timesteps: int) -> dict[str, Any]:
    return {
        "status": "finished",
        "task": task,
        "variant": {"name": variant},
        "seconds": {"total": seconds},
        "n_timesteps": n_timesteps,
        "evaluation": {"returns": [1.0]},
    }


def test_the_time_left_goes_by_the_nearest_runs(tmp_path: Path) -> None:
    specs, _ = make_grid(tmp_path, ["CartPole-v1", "Acrobot-v1"], ["npg", "ppo-default"], [1000], 100).specs()
    left = TimeLeft(jobs=2)
    assert left.seconds(specs) is None
    left.learn(record("CartPole-v1", "npg", 10.0, 100))
    assert left.seconds(specs) == pytest.approx(4 * 10.0 / 2)
    left.learn(record("Acrobot-v1", "npg", 50.0, 100))
    by_task = {"CartPole-v1": 10.0, "Acrobot-v1": 50.0}
    assert left.seconds(specs) == pytest.approx(sum(by_task[spec.task] for spec in specs) / 2)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_progress_is_shown(tmp_path: Path, stream: io.StringIO) -> None:
    grid = make_grid(tmp_path, ["CartPole-v1"], ["npg", "ppo-default"], [1000], 10_000)
    specs, _ = grid.specs()
    write_results(grid)
    done, failing = specs
    missing = [failing]
    with Progress(specs, missing, Results(tmp_path), 1, stream) as progress:
        progress.advance(failing.key, {"status": "failed"})
    shown = stream.getvalue()
    assert "about 7 s left" in shown  # as long as the one that is there took
    assert f"{failing.title}: FAILED" in shown
    assert "2/2" in shown
    assert done.title not in shown
