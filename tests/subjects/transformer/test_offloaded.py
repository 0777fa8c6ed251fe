"""Models that Accelerate has offloaded: cut as in memory, read a module at a time, and left as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from torch import nn
from transformers import PreTrainedModel

import tiny
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.errors import UnsupportedError
from secateur.recipes.sparse.wanda import wanda
from secateur.subjects import Transformer, open_subject
from secateur.subjects.transformer import files
from secateur.subjects.transformer.offloaded import Offloaded
from secateur.vocabulary import Budget, Selection
from subjects.tiny import make, random_keep, without


def to_disk(model: PreTrainedModel, folder: Path, *stay: str) -> PreTrainedModel:
    """A copy whose weights lie on the disk but for those of the modules `stay`, as `device_map` says it."""
    names = [name for name, module in model.named_modules() if name.count(".") == 2] if stay else []
    names += ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"] if stay else []
    names = names or [name for name, _ in model.named_children()]
    places = {name: "cpu" if name in stay else "disk" for name in names}
    made = copy.deepcopy(model)
    dispatch_model(made, places, main_device="cpu", offload_dir=folder, force_hooks=True)
    return made


def describe(model: nn.Module) -> list[object]:
    """What has to stay of a model that was given: hooks, what they are told, and where each tensor is."""
    hooks = [getattr(module, "_hf_hook", None) for module in model.modules()]
    places = [(name, str(tensor.device), tensor.shape) for name, tensor in model.state_dict().items()]
    return [*((id(hook), getattr(hook, "offload", None)) for hook in hooks), *places]


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3-moe", "deepseek3", "bert"])
def test_a_cut_is_that_of_the_model_in_memory(name: str, tmp_path: Path) -> None:
    whole = make(name)
    model = to_disk(whole.model, tmp_path / "away")
    subject, before = open_subject(model), describe(model)
    assert isinstance(subject, Offloaded)
    assert isinstance(subject, type(whole))
    keep = random_keep(whole, seed=3, channels=False)
    inside, told = whole.cut(Selection(keep))
    outside, cut = subject.cut(Selection(keep))
    assert (cut.removed, cut.before, cut.after) == (told.removed, told.before, told.after)
    again, _ = outside.cut(Selection({"layers": without(len(outside.layers()), 1)}))  # read through two cuts
    twice, _ = inside.cut(Selection({"layers": without(len(inside.layers()), 1)}))
    for small, expected, place in ((outside, inside, "once"), (again, twice, "twice"), (subject.copy(), whole, "copy")):
        assert isinstance(small, Offloaded)
        assert all(p.is_meta for p in small.model.parameters())
        assert small.origin.digest() == expected.origin.digest() is not None
        batch = whole.example(2, 7)
        assert torch.equal(small.forward(batch).prediction, expected.forward(batch).prediction)
        small.save(tmp_path / place)
        found = open_subject(tmp_path / place).model.state_dict()
        assert found.keys() == expected.model.state_dict().keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.model.state_dict().items())
    assert describe(model) == before


def lay_out(kind: str, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A copy of a Llama that is offloaded in one of the ways that there are."""
    if kind == "main memory":
        return cpu_offload(copy.deepcopy(model), "cpu")
    if kind == "some layers":
        return to_disk(model, folder, "model.embed_tokens", "model.rotary_emb", "model.layers.0", "lm_head")
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, device_map={"": "disk"})


@pytest.mark.parametrize("kind", ["main memory", "some layers", "checkpoint"])
def test_blocks_are_changed_in_files_and_the_model_stays(kind: str, tmp_path: Path) -> None:
    whole = open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer())
    model = lay_out(kind, whole.model, tmp_path / "away")
    subject, before = open_subject(model, tokenizer=tiny.tokenizer()), describe(model)
    results = [prune(one, tmp_path / name) for one, name in ((whole, "inside"), (subject, "outside"))]
    inside, outside = (result.model.state_dict() for result in results)
    for key, tensor in inside.items():
        assert torch.equal(tensor, outside[key] if not outside[key].is_meta else results[1].weights()[key]), key
    batch = whole.example(2, 7)
    assert torch.equal(results[1].forward(batch).prediction, results[0].forward(batch).prediction)
    assert describe(model) == before
    assert torch.equal(subject.forward(batch).prediction, whole.forward(batch).prediction)
    again = prune(subject, tmp_path / "outside")  # from the files of the first run
    assert torch.equal(again.forward(batch).prediction, results[0].forward(batch).prediction)


def prune(subject: Transformer, folder: Path) -> Transformer:
    with Run.open(folder, {}) as run:
        (found,) = wanda(subject, texts.read(tiny.chains(60)), [Budget.parse("weights=50%")], run, samples=4, length=16)
    return found.subject


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    config = copy.deepcopy(tiny.model("llama").config)
    config.tie_word_embeddings = True
    model = type(tiny.model("llama"))(config)
    subject = open_subject(lay_out("checkpoint", model, tmp_path / "away"), tokenizer=tiny.tokenizer())
    small, _ = subject.cut(Selection({"layers": without(len(subject.layers()), 1)}))
    for one, name in ((subject.copy(), "copy"), (small, "small")):
        one.forward(one.example(2, 7))  # which brings tied weights apart
        one.save(tmp_path / name)
        assert "lm_head.weight" not in files.find_tensors(tmp_path / name)
        again = open_subject(tmp_path / name).model
        assert again.get_output_embeddings().weight is again.get_input_embeddings().weight


def test_no_more_than_a_few_blocks_are_in_memory(tmp_path: Path) -> None:
    model = tiny.model("llama")
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = 16
    large = type(model)(config).eval()
    whole = sum(p.numel() * p.element_size() for p in large.parameters())
    subject = open_subject(to_disk(large, tmp_path / "away"), tokenizer=tiny.tokenizer())
    del large

    def cut_and_save() -> None:
        small, _ = subject.cut(Selection({"layers": without(16, 3, 5)}))
        small.save(tmp_path / "small")
        prune(subject, tmp_path / "run").save(tmp_path / "zeros")

    assert measure_peak(cut_and_save) < whole / 3


def measure_peak(call: Callable[[], object]) -> int:
    """Bytes that torch held for `call` at its highest point."""
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    held = peak = 0
    for event in events:
        held += event.nbytes() if event.name() == "[memory]" else 0
        peak = max(peak, held)
    return peak


def test_channels_are_refused(tmp_path: Path) -> None:
    whole = make("llama")
    subject = open_subject(to_disk(whole.model, tmp_path))
    with pytest.raises(UnsupportedError, match=r"channels can't be cut in a model that is offloaded, .* device_map"):
        subject.cut(Selection({"channels": without(48, 1)}))
