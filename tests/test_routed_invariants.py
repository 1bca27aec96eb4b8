"""Routed experts of every scheme: each token's rows are computed once, wherever its experts are."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from simulator import program as p
from simulator.costs.work import kernels_of, local_rows
from simulator.kernel import Moe, flops
from simulator.lowering import lower
from simulator.model import Experts, Model
from simulator.placement import Placement
from simulator.workload import Sequences, Step
from tests.any_scheme import NODES, NUM_RANKS
from tests.reliability.scale import ENOUGH
from tests.schemes import context_parallel, separated, static, tiny_model

EVEN = 960  # tokens that 2, 3, 4, 5 and 8 ranks and 8 experts divide: a rank's expected rows are then whole


@st.composite
def routed(draw: st.DrawFn) -> tuple[Model, Step, Placement]:
    """Dropless, but where tokens are dispatched all to all, which needs slots: then just as many as there are rows."""
    kind = draw(st.sampled_from(["static", "context", "all_to_all", "all_reduce_broadcast"]))
    experts = Experts(
        num_experts=8,
        top_k=draw(st.integers(1, 3)),
        intermediate_size=48,
        shared_intermediate_size=draw(st.sampled_from([0, 64])),
        capacity_factor=1.0 if kind in ("context", "all_to_all") else None,
    )
    model = tiny_model(experts=experts, layers=draw(st.integers(1, 2)), gated=draw(st.booleans()))
    micro = draw(st.integers(1, 2))
    if kind == "context":
        replicas = draw(st.sampled_from([2, 4, 8]))
        placement = context_parallel(model, 1, replicas, micro_batches=micro, block_rule="zigzag")
    elif kind == "static":
        placement = static(model, draw(st.sampled_from([1, 2, 4, 8])), micro_batches=micro)
    else:
        shapes = [(4, 2), (6, 2), (4, 4)] + [(3, 5)] * (kind == "all_reduce_broadcast")
        placement = separated(
            model, *draw(st.sampled_from(shapes)), exit=kind, micro_batches=micro, block_rule="contiguous"
        )
    counts = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    batch = tuple(Sequences(16 * count, draw(st.sampled_from([0, 17])), EVEN) for count in counts)
    return model, Step("prefill", batch), placement


@ENOUGH
@given(routed())
def test_every_token_passes_its_experts_once(case: tuple[Model, Step, Placement]) -> None:
    """Rows × columns of the experts' weights, and FLOPs, summed over ranks; routed twice by no one."""
    model, step, placement = case
    assert model.experts is not None
    built = lower(model, step, placement, nodes=NODES)
    rows, done, shared = [Fraction(0)] * model.num_layers, 0, [0] * model.num_layers
    for operations in built.ranks:
        for op in operations:
            if isinstance(op, p.Experts):
                width = op.intermediate[1] - op.intermediate[0]
                rows[op.layer] += Fraction(local_rows(op) * op.peers * width, model.experts.intermediate_size)
                done += sum(flops(kernel) for kernel in kernels_of(op, "bf16") if isinstance(kernel, Moe))
            elif isinstance(op, p.Linear):
                for weight in op.weights:
                    if "shared" in weight.name:
                        shared[op.layer] += op.num_tokens * weight.num_parameters
    wanted = step.num_tokens * model.experts.top_k
    assert rows == [wanted] * model.num_layers
    matrices = 3 if model.gated else 2
    assert done == 2 * matrices * wanted * model.hidden_size * model.experts.intermediate_size * model.num_layers
    size = model.experts.shared_intermediate_size or 0
    assert shared == [step.num_tokens * matrices * model.hidden_size * size] * model.num_layers
    assert len(built.ranks) == NUM_RANKS
