"""Networks of torchvision, timm, transformers and diffusers, pruned out of the box: what goes, how exactly, how fast.

Each network has random weights. One that hangs or dies is a row of the table, and the others go on.
Writes docs/evidence/benchmarks/zoo.{json,md}. `python benchmarks/zoo.py NAME...` looks at some and writes nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIMIT = 120

TORCHVISION = {
    "classification": "alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 "
    "mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_y_400mf regnet_x_400mf resnet18 resnet50 resnext50_32x4d "
    "shufflenet_v2_x0_5 squeezenet1_1 swin_t swin_v2_t vgg11 vgg11_bn vit_b_32 maxvit_t wide_resnet50_2",
    "segmentation": "deeplabv3_mobilenet_v3_large fcn_resnet50 lraspp_mobilenet_v3_large",
    "detection": "ssdlite320_mobilenet_v3_large ssd300_vgg16 retinanet_resnet50_fpn fasterrcnn_mobilenet_v3_large_320_fpn "
    "fcos_resnet50_fpn maskrcnn_resnet50_fpn keypointrcnn_resnet50_fpn",
}

TIMM = (
    "deit_tiny_patch16_224 mixer_s32_224 convmixer_768_32 poolformer_s12 efficientformer_l1 mobilevit_xxs repvgg_a0 "
    "ghostnet_050 hrnet_w18_small cait_xxs24_224 pvt_v2_b0 beit_base_patch16_224 eva02_tiny_patch14_224 convnextv2_atto "
    "fastvit_t8 levit_128s dla46_c res2net50_26w_4s skresnet18 mambaout_femto swin_tiny_patch4_window7_224 "
    "efficientnet_lite0 resnetv2_50 nfnet_l0 regnety_002 xcit_nano_12_p16_224 coat_lite_tiny crossvit_tiny_240 "
    "twins_pcpvt_small mobilenetv4_conv_small vit_tiny_patch16_224 davit_tiny edgenext_xx_small tf_mixnet_s "
    "volo_d1_224 gmlp_s16_224 resmlp_12_224 focalnet_tiny_srf seresnet18 cspresnet50 selecsls42b vovnet39a tresnet_m "
    "repghostnet_050 starnet_s1 hgnet_tiny inception_next_atto"
).split()

_SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_BERT = _SMALL | {"intermediate_size": 48, "max_position_embeddings": 64}
_LLAMA = _BERT | {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
_MOE = _LLAMA | {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_IMAGE = _BERT | {"image_size": 32, "patch_size": 8, "num_labels": 5}
_GPT = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_BART = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
}  # fmt: skip
_WHISPER = {key: value for key, value in _BART.items() if key != "max_position_embeddings"}
_AUDIO = _BERT | {
    "conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "vocab_size": 20,
}  # fmt: skip

# Name -> (configuration class, its values, model class, inputs)
TRANSFORMERS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "bert": ("BertConfig", _BERT, "BertForSequenceClassification", "text"),
    "bert_mlm": ("BertConfig", _BERT, "BertForMaskedLM", "text"),
    "roberta": ("RobertaConfig", _BERT, "RobertaForSequenceClassification", "text"),
    "distilbert": (
        "DistilBertConfig",
        {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
        "DistilBertForSequenceClassification",
        "text",
    ),
    "electra": ("ElectraConfig", _BERT | {"embedding_size": 16}, "ElectraForSequenceClassification", "text"),
    "deberta_v2": ("DebertaV2Config", _BERT, "DebertaV2ForSequenceClassification", "text"),
    "albert": ("AlbertConfig", _BERT | {"embedding_size": 16}, "AlbertForSequenceClassification", "text"),
    "modernbert": ("ModernBertConfig", _BERT | {"pad_token_id": 0}, "ModernBertForSequenceClassification", "text"),
    "gpt2": ("GPT2Config", _GPT, "GPT2LMHeadModel", "text"),
    "gpt_neox": ("GPTNeoXConfig", _BERT, "GPTNeoXForCausalLM", "text"),
    "opt": (
        "OPTConfig",
        _SMALL | {"ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32},
        "OPTForCausalLM",
        "text",
    ),
    "bloom": ("BloomConfig", {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "BloomForCausalLM", "text"),
    "llama": ("LlamaConfig", _LLAMA, "LlamaForCausalLM", "text"),
    "llama_eager": ("LlamaConfig", _LLAMA | {"attn_implementation": "eager"}, "LlamaForCausalLM", "text"),
    "mistral": ("MistralConfig", _LLAMA, "MistralForCausalLM", "text"),
    "qwen2": ("Qwen2Config", _LLAMA, "Qwen2ForCausalLM", "text"),
    "qwen3": ("Qwen3Config", _LLAMA, "Qwen3ForCausalLM", "text"),
    "gemma2": ("Gemma2Config", _LLAMA, "Gemma2ForCausalLM", "text"),
    "gemma3": ("Gemma3TextConfig", _LLAMA, "Gemma3ForCausalLM", "text"),
    "phi3": ("Phi3Config", _LLAMA, "Phi3ForCausalLM", "text"),
    "olmo2": ("Olmo2Config", _LLAMA, "Olmo2ForCausalLM", "text"),
    "mixtral": ("MixtralConfig", _MOE, "MixtralForCausalLM", "text"),
    "qwen3_moe": ("Qwen3MoeConfig", _MOE, "Qwen3MoeForCausalLM", "text"),
    "t5": ("T5Config", _T5 | {"decoder_start_token_id": 0}, "T5ForConditionalGeneration", "both"),
    "bart": ("BartConfig", _BART, "BartForConditionalGeneration", "both"),
    "mamba": (
        "MambaConfig",
        {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        "MambaForCausalLM",
        "text",
    ),
    "mamba2": (
        "Mamba2Config",
        {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2},
        "Mamba2ForCausalLM",
        "text",
    ),
    "vit": ("ViTConfig", _IMAGE, "ViTForImageClassification", "image"),
    "deit": ("DeiTConfig", _IMAGE, "DeiTForImageClassification", "image"),
    "dinov2": ("Dinov2Config", _IMAGE | {"mlp_ratio": 2}, "Dinov2ForImageClassification", "image"),
    "swin": (
        "SwinConfig",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "num_labels": 5},
        "SwinForImageClassification",
        "image",
    ),
    "segformer": ("SegformerConfig", {"hidden_sizes": [8, 16, 24, 32], "num_labels": 5}, "SegformerForSemanticSegmentation", "image64"),
    "convnext": ("ConvNextConfig", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_labels": 5}, "ConvNextForImageClassification", "image64"),
    "clip": (
        "CLIPVisionConfig",
        _IMAGE | {"projection_dim": 16},
        "CLIPVisionModelWithProjection",
        "image",
    ),
    "wav2vec2": ("Wav2Vec2Config", _AUDIO, "Wav2Vec2ForCTC", "audio"),
    "whisper": ("WhisperConfig", _WHISPER | {"num_mel_bins": 16, "max_source_positions": 32, "max_target_positions": 32, "pad_token_id": 0, "decoder_start_token_id": 1}, "WhisperForConditionalGeneration", "mel"),
}  # fmt: skip

DIFFUSERS = ["unet2d", "unet2d_condition", "vae", "dit", "sd3", "flux"]


def build(name: str) -> tuple[Any, Any]:
    """The network and its example inputs."""
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    library, _, rest = name.partition(":")
    if library in ("classification", "segmentation", "detection"):
        models = importlib.import_module("torchvision.models")
        if library == "detection":
            sizes = {} if rest.startswith("ssd") else {"min_size": 128, "max_size": 160}
            model = models.get_model(rest, weights=None, weights_backbone=None, **sizes)
            return model, ([torch.rand(3, 128, 128)],)
        more = {"weights_backbone": None, "aux_loss": False} if library == "segmentation" else {}
        if library == "segmentation" and "lraspp" in rest:
            more.pop("aux_loss")
        if rest in ("googlenet", "inception_v3"):
            more = {"aux_logits": False, "init_weights": False}
        if rest == "swin_v2_t" or rest.startswith("swin"):
            more = {}
        size = {"inception_v3": 160, "maxvit_t": 224, "vit_b_32": 224}.get(rest, 128)
        return models.get_model(rest, weights=None, **more), torch.rand(1, 3, size, size)
    if library == "timm":
        model = importlib.import_module("timm").create_model(rest, pretrained=False)
        return model, torch.rand(1, *model.default_cfg["input_size"])
    if library == "transformers":
        transformers = importlib.import_module("transformers")
        transformers.utils.logging.set_verbosity_error()
        config_class, values, model_class, kind = TRANSFORMERS[rest]
        values = dict(values)
        attention = values.pop("attn_implementation", None)
        config = getattr(transformers, config_class)(**values)
        if attention:
            config._attn_implementation = attention
        model = getattr(transformers, model_class)(config)
        ids = torch.randint(3, 20, (2, 12))
        inputs = {
            "text": lambda: {"input_ids": ids},
            "both": lambda: {"input_ids": ids, "decoder_input_ids": ids[:, :7]},
            "image": lambda: {"pixel_values": torch.rand(1, 3, 32, 32)},
            "image64": lambda: {"pixel_values": torch.rand(1, 3, 64, 64)},
            "audio": lambda: {"input_values": torch.rand(1, 800)},
            "mel": lambda: {"input_features": torch.rand(1, 16, 64), "decoder_input_ids": ids[:1, :7]},
        }[kind]()
        return model, inputs
    diffusers = importlib.import_module("diffusers")
    blocks = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
    time_ = torch.tensor([3])
    if rest == "unet2d":
        model = diffusers.UNet2DModel(
            sample_size=16,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            **blocks,
        )
        return model, (torch.rand(1, 3, 16, 16), time_)
    if rest == "unet2d_condition":
        model = diffusers.UNet2DConditionModel(
            sample_size=16, cross_attention_dim=24, attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **blocks
        )  # fmt: skip
        return model, (torch.rand(1, 4, 16, 16), time_, torch.rand(1, 5, 24))
    if rest == "vae":
        model = diffusers.AutoencoderKL(
            block_out_channels=(32, 64),
            norm_num_groups=8,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        )
        return model, (torch.rand(1, 3, 16, 16),)
    if rest == "dit":
        model = diffusers.DiTTransformer2DModel(
            num_attention_heads=4,
            attention_head_dim=8,
            num_layers=2,
            sample_size=8,
            in_channels=4,
            num_embeds_ada_norm=10,
            norm_num_groups=8,
        )
        return model, {"hidden_states": torch.rand(1, 4, 8, 8), "timestep": time_, "class_labels": torch.tensor([2])}
    if rest == "sd3":
        model = diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
            joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=16, out_channels=4, pos_embed_max_size=8
        )  # fmt: skip
        return model, {
            "hidden_states": torch.rand(1, 4, 8, 8), "encoder_hidden_states": torch.rand(1, 5, 24),
            "pooled_projections": torch.rand(1, 16), "timestep": time_,
        }  # fmt: skip
    model = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=16, axes_dims_rope=(4, 6, 6)
    )  # fmt: skip
    return model, {
        "hidden_states": torch.rand(1, 16, 16), "encoder_hidden_states": torch.rand(1, 5, 24), "pooled_projections": torch.rand(1, 16),
        "timestep": torch.tensor([0.5]), "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(5, 3),
    }  # fmt: skip


def names() -> list[str]:
    vision = [f"{kind}:{name}" for kind, listed in TORCHVISION.items() for name in listed.split()]
    return [
        *vision,
        *(f"timm:{name}" for name in TIMM),
        *(f"transformers:{name}" for name in TRANSFORMERS),
        *(f"diffusers:{name}" for name in DIFFUSERS),
    ]


def measure(name: str) -> dict[str, Any]:
    """One row: prune at 50 % of channels, and what that took."""
    pruning = importlib.import_module("secateur.pruning")
    traced = importlib.import_module("secateur.subjects.traced")
    row: dict[str, Any] = {"name": name}
    try:
        model, inputs = build(name)
    except Exception as error:
        return row | {"status": "not built", "why": f"{type(error).__name__}: {str(error)[:200]}"}
    row["params"] = sum(p.numel() for p in model.parameters())
    opened: list[Any] = []
    tries = 0
    original = traced.Traced.cut

    def cut(self: Any, selection: Any, **more: Any) -> Any:
        nonlocal tries
        tries += 1
        result = original(self, selection, **more)
        opened[:] = [self, result[0]]
        return result

    traced.Traced.cut = cut
    start = time.perf_counter()
    try:
        _, receipt = pruning.prune(model, inputs)
    except Exception as error:
        kind = type(error).__name__
        return row | {"status": "refused", "why": f"{kind}: {str(error)[:300]}", "seconds": time.perf_counter() - start}
    finally:
        traced.Traced.cut = original
    row["seconds"] = time.perf_counter() - start
    subject, result = opened
    units = subject.units()
    least = units.cost({site: _one(units[site].count) for site in units})["params"]
    row |= {
        "status": "cut",
        "left": receipt.after["params"] / receipt.before["params"],
        "prunable": 1 - least / receipt.before["params"],
        "error": result.error,
        "tries": tries,
        "sites": len(subject.coupling.sites),
        "stays": list(receipt.notes),
    }
    return row


def _one(count: int) -> Any:
    return importlib.import_module("numpy").arange(count) < 1


def table(rows: list[dict[str, Any]], about: str) -> str:
    """The rows as Markdown."""
    lines = [
        "| network | params | cut to | prunable | sites | cut against silenced | seconds | tries | what stays, beside inputs and outputs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    plain = ("reaches the output", "without channels to cut", "kernel of a conv")
    for row in rows:
        if row["status"] != "cut":
            lines.append(
                f"| {row['name']} | {row.get('params', 0):,} | {row['status']} |  |  |  | {row.get('seconds', 0):.2f} |  | {row.get('why', '')} |"
            )
            continue
        stays = [note for note in row["stays"] if not any(one in note for one in plain)]
        shown = "; ".join(one.removeprefix("stays: ").replace("|", "/")[:140] for one in stays[:4])
        lines.append(
            f"| {row['name']} | {row['params']:,} | {row['left']:.1%} | {row['prunable']:.1%} | {row['sites']} | "
            f"{row['error']:.1e} | {row['seconds']:.2f} | {row['tries']} | {shown} |"
        )
    done = [row for row in rows if row["status"] == "cut"]
    if done:
        lines += [
            "",
            f"{len(done)} of {len(rows)} cut; median {statistics.median(row['seconds'] for row in done):.2f} s, slowest "
            f"{max(row['seconds'] for row in done):.2f} s; largest difference {max(row['error'] for row in done):.1e}. {about}",
        ]
    return "\n".join(lines)


def several(wanted: list[str]) -> None:
    """Print a row for each network, in this process."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"over {LIMIT} s")

    signal.signal(signal.SIGALRM, late)
    for name in wanted:
        signal.alarm(LIMIT)
        try:
            row = measure(name)
        except TimeoutError as error:
            row = {"name": name, "status": "timeout", "why": str(error)}
        signal.alarm(0)
        print("ROW" + json.dumps(row), flush=True)


