"""Which cases run apart: `make wide`. Each has a sibling in `make test` that goes through the same code.

`make test` is to take at most a quarter of an hour on two cores, whatever is added. A case may stand here only where
others of the same test stay; what nothing else tests stays in `make test`, but for `FILES`.
"""

from __future__ import annotations

__all__ = ["WIDE", "is_wide"]

WIDE = {
    "conformance/test_recipes.py::test_recipes": {"yolov4_group_sad"},
    # Cut, silenced and counted in subjects/transformer/test_cutting.py, saved and opened in test_saving.py.
    "conformance/test_subjects.py::test_mixtures_of_experts": {
        "deepseek2-groups", "deepseek3", "mixtral", "olmoe", "phimoe", "qwen3-moe",
    },
    # As an encoder with a decoder T5 is cut, saved and opened in subjects/transformer/test_encoder_decoder.py.
    "conformance/test_subjects.py::test_models_that_no_family_describes": {
        "SegformerForSemanticSegmentation", "T5ForConditionalGeneration",
    },
    # Its layers are those of bert, which stays.
    "conformance/test_subjects.py::test_transformers": {"roberta"},
    # Each number of processes stays with one of the two sizes.
    "data/test_feeding.py::test_each_batch_is_what_it_was_when_it_came": {"1-8", "2-24", "3-8", "9-24"},
    # The whole network within autocast stays; the note and the file are of one function.
    "formats/test_onnx_files.py::test_a_network_that_casts_to_half_precision_is_a_file_in_float32": {"False"},
    # Operators of torch's exporter; cut and written as the others.
    "formats/test_onnx_files.py::test_the_file_runs_alone_and_equals_pytorch": {"grouped", "spectrum"},
    "formats/test_qdq.py::test_onnx_says_where_it_rounds_and_holds_integers": {"4"},
    # Each way stays with one of the two budgets, and each recipe with both.
    "methods/test_protection.py::test_what_is_protected_stays_and_the_budget_counts_it": {
        "magnitude-how0-pattern=2:4", "magnitude-how1-weights=50%", "sparsegpt-how4-pattern=2:4",
        "sparsegpt-how5-weights=50%", "wanda-how2-weights=50%", "wanda-how3-pattern=2:4",
    },
    # One loop calls whatever score there is; each score has a test of its own.
    "recipes/data/test_kd_data_pruning.py::test_a_teacher_is_worth_more_than_labels_of_which_some_are_wrong": {
        "forgetting", "grand",
    },
    # "memory" is the sum of the two.
    "recipes/language/test_minitron.py::test_budgets_of_other_measures_are_kept": {"bytes=80%", "kv_cache=60%"},
    # The losses that classifiers are taught by in the test above them; those with layers of their own stay.
    "recipes/vision/test_nd_loss.py::test_hosts_and_variants_teach_detectors_too": {
        "{'host': 'dist'}", "{'host': 'dkd'}", "{'variant': 'direction'}", "{'variant': 'norm'}",
    },
    # Each of the two ways stays with one pattern that is not the other's.
    "recipes/sparse/test_owl.py::test_a_run_holds_each_block_to_the_n_that_it_got": {
        "memory-pattern=4:8", "streamed-pattern=2:4", "streamed-pattern=4:8",
    },
    # Each method stays with each optimiser, and with both times.
    "recover/sparsity/test_sparsify.py::test_state_survives_torchs_own_state_dict": {
        "25-dhspg-adam", "25-hesso-adam", "25-hesso-sgd", "4-dhspg-adamw", "4-dhspg-sgd", "4-hesso-adamw",
    },
    # Streamed as wanda is; its shares by layer are streamed in recipes/sparse/test_owl.py.
    "runs/backends/test_streamed.py::test_streamed_runs_have_the_same_weights_and_figures": {"owl", "wanda"},
    # Scores have tests of their own; two read from the disk, one with a training and one without.
    "runs/test_data.py::test_texts_on_the_disk_are_scored_as_in_memory": {"memorisation-0.2"},
    "runs/test_distilling.py::test_a_second_student_asks_for_nothing_that_a_cache_holds": {"8"},
    "runs/test_distilling.py::test_a_sparse_student_learns_in_integers_and_is_measured_as_saved": {"4"},
    "runs/test_distilling.py::test_what_tells_of_whole_texts_learns_from_teachers_of_other_tokenizers": {"embedding"},
    # Each of the two choices stays in one case.
    "runs/test_distilling.py::test_teachers_that_differ_by_padding_teach_as_those_without_it": {
        "llama-how2-0", "masked-how1-all",
    },
    # Written and read block by block, as wanda is.
    "runs/test_measuring.py::test_tied_embeddings_stay_tied_and_whole": {"magnitude", "sparsegpt"},
    # Arms of a run are added in the cases of networks; detectors train as in recipes/vision.
    "runs/test_scratch_baseline.py::test_arms_are_added_to_a_run_of_a_detector": {""},
    # A model of two stacks is written, too, in subjects/transformer/test_encoder_decoder.py.
    "subjects/network/test_pretrained.py::test_a_folder_comes_back_as_a_plain_folder": {"sound", "two stacks"},
    # Each branch is erased in another case, too.
    "subjects/network/test_segments.py::test_erased_equals_zeros_and_takes_less": {"names0"},
    # Each of the two choices stays in one case: "new-full" and "resumed-padded".
    "subjects/transformer/test_blocks.py::test_neither_states_nor_tables_of_all_batches_are_held": {
        "new-padded", "resumed-full",
    },
    "subjects/transformer/test_cutting.py::test_cut_equals_silenced_and_costs_are_exact": {
        "bert-classifier", "distilbert-classifier", "gemma2-untied", "gemma3-base", "gemma3-untied", "gpt2-scaled",
        "gemma2-bias", "llama-classifier", "llama-mha", "mistral", "mixtral-base", "phi3-longrope", "qwen2",
        "qwen2-sliding", "qwen3-sliding", "roberta", "roberta-classifier", "roberta-mlm",
        # Cut, silenced and counted in conformance/test_subjects.py, too; here llama-tied-bias, qwen3-moe and
        # deepseek2-groups stay.
        "deepseek2", "llama", "qwen3",
        # gpt-oss, deepseek3 and qwen2-moe stay of the mixtures, and gemma3 of Gemma.
        "gemma2", "olmoe", "phimoe",
    },
    # NemotronH-moe has layers of the same kinds, and Qwen3_5 those of Qwen3Next.
    "subjects/transformer/test_deriving.py::test_layers_of_several_kinds_are_cut_as_silenced": {
        "Bamba", "FalconH1", "NemotronH", "Qwen3Next",
    },
    # Qwen3Next has the same mixer.
    "subjects/transformer/test_deriving.py::test_heads_of_mixers_that_share_nothing_are_cut_as_silenced": {
        "Qwen3_5-True",
    },
    "subjects/transformer/test_deriving.py::test_heads_and_channels_of_mamba_2_are_cut_as_silenced": {"alike"},
    "subjects/transformer/test_deriving.py::test_experts_with_inputs_before_outputs_are_units": {
        "AriaTextForCausalLM-more0",
    },
    "subjects/network/test_pretrained.py::test_heads_of_a_mixer_are_cut_as_those_of_any_network_and_load_anywhere": {
        "RecurrentGemma",
    },
    # Wav2Vec2 stays, whose encoder it is.
    "subjects/transformer/test_sources.py::test_an_encoder_of_sounds_is_cut_and_counted_by_the_frames_that_it_reads": {
        "Hubert",
    },
    # The same choices with LoRA and, of a Llama, with DoRA stay.
    "subjects/transformer/test_adapters.py::test_a_translated_adapter_equals_the_merged_model_cut": {
        "bert-mlm-True-labels7", "gpt2-scaled-True-labels6", "qwen3-True-labels5",
    },
    "subjects/transformer/test_export.py::test_onnx_generates_like_pytorch": {"gemma2"},
    # Its encoder is cut in test_sources.py; T5 and Bart stay.
    "subjects/transformer/test_encoder_decoder.py::test_a_cut_equals_silencing_and_loads_without_secateur": {"Whisper"},
    # Channels go, and adapters are translated, in test_adapters.py.
    (
        "subjects/transformer/test_traced_cuts.py::"
        "test_what_recipes_do_not_cut_in_a_class_is_mapped_and_adapters_are_translated"
    ): {
        "channels",
    },
    # The other two have mixers of the same kind.
    "methods/test_elastic.py::test_masked_is_sliced_and_costs_what_it_says": {"NemotronH"},
    # conformance/test_recipes.py runs these recipes, too; flags, options and budgets in all pages are checked as they
    # stand. Pages that say more than how a recipe is run stay, and one each of an encoder, decoder and detector.
    "test_docs.py::test_code_blocks_run": {
        "docs/recipes/d_pruner.md", "docs/recipes/dp4tl.md", "docs/recipes/gpusq_vit.md",
        "docs/recipes/ignore_top_k.md", "docs/recipes/kd_data_pruning.md", "docs/recipes/llm_pruner.md",
        "docs/recipes/minitron.md", "docs/recipes/nd_loss.md", "docs/recipes/nemotron_elastic.md",
        "docs/recipes/otov3.md", "docs/recipes/owl.md", "docs/recipes/pat.md",
        "docs/recipes/rethinking_pruning_value.md", "docs/recipes/romanian_distilberts.md",
        "docs/recipes/shortgpt.md", "docs/recipes/slicegpt.md", "docs/recipes/slimmoe.md",
        "docs/recipes/sparsegpt.md", "docs/recipes/stun.md", "docs/recipes/wanda.md",
        "docs/recipes/yolov4_group_sad.md",
    },
    # A narrower and a wider window stay.
    "reports/test_report.py::test_nothing_overflows_and_everything_shows": {"390"},
    # Where the disk is full early and late stays.
    "test_bad_input.py::test_a_full_disk": {"200k", "96k"},
    "recipes/language/test_pat.py::test_a_training_that_was_stopped_ends_with_the_same_bytes": {"5"},
    "recipes/sparse/test_stun.py::test_other_rules_keep_as_many_of_each_layer": {"soft"},
    # conformance/test_recipes.py saves and opens its results; their size is told by formats/test_qdq.py.
    (
        "recipes/vision/test_gpusq_vit.py::"
        "test_a_saved_result_is_small_and_loads_with_equal_outputs_where_secateur_is_not"
    ): {
        "",
    },
    # A cache, and masks that lack, are in other cases of segmenters and of caches.
    "runs/test_distilling.py::test_a_segmenter_learns_from_outputs_with_names_pixel_by_pixel": {
        "two from a cache, without masks",
    },
    "test_several_processes.py::test_single_weights_go_in_two_processes_as_in_one": {"stun-False-options0"},
    # Ctrl-C comes in every stage, and kills at random moments.
    "test_kill.py::test_ctrl_c_at_random_moments": {""},
    "test_kill.py::test_ctrl_c_in_every_stage": {"minitron"},
    "test_kill.py::test_killed_at_ten_random_moments": {"minitron"},
    # One cut and one loop; llm_pruner, romanian_distilberts, shortgpt and ziplm stay.
    "test_second_device.py::test_a_recipe_prunes_and_trains_a_model_that_lies_on_two_devices": {
        "ast", "minitron", "slicegpt", "slimmoe",
    },
    # The test of all recipes trains them on the card.
    "test_second_device.py::test_a_subject_on_the_cpu_is_trained_on_the_card_and_comes_back": {"otov3"},
    # One table of scores is asked; each score has a test of its own.
    "test_second_device.py::test_examples_are_scored_by_a_network_on_the_card": {"forgetting", "grand"},
    # Those of language models lie on two devices in the test above; nd_loss comes back from the card in others.
    "test_second_device.py::test_every_recipe_runs_where_its_subject_lies": {
        "d_pruner", "llm_pruner", "minitron", "nd_loss", "nemotron_elastic", "owl", "pat", "ph3",
        "romanian_distilberts", "shortgpt", "sparsegpt", "stun", "yolov4_group_sad", "ziplm",
    },
    # Read, counted and timed as a Llama.
    "test_second_device.py::test_transformers_are_measured_on_the_card_as_on_the_cpu": {"gpt2", "masked"},
    "test_second_device.py::test_a_step_of_distillation_copies_its_batch_and_waits_once_for_each_loss": {"js"},
    "test_second_device.py::test_networks_are_measured_on_the_card_as_on_the_cpu": {"boxes"},
    # llm_pruner, shortgpt and slicegpt heal and ziplm learns by the function by which minitron learns; what they
    # calibrate is shared out as in test_together.py. Of detectors yolov8_cwd stays.
    "test_several_processes.py::test_two_processes_train_as_one_with_the_same_global_batch": {
        "llm_pruner", "shortgpt", "slicegpt", "yolov4_group_sad", "ziplm",
    },
    # Its networks train as those of kd_data_pruning do, by one loop.
    "test_several_processes.py::test_training_sets_are_cut_by_two_processes_as_by_one": {"dp4tl"},
    "test_training_options.py::test_the_model_of_a_budget_is_gone_when_the_next_one_is_made": {
        "ast", "magnitude", "owl", "sparsegpt", "wanda",
    },
    # They heal by the one call that shortgpt heals by, and train in the stages of yolov8_cwd.
    "test_training_options.py::test_what_a_recipe_is_asked_for_is_in_force": {
        "llm_pruner", "slicegpt", "yolov4_group_sad",
    },
}  # fmt: skip
"""Test -> its cases."""


FILES = {
    # Ray starts half a dozen processes, for half a minute; what it reads is told of by data/survey.py as without it.
    "data/test_ray_data.py",
}
"""What runs apart as a whole, as an engine of its own."""


def is_wide(name: str) -> bool:
    """Whether a test, by pytest's name for it, runs apart."""
    test, _, case = name.removeprefix("tests/").partition("[")
    return test.partition("::")[0] in FILES or case.removesuffix("]") in WIDE.get(test, ())
