"""What is written loads in a fresh process in which secateur can't be imported, and gives the same outputs."""

from __future__ import annotations

import ast
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from secateur.errors import MissingExtraError
from secateur.subjects import Transformer, load, open_subject
from secateur.vocabulary import Selection
from strangers import run_without_secateur
from subjects.tiny import GENERATORS, MODELS, make, selections, without
from subjects.transformer.test_loading import tokenizer
from wide import WIDE

TASKS = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "Model": "AutoModel",
}

RUN_APART = WIDE["subjects/transformer/test_cutting.py::test_cut_equals_silenced_and_costs_are_exact"]

CODE = """
import json, sys, torch
from pathlib import Path
import transformers
from safetensors.torch import load_file, save_file
for job in json.loads(Path("jobs.json").read_text()):
    options = dict(attn_implementation="eager", **job["flags"])
    model = getattr(transformers, job["auto"]).from_pretrained(job["folder"], **options)
    batch = load_file(job["batch"])
    with torch.no_grad():
        output = model(**batch)
        results = {"output": (output.logits if "logits" in output else output.last_hidden_state).contiguous()}
        if job["generates"]:
            arguments = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
            results["cached"] = model.generate(**batch, **arguments)
            results["fresh"] = model.generate(**batch, **arguments, use_cache=False)
        bare = transformers.AutoModel.from_pretrained(job["folder"], **options)
        results["states"] = bare(**batch).last_hidden_state.contiguous()
    save_file(results, job["folder"] + "/results.safetensors")
assert "secateur" not in sys.modules
"""


def cuts(subject: Transformer) -> dict[str, Transformer]:
    if subject.family.experts:
        found = selections(subject)
        parts = ("mixed", "attention", "experts and their neurons", "channels")
        alike = [
            found[label]
            for label in ("expert neurons alike", "experts alike", "shared neurons alike")
            if label in found
        ]
        keeps = (
            ("mixed", {k: v for label in parts for k, v in found.get(label, {}).items()}),
            ("alike", {k: v for one in alike for k, v in one.items()}),
        )
        return {key: subject.cut(Selection(keep))[0] for key, keep in keeps}
    neurons = subject.units()["layers.0.neurons"].count
    grouped = "layers.0.kv_groups" in subject.units().sites
    mixed = {"layers": without(3, 1), "layers.0.neurons": without(neurons, *range(8)), "attention": without(3, 0)}
    mixed |= {"layers.2.kv_groups": without(2, 1)} if grouped else {"layers.2.heads": without(4, 1)}
    mixed |= {"channels": without(48, *range(16))} if subject.units()["channels"].fixed is None else {}
    alike = {f"layers.{index}.neurons": without(neurons, *range(16)) for index in range(3)} | {"layers": without(3, 0)}
    return {key: subject.cut(Selection(keep))[0] for key, keep in (("mixed", mixed), ("alike", alike))}


@pytest.mark.slow
@pytest.mark.parametrize("names", [pytest.param(RUN_APART, marks=pytest.mark.wide), MODELS.keys() - RUN_APART], ids=len)
def test_every_family_reloads_in_a_fresh_process_without_secateur(tmp_path: Path, names: set[str]) -> None:
    from safetensors.torch import load_file, save_file

    jobs, expected = [], {}
    for name in sorted(names):
        for label, cut in cuts(make(name)).items():
            folder = tmp_path / f"{name}-{label}"
            cut.save(folder)
            batch = cut.example(2, 6)
            save_file(batch, folder / "batch.safetensors")
            kind = MODELS[name][2]
            auto = next(auto for end, auto in TASKS.items() if kind.endswith(end))
            heterogeneous = cut.model.config.is_heterogeneous
            assert heterogeneous == (label == "mixed")
            assert (folder / "modeling_secateur.py").exists() == heterogeneous
            flags = {"trust_remote_code": True} if heterogeneous else {}
            job = {"folder": str(folder), "auto": auto, "batch": str(folder / "batch.safetensors"), "flags": flags}
            jobs.append(job | {"generates": name in GENERATORS})
            with torch.no_grad():
                states = cut.model.base_model(**batch).last_hidden_state
                expected[str(folder)] = (cut.forward(batch).prediction, states)
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    run_without_secateur(CODE, tmp_path)
    for job in jobs:
        results = load_file(job["folder"] + "/results.safetensors")
        output, states = expected[job["folder"]]
        torch.testing.assert_close(results["output"], output, atol=1e-6, rtol=1e-6, msg=lambda m, at=job: f"{at}: {m}")
        torch.testing.assert_close(results["states"], states, atol=1e-6, rtol=1e-6, msg=lambda m, at=job: f"{at}: {m}")
        if job["generates"]:
            assert torch.equal(results["cached"], results["fresh"]), job["folder"]


