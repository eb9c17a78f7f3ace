"""One person's session: makes the next frame from what is wanted, goes back, branches. Plain calls, in one thread.

Between the state as it is and the one that is wanted the robot moves no faster than the data do. A world that makes a
chunk of frames at once is told the way to the target for all of them; when something else is wanted before they are
shown, the chunk is made again from its beginning, with the frames that were shown as they were and the new way behind.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from worldline.forecasting.forecaster import Snapshot
from worldline.forecasting.timing import timed
from worldline.schema import Forecast, UsageError
from worldline.viewer.branches import SNAPSHOT_BYTES, Branch, Moment, State, Tree
from worldline.viewer.joints import returns
from worldline.viewer.pictures import decoded, encoded
from worldline.viewer.protocol import RECORDED, Timing, Trust
from worldline.viewer.recording import Recording
from worldline.viewer.stage import Stage
from worldline.viewer.trust import ENTROPY, ROUND_TRIP, SPREAD, latent_of, measured, needed, round_trip

AGAIN = 1.0
"""A chunk is made again at most when so many times its own duration has passed since it was made."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Wish:
    """What is wanted, as it was when a frame was asked for."""

    states: dict[int, float] = field(default_factory=dict)
    """By place in the state; all others stay as they are, and velocities go to 0."""
    motion: int | None = None
    """The clip whose recorded states are followed."""
    number: int = 0
    """Rises with everything that is wanted anew."""
    drives: int = 0
    """How many `drive` have been read."""
    since: float = 0.0
    """When it arrived (`time.perf_counter`)."""


