"""Parameters, distributions, samples and moments that are elsewhere than with SB3's own classes."""

from typing import Any

import cloudpickle
import gymnasium as gym
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import BernoulliDistribution, CategoricalDistribution, Distribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv

import sb3_trustregion
from sb3_trustregion import NPG, AdaptivePPO, AdaptiveTRPO, PenaltyPPO
from sb3_trustregion.common.judge import Judge
from sb3_trustregion.core.functional import unfold
from sb3_trustregion.core.improvement import Estimate, Improvement
from sb3_trustregion.core.parameters import fingerprint
from tests.cases.tasks import UPDATE, Bandit, bandit_model, probability
from tests.environments import toy_vec_env
from tests.helpers import ALGORITHMS, N_ENVS, assert_same, differs, make_model, shared, state_of, train

each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


class LowRank(th.nn.Linear):
    """As LoRA's layers: frozen, with a trainable addition of low rank, which is folded into it in evaluation mode."""

    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        super().__init__(n_inputs, n_outputs)
        self.weight.requires_grad = self.bias.requires_grad = False
        self.down = th.nn.Parameter(th.ones(2, n_inputs) / 3.0)
        self.up = th.nn.Parameter(th.zeros(n_outputs, 2))
        self.drop = th.nn.Dropout(0.5)
        self.is_folded = False

    def train(self, mode: bool = True) -> "LowRank":
        super().train(mode)
        if self.is_folded == mode:
            self.weight.data += (-1.0 if mode else 1.0) * self.up @ self.down
            self.is_folded = not mode
        return self

    def forward(self, x: th.Tensor) -> th.Tensor:
        frozen = super().forward(x)
        return frozen if self.is_folded else frozen + self.drop(x) @ self.down.T @ self.up.T


class Adapted(BaseFeaturesExtractor):
    """One such layer."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space, 8)
        self.layer = LowRank(observation_space.shape[0], 8)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layer(observations).tanh()  # type: ignore[no-any-return]


ADAPTED = {"features_extractor_class": Adapted, "net_arch": []}


def unfolded(model: Any) -> LowRank:
    model.policy.set_training_mode(True)
    layer: LowRank = model.policy.features_extractor.layer
    return layer


@each_algorithm
def test_parameters_that_are_folded_away_in_evaluation_are_trained(algorithm: type[Any]) -> None:
    model = make_model(algorithm, "CartPole-v1", policy_kwargs=ADAPTED)
    weight = unfolded(model).weight.clone()
    model.learn(5 * model.n_steps * model.n_envs)
    assert unfolded(model).up.abs().max() > 1e-3
    th.testing.assert_close(unfolded(model).weight, weight)
    if hasattr(model, "judge"):
        assert model.judge.state.n_judged == 4


def test_what_is_random_stays_as_in_evaluation() -> None:
    policy = make_model(NPG, "CartPole-v1", policy_kwargs=ADAPTED).policy
    policy.set_training_mode(False)
    unfold(policy)
    layer = policy.features_extractor.layer
    assert [module for module in policy.modules() if module.training] == [layer]
    assert not layer.is_folded


class Rejecting(Judge):
    """Takes every step for a bad one."""

    def perceive(self, measured: Improvement) -> Improvement:
        return measured._replace(actual=-1e9, stderr=1.0, difference=Estimate(-1e9, 1.0))


@pytest.mark.parametrize("algorithm", [AdaptiveTRPO, AdaptivePPO])
def test_a_roll_back_leaves_what_they_are_folded_into_alone(algorithm: type[Any]) -> None:
    model = make_model(algorithm, policy_kwargs=ADAPTED, judge_class=Rejecting)
    weight, up = unfolded(model).weight.clone(), unfolded(model).up.clone()
    model.learn(4 * model.n_steps * model.n_envs)
    assert model.judge.state.n_rollbacks == 2
    assert th.equal(unfolded(model).weight, weight)
    assert th.equal(unfolded(model).up, up)


@each_algorithm
def test_a_policy_that_folds_parameters_away_is_saved_as_it_is(algorithm: type[Any], tmp_path: Any) -> None:
    model = make_model(algorithm, policy_kwargs=ADAPTED)
    model.learn(3 * model.n_steps * model.n_envs)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model")
    assert_same(unfolded(loaded).state_dict(), unfolded(model).state_dict())


@each_algorithm
@pytest.mark.filterwarnings("ignore:the critic's fit left the finite numbers")
def test_an_update_that_is_spoiled_spoils_nothing_that_is_frozen(algorithm: type[Any]) -> None:
    model = make_model(algorithm, policy_kwargs=ADAPTED)
    model.learn(model.n_steps * model.n_envs)
    weight = unfolded(model).weight.clone()
    model.lr_schedule = lambda _: 1e38
    model.learn(model.n_steps * model.n_envs, reset_num_timesteps=False)
    th.testing.assert_close(unfolded(model).weight, weight)


class Fixed(th.nn.BatchNorm1d):
    """Its statistics stay what they are."""

    def train(self, mode: bool = True) -> "Fixed":
        return super().train(False)


class AlwaysOn(th.nn.Module):
    """Dropout that acts in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = th.nn.Dropout(0.1)
        self.modes: set[bool] = set()

    def train(self, mode: bool = True) -> "AlwaysOn":
        super().train(mode)
        self.drop.train(True)
        return self

    def forward(self, x: th.Tensor) -> th.Tensor:
        self.modes.add(self.drop.training)
        return self.drop(x)  # type: ignore[no-any-return]


