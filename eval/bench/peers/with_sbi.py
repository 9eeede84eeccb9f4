"""sbi (PyTorch): a neural spline flow by `NPE`, its own training loop; there is no scan to write by hand."""

import common  # first: starts the clock

# isort: split
import sbi
import torch
from common import BATCH, DRAWS, EPOCHS, LOOK, OBSERVATIONS, PAIRS, STEPS, median_rate
from sbi.inference import NPE
from sbi.neural_nets import posterior_nn

theta, x = map(torch.as_tensor, common.two_moons())


def fit(epochs, rows=PAIRS):
    build = posterior_nn(
        "nsf", hidden_features=common.WIDTH, num_transforms=common.TRANSFORMS, num_bins=common.BINS, tail_bound=common.BOUND,
        z_score_theta=None, z_score_x=None,
    )  # fmt: skip
    trainer = NPE(density_estimator=build, show_progress_bars=False)
    options = {"training_batch_size": BATCH, "learning_rate": common.RATE, "max_num_epochs": epochs, "stop_after_epochs": 10**6}
    return trainer.append_simulations(theta[:rows], x[:rows]).train(**options)


estimator, times = common.cold_times(lambda: fit(1, 3 * BATCH), lambda: fit(EPOCHS))
own = median_rate(lambda: fit(LOOK), LOOK * STEPS)
with torch.no_grad():
    samples = median_rate(lambda: estimator.sample((DRAWS,), condition=x[:OBSERVATIONS]), DRAWS * OBSERVATIONS, 1)
    density = median_rate(lambda: estimator.log_prob(theta[None], condition=x), PAIRS)
common.answer(version=sbi.__version__, torch=torch.__version__, own=own, samples=samples, log_prob=density, **times)
