"Prompts from a file: what is read, what is refused and where, candidates of several tokens, twins, and th_task"

import json
import math
import random
import re
import warnings
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from talking_heads import commands
from talking_heads.base.core import *
from talking_heads.data import *
from talking_heads.edits.audit import *
from talking_heads.evaluation import *
from talking_heads.hooks import *
from talking_heads.interventions import *
from talking_heads.tasks import candidates
from talking_heads.tasks.candidates import *
from talking_heads.tasks.file_report import *
from talking_heads.tasks.files import *
from talking_heads.tasks.known import *
from talking_heads.tasks.rows import *
from talking_heads.tasks.shop import *
import tiny


def words_tokenizer(known):
    "One token a run of letters, one a run of other signs"
    t = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", *known.split()])}, unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=t, unk_token="<unk>", pad_token="<unk>")


@pytest.fixture(scope="module")
def tok():
    return words_tokenizer(
        "Order : lamp mug pot cup red blue - , . Shipped Left the Next only one two three in again a b c d e f"
    )


@pytest.fixture(scope="module")
def toy():
    return load_model("toy", device="cpu")


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


HEAD = "prompt,answer,wrong,twin,twin_answer,split,lines\n"

# What is read


def test_three_formats_hold_the_same_rows(tmp_path):
    rows = [
        dict(
            prompt='A "lamp", a [[item:mug]]\nor two. Left: the',
            answer="mug",
            wrong=["lamp", "red pot"],
            split="train",
            lines=2,
        ),
        dict(prompt="Next: the [[item:pot]]. Only the", answer="pot", wrong=["cup"], split="test", lines=10),
    ]
    df = pd.DataFrame(rows)
    df.to_parquet(tmp_path / "a.parquet")
    write(tmp_path / "a.jsonl", "\n\n".join(map(json.dumps, rows)))
    write(tmp_path / "a.json", json.dumps(rows))
    bars = df.assign(wrong=["|".join(w) for w in df.wrong])
    for sep, name in ((",", "a.csv"), (";", "b.csv"), ("\t", "a.tsv")):
        bars.to_csv(tmp_path / name, index=False, sep=sep)
    write(tmp_path / "bom.csv", "\ufeff".encode() + (tmp_path / "a.csv").read_bytes().replace(b"\r\n", b"\n"))
    seen = [
        [(r.row, r.text, r.marks, r.answer, r.wrong, r.info) for r in read_prompts(f).rows]
        for f in sorted(tmp_path.iterdir())
    ]
    assert len(seen) == 7 and all(s == seen[0] for s in seen)
    assert seen[0][0][1:3] == ('A "lamp", a mug\nor two. Left: the', (("item", 12, 15),)) and seen[0][1][-1] == dict(
        split="test", lines=10
    )


@settings(max_examples=12, deadline=None)
@given(
    st.lists(
        st.tuples(
            *[
                st.text(
                    st.characters(codec="utf-8", exclude_characters="\r|", exclude_categories=["Cc", "Zs", "Zl", "Zp"]),
                    min_size=1,
                    max_size=9,
                )
            ]
            * 3
        ),
        min_size=1,
        max_size=6,
    )
)
def test_any_rows_come_back_or_are_refused_by_our_error(rows):
    with TemporaryDirectory() as d:
        table = [dict(prompt=p, answer=a, wrong=[w]) for p, a, w in rows]
        write(Path(d) / "a.jsonl", "\n".join(map(json.dumps, table)))
        pd.DataFrame([r | dict(wrong=r["wrong"][0]) for r in table]).to_csv(Path(d) / "a.csv", index=False)
        answers = {}
        for p, a, _ in rows:
            answers.setdefault(unescaped(p), set()).add(a)
        fault = (
            any("[[" in p or "]]" in p for p, _, _ in rows)
            or any(a == w for _, a, w in rows)
            or any(len(a) > 1 for a in answers.values())
        )
        for name in ("a.jsonl", "a.csv"):
            if fault:
                try:
                    read_prompts(Path(d) / name)
                except TaskError as e:
                    assert re.search(r"row \d+ \(line \d+\), column", str(e))
                continue
            got = read_prompts(Path(d) / name)
            assert {(r.text, r.answer, r.wrong) for r in got.rows} <= {(p, a, (w,)) for p, a, w in rows}
            assert len(got.rows) + len(got.copies) == got.total == len(rows)


