"""Which cases run apart: `make wide`. Each has a sibling in `make test` that goes through the same code.

`make test` is to take at most a quarter of an hour on two cores, whatever is added. A case may stand here only where
others of the same test stay; what nothing else tests stays in `make test`.
"""

from __future__ import annotations

__all__ = ["WIDE", "is_wide"]

WIDE = {
    "conformance/test_recipes.py::test_recipes": {"yolov4_group_sad"},
    "conformance/test_subjects.py::test_models_that_no_family_describes": {"SegformerForSemanticSegmentation"},
    "formats/test_qdq.py::test_onnx_says_where_it_rounds_and_holds_integers": {"4"},
    "subjects/network/test_pretrained.py::test_a_folder_comes_back_as_a_plain_folder": {"sound"},
    "subjects/transformer/test_cutting.py::test_cut_equals_silenced_and_costs_are_exact": {
        "bert-classifier", "distilbert-classifier", "gemma2-untied", "gemma3-base", "gemma3-untied", "gpt2-scaled",
        "llama-classifier", "llama-mha", "mixtral-base", "qwen2-sliding", "qwen3-sliding", "roberta-classifier",
        "roberta-mlm",
    },
    "subjects/transformer/test_export.py::test_onnx_generates_like_pytorch": {"gemma2"},
    "test_kill.py::test_ctrl_c_in_every_stage": {"minitron"},
    "test_kill.py::test_killed_at_ten_random_moments": {"minitron"},
    "test_second_device.py::test_every_recipe_runs_where_its_subject_lies": {
        "d_pruner", "minitron", "owl", "sparsegpt", "stun", "yolov4_group_sad",
    },
    "test_second_device.py::test_networks_are_measured_on_the_card_as_on_the_cpu": {"boxes"},
    "test_several_processes.py::test_two_processes_train_as_one_with_the_same_global_batch": {"yolov4_group_sad"},
    "test_training_options.py::test_the_model_of_a_budget_is_gone_when_the_next_one_is_made": {
        "magnitude", "owl", "sparsegpt", "wanda",
    },
}  # fmt: skip
"""Test -> its cases."""


def is_wide(name: str) -> bool:
    """Whether a test, by pytest's name for it, runs apart."""
    test, _, case = name.removeprefix("tests/").partition("[")
    return case.removesuffix("]") in WIDE.get(test, ())
