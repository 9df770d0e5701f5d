"""Promise: the loss explorer needs no other file, computes what the library computes, and works in a browser."""

import ast
import html
import json
import math
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cyclofocal import CyclicalFocalLoss
from cyclofocal.equation import target_term
from cyclofocal.functional import cyclical_focal_loss
from cyclofocal.schedules import cyclical_eta

PAGE = (Path(__file__).parent.parent / "docs/explorer.html").read_text(encoding="utf-8")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PLAIN = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_hc": 0.0}
pytestmark = pytest.mark.filterwarnings("ignore:a gamma_hc above")
EXACT = {"rel": 1e-9, "abs": 1e-15}
SAMPLES = 200
FRAGMENT = "gamma_hc=1.5&tau=0.5&classes=100&gamma_neg=9&progress="  # the last two are refused

PROBE = """
<script>
const said = {errors: window.failures, code: explorer.code(), controls: {}, drawn: []};
const settings = SETTINGS;
said.address = Object.fromEntries(SLIDERS.map((slider) => [slider.key, state[slider.key]]));
said.refused = find("meaning").children[0].textContent;
said.values = settings.map((one) => explorer.values(one));
for (const control of document.querySelectorAll("input, select")) {
  said.controls[control.id] = [control.labels.length, control.tabIndex];
}
const inspect = () => {
  const shapes = [...document.querySelectorAll("main svg *")].flatMap((shape) => [...shape.attributes]);
  said.drawn.push([shapes.length, shapes.filter((attribute) => /NaN|Infinity|undefined/.test(attribute.value)).length]);
};
for (const preset of PRESETS) { change(preset[1]); inspect(); }
for (const one of settings.slice(0, 10)) { change(one); inspect(); }
said.code_with_settings = explorer.code();
find("progress").value = 0.25;
find("progress").dispatchEvent(new Event("input"));
find("progress").dispatchEvent(new Event("change", {bubbles: true}));
said.moved = [state.progress, find("progress-value").textContent, find("progress").getAttribute("aria-valuetext")];
said.hash = location.hash;
said.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
document.body.dataset.said = JSON.stringify(said);
</script>
"""
WATCH = """<script>
window.failures = [];
addEventListener("error", (event) => failures.push(event.message));
addEventListener("securitypolicyviolation", (event) => failures.push(event.blockedURI));
</script>"""


def random_settings():
    draw = random.Random(7)
    return [
        {
            "gamma_pos": draw.choice([0.0, 1.0, draw.uniform(0, 5)]),
            "gamma_neg": draw.choice([0.0, draw.uniform(0, 5)]),
            "gamma_hc": draw.choice([0.0, 3.0, draw.uniform(0, 6)]),
            "label_smoothing": draw.choice([0.0, draw.uniform(0, 0.4)]),
            "cyclical_factor": draw.choice([1.0, 2.0, draw.uniform(1, 10)]),
            "progress": draw.choice([0.0, 1.0, draw.random()]),
            "classes": draw.choice([2, 3, 10, draw.randint(2, 1000)]),
            "tau": draw.choice([0.0, draw.uniform(0, 2)]),
            "prior": draw.uniform(0.001, 0.999),
            "p": 1 / (1 + math.exp(draw.uniform(-12, 12))),
            "q": draw.uniform(0.01, 0.99),
        }
        for _ in range(SAMPLES)
    ]


