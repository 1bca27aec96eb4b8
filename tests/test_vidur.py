"""Vidur's tables: shapes of one tensor-parallel rank by hand, medians over ranks, refusals with the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibration.importers import vidur
from simulator.errors import SpecError
from simulator.kernel import Gemm, Memory, flops
from tests.shared_data import shared

OPS = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj", "mlp_act", "add")
OPS += ("input_layernorm", "post_attention_layernorm")
SHAPES = "n_head,n_kv_head,n_embd,n_expanded_embd,use_gated_mlp,num_tokens,num_tensor_parallel_workers"
MLP = ",".join(f"time_stats.{op}.median" for op in OPS) + f",{SHAPES}\n" + "1,2,3,4,5,6,7,8,64,8,8192,28672,True,16,4\n"
NETWORK = (
    ",time_stats.all_reduce.median,rank,num_workers,size,collective,devices_per_node,max_devices_per_node\n"
    "0,0.5,0,4,1000,all_reduce,2,4\n"
    "1,0.7,1,4,1000,all_reduce,2,4\n"
    "2,0.6,2,4,1000,all_reduce,2,4\n"
)
A100_FLOP_PER_S = 312e12  # dense fp16; datasheet


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(text)
    return path


def test_the_kernels_of_one_tensor_parallel_rank_by_hand(tmp_path: Path) -> None:
    path = written(tmp_path, MLP)
    rows = {row.place.split()[-1]: row for row in vidur.read_compute(path)}
    assert rows["attn_pre_proj"].kernel == Gemm(16, (64 + 2 * 8) * 128 // 4, 8192, "fp16")
    assert rows["attn_post_proj"].kernel == Gemm(16, 8192, 8192 // 4, "fp16")
    assert rows["mlp_up_proj"].kernel == Gemm(16, 2 * 28672 // 4, 8192, "fp16")
    assert rows["mlp_down_proj"].kernel == Gemm(16, 8192, 28672 // 4, "fp16")
    # reads gate and up, writes their product: 3 x 16 x 7168 x 2 bytes
    assert rows["mlp_act"].kernel == Memory("activation", 3 * 16 * 7168 * 2)
    assert rows["add"].kernel == Memory("add", 3 * 16 * 8192 * 2)
    assert rows["attn_pre_proj"].duration_s == 1e-3
    assert rows["post_attention_layernorm"].duration_s == 8e-3
    assert {row.tag for row in rows.values()} == {"imported"}


def test_an_ungated_feed_forward_has_one_matrix_up(tmp_path: Path) -> None:
    rows = vidur.read_compute(written(tmp_path, MLP.replace("True", "False")))
    assert rows[2].kernel == Gemm(16, 28672 // 4, 8192, "fp16")


def test_the_median_rank_counts_and_nodes_follow_from_the_ranks_on_each(tmp_path: Path) -> None:
    (row,) = vidur.read_network(written(tmp_path, NETWORK))
    assert (row.collective, row.gpus, row.nodes, row.num_bytes) == ("all_reduce", 4, 2, 1000)
    assert row.duration_s == pytest.approx(0.6e-3)
    assert row.busbw_bytes_per_s == pytest.approx(1000 / 0.6e-3 * 2 * 3 / 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MLP.replace("\n1,", "\nnan,"), "table.csv:2: time_stats.attn_pre_proj.median: not a number above 0"),
        (MLP.replace("\n1,", "\n0,"), "table.csv:2: time_stats.attn_pre_proj.median: not a number above 0"),
        (MLP.replace("\n1,", "\n,"), "table.csv:2: time_stats.attn_pre_proj.median: missing"),
        (MLP.replace("16,4\n", "16,3\n"), "table.csv:2: n_head: 64 does not divide by 3"),
        (MLP.replace("16,4\n", "16,16\n"), "table.csv:2: n_kv_head: 8 does not divide by 16"),
        (MLP.replace("True", "yes"), "table.csv:2: use_gated_mlp: neither True nor False"),
        (MLP.replace("n_embd", "embd"), "table.csv:2: n_embd: missing"),
        (MLP.splitlines()[0], "no rows; give Vidur's mlp.csv"),
    ],
)
def test_a_compute_row_that_is_not_understood_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        vidur.read_compute(written(tmp_path, text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NETWORK.replace("0.5,0,4,1000,all_reduce", "0.5,0,4,1000,bcast"), "table.csv:2: collective: unknown 'bcast'"),
        (NETWORK.replace("all_reduce,2,4\n1", "all_reduce,3,4\n1"), "table.csv:2: num_workers: 4 does not divide by 3"),
        (NETWORK.replace("0.7", "-1"), "table.csv:3: time_stats.all_reduce.median: not a number above 0"),
        (NETWORK.splitlines()[0], "no rows; give Vidur's all_reduce.csv"),
    ],
)
def test_a_network_row_that_is_not_understood_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        vidur.read_network(written(tmp_path, text))
    assert message in str(caught.value)


def test_the_real_projections_run_below_the_datasheet_peak() -> None:
    """The shapes are right: with a factor of two too many FLOPs, the largest would beat the GPU."""
    rows = vidur.read_compute(shared("vidur") / "a100_llama-2-70b_mlp.csv")
    assert len(rows) == 1044 * len(OPS)
    rates = [flops(row.kernel) / row.duration_s for row in rows if isinstance(row.kernel, Gemm)]
    assert 0.7 * A100_FLOP_PER_S < max(rates) < A100_FLOP_PER_S


def test_the_real_network_tables_are_read() -> None:
    reduces = vidur.read_network(shared("vidur") / "a100_pairwise_nvlink_all_reduce.csv")
    assert {(row.gpus, row.nodes) for row in reduces} == {(2, 1), (4, 1)}
    sends = vidur.read_network(shared("vidur") / "a100_pairwise_nvlink_send_recv.csv")
    assert {(row.gpus, row.nodes) for row in sends} == {(2, 1), (2, 2)}
