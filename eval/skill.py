"""Does a posterior know more than nothing? Predictors that do not look at the observation, and what an answer must gain over them.

    climatology   draws of other simulations' states
    constant      their mean, without spread
    prior         x_b plus other simulations' increments x − x_b; without a background the prior is the climatology

An answer has skill if it beats each of them by a factor of 2 in the RMSE of the mean and in the CRPS, in units of each component's
climatological spread. Some observations say too little for that, whoever reads them:

    where an oracle reaches a factor f* on the same windows, max(f*/1.1, √f*) is enough, if that is less than 2;
    without one the mean must be no worse than a kernel ridge regression on 512 simulations, and
    in both cases what is gained over the prior must be positive by 3 standard errors: log q(x | y) − log p(x) in nats where both
    densities are known, else the CRPS.

So the prior itself never passes, and an exact posterior never fails but by chance.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from eval.scores import Scored, score, score_point
from vardax_flax.core.batch import Batch
from vardax_flax.core.interfaces import Simulator
from vardax_flax.validation import GateResult
from vardax_flax.validation.quantities import make_pilot, regress

FACTOR = 2.0
STANDARD_ERRORS = 3.0
RIDGE = "kernel ridge regression"


class Baselines(NamedTuple):
    """Predictors that any posterior has to beat.

    Args:
        scored: by name.
        ridge: a regression that does look at the observation.
        scale: climatological standard deviation of each component `(dim,)`.
    """

    scored: dict[str, Scored]
    ridge: Scored
    scale: np.ndarray


def baselines(simulator: Simulator, batch: Batch, others: Batch, key: jax.Array) -> Baselines:
    """The predictors' answers to held-out windows.

    Args:
        simulator: of the joint distribution.
        batch: windows with true states `(events, …)`.
        others: simulations independent of them.
        key: of the regression's simulations.
    """
    truth, states = (np.asarray(b.target, np.float64).reshape(len(b.target), -1) for b in (batch, others))
    scale = np.where(states.std(axis=0) > 0, states.std(axis=0), 1)

    def pooled(pool: np.ndarray, origin: np.ndarray) -> Scored:
        # the distribution is the same for every window up to its origin: one pool, broadcast
        found = score(np.broadcast_to(pool, (len(truth), *pool.shape)), truth - origin)
        return found._replace(mean=found.mean + origin, truth=truth)

    scored = {"climatology": pooled(states, np.zeros_like(truth)), "constant": score_point(states.mean(axis=0), truth)}
    if batch.background is not None and batch.background.shape == batch.target.shape:
        origins = [np.asarray(b.background, np.float64).reshape(len(b.background), -1) for b in (batch, others)]
        scored["prior"] = pooled(states - origins[1], origins[0])
    else:
        scored["prior"] = scored["climatology"]
    pilot = make_pilot(simulator, key)
    fitted = jax.jit(jax.vmap(lambda element: pilot.mean + pilot.scale * regress(pilot, element)))(batch._replace(target=None))
    return Baselines(scored, score_point(np.asarray(fitted, np.float64), truth), scale)


def skill(answer: Scored, base: Baselines, oracle: Scored | None, gain: np.ndarray | None) -> GateResult:
    """The rule at the top of this file.

    Args:
        answer: to the windows.
        base: of the same windows.
        oracle: on the same windows; None if there is none.
        gain: log q(x | y) − log p(x) in nats of every window `(events,)`; None where a density is not known.
    """
    factors = _factors(answer, base)
    theirs = None if oracle is None else _factors(oracle, base)
    worst = min(factors, key=lambda name: factors[name] / _required(name, theirs))
    required = _required(worst, theirs)
    reached = factors[worst] >= required
    ok, reasons = reached, [f"{worst} ÷ its own {factors[worst]:.2f}, at least {required:.2f} required"]
    if theirs is None and not reached:
        error, ridge = (np.mean((s.error / base.scale) ** 2, axis=1) for s in (answer, base.ridge))
        excess, deviation = _mean_and_error(error - ridge)
        ok = excess <= STANDARD_ERRORS * deviation
        both = f"RMSE {answer.rmse(base.scale):.3g}, of a {RIDGE} {base.ridge.rmse(base.scale):.3g}"
        reasons.append(f"no oracle says what could be reached; {both}")
    if theirs is not None and required < FACTOR:
        reasons.append(f"the problem says little: the oracle reaches {theirs[worst]:.2f}")
    nats = gain is not None
    gains = (base.scored["prior"].crps - answer.crps).mean(axis=1) if gain is None else gain
    value, deviation = _mean_and_error(np.asarray(gains, np.float64))
    reasons.append(f"gained over the prior {value:.3g} ± {deviation:.2g} {'nats' if nats else 'of CRPS'}")
    if required < FACTOR or not reached:
        ok = ok and value > STANDARD_ERRORS * deviation  # False for NaN
    details = {
        "factors": factors, "oracle_factors": theirs, "gain": value, "gain_error": deviation, "gain_unit": "nats" if nats else "CRPS",
        "expected": f"{worst} ÷ its own >= {required:.2f}; below 2, also a gain over the prior of {STANDARD_ERRORS:g} standard errors",
        "worst": "; ".join(reasons), "do": "train longer; a model this close to its prior has learned next to nothing from the observation",
    }  # fmt: skip
    return GateResult("skill", bool(ok), factors[worst], required, None, "; ".join(reasons), details)


def _factors(answer: Scored, base: Baselines) -> dict[str, float]:
    """How many times better than each predictor."""
    out = {}
    for name, other in base.scored.items():
        for what, measure in (("RMSE", Scored.rmse), ("CRPS", Scored.mean_crps)):
            own = measure(answer, base.scale)
            value = measure(other, base.scale) / own if own != 0 else math.inf
            out[f"{what} of the {name}"] = 0.0 if math.isnan(value) else value
    return out


def _required(name: str, oracle: dict[str, float] | None) -> float:
    if oracle is None:
        return FACTOR
    return min(FACTOR, max(oracle[name] / 1.1, math.sqrt(max(oracle[name], 1.0))))


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def skill_table(answer: Scored, base: Baselines, oracle: Scored | None, gain: np.ndarray | None) -> dict[str, Any]:
    """The answer, the oracle and the predictors on the same windows."""
    answers = {"amortized": answer} | ({} if oracle is None else {"oracle": oracle}) | {RIDGE: base.ridge} | base.scored
    own = (answer.rmse(base.scale), answer.mean_crps(base.scale))
    rows = []
    for name, one in answers.items():
        error, crps = one.rmse(base.scale), one.mean_crps(base.scale)
        rows.append([name, error, error / own[0], crps, crps / own[1]])
    note = "In units of each component's climatological standard deviation; a value without spread has its absolute error as CRPS."
    if gain is not None:
        value, deviation = _mean_and_error(gain)
        note += f" Information gained over the prior: {value:.3g} ± {deviation:.2g} nats."
    columns = ["predictor", "RMSE", "÷ amortized", "CRPS", "÷ amortized"]
    title = f"Does it know more than nothing? {len(answer.truth)} held-out windows"
    return {"title": title, "columns": columns, "rows": rows, "note": note}
