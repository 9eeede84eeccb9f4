"""Jacobians compared by probing: against written-out ones, at the bound itself, and with derivatives planted wrong."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.slow import mostly_slow
from vardax_flax.core.config import ConfigError
from vardax_flax.validation import (
    adjoint_calibration,
    assert_adjoint_calibrated,
    assert_tangent_and_adjoint,
    dot_product_test,
    taylor_test,
)

KEY = jax.random.key(0)
Y = jnp.asarray(np.random.default_rng(0).normal(size=(40, 4)), jnp.float32)
MATRIX = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)), jnp.float32)


def oracle(y):
    return jnp.tanh(MATRIX @ y)


def near(y):
    return 1.01 * oracle(y)


def far(y):
    return 1.2 * oracle(y)


def flipped(y):
    return -oracle(y)


def shifted(y):
    return oracle(y) + 5.0


def careless(y):
    """The oracle's value, and a derivative that misses a tenth."""
    return 0.9 * oracle(y) + jax.lax.stop_gradient(0.1 * oracle(y))


@jax.custom_vjp
def by_hand(y):
    return 1.01 * oracle(y)


by_hand.defvjp(lambda y: (by_hand(y), y), lambda y, w: (1.01 * (MATRIX.T @ ((1 - oracle(y) ** 2) * w)),))


def iterated(y):
    """The oracle by a loop that reverse mode cannot enter."""
    return jax.lax.while_loop(lambda c: c[1] < 3, lambda c: (1.01 ** (1 / 3) * c[0], c[1] + 1), (oracle(y), 0))[0]


@mostly_slow("fast", [near, oracle, shifted])
def test_estimates_that_move_alike_pass(fast):
    result = assert_adjoint_calibrated(fast, oracle, Y, key=KEY)
    assert result.passed is True and result.details["mode"] == "forward"
    assert result.statistic == pytest.approx(0.01 if fast is near else 0.0, abs=1e-4)


@mostly_slow(("fast", "rho"), [(far, 0.2), (flipped, 2.0), (careless, 0.1)])
def test_estimates_that_move_otherwise_fail(fast, rho):
    message = r"adjoint calibration: expected a relative error of the Jacobian <= 0.05, got .* event \d+.*; do train"
    with pytest.raises(AssertionError, match=message):
        assert_adjoint_calibrated(fast, oracle, Y, key=KEY)
    assert adjoint_calibration(fast, oracle, Y, key=KEY).statistic == pytest.approx(rho, rel=1e-3)


@pytest.mark.parametrize(("fast", "mode", "used"), [
    (by_hand, "auto", "reverse"), (iterated, "auto", "forward"), (near, "reverse", "reverse"), (near, "forward", "forward"),
])  # fmt: skip
def test_every_mode_measures_the_same(fast, mode, used):
    details = adjoint_calibration(fast, oracle, Y, key=KEY, mode=mode).details
    assert details["mode"] == used and details["cosine"] == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(details["per_probe"], 0.01, rtol=1e-3)
    if fast is iterated:
        assert np.isnan(details["operator_norm_ratio"]).all()
    else:
        np.testing.assert_allclose(details["operator_norm_ratio"], 0.01, rtol=2e-2)


@pytest.mark.parametrize(
    ("fast", "slow", "mode"), [(by_hand, iterated, "reverse against forward"), (iterated, by_hand, "forward against reverse")]
)
def test_without_a_common_mode_products_are_crossed(fast, slow, mode):
    """by_hand and iterated are 1.01 times the oracle, which both move alike; a difference is found at its size."""
    same = adjoint_calibration(fast, slow, Y, key=KEY)
    assert same.passed is True and same.details["mode"] == mode and same.statistic < 1e-3
    other = adjoint_calibration(lambda y: 1.2 * fast(y), slow, Y, key=KEY, n_probes=50)
    assert other.passed is False and other.details["mode"] == mode
    assert other.details["lower"] < 0.2 < other.details["upper"] and other.statistic == pytest.approx(0.2, rel=0.1)
    few = adjoint_calibration(lambda y: 1.2 * fast(y), slow, Y[:8], key=KEY)
    assert few.passed is None and few.details["upper"] == np.inf


