"Probes: splits that share nothing, contrasts whose item left over is never the answer, preference by hand"

import re

import pytest
import torch
from hypothesis import given, settings, strategies as st

from talking_heads.data import *
from talking_heads.base.core import *
from talking_heads.tasks.contrasts import *
from talking_heads.tasks.texts import *
import tiny


@pytest.fixture(scope="module")
def tok():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def words():
    "A tokenizer that knows every word of the contrast forms"
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    text = " ".join([*tiny.words(), *(t for _, t in contrast_forms.values()), neutral_answer])
    vocab = {w: i for i, w in enumerate(dict.fromkeys(["<unk>", "<s>", "</s>", *re.findall(r"\w+|[^\w\s]", text)]))}
    t = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=t, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def test_documents_are_on_one_side_only():
    docs = documents()
    by = {s: {d.text for d in docs if d.split == s} for s in ("train", "test")}
    assert not by["train"] & by["test"] and sum(map(len, by.values())) == len(docs)
    registers = {s: {d.register for d in docs if d.split == s and d.source == "prose"} for s in by}
    assert registers["train"] == registers["test"] and len(registers["train"]) >= 7
    assert not any(re.search(r"[^\x20-\x7e\n\u2018-\u201d]", d.text) for d in docs if d.source == "prose")


def test_text_is_deterministic_and_nested(tok):
    a, b = ordinary_text(tok, 12, 32), ordinary_text(tok, 12, 32)
    assert (
        torch.equal(a.tokens, b.tokens)
        and a.sha256 == b.sha256
        and torch.equal(ordinary_text(tok, 5, 32).tokens, a.tokens[:5])
    )
    assert a.sha256 != ordinary_text(tok, 12, 32, "train").sha256 and a.sources[:2] == ("prose", "python docs")
    withb = ordinary_text(tok, 12, 32, bos=True)
    assert (withb.tokens[:, 0] == tok.bos_token_id).all() and torch.equal(withb.tokens[:, 1:], a.tokens)


@pytest.mark.parametrize("bad", [dict(n=0), dict(n=10**7), dict(length=1), dict(split="dev")])
def test_bad_requests_for_text(tok, bad):
    with pytest.raises(TaskError):
        ordinary_text(tok, **bad)


@settings(max_examples=30, deadline=None)
@given(n_items=st.integers(3, 12), seed=st.integers(0, 99))
def test_contrasts_against_their_own_text(words, n_items, seed):
    "Read the prompt again without the builder: what was named, how often, and what is right"
    for p in contrast_suite(words, n_items, 2 * len(contrast_forms), seed=seed):
        items, f = p.info["items"].split(","), p.info["template"]
        count = {w: len(re.findall(rf"\b{w}\b", p.text)) for w in items}
        assert len(set(items)) == n_items and count[p.info["unmentioned"]] == 1
        assert all(c >= 2 for w, c in count.items() if w != p.info["unmentioned"])
        right = [w for w in p.info["right"].split(",") if w]
        kind = p.info["kind"]
        assert set(right) == {"mentioned": set(items) - {p.info["unmentioned"]}, "any": set(items), "none": set()}.get(
            kind, set(right)
        )
        if kind == "one":
            assert len(right) == 1 and p.answer == right[0] != p.info["unmentioned"]
        if f == "first":
            assert p.answer == items[0]
        if f == "last":
            assert p.answer == items[int(p.info["mentioned"].split(",")[-1]) - 1]
        if f == "copied":  # the copy so far is the list's beginning, and the answer comes next
            again = re.findall(r"the (\w+), ", p.text.split("again: ")[1])
            assert again == items[: len(again)] and p.answer == items[len(again)]
        assert kind == "none" or p.answer in items
        assert set(p.distractors) == set(items) - {p.answer} and p.text.endswith(" the")
        for j, w in enumerate(items):
            assert p.tokens[p.roles[f"item{j + 1}"]] == words.convert_tokens_to_ids(w)


def test_balanced_over_positions_and_split_as_announced(words):
    df = contrast_suite(words, 5, 400).frame()
    assert df.groupby("template").size().nunique() == 1 and len(contrast_forms) >= 6 and len(held_out_contrasts) >= 2
    assert set(df.template[df.split == "held-out"]) == set(held_out_contrasts)
    for f, g in df.groupby("template"):
        assert g.position.value_counts().max() <= g.position.value_counts().min() + 1
    assert set(contrast_suite(words, 4, 30, "held-out").frame().template) == set(held_out_contrasts)
    assert set(contrast_suite(words, 4, 30, "found").frame().template) == {"found"}


def test_one_form_is_the_same_alone_and_among_others(words):
    alone, among = (
        contrast_suite(words, 5, 10, "last"),
        contrast_suite(words, 5, 10 * len(contrast_forms)).where(template="last"),
    )
    assert [p.text for p in alone] == [p.text for p in among]


@pytest.mark.parametrize("bad", [dict(n_items=2), dict(n_items=21), dict(form="lost")])
def test_bad_contrasts(words, bad):
    with pytest.raises(TaskError):
        contrast_suite(words, **bad)


def test_preference_by_hand(words):
    p = contrast_suite(words, 3, 10)
    logits = torch.full((10, len(words)), -40.0)
    ids, at = item_ids(p), left_over(p)
    logits.scatter_(1, ids, torch.tensor([0.2, 0.2, 0.2]).log().expand(10, 3)).scatter_(
        1, ids.gather(1, at[:, None]), float(torch.tensor(0.4).log())
    )
    logits[:, 0] = float(torch.tensor(0.2).log())
    df = preference(p, logits)
    assert df.share.tolist() == pytest.approx([0.5] * 10) and df.p_unmentioned.tolist() == pytest.approx([0.4] * 10)
    assert df.chosen.all() and df.p_items.tolist() == pytest.approx([0.8] * 10)
    want = {"mentioned": 0.4, "one": 0.2, "any": 0.8, "none": 0.0}
    assert df.p_right.tolist() == pytest.approx([want[k] for k in df.kind])


def test_laundry_lists_can_be_scored_the_same_way(tok):
    p = laundry_list(tok, 4, 8)
    assert torch.equal(item_ids(p).gather(1, left_over(p)[:, None])[:, 0], p.answer_ids)