class Partly(BaseFeaturesExtractor):
    """Layers that see to their mode themselves."""

    def __init__(self, observation_space: Any) -> None:
        size = observation_space.shape[0]
        super().__init__(observation_space, size)
        self.norm, self.drop = Fixed(size), AlwaysOn()
        self.drop.train()

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.drop(self.norm(observations))  # type: ignore[no-any-return]


@each_algorithm
def test_layers_that_see_to_their_mode_themselves_are_let_be(algorithm: type[Any]) -> None:
    env = DummyVecEnv([lambda: gym.make("CartPole-v1")])
    model = make_model(algorithm, env, policy_kwargs={"features_extractor_class": Partly})
    model.learn(4 * model.n_steps)
    extractor = model.policy.features_extractor
    assert not extractor.norm.running_mean.any()
    assert extractor.drop.modes == {True}


class OnOrOff(ActorCriticPolicy):
    """Bernoulli actions for a Box, beside the distribution that SB3 has made for it."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.switch = BernoulliDistribution(1)

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        return self.switch.proba_distribution(self.action_net(latent_pi))


@each_algorithm
def test_a_policy_may_have_another_distribution_than_its_space_asks_for(algorithm: type[Any]) -> None:
    model = make_model(algorithm, "Pendulum-v1", OnOrOff)
    before = state_of(model.policy)
    model.learn(3 * model.n_steps * model.n_envs)
    assert not th.equal(model.policy.action_net.weight, before["action_net.weight"])
    assert not hasattr(model, "judge") or model.judge.state.n_judged >= 1


class Bins(ActorCriticPolicy):
    """Eleven values of one action, beside the Gaussian that SB3 has made for it."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.value = CategoricalDistribution(11)
        self.bins = th.nn.Linear(8, 11)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        return self.value.proba_distribution(self.bins(latent_pi))

    def forward(self, obs: Any, deterministic: bool = False) -> Any:
        actions, values, log_probs = super().forward(obs, deterministic)
        return actions.reshape(-1, 1), values, log_probs

    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        return super().evaluate_actions(obs, actions.flatten())

    def get_distribution(self, obs: Any) -> Distribution:
        distribution = super().get_distribution(obs)
        stock = distribution.log_prob
        distribution.log_prob = lambda actions: stock(actions.flatten())  # type: ignore[method-assign]
        return distribution


def test_the_kl_is_averaged_over_the_dimensions_of_what_acts() -> None:
    space = gym.spaces.Box(0.0, 10.0, (1,))
    env = DummyVecEnv([lambda: gym.wrappers.TransformAction(gym.make("Pendulum-v1"), lambda a: a / 5.0 - 1.0, space)])
    model = make_model(PenaltyPPO, env, Bins)
    (update,) = train(model, 1)
    assert update.logged["train/kl_divergence"] == pytest.approx(update.kl, rel=1e-3)


