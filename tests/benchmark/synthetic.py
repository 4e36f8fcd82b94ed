"""Results that no run made: learning curves of a known shape, to try the report on."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np

from sb3_trustregion.benchmark.grid import Grid
from sb3_trustregion.benchmark.references import read_references
from sb3_trustregion.benchmark.results import Results
from sb3_trustregion.benchmark.runs import (
    EPISODES_FILE,
    PROGRESS_FILE,
    RUN_FILE,
    TRACEBACK_FILE,
    RunSpec,
    record_text,
    run_record,
)
from sb3_trustregion.benchmark.variants import find_variant

EPISODE = 500
UPDATE = 2048


def make_grid(output: Path, tasks: list[str], variants: list[str], seeds: list[int], n_timesteps: int) -> Grid:
    return Grid(dict.fromkeys(tasks, n_timesteps), tuple(map(find_variant, variants)), tuple(seeds), output)


def write_results(grid: Grid, quality: dict[str, float] | None = None, failing: tuple[str, int] | None = None) -> None:
    """One result per run; ``quality`` is the score at which a variant ends."""
    results = Results(grid.output)
    for spec in grid.specs()[0]:
        if failing == (spec.variant.name, spec.seed):
            files = {
                RUN_FILE: record_text(run_record(spec) | {"status": "failed"}),
                TRACEBACK_FILE: "Error: <synthetic>",
            }
            results.write(spec.key, {name: text.encode() for name, text in files.items()})
        else:
            results.write(spec.key, _files(spec, (quality or {}).get(spec.variant.name, 0.6)))


def _files(spec: RunSpec, quality: float) -> dict[str, bytes]:
    rng = np.random.default_rng([spec.seed, *spec.variant.name.encode(), *spec.task.encode()])
    random, reference = read_references()[spec.task]
    final = quality + 0.08 * rng.normal()
    steps = np.arange(EPISODE, spec.n_timesteps + 1, EPISODE)
    scores = final * (1.0 - np.exp(-4.0 * steps / spec.n_timesteps)) + 0.05 * rng.normal(size=len(steps))
    returns = random + scores * (reference - random)
    evaluation = random + (final + 0.02 * rng.normal(size=20)) * (reference - random)
    record = run_record(spec) | {
        "status": "finished",
        "n_timesteps_done": spec.n_timesteps,
        "evaluation": {"returns": evaluation.tolist(), "lengths": [EPISODE] * 20},
        "seconds": {"training": 2e-4 * spec.n_timesteps, "total": 2e-4 * spec.n_timesteps + 5.0},
        "cpu_seconds": {"training": 2e-4 * spec.n_timesteps, "total": 2e-4 * spec.n_timesteps + 4.0},
        "peak_memory_mib": 400.0,
        "commit": "0123456789abcdef",
        "modified": False,
    }
    episodes = np.column_stack([steps, returns, np.full(len(steps), EPISODE)])
    return {
        RUN_FILE: record_text(record).encode(),
        EPISODES_FILE: _table(["timesteps", "return", "length"], episodes),
        PROGRESS_FILE: _progress(spec, rng),
    }


def _progress(spec: RunSpec, rng: np.random.Generator) -> bytes:
    steps = np.arange(UPDATE, spec.n_timesteps + 1, UPDATE, dtype=float)
    count = len(steps)
    if not spec.variant.config.startswith("adaptive"):
        return _table(["timesteps", "seconds"], np.column_stack([steps, steps * 1e-4]))
    grow = 0.0 if spec.hyperparameters.get("radius_rule") == "fixed" else 0.15
    radius = 0.01 * np.exp(np.cumsum(grow * rng.normal(size=count)))
    columns: dict[str, Any] = {
        "timesteps": steps,
        "seconds": steps * 1e-4,
        "radius": radius,
        "rho": 0.5 + 3.0 * rng.normal(size=count),
        "pooled_rho": 0.5 + 0.3 * rng.normal(size=count),
        "kl_divergence": 0.9 * radius,
        "n_rollbacks": np.arange(count) // 20,
        "n_feedback_decisions": np.arange(count) // 5,
    }
    return _table(list(columns), np.column_stack(list(columns.values())))


def _table(columns: list[str], rows: np.ndarray[Any, Any]) -> bytes:
    lines = [",".join(columns), *(",".join(f"{value:.6g}" for value in row) for row in rows)]
    return gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)
