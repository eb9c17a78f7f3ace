"""A robot's skeleton, and where its points are in the picture of its own camera, for any state.

Told as numbers, a state says where an arm is only to who has learnt the robot's geometry; told as a map over the
picture, it says so at once. Two studies of 2026 find such pixel-aligned conditioning ahead of every vector
(GigaWorld-1, arXiv 2607.02642; OSCAR, arXiv 2606.04463).
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from worldline.checks import refuse
from worldline.schema import UsageError

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]
"""w, x, y, z."""
NEAR = 0.05
"""Points nearer to the camera than this, in m, or behind it, are not seen."""
SHARPEST = 0.5
"""Smallest deviation of a point's spot, in positions of the map."""
FAINT = -20.0
"""Logarithm of what is left of a spot far from its point. Less than 1e-38 would be subnormal, and a processor
multiplies subnormal numbers 35 times more slowly."""
ARM = 0.4
"""Depth in m at which a spot's second channel is as strong as its first."""


@dataclass(frozen=True, kw_only=True)
class Hinge:
    """A joint of one angle, through the origin of its link."""

    state: str
    """Name of the state that turns it."""
    axis: Vector
    """Of length 1, in the link's axes."""
    scale: float = 1.0
    """Angle in rad of a state of 1."""

    def __post_init__(self) -> None:
        if abs(math.hypot(*self.axis) - 1) > 1e-3:  # about another, Rodrigues' formula also stretches the link
            refuse(self, "axis", "of length 1")


