"""Block by block equals the whole model; inputs are counted where they are read; kills and streaming change nothing."""

from __future__ import annotations

import copy
import gc
import warnings

import pytest
import torch
from accelerate import PartialState
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from safetensors.torch import load_file, save_file
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import processes
from secateur.errors import InputError, ModelError, NumericalError, UnsupportedError
from secateur.score import hessian
from secateur.subjects import open_subject
from secateur.subjects.matrices import matrices
from secateur.subjects.transformer import blocks
from secateur.subjects.transformer.decoder import Decoder
from secateur.subjects.transformer.loading import open_streamed
from subjects.hybrids import make_hybrid

SMALL = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=4)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SMALL)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, head_dim=4, sliding_window=4)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=3, n_head=4, n_positions=32)),
    # These take the first of the tuple that a block gives.
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=16, n_layer=3, n_head=4)),
    "falcon": lambda: FalconForCausalLM(
        FalconConfig(vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=4)
    ),
    "gpt_neo": lambda: GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=40,
            hidden_size=16,
            num_layers=3,
            num_heads=4,
            max_position_embeddings=32,
            window_size=4,
            attention_types=[[["global", "local", "global"], 1]],
            intermediate_size=24,
        )
    ),
}
DEBERTA = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 32, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pad_token_id": 0,
    "share_att_key": True,
}  # fmt: skip
TOLD = {"deberta": lambda: DebertaV2ForMaskedLM(DebertaV2Config(**DEBERTA))}
"""Say by an annotation alone how much a block gives."""


def test_a_model_spread_over_devices_keeps_what_brings_its_inputs_along():
    """Accelerate's forward of each block was lost with the first look at how blocks are called, in the original too."""
    one = subject()
    layers = one.model.model.layers
    for layer in layers:
        add_hook_to_module(layer, AlignDevicesHook(execution_device="cpu"))
    before = [layer.forward for layer in layers]
    batch = batches(1)[0]
    expected = one.model(**batch).logits
    blocks.record_calls(one, batch)
    blocks.run_ends(one, batch, torch.zeros(2, 9, 16))
    assert [layer.forward for layer in layers] == before
    assert torch.equal(one.model(**batch).logits, expected)


def test_a_stand_in_for_a_block_is_its_states_or_the_first_of_a_tuple():
    """A model whose blocks hand over more is refused by name: unpacked, a batch of two would be taken for a pair."""
    one, batch = subject("gpt_neo"), batches(1)[0]
    with blocks._replace_blocks(one, lambda states: states):
        given = one.model.get_submodule(one.layers()[0])(torch.ones(2, 9, 16))
    assert torch.equal(given[0], torch.ones(2, 9, 16))
    assert torch.equal(given[:, -1], torch.ones(2, 16))
    assert type(given[0]) is type(given + 1) is torch.Tensor
    with pytest.raises(UnsupportedError, match="hand over more than their states"):
        _, _ = given
    entering, calls = blocks.record_calls(one, batch)
    assert (type(entering), len(calls)) == (torch.Tensor, 3)


def test_what_a_block_gives_beside_its_states_may_go_nowhere(monkeypatch):
    """DeBERTa's blocks give the weights of their attention, too, which the model passes on to no block."""
    one, batch = subject("deberta"), batches(1)[0]
    assert "layers" not in one.layout.whole  # two ways of looking at places are none of two layers
    assert len(blocks.record_calls(one, batch)[1]) == 3
    first, second, _ = (one.model.get_submodule(path) for path in one.layers())

    def hand_over(**_):
        states, more = first(torch.ones(2, 9, 16))
        second(states, more)

    monkeypatch.setattr(one.model.base_model, "forward", hand_over)
    with pytest.raises(UnsupportedError, match="hand over more than their states"):
        blocks.record_calls(one, batch)


def test_states_that_change_between_blocks_are_refused():
    """The largest DeBERTas convolve what their first block gives, which no block would do when run one by one."""
    torch.manual_seed(0)
    one = open_subject(DebertaV2ForMaskedLM(DebertaV2Config(**DEBERTA, conv_kernel_size=3)).eval())
    with pytest.raises(UnsupportedError, match="changes states between its blocks"):
        blocks.record_calls(one, batches(1)[0])


