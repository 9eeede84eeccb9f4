"""Contracts of configuration files: an exact round trip, strict types, and errors that say what to write instead."""

import dataclasses
import enum
import json
import typing
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vardax_flax.core.config import ConfigError, as_json, check_choices, closest, from_dict, load_json, require, to_dict
from vardax_flax.encoders import ENCODERS
from vardax_flax.heads import HEADS
from vardax_flax.posteriors import AmortizedConfig
from vardax_flax.training import FitConfig, OptimConfig


@dataclass(frozen=True)
class Gaussian:
    kind: ClassVar[str] = "gaussian"
    covariance: Literal["diagonal", "full"] = "full"
    scale: float = 1.0


@dataclass(frozen=True)
class Flow:
    kind: ClassVar[str] = "flow"
    layers: int = 4
    widths: tuple[int, ...] = (32, 32)
    base: Gaussian = Gaussian()


@dataclass(frozen=True)
class Clip:  # no `kind`: only ever one thing
    norm: float = 1.0


@dataclass(frozen=True)
class Ambiguous:
    part: Gaussian | Clip | Flow | None = None


@dataclass(frozen=True)
class Schedule:
    rate: float | Flow = 1.0


class Precision(enum.Enum):
    SINGLE = "float32"
    DOUBLE = "float64"


@dataclass(frozen=True)
class Experiment:
    name: str
    head: Gaussian | Flow = Flow()
    more: tuple[Gaussian | Flow, ...] = ()
    rate: float = 1e-3
    steps: int = 10
    resume: bool = False
    seed: int | None = None
    tag: int | str = "a"
    clip: Clip | None = None
    bounds: tuple[float, float] = (0.0, 1.0)
    names: tuple[str, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    precision: Precision = Precision.SINGLE
    matrix: tuple[tuple[float, ...], ...] | None = None


EVERYTHING = Experiment(
    name="all",
    head=Gaussian("diagonal", 0.25),
    more=(Flow(2, (8,)), Gaussian()),
    rate=3e-4,
    steps=7,
    resume=True,
    seed=3,
    tag=5,
    clip=Clip(2.0),
    bounds=(-1.0, 2.5),
    names=("u", "v"),
    weights={"u": 0.5},
    precision=Precision.DOUBLE,
    matrix=((1.0, 0.0), (0.0, 2.0)),
)


@pytest.mark.parametrize("config", [Experiment("plain"), EVERYTHING, Gaussian(), Flow()], ids=["plain", "all", "gaussian", "flow"])
def test_round_trip(config, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(as_json(config))
    assert load_json(type(config), path) == config
    assert from_dict(type(config), to_dict(config)) == config
    assert hash(load_json(type(config), path).head if isinstance(config, Experiment) else config) is not None


def test_what_is_written_is_plain_json_with_a_tag_for_each_union():
    written = to_dict(EVERYTHING)
    assert written == json.loads(json.dumps(written))
    assert written["head"] == {"kind": "gaussian", "covariance": "diagonal", "scale": 0.25}
    assert [part["kind"] for part in written["more"]] == ["flow", "gaussian"]
    assert "kind" not in written and "kind" not in written["clip"]
    assert written["precision"] == "float64"


@settings(deadline=None, max_examples=50)
@given(
    st.builds(
        Experiment,
        name=st.text(),
        head=st.one_of(st.builds(Gaussian, scale=st.floats(allow_nan=False, allow_infinity=False)), st.builds(Flow, layers=st.integers())),
        rate=st.floats(allow_nan=False, allow_infinity=False),
        seed=st.none() | st.integers(),
        tag=st.integers() | st.text(),
        names=st.lists(st.text()).map(tuple),
        clip=st.none() | st.just(Clip()),
    )
)
def test_round_trip_of_any_values(config):
    assert from_dict(Experiment, json.loads(json.dumps(to_dict(config)))) == config


def test_an_integer_is_a_number():
    config = from_dict(Experiment, {"name": "x", "rate": 1, "bounds": [0, 2]})
    assert type(config.rate) is float and config.bounds == (0.0, 2.0) and type(config.bounds[1]) is float


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("resume", 1, "of type bool, got 1"),
        ("resume", "false", "of type bool, got 'false'"),
        ("steps", True, "of type int, got True"),
        ("steps", 3.0, "of type int, got 3.0"),
        ("steps", "3", "of type int, got '3'"),
        ("rate", "3e-4", "of type float, got '3e-4'"),
        ("rate", False, "of type float, got False"),
        ("rate", None, "of type float, got None"),
        ("name", 3, "of type str, got 3"),
        ("seed", "1", "of type int, got '1'"),
        ("tag", 1.5, "1.5"),
        ("names", "uv", "a list.*got 'uv'"),
        ("names", {"u": 1}, "a list.*got {'u': 1}"),
        ("names", ["u", 1], "of type str, got 1"),
        ("bounds", [0.0], "2.*got"),
        ("bounds", [0.0, 1.0, 2.0], "2.*got"),
        ("matrix", [[1.0, "2"]], "of type float, got '2'"),
        ("weights", {"u": "1"}, "of type float, got '1'"),
        ("weights", [1.0], r"got .*\[1.0\]"),
        ("precision", "float16", "float16"),
        ("head", {"kind": "gaussian", "covariance": "ful"}, "ful"),
        ("head", None, "`kind` of flow, gaussian, got None"),
        ("head", {"layers": 2}, "`kind` of flow, gaussian, got None"),
        ("head", "flow", "`kind` of flow, gaussian, got 'flow'"),
        ("head", {"kind": ["flow"]}, r"`kind` of flow, gaussian, got \['flow'\]"),
        ("clip", 3, "an object for Clip, got 3"),
        ("clip", {"norm": "1"}, "of type float, got '1'"),
    ],
)
def test_wrong_values_are_one_line(key, value, expected):
    with pytest.raises(ConfigError, match=expected) as caught:
        from_dict(Experiment, {"name": "x", key: value})
    message = str(caught.value)
    assert "\n" not in message and message.startswith("expected ") and ", got " in message and "; do " in message