@dataclass(kw_only=True, eq=False)
class _Plan:
    """A chunk that was made, of which some frames may be shown yet."""

    chunk: int
    rows: Float32[np.ndarray, "t s"]
    made: Forecast
    signals: list[dict[str, float]]
    after: Snapshot
    wish: Wish
    cost: float
    """Seconds."""
    ended: float
    timing: Timing | None
    """Told with the first frame."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shot:
    """A moment to show, and where the time went."""

    branch: Branch
    index: int
    timing: Timing = field(default_factory=Timing)
    drives: int = 0
    made: bool = False
    """Whether it is new."""
    ended: bool = False
    """Whether the motion that was followed is over."""

    @property
    def moment(self) -> Moment:
        return self.branch.moments[self.index]


class Player:
    """The session of one tab. Not thread-safe: one thread calls it."""

    def __init__(self, stage: Stage, clip: int = 0) -> None:
        self.stage = stage
        self._returns = np.array([returns(*one) for one in zip(stage.layout.names, stage.layout.kinds, strict=True)])
        self.open(clip)

    # --- where it is ---

    def open(self, clip: int) -> Shot:
        """Begin again from a clip. Raises `UsageError` where there is none, and what reading it raises."""
        stage, forecaster = self.stage, self.stage.forecaster
        recording = stage.recording(clip)
        with stage.lock:
            session = forecaster.start_clips(recording.batch, seed=stage.options.seed)
            context = recording.context
        branch = Branch(id="b1", name="main", rows=[*recording.states[: forecaster.context_frames]])
        branch.followed, branch.snapshots = len(branch.rows), {0: session.snapshot()}
        for position, frame in zip(forecaster.shown_context, context, strict=True):
            media, picture = encoded(_pixels(frame))
            trust = Trust(word="known", signals={})
            branch.moments.append(Moment(time=position, media=media, picture=picture, real=True, trust=trust))
        branch.head = len(branch.moments) - 1
        self.clip, self.recording, self.context = clip, recording, len(branch.moments)
        self.tree, self._session, self._plan = Tree(branch), session, None
        self._last = _pixels(context[-1])
        self._kept: dict[str, float] = {}
        self._obeyed = -1  # the newest wish by which something was made
        self._motion: tuple[int, Recording, int] | None = None  # clip, its recording, time of its first row
        self._steered = -1  # the wish by which the frames behind the head were made
        self._every = max(1, -(-self._chunks_kept() // self._room(session.snapshot())))
        return self.shot()

    def _chunks_kept(self) -> int:
        return self.stage.options.max_frames // max(1, self.stage.forecaster.chunk_frames // self.stage.forecaster.pace)

    def _room(self, snapshot: Snapshot) -> int:
        """How many snapshots may be kept."""
        if self.stage.forecaster.lookahead_frames > self.stage.forecaster.chunk_frames:
            return 10**9  # what lay ahead is not kept, so no chunk can be made again from those before
        size = sum(part.numel() * part.element_size() for part in snapshot.context)
        return max(1, SNAPSHOT_BYTES // max(1, size))

    @property
    def branch(self) -> Branch:
        return self.tree.current

    def target(self, wish: Wish) -> State:
        """The whole state that is wanted, seen from the frame that is shown."""
        target = np.where(self._returns, np.float32(0), self.branch.rows[self.branch.now.time])
        target[[*wish.states]] = [*wish.states.values()]
        return target

    def shot(self) -> Shot:
        """The frame that is shown."""
        return Shot(branch=self.branch, index=self.branch.head)

    def rewind(self, to: int, wish: Wish) -> Shot:
        """Go to a frame of the branch. Raises `UsageError` where there is none."""
        self.branch.head, self._plan, self._motion = self._within(self.branch, to), None, None
        self._steered, self._kept = wish.number, {}
        return self.shot()

    def fork(self, name: str | None) -> Shot:
        """A new branch from the frame that is shown. Raises `UsageError` for too many, or a name that is taken."""
        self.branch.head = max(self.branch.head, self.context - 1)  # a world needs the whole context
        self.tree.fork(name, context=self.stage.forecaster.context_frames, chunk=self.stage.forecaster.chunk_frames)
        self._plan = None
        return self.shot()

    def switch(self, branch: str, wish: Wish) -> Shot:
        """Go on in another branch. Raises `UsageError` where there is none."""
        self.tree.current, self._plan, self._motion = self.tree.named(branch), None, None
        self._steered, self._kept = wish.number, {}
        return self.shot()

    def look(self, branch: str, index: int) -> Shot | UInt8[np.ndarray, "h w 3"]:
        """A frame elsewhere: a moment, or the picture of the recording. Raises `UsageError` where there is none."""
        if branch != RECORDED:
            found = self.tree.named(branch)
            return Shot(branch=found, index=self._within(found, index))
        picture = self.recording.frame(self.time_of(index))
        if picture is None:
            raise UsageError(f"the recording of this clip has no frame {index}")
        return picture

    def time_of(self, index: int) -> int:
        """The video frame of a shown frame, also of one that is not made yet."""
        return self.branch.moments[0].time + index * self.stage.forecaster.pace

    @staticmethod
    def _within(branch: Branch, index: int) -> int:
        if index >= len(branch.moments):
            raise UsageError(f"branch {branch.name!r} has frames 0..{len(branch.moments) - 1}, not {index}")
        return index

    # --- the next frame ---

    def next(self, wish: Wish) -> Shot:
        """Show the next frame: a kept one where nothing else is wanted since it was left, else a new one.

        Raises `UsageError` where the session is full.
        """
        branch = self.branch
        if branch.head + 1 < len(branch.moments):
            if wish.number == self._steered:
                branch.head += 1
                return self.shot()
            branch.head = max(branch.head, self.context - 1)
            branch.cut(context=self.stage.forecaster.context_frames, chunk=self.stage.forecaster.chunk_frames)
            self.tree.recount()
            self._plan = None
        if self.tree.frames >= self.stage.options.max_frames:
            most = self.stage.options.max_frames
            raise UsageError(
                f"this session keeps {most} frames, and they are used up: drop a branch, or open a clip again"
            )
        self._steered = wish.number
        return self._made(branch, wish)

    def _made(self, branch: Branch, wish: Wish) -> Shot:
        forecaster = self.stage.forecaster
        while True:
            plan = self._planned(branch, wish)
            begin, now = forecaster.context_frames + plan.chunk * forecaster.chunk_frames, branch.now.time
            inside = next((i for i, moment in enumerate(plan.made.times) if moment > now), None)
            end = begin + forecaster.chunk_frames if inside is None else plan.made.times[inside] + 1
            for row in plan.rows[len(branch.rows) - begin : end - begin]:
                branch.add_row(row, self._own(len(branch.rows)))
            if len(branch.rows) == begin + forecaster.chunk_frames:
                self._commit(branch, plan)
            if inside is not None:
                return self._shown(branch, plan, inside)

    def _shown(self, branch: Branch, plan: _Plan, inside: int) -> Shot:
        packing = time.perf_counter()
        frame = _pixels(plan.made.video[0, 0, inside])
        media, picture = encoded(frame)
        since, moment = branch.now.time + 1, plan.made.times[inside]
        signals = plan.signals[inside] | self._round_trip(branch, frame)
        trust = self.stage.gauge.read(np.stack(branch.rows[since : moment + 1]), signals)
        maps = self._maps(plan.made, inside)
        branch.moments.append(Moment(time=moment, media=media, picture=picture, real=False, trust=trust, maps=maps))
        branch.head += 1
        self.tree.frames += 1
        took = 1000 * (time.perf_counter() - packing)
        timing, plan.timing = plan.timing or Timing(), None
        timing = timing.model_copy(update={"encode": round(took, 3)})
        ended = self._motion is not None and len(branch.rows) - self._motion[2] >= len(self._motion[1].states)
        if ended:
            self._motion = None
        return Shot(branch=branch, index=branch.head, timing=timing, drives=plan.wish.drives, made=True, ended=ended)

    def _round_trip(self, branch: Branch, frame: UInt8[np.ndarray, "h w 3"]) -> dict[str, float]:
        """What the tokenizer keeps of the latest frames: measured once a second, and what it was until then."""
        gauge, forecaster, count = self.stage.gauge, self.stage.forecaster, needed(self.stage.forecaster)
        imagined, every = len(branch.moments) + 1 - self.context, max(1, round(self.stage.rate))
        due = imagined >= forecaster.horizon_frames and imagined % every == 0
        if ROUND_TRIP in gauge.usual and count is not None and due:
            before = branch.moments[len(branch.moments) + 1 - count :]
            film = np.stack([*(decoded(moment.picture) for moment in before), frame])
            with self.stage.lock:
                found = round_trip(forecaster, torch.from_numpy(film)[None].permute(0, 1, 4, 2, 3))
            if found is not None:
                self._kept = {ROUND_TRIP: float(found[0]) / max(float(found[1]), gauge.motion)}
        return self._kept

    def _planned(self, branch: Branch, wish: Wish) -> _Plan:
        """The chunk in which the next frame lies, made anew where something else is wanted."""
        forecaster, plan = self.stage.forecaster, self._plan
        number = (len(branch.rows) - forecaster.context_frames) // forecaster.chunk_frames
        if plan is not None and plan.chunk == number:
            fresh = plan.wish.number == wish.number
            if fresh or time.perf_counter() - plan.ended < AGAIN * plan.cost:
                return plan
        begin = forecaster.context_frames + number * forecaster.chunk_frames
        way = self._ahead(branch, begin + forecaster.lookahead_frames - len(branch.rows), wish)
        with self.stage.lock:
            self._plan = self._forecast(branch, number, np.stack([*branch.rows[begin:], *way]), wish)
        return self._plan

    def _forecast(self, branch: Branch, number: int, rows: Float32[np.ndarray, "t s"], wish: Wish) -> _Plan:
        """Make a chunk under the states of `rows`."""
        began, new, self._obeyed = time.perf_counter(), self._obeyed != wish.number, wish.number
        with timed() as spent:
            self._session.restore(self._snapshot(branch, number))
            extra = self.stage.forecaster.streamed & {"certainty"}
            made = self._session.advance(torch.from_numpy(rows)[None], extra=extra)
            after = self._session.snapshot()
        ended, decode = time.perf_counter(), 1000 * spent.get("decode", 0.0)
        timing = Timing(
            model=round(1000 * (ended - began) - decode, 3),
            decode=round(decode, 3),
            queue=round(1000 * (began - wish.since), 3) if wish.since and new else 0.0,
        )
        made_of = {"chunk": number, "rows": rows, "made": made, "after": after, "wish": wish, "timing": timing}
        return _Plan(**made_of, signals=measured(made), cost=ended - began, ended=ended)

    def _commit(self, branch: Branch, plan: _Plan) -> None:
        """All frames of a chunk are shown: go on behind it. Of the snapshots before, only some are kept."""
        branch.snapshots[plan.chunk + 1] = plan.after
        if plan.chunk % self._every:
            branch.snapshots.pop(plan.chunk, None)
        self._plan = None

    def _snapshot(self, branch: Branch, number: int) -> Snapshot:
        """Before a chunk; where it was not kept, made again from the one before."""
        if number not in branch.snapshots:
            forecaster = self.stage.forecaster
            earlier = max(one for one in branch.snapshots if one < number)
            self._session.restore(branch.snapshots[earlier])
            for chunk in range(earlier, number):
                begin = forecaster.context_frames + chunk * forecaster.chunk_frames
                rows = np.stack(branch.rows[begin : begin + forecaster.lookahead_frames])
                self._session.advance(torch.from_numpy(rows)[None])
            branch.snapshots[number] = self._session.snapshot()
        return branch.snapshots[number]

    def _maps(self, made: Forecast, inside: int) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        if made.certainty is not None:
            found[ENTROPY] = made.certainty.entropy[0, latent_of(made)[inside]].numpy().astype(np.float16)
        if made.video.shape[1] > 1:
            found[SPREAD] = made.spread[0, inside].numpy().astype(np.float16)
        return found

    # --- the way to what is wanted ---

    def _own(self, position: int) -> State | None:
        states = self.recording.states
        return states[position] if position < len(states) else None

    def _ahead(self, branch: Branch, count: int, wish: Wish) -> list[State]:
        """The states of the next video frames: towards the target, or along a motion."""
        last, rows = branch.rows[-1], list[State]()
        motion, target = self._follow(branch, wish), np.where(self._returns, np.float32(0), last)
        target[[*wish.states]] = [*wish.states.values()]
        for position in range(len(branch.rows), len(branch.rows) + count):
            if motion is None:
                last = self._towards(last, target)
            else:
                _, recording, first = motion
                states = recording.states
                row = states[min(max(position - first, 0), len(states) - 1)]
                if position - first >= len(states):
                    row = np.where(self._returns, np.float32(0), row)
                own = recording.number == self.recording.number and first == 0 and branch.followed >= len(branch.rows)
                last = row if own else self._towards(last, row)
            rows.append(last)
        return rows

    def _follow(self, branch: Branch, wish: Wish) -> tuple[int, Recording, int] | None:
        """The motion that is wanted: which recording, and at what time its first row lies."""
        if wish.motion is None:
            self._motion = None
        elif self._motion is None or self._motion[0] != wish.motion:
            recording = self.stage.recording(wish.motion)
            if wish.motion == self.clip and branch.followed == len(branch.rows):
                first = 0  # it goes on as it was recorded
            else:
                way = np.abs(recording.states[0] - branch.rows[-1]) / np.maximum(self.stage.ranges.step, 1e-9)
                way = way[(self.stage.ranges.step > 0) & ~self._returns]
                first = len(branch.rows) + max(0, int(np.ceil(way.max(initial=0.0))) - 1)
            self._motion = wish.motion, recording, first
        return self._motion

    def _towards(self, last: State, wanted: State) -> State:
        """One video frame further, no faster than the data; what never moves there jumps."""
        step = np.where(self.stage.ranges.step > 0, self.stage.ranges.step, np.inf).astype(np.float32)
        way = wanted - last
        return np.where(np.abs(way) <= step, wanted, last + np.clip(way, -step, step)).astype(np.float32)

    # --- what lies beside it ---

    def truth(self, shot: Shot) -> UInt8[np.ndarray, "h w 3"] | None:
        """The true frame of a moment, where its branch has followed the recording until then."""
        moment = shot.moment
        return self.recording.frame(moment.time) if moment.time < shot.branch.followed else None

    def copied(self) -> UInt8[np.ndarray, "h w 3"]:
        """The last true frame of the context: what copy-last shows."""
        return self._last


def _pixels(frame: torch.Tensor) -> UInt8[np.ndarray, "h w 3"]:
    return np.ascontiguousarray(frame.permute(1, 2, 0).numpy())
