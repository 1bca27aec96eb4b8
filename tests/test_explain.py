"""The explanation, word for word, of an allocation written by hand; and flips on a small instance."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from planner.cli import main
from planner.explain import TERMS, explain
from planner.exploring.flips import Flip, flips_of, price_flip, with_nics
from planner.make import make_problem
from simulator.allocation import (
    Allocation,
    Alternative,
    Binding,
    Choice,
    Digests,
    Interval,
    Limits,
    Metrics,
    ParetoPoint,
    RankBytes,
    Search,
    Sources,
    Switching,
    Threshold,
)
from simulator.formats.files import load
from simulator.placement import AttentionGrid
from tests.instances import random_problem
from tests.schemes import pooled, static, tiny_model

MODEL = tiny_model()


def interval(value: float, spread: float = 0.1) -> Interval:
    return Interval(value=value, p05=value * (1 - spread), p95=value * (1 + spread), tag="assumed")


def allocation() -> Allocation:
    """A pool of 4 beside a base of 2: 20 ms become 8 ms, so 2.5x on three times the GPUs."""
    pool, base = pooled(MODEL, 2, AttentionGrid(heads=(8,), kv_blocks=4)), static(MODEL, 2)
    step = interval(8e-3)
    choice = Choice(
        phase="decode",
        bucket="long",
        min_tokens=2048,
        max_tokens=None,
        tokens=8192,
        batch=16,
        placement=pool,
        num_gpus=6,
        pool_gpus=4,
        metrics=Metrics(
            step_s=step,
            ttft_s=None,
            tpot_s=step,
            tokens_per_s=interval(2000.0),
            tokens_per_s_per_gpu=interval(2000.0 / 6),
            gpu_seconds_per_token=interval(3e-3),
            joules_per_token=interval(1.2),  # 6 GPUs · 400 W · 8 ms / 16 tokens
        ),
        memory=(
            RankBytes(
                rank=0,
                weights_bytes=10**9,
                kv_cache_bytes=2 * 10**9,
                activations_bytes=0,
                buffers_bytes=10**9,
                capacity_bytes=80 * 10**9,
                headroom_bytes=76 * 10**9,
            ),
        ),
        binding=Binding(
            kind="attention", share=0.5, shares={"attention": 0.5, "gemm": 0.3, "network": 0.2}, detail="critical path"
        ),
        exactness="exact",
        runner_up=Alternative(name="tp4-pp1", placement=base, num_gpus=2, pool_gpus=0, step_s=interval(8.4e-3)),
        margin=Interval(value=0.05, p05=-0.01, p95=0.11, tag="assumed"),
        too_close_to_call=True,
        rule=Alternative(name="rule", placement=pool, num_gpus=6, pool_gpus=4, step_s=None, bound_s=12e-3),
        baselines=(Alternative(name="tp2-pp1", placement=base, num_gpus=2, pool_gpus=0, step_s=interval(20e-3)),),
        best_pool=None,
        pareto=(
            ParetoPoint(num_gpus=2, step_s=20e-3, name="tp2-pp1"),
            ParetoPoint(num_gpus=6, step_s=8e-3, name="pool4"),
        ),
        search=Search(candidates=100, lowered=5, simulated=5, gap=0.0),
    )
    return Allocation(
        name="golden",
        command="plan make golden",
        objective="tpot",
        limits=Limits(max_gpus=8, base_gpus=2),
        model="tiny",
        cluster="small",
        workload="chat",
        profile="a100-sxm4-80gb",
        dtype="bf16",
        policy=(choice,),
        thresholds=(Threshold(phase="decode", tokens=2048, pool_tokens=2048),),
        switching=Switching(
            activation_s=22e-6,
            probability=0.1875,
            unit="s an output token",
            switching_cost=4.125e-6,
            policy_cost=8.004125e-3,
            free_cost=8e-3,
            gap=1 - 8e-3 / 8.004125e-3,
            residents=(choice.memory[0],),
        ),
        sources=Sources(model="tiny", cluster="small", workload="chat", profile="a100-sxm4-80gb"),
        digests=Digests(model="", cluster="", workload="", profiles={}),
    )


GOLDEN = f"""\
golden: tiny on small for chat
objective tpot; at most 8 GPUs, 2 GPUs as the base [given]; costs from a100-sxm4-80gb; words and tags are explained \
at the end

