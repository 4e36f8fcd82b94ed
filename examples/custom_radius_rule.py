"""A rule of your own for the radius: a function of the evidence so far and of the last judged step."""

import sys

from sb3_trustregion import AdaptiveTRPO
from sb3_trustregion.core.improvement import Improvement
from sb3_trustregion.core.radius import TrustRegionState

n_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000


def one_fifth(state: TrustRegionState, measured: Improvement) -> float:
    """
    Grow a little with each step that was not worse than its noise allows, shrink by more with each that was.

    :param state: sums over the window, such as ``state.pooled_ratio``
    :param measured: the last step: ``actual`` and ``predicted`` improvement, ``stderr``, ``ratio``
    :return: the factor on the squared length of a step: 1.0 leaves it
    """
    return 0.7 if measured.actual < -measured.stderr else 1.1


model = AdaptiveTRPO("MlpPolicy", "Pendulum-v1", gamma=0.9, radius_rule=one_fifth, seed=1)
model.learn(n_steps)
region = model.region
print(f"radius {region.radius:.4f} after {region.n_judged} judged steps, {region.n_rollbacks} of them undone")
