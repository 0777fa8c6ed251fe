"""Networks of torchvision, timm, transformers and diffusers, pruned out of the box: what goes, how exactly, how fast.

Beside secateur stands Torch-Pruning, on the same networks and inputs, at the same share of channels, by magnitude. Each
network has random weights, and each tool looks at it in a process of its own. One that hangs or dies is a row of the
table, and the others go on. Writes docs/evidence/benchmarks/zoo.{json,md}. `python benchmarks/zoo.py NAME...` looks at
some and writes nothing.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from support.processes import Tell, describe, run_apart

ROOT = Path(__file__).parents[1]
PEER = "torch-pruning==1.6.1"
LIMIT = 30
"""Seconds that one step may take: building a network, or analysing and cutting it once."""
ROUNDS, ENOUGH = 3, 10
"""Times are medians of so many runs; no more are made once so many seconds are spent."""

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
    "llama_one_layer": ("LlamaConfig", _LLAMA | {"num_hidden_layers": 1}, "LlamaForCausalLM", "text"),
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
        more = {"weights_backbone": None, "aux_loss": True} if library == "segmentation" else {}
        if library == "segmentation" and "lraspp" in rest:
            more.pop("aux_loss")
        if rest in ("googlenet", "inception_v3"):
            more = {"init_weights": False}
        if rest == "swin_v2_t" or rest.startswith("swin"):
            more = {}
        size = {"inception_v3": 299, "maxvit_t": 224, "vit_b_32": 224}.get(rest, 128)
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


def measure(name: str, tell: Tell) -> dict[str, Any]:
    """What secateur makes of a network at 50 % of channels."""
    pruning = importlib.import_module("secateur.methods.pruning")
    traced = importlib.import_module("secateur.subjects.network.traced")
    model, inputs = build(name)
    row: dict[str, Any] = {"params": _size(model)}
    tell(row)
    opened: list[Any] = []
    tries = 0
    original = traced.Traced.cut
    proving = 0.0
    proofs = {name: getattr(traced, name) for name in ("compare", "stirred")}

    def clocked(prove: Callable[..., Any]) -> Callable[..., Any]:
        def proof(*given: Any) -> Any:
            nonlocal proving
            start = time.perf_counter()
            try:
                return prove(*given)
            finally:
                proving += time.perf_counter() - start

        return proof

    def cut(self: Any, selection: Any, **more: Any) -> Any:
        nonlocal tries
        tries += 1
        result = original(self, selection, **more)
        opened[:] = [self, result[0]]
        return result

    traced.Traced.cut = cut
    for key, prove in proofs.items():
        setattr(traced, key, clocked(prove))
    receipt: Any = None
    proved: list[float] = []

    def once() -> None:
        nonlocal receipt, tries, proving
        tries, proving = 0, 0.0
        receipt = pruning.prune(model, inputs)[1]
        proved.append(proving)

    try:
        row |= _timed(once, lambda: None, tell)
    except Exception as error:
        return row | {"status": "refused", "why": describe(error)}
    finally:
        traced.Traced.cut = original
        for key, prove in proofs.items():
            setattr(traced, key, prove)
    subject, result = opened
    units = subject.units()
    least = units.cost({site: _one(units[site].count) for site in units})["params"]
    return row | {
        "status": "cut",
        "left": receipt.after["params"] / receipt.before["params"],
        "prunable": 1 - least / receipt.before["params"],
        "error": result.error,
        "proof_seconds": statistics.median(proved),
        "tries": tries,
        "sites": len(subject.coupling.sites),
        "stays": list(receipt.notes),
    }


def peer(name: str, tell: Tell) -> dict[str, Any]:
    """What Torch-Pruning makes of it, told what any network tells of itself: its last layers, and its heads."""
    torch, copy = importlib.import_module("torch"), importlib.import_module("copy")
    pruning = importlib.import_module("torch_pruning")
    model, inputs = build(name)
    model.eval()
    args, kwargs = (
        ((), inputs) if isinstance(inputs, dict) else (inputs if isinstance(inputs, tuple) else (inputs,), {})
    )
    row: dict[str, Any] = {"params": _size(model)}
    tell(row)
    smaller: Any = None

    def fresh() -> None:
        nonlocal smaller
        smaller = copy.deepcopy(model)

    def once() -> None:
        pruner = pruning.pruner.BasePruner(
            smaller,
            kwargs or args,
            importance=pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=_last(smaller, args, kwargs),
            num_heads=_heads(smaller),
            in_channel_groups={},
            out_channel_groups={},
            output_transform=lambda output: [one for one in _leaves(output) if one.grad_fn is not None],
        )
        pruner.step()

    try:
        row |= _timed(once, fresh, tell)
    except Exception as error:
        return row | {"status": "refused", "why": describe(error)}
    row["left"] = _size(smaller) / row["params"]
    try:
        with torch.no_grad():
            smaller(*args, **kwargs)
    except Exception as error:
        return row | {"status": "does not run after the cut", "why": describe(error)}
    return row | {"status": "cut" if row["left"] < 1 else "nothing cut"}


def laws(name: str, tell: Tell) -> dict[str, Any]:
    """Which laws of subjects hold of it: whole, one-axis and mixed selections of random units, see `conformance`."""
    check = importlib.import_module("secateur.conformance").check_subject
    traced = importlib.import_module("secateur.subjects.network.traced")
    recording = importlib.import_module("secateur.subjects.network.recording")
    numpy = importlib.import_module("numpy")
    model, inputs = build(name)
    row: dict[str, Any] = {"params": _size(model)}
    tell(row)

    def output(subject: Any) -> Any:
        parts = [one.detach().double().flatten() for one in recording.leaves(subject.forward())[0]]
        return numpy.concatenate([part.numpy() for part in parts])

    def reload(small: Any, folder: Path) -> Any:
        small.save(folder)
        return traced.reload_traced(folder, model, inputs)

    try:
        start = time.perf_counter()
        # Which boxes or experts are looked at follows the data, and so do the FLOPs.
        follows = {"flops"} if traced.Traced(model, recording.Example.of(inputs)).run.reads else set()
        found = check(lambda: traced.open_traced(model, inputs), output=output, reload=reload, ignore=follows)
    except (AssertionError, Exception) as error:
        return row | {"status": "does not conform", "why": describe(error)}
    return row | {"status": "conforms", "laws": sorted(found), "seconds": time.perf_counter() - start}


def _timed(once: Callable[[], None], before: Callable[[], None], tell: Tell) -> dict[str, Any]:
    runs: list[float] = []
    used: list[float] = []
    while len(runs) < ROUNDS and sum(runs) < ENOUGH:
        before()
        start, cpu = time.perf_counter(), time.process_time()
        once()
        runs.append(time.perf_counter() - start)
        used.append(time.process_time() - cpu)
        tell({})
    return {"seconds": statistics.median(runs), "cpu_seconds": statistics.median(used), "runs": len(runs)}


def _size(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def _one(count: int) -> Any:
    return importlib.import_module("numpy").arange(count) < 1


def _leaves(value: Any) -> list[Any]:
    """The tensors of an output."""
    if isinstance(value, importlib.import_module("torch").Tensor):
        return [value]
    values: Iterable[Any] = (
        value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    )
    return [one for part in values for one in _leaves(part)]


def _last(model: Any, args: Any, kwargs: Any) -> list[Any]:
    """The layers that make what the network gives, and the one that runs last of all."""
    torch = importlib.import_module("torch")
    made: list[tuple[Any, int]] = []

    def after(module: Any, _: Any, output: Any) -> None:
        made.append((module, output.data_ptr()))

    kinds = (torch.nn.modules.conv._ConvNd, torch.nn.Linear)
    handles = [module.register_forward_hook(after) for module in model.modules() if isinstance(module, kinds)]
    with torch.no_grad():
        output = model(*args, **kwargs)
    for handle in handles:
        handle.remove()
    shown = {one.data_ptr() for one in _leaves(output)}
    return list(
        {id(module): module for module, place in made if place in shown or (module, place) == made[-1]}.values()
    )


def _heads(model: Any) -> dict[Any, int]:
    """Projections of attentions -> how many heads they have, where a module tells it."""
    linear = importlib.import_module("torch").nn.Linear
    found = {}
    for module in model.modules():
        heads = next((value for key in HEADS if isinstance(value := getattr(module, key, None), int)), None)
        for name, child in module.named_children():
            if heads and isinstance(child, linear) and name in PROJECTIONS:
                found[child] = heads
    return found


HEADS = ("num_heads", "num_attention_heads", "n_heads", "heads")
PROJECTIONS = frozenset(
    "qkv q k v kv query key value q_proj k_proj v_proj to_q to_k to_v q_lin k_lin v_lin in_proj query_key_value".split()
)

TOOLS: dict[str, Callable[[str, Tell], dict[str, Any]]] = {"secateur": measure, "torch_pruning": peer, "laws": laws}


def apart(tool: str, name: str, threads: int) -> dict[str, Any]:
    """A tool's row, made in a process of its own, which dies when a step takes too long."""

    def task(tell: Tell) -> Mapping[str, Any]:
        importlib.import_module("torch").set_num_threads(threads)
        made: Mapping[str, Any] = TOOLS[tool](name, tell)
        return made

    return run_apart(task, LIMIT, show=bool(os.environ.get("ZOO_SHOW")))


