"""Frames to continuous latents and back: strides, causality, statistics, training, published files."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import moving_square, noise_frames, randomise, small_tokenizer
from safetensors.torch import load_file, save_file
from tolerances import assert_pixels_agree, assert_values_agree
from torch import Tensor

from worldline.families.card import ModelCard
from worldline.families.family import KINDS
from worldline.families.tokenizers import fingerprint, keep_tokenizer, load_tokenizer
from worldline.files import read_json
from worldline.planning.meter import follow
from worldline.rundir import RunDir, write_model
from worldline.schema import Batch, DataError, LatentGrid, Origin, UsageError
from worldline.tokenizers import tokenizer as tokenizers
from worldline.tokenizers.tokenizer import BlockTokenizer, Tokenizer, to_signed
from worldline.tokenizers.wan_vae import (
    ORIGINAL_NAME,
    WanVAEConfig,
    WanVAESizes,
    WanVAETokenizer,
    diffusers_name,
    load_tensors,
)

pytest.importorskip("diffusers", reason="needs the extra `wan`")

SIZES = WanVAESizes(
    base_dim=4,
    decoder_base_dim=4,
    z_dim=3,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temporal_downsample=(True, True),
    latents_mean=(0.5, -1.0, 0.0),
    latents_std=(2.0, 0.5, 1.0),
)
SMALL = WanVAEConfig(sizes=SIZES)
"""Stride 8 in space, 4 in time."""
SEEING = replace(SMALL, decoder_sees=True)
UNMEASURED = WanVAEConfig(sizes=replace(SIZES, latents_mean=(), latents_std=()))
WAN21 = WanVAEConfig(
    sizes=replace(
        SIZES, is_residual=False, patch_size=1, temporal_downsample=(True, True, False), dim_mult=(1, 2, 2, 2)
    )
)


def vae(config: WanVAEConfig = SMALL, seed: int = 0) -> WanVAETokenizer:
    tokenizer = config.build()
    randomise(tokenizer, seed, std=0.2)
    return tokenizer.eval()


def batch(frames: Tensor) -> Batch:
    count = frames.shape[0]
    origins = (Origin(source="drawn", episode=0, start=0),) * count
    return Batch(frames=frames, states=torch.zeros(count, frames.shape[1], 1), fps=30.0, origins=origins)


def squares(clips: int, frames: int) -> Tensor:
    drawn = [torch.from_numpy(moving_square(frames, seed=seed)[0]) for seed in range(clips)]
    return torch.stack(drawn).permute(0, 1, 4, 2, 3).contiguous()


# --- shapes and pixels ---


@pytest.mark.parametrize("config", [SMALL, WAN21])
@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (5, 2), (21, 6)])
def test_four_frames_to_a_latent_after_the_first(config: WanVAEConfig, frames: int, latents: int) -> None:
    tokenizer, video = vae(config), noise_frames(2, frames, 3, 16, 24)
    assert tokenizer.grid(16, 24) == LatentGrid(channels=3, height=2, width=3, temporal_stride=4)
    encoded = tokenizer.encode(video)
    assert encoded.shape == (2, latents, 3, 2, 3)
    assert encoded.dtype == torch.float32
    decoded = tokenizer.decode(encoded)
    assert decoded.shape == video.shape
    assert decoded.dtype == torch.uint8


def test_it_is_a_latent_tokenizer_and_no_discrete_one() -> None:
    assert isinstance(vae(), Tokenizer)
    assert not hasattr(vae(), "vocab_size")
    assert not isinstance(vae(), BlockTokenizer)


@pytest.mark.parametrize("frames", [2, 4, 6, 20])
def test_lengths_off_the_grid_are_refused_not_cut(frames: int) -> None:
    with pytest.raises(UsageError, match=f"{frames} frames.*1 \\+ k \\* 4"):
        vae().encode(noise_frames(1, frames, 3, 16, 16))
    with pytest.raises(UsageError, match=f"{frames} frames"):
        vae().loss(batch(noise_frames(1, frames, 3, 16, 16)), torch.Generator())


def test_sizes_off_the_stride_are_refused() -> None:
    with pytest.raises(UsageError, match=r"20x16.*stride 8"):
        vae().encode(noise_frames(1, 5, 3, 20, 16))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"temporal_downsample": (True,)},
            r"temporal_downsample is \(True,\), but must be one entry fewer than dim_mult",
        ),
        ({"temporal_downsample": (True, False)}, "chunks of 4 frames"),
        ({"latents_mean": (0.0,)}, r"latents_mean is \(0\.0,\), but must be 3 numbers"),
        ({"z_dim": 4}, "latents_mean is .*, but must be 4 numbers"),
        ({"dim_mult": (1, 2, 4)}, "is_residual needs matching dim_mult"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        WanVAEConfig(sizes=replace(SIZES, **changes)).build()


# --- latents ---


def test_latents_are_the_normalised_posterior_mean() -> None:
    tokenizer, video = vae(), noise_frames(1, 9, 3, 16, 16)
    posterior = tokenizer.vae.encode(to_signed(video)).latent_dist
    mean, std = (torch.tensor(numbers).view(3, 1, 1, 1) for numbers in (SIZES.latents_mean, SIZES.latents_std))
    expected = ((posterior.mean - mean) / std).transpose(1, 2)
    assert_values_agree(tokenizer.encode(video), expected)
    assert posterior.std.min() > 0.01, "a sample would differ"
    decoded = tokenizer.vae.decode(expected.transpose(1, 2) * std + mean).sample
    torch.testing.assert_close(tokenizer.video_of(expected), decoded)


@pytest.mark.parametrize("config", [SMALL, WAN21])
def test_a_context_alone_gives_the_latents_and_frames_of_the_whole_up_to_rounding(config: WanVAEConfig) -> None:
    tokenizer, video = vae(config), noise_frames(1, 21, 3, 16, 16)
    whole = tokenizer.encode(video)
    assert_values_agree(tokenizer.encode(video[:, :5]), whole[:, :2])
    assert_pixels_agree(tokenizer.decode(whole[:, :2]), tokenizer.decode(whole)[:, :5])


@pytest.mark.parametrize("frame", [0, 1, 4, 5, 8])
def test_a_frame_changes_its_latent_and_none_before(frame: int) -> None:
    tokenizer, video = vae(), noise_frames(1, 9, 3, 16, 16)
    changed = video.clone()
    changed[:, frame] = noise_frames(1, 3, 16, 16, seed=1)
    before, after, owner = tokenizer.encode(video), tokenizer.encode(changed), -(-frame // 4)
    assert torch.equal(before[:, :owner], after[:, :owner])
    assert not torch.equal(before[:, owner], after[:, owner])


def test_both_ways_have_gradients() -> None:
    tokenizer = vae()
    video = (to_signed(noise_frames(1, 5, 3, 16, 16)) / 10).requires_grad_()
    latents = tokenizer.latents_of(video)
    tokenizer.video_of(latents).square().mean().backward()
    assert video.grad is not None
    assert video.grad.abs().amax(dim=(0, 1, 3, 4)).min() > 0, "every frame"


def test_pieces_change_rounding_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, video = vae(), noise_frames(5, 5, 3, 16, 16)
    latents, sizes = tokenizer.encode(video), []
    frames = tokenizer.decode(latents)
    monkeypatch.setattr(tokenizers, "PIECE", 2 * 5 * 16 * 16 + 1)
    tokenizer.vae.post_quant_conv.register_forward_hook(lambda module, given, out: sizes.append(len(given[0])))
    assert_values_agree(tokenizer.encode(video), latents)
    assert (tokenizer.decode(latents).int() - frames.int()).abs().max() <= 1
    assert sizes == [2, 2, 1]
    monkeypatch.setattr(tokenizers, "PIECE", 1)
    assert_values_agree(tokenizer.encode(video), latents)


@pytest.mark.slow
def test_at_full_size_many_clips_take_the_memory_of_one() -> None:
    """Wan2.2's VAE at 512x512: 32 clips decoded together would take 183 GB."""
    with torch.device("meta"):
        tokenizer = WanVAEConfig().build().to("meta").eval().requires_grad_(False)
    weights = [*tokenizer.parameters(), *tokenizer.buffers()]
    latents = torch.empty(2, 6, 48, 32, 32, device="meta")
    frames = torch.empty(2, 5, 3, 512, 512, dtype=torch.uint8, device="meta")
    decoding = follow(lambda: tokenizer.decode(latents), weights, autocast=False, backward=False)
    encoding = follow(lambda: tokenizer.encode(frames), weights, autocast=False, backward=False)
    assert decoding.peak < 6e9
    assert encoding.peak < 2.2e9
    assert decoding.forward_flop == pytest.approx(2 * 102.4e12, rel=0.01), "both clips are decoded"


