"""An ensemble of differently seeded worlds is a world, and its forecaster one like any other."""

import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import GRID_200, TWO_JOINTS, noise_frames, small_world, write_followed_tokens
from commands import do
from latent_builders import of_latents, of_tokens
from tolerances import assert_pixels_agree, assert_tokens_agree, assert_values_agree
from torch import Tensor, nn

from worldline import load
from worldline.contract import Contract, FramePattern
from worldline.data.splits import Recordings, recordings
from worldline.evaluation.result import Evaluation
from worldline.families.card import Identity, ModelCard
from worldline.forecasting.ensemble import TokenEnsemble
from worldline.forecasting.forecaster import CopyLast, Forecaster
from worldline.formats.open import open_source
from worldline.metrics.tokens import entropy
from worldline.process.categorical import GridStep, Sampling
from worldline.rundir import write_model
from worldline.schema import TokenGrid, UsageError

FRAMES = noise_frames(2, 17, 3, 16, 16)


def states_of(count: int, seed: int = 0) -> Tensor:
    return torch.randn(2, count, 2, generator=torch.Generator().manual_seed(seed))


# --- tokens ---


@dataclass
class Fixed:
    """A member that predicts one distribution everywhere."""

    chances: tuple[float, ...]
    context_grids: int = 3
    horizon_grids: int = 2

    def steps(self, count: int) -> Iterator[GridStep]:
        for _ in range(self.horizon_grids):
            logits = torch.tensor(self.chances).log().expand(count, 1, 1, -1)
            yield GridStep(logits.argmax(dim=-1), logits)


def together(*members: Fixed) -> list[GridStep]:
    class Member(nn.Module):
        def __init__(self, own: Fixed) -> None:
            super().__init__()
            self.context_grids, self.horizon_grids, self.own = own.context_grids, own.horizon_grids, own

        def forecast(self, context: Tensor, states: Tensor, **_: Any) -> Iterator[GridStep]:
            return self.own.steps(len(context))

    ensemble = TokenEnsemble([Member(one) for one in members])
    return [*ensemble.forecast(torch.zeros(1, 3, 1, 1).long(), torch.zeros(1, 5, 2), sampling=Sampling())]


def test_a_mixture_costs_what_the_mean_probability_says() -> None:
    first, _ = together(Fixed((0.9, 0.1, 0.0)), Fixed((0.2, 0.3, 0.5)))
    assert first.logits.exp().flatten().tolist() == pytest.approx([0.55, 0.2, 0.25])
    assert first.tokens.item() == 0


def test_members_that_contradict_each_other_disagree_by_ln_2_and_equals_by_nothing() -> None:
    for chances, expected in ((((1.0, 0.0), (0.0, 1.0)), math.log(2)), (((0.5, 0.5), (0.5, 0.5)), 0.0)):
        found = together(*map(Fixed, chances))[0].disagreement
        assert found is not None
        assert found.item() == pytest.approx(expected, abs=1e-6)


def test_entropy_of_even_chances_is_the_log_of_their_number() -> None:
    logits = torch.tensor([[0.0] * 8, [5.0, *[-math.inf] * 7], [0.0, 0.0, *[-math.inf] * 6]])
    assert entropy(logits).tolist() == pytest.approx([math.log(8), 0, math.log(2)], abs=1e-6)


