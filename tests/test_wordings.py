"Wordings: whole families on one side, answers right by a rule of their own, the same seed the same prompts"

import re
from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st

import tiny
from transformers import AutoTokenizer

from talking_heads.base.checkpoints import find_checkpoint
from talking_heads.base.core import TaskError
from talking_heads.data import list_templates
from talking_heads.tasks.contrasts import contrast_forms, preference
from talking_heads.tasks.known import task
from talking_heads.tasks.wordings import *

parts = ("train", "choose", "judge")


@pytest.fixture(scope="module")
def tok():
    return AutoTokenizer.from_pretrained(find_checkpoint("smollm2").path)


def count(word, text):
    return len(re.findall(rf"\b{word}\b", text))


def places(q):
    "Where each item stands in the text, first of all in the list, and again; by looking for the words"
    items = q.info["items"].split(",")
    return {w: [m.start() for m in re.finditer(rf"\b{w}\b", q.text)] for w in items}


def right_by_text(q):
    "The right items, by where words stand in the text and nothing else"
    at, items = places(q), q.info["items"].split(",")
    once = [w for w in items if len(at[w]) == 1]
    assert len(once) == 1
    if q.info["kind"] == "left":
        return once
    early = q.info["template"] == "gift"  # the one contrast that mentions items before the list
    order = sorted((w for w in items if w not in once), key=lambda w: at[w][0 if early else 1])
    in_list = sorted(items, key=lambda w: at[w][-1 if early else 0])
    if q.info["kind"] == "mentioned":
        return order
    if q.info["kind"] == "copied":
        copied = re.findall(r"\w+", q.text[q.text.index("aloud: ") :])
        return [in_list[sum(w in copied for w in items)]]
    which = dict(again=order[0], next=order[1], last=order[-1], first=in_list[0], second=in_list[1], end=in_list[-1])
    return [which[q.info["kind"]]]


@pytest.mark.parametrize("kind", ["list", "contrast"])
def test_families_are_on_one_side(kind):
    "No name and no skeleton in two splits, and a judged scene in no other split of either kind"
    sides = {s: families_of(kind, s) for s in parts}
    assert sum(map(len, sides.values())) == len(families_of(kind))
    assert all(len(sides[s]) >= k for s, k in zip(parts, (20, 5, 6)))
    for a, b in (("train", "choose"), ("train", "judge"), ("choose", "judge")):
        assert not {f.name for f in sides[a]} & {f.name for f in sides[b]}
        begins = [{f.text[:32] for k in ("list", "contrast") for f in families_of(k, s)} for s in (a, b)]
        assert not begins[0] & begins[1]
    assert len({f.text for f in families_of(kind)}) == len(families_of(kind))
    assert all(sum(map(n_wordings, sides[s])) >= 200 for s in parts)


def test_skeletons_are_no_templates_of_the_other_chapters():
    old = [*list_templates.values(), *(t for _, t in contrast_forms.values())]
    ends = {re.sub(r"\{.*?\}", "", t).split(".")[-1].strip() for t in old}
    assert not ends & {f.text.split(".")[-1].strip() for f in wording_families.values()}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(n_items=st.integers(3, 10), seed=st.integers(0, 999), kind=st.sampled_from(["list", "contrast"]))
def test_answers_are_right(tok, n_items, seed, kind):
    "By an independent reading of each text; distinct texts, the unmentioned item said once, drafts as the tasks ask"
    t = task(f"{kind}_wordings")
    prompts = t.prompts(tok, n=35, n_items=n_items, seed=seed)
    assert len({q.text for q in prompts}) == len(prompts)
    for q in prompts:
        assert q.info["right"].split(",") == right_by_text(q), q
        assert q.answer == q.info["right"].split(",")[0] and q.answer not in q.distractors
        assert count(q.info["unmentioned"], q.text) == 1
        assert (q.answer == q.info["unmentioned"]) == (kind == "list")
        assert tok(f"{q.text} {q.answer}", add_special_tokens=False)["input_ids"] == [*q.tokens, q.answer_id]
        assert not re.search(r"[\[\]{}<>|]", q.text) and "  " not in q.text
        assert q.tokens[q.roles["answer"]] in {q.answer_id, *tok(q.answer, add_special_tokens=False)["input_ids"]}


def test_same_seed_same_prompts(tok):
    "Whatever else is asked for; another seed, other texts"
    many = task("list_wordings").prompts(tok, n=48, split="train", seed=3)
    one = task("list_wordings").prompts(tok, n=2, split="train", families=["dog"], seed=3)
    assert [q.text for q in many if q.info["template"] == "dog"] == [q.text for q in one]
    assert not {q.text for q in many} & {q.text for q in task("list_wordings").prompts(tok, n=48, seed=4)}


def test_balanced(tok):
    "Each place in the list is left over as often as another, but where it would be right"
    prompts = task("contrast_wordings").prompts(tok, n=40, n_items=5, families=["stranger", "tour"])
    by = {k: Counter(q.info["position"] for q in prompts if q.info["template"] == k) for k in ("stranger", "tour")}
    assert by == {"stranger": dict.fromkeys(range(1, 6), 4), "tour": dict.fromkeys(range(1, 5), 5)}


def test_bos_and_small_tokenizers():
    tiny_tok = tiny.tokenizer(bos=True)
    prompts = task("list_wordings").prompts(tiny_tok, n=35, bos=True)
    assert all(q.tokens[0] == tiny_tok.bos_token_id for q in prompts)


def test_contrasts_are_scored_by_preference(tok):
    import torch

    prompts = task("contrast_wordings").prompts(tok, n=6, n_items=4)
    logits = torch.zeros(6, len(tok))
    df = task("contrast_wordings").score(prompts, logits)
    assert df.share.tolist() == pytest.approx([0.25] * 6) and task("contrast_wordings").score is preference


@pytest.mark.parametrize(
    "kw,why",
    [
        (dict(n_items=2), "choose 3 to 20"),
        (dict(families=["nowhere"]), "No list family nowhere"),
        (dict(families=[]), "No list family at all"),
        (dict(split="judge", families=["lost"]), "in the split 'judge'"),
        (dict(split="held-out"), "has no split"),
    ],
)
def test_bad_requests(tok, kw, why):
    with pytest.raises(TaskError, match=why):
        task("list_wordings").prompts(tok, n=3, **kw)
