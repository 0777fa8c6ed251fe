"""Classes and samples of a report: kept in a file, drawn small, shown worst first; nothing foreign enters the page."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from measure import samples
from secateur.reports import details, report
from secateur.reports.details import ClassRow, Details, Sample


def pixels(side: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (side, side, 3)).astype(np.uint8)


def opened(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")))))


@pytest.mark.parametrize("side", [8, 40, 900])
def test_a_picture_is_small_in_pixels_and_bytes(side: int) -> None:
    uri = details.encode(pixels(side))
    assert len(uri) < 36_000
    assert 40 <= max(opened(uri).shape) <= 240


def test_boxes_and_masks_are_drawn_where_they_are() -> None:
    grey = np.full((60, 60, 3), 100, np.uint8)
    framed = details.draw_boxes(grey, [[10, 20, 30, 40], [5, 5, 5, 9], [float("nan"), 0, 1, 1]], [2, 0, 0])
    changed = (framed != grey).any(2)
    assert changed[20, 15]
    assert changed[30, 10]
    assert not changed[30, 20], "a frame is no surface"
    assert not changed[:19].any()
    mask = np.zeros((60, 60), np.int64)
    mask[:30], mask[30:40] = 1, -100
    painted = details.overlay_mask(grey, mask)
    assert (painted[:30] != grey[:30]).any(2).all()
    assert (painted[30:] == grey[30:]).all()
    assert (details.overlay_mask(grey, mask[::2, ::2]) == painted).all(), "a mask of other sides lies over it all"


def test_details_come_back_as_they_were_and_damage_is_passed_over(tmp_path) -> None:
    path = tmp_path / "details.json"
    one = Details(
        "IoU", "pixels", ("teacher", "student"), (ClassRow("cat", 0.5, None, 7),), (Sample("a", (("b", "c"),)),)
    )
    details.write(path, {"2x": one})
    assert details.read(path) == {"2x": one}
    path.write_text('{"results": {"2x": {"classes": 3}}}')
    assert details.read(path) == {}
    assert details.read(tmp_path / "none.json") == {}


def test_classes_are_shown_worst_first_beside_samples_with_trimmed_names() -> None:
    classes = [ClassRow(f"kind <{number}>", 0.9, 0.9 - number / 50, 10) for number in range(20)]
    long = "/very/long/" + "folder/" * 20 + "image.jpg"
    drawn = (("labelled", details.encode(pixels())), ("after", "javascript:alert(1)"))
    shown = Details("IoU", "pixels", ("before", "after"), tuple(classes), (Sample(long, drawn),))
    result = samples.result()
    page = report.render(result, shown={result.target: shown})
    order = re.findall(r"kind &lt;(\d+)&gt;</th>", page)
    assert order == [str(number) for number in reversed(range(20))]
    assert "8 more classes" in page
    assert "IoU of each class, the worst first" in page
    caption = re.search(r"<figcaption>(…[^<]*)</figcaption>", page)
    assert caption is not None
    assert caption[1].endswith("folder/image.jpg")
    assert len(caption[1]) <= 32
    assert page.count("<img") == 1
    assert "javascript" not in page
    assert "of each class" not in report.render(result)
