"""What the tests of bad input share: a tiny run, and what a refusal looks like."""

import re

SMALL = (
    "--quiet",
    "--batch-size",
    "32",
    "--fit.held-out",
    "32",
    "--fit.steps",
    "4",
    "--fit.eval-every",
    "2",
    "--fit.checkpoint-every",
    "2",
)
ONE_LINE = re.compile(r"^error: expected .*got.*; ?do .*\n$")


def refused(result, *words):
    """One line on stderr, exit code 2, and the words in it."""
    assert result.code == 2
    assert ONE_LINE.match(result.err), result.err
    assert not any(drawing in result.err for drawing in ("---", "──", "|", "│", "helptext")), result.err
    for word in words:
        assert word in result.err, result.err
