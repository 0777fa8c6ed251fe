"""The memory plan of three published models, from their sizes alone: the table of docs/guide/streaming.md.

python benchmarks/memory_plans.py            # some minutes; nothing is fetched, no weights are made
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from transformers import LlamaConfig, MixtralConfig, PreTrainedConfig, Qwen3MoeConfig

from secateur.reports import display
from secateur.runs import memory_plan

MODELS: dict[str, PreTrainedConfig] = {
    "Llama-3-8B": LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=8192, architectures=["LlamaForCausalLM"], dtype="bfloat16",
    ),
    "Qwen3-30B-A3B": Qwen3MoeConfig(
        vocab_size=151_936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=48, num_attention_heads=32,
        num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
        max_position_embeddings=40_960, architectures=["Qwen3MoeForCausalLM"], dtype="bfloat16",
    ),
    "Mixtral-8x7B": MixtralConfig(
        vocab_size=32_000, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, num_local_experts=8, max_position_embeddings=32_768,
        architectures=["MixtralForCausalLM"], dtype="bfloat16",
    ),
}  # fmt: skip


def main() -> None:
    print("| at the command's options | Weights | Score | By gradients | Cut | Training |\n|---|---|---|---|---|---|")
    for name, config in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            plan = memory_plan.estimate(Path(folder), share=0.5, batch=8, length=1024)
        print(
            f"| {name} |",
            " | ".join(display.number("memory", size) for size in plan.stages().values()),
            "|",
            flush=True,
        )


if __name__ == "__main__":
    main()