def collect(wanted: list[str], tools: list[str], threads: int) -> list[dict[str, Any]]:
    """A row for each network, with what each tool makes of it."""
    rows = []
    for name in wanted:
        made = {tool: apart(tool, name, threads) for tool in tools}
        row = {"name": name, **made.get("secateur", made.get("laws", {}))}
        if "torch_pruning" in made:
            row["torch_pruning"] = {key: value for key, value in made["torch_pruning"].items() if key != "params"}
        rows.append(row)
        print({key: value for key, value in row.items() if key != "stays"}, flush=True)
    return rows


def install() -> None:
    """Torch-Pruning, in a folder of its own beside the libraries that are here."""
    folder = ROOT / ".cache" / "bench" / "torch-pruning"
    if not (folder / "torch_pruning").is_dir():
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), PEER], check=True
        )
    sys.path.append(str(folder))


PLAIN = ("reaches the output", "without channels to cut", "kernel of a conv")


def table(rows: list[dict[str, Any]], about: str) -> str:
    """The rows as Markdown."""
    lines = [
        "| network | params | cut to | prunable | sites | cut against silenced | seconds | of them, the proof | tries | "
        "Torch-Pruning cuts to | seconds | what stays in secateur's, beside inputs and outputs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        other = row.get("torch_pruning", {})
        told = {"cut": f"{other.get('left', 0):.1%}"}.get(other.get("status", ""), other.get("status", ""))
        took = f"{other['seconds']:.2f}" if "seconds" in other else f"> {LIMIT}" if told == "timeout" else ""
        if row["status"] != "cut":
            lines.append(
                f"| {row['name']} | {row.get('params', 0):,} | {row['status']} |  |  |  |  |  |  | {told} | {took} | {row.get('why', '')} |"
            )
            continue
        stays = [note for note in row["stays"] if not any(one in note for one in PLAIN)]
        shown = "; ".join(one.removeprefix("stays: ").replace("|", "/")[:140] for one in stays[:4])
        lines.append(
            f"| {row['name']} | {row['params']:,} | {row['left']:.1%} | {row['prunable']:.1%} | {row['sites']} | "
            f"{row['error']:.1e} | {row['seconds']:.2f} | {row['proof_seconds']:.2f} | {row['tries']} | {told} | {took} | {shown} |"
        )
    return "\n".join([*lines, "", *summary(rows, about)])


def lawful(rows: list[dict[str, Any]], about: str) -> str:
    """What the suite of laws says of each network, as Markdown."""
    held = [row for row in rows if row["status"] == "conforms"]
    lines = [f"- {row['name']}: {row['status']}: {row.get('why', '')}" for row in rows if row["status"] != "conforms"]
    laws = sorted({law for row in held for law in row["laws"]})
    return "\n".join(
        [
            f"{len(held)} of {len(rows)} networks conform, on whole, one-axis and mixed selections of random units, to: "
            f"{', '.join(laws)}.",
            "",
            *lines,
            "",
            "FLOPs of networks that choose by their data what to run (boxes, experts) are not compared.",
            "",
            about.replace("zoo.py", "zoo.py --only laws"),
        ]
    )


def summary(rows: list[dict[str, Any]], about: str) -> list[str]:
    """What all rows together say."""
    done = [row for row in rows if row["status"] == "cut"]
    if not done:
        return [about]
    seconds = [row["seconds"] for row in done]
    said = [
        f"secateur: {len(done)} of {len(rows)} cut and proved; median {statistics.median(seconds):.2f} s, slowest "
        f"{max(seconds):.2f} s; largest difference {max(row['error'] for row in done):.1e}; median of parameters left "
        f"{statistics.median(row['left'] for row in done):.1%}."
    ]
    others = [row for row in rows if row.get("torch_pruning", {}).get("status") == "cut"]
    if others:
        seconds = [row["torch_pruning"]["seconds"] for row in others]
        late = sum(row.get("torch_pruning", {}).get("status") == "timeout" for row in rows)
        said.append(
            f"Torch-Pruning: {len(others)} of {len(rows)} run after the cut, {late} took over {LIMIT} s; median "
            f"{statistics.median(seconds):.2f} s, slowest {max(seconds):.2f} s. It is told the last layers and, where a "
            "module says how many it has, the heads; it proves nothing."
        )
    both = [row for row in others if row["status"] == "cut"]
    if both:
        mine = statistics.median(row["seconds"] for row in both)
        theirs = statistics.median(row["torch_pruning"]["seconds"] for row in both)
        ratio = statistics.median(row["seconds"] / row["torch_pruning"]["seconds"] for row in both)
        alone = [row["seconds"] - row["proof_seconds"] for row in both]
        lean = statistics.median(one / row["torch_pruning"]["seconds"] for one, row in zip(alone, both, strict=True))
        said.append(
            f"On the {len(both)} that both can do: analysis and cut {statistics.median(alone):.2f} s against {theirs:.2f} s, "
            f"median of ratios {lean:.2f}; with the proof {mine:.2f} s, {ratio:.2f}; "
            f"parameters left {statistics.median(row['left'] for row in both):.1%} against "
            f"{statistics.median(row['torch_pruning']['left'] for row in both):.1%}."
        )
    return [*said, about]


def main() -> None:
    global LIMIT
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of networks, or beginnings of names; all if none")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="of PyTorch; as many as cores if not given"
    )
    parser.add_argument("--only", choices=list(TOOLS), help="one tool; writes nothing, but for the laws of all")
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds that one step may take")
    options = parser.parse_args()
    LIMIT = options.limit
    tools = [options.only] if options.only else ["secateur", "torch_pruning"]
    if "torch_pruning" in tools:
        install()
    # What is loaded here need not be loaded again for each network. Nothing is computed here: threads do not survive.
    for module in (
        "torchvision.models",
        "timm",
        "transformers",
        "diffusers",
        "secateur.methods.pruning",
        "torch_pruning",
    ):
        if importlib.util.find_spec(module.partition(".")[0]):
            importlib.import_module(module)
    gc.freeze()  # nor looked through by each child's garbage collector, which would write to all of it
    rows = collect(
        [name for name in names() if not options.names or name.startswith(tuple(options.names))], tools, options.threads
    )
    torch = importlib.import_module("torch")
    about = f"`python benchmarks/zoo.py --threads {options.threads} --limit {LIMIT}`; {platform.machine()}, {os.cpu_count()} cores, {options.threads} threads, torch {torch.__version__}; {PEER}."
    by_law = options.only == "laws"
    text = lawful(rows, about) if by_law else table(rows, about)
    if options.names or (options.only and not by_law):
        print(text)
        return
    out, name = ROOT / "docs" / "evidence" / "benchmarks", "zoo-laws" if by_law else "zoo"
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    print(text if by_law else "\n".join(summary(rows, about)))


if __name__ == "__main__":
    main()
