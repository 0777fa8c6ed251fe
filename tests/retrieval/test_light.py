"""Encoders without torch: static ones, and files of ONNX."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from secateur.errors import InputError
from secateur.retrieval import encoders

VECTORS = np.array([[9.0, 9.0], [3.0, 0.0], [0.0, 4.0]], dtype=np.float32)


def save_tokenizer(folder):
    words = models.WordLevel({"[UNK]": 0, "cat": 1, "dog": 2}, unk_token="[UNK]")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def static(folder, **tensors):
    folder.mkdir()
    save_tokenizer(folder)
    save_file({"embeddings": VECTORS, **tensors}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "model2vec", "normalize": bool(tensors)}))
    return str(folder)


def test_a_static_encoder_is_the_mean_of_its_tokens(tmp_path):
    embed = encoders.encoder(static(tmp_path / "plain"))
    assert embed(["cat dog", "cat cat bird", "bird"]).tolist() == [[1.5, 2.0], [3.0, 0.0], [0.0, 0.0]]
    weighed = static(tmp_path / "weighed", weights=np.array([1, 2, 0.5]), mapping=np.array([0, 2, 1]))
    assert encoders.encoder(weighed)(["cat", "cat dog"]) == pytest.approx(
        np.array([[0.0, 1.0], [0.75, 4.0]]) / [[1.0], [np.hypot(0.75, 4.0)]]
    )


def test_a_static_encoder_that_is_damaged_is_refused(tmp_path):
    folder = static(tmp_path / "plain")
    (tmp_path / "plain" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="static encoder"):
        encoders.encoder(folder)


def onnx_file(folder):
    """last_hidden_state [n, L, 2]: the vector of each token."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kinds = onnx.helper, onnx.TensorProto
    table = onnx.numpy_helper.from_array(VECTORS, "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        "encoder",
        [helper.make_tensor_value_info(name, kinds.INT64, ["n", "L"]) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("last_hidden_state", kinds.FLOAT, ["n", "L", 2])],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (folder / "onnx").mkdir(parents=True)
    onnx.save(model, folder / "onnx" / "model_int8.onnx")
    save_tokenizer(folder)
    return folder / "onnx" / "model_int8.onnx"


def test_a_file_of_onnx_is_an_encoder_with_the_pooling_and_prompts_beside_it(tmp_path):
    file = onnx_file(tmp_path)
    embed = encoders.encoder(str(file))
    mean = embed(["cat cat dog", "dog"])
    assert mean == pytest.approx(np.array([[6.0, 4.0], [0.0, 1.0]]) / [[np.hypot(6, 4)], [1.0]])
    (tmp_path / "modules.json").write_text("[]")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    (tmp_path / "config_sentence_transformers.json").write_text('{"prompts": {"query": "cat ", "document": ""}}')
    from secateur.retrieval import light

    light._open_onnx.cache_clear()
    embed = encoders.encoder(str(file))
    assert embed(["cat dog", "cat"]).tolist() == [[0.0, 4.0], [3.0, 0.0]]  # not normalised, the last token's
    asked, read = encoders.encode_pair(embed, [""], ["dog"])
    assert (asked.tolist(), read.tolist()) == ([[3.0, 0.0]], [[0.0, 4.0]])


def pool(tmp_path, file, **config):
    from secateur.retrieval import light

    (tmp_path / "1_Pooling").mkdir(exist_ok=True)
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    (tmp_path / "modules.json").write_text("[]")
    light._open_onnx.cache_clear()
    return encoders.encoder(str(file))(["cat cat dog", "dog"])


def test_a_file_of_onnx_pools_as_sentence_transformers_does_and_refuses_what_it_can_not(tmp_path):
    """Any pooling but cls and the last token was taken for a mean, without a word."""
    torch = pytest.importorskip("torch")
    pooling = pytest.importorskip("sentence_transformers.sentence_transformer.modules.pooling")
    file = onnx_file(tmp_path)
    states = np.array([[VECTORS[1], VECTORS[1], VECTORS[2]], [VECTORS[2], VECTORS[0], VECTORS[0]]])
    mask = np.array([[1, 1, 1], [1, 0, 0]])
    for mode in ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ["cls", "max"]):
        module = pooling.Pooling(2, pooling_mode=mode)
        given = {"token_embeddings": torch.tensor(states), "attention_mask": torch.tensor(mask)}
        wanted = module(given)["sentence_embedding"].numpy()
        assert pool(tmp_path, file, pooling_mode=mode) == pytest.approx(wanted), mode
    old = {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}
    assert pool(tmp_path, file, **old).tolist() == [[3.0, 4.0], [0.0, 4.0]]
    assert pool(tmp_path, file, pooling_mode_mean_sqrt_len_tokens=True)[1].tolist() == [0.0, 4.0]
    with pytest.raises(InputError, match="pooling 'median' is not known: give one of cls, mean"):
        pool(tmp_path, file, pooling_mode="median")
    with pytest.raises(InputError, match="leaves prompts out of the pooling"):
        pool(tmp_path, file, include_prompt=False)
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]')
    with pytest.raises(InputError, match="puts a dense layer behind the pooling"):
        encoders.encoder(str(file))(["cat"])


def test_what_is_no_encoder_in_onnx_is_refused(tmp_path):
    with pytest.raises(InputError, match="no file here"):
        encoders.encoder(str(tmp_path / "none.onnx"))
    pytest.importorskip("onnxruntime")
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        encoders.encoder(str(tmp_path / "bad.onnx"))
    save_tokenizer(tmp_path)
    with pytest.raises(InputError, match="embedder"):
        encoders.encoder(str(tmp_path / "bad.onnx"))
    with pytest.raises(InputError, match="CUDAExecutionProvider"):
        encoders.encoder(str(tmp_path / "bad.onnx"), "cuda")


def test_it_is_as_model2vec_reads_it(tmp_path):
    model2vec = pytest.importorskip("model2vec")
    folder = static(tmp_path / "weighed", weights=np.array([1, 2, 0.5]))
    texts = ["cat dog dog", "bird", ""]
    assert encoders.encoder(folder)(texts) == pytest.approx(model2vec.StaticModel.from_pretrained(folder).encode(texts))