def unescaped(p):
    return p.replace("\\[[", "[[").replace("\\]]", "]]")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text("ab c[]\\", max_size=5),
            st.sampled_from(["item", "who", "x1"]),
            st.text("abc ", min_size=1, max_size=5),
        ),
        max_size=4,
    )
)
def test_marks_are_taken_out_and_name_their_words(parts):
    "Written by hand: text, mark, text, mark; every mark names its own word, and a text without marks is itself"
    text = "".join(f"{t.replace('[', '').replace(']', '')} [[{n}:{w}]]" for t, n, w in parts)
    if any(not w.strip() for *_, w in parts) or any(t.endswith("\\") for t, *_ in parts):
        return
    plain, marks = unmarked(text)
    assert plain == "".join(f"{t.replace('[', '').replace(']', '')} {w}" for t, n, w in parts)
    assert [(n, plain[s:e]) for n, s, e in marks] == [(n, w.strip()) for _, n, w in parts]


# What is refused


@pytest.mark.parametrize(
    "text,said",
    [
        ("question,answer\na,b\n", "no column prompt; its columns are 'question', 'answer'"),
        ("Prompt,Answer\na,b\n", "no column prompt and no column answer.*'Prompt'.*rename"),
        ("prompt,answer,answer\na,b,c\n", "column 'answer' twice"),
        ("prompt,answer\n", "no rows"),
        ("", "empty"),
        (HEAD.encode() + b"a,b,c,,,x,1\na,\xff,c,,,x,1\n", r"not UTF-8: byte 0xff in line 3 \(row 2, column answer\)"),
        ("prompt,answer\na,b\n".encode("utf-16"), "UTF-16"),
        (HEAD + "a,b,c,,,x,1\nd,,c,,,x,1\n", r"row 2 \(line 3\), column answer: is empty"),
        (HEAD + " ,b,c,,,x,1\n", r"row 1 \(line 2\), column prompt: is empty"),
        (HEAD + "a,b,c,,,,1\n", "column split: is empty"),
        (HEAD + "a,b,c|b,,,x,1\n", "column wrong: names the answer"),
        (HEAD + "a,b,c,a,,x,1\n", "column twin: is the prompt itself"),
        (HEAD + "a,b,c,d,b,x,1\n", "column twin_answer: is 'b'"),
        (HEAD + "a,b,c,,c,x,1\n", "column twin_answer: is given, but"),
        (
            HEAD + "a,b,c,,,x,1\na,c,b,,,x,1\n",
            r"row 2 \(line 3\), column answer: is 'c'; for the same prompt row 1 \(line 2\) says 'b'",
        ),
        (HEAD + "a [[x:b,b,c,,,x,1\n", r"row 1 \(line 2\), column prompt: '\[\[x:b' is no whole mark"),
        (HEAD + "a b]] c,b,c,,,x,1\n", "column prompt: .* is no whole mark"),
        (HEAD + 'a,b,c,"d [[x]]",,x,1\n', "column twin: .* is no whole mark"),
        (HEAD + "a,b,c\n", r"row 1 \(line 2\) has 3 cells; the header has 7"),
        (HEAD + '"a,b,c,,,x,1\n', "line 2"),
        ("prompt,answer\na,b\n", "column wrong: is empty, and no wrong word follows"),
        ("prompt,answer,top1\na,b,1\n", "column 'top1'.*Rename"),
    ],
)
def test_a_faulty_csv_is_refused_with_row_and_column(tmp_path, text, said):
    with pytest.raises(TaskError, match=said):
        file_task(write(tmp_path / "a.csv", text))


@pytest.mark.parametrize(
    "name,text,said",
    [
        ("a.jsonl", '{"prompt": "a", "answer": "b"}\n{"prompt": "a"\n', "line 2 is not JSON"),
        ("a.jsonl", "[1, 2]\n", "row 1 is a int"),
        ("a.jsonl", '{"prompt": "a", "answer": ["b"]}', r"row 1 \(line 1\), column answer: holds a list"),
        ("a.jsonl", '{"prompt": "a", "answer": "b", "wrong": ["c"], "g": [1]}', "column g: holds a list"),
        ("a.jsonl", '{"prompt": "a \\ud800", "answer": "b", "wrong": ["c"]}', "column prompt: holds half"),
        ("a.parquet", "no parquet", "cannot be read as parquet"),
        ("a.xlsx", "x", r"read from \.csv"),
        ("orders.csv", None, "no file .*orders.csv"),
    ],
)
def test_other_formats_are_refused_too(tmp_path, name, text, said):
    if text is not None:
        write(tmp_path / name, text)
    with pytest.raises(TaskError, match=said):
        file_task(tmp_path / name)


