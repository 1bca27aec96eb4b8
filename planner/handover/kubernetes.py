"""A launch as a Kubernetes JobSet (jobset.x-k8s.io/v1alpha2): one Indexed Job a kind of node, one pod a node.

A pod takes all GPUs of its node, so no two share one; its number is its Job's first node plus its completion index.
The allocation comes from a ConfigMap (``kubectl create configmap NAME --from-file=allocation.json``). Image, RDMA
resource and interface names are the site's: placeholders. Source: kubernetes-sigs/jobset, its examples.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from planner.handover.launch import MASTER_PORT, Host, Launch, header, nccl_environment, preflight, torchrun
from simulator.errors import SpecError

IMAGE = "REGISTRY/attnplan:TAG"
FOLDER = "/etc/attnplan"
GPU_PRODUCTS = {  # nvidia.com/gpu.product, as the GPU feature discovery labels nodes
    "A100-SXM4-80GB": "NVIDIA-A100-SXM4-80GB",
    "H100-SXM": "NVIDIA-H100-80GB-HBM3",
    "H200-SXM": "NVIDIA-H200",
}
MOST_NAME = 40  # pods append "-nodes0-0-0-xxxxx" and must stay below 63
MOST_BYTES = 1_000_000  # a ConfigMap holds 1 MiB


def jobset(launch: Launch, allocation_bytes: int) -> str:
    """The manifest. SpecError if the allocation does not fit a ConfigMap."""
    if allocation_bytes > MOST_BYTES:
        raise SpecError(
            f"launch: the allocation has {allocation_bytes} bytes, a ConfigMap holds {MOST_BYTES}; use Slurm"
        )
    name = name_of(launch)
    notes = [
        *header(launch),
        f"# First: kubectl create configmap {name} --from-file=allocation.json",
        f"# Placeholders: image {IMAGE}; NCCL_IB_HCA and NCCL_SOCKET_IFNAME; the RDMA resource of your device plug-in",
        "# (add it to limits beside nvidia.com/gpu) or hostNetwork.",
    ]
    return "\n".join(notes) + "\n" + yaml.dump(manifest(launch), Dumper=_Dumper, sort_keys=False, width=1000)


def name_of(launch: Launch) -> str:
    """A DNS label."""
    clean = re.sub(r"[^a-z0-9]+", "-", f"attnplan-{launch.allocation.name}".lower()).strip("-")
    return clean[:MOST_NAME].rstrip("-")


def manifest(launch: Launch) -> dict[str, Any]:
    """The JobSet as plain values."""
    name = name_of(launch)
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "attnplan"}},
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": name, "publishNotReadyAddresses": True},
            "failurePolicy": {"maxRestarts": 0},
            "replicatedJobs": [_job(launch, number, hosts) for number, hosts in enumerate(_kinds(launch))],
        },
    }


def _kinds(launch: Launch) -> list[list[Host]]:
    """Hosts in order, split where the kind of node changes."""
    found: list[list[Host]] = []
    for host in launch.hosts:
        if found and found[-1][-1].node is host.node:
            found[-1].append(host)
        else:
            found.append([host])
    return found


def _job(launch: Launch, number: int, hosts: list[Host]) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "containers": [_container(launch, hosts)],
        "volumes": [
            {"name": "allocation", "configMap": {"name": name_of(launch)}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
    }
    if hosts[0].node.gpu in GPU_PRODUCTS:
        pod["nodeSelector"] = {"nvidia.com/gpu.product": GPU_PRODUCTS[hosts[0].node.gpu]}
    job = {
        "completionMode": "Indexed",
        "completions": len(hosts),
        "parallelism": len(hosts),
        "backoffLimit": 0,
        "template": {"spec": pod},
    }
    return {"name": f"nodes{number}", "replicas": 1, "template": {"spec": job}}


def _container(launch: Launch, hosts: list[Host]) -> dict[str, Any]:
    name, gpus = name_of(launch), hosts[0].node.gpus
    variables = {
        "ALLOCATION": f"{FOLDER}/allocation.json",
        "OUTPUT": "/tmp/measurement.json",
        "MASTER_ADDR": f"{name}-nodes0-0-0.{name}",
        "MASTER_PORT": str(MASTER_PORT),
        **{variable: value for variable, value, _ in nccl_environment(launch)},
    }
    script = "\n".join(
        [
            "set -euo pipefail",
            f"NODE_RANK=$(({hosts[0].number} + JOB_COMPLETION_INDEX))",
            preflight(launch, '"$NODE_RANK"'),
            torchrun(launch, '"$NODE_RANK"', str(gpus)),
            'cat "$OUTPUT"',
            "",
        ]
    )
    return {
        "name": "attnplan",
        "image": IMAGE,
        "command": ["bash", "-c", script],
        "env": [{"name": variable, "value": value} for variable, value in variables.items()],
        "resources": {"limits": {"nvidia.com/gpu": gpus}},
        "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}},
        "volumeMounts": [
            {"name": "allocation", "mountPath": FOLDER, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }


class _Dumper(yaml.SafeDumper):
    """Scripts as literal blocks."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
