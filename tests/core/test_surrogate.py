import math

import pytest
import torch as th

from sb3_trustregion.core.improvement import batch_means
from sb3_trustregion.core.surrogate import HERE, LEAST_FISHER_STATES, Surrogate
from tests.core.policies import (
    KINDS,
    Untouched,
    actor_of,
    joint_kl,
    make_batch,
    make_policy,
    make_surrogate,
    moved,
    torch_distributions,
)

every_kind = pytest.mark.parametrize("kind", KINDS)


def direction(surrogate: Surrogate, seed: int = 1) -> th.Tensor:
    generator = th.Generator().manual_seed(seed)
    return th.randn(surrogate.origin.shape, generator=generator, dtype=th.float64)


@th.no_grad()
def log_probs_at(surrogate: Surrogate, vector: th.Tensor) -> th.Tensor:
    """log π_θ(a|s) by a copy of the policy with θ written into it."""
    batch = surrogate.batch
    return moved(surrogate, vector).get_distribution(batch.observations).log_prob(batch.actions)


@every_kind
def test_the_gradient_is_that_of_finite_differences(kind: str) -> None:
    surrogate = make_surrogate(kind, whole=True)
    v = 1e-5 * direction(surrogate)
    ahead, behind = surrogate.at(surrogate.origin + v), surrogate.at(surrogate.origin - v)
    slope = float(surrogate.gradient.dot(v))
    assert abs(slope) > 1e-8
    assert (ahead.gain - behind.gain) / 2.0 == pytest.approx(slope, rel=1e-5, abs=1e-12)


def test_the_noise_gradient_is_the_gradient_with_signs() -> None:
    policy = make_policy("box")
    actor, batch = actor_of(policy), make_batch(policy)
    signed = batch._replace(advantages=batch.advantages * batch.signs)
    plain, flipped = Surrogate(policy, actor, batch, 0.1), Surrogate(policy, actor, signed, 0.1)
    assert not th.allclose(plain.gradient, flipped.gradient)
    th.testing.assert_close(plain.noise_gradient, flipped.gradient, rtol=1e-10, atol=1e-14)


def test_samples_of_one_sign() -> None:
    policy = make_policy("box")
    batch = make_batch(policy)
    surrogate = Surrogate(policy, actor_of(policy), batch._replace(signs=-th.ones_like(batch.signs)), 0.1)
    th.testing.assert_close(surrogate.noise_gradient, -surrogate.gradient)
    th.testing.assert_close(surrogate.gradient, Surrogate(policy, actor_of(policy), batch, 0.1).gradient)


@every_kind
def test_a_trial_point_is_what_the_policy_would_be_there(kind: str) -> None:
    surrogate = make_surrogate(kind)
    batch = surrogate.batch
    point = surrogate.origin + 0.1 * direction(surrogate)
    now = surrogate.at(point)

    here, there = (log_probs_at(surrogate, vector) for vector in (surrogate.origin, point))
    terms = batch.advantages * ((there - here).exp() - 1.0)
    assert now.gain == pytest.approx(float(terms.mean()), rel=1e-9)
    assert now.gain_stderr == pytest.approx(batch_means(terms.numpy(), batch.blocks).stderr, rel=1e-9)

    with th.no_grad():
        old, new = (
            torch_distributions(moved(surrogate, vector).get_distribution(batch.observations))
            for vector in (surrogate.origin, point)
        )
    assert now.kl == pytest.approx(float(joint_kl(old, new).mean()), rel=1e-6)
    assert now.kl > 1e-4


@every_kind
def test_nothing_is_gained_by_staying(kind: str) -> None:
    surrogate = make_surrogate(kind)
    stay = surrogate.at(surrogate.origin)
    assert stay.gain == 0.0
    assert stay.kl == 0.0
    assert HERE[:2] == (stay.gain, stay.kl)
    assert HERE.effective_share == pytest.approx(stay.effective_share)


@every_kind
def test_the_policy_is_untouched(kind: str) -> None:
    policy = make_policy(kind)
    actor, batch = actor_of(policy), make_batch(policy)
    before = Untouched.of(policy)
    surrogate = Surrogate(policy, actor, batch, 0.1, fisher_sub_sampling_factor=2)
    before.check(policy)
    surrogate.at(surrogate.origin + 0.1)
    surrogate.fisher_product(surrogate.gradient)
    before.check(policy)


