"""What is wrong with a set-up or a batch is said by name by every method, and what is to be done; never a silent number."""

import lineax as lx
import numpy as np
import pytest

from tests.slow import mostly_slow
from vardax_flax.assimilation import (
    GaussNewton,
    IncrementalFourDVar,
    LatentFourDVar,
    NotConverged,
    OptimalInterpolation,
    QuasiNewton,
    Status,
    StrongFourDVar,
    ThreeDVar,
    WeakFourDVar,
)
from vardax_flax.core.batch import Batch
from vardax_flax.core.config import ConfigError


def step(x):
    return x + 0.01 * x**3


MAKERS = {
    "OI": lambda **o: OptimalInterpolation((3,), **o),
    "3D-Var": lambda **o: ThreeDVar((3,), minimiser=QuasiNewton(steps=2), **o),
    "strong": lambda **o: StrongFourDVar((3,), step, minimiser=GaussNewton(outer=1), **o),
    "weak": lambda **o: WeakFourDVar((3,), step, model_cov=1.0, minimiser=GaussNewton(outer=1), **o),
    "incremental": lambda **o: IncrementalFourDVar((3,), step, outer=1, **o),
    "latent": lambda **o: LatentFourDVar((3,), step, decoder=lambda z: z, latent_shape=(3,), minimiser=GaussNewton(outer=1), **o),
}
methods = pytest.mark.parametrize("name", MAKERS)
NOT_POSITIVE = np.diag([1.0, -1.0, 1.0])
SET_UPS = {
    "a covariance without its tag": ({"background_cov": lx.MatrixLinearOperator(np.eye(3))}, "background_cov tagged.*got.*do pass lineax"),
    "errors without their tag": ({"obs_cov": lx.MatrixLinearOperator(np.eye(3))}, "obs_cov tagged.*got.*do pass lineax"),
    "a covariance that is none": ({"background_cov": NOT_POSITIVE}, "positive definite.*got a smallest eigenvalue of -1.*do add"),
    "errors that are none": ({"obs_cov": -1.0}, "obs_cov of positive.*got -1.*do pass variances"),
    "a covariance of another size": ({"background_cov": np.eye(2)}, "background_cov of size 3, got 2; do pass"),
    "an operator of another size": ({"obs_op": lambda x: x[:2], "obs_cov": np.eye(3)}, "obs_cov of size 2, got 3; do pass"),
}


@methods
@pytest.mark.parametrize("case", SET_UPS)
def test_a_set_up_that_cannot_be_is_refused(name, case):
    options, says = SET_UPS[case]
    with pytest.raises(ConfigError, match=says):
        MAKERS[name](**{"background_cov": 1.0, "obs_cov": 1.0, **options})


def batch_of(method, **change):
    shape = (2, 3) if method.in_window else (3,)
    full = {"input": np.full(shape, 2.0), "mask": np.ones(shape), "background": np.zeros(3)}
    return Batch(**{**full, **{key: value(shape) for key, value in change.items()}})


BATCHES = {
    "NaN where observed": ({"input": lambda s: np.full(s, np.nan)}, "finite values in `input`.*got nan at.*do set `mask`"),
    "infinity where observed": ({"input": lambda s: np.full(s, np.inf)}, "finite values in `input`.*got inf at.*do"),
    "nothing observed": ({"mask": lambda s: np.zeros(s)}, "at least one observation.*got.*do drop"),
    "a mask of another shape": ({"mask": lambda s: np.ones(s[:-1] + (2,))}, "`mask` of shape.*got.*do"),
    "a mask of other numbers": ({"mask": lambda s: np.full(s, 0.5)}, "`mask` of 0 and 1, got 0.5.*do"),
    "observations of another shape": ({"input": lambda s: np.ones(s[:-1] + (2,))}, "`input` of shape.*got.*do"),
    "no background": ({"background": lambda s: None}, "background.*got None; do pass"),
    "a background of another shape": ({"background": lambda s: np.zeros(2)}, "`background` of shape.*got.*do"),
    "a background that is not finite": ({"background": lambda s: np.array([0, np.nan, 0])}, "finite values in `background`.*got nan.*do"),
}


@methods
@pytest.mark.parametrize("case", BATCHES)
def test_a_batch_that_cannot_be_is_refused(name, case):
    change, says = BATCHES[case]
    method = MAKERS[name](background_cov=1.0, obs_cov=1.0)
    with pytest.raises(ValueError, match=says):
        method(batch_of(method, **change))
    with pytest.raises(ValueError, match=says):
        method.posterior(batch_of(method, **change))


@methods
def test_one_background_for_many_windows_is_asked_for_by_shape(name):
    method = MAKERS[name](background_cov=1.0, obs_cov=1.0)
    many = batch_of(method, input=lambda s: np.ones((4, *s)), mask=lambda s: np.ones((4, *s)))
    with pytest.raises(ValueError, match=r"`background` of shape \(4, 3\), got \(3,\); do"):
        method(many)


@mostly_slow("name", [name for name in MAKERS if name != "OI"], ["strong"])
def test_a_minimum_that_is_not_reached_is_said(x64, name):
    method = MAKERS[name](background_cov=1.0, obs_cov=0.1, obs_op=lambda x: x**3)
    batch = batch_of(method, background=lambda s: np.ones(3))
    with pytest.warns(NotConverged, match="1 out of steps"):
        method(batch)
    assert method.solve(batch).solve.status == Status.OUT_OF_STEPS
