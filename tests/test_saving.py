"""Save, load, go on: bit for bit; and from the checkpoints of others."""

import copy
import io
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th
from sb3_contrib import TRPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO, PenaltyPPO
from tests.environments import ACTION_SPACES, ToyEnv, toy_vec_env
from tests.helpers import (
    ALGORITHMS,
    MEASURING,
    UPDATE,
    RandomState,
    Ruinous,
    all_finite,
    assert_healthy,
    assert_same,
    make_model,
    point_at,
    randomise,
    shared,
    state_of,
    train,
)
from tests.networks import LayeredExtractor

each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)

N_BEFORE, N_AFTER = 3, 2


def environment(kind: str) -> VecEnv:
    """A toy, wrapped."""
    if kind == "plain":
        return toy_vec_env()
    if kind == "discrete":
        return toy_vec_env(action_space=ACTION_SPACES["discrete"])
    # Rewards at once in a unit that stays, where a roll-back is to come.
    normalized = VecNormalize(toy_vec_env(), norm_reward=kind != "observations normalized")
    return VecFrameStack(normalized, 2) if kind == "stacked" else normalized


def everything(model: Any) -> dict[str, Any]:
    """All that decides how a model goes on."""
    parts = {
        "policy": state_of(model.policy),
        "optimizer": model.policy.optimizer.state_dict(),
        "counters": [model.num_timesteps, model._n_updates, model.n_invalid, model.n_invalid_in_a_row],
        "last_obs": model._last_obs,
    }
    vec_normalize = model.get_vec_normalize_env()
    if vec_normalize is not None:
        rms = vec_normalize.obs_rms, vec_normalize.ret_rms
        parts["statistics"] = [[one.mean, one.var, one.count] for one in rms]
    if hasattr(model, "judge"):
        parts["judge"] = model.judge.state_dict()
    return parts


def compiled(model: Any) -> Any:
    model.policy.compile(backend="eager")
    return model


def unchanged(model: Any) -> Any:
    return model


# The last update before it is saved is undone, or its step is pending and will be.
UNDONE = {"judge_class": Ruinous, "judge_kwargs": {"ruined": (1,)}, "n_steps": 64}
TO_BE_UNDONE = {"judge_class": Ruinous, "judge_kwargs": {"ruined": (2,)}, "n_steps": 64}
RESUMED = [
    *[(algorithm, "normalized", unchanged, {}) for algorithm in ALGORITHMS],
    (AdaptiveTRPO, "plain", unchanged, {}),
    (AdaptivePPO, "plain", unchanged, {"use_sde": True, "sde_sample_freq": 4}),
    (AdaptivePPO, "discrete", compiled, {}),
    (AdaptiveTRPO, "plain", unchanged, {"improvement_estimator": "episodes"}),
    (AdaptiveTRPO, "observations normalized", unchanged, UNDONE),
    (AdaptivePPO, "plain", unchanged, UNDONE),
    *[(algorithm, "plain", unchanged, TO_BE_UNDONE) for algorithm in MEASURING],
    (AdaptiveTRPO, "stacked", unchanged, {"improvement_estimator": "surrogate", "sub_sampling_factor": 2}),
    # More samples than the Fisher matrix needs.
    (AdaptiveTRPO, "plain", compiled, {"n_steps": 160}),
    (AdaptivePPO, "stacked", unchanged, {"rollback_z": 0.1, "clip_range_vf": 0.2}),
]


