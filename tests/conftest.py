"""Shared by all tests: runtime shape and type checks, a compilation cache that survives, and the `x64` fixture."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

CACHE = Path(__file__).resolve().parent.parent / ".jax_cache"

# through the environment, so that tests that start a process of their own share the settings
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
# most of a test's time goes into compiling: LLVM without its optimisations gives the same programs of XLA in two thirds of it
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import absl.flags  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# again here, in case a plugin imported jax before the environment was set
jax.config.update("jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1")
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]))
jax.config.update("jax_persistent_cache_min_entry_size_bytes", int(os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"]))

# before the first import of the library: only modules imported from here on are checked. Not `report`: it walks JSON number by number,
# where a check at every call costs minutes, and it has a schema of its own
LIBRARY = Path(__file__).resolve().parent.parent / "vardax_flax"
ROOMS = sorted(path.name for path in LIBRARY.iterdir() if path.is_dir() and path.name not in ("report", "__pycache__"))
jaxtyping.install_import_hook([f"vardax_flax.{room}" for room in ROOMS], "beartype.beartype")

# grain reads absl flags, which nobody parses under pytest
absl.flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Programs of one file are of no use to the next, and a process that keeps thousands runs out of memory maps and dies."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision for tests that judge numerics."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """The programs compiled so far, or read from the cache on disk."""
    events: list[str] = []

    def listen(name: str, seconds: float, **details: object) -> None:
        if name == "/jax/core/compile/backend_compile_duration":
            events.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """`script(main, "debug", "--flag")`: runs a script's `main` as its command would, and returns code, out, err."""
    from train.cli import one_line_errors  # here, so that tests of the library alone do not import the scripts

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
