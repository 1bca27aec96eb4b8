"""Exits of MA Separation in the bound: what a layer's sums and tokens take between attention and expert ranks.

One micro-batch's layer is a chain: with the documents' exit the attention ranks sum over heads, the sum goes once into
every other node, the expert ranks sum over experts; with either exit every attention rank takes the new residual of all
tokens, through its NIC where its node has no expert rank. Left out: sums and moves within a node, capacity slots.
"""

from __future__ import annotations

import numpy as np

from planner.bounds.network import network_of
from planner.bounds.rates import Array, Numbers, Rates
from planner.candidate import Table
from planner.question import Question


def exit_seconds(question: Question, table: Table, rates: Rates, tokens: Numbers) -> Array:
    """Per candidate, one layer of a micro-batch of ``tokens`` tokens."""
    homes = question.homes
    if len(np.unique(homes)) == 1:
        return np.zeros(len(table))
    order, attention = table["order"].astype(np.int64), table["heads"].astype(np.int64)
    last = attention + table["experts"].astype(np.int64) - 1
    num_bytes = (tokens * question.model.hidden_size * rates.size).astype(float)
    network = network_of(question, rates, table)
    move_s = network.latency_s + num_bytes / network.nic_bytes_per_s
    number = np.concatenate((np.zeros((len(homes), 1), int), np.cumsum(homes[:, 1:] != homes[:, :-1], axis=1)), axis=1)
    back_s = np.where(number[order, 0] != number[order, attention], move_s, 0.0)
    there_s = np.where(number[order, last] != number[order, attention - 1], move_s, 0.0)
    sums_s = _least_sum(rates, number[order, attention - 1] - number[order, 0] + 1, num_bytes)
    sums_s = sums_s + _least_sum(rates, number[order, last] - number[order, attention] + 1, num_bytes)
    return np.asarray(np.where(tokens > 0, back_s + np.where(table["exit"] == 1, there_s + sums_s, 0.0), 0.0))


def _least_sum(rates: Rates, nodes: Numbers, num_bytes: Array) -> Array:
    """An all-reduce over so many nodes, at least."""
    found = np.zeros(len(nodes))
    for count in np.unique(nodes[nodes > 1]):
        rows = nodes == count
        found[rows] = rates.least_across("all_reduce", int(count), num_bytes[rows])
    return found
