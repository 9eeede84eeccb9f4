"""Frozen dataclasses ⇄ JSON, exactly: unions are told apart by `kind`, types are strict, a misspelt key names the closest one.

A configuration is declared once, as a frozen dataclass in the file of the class it builds. A field annotated with a union of such
classes (`HeadConfig = RegressionHeadConfig | FlowHeadConfig`) is written as `{"kind": "flow", ...}`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import cattrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be read: one line, *expected …, got …, do …*."""


def closest(name: str, options: Iterable[str]) -> str:
    """`, did you mean 'x'?` for a misspelt name, or an empty string.

    Example:
        >>> closest("lorentz63", ["lorenz63", "lorenz96"])
        ", did you mean 'lorenz63'?"
    """
    match = difflib.get_close_matches(str(name), list(options), n=1)
    return f", did you mean '{match[0]}'?" if match else ""


def _is_union(cls: Any) -> bool:
    return typing.get_origin(cls) in (typing.Union, types.UnionType)


def _is_generic(origin: Any) -> Any:
    return lambda cls: typing.get_origin(cls) is origin


def _structure_union(converter: cattrs.Converter, cls: Any) -> Any:
    members = [m for m in typing.get_args(cls) if m is not type(None)]
    optional = len(members) < len(typing.get_args(cls))
    classes = [m for m in members if dataclasses.is_dataclass(m)]
    tagged: dict[str, Any] = {m.kind: m for m in classes if hasattr(m, "kind")}
    if len(classes) > 1 and len(tagged) < len(classes):
        raise ConfigError(f"expected classes of different `kind` in {cls}, got {sorted(tagged)}; do give each its own")
    plain = [m for m in members if m not in tagged.values()]

    def structure(value: Any, _: Any) -> Any:
        if value is None and optional:
            return None
        kind = value.get("kind") if isinstance(value, dict) else value
        if isinstance(value, dict) and isinstance(kind, str) and kind in tagged:
            return converter.structure(value, tagged[kind])
        if not plain or (tagged and isinstance(value, dict)):
            hint = closest(str(kind), tagged)
            raise ConfigError(f"expected `kind` of {', '.join(sorted(tagged))}, got {kind!r}; do pick one of them{hint}")
        for member in plain[:-1]:
            with contextlib.suppress(ConfigError):
                return converter.structure(value, member)
        return converter.structure(value, plain[-1])

    return structure


def _structure_tuple(converter: cattrs.Converter, cls: Any) -> Any:
    args = typing.get_args(cls)

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"expected a list, got {value!r}; do write its values in brackets")
        items = args[:1] * len(value) if args[-1:] == (...,) else args
        if len(items) != len(value):
            raise ConfigError(f"expected a list of {len(items)} values, got {value!r}; do write as many")
        return tuple(converter.structure(v, item) for v, item in zip(value, items, strict=True))

    return structure


def _structure_mapping(converter: cattrs.Converter, cls: Any) -> Any:
    key_type, value_type = typing.get_args(cls)

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise ConfigError(f"expected an object, got {value!r}; do write keys and values in braces")
        return {converter.structure(k, key_type): converter.structure(v, value_type) for k, v in value.items()}

    return structure


def _structure_literal(cls: Any) -> Any:
    options = typing.get_args(cls)

    def structure(value: Any, _: Any) -> Any:
        for option in options:
            if type(option) is type(value) and option == value:
                return option
        names = [str(option) for option in options]
        raise ConfigError(f"expected one of {', '.join(names)}, got {value!r}; do pick one of them{closest(str(value), names)}")

    return structure


