"""The viewer's server: driving is a motion, the past can be reached again, tabs are apart, and nobody else gets in."""

import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import TWO_JOINTS, write_followed_tokens, write_squares
from latent_builders import PATTERN, of_latents, of_tokens
from PIL import Image
from viewer_builders import Remembering, Served, served, squares_stage
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from worldline.builtin import TWIN_MINI_VAL
from worldline.contract import FramePattern
from worldline.data.clips import DataConfig, open_clips
from worldline.data.splits import recording_of
from worldline.encoding.encode import encode
from worldline.forecasting.forecaster import CopyLast, Forecaster
from worldline.formats.open import open_source
from worldline.formats.states import ONEX_LAYOUT
from worldline.formats.video import frame_times
from worldline.schema import DataError, StateLayout, UsageError
from worldline.twin.simulation import can_draw
from worldline.viewer import branches
from worldline.viewer.exports import Copied, Exports
from worldline.viewer.guard import Guard
from worldline.viewer.joints import limb_of, ranges_of, unit_of
from worldline.viewer.pictures import decoded, encoded, heat
from worldline.viewer.player import Player, Wish
from worldline.viewer.protocol import BadMessageError, read
from worldline.viewer.recording import Recording
from worldline.viewer.server import listening
from worldline.viewer.stage import Stage, ViewOptions, refuse_unseen, stage_of
from worldline.viewer.trust import Gauge, Usual, calibrated

UP, DOWN = Wish(states={0: 1.0, 1: 0.9}, number=1), Wish(states={0: 0.0}, number=2)
G1 = ("kLeftHipPitch", "left_hip_pitch_joint", "waist_yaw_joint", "left_hand_thumb_0_joint", "right_wrist_roll_joint")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squares(tmp_path_factory.mktemp("viewer") / "squares", 3)


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Served]:
    with served(squares_stage(root, Remembering(), sessions=3, max_frames=400)) as found:
        yield found


WORLDS = {"frame by frame": Remembering(), "five at once": Remembering(chunk=5), "tokens": of_tokens()}


@pytest.fixture(
    scope="module", params=[*list(WORLDS)[:2], pytest.param("tokens", marks=pytest.mark.slow)], ids=list(WORLDS)
)
def stage(request: pytest.FixtureRequest, root: Path) -> Stage:
    return squares_stage(root, WORLDS[request.param])


# --- driving ---


def test_a_jump_of_a_slider_is_a_motion_no_faster_than_the_data(stage: Stage) -> None:
    player = Player(stage)
    begin = player.branch.rows[-1].copy()
    rows = [begin] + [player.branch.rows[player.next(UP).moment.time] for _ in range(30)]
    steps = np.abs(np.diff(np.stack(rows), axis=0))
    assert (steps <= stage.ranges.step * 1.0001).all()
    assert rows[-1] == pytest.approx([1.0, 0.9])
    assert np.abs(begin - [1.0, 0.9]).max() > 2 * stage.ranges.step.max(), "the jump would be none"


def test_limits_are_what_the_data_do(root: Path) -> None:
    source = open_source(root)
    rows = np.stack([source.read_states(episode) for episode in range(3)])
    ranges = ranges_of(source, range(3))
    assert np.array_equal(ranges.low, rows.min(axis=(0, 1)))
    assert np.array_equal(ranges.high, rows.max(axis=(0, 1)))
    changes = np.abs(np.diff(rows, axis=1))
    assert (ranges.step <= changes.max(axis=(0, 1))).all()
    assert ((changes <= ranges.step).mean(axis=(0, 1)) > 0.98).all()


