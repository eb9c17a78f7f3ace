"""The robot of the twin: a wheeled humanoid of primitives with EVE's kinematics. Knows no scene, no motion.

Joint order and names are those of the 1X data; limits, link lengths and joint frames those of EVE's public
description (the `eve_r3` URDF); the shapes are our own. The URDF hangs the legs from the pelvis, but here the
tree grows from the driving base: leg axes are reversed, so that every angle keeps the sign it has there.

A **state** and a **command** are the same 25 numbers (`LAYOUT`): 21 joint angles in rad, measured or wanted,
two hand closures (0 open .. 1 closed), forward velocity in m/s and turning velocity in rad/s (left positive).
"""

from dataclasses import dataclass
from math import cos, sin
from typing import Literal

import numpy as np
from jaxtyping import Float32

from worldline.schema import StateLayout

Side = Literal["LEFT", "RIGHT"]


@dataclass(frozen=True, kw_only=True)
class Joint:
    """One joint of the 1X layout: its name there, its name in EVE's URDF, and its limits in rad."""

    name: str
    urdf: str
    low: float
    high: float


def _joint(name: str, urdf: str, low: float, high: float) -> Joint:
    return Joint(name=name, urdf=urdf, low=low, high=high)


JOINTS = (
    _joint("HIP_YAW", "j_hip_z", -1.0472, 1.0472),
    _joint("HIP_ROLL", "j_hip_x", -0.523599, 0.523599),
    _joint("HIP_PITCH", "j_hip_y", -1.57, 0.174533),
    _joint("KNEE_PITCH", "j_knee_y", 0.0, 2.583),
    _joint("ANKLE_ROLL", "j_ankle_x", -0.523599, 0.523599),
    _joint("ANKLE_PITCH", "j_ankle_y", -1.57, 0.174533),
    _joint("LEFT_SHOULDER_PITCH", "j_l_shoulder_y", -2.4240878, 0.981049573),
    _joint("LEFT_SHOULDER_ROLL", "j_l_shoulder_x", -0.0872665, 2.0943951),
    _joint("LEFT_SHOULDER_YAW", "j_l_shoulder_z", -1.4660761, 0.5410525),
    _joint("LEFT_ELBOW_PITCH", "j_l_elbow_y", -2.18166, 0.0),
    _joint("LEFT_ELBOW_YAW", "j_l_elbow_z", -1.5708, 0.7854),
    _joint("LEFT_WRIST_PITCH", "j_l_wrist_y", -0.785398, 0.785398),
    _joint("LEFT_WRIST_ROLL", "j_l_wrist_x", -1.5708, 0.523599),
    _joint("RIGHT_SHOULDER_PITCH", "j_r_shoulder_y", -2.4240878, 0.981049573),
    _joint("RIGHT_SHOULDER_ROLL", "j_r_shoulder_x", -2.0943951, 0.0872665),
    _joint("RIGHT_SHOULDER_YAW", "j_r_shoulder_z", -0.5410525, 1.4660761),
    _joint("RIGHT_ELBOW_PITCH", "j_r_elbow_y", -2.18166, 0.0),
    _joint("RIGHT_ELBOW_YAW", "j_r_elbow_z", -0.7854, 1.5708),
    _joint("RIGHT_WRIST_PITCH", "j_r_wrist_y", -0.785398, 0.785398),
    _joint("RIGHT_WRIST_ROLL", "j_r_wrist_x", -0.523599, 1.5708),
    _joint("NECK_PITCH", "j_neck_y", -0.335, 0.506),
)

LAYOUT = StateLayout(
    names=(
        *(joint.name for joint in JOINTS),
        "LEFT_HAND_CLOSURE",
        "RIGHT_HAND_CLOSURE",
        "LINEAR_VELOCITY",
        "ANGULAR_VELOCITY",
    ),
    kinds=(*("angle" for _ in JOINTS), "binary", "binary", "velocity", "velocity"),
)
INDEX = {name: i for i, name in enumerate(LAYOUT.names)}
SIDES: tuple[Side, Side] = ("LEFT", "RIGHT")
FINGERS = ("INDEX", "MIDDLE", "RING", "THUMB")
FINGER_CLOSED = 1.4
"""Angle of a closed finger in rad; the angle of an open one is 0."""
CAMERA = "HEAD_CAMERA"
CAMERA_OFFSET = (0.1167, 0.0, 0.1702)
"""Head camera in the frame of the head link, in m: ahead, left, above (EVE's, as is the pitch)."""
CAMERA_PITCH = 0.174533
"""Downward, in rad: 10 degrees."""
CAMERA_FOV = 90.0
"""Degrees, in both directions: pictures are square."""


