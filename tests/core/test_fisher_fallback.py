"""Policies that autograd cannot differentiate twice: found out, told once, served by differences all the same."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.autograd.function import once_differentiable

from sb3_trustregion import AdaptiveTRPO
from sb3_trustregion.core.conjugate_gradient import conjugate_gradient
from sb3_trustregion.core.fisher import CentralDifferences, ReverseTwice, differentiable_twice
from sb3_trustregion.core.surrogate import Surrogate
from tests.core.policies import KINDS, actor_of, dense, dense_fisher, make_batch, make_policy, make_surrogate

TOLD = "cannot be differentiated twice"


class Tanh(th.autograd.Function):
    """With a backward pass by hand, which is a subclass's."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor) -> th.Tensor:
        y = x.tanh()
        ctx.save_for_backward(y)
        return y


class OnceTanh(Tanh):
    """Refuses a second derivative."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        (y,) = ctx.saved_tensors
        return gradient * (1.0 - y**2)


class NumpyTanh(Tanh):
    """Its second derivative is lost without a word: NumPy knows no graph."""

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        (y,) = ctx.saved_tensors
        return th.from_numpy(gradient.detach().numpy() * (1.0 - y.detach().numpy() ** 2))


class Extractor(BaseFeaturesExtractor):
    """Three observations to four features."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=4)
        self.layer = nn.Linear(3, 4)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return th.tanh(self.layer(observations))


class OnceExtractor(Extractor):
    def forward(self, observations: th.Tensor) -> th.Tensor:
        result: th.Tensor = OnceTanh.apply(self.layer(observations))
        return result


class NumpyExtractor(Extractor):
    def forward(self, observations: th.Tensor) -> th.Tensor:
        result: th.Tensor = NumpyTanh.apply(self.layer(observations))
        return result


class AttentionExtractor(BaseFeaturesExtractor):
    """PyTorch's fused attention has no second derivative."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=4)
        self.embed, self.project = nn.Linear(1, 4), nn.Linear(4, 12)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        parts = self.project(self.embed(observations[..., None]))[:, None].chunk(3, dim=-1)
        return nn.functional.scaled_dot_product_attention(*parts).mean(dim=(1, 2))


def policy_with(extractor: type[BaseFeaturesExtractor], kind: str = "box") -> Any:
    return make_policy(kind, features_extractor_class=extractor)


def surrogate_with(extractor: type[BaseFeaturesExtractor], kind: str = "box", damping: float = 0.0) -> Surrogate:
    policy = policy_with(extractor, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        actor = actor_of(policy)
    return Surrogate(policy, actor, make_batch(policy, n_steps=10), damping)


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_policies_are_differentiated_twice(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        surrogate = make_surrogate(kind, n_steps=5)
    assert surrogate.actor.differentiable_twice
    assert isinstance(surrogate.fisher_product.jacobian_times, ReverseTwice)


@pytest.mark.parametrize("extractor", [OnceExtractor, NumpyExtractor, AttentionExtractor])
def test_what_cannot_be_differentiated_twice_is_found_out(extractor: type[BaseFeaturesExtractor]) -> None:
    policy = policy_with(extractor)
    with pytest.warns(UserWarning, match=TOLD):
        actor = actor_of(policy)
    assert not actor.differentiable_twice
    product = Surrogate(policy, actor, make_batch(policy, n_steps=5), 0.1).fisher_product
    assert isinstance(product.jacobian_times, CentralDifferences)


@pytest.mark.parametrize("kind", ["box", "discrete", "multi_discrete", "multi_binary"])
@pytest.mark.parametrize("extractor", [OnceExtractor, NumpyExtractor])
def test_products_by_differences_are_those_of_the_same_network(
    extractor: type[BaseFeaturesExtractor], kind: str
) -> None:
    surrogate, expected = surrogate_with(extractor, kind), surrogate_with(Extractor, kind)
    assert th.equal(surrogate.origin, expected.origin)
    fisher = dense(surrogate.fisher_product, len(surrogate.origin))
    th.testing.assert_close(fisher, dense_fisher(expected), rtol=1e-6, atol=1e-8)


def test_the_silent_loss_would_have_been_wrong() -> None:
    """Why the probe compares: two reverse passes give numbers here, and they are not J·v."""
    surrogate, expected = surrogate_with(NumpyExtractor), surrogate_with(Extractor)
    leaf = surrogate.origin.clone().requires_grad_()
    _, outputs = surrogate._forward(leaf, surrogate.batch.observations, surrogate.batch.actions)
    v = th.ones_like(leaf)
    lost, right = ReverseTwice(outputs, leaf)(v)[0], expected.fisher_product.jacobian_times(v)[0]
    assert float((lost - right).norm() / right.norm()) > 0.1


@pytest.mark.parametrize("kind", ["box", "discrete"])
def test_directions_by_differences_hold_in_single_precision(kind: str) -> None:
    exact = make_surrogate(kind, double=False)
    differences = exact.actor._replace(differentiable_twice=False)
    fallback = Surrogate(exact.head.policy, differences, exact.batch, 0.1)
    expected, found = (conjugate_gradient(s.fisher_product, s.gradient, 10, 0.01) for s in (exact, fallback))
    assert float((expected.x - found.x).norm() / expected.x.norm()) < 0.01
    assert float(found.damped_curvature) > 0.0


def test_differences_do_not_depend_on_the_length_of_the_direction() -> None:
    origin = th.tensor([0.5, -2.0], dtype=th.float64)
    product = CentralDifferences(lambda x: (x**3,), origin)
    v = th.tensor([1.0, 2.0], dtype=th.float64)
    for scale in (1e-6, 1.0, 1e6):
        th.testing.assert_close(product(scale * v)[0], scale * 3.0 * origin**2 * v, rtol=1e-4, atol=0.0)
    assert th.equal(product(0.0 * v)[0], 0.0 * v)


def test_outputs_that_are_not_finite_say_nothing_about_derivatives() -> None:
    leaf = th.zeros(2, requires_grad=True)
    assert differentiable_twice([leaf.log()], [leaf])


def test_training_tells_once_and_goes_on() -> None:
    arguments = {"features_extractor_class": AttentionExtractor}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        model = AdaptiveTRPO("MlpPolicy", "Pendulum-v1", n_steps=64, policy_kwargs=arguments, seed=0, device="cpu")
        before = [parameter.detach().clone() for parameter in model.policy.parameters()]
        model.learn(3 * 64)
    assert [TOLD in str(warning.message) for warning in caught].count(True) == 1
    assert model.n_invalid == 0
    assert all(np.isfinite(p.detach().numpy()).all() for p in model.policy.parameters())
    assert not any(th.equal(p, q) for p, q in zip(before, model.policy.parameters(), strict=True))
