"""The humanoid twin: EVE's joints, exact physics, arms that touch things, data that can be made again."""

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from data_builders import decode

from worldline.builtin import TWIN_MINI_VAL
from worldline.formats.video import probe
from worldline.schema import UsageError
from worldline.twin.behaviour import Behaviour
from worldline.twin.generate import TwinConfig, generate, record_episode, resume
from worldline.twin.scene import (
    CAMERA,
    INDEX,
    JOINTS,
    LAYOUT,
    MODEL,
    SIDES,
    Scene,
    Side,
    arm_slice,
    neutral,
    random_scene,
)
from worldline.twin.simulation import Simulation, load_mujoco

URDF = Path(__file__).parents[2] / "shared/robots/eve_r3_description/urdf/eve_r3.urdf"
TINY = TwinConfig(episodes=2, seed=5, size=32, frames=12, snapshot_every=5)


@cache
def why_not() -> str:
    """Why the twin cannot run here; empty where it can."""
    try:
        with Simulation(scene(0), size=2) as simulation:
            simulation.frame()
    except UsageError as error:
        return str(error)
    return ""


@pytest.fixture(autouse=True)
def _mujoco_and_opengl() -> None:
    if why_not():
        pytest.skip(why_not())


def scene(seed: int) -> Scene:
    return random_scene(np.random.default_rng(seed))


def urdf_joints() -> dict[str, ElementTree.Element]:
    if not URDF.exists():
        pytest.skip("EVE's URDF is not here")
    return {joint.attrib["name"]: joint for joint in ElementTree.parse(URDF).getroot().findall("joint")}


def urdf_name(joint: str) -> str:
    """`LEFT_SHOULDER_PITCH` is `j_l_shoulder_y` there."""
    *place, turn = joint.replace("LEFT", "l").replace("RIGHT", "r").lower().split("_")
    return "_".join(["j", *place, {"roll": "x", "pitch": "y", "yaw": "z"}[turn]])


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# --- the robot ---


def test_every_limit_is_eves() -> None:
    limits = {name: joint.find("limit") for name, joint in urdf_joints().items()}
    model = Simulation(scene(0)).model
    for joint in JOINTS:
        limit = limits[urdf_name(joint)]
        assert limit is not None
        expected = float(limit.attrib["lower"]), float(limit.attrib["upper"])
        assert tuple(model.joint(joint).range) == expected, joint
        np.testing.assert_allclose(model.actuator(joint).ctrlrange, expected, atol=1e-9)


def test_the_robot_s_own_file_is_a_model() -> None:
    model = load_mujoco().MjModel.from_xml_path(str(MODEL))
    assert model.nu == len(JOINTS) + 8 + 3  # servos, fingers, base


def _rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    x, y, z = axis
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew


def _urdf_pose(child: str, angles: dict[str, float]) -> np.ndarray:
    """The pose of a link in the pelvis' frame as the URDF has it, as a 4x4 matrix."""
    joints = urdf_joints().values()
    parents = {joint.find("child").attrib["link"]: joint for joint in joints}  # pyright: ignore[reportOptionalMemberAccess]
    pose = np.eye(4)
    while child in parents:
        joint = parents[child]
        origin, axis = joint.find("origin"), joint.find("axis")
        assert origin is not None
        assert axis is not None
        numbers = [np.array([float(x) for x in text.split()]) for text in (*origin.attrib.values(), axis.attrib["xyz"])]
        xyz, (roll, pitch, yaw), direction = numbers
        x, y, z = np.eye(3)
        step = np.eye(4)
        step[:3, :3] = _rotation(z, yaw) @ _rotation(y, pitch) @ _rotation(x, roll)
        step[:3, :3] = step[:3, :3] @ _rotation(direction, angles[joint.attrib["name"]])
        step[:3, 3] = xyz
        pose = step @ pose
        child = joint.find("parent").attrib["link"]  # pyright: ignore[reportOptionalMemberAccess]
    return pose