def collect(wanted: list[str]) -> list[dict[str, Any]]:
    """A row for each network; one process does as many as it can, and another goes on where it died."""
    rows: list[dict[str, Any]] = []
    while len(rows) < len(wanted):
        rest = wanted[len(rows) :]
        with subprocess.Popen(
            [sys.executable, __file__, "--here", *rest], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            found = 0
            for line in process.stdout:
                if line.startswith("ROW"):
                    rows.append(json.loads(line[3:]))
                    found += 1
                    print({key: value for key, value in rows[-1].items() if key != "stays"}, flush=True)
        if found < len(rest):
            rows.append({"name": rest[found], "status": "died", "why": f"exit code {process.returncode}"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of networks, or beginnings of names; all if none")
    parser.add_argument("--here", action="store_true", help="in this process, one row after the other")
    options = parser.parse_args()
    if options.here:
        several(options.names)
        return
    rows = collect([name for name in names() if not options.names or name.startswith(tuple(options.names))])
    torch = importlib.import_module("torch")
    about = (
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}."
    )
    text = table(rows, about)
    if options.names:
        print(text)
        return
    out = ROOT / "docs" / "evidence" / "benchmarks"
    out.mkdir(parents=True, exist_ok=True)
    (out / "zoo.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (out / "zoo.md").write_text(text + "\n", encoding="utf-8")
    print(text.splitlines()[-1])


if __name__ == "__main__":
    main()