@pytest.mark.parametrize("to", [9, 20])
def test_what_is_driven_again_from_an_earlier_frame_comes_out_the_same(
    stage: Stage, to: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worldline.viewer.player.SNAPSHOT_BYTES", 1)  # keep hardly any: the others are made again
    player = Player(stage)
    to += player.context
    pictures = [player.next(UP).moment.picture for _ in range(26)]
    kept = len(player.branch.snapshots)
    assert player.rewind(to, UP).moment.picture == pictures[to - player.context]
    again = [player.next(replace(UP, number=5)).moment.picture for _ in range(player.context + 25 - to)]
    assert again == pictures[to - player.context + 1 :]
    assert len(set(pictures)) > 10
    if stage.forecaster.chunk_frames == 1:
        assert kept < 4


def test_another_wish_changes_what_comes_and_nothing_that_was(stage: Stage) -> None:
    player = Player(stage)
    before = [player.next(UP).moment.picture for _ in range(12)]
    player.fork("other")
    other = [player.next(DOWN).moment.picture for _ in range(18)]
    player.switch("b1", UP)
    assert [moment.picture for moment in player.branch.moments[player.context :]] == before
    on = [player.next(UP).moment.picture for _ in range(18)]
    assert on != other
    straight = Player(stage)
    assert [straight.next(UP).moment.picture for _ in range(30)] == before + on
    assert player.tree.frames == player.context + 12 + 18 + 18


def test_a_new_wish_is_obeyed_within_a_chunk(root: Path) -> None:
    player = Player(squares_stage(root, Remembering(chunk=20)))
    for _ in range(3):
        player.next(UP)
    goal = player.branch.rows[-1].copy()
    time.sleep(0.05)  # a chunk is not made again at once: that would take all the time
    shot = player.next(replace(DOWN, drives=7))
    assert shot.drives == 7
    assert shot.timing.queue == 0, "it is not known when this was wanted"
    assert player.branch.rows[-1][0] < goal[0]
    assert len(player.branch.moments) == player.context + 4
    asked = replace(UP, number=9, since=time.perf_counter() - 1)
    time.sleep(0.05)
    assert player.next(asked).timing.queue >= 1000
    assert player.next(asked).timing.queue == 0


def test_kept_frames_are_played_again_until_something_else_is_wanted(stage: Stage) -> None:
    player = Player(stage)
    pictures = [player.next(UP).moment.picture for _ in range(10)]
    player.rewind(player.context, UP)
    assert player.next(UP).moment.picture == pictures[1]
    assert len(player.branch.moments) == player.context + 10
    player.next(DOWN)
    assert len(player.branch.moments) == player.context + 3


def test_a_recorded_motion_is_followed_exactly_with_its_true_frames(stage: Stage) -> None:
    player, wish = Player(stage), Wish(motion=0, number=1)
    own = player.recording.states
    for _ in range(20):
        shot = player.next(wish)
        assert np.array_equal(player.branch.rows[shot.moment.time], own[shot.moment.time])
    truth = player.truth(shot)
    assert truth is not None
    assert np.array_equal(truth, player.recording.frame(shot.moment.time))
    ended = [player.next(wish).ended for _ in range(len(own) - 20)]
    assert any(ended)
    player.rewind(player.context + 5, wish)
    assert player.truth(player.next(DOWN)) is None


def test_another_clips_motion_is_come_up_to_first(stage: Stage) -> None:
    player, wish = Player(stage), Wish(motion=1, number=1)
    theirs = stage.recording(1).states
    for _ in range(len(theirs) + 30):
        player.next(wish)
        if np.array_equal(player.branch.rows[-1], theirs[-1]):
            break
    rows = np.stack(player.branch.rows[player.context :])
    assert (np.abs(np.diff(rows, axis=0)) <= np.maximum(stage.ranges.step, np.abs(np.diff(theirs, axis=0)).max())).all()
    inside = [np.abs(rows[i : i + 20] - theirs[5:25]).max() for i in range(len(rows) - 20)]
    assert min(inside) < 1e-6, "from some frame on the motion is followed as it was recorded"


def test_branches_have_names_of_their_own_and_the_current_one_stays(stage: Stage) -> None:
    player = Player(stage)
    player.fork("pick")
    with pytest.raises(UsageError, match="'pick' already"):
        player.fork("pick")
    player.fork(None)
    tree = player.tree
    assert [info.name for info in tree.infos] == ["main", "pick", "branch 1"]
    with pytest.raises(UsageError, match="current"):
        tree.drop("b3")
    with pytest.raises(UsageError, match="no branch 'b9'; there are: b1, b2, b3"):
        player.switch("b9", UP)
    tree.drop("b2")
    assert [(info.id, info.parent) for info in tree.infos] == [("b1", None), ("b3", "b1")]
    tree.rename("b1", "pick")
    for _ in range(branches.MOST_BRANCHES - 2):
        player.fork(None)
    with pytest.raises(UsageError, match="64 branches already"):
        player.fork(None)


def test_a_branch_from_within_the_context_begins_behind_it(stage: Stage) -> None:
    player = Player(stage)
    player.rewind(1, UP)
    player.fork(None)
    assert player.branch.head == player.context - 1
    player.next(UP)
    player.rewind(0, UP)
    player.next(DOWN)
    assert len(player.branch.moments) == player.context + 1


def test_a_session_keeps_so_many_frames_and_says_when_they_are_used_up(root: Path) -> None:
    player = Player(squares_stage(root, Remembering(), max_frames=100))
    for _ in range(100 - player.context):
        player.next(UP)
    with pytest.raises(UsageError, match="keeps 100 frames"):
        player.next(UP)
    assert player.tree.frames == 100
    player.rewind(10, UP)
    player.fork(None)
    with pytest.raises(UsageError, match="drop a branch"):
        player.next(UP)
    player.tree.drop("b1")
    player.next(UP)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokens on disk", "latents"])
def test_both_families_are_driven_from_what_their_data_hold(kind: str, tmp_path: Path) -> None:
    forecaster = of_tokens() if kind == "tokens on disk" else of_latents()
    root = (
        write_followed_tokens(tmp_path / "d", 2) if kind == "tokens on disk" else write_squares(tmp_path / "d", 2, 120)
    )
    window = forecaster.context_frames + forecaster.lookahead_frames
    clips = open_clips(DataConfig(path=root, pattern=FramePattern(window=window), window_stride=window), "val")
    stage = stage_of(forecaster, clips, None, ViewOptions(), world="world")
    player, own = Player(stage), Wish(motion=0, number=1)
    shots = [player.next(own) for _ in range(12)]
    times = [shot.moment.time for shot in shots]
    assert set(np.diff(times)) == {forecaster.pace}
    assert times == [player.time_of(shot.index) for shot in shots]
    assert all(player.truth(shot) is not None for shot in shots)
    pictures = [shot.moment.picture for shot in shots]
    player.rewind(player.context + 3, own)
    assert [player.next(replace(own, number=2)).moment.picture for _ in range(8)] == pictures[4:]
    welcome = stage.welcome()
    assert {one.id for one in welcome.overlays if one.available} == {"difference", *OVERLAYS[kind]}
    assert welcome.fps == 30.0 / forecaster.pace
    copied = Copied.of(player.branch, player.recording)
    _, path = Exports(folder=tmp_path, most=100).write(copied, "lerobot-v3.0", stage)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "out")
    source = open_source(tmp_path / "out" / path.stem)
    assert source.fps == welcome.fps
    assert np.allclose(source.read_states(0), copied.states)
    assert recording_of(source, 0) == recording_of(clips.source, player.recording.episode), "held out with its context"
    assert source.episodes[0].provenance["start"] == player.recording.start