def test_links_are_where_eves_are_at_any_angles() -> None:
    """The legs grow upwards here and downwards there: a wrong axis or sign anywhere would show."""
    mujoco = load_mujoco()
    simulation = Simulation(scene(0))
    pairs = {
        "HEAD": "head",
        "LEFT_PALM": "l_palm",
        "RIGHT_PALM": "r_palm",
        "BASE": "base",
        "LEFT_ELBOW": "l_elbow",
    }
    angles = np.random.default_rng(0).uniform(simulation.low, simulation.high)
    for joint, angle in zip(JOINTS, angles, strict=True):
        simulation.data.joint(joint).qpos[:] = angle
    mujoco.mj_kinematics(simulation.model, simulation.data)
    named = {urdf_name(joint): float(angle) for joint, angle in zip(JOINTS, angles, strict=True)}
    pelvis = simulation.data.body("TORSO")
    for ours, theirs in pairs.items():
        expected = _urdf_pose(theirs, named)
        body, to_pelvis = simulation.data.body(ours), pelvis.xmat.reshape(3, 3).T
        np.testing.assert_allclose(to_pelvis @ (body.xpos - pelvis.xpos), expected[:3, 3], atol=1e-5)
        np.testing.assert_allclose(to_pelvis @ body.xmat.reshape(3, 3), expected[:3, :3], atol=1e-5)


def test_camera_sits_in_the_head_as_eves_does() -> None:
    mujoco = load_mujoco()
    simulation = Simulation(scene(0))
    mujoco.mj_forward(simulation.model, simulation.data)  # every joint at 0: upright, looking along +x
    camera, head = simulation.data.camera(CAMERA), simulation.data.body("HEAD")
    np.testing.assert_allclose(camera.xpos - head.xpos, [0.1167, 0, 0.1702], atol=1e-9)
    forward, right = -camera.xmat.reshape(3, 3)[:, 2], camera.xmat.reshape(3, 3)[:, 0]
    ten_degrees = np.deg2rad(10)
    np.testing.assert_allclose(forward, [np.cos(ten_degrees), 0, -np.sin(ten_degrees)], atol=1e-6)
    np.testing.assert_allclose(right, [0, -1, 0], atol=1e-9)
    assert simulation.model.camera(CAMERA).fovy == 90


def test_state_entries_answer_to_their_commands_alone() -> None:
    simulation = Simulation(_without_objects(scene(1)))
    rest = neutral()
    simulation.reset(rest)
    before, start = simulation.state(), simulation.snapshot()
    assert before.shape == (LAYOUT.dim,) == (25,)
    assert before.dtype == np.float32
    np.testing.assert_allclose(before, rest, atol=0.02)
    for index in range(23):
        command = rest.copy()
        command[index] += 0.3 if index >= 21 else -0.15 if rest[index] > 0.3 else 0.15
        simulation.restore(start)
        for _ in range(25):
            simulation.step(command)
        np.testing.assert_allclose(simulation.state(), command, atol=0.05, err_msg=LAYOUT.names[index])


def test_hands_close_from_0_to_1() -> None:
    simulation = Simulation(_without_objects(scene(1)))
    simulation.reset()
    command = neutral()
    command[INDEX["LEFT_HAND_CLOSURE"]] = 1
    for _ in range(30):
        simulation.step(command)
        assert 0 <= simulation.state()[21:23].min() <= simulation.state()[21:23].max() <= 1
    left, right = simulation.state()[21:23]
    assert left > 0.95
    assert right < 0.05


