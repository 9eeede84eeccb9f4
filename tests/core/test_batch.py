"""Contracts of `Batch` and `check_batch`: what is accepted is repaired as documented, what is refused is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vardax_flax.core.batch import Batch, Batch1D, Batch2D, Batch2DMultivar, check_batch, leading_shape

OBS, STATE = (5, 3), (4,)


def shape(*axes: int, dtype: type = np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(axes, dtype)


SPEC = Batch(input=shape(*OBS), mask=shape(*OBS), target=shape(*STATE))


def element(lead: tuple[int, ...] = (2,), **changes) -> Batch:
    rng = np.random.default_rng(0)
    batch = Batch(input=rng.normal(size=(*lead, *OBS)), mask=np.ones((*lead, *OBS)), target=rng.normal(size=(*lead, *STATE)))
    return batch._replace(**changes)


@pytest.mark.parametrize("lead", [(), (2,), (2, 3), (0,)])
def test_any_leading_axes(lead):
    checked = check_batch(element(lead), SPEC)
    assert leading_shape(checked, SPEC) == lead
    np.testing.assert_allclose(checked.input, element(lead).input, rtol=1e-6)
    np.testing.assert_allclose(checked.target, element(lead).target, rtol=1e-6)
    assert {leaf.dtype for leaf in checked[:3]} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("kind", [Batch, Batch1D, Batch2D, Batch2DMultivar])
def test_kind_and_missing_fields_survive_tree_map_and_check(kind):
    values = np.ones((2,) * getattr(kind, "rank", 3))
    batch = kind(input=values, mask=values, target=values)
    for result in (jax.tree.map(lambda leaf: leaf + 1, batch), check_batch(batch), jax.jit(lambda b: b)(batch)):
        assert type(result) is kind
        assert result.background is None and result.coords is None
    assert len(jax.tree.leaves(batch)) == 3


@pytest.mark.parametrize("kind", [Batch1D, Batch2D, Batch2DMultivar])
def test_wrong_number_of_axes(kind):
    values = np.ones((2,) * (kind.rank + 1))
    with pytest.raises(ValueError, match=rf"expected `input` with {kind.rank} axes for {kind.__name__}"):
        check_batch(kind(values, values))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": np.ones((2, 5, 4))}, r"`input` of shape \(2, 5, 3\), got \(2, 5, 4\)"),
        ({"input": np.ones(3)}, r"`input` of shape \(5, 3\), got \(3,\)"),
        ({"mask": np.ones((2, 5))}, r"`mask` of shape \(2, 5, 3\), got \(2, 5\)"),
        ({"mask": np.ones((1, 5, 3))}, r"`mask` of shape \(2, 5, 3\), got \(1, 5, 3\)"),
        ({"target": np.ones((2, 5))}, r"`target` of shape \(2, 4\), got \(2, 5\)"),
        ({"mask": None}, r"`mask` of shape \(2, 5, 3\), got None; do pass Batch\(..., mask=...\)"),
        ({"background": np.ones((2, 4))}, r"expected no `background`.*got shape \(2, 4\); do leave it out"),
    ],
)
def test_wrong_shapes(changes, message):
    with pytest.raises(ValueError, match=message):
        check_batch(element(**changes), SPEC)


def test_mask_must_match_input_without_spec():
    with pytest.raises(ValueError, match=r"`mask` of shape \(2, 5, 3\), got \(2, 5\)"):
        check_batch(element(mask=np.ones((2, 5))))


@pytest.mark.parametrize("spec", [None, SPEC])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones((2, *OBS), complex), "of a real dtype, got complex128"),
        (np.full((2, *OBS), "1.0"), "of a real dtype, got <U3"),
        ([[1.0, 2.0], [3.0]], "`input` as an array, got list; do stack it"),
    ],
)
def test_wrong_dtypes(spec, value, message):
    with pytest.raises(TypeError, match=message):
        check_batch(element(input=value), spec)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, np.float16, np.float64])
def test_real_dtypes_become_the_model_s(dtype):
    checked = check_batch(element(input=np.ones((2, *OBS), dtype), mask=np.ones((2, *OBS), dtype)))
    assert checked.input.dtype == checked.mask.dtype == jnp.float32
    np.testing.assert_array_equal(checked.input, 1)


def test_double_precision_is_kept_where_it_is_enabled(x64):
    assert check_batch(element()).input.dtype == jnp.float64


def test_value_too_large_for_the_model_s_precision_is_refused():
    with pytest.raises(ValueError, match=r"finite values in `target` where observed, got inf at \(1, 2\)"):
        target = np.ones((2, *STATE))
        target[1, 2] = 1e300
        check_batch(element(target=target))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", ["input", "target", "background"])
def test_non_finite_where_observed_names_the_first_index(field, value):
    spec = SPEC._replace(background=shape(*STATE))
    batch = element(background=np.ones((2, *STATE)))
    values = np.array(getattr(batch, field))
    index = (1, 4, 2) if field == "input" else (1, 3)
    values[index] = value
    with pytest.raises(ValueError, match=rf"finite values in `{field}`.*got {value} at \({', '.join(map(str, index))}\)"):
        check_batch(batch._replace(**{field: values}), spec)


@pytest.mark.parametrize("value", [np.nan, np.inf, 7.0])
def test_whatever_is_not_observed_becomes_zero(value):
    batch = element()
    batch.input[0, 1, 2] = value
    batch.mask[0, 1, 2] = 0
    checked = check_batch(batch, SPEC)
    expected = np.where(batch.mask == 1, batch.input, 0)
    np.testing.assert_allclose(checked.input, expected, rtol=1e-6)
    np.testing.assert_array_equal(checked.mask, batch.mask)


def test_the_user_s_arrays_are_left_alone():
    batch = element()
    batch.input[0, 0, 0], batch.mask[0, 0, 0] = np.nan, 0
    check_batch(batch, SPEC)
    assert np.isnan(batch.input[0, 0, 0])


@pytest.mark.parametrize("value", [0.5, 2.0, -1.0, np.nan])
@pytest.mark.parametrize("dtype", [np.float32, np.bool_])
def test_mask_of_other_values(value, dtype):
    mask = np.ones((2, *OBS))
    mask[0, 2, 1] = value
    spec = SPEC._replace(mask=shape(*OBS, dtype=dtype))
    with pytest.raises(ValueError, match=rf"`mask` of 0 and 1, got {value} at \(0, 2, 1\)"):
        check_batch(element(mask=mask), spec)


def test_window_without_observation():
    batch = element((3,))
    batch.mask[1] = 0
    with pytest.raises(ValueError, match="all-zero `mask` in window 1;"):
        check_batch(batch, SPEC)
    checked = check_batch(batch, SPEC, allow_unobserved=True)
    assert not np.asarray(checked.input[1]).any() and np.asarray(checked.input[0]).any()


def test_window_without_observation_under_two_leading_axes():
    batch = element((2, 3))
    batch.mask[1, 2] = 0
    with pytest.raises(ValueError, match=r"in window \(1, 2\);"):
        check_batch(batch, SPEC)


def test_missing_background():
    with pytest.raises(ValueError, match=r"`background` of shape \(2, 4\), got None; do pass Batch\(..., background=...\)"):
        check_batch(element(), SPEC._replace(background=shape(*STATE)))


def test_target_may_be_unknown_or_given_for_comparison():
    assert check_batch(element(target=None), SPEC).target is None
    assert check_batch(element(), SPEC._replace(target=None)).target is not None


def test_coords_and_noise_scale_of_unobserved_places_are_ignored():
    spec = SPEC._replace(coords=shape(*OBS, 2), noise_scale=shape(*OBS))
    batch = element(coords=np.ones((2, *OBS, 2)), noise_scale=np.full((2, *OBS), 0.5))
    batch.mask[0, 0, 0] = 0
    batch.coords[0, 0, 0], batch.noise_scale[0, 0, 0] = np.nan, np.nan
    checked = check_batch(batch, spec)
    np.testing.assert_array_equal(checked.coords[0, 0, 0], 0)
    assert np.isfinite((checked.input / checked.noise_scale).sum())  # a scale of 0 would turn the ignored place into a NaN
    batch.coords[1, 2, 0, 1] = np.nan
    with pytest.raises(ValueError, match=r"finite values in `coords` where observed, got nan at \(1, 2, 0, 1\)"):
        check_batch(batch, spec)


@pytest.mark.parametrize("value", [0.0, -0.5])
def test_noise_scale_must_be_positive_where_observed(value):
    batch = element(noise_scale=np.full((2, *OBS), 0.5))
    batch.noise_scale[1, 0, 2] = value
    with pytest.raises(ValueError, match=rf"`noise_scale` > 0 where observed, got {value} at \(1, 0, 2\)"):
        check_batch(batch, SPEC._replace(noise_scale=shape(*OBS)))
