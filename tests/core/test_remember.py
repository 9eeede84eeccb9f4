"""Only what is compared by value is found again."""

import dataclasses

import pytest

from vardax_flax.core.remember import remembered


@dataclasses.dataclass(frozen=True)
class Value:
    items: tuple | list = ()


class Identity:
    pass


OTHER = Identity()


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [(Value((1,)), Value((1,)), True), (Value((1,)), Value((2,)), False), (Value([1]), Value([1]), False), (OTHER, OTHER, False)],
    ids=["equal", "unequal", "not hashable", "equal to itself only"],
)
def test_what_is_kept(first, second, kept):
    made = remembered(lambda value: object())
    assert (made(first) is made(second)) is kept
