from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from score.networks import images, residual, same, slices, state
from secateur.errors import InfeasibleError, InputError, SecateurError, UnsupportedError
from secateur.methods import pruning
from secateur.methods.pruning import prune, shares_of
from secateur.subjects.network.opening import load_saved
from secateur.subjects.network.traced import open_traced
from secateur.vocabulary import Selection
from subjects import nets

IMAGE = torch.randn(2, 2, 6, 6)
NAMES = ["magnitude", "l1", "l2", "batch_norm", "geometric_median", "random", "activation", "nonzero"]
GRADIENTS = ["taylor", "taylor2", "fisher", "cosine", "dhspg", "hesso"]


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["labels"])


def planted():
    """A network with one channel at each site that does nothing: the cut that changes no output takes just these."""
    model = residual()
    with torch.no_grad():
        for (_, parts), dead in zip(slices(model).items(), (4, 2), strict=True):
            for weight, dim, units in parts:
                weight.index_fill_(dim, torch.nonzero(units == dead).flatten(), 0.0)
    return model.eval()


@pytest.mark.parametrize("name", [*NAMES, *GRADIENTS])
def test_every_score_cuts_and_leaves_the_model_as_it_was(name: str) -> None:
    model = residual().train()
    before = state(model)
    small, cut = prune(model, IMAGE, "channels=50%", name, batches=images(), loss=loss)
    assert same(before, state(model))
    assert cut.after["channels"] <= cut.before["channels"] / 2
    assert small(IMAGE).shape == (2, 3)


def test_the_pair_shows_itself_in_a_line_and_in_tables() -> None:
    """It printed the whole tree of modules."""
    result = prune(residual(), IMAGE, "channels=50%")
    count = sum(parameter.numel() for parameter in result.model.parameters())
    assert repr(result) == f"Pruned({result.subject!r}, {result.cut!r})"
    assert repr(result.subject).endswith(f", {count:,} parameters)")
    shown = result._repr_html_()
    assert shown.startswith("<table><caption>Traced: ")
    assert f"<td>Parameters</td><td>{count:,}</td>" in shown
    assert "<td>Cuts</td><td>1</td>" in shown
    assert "<caption>Cut: " in shown
    assert "Difference" not in open_traced(residual(), IMAGE)._repr_html_()


@pytest.mark.parametrize("name", sorted({*NAMES, *GRADIENTS} - {"random", "cosine", "geometric_median"}))
def test_the_best_cut_is_found_where_one_channel_of_each_site_is_idle(name: str) -> None:
    model = planted()
    small, cut = prune(model, IMAGE, "channels=12", name, batches=images(), loss=loss)
    assert cut.removed == {"stem.channels": (1, 6), "inner.channels": (1, 8)}
    torch.testing.assert_close(small(IMAGE), model(IMAGE))


def test_what_a_score_lacks_is_asked_for_in_one_line() -> None:
    model = residual()
    for name in ("activation", "nonzero", *GRADIENTS):
        with pytest.raises(InputError, match=rf"'{name}' is measured on data: give batches") as told:
            prune(model, IMAGE, score=name)
        assert "\n" not in str(told.value)
    for name in GRADIENTS:
        with pytest.raises(InputError, match=rf"'{name}' needs gradients: give loss="):
            prune(model, IMAGE, score=name, batches=images())
    with pytest.raises(InputError, match=r"score 'size' is not one of magnitude, l1, .*hesso: name one"):
        prune(model, IMAGE, score="size")


def test_activations_take_batches_as_the_inputs_are_and_an_iterator_once() -> None:
    model = planted()
    of_loss, _ = prune(model, IMAGE, score="activation", batches=images(), loss=loss)
    of_inputs, _ = prune(model, IMAGE, score="activation", batches=(batch["x"] for batch in images()))
    assert all(torch.equal(a, b) for a, b in zip(of_loss.parameters(), of_inputs.parameters(), strict=True))


def test_sites_without_a_score_stay_and_the_notes_say_so() -> None:
    model = nn.Sequential(nn.Conv2d(2, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 3, 1))
    small, cut = prune(model, IMAGE, "channels=75%", "batch_norm")
    assert [small[0].out_channels, small[3].out_channels] == [4, 6]
    assert any(note == "stays: 3.channels: has no score 'batch_norm'" for note in cut.notes)
    with pytest.raises(UnsupportedError, match="'batch_norm' has nothing to say"):
        prune(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4), score="batch_norm")


