"The audit: exact on an edit that does nothing, and each planted fault fails by its own rule before any other"

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

from talking_heads.edits import audit as A
from talking_heads.edits.audit import *
from talking_heads.base.core import *
from talking_heads.data import *
from talking_heads.hooks import *
from talking_heads.interventions import *
from talking_heads.tasks.contrasts import *
import tiny

small = AuditPlan(ioi=60, lists=(5,), per_template=10, induction=4)


@pytest.fixture(scope="module")
def toy():
    return load_model("toy", device="cpu")


@pytest.fixture(scope="module")
def before(toy):
    return take_measurements(toy, small)


def weights(model):
    return [p.detach().clone() for p in model.original_model.parameters()]


def frame(text=0.0, kl=0.001, ioi=0, train=0, held=0, wrong=0.0, seed=0):
    "Two made-up measurements: how far each area moves is given, prompts vary at random"
    g = np.random.default_rng(seed)
    rows = []

    def add(area, measure, b, a, rate=False, **kw):
        rows.append(
            pd.DataFrame(
                dict(area=area, measure=measure)
                | dict(split="", template="", n_items=0)
                | kw
                | dict(prompt=range(len(b)), rate=rate, before=np.asarray(b, float), after=np.asarray(a, float))
            )
        )

    def flips(n, base, change):  # of n prompts, `base` right, `change` more (or fewer) after
        b = np.arange(n) < base
        return b, np.arange(n) < base + change

    loss = g.normal(3, 0.3, 200)
    add("text", "loss", loss, loss * (1 + text) + g.normal(0, 1e-4, 200), split="test", template="prose")
    add("text", "kl", np.zeros(200), kl * g.uniform(0.5, 1.5, 200), split="test", template="prose")
    b, a = flips(600, 590, ioi)
    add("ioi", "correct", b, a, True)
    d = g.normal(4, 1, 600)
    add("ioi", "logit_diff", d, d + 0.01 * g.normal(size=600))
    x = g.normal(3, 0.2, 32)
    add("induction", "first loss", x + 10, x + 10)
    add("induction", "loss", x, x + g.normal(0, 0.005, 32))
    for split, t, change in (("train", "things", train), ("held-out", "table", held)):
        b, a = flips(300, 140, change)
        add("lists", "top1", b, a, True, split=split, template=t, n_items=5)
        add("lists", "logit_diff", x[:30], x[:30] + 0.01, split=split, template=t, n_items=5)
    for t, split in (("found", "train"), ("carried", "held-out"), ("last", "held-out")):
        s = g.uniform(0.1, 0.3, 100)
        add("contrast", "share", s, s + wrong + g.normal(0, 0.01, 100), split=split, template=t, n_items=5)
        add("contrast", "chosen", *flips(100, 20, round(100 * wrong)), True, split=split, template=t, n_items=5)
    df = pd.concat(rows, ignore_index=True)
    make = lambda c: Measurements(
        df.drop(columns=["before", "after"]).assign(value=df[c]), (), {}, None, dict(source="made up"), 0.0
    )
    return make("before"), make("after")


@pytest.mark.parametrize(
    "moved,first",
    [
        (dict(text=0.03, kl=0.05), "loss"),
        (dict(kl=0.2), "kl"),
        (dict(ioi=-60), "ioi"),
        (dict(train=120, held=0), "lag"),
        (dict(train=120, held=110, wrong=0.3), "wrong"),
        (dict(held=-60), "lists"),
    ],
)
def test_each_made_up_fault_fails_by_its_own_rule_first(moved, first):
    a = compare(*frame(**moved))
    assert not a.passed and a.first == first and a.failed[0] == first
    assert set(a.failed) <= {first, "kl"}  # a rise of the loss comes with a change of the distribution


def test_worse_lists_only_what_is_certainly_worse():
    w = compare(*frame(ioi=-60, train=120, held=100)).worse
    assert ("ioi", "correct") in set(zip(w.area, w.measure)) and not (w.area == "lists").any() and w.worse.all()
    assert w.clear.is_monotonic_decreasing and not len(compare(*[frame()[0]] * 2).worse)


def test_a_good_edit_passes():
    a = compare(*frame(train=120, held=100, wrong=0.01, kl=0.01))
    assert a.passed and not a.failed and a.untested == [] and compare(*frame()).untested == ["lag"]


