"""Features beside another objective: from its own passes, by each loss, and with widths that differ."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from secateur.errors import InputError
from secateur.recover.distillation import losses, maps, matching


def net(width: int = 6, depth: int = 2) -> nn.Module:
    body = [nn.Sequential(nn.Conv2d(3 if not i else width, width, 3, padding=1), nn.ReLU()) for i in range(depth)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


BATCH = {"inputs": torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
TOTALS = {"sequences": 10, "examples": 10}
"""As if the batch were half of a step."""


def objective(student: nn.Module, teacher: nn.Module, passes: list[str]):
    def compute(batch, totals):
        passes.append("one")
        ours = student(batch["inputs"])
        with torch.no_grad():
            theirs = teacher(batch["inputs"])
        return losses.kl(ours, theirs) / totals["examples"], {"logit": 1.0}

    return compute


def made(kind: str, ours: str, theirs: str, width: int = 6, other: int = 6, **how):
    torch.manual_seed(1)
    student, teacher, passes = net(width), net(other, 3), []
    together, adapters = matching.add_matching(
        objective(student, teacher, passes),
        [(student, teacher, ours, theirs)],
        lambda: (student(BATCH["inputs"]), teacher(BATCH["inputs"])),
        kind=kind,
        **how,
    )
    return student, teacher, together, adapters, passes


def test_a_loss_in_balance_is_as_large_as_that_of_the_predictions_times_its_weight():
    for weight in (0.5, 2.0):
        _, _, plain, _, _ = made("mse", "0", "0", weights=(weight,))
        _, _, even, _, _ = made("mse", "0", "0", weights=(weight,), balanced=True)
        alone, _ = plain(BATCH, TOTALS)
        both, parts = even(BATCH, TOTALS)
        assert parts["match"] == pytest.approx(weight * parts["logit"])
        assert both.item() != pytest.approx(alone.item())


def test_a_loss_warms_up_and_needs_to_know_when():
    _, _, plain, _, _ = made("mse", "0", "0")
    _, _, rising, _, _ = made("mse", "0", "0", warmup=0.5)
    whole, parts = plain(BATCH, TOTALS)
    rest = whole.item() - parts["match"]
    for done, share in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.9, 1.0)):
        total, told = rising({**BATCH, "done": done}, TOTALS)
        assert total.item() == pytest.approx(rest + share * parts["match"])
        assert told["match"] == pytest.approx(parts["match"])
    with pytest.raises(InputError, match="'match' warms up"):
        rising(BATCH, TOTALS)


def formula(kind: str, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    if kind == "attention":
        return maps.spatial_attention(s, t) / 10
    if kind == "channel-wise":
        return maps.channel_wise(s, t) / 10
    if kind == "relational":
        return losses.relational(s, t) / 10
    if kind == "contrastive":
        cosines = functional.normalize(s, dim=-1) @ functional.normalize(t, dim=-1).T
        return functional.cross_entropy(cosines / 0.1, torch.arange(len(s)), reduction="sum") / 10
    s, t = (one.movedim(1, -1) if one.dim() == 4 else one for one in (s, t))
    each = {
        "mse": (s - t).square().mean(-1),
        "cosine": 1 - functional.cosine_similarity(s, t, dim=-1),
        "unit": (functional.normalize(s, dim=-1) - functional.normalize(t, dim=-1)).square().sum(-1),
        "unit-l1": (functional.normalize(s, dim=-1) - functional.normalize(t, dim=-1)).abs().sum(-1),
        "normalised": (s - t).square().sum(-1) / t.square().sum(-1).mean(),
    }[kind]
    return each.flatten(1).mean(1).sum() / 10 if each.dim() > 1 else each.sum() / 10


@pytest.mark.parametrize(
    ("kind", "ours", "theirs"),
    [(kind, "1", "2") for kind in matching.KINDS if kind not in ("relational", "contrastive")]
    + [(kind, "3", "4") for kind in matching.KINDS if kind not in ("attention", "channel-wise")],
)
def test_the_loss_is_that_of_its_formula_beside_the_other(kind, ours, theirs):
    student, teacher, together, adapters, passes = made(kind, ours, theirs, weights=[0.5])
    total, parts = together(BATCH, TOTALS)
    plain, _ = objective(student, teacher, [])(BATCH, TOTALS)
    s = nn.Sequential(*list(student)[: int(ours) + 1])(BATCH["inputs"])
    t = nn.Sequential(*list(teacher)[: int(theirs) + 1])(BATCH["inputs"]).detach()
    wanted = 0.5 * formula(kind, s, t)
    torch.testing.assert_close(total, plain + wanted)
    assert parts["match"] == pytest.approx(wanted.item(), rel=1e-5)
    assert passes == ["one"], "no pass but the objective's own"
    total.backward()
    assert student[0][0].weight.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in teacher.parameters())
    assert not list(adapters.parameters()), "widths are alike"


@pytest.mark.parametrize(("ours", "theirs", "kind"), [("1", "2", nn.Conv2d), ("3", "4", nn.Linear)])
def test_widths_that_differ_pass_an_adapter(ours, theirs, kind):
    *_, together, adapters, _ = made("mse", ours, theirs, width=4, other=6)
    assert isinstance(adapters[0], kind)
    together(BATCH, TOTALS)[0].backward()
    assert adapters[0].weight.grad.abs().sum() > 0
    for free in ("attention",) if kind is nn.Conv2d else ("relational",):
        assert not list(made(free, ours, theirs, width=4, other=6)[3].parameters())


def test_tokens_count_where_the_mask_says_so():
    torch.manual_seed(0)
    student, teacher = nn.Embedding(9, 4), nn.Embedding(9, 4)
    ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
    batch = {"inputs": ids, "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])}

    def plain(part, totals):
        student(part["inputs"]), teacher(part["inputs"])
        return torch.zeros(()), {}

    modules = [nn.Sequential(one) for one in (student, teacher)]
    together, _ = matching.add_matching(plain, [(*modules, "0", "0")], lambda: [one(ids) for one in modules])
    apart = (student.weight - teacher.weight).square().mean(1)[torch.tensor([1, 2, 3, 4])].sum() / 8
    torch.testing.assert_close(together(batch, {"tokens": 8, "sequences": 2})[0], apart)


class Pooled(nn.Module):
    """States [B, S, d] of tokens, and what stands for a sequence: rows [B, d], NaN where it has no token."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.embed = nn.Embedding(9, width)
        self.flat, self.rows, self.maps = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = self.embed(ids)
        self.flat(states.flatten(0, 1))
        real = mask.sum(1, keepdim=True)
        rows = self.rows(((states * mask[..., None]).sum(1) / real.clamp_min(1)).where(real > 0, torch.nan))
        return self.maps(rows[:, :, None, None] ** torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


def of_texts(kind: str, tap: str, width: int = 4):
    """(objective of padded texts of which the last has no token, student, the batch without it, the batch)."""
    torch.manual_seed(0)
    student, teacher = Pooled(width), Pooled()
    ids = torch.tensor([[1, 2, 3], [4, 5, 0], [6, 7, 0], [8, 0, 0], [0, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    short = {name: part[:4] for name, part in batch.items()}

    def plain(part, totals):
        for one in (student, teacher):
            one(part["input_ids"], part["attention_mask"])
        return torch.zeros(()), {}

    together, adapters = matching.add_matching(
        plain, [(student, teacher, tap, tap)], lambda: [one(*short.values()) for one in (student, teacher)], kind=kind
    )
    return together, nn.ModuleList([student, adapters]), short, batch


@pytest.mark.parametrize("width", [4, 3])
@pytest.mark.parametrize(
    ("kind", "tap"),
    [(kind, "rows") for kind in matching.KINDS if kind not in ("attention", "channel-wise")]
    + [(kind, "maps") for kind in ("mse", "attention", "channel-wise")]
    + [("mse", "flat"), ("cosine", "embed"), ("normalised", "embed")],
)
def test_a_sequence_of_padding_only_changes_nothing(kind, tap, width):
    together, trained, short, batch = of_texts(kind, tap, width)
    totals = {"tokens": 8, "sequences": 4}
    slopes = []
    for part in (short, batch):
        total, _ = together(part, totals)
        trained.zero_grad()
        total.backward()
        slopes.append([total.detach()] + [one.grad.clone() for one in trained.parameters() if one.grad is not None])
    assert len(slopes[0]) > 1
    assert slopes[0][0] > 0
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(other, one)


def test_tokens_in_one_long_row_count_as_tokens_and_are_no_examples():
    long, _, _, batch = of_texts("mse", "flat")
    square, _, _, _ = of_texts("mse", "embed")
    totals = {"tokens": 8, "sequences": 4}
    torch.testing.assert_close(long(batch, totals)[0], square(batch, totals)[0])
    for kind in ("relational", "contrastive"):
        with pytest.raises(InputError, match=f"{kind} is of a row for each of 5 texts, and a module gives 15"):
            of_texts(kind, "flat")[0](batch, totals)


@pytest.mark.parametrize(
    ("kind", "ours", "theirs", "how", "words"),
    [
        (
            "hint",
            "1",
            "2",
            {},
            "can't be compared by 'hint': give one of mse, cosine, unit, unit-l1, normalised, attention",
        ),
        ("attention", "3", "4", {}, r"3 gives \[5, 6\], .*: attention is of maps \[N, C, H, W\]"),
        ("relational", "1", "2", {}, r"relational is of rows \[N, d\]"),
        ("contrastive", "1", "2", {}, r"contrastive is of rows \[N, d\]"),
        ("mse", "1", "4", {}, r"compare rows \[N, d\], tokens \[N, S, d\] or maps"),
        ("mse", "1", "2", {"weights": [1.0, 2.0]}, "2 weights for 1 pairs of modules"),
    ],
)
def test_what_can_not_be_compared_is_refused(kind, ours, theirs, how, words):
    with pytest.raises(InputError, match=words):
        made(kind, ours, theirs, **how)
    with pytest.raises(InputError, match="no module was named"):
        matching.add_matching(lambda *_: None, [], lambda: None)
    student = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2)})
    for whose, taps in (("student", ("idle", "used")), ("teacher", ("used", "idle"))):
        with pytest.raises(InputError, match=f"^idle of the {whose}'s modules does not run, or gives no tensor"):
            matching.add_matching(
                lambda *_: None,
                [(student, student, "used", "used"), (student, student, *taps)],
                lambda: student["used"](torch.zeros(3, 2)),
            )
