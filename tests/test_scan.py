"The streamed scan: equal to compose, resumable, bounded in memory, clear errors"

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
import talking_heads.weights.scan as S
from talking_heads.composition import *
from talking_heads.base.core import *
from talking_heads.weights.nulls import *
from talking_heads.weights.scan import *
from talking_heads.svd import *
from talking_heads.commands import th_scan

bin = Path(sys.executable).parent


def th(*args):
    return tiny.called(th_scan, *args)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save("llama", tmp_path_factory.mktemp("model") / "llama")


@pytest.mark.parametrize("kind", ["gpt2", "gemma3", "llama"])
@pytest.mark.parametrize("group,rows", [(1, 7), (5, 16), (99, 999)])
def test_scan_equals_compose(kind, group, rows, tmp_path, monkeypatch):
    monkeypatch.setattr("talking_heads.weights.scan.make_plan", lambda *a: Plan(group, rows, 1, rows > 100))
    w = attention_weights(str(tiny.save(kind, tmp_path / "m")), "folded")
    t = read_scan(scan(w, tmp_path / "o", Scan(top=0)))
    c = compose(w)
    for m in modes:
        q = benjamini_hochberg(torch.cat([p.flatten() for p in p_values(c[m])]))
        mine = t[t["mode"] == m]
        assert len(mine) == sum(x.numel() for x in c[m].layers)
        for reader in ("1.0", "2.3"):
            a, b = (
                mine[mine.dst == reader].sort_values("src", ignore_index=True),
                c[m].ranking(reader).sort_values("src", ignore_index=True),
            )
            assert a.src.tolist() == b.src.tolist()
            for k in ("score", "z"):
                torch.testing.assert_close(
                    torch.tensor(a[k].to_numpy()), torch.tensor(b[k].to_numpy()), atol=2e-3, rtol=1e-3
                )
        got, want = torch.tensor(mine.q.to_numpy()).sort().values, q.sort().values
        assert (got >= want * 0.99).all() and (got <= want * 1.02 + 1e-9).all()


def test_head_level_and_top(folder, tmp_path):
    w = attention_weights(str(folder), "folded")
    t = read_scan(scan(w, tmp_path / "o", Scan("QV", level="head", top=3)))
    c = compose(w, "QV")
    assert t.src_component.isna().all() and t.p.isna().all() and t.q.isna().all() and len(t) == 2 * 8 * 3
    mine = t.query("dst=='2.1' and mode=='V'").sort_values("score", ascending=False)
    assert mine.src.tolist() == c["V"].ranking("2.1", "head").src[:3].tolist()


def test_columns_and_summary(folder, tmp_path):
    out = scan(attention_weights(str(folder)), tmp_path / "o", Scan(top=5))
    t = pd.read_parquet(out / "scan.parquet")
    assert (
        list(t.columns)
        == "model revision processing mode src_layer src_head src_component dst_layer dst_head score z p q share "
        "degenerate group".split()
    )
    assert (
        set(t.processing) == {"raw"} and (t.groupby(["mode", "dst_layer", "dst_head"], observed=True).size() == 5).all()
    )
    info = json.loads((out / "scan.json").read_text())
    assert info["provenance"]["sha256"] and info["tests"] == {
        m: sum(x.numel() for x in compose(attention_weights(str(folder)), m).layers) for m in modes
    }
    assert info["strongest"]["Q"][0]["z"] == pytest.approx(float(t[t["mode"] == "Q"].z.max()), rel=1e-3)
    page = scan_page(out).read_text()
    assert "http://" not in page.split("</style>")[1].split("<script")[0] and "Who could be heard" in page


def test_same_numbers_twice_and_resumed(folder, tmp_path, monkeypatch):
    w = attention_weights(str(folder))
    whole = pd.read_parquet(scan(w, tmp_path / "a", Scan(top=4)) / "scan.parquet")
    import talking_heads.weights.scan as S

    real, calls = S._scan_layer, []

    def failing(weights, store, job, l, *a):
        calls.append(l)
        if l == 2 and len(calls) == 2:
            raise KeyboardInterrupt
        return real(weights, store, job, l, *a)

    monkeypatch.setattr(S, "_scan_layer", failing)
    with pytest.raises(KeyboardInterrupt):
        scan(w, tmp_path / "b", Scan(top=4))
    assert (tmp_path / "b" / "tables" / "layer-001.parquet").is_file() and not (
        tmp_path / "b" / "scan.parquet"
    ).exists()
    pd.testing.assert_frame_equal(pd.read_parquet(scan(w, tmp_path / "b", Scan(top=4)) / "scan.parquet"), whole)
    assert calls == [1, 2, 2]
    scan(w, tmp_path / "b", Scan(top=3))  # other settings start again
    assert calls == [1, 2, 2, 1, 2] and len(pd.read_parquet(tmp_path / "b" / "scan.parquet")) == len(whole) * 3 // 4


