"""Collectives: closed forms over α (latency of a hop, seconds) and β (bytes/s), with their derivations.

p ranks, M bytes of a message, S bytes of a buffer as in nccl-tests' size column (all_gather: total output;
reduce_scatter: total input; all_to_all: one rank's buffer). Every rank has one link of β each way.
Sources: Thakur, Rabenseifner, Gropp 2005 (ring, binomial tree); Sanders, Speck, Träff 2009 (two trees);
Patarasu, Yuan 2009 (ring is bandwidth-optimal); nccl-tests' doc/PERFORMANCE.md for the size column.
"""

from __future__ import annotations

import math


def tree_depth(ranks: int) -> int:
    """⌈log₂ p⌉: levels of a binomial tree, in integers (no rounding at powers of two)."""
    return (ranks - 1).bit_length()


def binomial_broadcast_s(ranks: int, message_bytes: float, alpha_s: float, beta_bytes_per_s: float) -> float:
    """⌈log₂p⌉(α + M/β): after round k, 2^k ranks hold the message and each sends it on whole."""
    return tree_depth(ranks) * (alpha_s + message_bytes / beta_bytes_per_s)


def chain_s(ranks: int, message_bytes: float, chunks: int, alpha_s: float, beta_bytes_per_s: float) -> float:
    """(p−2+c)(α + M/(cβ)): the first of c chunks needs p−1 hops, each later one arrives a step after it."""
    return (ranks - 2 + chunks) * (alpha_s + message_bytes / (chunks * beta_bytes_per_s))


def best_chunks(ranks: int, message_s: float, alpha_s: float) -> int:
    """The c that minimises ``chain_s``: d/dc[(p−2+c)(α + m/c)] = 0 at c² = (p−2)·m/α, m = M/β.

    The function is convex in c, so one of the two integers around the root is best.
    """
    if ranks <= 2 or message_s <= 0:
        return 1
    if alpha_s <= 0:
        raise ValueError("a chain without latency has no best number of chunks (infinitely many)")
    root = math.sqrt((ranks - 2) * message_s / alpha_s)
    choices = (max(math.floor(root), 1), math.ceil(root) or 1)
    return min(choices, key=lambda chunks: (ranks - 2 + chunks) * (alpha_s + message_s / chunks))


def tree_gather_s(ranks: int, total_bytes: float, alpha_s: float, beta_bytes_per_s: float) -> float:
    """⌈log₂p⌉α + (p−1)/p·M/β: messages double each round, and the root still takes in all parts but its own."""
    return tree_depth(ranks) * alpha_s + (ranks - 1) / ranks * total_bytes / beta_bytes_per_s


def ring_all_reduce_s(ranks: int, num_bytes: float, alpha_s: float, beta_bytes_per_s: float) -> float:
    """2(p−1)α + 2(p−1)/p·S/β: p−1 steps of S/p reduce and scatter, p−1 more gather."""
    return 2 * ring_half_s(ranks, num_bytes, alpha_s, beta_bytes_per_s)


def ring_half_s(ranks: int, num_bytes: float, alpha_s: float, beta_bytes_per_s: float) -> float:
    """Reduce-scatter or all-gather on a ring: (p−1)(α + S/(pβ))."""
    return (ranks - 1) * (alpha_s + num_bytes / (ranks * beta_bytes_per_s))


def tree_all_reduce_s(ranks: int, num_bytes: float, alpha_s: float, beta_bytes_per_s: float) -> float:
    """2⌈log₂p⌉α + d·S/β, d = 1 for two ranks, else 2: two pipelined trees of S/2, up and then down.

    A rank is a leaf in one tree and has two children in the other: it sends S/2 up in both and 2·S/2 down.
    """
    return 2 * tree_depth(ranks) * alpha_s + tree_volume(ranks) * num_bytes / beta_bytes_per_s


def tree_volume(ranks: int) -> int:
    """Times its buffer that the busiest rank of a two-tree all-reduce sends (and receives)."""
    return min(ranks - 1, 2)


def hierarchical_all_reduce_s(
    gpus: int, nodes: int, num_bytes: float, *, inside: tuple[float, float], between: tuple[float, float]
) -> float:
    """2(g−1)/g·S/β₁ + 2(G−1)/G·S/(g·β₂) + 2(g−1)α₁ + 2(G−1)α₂; ``inside`` and ``between`` are (α, β).

    Reduce-scatter in every node leaves each GPU S/g; those are all-reduced across nodes, GPU i with GPU i,
    all g at once on a NIC each; all-gather in the node ends it.
    """
    halves = 2 * ring_half_s(gpus, num_bytes, *inside)
    return halves + ring_all_reduce_s(nodes, num_bytes / gpus, *between)


def all_to_all_s(ranks: int, num_bytes: float, alpha_s: float, beta_bytes_per_s: float) -> float:
    """α + (p−1)/p·S/β: every rank keeps its own p-th part and sends the others at once."""
    return alpha_s + (ranks - 1) / ranks * num_bytes / beta_bytes_per_s


def group_exchange_s(
    total_bytes: float, senders: int, receivers: int, alpha_s: float, beta_bytes_per_s: float
) -> float:
    """All-to-all from M senders to N receivers: α + max(egress S/M, ingress S/N)/β."""
    return alpha_s + total_bytes / min(senders, receivers) / beta_bytes_per_s
