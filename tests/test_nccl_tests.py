"""nccl-tests logs: every real one, both layouts by hand, and facts that contradict the numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.importers.collective_row import bus_factor
from calibration.importers.nccl_tests import RunFacts, read_run
from simulator.errors import SpecError
from simulator.kernel import GroupCollective
from tests.shared_data import refusal, shared, shared_files

FACTS = RunFacts(nodes=1, gpus_per_node=8, gpu="A100", collective="all_reduce", source="test")
NEW = """# nThread 1 nGpus 8 minBytes 8 maxBytes 8589934592 step: 2(factor)
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
host:1:1 [0] NCCL INFO Launch mode Parallel
           0             0     float     sum      -1    12.90    0.00    0.00      0    12.87    0.00    0.00      0
     1048576        262144     float     sum      -1    28.56   36.71   64.24      0    28.37   36.96   64.68      0
  4294967296    1073741824     float     sum      -1    15791  271.98  475.97      0    15773  272.29  476.51      0
# Out of bounds values : 0 OK
"""
OLD = "     1048576        262144   float     sum    74.78   14.02   24.54  4e-07    76.17   13.77   24.09    N/A\n"
COUNTS = {  # rows of more than 0 bytes
    "a100_1x8_allgather_superbench.log": 29,
    "a100_1x8_allreduce_superbench.log": 32,
    "a100_2x8_allreduce_oci_bmgpu_b4_8.log": 4,
    "a100_3x8_allreduce_4hdr_issue119_excerpt.log": 6,
    "aic_a100_sxm_nccl2.27.3_perf.csv": 504,
    "aic_h100_sxm_nccl2.29.2_perf.csv": 504,
    "gb200_18x4_allreduce_coreweave.log": 5,
    "gh200_2x4_allreduce_cscs_slingshot.log": 25,
    "h100_1x8_allreduce_aws_p5.log": 32,
    "h100_2x4_allreduce_dgx.log": 31,
    "h100_2x8_allreduce_oci.log": 5,
}


def written(tmp_path: Path, text: str, name: str = "run.log") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", shared_files("nccl-tests", ".log", ".csv"))
def test_every_row_of_a_real_log_is_read(name: str) -> None:
    run = read_run(shared("nccl-tests") / name)
    assert len(run.rows) == COUNTS[name]
    assert {row.nodes for row in run.rows} == {run.facts.nodes}
    assert run.facts.source


def test_a_row_of_the_new_layout_by_hand(tmp_path: Path) -> None:
    path = written(tmp_path, NEW)
    small, large = read_run(path, FACTS).rows
    assert (small.num_bytes, small.gpus, small.dtype, small.place) == (1048576, 8, "fp32", f"{path}:7")
    assert small.duration_s == pytest.approx(28.56e-6)  # out of place
    assert small.algbw_bytes_per_s == pytest.approx(36.71e9, rel=1e-3)  # printed with four digits
    assert small.busbw_bytes_per_s == pytest.approx(64.24e9, rel=1e-3)  # 36.71 * 2 * 7/8
    assert large.kernel() == GroupCollective("all_reduce", 4294967296, 8)


def test_the_old_layout_has_no_root_and_an_error_instead_of_a_count(tmp_path: Path) -> None:
    (row,) = read_run(written(tmp_path, OLD), FACTS).rows
    assert row.num_bytes == 1048576
    assert row.duration_s == pytest.approx(74.78e-6)


@pytest.mark.parametrize("prefix", ["[1,0]<stdout>:", "[1,0]<stderr>: ", "0: "])
def test_a_launchers_prefix_is_not_part_of_the_line(tmp_path: Path, prefix: str) -> None:
    text = "".join(prefix + line + "\n" for line in NEW.splitlines())
    plain = read_run(written(tmp_path, NEW), FACTS).rows
    assert read_run(written(tmp_path, text), FACTS).rows == plain


def test_an_excerpt_without_its_header_is_read(tmp_path: Path) -> None:
    excerpt = NEW.splitlines()[6] + "\n"
    assert len(read_run(written(tmp_path, excerpt), FACTS).rows) == 1


def test_aiconfigurator_counts_elements_and_milliseconds(tmp_path: Path) -> None:
    text = (
        "framework,version,device,op_name,kernel_source,nccl_dtype,num_gpus,message_size,latency\n"
        "TRTLLM,2.27.3,A100,alltoall,NCCL,half,4,1048576,0.02\n"
    )
    (row,) = read_run(written(tmp_path, text, "t.csv"), FACTS).rows
    assert (row.collective, row.num_bytes, row.dtype, row.gpus) == ("all_to_all", 2 * 1048576, "fp16", 4)
    assert row.duration_s == pytest.approx(20e-6)
    # 2 MiB / 20 us = 104.9 GB/s, of which 3/4 leave a rank
    assert row.busbw_bytes_per_s == pytest.approx(2097152 / 20e-6 * 0.75)


def test_half_and_int8_rows_of_the_same_bytes_agree() -> None:
    """The unit of message_size: half at S elements moves the bytes of int8 at 2·S."""
    rows = read_run(shared("nccl-tests") / "aic_a100_sxm_nccl2.27.3_perf.csv").rows
    times = {(r.collective, r.gpus, r.num_bytes, r.dtype): r.duration_s for r in rows if r.num_bytes >= 2**24}
    pairs = [(t, times.get((c, g, b, "int8"))) for (c, g, b, d), t in times.items() if d == "fp16"]
    ratios = sorted(half / int8 for half, int8 in pairs if int8)
    assert 0.9 < ratios[len(ratios) // 2] < 1.1


def test_the_bus_factors_are_those_of_the_nccl_documentation() -> None:
    assert bus_factor("all_reduce", 8) == 2 * 7 / 8
    assert bus_factor("all_gather", 8) == bus_factor("reduce_scatter", 8) == bus_factor("all_to_all", 8) == 7 / 8
    assert bus_factor("broadcast", 8) == bus_factor("send_recv", 8) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NEW.replace("36.71   64.24", "36.71   68.83"), "run.log:7: busbw/algbw is 1.875, but all_reduce on 8 GPUs"),
        (NEW.replace("28.56   36.71", "28.56   18.35"), "run.log:7: algbw 18.35 GB/s, but size/time is 36.71"),
        (NEW.replace("64.24      0", "64.24      3"), "run.log:7: 3 wrong elements"),
        (NEW.replace("   28.56", "    0.00"), "run.log:7: time 0.0 µs"),
        (NEW.replace("   28.56", "     nan"), "run.log:7: not a number: 'nan'"),
        (NEW.replace("float     sum      -1    28.56", "sum      -1    28.56"), "run.log:7: unknown type 'sum'"),
        (NEW + "  8192  2048 oops\n", "run.log:10: not a row of nccl-tests: '8192  2048 oops'"),
        (NEW.replace("(us)", "(ms)"), "run.log:4: unknown units"),
        (NEW + "h: Test NCCL failure common.cu:1 'unhandled system error'\n", "run.log:10: the run failed"),
        (NEW.replace("values : 0 OK", "values : 9 FAILED"), "run.log:9: the run failed"),
        ("no table\n", "no row of a collective"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_run(written(tmp_path, text), FACTS)
    assert message in str(caught.value)


def test_facts_of_another_rank_count_are_contradicted_by_the_numbers(tmp_path: Path) -> None:
    wrong = FACTS.model_copy(update={"gpus_per_node": 4})
    with pytest.raises(SpecError, match=r"busbw/algbw is 1.75, but all_reduce on 4 GPUs gives 1.5; correct nodes"):
        read_run(written(tmp_path, NEW), wrong)


def test_a_log_without_facts_asks_for_them(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no facts: write run.yaml with nodes, gpus_per_node"):
        read_run(written(tmp_path, NEW))


def test_facts_beside_the_log_are_used(tmp_path: Path) -> None:
    facts = "nodes: 1\ngpus_per_node: 8\ngpu: A100\nnics_per_node: null\ncollective: all_reduce\nsource: here\n"
    (tmp_path / "run.yaml").write_text(facts)
    assert read_run(written(tmp_path, NEW)).facts.source == "here"


@given(st.integers(0, len(NEW) - 1), st.characters(codec="utf-8"))
def test_any_changed_character_imports_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, index: int, character: str
) -> None:
    path = written(tmp_path_factory.getbasetemp(), NEW[:index] + character + NEW[index + 1 :])
    message = refusal(lambda: read_run(path, FACTS))
    assert message is None or str(path) in message
