"""What runs teach: a bias is learned and removed, noise is not, and intervals are re-set."""

from __future__ import annotations

import numpy as np
import pytest

from planner.learning import fit, scaled_transfers, with_corrections
from simulator import presets
from simulator.lowering import lower
from simulator.profile import load_profile
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


def test_slower_messages_slow_the_step() -> None:
    profile, cluster = load_profile("a100-sxm4-80gb"), presets.cluster("dgx-a100-2")
    model = presets.model("fa-pool")
    program = lower(model, prefill_step(1, 1024), static(model, 8), nodes=tuple(r // 8 for r in range(16)))
    times = [
        simulate(program, cluster, {profile.gpu.name: scaled_transfers(profile, factor, 1.0)}).duration_s
        for factor in (1.0, 4.0)
    ]
    assert times[1] > times[0]
