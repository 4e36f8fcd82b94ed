import math
from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
)

from sb3_trustregion.core.distributions import (
    check_supported,
    distribution_parameters,
    fisher_times,
    kl_divergence,
    preserved_distribution,
)
from tests.core.policies import Untouched, joint_kl, make_policy, sample_observations, torch_distributions

A = 3  # action dimensions
Builder = Callable[[th.Generator, int], Distribution]


def rows(generator: th.Generator, n: int, width: int, scale: float = 1.0) -> th.Tensor:
    """n times the same random row."""
    return (scale * th.randn(1, width, generator=generator, dtype=th.float64)).expand(n, width)


def gaussian(generator: th.Generator, n: int) -> Distribution:
    return DiagGaussianDistribution(A).proba_distribution(rows(generator, n, A), rows(generator, n, A, 0.3)[0])


def squashed_gaussian(generator: th.Generator, n: int) -> Distribution:
    distribution = SquashedDiagGaussianDistribution(A)
    return distribution.proba_distribution(rows(generator, n, A, 0.3), rows(generator, n, A, 0.3)[0] - 1.0)


def state_dependent(generator: th.Generator, n: int, squash: bool = False) -> Distribution:
    distribution = StateDependentNoiseDistribution(A, squash_output=squash)
    distribution.proba_distribution_net(latent_dim=4, log_std_init=-1.0)
    log_std = 0.2 * th.randn(4, A, generator=generator, dtype=th.float64) - 1.0
    return distribution.proba_distribution(rows(generator, n, A, 0.3), log_std, rows(generator, n, 4))


def squashed_state_dependent(generator: th.Generator, n: int) -> Distribution:
    return state_dependent(generator, n, squash=True)


def categorical(generator: th.Generator, n: int) -> Distribution:
    return CategoricalDistribution(4).proba_distribution(rows(generator, n, 4))


def multi_categorical(generator: th.Generator, n: int) -> Distribution:
    return MultiCategoricalDistribution([3, 2]).proba_distribution(rows(generator, n, 5))


def bernoulli(generator: th.Generator, n: int) -> Distribution:
    return BernoulliDistribution(A).proba_distribution(rows(generator, n, A))