def test_along_the_covector_of_a_cost_the_error_of_its_gradient_is_told():
    """w = R⁻¹ (H(M(x)) − y): Jᵀ w is the gradient of ½ ‖H(M(x)) − y‖² / r, J that of H ∘ M, and the emulator's at the same w."""
    operator = jnp.array([[1.0, 0.0, 0.5], [0.0, 2.0, 0.0]])
    seen = jnp.asarray(np.random.default_rng(4).normal(size=(40, 2)), jnp.float32).at[7].set(operator @ oracle(Y[7]))
    model = lambda x, _: operator @ oracle(x)  # noqa: E731
    emulator = lambda x, _: operator @ (oracle(x) + 0.3 * jnp.sin(MATRIX @ x))  # noqa: E731
    found = adjoint_calibration(emulator, model, Y, key=KEY, args=(seen,), covector=lambda value, y: (value - y) / 0.5)

    def gradient(x, x0, y):  # of the cost, with the emulator's model and the residual of the model
        return jax.grad(lambda x: jnp.vdot(operator @ (oracle(x) + 0.3 * jnp.sin(MATRIX @ x)), (model(x0, y) - y) / 0.5))(x)

    cost = lambda x, y: 0.5 * jnp.square(model(x, y) - y).sum() / 0.5  # noqa: E731
    exact = np.asarray(jax.vmap(jax.grad(cost))(Y, seen))
    expected = np.linalg.norm(jax.vmap(gradient)(Y, Y, seen) - exact, axis=1) / np.maximum(np.linalg.norm(exact, axis=1), 1e-30)
    rest = np.arange(40) != 7  # where nothing is left over, there is no direction
    np.testing.assert_allclose(found.details["covector_error"][rest], expected[rest], rtol=1e-4)
    assert np.isnan(found.details["covector_error"][7]) and "along the covector" in found.summary and "of 39 events" in found.summary


def test_a_covector_that_does_not_fit_is_refused_before_anything_is_computed():
    with pytest.raises(ConfigError, match=r"expected a covector of shape \(3,\), got \(4,\); do "):
        adjoint_calibration(near, oracle, Y, key=KEY, covector=lambda value: jnp.zeros(4))
    with pytest.raises(ConfigError, match="expected functions with reverse mode for the covector, got .*; do "):
        adjoint_calibration(iterated, oracle, Y, key=KEY, covector=lambda value: value)


def test_a_rule_that_does_not_exist_is_an_error_in_its_own_mode():
    with pytest.raises(TypeError, match="custom_vjp"):
        adjoint_calibration(by_hand, oracle, Y, key=KEY, mode="forward")


def test_norms_are_those_of_the_written_out_jacobians():
    noise = jnp.asarray(np.random.default_rng(2).normal(size=(3, 4)), jnp.float32)
    details = adjoint_calibration(lambda y: oracle(y) + 0.3 * jnp.sin(noise @ y), oracle, Y, key=KEY, n_probes=400).details
    exact = np.asarray(jax.vmap(jax.jacobian(oracle))(Y))
    error = np.asarray(jax.vmap(jax.jacobian(lambda y: 0.3 * jnp.sin(noise @ y)))(Y))
    np.testing.assert_allclose(details["operator_norm"], np.linalg.norm(error, 2, axis=(1, 2)), rtol=0.02)
    assert details["frobenius_error"] == pytest.approx(np.sqrt((error**2).sum() / len(Y)), rel=0.05)
    assert details["frobenius_oracle"] == pytest.approx(np.sqrt((exact**2).sum() / len(Y)), rel=0.05)
    rho = np.sqrt((error**2).sum() / (exact**2).sum())
    assert details["lower"] < rho < details["upper"]


@pytest.mark.slow
@pytest.mark.parametrize(("n_events", "n_probes"), [(40, 10), (3, 10)])
def test_the_interval_covers_and_decides_wrongly_no_more_often_than_stated(n_events, n_probes):
    """A relative error of exactly the bound: neither verdict may be reached in more than 2.5 % of the repetitions."""
    rng = np.random.default_rng(3)
    a, e = rng.normal(size=(6, 8)), rng.normal(size=(6, 8))
    e *= 0.05 * np.linalg.norm(a) / np.linalg.norm(e)
    a, e = jnp.asarray(a, jnp.float32), jnp.asarray(e, jnp.float32)
    fast, exact = (lambda y: (a + e) @ y), (lambda y: a @ y)
    y, repeats = jnp.zeros((n_events, 8)), 300
    results = [adjoint_calibration(fast, exact, y, key=jax.random.key(i), n_probes=n_probes) for i in range(repeats)]
    verdicts = [r.passed for r in results]
    assert max(verdicts.count(True), verdicts.count(False)) <= 16  # 99.9 % of Binomial(300, 0.025) and a little
    inside = np.mean([r.details["lower"] <= 0.05 <= r.details["upper"] for r in results])
    assert inside >= 0.92
    if n_events == 40:
        assert inside <= 0.99


