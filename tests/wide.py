"""Which cases run apart: `make wide`. Each has a sibling in `make test` that goes through the same code.

`make test` is to take at most a quarter of an hour on two cores, whatever is added. A case may stand here only where
others of the same test stay. A whole test that takes seconds runs apart by `@pytest.mark.wide` where it joins what
others go through one by one; what nothing else goes through stays in `make test`, but for `FILES`.
"""

from __future__ import annotations

from secateur.recipes import cards
from subjects.tiny import GENERATORS

__all__ = ["FILES", "WIDE", "is_wide"]

WIDE = {
    "conformance/test_recipes.py::test_recipes": {"yolov4_group_sad"},
    # Cut, silenced and counted in subjects/transformer/test_cutting.py, saved and opened in test_saving.py.
    "conformance/test_subjects.py::test_mixtures_of_experts": {
        "deepseek2-groups", "deepseek3", "mixtral", "olmoe", "phimoe", "qwen2-moe", "qwen3-moe",
    },
    # As an encoder with a decoder T5 is cut, saved and opened in subjects/transformer/test_encoder_decoder.py.
    "conformance/test_subjects.py::test_models_that_no_family_describes": {
        "SegformerForSemanticSegmentation", "T5ForConditionalGeneration",
    },
    # An encoder and two decoders stay; qwen3 is cut in subjects/transformer/test_adapters.py, too.
    "conformance/test_subjects.py::test_transformers": {"distilbert", "qwen3", "roberta"},
    # Tokenizers of WordPiece and of BPE stay.
    "recover/distillation/test_alignment.py::test_every_whitespace_word_is_covered_once": {"Unigram"},
    "recover/distillation/test_alignment.py::test_words_and_pairs_of_two_readings_are_the_same_characters": {"Unigram"},
    # Each number of processes stays with one of the two sizes.
    "data/test_feeding.py::test_each_batch_is_what_it_was_when_it_came": {"1-8", "2-24", "3-8", "9-24"},
    # Operators of torch's exporter; cut and written as the others.
    "formats/test_onnx_files.py::test_the_file_runs_alone_and_equals_pytorch": {
        "fused attention", "grouped", "residual", "spectrum",
    },
    # What sees stays, and what says that it does not generate, too.
    (
        "subjects/transformer/test_export.py::"
        "test_onnx_of_what_reads_no_tokens_has_its_config_and_says_whether_it_generates"
    ): {
        "heard",
    },
    # Sounds and channels; series of steps go through the same line.
    "formats/test_onnx_files.py::test_series_of_any_length_where_the_network_takes_them": {"channels-sizes1-longer1"},
    # Of any size, too, where heights and widths are named.
    "formats/test_onnx_files.py::test_images_of_any_size_where_the_network_takes_them": {"Segmenter-True-given0"},
    "formats/test_qdq.py::test_onnx_says_where_it_rounds_and_holds_integers": {"4"},
    # Each way stays with one of the two budgets, and each recipe with both.
    "methods/test_protection.py::test_what_is_protected_stays_and_the_budget_counts_it": {
        "magnitude-how0-pattern=2:4", "magnitude-how1-weights=50%", "sparsegpt-how4-pattern=2:4",
        "sparsegpt-how5-weights=50%", "wanda-how2-weights=50%", "wanda-how3-pattern=2:4",
    },
    # One loop calls whatever score there is; each score has a test of its own.
    "recipes/data/test_kd_data_pruning.py::test_a_teacher_is_worth_more_than_labels_of_which_some_are_wrong": {
        "el2n", "forgetting", "grand",
    },
    # Of an earlier run, by its folder; what it kept stands in one file.
    (
        "recipes/data/test_kd_data_pruning.py::"
        "test_scores_of_an_earlier_run_or_index_serve_another_budget_alpha_and_student"
    ): {
        "first-how0",
    },
    "recipes/data/test_kd_data_pruning.py::test_the_full_set_and_the_teacher_can_be_discarded": {
        "work/kept-examples=20%/examples.npz",
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
    "runs/backends/test_streamed.py::test_streamed_runs_have_the_same_weights_and_figures": {
        "magnitude", "owl", "wanda",
    },
    # Means stay: both read the same blocks.
    "runs/backends/test_streamed.py::test_stun_streams_a_mixture_block_by_block": {"counts"},
    "runs/backends/test_offloaded.py::test_experts_are_scored_and_cut_where_they_are_brought": {"options0"},
    # Ctrl-C and kills come to several processes in the same file.
    "runs/test_context_files.py::test_line_for_line_with_its_own_fields": {"2"},
    "runs/test_context_files.py::test_a_pipe_is_read_once": {"70-2"},
    # Scores have tests of their own; two read from the disk, one with a training and one without.
    "runs/test_data.py::test_texts_on_the_disk_are_scored_as_in_memory": {"forgetting-0.2", "memorisation-0.2"},
    # In halves as in full precision; each pair of numbers stays in one case.
    "runs/test_distilling.py::test_hidden_states_of_another_width_go_through_a_projection": {"half precision"},
    "runs/test_cutting.py::test_experts_are_cut_to_sizes_that_their_kernel_takes": {
        "params=62%-dtype0", "params=75%-dtype1",
    },
    "data/test_packages.py::test_folders_of_graphs": {"wordnet-files2"},
    # Residual branches and transformers stay.
    "subjects/network/test_traced.py::test_timm_out_of_the_box": {"res2net50_26w_4s", "mobilevit_xxs", "skresnet18"},
    # Its states are as Mamba's, and its window as Qwen3_5's.
    "subjects/transformer/test_steps.py::test_states_of_recurrences_and_convolutions_are_no_keys_and_values": {
        "RecurrentGemma",
    },
    "runs/test_distilling.py::test_a_second_student_asks_for_nothing_that_a_cache_holds": {"8"},
    "runs/test_distilling.py::test_a_sparse_student_learns_in_integers_and_is_measured_as_saved": {"4"},
    "runs/test_distilling.py::test_what_tells_of_whole_texts_learns_from_teachers_of_other_tokenizers": {
        "classes", "embedding",
    },
    # Shares and labels are told of in the test of loyalty, too.
    "runs/test_distilling.py::test_several_teachers_are_followed_together": {"how1", "how2"},
    "runs/test_distilling.py::test_a_teacher_that_is_offloaded_teaches_what_it_teaches_in_memory": {"how1", "how2"},
    # Each of the two choices stays in one case.
    "runs/test_distilling.py::test_teachers_that_differ_by_padding_teach_as_those_without_it": {
        "llama-how2-all",
        "llama-how2-0", "masked-how0-all", "masked-how1-0", "masked-how1-all",
    },
    # Read as those of embeddings and head in runs/backends/test_streamed.py.
    "runs/test_measuring.py::test_tied_embeddings_stay_tied_and_whole": {"magnitude", "sparsegpt", "wanda"},
    "runs/test_measuring.py::test_the_least_that_is_told_can_be_had": {"owl"},
    # Arms of a run are added in the cases of networks; detectors train as in recipes/vision.
    "runs/test_scratch_baseline.py::test_arms_are_added_to_a_run_of_a_detector": {""},
    # A model of two stacks is written, too, in subjects/transformer/test_encoder_decoder.py.
    "subjects/network/test_pretrained.py::test_a_folder_comes_back_as_a_plain_folder": {
        "pixels", "sound", "two stacks",
    },
    # Each branch is erased in another case, too.
    "subjects/network/test_segments.py::test_erased_equals_zeros_and_takes_less": {"names0", "names1"},
    # Each of the two choices stays in one case: "new-full" and "resumed-padded".
    "subjects/transformer/test_blocks.py::test_neither_states_nor_tables_of_all_batches_are_held": {
        "new-padded", "resumed-full",
    },
    "subjects/transformer/test_cutting.py::test_cut_equals_silenced_and_costs_are_exact": {
        "bert-classifier", "distilbert-classifier", "gemma2-untied", "gemma3-base", "gemma3-untied", "gpt2-scaled",
        "gemma2-bias", "llama-classifier", "llama-mha", "mistral", "mixtral-base", "phi3-longrope", "qwen2",
        "qwen2-sliding", "qwen3-sliding", "roberta", "roberta-classifier", "roberta-mlm",
        # Cut, silenced and counted in conformance/test_subjects.py, too; llama-tied-bias stays.
        "deepseek2", "llama", "qwen3",
        # gpt-oss and deepseek3 stay of the mixtures, gemma3 of Gemma, phi3 of Phi, and bert of encoders.
        "bert-mlm", "deepseek2-groups", "distilbert", "gemma2", "mixtral", "olmoe", "phi3-partial", "phimoe",
        "qwen2-moe", "qwen3-moe",
    },
    # NemotronH-moe has layers of the same kinds, and Qwen3_5 those of Qwen3Next; Lfm2 stays in the test below.
    "subjects/transformer/test_deriving.py::test_layers_of_several_kinds_are_cut_as_silenced": {
        "Bamba", "FalconH1", "Lfm2", "NemotronH", "Qwen3Next", "RecurrentGemma",
    },
    # Lfm2 stays, and RecurrentGemma's heads are cut as those of any network.
    "subjects/transformer/test_deriving.py::test_heads_of_mixers_that_share_nothing_are_cut_as_silenced": {
        "Qwen3Next-False", "Qwen3_5-True", "RecurrentGemma-True",
    },
    "subjects/transformer/test_deriving.py::test_heads_and_channels_of_mamba_2_are_cut_as_silenced": {"alike"},
    "subjects/transformer/test_deriving.py::test_experts_with_inputs_before_outputs_are_units": {
        "AriaTextForCausalLM-more0",
    },
    "subjects/network/test_pretrained.py::test_heads_of_a_mixer_are_cut_as_those_of_any_network_and_load_anywhere": {
        "RecurrentGemma",
    },
    "subjects/transformer/test_parts.py::test_a_part_is_looked_at_and_measured_alone": {"False"},
    # The projector stays.
    "subjects/transformer/test_parts.py::test_a_part_that_reads_images_is_looked_at_alone": {
        "vision_config", "vision_tower",
    },
    # Wav2Vec2 stays, whose encoder it is.
    "subjects/transformer/test_sources.py::test_an_encoder_of_sounds_is_cut_and_counted_by_the_frames_that_it_reads": {
        "Hubert",
    },
    # The same choices with LoRA and, of a Llama, with DoRA stay.
    "subjects/transformer/test_adapters.py::test_a_translated_adapter_equals_the_merged_model_cut": {
        "bert-mlm-True-labels7", "gpt2-scaled-False-labels2", "gpt2-scaled-True-labels6", "qwen3-False-labels1",
        "qwen3-True-labels5",
    },
    # DoRA's magnitudes are sliced in test_adapters.py.
    (
        "subjects/transformer/test_traced_cuts.py::"
        "test_adapters_are_translated_for_a_result_whose_tensors_have_sizes_of_their_own"
    ): {
        "True",
    },
    "subjects/transformer/test_export.py::test_onnx_generates_like_pytorch": {"gemma2", "mixtral"},
    "subjects/transformer/test_export.py::test_onnx_of_other_networks_of_texts_takes_any_length": {"both", "decoder"},
    # The encoder of the first is cut in test_sources.py; T5 and Bart stay.
    "subjects/transformer/test_encoder_decoder.py::test_a_cut_equals_silencing_and_loads_without_secateur": {
        "Whisper", "UMT5",
    },
    # Every family without its first layer, and without all but the last; some with layers between.
    "subjects/transformer/test_decoder.py::test_generation_with_the_cache_equals_generation_without": {
        f"gone{place}-{name}" for place in (1, 2) for name in GENERATORS
        if name not in ("deepseek2", "gemma3", "gpt-oss", "gpt2", "llama", "qwen2-moe")
    },
    # Channels go, and adapters are translated, in test_adapters.py.
    (
        "subjects/transformer/test_traced_cuts.py::"
        "test_what_recipes_do_not_cut_in_a_class_is_mapped_and_adapters_are_translated"
    ): {
        "channels", "ranks",
    },
    "subjects/transformer/test_traced_cuts.py::test_a_cut_of_a_gguf_file_has_the_map_of_a_cut_of_its_folder": {
        "model.gguf",
    },
    (
        "subjects/transformer/test_traced_cuts.py::"
        "test_an_adapter_of_the_base_is_translated_to_a_model_that_was_cut_as_a_network"
    ): {
        "llama",
    },
    # The other one has mixers of the same kind.
    "methods/test_elastic.py::test_masked_is_sliced_and_costs_what_it_says": {
        "NemotronH", "NemotronH-latent", "gpt-oss",
    },
    "methods/test_elastic.py::test_experts_without_gates_are_an_axis_as_gated_ones_are": {"NemotronH-latent"},
    "methods/test_blockwise.py::test_starved_experts_of_blocks_done_before_a_kill_are_counted": {"owl", "wanda"},
    # Each end, and each scope, stays in one case.
    "methods/test_updates.py::test_the_first_floor_of_k_n_go_or_stay_as_a_stable_sort_has_them": {
        "largest-tensor", "smallest-global",
    },
    # A table of each kind of layer stays: an encoder's, a decoder's with gates, with experts, and one of Conv1D.
    "subjects/transformer/test_table_reader.py::test_a_derived_table_is_the_one_written_by_hand": {
        "distilbert", "gemma2-untied", "gpt2", "llama-tied-bias", "phi3", "qwen3",
    },
    # Each is a case more of what the others of its test go through, line by line.
    "recipes/language/test_minitron.py::test_layers_are_judged_once_for_all_candidates_and_budgets": {"False"},
    "recipes/language/test_pat.py::test_the_cut_model_says_what_the_masked_one_said": {"qwen3-dora", "llama"},
    (
        "recipes/language/test_romanian_distilberts.py::"
        "test_shares_of_the_soft_targets_add_up_to_one_where_a_foreign_teacher_tells_tokens"
    ): {
        "weights0",
    },
    "recipes/sparse/test_d_pruner.py::test_the_published_form_has_the_published_weight": {"options1-0.1"},
    "recipes/sparse/test_stun.py::test_a_model_without_experts_loses_neurons_first_then_weights": {"weights=60%"},
    "recipes/vision/test_otov3.py::test_a_network_of_timm_is_erased_and_pruned": {"channels=60%"},
    "recipes/vision/test_otov3.py::test_a_run_ends_with_a_program_that_needs_nothing_of_ours": {"channels=50%"},
    "recover/distillation/test_losses.py::test_through_heads_not_even_the_logits_are_whole": {
        "jensen_shannon_from_hidden",
    },
    "runs/test_compression.py::test_as_many_weights_are_zero_as_are_asked_for": {"wanda"},
    "runs/test_cutting.py::test_scores_look_at_data": {"data.npz-nonzero", "data.npz-taylor"},
    "runs/test_distilling.py::test_loyalty_is_to_the_teachers_that_are_asked": {
        "{'choice': 'label'}",
        "{'shares': [0, 1]}", "{'shares': [1, 0]}",
    },
    "runs/test_measuring.py::test_predicted_work_is_of_the_batch_that_is_measured": {"True"},
    "subjects/network/test_pretrained.py::test_a_result_with_a_modelling_file_is_not_said_to_be_unloadable": {"True"},
    # An encoder, a decoder and experts stay.
    "subjects/transformer/test_offloaded.py::test_a_cut_is_that_of_the_model_in_memory": {
        "deepseek3", "gpt2", "llama",
    },
    "subjects/transformer/test_logits.py::test_without_its_head_a_model_gives_its_own_logits_all_the_same": {
        "Cohere-0.0625", "FalconH1-0.25", "OPT-1.0",
    },
    # One axis of each kind stays.
    "subjects/transformer/test_deriving.py::test_an_axis_that_fails_stays_whole_with_the_reason": {
        "BertGenerationDecoder-more3-whole3", "DogeForCausalLM-more2-whole2", "MraForMaskedLM-more4-whole4",
    },
    "subjects/transformer/test_reshaped.py::test_a_network_cut_in_no_whole_units_loads_anywhere": {
        "AutoModelForSemanticSegmentation",
    },
    "runs/test_memory_plan.py::test_experts_count_as_evenly_used": {"False"},
    # One loop over blocks; each of the two methods stays both streamed and in memory in one case.
    "recipes/sparse/test_sparsegpt.py::test_streamed_gives_the_same_weights": {"sparsegpt-False", "wanda-True"},
    "recipes/sparse/test_sparsegpt.py::test_scopes_are_kept_exactly_and_the_error_of_each_block_is_told": {"owl"},
    "recipes/sparse/test_magnitude.py::test_counts_are_exact_and_everything_else_stays": {"owl", "sparsegpt"},
    "recipes/sparse/test_ast.py::test_every_group_along_the_inputs_keeps_exactly_n": {"gpt2"},
    "recipes/sparse/test_d_pruner.py::test_what_stays_is_the_original_to_the_bit_and_the_original_stays": {"qwen3"},
    # Shards and replicas each stay in one of the two tests.
    "test_several_processes.py::test_a_training_that_one_of_two_processes_was_asked_to_end_goes_on": {"fsdp2"},
    "test_several_processes.py::test_each_way_of_training_is_that_of_one_process": {"ddp"},
    # conformance/test_recipes.py runs all recipes, too; flags, options and budgets in all pages are checked as they
    # stand. Of the guide's pages a newcomer's first ones stay, and those that are over in a second or two.
    "test_docs.py::test_code_blocks_run": {
        "docs/guide/any-network.md", "docs/guide/data.md", "docs/guide/distilling.md", "docs/guide/kick.md",
        "docs/guide/oracle.md", "docs/guide/reasoning.md", "docs/guide/regimes.md", "docs/guide/reload.md",
        "docs/guide/runs.md",
        "docs/guide/sparsity.md", "docs/guide/streaming.md",
        *(f"docs/recipes/{name}.md" for name in cards() if name not in ("htmlrag", "magnitude", "provence")),
    },
    # A narrower and a wider window stay.
    "reports/test_report.py::test_nothing_overflows_and_everything_shows": {"390"},
    # Where the disk is full early and late stays.
    "test_bad_input.py::test_a_full_disk": {"200k", "96k"},
    "recipes/language/test_pat.py::test_a_training_that_was_stopped_ends_with_the_same_bytes": {"5"},
    "recipes/sparse/test_stun.py::test_other_rules_keep_as_many_of_each_layer": {"random", "soft"},
    # conformance/test_recipes.py saves and opens its results; their size is told by formats/test_qdq.py.
    (
        "recipes/vision/test_gpusq_vit.py::"
        "test_a_saved_result_is_small_and_loads_with_equal_outputs_where_secateur_is_not"
    ): {
        "",
    },
    # A cache, and masks that lack, are in other cases of segmenters and of caches.
    "runs/test_distilling.py::test_a_segmenter_learns_from_outputs_with_names_pixel_by_pixel": {
        "named outputs", "two from a cache, without masks",
    },
    "test_several_processes.py::test_single_weights_go_in_two_processes_as_in_one": {
        "d_pruner-False-options2", "stun-False-options0",
    },
    # With and without a name, and with and without an old result, in one case each.
    "_utils/test_rundir.py::test_a_kill_at_any_moment_of_publishing_leaves_the_old_or_the_new_result": {
        "None-",
        "None-b", "old-",
    },
    # Ctrl-C comes in every stage; kills at random moments come to trainings in recover/training/test_loop.py.
    "test_kill.py::test_ctrl_c_at_random_moments": {""},
    # That training does what it is for: each step of it has tests of its own, the same bytes after a kill among them.
    "runs/test_chats.py::test_a_recipe_cuts_and_recovers_on_chats": {""},
    "runs/test_distilling.py::test_a_student_comes_nearer_to_its_teacher_and_is_an_ordinary_model": {""},
    "recover/distillation/test_policy.py::test_on_policy_brings_the_student_to_its_teacher": {""},
    "methods/test_example_scores.py::test_what_is_mislabelled_is_memorised": {""},
    "recipes/language/test_pat.py::test_a_mask_converges_and_the_record_says_how": {""},
    "recipes/language/test_romanian_distilberts.py::test_training_brings_each_loss_down_where_it_is_alone": {
        "factors0-30", "factors2-30",
    },
    "test_kill.py::test_ctrl_c_in_every_stage": {"minitron"},
    # One cut and one loop; llm_pruner, ph3 and shortgpt stay.
    "test_second_device.py::test_a_recipe_prunes_and_trains_a_model_that_lies_on_two_devices": {
        "ast", "minitron", "nemotron_elastic", "pat", "romanian_distilberts", "slicegpt", "slimmoe", "ziplm",
    },
    # The test of all recipes trains them on the card.
    "test_second_device.py::test_a_subject_on_the_cpu_is_trained_on_the_card_and_comes_back": {"otov3"},
    # Its surrogates stay in two of the three cases.
    "test_second_device.py::test_dp4tl_asks_its_networks_where_they_lie": {"options1"},
    # One table of scores is asked; each score has a test of its own.
    "test_second_device.py::test_examples_are_scored_by_a_network_on_the_card": {"forgetting", "grand"},
    # Those of language models lie on two devices in the test above; nd_loss comes back from the card in others.
    "test_second_device.py::test_every_recipe_runs_where_its_subject_lies": {
        "consensus_polarization", "d_pruner", "gpusq_vit", "llm_pruner", "minitron", "nd_loss", "nemotron_elastic",
        "owl", "pat", "ph3", "provence", "romanian_distilberts", "shortgpt", "slicegpt", "sparsegpt", "stun", "wanda",
        "yolov4_group_sad", "yolov8_cwd", "ziplm",
    },
    # Read, counted and timed as a Llama.
    "test_second_device.py::test_transformers_are_measured_on_the_card_as_on_the_cpu": {"gpt2", "masked"},
    "test_second_device.py::test_a_step_of_distillation_copies_its_batch_and_waits_once_for_each_loss": {
        "cached", "js",
    },
    "test_second_device.py::test_passes_over_the_data_run_where_training_would": {"gpusq_vit-passes1"},
    "test_second_device.py::test_networks_are_measured_on_the_card_as_on_the_cpu": {"boxes"},
    # llm_pruner, shortgpt and slicegpt heal, and nemotron_elastic, pat, slimmoe and ziplm learn, by the function by
    # which minitron learns; what they calibrate is shared out as in test_together.py. Networks train by the loop of
    # nd_loss and otov3.
    "test_several_processes.py::test_two_processes_train_as_one_with_the_same_global_batch": {
        "ast", "gpusq_vit", "llm_pruner", "nemotron_elastic", "pat", "rethinking_pruning_value", "shortgpt", "slicegpt",
        "slimmoe", "yolov4_group_sad", "yolov8_cwd", "ziplm",
    },
    # Its networks train as those of kd_data_pruning do, by one loop.
    "test_several_processes.py::test_training_sets_are_cut_by_two_processes_as_by_one": {"dp4tl"},
    "test_training_options.py::test_the_model_of_a_budget_is_gone_when_the_next_one_is_made": {
        "shortgpt",
        "ast", "consensus_polarization", "gpusq_vit", "llm_pruner", "magnitude", "nemotron_elastic", "owl",
        "romanian_distilberts", "slicegpt", "slimmoe", "sparsegpt", "wanda", "yolov4_group_sad", "yolov8_cwd", "ziplm",
    },
    # They heal by the one call that shortgpt heals by, and train as networks do in nd_loss and otov3.
    "test_training_options.py::test_what_a_recipe_is_asked_for_is_in_force": {
        "pat", "nemotron_elastic",
        "gpusq_vit", "llm_pruner", "slicegpt", "yolov4_group_sad", "yolov8_cwd",
    },
    # Of each, other cases stay.
    "recipes/sparse/test_sparsegpt.py::test_without_sequential_blocks_are_judged_by_what_dense_ones_give": {
        "sparsegpt",
    },
    "recover/training/test_loop.py::test_a_signal_leaves_a_checkpoint_of_the_last_step": {"15-143"},
    "subjects/network/test_traced.py::test_torchvision_out_of_the_box": {"swin_t", "densenet121"},
}  # fmt: skip
"""Test -> its cases."""


TWICE = {
    "cli/test_measure.py::test_measure_compares_with_several",
    "formats/test_onnx_files.py::test_the_largest_along_series_is_exported_for_any_length_beside_what_has_none",
    "recipes/context/test_htmlrag.py::test_a_path_model_learns_where_answers_stand",
    "recipes/context/test_kg_rag.py::test_a_hub_is_read_in_part_and_in_time",
    "recipes/context/test_kg_rag.py::test_lower_thresholds_and_a_larger_volume_lose_nothing",
    "recipes/language/test_minitron.py::test_an_encoder_of_bare_states_is_cut_in_width_and_learns_through_a_projection",
    "recipes/language/test_minitron.py::test_below_half_size_every_stage_learns_from_the_original",
    "recipes/language/test_minitron.py::test_candidates_are_ranked_by_their_loss_after_a_short_distillation",
    "recipes/language/test_minitron.py::test_candidates_are_the_shapes_of_the_least_estimated_loss",
    "recipes/language/test_minitron.py::test_every_candidate_is_within_the_tolerance_below_the_budget",
    "recipes/language/test_minitron.py::test_models_that_were_merged_are_let_go_of",
    "recipes/language/test_minitron.py::test_sizes_that_are_given_are_what_is_searched",
    "recipes/language/test_minitron.py::test_what_training_took_counts_candidates_stages_and_the_teachers_correction",
    "recipes/language/test_nemotron_elastic.py::test_one_training_gives_every_size_and_all_of_them_stand_in_one_folder",
    "recipes/language/test_shortgpt.py::test_layers_of_several_kinds",
    "recipes/language/test_shortgpt.py::test_the_best_of_the_layers_with_an_attention_stays",
    "recipes/sparse/test_ast.py::test_branches_train_as_they_are_told_to",
    "recipes/sparse/test_sparsegpt.py::test_sparsegpt_corrects_what_stays_and_the_others_do_not",
    "recipes/sparse/test_stun.py::test_neurons_go_by_what_they_add_and_no_more_than_the_budget_allows",
    "recipes/sparse/test_stun.py::test_the_weight_of_counts_and_the_settings_of_owl_are_used",
    "recipes/vision/test_nd_loss.py::test_means_of_regions_are_those_of_the_classes_and_of_the_background",
    "recipes/vision/test_otov3.py::test_a_killed_run_resumes_and_repeats",
    "recipes/vision/test_yolov4_group_sad.py::test_the_scan_looks_at_as_many_batches_as_asked_for",
    "recipes/vision/test_yolov8_cwd.py::test_pressure_empties_scales",
    "runs/test_chats.py::test_a_column_of_chats_is_named_as_one_of_texts_is",
    "runs/test_chats.py::test_a_student_of_chats_learns_answers_and_the_run_repeats",
    "runs/test_context.py::test_passages_with_titles_and_what_else_is_told",
    "runs/test_data.py::test_tables_on_the_disk_are_scored_as_in_memory",
    "runs/test_distilling.py::test_a_cache_of_all_tokens_teaches_as_the_live_teachers_do",
    "runs/test_distilling.py::test_a_student_that_writes_itself_is_scored_by_its_teacher",
    "runs/test_distilling.py::test_a_teacher_of_another_tokenizer_is_aligned_by_characters",
    "runs/test_distilling.py::test_a_token_classifier_is_judged_by_labels_of_words_and_may_learn_them",
    "runs/test_distilling.py::test_an_assistant_learns_first_and_teaches_the_student",
    "runs/test_distilling.py::test_modules_are_matched_by_patterns",
    "select/test_beams.py::test_a_round_keeps_three_branches_of_each_batch",
    "select/test_clusters.py::test_one_threshold_meets_the_count_or_says_what_it_can",
    "studies/test_regimes.py::test_each_training_is_of_its_seed_its_part_and_its_rate",
    "studies/test_regimes.py::test_the_study_by_its_name_resumes_and_grows",
    "subjects/network/test_detectors.py::test_the_student_samples_regions_and_the_teacher_judges_the_same",
    "subjects/network/test_offsets.py::test_prune_takes_offsets_and_a_residual_network_gains",
    "subjects/transformer/test_export.py::test_onnx_that_fails_on_long_texts_is_refused",
    "subjects/transformer/test_offloaded.py::test_no_more_than_a_few_blocks_are_in_memory",
}
"""Long tests without cases, each line of which two others go through."""

FILES = {
    # Ray starts half a dozen processes, for half a minute; what it reads is told of by data/survey.py as without it.
    "data/test_ray_data.py",
}
"""What runs apart as a whole, as an engine of its own."""


def is_wide(name: str) -> bool:
    """Whether a test, by pytest's name for it, runs apart."""
    test, _, case = name.removeprefix("tests/").partition("[")
    return test.partition("::")[0] in FILES or test in TWICE or case.removesuffix("]") in WIDE.get(test, ())
