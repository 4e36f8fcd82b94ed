"""What the user has frozen stays, whenever that was; what is free learns."""

from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO, PenaltyPPO
from sb3_trustregion.core.line_search import StepStatus
from tests.helpers import ALGORITHMS, MEASURING, UPDATE, assert_same, make_model, shared, state_of, train
from tests.networks import LayeredExtractor

each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
pytestmark = pytest.mark.filterwarnings("ignore:.*updates without a policy step")

EXTRACTOR = {
    "net_arch": [8],
    "features_extractor_class": LayeredExtractor,
    "features_extractor_kwargs": {"layer": th.nn.LayerNorm},
}


def part(*names: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(names)


ACTOR = part("action_net", "log_std", "mlp_extractor.policy_net")
CRITIC = part("value_net", "mlp_extractor.value_net")
PARTS = {
    "extractor": part("features_extractor"),
    "log_std": part("log_std"),
    "all but log_std": lambda name: not name.startswith("log_std"),
    "one layer of the actor": part("mlp_extractor.policy_net"),
    "one layer of the critic": part("mlp_extractor.value_net"),
    "all that acts": lambda name: not CRITIC(name),
    "the critic": CRITIC,
}


def freeze(model: Any, chosen: Callable[[str], bool], frozen: bool = True) -> None:
    for name, parameter in model.policy.named_parameters():
        if chosen(name):
            parameter.requires_grad_(not frozen)


def names(model: Any) -> set[str]:
    return {name for name, _ in model.policy.named_parameters()}


def moved(before: dict[str, th.Tensor], model: Any) -> set[str]:
    return {name for name, value in model.policy.named_parameters() if not th.equal(before[name], value)}


@pytest.mark.parametrize(
    ("algorithm", "what"),
    [*shared(PARTS, AdaptiveTRPO, AdaptivePPO), *((algorithm, "all that acts") for algorithm in (NPG, PenaltyPPO))],
)
def test_frozen_after_construction(algorithm: type[Any], what: str) -> None:
    model = make_model(algorithm, policy_kwargs=EXTRACTOR)
    freeze(model, PARTS[what])
    before = state_of(model.policy)
    updates = train(model, 3)
    assert moved(before, model) == {name for name in names(model) if not PARTS[what](name)}
    expected = StepStatus.INVALID if what == "all that acts" else StepStatus.ACCEPTED
    assert {update.status for update in updates} == {expected}
    if algorithm in MEASURING and what != "all that acts":
        assert all("train/rho" in update.logged for update in updates[1:])


@each_algorithm
def test_frozen_between_two_learns_and_freed_again(algorithm: type[Any]) -> None:
    model = make_model(algorithm, policy_kwargs=EXTRACTOR)
    chosen = PARTS["extractor"]
    train(model, 2)
    freeze(model, chosen)
    before = state_of(model.policy)
    train(model, 3, reset_num_timesteps=False)
    assert moved(before, model) == {name for name in names(model) if not chosen(name)}
    freeze(model, chosen, frozen=False)
    train(model, 3, reset_num_timesteps=False)
    assert moved(before, model) == names(model)


@each_algorithm
def test_all_that_acts_frozen_for_long_and_freed(algorithm: type[Any]) -> None:
    """The critic alone learns for more updates than bad data would be borne with; then the policy learns again."""
    model = make_model(algorithm, n_steps=8, batch_size=8)
    freeze(model, ACTOR)
    before = state_of(model.policy)
    train(model, 12)
    assert moved(before, model) == {name for name in names(model) if CRITIC(name)}
    freeze(model, ACTOR, frozen=False)
    train(model, 2, reset_num_timesteps=False)
    assert moved(before, model) == names(model)


class Freezer(BaseCallback):
    """Freezes at the start of a rollout, frees at the start of another."""

    def __init__(self, chosen: Callable[[str], bool], at: int, until: int) -> None:
        super().__init__()
        self.chosen, self.at, self.until = chosen, at, until
        self.n_rollouts = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.n_rollouts == self.at:
            freeze(self.model, self.chosen)
        if self.n_rollouts == self.until:
            freeze(self.model, self.chosen, frozen=False)
        self.n_rollouts += 1


@each_algorithm
def test_frozen_by_a_callback_for_a_while(algorithm: type[Any]) -> None:
    model = make_model(algorithm, policy_kwargs=EXTRACTOR)
    updates = train(model, 6, callbacks=[Freezer(PARTS["extractor"], 2, 4)])
    name = "features_extractor.layers.0.weight"
    stayed = [th.equal(update.before[name], update.after[name]) for update in updates]
    assert stayed == [False, False, True, True, False, False]


@each_algorithm
def test_frozen_and_saved(tmp_path: Any, algorithm: type[Any]) -> None:
    """``load`` makes a policy all of which is free, as in SB3: freezing it again goes on."""
    model = make_model(algorithm)
    freeze(model, ACTOR)
    train(model, 2)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=model.get_env(), device="cpu")
    assert_same(state_of(loaded.policy), state_of(model.policy))
    freeze(loaded, part("log_std"))
    before = state_of(loaded.policy)
    train(loaded, 2, reset_num_timesteps=False)
    assert moved(before, loaded) == names(loaded) - {"log_std"}


@pytest.mark.parametrize("algorithm", [NPG, AdaptiveTRPO])
def test_frozen_shared_extractor_is_frozen_for_the_critic_too(algorithm: type[Any]) -> None:
    model = make_model(algorithm, policy_kwargs=EXTRACTOR, n_critic_updates=5)
    freeze(model, PARTS["extractor"])
    before = state_of(model.policy.features_extractor)
    model.learn(3 * UPDATE)
    assert_same(state_of(model.policy.features_extractor), before)


def test_frozen_optimiser_groups_are_the_users() -> None:
    """An optimiser over a part of the parameters: what it does not hold stays, as with stock."""
    model = make_model(AdaptivePPO)
    chosen = [parameter for name, parameter in model.policy.named_parameters() if not name.startswith("value_net")]
    model.policy.optimizer = th.optim.Adam(chosen, lr=1e-2)
    before = state_of(model.policy)
    train(model, 3)
    assert moved(before, model) == {name for name in names(model) if not name.startswith("value_net")}
