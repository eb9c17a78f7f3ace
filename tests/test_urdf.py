"""Skeletons from URDF files: known answers, the twin's own from EVE's file, and files that are none."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from worldline.nn.kinematics import Point, Silhouette, Skeleton
from worldline.nn.urdf import Mounted, skeleton_of_urdf
from worldline.schema import DataError, UsageError
from worldline.twin.scene import LAYOUT
from worldline.twin.skeleton import twin_skeleton

EVE = Path(__file__).parents[2] / "shared/robots/eve_r3_description/urdf/eve_r3.urdf"
ARM = """<?xml version="1.0"?>
<robot name="arm">
  <link name="base"/><link name="upper"/><link name="hand"/><link name="finger"/>
  <joint name="elbow" type="revolute">
    <origin xyz="2 0 0"/><parent link="base"/><child link="upper"/><axis xyz="2 0 0"/>
  </joint>
  <joint name="wrist" type="fixed"><origin xyz="0 1 0" rpy="0 0 0"/><parent link="upper"/><child link="hand"/></joint>
  <joint name="grip" type="continuous">
    <origin xyz="0 0 0" rpy="0 0 0"/><parent link="hand"/><child link="finger"/><axis xyz="1 0 0"/>
    <mimic joint="elbow" multiplier="-0.5" offset="0.25"/>
  </joint>
