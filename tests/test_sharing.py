"""Sharing: hand-computed rates and ends; max-min optimality; the incremental solver against a global one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.fabric.fair_rates import fair_rates
from simulator.fabric.fair_table import many_fair_rates
from simulator.fabric.grouped import grouped
from simulator.fabric.path import Path
from simulator.fabric.sharing import Sharing
from simulator.simulation.clock import Clock

Flow = tuple[float, float, dict[int, float], float]
"""(start in seconds, work, weights by resource, cap)."""


def play(capacities: list[float], flows: list[Flow]) -> list[float]:
    """Seconds at which each flow ends."""
    clock = Clock()
    sharing = Sharing(clock, capacities)
    ends = [math.nan] * len(flows)
    paths: dict[tuple[object, ...], Path] = {}

    def begin(index: int) -> None:
        _, work, weights, cap = flows[index]
        key = (*sorted(weights.items()), cap)
        if key not in paths:
            paths[key] = sharing.path(weights, cap=cap)

        def done() -> None:
            ends[index] = clock.now_ps / 1e12

        sharing.start(work, paths[key], done)

    for index, flow in enumerate(flows):
        clock.after(round(flow[0] * 1e12), lambda index=index: begin(index))
    clock.run()
    return ends


def path(weights: dict[int, float], cap: float = math.inf, share: float = 1.0) -> Path:
    return Path(tuple(weights), tuple(weights.values()), cap=cap, share=share)


def test_two_flows_share_a_link_until_the_shorter_ends() -> None:
    # 1 GB/s: both at 0.5 until 1 GB is through at 2 s; the other's last 1 GB at full rate: 3 s
    assert play([1e9], [(0, 1e9, {0: 1}, math.inf), (0, 2e9, {0: 1}, math.inf)]) == [2.0, 3.0]


def test_a_flow_that_starts_later_halves_the_rate_from_then_on() -> None:
    # first alone for 1 s (1 GB), then both at 0.5: first's 2nd GB ends at 3 s; second has 1 of 2 GB left, alone: 4 s
    assert play([1e9], [(0, 2e9, {0: 1}, math.inf), (1, 2e9, {0: 1}, math.inf)]) == [3.0, 4.0]


def test_flows_end_in_the_very_instant_in_which_another_joins_their_links_to_more() -> None:
    # 40 flows share 1 GB/s: after 40 ms the 30 short ones are through, but for 0.4 ps of work. Just then one starts
    # over this link and another, busy one: 11 flows share what 10 did, 1/11 GB/s each. 1 MB left of the long: 11 ms
    short = [(0, 1e6 + 1e-5, {0: 1.0}, 1e12 + number) for number in range(30)]
    long = [(0, 2e6, {0: 1.0}, 2e12 + number) for number in range(10)]
    across = [(0, 1e10, {1: 1.0}, math.inf), (0.04, 1e10, {0: 1.0, 1: 1.0}, math.inf)]
    ends = play([1e9, 1e9], [*short, *long, *across])
    assert ends[:30] == [0.04] * 30
    assert ends[30:40] == pytest.approx([0.051] * 10, abs=2e-12)


def test_the_parking_lot_gives_the_long_flow_its_fair_share_of_the_narrowest_link() -> None:
    # links 10, 10, 4: long (all three) and c share 4 → 2 each; a and b take the rest of their links: 8
    rates = fair_rates([path({0: 1, 1: 1, 2: 1}), path({0: 1}), path({1: 1}), path({2: 1})], [10, 10, 4])
    assert rates == [2, 8, 8, 2]


def test_a_cap_leaves_its_rest_to_others() -> None:
    assert fair_rates([path({0: 1}, cap=1.0), path({0: 1}), path({0: 1})], [10.0]) == [1.0, 4.5, 4.5]


def test_weights_say_how_much_of_a_resource_a_unit_of_work_uses() -> None:
    # x + 3y = 8 at equal rates: 2 each
    assert fair_rates([path({0: 1}), path({0: 3})], [8.0]) == [2.0, 2.0]


def test_shares_scale_rates() -> None:
    assert fair_rates([path({0: 1}, share=3.0), path({0: 1})], [8.0]) == [6.0, 2.0]


def test_three_kernels_on_two_cores_run_at_two_thirds_each() -> None:
    assert play([2.0], [(0, 1.0, {0: 1}, 1.0)] * 3) == [1.5] * 3  # 3 core-seconds / 2 cores


def test_one_kernel_cannot_use_two_cores() -> None:
    assert play([2.0], [(0, 1.0, {0: 1}, 1.0)]) == [1.0]


def test_a_flow_without_resources_runs_at_its_cap() -> None:
    assert play([1.0], [(0, 3.0, {}, 2.0)]) == [1.5]


def test_used_units_are_the_work_times_its_weights() -> None:
    clock = Clock()
    sharing = Sharing(clock, [1.0, 1.0, 1.0], unlimited=frozenset({2}))
    sharing.start(4.0, sharing.path({0: 1, 1: 0.5, 2: 1}), lambda: None)
    clock.run()
    assert sharing.used == [4.0, 2.0, 4.0]
    assert clock.now_ps == 4 * 10**12


def test_an_unlimited_resource_limits_nothing() -> None:
    clock = Clock()
    sharing = Sharing(clock, [1.0, 0.001], unlimited=frozenset({1}))
    sharing.start(1.0, sharing.path({0: 1, 1: 1}), lambda: None)
    clock.run()
    assert clock.now_ps == 10**12


def test_recorded_loads_are_zero_after_the_last_flow() -> None:
    clock = Clock()
    sharing = Sharing(clock, [2.0], record_load=True)
    sharing.start(1.0, sharing.path({0: 1}, cap=1.0), lambda: None)
    clock.run()
    assert sharing.loads == [(0, 0, 1.0), (10**12, 0, 0.0)]


PATH = st.builds(
    path,
    st.dictionaries(st.integers(0, 5), st.sampled_from([0.25, 1.0, 2.0]), min_size=1, max_size=4),
    st.sampled_from([math.inf, math.inf, 0.5, 2.0]),
    st.sampled_from([1.0, 1.0, 3.0]),
)
CAPACITIES = st.lists(st.floats(0.5, 20), min_size=6, max_size=6)


@settings(max_examples=500, deadline=None)
@given(st.lists(PATH, min_size=1, max_size=12), CAPACITIES)
def test_rates_are_max_min_fair(paths: list[Path], capacities: list[float]) -> None:
    """No resource is overfull; whoever is below its cap has a full resource on which nobody has a higher level."""
    rates = fair_rates(paths, capacities)
    load, level = [0.0] * 6, [0.0] * 6
    for one, rate in zip(paths, rates, strict=True):
        for resource, weight in zip(one.resources, one.weights, strict=True):
            load[resource] += weight * rate
            level[resource] = max(level[resource], rate / one.share)
    assert all(used <= capacity * (1 + 1e-9) for used, capacity in zip(load, capacities, strict=True))
    for one, rate in zip(paths, rates, strict=True):
        full = [r for r in one.resources if load[r] >= capacities[r] * (1 - 1e-9)]
        assert rate == one.cap or any(rate / one.share >= level[r] * (1 - 1e-9) for r in full)


@settings(max_examples=500, deadline=None)
@given(st.lists(PATH, min_size=1, max_size=12), CAPACITIES)
def test_numpy_and_plain_python_give_the_same_rates(paths: list[Path], capacities: list[float]) -> None:
    rates = many_fair_rates(paths, np.array(capacities))
    assert rates.tolist() == pytest.approx(fair_rates(paths, capacities), rel=1e-9)


def globally(capacities: list[float], flows: list[Flow]) -> list[float]:
    """The same, naively: every activity is shared anew at every event, in floats."""
    now, ends, running = 0.0, [math.nan] * len(flows), {}
    waiting = sorted(range(len(flows)), key=lambda index: flows[index][0])
    while waiting or running:
        keys = list(running)
        rates = fair_rates([path(flows[i][2], flows[i][3]) for i in keys], capacities) if keys else []
        steps = [running[i] / rate for i, rate in zip(keys, rates, strict=True)]
        if waiting:
            steps.append(flows[waiting[0]][0] - now)
        step = max(min(steps), 0.0)
        now += step
        for i, rate in zip(keys, rates, strict=True):
            running[i] -= rate * step
            if running[i] <= rate * 1e-11:
                ends[i] = now
                del running[i]
        while waiting and flows[waiting[0]][0] <= now + 1e-12:
            index = waiting.pop(0)
            running[index] = flows[index][1]
    return ends


FLOW = st.tuples(
    st.sampled_from([0.0, 0.0, 0.5, 1.0, 1.25]),
    st.sampled_from([0.5, 1.0, 3.0, 4.5]),
    st.dictionaries(st.integers(0, 7), st.sampled_from([0.5, 1.0]), min_size=1, max_size=3),
    st.sampled_from([math.inf, 0.75]),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(FLOW, min_size=1, max_size=8), st.lists(st.sampled_from([1.0, 2.0, 5.0]), min_size=8, max_size=8))
def test_sharing_by_component_equals_sharing_everything_at_every_event(
    flows: list[Flow], capacities: list[float]
) -> None:
    assert play(capacities, flows) == pytest.approx(globally(capacities, flows), abs=1e-9)


USED = st.lists(st.integers(0, 5), min_size=1, max_size=2, unique=True)
PLAIN_FLOW = st.tuples(
    st.sampled_from([0.0, 0.0, 0.5, 1.0, 1.25]),
    st.sampled_from([0.5, 1.0, 3.0, 4.5]),
    USED.map(lambda used: dict.fromkeys(used, 1.0)),
    st.just(math.inf),
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(PLAIN_FLOW, min_size=8, max_size=24), st.lists(st.sampled_from([1.0, 2.0, 5.0]), min_size=6, max_size=6)
)
def test_plain_flows_in_groups_end_as_if_all_were_shared_at_every_event(
    flows: list[Flow], capacities: list[float]
) -> None:
    assert play(capacities, flows) == pytest.approx(globally(capacities, flows), abs=1e-9)


def numbered(ways: list[list[int]]) -> list[Path]:
    return [Path(tuple(way), (1.0,) * len(way), number=number) for number, way in enumerate(ways)]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(USED, st.floats(1, 9)), min_size=2, max_size=24),
    st.lists(st.tuples(USED, st.floats(1, 9)), max_size=12),
    CAPACITIES,
)
def test_groups_have_fair_rates_after_every_start_and_end(
    first: list[tuple[list[int], float]], later: list[tuple[list[int], float]], capacities: list[float]
) -> None:
    """At every end another one starts, while there are; then all end."""
    paths = numbered([way for way, _ in (*first, *later)])
    flows = list(zip(paths, [work for _, work in (*first, *later)], strict=True))
    running, waiting = dict(flows[: len(first)]), flows[len(first) :]
    state = grouped(running, capacities)
    while state is not None:
        rates = dict(state.rates())
        assert list(rates) == sorted(running, key=lambda one: one.number)
        assert list(rates.values()) == pytest.approx(fair_rates(list(rates), capacities), rel=1e-9)
        left = {one: work - rates[one] * state.first_ps / 1e12 for one, work in running.items()}
        started = [waiting.pop()] if waiting else []
        running = {one: work for one, work in left.items() if one not in state.over} | dict(started)
        assert all(left[one] == pytest.approx(0.0, abs=1e-9) for one in state.over)
        assert state.going_on(state.first_ps) | dict(started) == pytest.approx(running, abs=1e-9)
        state.largest = 0  # never taken apart
        state = state.after(state.first_ps, started)
    assert not running


def test_paths_change_groups_when_what_holds_them_back_does() -> None:
    # a on link 0, b on links 0 and 1, c and d on link 1, 6 units a second each: link 1 gives b, c and d 2 each, a has
    # 4 of link 0. c and d have 2 to do: 1 s. Then link 0 holds a and b back, 3 each, and a's 8 - 4 take 4/3 s more
    a, b, c, d = numbered([[0], [0, 1], [1], [1]])
    state = grouped({a: 8.0, b: 8.0, c: 2.0, d: 2.0}, [6.0, 6.0])
    assert state is not None
    assert (dict(state.rates()), state.first_ps, state.over) == ({a: 4, b: 2, c: 2, d: 2}, 10**12, [c, d])
    after = state.after(state.first_ps, [])
    assert after is not None
    assert (dict(after.rates()), after.going_on(0), after.over) == ({a: 3, b: 3}, {a: 4, b: 6}, [a])
    assert after.first_ps == round(4 / 3 * 1e12)
    # e starts on link 0 after 1 s more: three at 2
    (e,) = [Path((0,), (1.0,), number=4)]
    third = after.after(10**12, [(e, 5.0)])
    assert third is not None
    assert (dict(third.rates()), third.going_on(0)) == ({a: 2, b: 2, e: 2}, {a: 1, b: 3, e: 5})


def test_many_flows_take_the_numpy_way_and_end_where_arithmetic_says() -> None:
    # 40 flows of 1..40 units share rate 1. Flow k ends when all have k units through or are done:
    # t_k = Σ_{j<k} j + k·(40 − k + 1)
    ends = play([1.0], [(0, float(k), {0: 1}, math.inf) for k in range(1, 41)])
    assert ends == pytest.approx([k * (k - 1) / 2 + k * (41 - k) for k in range(1, 41)], rel=1e-9)


def test_as_many_alike_as_one_likes_share_their_path() -> None:
    # 3 units on one link of rate 1, the second 1 s later, the third 2 s later: the first is alone for 1 s, then two
    # share for 1 s (0.5 each), then three at 1/3. Left at 2 s: 1.5, 2.5, 3. All at 1/3 until 2 + 3·1.5 = 6.5 s; then
    # two at 1/2 with 1 and 1.5 left: 8.5 s; the last 0.5 alone: 9 s
    assert play([1.0], [(float(start), 3.0, {0: 1.0}, math.inf) for start in range(3)]) == [6.5, 8.5, 9.0]


def test_a_set_of_paths_that_comes_back_has_the_rates_it_had() -> None:
    """Waves of 30 and of 5 flows over two links, one of them narrow, one after another: each takes what it took."""
    waves = [
        [(10.0 * wave, 1.0 + k % 3, {0: 1.0, 1 + k % 2: 0.5}, math.inf) for k in range(30 if wave % 2 else 5)]
        for wave in range(6)
    ]
    ends = play([20.0, 5.0, 3.0], [flow for wave in waves for flow in wave])
    taken, at = [], 0
    for number, wave in enumerate(waves):
        taken.append([round(end - 10.0 * number, 9) for end in ends[at : at + len(wave)]])
        at += len(wave)
    assert taken[0] == taken[2] == taken[4]
    assert taken[1] == taken[3] == taken[5]
    assert taken[1] == pytest.approx(globally([20.0, 5.0, 3.0], [(0.0, *flow[1:]) for flow in waves[1]]), abs=1e-9)