def test_sentence_transformers_folder_round_trip(tmp_path: Path) -> None:
    sentence = pytest.importorskip("sentence_transformers")
    from sentence_transformers import models

    make("bert").save(tmp_path / "bert")
    tokenizer(tmp_path / "bert")
    parts = [models.Transformer(str(tmp_path / "bert")), models.Pooling(48, "mean"), models.Normalize()]
    sentence.SentenceTransformer(modules=parts, device="cpu").save(str(tmp_path / "original"))
    subject = open_subject(tmp_path / "original")
    assert [type(module).__name__ for module in subject.head] == ["Pooling", "Normalize"]
    keep = {"layers.0.neurons": without(40, *range(8)), "channels": without(48, *range(8)), "attention": without(3, 1)}
    cut, _ = subject.cut(Selection(keep))
    texts = ["w2 w3 w4", "w9 w20"]
    batch = subject.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = cut.forward(batch).prediction
        silenced = subject.silence(Selection(keep)).forward(batch).prediction[:, keep["channels"]]
    torch.testing.assert_close(expected, silenced, atol=1e-5, rtol=1e-5)
    assert subject.head[0].embedding_dimension == 48
    cut.save(tmp_path / "cut")
    code = (
        "import json\n"
        "from sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer('cut', trust_remote_code=True, device='cpu')\n"
        f"print('VALUES', json.dumps(model.encode({texts!r}).tolist()))\n"
    )
    printed = run_without_secateur(code, tmp_path)
    values = json.loads(next(line for line in printed.splitlines() if line.startswith("VALUES"))[7:])
    np.testing.assert_allclose(np.array(values), expected.numpy(), atol=1e-5)
    again = open_subject(tmp_path / "cut")
    assert again.output == "embedding"
    torch.testing.assert_close(again.forward(batch).prediction, expected, atol=1e-5, rtol=1e-5)


def test_real_minilm(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    packages = pytest.importorskip("assets.packages")
    try:
        folder = packages.minilm()
    except (OSError, MissingExtraError) as error:
        pytest.skip(f"the MiniLM package can't be had here: {error}")
    subject = open_subject(folder)
    keep = {"layers": without(6, 1), "layers.0.heads": without(12, 3), "layers.2.neurons": without(1536, *range(512))}
    cut, receipt = subject.cut(Selection(keep))
    assert subject.units().cost(keep)["params"] == receipt.after["params"]
    batch = subject.tokenizer(["A sentence.", "Another, longer sentence."], padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(
            cut.forward(batch).prediction,
            subject.silence(Selection(keep)).forward(batch).prediction,
            atol=1e-5,
            rtol=1e-5,
        )
    cut.save(tmp_path)
    with torch.no_grad():
        assert torch.equal(open_subject(tmp_path).forward(batch).prediction, cut.forward(batch).prediction)


def test_the_modelling_file_stands_alone(tmp_path: Path) -> None:
    cuts(make("phi3"))["mixed"].save(tmp_path)
    tree = ast.parse((tmp_path / "modeling_secateur.py").read_text())
    roots = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert roots == {"__future__", "dataclasses", "sys", "typing", "torch", "transformers"}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["allow_global_per_layer_attribute_access"] is True
    assert config["per_layer_config"]["0"]["skip"] == ["attention"]
    assert config["head_dim"] == 12
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_secateur.SecateurPhi3ForCausalLM"


def test_saving_writes_everything_once(tmp_path: Path) -> None:
    subject = make("llama")
    tokenizer(tmp_path / "tokens")
    from transformers import AutoTokenizer

    subject.tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokens")
    subject.model.generation_config.temperature = 0.5
    subject.model.generation_config.do_sample = True
    cut, _ = subject.cut(Selection({"layers.0.neurons": without(40, *range(8))}))
    cut.save(tmp_path / "out", card="# A card\n")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["temperature"] == 0.5
    assert open_subject(tmp_path / "out").tokenizer is not None


def test_results_can_be_pickled_between_processes() -> None:
    cut = cuts(make("gemma3"))["mixed"]
    batch = cut.example(1, 4)
    again = pickle.loads(pickle.dumps(cut.model))
    assert torch.equal(again(**batch).logits, cut.model(**batch).logits)


def test_a_trained_result_saves_what_it_learned(tmp_path: Path) -> None:
    cut = cuts(make("qwen2"))["mixed"]
    batch = cut.example(2, 5)
    assert all(parameter.requires_grad for parameter in cut.model.parameters())
    cut.forward(batch).prediction.square().mean().backward()
    with torch.no_grad():
        for parameter in cut.model.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    cut.save(tmp_path)
    with torch.no_grad():
        expected = cut.forward(batch).prediction
        torch.testing.assert_close(load(tmp_path)(**batch).logits, expected, atol=1e-5, rtol=1e-5)