def subject(name="llama", seed=0):
    torch.manual_seed(seed)
    return open_subject((MODELS | TOLD)[name]().eval())


def batches(count=3, padded=False):
    draw = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        ids = torch.randint(3, 40, (2, 9), generator=draw)
        mask = torch.ones_like(ids)
        if padded:
            mask[1, 6:] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


@pytest.mark.parametrize("name", [*MODELS, *TOLD])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_blocks_in_turn_give_what_the_model_gives(name, padded, tmp_path):
    """Masks, rotary embeddings of each kind of layer and positions are the model's own."""
    one, data = subject(name), batches(padded=padded)
    for _ in blocks.visit(one, data, tmp_path, store=False):
        pass
    for batch, states in zip(data, blocks.states(tmp_path, 3), strict=True):
        with torch.no_grad():
            expected = one.model(**batch).logits
        found = blocks.run_ends(one, batch, states).logits
        real = batch["attention_mask"].bool()
        torch.testing.assert_close(found[real], expected[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_matrices_read_what_hooks_on_the_whole_model_see(name, tmp_path):
    one, data = subject(name), batches(padded=True)
    modules = {m.name: m.module for m in matrices(one.model, one.layers()).values()}
    expected = hessian.collect(lambda b: one.model(**b), one.model, data, list(modules.values()))
    for block in blocks.visit(one, data, tmp_path, store=False):
        for matrix, moments in block.read(hessian.Moments).items():
            torch.testing.assert_close(moments.value(matrix), expected[modules[matrix]], rtol=1e-4, atol=1e-6)


def test_matrices_with_one_input_share_a_reader_and_run_in_order(tmp_path):
    for block in blocks.visit(subject(), batches(), tmp_path, store=False):
        found = block.read(hessian.Moments)
        short = {name.split(".")[-2]: moments for name, moments in found.items()}
        assert short["q_proj"] is short["k_proj"] is short["v_proj"]
        assert short["gate_proj"] is short["up_proj"]
        assert len({id(moments) for moments in found.values()}) == 4
        assert all(moments.rows == 3 * 2 * 9 for moments in found.values())
        order = [[name.split(".")[-2] for name in names] for names in block.order()]
        assert order == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
        some = block.read(hessian.Moments, [name for name in found if "down" in name])
        assert list(some) == [f"{block.path}.mlp.down_proj.weight"]


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("resumed", [False, True], ids=["new", "resumed"])
def test_neither_states_nor_tables_of_all_batches_are_held(padded, resumed, tmp_path):
    """States lie on the disk; held as well, they were 2 GiB of a model of 4096 wide on 128 windows of 2048 tokens."""
    subject().save(tmp_path / "model")
    one, data = open_streamed(tmp_path / "model"), batches(7, padded=padded)
    if resumed:
        for block in blocks.visit(one, data, tmp_path / "states"):
            if block.index == 1:
                break
    block = next(found for found in blocks.visit(one, data, tmp_path / "states") if found.index == 2)
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some objects that the collector knows of do not like to be asked
        alive = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    assert sum(found.shape == (2, 9, 16) for found in alive) <= 1
    tables = [found for found in alive if found.dim() == 3 and found.shape[1:] == (9, 4)]
    assert 2 <= len({found.data_ptr() for found in tables}) <= 3
    wide = [found for found in alive if found.dim() == 4 and found.shape[-2:] == (9, 9)]
    assert len({found.data_ptr() for found in wide}) <= 1
    assert block.path.endswith("2")


@pytest.mark.parametrize("shared", ["parameter", "storage"])
def test_blocks_that_share_weights_are_refused_in_one_line(shared):
    one = subject()
    assert blocks.count(one) == sum(matrix.weight.numel() for matrix in matrices(one.model, one.layers()).values())
    first, _, last = (one.model.get_submodule(path).mlp.up_proj for path in one.layers())
    if shared == "parameter":
        last.weight = first.weight
    else:
        last.weight.data = first.weight.data
    message = r"^model.layers.0.mlp.up_proj.weight and model.layers.2.mlp.up_proj.weight share their weights: [^\n]+$"
    with pytest.raises(InputError, match=message):
        blocks.count(one)


def test_calls_that_differ_are_told_apart(tmp_path):
    """Masks of more kinds than are looked for, among equal ones."""
    one, data = subject(), batches(14)
    for number, batch in enumerate(data):
        batch["attention_mask"][1, 9 - number % 7 :] = 0
    for _ in blocks.visit(one, data, tmp_path, store=False):
        pass
    for batch, states in zip(data, blocks.states(tmp_path, 3), strict=True):
        with torch.no_grad():
            expected = one.model(**batch).logits
        real = batch["attention_mask"].bool()
        torch.testing.assert_close(blocks.run_ends(one, batch, states).logits[real], expected[real])


def test_later_blocks_read_what_changed_ones_give(tmp_path):
    one, data = subject(), batches()
    changed = one.copy()
    for block in blocks.visit(changed, data, tmp_path / "a"):
        for matrix in block.matrices.values():
            matrix.weight[:, ::2] = 0.0
    paths = one.layers()
    reference = one.copy()
    for matrix in matrices(reference.model, paths[:2]).values():
        matrix.weight[:, ::2] = 0.0
    last = [m.module for m in matrices(reference.model, [paths[2]]).values()]
    expected = hessian.collect(lambda b: reference.model(**b), reference.model, data, last)
    again = one.copy()
    for block in blocks.visit(again, data, tmp_path / "b"):
        if block.index == 2:
            for name, moments in block.read(hessian.Moments).items():
                torch.testing.assert_close(moments.value(name), expected[block.matrices[name].module])
        for matrix in block.matrices.values():
            matrix.weight[:, ::2] = 0.0
    assert not changed.model.model.layers[2].mlp.up_proj.weight[:, ::2].any()
    assert one.model.model.layers[0].mlp.up_proj.weight[:, ::2].all()


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_later_blocks_read_what_dense_ones_give_where_that_is_asked(name, tmp_path):
    one, data = subject(name), batches(padded=True)
    modules = {m.name: m.module for m in matrices(one.model, one.layers()).values()}
    expected = hessian.collect(lambda b: one.model(**b), one.model, data, list(modules.values()))
    changed = one.copy()
    for block in blocks.visit(changed, data, tmp_path, store=False, sequential=False):
        for matrix, moments in block.read(hessian.Moments).items():
            torch.testing.assert_close(moments.value(matrix), expected[modules[matrix]], rtol=1e-4, atol=1e-6)
        for matrix in block.matrices.values():
            matrix.weight.zero_()
    for batch, states in zip(data, blocks.states(tmp_path, 3), strict=True):
        real = batch["attention_mask"].bool()
        logits = blocks.run_ends(one, batch, states).logits[real]
        torch.testing.assert_close(logits, one.model(**batch).logits.detach()[real], rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="without having been read"):
        for _ in blocks.visit(one, data, tmp_path / "unread", store=False, sequential=False):
            pass


def test_what_a_block_took_is_given_back_before_the_next(tmp_path, monkeypatch):
    """A run of four blocks grew by 60 MiB, which lay free on the heap between what was held."""
    done: list[int] = []
    given: list[int] = []
    monkeypatch.setattr(blocks.allocator, "release_memory", lambda: given.append(len(done)))
    for block in blocks.visit(subject(), batches(), tmp_path):
        assert len(given) == block.index
        done.append(block.index)
    assert given == [1, 2, 3]


def test_reading_ends_with_the_last_matrix_that_is_asked_for(tmp_path):
    one, data = subject(), batches()
    for block in blocks.visit(one, data, tmp_path, store=False):
        ran: list[int] = []
        hook = block.module.mlp.act_fn.register_forward_hook(lambda *_, ran=ran: ran.append(1))
        found = block.read(hessian.Moments, [name for name in block.matrices if "q_proj" in name])
        assert len(ran) == 1  # the first batch shows in which order matrices run
        ran.clear()
        block.read(hessian.Moments)
        assert len(ran) == len(data)
        hook.remove()
        assert all(moments.rows == len(data) * 2 * 9 for moments in found.values())


def test_what_runs_twice_is_read_twice(tmp_path):
    one, data = subject(), batches()
    for path in one.layers():
        mlp = one.model.get_submodule(path).mlp
        mlp.forward = lambda x, once=mlp.forward: once(once(x))
    modules = {m.name: m.module for m in matrices(one.model, one.layers()).values()}
    expected = hessian.collect(lambda b: one.model(**b), one.model, data, list(modules.values()))
    for block in blocks.visit(one, data, tmp_path, store=False):
        for name, moments in block.read(
            hessian.Moments, [name for name in block.matrices if "up_proj" in name]
        ).items():
            assert moments.rows == 2 * len(data) * 2 * 9
            torch.testing.assert_close(moments.value(name), expected[modules[name]], rtol=1e-4, atol=1e-6)


def test_what_runs_only_for_some_batches_is_read_when_it_does(tmp_path):
    """As an expert may that is a module: its first batch is not the first of all."""
    one, data = subject(), batches()
    for block in blocks.visit(one, data, tmp_path, store=False):
        mlp, calls = block.module.mlp, []
        mlp.forward = lambda x, once=mlp.forward, calls=calls: calls.append(1) or (once(x) if len(calls) > 1 else x)
        found = block.read(hessian.Moments)
        del mlp.forward
        assert {name.split(".")[-2]: m.rows // 18 for name, m in found.items()} == {
            "q_proj": 3, "k_proj": 3, "v_proj": 3, "o_proj": 3, "gate_proj": 2, "up_proj": 2, "down_proj": 2
        }  # fmt: skip


class Killed(Exception):
    pass


@pytest.mark.parametrize("sequential", [True, False], ids=["sequential", "dense"])
@pytest.mark.parametrize("streamed", [False, True], ids=["in memory", "streamed"])
def test_a_run_that_stops_anywhere_goes_on_with_the_same_bytes(streamed, sequential, tmp_path):
    whole = subject()
    whole.save(tmp_path / "model")

    def opened():
        return open_streamed(tmp_path / "model") if streamed else whole.copy()

    def prune(one, folder, stop=None):
        for block in blocks.visit(one, batches(), folder, sequential=sequential):
            for name, moments in block.read(hessian.Moments).items():
                if block.index == stop and name == list(block.matrices)[-1]:
                    raise Killed
                block.matrices[name].weight.mul_(moments.value(name).diagonal())
        return one

    prune(opened(), tmp_path / "whole").save(tmp_path / "expected")
    for stop in (0, 1, 2):
        folder = tmp_path / f"killed-{stop}"
        with pytest.raises(Killed):
            prune(opened(), folder, stop)
        prune(opened(), folder).save(tmp_path / f"resumed-{stop}")
        for file in (tmp_path / "expected").glob("*.safetensors"):
            assert (tmp_path / f"resumed-{stop}" / file.name).read_bytes() == file.read_bytes()
    assert not list((tmp_path / "whole").glob("states-*"))
    prune(opened(), tmp_path / "whole")  # a finished one is taken as it is


@pytest.mark.parametrize(("routed", "gates"), [(False, True), (True, True), (True, False)])
def test_experts_count_the_tokens_that_they_got(routed, gates, tmp_path):
    """By themselves, or times the share that each was sent with: |W| of what is left is MoE-Pruner's score."""
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=4)).eval()
    if not gates:
        model = make_hybrid("NemotronH-moe", vocab_size=40, layers_block_type=["mamba", "moe", "attention"])

    class Plain:
        def __init__(self, model):
            self.model = model

        def layers(self):
            return [f"model.layers.{i}" for i in range(3)]

        resident, store, recall = Decoder.resident, None, None

    data = batches(padded=True)
    seen = {}
    path = f"model.layers.1.{'mlp' if gates else 'mixer'}.experts"
    experts, leaf = model.get_submodule(path), "gate_up_proj" if gates else "up_proj"
    hook = experts.register_forward_pre_hook(lambda _, args: seen.setdefault("calls", []).append(args))
    for batch in data:
        model(**batch)
    hook.remove()
    for block in blocks.visit(Plain(model), data, tmp_path, store=False):
        found = block.read(hessian.Moments, routed=routed)
        if block.index != 1:
            continue
        for expert in range(4):
            rows, sent = [], []
            for batch, (states, chosen, shares) in zip(data, seen["calls"], strict=True):
                mine = (chosen == expert).any(-1) & batch["attention_mask"].flatten().bool()
                rows.append(states.flatten(0, -2)[mine])
                sent += shares[(chosen == expert) & mine[:, None]].tolist() if routed else [1.0] * int(mine.sum())
            rows, sent = torch.cat(rows), torch.tensor(sent)[:, None]
            name = f"{path}.{leaf}[{expert}]"
            assert found[name].rows == len(rows)
            torch.testing.assert_close(
                found[name].value(name), 2 * (rows * sent).T @ (rows * sent) / len(rows), rtol=1e-4, atol=1e-6
            )
            read = rows @ getattr(experts, leaf)[expert].T
            gate, up = read.chunk(2, -1)
            inner = (torch.nn.functional.silu(gate) * up if gates else read.relu().square()) * sent
            name = f"{path}.down_proj[{expert}]"
            torch.testing.assert_close(found[name].value(name), 2 * inner.T @ inner / len(rows), rtol=1e-4, atol=1e-6)


