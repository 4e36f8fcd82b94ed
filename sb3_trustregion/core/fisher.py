"""
Fisher-vector products in Gauss-Newton form: F·v = mean over states of Jᵀ M J v.

J is the Jacobian of the distribution's parameters, M the closed-form Fisher matrix of the distribution. Against double
back-propagation of the KL this is positive semi-definite by construction, and cheaper: the graph is built once an
update and serves every product. ``torch.func.linearize`` gives the same products at the same speed but traces the
network anew at every update, 60-95 ms here, which is more than a whole update takes.
"""

from collections.abc import Callable

import torch as th
from stable_baselines3.common.distributions import Distribution

from sb3_trustregion.core.distributions import Parameters, fisher_times
from sb3_trustregion.core.jacobian import ReverseTwice, pulled_back

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
