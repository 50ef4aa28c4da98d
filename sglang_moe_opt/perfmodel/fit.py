"""Fitting the parameters to measured throughput: least squares on logarithms with the priors, and their covariance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.perfmodel.measurements import MeasuredPoint
from sglang_moe_opt.perfmodel.parameters import (
    PRIORS,
    SCALES,
    Array,
    Fitted,
    Parameters,
    prior_parameters,
    to_free,
    with_free,
)
from sglang_moe_opt.perfmodel.serving import Workload, serve
from sglang_moe_opt.perfmodel.step import Setup

MODEL_SD: Final = 0.05
"""How far the model itself is off a measured throughput: standard deviation of the logarithm. With it, a point counts
as much as a priori knowledge of a parameter that moves it by 5 %."""


@dataclass(frozen=True)
class Requests:
    """Tokens of each request: in and out."""

    input_tokens: int
    output_tokens: int


def predict_total_tok_s(setup: Setup, parameters: Parameters, requests: Requests, point: MeasuredPoint) -> float:
    """Prompt and generated tokens per second of a measured point, at the machine's ceilings of its time."""
    if point.ceilings is not None:
        setup = replace(setup, hardware=setup.hardware.with_ceilings(*point.ceilings))
    load = Workload(point.concurrency, requests.input_tokens, requests.output_tokens)
    return serve(setup, point.curve, parameters, load).total_tok_s


def fit(
    setup: Setup,
    requests: Requests,
    points: Sequence[MeasuredPoint],
    *,
    held: Mapping[str, float] | None = None,
    graph_max_batch: int | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Fitted:
    """The parameters that are most probable given measurements and priors.

    Args:
        points: what is fitted to.
        held: parameters with known values, which are not fitted.
        graph_max_batch: of the engine that was measured.

    Raises:
        FieldError: a held parameter that is none, or fewer than 3 points.
    """
    from scipy.optimize import least_squares  # here, as every moe-opt command would wait for it

    kind = setup.hardware.kind
    held = dict(held or {})
    known: dict[str, Any] = dict(held)
    for name in held:
        if name not in SCALES:
            raise FieldError("--hold", name, ", ".join(SCALES))
    if len(points) < 3:
        raise FieldError("--fit", f"{len(points)} points", "3 or more to fit to")
    start = replace(prior_parameters(kind, graph_max_batch), **known)
    names = tuple(name for name, (_, deviation) in PRIORS[kind].items() if deviation > 0 and name not in held)
    center = np.array([to_free(name, PRIORS[kind][name][0]) for name in names])
    deviations = np.array([PRIORS[kind][name][1] for name in names])
    measured = np.log([point.total_tok_s for point in points])
    noise = np.hypot(MODEL_SD, [point.log_sd for point in points])

    def residuals(free: Array) -> Array:
        values = with_free(start, dict(zip(names, free.tolist(), strict=True)))
        predicted = np.log([predict_total_tok_s(setup, values, requests, point) for point in points])
        return np.concatenate([(predicted - measured) / noise, (free - center) / deviations])

    found = least_squares(residuals, center)
    values = with_free(start, dict(zip(names, found.x.tolist(), strict=True)))
    misfit = found.fun[: len(points)] * noise
    record = {
        **(provenance or {}),
        "points": len(points),
        "held": held,
        "median_abs_error": float(np.median(np.abs(np.expm1(misfit)))),
        "max_abs_error": float(np.abs(np.expm1(misfit)).max()),
    }
    return Fitted(values, kind, names, np.linalg.inv(found.jac.T @ found.jac), record)