# --- statistics ---


def test_measured_statistics_are_exact_and_make_latents_standard() -> None:
    tokenizer = vae().train()
    clips = [noise_frames(count, 9, 3, 16, 16, seed=count) // count for count in (1, 3, 2)]
    raw = torch.cat([tokenizer.vae.encode(to_signed(clip)).latent_dist.mean for clip in clips]).detach().double()
    tokenizer.measure_statistics(batch(clip) for clip in clips)
    assert tokenizer.training
    values = raw.transpose(0, 1).flatten(1)
    torch.testing.assert_close(tokenizer.latents_mean, values.mean(dim=1).float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tokenizer.latents_std, values.std(dim=1, correction=0).float(), rtol=1e-5, atol=1e-6)
    latents = torch.cat([tokenizer.encode(clip) for clip in clips]).transpose(1, 2).transpose(0, 1).flatten(1)
    torch.testing.assert_close(latents.mean(dim=1), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(latents.std(dim=1, correction=0), torch.ones(3), rtol=0, atol=1e-4)


def test_measured_statistics_are_saved_with_the_weights(tmp_path: Path) -> None:
    tokenizer, video = vae(UNMEASURED), noise_frames(1, 5, 3, 16, 16)
    assert tokenizer.latents_mean.tolist() == [0, 0, 0]
    assert tokenizer.latents_std.tolist() == [1, 1, 1]
    tokenizer.measure_statistics([batch(video)])
    write_model(tmp_path, ModelCard(config=tokenizer.config).to_json(), tokenizer.state_dict())
    loaded = load_tokenizer(tmp_path)
    assert loaded.config == tokenizer.config
    assert not loaded.training
    assert torch.equal(loaded.encode(video), tokenizer.encode(video))


def test_a_training_that_was_stopped_left_latents_unmeasured_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, tokenizer in {"stopped": vae(UNMEASURED), "whole": vae(UNMEASURED)}.items():
        if name == "whole":
            tokenizer.measure_statistics([batch(noise_frames(1, 5, 3, 16, 16))])
        (tmp_path / name).mkdir()
        write_model(tmp_path / name, ModelCard(config=tokenizer.config).to_json(), tokenizer.state_dict())
        load_tokenizer(tmp_path / name)
    (said,) = caplog.messages
    assert said.startswith(f"{tmp_path / 'stopped'} lacks mean and deviation of its latents")


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(UsageError, match="there are none"):
        vae().measure_statistics([])


# --- training ---


def test_training_reconstructs_squares() -> None:
    torch.manual_seed(0)
    sizes = replace(UNMEASURED.sizes, base_dim=8, decoder_base_dim=8)
    tokenizer = WanVAEConfig(sizes=sizes).build().train()
    clips = batch(squares(1, 5))
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=5e-3)
    generator, before = torch.Generator().manual_seed(0), 0.0
    for _ in range(25):
        loss, figures = tokenizer.loss(clips, generator)
        before = before or figures["psnr_db"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    error = tokenizer.eval().decode(tokenizer.encode(clips.frames)).float() - clips.frames.float()
    after = 10 * torch.log10(255**2 / error.square().mean()).item()
    assert after > before + 5
    assert tokenizer.loss(clips, generator)[1]["psnr_db"] == pytest.approx(after, abs=0.3), "but for clamp and rounding"


@pytest.mark.parametrize("config", [SMALL, WAN21])
def test_training_passes_equal_diffusers_own(config: WanVAEConfig) -> None:
    tokenizer, frames = vae(replace(config, l1_weight=0.0, kl_weight=0.0)), noise_frames(2, 13, 3, 16, 16)
    with torch.no_grad():
        tokenizer.vae.decoder.conv_out.weight.mul_(0.1)
    own = tokenizer.vae(to_signed(frames)).sample
    loss, figures = tokenizer.loss(batch(frames), torch.Generator())
    assert own.abs().max() < 1, "the clamp does not bite"
    expected = (own - to_signed(frames)).square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert figures["psnr_db"] == pytest.approx(10 * torch.log10(4 / expected).item(), abs=1e-3)


def test_divergence_has_its_known_values() -> None:
    tokenizer, clips = vae(), batch(noise_frames(1, 5, 3, 16, 16))
    with torch.no_grad():
        tokenizer.vae.quant_conv.weight.zero_()
        tokenizer.vae.quant_conv.bias.zero_()
    assert tokenizer.loss(clips, torch.Generator())[1]["kl"] == 0
    with torch.no_grad():
        tokenizer.vae.quant_conv.bias[:3] = 1  # mean 1: half a nat
    assert tokenizer.loss(clips, torch.Generator())[1]["kl"] == pytest.approx(0.5)
    with torch.no_grad():
        tokenizer.vae.quant_conv.bias[3:] = 1  # and log-variance 1
    assert tokenizer.loss(clips, torch.Generator())[1]["kl"] == pytest.approx(0.5 + 0.5 * (torch.e - 2))


def test_training_samples_and_evaluation_does_not() -> None:
    tokenizer, clips = vae(), batch(noise_frames(1, 9, 3, 16, 16))

    def loss(seed: int) -> float:
        return tokenizer.loss(clips, torch.Generator().manual_seed(seed))[0].item()

    assert loss(0) == loss(1)
    tokenizer.train()
    assert loss(0) == loss(0) != loss(1)


def test_every_parameter_learns() -> None:
    tokenizer = vae().train()
    tokenizer.loss(batch(noise_frames(1, 13, 3, 16, 16)), torch.Generator().manual_seed(0))[0].backward()
    still = [name for name, value in tokenizer.named_parameters() if value.grad is None or not value.grad.any()]
    assert still == []


# --- a decoder that sees a frame of the clip ---


def test_a_vae_that_sees_begins_by_changing_nothing() -> None:
    plain, seeing = vae(), SEEING.build().eval()
    seeing.load_state_dict(plain.state_dict(), strict=False)
    frames = noise_frames(2, 13, 3, 16, 16)
    latents = plain.encode(frames)
    assert torch.equal(seeing.decode(latents, frames[:, 4]), plain.decode(latents))


def test_what_latents_lose_and_what_stays_is_taken_from_a_frame_that_was_seen() -> None:
    """In training any frame of the clip is shown, so that the last context frame is as good as the first."""
    torch.manual_seed(0)
    tokenizer = replace(SEEING, keep_latents=True).build().train()
    optimizer = torch.optim.AdamW(tokenizer.retouch.parameters(), lr=3e-3)
    for step in range(60):
        still = batch(noise_frames(2, 1, 3, 16, 16, seed=step).expand(-1, 9, -1, -1, -1))
        loss, _ = tokenizer.loss(still, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    new = noise_frames(2, 1, 3, 16, 16, seed=99).expand(-1, 9, -1, -1, -1)
    latents = tokenizer.eval().encode(new)
    seen, unseen = tokenizer.decode(latents, new[:, 4]), tokenizer.decode(latents)
    assert (seen.float() - new).abs().mean() < 0.5 * (unseen.float() - new).abs().mean()


def test_clips_are_decoded_a_few_at_a_time_each_with_its_own_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, frames = vae(SEEING), noise_frames(3, 9, 3, 16, 16)
    latents = tokenizer.encode(frames)
    whole = tokenizer.decode(latents, frames[:, 2])
    assert not torch.equal(whole, tokenizer.decode(latents, frames[:, 3]))
    monkeypatch.setattr(tokenizers, "PIECE", 2 * 9 * 16 * 16)
    assert_pixels_agree(tokenizer.decode(latents, frames[:, 2]), whole)


def test_training_needs_frames() -> None:
    empty = Batch(states=torch.zeros(1, 5, 1), fps=30.0, origins=(Origin(source="drawn", episode=0, start=0),))
    with pytest.raises(UsageError, match="trains on frames"):
        vae().loss(empty, torch.Generator())


# --- Wan2.2's own size and files ---


def test_defaults_are_wan22() -> None:
    with torch.device("meta"):
        tokenizer = WanVAEConfig().build()
    assert sum(value.numel() for value in tokenizer.vae.parameters()) == 704_688_668
    assert tokenizer.grid(512, 512) == LatentGrid(channels=48, height=32, width=32, temporal_stride=4)
    assert tokenizer.latents_mean[[0, 19, 47]].tolist() == pytest.approx([-0.2289, 0.5109, -0.0667])
    assert tokenizer.latents_std[[0, 39, 47]].tolist() == pytest.approx([0.4765, 1.6887, 0.7744])


def original_name(name: str, num_res_blocks: int = 2) -> str:
    """The key of the original file, from diffusers' name: written down apart from the code under test."""
    name = re.sub(r"^quant_conv", "conv1", re.sub(r"^post_quant_conv", "conv2", name))
    for side, blocks, last in (("encoder", "down", num_res_blocks), ("decoder", "up", num_res_blocks + 1)):
        inner = f"{blocks}samples"
        name = re.sub(rf"^{side}\.{blocks}_blocks\.(\d)\.resnets\.", rf"{side}.{inner}.\1.{inner}.", name)
        name = re.sub(
            rf"^{side}\.{blocks}_blocks\.(\d)\.{blocks}sampler\.", rf"{side}.{inner}.\1.{inner}.{last}.", name
        )
    name = name.replace("mid_block.resnets.0", "middle.0").replace("mid_block.attentions.0", "middle.1")
    name = name.replace("mid_block.resnets.1", "middle.2")
    for ours, theirs in (("norm1", "0"), ("conv1", "2"), ("norm2", "3"), ("conv2", "6")):
        name = re.sub(rf"(s\.\d|middle\.\d)\.{ours}\.", rf"\1.residual.{theirs}.", name)
    name = name.replace("conv_shortcut", "shortcut").replace("coder.conv_in", "coder.conv1")
    return name.replace("norm_out", "head.0").replace("conv_out", "head.2")


def test_the_original_file_converts_at_full_size() -> None:
    with torch.device("meta"):
        model = WanVAEConfig().build().vae
    expected = model.state_dict()
    originals = {original_name(name): value for name, value in expected.items()}
    assert len(originals) == len(expected)
    assert not originals.keys() & expected.keys()
    converted = {diffusers_name(key): value for key, value in originals.items()}
    assert model.load_state_dict(converted, strict=True, assign=True)
    assert {diffusers_name(name) for name in expected} == expected.keys(), "diffusers' own names stay"


@pytest.mark.parametrize(
    ("original", "ours"),
    [
        ("conv1.weight", "quant_conv.weight"),
        ("conv2.bias", "post_quant_conv.bias"),
        ("encoder.conv1.weight", "encoder.conv_in.weight"),
        ("encoder.downsamples.0.downsamples.0.residual.0.gamma", "encoder.down_blocks.0.resnets.0.norm1.gamma"),
        ("encoder.downsamples.1.downsamples.0.shortcut.weight", "encoder.down_blocks.1.resnets.0.conv_shortcut.weight"),
        ("encoder.downsamples.1.downsamples.2.time_conv.bias", "encoder.down_blocks.1.downsampler.time_conv.bias"),
        (
            "encoder.downsamples.2.downsamples.2.resample.1.weight",
            "encoder.down_blocks.2.downsampler.resample.1.weight",
        ),
        ("encoder.downsamples.3.downsamples.1.residual.6.bias", "encoder.down_blocks.3.resnets.1.conv2.bias"),
        ("encoder.middle.0.residual.2.weight", "encoder.mid_block.resnets.0.conv1.weight"),
        ("encoder.middle.1.to_qkv.weight", "encoder.mid_block.attentions.0.to_qkv.weight"),
        ("encoder.middle.2.residual.3.gamma", "encoder.mid_block.resnets.1.norm2.gamma"),
        ("encoder.head.0.gamma", "encoder.norm_out.gamma"),
        ("decoder.middle.1.norm.gamma", "decoder.mid_block.attentions.0.norm.gamma"),
        ("decoder.upsamples.0.upsamples.2.residual.2.weight", "decoder.up_blocks.0.resnets.2.conv1.weight"),
        ("decoder.upsamples.0.upsamples.3.time_conv.weight", "decoder.up_blocks.0.upsampler.time_conv.weight"),
        ("decoder.upsamples.2.upsamples.3.resample.1.bias", "decoder.up_blocks.2.upsampler.resample.1.bias"),
        ("decoder.head.2.weight", "decoder.conv_out.weight"),
    ],
)
def test_original_keys(original: str, ours: str) -> None:
    assert diffusers_name(original) == ours


def small_original(tokenizer: WanVAETokenizer, file: Path, **changes: Tensor | None) -> Path:
    tensors = {original_name(name, 1): value for name, value in tokenizer.vae.state_dict().items()}
    for key, value in changes.items():
        tensors.pop(key, None)
        if value is not None:
            tensors[key] = value
    torch.save(tensors, file)
    return file


def test_the_original_file_is_read_exactly(tmp_path: Path) -> None:
    tokenizer, other, video = vae(), vae(seed=1), noise_frames(1, 5, 3, 16, 16)
    file = small_original(tokenizer, tmp_path / ORIGINAL_NAME)
    other.vae.load_state_dict(load_tensors([file], other.vae.state_dict()))
    assert torch.equal(other.encode(video), tokenizer.encode(video))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder.head.2.weight": None}, r"1 missing, .*: decoder.conv_out.weight \(there: None"),
        ({"decoder.head.2.bias": torch.zeros(5)}, r"decoder.conv_out.bias \(there: \(5,\), needed: \(12,\)\)"),
        ({"decoder.extra": torch.zeros(5)}, r"decoder.extra \(there: \(5,\), needed: None\)"),
    ],
)
def test_other_weights_are_named_by_their_first_key(tmp_path: Path, changes: dict[str, Tensor], message: str) -> None:
    tokenizer = vae()
    file = small_original(tokenizer, tmp_path / ORIGINAL_NAME, **changes)
    with pytest.raises(DataError, match=message):
        load_tensors([file], tokenizer.vae.state_dict())


def test_a_single_file_is_taken_for_wan22(tmp_path: Path) -> None:
    file = small_original(vae(), tmp_path / ORIGINAL_NAME)
    for path in (file, tmp_path):
        with pytest.raises(DataError, match=r"197 missing.*conv_in.bias \(there: \(8,\), needed: \(1024,\)\)"):
            load_tokenizer(path)
    file.write_bytes(b"half a download")
    with pytest.raises(DataError, match=r"torch\.save"):
        load_tokenizer(file)


@pytest.fixture(params=["5GB", "20KB"], ids=["one file", "shards"])
def download(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, WanVAETokenizer]:
    """A folder as diffusers writes it, beside nothing else, and what it holds."""
    tokenizer = vae()
    tokenizer.vae.save_pretrained(tmp_path / "wan" / "vae", max_shard_size=request.param)
    return tmp_path / "wan", tokenizer


def test_a_folder_of_diffusers_is_read_with_its_configuration(download: tuple[Path, WanVAETokenizer]) -> None:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    folder, tokenizer = download
    video = noise_frames(1, 5, 3, 16, 16)
    theirs = AutoencoderKLWan.from_pretrained(folder / "vae").encode(to_signed(video)).latent_dist.mode()
    mean, std = (torch.tensor(numbers).view(3, 1, 1, 1) for numbers in (SIZES.latents_mean, SIZES.latents_std))
    for path in (folder, folder / "vae"):
        loaded = load_tokenizer(path)
        assert loaded.config == SMALL
        assert_values_agree(loaded.encode(video), ((theirs - mean) / std).transpose(1, 2))
        assert_values_agree(loaded.encode(video), tokenizer.encode(video))
        assert not loaded.training
    assert fingerprint(folder) == fingerprint(folder / "vae")
    with pytest.raises(UsageError, match="makes latents"):
        load_tokenizer(folder, "tokens")


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8], ids=str)
def test_quantised_weights_are_refused_and_not_widened(
    download: tuple[Path, WanVAETokenizer], tmp_path: Path, kind: torch.dtype
) -> None:
    folder, tokenizer = download
    for file in (folder / "vae").glob("*.safetensors"):
        save_file({name: value.to(kind) for name, value in load_file(file).items()}, file)
    with pytest.raises(DataError, match=rf"another shape: \S+ \(there: .* of {kind}, needed: "):
        load_tokenizer(folder)
    tensors = {original_name(name, 1): value.to(kind) for name, value in tokenizer.vae.state_dict().items()}
    torch.save(tensors, tmp_path / ORIGINAL_NAME)
    with pytest.raises(DataError, match=rf"another shape: \S+ \(there: .* of {kind}, needed: "):
        load_tensors([tmp_path / ORIGINAL_NAME], tokenizer.vae.state_dict())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_weights_are_taken_and_it_is_said(
    download: tuple[Path, WanVAETokenizer], kind: torch.dtype
) -> None:
    folder, tokenizer = download
    for file in (folder / "vae").glob("*.safetensors"):
        save_file({name: value.to(kind) for name, value in load_file(file).items()}, file)
    with pytest.warns(UserWarning, match=r"weights are stored as torch\.b?float16"):
        loaded = load_tokenizer(folder)
    expected = tokenizer.vae.state_dict()["encoder.conv_in.weight"].to(kind).float()
    assert torch.equal(loaded.vae.state_dict()["encoder.conv_in.weight"], expected)


