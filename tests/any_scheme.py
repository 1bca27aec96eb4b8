"""Any scheme of the lattice on a tiny model, as hypothesis draws it: what the invariants are tried on."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from simulator.lowering import lower
from simulator.model import Model
from simulator.placement import AttentionGrid, Placement
from simulator.program import Program
from simulator.workload import Phase, Sequences, Step
from tests.schemes import context_parallel, joined, pooled, separated, static, tiny_model, two_level

NUM_RANKS, NODE_GPUS = 8, 4
NODES = tuple(rank // NODE_GPUS for rank in range(NUM_RANKS))


@dataclass(frozen=True, slots=True)
class Case:
    """A model, a step and a placement that fit each other."""

    model: Model
    step: Step
    placement: Placement

    def program(self) -> Program:
        return lower(self.model, self.step, self.placement, nodes=NODES)

    def times(self, factor: int) -> Case:
        """The same sequences, each ``factor`` times as long (decode: with so many times the tokens cached)."""
        new = factor if self.step.phase == "prefill" else 1
        batch = tuple(Sequences(s.count, factor * s.past, new * s.new) for s in self.step.batch)
        return Case(self.model, Step(self.step.phase, batch), self.placement)


def models(*, causal: bool | None = None) -> st.SearchStrategy[Model]:
    return st.builds(
        tiny_model,
        kv_heads=st.sampled_from([1, 2, 4, 8]),
        layers=st.integers(1, 2),
        causal=st.booleans() if causal is None else st.just(causal),
        gated=st.booleans(),
    )


@st.composite
def _placement(draw: st.DrawFn, model: Model, phase: Phase) -> Placement:
    kind = draw(st.sampled_from(["static", "pool", "joined", "context", "separated", "two_level"]))
    micro = draw(st.integers(1, 2))
    rule = draw(st.sampled_from(["contiguous", "zigzag", "sqrt"]))
    match kind:
        case "static":
            shape = draw(st.sampled_from([(1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (4, 2)]))
            return static(model, shape[0], min(shape[1], model.num_layers), micro_batches=micro)
        case "pool" | "joined":
            heads = draw(st.sampled_from([(8,), (3, 5), (4, 4)]))
            query, kv = draw(st.sampled_from([(1, 1), (2, 1), (3, 1), (1, 2), (1, 3)]))
            grid = AttentionGrid(heads=heads, query_blocks=query, kv_blocks=kv)
            options = {
                "block_rule": rule,
                "micro_batches": micro,
                "kv_multicast": draw(st.sampled_from(["direct", "tree", "chain"])),
                "kv_streams": draw(st.integers(1, 2)) if kv == 1 and phase == "prefill" else 1,
            }
            base = draw(st.integers(1, 2))
            return (pooled if kind == "pool" or grid.num_ranks < base else joined)(model, base, grid, **options)
        case "context":
            shape = draw(st.sampled_from([(1, 2), (2, 2), (1, 4), (2, 4), (1, 3)]))
            return context_parallel(
                model, *shape, block_rule=rule, kv_ring=draw(st.booleans()) and phase == "prefill", micro_batches=micro
            )
        case "separated":
            way = draw(st.sampled_from(["all_to_all", "all_reduce_broadcast"]))
            shape = draw(st.sampled_from([(3, 2), (2, 2), (5, 3), (4, 1)]))
            return separated(model, *shape, exit=way, micro_batches=micro, block_rule="contiguous")
        case _:
            modes = ["score_sum", "all_to_all"] + (["gather_qk"] if phase == "prefill" else [])
            shape = draw(st.sampled_from([(2, 2), (2, 4), (1, 4)]))
            return two_level(model, *shape, dim_mode=draw(st.sampled_from(modes)), micro_batches=micro)


@st.composite
def cases(draw: st.DrawFn, *, causal: bool | None = None) -> Case:
    """Prefill of a ragged batch, perhaps on top of cached tokens, or decoding of as many sequences as any placement
    needs."""
    phase = draw(st.sampled_from(["prefill", "decode"]))
    model = draw(models(causal=causal))
    placement = draw(_placement(model, phase))
    lengths = draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 40)), min_size=1, max_size=3))
    if phase == "prefill":
        empty = placement.kv_ring or placement.stages[0].grid.dim_slices > 1
        cached = draw(st.lists(st.just(0) if empty else st.sampled_from([0, 0, 1, 7, 30]), min_size=3, max_size=3))
        batch = tuple(
            Sequences(count + 3, past, tokens) for (count, tokens), past in zip(lengths, cached, strict=False)
        )
    else:
        batch = tuple(Sequences(count + 3, tokens, 1) for count, tokens in lengths)
    return Case(model, Step(phase, batch), placement)
