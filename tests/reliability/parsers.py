"""Every reader of a file from outside, with real files to start from: what the fuzzer and the hostile files go through.

A reader is followed by what the program does first with what it read, so that a value that gets past the reader and
breaks its user counts as the reader's fault.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from calibration.importers import aiconfigurator, nccl_tests, vidur
from calibration.importing import imported_profile
from calibration.journal import Journal
from executor.safetensors_source import INDEX, SafetensorsSource
from planner.explain import explain
from planner.ops_csv import predicted_csv
from planner.verification.verify import verify
from simulator import presets
from simulator.allocation import Allocation
from simulator.fabric.topology import Topology
from simulator.formats.files import load, parse, to_json
from simulator.formats.topo import TopoOptions, from_topo
from simulator.formats.trace import from_trace
from simulator.measurement import Measurement
from simulator.profile import Profile, load_profile
from simulator.serving.log import ServingLog
from simulator.weight_names import Naming, file_shapes
from tests.reliability.scale import DATA, ROOT
from tests.shared_data import SHARED
from tests.test_verify import problem
from tests.test_verify import text as allocation_text

PRESETS = ROOT / "simulator" / "presets"
OPERATIONS = """op,m,n,k,batch,seq_q,seq_kv,heads,kv_heads,head_dim,causal,context,tokens,hidden,inter,topk,experts,tp,ep,routing,bytes,gpus,dtype
gemm,128,4096,4096,,,,,,,,,,,,,,,,,,,
attention_prefill,,,,1,512,2048,32,8,128,1,,,,,,,,,,,,bf16
attention_decode,,,,8,,,32,8,128,,4096,,,,,,,,,,,fp16
moe,,,,,,,,,,,,1024,4096,14336,2,8,1,4,power_law_1.2,,,
all_reduce,,,,,,,,,,,,,,,,,,,,1048576,8,
"""  # noqa: E501
TOPO = (
    "\tGPU0\tGPU1\tmlx5_0\tCPU Affinity\nGPU0\t X \tNV12\tPIX\t0-31\n"
    "GPU1\tNV12\t X \tSYS\t0-31\nmlx5_0\tPIX\tSYS\t X \t\n"
)
LOG = """#  size  count type redop root time algbw busbw #wrong time algbw busbw #wrong
#  (B)  (elements) (us) (GB/s) (GB/s) (us) (GB/s) (GB/s)
 1048576 262144 float sum -1 100.0 10.49 18.35 0 100.0 10.49 18.35 0
 8388608 2097152 float sum -1 800.0 10.49 18.35 0 800.0 10.49 18.35 0