def test_of_latents_on_disk_the_truth_is_known_at_the_times_of_a_forecast(tmp_path: Path) -> None:
    """They are decoded at their pace: a frame in four of the window, all of which a forecast is compared with."""
    forecaster, data = of_latents(), write_squares(tmp_path / "d", 2, 120)
    encode(
        open_source(data),
        forecaster.tokenizer,
        tmp_path / "l",
        pattern=PATTERN,
        fingerprint="-",
        size=16,
        episodes=(0, 1),
        window_stride=8,
    )
    config = DataConfig(path=tmp_path / "l", pattern=PATTERN, window_stride=8, train_episodes=":1", val_episodes="1:")
    clips = open_clips(config, "val")
    recording = Recording(clips=clips, number=0, forecaster=forecaster)
    assert recording.length == PATTERN.window
    assert all(recording.frame(time) is not None for time in (*forecaster.shown_context, *forecaster.times))
    assert recording.frame(1) is None, "not decoded"


OVERLAYS = {"tokens on disk": {"entropy"}, "latents": {"spread"}}


# --- sliders, trust, pictures ---


def test_joints_are_grouped_by_the_words_of_their_names() -> None:
    limbs = dict(zip(ONEX_LAYOUT.names, map(limb_of, ONEX_LAYOUT.names), strict=True))
    assert limbs["LEFT_SHOULDER_PITCH"] == limbs["LEFT_WRIST_ROLL"] == "left arm"
    assert (limbs["HIP_YAW"], limbs["NECK_PITCH"], limbs["RIGHT_HAND_CLOSURE"]) == ("legs", "head", "right hand")
    assert limbs["LINEAR_VELOCITY"] == limbs["ANGULAR_VELOCITY"] == "base"
    assert [limb_of(name) for name in G1] == ["left leg", "left leg", "trunk", "left hand", "right arm"]
    assert [limb_of(name) for name in ("left_arm.shoulder.pos", "l_gripper", "motor_3", "base_yaw_rate")] == [
        *("left arm", "left hand", "other", "base")
    ]
    units = [unit_of(*one) for one in zip(ONEX_LAYOUT.names, ONEX_LAYOUT.kinds, strict=True)]
    assert units[-4:] == ["0..1", "0..1", "m/s", "rad/s"]
    assert units[0] == "rad"


def test_words_come_from_what_the_data_do() -> None:
    usual = Usual.of(np.arange(101.0))
    assert [usual.word(value) for value in (95.0, 96.0, 105.0, 106.0)] == ["known", "unsure", "unsure", "leaving"]
    gauge = Gauge.within(("a", "b"), np.array([0.0, -1.0]), np.array([2.0, 1.0]))
    gauge = replace(gauge, usual={"states": Usual(most=1.0, largest=1.1), "entropy": Usual(most=2.0, largest=3.0)})
    assert gauge.read(np.array([[1, 0]], np.float32), {"entropy": 1.0}).word == "known"
    assert gauge.read(np.array([[1, 0]], np.float32), {"entropy": 2.5}).word == "unsure"
    found = gauge.read(np.array([[1, 0], [1, 1.5]], np.float32), {"entropy": 1.0})
    assert (found.word, found.outside, found.signals) == ("leaving", ("b",), {"states": 1.5, "entropy": 0.5})
    wider = replace(gauge, usual={"states": Usual(most=1.6, largest=1.7)})
    assert wider.read(np.array([[1, 1.5]], np.float32), {}).outside == (), "the data's own are as far out"