@pytest.mark.parametrize(
    ("algorithm", "kind", "change", "arguments"), RESUMED, ids=lambda value: getattr(value, "__name__", None)
)
def test_loaded_model_goes_on_as_the_uninterrupted_one(
    tmp_path: Path, algorithm: type[Any], kind: str, change: Callable[[Any], Any], arguments: dict[str, Any]
) -> None:
    def new_model(env: VecEnv) -> Any:
        model = change(make_model(algorithm, env, **arguments))
        if "judge_class" in arguments:
            point_at(model.policy, 0.5)
        return model

    uninterrupted = new_model(environment(kind))
    train(uninterrupted, N_BEFORE + N_AFTER)

    env = environment(kind)
    first = new_model(env)
    train(first, N_BEFORE)
    at_save, random_state = everything(first), RandomState()
    first.save(tmp_path / "model")
    randomise(first.policy)  # whatever is still shared with the first would show
    second = change(algorithm.load(tmp_path / "model", env=env, force_reset=False, device="cpu"))
    if "judge_class" in arguments:  # what this judge of the tests' counts is its own
        second.judge.n_expected = first.judge.n_expected
    random_state.restore()

    assert_same(everything(second), at_save)
    updates = train(second, N_AFTER, reset_num_timesteps=False)
    assert_same(everything(second), everything(uninterrupted))
    assert len(updates) == N_AFTER
    # What the comparison rests on: there was something to lose.
    if "judge_class" in arguments:
        assert (first.judge.rejected is not None) == (arguments is UNDONE)
        assert second.region.n_rollbacks == 1
    elif algorithm in MEASURING and arguments.get("improvement_estimator") != "surrogate":
        assert first.judge.pending is not None
        assert "train/rho" in updates[0].logged


@pytest.mark.parametrize("algorithm", MEASURING)
def test_trust_region_survives(tmp_path: Path, algorithm: type[Any]) -> None:
    model = make_model(algorithm)
    initial = model.region
    train(model, 4)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    assert loaded.region == model.region != initial
    assert loaded.region.weight > 0.0
    assert loaded.judge.pending.promise == model.judge.pending.promise
    assert_same(loaded.judge.state_dict(), model.judge.state_dict())
    assert loaded.judge.rule == model.judge.rule


COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "cloudpickle": lambda model: cloudpickle.loads(cloudpickle.dumps(model)),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize(("algorithm", "way"), shared(reversed(COPIES)))
def test_copied_as_stock_models_are(algorithm: type[Any], way: str) -> None:
    """Model and environment together; the copy goes on as the original does."""
    env = DummyVecEnv([ToyEnv] * 2)
    model = make_model(algorithm, env)
    train(model, 3)
    with th.no_grad():  # without which stock PPO cannot be deep-copied after training
        model.policy.get_distribution(th.zeros(1, 3))
    copied = COPIES[way](model)
    assert_same(everything(copied), everything(model))
    random_state = RandomState()
    train(model, 2, reset_num_timesteps=False)
    random_state.restore()
    train(copied, 2, reset_num_timesteps=False)
    assert_same(everything(copied), everything(model))


def contents(model: Any) -> tuple[int, dict[str, Any]]:
    """Bytes of what is not tensors, and the tensors by file."""
    model.save(file := io.BytesIO())
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith(".pth")]
        tensors = {name: th.load(io.BytesIO(archive.read(name)), weights_only=True) for name in names}
        return len(archive.read("data")), tensors


