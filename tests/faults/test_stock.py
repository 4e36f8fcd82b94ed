"""What stock TRPO and PPO do about the same faults: the other column of the table in ``docs/faults.md``."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sb3_contrib.trpo.trpo as trpo
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO
from sb3_trustregion.checkpoint import restart_environments
from tests.environments import toy_vec_env
from tests.faults.checks import assert_finite, numbers_of, score, statistics_of
from tests.faults.environments import BAD_VALUES, healthy, one_of_three
from tests.faults.test_degenerate import BROKEN_PRODUCTS, SPOILT, certain
from tests.faults.test_files import largest_file
from tests.helpers import ALGORITHMS, all_finite, assert_same, differs, make_model, state_of

pytestmark = pytest.mark.filterwarnings("ignore")
STOCK = [TRPO, PPO]
each_stock = pytest.mark.parametrize("algorithm", STOCK)
N_STEPS = 24
ROOT = Path(__file__).parents[2]


def run(algorithm: type[Any], quantity: str, value: str, wrapper: str) -> tuple[Any, bool]:
    """One bad number, in one of three environments, at one step: the model, and whether training came to its end."""
    steps = range(100, 120) if quantity == "terminal observation" else range(100, 101)
    model = make_model(algorithm, one_of_three(quantity, BAD_VALUES[value], steps, wrapper), n_steps=N_STEPS)
    return model, learns(model, 20)


def learns(model: Any, n_updates: int) -> bool:
    """Whether that comes to its end; if not, because the policy, or what it is shown, is no longer finite."""
    try:
        model.learn(n_updates * model.n_steps * model.n_envs, reset_num_timesteps=False)
    except ValueError as error:
        if "to satisfy the constraint" not in str(error):
            raise
        return False
    return True


DESTROYED = [
    ("reward", "nan", "plain"),
    ("reward", "inf", "plain"),
    ("reward", "minus_inf", "plain"),
    ("reward", "nan", "normalized"),
    ("reward", "inf", "normalized"),
    ("observation", "inf", "plain"),
    ("first observation", "inf", "plain"),
    ("terminal observation", "nan", "plain"),
    ("terminal observation", "nan", "normalized"),
]


@pytest.mark.parametrize(("quantity", "value", "wrapper"), DESTROYED)
@each_stock
def test_training_ends_with_the_policy_destroyed(algorithm: type[Any], quantity: str, value: str, wrapper: str) -> None:
    model, ended_well = run(algorithm, quantity, value, wrapper)
    assert not ended_well
    assert not all_finite(state_of(model.policy))


ENDED = [
    ("observation", "nan", "plain"),
    ("observation", "nan", "normalized"),
    ("observation", "inf", "normalized"),
    ("first observation", "nan", "plain"),
    ("first observation", "nan", "normalized"),
    ("first observation", "inf", "normalized"),
]


@pytest.mark.parametrize(("quantity", "value", "wrapper"), ENDED)
@each_stock
def test_training_ends(algorithm: type[Any], quantity: str, value: str, wrapper: str) -> None:
    model, ended_well = run(algorithm, quantity, value, wrapper)
    assert not ended_well
    assert all_finite(state_of(model.policy))
    # With ``VecNormalize`` the policy is whole, but what it would be shown is not.
    assert all(np.isfinite(number).all() for number in statistics_of(model)) == (wrapper == "plain")


FLATTENED = [(quantity, "huge", "normalized") for quantity in ("reward", "observation", "first observation")]


@pytest.mark.parametrize(("quantity", "value", "wrapper"), FLATTENED)
@each_stock
def test_nothing_more_is_learned(algorithm: type[Any], quantity: str, value: str, wrapper: str) -> None:
    """A single 1e30 in a statistic: whatever comes after it is normalised to nothing."""
    model, ended_well = run(algorithm, quantity, value, wrapper)
    assert ended_well
    assert max(float(np.max(number)) for number in statistics_of(model)) > 1e50
    assert score(model) < -0.45


HARMLESS = [
    ("reward", "huge", "plain"),
    ("observation", "huge", "plain"),
    *[("terminal observation", value, wrapper) for value in ("inf", "huge") for wrapper in ("plain", "normalized")],
]


@pytest.mark.parametrize(("quantity", "value", "wrapper"), HARMLESS)
@each_stock
def test_it_goes_on_as_ours_does(algorithm: type[Any], quantity: str, value: str, wrapper: str) -> None:
    """Layers that saturate, and gradients that are clipped or brought to unit variance, take it."""
    model, ended_well = run(algorithm, quantity, value, wrapper)
    assert ended_well
    assert score(model) > -0.45


def test_a_huge_reward_holds_the_critic_of_trpo_still() -> None:
    """The squares of its gradients overflow in Adam's memory, which never forgets them."""
    model, _ = run(TRPO, "reward", "huge", "plain")
    assert not all(np.isfinite(number).all() for number in numbers_of(model))
    before = state_of(model.policy.value_net)
    assert learns(model, 5)
    assert_same(state_of(model.policy.value_net), before)


