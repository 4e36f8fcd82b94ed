"""The grid: variants × tasks × seeds, from flags or a file, checked before anything is run."""

from dataclasses import dataclass, field
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

BACKENDS = (GYMNASIUM, "envpool")
FIRST_TUNING_SEED = 1000
SHARED_ENVIRONMENT: dict[str, Any] = {"n_envs": 1, "normalize": True}
# The entries of a file, and what each must be.
KEYS: dict[str, tuple[str, tuple[type, ...]]] = {
    "output": ("a path", (str,)),
    "seeds": ("a list", (list,)),
    "tasks": ("a list, or a mapping to numbers of steps", (list, dict)),
    "variants": ("a list", (list,)),
    "n_timesteps": ("an integer", (int,)),
    "environment": ("a mapping", (dict,)),
    "gym_packages": ("a list", (list,)),
    "backend": ("a name", (str,)),
}
SHOWN_DIFFERENCES = 5


@dataclass(frozen=True)
class Grid:
    """
    What is compared on what.

    :param tasks: ids of the environments with the steps of a run; None for the smaller of RL Zoo's budgets
    :param variants: the competitors
    :param seeds: of the runs
    :param output: folder of the results
    :param is_evaluation: whether the seeds are those kept for claims
    :param environment: what everyone shares: what the task is, and how it is run where a tuned entry does not say
    :param gym_packages: modules to import so that tasks are known
    :param backend: whose environments: Gymnasium's, or EnvPool's, which are for exploring
    """

    tasks: dict[str, int | None]
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    output: Path
    is_evaluation: bool = False
    environment: dict[str, Any] = field(default_factory=lambda: dict(SHARED_ENVIRONMENT))
    gym_packages: tuple[str, ...] = ()
    backend: str = GYMNASIUM

    def check(self) -> None:
        """
        :raises ValueError: where something in the grid is unknown or out of range
        """
        for name, values in {"tasks": self.tasks, "variants": self.variants, "seeds": self.seeds}.items():
            if not values:
                raise ValueError(f"{name} must not be empty")
        for seed in self.seeds:
            check_seed(seed, self.is_evaluation)
        self._check_environment()
        import_packages(self.gym_packages)
        for task, n_timesteps in self.tasks.items():
            check_task(task)
            check_integer("n_timesteps", 1 if n_timesteps is None else n_timesteps, at_least=1)
        if self.backend != GYMNASIUM:
            check_envpool(self.tasks, self.is_evaluation)
        self._check_variants()

    def _check_environment(self) -> None:
        names = (*SETTINGS, *ENVIRONMENT)
        unknown = sorted(map(str, set(self.environment) - set(names)))
        if unknown:
            raise ValueError(f"environment must have entries among {', '.join(names)}, got {', '.join(unknown)}")
        check_integer("n_envs", self.environment.get("n_envs", 1), at_least=1)
        check_choice("backend", self.backend, BACKENDS)

    def _check_variants(self) -> None:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError(f"variants must be given once each, got {names}")
        for variant in self.variants:
            if variant.replays and len(self.seeds) < 2:
                raise ValueError(f"seeds must be at least two for {variant.name}, which goes by another seed's record")
            if variant.replays and variant.replays not in names:
                raise ValueError(f"variants must contain {variant.replays}, by whose record {variant.name} goes")

    def specs(self) -> tuple[list[RunSpec], list[str]]:
        """
        :return: the runs, those of the first seed first; and what is left out for want of tuned hyperparameters
        """
        runs: list[RunSpec] = []
        left_out: dict[str, None] = {}
        for seed in self.seeds:
            for task in self.tasks:
                for variant in self.variants:
                    spec = self._spec(task, variant, seed)
                    if spec is None:
                        left_out[f"{variant.name} on {task}: no hyperparameters of its own"] = None
                    else:
                        runs.append(spec)
        if not runs:
            raise ValueError(f"variants must have hyperparameters for one of the tasks: {'; '.join(left_out)}")
        return runs, list(left_out)

    def _spec(self, task: str, variant: Variant, seed: int) -> RunSpec | None:
        n_timesteps = self.tasks[task] or hyperparameters.usual_timesteps(task)
        resolved = hyperparameters.resolve(variant, task, n_timesteps, self.environment)
        if resolved is None:
            return None
        return RunSpec(
            variant=variant,
            task=task,
            seed=seed,
            n_timesteps=n_timesteps,
            hyperparameters=resolved,
            versions=provenance.package_versions(entry_point(task), self.backend),
            modules=provenance.module_hashes(variant),
            backend=self.backend,
            gym_packages=list(self.gym_packages),
            replayed_seed=self._other_seed(seed) if variant.replays else None,
        )

    def _other_seed(self, seed: int) -> int:
        """The one before, so that more seeds at the end change nothing; a run's own record would make it itself."""
        position = self.seeds.index(seed)
        return self.seeds[position - 1 if position else 1]