class Second(ActorCriticPolicy):
    """Acts by a head of its own, which ``get_distribution`` does not know: all that PPO asks for."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.second = th.nn.Linear(8, 2)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def _acting(self, obs: Any) -> Distribution:
        return self.action_dist.proba_distribution(self.second(self.mlp_extractor.forward_actor(obs)))

    def forward(self, obs: Any, deterministic: bool = False) -> Any:
        distribution = self._acting(obs)
        actions = distribution.get_actions(deterministic)
        return actions, self.predict_values(obs), distribution.log_prob(actions)

    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        distribution = self._acting(obs)
        return self.predict_values(obs), distribution.log_prob(actions), distribution.entropy()


class Silent(Second):
    def get_distribution(self, obs: Any) -> Distribution:
        raise NotImplementedError


@pytest.mark.parametrize("policy", [Second, Silent])
def test_what_a_policy_does_not_tell_is_not_judged_but_trained_as_by_stock(policy: type[Any]) -> None:
    def trained(algorithm: type[Any]) -> Any:
        model = make_model(algorithm, "CartPole-v1", policy)
        return model.learn(3 * model.n_steps * model.n_envs)

    with pytest.warns(UserWarning, match="get_distribution is not what evaluate_actions evaluates"):
        ours = trained(AdaptivePPO)
    assert_same(state_of(ours.policy), state_of(trained(PPO).policy))
    assert ours.judge.state.n_judged == 0
    with pytest.raises(ValueError, match="policy must tell by get_distribution"):
        trained(PenaltyPPO)


class Particular(ActorCriticPolicy):
    """Evaluates actions in its own way: with gradients, random numbers and double precision."""

    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        values, log_probs, entropy = super().evaluate_actions(obs.requires_grad_(), actions)
        th.autograd.grad(log_probs.sum(), obs, retain_graph=True)
        return values, log_probs.double(), entropy + 0.0 * th.rand(1)


def test_a_policy_may_evaluate_actions_in_its_own_way() -> None:
    def trained(algorithm: type[Any], **kwargs: Any) -> Any:
        model = make_model(algorithm, "CartPole-v1", Particular, **kwargs)
        return model.learn(3 * model.n_steps * model.n_envs)

    ours = trained(AdaptivePPO, radius_rule="fixed", rollback_z=None)
    assert ours.judge.state.n_judged >= 1
    assert_same(state_of(ours.policy), state_of(trained(PPO).policy))
    trained(PenaltyPPO)


class WithCounter(th.optim.Adam):
    """Keeps something beside what it keeps of each parameter."""

    def step(self, closure: Any = None) -> Any:
        self.state["n_steps"] = self.state.get("n_steps", 0) + 1
        return super().step(closure)


class WithHistory(th.optim.Adam):
    """Keeps lists."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        for parameter, state in self.state.items():
            if parameter.grad is not None:
                state["last"] = [*state.get("last", [])[-1:], parameter.grad.clone()]
        return result


@each_algorithm
@pytest.mark.parametrize("optimizer", [WithCounter, WithHistory])
def test_an_optimiser_may_keep_what_it_likes(algorithm: type[Any], optimizer: type[Any], tmp_path: Any) -> None:
    kwargs = {"policy_kwargs": {"net_arch": [8], "optimizer_class": optimizer}}
    model = make_model(algorithm, "CartPole-v1", **kwargs)
    model.learn(3 * model.n_steps * model.n_envs)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=model.env)
    assert fingerprint(loaded.policy, with_optimizer=True) == fingerprint(model.policy, with_optimizer=True)
    if hasattr(model, "judge"):
        assert_same(loaded.judge.state_dict(), model.judge.state_dict())
        if algorithm is AdaptivePPO:
            assert_same(loaded.judge.pending.before.optimizer, model.judge.pending.before.optimizer)


def test_moments_in_lists_are_of_the_policy_that_a_step_left() -> None:
    model = make_model(AdaptivePPO, "CartPole-v1", policy_kwargs={"net_arch": [8], "optimizer_class": WithHistory})
    model.learn(model.n_steps * model.n_envs)
    state = model.policy.optimizer.state[model.policy.value_net.weight]
    state["last"][0] += 1.0
    model.learn(model.n_steps * model.n_envs, reset_num_timesteps=False)
    assert model.judge.state.n_judged == 0


