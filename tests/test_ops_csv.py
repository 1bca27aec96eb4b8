"""OPS.csv in, predicted.csv out; every refusal names the file and the line."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from planner.ops_csv import parse_operations, predicted_csv
from simulator.costs.cost import predict
from simulator.errors import ProfileError, SpecError
from simulator.kernel import AttentionDecode, AttentionPrefill, Gemm, GroupCollective, Moe
from simulator.profile import load_profile

A100 = load_profile("a100-sxm4-80gb")
TABLE = """op,m,n,k,batch,seq_q,seq_kv,context,heads,kv_heads,head_dim,causal,window,tokens,hidden,inter,topk,experts,\
tp,ep,routing,bytes,gpus,dtype
gemm,512,4096,4096,,,,,,,,,,,,,,,,,,,,
attention_prefill,,,,1,1024,4096,,32,8,128,1,,,,,,,,,,,,bf16
attention_decode,,,,64,,,4096,32,8,128,,,,,,,,,,,,,
moe,,,,,,,,,,,,,512,4096,14336,2,8,1,1,power_law_1.2,,,

all_reduce,,,,,,,,,,,,,,,,,,,,,1048576,8,
"""


def test_each_op_becomes_its_kernel() -> None:
    assert parse_operations(TABLE, "ops.csv").kernels == (
        Gemm(512, 4096, 4096),
        AttentionPrefill(1, 1024, 4096, 32, 8, 128),
        AttentionDecode(64, 4096, 32, 8, 128),
        Moe(512, 4096, 14336, 2, 8, routing="power_law_1.2"),
        GroupCollective("all_reduce", 1048576, 8),
    )


def test_predicted_table_is_the_input_and_four_columns(tmp_path: Path) -> None:
    path = tmp_path / "ops.csv"
    path.write_text(TABLE, encoding="utf-8")
    rows = list(csv.reader(io.StringIO(predicted_csv(path, A100))))
    assert rows[0][-4:] == ["seconds", "p05", "p95", "tag"]
    assert rows[1][:-4] == TABLE.splitlines()[1].split(",")
    expected = predict(parse_operations(TABLE, "ops.csv").kernels, A100)
    assert [float(row[-4]) for row in rows[1:]] == pytest.approx(expected.seconds, rel=1e-5)
    assert all(float(row[-3]) <= float(row[-4]) <= float(row[-2]) for row in rows[1:])
    assert [row[-1] for row in rows[1:]] == ["fitted", "assumed", "fitted", "fitted", "imported"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no operations"),
        ("op,m,n,k\n", "no operations"),
        ("m,n,k\n1,2,3\n", "ops.csv:1: no column 'op'"),
        ("op,m,n,k,speed\n", "ops.csv:1: unknown column 'speed'; known: "),
        ("op,m,m\n", "ops.csv:1: column 'm' appears twice"),
        ("op,m,n,k\ngemm,1,2,3\nconv,1,2,3\n", "ops.csv:3: op: unknown 'conv'; known: gemm, "),
        ("op,m,n,k\ngemm,1,2\n", "ops.csv:2: 3 cells under 4 columns"),
        ("op,m,n,k\ngemm,1,2,\n", "ops.csv:2: k: needs an integer from 1 to .*, got ''"),
        ("op,m,n,k\ngemm,1,2,0\n", "ops.csv:2: k: needs an integer from 1"),
        ("op,m,n,k\ngemm,1,2,-3\n", "ops.csv:2: k: needs an integer"),
        ("op,m,n,k\ngemm,1,2,nan\n", "ops.csv:2: k: needs an integer"),
        ("op,m,n,k\ngemm,1,2,1e3\n", "ops.csv:2: k: needs an integer"),
        ("op,m,n,k\ngemm,1,2," + "9" * 400 + "\n", "ops.csv:2: k: needs an integer"),
        ("op,m,n,k,bytes\ngemm,1,2,3,4\n", "ops.csv:2: bytes: gemm does not use it; leave it empty"),
        ("op,m,n,k,dtype\ngemm,1,2,3,int3\n", "ops.csv:2: dtype: unknown 'int3'; known: fp32"),
        ("op,batch,context,heads,kv_heads,head_dim\nattention_decode,1,2,6,4,64\n", "heads: 6 is not a multiple"),
        (
            "op,batch,seq_q,seq_kv,heads,kv_heads,head_dim,causal\nattention_prefill,1,8,4,1,1,64,1\n",
            "seq_kv: 4 is below seq_q 8",
        ),
        (
            "op,batch,seq_q,seq_kv,heads,kv_heads,head_dim,causal\nattention_prefill,1,8,8,1,1,64,maybe\n",
            "causal: needs 1 or 0, got 'maybe'",
        ),
        ("op,tokens,hidden,inter,topk,experts,ep\nmoe,1,8,8,2,8,3\n", "ep: 3 does not divide experts 8"),
        ("op,tokens,hidden,inter,topk,experts,tp\nmoe,1,8,8,2,8,3\n", "tp: 3 does not divide inter 8"),
        ("op,tokens,hidden,inter,topk,experts\nmoe,1,8,8,9,8\n", "topk: 9 exceeds experts 8"),
        ("op,tokens,hidden,inter,topk,experts,routing\nmoe,1,8,8,2,8,hot\n", "ops.csv:2: routing: unknown 'hot'"),
        ("op,bytes,gpus\nall_reduce,8,1\n", "gpus: needs an integer from 2"),
        ('op,m,n,k\ngemm,"1,2,3\n', "ops.csv:.*: not CSV"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_operations(text, "ops.csv")


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        predicted_csv(tmp_path / "absent.csv", A100)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"op,m\n\xff\xfe")
    with pytest.raises(SpecError, match="not UTF-8 text"):
        predicted_csv(binary, A100)


def test_a_dtype_the_profile_lacks_is_the_profiles_error(tmp_path: Path) -> None:
    path = tmp_path / "ops.csv"
    path.write_text("op,m,n,k,dtype\ngemm,1,2,3,fp8\n", encoding="utf-8")
    with pytest.raises(ProfileError, match="gemm has no 'fp8' rows"):
        predicted_csv(path, A100)
