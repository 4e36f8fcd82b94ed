"""The grid: variants × tasks × seeds, from flags or a file, checked before anything is run."""

from pathlib import Path
from typing import Any

import yaml

from sb3_trustregion.benchmark.mixtures import ENVIRONMENT, EVALUATION_SEEDS, GYMNASIUM, SETTINGS, mixtures
from sb3_trustregion.benchmark.results import Results
from sb3_trustregion.benchmark.run import hyperparameters, provenance
from sb3_trustregion.benchmark.run.spec import RunSpec
from sb3_trustregion.benchmark.run.tasks import check_envpool, check_task, entry_point, import_packages
from sb3_trustregion.benchmark.variants import MAIN, Variant, find_variant
from sb3_trustregion.common.validation import check_choice, check_integer

FIRST_TUNING_SEED = 1000
# The entries of a file. "environment" is what everyone shares: what the task is, and how it is run where a tuned entry
# does not say; "backend" whose environments: Gymnasium's, or EnvPool's for exploring.
KEYS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("variants", "seeds", "gym_packages"), (list,)),
    **{"tasks": (list, dict), "n_timesteps": (int,), "environment": (dict,), "backend": (str,), "output": (str, Path)},
}
DEFAULTS: dict[str, Any] = {"variants": list(MAIN), "environment": {}, "gym_packages": [], "backend": GYMNASIUM}
SHARED_ENVIRONMENT: dict[str, Any] = {"n_envs": 1, "normalize": True}
SHOWN_DIFFERENCES = 5


def read_grid(path: Path) -> dict[str, Any]:
    """The entries of a YAML file, ``output`` relative to it; where that is missing, the file's name without suffix."""
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"grid must be a YAML file that can be read, got {str(path)!r}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"grid must have the entries {', '.join(KEYS)}, got {values!r}")
    given = {name: value for name, value in values.items() if value is not None}
    output = given.get("output", path.stem)
    return {**given, "output": path.parent / output if isinstance(output, str) else output}


def make_specs(values: dict[str, Any], is_evaluation: bool = False) -> tuple[list[RunSpec], list[str]]:
    """The runs of a grid, by seed, and what lacks tuned hyperparameters; a ``ValueError`` where an entry is wrong."""
    values = DEFAULTS | {name: value for name, value in values.items() if value is not None}
    _check_entries(values)
    for seed in values["seeds"]:
        _check_seed(seed, is_evaluation)
    if is_evaluation:
        check_choice("backend with --evaluation", values["backend"], (GYMNASIUM,))
    values["environment"] = SHARED_ENVIRONMENT | values["environment"]
    _check_environment(values["environment"])
    values["tasks"] = _check_tasks(values)
    values["variants"] = [_variant(entry) for entry in values["variants"]]
    _check_variants(values["variants"], values["seeds"])
    runs: list[RunSpec] = []
    left_out: dict[str, None] = {}
    for seed in dict.fromkeys(values["seeds"]):
        for task in values["tasks"]:
            for variant in values["variants"]:
                spec = _spec(values, task, variant, seed)
                if spec is None:
                    left_out[f"{variant.name} on {task}: no hyperparameters of its own"] = None
                else:
                    runs.append(spec)
    if not runs:
        raise ValueError(f"variants must have hyperparameters for one of the tasks: {'; '.join(left_out)}")
    return runs, list(left_out)


def _check_entries(values: dict[str, Any]) -> None:
    if values.keys() - KEYS:
        raise ValueError(f"grid must have the entries {', '.join(KEYS)}, got {sorted(map(str, values.keys() - KEYS))}")
    for name, value in values.items():
        if not isinstance(value, KEYS[name]):
            raise ValueError(f"{name} must be a {' or a '.join(kind.__name__ for kind in KEYS[name])}, got {value!r}")
    for name in ("tasks", "variants", "seeds"):
        if not values.get(name):
            raise ValueError(f"{name} must not be empty")


