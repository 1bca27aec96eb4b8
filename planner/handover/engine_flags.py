"""Engine flags: which of a plan's placements vLLM and SGLang can be started with, and how.

Equivalent means the same cut of heads, layers and tokens over the same number of GPUs; kernels, batching and block
rules stay the engine's own. Both fix one layout at start-up, so a policy that switches needs one instance a layout.
No release of either attends on GPUs that do not hold the feed-forward (FA Pool, MA Separation) or cuts a head.
Source: the engines' argument references (vLLM: tensor, pipeline, data and prefill context parallel sizes; SGLang:
--tp-size, --pp-size, --dp-size).
"""

from __future__ import annotations

from collections.abc import Iterable

from simulator.allocation import Allocation, Choice
from simulator.placement import Placement
from simulator.workload import Phase

MODEL = "MODEL"  # a Hugging Face name or a folder: an allocation does not say where the weights are


def engine_lines(allocation: Allocation, *, routed: bool = False) -> tuple[str, ...]:
    """One line a distinct layout and phase: where it is used, then both engines' commands or why there is none."""
    found: dict[tuple[str, ...], list[Choice]] = {}
    for choice in allocation.policy:
        found.setdefault((choice.phase, *commands(choice.placement, choice.phase, routed=routed)), []).append(choice)
    lines = [f"{_where(choices)}: {' | '.join(words)}" for (_, *words), choices in found.items()]
    if len(found) > 1:
        lines.append("the plan switches layouts; an engine keeps the one it was started with: one instance a layout")
    return tuple(lines)


def _where(choices: Iterable[Choice]) -> str:
    entries = list(choices)
    return f"{entries[0].phase} of {', '.join(choice.bucket for choice in entries)}"


def commands(placement: Placement, phase: Phase, *, routed: bool = False) -> tuple[str, ...]:
    """The commands, or one entry that says there is none. ``routed``: a model of whole experts dealt to the ranks."""
    stages = placement.stages
    first = stages[0]
    if any(stage.separated for stage in stages):
        return ("no equivalent in vLLM or SGLang: attention runs on GPUs without the feed-forward",)
    if any(stage.grid.dim_slices > 1 or stage.grid.kv_blocks > 1 for stage in stages):
        return ("no equivalent in vLLM or SGLang: a head's keys or dimensions are cut over these GPUs",)
    if any(stage.experts is not None for stage in stages):
        return ("no equivalent in vLLM or SGLang: experts are dealt by the plan, not evenly",)
    sizes = {(stage.tensor_degree, stage.token_replicas) for stage in stages}
    if len(sizes) > 1:
        return ("no equivalent in vLLM or SGLang: stages of unlike degrees",)
    if routed:
        return _expert_parallel(first.tensor_degree, len(stages), first.token_replicas)
    return _dense(first.tensor_degree, len(stages), first.token_replicas, phase)


def _dense(tensor: int, stages: int, replicas: int, phase: Phase) -> tuple[str, ...]:
    """Tensor × pipeline; token replicas are context parallel in prefill and data parallel in decode."""
    vllm = f"vllm serve {MODEL} --tensor-parallel-size {tensor}"
    sglang = f"python -m sglang.launch_server --model-path {MODEL} --tp-size {tensor}"
    if stages > 1:
        vllm, sglang = f"{vllm} --pipeline-parallel-size {stages}", f"{sglang} --pp-size {stages}"
    if replicas > 1 and phase == "prefill":
        return (
            f"{vllm} --prefill-context-parallel-size {replicas}",
            "none in SGLang: its context parallelism cuts the tensor group, not copies of it",
        )
    if replicas > 1:
        return f"{vllm} --data-parallel-size {replicas}", f"{sglang} --dp-size {replicas}"
    return vllm, sglang


def _expert_parallel(tensor: int, stages: int, replicas: int) -> tuple[str, ...]:
    """As dense, and experts over all ranks of a stage: in SGLang its tensor group, inside which attention is copied."""
    if stages > 1 and replicas > 1:
        return ("no equivalent in vLLM or SGLang: pipeline stages with copies of attention and experts over all ranks",)
    ranks = tensor * replicas
    vllm = f"vllm serve {MODEL} --tensor-parallel-size {tensor}"
    sglang = f"python -m sglang.launch_server --model-path {MODEL} --tp-size {ranks}"
    if stages > 1:
        vllm, sglang = f"{vllm} --pipeline-parallel-size {stages}", f"{sglang} --pp-size {stages}"
    if replicas > 1:
        vllm, sglang = f"{vllm} --data-parallel-size {replicas}", f"{sglang} --dp-size {replicas} --enable-dp-attention"
    return f"{vllm} --enable-expert-parallel", f"{sglang} --ep-size {ranks}"
