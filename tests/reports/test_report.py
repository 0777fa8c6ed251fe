"""The report: whole, small, silent on the network, honest about failures, and looked at in a real browser."""

import base64
import dataclasses
import html
import itertools
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from matplotlib import image

from measure import samples
from secateur.reports import charts, report
from secateur.vocabulary import Cut, Evidence, Figure, Recovery

YAML = "recipe: ziplm\nbudget: speedup=2x\nseed: 0\n"
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>--><!-- $\\frac{1}{0}$ {{ 7*7 }} &amp;'


@pytest.fixture(scope="module")
def single():
    return report.render(samples.result(), run_yaml=YAML, load="AutoModel.from_pretrained('small')")


@pytest.fixture(scope="module")
def family():
    results = [samples.result("speedup=1.5x", 1.53, 0.955), samples.result(), samples.result("speedup=3x", 2.4, 0.86)]
    return report.render(results, run_yaml=YAML)


def words(page):
    """The text of the page without styles and drawings."""
    page = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).replace("\u00a0", " ").replace("\u202f", " ").split())


def headline(page):
    return words(re.search(r"<h1>.*?</h1>", page, re.DOTALL)[0])


class Outline(HTMLParser):
    """Tags with their attributes, and whether every opened one is closed."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, page):
        super().__init__()
        self.stack, self.tags = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, tag


def test_all_sections_are_there(single):
    text = words(single)
    for section in (
        "Quality against speed and size", "Target, predicted, measured", "Before and after, beside baselines",
        "What was cut where", "Recovery", "Load it", "Environment and how to repeat it",
    ):  # fmt: skip
        assert section in text, section
    assert headline(single) == "2.03× as fast, with 53.3 % of the parameters"
    assert "every second layer" in text
    assert "budget: speedup=2x" in text
    assert "AutoModel.from_pretrained('small')" in text
    assert "2 of 6 attention blocks removed" in text
    assert "all-MiniLM-L6-v2" in text


def test_it_is_small_and_asks_for_nothing(single, family):
    for page in (single, family):
        assert len(page.encode()) < 600_000
        tags = Outline(page).tags
        assert not [tag for tag, _ in tags if tag in ("script", "img", "iframe", "object", "embed", "base", "form")]
        for tag, attributes in tags:
            for name, value in attributes.items():
                assert not name.startswith("on"), (tag, name)
                if name in ("href", "src", "xlink:href"):
                    assert value.startswith(("#", "data:,")), (tag, value)
        outside = set(re.findall(r"https?://[^\s\"'<]+", page))
        assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
        assert "@import" not in page
        assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", page)
        assert "default-src 'none'" in page


def test_it_is_well_formed_and_ids_are_unique(single, family):
    for page in (single, family):
        outline = Outline(page)
        assert outline.stack == []
        ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        used = set(re.findall(r"url\(#([^)]+)\)", page)) | {
            a[n][1:] for _, a in outline.tags for n in ("href", "xlink:href") if a.get(n, "").startswith("#")
        }
        used |= {a["aria-labelledby"] for _, a in outline.tags if "aria-labelledby" in a}
        assert used <= set(ids)


def test_it_is_accessible(family):
    tags = Outline(family).tags
    assert ("html", {"lang": "en"}) in tags
    assert any(tag == "meta" and a.get("name") == "viewport" for tag, a in tags)
    assert [tag for tag, _ in tags].count("h1") == 1
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h\d", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert family.count("<figure>") == family.count("<figcaption") > 0
    assert all(a.get("scope") in ("col", "row") for tag, a in tags if tag == "th")
    assert all(a.get("aria-hidden") == "true" for tag, a in tags if tag == "svg")


def contrast(one, two):
    def luminance(colour):
        colour = colour if len(colour) == 6 else "".join(c * 2 for c in colour)
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def palettes(page):
    return [
        dict(re.findall(r"--(\w+):#([0-9a-f]+)", block)) for block in re.findall(r":root\{(--ink|--paper.*?)\}", page)
    ]


def test_text_has_contrast_in_light_and_dark(single):
    light, dark = palettes(single)[:2]
    for palette in (light, dark):
        for ink in ("ink", "muted", "accent", "good", "bad", "warn"):
            assert contrast(palette[ink], palette["paper"]) >= 4.5, ink
        assert contrast(palette["ink"], palette["code"]) >= 7
        assert contrast(palette["bad"], palette["badwash"]) >= 4.5


def test_the_same_evidence_makes_the_same_bytes(single):
    assert report.render(samples.result(), run_yaml=YAML, load="AutoModel.from_pretrained('small')") == single


def test_the_headline_says_what_the_budget_names():
    sizes = {"params": 100.0, "weights": 50.0, "kv_cache": 8.0}
    before = {name: Figure(value) for name, value in sizes.items()}
    after = {"params": Figure(88.2), "weights": Figure(29.85), "kv_cache": Figure(4.0)}
    said = {
        target: headline(report.render(Evidence("stun", target, before=before, after=after))).replace("\u00a0", " ")
        for target in ("weights=60%", "params=90%", "params=90%,kv_cache=50%", "pattern=2:4")
    }
    assert said == {
        "weights=60%": "59.7 % of the weights",
        "params=90%": "88.2 % of the parameters",
        "params=90%,kv_cache=50%": "88.2 % of the parameters and 50.0 % of the KV cache",
        "pattern=2:4": "Not judged: nothing was measured against a target",
    }


def test_a_noop_reads_as_a_failure_in_red():
    page = report.render(samples.result(cut=Cut({"layers.0.heads": (0, 12)}, {}, {}), verdict="met"))
    assert headline(page) == "Failed: nothing was removed"
    assert '<header class="failed">' in page
    assert "Do not use it as a smaller one" in words(page)
    assert "Target met" not in words(page)
    assert re.search(r"\.failed h1[^{]*\{color:var\(--bad\)\}", page)


def test_a_result_that_is_not_faster_reads_as_a_failure_in_red():
    page = report.render(samples.result(speedup=1.003))
    assert headline(page).startswith("Failed: not measurably faster (1.00×")
    assert '<header class="failed">' in page
    assert "Target met" not in words(page)
    assert "as fast" not in words(page)


def test_smaller_but_not_faster_carries_a_red_warning():
    page = report.render(samples.result("params=60%", speedup=1.0))
    assert "Target met" in words(page)
    assert re.search(r'class="warning" role="alert">Not measurably faster', page)
    assert "as fast" not in words(page)


def test_a_miss_and_an_unjudged_result_are_no_success():
    assert headline(report.render(samples.result(speedup=1.5))) == "Target missed: 1.50× speedup instead of 2×"
    page = report.render(Evidence("ziplm", "speedup=2x"))
    assert headline(page).startswith("Not judged")
    assert "Target met" not in words(page)


def test_a_family_says_how_many_and_shows_each(family):
    assert headline(family) == "2 of 3 targets met"
    assert '<header class="missed">' in family
    assert family.count("<article") == 3
    for target in ("speedup=1.5x", "speedup=2x", "speedup=3x"):
        assert target in words(family)
    assert "Target missed: 2.40× speedup instead of 3×" in words(family)


def hostile():
    result = samples.result()
    figures = {**result.after, HOSTILE: Figure(1.0)}
    return dataclasses.replace(
        result,
        recipe=HOSTILE,
        target=HOSTILE,
        verdict=f"missed: {HOSTILE}",
        after=figures,
        baselines={HOSTILE: result.baselines["magnitude"]},
        cut=Cut({HOSTILE: (1, 2), "layers.0.heads": (1, 2)}, {}, {}, (HOSTILE,)),
        environment={HOSTILE: HOSTILE},
        settings={"model": HOSTILE},
        recovery=Recovery(1, losses=((0, 1.0), (1, 0.5)), settings={HOSTILE: HOSTILE}),
    )


@pytest.mark.parametrize("several", [False, True])
def test_hostile_names_stay_text(several):
    results = [hostile(), hostile()] if several else hostile()
    page = report.render(results, run_yaml=HOSTILE, load=HOSTILE, title=HOSTILE)
    tags = Outline(page).tags
    assert not [tag for tag, _ in tags if tag in ("script", "img")]
    assert "<!--" not in page
    assert "{{ 7*7 }}" in html.unescape(page)
    sites = dataclasses.replace(hostile(), cut=Cut({HOSTILE: (1, 2)}, {}, {}))
    assert not [tag for tag, _ in Outline(report.render(sites)).tags if tag == "script"]


def test_no_path_of_the_users_machine_is_shown(single):
    assert "/home/someone" not in single


def test_written_whole_beside_its_run_yaml(tmp_path):
    (tmp_path / "run.yaml").write_text("seed: 4242\n")
    path = report.write(tmp_path, samples.result())
    assert path == tmp_path / "report.html"
    assert "seed: 4242" in path.read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "run.yaml"]


def test_loading_code_by_target():
    page = report.render([samples.result(), samples.result("speedup=3x", 3.0)], load={"speedup=3x": "load_three()"})
    assert page.count("load_three()") == 1
    assert "secateur.load" in page


def test_subjects_without_layers_are_drawn_by_site():
    page = report.render(samples.result("examples=50%", cut=Cut({"train": (600, 1000)}, {}, {}), recovery=None))
    assert "600 of 1 000 units of train removed" in words(page)
    assert ">400 / 1\u202f000<" in page


def test_the_bars_of_a_cut_show_every_layer_and_what_is_gone():
    page = report.render(samples.result(cut=samples.cut()))
    assert page.count("<span>layer removed</span>") == 2  # two panels
    assert page.count("<span>removed</span>") == 2
    assert page.count('<li class="gone">') == 4
    assert '<li><span>1</span><i style="--kept:91.67%"></i><span>11 / 12</span></li>' in page
    whole = report.render(samples.result(cut=Cut({"layers.0.heads": (0, 12)}, {}, {})))
    assert "<li>" not in whole


def test_a_deep_model_stays_small_and_readable():
    deep = {f"layers.{i}.{kind}": (i % 5, 64) for i in range(126) for kind in ("heads", "kv_groups", "neurons")}
    page = report.render(samples.result(cut=Cut(deep, {}, {})))
    assert len(page.encode()) < 300_000
    assert page.count('<ol class="many">') == 3


def test_a_loss_curve_of_thousands_is_thinned():
    many = Recovery(20_000, losses=tuple((i, 1.0 / (i + 1)) for i in range(20_000)))
    assert len(charts.losses(many, "loss")) < 60_000
    assert charts.losses(Recovery(1, losses=((0, 1.0),)), "loss") == ""


# --------------------------------------------------------------------------------------------- in a real browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        reason = "no Chromium on the path: install the package `chromium`, or set CHROMIUM to a browser"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)

    def run(*arguments):
        profile = tmp_path_factory.mktemp("profile")
        command = [
            found, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
            "--disable-dev-shm-usage", f"--user-data-dir={profile}", "--virtual-time-budget=2000", *arguments,
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return run


PROBE = """<!doctype html><body>
<iframe id=f style="width:%dpx;height:800px;border:0"></iframe><pre id=out></pre><script>
const page = new TextDecoder().decode(Uint8Array.from(atob("%s"), c => c.charCodeAt(0)));
const frame = document.getElementById("f");
frame.onload = () => {
  const d = frame.contentDocument, root = d.documentElement, width = frame.clientWidth;
  const shown = e => { const r = e.getBoundingClientRect(); return r.width > 0 && r.height > 0; };
  const wide = [...d.querySelectorAll("main *")].filter(e => shown(e) && !e.closest("svg,.scroll,pre,thead"))
    .filter(e => e.getBoundingClientRect().right > width + 1).map(e => e.tagName + "." + e.className);
  const type = [...d.querySelectorAll("svg text")].filter(shown).map(e => e.getBoundingClientRect().height);
  document.getElementById("out").textContent = JSON.stringify({
    width, scroll: root.scrollWidth, wide,
    headings: [...d.querySelectorAll("h1,h2")].filter(shown).length,
    all: d.querySelectorAll("h1,h2").length,
    charts: [...d.querySelectorAll("svg")].filter(shown).length,
    bars: [...d.querySelectorAll(".panels i")].filter(shown).length,
    smallest: Math.min(...type),
    requests: frame.contentWindow.performance.getEntriesByType("resource").length,
    colour: frame.contentWindow.getComputedStyle(d.querySelector("h1")).color });
};
frame.srcdoc = page;
</script>"""


def look(browser, folder, page, width):
    probe = folder / f"probe-{width}.html"
    probe.write_text(PROBE % (width, base64.b64encode(page.encode()).decode()))
    out = browser("--window-size=1300,900", "--dump-dom", probe.as_uri())
    return json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', out, re.DOTALL)[1]))


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_nothing_overflows_and_everything_shows(browser, tmp_path, single, family, width):
    pages = [single, family] if width == 390 else [single]
    if width == 390:
        pages.append(report.render(hostile(), run_yaml="x" * 400, load="y" * 400))
    for page in pages:
        seen = look(browser, tmp_path, page, width)
        assert seen["scroll"] <= seen["width"] == width, seen
        assert seen["wide"] == []
        assert seen["headings"] == seen["all"]
        assert seen["charts"] >= 2
        assert seen["bars"] >= 1
        assert seen["smallest"] >= 8, "type in the charts is too small to read"
        assert seen["requests"] == 0


def test_a_failure_is_red_to_the_eye(browser, tmp_path):
    page = report.render(samples.result(speedup=1.0))
    colour = look(browser, tmp_path, page, 390)["colour"]
    red, green, blue = map(int, re.findall(r"\d+", colour)[:3])
    assert red > 1.5 * max(green, blue)


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_are_drawn(browser, tmp_path, single, dark):
    path, shot = tmp_path / "report.html", tmp_path / "shot.png"
    path.write_text(single)
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    browser(scheme, f"--screenshot={shot}", "--window-size=1200,1600", path.as_uri())
    pixels = image.imread(shot)[..., :3]
    paper = palettes(single)[dark]["paper"]
    corner = "".join(f"{round(float(c) * 255):02x}" for c in pixels[5, 5])
    assert corner == paper
    assert pixels.std() > 0.03, "the page is blank"


def test_a_sparse_result_speaks_of_its_weights_and_not_of_its_parameters():
    before = {"params": Figure(1000.0), "weights": Figure(800.0), "bytes": Figure(4000.0), "perplexity": Figure(9.0)}
    after = {**before, "weights": Figure(400.0), "zeros": Figure(0.5), "packed_bytes": Figure(2500.0),
             "perplexity": Figure(9.9)}  # fmt: skip
    speed = {"speedup": Figure(1.0, 0.98, 1.02), "off_pattern": Figure(0.0)}
    told = "50.0 % of the weights in its matrices are zero, stored and multiplied like the others"
    row = samples.result("pattern=2:4", before=before, after=after, measured=speed, predicted={"weights": 400.0},
                 baselines={}, cut=Cut({"layers.0.mlp_up_proj": (300, 600), "layers.0.mlp_down_proj": (100, 200)},
                                        {"weights": 800.0}, {"weights": 400.0}, (told,)))  # fmt: skip
    page = report.render(row).replace("\u00a0", " ")
    assert "50.0% of the weights" in page.replace(" %", "%")
    assert "of the parameters" not in page
    assert told in page
    assert "Not measurably faster" in page
    assert "400 of 800 weights in the blocks&#39; matrices stay." in page
    assert "mlp down proj" in page
    assert "weights that are not zero, % of the original" in page


@pytest.mark.parametrize(("recipe", "command"), [("ziplm", "run"), ("prune", "prune"), ("distill", "distill")])
def test_the_command_that_repeats_a_run_is_its_own(recipe, command):
    page = report.render(dataclasses.replace(samples.result(), recipe=recipe), run_yaml=YAML)
    assert f"<code>secateur {command} --config run.yaml</code>" in page