class WithTable(LayeredExtractor):
    """Has a table that is no parameter."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("table", th.ones(1000))


def flat(value: Any, name: str = "") -> dict[str, th.Tensor]:
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in flat(part, f"{name}.{key}").items()}
    return {name: value} if isinstance(value, th.Tensor) and value.numel() > 1 else {}


@pytest.mark.parametrize(("algorithm", "rejected"), shared([False, True], *MEASURING))
def test_a_file_holds_nothing_twice(algorithm: type[Any], rejected: bool) -> None:
    kwargs: dict[str, Any] = {
        "features_extractor_class": WithTable,
        "features_extractor_kwargs": {"layer": th.nn.LayerNorm},
    }
    judged = {"judge_class": Ruinous, "judge_kwargs": {"ruined": (1,)}} if algorithm in MEASURING else {}
    model = make_model(algorithm, n_steps=64, policy_kwargs=kwargs, **(judged if rejected else {}))
    point_at(model.policy, 0.5)
    model.policy.features_extractor.layers[0].requires_grad_(False)
    # Adam over what is trained, as stock's would be: with nothing that changes, nothing is kept.
    train(model, 3)
    stock = make_model(TRPO if algorithm in (NPG, AdaptiveTRPO) else PPO, n_steps=64, policy_kwargs=kwargs)
    stock.learn(2 * UPDATE)

    size, tensors = contents(model)
    stock_size, stock_tensors = contents(stock)
    assert size < stock_size + 3000
    assert set(tensors) - set(stock_tensors) == ({"judge.pth"} if algorithm in MEASURING else set())
    if algorithm not in MEASURING:
        return
    held = flat(tensors["judge.pth"])
    assert (model.judge.rejected is not None) == rejected
    present = flat({"": tensors["policy.pth"], "optimizer": tensors["policy.optimizer.pth"]["state"]})
    for name, tensor in held.items():
        twins = [key for key, other in present.items() if other.shape == tensor.shape and th.equal(other, tensor)]
        assert not twins or not tensor.any(), (name, twins)
    n_held = sum(tensor.numel() if tensor.dtype != th.uint8 else tensor.numel() // 4 for tensor in held.values())
    n_trained = sum(parameter.numel() for parameter in model.policy.parameters() if parameter.requires_grad)
    moments = 2 if algorithm is AdaptivePPO and not rejected else 0
    assert n_held <= (1 + moments) * n_trained + 64 + 2000 * moments  # a text of 32; what encloses moments


@each_algorithm
def test_load_without_environment(tmp_path: Path, algorithm: type[Any]) -> None:
    model = make_model(algorithm)
    train(model)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    observations = np.stack([model.observation_space.sample() for _ in range(5)])
    assert_same(loaded.predict(observations, deterministic=True)[0], model.predict(observations, deterministic=True)[0])

    loaded.set_env(toy_vec_env())
    assert_healthy(loaded, train(loaded))


@each_algorithm
def test_load_from_a_stream_and_into_more_environments(tmp_path: Path, algorithm: type[Any]) -> None:
    model = make_model(algorithm)
    train(model)
    with (tmp_path / "model.zip").open("wb") as file:
        model.save(file)
    with (tmp_path / "model.zip").open("rb") as file:
        loaded = algorithm.load(file, env=toy_vec_env(5), device="cpu")
    assert loaded.n_envs == 5
    updates = train(loaded)
    assert_healthy(loaded, updates)
    assert "train/rho" not in updates[0].logged  # other environments: the pending step cannot be judged


@each_algorithm
def test_load_validates_what_it_is_given(tmp_path: Path, algorithm: type[Any]) -> None:
    model = make_model(algorithm)
    model.save(tmp_path / "model")
    assert algorithm.load(tmp_path / "model", gamma=0.5).gamma == 0.5
    with pytest.raises(ValueError, match=r"gamma must be >= 0 and <= 1, got 1\.5"):
        algorithm.load(tmp_path / "model", gamma=1.5)


@each_algorithm
def test_load_as_enjoy_does(tmp_path: Path, algorithm: type[Any]) -> None:
    """RL Zoo's ``enjoy`` replaces what it need not unpickle."""
    model = make_model(algorithm)
    train(model)
    model.save(tmp_path / "model")
    custom_objects = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    loaded = algorithm.load(tmp_path / "model", custom_objects=custom_objects, device="cpu", seed=3)
    observations = np.stack([model.observation_space.sample() for _ in range(5)])
    assert_same(loaded.predict(observations, deterministic=True)[0], model.predict(observations, deterministic=True)[0])
    # The pending step and the radius are still there for who goes on after all.
    if algorithm is AdaptiveTRPO:
        assert loaded.region == model.region


@each_algorithm
def test_zero_rates_leave_the_policy_as_it_is(tmp_path: Path, algorithm: type[Any]) -> None:
    model = make_model(algorithm)
    model.save(tmp_path / "model")
    zeros = {"learning_rate": 0.0, "clip_range": lambda _: 0.0}
    loaded = algorithm.load(tmp_path / "model", env=toy_vec_env(), custom_objects=zeros, device="cpu")
    critic = state_of(loaded.policy.value_net)
    train(loaded, 2)
    assert_same(state_of(loaded.policy.value_net), critic)
    if algorithm in (AdaptivePPO, PenaltyPPO):
        assert_same(state_of(loaded.policy), state_of(model.policy))


@each_algorithm
def test_get_and_set_parameters(algorithm: type[Any]) -> None:
    model, other = make_model(algorithm), make_model(algorithm, seed=1)
    train(model)
    train(other, 2)
    other.set_parameters(model.get_parameters())
    assert_same(state_of(other.policy), state_of(model.policy))
    assert_same(other.policy.optimizer.state_dict(), model.policy.optimizer.state_dict())
    if algorithm in MEASURING:
        assert_same(other.judge.state_dict(), model.judge.state_dict())
    assert_healthy(other, train(other, reset_num_timesteps=False))


