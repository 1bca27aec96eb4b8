"""Hostile files for every parser. ``python -m tests.hostile FOLDER`` parses what ``write_all`` put there.

One JSON line a case: file, processor seconds, the error's kind and message, and the peak memory of the process so far.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from calibration.importers import aiconfigurator, nccl_tests, vidur
from planner.ops_csv import read_operations
from simulator import presets
from simulator.allocation import Allocation
from simulator.errors import SpecError
from simulator.formats.files import load
from simulator.formats.topo import read_matrix
from simulator.formats.trace import read_requests
from simulator.measurement import Measurement
from simulator.profile import Profile

MB = 10**6
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
PARSERS: dict[str, Callable[[Path], Any]] = {
    "model": lambda path: presets.model(str(path)),
    "cluster": lambda path: presets.cluster(str(path)),
    "workload": lambda path: presets.workload(str(path)),
    "trace": read_requests,
    "topo": read_matrix,
    "nccl": nccl_tests.read_run,
    "vidur": vidur.read_compute,
    "operations": read_operations,
    "profile": lambda path: load(path, Profile),
    "allocation": lambda path: load(path, Allocation),
    "measurement": lambda path: load(path, Measurement),
    "system": lambda path: aiconfigurator.load_gpu(path.parent, path.stem, "x"),
}
LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 8, "intermediate_size": 64}
FACTS = "nodes: 1\ngpus_per_node: 8\ngpu: x\ncollective: all_reduce\nsource: x\n"
Content = str | bytes | Callable[[], str | bytes]
CASES: list[tuple[str, str, Content]] = [
    ("model", "deep_lists.json", "[" * 100_000),
    ("model", "deep_objects.json", '{"a":' * 100_000),
    ("model", "deep_in_field.json", '{"layers":' + "[" * 900 + "]" * 900 + "}"),
    ("model", "deep.yaml", "[" * 100_000),
    ("model", "deep_blocks.yaml", "".join(" " * i + "- \n" for i in range(1500))),
    ("model", "infinite.json", '{"rope_theta": 1e999}'),
    ("model", "infinite.yaml", "rope_theta: 1e999"),
    ("model", "nan.json", '{"rope_theta": NaN}'),
    ("model", "nan.yaml", "rope_theta: .nan"),
    ("model", "twice.json", '{"name": "a", "name": "b"}'),
    ("model", "twice.yaml", "name: a\nname: b"),
    ("model", "digits.json", '{"hidden_size": ' + "9" * 5000 + "}"),
    ("model", "digits.yaml", "hidden_size: " + "9" * 5000),
    ("model", "beyond_64_bits.json", '{"hidden_size": 99999999999999999999}'),
    ("model", "bomb.yaml", BOMB),
    ("model", "object.yaml", "!!python/object/apply:os.system ['true']"),
    ("model", "latin.json", b'{"name": "caf\xe9"}'),
    ("model", "nul.yaml", "name: \0"),
    ("model", "huge.json", lambda: b"[" + b" " * (100 * MB)),
    ("model", "many_lists.json", lambda: "[" + "[]," * 5 * MB + "[]]"),
    ("model", "many_numbers.json", lambda: '{"layers": [' + "1," * 1_900_000 + "1]}"),
    ("model", "numbers.json", lambda: '{"layers": [' + "1," * 299_000 + "1]}"),
    ("model", "many_layers.json", lambda: '{"layers": [' + "{}," * 99_000 + "{}]}"),
    ("model", "wide.json", json.dumps({f"key{i}": i for i in range(100_000)})),
    ("model", "wide.yaml", "".join(f"key{i}: {i}\n" for i in range(100_000))),
    ("model", "wide_characters.json", lambda: '["' + "\U0001f600" * 3_500_000 + '"]'),
    ("model", "up.json", '{"schema_version": 1, "name": "../../x", "hidden_size": 1}'),
    ("model", "lines.json", '{"name": "a\\nb"}'),
    ("model", "surrogate.json", '{"name": "\\ud800"}'),
    ("model", "hf_text.json", '{"model_type": "llama", "num_attention_heads": "8"}'),
    ("model", "hf_layers.json", lambda: json.dumps(LLAMA | {"num_hidden_layers": 999999999999})),
    ("cluster", "empty.yaml", ""),
    ("workload", "list.yaml", "[1, 2"),
    ("trace", "long_line.jsonl", lambda: '{"timestamp": 0, "hash_ids": [' + "1," * 5 * MB),
    ("trace", "deep.jsonl", '{"timestamp": ' + "[" * 100_000),
    ("trace", "infinite.jsonl", '{"timestamp": 1e999, "input_length": 1, "output_length": 1}'),
    ("trace", "digits.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n0," + "9" * 5000 + ",1"),
    ("trace", "nan.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\nnan,1,1"),
    ("trace", "latin.csv", b"arrived_at\xe9"),
    ("topo", "wide.txt", "\t" + "\t".join(f"GPU{i}" for i in range(100_000))),
    ("topo", "nul.txt", "\0" * MB),
    ("nccl", "digits.log", " " + "9" * 5000 + " 1 float sum -1 1 1 1 0 1 1 1 0"),
    ("vidur", "wide.csv", ",".join(f"c{i}" for i in range(100_000))),
    ("vidur", "quote.csv", 'a,"b\n1,2'),
    ("operations", "digits.csv", "op,m,n,k\ngemm,1,1," + "9" * 5000),
    ("operations", "many.csv", lambda: "op,m,n,k\n" + "gemm,1,1,1\n" * 1_400_000),
    ("operations", "long_cell.csv", lambda: "op,m,n,k\ngemm,1,1," + "x" * 10 * MB),
    ("operations", "huge.csv", lambda: "op\n" + "\n" * 40 * MB),
    ("operations", "nul.csv", "op,m,n,k\ngemm,1,1,\0"),
    ("operations", "nan.csv", "op,m,n,k\ngemm,1,1,nan"),
    ("profile", "deep.json", '{"kernels":' * 100_000),
    ("profile", "infinite.json", '{"name": "x", "host_launch_s": 1e999}'),
    ("allocation", "bomb.yaml", BOMB),
    ("allocation", "twice.json", '{"policy": [], "policy": []}'),
    ("allocation", "up.json", '{"schema_version": 1, "name": "../../x"}'),
    ("measurement", "nan.json", '{"steps": [{"duration_s": NaN}]}'),
    ("measurement", "many.json", lambda: '{"steps": [' + "0," * 290_000 + "0]}"),
    ("system", "a100_sxm.yaml", "gpu: &a {mem_bw: *a}"),
    ("system", "h100_sxm.yaml", "gpu: {mem_bw: 1, mem_capacity: 1, bfloat16_tc_flops: .inf}"),
]


def write_all(folder: Path) -> None:
    """Every case as a file; log cases with the facts they need."""
    for parser, name, content in CASES:
        path = folder / f"{parser}_{name}"
        text = content() if callable(content) else content
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        if parser == "nccl":
            path.with_suffix(".yaml").write_text(FACTS)


def peak_bytes() -> int:
    """This process's own peak (getrusage would count the parent's, inherited by fork)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main(folder: Path) -> None:
    for parser, name, _ in CASES:
        path = folder / f"{parser}_{name}"
        start = time.process_time()
        try:
            PARSERS[parser](path)
            kind, message = "accepted", ""
        except SpecError as error:
            kind, message = "SpecError", str(error)
        except BaseException as error:
            kind, message = type(error).__name__, str(error)[:200]
        print(json.dumps([path.name, time.process_time() - start, kind, message, peak_bytes()]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
