"""sbi (PyTorch): a neural spline flow by `NPE`, its own training loop; there is no scan to write by hand."""

import time

BEGAN = time.perf_counter()

import sbi  # noqa: E402
import torch  # noqa: E402
from common import (  # noqa: E402
    BATCH,
    BINS,
    BOUND,
    DRAWS,
    EPOCHS,
    LOOK,
    OBSERVATIONS,
    PAIRS,
    RATE,
    TRANSFORMS,
    WIDTH,
    answer,
    clock,
    median_rate,
    two_moons,
)
from sbi.inference import NPE  # noqa: E402
from sbi.neural_nets import posterior_nn  # noqa: E402

theta, x = map(torch.as_tensor, two_moons())
STEPS = int(0.9 * PAIRS / BATCH)


def fit(epochs, rows=PAIRS):
    build = posterior_nn(
        "nsf", hidden_features=WIDTH, num_transforms=TRANSFORMS, num_bins=BINS, tail_bound=BOUND, z_score_theta=None, z_score_x=None
    )
    trainer = NPE(density_estimator=build, show_progress_bars=False)
    options = {"training_batch_size": BATCH, "learning_rate": RATE, "max_num_epochs": epochs, "stop_after_epochs": 10**6}
    return trainer.append_simulations(theta[:rows], x[:rows]).train(**options)


first = clock(lambda: fit(1, 3 * BATCH))
first_step = time.perf_counter() - BEGAN
estimator = fit(EPOCHS)
cold = time.perf_counter() - BEGAN - first
own = median_rate(lambda: fit(LOOK), LOOK * STEPS)
with torch.no_grad():
    samples = median_rate(lambda: estimator.sample((DRAWS,), condition=x[:OBSERVATIONS]), DRAWS * OBSERVATIONS, 1)
    density = median_rate(lambda: estimator.log_prob(theta[None], condition=x), PAIRS)
answer(version=sbi.__version__, torch=torch.__version__, own=own, samples=samples, log_prob=density, cold=cold, first_step=first_step)
