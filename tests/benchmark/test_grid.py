"""Wrong input gets a clear error, before anything is run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sb3_trustregion.benchmark import cli
from sb3_trustregion.benchmark.results import RUN_FILE, Results
from sb3_trustregion.benchmark.run import campaign
from sb3_trustregion.benchmark.run.grid import check_results, make_specs, read_grid
from sb3_trustregion.benchmark.run.spec import RunSpec
from sb3_trustregion.benchmark.variants import MAIN

SMALL: dict[str, Any] = {"tasks": ["CartPole-v1"], "variants": ["ppo-default"], "seeds": [1000], "n_timesteps": 10}


def make(tmp_path: Path, is_evaluation: bool = False, **changes: Any) -> list[RunSpec]:
    return make_specs({"output": tmp_path, **SMALL, **changes}, is_evaluation)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tasks": ["CartPole-v7"]},
            r"task must be an id that Gymnasium knows, got 'CartPole-v7' \(did you mean CartP",
        ),
        ({"tasks": ["nonsense"]}, "task must be an id that Gymnasium knows, got 'nonsense'$"),
        ({"tasks": []}, "tasks must not be empty"),
        ({"variants": ["sac"]}, "variant must be one of ppo-zoo, .*, got 'sac'"),
        ({"variants": ["npg", "npg"]}, "variants must be given once each"),
        ({"seeds": [0]}, "seed must be >= 1000: 0-9 are for claims and need --evaluation, got 0"),
        ({"seeds": [42]}, "seed must be >= 1000: it is no tuning seed, got 42"),
        ({"seeds": [-1]}, "seed must be an integer >= 0, got -1"),
        ({"seeds": ["x"]}, "seed must be an integer >= 0, got 'x'"),
        ({"seeds": []}, "seeds must not be empty"),
        ({"n_timesteps": 0}, "n_timesteps must be an integer >= 1, got 0"),
        ({"environment": {"n_envs": 0}}, "n_envs must be an integer >= 1, got 0"),
        ({"environment": {"n_env": 4}}, "environment must have entries among n_envs, normalize, .*, got n_env"),
        ({"backend": "jax"}, "backend must be one of 'gymnasium', 'envpool', got 'jax'"),
        ({"tsks": []}, r"grid must have the entries variants, .*, got \['tsks'\]"),
        ({"seeds": 1000}, "seeds must be a list, got 1000"),
        ({"tasks": 5}, "tasks must be a list or a dict, got 5"),
        ({"environment": 4}, "environment must be a dict, got 4"),
        ({"output": [1]}, r"output must be a str or a Path, got \[1\]"),
        ({"seeds": [[1]]}, r"seed must be an integer >= 0, got \[1\]"),
        ({"tasks": [5]}, "task must be an id that Gymnasium knows, got '5'"),
        ({"variants": ["adaptive_trpo-replayed"]}, "seeds must be at least two for adaptive_trpo-replayed"),
        (
            {"variants": ["adaptive_trpo-replayed"], "seeds": [1000, 1001]},
            "variants must contain adaptive_trpo, by whose record adaptive_trpo-replayed goes",
        ),
    ],
)
def test_wrong_grids_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **changes)


def test_an_evaluation_has_its_own_seeds(tmp_path: Path) -> None:
    assert [spec.seed for spec in make(tmp_path, is_evaluation=True, seeds=[0, 9])] == [0, 9]
    with pytest.raises(ValueError, match="seed must be one of 0-9 with --evaluation, got 1000"):
        make(tmp_path, is_evaluation=True)


def test_the_grid_is_the_product(tmp_path: Path) -> None:
    tasks = {"CartPole-v1": None, "Acrobot-v1": 77}
    specs = make(tmp_path, tasks=tasks, variants=["npg", "ppo-zoo"], seeds=[1000, 1001])
    assert len({spec.key for spec in specs}) == len(specs) == 8
    # The first seed of everything comes first; the lengths are the tasks' own where they have one.
    assert [spec.seed for spec in specs] == [1000] * 4 + [1001] * 4
    assert {spec.task: spec.n_timesteps for spec in specs} == {"CartPole-v1": 10, "Acrobot-v1": 77}
    assert all(bool(spec.modules) is (spec.variant.name == "npg") for spec in specs)


def test_tasks_without_tuned_hyperparameters_are_left_out(tmp_path: Path) -> None:
    values = {"output": tmp_path, **SMALL, "tasks": ["Blackjack-v1"], "seeds": [1000, 1001]}
    specs, left_out = make_specs({**values, "variants": ["ppo-zoo", "ppo-default"]})
    assert {spec.variant.name for spec in specs} == {"ppo-default"}
    assert left_out == ["ppo-zoo on Blackjack-v1: no hyperparameters of its own"]
    with pytest.raises(ValueError, match="variants must have hyperparameters for one of the tasks"):
        make_specs({**values, "variants": ["ppo-zoo"]})


def test_a_schedule_is_replayed_from_another_seed(tmp_path: Path) -> None:
    names = ["adaptive_trpo", "adaptive_trpo-replayed"]
    specs = make(tmp_path, variants=names, seeds=[1000, 1001, 1002])
    others = {spec.seed: spec.replayed_seed for spec in specs if spec.variant.replays}
    assert others == {1000: 1001, 1001: 1000, 1002: 1001}
    # Who is there already goes by the same record when seeds are added.
    more = make(tmp_path, variants=names, seeds=[1000, 1001, 1002, 1003])
    assert [spec for spec in more if spec.seed != 1003] == specs


def test_a_specification_survives_the_way_to_another_process(tmp_path: Path) -> None:
    [spec] = make(tmp_path)
    replaying = replace(spec, recording=[[1, 0.5]])
    assert RunSpec.from_json(replaying.to_json()) == replaying
    assert "recording" not in replaying.record


def write_result(specs: list[RunSpec], output: Path, **changes: Any) -> None:
    [spec] = specs
    record = spec.record | {"status": "finished"} | changes
    Results(output).write(spec.key, {RUN_FILE: json.dumps(record).encode()})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_timesteps": 11}, "more than one number of steps on CartPole-v1: 10, 11"),
        ({"versions": {"torch": "1.0"}}, "more than one version of torch: 1.0, "),
        ({"hyperparameters": {"n_steps": 3}}, "more than one hyperparameters of ppo-default on CartPole-v1: "),
        ({"backend": "envpool"}, "more than one backend of environments: envpool, gymnasium"),
        ({"protocol": 0}, "more than one protocol of measurement: 0, 1"),
    ],
)
def test_results_of_another_version_are_not_mixed_in(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    specs = make(tmp_path)
    write_result(specs, tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        check_results(specs, Results(tmp_path), rerun_outdated=False)
    check_results(specs, Results(tmp_path), rerun_outdated=True)


def test_results_of_this_version_are_taken(tmp_path: Path) -> None:
    specs = make(tmp_path)
    write_result(specs, tmp_path)
    check_results(specs, Results(tmp_path), rerun_outdated=False)


def test_a_name_stands_for_one_algorithm(tmp_path: Path) -> None:
    # Both have the same hyperparameters, and no code of ours.
    one, other = (make(tmp_path, variants=[{"mine": {"base": f"{name}-default"}}]) for name in ("ppo", "trpo"))
    write_result(one, tmp_path)
    with pytest.raises(ValueError, match="more than one algorithm of mine: ppo, trpo"):
        check_results(other, Results(tmp_path), rerun_outdated=False)


@pytest.mark.parametrize("rerun_outdated", [False, True])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"environment": {"n_envs": 8}}, "n_envs on CartPole-v1 of variants that are not tuned per task: 1, 8"),
        ({"n_timesteps": 20}, "more than one number of steps on CartPole-v1: 10, 20"),
    ],
)
def test_results_of_other_variants_must_go_with_them(
    tmp_path: Path, changes: dict[str, Any], message: str, rerun_outdated: bool
) -> None:
    write_result(make(tmp_path), tmp_path)
    check_results(make(tmp_path, variants=["trpo-default"]), Results(tmp_path), rerun_outdated)
    with pytest.raises(ValueError, match=message):
        check_results(make(tmp_path, variants=["trpo-default"], **changes), Results(tmp_path), rerun_outdated)


def test_a_variant_may_be_about_its_environment(tmp_path: Path) -> None:
    for changes in ({"n_envs": 8}, {"normalize": False}):
        mine = {"mine": {"base": "ppo-default", "hyperparameters": changes}}
        check_results(make(tmp_path, variants=["ppo-default", mine]), Results(tmp_path), rerun_outdated=False)


def test_algorithms_must_have_the_same_core(tmp_path: Path) -> None:
    specs = make(tmp_path, variants=["adaptive_ppo"])
    changed = {**specs[0].modules, "sb3_trustregion.core.radius": "01234567"}
    write_result(specs, tmp_path, modules=changed)
    with pytest.raises(ValueError, match=r"more than one version of sb3_trustregion\.core\.radius: 01234567, "):
        check_results(make(tmp_path, variants=["adaptive_trpo"]), Results(tmp_path), rerun_outdated=False)
    # Stock has none of it.
    check_results(make(tmp_path), Results(tmp_path), rerun_outdated=False)


def test_a_grid_may_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text(
        "tasks: {CartPole-v1: 5}\nseeds: [1000]\nvariants: [penalty_ppo, {mine: {base: penalty_ppo}}]\nbackend:\n"
    )
    values = read_grid(path)
    assert values["output"] == tmp_path / "mine"
    specs, _ = make_specs(values)
    assert [spec.variant.name for spec in specs] == ["penalty_ppo", "mine"]
    assert {name: specs[0].hyperparameters[name] for name in ("n_envs", "normalize", "n_timesteps")} == {
        "n_envs": 1,
        "normalize": True,
        "n_timesteps": 5,
    }


@pytest.mark.parametrize(("text", "message"), [("- 1", "must have the entries"), ("{", "that can be read")])
def test_malformed_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "grid.yml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_grid(path)


@pytest.mark.parametrize("name", ["exploratory", "million", "ablations", "initial-radius", "evaluation"])
def test_committed_grids_can_be_run(name: str) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.yml"
    values = read_grid(path)
    specs, left_out = make_specs(values, is_evaluation=name == "evaluation")
    assert values["output"] == path.parent / name
    assert left_out == []
    assert len(specs) == len(values["tasks"]) * len(values["variants"]) * len(values["seeds"])


class Carried(Exception):  # noqa: N818 - what would be run, instead of running it
    """What the command line would carry out."""


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> None:
    def carry_out(specs: list[RunSpec], results: Results, **options: Any) -> None:
        raise Carried(specs, results, options)

    monkeypatch.setattr(campaign, "carry_out", carry_out)


@pytest.mark.usefixtures("carried")
def test_flags_go_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text("tasks: {CartPole-v1: 5}\nseeds: [1000]\nenvironment: {n_envs: 4}\n")
    flags = [
        "--n-timesteps",
        "9",
        "--seeds",
        "1007",
        "--output",
        str(tmp_path / "out"),
        "--no-normalize",
        "--jobs",
        "3",
    ]
    with pytest.raises(Carried) as carried:
        cli.main(["run", str(path), *flags])
    specs, results, options = carried.value.args
    assert {(spec.task, spec.seed, spec.n_timesteps) for spec in specs} == {("CartPole-v1", 1007, 9)}
    assert tuple(spec.variant.name for spec in specs) == MAIN
    [default] = [spec for spec in specs if spec.variant.name == "ppo-default"]
    assert (default.hyperparameters["n_envs"], default.hyperparameters["normalize"]) == (4, False)
    assert results.output == tmp_path / "out"
    assert options["jobs"] == 3
    assert options["command"].startswith("python -m sb3_trustregion.benchmark run ")


@pytest.mark.usefixtures("carried")
def test_what_flags_pick_of_a_grid_stays_as_the_grid_has_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    mine = "{base: ppo-default, hyperparameters: {n_steps: 8}}"
    path.write_text(f"tasks: {{CartPole-v1: 5, Acrobot-v1: 6}}\nvariants: [mine: {mine}, ppo-default]\nseeds: [1000]\n")
    with pytest.raises(Carried) as carried:
        cli.main(["run", str(path), "--tasks", "Acrobot-v1", "--variants", "mine", "npg"])
    specs, _, _ = carried.value.args
    assert [(spec.task, spec.n_timesteps, spec.variant.name) for spec in specs] == [
        ("Acrobot-v1", 6, "mine"),
        ("Acrobot-v1", 6, "npg"),
    ]
    assert specs[0].hyperparameters["n_steps"] == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "tasks must not be empty"),
        (["run", "--tasks", "CartPole-v1", "--seeds", "3"], "0-9 are for claims"),
        (["run", "--tasks", "CartPole-v1", "--jobs", "0"], "jobs must be an integer >= 1, got 0"),
        (["run", "--tasks", "CartPole-v1", "--backend", "dask"], "backend must be one of 'gymnasium', 'envpool'"),
        (["run", "--tasks", "CartPole-v1", "--output", "FILE/below"], "Not a directory"),
        (["run", "--tasks", "CartPole-v1", "--gym-packages", "no.module"], "No module named 'no'"),
        (["report", "FILE"], "results must be a folder that `run` wrote to"),
        (["archive", "FILE"], "results must be a folder with runs to archive"),
        (["references", "nonsense"], "task must be an id that Gymnasium knows"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert cli.main([argument.replace("FILE", str(file)) for argument in arguments]) == 2
    assert message in capsys.readouterr().err


def test_variants_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["variants"]) == 0
    assert "adaptive_trpo-fixed" in capsys.readouterr().out
