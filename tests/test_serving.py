"""Serving: traces worked out by hand, queues with closed forms, nothing lost whatever arrives."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import presets
from simulator.errors import InfeasibleError, ProfileError, SpecError
from simulator.formats.trace import Request
from simulator.lowering import lower
from simulator.profile import load_profile
from simulator.serving.batch import Batching
from simulator.serving.pool_policy import DOCUMENTS_RULE, NO_POOL, PoolRules, policy
from simulator.serving.queue import UNLIMITED, Run, serve
from simulator.serving.resource_manager import Activated, FellBack, Queued, Released
from simulator.serving.sampling import Lengths, sample_lengths, sample_trials
from simulator.serving.served import Served
from simulator.simulation.engine import simulate
from simulator.units import PICOSECONDS_PER_S as S
from simulator.workload import Bucket, Phase, Sequences, Step
from tests.reliability.scale import ENOUGH, of
from tests.schemes import static

ONE = Batching(base_gpus=8)
POOL = PoolRules(pool_gpus=32, prefill=DOCUMENTS_RULE)


def quarter_steps(phase: Phase, batch: int, tokens: int, pool_gpus: int) -> float:
    """A prefill takes 1 s, a decode step 0.25 s."""
    return 1.0 if phase == "prefill" else 0.25


def uneven_steps(phase: Phase, batch: int, tokens: int, pool_gpus: int) -> float:
    """No two alike, so that nothing ends at the same instant by chance."""
    linear = batch * tokens * (1e-5 if phase == "prefill" else 1e-7) / (1 + pool_gpus / 8)
    return 2e-3 * (1 + math.sqrt(2) * linear) + 1e-6 * math.sin(batch + 7 * tokens + 3 * pool_gpus)


def seconds(values: np.ndarray) -> list[float]:
    return [float(value) / S for value in values]


def test_one_request_alone() -> None:
    served = serve([Request(0.5, 100, 3)], quarter_steps, ONE)
    assert seconds(served.first_token_ps) == [1.5]
    assert seconds(served.finish_ps) == [2.0]
    assert served.ttft_s.tolist() == [1.0]
    assert served.tpot_s.tolist() == [0.25]  # two gaps in 0.5 s
    assert served.end_to_end_s.tolist() == [1.5]
    assert served.queueing_s.tolist() == [0.0]
    assert served.tokens_per_s == pytest.approx(103 / 1.5)
    assert served.gpu_seconds == pytest.approx(8 * 1.5)
    assert served.tokens_per_s_per_gpu == pytest.approx(103 / 12)
    assert served.gpu_seconds_per_token == pytest.approx(12 / 103)
    assert served.base_utilisation == 1
    assert served.pool_utilisation is None
    assert served.documents_input_tps == pytest.approx(100 / 1.5)


def test_a_prefill_interrupts_decoding_at_the_next_step() -> None:
    # r0: prefill 0–1, tokens at 1, 1.25, 1.5; r1 arrives at 1.3, prefill 1.5–2.5; both decode 2.5–2.75
    served = serve([Request(0.0, 10, 4), Request(1.3, 10, 2)], quarter_steps, ONE)
    assert seconds(served.prefill_ps) == [0, 1.5]
    assert seconds(served.first_token_ps) == [1, 2.5]
    assert seconds(served.finish_ps) == [2.75, 2.75]
    assert served.tpot_s.tolist() == pytest.approx([1.75 / 3, 0.25])
    assert served.usage.num_steps == {"prefill": 2, "decode": 3}
    assert served.base_utilisation == 1


def test_a_full_decode_batch_keeps_arrivals_waiting() -> None:
    # one at a time: r0 prefill 0–1, decode to 1.5; r1 prefill 1.5–2.5, decode to 2.75
    served = serve([Request(0.0, 10, 3), Request(0.1, 10, 2)], quarter_steps, replace(ONE, decode_batch=1))
    assert seconds(served.finish_ps) == [1.5, 2.75]
    assert served.queueing_s.tolist() == pytest.approx([0, 1.4])


def test_a_full_kv_cache_keeps_arrivals_waiting() -> None:
    # 12 + 13 tokens exceed 24, so r1 waits for r0's last token at 1.25; r2 would fit but does not overtake
    requests = [Request(0.0, 10, 2), Request(0.0, 10, 3), Request(0.0, 2, 1)]
    served = serve(requests, quarter_steps, replace(ONE, kv_capacity_tokens=24))
    assert seconds(served.prefill_ps) == [0, 1.25, 2.25]


def test_a_batch_is_timed_by_its_lengths_or_padded_to_its_longest() -> None:
    calls: list[tuple[Phase, int, int, int]] = []

    def record(phase: Phase, batch: int, tokens: int, pool_gpus: int) -> float:
        calls.append((phase, batch, tokens, pool_gpus))
        return tokens**3 if phase == "prefill" else 1.0

    requests = [Request(0.0, 10, 3), Request(0.0, 13, 2)]
    served = serve(requests, record, replace(ONE, prefill_batch=2))
    # decode: mean of 10 and 13 is 11.5 → 12; token number n follows n prompt tokens; r1 has left before the last step
    lengths = (10, 13, 12)
    assert calls == [*(("prefill", 2, n, 0) for n in lengths), ("decode", 2, 12, 0), ("decode", 1, 11, 0)]
    assert seconds(served.first_token_ps) == [1728.0, 1728.0]  # 12³ > (10³ + 13³) / 2 = 1598.5: 11.5 is rounded up
    calls.clear()
    serve(requests, record, replace(ONE, prefill_batch=2, padded=True))
    assert calls == [("prefill", 2, 13, 0), ("decode", 2, 13, 0), ("decode", 1, 11, 0)]


@pytest.mark.parametrize("lengths", [(2048, 30720), (1024, 16384), (512, 4096), (100, 2000)])
def test_a_ragged_prefill_is_timed_within_three_percent_of_itself_simulated(lengths: tuple[int, int]) -> None:
    """Timed from uniform batches; at the mean length alone the first would be 11 % short, by uniform batches of each
    length alone the last 7 %."""
    model, machine, profile = presets.model("fa-pool"), presets.cluster("dgx-a100-5"), load_profile("a100-sxm4-80gb")
    nodes = tuple(node for node, _, _ in machine.rank_nodes())

    def simulated(*batch: int) -> float:
        step = Step("prefill", tuple(Sequences(1, 0, length) for length in batch))
        built = lower(model, step, static(model, 8), nodes=nodes)
        return simulate(built, machine, {profile.gpu.name: profile}).duration_s

    requests = [Request(0.0, length, 1) for length in lengths]
    served = serve(requests, lambda _, batch, tokens, pool: simulated(*[tokens] * batch), replace(ONE, prefill_batch=2))
    assert served.first_token_ps[0] / S == pytest.approx(simulated(*lengths), rel=0.03)


def test_two_groups_take_from_one_queue() -> None:
    requests = [Request(0.0, 10, 1)] * 4
    served = serve(requests, quarter_steps, ONE, PoolRules(num_groups=2))
    assert seconds(served.finish_ps) == [1, 1, 2, 2]
    assert served.group.tolist() == [0, 1, 0, 1]
    assert served.gpu_seconds == 2 * 8 * 2


def test_the_pool_is_activated_held_and_released_around_a_long_prompt() -> None:
    rules = replace(POOL, activation_s=0.5, hold_s=0.75, release_s=0.25)
    served = serve([Request(0.0, 8192, 4), Request(9.0, 10, 1)], quarter_steps, ONE, rules)
    assert served.changes == (
        Activated(0, 0, 0, 16, S // 2),  # prefill 0.5–1.5, then decode, which asks for none, from 1.5
        Released(9 * S // 4, 0, 16, 0, 5 * S // 2),  # held for 0.75 s more: 1.5 + 0.75, the last token's instant
    )
    assert seconds(served.finish_ps) == [2.25, 10]
    assert served.usage.pool_held_gpu_ps == 16 * 5 * S // 2
    assert served.usage.pool_busy_gpu_ps == 16 * S
    assert served.pool_utilisation == pytest.approx(1 / 2.5)
    assert served.usage.stalled_ps == S // 2
    assert served.gpu_seconds == pytest.approx(8 * 10 + 16 * 2.5)


def test_decode_takes_up_a_pool_when_its_longest_context_crosses_the_threshold() -> None:
    rules = PoolRules(pool_gpus=8, decode=policy([(0, 0), (12, 8)]))
    pools: list[tuple[int, int]] = []

    def record(phase: Phase, batch: int, tokens: int, pool_gpus: int) -> float:
        if phase == "decode":
            pools.append((tokens, pool_gpus))
        return 1.0

    served = serve([Request(0.0, 10, 5)], record, ONE, rules)
    assert pools == [(10, 0), (11, 0), (12, 8), (13, 8)]
    assert served.changes[0] == Activated(3 * S, 0, 0, 8, 3 * S)


def test_two_groups_want_the_whole_pool() -> None:
    requests = [Request(0.0, 40_000, 1), Request(0.0, 40_000, 1)]
    waiting = serve(requests, quarter_steps, ONE, replace(POOL, num_groups=2, activation_s=0.5))
    assert waiting.changes[:4] == (
        Activated(0, 0, 0, 32, S // 2),
        Queued(0, 1, 32, 0),
        Released(3 * S // 2, 0, 32, 0, 3 * S // 2, to=1),
        Activated(3 * S // 2, 1, 0, 32, 2 * S),
    )
    assert seconds(waiting.finish_ps) == [1.5, 3]
    falling = serve(requests, quarter_steps, ONE, replace(POOL, num_groups=2, contention="fall_back"))
    assert falling.changes[1] == FellBack(0, 1, 32, 0)
    assert seconds(falling.finish_ps) == [1, 1]


def test_a_group_takes_what_fits_once_another_has_taken_what_did_not() -> None:
    # 30 tokens of KV a group: r0 holds 19, r1 20, so r2 (15) fits neither until r1 ends at 1.35 s on group 1, which
    # takes it; r3 (4) is then first in the queue and fits group 0 at the end of its step, 1.5 s
    requests = [Request(0.0, 10, 9), Request(0.1, 18, 2), Request(0.5, 10, 5), Request(0.6, 3, 1)]
    served = serve(requests, quarter_steps, replace(ONE, kv_capacity_tokens=30), PoolRules(num_groups=2))
    assert seconds(served.prefill_ps) == [0, 0.1, 1.35, 1.5]
    assert served.group.tolist() == [0, 1, 1, 0]


def test_who_arrives_while_a_pool_is_activated_is_prefilled_after_one_decode_step() -> None:
    # prefill 0–1; the decode asks for GPUs, active from 1.5; r1 arrives at 1.2; one step to 1.75, then r1's prefill
    rules = PoolRules(pool_gpus=8, decode=policy([(0, 8)]), activation_s=0.5)
    served = serve([Request(0.0, 10, 9), Request(1.2, 10, 1)], quarter_steps, ONE, rules)
    assert seconds(served.prefill_ps) == [0, 1.75]


def test_a_queueing_group_stops_a_burst_of_decode_steps() -> None:
    # group 0 decodes 0.25 s steps from 1 s on the whole pool; group 1 asks at 1.6 s and gets it at 1.75 s
    rules = PoolRules(num_groups=2, pool_gpus=8, prefill=policy([(0, 8)]), decode=policy([(0, 8)]))
    requests = [Request(0.0, 10, 9), Request(1.6, 10, 1)]
    served = serve(requests, quarter_steps, replace(ONE, decode_batch=1), rules)
    assert seconds(served.prefill_ps) == [0, 1.75]
    assert seconds(served.finish_ps) == [1 + 8 * 0.25 + 1, 2.75]  # group 0 stands still while group 1 prefills


@pytest.mark.parametrize("bad", [Request(0.0, 0, 1), Request(0.0, 1, 0), Request(-1.0, 1, 1)])
def test_impossible_requests_are_refused(bad: Request) -> None:
    with pytest.raises(SpecError, match="request 0"):
        serve([bad], quarter_steps, ONE)


def test_bad_inputs_are_refused_by_name() -> None:
    with pytest.raises(SpecError, match="no request"):
        serve([], quarter_steps, ONE)
    with pytest.raises(InfeasibleError, match="request 0 needs 12 tokens"):
        serve([Request(0.0, 10, 2)], quarter_steps, replace(ONE, kv_capacity_tokens=11))
    with pytest.raises(SpecError, match="decode_batch 0"):
        Batching(base_gpus=1, decode_batch=0)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ProfileError, match="must be above 0"):
            serve([Request(0.0, 10, 2)], lambda *_, wrong=wrong: wrong, ONE)


def poisson(num: int, requests_per_s: float, seed: int) -> list[Request]:
    arrivals_s = np.cumsum(np.random.default_rng(seed).exponential(1 / requests_per_s, num))
    return [Request(arrival_s, 1, 1) for arrival_s in arrivals_s.tolist()]


def test_one_server_is_lindleys_recursion_to_the_picosecond() -> None:
    requests = poisson(5000, 0.95, seed=1)
    served = serve(requests, quarter_steps, ONE)
    expected, wait_ps = [0], 0
    for gap_ps in np.diff(served.arrival_ps).tolist():
        wait_ps = max(0, wait_ps + S - gap_ps)  # service is 1 s
        expected.append(wait_ps)
    assert (served.prefill_ps - served.arrival_ps).tolist() == expected


@pytest.mark.parametrize("load", [0.6, 0.3][: of(1, 2)])
def test_mean_wait_is_m_d_1(load: float) -> None:
    # Pollaczek–Khinchine, service without variance: ρ·s / (2(1 − ρ)); one run of 150,000 requests strays 0.6–1 % (std)
    served = serve(poisson(150_000, load, seed=2), quarter_steps, ONE)
    assert served.queueing_s.mean() == pytest.approx(load / (2 * (1 - load)), rel=0.02)
    assert served.base_utilisation == pytest.approx(load, rel=0.02)


REQUESTS = st.lists(
    st.tuples(st.floats(0, 0.3), st.integers(1, 40_000), st.integers(1, 30)), min_size=1, max_size=25
).map(lambda rows: [Request(a + 1e-5 * math.sqrt(i + 2), p, o) for i, (a, p, o) in enumerate(rows)])
RULES = st.builds(
    PoolRules,
    num_groups=st.integers(1, 3),
    pool_gpus=st.integers(0, 40),
    prefill=st.sampled_from([DOCUMENTS_RULE, NO_POOL]),
    decode=st.sampled_from([DOCUMENTS_RULE, NO_POOL]),
    band=st.sampled_from([0.0, 0.1]),
    hold_s=st.sampled_from([0.0, 0.0123]),
    activation_s=st.sampled_from([0.0, 0.00271]),
    release_s=st.sampled_from([0.0, 0.00314]),
    tenure_s=st.sampled_from([0.0, 0.0217]),
    contention=st.sampled_from(["wait", "fall_back"]),
)
BATCHINGS = st.builds(
    Batching,
    base_gpus=st.just(8),
    prefill_batch=st.integers(1, 4),
    decode_batch=st.integers(1, 6),
    kv_capacity_tokens=st.sampled_from([None, 60_000]),
    padded=st.booleans(),
)


@ENOUGH
@given(REQUESTS, RULES, BATCHINGS)
def test_no_request_is_lost_and_time_runs_forward(
    requests: list[Request], rules: PoolRules, batching: Batching
) -> None:
    served = serve(requests, uneven_steps, batching, rules)
    assert (served.arrival_ps <= served.prefill_ps).all()
    assert (served.prefill_ps < served.first_token_ps).all()
    more = served.output_tokens > 1
    assert (served.finish_ps[more] > served.first_token_ps[more]).all()
    assert (served.finish_ps[~more] == served.first_token_ps[~more]).all()
    assert served.num_tokens == sum(r.prompt_tokens + r.output_tokens for r in requests)
    order = np.argsort(served.arrival_ps, kind="stable")
    if rules.num_groups == 1:
        assert (np.diff(served.prefill_ps[order]) >= 0).all()  # first come, first served
    usage = served.usage
    assert usage.pool_busy_gpu_ps <= usage.pool_held_gpu_ps <= rules.pool_gpus * int(served.finish_ps.max())
    assert usage.base_busy_gpu_ps <= served.gpu_seconds * S * (1 + 1e-9)
    most_steps = sum(r.output_tokens - 1 for r in requests)
    assert usage.num_steps["decode"] <= most_steps


def outcome(served: Served) -> tuple[object, ...]:
    arrays = (served.prefill_ps, served.first_token_ps, served.finish_ps, served.group)
    return *(array.tolist() for array in arrays), served.usage, served.changes


@ENOUGH
@given(REQUESTS, RULES, BATCHINGS)
def test_bursts_of_decode_steps_change_nothing(requests: list[Request], rules: PoolRules, batching: Batching) -> None:
    fast = Run(requests, uneven_steps, batching, rules, max_burst=UNLIMITED).play()
    slow = Run(requests, uneven_steps, batching, rules, max_burst=1).play()
    assert outcome(fast) == outcome(slow)


def test_documents_categories_are_sampled_inside_their_edges() -> None:
    workload = presets.workload("fa-pool")
    trials = sample_trials(workload, np.random.default_rng(3), requests_per_s=2.0)
    assert len(trials) == 3
    for sample in trials:
        assert np.bincount(sample.category).tolist() == [1000] * 4
        for request, number in zip(sample.requests, sample.category.tolist(), strict=True):
            bucket = workload.buckets[number]
            assert bucket.min_tokens <= request.prompt_tokens < (bucket.max_tokens or 2 * bucket.tokens)
        # 3999 exponential gaps of 0.5 s: three standard deviations of their mean are 4.7 %
        assert sample.requests[-1].arrival_s == pytest.approx(3999 * 0.5, rel=0.048)
    assert trials[0].requests != trials[1].requests


@pytest.mark.parametrize(
    ("lengths", "median"),
    [("log_uniform", math.sqrt(512 * 2048)), ("uniform", (512 + 2047) / 2), ("planned", 1024)],
)
def test_lengths_have_the_median_of_their_distribution(lengths: Lengths, median: float) -> None:
    bucket = Bucket(name="short", min_tokens=512, max_tokens=2048, tokens=1024, share=1.0)
    drawn = sample_lengths(bucket, 20_000, np.random.default_rng(4), lengths)
    assert np.median(drawn) == pytest.approx(median, rel=0.03)
    assert drawn.min() >= 512
    assert drawn.max() <= 2047


def test_same_seed_same_run() -> None:
    workload = presets.workload("fa-pool")
    runs = [
        serve(sample.requests, uneven_steps, ONE, replace(POOL, band=0.1))
        for _ in range(2)
        for sample in sample_trials(workload, np.random.default_rng(5), requests_per_s=5, per_category=50, num_trials=1)
    ]
    assert outcome(runs[0]) == outcome(runs[1])


def test_the_documents_protocol_takes_seconds() -> None:
    trials = sample_trials(presets.workload("fa-pool"), np.random.default_rng(6), requests_per_s=20.0)
    rules = replace(POOL, decode=DOCUMENTS_RULE, num_groups=2, band=0.1, hold_s=1.0, activation_s=0.05, tenure_s=1.0)
    began_s = time.process_time()
    for sample in trials:
        serve(sample.requests, uneven_steps, ONE, rules)
    assert time.process_time() - began_s < 10  # 1–2 s on one core