def test_all_faults_are_counted(tmp_path):
    bad = HEAD + "".join(f"p{i},,c,,,x,1\n" for i in range(9))
    with pytest.raises(TaskError, match="row 5 .*And 4 more"):
        file_task(write(tmp_path / "a.csv", bad))


def test_a_long_file_is_sampled_and_says_so(tmp_path, tok):
    lines = "".join(f"{w} {i},lamp,mug\n" for i, w in enumerate(["one", "two"] * 50000))
    long = read_prompts(write(tmp_path / "long.csv", "prompt,answer,wrong\n" + lines), most=300)
    assert len(long.rows) == 300 and long.total == 100000 and "300 of 100000" in repr(long)
    assert "300 of 100000 rows, drawn by seed 0" in repr(check_file(long, tok))
    short = write(tmp_path / "short.csv", "prompt,answer,wrong\n" + lines[:20000])
    a, b, c = (read_prompts(short, most=50, seed=s).rows for s in (0, 0, 1))
    assert a == b != c


# What a tokenizer makes of it


def small(tmp_path, extra=""):
    rows = [
        '"Order: [[item:red-pot]], [[item:red-cup]]. Shipped: red-cup. Left: the",red-pot,red-cup,'
        '"Order: red-pot, red-cup. Shipped: red-pot. Left: the",,x,2',
        '"Order: lamp, mug. Left: the",mug,lamp,"Order: mug, lamp. Left: the",,x,2',
        '"Order: a, b, c. Left: the",b,a|c,"Order: a, c, b. Left: the",c,y,3',
    ]
    return write(tmp_path / "small.csv", HEAD + "\n".join(rows) + "\n" + extra)


def test_twins_have_their_roles_where_the_prompts_have_them(tmp_path, tok):
    t = file_task(small(tmp_path))
    p = t.prompts(tok, n=10)
    q = t.twins_of(p)
    assert (
        len(p) == 3
        and t.name == "small.csv"
        and set(t.groups) == {"split", "lines"}
        and t.roles == ("answer", "wrong1")
    )
    for a, b in zip(p, q):
        assert a.roles == b.roles and len(a.tokens) == len(b.tokens) and a.shared == b.shared
        assert (
            b.answer_id in a.distractor_ids
            and a.answer_id in b.distractor_ids
            and dict(a.candidates) == dict(b.candidates)
        )
    assert {x.info["row"] for x in t.prompts(tok, split="y")} == {3}
    with pytest.raises(TaskError, match="has no split 'test'. Its splits: all.*; x"):
        t.prompts(tok, split="test")
    assert [x.text for x in t.prompts(tok, n=2, seed=1)] == [x.text for x in t.prompts(tok, n=3, seed=1)][:2]
    red = next(x for x in p if x.answer == "red-pot")
    pieces = tok.convert_ids_to_tokens(list(red.tokens))
    assert pieces[-2:] == ["red", "-"] and red.shared == 2 and tok.convert_ids_to_tokens(red.answer_id) == "pot"
    assert {r: pieces[i] for r, i in red.roles.items()} == {
        "item1": "pot",
        "item2": "cup",
        "answer": "pot",
        "wrong1": "cup",
        "wrong1.2": "cup",
        "END": "-",
    }
    assert all(red.text[slice(*red.spans[r])].endswith(pieces[i]) for r, i in red.roles.items())


