"Effects of edges and the board that judges scores by them: brute force, planted answers, and what is refused"

import numpy as np
import pandas as pd
import pytest
import torch

from talking_heads.base.core import Head, HeadError, OutputError, TaskError
from talking_heads.base.store import stored_study
from talking_heads.circuits.effect_board import *
from talking_heads.circuits.effects import *

COLUMNS = ["mode", "src_layer", "src_head", "dst_layer", "dst_head"]


def table(L=3, H=2, modes="QK"):
    rows = [(m, *map(int, i)) for m in modes for i in causal_pairs(L, H).nonzero()]
    return pd.DataFrame(rows, columns=COLUMNS).assign(effect=np.arange(len(rows), dtype="float32"))


def made(L=5, H=4, noise=0.01, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(L, H, L, H, generator=g)
    halves = tuple({"Q": x + noise * torch.randn(x.shape, generator=g)} for _ in range(2))
    return Effects("made up", {"Q": x}, halves, {})


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(src_layer=2), "earlier layer"),
        (dict(mode="X"), "Unknown modes"),
        (dict(dst_head=7), "of another model"),
        (dict(effect=float("nan")), "no number for 12 of 12"),
    ],
)
def test_table_of_something_else_is_refused(change, says):
    with pytest.raises(HeadError, match=says):
        effects_from(table().assign(**change), 3, 2, "made up")


def test_table_with_gaps_or_twice_is_refused(tmp_path):
    with pytest.raises(HeadError, match="no number"):
        effects_from(table().iloc[1:], 3, 2, "made up")
    with pytest.raises(HeadError, match="twice"):
        effects_from(pd.concat([table(), table()]), 3, 2, "made up")
    with pytest.raises(HeadError, match="lacks the columns"):
        effects_from(table().drop(columns="mode"), 3, 2, "made up")
    with pytest.raises(OutputError, match="is no file"):
        read_effects(tmp_path / "none.parquet", 3, 2)


def test_a_table_comes_back_as_it_was(tmp_path):
    t = table()
    t.to_parquet(tmp_path / "t.parquet")
    e = read_effects(tmp_path / "t.parquet", 3, 2)
    for r in t.to_dict("records"):
        at = tuple(r[c] for c in COLUMNS[1:])
        assert float(e.values[r["mode"]][at]) == r["effect"]
    assert e.values["Q"][2].isnan().all() and e.shape == (3, 2)


def test_stored_rows_come_back():
    e = made()
    rows = effect_rows(e)
    assert len(rows) == int(causal_pairs(5, 4).sum())
    back = effects_from(rows.assign(effect=rows.half_a.astype("float32")), 5, 4, "made up")
    pairs = causal_pairs(5, 4)
    assert torch.allclose(back.values["Q"][pairs], e.halves[0]["Q"][pairs], atol=5e-3)


def test_noise_is_refused_with_the_number():
    assert check_reliable(made(), "Q") > 0.99
    with pytest.raises(TaskError, match=r"correlate by -?0\.\d\d"):
        check_reliable(made(noise=30.0), "Q")
    with pytest.raises(TaskError, match="No effects in mode"):
        check_reliable(made(), "V")


@pytest.mark.parametrize("seed", range(3))
def test_precision_is_the_one_by_hand(seed):
    e, g = made(seed=seed), torch.Generator().manual_seed(seed)
    score, readers = torch.rand(e.values["Q"].shape, generator=g), reader_half(5, 4, True, seed)
    edges = strongest_edges(e.values["Q"], 7, readers)
    ranked = []
    for a, i, b, j in causal_pairs(5, 4).nonzero().tolist():
        if readers[b * 4 + j]:
            ranked.append((float(score[a, i, b, j]), (Head(a, i), Head(b, j)), abs(float(e.values["Q"][a, i, b, j]))))
    assert set(edges) == {p for _, p, _ in sorted(ranked, key=lambda r: -r[2])[:7]}
    hits, total = 0, 0.0
    for n, (_, pair, _) in enumerate(sorted(ranked, key=lambda r: -r[0]), 1):
        if pair in edges:
            hits += 1
            total += hits / n
    assert precision_of(score, edges, readers, 0)["ap"] == pytest.approx(total / 7)
    first = [p for _, p, _ in sorted(ranked, key=lambda r: -r[0])[:9]]
    assert top_hits(score, edges, 9, readers) == pytest.approx(len(set(first) & set(edges)) / 9)


