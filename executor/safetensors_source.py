"""Safetensors: a Llama- or Mixtral-style model directory (``config.json``, ``*.safetensors``) as a source of weights.

A rank reads only the slices its operations use, from whichever shard holds them: nothing is loaded whole. Tensors are
[outputs, inputs] in the file and [inputs, outputs] here. Every name, shape and dtype is checked before anything is
read, and what ``Model`` does not say about the numbers (rotary scaling, unnormalised gates, …) is refused.
Source: the modelling files of transformers 5 for llama, mistral, mixtral, qwen2, qwen3, qwen3_moe, deepseek.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simulator.errors import SpecError
from simulator.formats import hf_config
from simulator.formats.files import parse
from simulator.model import Model
from simulator.program import WeightSlice
from simulator.weight_names import Naming, file_shapes

DTYPES = {"F32": 4, "BF16": 2, "F16": 2}  # bytes an element
NO_EFFECT = (re.compile(r"\.rotary_emb\.inv_freq$"),)  # buffers that older files carry
HARMLESS = ("the file names no torch_dtype",)
"""Of ``Model.assumptions``: those that leave every number as it is."""
SAME = ("name", "source", "assumptions", "weight_dtype", "max_position_embeddings", "experts")
"""Fields in which the planned model and the directory's may differ (of experts: the capacity factor only)."""


class SafetensorsSource:
    """The tensors of a model directory. Raises SpecError in one line for what it cannot use.

    ``read_bytes``: what was read so far, of the files' own dtypes.
    """

    def __init__(self, directory: Path, model: Model) -> None:
        from safetensors import SafetensorError, safe_open

        config = directory / "config.json"
        if not config.is_file():
            raise SpecError(f"{directory}: config.json: missing; name a model directory with config.json and weights")
        check_model(config, model)
        self.directory, self.model = directory, model
        self.files: dict[str, Any] = {}
        self.place = _places(directory)
        try:
            for name in sorted(set(self.place.values())):
                self.files[name] = safe_open(str(directory / name), framework="pt", device="cpu")
            if not (directory / INDEX).is_file():
                self.place = {tensor: name for name, file in self.files.items() for tensor in file.keys()}  # noqa: SIM118
            self.naming = Naming.of(model, self.place)
            self._check()
        except (SafetensorError, OSError) as error:
            raise SpecError(f"{directory}: {str(error).splitlines()[0][:200]}; download the file again") from error
        self.read_bytes = 0

    def _check(self) -> None:
        """Every tensor known, present, and of the shape the model gives it."""
        wanted = file_shapes(self.model, self.naming)
        for name in sorted(self.place):
            tied = name == "lm_head.weight" and self.model.tie_word_embeddings
            if name not in wanted and not tied and not any(pattern.search(name) for pattern in NO_EFFECT):
                raise SpecError(
                    f"{self.directory}: tensor {name!r} is unknown to model {self.model.name}; not modelled"
                )
        for name, shape in wanted.items():
            if name not in self.place:
                raise SpecError(f"{self.directory}: tensor {name!r} is missing; download every shard")
            found = self._slice(name)
            if tuple(found.get_shape()) != shape:
                raise SpecError(
                    f"{self.directory}: tensor {name!r} has shape {list(found.get_shape())}; "
                    f"model {self.model.name} needs {list(shape)}"
                )
            if found.get_dtype() not in DTYPES:
                raise SpecError(
                    f"{self.directory}: tensor {name!r} is {found.get_dtype()}; known: {', '.join(DTYPES)}; "
                    "convert the weights"
                )

    def _slice(self, name: str) -> Any:
        try:
            return self.files[self.place[name]].get_slice(name)
        except Exception as error:  # the index names a file that lacks the tensor
            raise SpecError(
                f"{self.directory}: {self.place[name]}: tensor {name!r} is missing; {INDEX} says"
            ) from error

    @property
    def tied_head(self) -> bool:
        return self.model.tie_word_embeddings

    def matrix(self, part: WeightSlice) -> Tensor:
        """[inputs, outputs] in fp32."""
        name = "embed" if part.name == "lm_head" and self.model.tie_word_embeddings else part.name
        found = self._slice(self.naming.file_name(name))
        self._count(found, (part.inputs[1] - part.inputs[0]) * (part.outputs[1] - part.outputs[0]))
        rows, columns = (part.inputs, part.outputs) if part.name == "embed" else (part.outputs, part.inputs)
        cut: Tensor = found[slice(*rows), slice(*columns)].to(torch.float32)
        return cut if part.name == "embed" else cut.T

    def vector(self, name: str, start: int, stop: int) -> Tensor:
        found = self._slice(self.naming.file_name(name))
        self._count(found, stop - start)
        cut: Tensor = found[start:stop].to(torch.float32)
        return cut

    def _count(self, found: Any, elements: int) -> None:
        self.read_bytes += elements * DTYPES[found.get_dtype()]


INDEX = "model.safetensors.index.json"


def _places(directory: Path) -> dict[str, str]:
    """Tensor → file, of the index; without one, file → file of the only weights there are."""
    index = directory / INDEX
    if index.is_file():
        value = parse(index)
        places = value.get("weight_map") if isinstance(value, Mapping) else None
        if not isinstance(places, Mapping) or not all(isinstance(file, str) for file in places.values()):
            raise SpecError(f"{index}: weight_map: not a mapping of tensors to files")
        for file in sorted(set(places.values())):
            if Path(file).name != file or len(file.encode(errors="replace")) > 255 or not (directory / file).is_file():
                raise SpecError(f"{index}: weight_map: {file!r} is not a file in {directory}; download every shard")
        return dict(places)
    files = sorted(path.name for path in directory.glob("*.safetensors"))
    if not files:
        raise SpecError(f"{directory}: no *.safetensors; convert the weights, or give their directory")
    return {name: name for name in files}


def check_model(config: Path, model: Model) -> None:
    """The directory's model must be the planned one, and computed as its config says."""
    theirs = hf_config.load(config)
    for field in type(model).model_fields:
        ours, other = getattr(model, field), getattr(theirs, field)
        if field == "experts" and ours is not None and other is not None:
            ours = ours.model_copy(update={"capacity_factor": None})
        if ours != other and (field == "experts" or field not in SAME):
            raise SpecError(f"{config}: {field} is {_short(other)}; the plan's model {model.name} has {_short(ours)}")
    for assumption in theirs.assumptions:
        if not any(harmless in assumption for harmless in HARMLESS):
            raise SpecError(f"{config}: real weights need the model as it is, but {assumption}")
    values = parse(config)
    normalised = values.get("norm_topk_prob", values.get("model_type") in ("mixtral", "minimax_m2"))
    if theirs.experts is not None and theirs.experts.top_k > 1 and not normalised:
        raise SpecError(f"{config}: norm_topk_prob: gates that do not sum to one are not modelled")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