FAMILIES: dict[str, Builder] = {
    "gaussian": gaussian,
    "squashed_gaussian": squashed_gaussian,
    "gsde": state_dependent,
    "squashed_gsde": squashed_state_dependent,
    "categorical": categorical,
    "multi_categorical": multi_categorical,
    "bernoulli": bernoulli,
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def build(family: str, seed: int, n: int = 1) -> Distribution:
    return FAMILIES[family](th.Generator().manual_seed(seed), n)


def kl(old: Distribution, new: Distribution) -> th.Tensor:
    return kl_divergence(old, distribution_parameters(old), distribution_parameters(new))


@every_family
def test_kl_equals_pytorchs_summed_over_dimensions(family: str) -> None:
    for seed in range(5):
        old, new = build(family, seed), build(family, 100 + seed)
        expected = joint_kl(torch_distributions(old), torch_distributions(new))
        assert expected > 0.01
        th.testing.assert_close(kl(old, new), expected, rtol=1e-10, atol=1e-12)


@every_family
def test_kl_equals_the_mean_log_ratio_of_actions(family: str) -> None:
    """By SB3's own sampling and joint log-probabilities: also what is squashed is measured right."""
    n = 20_000
    old, new = build(family, 1, n), build(family, 2, n)
    if isinstance(old, StateDependentNoiseDistribution):
        # Its exploration noise is one matrix for all states: draw from the marginal instead.
        actions = old.distribution.sample()
        actions = actions if old.bijector is None else old.bijector.forward(actions)
    else:
        actions = old.sample()
    log_ratios = old.log_prob(actions) - new.log_prob(actions)
    stderr = float(log_ratios.std()) / math.sqrt(n)
    assert float(log_ratios.mean()) == pytest.approx(float(kl(old, new)[0]), abs=4.0 * stderr)
    assert float(kl(old, new)[0]) > 8.0 * stderr


@every_family
def test_kl_is_of_the_old_to_the_new(family: str) -> None:
    old, new = build(family, 3), build(family, 4)
    forward, backward = joint_kl(*map(torch_distributions, (old, new))), joint_kl(*map(torch_distributions, (new, old)))
    assert abs(float(forward - backward)) > 1e-3
    th.testing.assert_close(kl(old, new), forward, rtol=1e-10, atol=0.0)


@every_family
def test_kl_of_tiny_steps_keeps_its_digits(family: str) -> None:
    """To second order it is ½·tᵀFt, which here lies below the rounding of the terms that it is a difference of."""
    kind = build(family, 5)
    parameters = distribution_parameters(kind)
    generator = th.Generator().manual_seed(6)
    step = tuple(1e-5 * th.randn(p.shape, generator=generator, dtype=th.float64) for p in parameters)
    expected = 0.5 * sum(float((t * f).sum()) for t, f in zip(step, fisher_times(kind, parameters, step), strict=True))
    assert 0.0 < expected < 1e-8
    moved = tuple(p + t for p, t in zip(parameters, step, strict=True))
    assert float(kl_divergence(kind, parameters, moved)) == pytest.approx(expected, rel=2e-4, abs=0.0)


@every_family
def test_kl_of_single_precision_is_taken_in_double(family: str) -> None:
    kind = build(family, 7)
    old = tuple(p.float() for p in distribution_parameters(kind))
    new = tuple(p + 1e-4 for p in old)
    result = kl_divergence(kind, old, new)
    assert result.dtype == th.float64
    assert th.equal(result, kl_divergence(kind, tuple(p.double() for p in old), tuple(p.double() for p in new)))


def test_gaussian_kl_of_nearly_equal_deviations() -> None:
    """(σ/σ')² - 1 - 2·log(σ/σ') taken literally has no digit left here."""
    old = th.zeros(1, 1, dtype=th.float64), th.ones(1, 1, dtype=th.float64)
    new = old[0], th.full((1, 1), math.exp(1e-8), dtype=th.float64)
    assert float(kl_divergence(DiagGaussianDistribution(1), old, new)) == pytest.approx(1e-16, rel=1e-6, abs=0.0)


@given(family=st.sampled_from(list(FAMILIES)), seeds=st.tuples(*[st.integers(0, 10_000)] * 2))
def test_kl_is_positive_and_vanishes_at_equality(family: str, seeds: tuple[int, int]) -> None:
    old, new = build(family, seeds[0]), build(family, seeds[1])
    assert float(kl(old, old)) == 0.0
    assert (float(kl(old, new)) > 0.0) == (seeds[0] != seeds[1])


@pytest.mark.parametrize("family", ["categorical", "multi_categorical", "bernoulli"])
def test_kl_of_saturated_policies_is_finite(family: str) -> None:
    kind = build(family, 8)
    old = tuple(200.0 * p for p in distribution_parameters(kind))
    new = tuple(-p for p in old)
    result = kl_divergence(kind, old, new)
    assert 100.0 < float(result) < math.inf
    assert all(bool(th.isfinite(f).all()) for f in fisher_times(kind, old, old))


@every_family
def test_fisher_matrix_is_the_hessian_of_the_kl(family: str) -> None:
    kind = build(family, 9)
    parameters = tuple(p.detach().clone() for p in distribution_parameters(kind))
    sizes = [p.numel() for p in parameters]

    def unflatten(vector: th.Tensor) -> tuple[th.Tensor, ...]:
        return tuple(part.view(p.shape) for part, p in zip(th.split(vector, sizes), parameters, strict=True))

    origin = th.cat([p.reshape(-1) for p in parameters])
    hessian = th.autograd.functional.hessian(lambda v: kl_divergence(kind, parameters, unflatten(v)).sum(), origin)
    columns = [fisher_times(kind, parameters, unflatten(unit)) for unit in th.eye(len(origin), dtype=th.float64)]
    fisher = th.stack([th.cat([part.reshape(-1) for part in column]) for column in columns], dim=1)
    assert float(hessian.abs().max()) > 0.05
    th.testing.assert_close(fisher, hessian, rtol=1e-9, atol=1e-12)
    assert float(th.linalg.eigvalsh(fisher).min()) > -1e-12


@every_family
def test_states_do_not_mix(family: str) -> None:
    kind = build(family, 10)
    one, other = (distribution_parameters(build(family, seed)) for seed in (11, 12))
    both = tuple(th.cat(pair) for pair in zip(one, other, strict=True))
    apart = th.cat([kl_divergence(kind, one, other), kl_divergence(kind, other, one)])
    flipped = tuple(th.cat(pair) for pair in zip(other, one, strict=True))
    assert th.equal(kl_divergence(kind, both, flipped), apart)


def test_parameters_are_attached_to_the_graph() -> None:
    policy = make_policy("box")
    outputs = distribution_parameters(policy.get_distribution(sample_observations(policy, 2)))
    assert all(output.requires_grad for output in outputs)


class Unknown(Distribution):
    """A distribution that nothing is known about."""

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> Any: ...
    def proba_distribution(self, *args: Any, **kwargs: Any) -> Any: ...
    def log_prob(self, x: th.Tensor) -> Any: ...
    def entropy(self) -> Any: ...
    def sample(self) -> Any: ...
    def mode(self) -> Any: ...
    def actions_from_params(self, *args: Any, **kwargs: Any) -> Any: ...
    def log_prob_from_params(self, *args: Any, **kwargs: Any) -> Any: ...


@pytest.mark.parametrize("check", [check_supported, distribution_parameters])
def test_an_unknown_distribution_is_refused_by_name(check: Callable[[Distribution], Any]) -> None:
    with pytest.raises(ValueError, match=r"policy's action distribution must be one of .*, got Unknown"):
        check(Unknown())


@every_family
def test_every_family_is_supported(family: str) -> None:
    check_supported(build(family, 0))


def test_the_policys_distribution_is_preserved() -> None:
    policy = make_policy("box")
    observations = sample_observations(policy, 2)
    policy.get_distribution(observations)
    before = Untouched.of(policy)
    with preserved_distribution(policy):
        assert policy.get_distribution(observations) is not before.distribution
    before.check(policy)


def test_the_policys_distribution_is_preserved_when_something_fails() -> None:
    policy = make_policy("box")
    before = Untouched.of(policy)
    with pytest.raises(RuntimeError), preserved_distribution(policy):
        policy.get_distribution(th.zeros(2, 99))
    before.check(policy)
