"The stored table of path effects is what path patching gives"

import pytest

from talking_heads.base.checkpoints import find_checkpoint
from talking_heads.base.core import HeadError
from talking_heads.hooks import load_model
from talking_heads.base.store import stored_study
from talking_heads.circuits.paths import *


def test_table_is_whole_and_of_this_model():
    t, info = stored_paths(), stored_study("smollm2_paths.json")
    assert (
        len(t) == 207 * 4
        and not t.duplicated(["src", "dst"]).any()
        and (t.low <= t.effect).all()
        and (t.effect <= t.high).all()
    )
    assert info["sha256"] == find_checkpoint("smollm2").sha256 and (t.n == info["n"]).all()


@pytest.mark.slow
def test_a_few_paths_again():
    f = path_effects(load_model("smollm2", device="cpu"), ["23.0", "23.7"], ["20.0", "19.2", "5.3"], n=30)
    t = stored_paths().set_index(["src", "dst"])
    for r in f.itertuples():
        stored = t.loc[(r.src, r.dst)]
        assert r.low - 0.02 <= stored.effect <= r.high + 0.02


def test_toy_paths():
    "In the toy the inhibition heads' paths carry the message, the others carry none"
    f = path_effects(load_model("toy", device="cpu"), ["2.0", "2.1"], n=60).set_index("src")
    assert (f.loc[["1.0", "1.1"]].effect > 0.05).all() and (f.drop(["1.0", "1.1", "1.2"]).effect.abs() < 0.05).all()


def test_readers_of_two_layers_are_refused():
    with pytest.raises(HeadError, match="one layer"):
        path_effects(load_model("toy", device="cpu"), ["1.0", "2.1"])