def test_halves_of_readers_share_nothing():
    a, b = (reader_half(12, 12, first) for first in (True, False))
    assert not (a & b).any() and int((a | b).sum()) == 132 and not (a | b)[:12].any()


def test_a_lead_is_no_lead_over_oneself():
    e = made()
    x, edges = e.values["Q"].abs(), strongest_edges(e.values["Q"], 10)
    assert lead(x, x, edges)["gain"] == 0
    found = lead(x, torch.rand(x.shape, generator=torch.Generator().manual_seed(1)), edges)
    assert found["low"] > 0


def test_board_refuses_scores_of_another_shape():
    with pytest.raises(HeadError, match="3 layers of 2 heads"):
        effect_board(dict(other=torch.zeros(3, 2, 3, 2)), made(), "Q", cuts=(5,))
    with pytest.raises(HeadError, match="were asked for"):
        strongest_edges(torch.zeros(3, 2, 3, 2), 13)
    with pytest.raises(TaskError, match="without halves"):
        ceiling(Effects("x", made().values, (), {}), "Q")


def test_stored_tables_are_whole():
    for task in ("ioi", "repeats"):
        e = stored_effects("smollm2", task)
        assert e.shape == (30, 9) and set(e.values) == set("QKV") and e.provenance["sha256"]
        assert len(e.provenance["code"]) == 64  # measured by code of this package, not copied
        assert min(reliability(e).values()) > least_reliability
    with pytest.raises(TaskError, match="no effects of 'gpt2'"):
        stored_effects("gpt2", "ioi")


@pytest.mark.parametrize("task", ["ioi", "repeats"])
def test_the_stored_boards_are_of_the_stored_effects(task):
    e, f = stored_effects("smollm2", task), stored_boards("ceilings")
    for mode in "QKV":
        rows = f[(f.task == task) & (f["mode"] == mode)]
        assert rows.ap.tolist() == pytest.approx(ceiling(e, mode, tuple(rows.cut)).ap.tolist(), abs=2e-6)


def test_every_stored_row_is_whole_and_boards_agree_with_leads():
    study = stored_study("effect_board.json")
    assert {len(code) for code in study["code"].values()} == {64}
    for part, rows in study["parts"].items():
        assert rows and all(r["of"] in study["code"] for r in rows), part
        assert not stored_boards(part).isna().any(axis=None), part
    leads, boards = (stored_boards(k) for k in ("leads", "boards"))
    keys = ["model", "task", "split", "mode", "cut"]
    both = leads.merge(boards[boards.method == "edges-1"], on=keys, suffixes=("", "_board"))
    assert len(both) == len(leads) and np.allclose(both.ours, both.ap)
    both = leads.merge(boards, left_on=[*keys, "rival"], right_on=[*keys, "method"], suffixes=("", "_board"))
    assert len(both) == len(leads) and np.allclose(both.theirs, both.ap)


def test_an_effect_is_explained_by_what_it_was_made_of():
    g = torch.Generator().manual_seed(3)
    score, whole = (torch.rand(5, 4, 5, 4, generator=g) + 0.1 for _ in range(2))
    facts = dict(writer=torch.rand(5, 4, generator=g) + 0.1, entropy=torch.rand(5, 4, generator=g))
    effect = score * facts["writer"][:, :, None, None] ** 2 * facts["entropy"].exp()
    rows = {r["given"]: r for r in explained_effects(effect, score, whole, facts, n=10)}
    assert rows["score + writer + entropy"]["r2"] == pytest.approx(1, abs=1e-6)
    assert rows["score"]["low"] <= rows["score"]["r2"] <= rows["score"]["high"] < 0.9
    assert rows["whole-head score"]["r2"] < 0.1 and rows["score"]["left"] == 0


def test_the_stored_lead_of_gpt2_is_of_these_effects(shared):
    "What the study stores as the size of the strongest edge and the halves of readers stands for the shared table"
    e = read_effects(shared / "gpt2-ioi-edges" / "heads.parquet", 12, 12)
    assert int(causal_pairs(12, 12).sum()) == 9504 and set(e.values) == set("QKV")
    f = stored_boards("leads")
    f = f[(f.model == "gpt2") & (f.split == "unseen") & (f["mode"] == "Q")]
    assert (f.times > 1.5).all() and f.low.min() < 0  # ahead, and not surely
