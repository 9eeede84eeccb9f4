"""The optimiser: clipped AdamW under a warm-up and cosine schedule."""

from __future__ import annotations

import dataclasses
from typing import Literal

import optax

from vardax_flax.core.config import check_choices, require


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW (Loshchilov & Hutter 2019) with global-norm clipping.

    Args:
        learning_rate: at its peak.
        schedule: "cosine" (Loshchilov & Hutter 2017, to `final_fraction` of the peak at the last step) or "constant".
        warmup_steps: of linear growth from 0.
        schedule_steps: length of the schedule; None: the steps of the run. Fix it to lengthen a run later on the same schedule.
        final_fraction: of the peak, at the end of the cosine.
        weight_decay: decoupled.
        clip_norm: of the global gradient; None switches clipping off.
        ema_decay: of the averaged parameters that are evaluated and kept.

    Example:
        >>> optimizer = OptimConfig(learning_rate=1e-3).build(steps=10_000)
    """

    learning_rate: float = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 200
    schedule_steps: int | None = None
    final_fraction: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = 5.0
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        check_choices(self)
        require(self.learning_rate > 0, "learning_rate > 0", self.learning_rate, "pass a positive rate")
        require(self.warmup_steps >= 0, "warmup_steps >= 0", self.warmup_steps, "pass 0 or more")
        require(self.schedule_steps is None or self.schedule_steps > 0, "schedule_steps > 0", self.schedule_steps, "pass a positive number")
        require(self.clip_norm is None or self.clip_norm > 0, "clip_norm > 0 or None", self.clip_norm, "pass a positive norm")
        require(0 <= self.final_fraction <= 1, "0 <= final_fraction <= 1", self.final_fraction, "pass a share of the peak")
        require(0 <= self.ema_decay < 1, "0 <= ema_decay < 1", self.ema_decay, "pass a number below 1")
        require(self.weight_decay >= 0, "weight_decay >= 0", self.weight_decay, "pass 0 or more")

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax optimiser for a run of so many steps."""
        total = self.schedule_steps or steps
        warmup = min(self.warmup_steps, total // 2)
        if self.schedule == "cosine":
            end = self.learning_rate * self.final_fraction
            rate = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, warmup, max(total, warmup + 1), end)
        else:
            rate = optax.linear_schedule(0.0 if warmup else self.learning_rate, self.learning_rate, max(warmup, 1))
        clip = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        return optax.chain(*clip, optax.adamw(rate, weight_decay=self.weight_decay))