# Everything for one algorithm; what they share need not be gone through three times.
OURS = [
    *[(AdaptiveTRPO, *case) for case in (*DESTROYED, *ENDED, *FLATTENED, *HARMLESS)],
    *[(algorithm, *cases[-1]) for algorithm in (NPG, AdaptivePPO) for cases in (DESTROYED, ENDED, FLATTENED, HARMLESS)],
]


@pytest.mark.parametrize(("algorithm", "quantity", "value", "wrapper"), OURS)
def test_ours_leave_the_steps_out_and_learn(algorithm: type[Any], quantity: str, value: str, wrapper: str) -> None:
    model, ended_well = run(algorithm, quantity, value, wrapper)
    assert ended_well
    # An observation spoils the transition that led to it and the one that starts from it; three episodes end.
    expected = {"reward": 1, "observation": 2, "first observation": 1, "terminal observation": 3}
    assert model.n_faulty_steps == expected[quantity]
    assert_finite(model, largest=1e6)
    assert score(model) > -0.45


@pytest.mark.parametrize("algorithm", [*STOCK, *ALGORITHMS])
def test_below_the_threshold_a_number_is_data(algorithm: type[Any]) -> None:
    """Nobody is safe from 1e17 in a statistic."""
    env = one_of_three("observation", 1e17, range(100, 101), "normalized")
    model = make_model(algorithm, env, n_steps=N_STEPS)
    assert learns(model, 20)
    assert_finite(model, largest=1e40)
    assert getattr(model, "n_faulty_steps", 0) == 0
    assert score(model) < -0.45


EDGES: dict[str, Callable[[], VecEnv]] = {
    "constant rewards": lambda: toy_vec_env(reward=1.0),
    "episodes without end": lambda: DummyVecEnv([healthy(length=None)] * 2),
    "episodes of one step": lambda: DummyVecEnv([healthy(length=1, terminates=True)] * 2),
    "a single action": lambda: DummyVecEnv([healthy(action_space=spaces.Discrete(1))] * 2),
}


@pytest.mark.parametrize("edge", EDGES)
@each_stock
def test_environments_at_the_edge_do_no_harm(algorithm: type[Any], edge: str) -> None:
    model = make_model(algorithm, EDGES[edge]())
    assert learns(model, 8)
    assert_finite(model, largest=1e6)


@pytest.mark.parametrize(("n_envs", "n_steps", "batch_size"), [(1, 2, 2), (2, 1, 2), (1, 3, 2)])
@each_stock
def test_small_batches_do_no_harm(algorithm: type[Any], n_envs: int, n_steps: int, batch_size: int) -> None:
    env = VecNormalize(DummyVecEnv([healthy()] * n_envs))
    model = make_model(algorithm, env, n_steps=n_steps, batch_size=batch_size)
    assert learns(model, 12)
    assert_finite(model, largest=1e6)


@each_stock
def test_a_single_sample_is_refused_by_assertion(algorithm: type[Any]) -> None:
    with pytest.raises(AssertionError, match="must be greater than 1"):
        make_model(algorithm, DummyVecEnv([healthy()]), n_steps=1, batch_size=2)


@pytest.mark.parametrize(
    ("algorithm", "log_std"), [(TRPO, -20.0), (TRPO, -60.0), (PPO, -60.0), (TRPO, 60.0), (PPO, 60.0)]
)
def test_extreme_standard_deviation(algorithm: type[Any], log_std: float) -> None:
    model = make_model(algorithm, DummyVecEnv([healthy()] * 2))
    with th.no_grad():
        model.policy.log_std.fill_(log_std)
    assert not learns(model, 5)
    assert not all_finite(state_of(model.policy))


