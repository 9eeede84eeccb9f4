"""The scripts in this process, with their exit code and what they print."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from train.cli import one_line_errors


@pytest.fixture
def script(capsys) -> Callable[..., SimpleNamespace]:
    """`script(main, "debug", "--flag")`: runs a script's `main` as its command would, and returns code, out, err."""

    def call(main: Callable[[list[str]], int], *arguments: object) -> SimpleNamespace:
        capsys.readouterr()
        try:
            with one_line_errors():
                code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call
