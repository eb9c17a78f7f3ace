"""What the page says first, its moving pictures, findings, cards and receipts: each from the files alone."""

import base64
import io
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_builders import (
    CONTEXT,
    FRAMES,
    evaluation_of,
    finding_of,
    interval_of,
    page_of,
    run_of,
    scene_of,
    text_of,
    with_maps,
    with_scores,
)

from worldline import builtin
from worldline.evaluation.result import Evaluation
from worldline.metrics.bootstrap import Interval
from worldline.report import films
from worldline.report.cards import Model, data_card, model_card
from worldline.report.films import LADDER, Forecasts, Map, chosen, players, surprise
from worldline.report.gather import gather
from worldline.report.headline import Headline, headline
from worldline.schema import DataError

# --- the first sentence ---


def _with_curves(gains: list[float], half: float = 0.25) -> Evaluation:
    """A forecast that is better than copy-last by so many dB at each of its frames, 0.1 s apart."""
    copied = [interval_of(20.0, half) for _ in gains]
    ours = [interval_of(20.0 + gain, half) for gain in gains]
    data = replace(evaluation_of().data, horizon_frames=len(gains))
    return replace(evaluation_of(), curves={"psnr_db": {"forecast": ours, "copy_last": copied}}, data=data)


def test_frames_that_are_unevenly_far_ahead_are_told_by_their_own_times() -> None:
    """The report's pattern asks for every fourth frame of two seconds and for the last one twice."""
    evaluation = _with_curves([1, 1, -1])
    found = replace(evaluation, data=replace(evaluation.data, horizon_frames=8, times=(4, 8, 8)))
    assert _ahead(headline(found, None)).startswith("beats copy-last up to 0.80 s ahead (1.00 dB there)")


def _ahead(found: Headline) -> str:
    return found.answers[1].clause


@pytest.mark.parametrize(
    ("gains", "tone", "words"),
    [
        ([1, 2, 3], "yes", "beats copy-last up to 0.30 s ahead, the end of its horizon (3.00 dB there)"),
        ([1, 2, 0.1], "partly", "beats copy-last up to 0.20 s ahead (2.00 dB there)"),
        (
            [-1, 0, 2, 3],
            "yes",
            "beats copy-last from 0.30 s up to 0.40 s ahead, the end of its horizon (3.00 dB there)",
        ),
        ([1, 0, 2], "yes", "the end of its horizon (2.00 dB there), though not at every frame before"),
        ([0.4, 0.3, -1], "no", "does not beat copy-last at any frame"),
    ],
)
def test_how_far_ahead_is_the_last_frame_that_is_better_beyond_doubt(gains: list[float], tone: str, words: str) -> None:
    found = headline(_with_curves(gains))
    assert words in _ahead(found)
    assert words in found.sentence
    assert found.answers[1].tone == tone


def test_pairs_of_clips_tell_what_curves_cannot(tmp_path: Path) -> None:
    scores = gather(with_scores(run_of(tmp_path / "run"))).scores
    copied = [interval_of(21.0, 1.5)] * 8
    ours = [interval_of(21.0 + gain, 1.5) for gain in np.linspace(-1, 2, 8)]
    evaluation = replace(evaluation_of(), curves={"psnr_db": {"forecast": ours, "copy_last": copied}})
    assert "does not beat copy-last" in _ahead(headline(evaluation)), "clips differ more than forecasts do"
    found = headline(evaluation, scores)
    assert "from 0.40 s up to 0.80 s ahead, the end of its horizon (1.99 dB there)" in _ahead(found)
    assert "5 of 8 predicted frames (paired 95 % intervals" in found.answers[1].detail


def test_what_cannot_be_said_is_said_to_be_unknown() -> None:
    one = Interval(mean=20.0, low=math.nan, high=math.nan, num_clips=2, num_episodes=1)
    alone = replace(_with_curves([1.0]), curves={"psnr_db": {"forecast": [one], "copy_last": [one]}})
    assert "all clips are of one episode" in headline(alone).answers[1].detail
    without = replace(evaluation_of(), curves={}, not_computed={"psnr_db": "the data hold tokens only, no frames"})
    found = headline(without)
    assert [answer.tone for answer in found.answers] == ["unknown"] * 3
    assert "the data hold tokens only" in found.answers[1].detail
    assert (
        "With the states of another clip its last frame is 0.12 (\N{MINUS SIGN}0.38 to 0.62) dB worse."
        in found.answers[0].detail
    )
    assert "was not audited" in found.sentence
    off = replace(without, not_computed={"audit": "switched off (--condition-samples 0)"})
    assert "Not computed: switched off" in headline(off).answers[0].detail


