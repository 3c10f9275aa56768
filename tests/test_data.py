"Prompts: balance, roles, corrupted partners, on a word-level tokenizer and on one that splits words"

import pytest
import torch
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tiny
from talking_heads.base.core import *
from talking_heads.data import *
from talking_heads.data import Draft, build_prompts, enumeration, fill_template, word_ids

tok = tiny.tokenizer()


def spelled():  # one token a letter
    t = Tokenizer(models.WordLevel({"<unk>": 0, **{chr(i): i - 31 for i in range(32, 127)}}, unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=t, unk_token="<unk>")


@settings(max_examples=40, deadline=None)
@given(
    n_items=st.integers(2, 20),
    n=st.integers(1, 60),
    seed=st.integers(0, 10**6),
    template=st.sampled_from(list(list_templates)),
    bos=st.booleans(),
)
def test_lists(n_items, n, seed, template, bos):
    prompts = laundry_list(tok, n_items, n, template, seed, bos)
    assert len(prompts) == n
    for i, p in enumerate(prompts):
        items = p.info["items"].split(",")
        assert (
            len(set(items)) == n_items
            and items[p.info["position"] - 1] == p.answer
            and p.info["position"] == i % n_items + 1
        )
        again = [int(x) for x in p.info["mentioned"].split(",")]
        assert sorted(again + [p.info["position"]]) == list(range(1, n_items + 1))
        for k, w in enumerate(items, 1):
            assert tok.convert_ids_to_tokens(p.tokens[p.roles[f"item{k}"]]) == w
        second = [p.roles[f"mention{k}"] for k in again]
        assert second == sorted(second) and min(second) > max(p.roles[f"item{k}"] for k in range(1, n_items + 1))
        assert p.roles["answer"] == p.roles[f"item{p.info['position']}"] and p.roles["END"] == len(p.tokens) - 1
        assert (
            tok.convert_ids_to_tokens(p.answer_id) == p.answer
            and p.answer not in p.distractors
            and len(p.distractors) == n_items - 1
        )
        assert (p.tokens[0] == tok.bos_token_id) == bos
        kind = {"forward": again == sorted(again), "reversed": again == sorted(again)[::-1]}.get(p.info["order"])
        assert kind if kind is not None else again not in (sorted(again), sorted(again)[::-1])


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 90), seed=st.integers(0, 10**6), how=st.sampled_from(["swap", "exchange", "abc"]))
def test_ioi_and_partners(n, seed, how):
    prompts = ioi(tok, n, seed)
    word = lambda p, r: tok.convert_ids_to_tokens(p.tokens[p.roles[r]])
    for p in prompts:
        assert word(p, "IO") == p.answer and word(p, "S1") == word(p, "S2") == p.distractors[0] != p.answer
        assert (p.roles["IO"] < p.roles["S1"]) == (p.info["order"] == "ABBA") and p.roles["S1"] < p.roles[
            "S2"
        ] < p.roles["END"]
    for p, q in zip(prompts, corrupt(prompts, how, seed)):
        assert (
            q.roles == p.roles
            and len(q.tokens) == len(p.tokens)
            and (q.answer_id, q.distractor_ids) == (p.answer_id, p.distractor_ids)
        )
        assert tuple(tok(q.text, add_special_tokens=False).input_ids) == q.tokens and q.text != p.text
        changed = {r for r in ("IO", "S1", "S2") if p.tokens[p.roles[r]] != q.tokens[q.roles[r]]}
        assert changed == {"swap": {"S2"}, "exchange": {"IO", "S1", "S2"}, "abc": {"S2"}}[how]
        if how == "abc":
            assert len({word(q, r) for r in ("IO", "S1", "S2")}) == 3
        if how == "swap":
            assert word(q, "S2") == p.answer
        for r, (s, e) in q.spans.items():
            assert r == "END" or q.text[s:e] == word(q, r)


def test_same_seed_same_prompts():
    assert ioi(tok, 50, 7) == ioi(tok, 50, 7) and ioi(tok, 50, 7) != ioi(tok, 50, 8)
    assert laundry_list(tok, 5, 50, seed=7) == laundry_list(tok, 5, 50, seed=7) != laundry_list(tok, 5, 50, seed=8)
    assert corrupt(ioi(tok, 50), "abc", 1) == corrupt(ioi(tok, 50), "abc", 1)


def test_design_is_balanced():
    f = ioi(tok, 240).frame()
    assert f.groupby(["template", "order"]).size().unique().tolist() == [8] and f.template.nunique() >= 12
    f = laundry_list(tok, 6, 180).frame()
    assert f.groupby(["position", "order"]).size().unique().tolist() == [10]
    assert (
        len(list_templates) >= 5
        and len(held_out) == 2
        and len(set(ioi_names.split())) >= 80
        and len(set(list_items.split())) >= 150
    )


