"""What `legraph run` shows: text while it is generated, then the results, for people or for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from legraph.cli.console import Show, draw_error, for_eyes, in_turns, panels, print_picture, progress
from legraph.errors import LegraphError

if TYPE_CHECKING:
    from legraph.engine import Engine, RunResult, Submission

# For each run, by its number, the log-probabilities of what its chunks generated.
LogProbs = dict[int, dict[str, tuple[float, ...]]]


class Report:
    """Shows runs while they go on, and gives their results; with `log_probs`, if somebody sets them."""

    def __init__(
        self, names: list[str], is_several: bool, as_json: bool, explains: bool, setup: dict[str, float]
    ) -> None:
        self.names, self.is_several, self.as_json = names, is_several, as_json
        self.explains, self.setup = explains, setup
        self.errors: dict[int, LegraphError] = {}
        self.is_shown = False
        self.log_probs: LogProbs = {}

    def follow(self, engine: Engine, runs: Sequence[Submission | LegraphError], streams: bool) -> None:
        """Reads all events; with `streams`, shows text as it comes. Of several runs some may fail."""
        from legraph.branch import Piece
        from legraph.marks import printable

        self.errors = {i: run for i, run in enumerate(runs) if isinstance(run, LegraphError)}
        under_way = {i: run for i, run in enumerate(runs) if not isinstance(run, LegraphError)}
        numbers, submissions = list(under_way), list(under_way.values())
        with self._shown(submissions, streams) as show, self._all_failing(under_way):
            for at, event in engine.follow(submissions):
                number = numbers[at]
                prefix = f"{printable(self.names[number])}:" if self.is_several else ""
                if isinstance(event, Piece):
                    show(prefix + event.chunk, event.text, False)
                elif isinstance(event, LegraphError):
                    self.errors[number] = event
                else:
                    for chunk in event.outputs:
                        show(prefix + chunk, "", True)

    @contextmanager
    def _all_failing(self, runs: dict[int, Submission]) -> Iterator[None]:
        """What ends all runs at once is an error of each that has not ended before."""
        try:
            yield
        except LegraphError as error:
            self.errors |= {i: error for i, run in runs.items() if run.job.error is not None}
            raise

    def results(self, runs: Sequence[Submission | LegraphError]) -> list[RunResult | LegraphError]:
        """Ends what is under way, and gives what there is of each run."""
        found: list[RunResult | LegraphError] = []
        for number, run in enumerate(runs):
            if not isinstance(run, LegraphError):
                run.cancel()
                run = self.errors.get(number) or run.partial()
            found.append(run)
        return found

    @contextmanager
    def _shown(self, submissions: list[Submission], streams: bool) -> Iterator[Show]:
        if not streams or not submissions:
            with progress("generating", None, "tokens") as advance:
                yield lambda name, text, is_done: advance(0 if is_done else 1)
        elif sys.stdout.isatty() and sum(submission.num_branches for submission in submissions) > 1:
            with panels() as show:
                yield show
        else:
            self.is_shown = True
            is_one = sum(submission.num_branches for submission in submissions) == 1
            try:
                yield in_turns(has_headings=not is_one)
            finally:
                print(flush=True)

    def give(self, results: list[RunResult | LegraphError]) -> None:
        """Prints results: as JSON, or as text unless it has been shown.

        Raises:
            LegraphError: the only run failed.
        """
        from legraph import report
        from legraph.marks import printable

        for number, (name, result) in enumerate(zip(self.names, results, strict=True)):
            if isinstance(result, LegraphError):
                if not self.is_several:
                    raise result
                if self.as_json:
                    print(json.dumps({"id": name, "error": report.error_data(result)}))
                else:
                    # Problems of a file begin with its name.
                    text, prefix = str(result), f"{printable(name)}:"
                    draw_error(text if text.startswith(prefix) else f"{prefix} {text}")
                continue
            heading = f"== {printable(name)} ==\n" if self.is_several else ""
            if self.as_json:
                row = report.result_data(
                    result, self.setup | result.timing, self.explains, self.log_probs.get(number)
                )
                print(json.dumps(({"id": name} if self.is_several else {}) | row))
            elif not self.is_shown:
                print(for_eyes(heading + report.outputs_text(result)))
            if self.explains and not self.as_json:
                print(heading, end="", file=sys.stderr)
                print_picture(report.sources_table(result.sources), to_stderr=True)
