"""Weight names: what a model's tensors are called here and in Hugging Face's files, and their shapes there.

    embed, lm_head, final_norm                        model.embed_tokens, lm_head, model.norm
    layers.N.attention.{q,k,v,o}, .q.bias, .q_norm    model.layers.N.self_attn.{q,k,v,o}_proj, .q_norm
    layers.N.{attention,feed_forward}_norm            model.layers.N.{input,post_attention}_layernorm
    layers.N.feed_forward.{gate,up,down}              model.layers.N.mlp.{gate,up,down}_proj
    layers.N.router                                   ….mlp.gate                    ….block_sparse_moe.gate
    layers.N.experts.E.{gate,up,down}                 ….experts.E.{…}_proj          ….experts.E.{w1,w3,w2}
    layers.N.shared.{gate,up,down}                    ….mlp.shared_experts.{…}_proj

Source: transformers 5, the modelling files of llama, mixtral, qwen3_moe and deepseek.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from simulator.model import Model

ENDS = {"embed": "model.embed_tokens.weight", "lm_head": "lm_head.weight", "final_norm": "model.norm.weight"}
NORMS = {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}
MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}
PARTS = ("gate", "up", "down")


@dataclass(frozen=True, slots=True)
class Naming:
    """Which of the two expert layouts a file uses."""

    mixtral: bool = False

    @classmethod
    def of(cls, model: Model, names: Iterable[str]) -> Naming:
        return cls(mixtral=model.experts is not None and any(".block_sparse_moe." in name for name in names))

    def file_name(self, name: str) -> str:
        """Ours → the file's."""
        if name in ENDS:
            return ENDS[name]
        _, layer, *rest = name.split(".")
        return f"model.layers.{layer}.{self._inside(rest)}"

    def _inside(self, rest: list[str]) -> str:
        match rest:
            case [norm] if norm in NORMS:
                return f"{NORMS[norm]}.weight"
            case ["attention", ("q_norm" | "k_norm") as norm]:
                return f"self_attn.{norm}.weight"
            case ["attention", which]:
                return f"self_attn.{which}_proj.weight"
            case ["attention", which, "bias"]:
                return f"self_attn.{which}_proj.bias"
            case ["feed_forward", part]:
                return f"mlp.{part}_proj.weight"
            case ["shared", part]:
                return f"mlp.shared_experts.{part}_proj.weight"
            case ["router"]:
                return f"{self._block}.gate.weight"
            case ["experts", expert, part]:
                return f"{self._block}.experts.{expert}.{MIXTRAL[part] if self.mixtral else f'{part}_proj'}.weight"
        raise LookupError(f"no tensor is called {'.'.join(rest)!r}")

    @property
    def _block(self) -> str:
        return "block_sparse_moe" if self.mixtral else "mlp"


def file_shapes(model: Model, naming: Naming) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model under its file's name, with its shape there ([outputs, inputs])."""
    hidden, width = model.hidden_size, model.num_attention_heads * model.head_dim
    shapes: dict[str, tuple[int, ...]] = {"embed": (model.vocab_size, hidden), "final_norm": (hidden,)}
    if not model.tie_word_embeddings:
        shapes["lm_head"] = (model.vocab_size, hidden)
    for number, layer in enumerate(model.layers):
        prefix = f"layers.{number}"
        kv_width = model.num_key_value_heads * model.head_dim
        shapes |= {f"{prefix}.{norm}": (hidden,) for norm in NORMS} | {f"{prefix}.attention.o": (hidden, width)}
        for which, outputs in (("q", width), ("k", kv_width), ("v", kv_width)):
            shapes[f"{prefix}.attention.{which}"] = (outputs, hidden)
            if model.qkv_bias:
                shapes[f"{prefix}.attention.{which}.bias"] = (outputs,)
        if model.qk_norm:
            shapes |= {f"{prefix}.attention.{which}_norm": (model.head_dim,) for which in ("q", "k")}
        shapes |= _feed_forward(model, prefix, routed=layer.routed)
    return {naming.file_name(name): shape for name, shape in shapes.items()}


def _feed_forward(model: Model, prefix: str, *, routed: bool) -> dict[str, tuple[int, ...]]:
    experts, hidden = model.experts, model.hidden_size
    if not routed or experts is None:
        return _mlp(model, f"{prefix}.feed_forward", model.intermediate_size)
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}.router": (experts.num_experts, hidden)}
    for expert in range(experts.num_experts):
        shapes |= _mlp(model, f"{prefix}.experts.{expert}", experts.intermediate_size)
    if experts.shared_intermediate_size:
        shapes |= _mlp(model, f"{prefix}.shared", experts.shared_intermediate_size)
    return shapes


def _mlp(model: Model, prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    hidden = model.hidden_size
    return {
        f"{prefix}.{part}": (hidden, width) if part == "down" else (width, hidden)
        for part in PARTS
        if part != "gate" or model.gated
    }
