"""
How the parameters of the action distributions change along a direction: J·v.

By two reverse passes where autograd can: u ↦ Jᵀu is linear in u, so its derivative along v is J·v. The graph is built
once an update and serves every product. Some operations have no second derivative (PyTorch's fused attention, functions
whose backward pass is written by hand): there, by central differences.
"""

import warnings
from collections.abc import Callable, Sequence

import torch as th

from sb3_trustregion.core.distributions import Parameters

# u·(Jv) and (Jᵀu)·v agree to rounding, or not at all.
ADJOINT_TOLERANCE = 1e-2
# Small enough to pass through hooks that clip gradients.
PROBE = 1e-3


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
    """
    Whether two reverse passes give J·v; a user whose policy is slower for want of that is told.

    An operation without a second derivative refuses, or loses its share silently: u·(Jv) = (Jᵀu)·v tells.
    """
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
