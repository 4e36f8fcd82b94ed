"""``python -m sb3_trustregion.benchmark``: run a grid, report on it, archive it, measure the random policy."""

import argparse
import shlex
import signal
import sys
import types
from pathlib import Path
from typing import Any

from sb3_trustregion.benchmark.results import Results
from sb3_trustregion.benchmark.variants import VARIANTS

PROGRAM = "python -m sb3_trustregion.benchmark"
DEFAULT_OUTPUT = "benchmark-results"
DEFAULT_SEEDS = [1000, 1001, 1002]


def main(argv: list[str] | None = None) -> int:
    """
    Run one of the commands.

    :param argv: command and its arguments, by default those of the process
    :return: exit code: 0, 1 where runs failed, 2 where an argument is wrong, 130 where it was stopped
    """
    given = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(given)
    arguments.line = shlex.join([*PROGRAM.split(), *given])
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code: int = arguments.command(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped: the same command goes on where this one ended", file=sys.stderr)
        return 130
    return code


def _interrupt(number: int, frame: types.FrameType | None) -> None:
    """To be ended is to be stopped."""
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text)
        added.set_defaults(command=command)
        return added

    _add_run_arguments(add("run", _run, "carry out a grid, or what is missing of it"))
    report = add("report", _report, "a page, figures and tables from the results")
    report.add_argument("results", type=Path, help="folder of the results, as runs or as an archive")
    report.add_argument("--output", type=Path, help="by default `report` in that folder")
    report.add_argument("--references", type=Path, help="what scores 0 and 1 mean, by default the committed file")
    report.add_argument("--reps", type=int, default=2000, help="bootstrap samples")
    report.add_argument("--allow-mixed", action="store_true", help="report on results of several versions all the same")
    archive = add("archive", _archive, "put the runs of a finished grid into one file, which `report` and `run` read")
    archive.add_argument("results", type=Path, help="folder of the results")
    add("variants", _list_variants, "list what can be compared")
    random = add("references", _measure, "measure the random policy, whose score is 0")
    random.add_argument("tasks", nargs="+", metavar="TASK")
    random.add_argument("--gym-packages", nargs="+", default=[])
    return parser


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("grid", nargs="?", type=Path, help="a YAML file; flags go before its entries")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="ids that Gymnasium knows")
    parser.add_argument("--variants", nargs="+", metavar="VARIANT", help="by default stock and ours; see `variants`")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="by default 1000 1001 1002")
    parser.add_argument("--n-timesteps", type=int, help="per run; by default the smaller of RL Zoo's for PPO and TRPO")
    parser.add_argument("--output", type=Path, help=f"by default the grid's name without suffix, or {DEFAULT_OUTPUT}")
    parser.add_argument("--n-envs", type=int, help="environments per run where a tuned entry does not fix it")
    parser.add_argument("--no-normalize", action="store_true", help="no VecNormalize but where a tuned entry has it")
    parser.add_argument("--gym-packages", nargs="+", metavar="MODULE", help="modules that register tasks")
    parser.add_argument("--backend", help="whose environments: gymnasium, or envpool for exploring fast")
    parser.add_argument("--jobs", type=int, help="runs at a time, by default one per core")
    parser.add_argument("--address", default="", help="of the scheduler of a Dask cluster, such as tcp://host:8786")
    parser.add_argument("--evaluation", action="store_true", help="for a claim: seeds 0-9, which are refused otherwise")
    parser.add_argument("--retry-failed", action="store_true", help="run again what failed")
    parser.add_argument("--rerun-outdated", action="store_true", help="run again what another version made")


def _run(arguments: argparse.Namespace) -> int:
    # Late, here and below: what trains and what draws takes seconds to import.
    from sb3_trustregion.benchmark.run.campaign import Options, carry_out
    from sb3_trustregion.benchmark.run.grid import make_grid, read_grid

    values: dict[str, Any] = {"output": Path(DEFAULT_OUTPUT), "seeds": DEFAULT_SEEDS}
    if arguments.grid is not None:
        values |= read_grid(arguments.grid)
    flags = ("tasks", "variants", "seeds", "output", "gym_packages", "backend")
    values |= {name: value for name in flags if (value := getattr(arguments, name))}
    if arguments.n_timesteps is not None:
        values |= {"n_timesteps": arguments.n_timesteps, "tasks": list(values.get("tasks") or [])}
    environment = {} if arguments.n_envs is None else {"n_envs": arguments.n_envs}
    environment |= {"normalize": False} if arguments.no_normalize else {}
    values["environment"] = {**(values.get("environment") or {}), **environment}
    grid = make_grid(values, arguments.evaluation)
    options = {name: getattr(arguments, name) for name in ("address", "retry_failed", "rerun_outdated")}
    options |= {"command": arguments.line} | ({} if arguments.jobs is None else {"jobs": arguments.jobs})
    summary = carry_out(grid, Options(**options))
    for line in summary.left_out:
        print(f"left out: {line}")
    for spec in summary.failed:
        print(f"failed: {spec.title}")
    counts = f"{len(summary.finished)} of {summary.n_runs} runs finished, {len(summary.failed)} failed"
    print(f"{counts}, in {grid.output}")
    return 1 if summary.failed else 0


def _report(arguments: argparse.Namespace) -> int:
    from sb3_trustregion.benchmark.report.references import COMMITTED
    from sb3_trustregion.benchmark.report.report import write_report

    results = Results(arguments.results)
    if results.is_waiting():
        print(f"no run in {arguments.results} has finished yet: there is a report when the first one has")
        return 0
    output = arguments.output or arguments.results / "report"
    references = arguments.references or COMMITTED
    print(write_report(results, output, references, arguments.reps, arguments.allow_mixed))
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