def test_splitting_tokenizer_says_which_and_how_many():
    with pytest.raises(TaskError, match=r"keeps only 0 of \d+ names.*20 are needed.*Mary"):
        ioi(spelled())
    with pytest.raises(TaskError, match=r"items as single tokens, and 4 are needed"):
        laundry_list(spelled(), 4)


def test_bad_requests():
    for n in (1, 21):
        with pytest.raises(TaskError, match="2 to 20"):
            laundry_list(tok, n)
    with pytest.raises(TaskError, match="Unknown template"):
        laundry_list(tok, 3, template="x")
    with pytest.raises(TaskError, match="Unknown corruption"):
        corrupt(ioi(tok, 4), "x")
    with pytest.raises(TaskError, match="IOI prompts"):
        corrupt(laundry_list(tok, 3, 4))
    with pytest.raises(TaskError, match="cannot be joined"):
        ioi(tok, 4) + ioi(tok, 4, bos=True)
    with pytest.raises(TaskError, match="cannot be joined"):
        ioi(tok, 4) + laundry_list(tok, 3, 4)
    for n in (0, -2):
        with pytest.raises(TaskError, match="at least 1"):
            ioi(tok, n)
        with pytest.raises(TaskError, match="at least 1"):
            laundry_list(tok, 3, n)
    for t in ([], [15], [-1]):
        with pytest.raises(TaskError, match="do not exist"):
            ioi(tok, 4, templates=t)
    with pytest.raises(TaskError, match="There are no prompts"):
        ioi(tok, 4).where(order="XX").tokens
    none = tiny.tokenizer()
    none.bos_token = None
    with pytest.raises(TaskError, match="has none"):
        ioi(none, 4, bos=True)


def test_indexing_and_groups():
    prompts = ioi(tok, 60)
    assert prompts[3] is prompts.prompts[3] and len(prompts[:10]) == 10 and len(prompts[torch.tensor([1, 2])]) == 2
    assert len(prompts[prompts.pos("IO") < prompts.pos("S1")]) == 30 == len(prompts.where(order="ABBA"))
    groups = prompts.groups(7)
    assert sorted(i for g in groups for i in g) == list(range(60)) and max(map(len, groups)) <= 7
    for g in groups:
        assert prompts[g].mask.all()


def test_reprs():
    p = laundry_list(tok, 3, 4)
    assert (
        'title="item1, position' in p[0]._repr_html_()
        and "4 laundry_list prompts" in repr(p)
        and p[0].answer in repr(p[0])
    )


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6, unique=True))
def test_fill_covers_its_words(fields):
    words = {f: f * 3 + "x" for f in fields}
    text, spans = fill_template(enumeration(fields), words)
    assert [text[s:e] for s, e in spans.values()] == [words[f] for f in fields]


# ---- the answer is the next token

ids = lambda tok, text: tok(text, add_special_tokens=False)["input_ids"]


def lawful(tok, p, bos=()):
    "Read everything again, without the builder: is each choice the next token, and does each role stand on its word?"
    choices = list(zip((p.answer, *p.distractors), (p.answer_id, *p.distractor_ids)))
    return (
        p.tokens == (*bos, *ids(tok, p.text))
        and len({i for _, i in choices}) == len(choices)
        and all(ids(tok, f"{p.text} {w}") == [*ids(tok, p.text), i] for w, i in choices)
    )


def on_its_word(tok, p):
    word = lambda i: tok.convert_ids_to_tokens(i).strip("\u0120\u2581 ").lower()
    return all(word(p.tokens[p.roles[r]]) == p.text[slice(*p.spans[r])].lower() for r in p.roles if r != "END")


@pytest.fixture(scope="module", params=["word", "byte", "sentencepiece", "folds", "strips", "nfkc", "appends"])
def fair(request):
    "Tokenizers with habits that do no harm"
    if request.param == "word":
        return tok
    return tiny.byte_level() if request.param == "byte" else tiny.odd(request.param)


def test_every_prompt_is_lawful(fair):
    for bos in (False, True)[: 1 + (fair.bos_token_id is not None)]:
        built = [ioi(fair, 30, bos=bos), laundry_list(fair, 5, 15, bos=bos), laundry_list(fair, 8, 8, "gifts", bos=bos)]
        built += [corrupt(built[0], how) for how in ("swap", "exchange", "abc")]
        for p in (p for b in built for p in b):
            assert lawful(fair, p, (fair.bos_token_id,) * bos) and on_its_word(fair, p)


def test_a_tokenizer_that_joins_words_is_told_on():
    "The word, the template and the pieces are named; a distractor that cannot come next is as bad as an answer"
    joins = tiny.odd("joins", joined=["to Mary", "the lamp"])
    with pytest.raises(TaskError, match=r"'Mary' is not the next token of template \d+.*'to'.*'to Mary'.*'Mary'"):
        ioi(joins, 300)
    with pytest.raises(TaskError, match=r"'lamp' .item\d. is not one token in template 'things'.*'the lamp'"):
        laundry_list(joins, 8, 200)
    ends = tiny.odd("ends")
    with pytest.raises(TaskError, match="is not the next token"):
        ioi(ends, 4)


