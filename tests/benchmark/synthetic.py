"""Results that no run made: learning curves of a known shape, to try the report on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sb3_trustregion.benchmark.report.scores import read_references
from sb3_trustregion.benchmark.results import (
    EPISODES_FILE,
    PROGRESS_FILE,
    RUN_FILE,
    Results,
)
from sb3_trustregion.benchmark.run.grid import make_specs
from sb3_trustregion.benchmark.run.process import failed
from sb3_trustregion.benchmark.run.spec import RunSpec

EPISODE = 500
UPDATE = 2048


def write_results(
    output: Path,
    tasks: list[str],
    variants: list[Any],
    seeds: list[int],
    n_timesteps: int = 10_000,
    quality: dict[str, float] | None = None,
    failing: tuple[str, int] | None = None,
    **grid: Any,
) -> Results:
    """One result per run; ``quality`` is the score at which a variant ends."""
    results = Results(output)
    values = {"output": output, "tasks": tasks, "variants": variants, "seeds": seeds, "n_timesteps": n_timesteps}
    for spec in make_specs({**values, **grid})[0]:
        if failing == (spec.variant.name, spec.seed):
            results.write(spec.key, failed(spec, "Error: <synthetic>"))
        else:
            results.write(spec.key, _files(spec, (quality or {}).get(spec.variant.name, 0.6)))
    return results


def _files(spec: RunSpec, quality: float) -> dict[str, bytes]:
    rng = np.random.default_rng([spec.seed, *spec.variant.name.encode(), *spec.task.encode()])
    random, reference = read_references()[spec.task]
    final = quality + 0.08 * rng.normal()
    steps = np.arange(EPISODE, spec.n_timesteps + 1, EPISODE)
    scores = final * (1.0 - np.exp(-4.0 * steps / spec.n_timesteps)) + 0.05 * rng.normal(size=len(steps))
    returns = random + scores * (reference - random)
    evaluation = random + (final + 0.02 * rng.normal(size=20)) * (reference - random)
    record = spec.record | {
        "status": "finished",
        "n_timesteps_done": spec.n_timesteps,
        "evaluation": {"returns": evaluation.tolist(), "lengths": [EPISODE] * 20},
        "seconds": {"training": 2e-4 * spec.n_timesteps, "total": 2e-4 * spec.n_timesteps + 5.0},
        "cpu_seconds": {"training": 2e-4 * spec.n_timesteps, "total": 2e-4 * spec.n_timesteps + 4.0},
        "peak_memory_mib": 400.0,
        "commit": "0123456789abcdef",
        "modified": False,
    }
    episodes = pd.DataFrame({"timesteps": steps, "return": returns, "length": EPISODE})
    files = {EPISODES_FILE: episodes, PROGRESS_FILE: _progress(spec, rng)}
    tables = {name: frame.to_csv(index=False, float_format="%.6g").encode() for name, frame in files.items()}
    return {RUN_FILE: json.dumps(record).encode(), **tables}


def _progress(spec: RunSpec, rng: np.random.Generator) -> pd.DataFrame:
    steps = np.arange(UPDATE, spec.n_timesteps + 1, UPDATE, dtype=float)
    frame = pd.DataFrame({"timesteps": steps, "seconds": steps * 1e-4})
    if not spec.variant.algorithm.startswith("adaptive_"):
        return frame
    count, grow = len(steps), 0.0 if spec.hyperparameters.get("radius_rule") == "fixed" else 0.15
    radius = 0.01 * np.exp(np.cumsum(grow * rng.normal(size=count)))
    return frame.assign(
        radius=radius,
        pooled_rho=0.5 + 0.3 * rng.normal(size=count),
        kl_divergence=0.9 * radius,
        n_rollbacks=np.arange(count) // 20,
        n_feedback_decisions=np.arange(count) // 5,
    )
