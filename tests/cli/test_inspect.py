from __future__ import annotations

import json

from commands import forked
from secateur import cli


def test_inspect_shows_the_kinds_of_units_and_reads_a_config(places):
    (places / "inspect.yaml").write_text("model: llama\nbatch: 1\n")
    assert "neurons" in forked(places, "inspect", "llama").stdout
    found = json.loads(forked(places, "inspect", "--config", "inspect.yaml", "--json").stdout)
    kinds = {"layers", "attention", "ffn", "heads", "kv_groups", "neurons", "channels"}
    assert {row["kind"] for row in found["axes"]} == kinds
    refused = forked(places, "inspect", "llama", "--scope", "global")
    assert refused.stderr.startswith("secateur: --scope is only for networks, given as ")


def test_several_options_that_only_networks_have_are_named_as_they_were_typed(places, capsys, monkeypatch):
    monkeypatch.chdir(places)
    assert cli.main(["inspect", "llama", "--input", "1x16", "--multiple", "8"]) == 2
    assert capsys.readouterr().err.startswith("secateur: --input and --multiple are only for networks, given as ")


def test_the_help_of_measure_says_how_many_pairs_it_takes(capsys):
    assert cli.main(["measure", "--help"]) == 0
    assert "at least 6" in " ".join(capsys.readouterr().out.replace("│", " ").split())