def test_bad_input_is_refused_by_name(tmp_path):
    one = subject()
    with pytest.raises(InputError, match="0 batches"):
        next(blocks.visit(one, [], tmp_path / "a"))
    with pytest.raises(InputError, match="vocabulary has 40"):
        next(blocks.visit(one, [{"input_ids": torch.tensor([[41]])}], tmp_path / "b"))
    broken = copy.deepcopy(one)
    broken.model.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(NumericalError, match=r"model.layers.1 gives NaN"):
        list(blocks.visit(broken, batches(), tmp_path / "c", store=False))
    broken.model.save_pretrained(tmp_path / "broken")
    with pytest.raises(ModelError, match=r"layers.1.mlp.down_proj.weight holds NaN"):
        list(blocks.visit(open_streamed(tmp_path / "broken"), batches(), tmp_path / "d", store=False))
    tensors = load_file(tmp_path / "broken" / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] = tensors["model.layers.1.mlp.down_proj.weight"].to(torch.int8)
    save_file(tensors, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="stored as I8"):
        list(blocks.visit(open_streamed(tmp_path / "broken"), batches(), tmp_path / "e", store=False))
    with pytest.raises(ModelError, match="no model at"):
        open_streamed(tmp_path / "nothing" / "here")


def test_a_matrix_that_never_runs_is_named_by_whoever_asks(tmp_path):
    one = subject()
    one.model.model.layers[0].mlp.idle = torch.nn.Linear(16, 16)
    block = next(blocks.visit(one, batches(), tmp_path, store=False))
    for ask in (block.order, lambda: block.read(hessian.Moments)):
        with pytest.raises(InputError, match=r"layers\.0\.mlp\.idle\.weight was never run by its block"):
            ask()
    assert block.read(hessian.Moments, [name for name in block.matrices if "idle" not in name])