@pytest.mark.parametrize("heading", [0.0, 2.0])
def test_velocities_are_forward_metres_and_leftward_radians_per_second(heading: float) -> None:
    simulation = Simulation(_without_objects(scene(2)))
    simulation.reset()
    simulation.data.qpos[:3] = [-1.0, 0.0, heading]
    command = neutral()
    command[INDEX["LINEAR_VELOCITY"]] = -0.2
    for _ in range(30):
        simulation.step(command)
    assert simulation.state()[INDEX["LINEAR_VELOCITY"]] == pytest.approx(-0.2, abs=0.01)
    moved = simulation.base() - [-1.0, 0.0, heading]
    np.testing.assert_allclose(moved, [-0.2 * np.cos(heading), -0.2 * np.sin(heading), 0], atol=0.02)
    command[INDEX["LINEAR_VELOCITY"] :] = 0, 0.5
    for _ in range(30):
        simulation.step(command)
    assert simulation.state()[INDEX["ANGULAR_VELOCITY"]] == pytest.approx(0.5, abs=0.02)
    assert simulation.base()[2] - heading == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("side", SIDES)
def test_inverse_kinematics_puts_the_hand_where_it_is_told(side: Side) -> None:
    simulation = Simulation(scene(0))
    base = np.array([0.3, -0.2, 0.4])
    command = neutral()

    def hand() -> np.ndarray:
        simulation.data.qpos[:3] = base
        simulation.data.qpos[simulation.places[: len(JOINTS)]] = command[: len(JOINTS)]
        load_mujoco().mj_kinematics(simulation.model, simulation.data)
        return simulation.data.site(f"{side}_GRIP").xpos.copy()

    target = hand() + np.array([0.05, 0.05, -0.1])
    angles, distance = simulation.reach(side, target, command, base)
    command[arm_slice(side)] = angles
    assert distance < 0.012
    assert np.linalg.norm(hand() - target) < 0.012


def _without_objects(scene: Scene) -> Scene:
    root = ElementTree.fromstring(scene.xml)
    world = root.find("worldbody")
    assert world is not None
    for body in [body for body in world.findall("body") if body.get("name") in scene.objects]:
        world.remove(body)
    return replace(scene, xml=ElementTree.tostring(root, encoding="unicode"), objects=())


# --- physics, pictures, behaviour ---


def test_restored_physics_repeats_itself_and_other_commands_change_it() -> None:
    with Simulation(scene(3), size=32) as simulation:
        behaviour = Behaviour(simulation, np.random.default_rng(3))
        simulation.reset(behaviour.first())
        for _ in range(20):
            simulation.step(behaviour.command())
        commands = np.stack([behaviour.command() for _ in range(8)])
        start = simulation.snapshot()

        def run(factor: float) -> tuple[np.ndarray, np.ndarray]:
            simulation.restore(start)
            seen = []
            for command in commands:
                simulation.step(command * np.float32(factor))
                seen.append(simulation.observe())
            frames, states = zip(*seen, strict=True)
            return np.stack(frames), np.stack(states)

        frames, states = run(1)
        run(0.8)
        again_frames, again_states = run(1)
        other_frames, other_states = run(0.8)
    np.testing.assert_array_equal(again_states, states)
    np.testing.assert_array_equal(again_frames, frames)
    assert np.abs(other_states - states).max() > 0.05
    assert np.abs(other_frames.astype(int) - frames).mean() > 1


def test_a_snapshot_of_another_scene_is_refused() -> None:
    with pytest.raises(UsageError, match="another scene"):
        Simulation(_without_objects(scene(0))).restore(Simulation(scene(0)).snapshot())


def test_arms_move_objects() -> None:
    """What lies still while the robot stands still is moved when it acts: by touch, there is no other way."""
    moved = []
    for seed in range(3):
        simulation = Simulation(scene(seed))
        behaviour = Behaviour(simulation, np.random.default_rng(seed))
        waiting = behaviour.first()
        waiting[INDEX["LINEAR_VELOCITY"] :] = 0
        simulation.reset(waiting)
        start, before = simulation.snapshot(), simulation.objects()
        for _ in range(60):
            simulation.step(waiting)
        still = np.linalg.norm(simulation.objects() - before, axis=1)
        simulation.restore(start)
        for _ in range(100):
            simulation.step(behaviour.command())
        pushed = np.linalg.norm(simulation.objects() - before, axis=1)
        moved.append((pushed - still).max())
    assert max(moved) > 0.03


