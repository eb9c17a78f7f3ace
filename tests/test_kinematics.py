"""Where a robot is in its own picture: known answers, and the same as MuJoCo's camera."""

import math
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from worldline.nn.kinematics import Camera, Hinge, Link, Point, Silhouette, Skeleton
from worldline.schema import UsageError
from worldline.twin.scene import CAMERA, LAYOUT, Framing, random_scene
from worldline.twin.simulation import Simulation, can_draw
from worldline.twin.skeleton import twin_skeleton

SCRIPT = Path(__file__).parents[1] / "scripts/skeleton.py"
STRAIGHT = (1.0, 0.0, 0.0, 0.0)
ARM = Skeleton(
    links=(
        Link(parent=None, place=(0.0, 0.0, 0.0), turn=STRAIGHT),
        Link(parent=0, place=(0.0, 0.0, -2.0), turn=STRAIGHT, hinges=(Hinge(state="ELBOW", axis=(0.0, 0.0, 1.0)),)),
    ),
    points=(Point(link=1, place=(1.0, 0.0, 0.0), radius=0.1),),
    camera=Camera(link=0, place=(0.0, 0.0, 0.0), turn=STRAIGHT, fovy=90.0),
)
"""A hand one metre from an elbow that is two metres ahead of the camera, and turns in the picture's plane."""


@pytest.mark.parametrize(
    ("degrees", "right", "down"), [(0, 0.5, 0.0), (90, 0.0, -0.5), (180, -0.5, 0.0), (-30, 0.5 * 0.75**0.5, 0.25)]
)
def test_a_hinge_turns_its_point_in_the_picture(degrees: float, right: float, down: float) -> None:
    flat, depth = Silhouette(ARM, ("OTHER", "ELBOW"), 8).projected(torch.tensor([[5.0, math.radians(degrees)]]))
    torch.testing.assert_close(flat[0, 0], torch.tensor([right, down]), atol=1e-6, rtol=0)
    torch.testing.assert_close(depth, torch.tensor([[2.0]]))


def test_the_map_has_its_spot_where_the_point_is_and_none_for_what_is_behind() -> None:
    states = torch.tensor([[math.radians(-20.0)]])
    spots = Silhouette(ARM, ("ELBOW",), 8)(states)
    assert spots.shape == (1, 8, 8, 2)
    row, column = divmod(int(spots[0, ..., 0].argmax()), 8)
    assert (row, column) == (4, 5)  # of 0.17 down and 0.47 to the right
    torch.testing.assert_close(spots[..., 1], spots[..., 0] * 0.2)  # 0.4 m of 2 m
    turned = replace(ARM, camera=replace(ARM.camera, turn=(0.0, 1.0, 0.0, 0.0)))
    assert Silhouette(turned, ("ELBOW",), 8)(states).abs().max() == 0


def test_the_map_is_the_same_under_autocast_as_in_forecasts() -> None:
    silhouette = Silhouette(twin_skeleton(), LAYOUT.names, 16)
    states = torch.randn(8, LAYOUT.dim, generator=torch.Generator().manual_seed(0)) * 0.3
    expected = silhouette(states)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(silhouette(states), expected)
    assert silhouette.to("meta")(states.to("meta")).shape == expected.shape


def test_far_from_its_point_a_spot_is_almost_nothing_and_yet_no_subnormal_number() -> None:
    """Processors multiply those so slowly that the map doubled the time of a training step."""
    spots = Silhouette(ARM, ("ELBOW",), 32)(torch.tensor([[0.0]]))
    assert spots[0, 0].max() < 1e-8
    # Neither are their products with gradients, which are far smaller than 1.
    assert (spots * 1e-20).min() >= torch.finfo(torch.float32).tiny


def test_a_skeleton_of_another_robot_is_refused() -> None:
    with pytest.raises(UsageError, match="no state ELBOW"):
        Silhouette(ARM, ("KNEE",), 8)


def test_links_that_are_not_there_or_come_later_are_refused() -> None:
    first, *others = ARM.links
    with pytest.raises(UsageError, match="link 0 of a skeleton hangs on link 1, which is not before it"):
        replace(ARM, links=(replace(first, parent=1), *others))
    with pytest.raises(UsageError, match="a point of a skeleton is on link -1, but there are"):
        replace(ARM, points=(replace(ARM.points[0], link=-1),))


@pytest.mark.parametrize("axis", [(0.0, 1.0, 1.0), (0.0, 0.0, 0.0)])
def test_a_hinge_about_an_axis_of_another_length_is_refused(axis: tuple[float, float, float]) -> None:
    with pytest.raises(UsageError, match=r"axis is .*must be of length 1"):
        Hinge(state="ELBOW", axis=axis)


@pytest.mark.parametrize("view", get_args(Framing))
@pytest.mark.skipif(not can_draw(), reason="MuJoCo or OpenGL is missing")
def test_the_twins_skeleton_is_where_mujoco_puts_it(view: Framing) -> None:
    skeleton, generator = twin_skeleton(view), np.random.default_rng(3)
    silhouette = Silhouette(skeleton, LAYOUT.names, 16)
    with Simulation(random_scene(generator, view), size=2) as simulation:
        simulation.reset()
        for _ in range(8):
            command = np.zeros(25, dtype=np.float32)
            command[:21] = generator.uniform(simulation.low, simulation.high)
            command[21:23] = generator.uniform(0, 1, 2)
            simulation.reset(command)
            state, data, model = simulation.state(), simulation.data, simulation.model
            simulation.frame()  # bodies are where the joints say
            eye, turn = data.camera(CAMERA).xpos, data.camera(CAMERA).xmat.reshape(3, 3)
            flat, depth = silhouette.projected(torch.from_numpy(state)[None])
            hand = [i for i, point in enumerate(skeleton.points) if abs(point.radius - 0.045) < 1e-6]
            for point, name in zip(hand, ("LEFT_WRIST", "RIGHT_WRIST"), strict=True):
                seen = (data.body(name).xpos - eye) @ turn
                assert depth[0, point].item() == pytest.approx(-seen[2], abs=2e-3)
                if seen[2] < -0.1:
                    focal = 1 / np.tan(np.deg2rad(model.camera(CAMERA).fovy[0]) / 2)
                    expected = seen[:2] * focal / -seen[2] * [1, -1]
                    np.testing.assert_allclose(flat[0, point], expected, atol=5e-3)


@pytest.mark.skipif(not can_draw(), reason="MuJoCo or OpenGL is missing")
def test_the_twins_skeleton_is_what_its_script_writes() -> None:
    spec = spec_from_file_location("skeleton_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    for view in get_args(Framing):
        assert script.skeleton(view) == twin_skeleton(view)


@pytest.mark.parametrize("fovy", [0.0, -90.0, 180.0])
def test_a_camera_that_sees_nothing_is_refused(fovy: float) -> None:
    with pytest.raises(UsageError, match="fovy is"):
        replace(ARM.camera, fovy=fovy)
