"""Video to tokens and back: stride arithmetic, causality, pixels, Cosmos' files, loading by path."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import SMALL_TOKENIZER, moving_square, noise_frames, small_tokenizer
from tolerances import assert_pixels_agree, assert_tokens_agree, assert_values_agree
from torch import Tensor, nn

from worldline.families.card import ModelCard
from worldline.families.tokenizers import fingerprint, keep_tokenizer, load_tokenizer
from worldline.rundir import RunDir, load_tensors, write_model
from worldline.schema import Batch, DataError, Origin, UsageError
from worldline.tokenizers import tokenizer as tokenizers
from worldline.tokenizers.fsq_video import CosmosConfig, FSQVideoConfig, FSQVideoTokenizer
from worldline.tokenizers.tokenizer import to_pixels, to_signed

FINE = replace(
    SMALL_TOKENIZER,
    patch=(2, 2),
    merges=((2, 2), (2, 2)),
    widths=(4, 8, 8),
    blocks=(1, 1, 1),
    encoder_kernels=(3, 3, 3),
)
"""The same strides in three stages, so that causality is tried at every rate."""
WIDER = replace(SMALL_TOKENIZER, past=0, decoder_past=2, decoder_widths=(12, 24), decoder_blocks=(2, 1))
"""Another decoder, which alone looks back."""
SEEING = replace(WIDER, decoder_sees=True)
"""One that is shown the frame before a block."""
SHORT = replace(SMALL_TOKENIZER, patch=(4, 4), merges=((1, 1),), block_frames=9)


# --- pixels ---


def test_pixels_survive_the_signed_range_exactly() -> None:
    every = torch.arange(256, dtype=torch.uint8).expand(1, 2, 3, 1, 256)
    signed = to_signed(every)
    assert signed.shape == (1, 3, 2, 1, 256)
    assert signed.min() == -1
    assert signed.max() == 1
    assert torch.equal(to_pixels(signed), every)


def test_pixels_are_clamped_and_rounded_to_nearest() -> None:
    video = torch.tensor([-1.5, -1.0, 0.0, 1.0, 7.0, 100.4 * 2 / 255 - 1, 100.6 * 2 / 255 - 1])
    pixels = to_pixels(video.view(1, 1, 1, 1, -1).expand(1, 3, 1, 1, -1))
    assert pixels[0, 0, 0, 0].tolist() == [0, 0, 128, 255, 255, 100, 101]


# --- ours ---


@pytest.mark.parametrize(
    ("config", "frames", "size", "grids"),
    [
        (SMALL_TOKENIZER, 17, (16, 24), (3, 2, 3)),
        (SMALL_TOKENIZER, 51, (8, 8), (9, 1, 1)),
        (FINE, 34, (16, 16), (6, 2, 2)),
        (SHORT, 9, (16, 8), (3, 4, 2)),
        (SHORT, 27, (8, 8), (9, 2, 2)),
    ],
)
def test_stride_arithmetic(
    config: FSQVideoConfig, frames: int, size: tuple[int, int], grids: tuple[int, int, int]
) -> None:
    tokenizer = small_tokenizer(config)
    video = noise_frames(2, frames, 3, *size)
    tokens = tokenizer.encode(video)
    grid = tokenizer.grid(*size)
    assert tokens.shape == (2, *grids)
    assert tokens.dtype == torch.int64
    assert 0 <= tokens.min() <= tokens.max() < tokenizer.vocab_size == 200
    assert (grid.height, grid.width, grid.vocab_size) == (*grids[1:], 200)
    assert grid.frames_of(grids[0]) == frames
    decoded = tokenizer.decode(tokens)
    assert decoded.shape == video.shape
    assert decoded.dtype == torch.uint8


def test_default_is_the_grid_of_cosmos() -> None:
    with torch.device("meta"):
        tokenizer = FSQVideoConfig().build()
    grid = tokenizer.grid(256, 256)
    assert (grid.latents_per_block, grid.height, grid.width, grid.vocab_size) == (3, 32, 32, 64_000)
    assert (grid.block, grid.temporal_stride) == (17, 8)


@pytest.mark.parametrize("config", [SMALL_TOKENIZER, FINE, replace(SMALL_TOKENIZER, hysteresis=0.75)])
@pytest.mark.parametrize("frame", [0, 1, 8, 9, 16])
def test_encoding_never_looks_ahead(config: FSQVideoConfig, frame: int) -> None:
    tokenizer, video = small_tokenizer(config), noise_frames(1, 17, 3, 16, 16)
    changed = video.clone()
    changed[:, frame] = noise_frames(1, 3, 16, 16, seed=1)
    owner = -(-frame // 8)  # latent 0 is frame 0, latent k is frames 8k-7 .. 8k
    before, after = _features(tokenizer, video), _features(tokenizer, changed)
    assert torch.equal(before[:, :owner], after[:, :owner])
    assert not torch.equal(before[:, owner], after[:, owner])
    assert torch.equal(tokenizer.encode(video)[:, :owner], tokenizer.encode(changed)[:, :owner])


def test_a_long_recording_goes_through_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, video = small_tokenizer(), noise_frames(2, 17 * 9, 3, 8, 8)
    monkeypatch.setattr(tokenizers, "PIECE", 4 * 17 * 64)
    tokens = tokenizer.encode(video)
    assert_tokens_agree(tokens, torch.cat([tokenizer.encode(block) for block in video.split(17, dim=1)], dim=1))
    blocks = [tokenizer.decode(block) for block in tokens.split(3, dim=1)]
    assert_pixels_agree(tokenizer.decode(tokens), torch.cat(blocks, dim=1))


def _shaken(frames: int) -> torch.Tensor:
    """A still picture with camera noise."""
    still = noise_frames(1, 1, 3, 16, 16).expand(1, frames, 3, 16, 16)
    noise = noise_frames(1, frames, 3, 16, 16, seed=1).int() % 61 - 30
    return (still.int() + noise).clamp(0, 255).byte()


def test_with_hysteresis_a_still_noisy_block_keeps_its_tokens() -> None:
    def kept(hysteresis: float) -> float:
        tokens = small_tokenizer(replace(SMALL_TOKENIZER, hysteresis=hysteresis)).encode(_shaken(17))
        return (tokens[:, 1:] == tokens[:, :-1]).float().mean().item()

    assert kept(0.0) < 0.9
    assert kept(0.75) > 0.98


@pytest.mark.parametrize("hysteresis", [0.0, 0.75, 100.0])
def test_the_tokens_of_a_block_depend_on_that_block_alone(hysteresis: float) -> None:
    """The truth that a forecast is scored against is the same with and without the context, at any hysteresis."""
    tokenizer, video = small_tokenizer(replace(SMALL_TOKENIZER, hysteresis=hysteresis)), _shaken(51)
    together = tokenizer.encode(video)
    assert (together[:, 3:] == tokenizer.encode(video[:, 17:])).float().mean() > 0.999  # a tie may fall either way
    assert (together[:, :3] == tokenizer.encode(video[:, :17])).float().mean() > 0.999
    first_of_blocks = together[:, ::3]
    nearest = small_tokenizer(replace(SMALL_TOKENIZER, hysteresis=0.0)).encode(video)[:, ::3]
    assert (first_of_blocks == nearest).float().mean() > 0.999


def test_hysteresis_is_part_of_a_tokenizers_identity(tmp_path: Path) -> None:
    for name, hysteresis in (("none", 0.0), ("some", 0.5), ("more", 0.75)):
        tokenizer = small_tokenizer(replace(SMALL_TOKENIZER, hysteresis=hysteresis))
        (tmp_path / name).mkdir()
        write_model(tmp_path / name, ModelCard(config=tokenizer.config).to_json(), tokenizer.state_dict())
    assert len({fingerprint(tmp_path / name) for name in ("none", "some", "more")}) == 3
    assert load_tokenizer(tmp_path / "some").config.hysteresis == 0.5  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("config", [SMALL_TOKENIZER, FINE, WIDER, SEEING])
@pytest.mark.parametrize("latent", [0, 1, 2])
def test_decoding_never_looks_ahead(config: FSQVideoConfig, latent: int) -> None:
    tokenizer = small_tokenizer(config)
    tokens = torch.randint(200, (1, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, latent] = (changed[:, latent] + 77) % 200
    first = max(0, 8 * latent - 7)
    codes, others = tokenizer.quantiser.codes(tokens), tokenizer.quantiser.codes(changed)
    before, after = tokenizer.video_of(codes), tokenizer.video_of(others)
    assert torch.equal(before[:, :, :first], after[:, :, :first])
    assert not torch.equal(before[:, :, first], after[:, :, first])
    assert torch.equal(tokenizer.decode(tokens)[:, :first], tokenizer.decode(changed)[:, :first])


def test_blocks_are_independent() -> None:
    tokenizer = small_tokenizer()
    one, two, other = (noise_frames(1, 17, 3, 16, 16, seed=seed) for seed in range(3))
    tokens = tokenizer.encode(torch.cat([one, two], dim=1))
    assert torch.equal(tokens[:, 3:], tokenizer.encode(torch.cat([other, two], dim=1))[:, 3:])
    alone = [_features(tokenizer, block) for block in (one, two)]
    assert_values_agree(_features(tokenizer, torch.cat([one, two])), torch.cat(alone))
    assert_tokens_agree(tokens, torch.cat([tokenizer.encode(one), tokenizer.encode(two)], dim=1))
    decoded = tokenizer.decode(tokens)
    assert_pixels_agree(decoded[:, 17:], tokenizer.decode(tokens[:, 3:]))


@pytest.mark.parametrize(
    ("frames", "size", "message"), [(16, (16, 16), "16 frames"), (17, (16, 20), "16x20.*stride 8")]
)
def test_encoding_refuses_what_does_not_divide(frames: int, size: tuple[int, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small_tokenizer().encode(noise_frames(1, frames, 3, *size))


def test_decoding_refuses_half_a_block() -> None:
    with pytest.raises(UsageError, match=r"4 token grids.*blocks of 3"):
        small_tokenizer().decode(torch.zeros(1, 4, 2, 2, dtype=torch.int64))


# --- a decoder that sees the frame before a block ---


def test_a_decoder_that_sees_begins_by_changing_nothing() -> None:
    torch.manual_seed(0)
    plain, seeing = WIDER.build().eval(), SEEING.build().eval()
    seeing.load_state_dict(plain.state_dict(), strict=False)
    tokens, before = plain.encode(noise_frames(2, 17, 3, 16, 16)), noise_frames(2, 1, 3, 16, 16)[:, 0]
    assert torch.equal(seeing.decode(tokens, before), plain.decode(tokens))


def test_blocks_are_decoded_each_with_the_frame_before_in_view() -> None:
    tokenizer = small_tokenizer(SEEING)
    tokens = torch.randint(200, (2, 6, 2, 2), generator=torch.Generator().manual_seed(0))
    before, other = (noise_frames(2, 1, 3, 16, 16, seed=seed)[:, 0] for seed in range(2))
    made = tokenizer.decode(tokens, before)
    first = tokenizer.decode(tokens[:, :3], before)
    assert torch.equal(made[:, :17], first)
    assert torch.equal(made[:, 17:], tokenizer.decode(tokens[:, 3:], first[:, -1]))
    assert not torch.equal(first, tokenizer.decode(tokens[:, :3], other))
    unseen = tokenizer.decode(tokens)
    assert not torch.equal(first, unseen[:, :17])
    assert torch.equal(unseen[:, 17:], tokenizer.decode(tokens[:, 3:], unseen[:, 16])), "then its own frame is seen"
    codes = tokenizer.quantiser.codes(tokens)
    assert torch.equal(tokenizer.decode_codes(codes, before), made)
    with pytest.raises(UsageError, match=r"4 token grids.*blocks of 3"):
        tokenizer.decode(tokens[:, :4], before)


def test_a_few_clips_at_a_time_are_decoded_with_their_own_frame_before(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = small_tokenizer(SEEING)
    tokens = torch.randint(200, (3, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    before = noise_frames(3, 1, 3, 16, 16)[:, 0]
    whole = tokenizer.decode(tokens, before)
    monkeypatch.setattr(tokenizers, "PIECE", 2 * 17 * 16 * 16)
    assert_pixels_agree(tokenizer.decode(tokens, before), whole)


def test_what_tokens_lose_and_what_stays_is_taken_from_the_frame_before() -> None:
    torch.manual_seed(0)
    still = noise_frames(4, 1, 3, 16, 16).expand(-1, 34, -1, -1, -1)  # 200 tokens cannot say what it looks like
    batch = Batch(states=torch.zeros(4, 34, 2), fps=30.0, origins=(), frames=still)
    tokenizer = SEEING.build()
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=1e-2)
    for step in range(60):
        loss, _ = tokenizer.loss(batch, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    new = noise_frames(4, 1, 3, 16, 16, seed=9).expand(-1, 34, -1, -1, -1)
    tokens = tokenizer.eval().encode(new[:, 17:])
    error = [
        (made.float() - new[:, 17:]).abs().mean()
        for made in (tokenizer.decode(tokens, new[:, 16]), tokenizer.decode(tokens))
    ]
    assert error[0] < 0.5 * error[1]


def test_in_training_some_clips_see_their_own_version_and_some_nothing() -> None:
    tokenizer = small_tokenizer(replace(SEEING, saturation_weight=0.0))
    frames = noise_frames(64, 34, 3, 8, 8)
    batch = Batch(states=torch.zeros(64, 34, 2), fps=30.0, origins=(), frames=frames)
    tokens, own = tokenizer.encode(frames[:, 17:]), tokenizer.decode(tokenizer.encode(frames[:, :17]))

    def error(before: Tensor, shown: Tensor) -> Tensor:
        made = tokenizer.video_of(tokenizer.quantiser.codes(tokens), to_signed(before[:, None])[:, :, 0], shown)
        difference = made - to_signed(frames[:, 17:])
        return difference.square().mean() + 0.1 * difference.abs().mean()

    everywhere = torch.ones(64, dtype=torch.bool)
    validation, _ = tokenizer.loss(batch, torch.Generator().manual_seed(0))
    torch.testing.assert_close(validation, error(frames[:, 16], everywhere))
    training, _ = tokenizer.train().loss(batch, torch.Generator().manual_seed(0))
    drawn = torch.rand(64, generator=torch.Generator().manual_seed(0))
    seen = torch.where((drawn < 0.25)[:, None, None, None], own[:, -1], frames[:, 16])
    torch.testing.assert_close(training, error(seen, drawn < 0.875), rtol=1e-3, atol=0)  # own frames are rounded here
    assert not torch.isclose(training, validation, rtol=1e-2)
    with pytest.raises(UsageError, match="clips of 34 frames, not 17"):
        tokenizer.loss(replace(batch, frames=frames[:, 17:]), torch.Generator())


@pytest.mark.parametrize(
    "change",
    [
        {"block_frames": 16},
        {"widths": (8,)},
        {"blocks": (1, 1, 1)},
        {"patch": (1, 4), "block_frames": 1, "decoder_sees": True},
    ],
)
def test_impossible_configurations_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        replace(SMALL_TOKENIZER, **change).build()  # pyright: ignore[reportArgumentType]


def test_loss_is_squared_plus_weighted_absolute_error_of_what_is_decoded() -> None:
    tokenizer, batch = small_tokenizer(), _squares()
    assert batch.frames is not None
    loss, figures = tokenizer.loss(batch, torch.Generator())
    video = to_signed(batch.frames)
    error = tokenizer.video_of(tokenizer.quantiser.codes(tokenizer.encode(batch.frames))) - video
    mse = error.square().mean()
    torch.testing.assert_close(loss, mse + 0.1 * error.abs().mean())
    assert figures["psnr_db"] == pytest.approx(10 * torch.log10(4 / mse).item(), abs=1e-3)
    assert figures["tokens_used"] == len(tokenizer.encode(batch.frames).unique())


def test_loss_falls_when_one_batch_is_learned() -> None:
    torch.manual_seed(0)
    tokenizer, batch = SMALL_TOKENIZER.build(), _squares()
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        loss, _figures = tokenizer.loss(batch, torch.Generator())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_batch_of_tokens_alone_cannot_train_a_tokenizer() -> None:
    batch = replace(_squares(), frames=None)
    with pytest.raises(UsageError, match="tokens only"):
        small_tokenizer().loss(batch, torch.Generator())


# --- by path ---


def test_saved_and_loaded_again_gives_the_same_tokens(tmp_path: Path) -> None:
    tokenizer, video = small_tokenizer(FINE), noise_frames(1, 17, 3, 16, 16)
    write_model(tmp_path, ModelCard(config=tokenizer.config).to_json(), tokenizer.state_dict())
    loaded = load_tokenizer(tmp_path)
    assert loaded.config == FINE
    assert not loaded.training
    assert torch.equal(loaded.encode(video), tokenizer.encode(video))


def test_weights_of_another_shape_name_the_file(tmp_path: Path) -> None:
    write_model(tmp_path, ModelCard(config=small_tokenizer().config).to_json(), small_tokenizer(FINE).state_dict())
    with pytest.raises(DataError, match=r"model\.safetensors: expected the weights of the model, found .* model\.json"):
        load_tokenizer(tmp_path)


def test_a_description_of_a_later_version_is_refused(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    write_model(tmp_path, ModelCard(config=tokenizer.config).to_json() | {"format": 2}, tokenizer.state_dict())
    with pytest.raises(DataError, match=r"format: .* \(found 2\)"):
        load_tokenizer(tmp_path)


def test_an_unknown_setting_is_named(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    description = ModelCard(config=tokenizer.config).to_json()
    description["config"]["colour"] = "blue"
    write_model(tmp_path, description, tokenizer.state_dict())
    with pytest.raises(DataError, match=r"model\.json.*colour"):
        load_tokenizer(tmp_path)


def test_a_folder_of_neither_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no tokenizer"):
        load_tokenizer(tmp_path)


def test_fingerprint_is_of_the_weights(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        tokenizer = small_tokenizer(seed=seed)
        write_model(tmp_path / name, ModelCard(config=tokenizer.config).to_json(), tokenizer.state_dict())
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "same") != fingerprint(tmp_path / "other")


# --- Cosmos, over stand-ins of the same signature: indices = pixel value of each latent's last frame ---


class _Encoder(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1, dtype=dtype))

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        assert video.dtype == self.one.dtype and video.shape[2] == 17  # noqa: PT018 - compiled by TorchScript
        last = (video[:, 0, ::8, ::8, ::8] * self.one).float()
        codes = last.unsqueeze(1).expand(-1, 6, -1, -1, -1)
        return ((last + 1) * 127.5).round().to(torch.int32), codes.to(video.dtype)


class _Decoder(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1, dtype=dtype))

    def forward(self, indices: Tensor) -> Tensor:
        assert indices.dtype == torch.int32 and indices.shape[1] == 3  # noqa: PT018 - compiled by TorchScript
        grids = torch.repeat_interleave(indices, torch.tensor([1, 8, 8]), dim=1).float() / 127.5 - 1
        pixels = grids.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
        return (pixels.unsqueeze(1).expand(-1, 3, -1, -1, -1) * 1.0).to(self.one.dtype) * self.one


def _write_cosmos(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the published files are TorchScript all the same
        torch.jit.script(_Encoder(dtype)).save(str(folder / "encoder.jit"))
        torch.jit.script(_Decoder(dtype)).save(str(folder / "decoder.jit"))
    return folder


def _latent_frames(values: Tensor) -> Tensor:
    """Frames in which all pixels that a token covers have its value. `b l gh gw` -> `b t 3 h w`."""
    grids = values.to(torch.uint8).repeat_interleave(torch.tensor([1, 8, 8]).repeat(values.shape[1] // 3), dim=1)
    return grids.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)[:, :, None].expand(-1, -1, 3, -1, -1)


@pytest.mark.parametrize("blocks", [1, 3])
def test_cosmos_goes_through_in_blocks_of_17(tmp_path: Path, blocks: int) -> None:
    tokenizer = load_tokenizer(_write_cosmos(tmp_path / "cosmos"))
    choice = torch.randint(3, (2, 3 * blocks, 2, 4), generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([0, 128, 255])[choice]  # exact in bfloat16
    frames = _latent_frames(tokens)
    encoded = tokenizer.encode(frames)
    assert frames.shape == (2, 17 * blocks, 3, 16, 32)
    assert encoded.dtype == torch.int64
    assert torch.equal(encoded, tokens)
    decoded = tokenizer.decode(tokens)
    assert decoded.dtype == torch.uint8
    assert torch.equal(decoded, frames)


def test_cosmos_in_float32(tmp_path: Path) -> None:
    folder = _write_cosmos(tmp_path, torch.float32)
    tokenizer = CosmosConfig(folder=folder, dtype="float32").build()
    tokens = torch.arange(256).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(tokenizer.encode(_latent_frames(tokens)), tokens)
    assert torch.equal(tokenizer.decode(tokens), _latent_frames(tokens))


def test_cosmos_has_the_grid_of_the_1x_data(tmp_path: Path) -> None:
    grid = load_tokenizer(_write_cosmos(tmp_path)).grid(256, 256)
    assert (grid.height, grid.width, grid.vocab_size, grid.block, grid.latents_per_block) == (32, 32, 64_000, 17, 3)


def test_cosmos_refuses_what_does_not_divide(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(_write_cosmos(tmp_path))
    with pytest.raises(UsageError, match="18 frames"):
        tokenizer.encode(noise_frames(1, 18, 3, 16, 16))
    with pytest.raises(UsageError, match="16x12"):
        tokenizer.encode(noise_frames(1, 17, 3, 16, 12))
    with pytest.raises(UsageError, match="2 token grids"):
        tokenizer.decode(torch.zeros(1, 2, 2, 2, dtype=torch.int64))


def test_missing_cosmos_says_what_to_download(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        CosmosConfig(folder=tmp_path / "absent").build()
    for part in ("nvidia/Cosmos-0.1-Tokenizer-DV8x8x8", "encoder.jit", "decoder.jit", str(tmp_path / "absent")):
        assert part in str(error.value)


def test_half_a_cosmos_names_the_missing_half(tmp_path: Path) -> None:
    (_write_cosmos(tmp_path) / "decoder.jit").unlink()
    with pytest.raises(DataError, match="found no file") as error:
        load_tokenizer(tmp_path)
    assert error.value.path == tmp_path / "decoder.jit"


@pytest.mark.parametrize("content", [b"", b"not TorchScript at all", b"PK\x03\x04 nor a zip"])
def test_garbage_instead_of_torchscript_is_bad_data(tmp_path: Path, content: bytes) -> None:
    (_write_cosmos(tmp_path) / "encoder.jit").write_bytes(content)
    with pytest.raises(DataError, match="expected a TorchScript file") as error:
        load_tokenizer(tmp_path)
    assert error.value.path == tmp_path / "encoder.jit"


def test_a_run_that_refers_to_cosmos_finds_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_cosmos(tmp_path / "cosmos")
    monkeypatch.chdir(tmp_path)
    tokenizer = load_tokenizer(Path("cosmos"))
    keep_tokenizer(RunDir(tmp_path / "run"), Path("cosmos"), tokenizer)
    monkeypatch.chdir("/")
    loaded = load_tokenizer(tmp_path / "run/tokenizer")
    assert load_tensors(tmp_path / "run/tokenizer" / "model.safetensors") == {}
    frames = noise_frames(1, 17, 3, 16, 16)
    assert torch.equal(loaded.encode(frames), tokenizer.encode(frames))


def test_fingerprint_of_cosmos_covers_both_files(tmp_path: Path) -> None:
    before = fingerprint(_write_cosmos(tmp_path))
    with (tmp_path / "decoder.jit").open("ab") as file:
        file.write(b"x")
    assert fingerprint(tmp_path) != before


# --- builders ---


def _features(tokenizer: FSQVideoTokenizer, frames: Tensor) -> Tensor:
    """What the quantiser is given, `b l h w d`: rounding may hide a leak that is in here."""
    with torch.no_grad():
        return tokenizer.latents_of(to_signed(frames))


def _squares() -> Batch:
    frames = torch.stack([torch.from_numpy(moving_square(17, seed=seed)[0]) for seed in range(2)])
    return Batch(
        frames=frames.permute(0, 1, 4, 2, 3).contiguous(),
        states=torch.zeros(2, 17, 2),
        fps=30.0,
        origins=tuple(Origin(source="drawn", episode=i, start=0) for i in range(2)),
    )
