"""Whatever is wrong with the input of `train` is told in one line with exit code 2, and nothing on disk is lost."""

import json
import sys

import pytest

from tests.bad_input import SMALL, refused
from train.__main__ import main as train
from train.simulate import main as simulate


def tree(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that must stay as it is, and records that fit it."""
    where = tmp_path_factory.mktemp("finished")
    assert train(["debug", "--run-dir", str(where / "run"), *SMALL]) == 0
    assert simulate(["debug", "--out", str(where / "records"), "--n", "400", "--shard-size", "100"]) == 0
    return where


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("debgu",), ("'debgu'", "did you mean 'debug'?")),
        (("debug", "--fit.stepz", "3"), ("--fit.stepz", "did you mean '--fit.steps'?")),
        (("debug", "--fit.steps", "many"), ("many", "int")),
        (("debug", "--fit.steps", "1.5"), ("1.5",)),
        (("debug", "--fit.steps", "-4"), ("steps > 0", "-4")),
        (("debug", "--fit.steps"), ("--fit.steps",)),
        (("debug", "--batch-size", "0"), ("batch_size > 0",)),
        (("debug", "--fit.optim.learning-rate", "-1"), ("learning_rate > 0",)),
        (("debug", "--fit.optim.schedule", "linear"), ("linear",)),
        (("debug", "--data-seed", "-1"), ("seed",)),
        (("debug", "--posterior.head.width", "-3"), ("width",)),
        (("debug", "--simulator.missing-rate", "2"), ("missing_rate",)),
        (("debug", "--resume", "--overwrite"), ("got both",)),
        (("debug", "--records", "nowhere"), ("nowhere/manifest.json",)),
        (("debug",), ("--resume, --overwrite or another --run-dir",)),
        (("debug", "--resume", "--seed", "5"), ("seed", "--overwrite")),
        (("debug", "--resume", "--fit.optim.learning-rate", "0.5"), ("optimiser", "--overwrite")),
        (("debug", "--resume", "--fit.steps", "2"), ("length of the run", "4 steps")),
        (("two_moons", "--resume"), ("simulator", "--overwrite")),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith(("deb", "two")) else "",
)
def test_bad_flags(script, finished, arguments, words):
    before = tree(finished)
    # the sizes come first, so that a bad value among the arguments wins
    refused(script(train, arguments[0], "--run-dir", finished / "run", *SMALL, *arguments[1:]), *words)
    assert tree(finished) == before


def test_what_is_wrong_is_found_before_a_run_is_overwritten(script, finished, monkeypatch):
    before = tree(finished)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    again = ("--run-dir", finished / "run", "--overwrite", *SMALL)
    refused(script(train, "debug", *again, "--tensorboard"), "--tensorboard", "pip install")
    refused(
        script(train, "two_moons", *again, "--records", finished / "records", "--simulator.missing-rate", "0.5"), "--simulator.missing-rate"
    )
    refused(script(train, "lorenz63", *again, "--records", finished / "records"), "records simulated by")
    refused(script(train, "debug", *again, "--records", finished / "records", "--validation-fraction", "1e-6"), "held-out")
    assert tree(finished) == before


def test_paths_that_are_no_directory(script, finished, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(script(train, "debug", "--run-dir", tmp_path / "file", *SMALL), "got a file")
    refused(script(train, "debug", "--run-dir", tmp_path / "file" / "run", *SMALL))
    refused(script(simulate, "debug", "--out", tmp_path / "file", "--n", "10"))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_damaged_configuration_is_not_overwritten_by_resuming(script, finished, tmp_path):
    (tmp_path / "config.json").write_text((finished / "run" / "config.json").read_text()[:100])
    before = tree(tmp_path)
    refused(script(train, "debug", "--run-dir", tmp_path, "--resume", *SMALL), "expected JSON", "config.json")
    assert tree(tmp_path) == before


def test_truncated_and_changed_records(script, finished, tmp_path):
    import shutil

    shutil.copytree(finished / "records", tmp_path / "records")
    shard = sorted((tmp_path / "records").glob("shard-*"))[1]
    whole = shard.read_bytes()
    arguments = ("debug", "--run-dir", tmp_path / "run", "--records", tmp_path / "records", *SMALL)
    shard.write_bytes(whole[: len(whole) // 2])
    refused(script(train, *arguments), "bytes in", shard.name)
    assert not (tmp_path / "run").exists()
    shard.write_bytes(bytes(len(whole)))  # the right size: seen only when read
    refused(script(train, *arguments), shard.name)
    shard.write_bytes(whole)
    manifest = tmp_path / "records" / "manifest.json"
    manifest.write_text(manifest.read_text()[:50])
    refused(script(train, *arguments, "--overwrite"), "expected JSON", "manifest.json")


@pytest.mark.parametrize("bad", [("--n", "0"), ("--n", "-5"), ("--shard-size", "0"), ("--seed", "-1"), ("--m", "3")])
def test_bad_simulations(script, tmp_path, bad):
    refused(script(simulate, "debug", "--out", tmp_path / "records", *bad))
    assert not (tmp_path / "records").exists()
    refused(script(simulate, "lorenz36"), "did you mean 'lorenz96'?")


def test_records_made_otherwise_are_kept(script, finished):
    before = tree(finished)
    refused(script(simulate, "debug", "--out", finished / "records", "--n", "500"), "expected n 400")
    assert tree(finished) == before


def test_a_full_disk_is_one_line(script, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "train.__main__.save_experiment", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device", "config.json"))
    )
    refused(script(train, "debug", "--run-dir", tmp_path / "run", *SMALL), "config.json", "No space left")


def test_help_is_no_error(script):
    for main in (train, simulate):
        assert script(main, "--help").code == 0
    shown = script(train, "debug", "--help")
    assert shown.code == 0 and "--fit.optim.learning-rate" in shown.out


def test_on_a_fixed_schedule_a_run_can_be_lengthened_but_not_shortened(script, tmp_path):
    arguments = ("debug", "--run-dir", tmp_path / "run", "--resume", *SMALL, "--fit.optim.schedule-steps", "6")
    assert script(train, *arguments).code == 0
    done = script(train, *arguments, "--fit.steps", "6")
    assert (done.code, done.err) == (0, "")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["step"] == 6
    before = tree(tmp_path)
    refused(script(train, *arguments, "--fit.steps", "2"), "steps >= 6")
    assert tree(tmp_path) == before
