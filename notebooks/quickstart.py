# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Your own simulator, a posterior, and the proof
#
# A ball is thrown; a radar sees its height at eight times, some of them missing. Which speed and which drag? We bring three functions,
# train q(x | y) on fresh simulations, answer an observation in one forward pass, and let the gates say whether to believe it.

# %%
import jax
import jax.numpy as jnp
from flax import nnx

import vardax_flax as vf

TIMES = jnp.linspace(0.2, 1.6, 8)


def sample_prior(key):
    return jnp.array([10.0, 0.5]) + jnp.array([2.0, 0.1]) * jax.random.normal(key, (2,))


def forward(x):
    speed, drag = x
    return speed / drag * (1 - jnp.exp(-drag * TIMES)) - 0.5 * 9.81 * TIMES**2


def log_prior(x):
    return jax.scipy.stats.norm.logpdf(x, jnp.array([10.0, 0.5]), jnp.array([2.0, 0.1])).sum()


simulator = vf.from_functions(sample_prior, forward, noise=0.3, log_prior=log_prior, missing_rate=0.2)
print(simulator.spec)

# %% [markdown]
# ## Train
# Every step simulates its own batch on the device.

# %%
config = vf.AmortizedConfig(encoder=vf.MLPEncoderConfig(features=32, width=64, depth=1), head=vf.FlowHeadConfig(layers=3, width=32))
posterior = config.build(simulator, nnx.Rngs(0))
result = vf.fit(posterior, vf.SeedStream(simulator, batch_size=256), vf.FitConfig(steps=4000, eval_every=1000), progress=False)
print(result.status, f"held-out loss {result.best_loss:.3f}")

# %% [markdown]
# ## Ask
# NaN or `mask = 0` means: not seen.

# %%
truth = jnp.array([11.0, 0.45])
seen = jnp.array([1, 1, 0, 1, 1, 1, 1, 1.0])
observation = vf.Batch(input=(forward(truth) * seen)[None], mask=seen[None])
draws = posterior.sample(observation, jax.random.key(1), 2000)
print("mean", draws.mean(axis=1), "sd", draws.std(axis=1))

# %% [markdown]
# ## Prove
# A gate that fails says which quantity is wrong, and how.

# %%
sbc = vf.simulation_based_calibration(posterior, simulator, key=jax.random.key(2), n_runs=500)
print(sbc.summary)

# %%
cover = vf.coverage(posterior, simulator, key=jax.random.key(3), n_runs=500, n_samples=199)
print(cover.summary)
