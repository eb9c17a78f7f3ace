"""Robot states to modulation: the report's sizes, features of any robot, silence at the start, the null code."""

import pytest
import torch

from worldline.formats.states import ONEX_LAYOUT
from worldline.nn.states import ONEX_KINDS, REPORT_77, StateModulation, StateOptions
from worldline.schema import UsageError

SMALL = StateOptions(hidden=16)


def states(batch: int = 2, rows: int = 77, dims: int = 25) -> torch.Tensor:
    return torch.randn(batch, rows, dims, generator=torch.Generator().manual_seed(0))


def awake(config: StateOptions) -> StateModulation:
    """An encoder whose last projection has left zero, so that something comes out."""
    torch.manual_seed(1)
    encoder = StateModulation(config, 12)
    torch.nn.init.normal_(encoder.projection[-1].weight)
    return encoder


def test_the_default_is_the_1x_robot() -> None:
    assert ONEX_LAYOUT.kinds == ONEX_KINDS
    assert StateModulation(StateOptions(), 12).features[0].in_features == 71


def test_the_report_s_encoder_has_67_350_272_parameters() -> None:
    with torch.device("meta"):
        encoder = StateModulation(StateOptions(), 3072)
        with_null = StateModulation(StateOptions(null=True), 3072)
    assert sum(p.numel() for p in encoder.parameters()) == 67_350_272
    assert sum(p.numel() for p in with_null.parameters()) == 67_350_272 + 256


@pytest.mark.parametrize("mode", ["downsample", "full"])
def test_both_modes_arrive_at_six_codes(mode: str) -> None:
    config = StateOptions(hidden=16, mode=mode)  # pyright: ignore[reportArgumentType]
    assert config.num_codes(REPORT_77) == 6
    assert StateModulation(config, 12)(states()).shape == (2, 6, 6, 12)


def test_downsample_reads_the_taken_frames_and_full_reads_all() -> None:
    changed = states()
    changed[:, 1] += 1.0  # frame 1 is none of 0, 4, 8, ...
    for mode, same in (("downsample", True), ("full", False)):
        encoder = awake(StateOptions(hidden=16, mode=mode))  # pyright: ignore[reportArgumentType]
        assert torch.equal(encoder(states()), encoder(changed)) is same


def test_features_are_values_sines_cosines_then_closures() -> None:
    encoder = StateModulation(StateOptions(hidden=16), 12, kinds=("angle", "binary", "velocity", "other"))
    row = torch.tensor([[[0.5, 1.0, -2.0, 7.0]]])
    wave = torch.tensor([0.5, -2.0])
    expected = torch.cat([wave, wave.sin(), wave.cos(), torch.tensor([1.0, 7.0])])
    torch.testing.assert_close(encoder._features(row)[0, 0], expected)


def test_normalising_leaves_sines_alone() -> None:
    encoder = StateModulation(StateOptions(hidden=16, normalise=True), 12, kinds=("angle", "binary"))
    encoder.set_statistics(torch.tensor([1.0, 0.5]), torch.tensor([2.0, 0.0]))
    row = torch.tensor([[[3.0, 1.0]]])
    expected = torch.tensor([1.0, torch.tensor(3.0).sin(), torch.tensor(3.0).cos(), 0.5])
    torch.testing.assert_close(encoder._features(row)[0, 0], expected)


def test_it_starts_silent_and_learns_from_the_first_step() -> None:
    encoder = StateModulation(SMALL, 12)
    out = encoder(states())
    assert torch.count_nonzero(out) == 0
    out.sum().backward()
    last = encoder.projection[-1]
    assert isinstance(last, torch.nn.Linear)
    assert last.weight.grad is not None
    assert last.weight.grad.abs().max() > 0


def test_dropped_clips_get_the_null_code_whatever_their_states() -> None:
    encoder = awake(StateOptions(hidden=16, null=True))
    dropped = torch.tensor([True, False])
    a, b = encoder(states(), dropped), encoder(states() + 1, dropped)
    assert torch.equal(a[0], b[0])
    assert not torch.equal(a[1], b[1])
    torch.testing.assert_close(a[1], encoder(states())[1])


def test_another_robot_another_shape_and_no_null_are_refused() -> None:
    encoder = StateModulation(SMALL, 12)
    with pytest.raises(UsageError, match="77 states of 25 dimensions, but 77 of 26"):
        encoder(states(dims=26))
    with pytest.raises(UsageError, match="77 states of 25 dimensions, but 21 of 25"):
        encoder(states(rows=21))
    with pytest.raises(UsageError, match="no null state"):
        encoder(states(), torch.tensor([True, True]))
