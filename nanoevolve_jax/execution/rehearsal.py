"""The compiled programs at work on made-up text, for whoever times or profiles them."""

import jax
import numpy as np

from nanoevolve_jax.execution.population import Programs, stack_candidates
from nanoevolve_jax.execution.train import Candidate, Task, TrainState, segment_of

_FAR = np.int32(10**6)  # a horizon at which every segment does the same work


class Rehearsal:
    """A population that trains on random tokens; what it computes is of no use."""

    def __init__(
        self, task: Task, programs: Programs, candidate: Candidate, segment_steps: int, rows: int
    ):
        """Puts everything where the programs expect it; compiles only the initial state.

        Args:
          task: static description.
          programs: of the task.
          candidate: what every lane trains.
          segment_steps: K.
          rows: of validation.
        """
        width, model = programs.width, task.model
        rng = np.random.default_rng(0)

        def tokens(*shape):
            shape = (*shape, task.batch_size, model.sequence_len + 1)
            return rng.integers(0, model.vocab_size, shape, np.int32)

        self._programs = programs
        self._candidates = programs.place(stack_candidates([candidate] * width))
        self._segment = programs.place(segment_of(tokens(width, segment_steps)))
        self._rows = tokens(-(-rows // task.batch_size))
        self._token_bytes = np.ones(model.vocab_size, np.int32)
        seeds = programs.place(np.arange(width, dtype=np.uint32))
        self._state = programs.init_population(self._candidates, seeds, _FAR)

    @property
    def state(self) -> TrainState:
        """Of all lanes, after what was trained so far."""
        return self._state

    def _arguments(self) -> tuple:
        return self._state, self._candidates, self._segment, np.int32(0), _FAR

    def compile(self) -> jax.stages.Compiled:
        """Compiles the training program; running a segment compiles nothing after that."""
        return self._programs.train_segment.lower(*self._arguments()).compile()

    def segment(self) -> None:
        """Trains one segment and waits for it."""
        self._state, telemetry = self._programs.train_segment(*self._arguments())
        jax.block_until_ready(telemetry)

    def evaluation(self) -> None:
        """Validates once and waits for it."""
        evaluate = self._programs.evaluate_population
        jax.block_until_ready(evaluate(self._state.params, self._rows, self._token_bytes))