vocabulary = ["mary", "john", "lamp", "book", "to", "the", "gave", "it", "and", "with"]


@settings(max_examples=60, deadline=None)
@given(
    joined=st.lists(
        st.tuples(st.sampled_from(["to", "the", "it", "gave"]), st.sampled_from(vocabulary[:4])), max_size=4
    ),
    tails=st.lists(
        st.lists(st.sampled_from(["gave", "it", "to", "the"]), min_size=1, max_size=4).map(" ".join),
        min_size=1,
        max_size=5,
    ),
    words=st.lists(st.sampled_from(vocabulary[:4]), min_size=2, max_size=4, unique=True),
)
def test_built_exactly_where_the_law_holds(joined, tails, words):
    "Random templates on tokenizers with random merges across the space, against the law read word by word"
    t = tiny.odd("joins", vocabulary, [" ".join(j) for j in joined])
    known, drafts = word_ids(t, words), []
    for tail in tails:
        text, spans = fill_template("{A} and {B} " + tail, dict(A=words[0], B=words[1]))
        drafts.append(Draft(text, spans, words[0], tuple(words[1:]), known, dict(template=tail)))
    law = all(ids(t, f"{d.text} {w}") == [*ids(t, d.text), known[w]] for d in drafts for w in words)
    if law:
        assert all(lawful(t, p) for p in build_prompts(t, drafts, "mine", False))
    else:
        with pytest.raises(TaskError, match="next token"):
            build_prompts(t, drafts, "mine", False)


def test_templates_that_end_oddly():
    t = tiny.odd("plain", [*vocabulary, '"', "(", "."])
    one = lambda text: build_prompts(
        t, [Draft(text, {}, "mary", ("john",), word_ids(t, ["mary", "john"]), dict(template="mine"))], "mine", False
    )[0]
    for end in ('"', "(", "."):
        assert lawful(t, one("gave it to" + end))
    for end in (" ", "\n", "\t"):
        with pytest.raises(TaskError, match="template 'mine' ends in a space"):
            one("gave it to" + end)


def test_words_that_are_no_single_token():
    for w in ("mary john", "zebra", ""):
        with pytest.raises(TaskError, match=f"{w!r} is not one known token"):
            word_ids(tiny.odd("plain", vocabulary), ["mary", w])
    with pytest.raises(TaskError, match=r"'Mary' is not one known token.*'M' 'a' 'r' 'y'"):
        word_ids(spelled(), ["Mary"])


def test_words_that_share_a_token_are_no_choice():
    "Folded case, and unknown words of a tokenizer that does not say which token stands for them"
    folds = tiny.odd("folds", vocabulary)
    with pytest.raises(TaskError, match="are the same token"):
        build_prompts(
            folds, [Draft("gave it to", {}, "Mary", ("mary",), word_ids(folds, ["Mary", "mary"]), {})], "mine", False
        )
    with pytest.raises(TaskError, match=r"keeps only 0 of \d+ names"):
        ioi(tiny.odd("nameless", vocabulary), 4)


def test_twins_at_the_beginning_of_a_sentence():
    "Where a word has another token at the beginning of a text, the twin has that token too"
    t = tiny.whole_text()
    names, known = ["Mary", "John", "Tom"], word_ids(t, ["Mary", "John", "Tom"])
    drafts = []
    for io, s in [("Mary", "John"), ("John", "Tom"), ("Tom", "Mary")]:
        text, spans = fill_template(
            "{IO} and {S1} went to the store, and {S2} gave a drink to", dict(IO=io, S1=s, S2=s)
        )
        drafts.append(Draft(text, spans, io, (s,), {w: known[w] for w in (io, s)}, dict(template="start")))
    try:
        prompts = build_prompts(t, drafts, "ioi", False)
    except TaskError as e:
        assert "is not one token in template 'start'" in str(e)  # the first word alone may be in pieces
    else:
        for q in corrupt(prompts, "exchange"):
            assert lawful(t, q)
    by_hand = Prompts(ioi(tok, 4).prompts, "ioi", False, 0)
    with pytest.raises(TaskError, match="do not know their tokenizer"):
        corrupt(by_hand)


def test_choices_of_mixed_numbers():
    mixed = laundry_list(tok, 2, 2) + laundry_list(tok, 4, 2)
    want = [[p.answer_id, *p.distractor_ids] for p in mixed]
    assert [[i for i in row if i >= 0] for row in mixed.choice_ids.tolist()] == want and mixed.choice_ids.shape == (
        4,
        4,
    )


def test_thousands_of_prompts_are_quick():
    "Processor time, against what the tokenizer itself needs for the same texts: three times that and some change"
    import time

    t = tiny.whole_text()
    start = time.process_time()
    prompts = ioi(t, 2000)
    built = time.process_time() - start
    start = time.process_time()
    t([p.text for p in prompts], return_offsets_mapping=True)
    assert built < 8 * (time.process_time() - start) + 0.5