def test_a_world_over_tokens_is_calibrated_on_its_own_roll_outs(root: Path) -> None:
    stage = squares_stage(root, of_tokens())
    entropy = stage.gauge.usual["entropy"]
    assert 0 < entropy.middle <= entropy.most <= entropy.largest <= np.log(200)
    again = calibrated(stage.gauge, stage.forecaster, [stage.recording(0)], fps=30.0)
    assert again.usual["entropy"].largest <= entropy.largest
    player = Player(stage)
    shot = player.next(UP)
    assert shot.moment.maps["entropy"].shape == (2, 2)
    assert shot.moment.trust.signals["entropy"] > 0
    assert stage.gauge.usual["round_trip"].middle > 0
    for _ in range(29):
        shot = player.next(UP)
    assert shot.moment.trust.signals["round_trip"] > 0


def test_states_outside_of_training_are_named(root: Path) -> None:
    player = Player(squares_stage(root, Remembering()))
    for _ in range(60):
        shot = player.next(Wish(states={0: 3.0}, number=1))
    assert (shot.moment.trust.word, shot.moment.trust.outside) == ("leaving", ("elbow",))


def test_pictures_lose_nothing_and_maps_are_clear_where_they_are_low() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(decoded(encoded(frame)[1]), frame)
    picture = np.array(Image.open(io.BytesIO(heat(np.array([[0.0, 5.0], [2.5, 9.0]]), low=0.0, high=5.0, size=(8, 8)))))
    assert picture.shape == (8, 8, 4)
    assert (picture[0, 0, 3], picture[0, 7, 3], picture[7, 7, 3]) == (0, 200, 200)
    assert picture[7, 7, :3].tolist() == [240, 249, 33]


# --- over the wire ---


def test_a_page_opens_drives_and_ends(server: Served) -> None:
    with server.page() as page:
        assert (page.welcome["world"], page.welcome["fps"], page.welcome["chunk"]) == ("remembering", 30.0, 1)
        assert [joint["name"] for joint in page.welcome["joints"]] == ["elbow", "gripper"]
        assert page.state["frame"] == page.state["context"] - 1
        page.say("drive", states={"elbow": 0.9})
        page.say("play", on=True, rate=60)
        shown = [page.shown() for _ in range(20)]
        frames = [header.frame for header, _ in shown if not header.looked]
        assert frames == list(range(frames[0], frames[0] + len(frames)))
        header, pictures = shown[-1]
        assert header.states["elbow"] == pytest.approx(0.9, abs=0.5)
        assert header.drive == 1
        assert decoded(pictures[0]).shape == (16, 16, 3)
        page.say("play", on=False)
        assert not page.told("state")["playing"]
        page.say("bye")
        with pytest.raises(ConnectionClosed):  # what was under way comes first
            [page.hear() for _ in range(5)]
    assert server.until(tabs=0)


def test_no_more_frames_are_sent_than_are_acknowledged(server: Served) -> None:
    with server.page() as page:
        page.acknowledges = False
        page.say("play", on=True, rate=60)
        page.told("state")
        seen = [message[0].seq for message in page.silent_after(0.4) if isinstance(message, tuple)]
        assert len(seen) <= 2
        for target in range(40):  # of these only the newest is left when frames are made again
            page.say("drive", states={"elbow": target / 40})
        page.say("ack", seq=max(seen, default=1))
        assert page.shown()[0].drive == 40