@pytest.mark.parametrize(
    ("verdict", "tone", "words"),
    [
        ("follows", "yes", "follows the robot,"),
        ("follows partly", "partly", "follows the robot in part,"),
        ("ignores", "no", "ignores the robot,"),
        ("undecided", "unknown", "“undecided”"),
    ],
)
def test_the_sentence_begins_with_the_verdict_of_the_audit(verdict: str, tone: str, words: str) -> None:
    evaluation = replace(
        evaluation_of(), findings=(finding_of("audit", verdict), finding_of("uncertainty", "calibrated"))
    )
    found = headline(evaluation)
    assert words in found.sentence
    assert found.answers[0].tone == tone
    assert found.answers[0].detail == "It does as it is told."
    assert "calibrated" in found.sentence
    assert found.sentence.endswith(".")


@pytest.mark.parametrize(
    ("verdict", "tone", "words"),
    [
        ("yes", "yes", "knows when it is unsure: 64% of its spread lies on the 12% of pixels that change."),
        ("no", "no", "does not know when it is unsure: 64%"),
        ("misleading", "no", "is sure where it should not be: 64%"),
        ("undecided", "unknown", "has not shown whether it knows when it is unsure: 64%"),
        ("odd", "unknown", "“odd”"),
    ],
)
def test_the_sentence_ends_with_what_the_world_is_unsure_of(verdict: str, tone: str, words: str) -> None:
    sentence = (
        "Its surest half is 1.20 [0.80, 1.60] dB better. 64% of its spread lies on the 12% of pixels that change."
    )
    found = headline(replace(evaluation_of(), findings=(finding_of("uncertainty", verdict, sentence),)))
    assert words in found.sentence
    assert found.answers[2].tone == tone
    assert found.answers[2].detail == sentence


def test_a_tokenizer_forecasts_nothing() -> None:
    found = headline(replace(evaluation_of(), protocol="tokenizer"))
    assert "gives back the pictures it encodes at 33.50 (33.00 to 34.00) dB PSNR" in found.sentence
    assert found.answers == ()


def test_the_page_of_a_tokenizer_asks_it_for_no_forecast(tmp_path: Path) -> None:
    run = run_of(tmp_path / "tokenizer")
    (run / "evaluation/forecasts.npz").unlink()
    path = run / "evaluation/metrics.json"
    replace(Evaluation.load(path), protocol="tokenizer").save(path)
    page = page_of(run)
    assert "Not computed: this model makes no forecast." in text_of(page, "audit")
    assert "Not computed: this model makes no forecast." in text_of(page, "uncertainty")
    assert "it makes no forecast" in text_of(page, "summary")


# --- moving pictures ---


def _forecasts(num_clips: int = 5, **more: Any) -> Forecasts:
    real = scene_of(num_clips, 1.5)
    made = real.copy()
    made[:, CONTEXT:] = scene_of(num_clips, 1.2)[:, CONTEXT:]
    given = {"real": real, "rows": {"forecast": made}, "context": CONTEXT, "psnr": np.arange(num_clips) + 20.0}
    return Forecasts(**{**given, **more})


