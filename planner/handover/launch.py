"""Launch: an allocation as the commands that start it: a script for torchrun, or one for Slurm (``launch_kubernetes``
makes the third form from the same layout).

Ranks are the cluster file's: node by node, GPU by GPU. torchrun numbers processes the same way if node number i is
started with ``--node-rank i``, so the order of hosts is part of the plan. Every form runs the pre-flight check on
every node before the first process of the plan. What a plan does not know (host names, NIC and interface names,
paths, images) is a placeholder that says so.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from planner.execution import Inputs
from planner.handover.engine_flags import engine_lines
from simulator.allocation import Allocation, digest
from simulator.cluster import Cluster, Node
from simulator.errors import SpecError

MASTER_PORT = 29500  # torchrun's default
TIME_LIMIT = "00:30:00"
NCCL_ALGORITHMS = {"ring": "Ring", "tree": "Tree"}


@dataclass(frozen=True, slots=True)
class Host:
    """A node of the plan: its number, GPUs, first rank, and what its ranks do."""

    number: int
    node: Node
    first_rank: int
    roles: str

    @property
    def ranks(self) -> str:
        return f"{self.first_rank}–{self.first_rank + self.node.gpus - 1}"


@dataclass(frozen=True, slots=True)
class Launch:
    """What every form needs: the plan's digest and name, its hosts in order, and the environment."""

    allocation: Allocation
    cluster: Cluster
    hosts: tuple[Host, ...]
    routed: bool

    @property
    def digest(self) -> str:
        return digest(self.allocation)

    @property
    def world_size(self) -> int:
        return self.cluster.num_ranks

    @property
    def gpus(self) -> tuple[int, ...]:
        """GPUs of every host, in order."""
        return tuple(host.node.gpus for host in self.hosts)


def make_launch(allocation: Allocation, found: Inputs) -> Launch:
    """The layout of a plan on its cluster. SpecError for CPU worlds, which ``plan run`` starts by itself."""
    cluster = found.cluster
    if any(gpu.kind == "cpu" for gpu in cluster.gpus):
        raise SpecError(f"launch: cluster {cluster.name} has CPU devices; plan run starts their processes by itself")
    nodes: dict[int, tuple[Node, int]] = {}
    for rank, (number, _, node) in enumerate(cluster.rank_nodes()):
        nodes.setdefault(number, (node, rank))
    hosts = tuple(
        Host(number, node, first, _roles(allocation, range(first, first + node.gpus)))
        for number, (node, first) in nodes.items()
    )
    return Launch(allocation, cluster, hosts, any(layer.routed for layer in found.model.layers))


def _roles(allocation: Allocation, ranks: range) -> str:
    """What these ranks do in any entry of the policy."""
    attention: set[int] = set()
    feed_forward: set[int] = set()
    for choice in allocation.policy:
        for stage in choice.placement.stages:
            attention.update(stage.attention_ranks)
            feed_forward.update(stage.feed_forward_ranks)
    names = [
        name
        for name, group in (
            ("attention and feed-forward", attention & feed_forward),
            ("attention", attention - feed_forward),
            ("feed-forward", feed_forward - attention),
            ("idle", set(ranks) - attention - feed_forward),
        )
        if group & set(ranks)
    ]
    return " / ".join(names)


def nccl_environment(launch: Launch) -> tuple[tuple[str, str, str], ...]:
    """(variable, value, why): what follows from the cluster file. Names of devices are placeholders."""
    found = [("NCCL_DEBUG", "WARN", "errors only")]
    algorithms = {choice.placement.all_reduce for choice in launch.allocation.policy}
    if len(algorithms) == 1 and (only := algorithms.pop()) in NCCL_ALGORITHMS:
        found.append(("NCCL_ALGO", NCCL_ALGORITHMS[only], "the plan's all-reduce"))
    nics = launch.hosts[0].node.nics
    if len(launch.hosts) == 1 or nics is None:
        return (*found, ("NCCL_IB_DISABLE", "1", "one node: nothing leaves it"))
    names = ",".join(f"mlx5_{number}" for number in range(nics.count))
    rails = launch.cluster.fabric.rails and nics.count > 1
    found += [
        ("NCCL_IB_HCA", names, f"placeholder: this site's names of the {nics.count} NICs a node the plan counts on"),
        ("NCCL_SOCKET_IFNAME", "eth0", "placeholder: this site's interface for start-up messages"),
    ]
    if rails:
        found.append(("NCCL_CROSS_NIC", "0", "rails: NIC i of every node is on leaf i, so rings stay on one rail"))
    return tuple(found)


