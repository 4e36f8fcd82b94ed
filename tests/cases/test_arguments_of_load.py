"""What the user gives to ``load``, or sets between two learns, is what counts."""

import io
from typing import Any

import pytest

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO
from tests.environments import toy_vec_env
from tests.helpers import ALGORITHMS, MEASURING, make_model, train


def loaded(algorithm: type[Any], n_updates: int = 3, given: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    """Trained with some arguments, saved, loaded with others."""
    model = make_model(algorithm, **(given or {}))
    train(model, n_updates)
    model.save(file := io.BytesIO())
    file.seek(0)
    return algorithm.load(file, env=model.get_env(), device="cpu", **kwargs)


def kept(model: Any) -> Any:
    model.learn(64, reset_num_timesteps=False)
    return model


@pytest.mark.parametrize(
    "arguments",
    [{"target_kl": 0.3}, {"target_kl": 0.3, "radius_rule": "fixed"}, {"target_kl": 0.3, "radius_bounds": (0.2, 0.5)}],
    ids=str,
)
def test_radius_of_adaptive_trpo(arguments: dict[str, Any]) -> None:
    model = kept(loaded(AdaptiveTRPO, **arguments))
    lower, upper = model.radius_bounds
    assert model.target_kl == 0.3
    assert lower <= model.region.radius <= upper
    assert model.region.radius > 0.1
    if "radius_rule" in arguments:
        assert model.region.radius == 0.3


@pytest.mark.parametrize("algorithm", MEASURING)
def test_bounds_alone(algorithm: type[Any]) -> None:
    given = {"radius_rule": "textbook"}
    arguments: dict[str, Any] = {"radius_bounds": (0.0099, 0.0101)} if algorithm is AdaptiveTRPO else {}
    arguments = arguments or {"radius_bounds": (0.99, 1.01)}
    model = kept(loaded(algorithm, given=given, **arguments))
    assert arguments["radius_bounds"][0] <= model.region.radius <= arguments["radius_bounds"][1]
    assert (model.judge.rule.minimum, model.judge.rule.maximum) == arguments["radius_bounds"]


@pytest.mark.parametrize("algorithm", MEASURING)
def test_another_rule(algorithm: type[Any]) -> None:
    model = kept(loaded(algorithm, given={"radius_rule": "textbook"}, radius_rule="fixed"))
    assert model.judge.rule.kind == "fixed"
    assert model.region.radius == (model.target_kl if algorithm is AdaptiveTRPO else 1.0)


@pytest.mark.parametrize("clip_range", [0.05, lambda left: 0.05 + 0.0 * left], ids=["number", "schedule"])
def test_clip_range_of_adaptive_ppo(clip_range: Any) -> None:
    model = loaded(AdaptivePPO, given={"radius_rule": "textbook"}, clip_range=clip_range)
    (update,) = train(model, 1, reset_num_timesteps=False)
    # The factor starts anew with it; the step before was another's, but of this policy.
    assert update.logged["train/clip_range"] == pytest.approx(0.05 * update.logged["train/radius"])
    assert 0.25 <= update.logged["train/radius"] <= 2.0


def test_the_same_clip_range_again_keeps_the_factor() -> None:
    model = loaded(AdaptivePPO, given={"radius_rule": "textbook"}, clip_range=0.2)
    before = model.region
    model._heed_arguments()
    assert model.region == before
    assert before.radius != 1.0


@pytest.mark.parametrize("algorithm", MEASURING)
def test_nothing_given_keeps_everything(algorithm: type[Any]) -> None:
    model = loaded(algorithm, given={"radius_rule": "textbook"})
    before = model.region
    model._heed_arguments()
    assert model.region == before
    assert before.n_judged == 2


@pytest.mark.parametrize("algorithm", MEASURING)
def test_other_arguments_of_the_judge(algorithm: type[Any]) -> None:
    model = kept(loaded(algorithm, radius_window=7, rollback_z=None, improvement_estimator="surrogate"))
    rule = model.judge.rule
    assert (rule.window, rule.rollback_z, model.judge.estimator) == (7, None, "surrogate")
    assert model.judge.pending is None


def test_arguments_set_by_hand_between_two_learns() -> None:
    model = make_model(AdaptiveTRPO)
    train(model, 3)
    model.target_kl = 0.2
    (update,) = train(model, 1, reset_num_timesteps=False)
    assert 0.1 < update.logged["train/radius"] <= 0.3
    model.radius_rule = "fixed"
    assert train(model, 2, reset_num_timesteps=False)[-1].logged["train/radius"] == 0.2
    model.radius_rule, model.radius_bounds = "textbook", (0.19, 0.21)
    assert 0.19 <= train(model, 2, reset_num_timesteps=False)[-1].logged["train/radius"] <= 0.21
    model.rollback_z = None
    train(model, 1, reset_num_timesteps=False)
    assert model.judge.rule.rollback_z is None


def test_clip_range_set_by_hand() -> None:
    model = make_model(AdaptivePPO, radius_rule="fixed")
    train(model, 2)
    model.clip_range = lambda _: 0.01
    (update,) = train(model, 1, reset_num_timesteps=False)
    assert update.logged["train/clip_range"] == pytest.approx(0.01)
    model.clip_range = lambda _: 0.03
    (update,) = train(model, 1, reset_num_timesteps=False)
    assert update.logged["train/clip_range"] == pytest.approx(0.03)


def test_step_size_of_npg() -> None:
    model = loaded(NPG, given={"actor_step_size": 1.0}, actor_step_size=0.0)
    (update,) = train(model, 1, reset_num_timesteps=False)
    assert update.logged["train/kl_divergence"] == 0.0


@pytest.mark.parametrize(("name", "value"), [("target_kl", -1.0), ("radius_bounds", (2.0, 1.0)), ("radius_window", 0)])
def test_what_is_out_of_range_is_refused_by_load(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        loaded(AdaptiveTRPO, 1, **{name: value})


def test_what_is_out_of_range_is_refused_when_set_by_hand() -> None:
    model = make_model(AdaptiveTRPO)
    model.radius_window = 0
    with pytest.raises(ValueError, match="radius_window must be"):
        model.learn(64)


@pytest.mark.parametrize("arguments", [{"n_steps": 1}, {"n_steps": 8, "sub_sampling_factor": 8}], ids=str)
def test_trained_on_many_environments_and_looked_at_in_one(arguments: dict[str, Any]) -> None:
    """Learning goes on where it can."""
    algorithms = ALGORITHMS if len(arguments) == 1 else (NPG, AdaptiveTRPO)
    for algorithm in algorithms:
        model = make_model(algorithm, toy_vec_env(16), batch_size=16, **arguments)
        train(model, 2)
        model.save(file := io.BytesIO())
        alone = algorithm.load(file, env=toy_vec_env(1), device="cpu")
        alone.predict(alone.get_env().reset())
        with pytest.raises(ValueError, match=r"n_steps \* n_envs must be >= 2|sub_sampling_factor must leave"):
            alone.learn(8)
        train(algorithm.load(file, env=toy_vec_env(16), device="cpu"), 1)
