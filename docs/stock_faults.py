"""
What stock TRPO and PPO do about each fault: what ``faults.md`` tells in brackets, measured anew.

Run ``python -m docs.stock_faults`` beside ``tests``, whose broken environments are used; a few minutes. It prints a row
for each fault. Give names of functions, such as ``bad_reward``, for some rows alone.
"""

# ruff: noqa: D103 - the titles in FAULTS say it

import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import sb3_contrib.trpo.trpo as trpo
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from tests.environments import toy_vec_env
from tests.faults.checks import score, statistics_of
from tests.faults.environments import BAD_VALUES, healthy, one_of_three

STOCK = (TRPO, PPO)
N_STEPS = 24
# A policy that knows nothing scores about -0.5, one that has learned a little more than this.
LEARNED = -0.45

Measurement = Callable[[type[Any]], str]
FAULTS: dict[str, tuple[str, Measurement]] = {}


def fault(title: str) -> Callable[[Measurement], Measurement]:
    def register(measure: Measurement) -> Measurement:
        FAULTS[measure.__name__] = title, measure
        return measure

    return register


def make(algorithm: type[Any], env: VecEnv | None = None, **kwargs: Any) -> Any:
    epochs = {"n_epochs": 4, "learning_rate": 1e-2} if algorithm is PPO else {"n_critic_updates": 2}
    defaults = {"n_steps": N_STEPS, "batch_size": 32, "seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}
    return algorithm("MlpPolicy", env or DummyVecEnv([healthy()] * 2), **{**defaults, **epochs, **kwargs})


def learns(model: Any, n_updates: int) -> bool:
    """Whether that comes to its end; if not, because the policy, or what it is shown, is no longer finite."""
    try:
        model.learn(n_updates * model.n_steps * model.n_envs, reset_num_timesteps=False)
    except ValueError as error:
        if "to satisfy the constraint" not in str(error):
            raise
        return False
    return True


def outcome(model: Any, n_updates: int, to_learn: bool = False) -> str:
    """What becomes of a model, and, of one that has something to learn, whether it does."""
    went_on = learns(model, n_updates)
    lost = [
        what
        for what, numbers in (("parameters", state(model.policy).values()), ("statistics", statistics_of(model)))
        if not all(np.isfinite(np.asarray(number)).all() for number in numbers)
    ]
    told = [f"{' and '.join(lost)} not finite"] if lost else []
    if not went_on:
        return ", ".join([*told, "training ends"])
    if not told and to_learn:
        return "goes on learning" if score(model) > LEARNED else "goes on, but learns no more"
    return ", ".join([*told, "goes on"])


def state(module: Any) -> dict[str, th.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, th.Tensor], other: dict[str, th.Tensor]) -> bool:
    return all(th.equal(one[name], other[name]) for name in one)


def together(outcomes: dict[str, str]) -> str:
    """Those that are alike in one."""
    by_text: dict[str, list[str]] = {}
    for case, text in outcomes.items():
        by_text.setdefault(text, []).append(case)
    return next(iter(by_text)) if len(by_text) == 1 else "; ".join(f"{', '.join(c)}: {t}" for t, c in by_text.items())


def bad_number(algorithm: type[Any], quantity: str, values: list[str], wrappers: tuple[str, ...] = ()) -> str:
    """One bad number, in one of three environments, at one step; or in the last observations of some episodes."""
    steps = range(100, 120) if quantity == "terminal observation" else range(100, 101)
    return together({
        f"{value} {wrapper}": outcome(
            make(algorithm, one_of_three(quantity, BAD_VALUES[value], steps, wrapper)), 20, to_learn=True
        )
        for value in values
        for wrapper in wrappers or ("plain", "normalized")
    })  # fmt: skip


@fault("One NaN or ±inf reward")
def bad_reward(algorithm: type[Any]) -> str:
    return bad_number(algorithm, "reward", ["nan", "inf", "minus_inf"])


