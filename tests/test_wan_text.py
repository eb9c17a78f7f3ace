"""The prompt as rows: what the encoder gives for a text's real tokens, and the file that keeps it."""

import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tolerances import assert_values_agree

from worldline.cli import main as entry
from worldline.schema import DataError, UsageError
from worldline.worlds.wan_text import encode_text, fingerprint_encoder, load_text, save_text

WORDS = ["▁", "▁a", "▁robot", "▁walks", "▁&"]
WIDTH = 16
PROMPT = "a robot walks"
IDS = [4, 5, 6, 1]
"""Tokens of `PROMPT`; `<pad>`, `</s>` and `<unk>` are 0, 1 and 2."""


def _write_tokenizer(folder: Path, words: list[str] = WORDS) -> None:
    from transformers import T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary = [*special, *((word, -2.0 - i) for i, word in enumerate(words))]
    T5Tokenizer(vocab=vocabulary, extra_ids=0).save_pretrained(folder)


def _encoder() -> Any:
    """A tiny UMT5 of random weights, large enough that tokens move one another."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=12,
        d_model=WIDTH,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        relative_attention_num_buckets=8,
        feed_forward_proj="gated-gelu",
    )
    encoder = UMT5EncoderModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in encoder.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return encoder


@pytest.fixture(scope="module")
def encoder() -> Any:
    return _encoder()


@pytest.fixture(scope="module")
def weights(encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with a text encoder and a tokenizer."""
    folder = tmp_path_factory.mktemp("diffusers")
    encoder.save_pretrained(folder / "text_encoder")
    _write_tokenizer(folder / "tokenizer")
    return folder


@pytest.fixture
def copy(weights: Path, tmp_path: Path) -> Path:
    return shutil.copytree(weights, tmp_path / "copy")


def _write_original(folder: Path, encoder: Any) -> Path:
    """The same encoder under the names of the original file."""
    state = encoder.state_dict()
    tensors = {
        "token_embedding.weight": state["shared.weight"],
        "norm.weight": state["encoder.final_layer_norm.weight"],
    }
    for i in range(2):
        attention, mlp = (f"encoder.block.{i}.layer.{j}" for j in range(2))
        ours = {f"attn.{x}": f"{attention}.SelfAttention.{x}" for x in "qkvo"} | {
            "pos_embedding.embedding": f"{attention}.SelfAttention.relative_attention_bias",
            "norm1": f"{attention}.layer_norm",
            "norm2": f"{mlp}.layer_norm",
            "ffn.gate.0": f"{mlp}.DenseReluDense.wi_0",
            "ffn.fc1": f"{mlp}.DenseReluDense.wi_1",
            "ffn.fc2": f"{mlp}.DenseReluDense.wo",
        }
        tensors |= {f"blocks.{i}.{theirs}.weight": state[f"{name}.weight"] for theirs, name in ours.items()}
    _write_tokenizer(folder / "google" / "umt5-xxl")
    torch.save(tensors, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    return folder


# --- encode ---


def test_the_empty_prompt_is_one_row(weights: Path, encoder: Any) -> None:
    rows = encode_text(weights, dtype="float32")
    assert rows.shape == (1, WIDTH)
    with torch.no_grad():
        assert_values_agree(rows, encoder(input_ids=torch.tensor([[1]])).last_hidden_state[0])


def test_rows_are_those_of_the_real_tokens_as_upstream_pads_masks_and_trims(weights: Path, encoder: Any) -> None:
    rows = encode_text(weights, PROMPT, dtype="float32")
    with torch.no_grad():
        assert_values_agree(rows, encoder(input_ids=torch.tensor([IDS])).last_hidden_state[0])
        ids = torch.tensor([IDS + [0] * 508])
        upstream = encoder(input_ids=ids, attention_mask=(torch.arange(512) < 4).long()[None]).last_hidden_state
        unmasked = encoder(input_ids=ids).last_hidden_state
    assert_values_agree(rows, upstream[0, :4])
    assert (rows - unmasked[0, :4]).abs().max() > 0.1


def test_white_space_and_entities_are_cleaned_as_upstream(weights: Path) -> None:
    clean = encode_text(weights, "a & robot")
    assert torch.equal(encode_text(weights, "  a\n&amp;amp;\t robot "), clean)
    assert len(clean) == 4


def test_bfloat16_is_near_float32_and_stored_as_float32(weights: Path) -> None:
    half, full = encode_text(weights, PROMPT), encode_text(weights, PROMPT, dtype="float32")
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_original_file_gives_the_same_rows(dtype: Any, weights: Path, encoder: Any, tmp_path: Path) -> None:
    original = _write_original(tmp_path, encoder)
    rows = encode_text(original, PROMPT, dtype=dtype)
    tolerance = 1e-5 if dtype == "float32" else 2e-2  # bfloat16 has eight bits
    torch.testing.assert_close(rows, encode_text(weights, PROMPT, dtype=dtype), rtol=tolerance, atol=tolerance)


def test_nothing_reaches_for_the_network(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    encode_text(weights, PROMPT)
    with pytest.raises(UsageError):
        encode_text(Path("Wan-AI/Wan2.2-TI2V-5B-Diffusers"))


# --- what does not fit ---


@pytest.mark.parametrize("absent", [None, "text_encoder", "tokenizer"])
def test_what_is_absent_is_named_with_the_hub_and_its_folders(absent: str | None, copy: Path) -> None:
    shutil.rmtree(copy / absent if absent else copy)
    with pytest.raises(UsageError) as raised:
        encode_text(copy)
    said = str(raised.value)
    assert {"tokenizer": "no tokenizer"}.get(absent or "", "no text encoder") in said
    for word in ("Wan-AI/Wan2.2-TI2V-5B-Diffusers", "text_encoder/", "tokenizer/", "google/umt5-xxl/", "nothing"):
        assert word in said


def test_a_missing_tensor_is_named_and_not_filled_with_random_numbers(copy: Path) -> None:
    file = copy / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    name = "encoder.block.1.layer.0.SelfAttention.q.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, file, {"format": "pt"})
    with pytest.raises(DataError, match=name):
        encode_text(copy)


def test_damaged_files_are_named(copy: Path, encoder: Any, tmp_path: Path) -> None:
    file = copy / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="text_encoder"):
        encode_text(copy)
    (tmp_path / "original").mkdir()
    original = _write_original(tmp_path / "original", encoder)
    (original / "models_t5_umt5-xxl-enc-bf16.pth").write_bytes(b"no tensors")
    with pytest.raises(DataError, match="original"):
        encode_text(original)
    torch.save({"token_embedding.weight": Path("x")}, original / "models_t5_umt5-xxl-enc-bf16.pth")
    with pytest.raises(
        DataError, match=r"^[^\n]*original/\S+: expected a file of tensors, found [^\n]*Fetch it again\.$"
    ):
        encode_text(original)


def test_a_tokenizer_of_another_encoder_is_refused(copy: Path) -> None:
    _write_tokenizer(copy / "tokenizer", [f"▁{letter}" for letter in "abcdefghijkl"])
    encode_text(copy, "a")
    with pytest.raises(DataError, match="token 14, found one of 12"):
        encode_text(copy, "l")


def test_a_tokenizer_that_does_not_end_a_text_is_refused(copy: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "robot": 3}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="</s>").save_pretrained(copy / "tokenizer")
    with pytest.raises(DataError, match="ends a text with </s>"):
        encode_text(copy, "robot")