def test_a_score_of_ones_own_as_function_and_as_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = residual()

    def first(subject):
        return {site.name: -torch.arange(site.count).float() for site in subject.units().free()}

    small, _ = prune(model, IMAGE, score=first)
    assert torch.equal(small.bn2.weight, model.bn2.weight[:4])
    (tmp_path / "mine.py").write_text(
        "import torch\n\n\ndef last(subject, batches):\n    assert len(batches) == 3\n"
        "    return {site.name: torch.arange(site.count).float() for site in subject.units().free()}\n"
    )
    monkeypatch.chdir(tmp_path)
    small, _ = prune(model, IMAGE, score="mine.py:last", batches=images())
    assert torch.equal(small.bn2.weight, model.bn2.weight[4:])
    with pytest.raises(InputError, match="there is no file"):
        prune(model, IMAGE, score="yours.py:last")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, r"the score function mine returned NoneType: give a mapping from each site to one score per unit"),
        (torch.zeros(3), "the score function mine returned Tensor: give a mapping"),
        ({"stem.channels": "high"}, "the score function mine gave stem.channels a str that holds no numbers"),
        ({"stem.channels": torch.zeros(3), "inner.channels": torch.zeros(8)}, r"6 units, but scores of shape \(3,\)"),
        ({"stem.channels": torch.zeros(6)}, "inner.channels has no scores"),
    ],
)
def test_a_score_of_ones_own_that_gives_something_else_is_refused_in_one_line(found: object, words: str) -> None:
    def mine(subject: object) -> object:
        return found

    with pytest.raises(InputError, match=words) as told:
        prune(residual(), IMAGE, score=mine)  # type: ignore[arg-type]
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["activation", "taylor", "cosine"])
def test_a_batch_that_the_network_does_not_take_is_named_and_leaves_the_model_as_it_was(name: str) -> None:
    model = residual().train()
    before, hooks = state(model), [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    batches = [*images(), {"x": torch.randn(2, 5, 6, 6), "labels": torch.zeros(2, dtype=torch.long)}]
    with pytest.raises(InputError, match=r"batch 3 of shape \(2, 5, 6, 6\), \(2,\) can't be scored: Runtime") as told:
        prune(model, IMAGE, score=name, batches=batches, loss=loss)
    assert "\n" not in str(told.value)
    assert same(before, state(model))
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_who_asks_for_segments_is_told_what_erases_them() -> None:
    with pytest.raises(UnsupportedError, match=r"budget segments=50%: segments are .* `secateur run otov3 MODEL"):
        prune(residual(), IMAGE, "segments=50%")


def stages() -> nets.Net:
    """Two blocks of one make and a head: the blocks' inner channels are of one structure."""

    def run(net, x):
        x = net.stem(x)
        x = x + net.a(x)
        x = x + net.b(x)
        return net.head(net.wide(x.mean((2, 3))).relu())

    a, b = (nn.Sequential(nn.Conv2d(6, width, 1), nn.ReLU(), nn.Conv2d(width, 6, 1)) for width in (8, 12))
    return nets.Net(run, stem=nn.Conv2d(2, 6, 3, padding=1), a=a, b=b, wide=nn.Linear(6, 10), head=nn.Linear(10, 3))


def test_scopes_share_rankings_among_sites_of_one_structure_or_of_a_named_pool() -> None:
    torch.manual_seed(0)
    model = stages()
    topology = open_traced(model, IMAGE).topology()
    assert topology["a.0.channels"] == topology["b.0.channels"] == "Conv2d.bias[0], Conv2d.weight[0], Conv2d.weight[1]"
    assert len(set(topology.values())) == 3

    def score(subject):
        """Everything in block a is worth less than anything in block b."""
        return {
            site.name: torch.rand(site.count) + 10 * ("b" in site.name) - 10 * (site.name[0] == "a")
            for site in subject.units().free()
        }

    def kept(scope):
        small, _ = prune(model, IMAGE, "channels=50%", score, scope=scope)
        return [small.a[0].out_channels, small.b[0].out_channels, small.stem.out_channels, small.wide.out_features]

    assert kept("local") == [4, 6, 3, 5]
    a, b, stem, wide = kept("isomorphic")
    assert (a, stem, wide) == (1, 3, 5)
    assert 8 <= b < 12
    assert kept({"a.0.channels": "x", "b.0.channels": "x"}) == [a, b, stem, wide]
    with pytest.raises(InputError, match=r"scope names 'c.channels', which is no site: .*stem.channels"):
        kept({"c.channels": "x"})
    with pytest.raises(InputError, match="scope 'stage' is not one of"):
        kept("stage")


def test_normalised_scores_of_sites_compare() -> None:
    model = residual()

    def score(subject):
        return {site.name: 100.0 ** ("inner" in site.name) * torch.rand(site.count) for site in subject.units().free()}

    plain, _ = prune(model, IMAGE, "channels=50%", score, scope="global")
    ranked, _ = prune(model, IMAGE, "channels=50%", score, scope="global", normalise="rank")
    assert (plain.stem.out_channels, plain.inner.out_channels) == (1, 6)
    assert abs(ranked.stem.out_channels / 6 - ranked.inner.out_channels / 8) < 0.2


def test_flops_are_a_budget_and_stand_in_the_receipt() -> None:
    model = residual()
    small, cut = prune(model, IMAGE, "flops=40%", scope="global")
    assert cut.after["flops"] == open_traced(small, IMAGE).flops() <= 0.4 * cut.before["flops"]
    with pytest.raises(SecateurError, match="flops can go down to"):
        prune(model, IMAGE, "flops=1%")


def test_a_result_is_pruned_again_saved_and_exported(tmp_path: Path) -> None:
    model = residual()
    result = prune(model, IMAGE, "channels=75%")
    small, cut = result
    assert small is result.model is result.subject.model
    assert cut is result.cut
    again = prune(result.subject, budget="channels=50%")
    assert again.cut.before["channels"] == cut.after["channels"]
    assert again.cut.after["channels"] <= cut.after["channels"] / 2
    again.subject.save(tmp_path)
    torch.testing.assert_close(load_saved(tmp_path, original=model).eval()(IMAGE), again.model.eval()(IMAGE))
    assert prune(small, IMAGE, "channels=50%").cut.after == again.cut.after


def test_single_sites_keep_their_own_share_and_others_what_is_left() -> None:
    model = residual()
    result = prune(model, IMAGE, "channels=60%", shares={"*": 0.3, "stem": 1.0})
    assert "stem.channels" not in result.cut.removed
    assert result.cut.removed["inner.channels"] == (6, 8)
    assert prune(model, IMAGE, "channels=75%", shares=shares_of("inner.channels=50%")).cut.removed[
        "inner.channels"
    ] == (4, 8)
    for wrong, said in (({"nose": 0.5}, "is no site that can be cut"), ({"stem": 0.0}, "above 0"),
                        ({"stem": 1.5}, "above 0")):  # fmt: skip
        with pytest.raises(InputError, match=said):
            prune(model, IMAGE, shares=wrong)
    with pytest.raises(InputError, match=r"layer4\.\*=25%"):
        shares_of("stem")
    with pytest.raises(InfeasibleError):
        prune(model, IMAGE, "channels=50%", shares={"*": 1.0})


def test_what_heads_of_a_vision_transformer_leave_of_a_budget_is_used_or_said() -> None:
    """Its channels go with its heads, a quarter at a time."""
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 8, "hidden_dim": 32, "num_heads": 4, "mlp_dim": 256}
    model = VisionTransformer(**sizes, num_layers=2, num_classes=5).eval()
    image = torch.rand(1, 3, 16, 16)
    whole = sum(one.numel() for one in model.parameters())
    for share in (0.7, 0.5, 0.35):
        small, cut = prune(model, image, f"params={share:.0%}")
        kept = sum(one.numel() for one in small.parameters()) / whole
        said = [note for note in cut.notes if "below the budget" in note]
        assert kept <= share
        assert len(said) == (kept < 0.95 * share)
    small, cut = prune(model, image, "params=85%")
    (note,) = (note for note in cut.notes if "below the budget" in note)
    assert note.endswith("the largest are those of conv_proj.heads, 1 of 4, of which it keeps 3")
    assert cut.removed == {"conv_proj.heads": (1, 4)}, "what else can stay stays"
    _, cut = prune(model, image, "params=60%", scope="global")
    assert any("below the budget" in note for note in cut.notes), "by score, nothing comes back"
    _, cut = prune(model, image, "params=99%,flops=50%")
    assert not any("below the budget" in note for note in cut.notes), "one of two measures is used up"
    _, cut = prune(model, image, "params=85%", shares={"*mlp*": 0.25})
    assert not any("below the budget" in note for note in cut.notes), "it is the shares that leave room"
    assert all(cut.removed[name][0] * 4 == cut.removed[name][1] * 3 for name in cut.removed if "mlp" in name)


