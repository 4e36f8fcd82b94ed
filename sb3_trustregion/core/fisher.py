"""
Fisher-vector products in Gauss-Newton form: F·v = mean over states of Jᵀ M J v.

J is the Jacobian of the distribution's parameters, M the closed-form Fisher matrix of the distribution. Against double
back-propagation of the KL this is positive semi-definite by construction, and cheaper. ``torch.func.linearize`` gives
the same products at the same speed but traces the network anew at every update, 60-95 ms, more than a whole update.

J·v is by two reverse passes where autograd can: u ↦ Jᵀu is linear in u, so its derivative along v is J·v. The graph is
built once an update and serves every product. Some operations have no second derivative (PyTorch's fused attention,
functions whose backward pass is written by hand): there, by central differences.
"""

import warnings
from collections.abc import Callable, Sequence

import torch as th
from stable_baselines3.common.distributions import Distribution

from sb3_trustregion.core.distributions import Parameters, fisher_times

# u·(Jv) and (Jᵀu)·v agree to rounding, or not at all.
ADJOINT_TOLERANCE = 1e-2
# Small enough to pass through hooks that clip gradients.
PROBE = 1e-3
# Products are linear, and pass so through hooks of the user's that clip gradients. A power of two costs no digit.
SMALL = 2.0**-20


class FisherProduct:
    """
    The damped matrix F + λI as a function.

    ``outputs`` are parameters of the action distributions, batch first, attached to a graph from the leaf ``vector``,
    shape (P,), which is θ; ``jacobian_times`` is v ↦ J·v, None for two reverse passes.
    """

    def __init__(
        self,
        kind: Distribution,
        outputs: Parameters,
        vector: th.Tensor,
        damping: float,
        jacobian_times: Callable[[th.Tensor], Parameters] | None = None,
    ) -> None:
        self.kind = kind
        self.outputs = outputs
        self.at = tuple(output.detach() for output in outputs)
        self.vector = vector
        self.damping = damping
        self.n_states = len(outputs[0])
        self.jacobian_times = jacobian_times or ReverseTwice(outputs, vector)

    def __call__(self, v: th.Tensor) -> th.Tensor:
        """(F + λI)·v, shapes (P,)."""
        weighted = fisher_times(self.kind, self.at, self.jacobian_times(v))
        product = pulled_back(self.outputs, self.vector, tuple(SMALL * part for part in weighted), retain_graph=True)
        return th.add(product.div_(SMALL * self.n_states), v, alpha=self.damping)


class ReverseTwice:
    """J·v by two reverse passes, exact; outputs are attached to a graph from the leaf θ, shape (P,)."""

    def __init__(self, outputs: Parameters, vector: th.Tensor) -> None:
        self.cotangents = tuple(th.zeros_like(output, requires_grad=True) for output in outputs)
        self.pulled_back = pulled_back(outputs, vector, self.cotangents, create_graph=True)

    def __call__(self, v: th.Tensor) -> Parameters:
        """J·v of v, shape (P,)."""
        tangents = th.autograd.grad(self.pulled_back, self.cotangents, v, retain_graph=True, materialize_grads=True)
        return tuple(tangents)


def pulled_back(outputs: Parameters, vector: th.Tensor, cotangents: Parameters, **kwargs: bool) -> th.Tensor:
    """Jᵀu, shape (P,), of cotangents u shaped as the outputs; some, as a frozen σ, need not hang on the leaf θ."""
    attached = [pair for pair in zip(outputs, cotangents, strict=True) if pair[0].requires_grad]
    (result,) = th.autograd.grad([one for one, _ in attached], vector, [u for _, u in attached], **kwargs)
    return result


class CentralDifferences:
    """J·v by two evaluations of the outputs as a function of θ, to about four digits in single precision."""

    def __init__(self, function: Callable[[th.Tensor], Parameters], vector: th.Tensor) -> None:
        self.function = function
        self.origin = vector.detach()
        # Rounding of the values against curvature (Nocedal & Wright 2006, eq. 8.7).
        self.length = th.finfo(vector.dtype).eps ** (1.0 / 3.0) * (1.0 + self.origin.norm())

    @th.no_grad()
    def __call__(self, v: th.Tensor) -> Parameters:
        """J·v of v, shape (P,)."""
        step = self.length / v.norm().clamp(min=th.finfo(v.dtype).tiny)
        pairs = zip(self.function(self.origin + step * v), self.function(self.origin - step * v), strict=True)
        return tuple((after - before) / (2.0 * step) for after, before in pairs)


def differentiable_twice(outputs: Sequence[th.Tensor], leaves: Sequence[th.Tensor]) -> bool:
    """Whether two reverse passes give J·v, as u·(Jv) = (Jᵀu)·v tells; a user whose policy is slower is told."""
    generator = th.Generator("cpu").manual_seed(0)
    u = [(PROBE * _random_like(output, generator)).requires_grad_() for output in outputs]
    v = [_random_like(leaf, generator) for leaf in leaves]
    reason = "an operation of it loses its second derivative"
    try:
        pulled = th.autograd.grad(outputs, leaves, u, create_graph=True)
        tangents = th.autograd.grad(pulled, u, v, materialize_grads=True)
    except RuntimeError as error:
        reason = str(error)
    else:
        ends = _dot(u, tangents), _dot(pulled, v)
        scale = sum(float((one.detach() * other).abs().sum()) for one, other in zip(pulled, v, strict=True))
        if not abs(ends[0] - ends[1]) > ADJOINT_TOLERANCE * scale:  # what is not finite is found elsewhere
            return True
    warnings.warn(f"policy cannot be differentiated twice, Fisher products by differences: {reason}", stacklevel=2)
    return False


def _random_like(tensor: th.Tensor, generator: th.Generator) -> th.Tensor:
    return th.randn(tensor.shape, generator=generator, device="cpu").to(tensor)


def _dot(one: Sequence[th.Tensor], other: Sequence[th.Tensor]) -> float:
    return sum(float((a.detach() * b.detach()).sum()) for a, b in zip(one, other, strict=True))