def test_a_terminal_gets_a_bar(folder, tmp_path):
    "In a terminal progress is drawn by tqdm, which is no iterator"
    import pty

    out, inn = pty.openpty()
    p = subprocess.Popen(
        [str(bin / "th_scan"), str(folder), "--out", str(tmp_path / "o"), "--top", "2"],
        stderr=inn,
        stdout=subprocess.PIPE,
        text=True,
    )
    said, _ = p.communicate(timeout=120)
    assert p.returncode == 0 and "scan.html" in said


def test_other_peoples_folders(folder, tmp_path):
    "A scan does not overwrite a paper run, nor leaves an older scan's rows behind when it is interrupted"
    from talking_heads.base.store import RunFolder

    RunFolder(tmp_path / "paper", dict(model="x"))
    (tmp_path / "paper" / "results.json").write_text("{}")
    r = th(folder, "--out", tmp_path / "paper")
    assert r.returncode == 1 and "paper run" in r.stderr and (tmp_path / "paper" / "results.json").exists()
    w = attention_weights(str(folder))
    out = scan(w, tmp_path / "o", Scan("Q", top=2))
    with pytest.raises(OutputError, match="holds a scan"):
        RunFolder(out, dict(model="x"))
    before = [f.stat().st_mtime_ns for f in sorted((out / "writers").rglob("*.safetensors"))]
    scan(w, tmp_path / "o", Scan("K", top=2))
    assert before == [f.stat().st_mtime_ns for f in sorted((out / "writers").rglob("*.safetensors"))], (
        "write directions serve every scan of the same weights"
    )
    assert set(read_scan(out)["mode"]) == {"K"}
    (out / "tables" / "mine.csv").write_text("x")
    with pytest.raises(OutputError, match="mine.csv"):
        scan(w, out, Scan("V", top=2))
    assert (out / "tables" / "mine.csv").exists() and set(read_scan(out)["mode"]) == {"K"}


def test_the_command_says_what_it_replaced(folder, tmp_path):
    first, again, other = (th(folder, "--out", tmp_path / "o", *more) for more in ((), (), ("--reader", "2.1")))
    assert all("robust z" in r.stdout for r in (first, again, other))
    assert (
        "Replaced" not in first.stdout + again.stdout and f"Replaced an earlier scan of {folder.name}" in other.stdout
    )


def test_the_page_says_why_a_table_is_empty_or_cut():
    c = dict(writers=["0.0.1"], readers=["2.1"], z=9.0)
    assert "None" in S._channel_table([]) and "<table" not in S._channel_table([])
    assert S._channel_table([c] * 15).count("<td>0.0.1") == 15 and "loudest of" not in S._channel_table([c] * 15)
    assert "15 loudest of 16" in S._channel_table([c] * 16)


def test_dead_heads_and_plain_arguments(tmp_path):
    folder = tiny.save("llama", tmp_path / "m")
    w = load_file(folder / "model.safetensors")
    w["model.layers.2.self_attn.q_proj.weight"][:12] = 0
    w["model.layers.0.self_attn.o_proj.weight"][:, :12] = 0
    save_file(w, folder / "model.safetensors")
    t = read_scan(
        scan(
            attention_weights(str(folder)),
            tmp_path / "o",
            Scan("QQK", readers=("2.0", "L2H0", (2, 1)), top=4, memory="1GB"),
        )
    )
    assert (
        t.dst.unique().tolist() == ["2.1"]
        and len(t) == 2 * 4
        and not t.src.str.startswith("0.0.").any()
        and t.p.notna().all()
    )
    for bad, words in ((dict(readers=("9.9",)), "does not exist"), (dict(readers=(Head(1, 99),)), "does not exist")):
        with pytest.raises(HeadError, match=words):
            scan(attention_weights(str(folder)), tmp_path / "p", Scan(**bad))


def test_readers_in_several_layers(folder, tmp_path):
    t = read_scan(
        scan(attention_weights(str(folder)), tmp_path / "o", Scan("K", readers=(Head(1, 0), Head(2, 3)), top=2))
    )
    assert t.dst.tolist() == ["1.0"] * 2 + ["2.3"] * 2


def test_command(folder, tmp_path):
    "The script itself, in a process of its own"
    args = [folder, "--out", tmp_path / "o", "--reader", "2.1", "--modes", "qk", "--rope-distance", 3, "--top", 6]
    r = subprocess.run([str(bin / "th_scan"), *map(str, args)], capture_output=True, text=True, timeout=300)
    assert r.returncode == 0, r.stderr
    for f in ("scan.parquet", "scan.json", "scan.html"):
        assert str(tmp_path / "o" / f) in r.stdout and (tmp_path / "o" / f).stat().st_size
    assert json.loads((tmp_path / "o" / "scan.json").read_text())["provenance"]["distance"] == 3