@pytest.mark.parametrize(("algorithm", "log_std"), [(TRPO, 20.0), (PPO, -20.0), (PPO, 20.0)])
def test_large_standard_deviation(algorithm: type[Any], log_std: float) -> None:
    model = make_model(algorithm, DummyVecEnv([healthy()] * 2))
    with th.no_grad():
        model.policy.log_std.fill_(log_std)
    assert learns(model, 5)
    assert_finite(model, largest=1e30)


@each_stock
def test_no_gradient_does_no_harm(algorithm: type[Any]) -> None:
    model = make_model(algorithm, DummyVecEnv([healthy(action_space=spaces.Discrete(3))] * 2))
    certain(model)
    before = state_of(model.policy.action_net)
    assert learns(model, 12)
    assert_same(state_of(model.policy.action_net), before)


@pytest.mark.parametrize("spoil", SPOILT)
@each_stock
def test_singular_fisher_matrix(algorithm: type[Any], spoil: Callable[[Any], None]) -> None:
    """No variance destroys the policy, a dead or saturated network does not."""
    arguments = {"policy_kwargs": {"net_arch": [8], "activation_fn": th.nn.ReLU}}
    model = make_model(algorithm, DummyVecEnv([healthy()] * 2), **arguments)
    spoil(model)
    survives = spoil.__name__ != "no_variance"
    assert learns(model, 4) == survives
    assert all_finite(state_of(model.policy)) == survives


