"Trace pages in a real browser, th_trace as a user calls it, and the stored study"

import json
import os
import re

import pytest
import torch
from hypothesis import given, settings, strategies as st

from talking_heads import commands
from talking_heads.base.core import Head, TaskError
from talking_heads.circuits.recording import *
from talking_heads.circuits.trace import *
from talking_heads.circuits.trace_page import *
from talking_heads.circuits.trace_study import *
from talking_heads.data import corrupt, ioi
from talking_heads.hooks import load_model, task_args

TEXT = "Then, Mary and John went to the store. John gave a drink to"


@pytest.fixture(scope="module")
def toy():
    return load_model("toy")


@pytest.fixture(scope="module")
def page_file(toy, tmp_path_factory):
    prompts = ioi(**task_args(toy), n=4)
    return trace_page(
        toy,
        prompts[0],
        "2.1",
        tmp_path_factory.mktemp("page") / "trace.html",
        key="IO",
        against="S1",
        twin=corrupt(prompts, "abc")[0],
        name="toy <b>",
    )


def test_accounts_are_traces(toy):
    "What the page shows is what trace computes: the choice, each place against the others, attention, messages"
    p = ioi(**task_args(toy), n=4)[0]
    d, t = page_data(toy, p, "2.1", key="IO", against="S1"), trace(toy, p, "2.1", key="IO", against="S1")
    asked = d["accounts"]["asked"]
    assert asked["total"] == pytest.approx(float(t.own), abs=1e-3)
    for w, x, _ in asked["sides"][0]["rows"]:
        assert x == pytest.approx(float(t.side()[0, t.writers.index(w)]), abs=1e-4)
    at = p.roles["IO"]
    logits = {a["at"]: float(trace(toy, p, "2.1", key=a["at"]).own) for a in d["arcs"]}
    rest = [x for k, x in logits.items() if k != at]
    assert d["accounts"][str(at)]["total"] == pytest.approx(logits[at] - sum(rest) / len(rest), abs=1e-2)
    for w, parts in d["senders"].items():
        assert sum(parts) == pytest.approx(float(t.side()[0, t.writers.index(w)]), abs=1e-2)


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (390, "dark")])
def test_page_in_a_browser(chrome, page_file, width, scheme):
    "Nothing is asked of the network; arcs are reached and chosen with the keyboard; nothing is wider than the window"
    tab = chrome.new_page(viewport=dict(width=width, height=900), color_scheme=scheme)
    asked, said = [], []
    tab.on("request", lambda r: asked.append(r.url))
    tab.on("pageerror", lambda e: said.append(str(e)))
    tab.goto(page_file.as_uri())
    tab.wait_for_selector(".th-arc")
    first = tab.locator(".th-account h3").inner_text()
    assert "against" in first and "less its twin" in first
    for _ in range(12):  # through the contents to the first arc
        if tab.evaluate("document.activeElement.classList.contains('th-arc')"):
            break
        tab.keyboard.press("Tab")
    assert "attention" in tab.locator(".th-now").inner_text()
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Then")
    tab.keyboard.press("Enter")
    assert "mean of the other places" in tab.locator(".th-account h3").inner_text()
    assert tab.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    tab.locator(".th-account th button").first.click()
    assert tab.locator(".th-from").count() > 0
    tab.locator(".back").click()
    assert tab.locator(".th-account h3").inner_text() == first
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    labels = tab.locator(".th-arc").evaluate_all("a => a.map(x => x.getAttribute('aria-label'))")
    assert labels and all(re.search(r"position \d+\): attention", x) for x in labels)
    assert said == [] and asked == [page_file.as_uri()]
    tab.close()