@dataclass(frozen=True, kw_only=True)
class Link:
    """A rigid part, placed relative to its parent, which comes before it; its hinges turn it one after the other."""

    parent: int | None
    place: Vector
    """In m."""
    turn: Quaternion
    hinges: tuple[Hinge, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of a link, and how thick the link is there; in m."""

    link: int
    place: Vector
    radius: float


@dataclass(frozen=True, kw_only=True)
class Camera:
    """It looks along -z of its own axes, x to the right of the picture and y up."""

    link: int
    place: Vector
    turn: Quaternion
    fovy: float
    """Field of view from top to bottom, in degrees. Pictures are square."""

    def __post_init__(self) -> None:
        if not 0 < self.fovy < 180:
            refuse(self, "fovy", "an angle above 0 and below 180 degrees")


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """What is needed to say where a robot is in its own picture. The root's own place does not matter."""

    links: tuple[Link, ...]
    points: tuple[Point, ...]
    camera: Camera

    def __post_init__(self) -> None:
        for number, link in enumerate(self.links):
            if link.parent is not None and not 0 <= link.parent < number:
                raise UsageError(f"link {number} of a skeleton hangs on link {link.parent}, which is not before it")
        for what, one in (*(("a point", point) for point in self.points), ("the camera", self.camera)):
            if not 0 <= one.link < len(self.links):
                raise UsageError(f"{what} of a skeleton is on link {one.link}, but there are {len(self.links)}")


@runtime_checkable
class Mapped(Protocol):
    """The configuration of a model that may be shown a map of where its robot is in the picture."""

    @property
    def skeleton(self) -> Skeleton | None: ...

    @property
    def draws_map(self) -> bool: ...


def skeleton_drawn_by(config: object) -> Skeleton | None:
    """The skeleton of whose map a model of this configuration is shown; None where it is shown none."""
    return config.skeleton if isinstance(config, Mapped) and config.draws_map else None


def refuse_another_robot(skeleton: Skeleton, names: tuple[str, ...]) -> None:
    """Raise `UsageError` where a state that turns a hinge of the skeleton is not among the names."""
    turning = {hinge.state for link in skeleton.links for hinge in link.hinges}
    if missing := sorted(turning - {*names}):
        some = ", ".join(missing[:3])
        raise UsageError(
            f"the skeleton is of another robot: the data have no state {some}; take a recipe without a "
            "skeleton (compression_any, sampling_any, driven_any), or give your robot's own (docs/states.md)"
        )


class Silhouette(nn.Module):
    """States to a map over the picture: for each point of the skeleton a spot where it is, as wide as the link there.

    Two channels a point: the spot, and the spot by its nearness. Holds no parameters. Raises `UsageError` where a state
    that turns a hinge is not among the names, or there are no hinges or no points.
    """

    def __init__(self, skeleton: Skeleton, names: tuple[str, ...], side: int) -> None:
        super().__init__()
        refuse_another_robot(skeleton, names)
        hinges = [hinge for link in skeleton.links for hinge in link.hinges]
        if not (hinges and skeleton.points):
            lacks = "hinge that a state turns" if skeleton.points else "point to draw"
            raise UsageError(f"a map of this skeleton would say nothing: it has no {lacks}")
        self.skeleton, self.side = skeleton, side
        self.channels = 2 * len(skeleton.points)
        self.focal = 1 / math.tan(math.radians(skeleton.camera.fovy) / 2)
        self.hinged = [names.index(hinge.state) for hinge in hinges]
        axes = torch.tensor([hinge.axis for hinge in hinges]) * 1.0
        x, y, z = axes.unbind(-1)
        cross = torch.stack([0 * x, -z, y, z, 0 * x, -x, -y, x, 0 * x], dim=-1).view(-1, 3, 3)
        turns = torch.stack([_matrix(part.turn) for part in (*skeleton.links, skeleton.camera)])
        at = torch.tensor([part.place for part in (*skeleton.links, skeleton.camera)])
        points, radii = (torch.tensor([getattr(p, name) for p in skeleton.points]) for name in ("place", "radius"))
        middles = (torch.arange(side) + 0.5) * 2 / side - 1
        scales = torch.tensor([hinge.scale for hinge in hinges])
        tables = {
            "cross": cross,
            "scales": scales,
            "turns": turns,
            "at": at,
            "points": points,
            "radii": radii,
            "middles": middles,
        }
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)

    cross: Tensor
    scales: Tensor
    turns: Tensor
    at: Tensor
    points: Tensor
    radii: Tensor
    middles: Tensor

    def projected(self, states: Float[Tensor, "n s"]) -> tuple[Float[Tensor, "n k two"], Float[Tensor, "n k"]]:
        """Where each point is in the picture, right and down from -1 to 1, and its depth in m (negative: behind).

        In float32 under autocast, too: what a world learns the map by is then what its forecasts are shown.
        """
        with _no_autocast(states.device.type):
            return self._projected(states)

    def _projected(self, states: Float[Tensor, "n s"]) -> tuple[Float[Tensor, "n k two"], Float[Tensor, "n k"]]:
        turns, places = self._links(states)
        link = [point.link for point in self.skeleton.points]
        world = torch.stack([places[i] for i in link], dim=1)
        world = world + (torch.stack([turns[i] for i in link], dim=1) @ self.points[..., None])[..., 0]
        on = self.skeleton.camera.link
        eye = places[on] + turns[on] @ self.at[-1]
        seen = (world - eye[:, None]) @ (turns[on] @ self.turns[-1])  # the transpose from the left
        depth = -seen[..., 2]
        flat = seen[..., :2] * self.focal / depth.clamp_min(NEAR)[..., None]
        return flat * flat.new_tensor([1.0, -1.0]), depth

    def forward(self, states: Float[Tensor, "n s"]) -> Float[Tensor, "n h w c"]:
        """The map, of `side` positions each way; raw states."""
        flat, depth = self.projected(states)
        wide = (self.radii * self.focal / depth.clamp_min(NEAR)).clamp_min(SHARPEST * 2 / self.side)
        across, down = (((self.middles[:, None] - flat[:, None, :, i]) / wide[:, None]).square() for i in (0, 1))
        faded = (-0.5 * (down[:, :, None] + across[:, None])).clamp_min(FAINT)
        spots = faded.exp() * (depth > NEAR)[:, None, None]
        return torch.cat([spots, spots * (ARM / depth.clamp_min(NEAR))[:, None, None]], dim=-1)

    def _links(self, states: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Of each link, its turn and its place."""
        angles = (states[:, self.hinged] * self.scales)[..., None, None]
        # Rodrigues' formula, for all hinges at once
        hinges = torch.eye(3, device=states.device) + angles.sin() * self.cross
        hinges = (hinges + (1 - angles.cos()) * (self.cross @ self.cross)).unbind(dim=1)
        turns: list[Tensor] = []
        places: list[Tensor] = []
        count = 0
        for number, link in enumerate(self.skeleton.links):
            turn, place = self.turns[number].expand(len(states), 3, 3), self.at[number].expand(len(states), 3)
            if link.parent is not None:
                place = places[link.parent] + turns[link.parent] @ self.at[number]
                turn = turns[link.parent] @ turn
            for _ in link.hinges:
                turn, count = turn @ hinges[count], count + 1
            turns.append(turn)
            places.append(place)
        return turns, places


def _no_autocast(kind: str) -> AbstractContextManager[Any]:
    """Products of matrices as they are, on a kind of device."""
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def _matrix(turn: Quaternion) -> Tensor:
    w, x, y, z = (value / math.sqrt(sum(part**2 for part in turn)) for value in turn)
    return torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
