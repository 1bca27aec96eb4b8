"""``nvidia-smi topo -m``: real matrices become clusters, unknown facts are asked for, nonsense is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import presets
from simulator.errors import SpecError
from simulator.formats.topo import TopoOptions, from_topo, read_matrix
from tests.shared_data import refusal, shared, shared_files

A100 = presets.gpus()["A100-SXM4-80GB"]
FULL = TopoOptions(A100, nic_bandwidth_bytes_per_s=25e9, pcie_bandwidth_bytes_per_s=25e9)
# file: GPUs, link kind, each GPU's bytes/s each way, NICs
EXPECTED = {
    "2gpu_nv2_spaces.txt": (2, "pairwise", 2 * 25e9, None),
    "2x_rtxpro6000_pcie_node.txt": (2, "pcie", 25e9, None),
    "4gpu_pairwise_nv3_4mlx5.txt": (4, "pcie", 25e9, 4),  # NVLink joins two pairs only
    "8xa100_2mlx5_indented.txt": (8, "switch", 12 * 25e9, 2),
    "8xh100_spaces_stas.txt": (8, "switch", 18 * 25e9, None),
    "8xh100_vm_nonic.txt": (8, "switch", 18 * 25e9, None),
    "a100_sxm4_4gpu_1nic.txt": (4, "switch", 12 * 25e9, 1),
    "a100_sxm4_4gpu_nonic.txt": (4, "switch", 12 * 25e9, None),
    "aws_p4_8xa100_nonic.txt": (8, "switch", 12 * 25e9, None),
    "dgx_a100_12mlx5.txt": (8, "switch", 12 * 25e9, 8),  # four more are storage ports
}
DIRECT = (  # HGX A100 4-GPU: four links to each of three peers
    "\tGPU0\tGPU1\tGPU2\tGPU3\tmlx5_0\tCPU Affinity\tNUMA Affinity\n"
    "GPU0\t X \tNV4\tNV4\tNV4\tPXB\t0-31\t0\n"
    "GPU1\tNV4\t X \tNV4\tNV4\tPXB\t0-31\t0\n"
    "GPU2\tNV4\tNV4\t X \tNV4\tSYS\t32-63\t1\n"
    "GPU3\tNV4\tNV4\tNV4\t X \tSYS\t32-63\t1\n"
    "mlx5_0\tPXB\tPXB\tSYS\tSYS\t X \n"
    "\nLegend:\n\n  X    = Self\n"
)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "topo.txt"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", shared_files("topo", ".txt"))
def test_a_real_matrix_becomes_a_cluster(name: str) -> None:
    cluster = from_topo(shared("topo") / name, FULL)
    node = cluster.nodes[0]
    nics = node.nics.count if node.nics else None
    assert (node.gpus, node.link.kind, node.link.bandwidth_bytes_per_s, nics) == EXPECTED[name]


def test_direct_links_add_up_over_the_peers(tmp_path: Path) -> None:
    cluster = from_topo(written(tmp_path, DIRECT), FULL)
    assert cluster.nodes[0].link.kind == "pairwise"
    assert cluster.nodes[0].link.bandwidth_bytes_per_s == 3 * 4 * 25e9
    assert cluster.assumptions[0] == "12 NVLinks a GPU, wired directly, 25e9 B/s each way a link = 300e9 B/s"


def test_terminal_colours_are_not_part_of_the_matrix(tmp_path: Path) -> None:
    coloured = DIRECT.replace("GPU0\tGPU1", "\x1b[4mGPU0\tGPU1", 1).replace("Affinity\n", "Affinity\x1b[0m\n", 1)
    assert read_matrix(written(tmp_path, coloured)) == read_matrix(written(tmp_path, DIRECT))


def test_pairs_of_nvlink_are_planned_at_the_pcie_rate_and_the_cluster_says_so() -> None:
    cluster = from_topo(shared("topo") / "4gpu_pairwise_nv3_4mlx5.txt", FULL)
    expected = "NVLink joins only GPU0-GPU1, GPU2-GPU3; every pair is planned at the PCIe rate"
    assert cluster.assumptions[0] == expected


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (DIRECT, TopoOptions(A100), "1 NICs of unknown rate: state nic_bandwidth_bytes_per_s"),
        (DIRECT.replace("NV4", "NODE"), TopoOptions(A100), "the GPUs' links are NODE: state pcie_bandwidth"),
        ("\tGPU0\tGPU1\nGPU0\tX\tNV2\nGPU1\tNV2\tX\n", TopoOptions(A100, 2), "no NIC is listed for 2 nodes"),
    ],
)
def test_a_fact_that_the_matrix_lacks_is_asked_for(
    tmp_path: Path, text: str, options: TopoOptions, message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        from_topo(written(tmp_path, text), options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing here\n", "no header line that begins with GPU0"),
        (DIRECT.replace("GPU1\tNV4", "GPU1\tNV5", 1), "topo.txt:2: GPU0 to GPU1 is NV4, back it is NV5"),
        (
            DIRECT.replace("NV4\tNV4\t X \tNV4\tSYS", "NV4\tNV4\t X \tFOO\tSYS"),
            "topo.txt:4: GPU2 to GPU3: unknown 'FOO'",
        ),
        (DIRECT.replace("GPU2\tNV4", "GPU9\tNV4", 1), "topo.txt:4: 'GPU9' where the row of GPU2 belongs"),
        ("\n".join(DIRECT.splitlines()[:3]), "the row of GPU2 is missing"),
        (DIRECT.replace("mlx5_0\tPXB\tPXB\tSYS\tSYS\t X ", "mlx5_0\tPXB"), "topo.txt:6: 1 entries for 5 devices"),
        (DIRECT.replace("\tGPU1\t", "\tGPU0\t", 1), "not a header of at most 256 different devices"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_matrix(written(tmp_path, text))
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_an_option_is_a_finite_number_above_zero(value: float) -> None:
    with pytest.raises(SpecError, match="nic_bandwidth_bytes_per_s: not a finite number above 0"):
        TopoOptions(A100, nic_bandwidth_bytes_per_s=value)


@given(st.integers(0, len(DIRECT) - 1), st.characters(codec="utf-8"))
def test_any_changed_character_imports_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, index: int, character: str
) -> None:
    path = written(tmp_path_factory.getbasetemp(), DIRECT[:index] + character + DIRECT[index + 1 :])
    message = refusal(lambda: from_topo(path, FULL))
    assert message is None or str(path) in message
