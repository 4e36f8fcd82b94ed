"""``python -m sb3_trustregion.benchmark``: run a grid, report on it, archive it, measure the random policy."""

import argparse
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from sb3_trustregion.benchmark.results import Results
from sb3_trustregion.benchmark.variants import VARIANTS

PROGRAM = "python -m sb3_trustregion.benchmark"
DEFAULTS: dict[str, Any] = {"output": Path("benchmark-results"), "seeds": [1000, 1001, 1002]}


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns 0, 1 where runs failed, 2 where an argument is wrong, 130 where it was stopped."""
    given = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(given)
    arguments.line = shlex.join([*PROGRAM.split(), *given])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        code: int = arguments.command(arguments)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped: the same command goes on where this one ended", file=sys.stderr)
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Any, text: str) -> Any:
        added = commands.add_parser(name, help=text)
        added.set_defaults(command=command)
        return added.add_argument

    run = add("run", _run, "carry out a grid, or what is missing of it")
    run("grid", nargs="?", type=Path, help="a YAML file; flags go before its entries")
    run("--tasks", nargs="+", metavar="TASK", help="ids that Gymnasium knows")
    run("--variants", nargs="+", metavar="VARIANT", help="by default stock and ours; see `variants`")
    run("--seeds", nargs="+", type=int, metavar="SEED", help="by default 1000 1001 1002")
    run("--n-timesteps", type=int, help="per run; by default the smaller of RL Zoo's for PPO and TRPO")
    run("--output", type=Path, help="by default the grid's name without suffix, or benchmark-results")
    run("--n-envs", type=int, help="environments per run where an entry does not fix them")
    run("--no-normalize", action="store_true", help="no VecNormalize but where a tuned entry has it")
    run("--gym-packages", nargs="+", metavar="MODULE", help="modules that register tasks")
    run("--backend", help="whose environments: gymnasium, or envpool for exploring fast")
    run("--jobs", type=int, help="runs at a time, by default one per core")
    run("--address", default="", help="of the scheduler of a Dask cluster, such as tcp://host:8786")
    run("--evaluation", action="store_true", help="for a claim: seeds 0-9, which are refused otherwise")
    run("--retry-failed", action="store_true", help="run again what failed")
    run("--rerun-outdated", action="store_true", help="run again what another version made")
    report = add("report", _report, "a page, figures and tables from the results")
    report("results", type=Path, help="folder of the results, as runs or as an archive")
    report("--output", type=Path, help="by default `report` in that folder")
    report("--references", type=Path, help="what scores 0 and 1 mean, by default the committed file")
    report("--reps", type=int, default=2000, help="bootstrap samples")
    report("--allow-mixed", action="store_true", help="report on results of several versions all the same")
    archive = add("archive", _archive, "put the runs of a finished grid into one file, which `report` and `run` read")
    archive("results", type=Path, help="folder of the results")
    add("variants", _list_variants, "list what can be compared")
    random = add("references", _measure, "measure the random policy, whose score is 0")
    random("tasks", nargs="+", metavar="TASK")
    random("--gym-packages", nargs="+", default=[])
    return parser


def _run(arguments: argparse.Namespace) -> int:
    # Late, here and below: what trains and what draws takes seconds to import.
    from sb3_trustregion.benchmark.run.campaign import carry_out
    from sb3_trustregion.benchmark.run.grid import make_specs, read_grid
    from sb3_trustregion.benchmark.run.spec import title

    of_grid = read_grid(arguments.grid) if arguments.grid is not None else {}
    flags = ("tasks", "variants", "seeds", "output", "gym_packages", "backend")
    given = {name: _picked(name, value, of_grid) for name in flags if (value := getattr(arguments, name))}
    values = DEFAULTS | of_grid | given
    if arguments.n_timesteps is not None:
        values |= {"n_timesteps": arguments.n_timesteps, "tasks": list(values.get("tasks") or [])}
    environment = {} if arguments.n_envs is None else {"n_envs": arguments.n_envs}
    environment |= {"normalize": False} if arguments.no_normalize else {}
    values["environment"] = {**(values.get("environment") or {}), **environment}
    specs, left_out = make_specs(values, arguments.evaluation)
    options = {name: getattr(arguments, name) for name in ("jobs", "address", "retry_failed", "rerun_outdated")}
    runs = carry_out(specs, Results(values["output"]), command=arguments.line, **options)
    failed = [run for run in runs if not run.is_finished]
    for text in [*(f"left out: {line}" for line in left_out), *(f"failed: {title(run.key)}" for run in failed)]:
        print(text)
    print(f"{len(runs) - len(failed)} of {len(specs)} runs finished, {len(failed)} failed, in {values['output']}")
    return 1 if failed else 0


def _picked(name: str, value: Any, of_grid: dict[str, Any]) -> Any:
    """A flag's value; what it picks of a grid file stays as it is there: tasks with steps, variants as defined."""
    known = of_grid.get(name)
    if name == "tasks" and isinstance(known, dict):
        return {task: known.get(task) for task in value}
    entries = known if name == "variants" and isinstance(known, list) else []
    defined = {variant: entry for entry in entries if isinstance(entry, dict) for variant in entry}
    return [defined.get(one, one) for one in value] if defined else value


def _report(arguments: argparse.Namespace) -> int:
    from sb3_trustregion.benchmark.report.report import write_report

    results = Results(arguments.results)
    if results.is_waiting():
        print(f"no run in {arguments.results} has finished yet: there is a report when the first one has")
        return 0
    options = {"references": arguments.references} if arguments.references else {}
    output = arguments.output or arguments.results / "report"
    print(write_report(results, output, reps=arguments.reps, allow_mixed=arguments.allow_mixed, **options))
    return 0


def _archive(arguments: argparse.Namespace) -> int:
    results = Results(arguments.results)
    results.pack()
    print(results.archive)
    return 0


def _list_variants(arguments: argparse.Namespace) -> int:
    for variant in VARIANTS.values():
        print(f"{variant.name:34} {variant.role:12} {variant.label}")
    return 0


def _measure(arguments: argparse.Namespace) -> int:
    from sb3_trustregion.benchmark.run.tasks import N_EPISODES, check_task, import_packages, measure_random

    import_packages(arguments.gym_packages)
    for task in arguments.tasks:
        check_task(task)
    for task in arguments.tasks:
        mean, stderr = measure_random(task)
        print(f"{task}: random {mean:.5g} (standard error {stderr:.2g}, {N_EPISODES} episodes)", flush=True)
    return 0
