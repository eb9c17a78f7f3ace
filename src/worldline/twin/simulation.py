"""The running twin: a scene, stepped by commands, seen by the robot's head camera.

`snapshot` holds the whole state of the physics: after `restore` the same commands give the same numbers and pictures,
and others what would have happened instead. A robot is driven by `step` towards a command, as its motors would, or made
to `follow` a path of measured states.
"""

import ctypes
import importlib
import os
import sys
from contextlib import AbstractContextManager
from functools import cache, cached_property
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, UInt8

from worldline.schema import UsageError
from worldline.twin.scene import (
    CAMERA,
    FINGER_CLOSED,
    FINGERS,
    INDEX,
    JOINTS,
    SIDES,
    Scene,
    Side,
    arm_slice,
    neutral,
    random_scene,
)

NUM_JOINTS = len(JOINTS)
STEPS_PER_SECOND = 240
"""Of the physics (`timestep` in robot.xml)."""
SETTLING = 0.5
"""Seconds without commands after a reset, so that objects come to rest."""
DAMPING = 0.05
"""Of a least-squares step of inverse kinematics, in m per rad: enough to stay calm near a stretched arm."""
POSTURE = 0.02
"""Pull towards the preferred posture in every iteration, which chooses among an arm's many solutions."""
REGIONS = ("room", "robot", "objects")
"""What a pixel can show: furniture and walls, the robot, or an object that can be moved."""
Touched = Bool[np.ndarray, "2 o"]
"""Of each object, whether a hand touches it, and whether any part of the robot does."""
INSTALL_GL = "apt-get install libegl1 libgl1-mesa-dri, or apt-get install libosmesa6 and set MUJOCO_GL=osmesa"