def test_what_a_configuration_leaves_out_is_as_diffusers_has_it(tmp_path: Path) -> None:
    """The published folder of Wan2.1 says nothing of what came with Wan2.2."""
    tokenizer, video = vae(WAN21), noise_frames(1, 5, 3, 16, 16)
    tokenizer.vae.save_pretrained(tmp_path / "vae")
    file = tmp_path / "vae" / "config.json"
    later = ("is_residual", "patch_size", "decoder_base_dim", "in_channels", "scale_factor_spatial")
    content = {name: value for name, value in json.loads(file.read_text()).items() if name not in later}
    file.write_text(json.dumps(content))
    loaded = load_tokenizer(tmp_path)
    assert loaded.sizes == WAN21.sizes
    assert_values_agree(loaded.encode(video), tokenizer.encode(video))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    vae().vae.save_pretrained(tmp_path / "vae", max_shard_size="20KB")
    shards = sorted((tmp_path / "vae").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    shards[-1].unlink()
    with pytest.raises(DataError, match=f"{shards[-1].name}: expected shards"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"AutoencoderKLWan"', '"AutoencoderKL"', "expected an AutoencoderKLWan"),
        ('"num_res_blocks": 1', '"num_res_blocks": 1, "novelty": true', "novelty"),
        ('"attn_scales": []', '"attn_scales": [1.0]', r"attn_scales = \[\], found \[1.0\]"),
        ('"scale_factor_spatial": 8', '"scale_factor_spatial": 16', "scale_factor_spatial = 8, found 16"),
    ],
)
def test_a_configuration_of_another_model_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    vae().vae.save_pretrained(tmp_path / "vae")
    config = tmp_path / "vae" / "config.json"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        load_tokenizer(tmp_path)


