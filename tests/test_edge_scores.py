"The frozen setting: its parts by hand, its scan, and that it does not depend on how a model is written down"

import json

import pandas as pd
import pytest
import torch

from talking_heads.base.core import HeadError
from talking_heads.circuits.effects import causal_pairs
from talking_heads.composition import compose
from talking_heads.weights.edge_scores import *
from talking_heads.weights.planted import Plant, plant
from talking_heads.weights.scan import Scan, scan

SMALL = Plant(d_model=64, d_head=8)


def test_means_by_hand():
    g = torch.Generator().manual_seed(0)
    x, S = torch.rand(3, 4, 2, generator=g), torch.rand(3, 4, generator=g).sort(descending=True)[0]
    for power in (1.0, 2.0, 4.0):
        assert torch.allclose(power_mean(x, S, power), x.pow(power).mean(1).pow(1 / power), atol=1e-5)
        w = (S.square() / S.square().sum(1, keepdim=True))[..., None]
        assert torch.allclose(power_mean(x, S, power, True), (x.pow(power) * w).sum(1).pow(1 / power), atol=1e-5)
    assert power_mean(x * 1e-12, S).gt(0).all()  # small scores do not vanish


def test_background_and_size_by_hand():
    "A factor that a reader has for all writers goes, the writer's size stays"
    L, H = 4, 3
    g = torch.Generator().manual_seed(0)
    means = {m: torch.rand(L, H, L, H, generator=g) + 0.1 for m in "QKV"}
    S = torch.rand(L, H, 5, generator=g).sort(descending=True)[0]
    plain = finish_scores(means, S)
    writer = torch.rand(L, H, 1, 1, generator=g) + 0.5
    other = finish_scores({m: x * writer for m, x in means.items()}, S)
    assert torch.allclose(other["V"], plain["V"] * writer, rtol=1e-4)
    reader = torch.rand(1, 1, L, H, generator=g) + 0.5
    louder = finish_scores({m: x * reader for m, x in means.items()}, S)
    for m in "QK":  # what a reader hears of everyone alike goes
        assert torch.allclose(louder[m][causal_pairs(L, H)], plain[m][causal_pairs(L, H)], rtol=1e-3)
    bigger = finish_scores(means, S * 16)
    assert torch.allclose(bigger["V"], plain["V"] * 2, rtol=1e-4)  # the fourth root of the size


def test_compose_names_the_setting():
    w, _ = plant(SMALL)
    assert compose(w, "Q", **listening(w)).provenance["setting"] == "edges-1"
    assert "setting" not in compose(w, "Q").provenance


@pytest.mark.parametrize("memory", ("300MB", "40MB"))
def test_scan_ranks_as_edge_scores(tmp_path, memory):
    w, _ = plant(SMALL)
    out = scan(w, tmp_path, Scan(setting="edges-1", memory=memory))
    got, info = pd.read_parquet(out / "edges.parquet"), json.loads((out / "scan.json").read_text())
    assert info["provenance"]["setting"] == "edges-1" and len(info["edges"]["Q"]) == 50
    for m, x in edge_scores(w).items():
        mine = got[got["mode"] == m]
        assert len(mine) == int(x.isfinite().sum()) and mine.score.is_monotonic_decreasing
        want = x[x.isfinite()].sort(descending=True)[0]
        assert torch.allclose(torch.tensor(mine.score.to_numpy(copy=True)), want, rtol=1e-3)


@pytest.mark.parametrize(
    "job, says",
    [
        (Scan("Q", setting="edges-1"), "queries with keys"),
        (Scan(setting="edges-1", readers=("2.1",)), "all readers"),
        (Scan(setting="edges-1", level="head"), "made of components"),
        (Scan(setting="mine"), "Unknown setting"),
    ],
)
def test_scan_refuses(tmp_path, job, says):
    with pytest.raises(HeadError, match=says):
        scan(plant(SMALL)[0], tmp_path, job)