BAD: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "Invalid JSON"),
    "no object": ("[]", "object"),
    "unknown type": ('{"type": "dance"}', "there is no message 'dance'; there are: 'hello'"),
    "unknown field": ('{"type": "step", "x": 1}', "Extra inputs"),
    "not a number": ('{"type": "drive", "states": {"elbow": NaN}}', "finite"),
    "too large a number": ('{"type": "drive", "states": {"elbow": 1e30}}', "less than"),
    "unknown state": ('{"type": "drive", "states": {"tail": 1}}', "no state 'tail'; there are: elbow, gripper"),
    "no such rate": ('{"type": "play", "on": true, "rate": 1e9}', "less than"),
    "no such frame": ('{"type": "rewind", "to": 99}', "not 99"),
    "negative frame": ('{"type": "rewind", "to": -1}', "greater than"),
    "no such clip": ('{"type": "open", "clip": 99}', "no clip 99"),
    "no such motion": ('{"type": "motion", "clip": 99, "on": true}', "no clip 99"),
    "no such branch": ('{"type": "switch", "branch": "b7"}', "no branch 'b7'"),
    "no such branch beside": ('{"type": "beside", "branches": ["b7"]}', "no branch 'b7'"),
    "a name with a path": ('{"type": "branch", "name": "../../x"}', "pattern"),
    "drop the current one": ('{"type": "drop", "branch": "b1"}', "current"),
    "no such overlay": ('{"type": "overlay", "kind": "entropy"}', "this world has no tokens"),
    "no twin": ('{"type": "twin", "on": true}', "no live twin here"),
    "no such format": ('{"type": "export", "branch": "b1", "format": "exe"}', "mp4"),
    "hello again": ('{"type": "hello", "version": 1}', "already"),
    "too long": (json.dumps({"type": "drive", "states": {"a" * 70_000: 1}}), "at most 65536"),
    "binary": (b"\x00\x01", "binary"),
}


def test_a_bad_message_gets_an_error_and_the_session_lives_on(server: Served) -> None:
    with server.page() as page:
        for name, (sent, said) in BAD.items():
            page.socket.send(sent)
            assert said in page.told("error")["message"], name
            assert page.steps(1)[0][0].frame > 0, name


def test_a_frame_or_branch_that_there_is_not_leaves_what_is_wanted(server: Served) -> None:
    with server.page() as page:
        page.say("motion", clip=0, on=True)
        assert page.told("state")["motion"] == 0
        for name, wrong in (("rewind", {"to": 99}), ("switch", {"branch": "b9"})):
            page.asked(name, **wrong)
            page.say("play", on=False)
            assert page.told("state")["motion"] == 0, name


