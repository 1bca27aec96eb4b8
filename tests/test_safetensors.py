"""Model directories in Hugging Face's layout: read by slices, computed as transformers does, refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from executor.mailboxes import MailboxTransport, Post, Turns
from executor.reference import Reference
from executor.replay import NoProgress
from executor.safetensors_source import INDEX, SafetensorsSource
from executor.sampling import Sampling, chooser
from executor.session import Generation, Session, prompts_of
from executor.supervisor import Supervisor
from simulator.errors import SpecError
from simulator.formats import hf_config
from simulator.model import Model
from simulator.placement import AttentionGrid
from simulator.weight_names import Naming, file_shapes
from tests.executor_world import generation_of, replayed, run_on
from tests.schemes import context_parallel, pooled, static

BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 120,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "max_position_embeddings": 256,
    "torch_dtype": "float32",
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True, "num_key_value_heads": 8},
    "llama-3.1": {
        "model_type": "llama",
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "llama-stretched": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.5}},
    "mistral": {"model_type": "mistral", "head_dim": 16, "sliding_window": 6},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 40,
        "norm_topk_prob": True,
    },
}


def write(directory: Path, family: str, *, shards: int = 2, dtype: torch.dtype = torch.float32) -> Model:
    """A random model directory; its tensors over ``shards`` files with an index."""
    directory.mkdir(exist_ok=True)
    config = {**BASE, **FAMILIES[family], "architectures": ["X"]}
    (directory / "config.json").write_text(json.dumps(config))
    model = hf_config.load(directory / "config.json")
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in file_shapes(model, Naming(mixtral=family == "mixtral")).items():
        noise = torch.randn(shape, generator=generator)
        tensors[name] = (1 + 0.1 * noise if "norm" in name else noise * shape[-1] ** -0.5).to(dtype)
    save(directory, tensors, shards)
    return model


def save(directory: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    places = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        part = {name: tensor for name, tensor in tensors.items() if places[name] == file}
        save_file(part, str(directory / file), metadata={"format": "pt"})
    if shards > 1:
        (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")
    model = write(tmp_path, family)
    tokens = torch.randint(120, (2, 20), generator=torch.Generator().manual_seed(1))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.inference_mode():
        want = theirs(tokens).logits[:, -1]
    ours = Reference(model, source=SafetensorsSource(tmp_path, model)).logits(list(tokens)).float()
    assert (ours - want).abs().max() <= 1e-4 * want.abs().max()


@pytest.mark.parametrize("family", ["llama-tied", "llama-3.1", "mixtral", "qwen2", "qwen3_moe"])
def test_every_placement_computes_the_directorys_model(family: str, tmp_path: Path) -> None:
    model = write(tmp_path, family)
    reference = Reference(model, source=SafetensorsSource(tmp_path, model))
    for placement in (static(model, 3), pooled(model, 2, AttentionGrid(heads=(3, 5), query_blocks=2))):
        generation = replace(generation_of(model, placement, world=8), weights=str(tmp_path))
        want = reference.generate(prompts_of(generation), len(generation.programs))
        assert [list(row) for row in replayed(generation).measurement.generated] == want
    seeded = Reference(model).generate(prompts_of(generation), len(generation.programs))
    assert seeded != want


def test_a_rank_reads_its_slices_and_nothing_else(tmp_path: Path) -> None:
    model = write(tmp_path, "llama", shards=3, dtype=torch.bfloat16)
    generation = replace(generation_of(model, static(model, 2), num_decoded=0), weights=str(tmp_path))
    session = rank_of(generation, 1)
    source = session.interpreter.rank.weights.source
    assert isinstance(source, SafetensorsSource)
    norms = (2 * model.num_layers + 1) * model.hidden_size
    assert source.read_bytes == 2 * (model.num_parameters() // 2 + norms)  # bf16: half of every matrix, all norms


def rank_of(generation: Generation, rank: int) -> Session:
    transport = MailboxTransport(rank, Post(), Turns(0))
    return Session(generation, rank, transport, NoProgress(), device=torch.device("cpu"))


def test_one_file_without_an_index_and_buffers_of_older_files_are_fine(tmp_path: Path) -> None:
    model = write(tmp_path, "llama", shards=1)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(extra, str(tmp_path / "more.safetensors"))
    assert SafetensorsSource(tmp_path, model).vector("final_norm", 0, 3).shape == (3,)


def refused(directory: Path, model: Model) -> str:
    with pytest.raises(SpecError) as found:
        SafetensorsSource(directory, model)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_what_is_not_this_model_is_refused_in_one_line(tmp_path: Path) -> None:
    model = write(tmp_path, "llama", shards=1)
    assert "hidden_size is 64; the plan's model config has 32" in refused(
        tmp_path, model.model_copy(update={"hidden_size": 32, "name": "config"})
    )
    save_file({"model.layers.0.mlp.fused.weight": torch.ones(2)}, str(tmp_path / "more.safetensors"))
    assert "tensor 'model.layers.0.mlp.fused.weight' is unknown" in refused(tmp_path, model)
    save_file({"model.norm.weight": torch.ones(3)}, str(tmp_path / "more.safetensors"))
    assert "has shape [3]; model" in refused(tmp_path, model)
    save_file({"model.norm.weight": torch.ones(64, dtype=torch.int8)}, str(tmp_path / "more.safetensors"))
    assert "is I8; known: F32, BF16, F16" in refused(tmp_path, model)


def test_broken_directories_are_refused_in_one_line(tmp_path: Path) -> None:
    model = write(tmp_path, "llama", shards=2)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    assert "download the file again" in refused(tmp_path, model)
    shard.unlink()
    assert "is not a file in" in refused(tmp_path, model)
    (tmp_path / INDEX).write_text('{"weight_map": {"lm_head.weight": "../../secret.safetensors"}}')
    assert "'../../secret.safetensors' is not a file in" in refused(tmp_path, model)
    (tmp_path / INDEX).write_text('{"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}')
    assert "is missing" in refused(tmp_path, model)
    (tmp_path / INDEX).write_text("[]")
    assert "weight_map: not a mapping" in refused(tmp_path, model)
    (tmp_path / "config.json").unlink()
    assert "config.json: missing" in refused(tmp_path, model)
    assert "no *.safetensors" in refused_without_weights(tmp_path)


def refused_without_weights(tmp_path: Path) -> str:
    model = write(tmp_path / "bare", "llama", shards=1)
    for file in (tmp_path / "bare").glob("*.safetensors"):
        file.unlink()
    return refused(tmp_path / "bare", model)


def test_numbers_the_model_does_not_describe_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "llama")
    config = {**BASE, "model_type": "llama", "rope_scaling": {"rope_type": "yarn", "factor": 8.0}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "rotary scaling 'yarn'" in refused(tmp_path, hf_config.load(tmp_path / "config.json"))
    write(tmp_path, "qwen3_moe")
    config = {**BASE, **FAMILIES["qwen3_moe"], "norm_topk_prob": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "norm_topk_prob" in refused(tmp_path, hf_config.load(tmp_path / "config.json"))


def test_context_parallel_ranks_share_a_directory(tmp_path: Path) -> None:
    model = write(tmp_path, "llama", shards=1)
    generation = replace(generation_of(model, context_parallel(model, 2, 2)), weights=str(tmp_path))
    want = Reference(model, source=SafetensorsSource(tmp_path, model)).generate(prompts_of(generation), 4)
    assert [list(row) for row in replayed(generation).measurement.generated] == want


def test_processes_load_a_directory_and_draw_the_references_tokens(world: Supervisor, tmp_path: Path) -> None:
    model = write(tmp_path, "mixtral")
    drawn = Sampling(temperature=0.9, top_k=30, seed=5)
    generation = replace(generation_of(model, static(model, 4)), weights=str(tmp_path), sampling=drawn)
    reference = Reference(model, source=SafetensorsSource(tmp_path, model))
    want = reference.generate(prompts_of(generation), len(generation.programs), choose=chooser(drawn))
    assert [list(row) for row in run_on(world, generation).measurement.generated] == want