@pytest.mark.parametrize("algorithm", MEASURING)
def test_parameters_of_any_values_are_taken(algorithm: type[Any]) -> None:
    """As SB3's own suite does: all but the last of each part drawn anew, none of it looked at before it is used."""
    model = make_model(algorithm)
    train(model)
    original = copy.deepcopy(model.get_parameters()["judge"])
    drawn = {name: th.rand_like(tensor) for name, tensor in list(original.items())[:-1]}
    model.set_parameters({**model.get_parameters(), "judge": drawn}, exact_match=False)
    present = model.get_parameters()["judge"]
    assert present.keys() == original.keys()
    assert all(not th.equal(present[name], original[name]) for name in drawn)
    with pytest.raises(RuntimeError, match="Missing key"):
        model.set_parameters({**model.get_parameters(), "judge": drawn})


@pytest.mark.parametrize("algorithm", MEASURING)
def test_foreign_parameters_are_not_judged(algorithm: type[Any]) -> None:
    """Judged under other parameters a step would be credited with what they do."""
    model, other = make_model(algorithm), make_model(PPO)
    train(model)
    region = model.region
    model.set_parameters(other.get_parameters(), exact_match=False)
    (update,) = train(model, 1, reset_num_timesteps=False)
    assert "train/rho" not in update.logged
    assert model.region == replace(region, factor=1.0, rolled_back=False)


STOCK: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "ppo": (PPO, {"clip_range": 0.3, "target_kl": 0.05, "n_epochs": 3}),
    "trpo": (TRPO, {"target_kl": 0.02, "cg_damping": 0.05, "cg_max_steps": 7}),
    "a2c": (A2C, {}),
}


def stock_model(name: str, **kwargs: Any) -> Any:
    stock, arguments = STOCK[name]
    if stock is A2C:
        # No mini-batches in A2C.
        model = A2C("MlpPolicy", toy_vec_env(), n_steps=32, policy_kwargs={"net_arch": [8]}, seed=5, device="cpu")
    else:
        model = make_model(stock, seed=5, **{**arguments, **kwargs})
    return model.learn(3 * UPDATE)


@pytest.mark.parametrize(("algorithm", "name", "from_file"), shared([("ppo", True), ("trpo", False)]))
def test_set_parameters_from_stock(tmp_path: Path, algorithm: type[Any], name: str, from_file: bool) -> None:
    stock = stock_model(name)
    model = make_model(algorithm)
    if from_file:
        stock.save(tmp_path / "stock")
        model.set_parameters(tmp_path / "stock.zip")
    else:
        model.set_parameters(stock.get_parameters(), exact_match=False)
    assert_same(state_of(model.policy), state_of(stock.policy))
    assert_healthy(model, train(model))


@pytest.mark.parametrize(("algorithm", "name"), shared(STOCK, AdaptiveTRPO, AdaptivePPO))
def test_from_stock(tmp_path: Path, algorithm: type[Any], name: str) -> None:
    stock = stock_model(name)
    stock.save(tmp_path / "stock")
    model = algorithm.from_stock(tmp_path / "stock", toy_vec_env(), device="cpu", batch_size=32, seed=2)

    assert_same(state_of(model.policy), state_of(stock.policy))
    observations = np.stack([model.observation_space.sample() for _ in range(5)])
    assert_same(model.predict(observations, deterministic=True)[0], stock.predict(observations, deterministic=True)[0])
    assert (model.n_steps, model.gamma, model.gae_lambda) == (stock.n_steps, stock.gamma, stock.gae_lambda)
    assert model.batch_size == 32
    assert_healthy(model, train(model))


def test_load_says_how_to_go_on_from_another_algorithm(tmp_path: Path) -> None:
    for stock in ("ppo", *ALGORITHMS):
        model = stock_model(stock) if isinstance(stock, str) else make_model(stock)
        model.save(tmp_path / "model")
        for algorithm in ALGORITHMS:
            if algorithm is not stock:
                message = rf"saved by {algorithm.__name__}, got .*model.*from_stock\(path, env\)"
                with pytest.raises(ValueError, match=message):
                    algorithm.load(tmp_path / "model")