def _check_seed(seed: Any, is_evaluation: bool) -> None:
    check_integer("seed", seed, at_least=0)
    if is_evaluation and seed not in EVALUATION_SEEDS:
        raise ValueError(f"seed must be one of 0-9 with --evaluation, got {seed}")
    if not is_evaluation and seed < FIRST_TUNING_SEED:
        why = "0-9 are for claims and need --evaluation" if seed in EVALUATION_SEEDS else "it is no tuning seed"
        raise ValueError(f"seed must be >= {FIRST_TUNING_SEED}: {why}, got {seed}")


def _check_environment(environment: dict[str, Any]) -> None:
    unknown = sorted(map(str, set(environment) - {*SETTINGS, *ENVIRONMENT}))
    if unknown:
        names = ", ".join((*SETTINGS, *ENVIRONMENT))
        raise ValueError(f"environment must have entries among {names}, got {', '.join(unknown)}")
    check_integer("n_envs", environment["n_envs"], at_least=1)


def _check_tasks(values: dict[str, Any]) -> dict[str, int]:
    import_packages(values["gym_packages"])
    check_choice("backend", values["backend"], (GYMNASIUM, "envpool"))
    tasks = values["tasks"] if isinstance(values["tasks"], dict) else dict.fromkeys(map(str, values["tasks"]))
    lengths = {}
    for task, length in tasks.items():
        check_task(task)
        wanted = values.get("n_timesteps") if length is None else length
        lengths[task] = hyperparameters.usual_timesteps(task) if wanted is None else wanted
        check_integer("n_timesteps", lengths[task], at_least=1)
    if values["backend"] != GYMNASIUM:
        check_envpool(lengths)
    return lengths


def _variant(entry: Any) -> Variant:
    if isinstance(entry, dict) and len(entry) == 1:
        [(name, definition)] = entry.items()
        return hyperparameters.derive_variant(str(name), definition)
    return find_variant(str(entry))


def _check_variants(variants: list[Variant], seeds: list[int]) -> None:
    names = [variant.name for variant in variants]
    if len(set(names)) < len(names):
        raise ValueError(f"variants must be given once each, got {names}")
    for variant in variants:
        if variant.replays and len(set(seeds)) < 2:
            raise ValueError(f"seeds must be at least two for {variant.name}, which goes by another seed's record")
        if variant.replays and variant.replays not in names:
            raise ValueError(f"variants must contain {variant.replays}, by whose record {variant.name} goes")


def _spec(values: dict[str, Any], task: str, variant: Variant, seed: int) -> RunSpec | None:
    n_timesteps = values["tasks"][task]
    resolved = hyperparameters.resolve(variant, task, n_timesteps, values["environment"])
    if resolved is None:
        return None
    seeds = list(dict.fromkeys(values["seeds"]))
    # The seed before, so that more seeds at the end change nothing; a run's own record would make it itself.
    replayed_seed = seeds[seeds.index(seed) - 1 if seed != seeds[0] else 1] if variant.replays else None
    return RunSpec(
        variant=variant,
        task=task,
        seed=seed,
        n_timesteps=n_timesteps,
        hyperparameters=resolved,
        versions=provenance.package_versions(entry_point(task), values["backend"]),
        modules=provenance.module_hashes(variant),
        backend=values["backend"],
        gym_packages=values["gym_packages"],
        replayed_seed=replayed_seed,
    )


def check_results(specs: list[RunSpec], results: Results, rerun_outdated: bool) -> None:
    """Raise a ``ValueError`` where results of other versions would be mixed with the runs that are wanted."""
    wanted = {spec.key for spec in specs} if rerun_outdated else set()
    kept = [run.record for run in results.all() if run.key not in wanted]
    mixed = mixtures([*(spec.record for spec in specs), *kept])
    if mixed:
        more = [f"and {len(mixed) - SHOWN_DIFFERENCES} more"] if len(mixed) > SHOWN_DIFFERENCES else []
        lines = "\n  ".join([*mixed[:SHOWN_DIFFERENCES], *more])
        raise ValueError(
            f"runs of this grid and those in {str(results.output)!r} must go together, got\n  {lines}\n"
            "Choose another folder, the same settings, or --rerun-outdated with all variants that are there."
        )
