from __future__ import annotations

import json

from commands import forked


def test_inspect_shows_the_kinds_of_units_and_reads_a_config(places):
    (places / "inspect.yaml").write_text("model: llama\nbatch: 1\n")
    assert "neurons" in forked(places, "inspect", "llama").stdout
    found = json.loads(forked(places, "inspect", "--config", "inspect.yaml", "--json").stdout)
    kinds = {"layers", "attention", "ffn", "heads", "kv_groups", "neurons", "channels"}
    assert {row["kind"] for row in found["axes"]} == kinds
    refused = forked(places, "inspect", "llama", "--scope", "global")
    assert refused.stderr.startswith("secateur: scope: only for networks")
