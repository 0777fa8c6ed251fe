"""60 photographs with objects, annotated as COCO is: a torchvision detector cut, and its AP before and after.

The detector is trained by the usual loop of torchvision, on COCO's own ids (13, 37, 38, 85 of 1 to 90), before secateur
sees it. Needs the extra `detect`, and scikit-learn for its sample photographs; about a minute on two cores.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

OUT = Path(os.environ.get("SECATEUR_JOURNEY", "journeys")) / "boxes"
IMAGES = 60
EPOCHS = float(os.environ.get("SECATEUR_JOURNEY_EPOCHS", "20"))
SIZE = 160
KINDS = {13: "stop sign", 37: "sports ball", 38: "kite", 85: "clock"}


# -------------------------------------------------------------------------------------------------------- the data


def write_scenes(root: Path) -> None:
    """Images of unequal sizes in COCO's layout: annotations/instances_*.json beside captions, train2017/, val2017/."""
    import numpy as np
    from PIL import Image, ImageDraw
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(one) for one in load_sample_images().images]
    draw = np.random.default_rng(0)
    for part, count in (("train2017", IMAGES * 4 // 5), ("val2017", IMAGES // 5)):
        images, annotations = [], []
        (root / part).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            width, height = int(draw.integers(200, 400)), int(draw.integers(160, 320))
            photograph = photographs[int(draw.integers(len(photographs)))]
            left = int(draw.integers(photograph.width - width))
            top = int(draw.integers(photograph.height - height))
            scene = photograph.crop((left, top, left + width, top + height))
            name, image = f"{number:012}.jpg", 1000 + 7 * number
            images.append({"id": image, "file_name": name, "width": width, "height": height})
            boxes: list[tuple[int, int, int, int]] = []
            for _ in range(int(draw.integers(1, 4))):
                side = int(draw.integers(height // 4, height // 2))
                x, y = int(draw.integers(width - side)), int(draw.integers(height - side))
                box = (x, y, x + side, y + side)
                if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes):
                    continue
                kind = int(draw.choice(list(KINDS)))
                paint(ImageDraw.Draw(scene), kind, box, int(draw.integers(170, 255)))
                boxes.append(box)
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": image, "category_id": kind, "iscrowd": 0,
                     "bbox": [x, y, side, side], "area": side * side}
                )  # fmt: skip
            scene.save(root / part / name, quality=90)
        (root / "annotations").mkdir(exist_ok=True)
        categories = [{"id": kind, "name": name} for kind, name in KINDS.items()]
        instances = {"images": images, "annotations": annotations, "categories": categories}
        captions = {"images": images, "annotations": [{"id": 1, "image_id": images[0]["id"], "caption": "a scene"}]}
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(instances))
        (root / "annotations" / f"captions_{part}.json").write_text(json.dumps(captions))


