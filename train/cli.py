"""What the scripts share: flags from dataclasses, and every foreseeable error as one line with exit code 2."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import tyro

from vardax_flax.core.config import ConfigError, closest
from vardax_flax.streams import RecordError
from vardax_flax.training import CheckpointError, NonFiniteLossError

T = TypeVar("T")

EXPECTED = (ConfigError, RecordError, CheckpointError, NonFiniteLossError)


def parse(cls: Any, default: T, arguments: list[str], prog: str) -> T:
    """Flags over a default dataclass: `--fit.steps 100`. The type of a part is the default's; its values are flags.

    Raises:
        ConfigError: an unknown flag (names the closest) or a bad value.
    """
    target = tyro.conf.AvoidSubcommands[cls]
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            parsed, unknown = tyro.cli(target, default=default, args=arguments, prog=prog, return_unknown_args=True)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        text = _one_line(shown.getvalue())
        do = "" if "; do " in text else f"; do see {prog} --help"
        raise ConfigError(text if text.startswith("expected") else f"expected valid flags, got: {text}{do}") from stop
    if unknown:
        raise ConfigError(f"expected a flag of `{prog}`, got {unknown[0]}; do see --help{closest(unknown[0], _flags(target, default))}")
    return parsed


def _flags(target: Any, default: Any) -> list[str]:
    """All flags, from the help text: the parser has no other public list of them."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        tyro.cli(target, default=default, args=["--help"])
    return re.findall(r"--[a-z0-9][a-z0-9.-]*", shown.getvalue())


def _one_line(box: str) -> str:
    """The message inside the box that the parser draws: title in the frame, or in ASCII, where the title is a section of its own."""
    sections: list[list[str]] = [[]]
    for line in box.splitlines():
        if re.search(r"─{2,}|-{4,}", line):
            sections.append([])
        elif text := line.strip(" │|+"):
            sections[-1].append(text)
    told = [" ".join(section) for section in sections if section]
    text = told[0 if "╭" in box else 1] if len(told) > 1 else "".join(told)
    return re.sub(r"\s+", " ", re.sub(r"^Error parsing [^:]*: (?=expected)", "", text))


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a foreseeable error as `error: expected …, got …, do …` and leave with exit code 2; let the others show their trace."""
    try:
        yield
    except EXPECTED as error:
        sys.exit(_complain(str(error)))
    except OSError as error:
        if error.errno is None:
            raise
        file = error.filename or "a file"
        sys.exit(_complain(f"expected to read or write {file}, got {error.strerror}; do free space or check the path"))


def _complain(text: str) -> int:
    print(f"error: {text}", file=sys.stderr)
    return 2


def usage(text: str | None, arguments: list[str]) -> int | None:
    """Show a script's text where its first argument is no run directory; the exit code then, or None to go on."""
    if arguments and not arguments[0].startswith("-"):
        return None
    print(text)
    return 0 if arguments and arguments[0] in ("-h", "--help") else 2


def run(main: Callable[[list[str]], int]) -> None:
    """Run a script's `main` on the command line and exit with what it returns."""
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