# --- loading by path ---


def test_each_loader_refuses_the_other_kind(tmp_path: Path) -> None:
    tokenizer, discrete = vae(), small_tokenizer()
    (tmp_path / "vae").mkdir()
    (tmp_path / "words").mkdir()
    write_model(tmp_path / "vae", ModelCard(config=tokenizer.config).to_json(), tokenizer.state_dict())
    write_model(tmp_path / "words", ModelCard(config=discrete.config).to_json(), discrete.state_dict())
    with pytest.raises(UsageError, match="makes latents; one that makes tokens is needed"):
        load_tokenizer(tmp_path / "vae", "tokens")
    with pytest.raises(UsageError, match="makes tokens; one that makes latents is needed"):
        load_tokenizer(tmp_path / "words", "latents")
    with pytest.raises(UsageError, match=ORIGINAL_NAME):
        load_tokenizer(tmp_path / "nothing")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tokenizer = vae()
    write_model(
        tmp_path, ModelCard(config=WanVAEConfig(sizes=replace(SIZES, base_dim=8))).to_json(), tokenizer.state_dict()
    )
    with pytest.raises(DataError, match=r"the weights of the model, found .* model\.json"):
        load_tokenizer(tmp_path)


def test_a_run_names_a_large_vae_instead_of_copying_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, tokenizer, run = tmp_path / "vae", vae(), RunDir(tmp_path / "run")
    place.mkdir()
    write_model(place, ModelCard(config=tokenizer.config).to_json(), tokenizer.state_dict())
    run.path.mkdir()
    monkeypatch.setattr(type(KINDS["wan-vae"]), "copied", 0)  # of any number of parameters
    keep_tokenizer(run, place, tokenizer)
    assert not load_file(run.tokenizer / "model.safetensors")
    video = noise_frames(1, 5, 3, 16, 16)
    assert torch.equal(load_tokenizer(run.tokenizer).encode(video), tokenizer.encode(video))

    other = vae(seed=1)
    write_model(place, ModelCard(config=other.config).to_json(), other.state_dict())
    with pytest.raises(UsageError, match="is another one"):
        load_tokenizer(run.tokenizer)
    place.rename(tmp_path / "moved")
    with pytest.raises(UsageError, match="not there now"):
        load_tokenizer(run.tokenizer)


def test_the_fingerprint_is_of_the_weights(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        tokenizer = vae(seed=seed)
        write_model(tmp_path / name, ModelCard(config=tokenizer.config).to_json(), tokenizer.state_dict())
        small_original(tokenizer, tmp_path / name / "file.pth")
    assert read_json(tmp_path / "one/model.json")["config"]["kind"] == "wan-vae"
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "same") != fingerprint(tmp_path / "other")
    files = [fingerprint(tmp_path / name / "file.pth") for name in ("one", "other")]
    assert files[0] != files[1]