@pytest.mark.parametrize(
    "row,column,why",
    [
        ('"Order: tin. Left: the",mug,lamp,,,x,9', "prompt", "'tin', which this tokenizer does not know"),
        ('"Order: lamp. Left: the",red,red-pot,,,x,9', "wrong", "begin alike"),
        ('"Order: lamp. Left: the",red-pot,red - pot,,,x,9', "wrong", "are the same tokens"),
        ('"Order: lamp. Left: a",mug,lamp,"Order: lamp, mug. Left: a",,x,9', "twin", "has 9 tokens, the prompt 7"),
        ('"Order: [[x:lamp]]. Left: b",mug,lamp,"Order: lamp [[x:.]] Left: b",,x,9', "twin", "has x at another place"),
        ('"Order: lamp. Left: c",mug,lamp|pot,"Order: mug. Left: c",,x,9', "twin_answer", "does not follow"),
    ],
)
def test_what_a_tokenizer_cannot_use_is_left_out_and_counted(tmp_path, tok, row, column, why):
    path = small(tmp_path, row + "\n")
    r = check_file(path, tok)
    lost = r.left_out[r.left_out.lines == 9]
    assert lost.row.tolist() == [4] and column in lost.column.tolist() and why in " ".join(lost.why) and r.usable
    g = r.groups.set_index(["column", "value"])
    assert g.pairs["lines", 9] == 0 and g.n["lines", 2] == 2
    with pytest.warns(UserWarning, match=r"1 of 4 rows of small.csv are left out: 1 for their column"):
        p = file_task(path).prompts(tok)
    assert {x.info["row"] for x in p} == {1, 2, 3}
    alone = write(tmp_path / "alone.csv", HEAD + row + "\n")
    with pytest.raises(TaskError, match=f"row 1 .line 2., column {column}"):
        file_task(alone).prompts(tok)


def test_a_prompt_beyond_the_context_is_left_out_and_a_model_refuses_it(tmp_path, tok, toy):
    r = check_file(small(tmp_path), tok, context=12)
    assert r.left_out.why.str.contains("the model reads 12").sum() == 1
    words = " ".join(["Mary"] * (toy.cfg.n_ctx + 1))
    t = file_task(write(tmp_path / "b.csv", f"prompt,answer,wrong\n{words},Mary,John\n"))
    with pytest.raises(TaskError, match="at most"):
        whole_scores(toy, t.prompts(**task_args(toy)))


def test_the_telling_token_is_where_candidates_part():
    rng = random.Random(0)
    for _ in range(300):
        ends = [tuple(rng.choices((1, 2), k=rng.randint(1, 4))) for _ in range(rng.randint(2, 4))]
        if any(e[: len(ends[0])] == ends[0][: len(e)] for e in ends[1:]):
            continue
        k = told_apart(ends)
        assert len({e[:k] for e in ends}) == 1 and any(e[k] != ends[0][k] for e in ends[1:] if len(e) > k)
        k = told_apart(ends, 1)
        assert ends[0][:k] == ends[1][:k] and ends[0][k] != ends[1][k]


# Scores of whole candidates


def several(prompts, rng):
    "The same prompts with candidates of one to three tokens, some with a common beginning"
    out = []
    for i, p in enumerate(prompts):
        a, b, c = p.answer_id, p.distractor_ids[0], rng.randrange(3, 40)
        ends = [((a, b), (a, c, b), (a, c, c)), ((a, b), (b,), (c, a, b)), ((a,), (b,))][i % 3]
        shared = 1 if i % 3 == 0 else 0
        out.append(
            replace(
                p,
                tokens=p.tokens + ends[0][:shared],
                candidates=tuple(zip("xyz", ends)),
                shared=shared,
                answer_id=ends[0][shared],
                distractor_ids=tuple(e[shared] for e in ends[1:] if e[shared] != ends[0][shared]),
            )
        )
    return replace(prompts, prompts=tuple(out))


@pytest.mark.parametrize("kind", ["gpt2", "neox", "llama", "gemma2", "gemma3"])
def test_summed_log_probability_is_the_plain_float64_sum(tmp_path, kind, monkeypatch):
    folder = (
        tiny.save(kind, tmp_path / kind, sliding_window=8)
        if kind.startswith("gemma")
        else tiny.save(kind, tmp_path / kind)
    )
    model = load_model(str(folder), device="cpu")
    base = ioi(**task_args(model), n=9)
    prompts = several(base, random.Random(1))
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()

    def one(p, end):
        start = p.tokens[: len(p.tokens) - p.shared]
        with torch.no_grad():
            x = plain(torch.tensor([start + end])).logits[0].log_softmax(-1)
        return sum(float(x[len(start) - 1 + t, i]) for t, i in enumerate(end))

    want = [[one(p, e) for _, e in p.choices] for p in prompts]
    for share in (None, False):
        if share is False:
            monkeypatch.setattr(candidates, "_cache_holds", lambda *a: False)
        got = candidate_scores(model, prompts, batch_size=4)
        for w, g in zip(want, got.tolist()):
            assert g[: len(w)] == pytest.approx(w, abs=2e-4) and g[len(w) :] == [-math.inf] * (len(g) - len(w))
    df = whole_scores(model, prompts)
    assert df.correct.tolist() == [w[0] > max(w[1:]) for w in want] and df.prompt.tolist() == list(range(9))
    r = readout(model, prompts, ())
    assert df.logit_diff.tolist() == pytest.approx(
        logit_diff(r).tolist(), abs=1e-3
    )  # the extended END is the same place