decode, long: prompts from 2048 tokens, planned at 8192 tokens, 16 sequences at once [given]
  choice      pool4: 6 GPUs, 4 GPUs of them only attend [counted]
  step        8 ms (7.2 ms to 8.8 ms) [assumed]
  why         bound by attention; of the time on the critical path: attention 50%, gemm 30%, network 20% [assumed]
  rate        2,000 tokens/s of output, 333 tokens/s a GPU, 0.833 GPU-hours a million tokens [assumed]; at most \
1.2 J a token [assumed]
  speed-up    2.50x over tp2-pp1 (20 ms (18 ms to 22 ms) [assumed]), efficiency 83% [assumed]
  causes      GPUs 3.00x, communication 0.80x, kernels and balance 1.04x, flash attention 1.00x (in both) [assumed]
  runner-up   tp4-pp1 on 2 GPUs [counted], 8.4 ms (7.56 ms to 9.24 ms) [assumed]; 5.0% behind (-1.0% to 11.0%) \
[assumed]; too close to call: measure both
  documents   their rule takes 16 pool GPUs [given]: at least 12 ms (proved bound), 1.50x our step or more [fitted]
  front       2 GPUs 20 ms (tp2-pp1), 6 GPUs 8 ms (pool4) [assumed]
  memory      fullest is rank 0: 4.00 GB of 80.00 GB, headroom +76.00 GB [fitted]
  exactness   exact
  proof       100 candidates bounded, 5 simulated [counted]: optimal for the simulator
  flips       tp4-pp1 is better up to about 4000 tokens [fitted]

thresholds (lengths at which a pool first pays; results, not inputs)
  decode    a pool is chosen from 2048 tokens; it beats the base alone from 2048 tokens [fitted]
  documents 4096 tokens by their rule, 3942 tokens by their formula with 35 ms, 45 ms and 8 ms [assumed]

switching (the placements of all buckets side by side, every rank with the weights of all that use it)
  activation  18.8% of batches are given GPUs that the one before did not hold and wait 22 µs [assumed]
  cost        4.125e-06 s an output token in 0.008004 s an output token, the mean over the workload: \
0.052% more than each bucket alone [assumed]
  memory      fullest is rank 0: 1.00 GB of weights, headroom +76.00 GB [fitted]
  given up    none (buckets whose own best is not in the policy)

