"""The files of the pretrained backbone: both published layouts load exactly, and what does not fit is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldline.schema import DataError, UsageError
from worldline.worlds.wan_weights import (
    BackboneConfig,
    backbone_files,
    diffusers_names,
    fingerprint_backbone,
    load_backbone,
)

TINY = BackboneConfig(
    num_attention_heads=2,
    attention_head_dim=24,
    in_channels=4,
    out_channels=4,
    text_dim=16,
    freq_dim=16,
    ffn_dim=32,
    num_layers=2,
    rope_max_seq_len=32,
)
CONFIG = {"_class_name": "WanModel", "dim": 48, "num_heads": 2, "num_layers": 2, "eps": 1e-6, "text_len": 512}
STEM = "diffusion_pytorch_model"


def _original_names(layers: int) -> list[str]:
    """Every tensor of the original files, written out after the published model's modules."""
    outside = ["patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2"]
    names = [f"{module}.{kind}" for module in [*outside, "time_projection.1"] for kind in ("weight", "bias")]
    for i in range(layers):
        for attention in ("self_attn", "cross_attn"):
            names += [f"blocks.{i}.{attention}.{x}.{kind}" for x in "qkvo" for kind in ("weight", "bias")]
            names += [f"blocks.{i}.{attention}.norm_{x}.weight" for x in "qk"]
        names += [
            f"blocks.{i}.{module}.{kind}" for module in ("norm3", "ffn.0", "ffn.2") for kind in ("weight", "bias")
        ]
        names.append(f"blocks.{i}.modulation")
    return [*names, "head.head.weight", "head.head.bias", "head.modulation"]


def _to_original(name: str) -> str:
    """The rule backwards, by plain replacement."""
    if name == "scale_shift_table":
        return "head.modulation"
    for ours, theirs in (
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("proj_out", "head.head"),
        ("scale_shift_table", "modulation"),
        ("attn1", "self_attn"),
        ("attn2", "cross_attn"),
        ("to_out.0", "o"),
        ("to_", ""),
        ("norm2", "norm3"),
        ("net.0.proj", "0"),
        ("net.2", "2"),
    ):
        name = name.replace(ours, theirs)
    return name


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Random weights of the tiny backbone, none of them at its initial value."""
    generator = torch.Generator().manual_seed(0)
    state = TINY.build().state_dict()
    return {name: torch.randn(value.shape, generator=generator) * 0.2 for name, value in state.items()}


@pytest.fixture(scope="module")
def folder(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder, written by diffusers."""
    folder = tmp_path_factory.mktemp("diffusers")
    model = TINY.build()
    model.load_state_dict(weights)
    model.save_pretrained(folder / "transformer")
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def _write_original(folder: Path, weights: dict[str, Tensor], *, shards: int = 1, prefix: str = "") -> Path:
    folder.mkdir()
    renamed = {prefix + _to_original(name): value for name, value in weights.items()}
    names = sorted(renamed)
    index = {}
    for i in range(shards):
        file = f"{STEM}-{i + 1:05}-of-{shards:05}.safetensors"
        index |= dict.fromkeys(names[i::shards], file)
        save_file({name: renamed[name] for name in names[i::shards]}, folder / file)
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def _loads_exactly(path: Path, weights: dict[str, Tensor]) -> None:
    found = load_backbone(path, TINY, dtype=torch.float32).state_dict()
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(found[name], value), name


# --- sizes ---


def test_the_defaults_are_the_published_model() -> None:
    with torch.device("meta"):
        model = BackboneConfig().build(torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_999_787_712
    assert {sum(p.numel() for p in block.parameters()) for block in model.blocks} == {163_656_704}
    assert BackboneConfig().width == 3072
    original = {name: torch.empty(2, 1, 1, 1, device="meta") for name in _original_names(30)}
    assert sorted(diffusers_names(original)) == sorted(model.state_dict())


def test_names_of_diffusers_stay_as_they_are() -> None:
    with torch.device("meta"):
        state = TINY.build().state_dict()
    assert list(diffusers_names(state)) == list(state)
    assert sorted(_original_names(2)) == sorted(_to_original(name) for name in state)


# --- both layouts ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_diffusers_folder_loads_as_diffusers_loads_it(folder: Path, dtype: torch.dtype) -> None:
    from diffusers import WanTransformer3DModel

    ours = load_backbone(folder, TINY, dtype=dtype)
    theirs = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=dtype)
    for mine, reference in (
        (ours.state_dict(), theirs.state_dict()),
        *[[dict(m.named_buffers()) for m in (ours, theirs)]],
    ):
        assert mine.keys() == reference.keys()
        for name in mine:
            assert mine[name].dtype == reference[name].dtype, name
            assert torch.equal(mine[name], reference[name]), name
    assert not ours.training
    given = {
        "hidden_states": torch.randn(1, 4, 3, 4, 4).to(dtype),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 3, 16).to(dtype),
    }
    with torch.no_grad():
        # The files are mapped, not copied: sums may begin at other places of a cache line.
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(ours(**given).sample, theirs(**given).sample, rtol=tolerance, atol=tolerance)