@pytest.mark.parametrize("kind", BROKEN_PRODUCTS)
def test_broken_curvature(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """PPO knows no curvature."""
    model = make_model(TRPO, DummyVecEnv([healthy()] * 2))
    assert learns(model, 1)
    broken = BROKEN_PRODUCTS[kind]
    with monkeypatch.context() as patch:
        patch.setattr(TRPO, "hessian_vector_product", lambda self, params, gradient, vector, **kwargs: broken(vector))
        assert learns(model, 2) == (kind == "tiny")
    assert all_finite(state_of(model.policy)) == (kind == "tiny")


def test_line_search_that_never_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy stays, as ours does; the radius too, so that the next search starts from the same length."""

    def too_far(*args: Any) -> th.Tensor:
        kl = kl_divergence(*args)
        return kl if th.is_grad_enabled() else kl + 1.0

    model = make_model(TRPO, DummyVecEnv([healthy()] * 2))
    start, radius = actor_of_trpo(model), model.target_kl
    with monkeypatch.context() as patch:
        patch.setattr(trpo, "kl_divergence", too_far)
        assert learns(model, 15)
    assert_same(actor_of_trpo(model), start)
    assert model.target_kl == radius


def actor_of_trpo(model: Any) -> dict[str, th.Tensor]:
    return {name: value for name, value in state_of(model.policy).items() if "value" not in name}


@each_stock
def test_a_million_parameters(algorithm: type[Any]) -> None:
    arguments = {"n_epochs": 1} if algorithm is PPO else {}
    model = make_model(algorithm, DummyVecEnv([healthy()] * 2), policy_kwargs={"net_arch": [1000, 1000]}, **arguments)
    assert learns(model, 2)
    assert all_finite(state_of(model.policy))


@pytest.mark.parametrize("rate", [1e30, 1e20, 1e9])
@each_stock
def test_critic_that_diverges(algorithm: type[Any], rate: float) -> None:
    """PPO loses its policy with the critic. TRPO ends, or its critic never moves again."""
    rates = [1e-3]
    arguments = {"policy_kwargs": {"net_arch": [8], "activation_fn": th.nn.ReLU}, "n_steps": 64}
    model = make_model(algorithm, DummyVecEnv([healthy()] * 2), learning_rate=lambda progress: rates[-1], **arguments)
    assert learns(model, 1)
    rates.append(rate)
    survives = learns(model, 1)
    rates.append(1e-3)
    critic = state_of(model.policy.value_net)
    if algorithm is TRPO and rate < 1e20:
        assert survives
        assert learns(model, 3)
        assert not differs(state_of(model.policy.value_net), critic)
    else:
        assert not learns(model, 3)


@each_stock
def test_a_truncated_file_is_not_named(tmp_path: Path, algorithm: type[Any]) -> None:
    model = make_model(algorithm, DummyVecEnv([healthy()] * 2))
    path = tmp_path / "model.zip"
    model.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(Exception, match=r".") as raised:
        algorithm.load(path)
    assert "model.zip" not in str(raised.value)


def test_a_file_of_another_algorithm_is_taken(tmp_path: Path) -> None:
    """Each for the other's; PPO even trains on with it, with its own defaults in place of what the file lacks."""
    for algorithm, other in ((TRPO, PPO), (PPO, TRPO)):
        make_model(other, DummyVecEnv([healthy()] * 2)).save(tmp_path / "model")
        model = algorithm.load(tmp_path / "model", env=DummyVecEnv([healthy()] * 2))
        assert isinstance(model, algorithm)
    assert learns(model, 1)


@pytest.mark.parametrize("algorithm", [TRPO, PPO, AdaptiveTRPO, AdaptivePPO])
def test_saving_over_a_file_on_a_full_disk_loses_it(tmp_path: Path, algorithm: type[Any]) -> None:
    """SB3's own ``save``, which is ours as well: ``save_checkpoint`` is there for what must not be lost."""
    model = make_model(algorithm, VecNormalize(DummyVecEnv([healthy()] * 2)))
    path = tmp_path / "model.zip"
    model.save(path)
    size = path.stat().st_size
    with largest_file(size // 2), pytest.raises(OSError, match="File too large"):
        model.save(path)
    assert path.stat().st_size < size
    with pytest.raises(Exception, match=r"."):
        algorithm.load(path)


@each_stock
def test_a_full_disk_ends_training(tmp_path: Path, algorithm: type[Any]) -> None:
    """And what SB3's callback wrote until then lies there under the name of a checkpoint."""
    model = make_model(algorithm, VecNormalize(DummyVecEnv([healthy()] * 2)))
    callback = CheckpointCallback(model.n_steps, str(tmp_path), save_vecnormalize=True)
    with largest_file(3000), pytest.raises(OSError, match="File too large"):
        model.learn(10 * model.n_steps * model.n_envs, callback=callback)
    (path,) = tmp_path.iterdir()
    assert path.name == f"rl_model_{model.num_timesteps}_steps.zip"
    with pytest.raises(Exception, match=r"."):
        algorithm.load(path)


KILLED_WHILE_SAVING = """
import os, signal, sys
import torch as th
from stable_baselines3.common.callbacks import CheckpointCallback
from tests.faults.test_stock import PPO, TRPO, DummyVecEnv, healthy, make_model

model = make_model({"TRPO": TRPO, "PPO": PPO}[sys.argv[1]], DummyVecEnv([healthy()] * 2))
save = th.save
def deadly(state, file):
    save(state, file)
    if model.num_timesteps >= 3 * 64:
        os.kill(os.getpid(), signal.SIGKILL)
th.save = deadly
model.learn(10 * 64, callback=CheckpointCallback(32, sys.argv[2]))
"""


@pytest.mark.slow
@each_stock
def test_killed_while_a_checkpoint_is_written(tmp_path: Path, algorithm: type[Any]) -> None:
    """The newest file is half a checkpoint under a whole one's name; those before it are well."""
    command = [sys.executable, "-c", KILLED_WHILE_SAVING, algorithm.__name__, str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, timeout=120, capture_output=True).returncode < 0
    *_, before, newest = sorted(tmp_path.iterdir(), key=lambda path: int(path.name.split("_")[2]))
    algorithm.load(before)
    with pytest.raises(Exception, match=r"."):
        algorithm.load(newest)


@each_stock
def test_a_resumed_run_is_another(tmp_path: Path, algorithm: type[Any]) -> None:
    """With the statistics loaded beside the model and the environments reset alike: its random numbers start anew."""
    env = VecNormalize(DummyVecEnv([healthy()] * 2))
    model = make_model(algorithm, env)
    assert learns(model, 3)
    model.save(tmp_path / "model.zip")
    env.save(str(tmp_path / "statistics.pkl"))
    again = VecNormalize.load(str(tmp_path / "statistics.pkl"), DummyVecEnv([healthy()] * 2))
    resumed = algorithm.load(tmp_path / "model.zip", env=again)
    assert_same(state_of(resumed.policy), state_of(model.policy))
    for one in (model, resumed):
        restart_environments(one, 1)
        assert learns(one, 1)
    assert differs(state_of(resumed.policy), state_of(model.policy))


@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [
        *[(algorithm, {name: np.nan}) for algorithm in STOCK for name in ("gamma", "gae_lambda")],
        (TRPO, {"target_kl": -0.01}),
        (TRPO, {"cg_damping": -1.0}),
        (PPO, {"clip_range": np.nan}),
        (PPO, {"ent_coef": np.nan}),
    ],
)
def test_arguments_out_of_range_are_taken(algorithm: type[Any], arguments: dict[str, Any]) -> None:
    make_model(algorithm, **arguments)