def test_the_lag_by_hand():
    v = compare(*frame(train=120, held=30)).verdicts.set_index("rule").loc["lag"]
    assert v.value == pytest.approx(0.75) and v.verdict == "fail" and v.low < 0.75 < v.high
    v = compare(*frame(train=120, held=90)).verdicts.set_index("rule").loc["lag"]
    assert v.value == pytest.approx(0.25) and v.verdict in ("pass", "unsure")


def test_an_interval_that_reaches_beyond_its_limit_is_unsure_and_strict_refuses_it():
    pair = frame(ioi=-5)  # .0083 lost, limit .01
    a, s = compare(*pair), compare(*pair, budget=Budget(strict=True))
    assert a.unsure == ["ioi"] and a.passed and not s.passed
    assert compare(*pair, budget=Budget(ioi=None)).verdicts.rule.tolist().count("ioi") == 0


@settings(max_examples=25, deadline=None)
@given(n=st.integers(20, 200), lost=st.integers(0, 10), won=st.integers(0, 10))
def test_paired_shares_count_prompts(n, lost, won):
    b = torch.arange(n) < n - 10
    a = b.clone()
    a[:lost] = False
    a[n - 10 : n - 10 + won] = True
    i = paired_interval(b, a)
    assert i["change"] == pytest.approx((won - lost) / n) and i["low"] <= i["change"] <= i["high"]
    assert (i["low"] == i["high"] == 0) == (lost + won == 0)
    j = paired_interval(b, b, moved=True)
    assert j["high"] == -j["low"] == pytest.approx(1 - 0.0125 ** (1 / n), abs=1e-6)  # Clopper-Pearson of 0 out of n


def test_one_prompt_says_nothing_of_others():
    "A group of one keeps its change, and its interval is everything"
    i = paired_interval(torch.tensor([3.1]), torch.tensor([3.2]))
    assert i["change"] == pytest.approx(0.1, abs=1e-6) and i["low"] == -float("inf") and i["high"] == float("inf")


def test_paired_intervals_of_shares_hold_the_truth():
    g = torch.Generator().manual_seed(0)

    def holds():
        u = torch.rand(80, generator=g)
        b, a = u < 0.5, (u < 0.42) | (u > 0.97)  # 8 points lost, 3 won
        i = paired_interval(b, a)
        return i["low"] <= -0.05 <= i["high"]

    assert sum(holds() for _ in range(300)) >= 0.95 * 300


def test_nothing_changes_exactly_nothing(toy, before):
    was = weights(toy)
    a = audit(toy, component_edit(toy, {"1.0.0": 1.0}, name="nothing"), plan=small, before=before)
    assert (
        (a.changes[["change", "low", "high"]] == 0).all().all()
        and a.passed
        and a.first is None
        and not a.failed
        and not a.unsure
    )
    assert set(a.untested) == {"kl", "loss", "wrong", "induction", "lag"}
    assert all("lacks" in r for r in a.verdicts.set_index("rule").loc[["kl", "loss", "wrong"]].reason)
    assert all(torch.equal(x, y) for x, y in zip(was, weights(toy)))


def test_removing_the_circuit_breaks_ioi_first_and_leaves_the_model_whole(toy, before):
    was = weights(toy)
    a = audit(
        toy, component_edit(toy, dict.fromkeys(["1.0.0", "1.0.1", "1.1.0", "1.1.1"], 0.0)), plan=small, before=before
    )
    assert a.first == "ioi" and not a.passed and {"ioi", "lists"} == set(a.failed)
    assert all(torch.equal(x, y) for x, y in zip(was, weights(toy)))


def test_other_components_of_the_same_layer_do_not(toy, before):
    a = audit(
        toy, component_edit(toy, dict.fromkeys(["1.5.0", "1.5.1", "1.6.0", "1.6.1"], 0.0)), plan=small, before=before
    )
    assert a.passed and not a.failed


def test_any_context_is_an_edit_and_an_error_in_it_is_not_swallowed(toy, before):
    from contextlib import contextmanager

    @contextmanager
    def silent_heads(model):
        with model.hooks([("blocks.1.attn.hook_z", lambda z, hook: z * 0)]):
            yield

    a = audit(toy, silent_heads, plan=small, before=before)
    assert a.info["edit"]["name"] == "silent heads" and "ioi" in a.failed

    def broken(model):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        audit(toy, broken, plan=small, before=before)


