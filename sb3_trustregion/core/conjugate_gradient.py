"""Conjugate gradient for (F + λI)·x = g (Hestenes & Stiefel 1952; Nocedal & Wright, algorithm 5.2)."""

from collections.abc import Callable
from typing import NamedTuple

import torch as th


class CGSolution(NamedTuple):
    """What conjugate gradient found."""

    x: th.Tensor  # (P,), the solution
    residual: th.Tensor  # scalar, relative residual ‖g - (F + λI)x‖/‖g‖
    n_steps: int  # products spent
    damped_curvature: th.Tensor  # scalar, xᵀ(F + λI)x, known without another product


def conjugate_gradient(
    product: Callable[[th.Tensor], th.Tensor], g: th.Tensor, max_steps: int, residual_tol: float
) -> CGSolution:
    """
    Solve product(x) = g, shapes (P,), from x = 0; ``product`` is a symmetric positive definite matrix.

    Stops at the relative residual ``residual_tol``: 0 spends all ``max_steps`` products. A direction of curvature that
    is not positive (rounding, overflow) ends the iteration with the solution so far. On CUDA the stop is a mask, not a
    branch, so that the host never waits inside the loop.
    """
    on_cpu = g.device.type == "cpu"
    x, r, p = th.zeros_like(g), g.clone(), g.clone()
    rr = r.dot(r)
    gg = rr.clone()
    tiny = th.finfo(g.dtype).tiny
    threshold = th.clamp(residual_tol**2 * gg, min=tiny)
    n_steps = 0
    for _ in range(max_steps):
        active = rr > threshold
        if on_cpu and not active:
            break
        Ap = product(p)
        curvature = p.dot(Ap)
        active = active & (curvature > 0.0) & th.isfinite(curvature)
        if on_cpu and not active:
            break
        alpha = rr / curvature
        next_x, next_r = th.addcmul(x, alpha, p), th.addcmul(r, alpha, Ap, value=-1)
        # where, not a product with zero: 0·inf would let a broken direction in.
        x, r = (next_x, next_r) if on_cpu else (th.where(active, next_x, x), th.where(active, next_r, r))
        new_rr = r.dot(r)
        p = th.addcmul(r, th.where(active, new_rr / rr, 0.0), p)
        rr = new_rr
        n_steps += 1
    residual = th.sqrt(rr / th.clamp(gg, min=tiny))
    return CGSolution(x, residual, n_steps, x.dot(g - r))