def test_a_site_that_loses_more_than_all_others_is_said() -> None:
    """One that loses nothing, for its steps are too large, counts beside it."""
    kept = {"embedding.channels": (73, 192), "layers.0.heads": (3, 3), "mlp.channels": (836, 1536)}
    selection = Selection({name: np.arange(count) < stays for name, (stays, count) in kept.items()})
    (note,) = pruning._thinned_notes(selection)
    assert note.startswith("embedding.channels keeps 73 of 192 (38%), all sites together 53%")


def test_wide_sites_are_rounded_to_8_and_narrow_ones_are_not() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 30, 3), nn.ReLU(), nn.Conv2d(30, 80, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(80, 5),
    ).eval()  # fmt: skip
    inputs = torch.randn(2, 3, 12, 12)

    def widths(budget: str, multiple: int | None = None) -> list[int]:
        small = prune(net, inputs, budget, multiple=multiple).model
        return [module.out_channels for module in small.modules() if isinstance(module, nn.Conv2d)]

    first, narrow, last = widths("channels=45%")
    assert first % 8 == 0
    assert last % 8 == 0
    assert narrow % 8
    assert first + narrow + last <= 0.45 * 174
    assert widths("channels=45%", 1) != [first, narrow, last]
    assert all(width % 8 for width in widths("channels=3%")), "no rounded cut is as small as that"
