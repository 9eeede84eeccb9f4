"""Agreement of a fast posterior with an oracle's, event by event: mean, spread, correlation, and all of them jointly (`joint.py`).

Two estimates of one posterior from n and m independent draws do not agree exactly: z ~ √(1/n + 1/m) |t_{m-1}| and
ratio² ~ F_{n-1, m-1}. Where their share beyond the tolerance, plus three standard errors over events, exceeds the `share` that the gate
allows (below about 20 draws), it replaces it. Gaussians given by mean and covariance have no such noise.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from vardax_flax.core.config import require
from vardax_flax.validation.joint import Moments, enough, joint_noise, joint_scores
from vardax_flax.validation.result import GateResult, assert_passed

CORRELATION_TOLERANCE = 0.3
MAX_JOINT = 128  # components, evenly spread, of which the joint covariance is judged


class _Rule(NamedTuple):
    """One condition of the gate: passes if value ≤ bound."""

    name: str
    value: float
    bound: float
    text: str
    do: str

    @property
    def ok(self) -> bool:
        return bool(self.value <= self.bound)  # False for NaN


def _moments(name: str, posterior: Any) -> Moments:
    if isinstance(posterior, tuple):
        require(len(posterior) == 2, f"`{name}` = (mean, cov)", f"{len(posterior)} items", "pass a pair or an array of draws")
        mean, cov = (np.asarray(part, float) for part in posterior)
        ok = mean.ndim == 2 and cov.shape == (*mean.shape, mean.shape[-1])
        require(ok, f"`{name}` of shapes (events, dim), (events, dim, dim)", (mean.shape, cov.shape), "reshape them")
        joint = _joint(mean.shape[-1])
        return Moments(mean, np.sqrt(np.diagonal(cov, axis1=1, axis2=2)), cov[:, joint[:, None], joint], math.inf)
    draws = np.asarray(posterior, float)
    require(draws.ndim == 3 and draws.shape[1] >= 10, f"`{name}` of shape (events, n >= 10, dim)", draws.shape, "draw more or reshape")
    n = float(draws.shape[1])
    with np.errstate(invalid="ignore", over="ignore"):  # infinite draws give NaN, which fails every rule
        mean = draws.mean(axis=1)
        centred = (draws - mean[:, None])[..., _joint(draws.shape[-1])]
        return Moments(mean, draws.std(axis=1, ddof=1), np.einsum("eni,enj->eij", centred, centred) / (n - 1), n)


def _joint(dim: int) -> np.ndarray:
    return np.linspace(0, dim - 1, min(dim, MAX_JOINT)).round().astype(int)


def _allowed(share: float, by_chance: float, n_events: int) -> float:
    """The stated share, or what sampling noise alone gives plus three standard errors if that is more."""
    return max(share, by_chance + 3.0 * math.sqrt(by_chance * (1.0 - by_chance) / n_events))


def _correlation_error(fast: Moments, oracle: Moments) -> np.ndarray:
    """Root mean square over events of the difference of each correlation, `(joint, joint)`, sampling noise subtracted."""

    def correlation(cov: np.ndarray) -> np.ndarray:
        sd = np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
        return cov / (sd[:, :, None] * sd[:, None, :])

    c_fast, c_oracle = correlation(fast.cov), correlation(oracle.cov)
    noise = (1 - c_fast**2) ** 2 / fast.n + (1 - c_oracle**2) ** 2 / oracle.n
    return np.sqrt(np.maximum(np.mean((c_fast - c_oracle) ** 2 - noise, axis=0), 0.0))


def posterior_agreement(
    p_fast: Any,
    p_oracle: Any,
    *,
    tolerance_sigma: float = 1.0,
    spread_ratio: float = 2.0,
    share: float = 0.05,
    correlation_tolerance: float = CORRELATION_TOLERANCE,
    strict: bool = False,
    level: float | None = None,
) -> GateResult:
    """Compare a fast posterior with an oracle's on the same observations.

    With z = |mean_fast - mean_oracle| / sd_oracle and ratio = sd_fast / sd_oracle, per event and component, the gate passes if

    1. z > tolerance_sigma for at most a share of events × components,
    2. the ratio leaves [1 / spread_ratio, spread_ratio] for at most that share,
    3. in every component the median over events meets both tolerances, so that many good components cannot hide a bad one,
    4. for every pair of components the root-mean-square error of the correlation over events is at most `correlation_tolerance`,
    5. jointly, with (F, O) the two covariances in d components, δᵀF⁻¹δ / d > tolerance_sigma², tr(F⁻¹O) / d > spread_ratio² and
       tr(O⁻¹F) / d > spread_ratio² hold for at most that share of events: what exact marginals with wrong thin directions violate.

    `strict` replaces 1 to 3 by: no event and component beyond either tolerance. Draws bring sampling noise, see the top of this file.
    With a `level` the posteriors must also be the same but for that noise: each of the three averages over events is a scaled χ² then, and
    the gate fails if one exceeds its quantile at 1 - level / 3. For posteriors said to be exact, by independent Gaussian draws.

    Args:
        p_fast: `(mean (events, dim), cov (events, dim, dim))` of Gaussians, or draws `(events, n, dim)`.
        p_oracle: likewise.
        tolerance_sigma: of z, in oracle standard deviations.
        spread_ratio: > 1.
        share, correlation_tolerance: in [0, 1); absolute.
        strict: see above.
        level: rate of false alarms of the test of equality, or None to ask for the tolerances alone.

    Returns:
        `statistic` and `bound` are those of the first condition that fails, else of the first (strict: the largest z); `details` holds z,
        ratio, KL(fast ‖ oracle) of marginals and of joint Gaussians (nats), Mahalanobis² / dim of the mean difference, correlation errors,
        and the statistics of `joint.py` (NaN below 4 dim + 8 draws, which leave no covariance to invert). `p_value` belongs to `level`.

    Raises:
        ConfigError: shapes that do not match, fewer than 10 draws, an oracle without spread, or a `level` without draws enough.

    Example:
        >>> posterior_agreement(model.sample(batch, key, 500), (mean, cov)).passed
    """
    require(spread_ratio > 1 and 0 <= share < 1, "spread_ratio > 1 and 0 <= share < 1", (spread_ratio, share), "correct them")
    fast, oracle = _moments("p_fast", p_fast), _moments("p_oracle", p_oracle)
    require(fast.mean.shape == oracle.mean.shape, f"p_fast of shape {oracle.mean.shape}", fast.mean.shape, "compare the same events")
    require(bool((oracle.sd > 0).all()), "an oracle with spread", "a standard deviation that is not positive", "repair the oracle")
    difference = fast.mean - oracle.mean
    z, ratio, limits = np.abs(difference) / oracle.sd, fast.sd / oracle.sd, (tolerance_sigma, spread_ratio)
    with np.errstate(divide="ignore", invalid="ignore"):  # a fast posterior without spread gives infinities, which fail below
        kl = 0.5 * (ratio**2 + z**2 - 1.0) - np.log(ratio)
        correlation = _correlation_error(fast, oracle)
        rules = _strict_rules(z, ratio, *limits) if strict else _share_rules(z, ratio, *limits, share, fast.n, oracle.n)
    rules.append(_correlation_rule(correlation, z.shape[-1], correlation_tolerance))
    scores, joint, p_value = _jointly(fast, oracle, difference, limits, 0.0 if strict else share, level)
    arrays = {"z": z, "spread_ratio": ratio, "kl_marginal": kl, **scores, "correlation_error": correlation}
    return _verdict(rules + joint, arrays, f"share beyond {tolerance_sigma:g}σ {(~(z <= tolerance_sigma)).mean():.1%}", p_value)


def _jointly(
    fast: Moments, oracle: Moments, difference: np.ndarray, limits: tuple[float, float], share: float, level: float | None
) -> tuple[dict[str, np.ndarray], list[_Rule], float | None]:
    """The statistics of `joint.py`, what they must meet, and the p-value of equality if a level is given."""
    components = _joint(difference.shape[-1])
    dim = len(components)
    scores = joint_scores(fast, oracle, difference[:, components])
    rules = []
    if enough(min(fast.n, oracle.n), dim):
        rules = _joint_rules(scores, fast, oracle, dim, (limits[0] ** 2, limits[1] ** 2), share)
    if level is None:
        return scores, rules, None
    equal, p_value = _equality_rules(scores, fast, oracle, dim, level)
    return scores, rules + equal, p_value


def _verdict(rules: list[_Rule], arrays: dict[str, np.ndarray], share: str, p_value: float | None) -> GateResult:
    passed = all(rule.ok for rule in rules)
    worst = next((rule for rule in rules if not rule.ok), rules[0])
    details = {
        **arrays,
        "rules": [{"name": r.name, "value": r.value, "bound": r.bound, "passed": r.ok} for r in rules],
        "expected": f"{worst.name} <= {worst.bound:.3g}",
        "worst": f"{worst.value:.3g} ({worst.text})",
        "do": worst.do,
    }
    failure = f"{worst.name} {worst.value:.3g}, bound {worst.bound:.3g} ({worst.text})"
    head = "agrees with the oracle" if passed else f"disagrees with the oracle: {failure}"
    (n_events, dim), ratio = arrays["z"].shape, np.median(arrays["spread_ratio"])
    middle = f"median z {np.median(arrays['z']):.2f}, {share}, median spread ratio {ratio:.2f}"
    summary = f"{head}; {middle} ({n_events} events × {dim} components)"
    if np.isnan(arrays["kl_joint"]).all():
        summary += "; too few draws to judge the covariance as a whole"
    return GateResult("posterior_agreement", passed, worst.value, worst.bound, p_value, summary, details)


def _share_rules(z: np.ndarray, ratio: np.ndarray, sigma: float, limit: float, share: float, n_fast: float, n_oracle: float) -> list[_Rule]:
    n_events = z.shape[0]
    z_chance = ratio_chance = 0.0
    noise = math.sqrt(1.0 / n_fast + 1.0 / n_oracle)
    degrees = tuple(n - 1 if math.isfinite(n) else 1e9 for n in (n_fast, n_oracle))
    if noise > 0:
        z_chance = 2.0 * float(stats.t.sf(sigma / noise, degrees[1]))
        ratio_chance = float(stats.f.sf(limit**2, *degrees) + stats.f.cdf(limit**-2, *degrees))
    beyond, fold = ~(z <= sigma), np.exp(np.abs(np.log(ratio)))
    outside = ~(fold <= limit)
    z_median, fold_median = np.median(z, axis=0), np.median(fold, axis=0)
    at, wide = int(np.argmax(beyond.mean(axis=0))), int(np.argmax(outside.mean(axis=0)))
    at_median, wide_median = int(np.argmax(z_median)), int(np.argmax(fold_median))
    mean_do = "train longer or on more simulations; the posterior mean is off"
    spread_do = f"check the spread; its median ratio to the oracle's there is {np.median(ratio[:, wide]):.2f}"
    z_share, ratio_share = _allowed(share, z_chance, n_events), _allowed(share, ratio_chance, n_events)
    return [
        _Rule(f"share of z > {sigma:g}", float(beyond.mean()), z_share, f"worst component {at}", mean_do),
        _Rule("share of spread ratios outside", float(outside.mean()), ratio_share, f"worst component {wide}", spread_do),
        _Rule("median z of a component", float(z_median[at_median]), sigma, f"component {at_median}", mean_do),
        _Rule("median spread ratio of a component", float(fold_median[wide_median]), limit, f"component {wide_median}", spread_do),
    ]


def _strict_rules(z: np.ndarray, ratio: np.ndarray, sigma: float, limit: float) -> list[_Rule]:
    fold = np.exp(np.abs(np.log(ratio)))
    where, wide = (np.unravel_index(int(np.argmax(v)), v.shape) for v in (z, fold))
    return [
        _Rule("largest z", float(z[where]), sigma, f"event {where[0]}, component {where[1]}", "train longer or on more simulations"),
        _Rule("largest spread ratio", float(fold[wide]), limit, f"event {wide[0]}, component {wide[1]}", "check the spread of that event"),
    ]


def _correlation_rule(error: np.ndarray, dim: int, tolerance: float) -> _Rule:
    i, j = np.unravel_index(int(np.argmax(error)), error.shape)
    joint = _joint(dim)
    do = "use a head with full covariance, a flow or a score model; correlations are lost or wrong"
    return _Rule("correlation error", float(error[i, j]), tolerance, f"components {joint[i]} and {joint[j]}", do)


JOINT = {
    "mahalanobis_fast": ("squared distance of the means", "train longer or on more simulations; the mean is off in a thin direction"),
    "spread_under_fast": ("spread of the oracle under the fast posterior", "widen the posterior, or use a head with full covariance"),
    "spread_under_oracle": ("spread of the fast posterior under the oracle", "use a head with full covariance, a flow or a score model"),
}


def _joint_rules(
    scores: dict[str, np.ndarray], fast: Moments, oracle: Moments, dim: int, limits: tuple[float, float], share: float
) -> list[_Rule]:
    noise = joint_noise(fast, oracle, dim)
    rules = []
    for (name, (text, do)), limit in zip(JOINT.items(), (limits[0], limits[1], limits[1]), strict=True):
        beyond = ~(scores[name] <= limit)
        allowed = _allowed(share, noise[name].beyond(limit), len(beyond))
        where = f"event {int(np.argmax(scores[name]))}: {np.max(scores[name]):.3g}"
        rules.append(_Rule(f"share of joint {text} > {limit:g}", float(beyond.mean()), allowed, where, do))
    return rules


def _equality_rules(
    scores: dict[str, np.ndarray], fast: Moments, oracle: Moments, dim: int, level: float
) -> tuple[list[_Rule], float]:
    require(0 < level < 1, "0 < level < 1", level, "pass such a level")
    least = min(fast.n, oracle.n)
    require(math.isfinite(least) and enough(least, dim), f"at least {4 * dim + 8} draws on one side for a `level`", least, "pass draws")
    rules, p_values = [], []
    for name, noise in joint_noise(fast, oracle, dim).items():
        value, bound, p = noise.average(scores[name], level / len(JOINT))
        text, do = JOINT[name]
        rules.append(_Rule(f"average {text}, in units of equal posteriors,", value, bound, f"p = {p:.2g}", do))
        p_values.append(p)
    return rules, min(1.0, len(JOINT) * min(p_values))


def assert_posterior_agreement(p_fast: Any, p_oracle: Any, **options: Any) -> GateResult:
    """Raise unless a fast posterior agrees with the oracle's; options as for `posterior_agreement`.

    Raises:
        AssertionError: names the worst component, its value, the bound and what to do.

    Example:
        >>> result = assert_posterior_agreement((mean, cov), (oracle_mean, oracle_cov))
    """
    result = posterior_agreement(p_fast, p_oracle, **options)
    assert_passed(result)
    return result