{TERMS}
"""
UNITS = ("s", "GPU-s", "ms", "µs", "ns", "GB", "tokens", "GPUs", "pool", "sequences", "candidates", "simulated", "NICs")
UNITS += (
    "GPU-seconds",
    "heads",
    "head",
    "groups",
    "layers",
    "bytes",
    "tensor",
    "are",
    "x",
    "+",
    "tokens/s",
    "GPU-hours",
    "J",
)


def test_the_explanation_is_word_for_word_what_it_was() -> None:
    flip = Flip("decode", "long", "tokens", 4000, "tp4-pp1 is better up to about 4000 tokens [fitted]")
    assert explain(allocation(), (flip,)) == GOLDEN


def loose_numbers(text: str) -> list[str]:
    """Numbers (not those in names, nor ranks) without a unit behind them, or without a tag later on their line."""
    found = []
    for line in text.split("\nterms")[0].splitlines():
        words = [*line.replace("(", "").replace(")", "").split(), "", ""]
        for at, word in enumerate(words):
            if not re.fullmatch(r"[+-]?\d[\d.,]*(e-?\d+)?[%x]?[,;:]?", word) or words[at - 1] == "rank":
                continue
            united = "%" in word or "x" in word or words[at + 1].rstrip(",;:") in UNITS
            tagged = re.search(r"\[(fitted|assumed|given|counted)\]", " ".join(words[at:]))
            if not united or not tagged:
                found.append(word)
    return found


def test_every_number_has_a_unit_and_a_tag() -> None:
    flip = Flip("decode", "long", "tokens", 4000, "tp4-pp1 is better up to about 4000 tokens [fitted]")
    assert loose_numbers(explain(allocation(), (flip,))) == []
    assert loose_numbers("  step        8 ms (7.2 to 8.8 ms) [assumed]") == ["7.2"]
    assert loose_numbers("  choice      6 GPUs") == ["6"]


@pytest.mark.parametrize("seed", range(6))
def test_every_number_of_a_made_plan_has_a_unit_and_a_tag(seed: int) -> None:
    problem = random_problem(seed)
    made = make_problem(problem, limit=1)
    flips = tuple(flip for choice in made.policy[:1] for flip in flips_of(problem, choice))
    assert loose_numbers(explain(made, flips)) == []


def test_every_word_of_the_text_s_first_column_is_defined() -> None:
    for word in (
        "rate",
        "front",
        "step",
        "speed-up",
        "efficiency",
        "causes",
        "why",
        "runner-up",
        "headroom",
        "proof",
        "activation",
    ):
        assert re.search(rf"\b{word}\b", TERMS), word
    for tag in re.findall(r"\[(\w+)\]", explain(allocation())):
        assert f"[{tag}]" in TERMS


def test_speed_up_factors_multiply_to_the_speed_up() -> None:
    assert abs(3.00 * 0.80 * 1.04 - 2.5) < 0.005  # as printed above


def test_flips_name_length_batch_and_nics_on_a_small_instance() -> None:
    problem = next(p for p in map(random_problem, range(20)) if p.cluster.num_ranks >= 4)
    choice = make_problem(problem).policy[1]
    found = list(flips_of(problem, choice))
    assert choice.runner_up is not None
    assert [flip.quantity for flip in found][:3] == ["tokens", "batch", "nics"]
    fewer = with_nics(problem.cluster, 1)
    poor = replace(problem, cluster=fewer)
    assert "nics" not in [flip.quantity for flip in flips_of(poor, choice)]  # there are none to take away
    assert all(node.nics is not None and node.nics.count == 1 for node in fewer.nodes)


def test_the_price_at_which_two_plans_cost_as_much_is_where_their_gpu_seconds_differ_by_it() -> None:
    choice = allocation().policy[0]
    ours, second = choice.metrics.step_s.value, choice.runner_up
    assert second is not None
    assert second.step_s is not None
    cheaper = second.model_copy(update={"num_gpus": choice.num_gpus // 2})
    (flip,) = price_flip(choice, cheaper)
    assert flip.value is not None
    behind_s = second.step_s.value - ours
    assert flip.value * behind_s == pytest.approx(choice.num_gpus * ours - cheaper.num_gpus * second.step_s.value)
    dearer = second.model_copy(update={"num_gpus": choice.num_gpus})
    assert list(price_flip(choice, dearer)) == []  # slower on as many GPUs: at no price


def test_explain_says_what_flips_a_choice_and_goes_on_without_its_inputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "allocation.json"
    assert main(["make", "two-level", "-o", str(path)]) == 0
    capsys.readouterr()
    assert main(["explain", str(path)]) == 0
    text = capsys.readouterr().out
    assert loose_numbers(text) == []
    flips = [line.strip() for line in text.splitlines() if line.startswith("  flips       ")]
    made = load(path, Allocation)
    assert len(flips) >= 2 * sum(choice.runner_up is not None for choice in made.policy) > 0
    assert main(["explain", "--no-flips", str(path)]) == 0
    assert "  flips       " not in capsys.readouterr().out.split("terms")[0]
    other = made.digests.model_copy(update={"model": "0" * 64})
    path.write_text(made.model_copy(update={"digests": other}).model_dump_json(), encoding="utf-8")
    assert main(["explain", str(path)]) == 0
    assert "flips were not looked for: two-level: model" in capsys.readouterr().err