def test_page_is_accessible(chrome, page_file):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    tab = chrome.new_page(viewport=dict(width=800, height=900))
    tab.goto(page_file.as_uri())
    tab.wait_for_selector(".th-arc")
    found = axe.Axe().run(tab).response["violations"]
    tab.close()
    assert [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")] == []


def test_page_says_its_names_safely(page_file):
    text = page_file.read_text(encoding="utf-8")
    assert "toy &lt;b&gt;" in text and "<caption>Attention of 2.1" in text


@pytest.fixture
def loaded(toy, monkeypatch):
    "The model is loaded already"
    monkeypatch.setattr("talking_heads.hooks.load_model", lambda *args, **kw: toy)


def test_th_trace(toy, loaded, tmp_path, called):
    one = dict(head="2.1", to="Mary", against="John#1", out=str(tmp_path / "a"))
    code, said = called(commands.th_trace, "toy", TEXT, **one)
    assert code == 0 and "ten largest terms" in said and (tmp_path / "a" / "trace.html").is_file()
    f = trace(toy, TEXT, "2.1", key="Mary", against="John#1").table()
    assert f"{f.term[0]:.3f}" in said and f.writer[0] in said
    many = dict(task="ioi", n=8, head="2.1", to="IO", against="S1", twin="abc", out=str(tmp_path / "b"))
    code, said = called(commands.th_trace, "toy", **many)
    assert code == 0 and "less its twin" in said and (tmp_path / "b" / "trace.csv").is_file()


@pytest.mark.parametrize(
    "kw, words",
    [
        (dict(to="John"), "John#1 at position 5, John#2 at position 11"),
        (dict(to="John#3"), "occurs 2 times"),
        (dict(to="Bob"), "nor a word"),
        (dict(to="99"), "outside a prompt of"),
        (dict(from_="Mary", to="drink"), "looks back"),
        (dict(head="0.1"), "first layer"),
        (dict(head="7.1"), "does not exist"),
        (dict(head=None), "--head 9.9"),
        (dict(twin=TEXT + " the"), "do not correspond"),
        (dict(task="ioi"), "one of the two"),
        (dict(text=None, task="ioi"), "Which place"),
        (dict(text=None, task="ioi", to="Mary"), "no role of this task"),
        (dict(text=None, task="induction", to="IO"), "without places"),
        (dict(text=None, task="nothing", to="IO"), "no task"),
    ],
)
def test_th_trace_refuses(loaded, tmp_path, called, kw, words):
    args = dict(model="toy", text=TEXT, head="2.1", out=str(tmp_path / "a")) | kw
    code, said = called(commands.th_trace, **args)
    assert code == 1 and words in said and "Traceback" not in said


def test_th_trace_leaves_what_is_not_its_own(tmp_path, called):
    (tmp_path / "trace.html").write_text("mine")
    code, said = called(commands.th_trace, "toy", TEXT, head="2.1", out=str(tmp_path))
    assert code == 1 and "did not write" in said and (tmp_path / "trace.html").read_text() == "mine"


def test_from_is_an_option():
    args = commands.arguments(
        commands.th_trace.__wrapped__, ["toy", TEXT, "--head", "2.1", "--from", "Mary", "--to", "-3"]
    )
    assert args["from_"] == "Mary" and args["to"] == "-3"


def test_edits_are_said(toy):
    from talking_heads.interventions import component_edit, edited

    with edited(toy, component_edit(toy, ["1.0.0"])):
        assert "with 1 edits" in repr(trace(toy, TEXT, "2.1", key="Mary"))
    assert "edits" not in repr(trace(toy, TEXT, "2.1", key="Mary"))


def test_some_prompts_of_a_trace(toy):
    prompts = ioi(**task_args(toy), n=6)
    t = trace(toy, prompts, "2.1", key="IO", against="S1")
    some = t[torch.tensor([False, True, False, True, False, False])]
    assert (
        len(some) == 2
        and torch.equal(some.own, t.own[[1, 3]])
        and torch.equal(some.without["key"], t.without["key"][[1, 3]])
    )


def test_twins_are_read_at_the_positions_of_their_prompts(toy):
    twin = TEXT.replace(". John", ". Tom")
    t = trace(toy, TEXT, "2.1", key="Mary", against="John#1", twin=twin)
    apart = float(trace(toy, TEXT, "2.1", key=3, against=5).own) - float(trace(toy, twin, "2.1", key=3, against=5).own)
    assert float(t.own) == pytest.approx(apart, abs=1e-3)
    with pytest.raises(TaskError, match="do not correspond"):
        trace(toy, TEXT, "2.1", key="Mary", twin=TEXT + " the")


def test_a_chain_starts_with_the_trace(toy):
    t = trace(toy, TEXT, "2.1", key="Mary", against="John#1")
    nodes, _ = chain(toy, TEXT, "2.1", key="Mary", against="John#1")
    for r in nodes[nodes.step == 1].to_dict("records"):
        assert r["direct"] == pytest.approx(float(t.side()[0, t.writers.index(r["writer"])]), abs=1e-3)


def test_the_stored_studies():
    "Every row of a stored table has its n and an interval around its mean"
    for name in ("smollm2", "gemma3"):
        d = stored_trace(name)
        assert len(d["sha256"]) == 64 and {"n", "seed", "versions", "called"} <= set(d)
        for part, rows in d["parts"].items():
            for r in rows if isinstance(rows, list) else []:
                middle = r["rho"] if "rho" in r else r["mean"]
                assert r["n"] > 1 and r["low"] - 1e-6 <= middle <= r["high"] + 1e-6, (part, r)


GEMMA = os.environ.get("TALKING_HEADS_GEMMA3", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["smollm2", GEMMA or pytest.param("", marks=pytest.mark.skip(reason="TALKING_HEADS_GEMMA3 names no file"))]
)
def test_sums_on_real_models(name):
    "At random positions and heads: terms are the model's own logits, components are their head"
    model = load_model(name)
    rec = record(model, as_prompts(model, [TEXT]))
    T = rec.tokens.shape[1]

    @settings(max_examples=12, deadline=None)
    @given(st.data())
    def holds(data):
        h = Head(data.draw(st.integers(1, model.cfg.n_layers - 1)), data.draw(st.integers(0, model.cfg.n_heads - 1)))
        q = data.draw(st.integers(1, T - 1))
        k, sender = data.draw(st.integers(0, q)), Head(h.layer - 1, data.draw(st.integers(0, model.cfg.n_heads - 1)))
        own, t = float(rec.scores[h.layer, 0, h.head, q, k]), trace(model, rec, h, q, k, split=[sender])
        assert float(t.terms.sum()) == pytest.approx(
            own, rel=1e-4, abs=1e-4 * float(rec.scores[h.layer, 0, h.head, q, : q + 1].abs().max())
        )
        parts = [i for i, w in enumerate(t.writers) if w.startswith(f"{sender}.") or w == f"{sender} rest"]
        whole = trace(model, rec, h, q, k)
        assert float(t.side()[0, parts].sum()) == pytest.approx(
            float(whole.side()[0, whole.writers.index(str(sender))]), abs=2e-3
        )

    holds()