def test_prefixes_are_shared_where_that_is_exact(toy, monkeypatch):
    prompts, seen = several(ioi(**task_args(toy), n=9), random.Random(2)), []
    run = candidates._run
    monkeypatch.setattr(
        candidates, "_run", lambda model, tokens, *a, **k: (seen.append(tokens.shape), run(model, tokens, *a, **k))[1]
    )
    candidate_scores(toy, prompts)
    assert sum(n * m for n, m in seen[3:]) < sum(
        len(p.tokens) + 6 for p in prompts
    )  # each prompt once, and a few tokens


def test_a_file_of_known_prompts_scores_as_its_task(tmp_path, toy):
    "Single tokens: the same numbers as the task they come from, through hooks and edits too"
    p = task("ioi").prompts(**task_args(toy), n=30)
    write(
        tmp_path / "ioi.csv",
        "prompt,answer,wrong,order\n"
        + "".join(f'"{q.text}",{q.answer},{q.distractors[0]},{q.info["order"]}\n' for q in p),
    )
    t = task(tmp_path / "ioi.csv")
    mine = t.prompts(**task_args(toy), n=100)
    want = {q.text: v for q, v in zip(p, logit_diff(readout(toy, p)).tolist())}

    def check(want):
        df = whole_scores(toy, mine)
        assert df.margin.tolist() == pytest.approx([want[q.text] for q in mine], abs=1e-4)
        assert (
            df.margin.tolist() == pytest.approx(df.logit_diff.tolist(), abs=1e-4) and (df.correct == df["first"]).all()
        )

    check(want)
    got = task_scores(toy, t, mine)
    assert set(got.measure) == {m.name for m in t.measures} and {"order", "value"} <= set(got)
    e = component_edit(toy, ["1.0.0", "1.1.0"])
    e.apply(toy)
    try:
        check({q.text: v for q, v in zip(p, logit_diff(readout(toy, p)).tolist())})
    finally:
        e.undo(toy)
    plan = AuditPlan(ioi=30, lists=(), contrast=(), induction=0, text=0)
    assert "ioi.csv (own)" in audit(toy, e, plan=plan, tasks=[(str(tmp_path / "ioi.csv"), "correct", 0.05)]).failed


# The report


def test_rules_that_understand_nothing_by_hand(tmp_path, tok):
    rows = [("a b c", "a", "b|c"), ("c b a b", "b", "a"), ("d a", "f", "e")]
    text = "prompt,answer,wrong\n" + "".join(f"{p},{a},{w}\n" for p, a, w in rows)
    r = check_file(write(tmp_path / "g.csv", text), tok)
    g = r.guesses.set_index("rule").right
    assert g["the first mentioned"] == pytest.approx((1 + 1 + 0.5) / 3) and g["the last mentioned"] == pytest.approx(
        (0 + 1 + 0.5) / 3
    )
    assert g["the most mentioned"] == pytest.approx((1 / 3 + 1 + 0.5) / 3) and g["the longest"] == pytest.approx(
        (1 / 3 + 0.5 + 0.5) / 3
    )
    assert r.guesses.chance.iloc[0] == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)