"""
FACTS = "nodes: 1\ngpus_per_node: 8\ngpu: A100-SXM4-80GB\ncollective: all_reduce\nsource: made by hand\n"
TRACE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
)
LINES = '{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}\n' * 3
MLP = (
    "n_head,n_kv_head,n_embd,n_expanded_embd,use_gated_mlp,num_tokens,num_tensor_parallel_workers,"
    + ",".join(
        f"time_stats.{name}.median"
        for name in (
            *("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj", "mlp_act"),
            *("input_layernorm", "post_attention_layernorm", "add"),
        )
    )
    + "\n64,8,8192,28672,True,128,2"
    + ",0.5" * 8
    + "\n"
)
SEND_RECV = (
    "collective,num_workers,devices_per_node,size,time_stats.send_recv.median\n"
    "send_recv,2,2,1024,0.01\nsend_recv,2,2,1048576,0.1\n"
)
QUANTIZED = '{"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}'
CONFIG = (
    '{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 8, "intermediate_size": 64, '
    '"num_hidden_layers": 2, "vocab_size": 99}'
)


@dataclass(frozen=True, slots=True)
class Parser:
    """``read`` takes the file at its path; ``seeds`` are (name, content) of files it accepts or refuses by name."""

    name: str
    read: Callable[[Path], Any]
    seeds: tuple[tuple[str, bytes], ...]
    beside: tuple[tuple[str, bytes], ...] = ()


@lru_cache
def parsers() -> tuple[Parser, ...]:
    """All of them. Real files come from the presets and, where the checkout has them beside it, the shared data."""
    topo_options = TopoOptions(presets.gpus()["A100-SXM4-80GB"], 2, 25e9, None, 25e9)
    facts = ("run.yaml", FACTS.encode())
    a100 = load_profile("a100-sxm4-80gb")
    small = a100.model_copy(update={"kernels": a100.kernels[-1:]})
    return (
        Parser("model", _model, (*_files(PRESETS / "models"), *_files(SHARED / "hf-configs", ".json"))),
        Parser("quantized model", _model_beside, (("hf_quant_config.json", QUANTIZED.encode()),)),
        Parser("cluster", _cluster, tuple(_files(PRESETS / "clusters"))),
        Parser("workload", lambda path: presets.workload(str(path)), tuple(_files(PRESETS / "workloads"))),
        Parser("scenario", lambda path: presets.scenario(str(path)), tuple(_files(PRESETS / "scenarios"))),
        Parser("profile", lambda path: load(path, Profile), (("profile.json", to_json(small).encode()),)),
        Parser("allocation", _allocation, (("allocation.json", allocation_text().encode()),)),
        Parser("measurement", lambda path: load(path, Measurement), tuple(_files(DATA, ".json"))),
        Parser(
            "topo", lambda path: from_topo(path, topo_options), (("a.txt", TOPO.encode()), *_shared("topo", ".txt"))
        ),
        Parser("nccl log", nccl_tests.read_run, (("run.log", LOG.encode()), *_logs()), (facts,)),
        Parser("nccl facts", _facts, (facts,), (("run.log", LOG.encode()),)),
        Parser("nccl profile", _nccl_profile, (("run.log", LOG.encode()),), (facts,)),
        Parser("vidur compute", vidur.read_compute, (("mlp.csv", MLP.encode()), *_tables("mlp"))),
        Parser("vidur network", vidur.read_network, (("a.csv", SEND_RECV.encode()), *_tables("pairwise"))),
        Parser("vidur profile", _vidur_profile, (("send_recv.csv", SEND_RECV.encode()),)),
        Parser("trace", from_trace, (("a.csv", TRACE.encode()), ("a.jsonl", LINES.encode()), *_traces())),
        Parser("operations", lambda path: predicted_csv(path, a100), (("ops.csv", OPERATIONS.encode()),)),
        Parser("system facts", _system, (("a100_sxm.yaml", SYSTEM.encode()),)),
        Parser("calibration journal", _journal, (("points.jsonl", JOURNAL.encode()),)),
        Parser("serving log", lambda path: load(path, ServingLog), (("log.json", SERVED.encode()),)),
        Parser("safetensors", _weights, (("model.safetensors", tensors()), (INDEX, _index().encode()))),
        Parser(
            "any JSON or YAML", parse, tuple((name, b'{"a": [1, 2.5, "x", null]}') for name in ("a.json", "a.yaml"))
        ),
    )


JOURNAL = """{"facts": {"torch": "2"}}
{"kernel": "Gemm", "m": 64, "n": 256, "k": 512, "dtype": "fp32", "seconds": 0.00012}
{"kernel": "Memory", "kind": "norm", "bytes_moved": 4096, "seconds": 3.5e-06}
"""
SERVED = """{"schema_version": 1, "dtype": "fp32", "warm_s": 0.1, "batches": [{"number": 0, "lengths": [5], "changes": [],
"prefill_placement": "tp1", "decode_placement": "tp1", "prefill_pool_gpus": 0, "decode_pool_gpus": 0, "wanted_gpus": [0, 0],
"switch_s": 0.0, "steps": [{"phase": "prefill", "duration_s": 0.01, "bytes_sent": 0}], "generated": [[1]]}]}"""  # noqa: E501
SYSTEM = "gpu:\n  mem_bw: 2039000000000\n  mem_capacity: 85899345920\n  bfloat16_tc_flops: 312000000000000\n"


def _model(path: Path) -> Any:
    found = presets.model(str(path))
    return found.num_parameters()


def _model_beside(path: Path) -> Any:
    config = path.with_name("config.json")
    config.write_text(CONFIG)
    return presets.model(str(config)).num_parameters()


def _cluster(path: Path) -> Any:
    found = presets.cluster(str(path))
    if found.num_ranks <= 64:
        Topology(found)
    return found.rank_nodes()


def _allocation(path: Path) -> Any:
    one, allocation = problem(), load(path, Allocation)
    explain(allocation)
    return verify(allocation, model=one.model, cluster=one.cluster, workload=one.workload, profiles=one.profiles)


def _facts(path: Path) -> Any:
    return nccl_tests.read_run(path.with_name("run.log"))


def _nccl_profile(path: Path) -> Any:
    return imported_profile("nccl-tests", [path])


def _vidur_profile(path: Path) -> Any:
    return imported_profile("vidur", [path])


def _journal(path: Path) -> Any:
    with Journal(path, {"torch": "2"}) as journal:
        return journal.seconds


TINY = presets.hf_config.from_config(json.loads(CONFIG), source="config.json", name="tiny")


def tensors() -> bytes:
    """A whole small checkpoint."""
    from safetensors.torch import save

    shapes = file_shapes(TINY, Naming.of(TINY, _NAMES))
    return bytes(save({name: torch.zeros(shape) for name, shape in shapes.items()}))


def _index() -> str:
    return json.dumps({"weight_map": dict.fromkeys(file_shapes(TINY, Naming.of(TINY, _NAMES)), "model.safetensors")})


_NAMES = {"model.embed_tokens.weight": "model.safetensors"}


def _weights(path: Path) -> Any:
    """The file in a model directory of its own, its partner beside it whole."""
    folder = path.with_name("model")
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(CONFIG)
    (folder / "model.safetensors").write_bytes(tensors())
    (folder / INDEX).unlink(missing_ok=True)
    (folder / path.name).write_bytes(path.read_bytes())
    source = SafetensorsSource(folder, TINY)
    return source.read_bytes


def _system(path: Path) -> Any:
    return aiconfigurator.load_gpu(path.parent, "a100_sxm", "A100")


def _files(folder: Path, suffix: str = ".yaml") -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.glob(f"*{suffix}")):
        yield path.name, path.read_bytes()


def _shared(folder: str, suffix: str) -> list[tuple[str, bytes]]:
    return list(_files(SHARED / folder, suffix))


def _logs() -> list[tuple[str, bytes]]:
    return [("run.log", content[:20_000]) for _, content in _shared("nccl-tests", ".log")]


def _tables(word: str) -> list[tuple[str, bytes]]:
    """Real tables, their first hundred lines: enough structure, and a case stays quick."""
    return [(name, b"".join(c.splitlines(True)[:100])) for name, c in _shared("vidur", ".csv") if word in name]


def _traces() -> list[tuple[str, bytes]]:
    kept = [*_shared("traces", ".csv"), *_shared("traces", ".jsonl")]
    return [(name, b"".join(content.splitlines(True)[:100])) for name, content in kept]
