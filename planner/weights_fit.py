"""Weights fit: the least bytes of weights that a candidate's fullest rank holds, before anything is lowered.

Layers' matrices over the ranks that share them: tensor × stages (× replicas, where experts are dealt to them); a base
holds all of its model, MA Separation's expert ranks all experts. Left out: tables, norms, caches, activations.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from planner.candidate import Scheme, Table, rows
from planner.question import Question
from simulator.units import DTYPE_BYTES


def least_weight_bytes(question: Question, table: Table) -> npt.NDArray[np.float64]:
    """Bytes per candidate; a lower bound on its fullest rank's."""
    model = question.model
    experts = sum(_expert_parameters(question) for layer in model.layers if layer.routed)
    rest = model.layer_parameters() - experts
    shards = (table["tensor"] * table["stages"]).astype(np.float64)
    spread = shards * np.where(table["scheme"] == Scheme.CONTEXT, table["replicas"], 1)
    together = rest / shards + experts / spread
    apart = experts / np.maximum(table["experts"], 1)
    parameters = np.where(table["scheme"] == Scheme.SEPARATED, apart, together)
    return np.asarray(parameters * DTYPE_BYTES[model.weight_dtype])


def _expert_parameters(question: Question) -> int:
    model, experts = question.model, question.model.experts
    assert experts is not None
    return (3 if model.gated else 2) * model.hidden_size * experts.num_experts * experts.intermediate_size


def fitting(question: Question, table: Table) -> Table:
    """The candidates whose weights can fit the largest device; where none can, the one that lacks least."""
    least = least_weight_bytes(question, table)
    fits = least <= _most_bytes(question)
    return np.asarray(table[fits] if fits.any() else table[[int(np.argmin(least))]])


def fits_alone(question: Question, base: int) -> bool:
    """Whether a base of so many ranks can hold the model."""
    return bool(least_weight_bytes(question, rows(Scheme.POOL, 1, tensor=base))[0] <= _most_bytes(question))


def _most_bytes(question: Question) -> int:
    used = {node.gpu for node in question.cluster.nodes}
    return max(gpu.memory_bytes for gpu in question.cluster.gpus if gpu.name in used)
