"""Random small planning questions: models with groups, windows and experts; equal, mixed and slow nodes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from planner.problem import Problem
from simulator.allocation import Limits, Sources
from simulator.cluster import Cluster, Node
from simulator.model import Experts, Model
from simulator.presets import cluster as load_cluster
from simulator.profile import Profile, load_profile
from simulator.scenario import Objective
from simulator.workload import Bucket, Workload
from tests.schemes import tiny_model

OBJECTIVES: tuple[Objective, ...] = ("ttft", "tpot", "tps", "tps_per_gpu", "cost")


@lru_cache
def profiles() -> dict[str, Profile]:
    """The shipped A100, and one that launches and copies twice as fast under another name."""
    first = load_profile("a100-sxm4-80gb")
    memory = tuple(
        cost.model_copy(update={"launch_s": cost.launch_s / 2, "bytes_per_s": cost.bytes_per_s * 1.2})
        for cost in first.memory
    )
    kernels = tuple(
        model.model_copy(update={"coefficients": dict(model.coefficients) | {"launch_s": 1e-6}})
        for model in first.kernels
    )
    gpu = first.gpu.model_copy(update={"name": "A100-B", "memory_bandwidth_bytes_per_s": 3e12})
    changes = {"name": "a100-b", "gpu": gpu, "memory": memory, "kernels": kernels, "host_launch_s": 2e-6}
    return {first.gpu.name: first, gpu.name: first.model_copy(update=changes)}


def random_model(random: np.random.Generator) -> Model:
    heads = int(random.choice([4, 8, 16]))
    kv_heads = int(random.choice([k for k in (1, 2, 4, 8) if heads % k == 0]))
    layers = int(random.integers(1, 4))
    experts = None
    if random.random() < 0.3:
        capacity = 1.25 if random.random() < 0.6 else None
        experts = Experts(
            num_experts=int(random.choice([4, 8])), top_k=2, intermediate_size=512, capacity_factor=capacity
        )
    windows = [int(w) for w in random.choice([0, 0, 64], size=layers)] if random.random() < 0.3 else ()
    causal = bool(random.random() < 0.8)
    model = tiny_model(
        heads=heads, kv_heads=kv_heads, layers=layers, experts=experts, windows=windows if causal else (), causal=causal
    )
    return model.model_copy(update={"head_dim": 64, "hidden_size": heads * 64, "intermediate_size": heads * 256})


def random_cluster(random: np.random.Generator) -> Cluster:
    """One or two kinds of node, a straggler at times, fewer NICs than GPUs at times."""
    a100, other = load_cluster("dgx-a100-5"), profiles()["A100-B"].gpu
    gpus = int(random.choice([1, 2, 4]))
    mixed = random.random() < 0.35
    nodes: list[Node] = []
    for gpu in (a100.gpus[0].name, other.name) if mixed else (a100.gpus[0].name,):
        node = a100.nodes[0]
        assert node.nics is not None
        nics = node.nics.model_copy(update={"count": int(random.integers(1, gpus + 1))})
        slowdown = float(random.choice([1.0, 1.0, 1.5]))
        count = int(random.integers(1, 3)) if mixed else int(random.integers(1, 4))
        nodes.append(
            node.model_copy(update={"gpu": gpu, "count": count, "gpus": gpus, "nics": nics, "slowdown": slowdown})
        )
    fabric = a100.fabric.model_copy(update={"rails": bool(random.random() < 0.5)})
    kinds = (*a100.gpus, *((other,) if mixed else ()))
    return a100.model_copy(update={"name": "random", "gpus": kinds, "nodes": tuple(nodes), "fabric": fabric})


def random_problem(seed: int) -> Problem:
    random = np.random.default_rng(seed)
    cluster = random_cluster(random)
    used = {node.gpu for node in cluster.nodes}
    bucket = Bucket(name="all", min_tokens=1, tokens=int(random.choice([7, 96, 1024, 8192])), share=1.0)
    base = int(random.integers(1, cluster.num_ranks + 1)) if random.random() < 0.4 else None
    return Problem(
        name=f"random-{seed}",
        command=f"plan make random-{seed}",
        model=random_model(random),
        cluster=cluster,
        workload=Workload(
            name="random",
            buckets=(bucket,),
            prefill_batch=int(random.integers(1, 6)),
            decode_batch=int(random.choice([1, 3, 8, 33])),
        ),
        profile_name="a100-sxm4-80gb",
        profiles={name: profile for name, profile in profiles().items() if name in used},
        objective=OBJECTIVES[int(random.integers(len(OBJECTIVES)))],
        limits=Limits(max_gpus=min(cluster.num_ranks, 8), base_gpus=None if base is None else min(base, 8)),
        sources=Sources(model="m.yaml", cluster="c.yaml", workload="w.yaml", profile="a100-sxm4-80gb"),
    )