@fault("One NaN observation")
def nan_observation(algorithm: type[Any]) -> str:
    return together({q: bad_number(algorithm, q, ["nan"]) for q in ("observation", "first observation")})


@fault("One infinite observation")
def infinite_observation(algorithm: type[Any]) -> str:
    return together({q: bad_number(algorithm, q, ["inf"]) for q in ("observation", "first observation")})


@fault("NaN in the last observation of truncated episodes")
def nan_in_last_observations(algorithm: type[Any]) -> str:
    return bad_number(algorithm, "terminal observation", ["nan"])


@fault("One 1e30 in an observation or a reward, with VecNormalize")
def huge_number_normalized(algorithm: type[Any]) -> str:
    quantities = ("reward", "observation", "first observation")
    return together({quantity: bad_number(algorithm, quantity, ["huge"], ("normalized",)) for quantity in quantities})


@fault("One 1e30 in a reward, without it")
def huge_reward(algorithm: type[Any]) -> str:
    model = make(algorithm, one_of_three("reward", 1e30, range(100, 101)))
    told, critic = outcome(model, 20, to_learn=True), state(model.policy.value_net)
    learns(model, 5)
    return told + (", but the critic never moves again" if same(state(model.policy.value_net), critic) else "")


@fault("One 1e30 in an observation without it; inf or 1e30 in the last observations of truncated episodes")
def huge_observation(algorithm: type[Any]) -> str:
    last = bad_number(algorithm, "terminal observation", ["inf", "huge"])
    return together({"observation": bad_number(algorithm, "observation", ["huge"], ("plain",)), "last": last})


@fault("One 1e17, below the threshold, in a normalised observation")
def large_observation(algorithm: type[Any]) -> str:
    return outcome(make(algorithm, one_of_three("observation", 1e17, range(100, 101), "normalized")), 20, to_learn=True)


@fault("Constant rewards")
def constant_rewards(algorithm: type[Any]) -> str:
    return outcome(make(algorithm, toy_vec_env(reward=1.0)), 8)


@fault("An environment that never ends, or that ends each step")
def odd_episodes(algorithm: type[Any]) -> str:
    kinds: list[dict[str, Any]] = [{"length": None}, {"length": 1, "terminates": True}]
    return together({str(kind): outcome(make(algorithm, DummyVecEnv([healthy(**kind)] * 2)), 8) for kind in kinds})


@fault("A single action to choose from")
def single_action(algorithm: type[Any]) -> str:
    return outcome(make(algorithm, DummyVecEnv([healthy(action_space=spaces.Discrete(1))] * 2)), 8)


@fault("Log standard deviation -20, 20, ±60")
def standard_deviation(algorithm: type[Any]) -> str:
    return together({str(log_std): spoilt(algorithm, set_log_std(log_std)) for log_std in (-20.0, 20.0, -60.0, 60.0)})


def set_log_std(value: float) -> Callable[[Any], Any]:
    return lambda policy: policy.log_std.fill_(value)


def spoilt(
    algorithm: type[Any], spoil: Callable[[Any], Any], n_updates: int = 5, network: Any = None, **kwargs: Any
) -> str:
    model = make(algorithm, DummyVecEnv([healthy(**kwargs)] * 2), policy_kwargs=network or {"net_arch": [8]})
    with th.no_grad():
        spoil(model.policy)
    return outcome(model, n_updates)


@fault("Rollouts and mini-batches of two or three samples")
def small_batches(algorithm: type[Any]) -> str:
    def run(n_envs: int, n_steps: int) -> str:
        env = VecNormalize(DummyVecEnv([healthy()] * n_envs))
        return outcome(make(algorithm, env, n_steps=n_steps, batch_size=2), 12)

    return together({f"{n_envs} x {n_steps}": run(n_envs, n_steps) for n_envs, n_steps in ((1, 2), (2, 1), (1, 3))})


@fault("A rollout of a single sample")
def single_sample(algorithm: type[Any]) -> str:
    return error_of(lambda: make(algorithm, DummyVecEnv([healthy()]), n_steps=1, batch_size=2))


