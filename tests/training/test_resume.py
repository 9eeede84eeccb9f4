"""A resumed run is the uninterrupted run, bit for bit, wherever it was cut."""

import json
import signal

import jax
import pytest

from vardax_flax.streams import ArrayStream, ResimulatedStream, SeedStream
from vardax_flax.training import fit, read_metrics


class Interrupting(SeedStream):
    """Delivers SIGTERM to the process just before it hands out dispatch number `at`."""

    at = -1

    def iterate(self, *args, **kwargs):
        for number, payload in enumerate(super().iterate(*args, **kwargs)):
            if number == self.at:
                signal.raise_signal(signal.SIGTERM)
            yield payload


def numbers(run_dir):
    """The evaluations without their timing."""
    return [{k: v for k, v in line.items() if k != "steps_per_second"} for line in read_metrics(run_dir)]


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory):
    """An uninterrupted run of 40 steps."""
    posterior, config, run_dir = parts.posterior(), parts.config(), tmp_path_factory.mktemp("whole")
    fit(posterior, parts.stream(), config, run_dir=run_dir, progress=False)
    return run_dir, parts.state(run_dir, parts.posterior(), config), parts.weights(posterior)


def test_twice_half_is_the_whole(parts, whole, tmp_path):
    run_dir, state, weights = whole
    halves = tmp_path / "halves"
    fit(parts.posterior(), parts.stream(), parts.config(steps=20), run_dir=halves, progress=False)
    posterior = parts.posterior()
    result = fit(posterior, parts.stream(), parts.config(), run_dir=halves, resume=True, progress=False)
    assert (result.status, result.step) == ("finished", 40)
    parts.assert_same(parts.state(halves, parts.posterior(), parts.config()), state)
    parts.assert_same(parts.weights(posterior), weights)
    assert numbers(halves) == numbers(run_dir)


def test_interrupted_between_evaluations(parts, whole, tmp_path):
    run_dir, state, weights = whole
    cut = tmp_path / "cut"
    stream = Interrupting(parts.simulator, 64)
    stream.at = 2
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    result = fit(parts.posterior(), stream, parts.config(), run_dir=cut, progress=False)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert (result.status, result.step) == ("interrupted", 15)  # evaluations are at 10 and 20
    assert json.loads((cut / "run.json").read_text())["status"] == "interrupted"
    posterior = parts.posterior()
    fit(posterior, parts.stream(), parts.config(), run_dir=cut, resume=True, progress=False)
    parts.assert_same(parts.state(cut, parts.posterior(), parts.config()), state)
    parts.assert_same(parts.weights(posterior), weights)
    # training means of the interval that was cut cover the steps since the interruption; everything else is the same
    for line, expected in zip(numbers(cut), numbers(run_dir), strict=True):
        if line["step"] == 20:
            line, expected = ({k: v for k, v in one.items() if k in ("step", "held_out")} for one in (line, expected))
        assert line == expected


def test_interrupted_before_the_first_evaluation(parts, tmp_path):
    stream = Interrupting(parts.simulator, 64)
    stream.at = 0
    posterior = parts.posterior()
    result = fit(posterior, stream, parts.config(), run_dir=tmp_path, progress=False)
    assert (result.status, result.step, result.history) == ("interrupted", 5, [])
    assert json.loads((tmp_path / "run.json").read_text(), parse_constant=pytest.fail)["best_loss"] is None


def test_interrupted_from_a_callback_and_while_finishing(parts, whole, tmp_path):
    _, state, _ = whole

    def stop_at(step):
        return lambda line: signal.raise_signal(signal.SIGTERM) if line["step"] == step else None

    cut = tmp_path / "cut"
    assert fit(parts.posterior(), parts.stream(), parts.config(), run_dir=cut, on_metrics=stop_at(30), progress=False).step == 30
    # a signal during the very last evaluation finds the run complete
    result = fit(parts.posterior(), parts.stream(), parts.config(), run_dir=cut, resume=True, on_metrics=stop_at(40), progress=False)
    assert result.status == "finished"
    parts.assert_same(parts.state(cut, parts.posterior(), parts.config()), state)


def test_a_second_interrupt_leaves_at_once(parts):
    def twice(line):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    estimator = parts.Mean()
    with pytest.raises(KeyboardInterrupt):
        fit(estimator, parts.Pull(lambda step: 1.0, held_out=1.0), parts.config(), on_metrics=twice, progress=False)
    assert float(estimator.w[...]) > 0  # and still hands back what was learned


def test_metrics_after_the_checkpoint_and_half_a_line_are_dropped(parts, whole, tmp_path):
    run_dir, state, _ = whole
    fit(parts.posterior(), parts.stream(), parts.config(steps=20), run_dir=tmp_path / "cut", progress=False)
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 30, "held_out": 1.0}) + "\n" + '{"step": 40, "held')
    fit(parts.posterior(), parts.stream(), parts.config(), run_dir=tmp_path / "cut", resume=True, progress=False)
    assert numbers(tmp_path / "cut") == numbers(run_dir)


def test_the_summary_of_an_earlier_part_does_not_outlive_it(parts, tmp_path):
    fit(parts.Mean(), parts.Pull(lambda step: 1.0), parts.config(steps=10), run_dir=tmp_path, progress=False)

    def look(line):
        assert not (tmp_path / "run.json").exists()

    fit(parts.Mean(), parts.Pull(lambda step: 1.0), parts.config(), run_dir=tmp_path, resume=True, on_metrics=look, progress=False)
    assert (tmp_path / "run.json").exists()


@pytest.mark.slow
def test_a_run_on_states_observed_anew_resumes_too(parts, tmp_path):
    def stream():
        return ResimulatedStream(ArrayStream(SeedStream(parts.simulator, 64).held_out(300), 64), parts.simulator)

    once, twice = parts.posterior(), parts.posterior()
    fit(once, stream(), parts.config(held_out=20), progress=False)
    fit(parts.posterior(), stream(), parts.config(steps=20, held_out=20), run_dir=tmp_path, progress=False)
    fit(twice, stream(), parts.config(held_out=20), run_dir=tmp_path, resume=True, progress=False)
    parts.assert_same(parts.weights(once), parts.weights(twice))
    plain = parts.posterior()
    fit(plain, ArrayStream(SeedStream(parts.simulator, 64).held_out(300), 64), parts.config(held_out=20), progress=False)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (parts.weights(plain), parts.weights(once))), strict=True))
