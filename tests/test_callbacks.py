"""SB3's callbacks, the progress bar, and what is logged under ``train/``."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO, PenaltyPPO
from sb3_trustregion.core.line_search import StepStatus
from tests.environments import ACTION_SPACES, toy_vec_env
from tests.helpers import (
    ALGORITHMS,
    MEASURING,
    N_ENVS,
    N_STEPS,
    UPDATE,
    Updates,
    assert_healthy,
    assert_same,
    make_model,
    shared,
    state_of,
    train,
)

each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


@each_algorithm
def test_eval_and_checkpoint(tmp_path: Path, algorithm: type[Any]) -> None:
    model = make_model(algorithm, VecNormalize(toy_vec_env()))
    evaluation = EvalCallback(
        VecNormalize(toy_vec_env(), training=False), best_model_save_path=str(tmp_path), eval_freq=N_STEPS, verbose=0
    )
    checkpoint = CheckpointCallback(N_STEPS + 3, str(tmp_path / "checkpoints"), save_vecnormalize=True)
    assert_healthy(model, train(model, 3, callbacks=[evaluation, checkpoint]))

    assert evaluation.n_calls == 3 * N_STEPS
    assert np.isfinite(evaluation.best_mean_reward)
    n_timesteps = (N_STEPS + 3) * N_ENVS
    saved = {path.name for path in (tmp_path / "checkpoints").glob("rl_model_*_steps.zip")}
    assert saved == {f"rl_model_{n}_steps.zip" for n in (n_timesteps, 2 * n_timesteps)}
    # Saved in the middle of a rollout, of which nothing is kept.
    env = VecNormalize.load(
        str(tmp_path / "checkpoints" / f"rl_model_vecnormalize_{n_timesteps}_steps.pkl"), toy_vec_env()
    )
    loaded = algorithm.load(tmp_path / "checkpoints" / f"rl_model_{n_timesteps}_steps", env=env, device="cpu")
    assert loaded.num_timesteps == n_timesteps
    assert_healthy(loaded, train(loaded, 2, reset_num_timesteps=False))
    best = algorithm.load(tmp_path / "best_model", device="cpu")
    assert best.num_timesteps in {N_STEPS * N_ENVS * n for n in (1, 2, 3)}


@each_algorithm
def test_stopped_early_and_gone_on(algorithm: type[Any]) -> None:
    model = make_model(algorithm)
    train(model, 2)
    before = state_of(model.policy)
    model.learn(
        10 * UPDATE, callback=lambda _locals, _globals: model.num_timesteps < 2 * UPDATE + 20, reset_num_timesteps=False
    )
    assert model.num_timesteps == 2 * UPDATE + 20
    assert_same(state_of(model.policy), before)  # the cut rollout taught nothing

    updates = train(model, 3, reset_num_timesteps=False)
    assert_healthy(model, updates)
    assert len(updates) == 3
    if algorithm in MEASURING:
        # The environments went on where they were, and so did the policy: the step from before is judged after all.
        assert "train/rho" in updates[0].logged
    assert_healthy(model, train(model, 2))


@pytest.mark.parametrize("algorithm", MEASURING)
def test_new_learn_drops_the_pending_step(algorithm: type[Any]) -> None:
    """Environments are reset: the next rollout differs in phase, not by the policy alone."""
    model = make_model(algorithm)
    train(model, 2)
    judged = model.region.n_judged
    updates = train(model, 2)
    assert "train/rho" not in updates[0].logged
    assert "train/rho" in updates[1].logged
    assert model.region.n_judged == judged + 1


@pytest.mark.parametrize("algorithm", MEASURING)
def test_another_environment_drops_the_pending_step(algorithm: type[Any]) -> None:
    model = make_model(algorithm)
    train(model, 2)
    model.set_env(toy_vec_env(reward=5.0))
    assert model.judge.pending is None
    assert "train/rho" not in train(model, 1, reset_num_timesteps=False)[0].logged


@each_algorithm
def test_stop_training_callbacks(algorithm: type[Any]) -> None:
    model = make_model(algorithm)
    model.learn(100 * UPDATE, callback=StopTrainingOnMaxEpisodes(2))
    assert 0 < model.num_timesteps < 100 * UPDATE
    reached = EvalCallback(
        toy_vec_env(), callback_on_new_best=StopTrainingOnRewardThreshold(-100.0), eval_freq=10, verbose=0
    )
    model.learn(100 * UPDATE, callback=reached)
    assert model.num_timesteps == 10 * N_ENVS


class Counter(BaseCallback):
    """Counts steps, and sees what SB3 shows to callbacks."""

    def _on_step(self) -> bool:
        assert {"rewards", "dones", "infos", "new_obs", "actions"} <= self.locals.keys()
        assert self.training_env is self.model.get_env()
        return True


@pytest.mark.parametrize(("algorithm", "kind"), shared(["list", "one", "CallbackList", "function", "nested", "none"]))
def test_every_form_of_callback(algorithm: type[Any], kind: str) -> None:
    seen: list[int] = []
    counters = [Counter(), Counter()]
    callback = {
        "one": counters[0],
        "list": list(counters),
        "CallbackList": CallbackList(list(counters)),
        "function": lambda local_variables, _globals: seen.append(local_variables["n_steps"]) or True,
        "nested": EveryNTimesteps(N_ENVS, counters[0]),
        "none": None,
    }[kind]
    model = make_model(algorithm)
    start = state_of(model.policy)
    model.learn(2 * UPDATE, callback=callback)

    calls = {"function": [len(seen)], "none": []}.get(kind, [c.n_calls for c in counters if c.n_calls])
    assert calls == [2 * N_STEPS] * {"none": 0, "list": 2, "CallbackList": 2}.get(kind, 1)
    assert any(not (tensor == start[name]).all() for name, tensor in state_of(model.policy).items())


@pytest.mark.filterwarnings("ignore:rich is experimental")
@each_algorithm
def test_progress_bar(algorithm: type[Any], capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(algorithm)
    model.learn(2 * UPDATE, progress_bar=True)
    assert model.num_timesteps == 2 * UPDATE
    shown = capsys.readouterr()
    assert f"{2 * UPDATE}/{2 * UPDATE}" in shown.out + shown.err


class SavesMidRollout(BaseCallback):
    """:param path: where to"""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def _on_step(self) -> bool:
        if self.n_calls == 2 * N_STEPS + 5:
            self.model.save(self.path)
            self.saved = state_of(self.model.policy)
        return True


@each_algorithm
def test_saved_in_the_middle_of_a_rollout(tmp_path: Path, algorithm: type[Any]) -> None:
    model, undisturbed = make_model(algorithm), make_model(algorithm)
    callback = SavesMidRollout(tmp_path / "model")
    model.set_random_seed(0)
    train(model, 4, callbacks=[callback])
    undisturbed.set_random_seed(0)
    train(undisturbed, 4)
    assert_same(state_of(model.policy), state_of(undisturbed.policy))

    loaded = algorithm.load(tmp_path / "model", env=toy_vec_env(), device="cpu")
    assert_same(state_of(loaded.policy), callback.saved)
    assert_healthy(loaded, train(loaded, 2, reset_num_timesteps=False))


# What the package's documentation explains; one test knows all the names.
COMMON = {"step_status", "n_invalid", "n_faulty_steps", "kl_divergence", "value_loss"}
COMMON |= {"explained_variance", "n_updates", "learning_rate"}
OF_SURROGATE = {"policy_objective", "same_batch_ratio"}
NATURAL = OF_SURROGATE | {"cg_steps", "cg_residual", "n_samples"}
TRUST_REGION = {"radius", "n_rollbacks", "n_feedback_decisions"}
JUDGED = {"rho", "pooled_rho", "pooled_rho_stderr", "pooled_reliability"}
JUDGED |= {"actual_improvement", "predicted_improvement", "improvement_stderr"}
OF_STOCK = {"kl_divergence_loss", "is_line_search_success"}
LOGGED = {
    NPG: COMMON | NATURAL | OF_STOCK,
    AdaptiveTRPO: COMMON | NATURAL | TRUST_REGION | {"line_search_steps", "reliability"} | OF_STOCK,
    AdaptivePPO: COMMON
    | OF_SURROGATE
    | TRUST_REGION
    | {"clip_range", "reliability", "clip_fraction", "approx_kl", "loss"},
    PenaltyPPO: COMMON | {"n_samples", "kl_coef", "approx_kl", "policy_gradient_loss", "entropy_loss", "loss"},
}


@pytest.mark.parametrize(
    ("algorithm", "action"),
    [*shared(ACTION_SPACES), *((algorithm, "discrete") for algorithm in ALGORITHMS if algorithm is not AdaptiveTRPO)],
)
def test_logged_values(algorithm: type[Any], action: str) -> None:
    model = make_model(algorithm, toy_vec_env(action_space=ACTION_SPACES[action]))
    updates = train(model, 4)
    judged = JUDGED if algorithm in MEASURING else set()
    std = {"std"} if action == "box" else set()
    for number, update in enumerate(updates):
        if update.status is StepStatus.REJECTED:
            continue
        expected = {f"train/{name}" for name in LOGGED[algorithm] | std | (judged if number else set())}
        assert expected <= update.logged.keys()
        for key in expected:
            assert math.isfinite(update.logged[key]), key
        # A tensor or a numpy number here would not survive every output format.
        assert {type(update.logged[key]) for key in expected} <= {int, float, np.float32, np.float64}
    assert ("train/std" in updates[-1].logged) == (action == "box")


@pytest.mark.parametrize("algorithm", MEASURING)
def test_logged_values_agree_with_each_other(algorithm: type[Any]) -> None:
    model = make_model(algorithm)
    updates = train(model, 5)
    assert updates[-1].logged["train/n_rollbacks"] == model.region.n_rollbacks
    assert updates[-1].logged["train/radius"] == model.region.radius
    for update in updates[1:]:
        logged = update.logged
        ratio = logged["train/actual_improvement"] / logged["train/predicted_improvement"]
        assert logged["train/rho"] == pytest.approx(ratio)
        assert logged["train/improvement_stderr"] > 0.0
        assert update.kl == pytest.approx(logged["train/kl_divergence"], rel=1e-2, abs=1e-7)


@each_algorithm
def test_log_files(tmp_path: Path, algorithm: type[Any]) -> None:
    model = make_model(algorithm)
    model.set_logger(configure(str(tmp_path), ["csv", "json", "log", "tensorboard"]))
    model.learn(4 * UPDATE)
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    # SB3 dumps before it trains: what an update logged is in the next row.
    assert rows[-1]["train/step_status"] in {"1", "0", "-1"}
    assert rows[-1]["train/n_updates"] == str(3 * (getattr(model, "n_epochs", 1)))
    assert list(tmp_path.glob("events.out.tfevents.*"))


@pytest.mark.parametrize(("algorithm", "name"), shared([None, "mine"]))
def test_tensorboard_run_is_named_after_the_class(tmp_path: Path, algorithm: type[Any], name: str | None) -> None:
    model = make_model(algorithm, tensorboard_log=str(tmp_path))
    for _ in range(2):
        model.learn(UPDATE, **({} if name is None else {"tb_log_name": name}))
    run = name or algorithm.__name__
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{run}_1", f"{run}_2"]


@each_algorithm
def test_log_interval(tmp_path: Path, algorithm: type[Any]) -> None:
    model = make_model(algorithm)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    updates = Updates()
    model.learn(6 * UPDATE, callback=updates, log_interval=3)
    with (tmp_path / "progress.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2
    assert len(updates.made) == 6


def test_a_target_that_a_callback_anneals_is_the_radius_of_each_step() -> None:
    class Annealed(BaseCallback):
        targets = iter([0.02, 0.02, 1e-4, 0.05, 0.0])

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            self.model.target_kl = next(self.targets)  # type: ignore[attr-defined]

    model = make_model(AdaptiveTRPO, rollback_z=None)
    updates = train(model, 5, callbacks=[Annealed()])
    radii = [update.logged["train/radius"] for update in updates]
    assert [radii[0], *radii[2:]] == [0.02, 1e-4, 0.05, model.radius_bounds[0]]
    assert [math.isfinite(update.logged["train/actual_improvement"]) for update in updates[1:]] == [True] * 4
    for target in (-1.0, math.nan):
        model.target_kl = target
        with pytest.raises(ValueError, match=f"target_kl must be >= 0, got {target}"):
            model.learn(UPDATE)