def header(launch: Launch) -> list[str]:
    """Comment lines: what is started, who does what where, and the engines' equivalents."""
    plan = launch.allocation
    lines = [
        f"# attnplan: {plan.name}, {plan.model} on {plan.cluster}",
        f"# {launch.world_size} ranks on {len(launch.hosts)} nodes",
        f"# allocation sha256 {launch.digest}",
        "# Nodes in this order (their number is part of the plan):",
    ]
    lines += [f"#   node {h.number}: ranks {h.ranks} on {h.node.gpus} × {h.node.gpu}: {h.roles}" for h in launch.hosts]
    lines.append("# The same layout elsewhere:")
    lines += [f"#   {line}" for line in engine_lines(plan, routed=launch.routed)]
    return lines


def exports(launch: Launch) -> list[str]:
    """``export`` lines that a value from outside overrides."""
    return [f'export {name}="${{{name}:-{value}}}"  # {why}' for name, value, why in nccl_environment(launch)]


def preflight(launch: Launch, node: str) -> str:
    """The check that runs on every node first; ``node`` is a shell expression of its number."""
    return (
        f'python -m planner.handover.preflight "$ALLOCATION" --digest {launch.digest} '
        f"--nodes {len(launch.hosts)} --world {launch.world_size} --node {node}"
    )


def torchrun(launch: Launch, node: str, gpus: str) -> str:
    """The torchrun command of one node; ``node`` and ``gpus`` are shell expressions."""
    run = '-m planner.cli run "$ALLOCATION" --on cuda -o "$OUTPUT"'
    if len(launch.hosts) == 1:
        return f"torchrun --standalone --nproc-per-node={gpus} {run}"
    return (
        f"torchrun --nnodes={len(launch.hosts)} --node-rank={node} --nproc-per-node={gpus} "
        f'--master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT" {run}'
    )


def torchrun_script(launch: Launch, path: str) -> str:
    """A script that runs on every node, with NODE_RANK and MASTER_ADDR set there; alone on one node."""
    several = len(launch.hosts) > 1
    last = len(launch.hosts) - 1
    ask = [
        f': "${{NODE_RANK:?number of this node, 0 to {last}, in the order above}}"',
        ': "${MASTER_ADDR:?host name of node 0}"',
        f'MASTER_PORT="${{MASTER_PORT:-{MASTER_PORT}}}"',
    ]
    lines = [
        "#!/usr/bin/env bash",
        *header(launch),
        *(["# Run this script on every node at the same time."] if several else []),
        "set -euo pipefail",
        *_variables(path),
        *(ask if several else ["NODE_RANK=0"]),
        f"GPUS=({' '.join(map(str, launch.gpus))})",
        *exports(launch),
        preflight(launch, '"$NODE_RANK"'),
        "exec " + torchrun(launch, '"$NODE_RANK"', '"${GPUS[$NODE_RANK]}"'),
    ]
    return "\n".join(lines) + "\n"


def slurm_script(launch: Launch, path: str) -> str:
    """An sbatch script: the check on every node, then torchrun on every node."""
    same = len(set(launch.gpus)) == 1
    num_nodes = len(launch.hosts)
    lines = [
        "#!/usr/bin/env bash",
        f"#SBATCH --job-name=attnplan-{launch.allocation.name}",
        f"#SBATCH --nodes={num_nodes}",
        f"#SBATCH --ntasks={num_nodes}",
        "#SBATCH --ntasks-per-node=1",
        *([f"#SBATCH --gpus-per-node={launch.gpus[0]}"] if same else []),
        "#SBATCH --exclusive",
        f"#SBATCH --time={TIME_LIMIT}",
        "#SBATCH --output=attnplan-%j.log",
        *header(launch),
        *_mixed_note(launch),
        "set -euo pipefail",
        *_variables(path),
        f"export GPUS={shlex.quote(' '.join(map(str, launch.gpus)))}",
        "# Slurm numbers nodes in the order of this list.",
        'MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)"',
        f'MASTER_PORT="${{MASTER_PORT:-{MASTER_PORT}}}"',
        "export MASTER_ADDR MASTER_PORT",
        *exports(launch),
        "srun --kill-on-bad-exit=1 bash -c " + shlex.quote(preflight(launch, '"$SLURM_NODEID"')),
        "srun --kill-on-bad-exit=1 bash -c "
        + shlex.quote('GPUS=($GPUS); exec ' + torchrun(launch, '"$SLURM_NODEID"', '"${GPUS[$SLURM_NODEID]}"')),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _variables(path: str) -> list[str]:
    return [
        f"PLANNED={shlex.quote(path)}",
        'export ALLOCATION="${ALLOCATION:-$PLANNED}"  # must be readable on every node',
        'export OUTPUT="${OUTPUT:-measurement.json}"',
    ]


def _mixed_note(launch: Launch) -> list[str]:
    if len({(host.node.gpu, host.node.gpus) for host in launch.hosts}) == 1:
        return []
    return ["# Unlike nodes: list the hosts in the order above in SLURM_HOSTFILE and add --distribution=arbitrary."]