def _structure_dataclass(converter: cattrs.Converter, cls: Any) -> Any:
    inner = make_dict_structure_fn(cls, converter, _cattrs_detailed_validation=False)
    fields = [f for f in dataclasses.fields(cls) if f.init]
    names = [f.name for f in fields]
    required = [f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise ConfigError(f"expected an object for {cls.__name__}, got {value!r}; do write its fields as key and value")
        value = dict(value)
        kind = value.pop("kind", getattr(cls, "kind", None))
        if kind != getattr(cls, "kind", None):
            expected = f"`kind` {cls.kind!r}" if hasattr(cls, "kind") else "no `kind`"
            raise ConfigError(f"expected {expected} for {cls.__name__}, got {kind!r}; do correct it")
        for key in value:
            if key not in names:
                raise ConfigError(f"expected a field of {cls.__name__}, got {key!r}; do use one of {', '.join(names)}{closest(key, names)}")
        for name in required:
            if name not in value:
                raise ConfigError(f"expected `{name}` of {cls.__name__}, got none; do give it a value")
        return inner(value, cls)

    return structure


def _unstructure_dataclass(converter: cattrs.Converter, cls: Any) -> Any:
    omitted: dict[str, Any] = {f.name: cattrs.override(omit=True) for f in dataclasses.fields(cls) if not f.init}
    inner = make_dict_unstructure_fn(cls, converter, **omitted)

    def unstructure(value: Any) -> dict[str, Any]:
        tag = {"kind": cls.kind} if hasattr(cls, "kind") else {}
        return {**tag, **inner(value)}

    return unstructure


def _strict(expected: type) -> Any:
    def structure(value: Any, _: Any) -> Any:
        ok = isinstance(value, expected) and not (isinstance(value, bool) and expected is not bool)
        if expected is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if not ok:
            raise ConfigError(f"expected a value of type {expected.__name__}, got {value!r}; do correct the type")
        return value

    return structure


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=False, unstruct_collection_overrides={tuple: list})
    for primitive in (bool, int, float, str):
        converter.register_structure_hook(primitive, _strict(primitive))
    converter.register_structure_hook_factory(dataclasses.is_dataclass, lambda cls: _structure_dataclass(converter, cls))
    converter.register_unstructure_hook_factory(dataclasses.is_dataclass, lambda cls: _unstructure_dataclass(converter, cls))
    converter.register_structure_hook_factory(_is_union, lambda cls: _structure_union(converter, cls))
    converter.register_structure_hook_factory(_is_generic(tuple), lambda cls: _structure_tuple(converter, cls))
    converter.register_structure_hook_factory(_is_generic(dict), lambda cls: _structure_mapping(converter, cls))
    converter.register_structure_hook_factory(_is_generic(typing.Literal), _structure_literal)
    # a value in a union field is written by its own class, which carries the tag
    converter.register_unstructure_hook_factory(_is_union, lambda _: lambda value: converter.unstructure(value))
    return converter


_CONVERTER = _make_converter()


def to_dict(config: Any) -> dict[str, Any]:
    """A frozen dataclass as plain JSON values, unions tagged with `kind`.

    Example:
        >>> to_dict(RegressionHeadConfig())["kind"]
        'regression'
    """
    return _CONVERTER.unstructure(config)


def from_dict(cls: type[T], value: Any) -> T:
    """The inverse of `to_dict`.

    Raises:
        ConfigError: an unknown key or kind, or a value of the wrong type; names the closest match.
    """
    try:
        return _CONVERTER.structure(value, cls)
    except ConfigError:
        raise
    except (TypeError, KeyError, ValueError, cattrs.BaseValidationError) as error:
        raise ConfigError(f"expected a configuration of {getattr(cls, '__name__', cls)}, got {value!r}; do repair it ({error})") from error


def _reject_constant(literal: str) -> Any:
    raise ConfigError(f"expected finite numbers, got {literal}; do correct the value")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ConfigError(f"expected every key once, got {key!r} twice; do remove one")
        seen[key] = value
    return seen


def as_json(config: Any) -> str:
    """A configuration as indented JSON.

    Raises:
        ConfigError: a number that is not finite.
    """
    try:
        return json.dumps(to_dict(config), indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise ConfigError(f"expected finite numbers, got {config}; do correct the value") from error


def load_json(cls: type[T], path: Path) -> T:
    """Read a configuration written by `as_json`.

    Raises:
        ConfigError: no file, not JSON, a key twice, a number that is not finite, or what `from_dict` raises.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_reject_constant, object_pairs_hook=_unique_keys)
    except FileNotFoundError as error:
        raise ConfigError(f"expected a configuration at {path}, got no file; do check the run directory") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"expected JSON in {path}, got {error.msg} at line {error.lineno}; do repair or retrain") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"expected JSON in {path}, got bytes that are not UTF-8; do repair or retrain") from error
    return from_dict(cls, value)


def check_choices(config: Any) -> None:
    """Check every field of a dataclass that is one of a few words: type annotations bind nobody who writes Python.

    Raises:
        ConfigError: another word; names the closest.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        parts = typing.get_args(hint) if _is_union(hint) else (hint,)
        words = [word for part in parts if typing.get_origin(part) is typing.Literal for word in typing.get_args(part)]
        value = getattr(config, name)
        if words and value not in words and not (value is None and type(None) in parts):
            raise ConfigError(f"expected {name} of {', '.join(map(repr, words))}, got {value!r}; do pick one{closest(str(value), words)}")


def require(condition: bool, expected: str, got: Any, do: str) -> None:
    """Raise `ConfigError` in the house's form unless the condition holds.

    Example:
        >>> require(batch_size > 0, "batch_size > 0", batch_size, "pass a positive size")
    """
    if not condition:
        raise ConfigError(f"expected {expected}, got {got}; do {do}")