def test_too_many_messages_are_not_read(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldline.viewer.tab.MOST_MESSAGES", 20)
    with server.page() as page:
        for _ in range(100):
            page.say("drive", states={"elbow": 0.5})
        assert "messages a second" in page.told("error")["message"]
        time.sleep(0.2)
        assert page.steps(1)


def test_the_first_message_is_hello_of_this_version(server: Served) -> None:
    for first, said in (
        ('{"type": "step"}', "not step"),
        ('{"type": "hello", "version": 99}', "version 1, not 99"),
        ("x", "JSON"),
    ):
        with connect(f"ws://127.0.0.1:{server.port}/live") as socket:
            socket.send(first)
            assert said in json.loads(socket.recv())["message"]
            with pytest.raises(ConnectionClosed):
                socket.recv(timeout=5)
    assert server.until(tabs=0)


def test_two_tabs_do_not_disturb_each_other(server: Served) -> None:
    def driven(page: Any, elbow: float, pictures: list[bytes]) -> None:
        page.say("drive", states={"elbow": elbow})
        page.asked("nonsense")
        pictures += [shown[0] for _, shown in page.steps(25)]

    alone: list[bytes] = []
    with server.page() as page:
        driven(page, 0.9, alone)
    one, two = list[bytes](), list[bytes]()
    with server.page() as first, server.page() as second:
        threads = [
            threading.Thread(target=driven, args=each) for each in ((first, 0.9, one), (second, 0.1, two))
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert one == alone
    assert two != alone
    assert len(two) == 25


def test_a_closed_tab_frees_its_session_and_too_many_are_told(server: Served) -> None:
    assert server.until(tabs=0)
    before = sum(thread.name.startswith("session") for thread in threading.enumerate())
    with server.page(), server.page(), server.page():
        with connect(f"ws://127.0.0.1:{server.port}/live") as socket:
            assert "3 tabs are open already" in json.loads(socket.recv())["message"]
        assert json.loads(server.get("/status")[1])["sessions"] == 3
    assert server.until(tabs=0)
    time.sleep(0.05)
    assert sum(thread.name.startswith("session") for thread in threading.enumerate()) <= before
    with server.page() as page:
        assert page.steps(1)


def test_time_that_stands_still_is_no_waiting(server: Served) -> None:
    with server.page() as page:
        for go in ({}, {"on": True}):
            page.say("drive", states={"elbow": 0.5 + len(go)})
            time.sleep(1.2)
            page.say("play" if go else "step", **go)
            header, _ = page.shown(lambda shown: shown.made)
            assert 0 < header.timing_ms.queue < 1000


def test_branches_are_seen_side_by_side_and_looked_at(server: Served) -> None:
    with server.page() as page:
        page.say("drive", states={"elbow": 1.0})
        main = page.steps(12)
        page.say("rewind", to=main[3][0].frame)
        assert page.shown()[1] == main[3][1]
        page.say("branch", name="other")
        assert page.told("state", lambda state: len(state["branches"]) == 2)["branch"] == "b2"
        page.say("beside", branches=["b1"])
        page.shown(lambda shown: len(shown.pictures) == 2)  # the same frame, with the other one beside it
        page.say("drive", states={"elbow": 0.0})
        header, pictures = page.steps(2)[-1]
        assert [(picture.kind, picture.branch) for picture in header.pictures] == [("forecast", "b2"), ("beside", "b1")]
        assert pictures[1] == main[5][1][0]
        assert pictures[0] != pictures[1]
        page.say("look", branch="b1", frame=main[9][0].frame)
        header, pictures = page.shown(lambda shown: shown.looked)
        assert pictures[0] == main[9][1][0]
        page.say("look", branch="recorded", frame=30)
        header, pictures = page.shown(lambda shown: shown.branch == "recorded")
        assert header.real
        truth = page_recording(server).frame(30)
        assert np.array_equal(decoded(pictures[0]), truth)
        assert page.state["branch"] == "b2"


def page_recording(server: Served) -> Any:
    return server.app.state.server.stage.recording(0)


def test_true_frames_lie_beside_the_clips_own_motion_and_the_difference_is_shown(server: Served) -> None:
    with server.page() as page:
        page.say("overlay", kind="difference")
        page.say("motion", clip=0, on=True)
        page.told("state", lambda state: state["motion"] == 0)
        header, pictures = page.steps(5)[-1]
        assert [picture.kind for picture in header.pictures] == ["forecast", "truth", "overlay"]
        assert np.array_equal(decoded(pictures[1]), page_recording(server).frame(header.frame))
        page.say("play", on=True, rate=60)
        ended = page.told("state", lambda state: state["motion"] is None)
        assert ended["playing"]
        page.say("drive", states={"elbow": 0.2})
        assert page.steps(1)
        page.say("play", on=False)


def test_wanted_states_outside_of_the_data_are_clipped_refused_or_allowed(root: Path) -> None:
    ends = {}
    for how in ("clip", "refuse", "allow"):
        with served(squares_stage(root, Remembering(), outside=how)) as found, found.page() as page:
            page.say("drive", states={"elbow": 7.0})
            if how == "refuse":
                assert "elbow 7 (the data have " in page.told("error")["message"]
            page.say("play", on=False)
            state = page.told("state")
            ends[how] = state["target"]["elbow"], state["outside"]
    source = open_source(root)
    high = max(float(source.read_states(episode)[:, 0].max()) for episode in range(3))
    assert ends["clip"] == (pytest.approx(high), 1)
    assert ends["refuse"] == (pytest.approx(source.read_states(0)[3, 0]), 1)
    assert ends["allow"] == (7.0, 0)


def test_a_silent_tab_is_closed(root: Path) -> None:
    with served(squares_stage(root, Remembering(), idle_minutes=0.005)) as found, found.page() as page:
        assert "the session ends" in page.told("error")["message"]
        assert found.until(tabs=0)


# --- the live twin ---


@pytest.fixture(scope="module")
def of_the_twin() -> Stage:
    if not can_draw():
        pytest.skip("the twin cannot draw here")
    clips = open_clips(DataConfig(path=TWIN_MINI_VAL, pattern=FramePattern(window=9), window_stride=60), "val")
    copied = CopyLast(context_frames=8, times=(8,), chunk_frames=1)
    return stage_of(copied, clips, None, ViewOptions(), world="copy-last")


def test_the_twin_moves_under_the_same_states_and_follows_wherever_one_goes(of_the_twin: Stage) -> None:
    with served(of_the_twin) as found, found.page() as page:
        assert page.welcome["twin"] == {"available": True, "why": ""}
        page.say("twin", on=True)
        page.told("state", lambda state: state["twin"])
        page.say("motion", clip=0, on=True)
        page.told("state", lambda state: state["motion"] == 0)
        own = [(header, dict(zip(kinds(header), pictures, strict=True))) for header, pictures in page.steps(20)]
        _, pictures = own[-1]
        assert {"forecast", "truth", "twin"} <= pictures.keys()
        frames = {kind: decoded(picture).astype(float) for kind, picture in pictures.items()}
        true, copy = (np.square(frames["truth"] - frames[kind]).mean() for kind in ("twin", "forecast"))
        assert true < 0.3 * copy, "what the robot saw there, and not what it saw at first"
        page.say("branch", name="other")
        page.say("drive", states={"LEFT_ELBOW_PITCH": 0.0})
        page.told("state", lambda state: state["branch"] == "b2")
        other = page.steps(6)[-1]
        page.say("switch", branch="b1")
        again = page.shown(lambda shown: shown.branch == "b1")
        page.say("look", branch="b1", frame=own[9][0].frame)
        seen, pictures = page.shown(lambda shown: shown.looked)
        looked = decoded(pictures[kinds(seen).index("twin")]).astype(int)
        assert np.abs(looked - decoded(own[9][1]["twin"])).max() < 2, "also where one only looks"
        assert np.abs(decoded(again[1][kinds(again[0]).index("twin")]) - frames["twin"]).max() < 2
        page.say("motion", clip=0, on=True)
        page.told("state", lambda state: state["motion"] == 0)
        on = page.steps(6)[-1]
        assert on[0].frame == other[0].frame
        twins = [decoded(pictures[kinds(header).index("twin")]) for header, pictures in (on, other)]
        assert not np.array_equal(*twins)


def kinds(header: Any) -> list[str]:
    return [picture.kind for picture in header.pictures]


# --- exports ---


def test_exports_are_playable_and_hold_what_was_driven(server: Served, tmp_path: Path) -> None:
    with server.page() as page:
        page.say("drive", states={"elbow": 1.0})
        shown = page.steps(20)
        files = {}
        for form in ("mp4", "gif", "lerobot-v3.0", "lerobot-v2.1"):
            page.say("export", branch="b1", format=form)
            told = page.told("exported")
            status, data, headers = server.get(told["url"])
            assert (status, len(data)) == (200, told["bytes"])
            assert told["name"] in headers["content-disposition"]
            files[form] = tmp_path / told["name"]
            files[form].write_bytes(data)
        assert server.get(told["url"] + "x")[0] == 404
        assert server.get(f"/exports/{'a' * 24}/{told['name']}")[0] == 404
        context = page.state["context"]
    assert len(frame_times(files["mp4"]).ticks) == context + 20
    with Image.open(files["gif"]) as animation:
        assert animation.n_frames == context + 20
    for form in ("lerobot-v3.0", "lerobot-v2.1"):
        with zipfile.ZipFile(files[form]) as archive:
            assert not [name for name in archive.namelist() if "/." in name or ".." in name]
            archive.extractall(tmp_path / form)
        source = open_source(tmp_path / form / files[form].stem)
        assert (source.kind, source.fps, source.layout.names) == (form, 30.0, TWO_JOINTS.names)
        states = source.read_states(0)[context:]
        wanted = [[header.states[name] for name in TWO_JOINTS.names] for header, _ in shown]
        assert np.allclose(states, wanted, atol=1e-6)
        frames = torch.cat(list(source.frames(0, context, context + 20)))
        assert (frames[-1].float().mean(dim=(1, 2)) - torch.from_numpy(decoded(shown[-1][1][0])).float().mean((0, 1))
                ).abs().max() < 6  # fmt: skip
    assert server.until(tabs=0)
    assert server.get(told["url"])[0] == 404, "a file ends with its session"


def test_a_file_is_found_whatever_the_run_is_called(root: Path) -> None:
    odd = replace(squares_stage(root, Remembering()), world="run #1? 50% \u00fc")
    with served(odd) as found, found.page() as page:
        page.say("rename", branch="b1", name="\u00dcber den Tisch")
        page.say("export", branch="b1", format="gif")
        told = page.told("exported")
        assert found.get(told["url"])[0] == 200
        assert told["name"] == "run_#1?_50%_\u00fc_\u00dcber_den_Tisch.gif"


# --- who gets in, and to what ---


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "https://localhost.evil.example", "null", "file://", "http://"]
)
def test_pages_from_elsewhere_are_refused(server: Served, origin: str) -> None:
    assert server.get("/status", Origin=origin)[0] == 403
    with pytest.raises(InvalidStatus) as refused, server.page(Origin=origin):
        pass
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:8000", "127.0.0.1.nip.io", "10.0.0.7", "x@localhost"]
)
def test_other_names_of_this_machine_are_refused(server: Served, host: str) -> None:
    assert server.get("/status", Host=host)[0] == 403