def test_from_stock_takes_over_the_optimiser_of_ppo(tmp_path: Path) -> None:
    stock = stock_model("ppo")
    stock.save(tmp_path / "ppo")
    model = AdaptivePPO.from_stock(tmp_path / "ppo", toy_vec_env())
    assert (model.n_epochs, model.target_kl, model.clip_range(1.0)) == (3, 0.05, 0.3)
    assert_same(model.policy.optimizer.state_dict(), stock.policy.optimizer.state_dict())
    # TRPO's Adam and ours fit a critic; PPO's moved the actor as well.
    assert not AdaptiveTRPO.from_stock(tmp_path / "ppo", toy_vec_env()).policy.optimizer.state_dict()["state"]


@each_algorithm
def test_from_stock_with_gsde_and_statistics(tmp_path: Path, algorithm: type[Any]) -> None:
    env = VecNormalize(toy_vec_env())
    stock = make_model(
        PPO, env, use_sde=True, sde_sample_freq=4, policy_kwargs={"net_arch": [8], "squash_output": True}
    )
    stock.learn(2 * UPDATE)
    stock.save(tmp_path / "ppo")
    env.save(str(tmp_path / "statistics.pkl"))
    again = VecNormalize.load(str(tmp_path / "statistics.pkl"), toy_vec_env())
    model = algorithm.from_stock(tmp_path / "ppo", again, device="cpu")
    assert model.use_sde
    assert model.policy.squash_output
    assert_same(state_of(model.policy), state_of(stock.policy))
    assert_healthy(model, train(model))


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@each_algorithm
def test_from_stock_says_what_it_cannot_use(tmp_path: Path, algorithm: type[Any]) -> None:
    env = toy_vec_env(action_space=ACTION_SPACES["discrete"])
    DQN("MlpPolicy", env, buffer_size=10, device="cpu").save(tmp_path / "dqn")
    with pytest.raises(ValueError, match=r"ActorCriticPolicy.*DQNPolicy"):
        algorithm.from_stock(tmp_path / "dqn", env)

    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "not a model")
    with pytest.raises(ValueError, match=r"path must name a model saved by Stable-Baselines3, got .*other"):
        algorithm.from_stock(tmp_path / "other", env)


@pytest.mark.parametrize("file", ["data", "policy.pth", "policy.optimizer.pth", "judge.pth"])
def test_file_without_a_part(tmp_path: Path, file: str) -> None:
    """Half a model is refused by name."""
    model = make_model(AdaptiveTRPO)
    train(model)
    model.save(tmp_path / "whole")
    with zipfile.ZipFile(tmp_path / "whole.zip") as whole, zipfile.ZipFile(tmp_path / "part.zip", "w") as part:
        assert file in whole.namelist()
        for name in whole.namelist():
            if name != file:
                part.writestr(name, whole.read(name))
    with pytest.raises((ValueError, KeyError, AssertionError), match=r"policy|optimizer|data|judge"):
        AdaptiveTRPO.load(tmp_path / "part")


@each_algorithm
def test_exclude_and_include(tmp_path: Path, algorithm: type[Any]) -> None:
    model = make_model(algorithm)
    train(model)
    model.note = "mine"
    model.save(tmp_path / "model", exclude=["gamma", "note"], include=["verbose"])
    loaded = algorithm.load(tmp_path / "model")
    assert not hasattr(loaded, "note")
    assert loaded.gamma == 0.99  # the constructor's
    assert loaded.verbose == model.verbose
    model.save(tmp_path / "with_note")
    assert algorithm.load(tmp_path / "with_note").note == "mine"


@each_algorithm
def test_checkpoint_loads_without_unpickling_tensors(tmp_path: Path, algorithm: type[Any]) -> None:
    """Tensors and plain numbers alone, so that ``torch.load`` may refuse to run code; no environment, no graph."""
    model = make_model(algorithm)
    train(model)
    model.save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        parts = [name for name in archive.namelist() if name.endswith(".pth")]
        for name in parts:
            with archive.open(name) as file:
                assert th.load(file, weights_only=True) is not None
    assert ("judge.pth" in parts) == (algorithm in MEASURING)
    assert all_finite(state_of(algorithm.load(tmp_path / "model").policy))
