from __future__ import annotations

from secateur.cli import train_pruner


def test_only_the_server_of_the_language_model_has_flags_where_training_asks_one():
    words = {flag.words for flag in train_pruner.COMMAND.recipe_flags(["provence"])[0]}
    assert {"--longest", "--llm", "--llm-timeout"} <= words
    assert not {"--graph-timeout", "--run-calls"} & words
    assert train_pruner.COMMAND.recipe_flags(["wanda"]) == ([], "")