def test_a_tunnel_of_another_port_is_let_in(server: Served) -> None:
    for host in ("localhost:9999", "127.0.0.1:1", "[::1]:8000", "LOCALHOST"):
        status, _, headers = server.get("/status", Host=host, Origin=f"http://{host}")
        assert status == 200
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
    with server.page(Origin="http://localhost:9999") as page:
        assert page.steps(1)


def test_further_names_and_addresses_are_let_in_where_told() -> None:
    async def app(*_: Any) -> None:
        raise AssertionError

    guard = Guard(app, allowed=["robot-lab"], addresses=True)
    assert guard.problem("robot-lab:8000", ["http://robot-lab:8000"]) is None
    assert guard.problem("192.168.0.7:8000", ["http://192.168.0.7:8000"]) is None
    assert guard.problem("robot-lab.evil.example", []) is not None
    assert guard.problem(None, []) is not None
    assert guard.problem("robot-lab", ["http://localhost", "http://evil.example"]) is not None


PATHS = (
    "/../pyproject.toml",
    "/%2e%2e/server.py",
    "/..%2fserver.py",
    "//etc/passwd",
    "/static/index.html",
    "/server.py",
)
PATHS += ("/exports/../../server.py", "/exports/%2e%2e/%2e%2e/etc/passwd", "/..\\server.py", "/%00", "/docs")
PATHS += ("/openapi.json", "/exports/", "/live")


