"""Models of the campaign: small enough for steps of 10–200 ms on one core, unlike each other where plans differ."""

from __future__ import annotations

from simulator.model import Experts, Layer, Model


def model(name: str, layers: tuple[Layer, ...], **sizes: object) -> Model:
    fields = {"name": name, "layers": layers, "vocab_size": 2048, "weight_dtype": "fp32", "source": "the campaign's"}
    return Model.model_validate(fields | sizes)


GROUPED = model(
    "grouped", (Layer(),) * 2, hidden_size=512, num_attention_heads=8, num_key_value_heads=4, head_dim=64,
    intermediate_size=1024,
)  # fmt: skip
WIDE = model(
    "wide", (Layer(),) * 2, hidden_size=512, num_attention_heads=16, num_key_value_heads=16, head_dim=32,
    intermediate_size=2048, gated=False, hidden_act="gelu",
)  # fmt: skip
DEEP = model(
    "deep", (Layer(),) * 6, hidden_size=256, num_attention_heads=8, num_key_value_heads=8, head_dim=32,
    intermediate_size=768,
)  # fmt: skip
ROUTED = model(
    "routed", (Layer(routed=True),) * 2, hidden_size=384, num_attention_heads=8, num_key_value_heads=2, head_dim=48,
    intermediate_size=1024,
    experts=Experts(num_experts=8, top_k=2, intermediate_size=768, capacity_factor=1.25),
)  # fmt: skip
TEACHER = model(  # none of the campaign's: what places are taught by before anything is predicted
    "teacher", (Layer(),) * 3, hidden_size=384, num_attention_heads=8, num_key_value_heads=4, head_dim=48,
    intermediate_size=1024,
)  # fmt: skip
ROUTED_TEACHER = model(
    "routed-teacher", (Layer(routed=True),) * 2, hidden_size=320, num_attention_heads=8, num_key_value_heads=4,
    head_dim=40, intermediate_size=768,
    experts=Experts(num_experts=4, top_k=2, intermediate_size=640, capacity_factor=1.25),
)  # fmt: skip
TEACHERS = {one.name: one for one in (TEACHER, ROUTED_TEACHER)}
MODELS = {one.name: one for one in (GROUPED, WIDE, DEEP, ROUTED)}
