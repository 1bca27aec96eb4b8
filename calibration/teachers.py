"""Teachers: small models and plans of every family that CPU ranks play, so that a profile knows what operations take
where a step puts them, views and joins included.

No plan of anybody's is among them; what a plan's own kernels take in steps is taught by its own programs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from calibration.in_steps import Played
from simulator.cluster import Cluster, Gpu, Node, NodeLink
from simulator.lowering import lower
from simulator.model import Experts, Layer, Model
from simulator.placement import AttentionGrid, Placement, Stage, even_split
from simulator.program import Program
from simulator.workload import Sequences, Step, prefill_step

NODES = (0, 0, 0, 0)
DENSE = Model(
    name="teacher", layers=(Layer(),) * 2, hidden_size=256, num_attention_heads=8, num_key_value_heads=4, head_dim=32,
    intermediate_size=768, vocab_size=1024, weight_dtype="fp32", source="a teacher",
)  # fmt: skip
ROUTED = DENSE.model_copy(
    update={
        "layers": (Layer(routed=True),) * 2,
        "experts": Experts(num_experts=8, top_k=2, intermediate_size=384, capacity_factor=1.25),
    }
)
WIDE = DENSE.model_copy(update={"hidden_size": 512, "head_dim": 64, "intermediate_size": 1024, "layers": (Layer(),)})
STEPS = (
    prefill_step(1, 64),
    prefill_step(1, 768),
    prefill_step(2, 192),
    Step("decode", (Sequences(1, 1024, 1, 1024),)),
    Step("decode", (Sequences(2, 256, 1, 256),)),
    Step("decode", (Sequences(16, 384, 1, 384),)),
)


@dataclass(frozen=True, slots=True)
class Lecture:
    """A model and plans of one of its steps to play."""

    model: Model
    plans: tuple[tuple[Step, Placement], ...]

    @property
    def programs(self) -> tuple[Program, ...]:
        return tuple(lower(self.model, step, placement, nodes=NODES, dtype="fp32") for step, placement in self.plans)


def lectures() -> Iterator[Lecture]:
    """Cheapest first."""
    for model in (DENSE, ROUTED, WIDE):
        plans = tuple((step, placement) for step in STEPS for placement in placements(model, step))
        yield Lecture(model, plans)


def placements(model: Model, step: Step) -> list[Placement]:
    """One device, tensor parallel, token parallel, and a pool beside and with two base ranks."""
    found = [
        _stage(model, "tp1", (0,), (0,), 1),
        _stage(model, "tp2", (0, 1), (0, 1), 2, AttentionGrid(heads=even_split(model.num_attention_heads, 2))),
    ]
    if step.phase == "prefill" or step.num_sequences > 1:  # in decode whole sequences are dealt out
        grid = AttentionGrid(heads=(model.num_attention_heads,), query_blocks=2)
        found.append(_stage(model, "cp2", (0, 1), (0, 1), 1, grid))
    pool = {"kv_blocks" if step.phase == "decode" else "query_blocks": 2}
    grid = AttentionGrid(heads=(model.num_attention_heads,), **pool)
    return [*found, _stage(model, "pool2+2", (2, 3), (0, 1), 2, grid)]


def one_rank_steps() -> list[tuple[Model, Step, Placement]]:
    """Small and large prefill and decode steps on one rank."""
    return [(DENSE, STEPS[index], placements(DENSE, STEPS[index])[0]) for index in (0, 2, 4, 5)]


def _stage(
    model: Model,
    name: str,
    attention: tuple[int, ...],
    feed_forward: tuple[int, ...],
    tensor: int,
    grid: AttentionGrid | None = None,
) -> Placement:
    stage = Stage(
        first_layer=0,
        last_layer=model.num_layers,
        attention_ranks=attention,
        grid=grid or AttentionGrid(heads=(model.num_attention_heads,)),
        feed_forward_ranks=feed_forward,
        tensor_degree=tensor,
    )
    return Placement(name=name, stages=(stage,))


def play(world: object, limit_s: float) -> tuple[Played, ...]:
    """Teachers' programs, each operation's seconds where its step puts it, in about ``limit_s`` seconds."""
    from executor.step_timing import Timing, time_steps
    from executor.supervisor import Supervisor

    assert isinstance(world, Supervisor)
    found: list[Played] = []
    courses = list(lectures())
    for number, lecture in enumerate(courses):
        began_s = time.monotonic()
        share_s = limit_s / (len(courses) - number)
        spans = world.run(time_steps, lecture.model, lecture.plans, NODES, Timing(share_s))[0]
        found += zip(lecture.programs, spans, strict=False)
        limit_s -= time.monotonic() - began_s
    return tuple(found)


def one_core(gpu: Gpu) -> Cluster:
    """Where programs are played: ranks that take turns on a core, one at a time."""
    bus = NodeLink(kind="shared_memory", bandwidth_bytes_per_s=1e9, latency_s=0.0)
    return Cluster(name="calibration", gpus=(gpu,), nodes=(Node(gpu=gpu.name, gpus=len(NODES), cores=1, link=bus),))
