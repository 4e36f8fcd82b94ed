import pytest
import torch as th

from sb3_trustregion.core.fisher import FisherProduct
from sb3_trustregion.core.surrogate import Surrogate
from tests.core.policies import (
    KINDS,
    actor_of,
    dense,
    dense_fisher,
    make_batch,
    make_policy,
    make_surrogate,
    moved,
    torch_distributions,
)

every_kind = pytest.mark.parametrize("kind", KINDS)


def outputs_at(surrogate: Surrogate, vector: th.Tensor) -> th.Tensor:
    """What the network puts out for all states, as one vector, by writing θ into a copy of the policy."""
    policy = moved(surrogate, vector)
    with th.no_grad():
        distributions = torch_distributions(policy.get_distribution(surrogate.batch.observations))
    parts = []
    for distribution in distributions:
        is_gaussian = isinstance(distribution, th.distributions.Normal)
        parts += [distribution.mean, distribution.stddev] if is_gaussian else [distribution.logits]
    return th.cat([part.reshape(-1) for part in parts])


@every_kind
def test_products_are_those_of_the_hessian_of_the_kl(kind: str) -> None:
    surrogate = make_surrogate(kind, damping=0.0, n_steps=10)
    fisher = dense(surrogate.fisher_product, len(surrogate.origin))
    expected = dense_fisher(surrogate)
    assert float(expected.abs().max()) > 1e-3
    th.testing.assert_close(fisher, expected, rtol=1e-7, atol=1e-10)


@every_kind
def test_the_matrix_is_symmetric_and_positive_semi_definite(kind: str) -> None:
    surrogate = make_surrogate(kind, damping=0.0, n_steps=10)
    fisher = dense(surrogate.fisher_product, len(surrogate.origin))
    th.testing.assert_close(fisher, fisher.T, rtol=0.0, atol=1e-12)
    eigenvalues = th.linalg.eigvalsh(fisher)
    assert float(eigenvalues.min()) > -1e-12 * float(eigenvalues.max())
    assert float(eigenvalues.max()) > 0.0


def test_damping_is_added_to_the_diagonal() -> None:
    size = len(make_surrogate("box").origin)
    bare, damped = (dense(make_surrogate("box", damping=damping).fisher_product, size) for damping in (0.0, 0.3))
    # 0.3 for each of two action dimensions, as sb3-contrib averages over them
    th.testing.assert_close(damped - bare, 0.6 * th.eye(size, dtype=th.float64), rtol=0.0, atol=1e-12)


@every_kind
def test_the_jacobian_is_that_of_finite_differences(kind: str) -> None:
    surrogate = make_surrogate(kind, whole=True, n_steps=10)
    v = th.randn(surrogate.origin.shape, generator=th.Generator().manual_seed(1), dtype=th.float64)
    step = 1e-5 * v
    difference = outputs_at(surrogate, surrogate.origin + step) - outputs_at(surrogate, surrogate.origin - step)
    product = th.cat([part.reshape(-1) for part in surrogate.fisher_product.jacobian_times(v)])
    assert float(product.abs().max()) > 0.1
    th.testing.assert_close(product, difference / 2e-5, rtol=1e-6, atol=1e-8)


@every_kind
def test_single_precision_is_close_to_double(kind: str) -> None:
    double, single = (make_surrogate(kind, double=precision, n_steps=10) for precision in (True, False))
    v = th.randn(double.origin.shape, generator=th.Generator().manual_seed(2), dtype=th.float64)
    exact, rounded = double.fisher_product(v), single.fisher_product(v.float()).double()
    assert float((exact - rounded).norm() / exact.norm()) < 1e-4


def test_products_are_linear_and_repeatable() -> None:
    product = make_surrogate("box").fisher_product
    v, w = th.randn(2, len(product.vector), generator=th.Generator().manual_seed(3), dtype=th.float64)
    first = product(v)
    th.testing.assert_close(product(2.0 * v + w), 2.0 * first + product(w), rtol=1e-10, atol=1e-12)
    assert th.equal(product(v), first)


def test_the_matrix_is_a_mean_over_states() -> None:
    """One state said twice is one state."""
    policy = make_policy("box")
    actor, batch = actor_of(policy), make_batch(policy, n_steps=5)
    twice = batch.select(th.arange(batch.n_samples).repeat(2))
    v = th.randn(sum(actor.sizes), generator=th.Generator().manual_seed(4), dtype=th.float64)
    once, again = (Surrogate(policy, actor, data, 0.1).fisher_product(v) for data in (batch, twice))
    th.testing.assert_close(once, again, rtol=1e-10, atol=1e-12)


def test_an_output_without_a_gradient_counts_as_constant() -> None:
    """The mean of a Gaussian does not depend on its deviation's parameter: materialised as zeros, not refused."""
    vector = th.tensor([0.5], dtype=th.float64, requires_grad=True)
    mean, deviation = vector.expand(4, 1) * 2.0, th.ones(4, 1, dtype=th.float64, requires_grad=True) * 0.5
    kind = make_policy("box").action_dist
    product = FisherProduct(kind, (mean, deviation), vector, damping=0.0)
    # 1/σ² times the squared slope of the mean
    assert float(product(th.ones(1, dtype=th.float64))) == pytest.approx(4.0 * 4.0)
