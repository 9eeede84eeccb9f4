"""PyTorch: the learned solver, its descent unrolled, with a graph of each gradient for the way back; sizes come as JSON.

Each step takes the gradient of the inner cost by `autograd.grad`, for training with `create_graph`, which `torch.compile` cannot follow.
"""

import common  # first: starts the clock

# isort: split
import json
import math
import sys

import numpy as np
import torch
from torch import nn

size = json.loads(sys.argv[1])
if size["threads"]:
    torch.set_num_threads(size["threads"])
torch.manual_seed(0)
state, hidden, latent = size["state"], size["hidden"], size["latent"]
channels = state[0]
Conv = {1: nn.Conv1d, 2: nn.Conv2d}[len(state) - 1]


class Prior(nn.Module):
    """φ: D [A h, (B h) ∘ (C h)], of the state as one vector with h = E x, or by convolutions with h = relu(E x)."""

    def __init__(self):
        super().__init__()
        n = math.prod(state)
        if size["dense"]:
            self.enter, self.leave = nn.Linear(n, latent), nn.Linear(2 * latent, n)
            self.parts = nn.ModuleList(nn.Linear(latent, latent) for _ in range(3))
        else:
            self.enter, self.leave = Conv(channels, latent, 3, padding=1), Conv(2 * latent, channels, 3, padding=1)
            self.parts = nn.ModuleList(Conv(latent, latent, 1) for _ in range(3))

    def forward(self, x):
        h = self.enter(x.flatten(1)) if size["dense"] else torch.relu(self.enter(x))
        linear, left, right = (part(h) for part in self.parts)
        return self.leave(torch.cat([linear, left * right], dim=1)).reshape(x.shape)


class Solver(nn.Module):
    """x ← x − α O h, with h of a ConvLSTM that reads ∇J(x)."""

    def __init__(self):
        super().__init__()
        self.prior = Prior()
        self.gates, self.leave = Conv(channels + hidden, 4 * hidden, 3, padding=1), Conv(hidden, channels, 1)

    def cost(self, x, y, mask):
        return (mask * (x - y) ** 2).sum() + ((x - self.prior(x)) ** 2).sum()

    def forward(self, y, mask, train):
        x = mask * y
        h = c = torch.zeros(len(x), hidden, *state[1:])
        for _ in range(size["steps"]):
            with torch.enable_grad():
                x = x if x.requires_grad else x.requires_grad_()
                (gradient,) = torch.autograd.grad(self.cost(x, y, mask), x, create_graph=train)
            with torch.set_grad_enabled(train):
                entry, forget, leave, cell = self.gates(torch.cat([gradient, h], dim=1)).chunk(4, dim=1)
                c = torch.sigmoid(forget) * c + torch.sigmoid(entry) * torch.tanh(cell)
                h = torch.sigmoid(leave) * torch.tanh(c)
                x = x - size["alpha"] * self.leave(h)
        return x


solver = Solver()
optimizer = torch.optim.Adam(solver.parameters(), lr=size["rate"])
rng = np.random.default_rng(0)
truth = torch.as_tensor(rng.normal(size=(size["batch"], *state)).astype(np.float32))
mask = torch.as_tensor((rng.uniform(size=truth.shape) < size["observed"]).astype(np.float32))
y = mask * truth


def train():
    optimizer.zero_grad()
    torch.mean((solver(y, mask, True) - truth) ** 2).backward()
    optimizer.step()


def seconds(call):
    call()  # warm
    return common.clock(lambda: [call() for _ in range(size["calls"])]) / size["calls"]


common.answer(
    version=torch.__version__, parameters=sum(p.numel() for p in solver.parameters()),
    analysis=seconds(lambda: solver(y, mask, False)), train=seconds(train),
)  # fmt: skip
