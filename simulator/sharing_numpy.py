"""Max-min fair rates of many activities at once: ``sharing.fair_rates`` in numpy, for components of dozens or more."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from simulator.sharing import Activity

Array = npt.NDArray[np.float64]


def fair_rates_vectorised(activities: Sequence[Activity], capacities: Sequence[float]) -> list[float]:
    """Same rounds as ``fair_rates``: (activity, resource) pairs are flat arrays, loads are weighted bin counts."""
    num = len(activities)
    owner = np.repeat(np.arange(num), np.fromiter((len(a.resources) for a in activities), np.int64, num))
    flat = np.fromiter(chain.from_iterable(a.resources for a in activities), np.int64, len(owner))
    weight = np.fromiter(chain.from_iterable(a.weights for a in activities), np.float64, len(owner))
    share = np.fromiter((a.share for a in activities), np.float64, num)
    cap = np.fromiter((a.cap for a in activities), np.float64, num)
    ids, place = np.unique(flat, return_inverse=True)
    left = np.array([capacities[resource] for resource in ids.tolist()])
    return [float(rate) for rate in _fill(owner, place, weight, share, cap, left)]


def _fill(
    owner: npt.NDArray[np.int64], place: npt.NDArray[np.int64], weight: Array, share: Array, cap: Array, left: Array
) -> Array:
    """Rates. Shapes: owner, place, weight [pairs]; share, cap [activities]; left [resources]."""
    from simulator.sharing import SAME_LEVEL

    rates, waiting = np.zeros(len(share)), np.ones(len(share), dtype=np.bool_)
    demand, top = weight * share[owner], cap / share
    while waiting.any():
        load = np.bincount(place, demand * waiting[owner], len(left))
        used = load > 0
        level = min((left[used] / load[used]).min(initial=np.inf), top[waiting].min())
        full = used & (left <= level * SAME_LEVEL * load)
        capped = waiting & (top <= level * SAME_LEVEL)
        held = np.zeros(len(share), dtype=np.bool_)
        held[owner[full[place]]] = True
        held &= waiting & ~capped
        rates[capped] = cap[capped]
        rates[held] = share[held] * level
        fixed = capped | held
        left = np.maximum(left - np.bincount(place, weight * (rates * fixed)[owner], len(left)), 0.0)
        waiting &= ~fixed
    return rates
