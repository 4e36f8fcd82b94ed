"""One bar over the time steps of all runs."""

import io
import time
from pathlib import Path

import pytest

from sb3_trustregion.benchmark.run import progress as module
from sb3_trustregion.benchmark.run.grid import make_specs
from sb3_trustregion.benchmark.run.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_runs_in_flight_move_the_bar(tmp_path: Path, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.01)
    variants = ["npg", "ppo-default", "trpo-default"]
    values = {"output": tmp_path, "tasks": ["CartPole-v1"], "variants": variants, "seeds": [1000]}
    specs, _ = make_specs({**values, "n_timesteps": 10_000})
    failing, running = specs[1:]
    with Progress(specs, [failing, running], stream) as progress:
        assert progress._bar.n == 10_000
        Path(progress.steps_file(failing.key)).write_text("")  # being written
        Path(progress.steps_file(running.key)).write_text("4000")
        deadline = time.monotonic() + 60.0
        while progress._bar.n == 10_000 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert progress._bar.n == 14_000
        progress.advance(failing.key, {"status": "failed"})
        assert progress._bar.n == 24_000
        record = {"status": "finished", "seconds": {"total": 83.0}, "evaluation": {"returns": [1.0, 2.0]}}
        progress.advance(running.key, record)
        assert progress._bar.n == progress._bar.total == 30_000
    shown = stream.getvalue()
    assert "[2/3] ppo-default on CartPole-v1, seed 1000: FAILED" in shown
    assert "[3/3] trpo-default on CartPole-v1, seed 1000: 01:23, return 1.5" in shown
    assert "npg" not in shown
    assert "10.0k/30.0k" in shown
