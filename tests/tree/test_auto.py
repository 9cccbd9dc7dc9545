"""Auto trees in a language that is known: as fast as the best fixed shape, and no slower than none."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from vllm_eagle_plugin.tree.calibration import Calibration
from vllm_eagle_plugin.tree.choose import Chooser, Limits
from vllm_eagle_plugin.tree.config import Shape
from vllm_eagle_plugin.tree.cost_model import CostModel
from vllm_eagle_plugin.tree.gain import GainController
from vllm_eagle_plugin.tree.old_grow import Growth, select

COSTS = CostModel({1: 40, 2: 42, 4: 45, 8: 53, 16: 72, 32: 110, 64: 190}, {1: 4, 8: 6, 32: 14}, {1: 6, 8: 9, 32: 18})
AUTO = Shape("auto", 16, 5, 4)
VOCABULARY = 48


@dataclass
class World:
    """A target whose distributions are sharp or flat by turns, and a head that knows them more or less."""

    #: Sharpness of the target, each for a hundred steps.
    sharpness: tuple[float, ...]
    #: What the head's logits are off by, and divided by; a worthless head knows nothing.
    noise: float = 0.3
    temperature: float = 1.0
    worthless: bool = False

    def distributions(self, rng: np.random.Generator, step: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities [n, V] of the target and of the head at n nodes."""
        sharpness = self.sharpness[step // 100 % len(self.sharpness)]
        target = rng.gumbel(size=(n, VOCABULARY)) * sharpness
        head = rng.gumbel(size=target.shape) * sharpness if self.worthless else target
        head = (head + rng.normal(size=target.shape) * self.noise) / self.temperature
        return torch.tensor(target).log_softmax(-1), torch.tensor(head).log_softmax(-1)


def throughput(world: World, shape: Shape, steps: int, controller: GainController | None = None) -> float:
    """Tokens per simulated millisecond of one request, sampled at temperature 1."""
    rng, calibration, chooser = np.random.default_rng(0), Calibration(shape.depth), Chooser(COSTS)
    milliseconds, emitted = 0.0, 0
    for step in range(steps):
        levels = controller.limits(["a"]) if controller else [shape.depth]
        trials = [int(t) for t in controller.trials(["a"])] if controller else []
        limits = Limits([shape.nodes], levels, [False], trials)
        nodes, path = 0, []
        if levels[0]:
            growth = Growth(shape, 1, levels[0], calibration.scorer(["a"]) if controller else None)
            target, head = world.distributions(rng, step, 1)
            truth, drafted = {(): target[0]}, []
            growth.start(head)
            milliseconds += float(COSTS.first(1))
            while not controller or chooser.goes_on(growth, limits):
                if (beams := growth.beams()) is None:
                    break
                drafted += beams.tokens[0].tolist()
                target, head = world.distributions(rng, step, beams.tokens.shape[1])
                for seen, distribution in zip(beams.visible[0], target, strict=True):
                    truth[tuple(t for t, s in zip(drafted, seen.tolist(), strict=True) if s)] = distribution
                growth.extend(head[None])
                milliseconds += float(COSTS.level(beams.tokens.shape[1]))
            budgets = chooser.budgets(growth, limits).nodes if controller else [shape.nodes]
            (drawn,) = select(growth.candidates(), budgets, levels, keep_chain=controller is None)
            nodes, node, text = len(drawn.tree), 0, ()
            while text in truth:
                token = int(rng.choice(VOCABULARY, p=truth[text].exp().numpy()))
                if (node := drawn.tree.children.get((node, token), 0)) == 0:
                    break
                path.append(node)
                text += (token,)
            calibration.observe(drawn.claims, drawn.tree, path, "a")
        if controller:
            controller.observe("a", int(drawn.tree.depths.max()) if nodes else 0, len(path), len(path) + 1)
        milliseconds += float(COSTS.verify(1 + nodes))
        emitted += len(path) + 1
    return emitted / milliseconds


def auto(world: World, steps: int) -> float:
    return throughput(world, AUTO, steps, GainController(COSTS, AUTO, 0, AUTO.depth))


FIXED = [Shape.chain(3), Shape.chain(5), Shape("dynamic", 8, 3, 4)]


@pytest.mark.parametrize(
    "world",
    [World((4.0,)), World((3.0,), noise=1.0, temperature=0.5), World((4.0,), temperature=3.0), World((1.0, 6.0))],
    ids=["honest", "overconfident", "flat", "by turns"],
)
def test_auto_is_as_fast_as_the_best_fixed_shape(world: World):
    assert auto(world, 400) > 0.98 * max(throughput(world, shape, 400) for shape in FIXED)


def test_auto_with_a_worthless_head_is_as_fast_as_drafting_nothing():
    assert auto(World((5.0,), temperature=0.5, worthless=True), 1500) > 0.97 * COSTS.plain(1)
