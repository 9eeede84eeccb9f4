"""Scripts that judge a trained run. They read a run directory and write a report; they never train."""