def test_too_few_probes_leave_no_verdict_and_say_so():
    result = adjoint_calibration(lambda y: 1.04 * oracle(y), oracle, Y[:2], key=KEY, n_probes=2)
    assert result.passed is None and result.statistic == pytest.approx(0.04, rel=1e-3) and "inconclusive" in result.summary
    with pytest.raises(AssertionError, match="expected a verdict, got none .*; do add probes"):
        assert_adjoint_calibrated(lambda y: 1.04 * oracle(y), oracle, Y[:2], key=KEY, n_probes=2)


def test_a_derivative_that_is_not_finite_fails():
    result = adjoint_calibration(lambda y: oracle(y) + jnp.sqrt(jnp.abs(y[:3] * 0)), oracle, Y, key=KEY)
    assert result.passed is False and "not finite" in result.details["do"]


def test_each_event_gets_its_own_arguments():
    scale = jnp.linspace(0.5, 2.0, len(Y))
    fast, exact = (lambda y, s: s * oracle(y)), (lambda y, s: oracle(y))
    details = adjoint_calibration(fast, exact, Y, key=KEY, args=(scale,)).details
    np.testing.assert_allclose(details["per_event"], np.abs(np.asarray(scale) - 1), rtol=1e-3, atol=1e-5)


def test_wrong_inputs_are_named():
    with pytest.raises(ConfigError, match=r"expected an estimate of shape \(3,\), got \(4,\)"):
        adjoint_calibration(lambda y: y, oracle, Y, key=KEY)
    with pytest.raises(ConfigError, match="expected an oracle that depends on y"):
        adjoint_calibration(oracle, lambda y: jnp.ones(3), Y, key=KEY)
    with pytest.raises(ConfigError, match="n_probes >= 2"):
        adjoint_calibration(oracle, oracle, Y, key=KEY, n_probes=1)


# --- tangent and adjoint of one function ---


@pytest.fixture
def wrong(x64) -> SimpleNamespace:
    """Functions with planted defects, at x."""

    @jax.custom_jvp
    def tangent(x):
        return jnp.sin(x)

    tangent.defjvp(lambda primals, tangents: (jnp.sin(primals[0]), 1.001 * jnp.cos(primals[0]) * tangents[0]))
    return SimpleNamespace(tangent=tangent, x=jnp.asarray(np.random.default_rng(4).normal(size=5)))


def test_exact_tangents_and_adjoints_pass(x64):
    x = jnp.asarray(np.random.default_rng(4).normal(size=5))
    matrix = jnp.asarray(np.random.default_rng(5).normal(size=(7, 5)))
    for function in (jnp.sin, lambda x: matrix @ x + 1, lambda x: jnp.exp(-(x**2)).sum(), lambda x: 1e-9 * x[0] * x):
        assert_tangent_and_adjoint(function, x, key=KEY)
    assert dot_product_test(jnp.sin, x, key=KEY).statistic < 10
    assert_tangent_and_adjoint(jnp.cos, jnp.zeros(3), key=KEY)


def test_a_wrong_tangent_fails_the_taylor_test(wrong):
    with pytest.raises(AssertionError, match=r"taylor: expected 3 consecutive slopes within .*, got .* in direction .*; do check"):
        assert_tangent_and_adjoint(wrong.tangent, wrong.x, key=KEY)
    assert dot_product_test(wrong.tangent, wrong.x, key=KEY).passed  # a consistent pair, of another function


def test_a_wrong_adjoint_fails_the_dot_product_test(wrong):
    cut = lambda w: jnp.cos(wrong.x) * w * (1 + 1e-12 * jnp.arange(5))  # noqa: E731
    with pytest.raises(AssertionError, match=r"dot_product: expected dot products that agree to 100 eps, got .* eps .*; do check"):
        assert_tangent_and_adjoint(jnp.sin, wrong.x, key=KEY, adjoint=cut)
    assert dot_product_test(jnp.sin, wrong.x, key=KEY, adjoint=lambda w: jnp.nan * w).passed is False


def test_the_taylor_test_refuses_single_precision():
    with pytest.raises(ConfigError, match="expected a state in float64"):
        taylor_test(jnp.sin, jnp.ones(3, jnp.float32), key=KEY)