class Inverted(BaseCallback):
    """Rewards the other action, by another method of the buffer that there is."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method

    def _on_training_start(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        stock = getattr(buffer, self.method)

        def get(batch_size: int) -> Any:
            for samples in stock(batch_size):
                yield samples._replace(advantages=-samples.advantages)

        def get_samples(*arguments: Any) -> Any:
            samples = stock(*arguments)
            return samples._replace(advantages=-samples.advantages)

        setattr(buffer, self.method, get if self.method == "get" else get_samples)

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize(("algorithm", "method"), shared(["_get_samples", "get"], AdaptiveTRPO, AdaptivePPO))
def test_a_method_of_the_buffer_may_be_replaced(algorithm: type[Any], method: str) -> None:
    model = bandit_model(algorithm, make_vec_env(lambda: Bandit(0.0, 1.0), n_envs=10))
    model.learn(12 * UPDATE, callback=Inverted(method))
    assert probability(model, 0) > 0.9


class FartherAndFarther(BaseCallback):
    """Another discount factor for each rollout."""

    def _on_rollout_start(self) -> None:
        model: Any = self.model
        model.gamma = model.rollout_buffer.gamma = 1.0 - 0.9 * (1.0 - model.gamma)

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("algorithm", [AdaptiveTRPO, AdaptivePPO])
def test_steps_are_judged_while_the_discount_factor_changes(algorithm: type[Any]) -> None:
    model = make_model(algorithm, "CartPole-v1", gamma=0.9)
    model.learn(4 * model.n_steps * model.n_envs, callback=FartherAndFarther())
    assert model.judge.state.n_judged == 3


def test_a_method_of_sb3_may_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = RolloutBuffer.get

    def get(buffer: RolloutBuffer, batch_size: int | None = None) -> Any:
        for samples in stock(buffer, batch_size):
            yield samples._replace(advantages=-samples.advantages)

    monkeypatch.setattr(RolloutBuffer, "get", get)
    model = bandit_model(AdaptiveTRPO, make_vec_env(lambda: Bandit(0.0, 1.0), n_envs=10))
    model.learn(12 * UPDATE)
    assert probability(model, 0) > 0.9


@each_algorithm
def test_a_subclass_may_set_up_by_itself(algorithm: type[Any], tmp_path: Any) -> None:
    """As classes of sb3-contrib do: nothing of ours is called then."""

    class Own(algorithm):  # type: ignore[misc]
        def _setup_model(self) -> None:
            self._setup_lr_schedule()
            self.set_random_seed(self.seed)
            arguments = {"device": self.device, "gamma": self.gamma, "gae_lambda": self.gae_lambda}
            spaces = self.observation_space, self.action_space
            self.rollout_buffer = RolloutBuffer(self.n_steps, *spaces, n_envs=self.n_envs, **arguments)
            self.policy = self.policy_class(*spaces, self.lr_schedule, **self.policy_kwargs).to(self.device)

    model = make_model(Own)
    model.learn(2 * UPDATE)
    model.save(tmp_path / "own")
    loaded = Own.load(tmp_path / "own", env=toy_vec_env(), device="cpu")
    if hasattr(model, "judge"):
        assert_same(loaded.judge.state_dict(), model.judge.state_dict())
    loaded.learn(UPDATE, reset_num_timesteps=False)
    assert loaded.num_timesteps >= 3 * UPDATE


class Falling(AdaptivePPO):
    """Its bonus falls while it learns."""

    @property
    def ent_coef(self) -> float:
        return self._first * self._current_progress_remaining

    @ent_coef.setter
    def ent_coef(self, value: float) -> None:
        self._first = value


def test_an_argument_may_be_a_property(tmp_path: Any) -> None:
    """What is in range is not written back, or what it is now would be what it falls from."""
    model = make_model(Falling, ent_coef=0.1)
    model.learn(2 * UPDATE)
    model.save(tmp_path / "falling")
    assert Falling.load(tmp_path / "falling")._first == 0.1


class OfFixedSize(BaseFeaturesExtractor):
    """Knows two sizes of batches."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space, 3)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        if len(observations) not in (N_ENVS, 32):
            raise AssertionError
        return observations


def test_what_takes_no_other_batch_is_trained_as_by_stock() -> None:
    env = toy_vec_env(episode_length=10**6, termination=0.0)
    model = make_model(AdaptivePPO, env, policy_kwargs={"features_extractor_class": OfFixedSize})
    before = state_of(model.policy)
    with pytest.warns(UserWarning, match=r"policy cannot be judged: AssertionError\. ε stays"):
        model.learn(UPDATE)
    assert differs(before, state_of(model.policy))


def test_classes_may_be_pickled_by_value() -> None:
    """By Ray and Dask, of a package that other machines do not have."""
    cloudpickle.register_pickle_by_value(sb3_trustregion)
    try:
        assert len(cloudpickle.dumps(ALGORITHMS)) > 10_000
    finally:
        cloudpickle.unregister_pickle_by_value(sb3_trustregion)


class Faulty(Judge):
    """Cannot be made."""

    def __init__(self, *_: Any) -> None:
        raise AttributeError("no such thing")


@pytest.mark.parametrize("algorithm", [AdaptiveTRPO, AdaptivePPO])
def test_a_judge_that_cannot_be_made_is_told_at_once(algorithm: type[Any]) -> None:
    with pytest.raises(AttributeError, match="no such thing"):
        make_model(algorithm, judge_class=Faulty)


class OfComplexWeights(th.nn.Module):
    """A value head."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = th.nn.Parameter(th.ones(8, 1, dtype=th.complex64))

    def forward(self, latent: th.Tensor) -> th.Tensor:
        return (latent.to(th.complex64) @ self.weight).real


class ComplexCritic(ActorCriticPolicy):
    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.value_net = OfComplexWeights()
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)


@pytest.mark.parametrize("algorithm", [AdaptiveTRPO, PenaltyPPO])
def test_a_critic_may_have_complex_weights(algorithm: type[Any]) -> None:
    model = make_model(algorithm, policy=ComplexCritic)
    before = state_of(model.policy.value_net)
    model.learn(UPDATE)
    assert differs(before, state_of(model.policy.value_net))


@each_algorithm
def test_common_names_are_the_users(algorithm: type[Any]) -> None:
    class Own(algorithm):  # type: ignore[misc]
        recorder = None

        def _validate(self) -> None:
            raise AssertionError

    model = make_model(Own)
    model.guard = model.recorder = object()
    model.learn(UPDATE)
    assert model.recorder is model.guard