@every_kind
def test_the_policy_is_untouched_by_exceptions(kind: str) -> None:
    policy = make_policy(kind)
    actor, batch = actor_of(policy), make_batch(policy)
    before = Untouched.of(policy)
    surrogate = Surrogate(policy, actor, batch, 0.1)
    with pytest.raises(RuntimeError):
        surrogate.at(surrogate.origin[:-1])
    before.check(policy)
    assert not surrogate.at(math.nan * surrogate.origin).is_finite
    before.check(policy)
    # The network runs, and what comes after it fails.
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        Surrogate(policy, actor, batch._replace(actions=batch.actions[:-1]), 0.1)
    before.check(policy)


def test_the_effective_share_is_kishs() -> None:
    """(Σr)²/(n·Σr²), by which a batch tells the less of a policy, the further it is from those that acted."""
    surrogate = make_surrogate("box")
    shares = []
    for scale in (0.0, 0.1, 1.0):
        point = surrogate.origin + scale * direction(surrogate)
        ratios = (log_probs_at(surrogate, point) - surrogate.log_probs).exp()
        shares.append(surrogate.at(point).effective_share)
        assert shares[-1] == pytest.approx(float(ratios.sum() ** 2 / (len(ratios) * (ratios**2).sum())), rel=1e-6)
    assert shares[0] == 1.0
    assert shares[0] > shares[1] > 0.5 > shares[2]


@pytest.mark.parametrize(("share", "supported"), [(1.0, True), (0.5, True), (0.49, False), (math.nan, False)])
def test_a_step_is_supported_by_half_of_the_samples(share: float, supported: bool) -> None:
    surrogate = make_surrogate("box")
    evaluation = surrogate.at(surrogate.origin)
    promise = evaluation._replace(effective_share=share).promise(0.0, 1.0, used_radius=True)
    assert promise.used_radius == supported


def test_a_point_that_is_not_finite_is_told() -> None:
    surrogate = make_surrogate("box")
    for value in (math.nan, math.inf):
        evaluation = surrogate.at(surrogate.origin + value)
        assert not evaluation.is_finite
        assert all(math.isnan(item) for item in evaluation[:3])
        assert not evaluation.promise(0.0, 1.0, used_radius=True).used_radius
    assert surrogate.at(surrogate.origin + 0.01).is_finite


@pytest.mark.parametrize("field", ["gain", "kl"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_any_part_that_is_not_finite_counts(field: str, value: float) -> None:
    evaluation = make_surrogate("box").at(make_surrogate("box").origin)
    assert evaluation.is_finite
    assert not evaluation._replace(**{field: value}).is_finite


def test_a_policy_without_a_proper_distribution_is_refused() -> None:
    policy = make_policy("box")
    actor, batch = actor_of(policy), make_batch(policy)
    with th.no_grad():
        policy.action_net.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="nan"):
        Surrogate(policy, actor, batch, 0.1)


def test_the_fisher_matrix_may_be_of_some_states_the_gradient_is_of_all() -> None:
    policy = make_policy("box")
    n = 4 * LEAST_FISHER_STATES
    actor, batch = actor_of(policy), make_batch(policy, n_steps=n, n_envs=1)
    whole, half = (Surrogate(policy, actor, batch, 0.1, factor) for factor in (1, 2))
    assert th.equal(whole.gradient, half.gradient)
    assert whole.fisher_product.n_states == n
    assert half.fisher_product.n_states == n // 2
    v = direction(whole)
    assert not th.allclose(whole.fisher_product(v), half.fisher_product(v))
    # Some random states are an unbiased estimate of all: means of means agree.
    shuffled = [batch.select(th.randperm(n)) for _ in range(100)]
    products = th.stack([Surrogate(policy, actor, one, 0.1, 2).fisher_product(v) for one in shuffled])
    errors = (products.mean(dim=0) - whole.fisher_product(v)).norm() / products.std(dim=0).norm() * math.sqrt(100)
    assert float(errors) < 3.0


@pytest.mark.parametrize(
    ("n_states", "expected"), [(4, LEAST_FISHER_STATES), (0.5, LEAST_FISHER_STATES // 2), (1, LEAST_FISHER_STATES)]
)
def test_the_fisher_matrix_is_never_of_a_few_states(n_states: float, expected: int) -> None:
    policy = make_policy("box")
    batch = make_batch(policy, n_steps=int(n_states * LEAST_FISHER_STATES), n_envs=1)
    assert Surrogate(policy, actor_of(policy), batch, 0.1, 1000).fisher_product.n_states == expected
