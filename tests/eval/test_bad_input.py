"""Whatever is wrong with the input of `eval` is told in one line with exit code 2."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from eval.__main__ import main as judge
from eval.sbc import main as sbc
from tests.bad_input import SMALL, refused
from train.__main__ import main as train

DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    where = tmp_path_factory.mktemp("trained") / "run"
    assert train(["debug", "--run-dir", str(where), *SMALL]) == 0
    return where


@pytest.fixture
def run_dir(trained, tmp_path):
    """A run of its own to damage."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.parametrize("main", [judge, sbc], ids=("eval", "eval.sbc"))
def test_no_run(script, run_dir, tmp_path, main):
    refused(script(main, tmp_path / "nowhere"), "got no file")
    (tmp_path / "file").write_text("mine")
    refused(script(main, tmp_path / "file"))
    shutil.rmtree(run_dir / "checkpoints")
    refused(script(main, run_dir), "checkpoints", "train first")
    (run_dir / "checkpoints").mkdir()
    refused(script(main, run_dir), "got none")


@pytest.mark.parametrize("main", [judge, sbc], ids=("eval", "eval.sbc"))
def test_damaged_configuration(script, run_dir, main):
    config = run_dir / "config.json"
    text = config.read_text()
    cases = {
        text[:200]: "expected JSON",
        "\udc80": "not UTF-8",
        "[]": "expected an object",
        text.replace('"regression"', '"regresion"'): "did you mean 'regression'?",
        text.replace('"steps": 4', '"steps": "4"'): "type int",
        text.replace('"steps": 4', '"steps": NaN'): "got NaN",
        text.replace('"steps": 4', '"stepz": 4'): "did you mean 'steps'?",
        text.replace('"steps": 4', '"steps": -4'): "steps > 0",
        text.replace('"width": 32', '"width": 64'): "bias as float32[64], got float32[32]",
    }
    for damaged, word in cases.items():
        assert damaged != text
        config.write_text(damaged, errors="surrogateescape")
        refused(script(main, run_dir), word)


def test_corrupt_checkpoints(script, run_dir, monkeypatch):
    for path in (run_dir / "checkpoints").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(script(judge, run_dir), "expected a readable checkpoint", "step 4: ", "step 2: ")


def test_bad_flags(script, run_dir):
    refused(script(judge, run_dir, "--referense", "x"), "did you mean '--reference'?")
    refused(script(sbc, run_dir, "--n-runs", "0"), "n_runs >= 20")
    refused(script(sbc, run_dir, "--n-samples", "-9"), "n_samples >= 9")
    refused(script(sbc, run_dir, "--n-run", "many"), "--n-run")
    for main in (judge, sbc):
        assert script(main).code == 2
        assert script(main, "--help").code == 0


def test_bad_references(script, run_dir, tmp_path):
    file = tmp_path / "reference.npz"
    good = dict(np.load(DATA / "two_moons.npz"))
    cut = {name: array[:, :20] if array.ndim == 3 else array for name, array in good.items()}

    def changed(**arrays):
        np.savez(file, **{**cut, **arrays})
        return script(judge, run_dir, "--reference", file)

    refused(script(judge, run_dir, "--reference", tmp_path / "nowhere.npz"), "FileNotFoundError")
    refused(changed(observation=np.ones((5, 3))), "observations of shape (5, 2), got (5, 3)")
    refused(changed(true_parameters=np.ones((5, 3))), "true states of shape (5, 2), got (5, 3)")
    refused(changed(true_parameters=np.ones((4, 2))), "true states of shape (5, 2), got (4, 2)")
    refused(changed(reference_samples=np.ones((5, 20, 3))), "of shape (5, 2), got (5, 3)")
    refused(changed(observation=np.full((5, 2), np.nan)), "finite numbers in `observation`")
    refused(changed(observation=np.full((5, 2), "a")), "finite numbers in `observation`")
    refused(script(judge, run_dir, "--reference", DATA / "l63_win_full.npz"), "observations of shape (32, 2), got (32, 10, 3)")
    np.savez(file, something=np.ones(3))
    refused(script(judge, run_dir, "--reference", file), "got something")
    whole = (DATA / "two_moons.npz").read_bytes()
    middle = bytearray(whole)
    middle[len(middle) // 2 : len(middle) // 2 + 50] = bytes(50)
    for damaged in (b"", b"text", whole[: len(whole) // 2], bytes(middle)):
        file.write_bytes(damaged)
        refused(script(judge, run_dir, "--reference", file), "reference npz at")
    np.save(tmp_path / "array.npy", np.ones(3))
    refused(script(judge, run_dir, "--reference", tmp_path / "array.npy"), "reference npz at")


@pytest.mark.slow
def test_a_run_that_is_training_is_not_disturbed(script, run_dir):
    half = run_dir / "checkpoints" / "6.orbax-checkpoint-tmp"
    half.mkdir()
    before = sorted(run_dir.rglob("*"))
    script(sbc, run_dir, "--n-runs", "20", "--n-samples", "9")
    assert sorted(run_dir.rglob("*")) == before