def test_members_read_the_grids_that_the_ensemble_chose() -> None:
    """So its distributions are the mean of what each says of the ensemble's own grids: here by another way."""
    worlds = [small_world(seed=seed, grid=GRID_200) for seed in (0, 1, 2)]
    context = torch.randint(200, (2, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    sampling, states = Sampling(temperature=1.0), states_of(34)
    drawn = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    steps = [*TokenEnsemble(worlds).forecast(context, states, sampling=sampling, generators=drawn)]
    tokens = torch.cat([context, torch.stack([step.tokens for step in steps], dim=1)], dim=1)
    each = [[one.logits.softmax(dim=-1) for one in world.teacher_forced(tokens, states)] for world in worlds]
    for place, step in enumerate(steps):
        assert_values_agree(step.logits.exp(), torch.stack([own[place] for own in each]).mean(dim=0))
    forced = [step.logits for step in TokenEnsemble(worlds).teacher_forced(tokens, states)]
    assert_values_agree(torch.stack(forced), torch.stack([step.logits for step in steps]))


# --- forecasters of both families ---


@pytest.fixture(scope="module", params=[of_tokens, of_latents])
def three(request: pytest.FixtureRequest) -> tuple[Forecaster, ...]:
    return tuple(request.param(seed) for seed in range(3))


def forecast(forecaster: Forecaster, seed: int = 5) -> Tensor:
    states = states_of(17 + forecaster.horizon_frames)
    return forecaster.forecast(FRAMES, states, seeds=(seed, seed + 1)).video


def test_a_world_beside_itself_forecasts_what_it_does_alone(three: tuple[Forecaster, ...]) -> None:
    alone, *_ = three
    assert_pixels_agree(forecast(alone.with_members([alone])), forecast(alone))
    assert alone.members == ()
    assert_pixels_agree(forecast(alone.with_members(three[1:]).members[2]), forecast(three[2]))


def test_an_ensemble_is_the_same_each_time_and_another_one_than_its_members(three: tuple[Forecaster, ...]) -> None:
    ensemble = three[0].with_members(three[1:])
    assert torch.equal(forecast(ensemble), forecast(ensemble))
    assert not torch.equal(forecast(ensemble), forecast(three[0]))
    assert (ensemble.times, ensemble.chunk_frames) == (three[0].times, three[0].chunk_frames)


def test_sessions_of_an_ensemble_begin_with_its_forecast_and_go_on(three: tuple[Forecaster, ...]) -> None:
    ensemble, ahead = three[0].with_members(three[1:]), three[0].lookahead_frames
    states = states_of(17 + 2 * ahead)
    session = ensemble.start(FRAMES, states[:, :17], seed=5)
    first = session.advance(states[:, 17 : 17 + ahead])
    expected = ensemble.forecast(FRAMES, states[:, : 17 + ahead], seeds=(5, 5))
    assert_pixels_agree(first.video, expected.video)
    moment = pickle.loads(pickle.dumps(session.snapshot()))
    second = session.advance(states[:, -ahead:])
    assert second.times[0] == first.times[0] + ensemble.chunk_frames
    session.restore(moment)
    assert torch.equal(session.advance(states[:, -ahead:]).video, second.video)
    for other in (three[0], three[0].with_members([three[2], three[1]])):
        with pytest.raises(UsageError, match="another forecaster"):
            other.start(FRAMES, states[:, :17]).restore(moment)


def test_costs_of_an_ensemble_are_those_of_the_mean_probability() -> None:
    members = [of_tokens(seed) for seed in (0, 1)]
    batch = members[0].encoded(members[0]._given(noise_frames(2, 34, 3, 16, 16)[:, :17], states_of(34), 34))
    batch = replace(batch, tokens=torch.randint(200, (2, 6, 2, 2), generator=torch.Generator().manual_seed(1)))
    # The first grid follows the same context for all: there the chances of the members themselves are averaged.
    ensemble, *alone = (
        one.forecast_clips(batch, extra=("top", "costs")) for one in (members[0].with_members(members[1:]), *members)
    )
    future = batch.tokens[:, 3, ..., None] if batch.tokens is not None else None
    chances = []
    for made in alone:
        assert made.top_ids is not None
        assert made.top_log_probs is not None
        places = (made.top_ids[:, 0] == future).float()  # all 200 are among the 500 best
        chances.append((made.top_log_probs[:, 0].exp() * places).sum(dim=-1))
    cost = -torch.stack(chances).mean(dim=0).log().mean(dim=(-1, -2))
    assert_values_agree(ensemble.costs["full_ce"][:, 0], cost)


def test_futures_over_latents_are_drawn_by_the_members_in_turn() -> None:
    members = [of_latents(seed) for seed in range(3)]
    made, alone = forecast(members[0].with_members(members[1:])), [forecast(one) for one in members]
    for k in range(4):
        assert_pixels_agree(made[:, k], alone[k % 3][:, k])
    few = replace(members[0].with_members(members[1:]), rows=1)
    assert_pixels_agree(forecast(few), made)


def test_a_mean_at_pure_noise_is_that_of_all_members() -> None:
    members = [of_latents(seed) for seed in range(2)]
    ensemble = members[0].with_members(members[1:]).conditional_mean(2)
    states = states_of(77)
    past = ensemble.begin(ensemble._given(FRAMES, states, 77))[0]
    noise = torch.randn(4, 4, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    given = past.repeat_interleave(2, dim=0), states.repeat_interleave(2, dim=0), noise
    each = [replace(one, sampling=ensemble.sampling)._generated(*given) for one in members]
    assert_values_agree(ensemble._generated(*given), (each[0] + each[1]) / 2)
    assert forecast(ensemble).shape[1] == 1


def test_what_forms_no_ensemble_is_refused() -> None:
    single = of_latents(num_samples=1)
    with pytest.raises(UsageError, match="--num-samples 2 or more"):
        single.with_members([of_latents(1)])
    short = small_world(replace(small_world().config, horizon_grids=6), grid=GRID_200)
    with pytest.raises(UsageError, match="as many grids"):
        of_tokens().with_members([replace(of_tokens(), world=short)])
    still = CopyLast(context_frames=17, times=(17,), chunk_frames=1)
    with pytest.raises(UsageError, match="form no ensemble"):
        still.with_members([still])


# --- from disk ---

WORDS = TokenGrid(height=2, width=2, vocab_size=8)


def write_world(folder: Path, seed: int, trained_on: Recordings | None = None, **changes: Any) -> Path:
    """A model folder of a small world over the tokens of `write_followed_tokens`, with drawn weights."""
    world = small_world(seed=seed, grid=WORDS)
    promise: dict[str, Any] = {
        "fps": 30.0,
        "state_names": TWO_JOINTS.names,
        "state_kinds": TWO_JOINTS.kinds,
        "source_kind": "1x-tokens",
        "pattern": FramePattern(window=34),
        "grid": WORDS,
    }
    tokenizer = changes.pop("tokenizer", "a" * 64)
    card = ModelCard(
        config=world.config,
        contract=Contract(**promise | changes),
        identity=Identity(tokenizer=tokenizer),
        trained_on=trained_on,
    )
    folder.mkdir(parents=True)
    write_model(folder, card.to_json(), world.state_dict())
    return folder


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shelf")
    for seed in range(2):
        write_world(root / f"seed{seed}", seed, tokenizer=None)
    write_followed_tokens(root / "data", 2, seed=3)
    return root


def test_worlds_are_loaded_as_an_ensemble(shelf: Path) -> None:
    loaded = load(shelf / "seed0", members=(shelf / "seed1",), device="cpu")
    assert loaded.settings["members"] == "seed1"
    clip = open_source(shelf / "data").read(0, 0, 34)
    batch = replace(of_tokens()._given(FRAMES[:1], clip.states[None], 34), tokens=clip.tokens[None], frames=None)  # pyright: ignore[reportOptionalSubscript]
    alone = [load(shelf / f"seed{seed}", device="cpu").forecaster for seed in range(2)]
    expected, found = alone[0].with_members(alone[1:]), loaded.forecaster
    made = [one.forecast_clips(batch, extra=("costs",)) for one in (found, expected, alone[0])]
    assert_values_agree(made[0].costs["full_ce"], made[1].costs["full_ce"])
    assert (made[0].costs["full_ce"] != made[2].costs["full_ce"]).any()
    assert made[0].tokens is not None
    assert made[1].tokens is not None
    assert_tokens_agree(made[0].tokens, made[1].tokens)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fps": 15.0}, "fps 15.0, but .*seed0 with 30.0"),
        ({"state_names": ("elbow", "wrist")}, "state_names"),
        ({"grid": replace(WORDS, temporal_stride=4)}, "grid"),
        ({"tokenizer": "b" * 64}, "tokenizer bbbb"),
    ],
)
def test_members_must_be_given_and_predict_the_same(
    shelf: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    other = write_world(tmp_path / "other", 1, **{"tokenizer": None} | changes)
    with pytest.raises(UsageError, match=said):
        load(shelf / "seed0", members=(other,))


def test_a_world_is_no_member_of_itself_and_a_world_over_latents_none_of_tokens(shelf: Path) -> None:
    with pytest.raises(UsageError, match="named twice"):
        load(shelf / "seed0", members=(shelf / "seed0",))
    with pytest.raises(UsageError, match=r"seed0 with"):
        load(shelf / "seed0", members=("sampling-tiny",))


def test_an_ensemble_is_evaluated_and_no_member_may_know_the_data(shelf: Path, tmp_path: Path) -> None:
    common = ["--data", str(shelf / "data"), "--device", "cpu"]
    do("evaluate", [str(shelf / "seed0"), "--members", str(shelf / "seed1"), "--out", str(tmp_path / "both"), *common])
    do("evaluate", [str(shelf / "seed0"), "--out", str(tmp_path / "one"), *common])
    both, one = (Evaluation.load(tmp_path / name / "metrics.json") for name in ("both", "one"))
    costs = [next(row for row in e.rows if row.id == "forecast").metrics["full_ce"].mean for e in (both, one)]
    assert both.settings["members"] == "seed1"
    assert costs[0] != costs[1]
    source = open_source(shelf / "data")
    known = recordings(source, range(2))
    cheat = write_world(tmp_path / "cheat", 2, known, tokenizer=None)
    with pytest.raises(UsageError, match="recordings that the run was trained on"):
        do("evaluate", [str(shelf / "seed0"), "--members", str(cheat), "--out", str(tmp_path / "no"), *common])