@pytest.mark.parametrize("path", PATHS)
def test_no_other_file_can_be_fetched(server: Served, path: str) -> None:
    assert server.get(path)[0] in (400, 403, 404, 405)


def test_an_address_in_use_is_said(server: Served) -> None:
    with pytest.raises(UsageError, match=f"port {server.port}: Address already in use; give another --port"):
        listening("127.0.0.1", server.port)
    with pytest.raises(UsageError, match=r"cannot listen on 203\.0\.113\.1"):
        listening("203.0.113.1", 0)


@pytest.mark.slow
def test_the_verb_serves_until_it_is_interrupted_and_ends_cleanly() -> None:
    command = [sys.executable, "-m", "worldline", "view", "compression-tiny", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = next(found[1] for line in process.stderr if (found := re.search(r"http://(\S+)", line)))
        with connect(f"ws://{address}/live", max_size=None) as socket:
            socket.send('{"type": "hello", "version": 1}')
            assert json.loads(socket.recv())["world"] == "compression-tiny"
            socket.send('{"type": "play", "on": true}')
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 0
        assert "Traceback" not in process.stderr.read()


def test_messages_are_exactly_those_of_the_protocol() -> None:
    assert read('{"type": "drive", "states": {"a": -1.5}}').states == {"a": -1.5}
    assert read('{"type": "drive", "states": {"a": 1}}').states == {"a": 1.0}
    assert read('{"type": "beside", "branches": ["b1"]}').branches == ("b1",)
    for number in ('"x"', '"1.5"', "true", "NaN", "1e99"):
        with pytest.raises(BadMessageError) as bad:
            read('{"type": "drive", "states": {"a": ' + number + "}}")
        assert bad.value.where == "drive.states.a"
    for said in ('"yes"', "1", "null"):
        with pytest.raises(BadMessageError) as bad:
            read('{"type": "twin", "on": ' + said + "}")
        assert bad.value.where == "twin.on"


def test_a_world_that_shows_nothing_or_cannot_go_on_is_refused(root: Path, tmp_path: Path) -> None:
    unseen: Forecaster = replace(of_tokens(), tokenizer=None)
    with pytest.raises(UsageError, match="--tokenizer DIR"):
        refuse_unseen(unseen, tmp_path)
    once = Remembering()
    vars(once).update(chunk_frames=0)
    with pytest.raises(UsageError, match="cannot go on"):
        refuse_unseen(once, tmp_path)
    assert isinstance(TWO_JOINTS, StateLayout)


def test_frames_that_cannot_be_read_do_not_stop_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, whole = squares_stage(tmp_path / "squares", Remembering()), Recording.frame

    def broken(self: Recording, at: int) -> Any:
        if at >= 4:
            raise DataError(tmp_path, expected="a video", found="damage", fix="Copy it again.")
        return whole(self, at)

    monkeypatch.setattr(Recording, "frame", broken)
    with served(stage) as server, server.page() as page:
        page.say("motion", clip=0, on=True)
        for _ in range(4):
            assert "damage" in page.asked("step")["message"]
        page.say("open", clip=1)
        assert page.shown()[0].frame == 3


def test_a_clip_that_cannot_be_opened_leaves_the_page_where_it_was(tmp_path: Path) -> None:
    with served(squares_stage(tmp_path / "squares", Remembering())) as server, server.page() as page:
        frame = page.steps(2)[-1][0].frame
        assert "no clip 99" in page.asked("open", clip=99)["message"]
        state = page.told("state")
        assert (state["clip"], state["frame"]) == (0, frame)


def test_looks_at_several_branches_are_all_answered(tmp_path: Path) -> None:
    with served(squares_stage(tmp_path / "squares", Remembering())) as server, server.page() as page:
        for _ in range(3):
            page.steps(1)
            page.say("branch")
            page.told("state")
        page.acknowledges = False
        page.say("play", on=True, rate=60)
        page.silent_after(0.3)  # two frames are unseen: what is asked for now waits
        page.say("play", on=False)
        for branch in ("b1", "b2", "b3"):
            for frame in (0, 1):
                page.say("look", branch=branch, frame=frame)
        page.silent_after(0.2)
        page.acknowledges = True
        page.say("ack", seq=2**40)
        found = [one[0] for one in page.silent_after(0.5) if isinstance(one, tuple)]
        assert [(one.branch, one.frame) for one in found if one.looked] == [("b1", 1), ("b2", 1), ("b3", 1)]
