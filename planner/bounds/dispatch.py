"""Experts reached by all-to-all: what every rank computes on the slots that all ranks send it.

Capacity slots are as many as the fullest rank's tokens ask for, on every rank, so each rank's kernel is the same: its
own experts × slots × ranks (``lowering.feed_forward``). Left out: the two exchanges.
"""

from __future__ import annotations

import numpy as np

from planner.bounds.layer import gate_seconds, moe_seconds
from planner.bounds.rates import Array, Numbers, Rates
from planner.bounds.shares import ceil_div
from planner.question import Question


def dispatched_seconds(question: Question, rates: Rates, tokens: Numbers, replicas: Numbers, most: Numbers) -> Array:
    """Gate and experts of a rank with ``tokens`` tokens of its own; ``most``: the tokens of the fullest rank."""
    experts = question.model.experts
    assert experts is not None
    held = ceil_div(experts.num_experts, replicas)
    return np.asarray(gate_seconds(question, rates, tokens) + moe_seconds(question, rates, most, held, replicas))