@pytest.fixture(scope="module")
def answer(tmp_path_factory):
    """Everything that one visit of the page with a browser answers."""
    if BROWSER is None:
        pytest.skip("no chromium here, which computes the page's numbers")
    folder = tmp_path_factory.mktemp("explorer")
    probe = PROBE.replace("SETTINGS", json.dumps(random_settings()))
    path = folder / "page.html"
    path.write_text(PAGE.replace("<style>", WATCH + "<style>", 1).replace("</body>", probe + "</body>"), "utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=400,900"]
    command = [BROWSER, *options, f"--user-data-dir={folder / 'profile'}", "--dump-dom", f"{path.as_uri()}#{FRAGMENT}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'data-said="([^"]*)"', done.stdout)
    assert found, done.stderr
    return json.loads(html.unescape(found[1])) | {"console": done.stderr.count("CONSOLE")}


def one_sample(s, eta, change):
    """Loss, weight and gradient of one sample, by the library."""
    s = s | change
    odds = math.log(s["p"]) - math.log1p(-s["p"])
    logits = torch.tensor(
        [odds + math.log(s["classes"] - 1)] + [0.0] * (s["classes"] - 1), dtype=torch.float64, requires_grad=True
    )
    offset = prior_offset(s, s["classes"])
    loss = cyclical_focal_loss(logits, torch.tensor(0), eta=eta, logit_offset=offset, **loss_settings(s))
    loss.backward()
    log_p = F.logsigmoid(odds + offset[0] - offset[1:].logsumexp(0) + math.log(s["classes"] - 1))  # near 0 exact
    weight = target_term(log_p, eta, s["gamma_pos"], s["gamma_hc"]) / log_p
    return {"loss": loss.item(), "weight": weight.item(), "gradient": logits.grad[0].item()}


def pair_risk(s, eta, p):
    """Expected loss of two classes at predictions ``p``, the first true with probability q, by the library."""
    logits = torch.stack([torch.log(p) - torch.log1p(-p), torch.zeros_like(p)], 1)
    target = torch.tensor([[s["q"], 1 - s["q"]]], dtype=torch.float64).expand_as(logits)
    offset = prior_offset(s, 2)
    return cyclical_focal_loss(logits, target, eta=eta, reduction="none", logit_offset=offset, **loss_settings(s))


def prior_offset(s, classes):
    rest = (1 - s["prior"]) / (s["classes"] - 1)
    return s["tau"] * torch.tensor([s["prior"]] + [rest] * (classes - 1), dtype=torch.float64).log()


def loss_settings(s):
    return {key: s[key] for key in ("gamma_pos", "gamma_neg", "gamma_hc", "label_smoothing")}


def test_the_page_needs_nothing_else():
    assert "http" not in PAGE.replace("http-equiv", "")
    assert "default-src 'none'" in PAGE
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|import)\s*\(|@import|\bsrc=", PAGE)
    assert re.findall(r'\bhref ?= ?"([^"]*)"', PAGE) == ["data:,", "loss.html"]  # the latter is made of docs/loss.md
    assert (Path(__file__).parent.parent / "docs/loss.md").exists()


def test_a_sample_is_that_of_the_library(answer):
    assert len(answer["values"]) == SAMPLES
    for s, found in zip(random_settings(), answer["values"], strict=True):
        eta = cyclical_eta(s["progress"], s["cyclical_factor"])
        for name, at, change in [
            ("now", eta, {}),
            ("cross_entropy", eta, PLAIN),
            ("focal", 0.0, {}),
            ("high_confidence", 1.0, {}),
        ]:
            for quantity, value in one_sample(s, at, change).items():
                assert found[name][quantity] == pytest.approx(value, **EXACT), (quantity, name, s)


def test_schedule_and_risk_are_those_of_the_library(answer):
    for s, found in zip(random_settings(), answer["values"], strict=True):
        eta = cyclical_eta(s["progress"], s["cyclical_factor"])
        assert found["eta"] == pytest.approx(eta, **EXACT)
        p = torch.tensor([s["p"]], dtype=torch.float64)
        assert found["now"]["risk"] == pytest.approx(pair_risk(s, eta, p).item(), **EXACT), s
        assert found["cross_entropy"]["risk"] == pytest.approx(pair_risk(s | PLAIN, eta, p).item(), **EXACT), s


def test_minima_of_a_pair_are_those_of_the_library(answer):
    """Every minimum that a fine grid shows is reported at its place, and no other."""
    numbers = set()
    log_odds = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    for s, found in list(zip(random_settings(), answer["values"], strict=True))[::4]:
        risk = pair_risk(s, cyclical_eta(s["progress"], s["cyclical_factor"]), log_odds.sigmoid())
        lowest = (risk[1:-1] < risk[:-2]) & (risk[1:-1] <= risk[2:])
        reported = torch.tensor(found["minima"], dtype=torch.float64).logit()
        inside = reported[reported.abs() < 11.9]
        torch.testing.assert_close(inside, log_odds[1:-1][lowest], rtol=0, atol=0.01, msg=str(s))
        numbers.add(len(inside))
    assert {1, 2} <= numbers


def test_threshold_is_where_the_even_pair_splits(answer):
    """Just above it the middle of an even pair is a maximum of the library's risk, just below a minimum."""
    near = torch.tensor([0.49, 0.5, 0.51], dtype=torch.float64)
    with_one = 0
    for s, found in zip(random_settings(), answer["values"], strict=True):
        s = s | {"q": 0.5, "tau": 0.0}
        threshold = found["threshold"]
        for eta in (0.0, 1.0) if threshold is None else (max(threshold - 0.01, 0), min(threshold + 0.01, 1)):
            left, middle, _ = pair_risk(s, eta, near).tolist()
            assert (left < middle) == (threshold is not None and eta > threshold), (s, eta)
        with_one += threshold is not None
    assert 20 < with_one < SAMPLES - 20


def test_settings_come_from_the_address(answer):
    """Wrong ones are refused by name; the code to copy is the loss of the others."""
    assert {key: answer["address"][key] for key in ("gamma_hc", "tau", "classes")} == {
        "gamma_hc": 1.5,
        "tau": 0.5,
        "classes": 100,
    }
    assert answer["address"]["gamma_neg"] == 2
    assert "gamma_neg in the address is 9; it must lie between 0 and 5" in answer["refused"]
    assert "progress in the address is ; it" in answer["refused"]
    criterion = made(answer["code"])
    assert criterion.gammas == {"gamma_pos": 2, "gamma_neg": 2, "gamma_hc": 1.5}
    assert criterion.logit_offset.tolist() == pytest.approx([0.5 * math.log(0.9), 0.5 * math.log(0.1)])


def test_code_makes_the_loss_of_the_page(answer):
    criterion, s = made(answer["code_with_settings"]), random_settings()[9]
    assert criterion.gammas == {key: s[key] for key in ("gamma_pos", "gamma_neg", "gamma_hc")}
    assert (criterion.label_smoothing, criterion.cyclical_factor) == (s["label_smoothing"], s["cyclical_factor"])
    assert (criterion.logit_offset is None) == (s["tau"] == 0)


def made(code):
    names = {"counts": [90, 10], "total_steps": 10}
    ast.parse(code)
    exec(code, names)
    assert isinstance(names["criterion"], CyclicalFocalLoss)
    return names["criterion"]


def test_it_works_in_a_browser_of_a_phone(answer):
    assert answer["errors"] == []
    assert answer["console"] == 0
    assert not answer["wide"]
    assert len(answer["controls"]) == 12
    assert all(labels == 1 and focus == 0 for labels, focus in answer["controls"].values())
    assert len(answer["drawn"]) == 18
    assert all(attributes > 300 and broken == 0 for attributes, broken in answer["drawn"])
    assert answer["moved"] == [0.25, "0.25", "0.25"]
    assert "progress=0.25" in answer["hash"]
