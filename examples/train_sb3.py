"""Train a policy of Stable-Baselines3 on the live twin: reach for an object and touch it, by the motors of one arm.

    pip install worldline[twin,rl]
    python examples/train_sb3.py [--steps 6000] [--starts 4] [--seed 0]

The environment is `worldline/TwinReach-v0` as it is registered, with standard wrappers of Gymnasium and one of our own:
the policy reads the measured state of its arm and where the object is, seen from the hand (physics tells), instead of
pixels, so that minutes are enough. Printed: mean return and share of successes before and after, on the starts that
are trained on and on others.
"""

import argparse
import time

import gymnasium
import numpy as np
import torch
from stable_baselines3 import SAC

import worldline.envs  # noqa: F401 - registers the ids
from worldline.envs import DreamEnv
from worldline.twin.scene import LAYOUT, arm_slice
from worldline.twin.tasks import TASKS

ARM = range(25)[arm_slice("LEFT")]


class FromTheHand(gymnasium.ObservationWrapper):
    """Observe the joints of the arm in rad and the way from the hand to the object in m, in the robot's frame."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(-10, 10, (len(ARM) + 3,), np.float32)

    def observation(self, seen: dict) -> np.ndarray:
        env = self.unwrapped
        assert isinstance(env, DreamEnv), "what is wrapped"
        live, moment = env.core.forecaster, env.snapshot().moment.session
        simulation = live.simulation_of(moment)
        x, y, z = simulation.objects()[0] - simulation.hand("LEFT")
        turn = simulation.base()[2]
        way = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x, z
        return np.concatenate([seen["state"][ARM], np.array(way) * 5]).astype(np.float32)


def environment(seeds: list[int]) -> gymnasium.Env:
    """Changes of one arm's joints, five times a second, each from -1 to 1."""
    env = gymnasium.make(
        "worldline/TwinReach-v0",
        seeds=seeds,
        moves=tuple(LAYOUT.names[entry] for entry in ARM),
        action="delta",
        chunks=3,
        reward="distance",
        shows="state",
    )
    return gymnasium.wrappers.RescaleAction(FromTheHand(env), np.float32(-1), np.float32(1))


def judged(model: SAC, env: gymnasium.Env, seeds: list[int]) -> tuple[float, float]:
    """Mean return, and share of successes, of one episode from each start, without noise."""
    returns, successes = [], []
    for seed in seeds:
        seen, _ = env.reset(seed=seed, options={"start": seed})
        total, done, info = 0.0, False, {}
        while not done:
            seen, reward, terminated, truncated, info = env.step(model.predict(seen, deterministic=True)[0])
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
        successes.append(info["is_success"])
    return float(np.mean(returns)), float(np.mean(successes))


def left_handed(count: int, first: int) -> list[int]:
    """Seeds of starts in which the object is nearer to the left hand."""
    found: list[int] = []
    while len(found) < count:
        if TASKS["touch"].start(first).side == "LEFT":
            found.append(first)
        first += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--starts", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    trained, others = left_handed(given.starts, first=500), left_handed(given.starts, first=800)
    env, unseen = environment(trained), environment(others)
    usual = {"learning_starts": min(300, given.steps // 4), "train_freq": 1, "gradient_steps": 1, "batch_size": 128}
    model = SAC("MlpPolicy", env, seed=given.seed, gamma=0.95, learning_rate=1e-3, **usual)

    def tell(when: str) -> None:
        for name, one, seeds in (("starts of the training", env, trained), ("other starts", unseen, others)):
            total, share = judged(model, one, seeds)
            print(f"{when}, {len(seeds)} {name}: return {total:.2f}, success {100 * share:.0f} %", flush=True)

    tell("before")
    began = time.monotonic()
    model.learn(given.steps)
    print(f"{given.steps} steps in {time.monotonic() - began:.0f} s")
    tell("after")
    env.close()
    unseen.close()


if __name__ == "__main__":
    main()