@pytest.mark.parametrize(
    "args,words",
    [
        (("--reader", "9.9"), "does not exist"),
        (("--reader", "0.1"), "first layer"),
        (("--modes", "X"), "Unknown modes"),
        (("--level", "neuron"), "Unknown level"),
        (("--memory", "1MB"), "too small"),
        (("--memory", "lots"), "no amount"),
        (("--device", "quantum"), "cannot be used"),
        (("--processing", "cooked"), "raw or folded"),
        (("--top", "-1"), "how many"),
        (("--out", "/proc/nowhere"), "Cannot write"),
    ],
)
def test_bad_input(folder, tmp_path, args, words):
    r = th(folder, *(() if "--out" in args else ("--out", tmp_path / "o")), *args)
    assert r.returncode == 1 and words in r.stderr and "Traceback" not in r.stderr


def test_bad_checkpoints(tmp_path):
    for damage, words in (
        (lambda w: w["model.layers.2.self_attn.v_proj.weight"][3].fill_(float("nan")), "W_V of head 2.0"),
        (lambda w: w.pop("model.layers.1.self_attn.o_proj.weight"), "Layer 1"),
    ):
        folder = tiny.save("llama", tmp_path / "m")
        w = load_file(folder / "model.safetensors")
        damage(w)
        save_file(w, folder / "model.safetensors")
        r = th(folder, "--out", tmp_path / "o", "--top", 2)
        assert r.returncode == 1 and words in r.stderr, r.stderr
    folder = tiny.save("llama", tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pickle" in th(folder).stderr
    tiny.save("gpt2", tmp_path / "g")
    assert "no rotary" in th(tmp_path / "g", "--rope-distance", 2, "--out", tmp_path / "o").stderr


def test_a_nan_in_a_late_layer_keeps_the_early_ones(tmp_path):
    folder = tiny.save("llama", tmp_path / "m")
    w = load_file(folder / "model.safetensors")
    good = w["model.layers.2.self_attn.q_proj.weight"].clone()
    w["model.layers.2.self_attn.q_proj.weight"][0] = float("inf")
    save_file(w, folder / "model.safetensors")
    r = th(folder, "--out", tmp_path / "o")
    assert (
        r.returncode == 1
        and "W_Q of head 2.0" in r.stderr
        and (tmp_path / "o" / "tables" / "layer-001.parquet").is_file()
    )


def test_full_disk(folder, tmp_path, monkeypatch):
    "Finished layers survive a disk that fills up, and the error is ours"
    import talking_heads.weights.scan as S

    w, real = attention_weights(str(folder)), S.save_file

    def full(t, path):
        if len(list((tmp_path / "o" / "writers").rglob("*.safetensors"))) >= 1:
            raise OSError(28, "No space left on device")
        real(t, path)

    monkeypatch.setattr(S, "save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        scan(w, tmp_path / "o")
    assert len(list((tmp_path / "o" / "writers").rglob("0*.safetensors"))) == 1
    monkeypatch.setattr(S, "save_file", real)
    assert len(read_scan(scan(w, tmp_path / "o")))


def big(folder, layers=64, d=1024, heads=8):
    "A Llama-shaped checkpoint of random attention weights, 1.07 GB in float32"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps(
            dict(
                model_type="llama",
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=heads,
                hidden_size=d,
            )
        )
    )
    g, index = torch.Generator().manual_seed(0), {}
    for s in range(4):
        t = {
            f"model.layers.{l}.self_attn.{n}_proj.weight": torch.empty(d, d).uniform_(-0.05, 0.05, generator=g)
            for l in range(s * layers // 4, (s + 1) * layers // 4)
            for n in "qkvo"
        }
        t |= {
            f"model.layers.{l}.input_layernorm.weight": torch.ones(d)
            for l in range(s * layers // 4, (s + 1) * layers // 4)
        }
        save_file(t, folder / f"model-{s}.safetensors")
        index |= dict.fromkeys(t, f"model-{s}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(dict(metadata={}, weight_map=index)))
    return folder


_measure = """
import sys
from talking_heads.svd import *; from talking_heads.weights.scan import *; from talking_heads.base.core import *
import torch
rss = lambda k: next(int(l.split()[1])*1024 for l in open("/proc/self/status") if l.startswith(k))
w = attention_weights(sys.argv[1], "folded")
torch.randn(64, 64)@torch.randn(64, 64)
open("/proc/self/clear_refs", "w").write("5"); start = rss("VmRSS")
readers = tuple(Head(l, h) for l in (20, 63) for h in range(4))
scan(w, sys.argv[2], Scan("QKV", readers=readers, memory=int(sys.argv[3])))
print(rss("VmHWM")-start)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_bound_is_kept_on_a_checkpoint_ten_times_larger(tmp_path):
    folder, bound = big(tmp_path / "m"), 107_000_000
    assert sum(f.stat().st_size for f in folder.glob("*.safetensors")) > 10 * bound
    r = subprocess.run(
        [sys.executable, "-c", _measure, str(folder), str(tmp_path / "o"), str(bound)], capture_output=True, text=True
    )
    assert r.returncode == 0, r.stderr
    assert int(r.stdout) <= 1.1 * bound, f"peak {int(r.stdout) / 1e6:.0f} MB"
    shutil.rmtree(tmp_path / "m")