def arm_slice(side: Side) -> slice:
    """Where the seven joints of an arm are in a state or a command."""
    start = INDEX[f"{side}_SHOULDER_PITCH"]
    return slice(start, start + 7)


def neutral() -> Float32[np.ndarray, "25"]:
    """A pose to begin from, as a command: knees bent, leaning over, hands in view, standing still."""
    trunk = {"HIP_PITCH": -0.62, "KNEE_PITCH": 0.9, "ANKLE_PITCH": -0.45, "NECK_PITCH": 0.42}
    command = np.zeros(25, dtype=np.float32)
    for name, angle in trunk.items():
        command[INDEX[name]] = angle
    for side, sign in zip(SIDES, (1, -1), strict=True):
        command[arm_slice(side)] = -0.75, 0.15 * sign, 0, -1.3, 0, 0, 0
    return command


def robot_body() -> str:
    """MJCF of the robot's body, standing at the origin and looking along +x; gravity is compensated."""
    shell, dark = 'material="shell"', 'material="dark"'
    ghost = 'contype="0" conaffinity="0"'  # wheels roll on the floor without friction; the base's joints carry it
    body = f"""
    <body name="BASE" pos="0 0 0.1334" childclass="robot">
      <joint name="BASE_X" type="slide" axis="1 0 0" armature="20"/>
      <joint name="BASE_Y" type="slide" axis="0 1 0" armature="20"/>
      <joint name="BASE_YAW" axis="0 0 1" armature="5"/>
      <geom type="ellipsoid" pos="-0.05 0 0.05" size="0.24 0.2 0.09" {shell}/>
      <geom type="cylinder" pos="0.142 0.25 0.019" size="0.1524 0.03" euler="1.5708 0 0" {dark} {ghost}/>
      <geom type="cylinder" pos="0.142 -0.25 0.019" size="0.1524 0.03" euler="1.5708 0 0" {dark} {ghost}/>
      <geom type="sphere" pos="-0.284 0 -0.03" size="0.1" {dark} {ghost}/>
      <body name="SHIN">
        {_hinge("ANKLE_ROLL", "-1 0 0")} {_hinge("ANKLE_PITCH", "0 -1 0")}
        <geom type="capsule" fromto="0 0 0.03 0 0 0.36" size="0.07" {shell}/>
        <body name="THIGH" pos="0 0 0.38">
          {_hinge("KNEE_PITCH", "0 -1 0")}
          <geom type="sphere" size="0.08" {dark}/>
          <geom type="capsule" fromto="0 0 0.05 0 0 0.36" size="0.08" {shell}/>
          <body name="TORSO" pos="0 0 0.4">
            {_hinge("HIP_PITCH", "0 -1 0")} {_hinge("HIP_ROLL", "-1 0 0")} {_hinge("HIP_YAW", "0 0 -1")}
            <geom type="ellipsoid" pos="-0.03 0 0.08" size="0.1 0.13 0.12" {dark}/>
            <geom type="ellipsoid" pos="-0.04 0 0.38" size="0.12 0.17 0.26" {shell}/>
            {_arm("LEFT", 1)}
            {_arm("RIGHT", -1)}
            <body name="HEAD" pos="0.00646 0.00085 0.67201">
              {_hinge("NECK_PITCH", "0 1 0")}
              <geom type="ellipsoid" pos="0.01 0 0.12" size="0.09 0.085 0.12" {shell}/>
              {_camera()}
            </body>
          </body>
        </body>
      </body>
    </body>"""
    return body.replace("<body ", '<body gravcomp="1" ')


def robot_assets() -> str:
    """MJCF materials the robot's geoms name."""
    return """
    <material name="shell" rgba="0.74 0.74 0.72 1" specular="0.1"/>
    <material name="dark" rgba="0.25 0.26 0.28 1" specular="0.1"/>"""


def robot_defaults() -> str:
    """MJCF default classes. Arms touch objects, furniture and each other; a limb never its own trunk."""
    return """
    <default class="robot">
      <joint type="hinge" damping="2" armature="0.05"/>
      <geom contype="1" conaffinity="2" friction="0.9" density="400"/>
      <position kp="400" dampratio="1" forcerange="-200 200"/>
      <default class="left">
        <geom conaffinity="6"/><position kp="150" forcerange="-60 60"/>
      </default>
      <default class="right">
        <geom contype="4" conaffinity="3"/><position kp="150" forcerange="-60 60"/>
      </default>
      <default class="finger">
        <joint damping="0.1" armature="0.002"/><position kp="2" forcerange="-2 2"/>
      </default>
    </default>"""