def load_mujoco() -> ModuleType:
    """Import MuJoCo; on Linux with EGL or OSMesa, unless `MUJOCO_GL` is set. Raises `UsageError` without either."""
    if "mujoco" not in sys.modules and sys.platform == "linux" and "MUJOCO_GL" not in os.environ:
        egl = _egl_has_device()
        if not egl and not any(map(_library, ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"))):
            raise UsageError(f"Neither EGL nor OSMesa can draw here: {INSTALL_GL}")
        os.environ["MUJOCO_GL"] = "egl" if egl else "osmesa"
    try:
        return importlib.import_module("mujoco")
    except ModuleNotFoundError as error:
        raise UsageError(f"The twin needs MuJoCo ({error}): pip install worldline[twin]") from error
    except (ImportError, AttributeError, RuntimeError) as error:  # PyOpenGL says AttributeError for no library
        backend = os.environ.get("MUJOCO_GL", "its default")
        raise UsageError(f"MuJoCo cannot load its OpenGL backend ({backend}): {INSTALL_GL}") from error


def substeps_of(fps: float) -> int:
    """Steps of the physics in a frame. Raises `UsageError` where they are no whole number."""
    count = round(STEPS_PER_SECOND / fps)
    if abs(count * fps / STEPS_PER_SECOND - 1) > 1e-9:
        raise UsageError(f"fps must divide {STEPS_PER_SECOND}, not {fps}")
    return count


def rate_of(substeps: int) -> float:
    """Frames per second."""
    return STEPS_PER_SECOND / substeps


def can_draw() -> bool:
    """Tell whether the twin can run and draw here."""
    return not what_it_lacks()


@cache
def what_it_lacks() -> str:
    """Why the twin cannot run and draw here, and what to do; nothing where it can. It tries once in a process."""
    try:
        with Simulation(random_scene(np.random.default_rng(0)), size=2) as simulation:
            simulation.frame()
    except UsageError as error:
        return str(error)
    return ""


def _egl_has_device() -> bool:
    """Tell whether EGL finds something to draw with. Its library alone may be there without any driver."""
    egl = _library("libEGL.so.1")
    if egl is None:
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    address, count = egl.eglGetProcAddress(b"eglQueryDevicesEXT"), ctypes.c_int(0)
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    return bool(address and query(address)(0, None, ctypes.addressof(count))) and count.value > 0


def _library(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


class Simulation(AbstractContextManager["Simulation"]):
    """The robot in one scene. Use as a context manager, or call `close`: it owns an OpenGL context.

    Pictures are `size` pixels wide and high, drawn at twice that and averaged down. Raises `UsageError` where MuJoCo or
    OpenGL is missing, or 240 is no multiple of `fps` (frames, commands and states per second).
    """

    def __init__(self, scene: Scene, *, size: int = 64, fps: float = 30.0) -> None:
        self._mujoco = load_mujoco()
        self._whole = self._mujoco.mjtState.mjSTATE_INTEGRATION
        self.scene, self.size, self.fps = scene, size, fps
        self.model = self._mujoco.MjModel.from_xml_string(scene.xml)
        self._timestep = self.model.opt.timestep
        assert round(1 / self._timestep) == STEPS_PER_SECOND, "as the scene's model says"
        self._substeps = substeps_of(fps)
        self.data, self._trial = self._mujoco.MjData(self.model), self._mujoco.MjData(self.model)  # that for `reach`
        joints = [self.model.joint(name) for name in (*JOINTS, *FINGERS)]
        # Limits of the joints in rad; where joints and fingers are in qpos and qvel.
        self.low, self.high = np.array([joint.range for joint in joints[:NUM_JOINTS]]).T
        self.places = np.array([joint.qposadr[0] for joint in joints])
        self.dofs = np.array([joint.dofadr[0] for joint in joints])
        self._objects = np.array([self.model.body(name).id for name in scene.objects], dtype=np.int64)
        bodies = self.model.geom_bodyid
        kinds = np.where(np.isin(bodies, self._objects), REGIONS.index("objects"), (bodies != 0) * 1)
        hands = [self.model.body(name).id for name in (*(f"{side}_PALM" for side in SIDES), *FINGERS)]
        self._hands = np.isin(bodies, hands)
        # Of each geom its place in `REGIONS`, and its place among the objects, if it is one. The last is of no geom.
        self._kinds = np.append(kinds, 0).astype(np.uint8)
        self._numbers = np.array([list(self._objects).index(body) if body in self._objects else -1 for body in bodies])

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the OpenGL context. The physics can still be used; the next picture opens a new context."""
        if renderer := vars(self).pop("_renderer", None):
            renderer.close()

    def reset(self, command: Float32[np.ndarray, "25"] | None = None) -> None:
        """Start again in the pose of `command` (default: `neutral`), after the objects have come to rest."""
        command = neutral() if command is None else command.copy()
        self._mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[self.places] = _angles(command)
        command[INDEX["LINEAR_VELOCITY"] :] = 0
        for _ in range(round(SETTLING * self.fps)):
            self.step(command)
        self.data.time = 0

    def step(self, command: Float32[np.ndarray, "25"], *, touched: Touched | None = None) -> None:
        """Advance by one frame towards the targets of `command` (`LAYOUT`), held throughout.

        Where `touched` is given, the entries of the objects that the robot touches meanwhile are set (`touching`).
        """
        data, pairs = self.data, list[np.ndarray]()
        data.ctrl[:-3] = _angles(command)
        speed, turn = command[-2:]
        for _ in range(self._substeps):
            heading = data.qpos[2]
            data.ctrl[-3:] = speed * np.cos(heading), speed * np.sin(heading), turn
            self._mujoco.mj_step(self.model, data)
            if touched is not None:
                pairs.append(data.contact.geom[: data.ncon].copy())
        if touched is not None:
            touched |= self._touching(np.concatenate(pairs))

    def touching(self) -> Touched:
        """Whether each object is touched by a hand, and by any part of the robot, in the last step of the physics."""
        return self._touching(self.data.contact.geom[: self.data.ncon])

    def _touching(self, pairs: Int32[np.ndarray, "n 2"]) -> Touched:
        """The same of pairs of geoms in contact."""
        numbers, found = self._numbers[pairs], np.zeros((2, len(self._objects)), dtype=bool)
        for part, of_part in enumerate((self._hands, self._kinds == REGIONS.index("robot"))):
            found[part, numbers[of_part[pairs][:, ::-1] & (numbers >= 0)]] = True  # the one of a pair whose other it is
        return found

    def follow(
        self, states: Float32[np.ndarray, "n 25"], *, touched: Touched | None = None
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """Advance by one frame for each of the measured `states`, and return what the robot sees at each.

        The robot is moved to every state, whatever force that takes; what it touches moves by physics. Recorded states
        so give the recorded pictures again, except for how hard objects were pushed: 39 dB on average over the 20
        built-in validation episodes (76 frames) and never below 26 dB; a copy of the first picture has 18 dB.
        `touched` is as in `step`.
        """
        frames = np.empty((len(states), self.size, self.size, 3), dtype=np.uint8)
        for i, state in enumerate(states):
            self.go(state, touched=touched)
            frames[i] = self.frame()
        return frames

    def go(self, state: Float32[np.ndarray, "25"], *, touched: Touched | None = None) -> None:
        """`follow` one state, without looking."""
        data, pairs = self.data, list[np.ndarray]()
        data.ctrl[:-3] = goal = _angles(state)
        before, after = self.state()[-2:], state[-2:]
        for left in range(self._substeps, 0, -1):
            speed, turn = before + (after - before) * (1 - (left - 1) / self._substeps)
            base = speed * np.cos(data.qpos[2]), speed * np.sin(data.qpos[2]), turn
            data.ctrl[-3:] = data.qvel[:3] = base
            data.qvel[self.dofs] = (goal - data.qpos[self.places]) / (left * self._timestep)
            self._mujoco.mj_step(self.model, data)
            if touched is not None:
                pairs.append(data.contact.geom[: data.ncon].copy())
        if touched is not None:
            touched |= self._touching(np.concatenate(pairs))
        data.qpos[self.places] = goal  # a touch may have held it back a little

    def observe(self) -> tuple[UInt8[np.ndarray, "h w 3"], Float32[np.ndarray, "25"]]:
        """The robot's view (RGB, 0..255) and its state, now."""
        return self.frame(), self.state()

    def state(self) -> Float32[np.ndarray, "25"]:
        """The measured state in the order and units of `LAYOUT`."""
        heading, (x, y, turn) = self.data.qpos[2], self.data.qvel[:3]
        angles, fingers = np.split(self.data.qpos[self.places], [NUM_JOINTS])
        closures = np.clip(fingers.reshape(2, -1).mean(axis=1) / FINGER_CLOSED, 0, 1)
        speed = x * np.cos(heading) + y * np.sin(heading)
        return np.concatenate([angles, closures, [speed, turn]]).astype(np.float32)

    def frame(self, *, objects: bool = True) -> UInt8[np.ndarray, "h w 3"]:
        """The picture of the head camera, RGB, 0..255, with or without the objects that can be moved."""
        alpha, hidden = self.model.geom_rgba[:, 3], self._kinds[:-1] == REGIONS.index("objects")
        own = alpha[hidden].copy()
        try:
            alpha[hidden] = own if objects else 0
            return ((_fours(self._drawn().astype(np.uint16)) + 2) // 4).astype(np.uint8)
        finally:
            alpha[hidden] = own

    def regions(self) -> UInt8[np.ndarray, "h w"]:
        """What each pixel of `frame` shows, as its place in `REGIONS`.

        A pixel is the mean of four samples; it belongs to what most of them show, and of two to the later region.
        """
        self._renderer.enable_segmentation_rendering()
        try:
            kinds = self._kinds[self._drawn()[..., 0]]
        finally:
            self._renderer.disable_segmentation_rendering()
        votes = _fours((kinds[..., None] == np.arange(len(REGIONS))).astype(np.uint8))
        return (len(REGIONS) - 1 - votes[..., ::-1].argmax(axis=-1)).astype(np.uint8)

    def _drawn(self) -> np.ndarray:
        """What the renderer gives of the camera's view, at twice the size."""
        # After mj_step bodies lag one physics step behind qpos. These three leave the solver's memory alone.
        self._mujoco.mj_kinematics(self.model, self.data)
        self._mujoco.mj_comPos(self.model, self.data)
        self._mujoco.mj_camlight(self.model, self.data)
        self._renderer.update_scene(self.data, camera=CAMERA)
        return self._renderer.render()

    def base(self) -> Float64[np.ndarray, "3"]:
        """Where the base is in the world: x and y in m, heading in rad."""
        return self.data.qpos[:3].copy()

    def objects(self) -> Float64[np.ndarray, "n 3"]:
        """Positions of the movable objects in the world, in m."""
        return self.data.xpos[self._objects].copy()

    def turns(self) -> Float64[np.ndarray, "n 3 3"]:
        """Rotations of the movable objects from their own axes into the world's."""
        return self.data.xmat[self._objects].reshape(-1, 3, 3).copy()

    def hand(self, side: Side) -> Float64[np.ndarray, "3"]:
        """Where the middle of a hand is in the world, in m: what `reach` brings to its target."""
        return self.data.site(f"{side}_GRIP").xpos.copy()

    def near(self, side: Side) -> list[int]:
        """Numbers of the objects on the table that a hand can push, and that are in view."""
        base = self.base()
        x, y, z = (self.objects() - [base[0], base[1], 0]).T
        ahead, left = np.cos(base[2]) * x + np.sin(base[2]) * y, np.cos(base[2]) * y - np.sin(base[2]) * x
        across = SIDES[side] * left
        within = (z > self.scene.table_top) & (ahead > 0.2) & (ahead < 0.8) & (across > -0.15) & (across < 0.5)
        return np.flatnonzero(within).tolist()

    def reach(
        self, side: Side, target: Float64[np.ndarray, "3"], command: Float32[np.ndarray, "25"], base: np.ndarray
    ) -> tuple[Float64[np.ndarray, "7"], float]:
        """Joint angles of one arm that bring its hand to `target`, and the distance in m that remains.

        Damped least squares within the joint limits, 25 steps at most. It starts from the arm's angles in `command`,
        which are also the preferred posture; other joints are as in `command`, the base is at `(x, y, heading)`.
        """
        arm, grip, data = arm_slice(side), self.model.site(f"{side}_GRIP").id, self._trial
        angles = command[:NUM_JOINTS].astype(np.float64)
        preferred, jacobian, error = angles[arm].copy(), np.zeros((3, self.model.nv)), target
        data.qpos[:3] = base
        for steps in range(26):
            data.qpos[self.places[:NUM_JOINTS]] = angles
            self._mujoco.mj_kinematics(self.model, data)
            error = target - data.site_xpos[grip]
            if steps == 25 or np.linalg.norm(error) < 0.01:
                break
            self._mujoco.mj_comPos(self.model, data)
            self._mujoco.mj_jacSite(self.model, data, jacobian, None, grip)
            local = jacobian[:, self.dofs[arm]]
            step = local.T @ np.linalg.solve(local @ local.T + DAMPING**2 * np.eye(3), error)
            step += POSTURE * (preferred - angles[arm])
            angles[arm] = np.clip(angles[arm] + np.clip(step, -0.3, 0.3), self.low[arm], self.high[arm])
        return angles[arm], float(np.linalg.norm(error))

    def snapshot(self) -> Float64[np.ndarray, "n"]:
        """The whole state of the physics: positions, velocities, controls, and the solver's warm start."""
        state = np.empty(self._mujoco.mj_stateSize(self.model, self._whole))
        self._mujoco.mj_getState(self.model, self.data, state, self._whole)
        return state

    def restore(self, snapshot: Float64[np.ndarray, "n"]) -> None:
        """Return to a snapshot of a simulation of the same scene. Raises `UsageError` for one of another scene."""
        if snapshot.shape != (size := self._mujoco.mj_stateSize(self.model, self._whole),):
            raise UsageError(f"This snapshot is of another scene: {snapshot.shape[0]} numbers instead of {size}")
        self._mujoco.mj_setState(self.model, self.data, snapshot, self._whole)
        self._mujoco.mj_kinematics(self.model, self.data)  # where bodies are is no part of a snapshot

    @cached_property
    def _renderer(self) -> Any:
        # No text is drawn; the smallest font saves a tenth of a second for every scene.
        font, side = self._mujoco.mjtFontScale.mjFONTSCALE_50, 2 * self.size
        try:
            renderer = self._mujoco.Renderer(self.model, side, side, max_geom=500, font_scale=font)
        except (ImportError, RuntimeError, AttributeError) as error:
            raise UsageError(f"OpenGL cannot draw off screen ({error}): {INSTALL_GL}") from error
        flags = self._mujoco.mjtRndFlag
        for flag in (flags.mjRND_SHADOW, flags.mjRND_REFLECTION, flags.mjRND_SKYBOX, flags.mjRND_HAZE):
            renderer.scene.flags[flag] = 0
        return renderer


def _fours(samples: np.ndarray) -> np.ndarray:
    """The sum of the four samples of each pixel, on the first two axes."""
    rows = samples[0::2] + samples[1::2]
    return rows[:, 0::2] + rows[:, 1::2]


def _angles(command: Float32[np.ndarray, "25"]) -> Float32[np.ndarray, "29"]:
    """Angles in rad of the joints, then of the fingers, left then right."""
    closures = np.repeat(command[NUM_JOINTS:-2], len(FINGERS) // 2)
    return np.concatenate([command[:NUM_JOINTS], closures * np.float32(FINGER_CLOSED)])
