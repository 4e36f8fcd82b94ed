"""Results that do not belong together: told before a grid is run, and again before a report is written."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

EVALUATION_SEEDS = range(10)
GYMNASIUM = "gymnasium"
# Keys of RL Zoo's entries: what is learned, and how it is run. Who is tuned per task brings its own of the latter.
ENVIRONMENT = ("env_kwargs", "env_wrapper", "vec_env_wrapper", "frame_stack")
SETTINGS = ("n_envs", "normalize", "monitor_kwargs")


def mixtures(records: Iterable[dict[str, Any]]) -> list[str]:
    """What must be the same in the records of all runs and is not, as lines for people to read."""
    seen: dict[str, set[str]] = {}
    for record in records:
        for name, value in _shared_properties(record):
            seen.setdefault(name, set()).add(value)
    return [f"more than one {name}: {', '.join(sorted(values))}" for name, values in seen.items() if len(values) > 1]


def _shared_properties(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    variant, task, seed = record["variant"], record["task"], record["seed"]
    yield "kind of seeds", "for claims (0-9)" if seed in EVALUATION_SEEDS else "for tuning"
    yield "protocol of measurement", str(record["protocol"])
    yield "backend of environments", record.get("backend", GYMNASIUM)
    yield f"number of steps on {task}", str(record["n_timesteps"])
    yield f"algorithm of {variant['name']}", variant["algorithm"]
    yield f"hyperparameters of {variant['name']} on {task}", json.dumps(record["hyperparameters"], sort_keys=True)
    yield f"record replayed by {variant['name']}, seed {seed}", f"{variant['replays']} {record['replayed_seed']}"
    if not variant["per_task"]:
        yield from _environment(record)
    for module, digest in record.get("modules", {}).items():
        yield f"version of {module}", digest
    for package, version in record["versions"].items():
        yield f"version of {package}", str(version)


def _environment(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The environment as the grid set it, without what a variant sets itself; with ``n_steps`` goes ``n_envs``."""
    for name in (*SETTINGS, *ENVIRONMENT):
        of_the_steps = name == "n_envs" and "n_steps" in record["hyperparameters"]
        if not of_the_steps and name not in record["variant"]["hyperparameters"]:
            title = f"{name} on {record['task']} of variants that are not tuned per task"
            yield title, json.dumps(record["hyperparameters"].get(name), sort_keys=True)
