"""What runs teach: a bias is learned and removed, noise is not, and intervals are re-set."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.corrections import fit, with_corrections
from calibration.rows import TimedRow
from calibration.sweep import Sweep, cpu_profile
from planner.learning import Lesson, apart, log_errors, observed, own_cores, scaled_collectives, taught
from planner.prediction import predict_step
from simulator import presets
from simulator.cluster import Cluster
from simulator.costs.pricing import price
from simulator.kernel import AttentionPrefill, Gemm, Memory, flops
from simulator.lowering import lower
from simulator.profile import Profile, load_profile
from simulator.program import Collective, Recv, Send
from simulator.simulation.engine import simulate
from simulator.workload import prefill_step
from tests.schemes import static


def test_a_constant_bias_is_learned_and_shrunk_towards_none() -> None:
    rng = np.random.default_rng(0)
    predicted = np.full(92, 1e-3)
    measured = predicted * 1.5 * np.exp(rng.normal(0, 0.01, 92))
    found = fit("Linear", predicted, measured)
    assert found.log_offset == pytest.approx(np.log(1.5) * 92 / (92 + 8), rel=0.01)
    assert found.log_slope == 0.0


def test_a_line_is_learned_where_sizes_differ() -> None:
    predicted = np.geomspace(1e-5, 1e-2, 400)
    measured = predicted * (predicted / 1e-3) ** -0.2  # small operations are slower than predicted
    found = fit("Norm", predicted, measured)
    assert found.factor(1e-5, "median") == pytest.approx((1e-2) ** -0.2, rel=0.1)
    assert found.factor(1e-7, "median") == pytest.approx(found.factor(1e-5, "median"))  # clamped outside what was seen


def test_intervals_cover_what_the_line_leaves() -> None:
    rng = np.random.default_rng(1)
    predicted = np.full(2000, 1e-3)
    measured = predicted * np.exp(rng.normal(0, 0.1, 2000))
    found = fit("Add", predicted, measured)
    inside = (measured >= 1e-3 * found.factor(1e-3, "p05")) & (measured <= 1e-3 * found.factor(1e-3, "p95"))
    assert inside.mean() == pytest.approx(0.9, abs=0.02)


def test_corrections_move_the_simulated_step_and_add_up() -> None:
    profile, cluster = load_profile("a100-sxm4-80gb"), presets.cluster("dgx-a100-2")
    model = presets.model("fa-pool")
    program = lower(model, prefill_step(1, 4096), static(model, 8), nodes=tuple(r // 8 for r in range(16)))
    before = simulate(program, cluster, {profile.gpu.name: profile}).duration_s
    observed = {"Linear": [(1e-3, 2e-3)] * 200}
    once = with_corrections(profile, observed)
    after = simulate(program, cluster, {profile.gpu.name: once}).duration_s
    linear = sum(c.log_offset for c in once.corrections)
    assert before < after < before * np.exp(linear)
    twice = with_corrections(once, observed)
    assert twice.corrections[0].log_offset == pytest.approx(2 * linear)


def test_slower_collectives_slow_the_step() -> None:
    profile, cluster = load_profile("a100-sxm4-80gb"), presets.cluster("dgx-a100-2")
    model = presets.model("fa-pool")
    program = lower(model, prefill_step(1, 1024), static(model, 8), nodes=tuple(r // 8 for r in range(16)))
    times = [
        simulate(program, cluster, {profile.gpu.name: scaled_collectives(profile, factor)}).duration_s
        for factor in (1.0, 4.0)
    ]
    assert times[1] > times[0]


def lessons(profile: Profile, cluster: Cluster, factor: float) -> list[Lesson]:
    """Steps of several lengths whose every operation took ``factor`` times what ``profile`` says, on cores of their
    own: two ranks on two cores."""
    found = []
    model = presets.model("tiny-dense")
    for tokens in (128, 256, 512, 1024):
        for tensor in (1, 2):
            program = lower(model, prefill_step(1, tokens), static(model, tensor), nodes=(0, 0, 0, 0), dtype="fp32")
            timeline = simulate(program, cluster, {profile.gpu.name: profile})
            prices = price(program, cluster, {profile.gpu.name: profile})
            spans = [(seconds * factor).tolist() for seconds in prices.kernels_s]
            found.append(Lesson(program, timeline.duration_s * factor, spans))
    return found


@pytest.fixture(scope="module")
def cpu() -> Profile:
    """Stated, not measured: roofline kernels of a core."""
    shapes = [Gemm(m, n, k, "fp32") for m in (64, 256, 1024) for n, k in ((256, 256), (1024, 256), (256, 1024))]
    rows = [TimedRow(shape, 1e-6 + 2.0 * shape.m * shape.n * shape.k / 50e9, "stated") for shape in shapes]
    for length in (64, 128, 256, 512, 1024):
        for heads in (4, 8):
            kernel = AttentionPrefill(1, length, length, heads, heads // 2, 32, True, 0, "fp32")
            rows.append(TimedRow(kernel, 1e-6 + flops(kernel) / 30e9, "stated"))
    rows += [TimedRow(Memory("add", size), 1e-6 + size / 8e9, "stated") for size in (2**12, 2**16, 2**20)]
    device = presets.cluster("local-cpu").gpus[0]
    return cpu_profile(Sweep(tuple(rows), device))


def test_what_steps_teach_predicts_a_length_that_was_left_out(cpu: Profile) -> None:
    cluster = presets.cluster("local-cpu")
    runs = lessons(cpu, cluster, 1.4)
    known = [one for one in runs if one.length[1] in (128, 512)]
    unseen = [one for one in runs if one.length[1] in (256, 1024)]
    before = np.abs(log_errors(cpu, cluster, unseen)).mean()
    after = np.abs(log_errors(taught(cpu, cluster, known), cluster, unseen)).mean()
    assert before == pytest.approx(np.log(1.4))
    assert after < 0.25 * before  # what is left: shrinkage, and transfers that did not slow down


def test_what_is_only_noise_is_not_learned(cpu: Profile) -> None:
    cluster, noise = presets.cluster("local-cpu"), np.random.default_rng(3)
    runs = [
        Lesson(
            one.program,
            one.measured_s * float(np.exp(noise.normal(0, 0.03))),
            [[float(s * np.exp(noise.normal(0, 0.3))) for s in rank] for rank in one.spans_s],
        )
        for one in lessons(cpu, cluster, 1.0)
    ]
    found = taught(cpu, cluster, runs)
    steps = np.abs(log_errors(found, cluster, lessons(cpu, cluster, 1.0)))
    assert steps.max() < 0.05
    low, high = found.step_log_low, found.step_log_high
    assert low is not None
    assert high is not None
    assert -0.1 < low < 0 < high < 0.1


def test_plans_of_one_question_differ_by_what_is_not_shared() -> None:
    model = presets.model("tiny-dense")
    program = lower(model, prefill_step(1, 16), static(model, 1), nodes=(0,), dtype="fp32")
    runs = [Lesson(program, 1.0, [], question=question) for question in "aaabbbccc"]
    errors = np.array([0.5, 0.5, 0.6, 0.1, 0.1, 0.2, -0.3, -0.3, -0.2])  # by 0, 0.1 and 0.1 in each
    assert apart(runs, errors) == pytest.approx(0.1)
    assert apart(runs[:3], errors[:3]) is None  # three pairs tell nothing


def test_a_learned_interval_of_steps_is_the_predictions(cpu: Profile) -> None:
    cluster = presets.cluster("local-cpu")
    known = cpu.model_copy(update={"step_log_low": -0.1, "step_log_high": 0.2})
    program = lessons(cpu, cluster, 1.0)[0].program
    step = predict_step(program, cluster, {cpu.gpu.name: known})
    assert step.p05_s == pytest.approx(step.duration_s * np.exp(-0.1))
    assert step.p95_s == pytest.approx(step.duration_s * np.exp(0.2))


def test_spans_on_shared_cores_teach_nothing_while_there_are_others(cpu: Profile) -> None:
    cluster = presets.cluster("local-cpu")  # 2 cores
    model = presets.model("tiny-dense")
    alone, crowded = (
        lower(model, prefill_step(1, 128), static(model, tensor), nodes=(0, 0, 0, 0), dtype="fp32") for tensor in (2, 4)
    )
    assert own_cores(alone, cluster)
    assert not own_cores(crowded, cluster)
    runs = [Lesson(program, 1.0, [[9.0] * len(ops) for ops in program.ranks]) for program in (alone, crowded)]
    pairs = observed(cpu, cluster, runs)
    assert sum(map(len, pairs.values())) == sum(
        not isinstance(operation, Send | Recv | Collective) for ops in alone.ranks for operation in ops
    )