def test_experts_in_a_form_that_is_not_known_are_no_silent_half_of_the_weights():
    one = subject()
    whole = blocks.count(one)
    one.model.model.layers[1].mlp.experts = torch.nn.ParameterList([torch.zeros(8, 16, 24), torch.zeros(64, 24)])
    with pytest.raises(UnsupportedError, match=r"layers\.1\.mlp\.experts\.0 is in no form.*\d+ % of the weights"):
        blocks.count(one)
    one.model.model.layers[1].mlp.experts = torch.nn.ParameterList([torch.zeros(1, 4, 24)])
    assert blocks.count(one) == whole


def counted(folder):
    one, found = subject(), {}
    for block in blocks.visit(one, batches(4), folder):
        for name, moments in block.read(hessian.Moments).items():
            found[name] = moments.value(name).clone()
            block.matrices[name].weight[:, ::3] = 0.0
    return found, moments.rows


def test_two_processes_count_what_one_counts(tmp_path):
    def write():
        found, rows = counted(tmp_path)
        assert rows == 4 * 2 * 9
        torch.save(found, tmp_path / f"found-{PartialState().process_index}.pt")

    processes.both(write)
    expected, _ = counted(tmp_path / "single")
    for rank in range(2):
        found = torch.load(tmp_path / f"found-{rank}.pt")
        for name, H in expected.items():
            torch.testing.assert_close(found[name], H, rtol=1e-4, atol=1e-6)