@pytest.mark.parametrize(
    "change,said",
    [
        (dict(answer="one-two", wrong="lamp"), "always the longest is right in 1.00"),
        (dict(prompt="Order: mug, lamp. Left: the {i}"), "always the first mentioned is right in 1.00"),
        (dict(g="same"), "the column g has one value, 'same'"),
        (dict(), "few rows"),
        (dict(wrong=""), "wrong words of 30 rows are taken from the rest of the file"),
        (dict(split="x"), "split (1)"),
    ],
)
def test_findings(tmp_path, change, said):
    names = [f"n{chr(97 + i // 5)}{chr(97 + i % 5)}" for i in range(30)]
    tok = words_tokenizer("Order : , . Left the lamp mug one two - " + " ".join(names))
    rows = [
        dict(prompt="Left: the {i}", answer="mug" if k % 2 else "lamp", wrong="lamp" if k % 2 else "mug", g=str(k % 3))
        for k in range(30)
    ]
    rows = [r | (dict(answer="mug", wrong="lamp") if "prompt" in change else {}) | change for r in rows]
    rows = [r | dict(prompt=r["prompt"].format(i=n)) for r, n in zip(rows, names)]
    pd.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    assert said in repr(check_file(tmp_path / "a.csv", tok))


def test_copies_are_left_out_and_told(tmp_path, tok):
    r = check_file(
        write(tmp_path / "a.csv", "prompt,answer,wrong,split\na b,lamp,mug,x\na b,lamp,mug,y\nc,mug,lamp,x\n"), tok
    )
    assert "repeats row 1" in repr(r) and "1 prompts stand in two splits" in repr(r) and len(r.placed.prompts) == 2


def test_half_widths_are_wilsons():
    for n in (10, 40, 500):
        ends = interval(torch.arange(n) < n // 2, how="wilson")
        assert half_width(n) == pytest.approx((ends["high"] - ends["low"]) / 2, abs=1e-9)
        assert half_width(rows_needed(half_width(n) + 1e-9)) <= half_width(n) + 1e-9


# The command, the names, the example


def test_th_task_ends_as_its_finding_says(tmp_path, capsys, toy):
    good = write(
        tmp_path / "good.csv",
        "prompt,answer,wrong,order\n"
        + "".join(f'"{p.text}",{p.answer},{p.distractors[0]},{p.info["order"]}\n' for p in ioi(**task_args(toy), n=30)),
    )
    commands.th_task(str(good), model="toy", score=True)
    out = capsys.readouterr().out
    assert "30 of 30 rows can be used" in out and "Accuracy" in out and re.search(r"order\s+ABBA\s+1\.0", out)
    toy.tokenizer.save_pretrained(tmp_path / "tokenizer")
    commands.th_task(str(good), model=str(tmp_path / "tokenizer"))  # a folder without weights
    for text, code in (("prompt,answer\nMary,\n", 1), ("prompt,answer,wrong\nqqq,Mary,John\n", 2)):
        with pytest.raises(SystemExit) as e:
            commands.th_task(str(write(tmp_path / "bad.csv", text)), model="toy")
        assert e.value.code == code
    said = capsys.readouterr()
    assert "column answer: is empty" in said.err and "cannot be used" in said.out
    with pytest.raises(SystemExit):
        commands.th_task(str(good), model="toy", most=0)


def test_a_file_is_known_by_its_path(tmp_path, tok):
    path = small(tmp_path)
    assert task(str(path)).file.sha256 == task(path).file.sha256 == file_task(path).file.sha256
    with pytest.raises(TaskError, match="Known are .*shop.*or a file"):
        task("orders")


def test_the_shop_is_made_again_to_the_same_bytes():
    assert shop_file().read_bytes() == shop_csv() != shop_csv(1)
    df = pd.read_csv(shop_file())
    assert sorted(df.lines.unique()) == [3, 4, 5, 6, 7, 8] and df.groupby(
        ["lines", "wording", "items"]
    ).size().unique().tolist() == [4]
    assert set(df[df.split == "held-out"].wording) == {"basket", "owed"} and not set(
        df[df.split == "train"].wording
    ) & {"basket", "owed"}


@pytest.mark.slow
def test_smollm2_does_three_lines_and_not_eight():
    model = load_model("smollm2", device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every twin fits
        t = task("shop")
        prompts = t.prompts(**task_args(model), n=500)
        assert len(prompts) == len(t.twins_of(prompts)) == 432
    some = prompts[[i for i, p in enumerate(prompts) if p.info["lines"] in (3, 8)][:48]]
    df = whole_scores(model, some)
    right = df.groupby("lines").correct.mean()
    assert right[3] > 0.55 and right[8] < 0.45