def test_pictures_change_while_the_robot_acts() -> None:
    recording = record_episode(replace(TINY, frames=30), 0)
    assert recording.frames.shape == (30, 32, 32, 3)
    steps = np.abs(np.diff(recording.frames.astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert steps.min() > 0
    assert steps.mean() > 0.25  # grey levels over all pixels: the room is muted and mostly an arm moves
    moved = np.abs(np.diff(recording.states[:, :21], axis=0)).max(axis=1)
    assert moved.min() > 0
    assert moved[8:].min() > 1e-3  # rad per frame, once the arms' first pause of up to a quarter of a second is over


def test_rooms_differ_and_each_seed_has_its_own() -> None:
    assert scene(0) == scene(0)
    assert len({scene(seed).xml for seed in range(5)}) == 5


# --- data sets ---


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if why_not():
        pytest.skip(why_not())
    root = tmp_path_factory.mktemp("twin") / "data"
    generate(root, TINY)
    return root


def test_the_view_of_the_table_is_nearer_and_shows_fewer_and_larger_objects() -> None:
    angles, sizes, counts = {}, {"room": [], "table": []}, {"room": set(), "table": set()}
    for framing in ("room", "table"):
        for seed in range(12):
            with Simulation(random_scene(np.random.default_rng(seed), framing), size=2) as simulation:
                bodies = [simulation.model.body(name).id for name in simulation.scene.objects]
                own = np.isin(simulation.model.geom_bodyid, bodies)
                sizes[framing] += [*simulation.model.geom_size[own].max(axis=1)]
                counts[framing].add(len(bodies))
                angles[framing] = simulation.model.camera(CAMERA).fovy[0]
    assert angles == {"room": 90, "table": 72}
    assert np.mean(sizes["table"]) > 1.1 * np.mean(sizes["room"])
    assert counts == {"room": {2, 3, 4}, "table": {1, 2, 3}}


def test_shards_hold_what_was_recorded(dataset: Path) -> None:
    for episode in range(TINY.episodes):
        recording = record_episode(TINY, episode)
        video = dataset / f"videos/video_{episode}.mp4"
        states = np.fromfile(dataset / f"robot_states/states_{episode}.bin", dtype=np.float32)
        np.testing.assert_array_equal(states.reshape(-1, 25), recording.states)
        assert probe(video).num_frames == TINY.frames
        decoded = decode(video, range(TINY.frames)).permute(0, 2, 3, 1).numpy()
        assert np.abs(decoded.astype(int) - recording.frames).mean() < 6


def test_the_same_seed_gives_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", TINY)
    assert files(tmp_path / "again") == files(dataset)
    generate(tmp_path / "other", replace(TINY, seed=6, episodes=1))
    assert (tmp_path / "other/videos/video_0.mp4").read_bytes() != (dataset / "videos/video_0.mp4").read_bytes()


@pytest.mark.slow
def test_two_workers_give_the_same_bytes_as_one(dataset: Path, tmp_path: Path) -> None:
    generate(tmp_path / "two", TINY, workers=2)
    assert files(tmp_path / "two") == files(dataset)


def test_an_interrupted_run_is_carried_on(dataset: Path, tmp_path: Path) -> None:
    expected = files(dataset)
    for name in ("metadata.json", "metadata/metadata_1.json"):
        (dataset / name).unlink()
    (dataset / "videos/.video_1.mp4.99.tmp").write_bytes(b"half a video")
    kept = (dataset / "videos/video_0.mp4").stat().st_mtime_ns
    generate(dataset, TINY)
    assert files(dataset) == expected
    assert (dataset / "videos/video_0.mp4").stat().st_mtime_ns == kept


def test_another_config_or_foreign_files_are_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"made with another seed \(seed: 5 there, 7 now\)"):
        generate(dataset, replace(TINY, seed=7))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        generate(tmp_path, TINY)


@pytest.mark.parametrize("wrong", [{"size": 33}, {"size": 1024}, {"episodes": 0}, {"frames": 0}, {"fps": 31}])
def test_impossible_configs_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        record_episode(replace(TINY, **wrong), 0)


def test_a_recorded_episode_resumes_from_any_frame(dataset: Path) -> None:
    recording = record_episode(TINY, 1)
    simulation, commands = resume(dataset, 1, 8)
    with simulation:
        np.testing.assert_array_equal(commands, recording.commands[8:])
        for frame, state, command in zip(recording.frames[8:], recording.states[8:], commands, strict=True):
            seen, measured = simulation.observe()
            np.testing.assert_array_equal(measured, state)
            np.testing.assert_array_equal(seen, frame)
            simulation.step(command)
    with pytest.raises(UsageError, match=r"frames 0\.\.11"):
        resume(dataset, 1, 12)


def test_following_the_recorded_states_shows_the_recorded_pictures() -> None:
    simulation, commands = resume(TWIN_MINI_VAL, 1, 0)
    with simulation:
        start = simulation.snapshot()
        recorded = []
        for command in commands[:30]:
            recorded.append(simulation.observe())
            simulation.step(command)
        frames, states = (np.stack(part) for part in zip(*recorded, strict=True))
        simulation.restore(start)
        followed = simulation.follow(states[1:])
        np.testing.assert_allclose(simulation.state(), states[-1], atol=0.01)
        simulation.restore(start)
        pieces = [simulation.follow(states[1:7]), simulation.follow(states[7:])]
    np.testing.assert_array_equal(np.concatenate(pieces), followed)
    mistakes, changes = (np.square(other - frames[1:].astype(float)).mean() for other in (followed, frames[:1]))
    assert 10 * np.log10(255**2 / mistakes) > 30
    assert mistakes < changes / 20


def test_the_built_in_data_are_still_what_is_generated() -> None:
    """Near, not equal: another processor may round in another way."""
    stored = json.loads((TWIN_MINI_VAL / "twin.json").read_text())
    config = TwinConfig(**{name: stored[name] for name in ("episodes", "seed", "size")}, frames=30)
    recording = record_episode(config, 3)
    with np.load(TWIN_MINI_VAL / "physics/physics_3.npz") as physics:
        assert json.loads(str(physics["scene"]))["xml"] == recording.scene.xml
        np.testing.assert_allclose(recording.commands, physics["commands"][:30], atol=1e-3)
        np.testing.assert_allclose(recording.objects, physics["objects"][:30], atol=1e-3)
    states = np.fromfile(TWIN_MINI_VAL / "robot_states/states_3.bin", dtype=np.float32).reshape(-1, 25)
    np.testing.assert_allclose(recording.states, states[:30], atol=1e-3)
    seen = decode(TWIN_MINI_VAL / "videos/video_3.mp4", range(30)).permute(0, 2, 3, 1).numpy()
    assert np.abs(seen.astype(int) - recording.frames).mean() < 6


# --- OpenGL ---


@pytest.mark.slow
def test_a_missing_backend_says_what_to_install() -> None:
    try:
        ctypes.CDLL("libOSMesa.so.8")
    except OSError:
        pass
    else:
        pytest.skip("OSMesa is installed here")
    code = "from worldline.twin.simulation import load_mujoco; load_mujoco()"
    environment = os.environ | {"MUJOCO_GL": "osmesa"}
    environment.pop("PYOPENGL_PLATFORM", None)
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "UsageError" in result.stderr
    assert "apt-get install" in result.stderr


@pytest.mark.slow
def test_the_viewer_says_why_the_twin_cannot_draw() -> None:
    code = "from worldline.twin.simulation import what_it_lacks; print(what_it_lacks())"
    environment = {**os.environ, "MUJOCO_GL": "nonsense"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "(nonsense)" in result.stdout
    assert "apt-get install" in result.stdout
