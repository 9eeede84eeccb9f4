"""What the documents show runs: the README's Python, and every notebook."""

import re
from pathlib import Path

import jupytext
import nbclient
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


@pytest.mark.slow
def test_python_of_the_readme_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["draws"].shape == (4, 1000, 3)  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::FutureWarning")
def test_notebook_runs(path: Path) -> None:
    notebook = jupytext.read(path)
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()


def test_readme_names_the_test_command_that_make_runs() -> None:
    command = '-m pytest -n 2 --dist loadfile -m "not slow"'
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
    assert command in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_every_preset_says_its_command_time_and_numbers() -> None:
    files = sorted(path for path in (ROOT / "train" / "presets").glob("*.py") if path.stem != "__init__")
    assert files
    for path in files:
        header = path.read_text(encoding="utf-8").split('"""')[1]
        assert f"python -m train {path.stem}" in header
        assert "Time:" in header and "Expect:" in header