def error_of(action: Callable[[], Any]) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {re.sub(r'/[^ ]*/', '', str(error).splitlines()[0])}"
    return "is taken"


@fault("No gradient: a policy that is certain")
def no_gradient(algorithm: type[Any]) -> str:
    def spoil(policy: Any) -> None:
        policy.action_net.weight.zero_()
        policy.action_net.bias.copy_(th.tensor([1e4, -1e4, -1e4]))

    return spoilt(algorithm, spoil, 12, action_space=spaces.Discrete(3))


@fault("Singular Fisher matrix: a dead or saturated layer")
def dead_layer(algorithm: type[Any]) -> str:
    def kill(policy: Any) -> None:
        layer = policy.mlp_extractor.policy_net[-2]
        layer.weight.zero_()
        layer.bias.fill_(-100.0)

    def saturate(policy: Any) -> None:
        policy.action_net.bias.fill_(1e6)
        policy.log_std.fill_(-10.0)

    network = {"net_arch": [8], "activation_fn": th.nn.ReLU}
    return together({spoil.__name__: spoilt(algorithm, spoil, 4, network) for spoil in (kill, saturate)})


@fault("Singular Fisher matrix: no variance")
def no_variance(algorithm: type[Any]) -> str:
    return spoilt(algorithm, set_log_std(-44.0), 4)


@fault("Curvature negative, zero, NaN, infinite or not symmetric; of 1e-38")
def broken_curvature(algorithm: type[Any]) -> str:
    if algorithm is PPO:
        return "knows no curvature"
    broken: dict[str, Callable[[th.Tensor], th.Tensor]] = {
        "negative": lambda v: -v,
        "zero": th.zeros_like,
        "NaN": lambda v: v * np.nan,
        "infinite": lambda v: v * np.inf,
        "not symmetric": lambda v: v.flip(0),
        "1e-38": lambda v: 1e-38 * v,
    }
    outcomes = {}
    for kind, product in broken.items():
        model = make(TRPO, n_steps=32)
        learns(model, 1)
        with mock.patch.object(TRPO, "hessian_vector_product", lambda self, p, g, v, product=product, **_: product(v)):
            outcomes[kind] = outcome(model, 2)
    return together(outcomes)


@fault("A line search that never succeeds")
def line_search(algorithm: type[Any]) -> str:
    if algorithm is PPO:
        return "searches no line"

    def too_far(*args: Any) -> th.Tensor:
        kl = kl_divergence(*args)
        return kl if th.is_grad_enabled() else kl + 1.0

    model = make(TRPO)
    actor = state(model.policy.action_net)
    with mock.patch.object(trpo, "kl_divergence", too_far):
        told = outcome(model, 15)
    return (
        f"{told}; the policy {'stays' if same(state(model.policy.action_net), actor) else 'moves'}, so does the radius"
    )


@fault("A policy of a million parameters")
def large_policy(algorithm: type[Any]) -> str:
    return outcome(make(algorithm, policy_kwargs={"net_arch": [1000, 1000]}), 2)