def test_what_was_measured_differently_is_refused(toy, before):
    with pytest.raises(TalkingHeadsError, match="plan"):
        take_measurements(toy, replace(small, ioi=30), against=before)
    with pytest.raises(TalkingHeadsError, match="seed|plan"):
        compare(before, take_measurements(toy, replace(small, seed=7)))
    e = component_edit(toy, {"1.0.0": 0.0})
    with edited(toy, e):
        with pytest.raises(EditError, match="already"):
            audit(toy, e, plan=small)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(TalkingHeadsError, match="Limits"):
            Budget(kl=bad)


def test_the_file_says_what_the_object_says(tmp_path):
    a = compare(*frame(ioi=-60))
    d = json.loads(a.save(tmp_path).read_text())
    assert (
        (tmp_path / "audit.json").is_file()
        and d["passed"] is False
        and d["first"] == "ioi"
        and len(d["changes"]) == len(a.to_frame())
    )
    assert [v["rule"] for v in d["verdicts"]] == a.verdicts.rule.tolist() and d["budget"]["kl"] == 0.02
    assert [v for v in d["verdicts"] if v["rule"] == "lag"][0]["value"] is None  # untested, and JSON has no NaN
    assert "ioi" in a._repr_html_() and "nan" not in a._repr_html_()


def test_generations_equal_a_loop_without_cache(toy):
    "What `generate` gives is what repeated full passes give"
    toks = list(toy.tokenizer("Then , Mary and John went to the store .")["input_ids"])
    new = toy.original_model.generate(torch.tensor([toks]), max_new_tokens=6, do_sample=False, pad_token_id=2)[
        0, len(toks) :
    ].tolist()
    with torch.no_grad():
        for t in new:
            assert int(toy(torch.tensor([toks]))[0, -1].argmax()) == t
            toks.append(t)


# ---- what does not fit

short = AuditPlan(text=5, ioi=30, lists=(2, 3, 8), per_template=4, per_form=2, induction=3, new_tokens=5)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    "Models with learned positions, so that reading one position too many is an error, by context"
    tok = tiny.whole_text()
    return {
        n: load_model(str(tiny.save("gpt2", tmp_path_factory.mktemp(str(n)), tok=tok, n_positions=n)), device="cpu")
        for n in (3, 8, 64, 256)
    }


@pytest.mark.parametrize("context", [8, 64])
def test_a_narrow_model_is_audited_as_far_as_it_reads(narrow, context):
    """Shorter windows and rows; lists, prompts and forms that do not fit are untested by name;
    nothing reads past the last position"""
    model = narrow[context]
    m = take_measurements(model, short)
    text = m.scores[m.scores.area == "text"]
    assert len(text) == 2 * short.text and m.final.shape[:2] == (5, min(128, context))  # BOS is not used here
    assert ("text" in m.notes) == (context < 128) and ("induction" in m.notes) == (context < 48)
    fits = lambda p: max(len(q.tokens) for q in p) <= context
    args = task_args(model)
    for n in short.lists:
        measured = bool(((m.scores.area == "lists") & (m.scores.n_items == n)).any())
        assert measured == all(
            fits(laundry_list(**args, n_items=n, n=4, template=t, seed=1000)) for t in list_templates
        )
        assert measured or f"lists: {n} items" in m.skipped or "lists" in m.skipped
    assert ("ioi" in m.skipped) == (not fits(ioi(**args, n=30, seed=1000))) and ("lists" in m.skipped) == (context == 8)
    for p, said in m.generations:
        assert len(model.tokenizer(p)["input_ids"]) < context
    a = audit(model, component_edit(model, {"1.0.0": 0.0}), plan=short, before=m)
    assert a.verdicts.rule.is_unique and set(a.untested) == set(a.verdicts.rule[a.verdicts.value.isna()])
    assert {f"lists: {n} items" in a.untested for n in short.lists if f"lists: {n} items" in m.skipped} <= {True}
    assert a.verdicts.reason[a.verdicts.rule == "kl"].str.contains("windows of").all() == (context < 128)
    json.dumps(a.to_dict(), allow_nan=False)


