"""Equal blocks in a row are one, with how many they are; what differs, or is read elsewhere, stays apart."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

from secateur.reports import pictures
from secateur.reports.folding import fold_blocks
from secateur.reports.pictures import Box


def tower(blocks: int, prefix: str = "layers") -> list[Box]:
    """Blocks x + fc(norm(x)) between an input and an output."""
    boxes = [Box("input", "input", shape=(1, 4)), Box("module", "embed", "Linear", parts=(("x", 4, 4),), before=(0,))]
    for number in range(blocks):
        name, above = f"{prefix}.{number}", len(boxes) - 1
        boxes.append(Box("module", f"{name}.norm", "LayerNorm", parts=(("x", 4, 4),), before=(above,)))
        boxes.append(Box("module", f"{name}.fc", "Linear", parts=((f"{name}.h", 8, 8),), before=(len(boxes) - 1,)))
        boxes.append(Box("join", "+", before=(above, len(boxes) - 1)))
    return [*boxes, Box("output", "output", shape=(1, 4), before=(len(boxes) - 1,))]


def test_equal_blocks_become_one_with_their_number() -> None:
    boxes, (stack,) = fold_blocks(tower(24, "encoder.layers"))
    assert [box.name for box in boxes] == [
        "input", "embed", "encoder.layers.0.norm", "encoder.layers.0.fc", "+", "output",
    ]  # fmt: skip
    assert (stack.times, stack.name, stack.places) == (24, "encoder.layers.0 to 23", range(2, 5))
    assert boxes[-1].before == (4,)
    assert boxes[4].before == (1, 3)
    assert stack.sites == {"x", "encoder.layers.0.h"}


def test_few_blocks_and_blocks_that_differ_stay_apart() -> None:
    assert fold_blocks(tower(2)) == (tower(2), [])
    boxes = tower(8)
    narrow = 2 + 3 * 4 + 1  # of block 4
    boxes[narrow] = replace(boxes[narrow], parts=(("layers.4.h", 8, 5),))
    folded, stacks = fold_blocks(boxes)
    assert [(stack.times, stack.name) for stack in stacks] == [(4, "layers.0 to 3"), (3, "layers.5 to 7")]
    assert [box.name for box in folded if box.name.endswith("fc")] == ["layers.0.fc", "layers.4.fc", "layers.5.fc"]
    assert folded[-1].before == (len(folded) - 2,)
    for place, box in enumerate(folded):
        assert all(before < place for before in box.before)


def test_blocks_that_others_read_are_not_folded() -> None:
    boxes = tower(6)
    boxes[-1] = replace(boxes[-1], before=(4, len(boxes) - 2))  # the output reads the first block, too
    assert fold_blocks(boxes) == (boxes, [])
    assert fold_blocks([]) == ([], [])


def test_a_stack_in_a_stack_is_folded_after_it() -> None:
    boxes = [Box("input", "input")]
    for stage in range(3):
        for number in range(4):
            boxes.append(Box("module", f"stages.{stage}.blocks.{number}.fc", "Linear", before=(len(boxes) - 1,)))
    folded, stacks = fold_blocks([*boxes, Box("output", "output", before=(len(boxes) - 1,))])
    assert [(stack.times, stack.places) for stack in stacks] == [(3, range(1, 2)), (4, range(1, 2))]
    assert [box.name for box in folded] == ["input", "stages.0.blocks.0.fc", "output"]


def test_the_picture_frames_the_block_and_says_how_many() -> None:
    text = pictures.network(tower(24), "Tower", sites=[("x", 4, 4), *((f"layers.{n}.h", 8, 8) for n in range(24))])
    words = {"".join(node.itertext()) for node in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")}
    assert {"× 24", "layers.0 to 23", "layers.0.fc", "layers.0.h"} <= words
    assert "layers.5.h" not in words, "of equal blocks the sites of the first are listed"
    assert text.count('class="frame"') == 1
