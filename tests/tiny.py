"Tiny random models of several families, with a word-level tokenizer, saved to a folder"

import io
import json
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen3Config,
)

from talking_heads import data as D


def words():
    "Every word of the tasks, once"
    text = " ".join(
        [
            *D.ioi_templates,
            *D.list_templates.values(),
            D.ioi_names,
            D.ioi_places,
            D.ioi_objects,
            D.list_items,
            *D.number_words,
        ]
    )
    return list(dict.fromkeys(re.findall(r"\w+|[^\w\s]", text))) + ["with", "a", "an"]


def tokenizer(bos=False):
    "One token a word, with BOS put before each text if asked for"
    vocab = {w: i for i, w in enumerate(dict.fromkeys(["<unk>", "<s>", "</s>", *words()]))}
    t = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=t, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def byte_level_backend():
    "Byte-level BPE trained until each word is one token"
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    t.train_from_iterator(
        [" " + w for w in words()] * 2,
        trainers.BpeTrainer(
            vocab_size=9000,
            special_tokens=["<|endoftext|>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return t


def byte_level():
    "The same as Qwen's: AutoTokenizer reads a Qwen folder's tokenizer as that, whatever was saved"
    model = json.loads(byte_level_backend().to_str())["model"]
    return Qwen2Tokenizer(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]])


def whole_text():
    "Byte-level BPE for any text and any family"
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level_backend(), eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def odd(kind, known=None, joined=()):
    "A tokenizer of one token a word with one odd habit"
    known = words() if known is None else list(known)
    pieces, extra = (
        r"\w+|[^\w\s]",
        {"joins": list(joined), "ends": [" " + w for w in known], "sentencepiece": ["\u2581" + w for w in known]}.get(
            kind, []
        ),
    )
    if kind == "folds":
        known = [w.lower() for w in known]
    if kind == "joins":
        pieces = "|".join([*sorted(joined, key=len, reverse=True), pieces])  # "to Mary" is one token
    if kind == "ends":
        pieces = r" \w+$|" + pieces  # the last word of a text keeps its space
    vocab = {w: i for i, w in enumerate(dict.fromkeys(["<unk>", "<s>", "</s>", *known, *extra]))}
    t = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), "removed", invert=True)
    if kind == "sentencepiece":
        t.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Metaspace(), pre_tokenizers.Split(Regex(r"[^\w\s\u2581]"), "isolated")]
        )
    t.normalizer = {"folds": normalizers.Lowercase(), "strips": normalizers.Strip(), "nfkc": normalizers.NFKC()}.get(
        kind
    )
    if kind == "appends":
        t.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    names = {} if kind == "nameless" else dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>")
    return PreTrainedTokenizerFast(tokenizer_object=t, **names)


def config(kind, vocab):
    "A config of three layers, small and deliberately uneven"
    llama = dict(
        vocab_size=vocab,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    if kind == "gpt2":
        return GPT2Config(
            vocab_size=vocab, n_embd=48, n_layer=3, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2
        )
    if kind == "neox":
        return GPTNeoXConfig(
            vocab_size=vocab,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            bos_token_id=1,
            eos_token_id=2,
            max_position_embeddings=256,
            tie_word_embeddings=False,
        )
    if kind == "llama":
        return LlamaConfig(**llama)
    if kind == "qwen2":
        return Qwen2Config(**llama)
    if kind == "qwen3":
        return Qwen3Config(**llama, head_dim=16)
    if kind == "gemma2":
        return Gemma2Config(**llama, head_dim=16, query_pre_attn_scalar=16, sliding_window=128)
    if kind == "gemma3":
        return Gemma3TextConfig(**llama, head_dim=16, query_pre_attn_scalar=16, sliding_window=128)
    if kind == "mistral":
        return MistralConfig(**llama)
    if kind == "phi3":
        return Phi3Config(**llama)
    if kind == "olmo2":
        return Olmo2Config(**llama)
    raise KeyError(kind)


kinds = ["gpt2", "neox", "llama", "qwen2", "qwen3", "gemma2", "gemma3"]
families = kinds + ["mistral", "phi3", "olmo2"]


def save(kind, folder: Path, seed=0, tok=None, **change):
    """A random model of `kind` in `folder`, weights large enough that attention is far from uniform;
    `change` goes into its config"""
    torch.manual_seed(seed)
    tok = tok or (byte_level() if kind.startswith("qwen") else tokenizer(bos=kind.startswith("gemma")))
    c = config(kind, len(tok))
    for k, v in change.items():
        setattr(c, k, v)
    model = AutoModelForCausalLM.from_config(c)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(
                torch.randn_like(p) * (0.15 if p.ndim == 2 else 0.1)
                + (1.0 if p.ndim == 1 and "norm" in name and not kind.startswith("gemma") else 0.0)
            )
            if "ln_" in name and name.endswith("weight"):
                p.add_(1.0)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


def called(command, *args):
    "A command as its script would call it, in this process: code, what it printed, what it said of errors"
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv, code = [command.__name__, *map(str, args)], 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            command()
    except SystemExit as e:
        code = e.code or 0
    finally:
        sys.argv = argv
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


# What tests of weights ask of a model


def plain(folder):
    """The model by transformers alone; eager, as our own models: other attention leaves out Gemma 2's soft caps in some
    releases of transformers"""
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def state(model):
    "A copy of every weight and buffer"
    return {n: p.detach().clone() for n, p in model.original_model.state_dict().items()}


def same(a, b):
    "Are two states equal to the last bit?"
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def far(a, b):
    "Largest difference"
    return float((a - b).abs().max())