@pytest.mark.parametrize(
    ("value", "key", "hint"),
    [
        ({"name": "x", "stepss": 3}, "stepss", "steps"),
        ({"name": "x", "head": {"kind": "flow", "layer": 3}}, "layer", "layers"),
        ({"name": "x", "more": [{"kind": "flow", "base": {"kind": "gaussian", "sale": 3.0}}]}, "sale", "scale"),
    ],
)
def test_misspelt_key_names_the_closest(value, key, hint):
    with pytest.raises(ConfigError, match=f"got '{key}'.*did you mean '{hint}'"):
        from_dict(Experiment, value)


def test_misspelt_kind_names_the_closest():
    with pytest.raises(ConfigError, match="`kind` of flow, gaussian, got 'gausian'.*did you mean 'gaussian'"):
        from_dict(Experiment, {"name": "x", "head": {"kind": "gausian"}})


def test_kind_of_another_class():
    with pytest.raises(ConfigError, match="expected `kind` 'gaussian' for Gaussian, got 'flow'"):
        from_dict(Gaussian, {"kind": "flow"})
    assert from_dict(Gaussian, {"scale": 2.0}) == Gaussian(scale=2.0)  # a class alone needs no tag
    with pytest.raises(ConfigError, match="got 'flow'"):
        from_dict(Clip, {"kind": "flow"})


def test_members_of_a_union_need_kinds_of_their_own():
    with pytest.raises(ConfigError, match="expected classes of different `kind`"):
        from_dict(Ambiguous, {})


def test_union_of_a_number_and_classes_reads_both():
    assert from_dict(Schedule, {"rate": 1}).rate == 1.0
    assert from_dict(Schedule, {"rate": {"kind": "flow", "layers": 2}}).rate == Flow(layers=2)
    with pytest.raises(ConfigError, match="`kind` of flow, got 'flo'.*did you mean 'flow'"):
        from_dict(Schedule, {"rate": {"kind": "flo"}})
    with pytest.raises(ConfigError, match="of type float, got 'fast'"):
        from_dict(Schedule, {"rate": "fast"})


def test_missing_field_is_named():
    with pytest.raises(ConfigError, match="expected `name` of Experiment, got none"):
        from_dict(Experiment, {"steps": 3})


@pytest.mark.parametrize("value", [None, 3, "x", [1]])
def test_not_an_object(value):
    with pytest.raises(ConfigError, match="an object for Experiment"):
        from_dict(Experiment, value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "x", ', "expected JSON in .*line 1"),
        ('{"name": "x", "rate": NaN}', "got NaN"),
        ('{"name": "x", "rate": -Infinity}', "got -Infinity"),
        ('{"name": "x", "name": "y"}', "got 'name' twice"),
        ("\xff", "expected JSON in "),
    ],
)
def test_broken_files(tmp_path, text, expected):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=expected):
        load_json(Experiment, path)


def test_no_file(tmp_path):
    with pytest.raises(ConfigError, match="got no file; do check the run directory"):
        load_json(Experiment, tmp_path / "config.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_numbers_are_not_written(value):
    with pytest.raises(ConfigError, match="expected finite numbers"):
        as_json(dataclasses.replace(EVERYTHING, rate=value))


def test_closest():
    assert closest("lorentz63", ["lorenz63", "lorenz96"]) == ", did you mean 'lorenz63'?"
    assert closest("zzz", ["lorenz63"]) == ""


def test_require():
    require(True, "anything", 0, "nothing")
    with pytest.raises(ConfigError, match=r"^expected size > 0, got -1; do pass a positive size$"):
        value: Any = -1
        require(value > 0, "size > 0", value, "pass a positive size")


@dataclasses.dataclass(frozen=True)
class Worded:
    colour: Literal["red", "green"] = "red"
    maybe: Literal["a", "b"] | None = None
    size: int = 3

    def __post_init__(self):
        check_choices(self)


def test_words_of_a_field_are_checked_in_python_too():
    assert Worded("green", "b") == Worded(colour="green", maybe="b")
    with pytest.raises(ConfigError, match="expected colour of 'red', 'green', got 'gren'; do pick one, .*green"):
        Worded("gren")
    with pytest.raises(ConfigError, match="expected maybe of 'a', 'b', got 'c'; do pick one"):
        Worded(maybe="c")


def worded():
    """Every field of a registered configuration that is one of a few words."""
    for cls in (*ENCODERS.values(), *HEADS.values(), AmortizedConfig, FitConfig, OptimConfig):
        for name, hint in typing.get_type_hints(cls).items():
            if any(typing.get_origin(part) is Literal for part in (hint, *typing.get_args(hint))):
                yield pytest.param(cls, name, id=f"{cls.__name__}.{name}")


@pytest.mark.parametrize(("cls", "name"), list(worded()))
def test_every_configuration_checks_its_words(cls, name):
    config = cls()
    object.__setattr__(config, name, "no such word")  # past the checks of types, which only run in tests
    with pytest.raises(ConfigError, match=f"expected {name} of .*, got 'no such word'; do pick one"):
        config.__post_init__()
