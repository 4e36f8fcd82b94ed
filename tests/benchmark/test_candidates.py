"""``benchmarks/candidates.py``: from a search to a grid."""

import runpy
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from sb3_trustregion.benchmark.run.hyperparameters import derive_variant, resolve
from sb3_trustregion.zoo.samplers import SAMPLERS
from tests.docs.pages import ROOT

ENVIRONMENT: dict[str, Any] = {"n_envs": 1, "normalize": True}


def test_the_best_trials_become_variants_of_a_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "search.log"
    storage = JournalStorage(JournalFileBackend(str(journal)))
    study = optuna.create_study(storage=storage, study_name="adaptive_trpo-Pendulum-v1", direction="maximize")
    sampled = []
    for value in (-300.0, -200.0, -250.0):
        trial = study.ask()
        sampled.append(SAMPLERS["adaptive_trpo"](trial, 1, 8, {}))
        study.tell(trial, value)
    study.tell(study.ask(), state=optuna.trial.TrialState.PRUNED)
    monkeypatch.setattr(sys, "argv", ["", "adaptive_trpo", "Pendulum-v1", str(journal), "--best", "2"])
    runpy.run_path(str(ROOT / "benchmarks" / "candidates.py"), run_name="__main__")
    grid = yaml.safe_load(capsys.readouterr().out)
    assert grid["tasks"] == {"Pendulum-v1": 100_000}
    first, *rest = grid["variants"]
    assert first == "adaptive_trpo"
    assert [list(variant) for variant in rest] == [["trial-1"], ["trial-2"]]
    best = derive_variant("trial-1", rest[0]["trial-1"])
    resolved = resolve(best, "Pendulum-v1", 100_000, ENVIRONMENT)
    assert resolved is not None
    assert sampled[1].items() <= resolved.items()
    assert resolved["use_sde"]  # of the task's entry