def test_forms_without_their_word_are_untested_with_the_reason(narrow):
    "This tokenizer spells `window` in pieces"
    model = narrow[256]
    assert set(left_out_forms(model.tokenizer)) == {"tired", "window"}
    m = take_measurements(model, short)
    assert set(m.scores.template[m.scores.area == "contrast"]) == set(contrast_forms) - {"tired", "window"}
    a = compare(m, m)
    untested = a.verdicts.set_index("rule").loc[["wrong: tired, 5 items", "wrong: window, 5 items"]]
    assert (untested.verdict == "untested").all() and untested.reason.str.contains(
        "'window' is not one known token"
    ).all()
    assert "wrong" not in a.untested and "window" in a._repr_html_()
    with pytest.raises(TaskError, match="tired cannot be built.*'window'"):
        contrast_suite(model.tokenizer, form="tired")


def test_a_model_too_narrow_for_anything(narrow):
    m = take_measurements(narrow[3], short)
    assert (
        set(m.scores.area) == {"text"}
        and {"ioi", "lists", "contrast", "induction"} <= set(m.skipped)
        and m.generations == ()
    )
    with pytest.raises(TaskError, match="Nothing of this plan"):
        take_measurements(narrow[3], replace(short, text=0))


def test_less_text_than_one_window(tmp_path):
    "A context larger than all the text, and windows to match"
    model = load_model(
        str(tiny.save("llama", tmp_path, tok=tiny.whole_text(), max_position_embeddings=2_000_000)), device="cpu"
    )
    only = AuditPlan(text=1, length=1_500_000, ioi=30, lists=(), contrast=(), induction=0)
    m = take_measurements(model, only)
    assert (
        set(m.scores.area) == {"ioi"}
        and "windows" in m.skipped["text"]
        and {"lists", "contrast", "induction"} <= set(m.skipped)
    )
    assert set(compare(m, m).untested) == {"kl", "loss", "induction", "lists", "wrong", "lag"}


def test_held_out_prompts_have_their_own_number(narrow):
    m = take_measurements(narrow[256], replace(short, text=1, lists=(2,), per_held_out_template=7, per_held_out_form=5))
    n = m.scores[m.scores.measure.isin(["top1", "share"])].groupby(["area", "template"]).size()
    assert all(n["lists", t] == (7 if t in held_out else 4) for t in list_templates)
    assert all(
        n["contrast", f] == (5 if f in held_out_contrasts else 2) for f in contrast_forms if ("contrast", f) in n
    )


def test_quick_can_say_yes():
    """A true lift of eight points,
    with as much coming and going as the quick edit of SmolLM2 has, is certain four times in five"""
    g, n = torch.Generator().manual_seed(0), 2 * A.quick.per_held_out_template

    def certain():
        u = torch.rand(n, generator=g)
        b = u < 0.5
        return paired_interval(b, (b & (u > 0.05)) | (u > 0.87))["low"] > 0

    assert sum(certain() for _ in range(100)) >= 75


def test_shares_above_one_are_no_limits():
    for k in ("ioi", "lists", "wrong"):
        with pytest.raises(TalkingHeadsError, match=f"{k} is a share"):
            Budget(**{k: 5})
    with pytest.raises(TalkingHeadsError, match="Limits"):
        Budget(kl="0.1")


@pytest.mark.slow
def test_planted_faults_on_smollm2():
    """Nothing changes nothing; much damage shows on text first;
    a trap on train templates alone is a lag (the chapter plants the others)"""
    model = load_model("smollm2", device="cpu")
    few = AuditPlan(text=2, ioi=10, lists=(), contrast=(), induction=0, new_tokens=2)
    base = take_measurements(model, few)
    check = lambda e: audit(model, e, plan=few, before=base)
    assert (check(component_edit(model, {"20.0.0": 1.0})).changes.change == 0).all()
    assert check(component_edit(model, {f"{l}.{h}.0": -6.0 for l in range(8, 24) for h in range(0, 9, 3)})).first in (
        "kl",
        "loss",
    )
    lists = replace(few, text=1, lists=(5,), contrast=(5,), per_template=8, per_form=1, per_held_out_form=4)
    only = audit(
        model,
        lambda m: planted_trap(m, 6.0, [" still had the", " left in the shop was the", " bag held only the"]),
        plan=lists,
    )
    assert only.failed == ["lag"] and only.first == "lag"