def test_building_in_bfloat16_keeps_in_float32_what_loading_keeps(folder: Path) -> None:
    built, loaded = TINY.build(torch.bfloat16), load_backbone(folder, TINY)
    assert {n: p.dtype for n, p in built.named_parameters()} == {n: p.dtype for n, p in loaded.named_parameters()}
    assert {p.dtype for p in built.parameters()} == {torch.bfloat16, torch.float32}


def test_diffusers_shards_load_exactly(folder: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    load_backbone(folder, TINY).save_pretrained(tmp_path / "half" / "transformer", max_shard_size="20KB")
    assert len(backbone_files(tmp_path / "half")) > 2
    model = TINY.build()
    model.load_state_dict(weights)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    assert len(backbone_files(tmp_path / "sharded")) > 2
    _loads_exactly(tmp_path / "sharded", weights)
    _loads_exactly(folder / "transformer" / f"{STEM}.safetensors", weights)


@pytest.mark.parametrize(("shards", "prefix"), [(1, ""), (3, ""), (1, "model.diffusion_model.")])
def test_the_original_files_load_exactly(shards: int, prefix: str, weights: dict[str, Tensor], tmp_path: Path) -> None:
    original = _write_original(tmp_path / "original", weights, shards=shards, prefix=prefix)
    _loads_exactly(original, weights)
    (original / f"{STEM}.safetensors.index.json").unlink()
    (original / "config.json").unlink()
    _loads_exactly(original, weights)
    if shards == 1:
        _loads_exactly(backbone_files(original)[0], weights)


def test_a_loaded_backbone_can_be_trained(folder: Path) -> None:
    model = load_backbone(folder, TINY, dtype=torch.float32)
    inputs = torch.randn(1, 4, 1, 4, 4), torch.tensor([500.0]), torch.randn(1, 3, 16)
    model(*inputs).sample.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.slow
def test_the_published_size_is_checked_and_mapped_from_files_of_zeros(tmp_path: Path) -> None:
    with torch.device("meta"):
        state = BackboneConfig().build().state_dict()
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "dim": 3072, "num_heads": 24, "num_layers": 30}))
    _write_holes(tmp_path / f"{STEM}.safetensors", {_to_original(name): tuple(v.shape) for name, v in state.items()})
    model = load_backbone(tmp_path, BackboneConfig(), dtype=torch.float32)
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_999_787_712
    assert not any(value.is_meta for value in [*model.parameters(), *model.buffers()])
    assert len(fingerprint_backbone(tmp_path)) == 64