def _frames(uri: str, columns: int, like: np.ndarray) -> np.ndarray:
    """Cut a sheet apart, as the page's script does."""
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))
    height, width = like.shape[1:3]
    places = [(i // columns * height, i % columns * width) for i in range(len(like))]
    return np.stack([sheet[y : y + height, x : x + width] for y, x in places])


def test_sheets_keep_every_pixel_where_the_page_stays_small() -> None:
    found = _forecasts()
    (player,) = players([found], [10.0])
    place = player.clips[0].place
    np.testing.assert_array_equal(_frames(*player.real.sheets[0], found.real[place]), found.real[place])
    after = found.rows["forecast"][place, CONTEXT:]
    np.testing.assert_array_equal(_frames(*player.rows[0].sheets[0], after), after)
    assert player.stored == "Every pixel is as it was scored. PSNR is of the pictures that were scored."
    assert [row.id for row in player.rows] == ["forecast", "copy_last"], "a copy is always there to compare with"


def test_a_page_over_its_budget_loses_quality_then_clips_and_says_so() -> None:
    wide = np.random.default_rng(0).integers(0, 255, (5, 8, 40, 300, 3), np.uint8)
    noise = Forecasts(real=wide, rows={"forecast": wide}, context=2, psnr=np.arange(5.0))
    sizes = [films._size(noise, way) for way in LADDER]
    assert sizes == sorted(sizes, reverse=True)
    (player,) = players([noise], [None], budget=sizes[1])
    assert "JPEG of quality 95, on average" in player.stored
    assert "reduced from 40 x 300 to 20 x 150 pixels" in player.stored
    place = player.clips[0].place
    kept = wide[place, 2:].reshape(6, 20, 2, 150, 2, 3).mean(axis=(2, 4))
    off = np.abs(_frames(*player.rows[0].sheets[0], kept) - kept)
    assert off.mean() < 5
    (player,) = players([noise], [None], budget=1)
    assert "3 of the 5 kept clips are here" in player.stored
    assert {"best", "median", "worst"} <= {title for clip in player.clips for title in clip.titles}


def test_sheets_stay_within_what_browsers_decode() -> None:
    long = np.zeros((1, 40, 8, 256, 3), np.uint8)
    long[0] += np.arange(40, dtype=np.uint8)[:, None, None, None]
    (player,) = players([Forecasts(real=long, rows={"forecast": long}, context=3, psnr=np.zeros(1))], [30.0])
    sheet = player.real.sheets[0]
    assert sheet.columns == 16
    np.testing.assert_array_equal(_frames(*sheet, long[0])[:, 0, 0, 0], np.arange(40))


def test_the_most_surprising_clip_was_most_wrong_for_how_sure_it_was() -> None:
    found = _forecasts()
    wrong = found.rows["forecast"].copy()
    wrong[3, CONTEXT:] = 0
    unsure = np.ones((5, FRAMES - CONTEXT, 2, 2))
    sure = found._replace(rows={"forecast": wrong}, maps=(Map("spread", "spread", "grey levels", unsure),))
    assert int(surprise(sure)[0].argmax()) == 3
    unsure[3] = 9.0
    assert int(surprise(sure)[0].argmax()) != 3, "it said so"
    bare = found._replace(rows={"forecast": wrong})
    assert int(surprise(bare)[0].argmax()) == 3
    assert "copy of the last frame" in surprise(bare)[1]
    titles = {clip.place: clip.titles for clip in chosen(bare)}
    assert titles[3] == ("most surprising",)
    assert titles[4] == ("best",)
    assert titles[0] == ("worst",)
    assert [clip.place for clip in chosen(bare)] == [4, 2, 0, 3, 1]


def test_the_numbers_of_a_player_are_those_of_the_scored_pictures() -> None:
    found = _forecasts()
    (player,) = players([found], [10.0])
    error = found.rows["forecast"][:, CONTEXT:].astype(float) - found.real[:, CONTEXT:]
    expected = 10 * np.log10(255**2 / (error**2).mean(axis=(2, 3, 4)))
    assert player.rows[0].psnr is not None
    places = [clip.place for clip in player.clips]
    np.testing.assert_allclose(player.rows[0].psnr, expected[places], atol=1e-4)
    assert player.numbers()["fps"] == 10.0
    assert player.slower == 2


def test_maps_are_drawn_on_the_scale_of_errors_or_on_their_own() -> None:
    values = np.linspace(0, 200, 5 * (FRAMES - CONTEXT) * 4).reshape(5, FRAMES - CONTEXT, 2, 2)
    values[0, 0, 0, 0] = np.nan
    maps = (Map("spread", "spread", "grey levels", values), Map("token_entropy", "entropy", "nats", values / 50))
    (player,) = players([_forecasts(maps=maps)], [10.0])
    assert player.maps[0].top == 255 / films.AMPLIFIED
    assert player.maps[1].top == pytest.approx(4, rel=0.02)
    first = next(i for i, clip in enumerate(player.clips) if clip.place == 0)
    grey = _frames(*player.maps[0].sheets[first], np.zeros((FRAMES - CONTEXT, 2, 2, 3)))[..., 0]
    assert grey[0, 0, 0] == 0, "not known"
    expected = 1 + 254 * np.minimum(values[0] / player.maps[0].top, 1)
    np.testing.assert_allclose(grey[0].ravel()[1:], expected[0].ravel()[1:], atol=0.5)


def test_maps_of_forecasts_npz_have_a_panel_and_decide_what_surprises(tmp_path: Path) -> None:
    page = page_of(with_maps(run_of(tmp_path / "tiny")))
    assert re.findall(r'data-panel="([^"]*)"', page)[:3] == ["real", "forecast", "copy_last"]
    assert 'data-panel="token_entropy"' in page
    pictures = text_of(page, "pictures")
    assert "most wrong for how sure it was (token entropy)" in pictures
    assert "Most surprising 24.00 dB" in pictures
    assert "No panel of how sure it was" not in pictures


@pytest.mark.parametrize("damage", ["map_units", "map_0", "shape"])
def test_damaged_maps_name_the_file(tmp_path: Path, damage: str) -> None:
    run = with_maps(run_of(tmp_path / "tiny"))
    path = run / "evaluation/forecasts.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    if damage == "shape":
        arrays["map_0"] = arrays["map_0"][:, 1:]
    else:
        del arrays[damage]
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=r"forecasts\.npz: .*map"):
        gather(run)


# --- scores, findings, cards, receipts ---


def test_damaged_scores_name_the_file(tmp_path: Path) -> None:
    run = with_scores(run_of(tmp_path / "tiny"))
    path = run / "evaluation/scores.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **{**arrays, "forecast/psnr_db": arrays["forecast/psnr_db"][1:]})
    with pytest.raises(DataError, match=r"scores\.npz: .*as many clips"):
        gather(run)
    np.savez(path, start=arrays["start"])
    with pytest.raises(DataError, match=r"scores\.npz: expected episode and start"):
        gather(run)


def test_clips_are_said_to_be_of_their_episodes(tmp_path: Path) -> None:
    page = page_of(with_scores(run_of(tmp_path / "tiny")))
    numbers = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', page)[0])
    assert numbers["clips"][0] == "Best"
    assert numbers["origins"][0] == "episode 3, from frame 120", "the second of five clips among 48"


def test_findings_of_any_study_are_shown_with_all_their_numbers(tmp_path: Path) -> None:
    run = run_of(tmp_path / "tiny")
    path = run / "evaluation/metrics.json"
    found = (finding_of("regions", "<loses>"), finding_of("audit", "ignores"))
    replace(Evaluation.load(path), findings=found, not_computed={"uncertainty": "one draw only"}).save(path)
    page = page_of(run)
    for id, verdict in (("regions", "&lt;loses&gt;"), ("audit", "ignores")):
        section = text_of(page, id)
        assert f"About {id} {verdict} It does as it is told." in section
        assert "frozen &lt;states&gt; 6.50 6.25 to 6.75 \N{EN DASH}" in section
        assert "Joints (14 lines)" in section
        assert "Costs are paired." in section
        assert "deviations" in section
    order = [page.index(f'<section id="{id}">') for id in ("curves", "audit", "uncertainty", "regions", "results")]
    assert order == sorted(order)
    assert "Not computed: one draw only." in text_of(page, "uncertainty")
    assert "ignores the robot" in text_of(page, "summary")


def test_findings_of_several_runs_stand_under_their_names(tmp_path: Path) -> None:
    first, second = run_of(tmp_path / "first"), run_of(tmp_path / "second")
    path = first / "evaluation/metrics.json"
    replace(Evaluation.load(path), findings=(finding_of("audit"),)).save(path)
    section = text_of(page_of(first, second), "audit")
    assert section.index("first follows") < section.index("second Not computed: this evaluation is of a version")


def test_evaluations_of_other_horizons_have_a_part_of_their_own(tmp_path: Path) -> None:
    run = run_of(tmp_path / "world")
    shutil.copytree(run / "evaluation", run / "evaluation_10s")
    path = run / "evaluation_10s/metrics.json"
    far = replace(Evaluation.load(path), findings=(finding_of("drift", "beats it"),))
    replace(far, data=replace(far.data, horizon_frames=300)).save(path)
    page = page_of(run)
    section = text_of(page, "further")
    assert "world, 10s ahead This world was not audited" in section
    assert "About drift beats it It does as it is told." in section
    assert "300 future frames at 10 per second" in section
    assert "300 future frames" not in text_of(page, "results")
    assert page.count('<div class="player"') == 2
    assert "world, 10s ahead Not available: evaluation_10s/receipt.json is not in the run folder" in text_of(
        page, "receipts"
    )
    for name in ("evaluation", "config.json", "environment.json", "metrics.jsonl"):
        (shutil.rmtree if name == "evaluation" else Path.unlink)(run / name)
    alone = page_of(run)
    assert "This world was not audited" in text_of(alone, "summary")
    assert "world, 10s ahead" in alone
    path.write_text("{")
    with pytest.raises(DataError, match=r"evaluation_10s.metrics\.json"):
        gather(run)


def test_cards_say_what_a_checkpoint_says(tmp_path: Path) -> None:
    run = run_of(tmp_path / "world")
    for name in ("config.json", "model.json", "model.safetensors", "environment.json", "metrics.jsonl"):
        shutil.copy(builtin.COMPRESSION_TINY / name, run / name)
    card = json.loads((run / "model.json").read_text())
    shown = text_of(page_of(run), "cards")
    assert "kind st-transformer" in shown
    assert "parameters 2,399,541" in shown
    assert f"checkpoint step {card['step']}" in shown
    assert "3 token grids from 3" in shown
    assert f"recordings {len(card['trained_on']['contents'])}" in shown
    assert f"identity: tokenizer {card['identity']['tokenizer'][:12]}" in shown
    assert all(name in shown for name in card["contract"]["state_names"])
    assert "30 frames per second" in shown
    assert "48 of 12 episodes" in shown
    assert "licence not recorded" in shown


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        (builtin.TOKENIZER_TINY, "encodes 17 frames"),  # though a clip of its training is two blocks
        (builtin.TOKENIZER_DRIVEN, "encodes 1 frame"),
        (builtin.VAE_TINY, "encodes 21 frames"),
        (builtin.INVERSE_DYNAMICS_TINY, "reads 9 frames"),
    ],
)
def test_cards_say_how_many_frames_go_in_at_once(folder: Path, said: str) -> None:
    facts = dict(model_card(Model.newest(folder), None, None, None, None))
    assert facts["forecasts"] == f"no forecast, it {said} at once"


