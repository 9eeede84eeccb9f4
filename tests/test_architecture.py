"""The layout of the project, held by reading its source: who imports whom, how long things are, what is documented and what is not said."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = "vardax_flax"
RANKS = {
    "core": 0,
    "ops": 1,
    "nn": 1,
    "simulators": 2,
    "streams": 2,
    "encoders": 2,
    "flows": 2,
    "diffusion": 2,
    "adjoints": 2,
    "heads": 3,
    "assimilation": 3,
    "fourdvarnet": 3,
    "posteriors": 4,
    "training": 4,
    "validation": 4,
    "report": 4,
    "train": 5,
    "eval": 6,
}
SIDEWAYS = {("posteriors", "vardax_flax.training.fit")}  # the one room of equal rank that another may enter
# of train, eval needs what loads a run, its command-line conventions, and presets to time
RUN_LOADERS = ("train.config", "train.cli", "train.presets")
MAX_FILE, MAX_FUNCTION = 400, 60


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


LIBRARY_FILES = sources(LIBRARY)
LAYERED_FILES = sources(LIBRARY, "train", "eval")
PYTHON_FILES = sources(LIBRARY, "train", "eval", "tests")
over = lambda files: pytest.mark.parametrize("path", files, ids=relative)  # noqa: E731


# --- who imports whom ---


def room_of(module: str) -> str | None:
    """Folder of a module of ours (`heads` for `vardax_flax.heads.flow`), `vardax_flax` for its root, None for anything else."""
    first, *rest = module.split(".")
    if first != LIBRARY:
        return first if first in RANKS else None
    return rest[0] if rest else LIBRARY


def imports(module: str, source: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a file imports, at any depth; `from a import b` counts as `a.b`."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *filter(None, [node.module])])
            yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)


def forbidden_imports(module: str, source: str, is_package: bool = False) -> list[str]:
    """The imports that break the rank table, each with the reason."""
    here = room_of(module)
    found = []
    for line, name in imports(module, source, is_package):
        there = room_of(name)
        if there is None or there == here:
            continue
        if there == LIBRARY or (there not in RANKS and name.startswith(f"{LIBRARY}.")):
            # a name of the root package itself: fine for scripts, circular for the library
            reason = "" if here in ("train", "eval", LIBRARY) else "the library's rooms import each other, not the root"
        elif here == LIBRARY:
            reason = "the library knows no scripts" if there in ("train", "eval") else ""
        elif here == "eval" and there == "train":
            allowed = any(name == loader or name.startswith(f"{loader}.") for loader in RUN_LOADERS)
            reason = "" if allowed else f"eval uses only {', '.join(RUN_LOADERS)} of train"
        elif RANKS[there] > RANKS[here]:
            reason = f"rank {RANKS[here]} imports rank {RANKS[there]}"
        elif RANKS[there] == RANKS[here] >= 2:
            excused = any(here == room and (name == door or name.startswith(f"{door}.")) for room, door in SIDEWAYS)
            reason = "" if excused else f"sideways at rank {RANKS[here]}"
        else:
            reason = ""
        if reason:
            found.append(f"{module}:{line} imports {name}: {reason}")
    return found


def test_every_folder_has_a_rank():
    folders = {path.name for path in (ROOT / LIBRARY).iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders <= set(RANKS), f"expected folders of the rank table, got {sorted(folders - set(RANKS))}; do give each a rank"


@over(LAYERED_FILES)
def test_imports_follow_the_ranks(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    assert forbidden_imports(module, path.read_text(encoding="utf-8"), is_package) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("vardax_flax.core.batch", "import vardax_flax.ops.gaussian"),
        ("vardax_flax.core.batch", "def f():\n    from vardax_flax import heads"),
        ("vardax_flax.flows.maf", "from vardax_flax.encoders.mlp import MLP"),
        ("vardax_flax.flows.maf", "from ..encoders import mlp"),
        ("vardax_flax.streams.seeds", "if True:\n    from vardax_flax.simulators import Lorenz63"),
        ("vardax_flax.heads.flow", "from vardax_flax.posteriors.amortized import Amortized"),
        ("vardax_flax.heads.flow", "import vardax_flax"),
        ("vardax_flax.posteriors.amortized", "from vardax_flax.training.step import make_step"),
        ("vardax_flax.posteriors.amortized", "from vardax_flax.training import fit, step"),
        ("vardax_flax.training.fit", "from vardax_flax.validation import sbc"),
        ("vardax_flax.report.html", "import train.config"),
        ("vardax_flax", "from eval import bench"),
        ("train.config", "from eval.sbc import main"),
        ("eval.sbc", "from train.launch import main"),
        ("eval.sbc", "import train"),
    ],
)
def test_the_rule_catches(module, line):
    assert len(forbidden_imports(module, line)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("vardax_flax.ops.gaussian", "from vardax_flax.nn.mlp import MLP"),
        ("vardax_flax.flows.maf", "from . import base\nfrom vardax_flax.flows.base import Base\nimport jax, distrax"),
        ("vardax_flax.heads.flow", "from vardax_flax.flows import maf\nfrom vardax_flax.core.batch import Batch"),
        ("vardax_flax.posteriors.variational", "from vardax_flax.training.fit import fit\nfrom vardax_flax.training import fit"),
        ("vardax_flax", "from vardax_flax.heads import FlowHead"),
        ("train.config", "import vardax_flax\nfrom vardax_flax import fit\nfrom train.presets import PRESETS"),
        ("eval.__main__", "from train.config import load_run\nfrom train import config\nfrom vardax_flax.report import write_report"),
    ],
)
def test_the_rule_allows(module, line):
    assert forbidden_imports(module, line) == []


# --- how long things are ---


def too_long(source: str) -> list[str]:
    """Files and functions over the limit that no `# long: reason` comment excuses; the reason of a file stands before its first code."""
    lines = source.splitlines()
    reason = re.compile(r"#\s*long:\s*\w+")
    tree = ast.parse(source)
    found = []
    start = next((node.lineno for node in tree.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))), 1)
    if len(lines) > MAX_FILE and not any(reason.search(line) for line in lines[:start]):
        found.append(f"{len(lines)} lines in a file, at most {MAX_FILE}")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = lines[node.lineno - 1 : node.end_lineno]
            if len(body) > MAX_FUNCTION and not any(reason.search(line) for line in body):
                found.append(f"{len(body)} lines in `{node.name}`, at most {MAX_FUNCTION}")
    return found


@over(PYTHON_FILES)
def test_nothing_is_too_long(path):
    assert too_long(path.read_text(encoding="utf-8")) == []


def test_the_length_rule_catches_and_excuses():
    function = "def f():\n" + "    x = 1\n" * MAX_FUNCTION
    file = "x = 1\n" * (MAX_FILE + 1)
    assert len(too_long(function)) == 1 and len(too_long(file)) == 1
    assert too_long(function.replace("def f():", "def f():  # long: one table")) == []
    assert too_long("# long: one table\n" + file) == []
    assert too_long(file + "# long: too late\n") != []
    assert too_long("def f():\n" + "    x = 1\n" * (MAX_FUNCTION - 1)) == []


# --- what is documented ---


def undocumented(module_name: str) -> list[str]:
    """Public names without a docstring of their own; the one a dataclass or a NamedTuple writes itself does not count."""
    module = importlib.import_module(module_name)
    found = [] if (module.__doc__ or "").strip() else [module_name]
    for name in module.__all__:
        value = getattr(module, name)
        if not (inspect.isclass(value) or callable(value)) or inspect.ismodule(value):
            continue  # constants, registries and unions are explained where they are defined
        doc = (vars(value).get("__doc__") if inspect.isclass(value) else getattr(value, "__doc__", None)) or ""
        if not doc.strip() or doc.startswith(f"{value.__name__}("):
            found.append(f"{module_name}.{name}")
    return found


def with_public_names() -> list[str]:
    packages = [path for path in LIBRARY_FILES if path.name == "__init__.py" and "__all__" in path.read_text(encoding="utf-8")]
    return [".".join(path.parent.relative_to(ROOT).parts) for path in packages]


@pytest.mark.parametrize("module_name", sorted({LIBRARY, *with_public_names()}))
def test_every_public_name_exists_and_has_a_docstring(module_name):
    module = importlib.import_module(module_name)
    assert module.__all__ and len(set(module.__all__)) == len(module.__all__)
    assert undocumented(module_name) == []


# --- what is not said ---


@over(LIBRARY_FILES)
def test_the_library_does_not_print(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id in ("print", "breakpoint", "input")] == []


# letters in brackets keep this file from matching itself
FOREIGN = re.compile(
    r"(?<![\w.}/])/(?:work|home|root|Users|tmp|mnt)/[\w.]"  # a place on one machine
    r"|\.\./[s]hared"
    r"|(?:py[p]i\.org|pytho[n]hosted)"
    r"|\b(?:[i]ssue|[t]icket|[p]ull request|P[R])s? #?\d"
    r"|\b(?:A[I]|L[L]Ms?)\b"
)
TEXT = {".py", ".md", ".toml", ".html", ".j2", ".css", ".js", ".txt", ".yml", ".yaml", ".ipynb", ".cfg", ".ini", ""}


def texts() -> list[Path]:
    folders = (LIBRARY, "train", "eval", "tests", "notebooks", ".ci", "docs")
    inside = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    top = [path for path in ROOT.iterdir() if path.is_file()]
    return sorted(path for path in inside + top if path.suffix in TEXT)


def test_the_project_speaks_of_itself_alone():
    found = []
    for path in texts():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            found += [f"{relative(path)}:{number}: {match.group()!r}" for match in FOREIGN.finditer(line)]
    assert found == []


@pytest.mark.parametrize("text", ["see /ho" "me/me/x", '"/tm' 'p/run"', "iss" "ue #12", "an A" "I", "../sha" "red/x"])
def test_the_word_rule_catches(text):
    assert FOREIGN.search(text)


@pytest.mark.parametrize("text", ["runs/tmp/x", "tmp_path / 'work'", "$ROOT/work/x", "issues", "MAIL", "p(x | y)/home"])
def test_the_word_rule_allows(text):
    assert not FOREIGN.search(text)
