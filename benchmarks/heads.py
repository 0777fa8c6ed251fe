"""How long path patching takes: 200 conflict prompts on a decoder of 6 layers with 8 heads each, on two cores.

    python benchmarks/heads.py

The model has random weights: time does not depend on what it knows. Beside it stand a whole pass over the same prompts,
and as many whole passes as there are heads, which is what patching without a replay takes. What passes the layers is
counted, too: a replay of a head needs its prompt's last position in its layer and in those behind it, once each.
"""

from __future__ import annotations

import time

import torch
from torch.utils.hooks import RemovableHandle
from transformers import GPT2Config, GPT2LMHeadModel

from secateur.methods import conflicts
from secateur.methods.conflicts import Item
from secateur.subjects import open_subject

PROMPTS, LENGTH, LAYERS, HEADS = 200, 16, 6, 8


def main() -> None:
    """Print the seconds, on the clock and of the processor."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=8192, n_positions=64, n_embd=256, n_layer=LAYERS, n_head=HEADS)
    subject = open_subject(GPT2LMHeadModel(config).eval())
    tokens = torch.randint(0, 8192, (2, PROMPTS, LENGTH)).tolist()
    items = [Item(tuple(one), (1,), (2,), tuple(other), ()) for one, other in zip(*tokens, strict=True)]
    conflicts.score(subject, items[:8])
    counted, hooks = list[int](), list[RemovableHandle]()
    for path in subject.layers():
        block = subject.model.get_submodule(path).mlp
        hooks.append(block.register_forward_pre_hook(lambda _, args: counted.append(args[0][..., 0].numel())))
    conflicts.score(subject, items)
    for hook in hooks:
        hook.remove()
    needed = PROMPTS * HEADS * LAYERS * (LAYERS + 1) // 2
    replayed = sum(counted) - 2 * PROMPTS * LENGTH * LAYERS  # without the clean and the corrupted passes
    print(f"positions that pass a layer in replays: {replayed}, {replayed / needed:.3f} times the {needed} needed")
    for name, work in (
        (f"scores of {LAYERS} x {HEADS} heads", conflicts.score),
        ("one whole pass", conflicts.log_answers),
    ):
        began, used = time.perf_counter(), time.process_time()
        work(subject, items)
        seconds, processor = time.perf_counter() - began, time.process_time() - used
        print(f"{PROMPTS} prompts, {name}: {seconds:.2f} s, {processor:.2f} s of the processor")
    print(f"{LAYERS * HEADS} whole passes: {LAYERS * HEADS * seconds:.1f} s")


if __name__ == "__main__":
    main()