def test_cards_without_a_checkpoint_guess_nothing(tmp_path: Path) -> None:
    shown = text_of(page_of(run_of(tmp_path / "tiny")), "cards")
    assert "parameters not recorded: the run folder has no checkpoint" in shown
    assert "training data not recorded" in shown
    assert "training time 49.5 s" in shown


def test_cards_name_every_data_set_what_was_excluded_and_the_epochs() -> None:
    data = {"path": ["x/one", "x/two"], "val_path": ["y/three", "y/four"], "train_episodes": ":", "val_episodes": ":3"}
    config = {"data": data | {"exclude_episodes": [7, 12]}, "steps": 0, "epochs": 80.0, "batch_size": 160}
    facts = dict([*data_card(None, config, None), *model_card(None, config, None, None, None)])
    assert facts["training data"] == "one + two"
    assert facts["episodes"] == "training all, validation :3 of three + four; excluded of one + two: 7, 12"
    assert facts["training"] == "batch 160, 80 epochs, learning rate not recorded"


def test_a_damaged_checkpoint_names_its_file(tmp_path: Path) -> None:
    run = run_of(tmp_path / "tiny")
    folder = run / "checkpoints/step_0000100"
    folder.mkdir(parents=True)
    shutil.copy(builtin.COMPRESSION_TINY / "model.json", folder)
    (folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(DataError, match=r"model\.safetensors"):
        gather(run)


def test_a_receipt_that_does_not_agree_is_shown_and_said(tmp_path: Path) -> None:
    run = run_of(tmp_path / "tiny")
    receipt = {
        "command": "worldline evaluate <x>",
        "identities": {"data": {"clips": "ab12"}},
        "folder": "/srv/someone",
    }
    (run / "evaluation/receipt.json").write_text(json.dumps(receipt))
    shown = text_of(page_of(run), "receipts")
    assert "does not agree" in shown
    assert "edited or damaged" in shown
    assert "worldline evaluate &lt;x&gt;" in shown
    assert "ab12" in shown
    assert "worldline verify" in shown
    assert "someone" not in shown


@pytest.mark.parametrize(("count", "side"), [(1100, 256), (40, 256), (16, 4000), (1, 64)])
def test_no_sheet_has_a_side_that_webp_and_browsers_refuse(count: int, side: int) -> None:
    columns = films._columns(np.broadcast_to(np.uint8(0), (count, side, side, 3)))
    assert columns * side <= films.LONGEST_SIDE
    assert -(-count // columns) * side <= films.LONGEST_SIDE
