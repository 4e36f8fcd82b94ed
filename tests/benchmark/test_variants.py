"""What is compared, and with which hyperparameters."""

import inspect
from typing import Any

import pytest

from sb3_trustregion import ALGORITHMS
from sb3_trustregion.benchmark import variants
from sb3_trustregion.benchmark.run.hyperparameters import (
    OF_THE_ZOO,
    algorithms,
    derive_variant,
    resolve,
    task_entry,
    usual_timesteps,
)
from sb3_trustregion.benchmark.variants import MAIN, SENSITIVITY, VARIANTS, Variant, find_variant
from sb3_trustregion.common.validation import argument_names

SHARED = {"n_envs": 1, "normalize": True}


@pytest.mark.parametrize("task", ["CartPole-v1", "Hopper-v5"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
def test_hyperparameters_are_arguments_of_the_algorithm(variant: Variant, task: str) -> None:
    resolved = resolve(variant, task, 100_000, SHARED)
    assert resolved is not None
    assert resolved["n_timesteps"] == 100_000
    assert set(resolved) - OF_THE_ZOO <= argument_names(algorithms()[variant.algorithm])


@pytest.mark.parametrize("name", [name for name in VARIANTS if not VARIANTS[name].per_task])
def test_defaults_share_the_environment(name: str) -> None:
    resolved = resolve(VARIANTS[name], "CartPole-v1", 1, {"n_envs": 3, "normalize": False})
    assert resolved is not None
    # Where an entry says how many environments, its steps are of so many.
    of_each: dict[str, int | None] = {"npg": 256, "adaptive_trpo": 128, "adaptive_ppo": 128}
    of_each["trpo"] = 128 if name == "trpo-our_settings" else None
    assert resolved.get("n_steps") == of_each.get(VARIANTS[name].algorithm)
    assert resolved["n_envs"] == (8 if "n_steps" in resolved else 3)
    assert resolved["normalize"] is False


def test_zoo_tuned_values_are_the_zoos() -> None:
    resolved = resolve(find_variant("ppo-zoo"), "CartPole-v1", 1, {"n_envs": 3, "normalize": True})
    assert resolved is not None
    assert resolved["n_envs"] == 8
    assert "normalize" not in resolved
    # RL Zoo has Ant-v4 only, and leaves the number of environments open.
    ant = resolve(find_variant("ppo-zoo"), "Ant-v5", 1, {"n_envs": 3})
    assert ant == {"n_envs": 3, "normalize": True, "policy": "MlpPolicy", "n_timesteps": 1}
    assert task_entry("trpo", "Hopper-v5") == task_entry("trpo", "Hopper-v4")


def test_what_the_task_is_holds_for_tuned_variants_too() -> None:
    task = {"env_kwargs": {"terminate_when_unhealthy": False}, "env_wrapper": "some.Wrapper"}
    for name in ("ppo-zoo", "ppo-default"):
        resolved = resolve(find_variant(name), "Hopper-v5", 1, SHARED | task)
        assert resolved is not None
        assert {key: resolved[key] for key in task} == task
    # Tuned with a wrapper of its own.
    entry = task_entry("ppo", "CarRacing-v3")
    assert entry is not None
    assert entry["env_wrapper"] != "some.Wrapper"
    tuned = resolve(find_variant("ppo-zoo"), "CarRacing-v3", 1, task)
    assert tuned is not None
    assert tuned["env_wrapper"] == "some.Wrapper"


def test_without_a_tuned_entry_there_is_no_tuned_variant() -> None:
    assert resolve(find_variant("ppo-zoo"), "Blackjack-v1", 1, SHARED) is None
    assert resolve(find_variant("adaptive_trpo"), "Blackjack-v1", 1, SHARED) is not None


def test_the_smaller_budget_is_taken() -> None:
    assert usual_timesteps("Acrobot-v1") == 100_000  # PPO: 1M
    assert usual_timesteps("Hopper-v5") == 1_000_000
    assert usual_timesteps("Blackjack-v1") == 1_000_000


def test_the_table_of_algorithms_decides() -> None:
    for name, label in ALGORITHMS.items():
        assert VARIANTS[name].label == label
        assert name in MAIN
        assert VARIANTS[f"{name}-tuned"].per_task
        assert resolve(VARIANTS[f"{name}-tuned"], "CartPole-v1", 1, SHARED) is not None
        ablations = [variant for variant in VARIANTS.values() if variant.parent == name and variant.algorithm == name]
        assert bool(ablations) is name.startswith("adaptive_")


def test_an_algorithm_more_is_a_variant_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGORITHMS, "another", "Another")
    found = variants._all()
    assert found["another"].label == "Another"
    assert found["another-tuned"].config == "another"


def test_a_twin_differs_in_the_radius_alone() -> None:
    for parent in ("adaptive_trpo", "adaptive_ppo"):
        twin = VARIANTS[f"{parent}-fixed"]
        assert twin.hyperparameters == {"radius_rule": "fixed"}
        assert (twin.algorithm, twin.config, twin.parent) == (parent, parent, parent)


@pytest.mark.parametrize(
    ("parent", "argument", "factors"),
    [
        *((parent, "target_kl", (1 / 20, 20.0)) for parent in ("trpo-default", "adaptive_trpo", "adaptive_trpo-fixed")),
        *((parent, "clip_range", (1 / 10, 5.0)) for parent in ("ppo-default", "adaptive_ppo")),
    ],
)
def test_initial_radii_span_the_protocols_decades(parent: str, argument: str, factors: tuple[float, ...]) -> None:
    resolved = resolve(VARIANTS[parent], "CartPole-v1", 1, SHARED)
    assert resolved is not None
    default = inspect.signature(algorithms()[VARIANTS[parent].algorithm]).parameters[argument].default
    radius = resolved.get(argument, default)
    children = [variant for variant in VARIANTS.values() if variant.parent == parent and variant.role == SENSITIVITY]
    assert [child.radius_factor for child in children] == list(factors)
    for child in children:
        assert child.hyperparameters[argument] == pytest.approx(radius * child.radius_factor)


def test_stock_with_our_settings_has_them() -> None:
    ours, stock = (resolve(VARIANTS[name], "Hopper-v5", 1, SHARED) for name in ("adaptive_trpo", "trpo-our_settings"))
    assert ours is not None
    assert stock is not None
    signature = inspect.signature(algorithms()["trpo"]).parameters
    for name in ("n_envs", "n_steps", "target_kl", "batch_size", "learning_rate", "normalize"):
        given = stock[name] if name in stock else signature[name].default
        assert given == ours[name], name


def test_names_are_names_of_folders() -> None:
    assert all(name == variant.name for name, variant in VARIANTS.items())
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") for name in VARIANTS)
    assert set(MAIN) <= set(VARIANTS)
    assert all(variant.parent in VARIANTS for variant in VARIANTS.values() if variant.parent)


def test_a_grid_may_define_variants() -> None:
    variant = derive_variant("wide", {"base": "adaptive_trpo-fixed", "hyperparameters": {"target_kl": 0.5}})
    assert variant.name == variant.label == "wide"
    assert variant.hyperparameters == {"radius_rule": "fixed", "target_kl": 0.5}


@pytest.mark.parametrize(
    ("name", "definition", "message"),
    [
        ("mine", {"base": "nothing"}, "variant must be one of ppo-zoo"),
        ("mine", {"bas": "npg"}, "must be defined by base"),
        ("mine", "npg", "must be defined by base"),
        ("npg", {"base": "npg"}, "name must be new"),
        ("../mine", {"base": "npg"}, "name must be new"),
        ("mine", {"base": ["npg"]}, "variant must be one of"),
        ("mine", {"base": "npg", "hyperparameters": 5}, "must be known to npg, got 5"),
        ("mine", {"base": "npg", "hyperparameters": {"target_kl": 1}}, "known to npg, got target_kl"),
        (
            "mine",
            {"base": "adaptive_trpo", "hyperparameters": {"judge_class": "no.Judge"}},
            "judge_class must be a class that can be imported, got 'no.Judge'",
        ),
        # What the grid or the seed decides.
        ("mine", {"base": "npg", "hyperparameters": {"seed": 1, "n_timesteps": 1}}, "got n_timesteps, seed"),
    ],
)
def test_malformed_variants_are_refused(name: str, definition: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        derive_variant(name, definition)