@fault("A critic that diverges: learning rate 1e9 and more for one update")
def diverging_critic(algorithm: type[Any]) -> str:
    def run(rate: float) -> str:
        rates = [1e-3]
        network = {"net_arch": [8], "activation_fn": th.nn.ReLU}
        model = make(algorithm, learning_rate=lambda _: rates[-1], policy_kwargs=network, n_steps=64)
        for one in (1e-3, rate):
            rates.append(one)
            learns(model, 1)
        rates.append(1e-3)
        critic = state(model.policy.value_net)
        told = outcome(model, 3)
        held = "ends" not in told and same(critic, state(model.policy.value_net))
        return told + (", the critic never moves again" if held else "")

    return together({f"{rate:g}": run(rate) for rate in (1e30, 1e20, 1e9)})


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """Writes beyond that fail, as they do on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@fault("Killed while a checkpoint is written")
def killed_while_saving(algorithm: type[Any]) -> str:
    with folder() as path:
        command = [sys.executable, "-m", "docs.stock_faults", "--die", algorithm.__name__, str(path)]
        subprocess.run(command, check=False, capture_output=True)
        newest = max(path.iterdir(), key=lambda file: int(file.name.split("_")[2]))
        return f"{newest.name}, of {newest.stat().st_size} bytes: {error_of(lambda: algorithm.load(newest))}"


def die_while_saving(name: str, path: str) -> None:
    model = make({"TRPO": TRPO, "PPO": PPO}[name])
    save = th.save

    def deadly(saved: Any, file: Any) -> None:
        save(saved, file)
        if model.num_timesteps >= 3 * 48:
            os.kill(os.getpid(), signal.SIGKILL)

    with mock.patch.object(th, "save", deadly):
        model.learn(10 * 48, callback=CheckpointCallback(N_STEPS, path))


@fault("Going on from a checkpoint, with the statistics and the environments reset alike")
def resumed(algorithm: type[Any]) -> str:
    env = VecNormalize(DummyVecEnv([healthy()] * 2))
    model = make(algorithm, env)
    learns(model, 3)
    with folder() as path:
        model.save(path / "model.zip")
        env.save(str(path / "statistics.pkl"))
        again = VecNormalize.load(str(path / "statistics.pkl"), DummyVecEnv([healthy()] * 2))
        other = algorithm.load(path / "model.zip", env=again)
    for one in (model, other):
        one.env.seed(1)
        one._last_obs = None
        learns(one, 1)
    return "the same run" if same(state(model.policy), state(other.policy)) else "another run"


@fault("A truncated file")
def truncated_file(algorithm: type[Any]) -> str:
    with folder() as path:
        file = path / "model.zip"
        make(algorithm).save(file)
        file.write_bytes(file.read_bytes()[: file.stat().st_size * 3 // 4])
        return error_of(lambda: algorithm.load(file))


@fault("A file of another algorithm")
def file_of_another(algorithm: type[Any]) -> str:
    with folder() as path:
        make(PPO if algorithm is TRPO else TRPO).save(path / "model")
        return error_of(lambda: algorithm.load(path / "model"))


@fault("A full disk")
def full_disk(algorithm: type[Any]) -> str:
    model = make(algorithm, VecNormalize(DummyVecEnv([healthy()] * 2)))
    with folder() as path, largest_file(3000):
        callback = CheckpointCallback(model.n_steps, str(path), save_vecnormalize=True)
        told = error_of(lambda: model.learn(10 * model.n_steps * model.n_envs, callback=callback))
        return f"{told}; left: {', '.join(file.name for file in path.iterdir())}"


@fault("model.save over an earlier file, on a full disk")
def save_over_a_file(algorithm: type[Any]) -> str:
    with folder() as path:
        model, file = make(algorithm), path / "model.zip"
        model.save(file)
        with largest_file(file.stat().st_size // 2):
            told = error_of(lambda: model.save(file))
        return f"{told}; the earlier file: {error_of(lambda: algorithm.load(file))}"


@fault("Arguments out of range")
def arguments_out_of_range(algorithm: type[Any]) -> str:
    of_both = [{"gamma": np.nan}, {"gae_lambda": np.nan}]
    of_one = [{"target_kl": -0.01}, {"cg_damping": -1.0}] if algorithm is TRPO else [{"clip_range": np.nan}]
    return together({str(case): error_of(lambda case=case: make(algorithm, **case)) for case in [*of_both, *of_one]})


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    print("| Fault | Stock TRPO | Stock PPO |\n|---|---|---|")
    for name in names or FAULTS:
        title, measure = FAULTS[name]
        print("|", title, "|", " | ".join(measure(algorithm) for algorithm in STOCK), "|", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--die"]:
        die_while_saving(*sys.argv[2:])
    else:
        main(sys.argv[1:])