def test_a_long_prompt_is_refused_and_not_cut(weights: Path) -> None:
    with pytest.raises(UsageError, match="513 tokens; Wan reads 512"):
        encode_text(weights, "a " * 512)


# --- keep ---


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    rows, path = torch.randn(3, WIDTH), tmp_path / "text.safetensors"
    save_text(path, rows, PROMPT, {"encoder": "abc", "dtype": "bfloat16"})
    assert torch.equal(load_text(path), rows)
    with safe_open(path, framework="pt") as opened:
        about = json.loads(opened.metadata()["about"])
    assert about == {"prompt": PROMPT, "encoder": "abc", "dtype": "bfloat16"}
    before = path.read_bytes()
    for _ in range(5):
        save_text(path, rows, PROMPT, {"dtype": "bfloat16", "encoder": "abc"})
        assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_holds_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.safetensors"
    with pytest.raises(DataError, match="worldline text"):
        load_text(path)
    path.write_bytes(b"no tensors at all")
    with pytest.raises(DataError, match="worldline text"):
        load_text(path)
    for tensors in ({"other": torch.zeros(1, 2)}, {"text": torch.zeros(2)}, {"text": torch.zeros(1, 2).half()}):
        save_file(tensors, path)
        with pytest.raises(DataError, match="worldline text"):
            load_text(path)


def test_the_fingerprint_follows_encoder_and_tokenizer(weights: Path, copy: Path) -> None:
    before = fingerprint_encoder(weights)
    assert fingerprint_encoder(copy) == before
    _write_tokenizer(copy / "tokenizer", [*WORDS, "▁more"])
    changed = fingerprint_encoder(copy)
    file = copy / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert len({before, changed, fingerprint_encoder(copy)}) == 3


# --- the verb ---


def _worldline(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the verb sets it; this puts it back
    monkeypatch.setattr(sys, "argv", ["worldline", *map(str, arguments)])
    try:
        entry.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_verb_writes_the_rows_and_says_so_in_one_object(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "text.safetensors"
    assert _worldline(monkeypatch, "text", weights, "--prompt", PROMPT, "--out", out, "--json") == 0
    shown = capsys.readouterr()
    identity = fingerprint_encoder(weights)
    expected = {"text": str(out), "prompt": PROMPT, "rows": 4, "width": WIDTH, "encoder": identity}
    assert json.loads(shown.out) == expected
    assert "text encoder" in shown.err
    assert torch.equal(load_text(out), encode_text(weights, PROMPT))
    with safe_open(out, framework="pt") as opened:
        assert json.loads(opened.metadata()["about"]) == {"prompt": PROMPT, "encoder": identity, "dtype": "bfloat16"}


def test_the_verb_ends_with_2_where_there_is_no_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _worldline(monkeypatch, "text", tmp_path / "absent", "--out", tmp_path / "text.safetensors") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Wan-AI/Wan2.2-TI2V-5B-Diffusers" in shown.err
    assert not (tmp_path / "text.safetensors").exists()