def paint(draw, kind: int, box: tuple[int, int, int, int], tone: int) -> None:
    """A stop sign, a ball, a kite or a clock."""
    left, top, right, bottom = box
    x, y, side = (left + right) / 2, (top + bottom) / 2, right - left
    if kind == 13:
        draw.regular_polygon((x, y, side / 2), 8, rotation=22, fill=(tone, 20, 30), outline="white")
        draw.rectangle((left + side * 0.2, y - side * 0.07, right - side * 0.2, y + side * 0.07), fill="white")
    elif kind == 37:
        draw.ellipse(box, fill=(240, tone // 2, 20))
        draw.line((x, top, x, bottom), fill="black", width=2)
        draw.line((left, y, right, y), fill="black", width=2)
    elif kind == 38:
        draw.polygon([(x, top), (right, y), (x, bottom), (left, y)], fill=(30, 90, tone))
        draw.line((x, top, x, bottom), fill="yellow", width=2)
    else:
        draw.ellipse(box, fill="white", outline="black", width=2)
        draw.line((x, y, x, top + side * 0.2), fill="black", width=2)
        draw.line((x, y, right - side * 0.25, y), fill="black", width=2)


# ---------------------------------------------------------------------------------------------------- the detector


def detector(width: int = 32):
    """torchvision's FCOS for COCO's 91 ids, over a pyramid of a few layers."""
    import torch
    from torch import nn
    from torch.nn import functional
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.fcos import FCOS

    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out_channels = width
            widths = (width // 2, width, width, 2 * width, 2 * width)
            self.stages = nn.ModuleList()
            for before, after in zip((3, *widths), widths, strict=False):
                layers: list[nn.Module] = []
                for channels, stride in ((before, 2), (after, 1)):
                    layers += [nn.Conv2d(channels, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
                self.stages.append(nn.Sequential(*layers))
            self.sides = nn.ModuleList(nn.Conv2d(one, width, 1) for one in widths[2:])

        def forward(self, images):
            maps, result, above = [], {}, None
            for stage in self.stages:
                images = stage(images)
                maps.append(images)
            for level in (2, 1, 0):
                here = self.sides[level](maps[level + 2])
                above = here if above is None else here + functional.interpolate(above, scale_factor=2.0)
                result[str(level)] = above
            return {name: result[name] for name in sorted(result)}

    torch.manual_seed(0)
    anchors = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
    return FCOS(
        Pyramid(), 91, anchor_generator=anchors, min_size=SIZE, max_size=SIZE, image_mean=[0.5] * 3,
        image_std=[0.25] * 3, topk_candidates=100, detections_per_img=20,
    )  # fmt: skip


def train(root: Path, weights: Path) -> None:
    """Train as torchvision's own reference does: lists of images, and COCO's ids as labels."""
    import numpy as np
    import torch
    from PIL import Image
    from safetensors.torch import save_model
    from torchvision.transforms.functional import pil_to_tensor

    data = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    images, targets = [], []
    for row in data["images"]:
        image = pil_to_tensor(Image.open(root / "train2017" / row["file_name"])).float() / 255
        own = [one for one in data["annotations"] if one["image_id"] == row["id"]]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in own)]
        images.append(image)
        targets.append(
            {
                "boxes": torch.tensor(corners, dtype=torch.float32).reshape(-1, 4),
                "labels": torch.tensor([one["category_id"] for one in own], dtype=torch.long),
            }
        )
    net = detector().train()
    optimizer, draw, batch = torch.optim.AdamW(net.parameters(), 2e-3), np.random.default_rng(0), 8
    steps = max(1, round(EPOCHS * len(images) / batch))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / steps))
    for _ in range(steps):
        chosen = draw.choice(len(images), batch, replace=False)
        losses = net([images[one] for one in chosen], [targets[one] for one in chosen])
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    save_model(net, str(weights))


def build():
    """The trained detector."""
    from safetensors.torch import load_model

    net = detector()
    load_model(net, str(OUT.resolve() / "detector.safetensors"))
    return net.eval()


# ----------------------------------------------------------------------------------------------------- the journey


def main() -> int:
    """Write the data, train, cut, and say what came out. Returns the exit code."""
    began = time.perf_counter()
    root, weights, cut = OUT / "coco", OUT / "detector.safetensors", OUT / "cut"
    print(f"1/3 {IMAGES} images of unequal sizes in COCO's layout, ids {', '.join(map(str, KINDS))}: {root}")
    write_scenes(root)
    if not weights.is_file():
        print("2/3 torchvision's FCOS, trained on them")
        train(root, weights)
    command = [
        "run", "yolov8_cwd", f"{Path(__file__).resolve()}:build", "--data", str(root), "--size", str(SIZE),
        "--transform", "flip", "--budget", "channels=60%", "--out", str(cut), "--sparse-epochs", "2",
        "--finetune-epochs", str(max(1, EPOCHS * 0.5)), "--distil-epochs", "2", "--training", "batch=8,lr=2e-3",
    ]  # fmt: skip
    print(f"3/3 secateur {' '.join(command)}")
    code = subprocess.run([sys.executable, "-m", "secateur", *command], check=False).returncode
    if code:
        return code
    (row,) = json.loads((cut / "evidence.json").read_text())["results"]
    before, after = (row[side]["AP50"]["value"] for side in ("before", "after"))
    took = time.perf_counter() - began
    print(f"AP50 before {before:.3f}, after {after:.3f}; {took:.0f} s; the report: {cut}/report.html")
    return 0 if after > 0.5 * before > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