</robot>
"""
AHEAD = (-math.pi / 2, 0.0, -math.pi / 2)
"""A camera that looks along x, with y of its link to the left and z up."""
EYE = Mounted(link="base", xyz=(0.0, 0.0, 0.0), rpy=AHEAD, fovy=90.0)


@pytest.fixture
def arm(tmp_path: Path) -> Path:
    path = tmp_path / "arm.urdf"
    path.write_text(ARM)
    return path


def test_a_joint_turns_what_hangs_from_it_in_the_picture(arm: Path) -> None:
    """One metre to the left of an elbow that is two metres ahead; a quarter turn about x takes it up."""
    silhouette = Silhouette(skeleton_of_urdf(arm, EYE, shown=["hand"]), ("other", "elbow"), 8)
    angles = torch.tensor([[7.0, 0.0], [7.0, math.pi / 2], [7.0, math.pi]])
    flat, depth = silhouette.projected(angles)
    torch.testing.assert_close(flat[:, 0], torch.tensor([[-0.5, 0.0], [0.0, -0.5], [0.5, 0.0]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(depth, torch.full((3, 1), 2.0))


def test_a_joint_that_follows_another_turns_with_it(arm: Path) -> None:
    skeleton = skeleton_of_urdf(arm, EYE)
    finger = replace(skeleton, points=(Point(link=3, place=(0.0, 0.0, 1.0), radius=0.1),))
    flat, _ = Silhouette(finger, ("elbow",), 8).projected(torch.tensor([[0.5]]))
    about = 0.5 + 0.25 - 0.5 * 0.5  # the elbow's, and the finger's own beside it
    left, up = math.cos(0.5) - math.sin(about), math.sin(0.5) + math.cos(about)
    torch.testing.assert_close(flat[0, 0], torch.tensor([-left / 2, -up / 2]), atol=1e-6, rtol=0)


def test_a_joint_that_follows_another_turns_by_its_own_state_where_the_data_have_one(arm: Path) -> None:
    """Many hands measure every finger joint, also those that the file says mimic another."""
    hinges = [link.hinges for link in skeleton_of_urdf(arm, EYE, states={"elbow": "e", "grip": "g"}).links]
    assert [[(hinge.state, hinge.scale) for hinge in some] for some in hinges] == [[], [("e", 1.0)], [], [("g", 1.0)]]
    assert skeleton_of_urdf(arm, EYE, states={"grip": "g"}).links[3].hinges[0].state == "g"


def test_a_joint_that_follows_a_follower_turns_with_the_first(arm: Path) -> None:
    tip = '<joint name="tip" type="revolute"><parent link="finger"/><child link="nail"/><axis xyz="1 0 0"/>'
    arm.write_text(ARM.replace("</robot>", f'{tip}<mimic joint="grip" multiplier="2" offset="1"/></joint></robot>'))
    nail = skeleton_of_urdf(arm, EYE).links[4]
    assert [(hinge.state, hinge.scale) for hinge in nail.hinges] == [("elbow", -1.0)]
    assert nail.turn == pytest.approx((math.cos(0.75), math.sin(0.75), 0.0, 0.0))  # by 1 + 2 * 0.25
    arm.write_text(ARM.replace('<mimic joint="elbow"', '<mimic joint="grip"'))
    assert not skeleton_of_urdf(arm, EYE).links[3].hinges  # it follows itself


def test_points_are_along_the_links_that_are_shown(arm: Path) -> None:
    assert [point.place for point in skeleton_of_urdf(arm, EYE, shown=["upper"]).points] == [
        (0.0, 0.0, 0.0),
        (0.0, 0.5, 0.0),
        (0.0, 1.0, 0.0),
    ]
    assert len(skeleton_of_urdf(arm, EYE).points) == 3 + 3 + 1 + 1


def test_a_fixed_joint_may_have_an_axis_of_nothing(arm: Path) -> None:
    """Exporters write one (SolidWorks'; the files of Unitree's robots)."""
    expected = skeleton_of_urdf(arm, EYE)
    arm.write_text(ARM.replace('<child link="hand"/>', '<child link="hand"/><axis xyz="0 0 0"/>'))
    assert skeleton_of_urdf(arm, EYE) == expected


def test_states_have_the_names_of_the_data(arm: Path) -> None:
    named = skeleton_of_urdf(arm, EYE, states={"elbow": "joint_0.pos"})
    assert [hinge.state for link in named.links for hinge in link.hinges] == ["joint_0.pos", "joint_0.pos"]
    still = skeleton_of_urdf(arm, EYE, states={})
    assert not any(link.hinges for link in still.links)


def test_a_map_that_would_say_nothing_is_refused(arm: Path) -> None:
    with pytest.raises(UsageError, match="no hinge that a state turns"):
        Silhouette(skeleton_of_urdf(arm, EYE, states={}), ("elbow",), 8)
    with pytest.raises(UsageError, match="no point to draw"):
        Silhouette(skeleton_of_urdf(arm, EYE, shown=[]), ("elbow",), 8)


@pytest.mark.skipif(not EVE.exists(), reason="EVE's description is not here")
def test_eves_file_is_the_twins_skeleton() -> None:
    """The twin's kinematics were written from it by hand: both put the wrists in the same places of the picture."""
    twin = twin_skeleton("room")
    parts = {"shoulder_y": "SHOULDER_PITCH", "shoulder_x": "SHOULDER_ROLL", "shoulder_z": "SHOULDER_YAW"}
    parts |= {"elbow_y": "ELBOW_PITCH", "elbow_z": "ELBOW_YAW", "wrist_y": "WRIST_PITCH", "wrist_x": "WRIST_ROLL"}
    states = {f"j_{side[0].lower()}_{ours}": f"{side}_{parts[ours]}" for side in ("LEFT", "RIGHT") for ours in parts}
    states["j_neck_y"] = "NECK_PITCH"
    tilt = math.asin(0.1736482513311082)  # the twin's camera looks down by ten degrees
    camera = Mounted(link="head", xyz=twin.camera.place, rpy=(AHEAD[0] - tilt, 0.0, AHEAD[2]), fovy=90.0)
    found = skeleton_of_urdf(EVE, camera, states=states, shown=["l_palm", "r_palm"])
    wrists = [i for i, link in enumerate(twin.links) for h in link.hinges if h.state.endswith("WRIST_ROLL")]
    expected = replace(twin, points=tuple(Point(link=i, place=(0.0, 0.0, 0.0), radius=0.04) for i in wrists))
    only = sorted((p for p in found.points if not any(p.place)), key=lambda p: -p.link)  # the file's right arm is first
    one, other = _seen(replace(found, points=tuple(only))), _seen(expected)
    torch.testing.assert_close(one[0], other[0], atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(one[1], other[1], atol=2e-4, rtol=1e-3)


def _seen(skeleton: Skeleton) -> tuple[torch.Tensor, torch.Tensor]:
    states = torch.rand(16, 25, generator=torch.Generator().manual_seed(0)) - 0.5
    return Silhouette(skeleton, LAYOUT.names, 8).projected(states)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("</robot>", "", "ParseError"),
        ('xyz="2 0 0"/><parent', 'xyz="${x} 0 0"/><parent', r"could not convert.*xacro"),
        ('<parent link="base"/>', "", "elbow without a parent"),
        ('xyz="2 0 0"/>\n', 'xyz="0 0 0"/>\n', "turns about 0 0 0"),
        ('<child link="finger"/>', '<child link="upper"/>', "hang from one"),
        ('<parent link="hand"/>', '<parent link="elsewhere"/>', "2 without a parent"),
    ],
)
def test_what_is_no_urdf_is_refused(arm: Path, old: str, new: str, said: str) -> None:
    assert ARM.count(old) == 1
    arm.write_text(ARM.replace(old, new))
    with pytest.raises(DataError, match=rf"arm\.urdf.*{said}"):
        skeleton_of_urdf(arm, EYE)


def test_a_mistake_is_named(arm: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        skeleton_of_urdf(tmp_path / "absent.urdf", EYE)
    with pytest.raises(UsageError, match="no link head; it has base, finger"):
        skeleton_of_urdf(arm, replace(EYE, link="head"))
    with pytest.raises(UsageError, match="no link thumb"):
        skeleton_of_urdf(arm, EYE, shown=["thumb"])
    with pytest.raises(UsageError, match="no joint that turns wrist; it has elbow, grip"):
        skeleton_of_urdf(arm, EYE, states={"wrist": "x"})