def robot_actuators() -> str:
    """MJCF actuators: 21 joint servos in the 1X order, the fingers left then right, the base's velocities."""
    servos = [
        f'<position class="{_servo_class(name)}" name="{name}" joint="{name}" inheritrange="1"/>'
        for name in LAYOUT.names[: len(JOINTS)]
    ]
    fingers = [
        f'<position class="finger" joint="{side}_{finger}" ctrlrange="0 {FINGER_CLOSED}"/>'
        for side in SIDES
        for finger in FINGERS
    ]
    base = [
        f'<velocity joint="{name}" kv="{kv}"/>' for name, kv in (("BASE_X", 2000), ("BASE_Y", 2000), ("BASE_YAW", 400))
    ]
    return "\n".join([*servos, *fingers, *base])


def _servo_class(name: str) -> str:
    return {"LEFT": "left", "RIGHT": "right"}.get(name.split("_")[0], "robot")


def _hinge(name: str, axis: str) -> str:
    joint = JOINTS[INDEX[name]]
    return f'<joint name="{name}" axis="{axis}" range="{joint.low} {joint.high}"/>'


def _arm(side: Side, sign: int) -> str:
    """One arm; `sign` is +1 on the left. The two tilts of 15 degrees are those of EVE's shoulder."""
    tilt, shell, dark = 0.261799 * sign, 'material="shell"', 'material="dark"'
    place = f'pos="0.01041 {0.20675 * sign} 0.54735" euler="{tilt} 0 {-tilt}"'
    return f"""
    <body name="{side}_SCAPULA" {place} childclass="{side.lower()}">
      {_hinge(f"{side}_SHOULDER_PITCH", "0 1 0")}
      <geom type="sphere" size="0.075" {dark}/>
      <body name="{side}_SHOULDER" euler="{-tilt} 0 0">
        {_hinge(f"{side}_SHOULDER_ROLL", "1 0 0")}
        <geom type="sphere" size="0.05" {dark} contype="0" conaffinity="0"/>
        <body name="{side}_UPPER_ARM" euler="0 0 {tilt}">
          {_hinge(f"{side}_SHOULDER_YAW", "0 0 1")}
          <geom type="capsule" fromto="0 0 -0.05 0 0 -0.27" size="0.06" {shell}/>
          <body name="{side}_ELBOW" pos="0 0 -0.3141">
            {_hinge(f"{side}_ELBOW_PITCH", "0 1 0")}
            <geom type="sphere" size="0.06" {dark}/>
            <body name="{side}_FOREARM">
              {_hinge(f"{side}_ELBOW_YAW", "0 0 1")}
              <geom type="capsule" fromto="0 0 -0.05 0 0 -0.25" size="0.052" {shell}/>
              <body name="{side}_WRIST" pos="0 0 -0.29285">
                {_hinge(f"{side}_WRIST_PITCH", "0 1 0")}
                <geom type="sphere" size="0.045" {dark}/>
                <body name="{side}_PALM">
                  {_hinge(f"{side}_WRIST_ROLL", "1 0 0")}
                  {_hand(side, sign)}
                </body>
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>"""


def _hand(side: Side, sign: int) -> str:
    """Palm and four fingers that curl towards the robot's middle; the grip site lies between them."""
    fingers = "".join(
        f"""
        <body name="{side}_{finger}" pos="{x} {-0.005 * sign} -0.12">
          <joint class="finger" name="{side}_{finger}" axis="{-sign} 0 0" range="-0.1 1.5"/>
          <geom type="capsule" fromto="0 0 0 0 0 -0.08" size="0.016" material="dark"/>
        </body>"""
        for finger, x in zip(FINGERS[:3], (0.035, 0.0, -0.035), strict=True)
    )
    thumb = f"0 {-0.05 * sign} -0.01 0 {-0.065 * sign} -0.06"
    return f"""
      <geom type="box" pos="0 0 -0.075" size="0.052 0.028 0.05" material="dark"/>
      <site name="{side}_GRIP" pos="0 {-0.02 * sign} -0.13" size="0.01" rgba="0 0 0 0"/>{fingers}
      <body name="{side}_THUMB" pos="0.045 {-0.025 * sign} -0.06">
        <joint class="finger" name="{side}_THUMB" axis="{sign} 0 0" range="-0.1 1.5"/>
        <geom type="capsule" fromto="{thumb}" size="0.017" material="dark"/>
      </body>"""


def _camera() -> str:
    """The head camera. MuJoCo cameras look along their own -z, with +x to the right and +y up."""
    x, y, z = CAMERA_OFFSET
    right, up = "0 -1 0", f"{sin(CAMERA_PITCH)} 0 {cos(CAMERA_PITCH)}"
    return f'<camera name="{CAMERA}" pos="{x} {y} {z}" xyaxes="{right} {up}" fovy="{CAMERA_FOV}"/>'
