"The moving picture: its states against slower ways to the same numbers, and how it answers in a real browser"

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from talking_heads.base.core import Head
from talking_heads.data import ioi
from talking_heads.hooks import load_model, readout, task_args
from talking_heads.interventions import active_edits, component_edit, readout_with_edit
from talking_heads.site.picture import *

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def toy():
    return load_model("toy", device="cpu")


@pytest.fixture(scope="module")
def study(toy, tmp_path_factory):
    "A study of the toy's circuit"
    path = tmp_path_factory.mktemp("picture") / "p.json"
    return json.loads(picture_study(toy, "1.1.0", [Head(2, h) for h in range(4)], path, n=12).read_text())


def test_states_are_those_of_edits(toy, study):
    "Each stored state is what a whole run with the component scaled at END gives; the model is left as it was"
    pools = [ioi(**task_args(toy), n=11, templates=[t]) for t in study["templates"]]
    every = [p for pool in pools for p in pool]
    at = [[p.text for p in every].index(s["text"]) for s in study["sentences"]]
    assert [i // 11 for i in at] == [0, 1, 2]
    shown = (pools[0] + pools[1] + pools[2])[at]
    assert [s["IO"] for s in study["sentences"]] == [p.answer for p in shown]
    for arm, name in (("message", study["component"]), ("control", study["control"])):
        for f in (-3.0, -0.5, 1.0, 2.0):
            r = readout_with_edit(toy, shown, component_edit(toy, {name: f}), "END")
            p = r.logits.softmax(-1)
            for i, s in enumerate(study["sentences"]):
                mine = s["states"][arm][study["factors"].index(f)]
                theirs = [float(p[i, shown[i].answer_id]), float(p[i, shown[i].distractor_ids[0]])]
                assert mine["p"] == pytest.approx(theirs, abs=1e-3)
                assert torch.tensor(mine["looks"]) == pytest.approx(r.attention[i, 2, :4], abs=1e-3)
    assert not active_edits(toy)


def test_control_is_another_component_of_the_head(toy, study):
    assert study["control"] == random_component(toy, "1.1.0", 0) == "1.1.1"  # this head was built with two
    drawn = {random_component(toy, "2.0.0", seed) for seed in range(8)}
    assert len(drawn) > 1 and all(d.startswith("2.0.") and d != "2.0.0" for d in drawn)


def test_stored_study_is_whole():
    "Seven steps or more, three sentences, every arm, with its provenance; at factor 1 all arms agree"
    s = stored_picture()
    assert len(s["factors"]) >= 7 and len(s["sentences"]) == 3 and len(s["sha256"]) == 64
    assert len(s["means"]) == len(picture_arms) * len(s["factors"])
    at = s["factors"].index(1.0)
    for one in s["sentences"]:
        rows = [one["states"][a][at] for a in picture_arms]
        assert rows[0]["p"] == pytest.approx(rows[1]["p"], abs=2e-3) and len(rows[0]["looks"]) == len(s["movers"])
    assert {r["right"]["n"] for r in s["means"]} == {s["n"]}


def data_of(html):
    "What the script of a picture was given"
    return json.loads(re.search(r'showPicture\(document\.querySelector\("\.th-picture"\), (\{.*\})\)\n', html)[1])


def test_picture_shows_the_stored_numbers():
    "The home page's picture, its words and its table hold the study's numbers"
    s = stored_picture()
    cells = json.loads((ROOT / "index.ipynb").read_text())["cells"]
    (html,) = ("".join(o["data"]["text/html"]) for c in cells for o in c.get("outputs", [])
               if "showPicture(" in "".join(o.get("data", {}).get("text/html", "")))  # fmt: skip
    data = data_of(html)
    assert data["factors"] == s["factors"] and data["components"] == [s["component"], s["control"]]
    for one, rows in zip(s["sentences"], data["states"]):
        for arm in ("message", "control"):
            for state, row in zip(one["states"][arm], rows[arm]):
                assert row == pytest.approx([*mean_looks(state).values(), *state["p"]], abs=1e-5)
    for arm in ("message", "control"):
        assert panel_words(s, 0, arm, data["still"]) in html.replace("&#x27;", "'")


def test_stills_are_committed():
    "The README's pictures are what the study gives, light and dark, and well-formed"
    for look in ("light", "dark"):
        text = (ROOT / "nbs" / f"picture-{look}.svg").read_text(encoding="utf-8")
        assert text == still_svg(stored_picture(), look), "run tools/make_readme.py"
        assert ET.fromstring(text).tag.endswith("svg")
    assert "nbs/picture-dark.svg" in (ROOT / "README.md").read_text(encoding="utf-8")


# In a browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    "A page with nothing but the stored picture"
    path = tmp_path_factory.mktemp("page") / "picture.html"
    style = "<style>[hidden]{display:none}.visually-hidden{position:absolute;left:-9999px}</style>"
    head = '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>p</title>'
    path.write_text(head + style + picture_html(stored_picture()))
    return path.as_uri()


def opened(chrome, address, **kw):
    "A tab with the page, and what it complains about or asks for"
    context = chrome.new_context(viewport=dict(width=kw.pop("width", 1000), height=900), **kw)
    tab, seen = context.new_page(), []
    tab.on("console", lambda m: seen.append(m.text) if m.type in ("error", "warning") else None)
    tab.on("pageerror", lambda e: seen.append(str(e)))
    tab.on("request", lambda r: seen.append(r.url) if not r.url.startswith("file:") else None)
    tab.goto(address)
    return tab, seen


def shown(tab, arm):
    "Widths of arcs and bars of a panel that is seen"
    find = "a => [...document.querySelectorAll('.th-one:not([hidden]) svg')].find(s => s.dataset.arm == a)"
    width = "e => +(e.getAttribute('stroke-width') || e.getAttribute('width'))"
    get = f"[...s.querySelectorAll('[data-arc], [data-bar]')].map({width})"
    return tab.evaluate(f"arm => {{ const s = ({find})(arm); return {get} }}", arm)


def test_slider_moves_the_message_and_not_the_control(chrome, page):
    "By the keyboard alone: arcs and answer follow the message; the control moves less; words say it"
    tab, seen = opened(chrome, page, reduced_motion="reduce")
    slider = tab.locator("#th-factor")
    slider.focus()
    for _ in range(12):
        tab.keyboard.press("ArrowRight")
    right = {a: shown(tab, a) for a in ("message", "control")}
    assert slider.input_value() == "3"
    for _ in range(12):
        tab.keyboard.press("ArrowLeft")
    left = {a: shown(tab, a) for a in ("message", "control")}
    moved = {a: sum(abs(x - y) for x, y in zip(left[a], right[a])) for a in left}
    assert moved["message"] > 60 and moved["control"] < moved["message"] / 10, moved
    assert panel_words(stored_picture(), 0, "message", -3.0) in slider.get_attribute("aria-valuetext")
    said = tab.locator(".th-one:not([hidden]) .th-said").text_content()
    assert panel_words(stored_picture(), 0, "control", -3.0) in said
    assert seen == []


def test_sentences_and_table(chrome, page):
    "Another sentence is shown when it is chosen, with its own table"
    tab, seen = opened(chrome, page, reduced_motion="reduce")
    tab.locator("input[name=th-sentence]").nth(1).check()
    panel = tab.locator(".th-one:not([hidden])")
    assert panel.count() == 1 and stored_picture()["sentences"][1]["S"] in panel.locator("svg").first.text_content()
    panel.locator("summary").click()
    assert panel.locator("tbody tr").count() == len(stored_picture()["factors"]) and seen == []


def test_plays_once_unless_less_motion_is_wanted(chrome, page):
    "It comes to rest at the still; with reduced motion it never leaves it"
    tab, seen = opened(chrome, page, reduced_motion="no-preference")
    tab.wait_for_function("document.querySelector('#th-factor').value == '1'")
    tab.wait_for_function("document.querySelector('.th-slide button').textContent == 'Play'", timeout=15_000)
    assert tab.locator("#th-factor").input_value() == "-3"
    tab.wait_for_timeout(900)
    assert tab.locator("#th-factor").input_value() == "-3" and seen == []
    still, seen = opened(chrome, page, reduced_motion="reduce")
    still.wait_for_timeout(900)
    assert still.locator("#th-factor").input_value() == "-3"


def test_without_script_a_still_remains(chrome, page):
    "The first sentence with its words; no slider that does nothing"
    tab, _ = opened(chrome, page, java_script_enabled=False)
    assert tab.locator(".th-slide").is_hidden() and tab.locator(".th-one >> visible=true").count() == 1
    assert tab.locator("svg").first.get_attribute("aria-label") == panel_words(stored_picture(), 0, "message", -3.0)


@pytest.mark.parametrize("width", [390, 1280])
def test_fits_its_window(chrome, page, width):
    tab, _ = opened(chrome, page, width=width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [tab.locator(".th-one:not([hidden]) svg").nth(i).bounding_box() for i in (0, 1)]
    assert (boxes[1]["y"] > boxes[0]["y"] + 100) == (width == 390) and all(b["width"] >= 290 for b in boxes)