def check_seed(seed: Any, is_evaluation: bool) -> None:
    """
    :param seed: a seed
    :param is_evaluation: whether the run is for a claim
    :raises ValueError: where it is none of that kind
    """
    check_integer("seed", seed, at_least=0)
    if is_evaluation and seed not in EVALUATION_SEEDS:
        raise ValueError(f"seed must be one of 0-9 with --evaluation, got {seed}")
    if not is_evaluation and seed in EVALUATION_SEEDS:
        raise ValueError(f"seed must be >= {FIRST_TUNING_SEED}: 0-9 are for claims and need --evaluation, got {seed}")
    if not is_evaluation and seed < FIRST_TUNING_SEED:
        raise ValueError(f"seed must be >= {FIRST_TUNING_SEED}, or one of 0-9 with --evaluation, got {seed}")


def check_results(specs: list[RunSpec], results: Results, rerun_outdated: bool) -> None:
    """
    :param specs: the runs that are wanted
    :param results: what is there
    :param rerun_outdated: whether results of other versions give way to new ones
    :raises ValueError: where results of other versions would be mixed with them
    """
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


def read_grid(path: Path) -> dict[str, Any]:
    """
    :param path: a YAML file
    :return: its entries, ``output`` relative to the file, and the file's name without suffix where it is missing
    :raises ValueError: where it is no such file, or has entries that mean nothing
    """
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"grid must be a YAML file that can be read, got {str(path)!r}: {error}") from error
    if not isinstance(values, dict) or set(values) - set(KEYS):
        wrong = sorted(map(str, set(values) - set(KEYS))) if isinstance(values, dict) else values
        raise ValueError(f"grid must have the entries {', '.join(sorted(KEYS))}, got {wrong!r}")
    values = {name: value for name, value in values.items() if value is not None}
    for name, value in values.items():
        description, kinds = KEYS[name]
        if not isinstance(value, kinds):
            raise ValueError(f"{name} must be {description}, got {value!r}")
    return {**values, "output": path.parent / values.get("output", path.stem)}


def make_grid(values: dict[str, Any], is_evaluation: bool) -> Grid:
    """
    :param values: entries as in a file
    :param is_evaluation: whether the seeds are those kept for claims
    :return: the grid, checked
    :raises ValueError: where something in it is unknown or out of range
    """
    for seed in values.get("seeds") or ():
        check_seed(seed, is_evaluation)
    tasks = values.get("tasks") or {}
    lengths = dict(tasks) if isinstance(tasks, dict) else {str(task): None for task in tasks}
    grid = Grid(
        tasks={task: values.get("n_timesteps") if length is None else length for task, length in lengths.items()},
        variants=tuple(_variant(entry) for entry in values.get("variants") or MAIN),
        seeds=tuple(dict.fromkeys(values.get("seeds") or ())),
        output=Path(values["output"]),
        is_evaluation=is_evaluation,
        environment=SHARED_ENVIRONMENT | (values.get("environment") or {}),
        gym_packages=tuple(values.get("gym_packages") or ()),
        backend=values.get("backend", GYMNASIUM),
    )
    grid.check()
    return grid


def _variant(entry: Any) -> Variant:
    if isinstance(entry, dict) and len(entry) == 1:
        [(name, definition)] = entry.items()
        return hyperparameters.derive_variant(str(name), definition)
    return find_variant(str(entry))
