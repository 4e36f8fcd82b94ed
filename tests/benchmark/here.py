"""Runs of a grid in this process, which has imported what takes seconds."""

from pathlib import Path
from typing import Any

import pytest

from sb3_trustregion.benchmark.run import campaign, training
from sb3_trustregion.benchmark.run.spec import RunSpec


def train_here(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """
    :param monkeypatch: until the end of the test
    :param folder: for what RL Zoo writes
    """

    def execute(spec_json: str, steps_file: str) -> Any:
        spec = RunSpec.from_json(spec_json)
        place = folder / f"{spec.variant.name}-{spec.seed}"
        place.mkdir(parents=True)
        training.run(spec, place / "zoo", place, steps_file)
        return spec.key, {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}

    monkeypatch.setattr(campaign, "execute", execute)
