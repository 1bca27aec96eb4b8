"""Triton's kernels compiled to machine code for GPUs that are not here: run by ``test_triton``."""

from __future__ import annotations

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from executor import triton_attention, triton_routing
from executor.triton_attention import MAX_BLOCK

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # a program may take; CUDA programming guide, compute capabilities

STRIDES = (
    "q_batch", "q_row", "q_head", "k_batch", "k_row", "k_head", "v_batch", "v_row", "v_head", "o_batch", "o_row",
    "o_head", "lse_batch", "lse_head", "num_queries", "num_keys",
)  # fmt: skip


def attention(capability: int, causal: bool, dtype: str, block: int) -> None:
    signature = {"q": f"*{dtype}", "k": f"*{dtype}", "v": f"*{dtype}", "o": f"*{dtype}", "lse": "*fp32"}
    signature |= {"query_heads": "*i32", "kv_heads": "*i32"} | dict.fromkeys(STRIDES, "i32") | {"scale": "fp32"}
    keys = MAX_BLOCK[4 if dtype == "fp32" else 2]
    constants: dict[str, object] = {"CAUSAL": causal, "EXACT": dtype == "fp32", "HEAD_DIM": 128, "BLOCK_DIM": 128}
    constants |= {"BLOCK_M": block, "BLOCK_N": keys}
    report(triton_attention._forward, signature, constants, capability)


def routing(capability: int) -> None:
    signature = {"scores": "*fp32", "experts": "*i64", "gates": "*fp32", "counts": "*i32"}
    signature |= {"num_tokens": "i32", "num_experts": "i32"}
    report(triton_routing._route, signature, {"TOP_K": 2, "BLOCK_T": 16, "BLOCK_E": 64}, capability)


def report(function: object, signature: dict[str, str], constants: dict[str, object], capability: int) -> None:
    order = {name: signature.get(name, "constexpr") for name in function.arg_names}  # type: ignore[attr-defined]
    source = ASTSource(fn=function, signature=order, constexprs=constants)
    made = compile(source, target=GPUTarget("cuda", capability, 32))
    assert made.metadata.shared <= SHARED_BYTES[capability], (constants, made.metadata.shared)
    print(f"sm_{capability}: compiled {made.metadata.name}, {made.metadata.shared} bytes of shared memory")


if __name__ == "__main__":
    for capability in (80, 90):
        for causal, dtype, block in ((True, "bf16", 64), (True, "fp32", 32)):
            attention(capability, causal, dtype, block)
        routing(capability)
