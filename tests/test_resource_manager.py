"""Resource manager: the documents' table at every edge, hysteresis, costs, and two base groups on one pool."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import SpecError
from simulator.serving.pool_policy import DOCUMENTS_RULE, NO_POOL, PoolRules, policy
from simulator.serving.resource_manager import (
    Activated,
    BatchEnded,
    BatchFormed,
    Decision,
    FellBack,
    PoolEvent,
    PoolState,
    Queued,
    Released,
    Start,
    Tick,
    decide,
    idle_pool,
    next_ps,
)
from simulator.units import PICOSECONDS_PER_S as S

DOCUMENTS = PoolRules(pool_gpus=32, prefill=DOCUMENTS_RULE, decode=DOCUMENTS_RULE)
TWO_GROUPS = replace(DOCUMENTS, num_groups=2)


def formed(at_s: float, tokens: int, group: int = 0) -> BatchFormed:
    return BatchFormed(round(at_s * S), group, "prefill", tokens)


def ended(at_s: float, group: int = 0) -> BatchEnded:
    return BatchEnded(round(at_s * S), group)


def tick(at_s: float) -> Tick:
    return Tick(round(at_s * S))


def play(rules: PoolRules, *events: PoolEvent) -> tuple[PoolState, list[Decision]]:
    state = idle_pool(rules)
    log: list[Decision] = []
    for event in events:
        state, decisions = decide(state, event, rules)
        log.extend(decisions)
    return state, log


def pools(rules: PoolRules, *lengths: int, every_s: float = 1.0) -> list[int]:
    """What consecutive batches of one group run on."""
    events = [e for i, n in enumerate(lengths) for e in (formed(i * every_s, n), ended((i + 1) * every_s))]
    return [decision.pool_gpus for decision in play(rules, *events)[1] if isinstance(decision, Start)]


@pytest.mark.parametrize(
    ("tokens", "gpus"),
    [
        (1, 0),
        (4095, 0),
        (4096, 8),
        (8191, 8),
        (8192, 16),
        (16383, 16),
        (16384, 24),
        (32767, 24),
        (32768, 32),
        (10**6, 32),
    ],
)
def test_documents_rule_at_every_edge(tokens: int, gpus: int) -> None:
    assert DOCUMENTS_RULE.pool_gpus(tokens) == gpus
    assert pools(DOCUMENTS, tokens) == [gpus]


def test_threshold_is_the_first_length_with_a_pool() -> None:
    assert DOCUMENTS_RULE.threshold_tokens == 4096
    assert NO_POOL.threshold_tokens is None
    assert policy([(0, 8), (100, 0)]).threshold_tokens == 0


@pytest.mark.parametrize("steps", [[], [(1, 0)], [(0, 0), (0, 8)], [(0, 0), (9, 8), (8, 16)], [(0, -8)]])
def test_malformed_policies_are_refused(steps: list[tuple[int, int]]) -> None:
    with pytest.raises(SpecError, match="pool policy"):
        policy(steps)


@pytest.mark.parametrize("change", [{"num_groups": 0}, {"pool_gpus": -1}, {"band": 1.0}, {"hold_s": -1.0}])
def test_malformed_rules_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="pool rules"):
        PoolRules(**change)  # type: ignore[arg-type]


def test_without_hysteresis_the_pool_follows_every_batch() -> None:
    assert pools(DOCUMENTS, 4096, 4095, 8192, 100, 40000, 5000) == [8, 0, 16, 0, 32, 8]


def test_band_keeps_a_held_pool_down_to_a_share_of_its_threshold() -> None:
    # 0.9 × 4096 = 3686.4: kept from 3687 on, released at 3686, and not taken up again below 4096
    assert pools(replace(DOCUMENTS, band=0.1), 4095, 4096, 3687, 3686, 3687, 4095, 4096) == [0, 8, 8, 0, 0, 0, 8]


def test_band_shrinks_step_by_step() -> None:
    # 0.9 × 16384 = 14745.6; 0.9 × 8192 = 7372.8: 14000 tokens keep 16 of 24, 7400 keep 16, 7372 keep 8
    assert pools(replace(DOCUMENTS, band=0.1), 16384, 14746, 14000, 7400, 7372, 0) == [24, 24, 16, 16, 8, 0]


def test_lengths_swinging_by_less_than_the_band_change_nothing_after_the_first_activation() -> None:
    events = [e for i in range(100) for e in (formed(i, 4096 if i % 2 else 3800), ended(i + 1))]
    changes = [d for d in play(replace(DOCUMENTS, band=0.1), *events)[1] if not isinstance(d, Start)]
    assert changes == [Activated(S, 0, 0, 8, S)]
    flapping = [d for d in play(DOCUMENTS, *events)[1] if not isinstance(d, Start)]
    assert len(flapping) == 99  # up at every odd batch (50), down at every even one after the first (49)


def test_held_gpus_are_warm_but_unused_until_the_hold_ends() -> None:
    rules = replace(DOCUMENTS, hold_s=2.5, activation_s=0.1)
    state, log = play(rules, formed(0, 8192), ended(1), formed(1, 100), ended(2), formed(2, 8192), ended(3))
    assert log == [
        Activated(0, 0, 0, 16, S // 10),
        Start(0, 0, 16, 16, 16, S // 10),
        Start(S, 0, 0, 16, 0, S),  # short: runs on the base, holds 16
        Start(2 * S, 0, 16, 16, 16, 2 * S),  # long again: no second activation
    ]
    assert next_ps(state, 3 * S, rules) == round(5.5 * S)
    state, late = decide(state, tick(5.5), rules)
    assert late == (Released(round(5.5 * S), 0, 16, 0, round(5.5 * S)),)
    assert state.held_gpus == 0


def test_activation_delays_only_batches_that_are_given_more() -> None:
    rules = replace(DOCUMENTS, activation_s=0.5)
    _, log = play(rules, formed(0, 4096), ended(1), formed(1, 5000), ended(2), formed(2, 8192))
    starts = [d for d in log if isinstance(d, Start)]
    assert [(d.pool_gpus, d.ready_ps - d.at_ps) for d in starts] == [(8, S // 2), (8, 0), (16, S // 2)]


def test_a_policy_larger_than_the_pool_takes_the_largest_size_that_exists() -> None:
    assert pools(replace(DOCUMENTS, pool_gpus=20), 40000, 8192, 4096) == [16, 16, 8]


def test_each_phase_has_its_own_policy_and_runs_on_sizes_of_its_own() -> None:
    rules = replace(DOCUMENTS, decode=policy([(0, 0), (10000, 4)]), hold_s=10)
    events = (formed(0, 16384), ended(1), BatchFormed(S, 0, "decode", 16385), ended(2))
    starts = [d for d in play(rules, *events)[1] if isinstance(d, Start)]
    assert [(d.pool_gpus, d.held_gpus) for d in starts] == [(24, 24), (4, 24)]


def test_two_groups_share_what_fits() -> None:
    _, log = play(TWO_GROUPS, formed(0, 8192, 0), formed(0, 8192, 1))
    assert [(d.group, d.pool_gpus) for d in log if isinstance(d, Start)] == [(0, 16), (1, 16)]


def test_the_second_group_waits_until_the_first_has_ended_and_released() -> None:
    rules = replace(TWO_GROUPS, release_s=0.25, activation_s=0.5)
    state, log = play(rules, formed(0, 16384, 0), formed(0.1, 16384, 1), ended(1, 0))
    assert log[2:] == [
        Queued(S // 10, 1, 24, 8),
        Released(S, 0, 24, 0, S + S // 4, to=1),
    ]
    assert next_ps(state, S, rules) == S + S // 4
    _, late = decide(state, tick(1.25), rules)
    ready_ps = S + S // 4 + S // 2
    assert late == (Activated(S + S // 4, 1, 0, 24, ready_ps), Start(S + S // 4, 1, 24, 24, 24, ready_ps))


def test_a_group_keeps_its_pool_for_its_tenure() -> None:
    rules = replace(TWO_GROUPS, tenure_s=3)
    state, log = play(rules, formed(0, 40000, 0), formed(0.5, 40000, 1), ended(1, 0), formed(1, 40000, 0), ended(4, 0))
    starts = [(d.at_ps // S, d.group) for d in log if isinstance(d, Start)]
    assert starts == [(0, 0), (1, 0), (4, 1)]  # at 1 s its tenure has 2 s to go, at 4 s it is over
    assert state.leases[0].pool_gpus == 0


def test_nobody_overtakes_in_the_line() -> None:
    rules = replace(DOCUMENTS, num_groups=3)
    events = (formed(0, 16384, 0), formed(0.1, 40000, 1), formed(0.2, 4096, 2), ended(1, 0), ended(2, 1))
    starts = [(d.group, d.pool_gpus) for d in play(rules, *events)[1] if isinstance(d, Start)]
    # group 2 would fit into the 8 free GPUs at 0.2 s, but group 1 came first
    assert starts == [(0, 24), (1, 32), (2, 8)]


@pytest.mark.parametrize("release_s", [0.0, 0.5])
def test_no_more_is_taken_than_is_missing_and_from_the_longest_lease_first(release_s: float) -> None:
    rules = replace(DOCUMENTS, num_groups=3, hold_s=100, release_s=release_s)
    warm = (formed(0, 8192, 1), formed(1, 8192, 0), ended(2, 0), ended(2, 1))
    state, log = play(rules, *warm, formed(3, 4096, 2))
    assert [d for d in log if isinstance(d, Released)] == [
        Released(3 * S, 1, 16, 0, 3 * S + round(release_s * S), to=2)
    ]
    assert state.leases[0].pool_gpus == 16


def test_falling_back_takes_the_largest_free_size_and_asks_again() -> None:
    rules = replace(TWO_GROUPS, contention="fall_back")
    events = (formed(0, 16384, 0), formed(0.1, 16384, 1), ended(1, 0), ended(1, 1), tick(1), formed(1, 16384, 1))
    _, log = play(rules, *events)
    assert FellBack(S // 10, 1, 24, 8) in log
    assert [(d.group, d.pool_gpus) for d in log if isinstance(d, Start)] == [(0, 24), (1, 8), (1, 24)]


def test_falling_back_to_nothing_runs_on_the_base_alone() -> None:
    rules = replace(TWO_GROUPS, contention="fall_back")
    starts = [d for d in play(rules, formed(0, 40000, 0), formed(0, 40000, 1))[1] if isinstance(d, Start)]
    assert [(d.group, d.pool_gpus, d.want_gpus) for d in starts] == [(0, 32, 32), (1, 0, 32)]


def test_deciding_changes_no_state_it_was_given() -> None:
    state = idle_pool(TWO_GROUPS)
    before = repr(state)
    assert decide(state, formed(0, 5000), TWO_GROUPS) == decide(state, formed(0, 5000), TWO_GROUPS)
    assert repr(state) == before


class Pool:
    """Drives the manager: a batch ends 0.7 s after it started; ticks come when they are due."""

    def __init__(self, rules: PoolRules) -> None:
        self.rules, self.state, self.now_ps = rules, idle_pool(rules), 0
        self.ends_ps: dict[int, int | None] = {}  # of the groups that have a batch; None: in line
        self.num_started = 0

    def tell(self, event: PoolEvent) -> None:
        self.now_ps = event.at_ps
        self.state, decisions = decide(self.state, event, self.rules)
        assert 0 <= self.state.held_gpus <= self.rules.pool_gpus
        for decision in decisions:
            if isinstance(decision, Start):
                assert decision.pool_gpus <= decision.held_gpus
                self.num_started += 1
                self.ends_ps[decision.group] = decision.at_ps + 7 * S // 10

    def run(self, until_ps: int) -> None:
        while True:
            due_ps = next_ps(self.state, self.now_ps, self.rules)
            ends = [(end_ps, group) for group, end_ps in self.ends_ps.items() if end_ps is not None]
            if ends and (due_ps is None or min(ends)[0] <= due_ps) and min(ends)[0] <= until_ps:
                end_ps, group = min(ends)
                del self.ends_ps[group]
                self.tell(BatchEnded(end_ps, group))
                self.tell(Tick(end_ps))
            elif due_ps is not None and due_ps <= until_ps and (not ends or due_ps < min(ends)[0]):
                self.tell(Tick(due_ps))
            else:
                return


@settings(max_examples=500, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 60_000)), min_size=1, max_size=40),
    rules=st.builds(
        PoolRules,
        num_groups=st.just(3),
        pool_gpus=st.integers(0, 40),
        prefill=st.just(DOCUMENTS_RULE),
        decode=st.just(DOCUMENTS_RULE),
        band=st.sampled_from([0.0, 0.1, 0.5]),
        hold_s=st.sampled_from([0.0, 2.0]),
        release_s=st.sampled_from([0.0, 0.5]),
        tenure_s=st.sampled_from([0.0, 1.5]),
        contention=st.sampled_from(["wait", "fall_back"]),
    ),
)
def test_gpus_are_never_given_twice_and_every_batch_starts_once(
    lengths: list[tuple[int, int]], rules: PoolRules
) -> None:
    pool, num_formed = Pool(rules), 0
    for number, (group, tokens) in enumerate(lengths):
        now_ps = number * S // 4
        pool.run(now_ps)
        if group not in pool.ends_ps:
            pool.ends_ps[group] = None
            num_formed += 1
            pool.tell(BatchFormed(now_ps, group, "prefill", tokens))
    pool.run(10**6 * S)
    assert pool.num_started == num_formed
    assert not pool.ends_ps
    assert pool.state.held_gpus == 0