def _write_holes(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of float32 zeros that takes no room on disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.truncate(8 + len(text) + end)


# --- fingerprint ---


def test_the_fingerprint_is_of_the_weights_and_not_of_their_files(
    folder: Path, copy: Path, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    same = {fingerprint_backbone(path) for path in (folder, copy, folder / "transformer")}
    for shards in (1, 3):
        same.add(fingerprint_backbone(_write_original(tmp_path / f"original{shards}", weights, shards=shards)))
    assert len(same) == 1
    for name in ("blocks.1.attn2.to_out.0.bias", "patch_embedding.weight", "scale_shift_table"):
        changed = {**weights, name: weights[name].clone()}
        changed[name].view(-1)[-1] += 1
        same.add(fingerprint_backbone(_write_original(tmp_path / name, changed)))
    halves = {name: value.bfloat16() for name, value in weights.items()}
    same.add(fingerprint_backbone(_write_original(tmp_path / "halves", halves)))
    assert len(same) == 5


# --- what does not fit ---


def _edited(copy: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    file = copy / "transformer" / f"{STEM}.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: t.pop("blocks.1.attn1.to_q.weight"), r"1 missing, .*: blocks.1.attn1.to_q.weight \(there: None"),
        (lambda t: t.update({"robot.weight": torch.zeros(1)}), r"robot.weight \(there: \(1,\), needed: None\)"),
        (lambda t: t.update({"proj_out.bias": torch.zeros(3)}), r"proj_out.bias \(there: \(3,\), needed: \(16,\)\)"),
        (
            lambda t: t.update({"proj_out.bias": torch.zeros(16, dtype=torch.int8)}),
            r"proj_out.bias \(there: \(16,\) of torch.int8",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(edit: Callable[[dict[str, Tensor]], None], said: str, copy: Path) -> None:
    _edited(copy, edit)
    with pytest.raises(DataError, match=said):
        load_backbone(copy, TINY)


def test_tensors_of_the_original_files_that_do_not_fit_are_named(weights: dict[str, Tensor], tmp_path: Path) -> None:
    wrong = {**weights, "blocks.0.ffn.net.2.bias": torch.zeros(5)}
    with pytest.raises(DataError, match=r"original: .*blocks\.0\.ffn\.net\.2\.bias \(there: \(5,\), needed: \(48,\)\)"):
        load_backbone(_write_original(tmp_path / "original", wrong), TINY)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("num_attention_heads", 3, "expected num_attention_heads = 2, found num_attention_heads = 3"),
        ("patch_size", [1, 1, 1], r"expected patch_size = \(1, 2, 2\), found patch_size = \(1, 1, 1\)"),
        ("num_layers", 40, "expected num_layers = 2, found num_layers = 40"),
        ("qk_norm", None, "found qk_norm = None"),
        ("sink_tokens", 4, "expected no field sink_tokens, found sink_tokens = 4"),
        ("_class_name", "AutoencoderKLWan", "found 'AutoencoderKLWan'"),
    ],
)
def test_another_configuration_is_named_before_tensors_are_looked_at(
    field: str, value: object, said: str, copy: Path
) -> None:
    file = copy / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    (copy / "transformer" / f"{STEM}.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=said):
        load_backbone(copy, TINY)


def test_a_field_that_is_absent_has_the_default_of_diffusers(copy: Path) -> None:
    file = copy / "transformer" / "config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in content.items() if k not in ("eps", "pos_embed_seq_len")}))
    load_backbone(copy, TINY)
    file.write_text(json.dumps({k: v for k, v in content.items() if k != "ffn_dim"}))
    with pytest.raises(DataError, match="expected ffn_dim = 32, found ffn_dim = 13824"):
        load_backbone(copy, TINY)


def test_another_original_model_is_named(weights: dict[str, Tensor], tmp_path: Path) -> None:
    original = _write_original(tmp_path / "original", weights)
    (original / "config.json").write_text(json.dumps({**CONFIG, "num_heads": 4}))
    with pytest.raises(DataError, match="expected num_attention_heads = 2, found num_attention_heads = 4"):
        load_backbone(original, TINY)


def test_shapes_are_compared_before_values_are_read(tmp_path: Path) -> None:
    """A file of 2 GB is mapped and refused by its header alone."""
    _write_holes(tmp_path / "huge.safetensors", {"head.modulation": (1, 2, 250_000_000)})
    with pytest.raises(DataError, match=r"missing, surplus or of another shape"):
        load_backbone(tmp_path / "huge.safetensors", TINY)


def test_damaged_files_are_named(copy: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    file = copy / "transformer" / f"{STEM}.safetensors"
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(size - 100)
    with pytest.raises(DataError, match=rf"{STEM}\.safetensors: expected a file of tensors, found .*not fully covered"):
        load_backbone(copy, TINY)
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match="found a Git LFS pointer"):
        fingerprint_backbone(copy)
    original = _write_original(tmp_path / "original", weights, shards=3)
    (original / f"{STEM}-00002-of-00003.safetensors").unlink()
    with pytest.raises(DataError, match=r"00002-of-00003\.safetensors: expected shards"):
        load_backbone(original, TINY)


def test_two_downloads_in_one_folder_are_refused(copy: Path) -> None:
    file = copy / "transformer" / f"{STEM}.safetensors"
    shutil.copy(file, file.with_name(f"{STEM}.fp16.safetensors"))
    with pytest.raises(DataError, match="once"):
        load_backbone(copy, TINY)


@pytest.mark.parametrize("name", ["absent", "empty", "other.pth"])
def test_nothing_there_says_what_to_bring(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.pth").touch()
    with pytest.raises(UsageError) as raised:
        load_backbone(tmp_path / name, TINY)
    said = str(raised.value)
    for word in ("Wan-AI/Wan2.2-TI2V-5B-Diffusers", "Wan-AI/Wan2.2-TI2V-5B ", "transformer/config.json", "nothing"):
        assert word in said
