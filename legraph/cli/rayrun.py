"""`legraph batch --ray`: the same batch, on a Ray cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any

import typer

from legraph.errors import InputError, Problem

if TYPE_CHECKING:
    from legraph.batch import Progress
    from legraph.batchinput import Inputs
    from legraph.batchjournal import Journal
    from legraph.graph import Generate
    from legraph.raybatch import EngineOptions
    from legraph.raycluster import Pool

# Runs what a journal does not hold yet, and shows how far it is.
Runner = Callable[["Journal", Callable[["Progress"], object]], "Progress"]

RayOption = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS", help="On a Ray cluster: local, auto or HOST:PORT."),
]
RayActorsOption = Annotated[
    int | None,
    typer.Option("--ray-actors", metavar="N", min=1, help="Engines there; default: one for each GPU."),
]
GpusPerActorOption = Annotated[
    float | None,
    typer.Option("--gpus-per-actor", metavar="N", min=0, help="Default: 1, or 0 if there are none."),
]


def pool_of(address: str | None, actors: int | None, gpus_per_actor: float | None) -> Pool | None:
    """
    Raises:
        InputError: options of a cluster without one.
    """
    from legraph.raycluster import Pool

    if address is not None:
        return Pool(address, actors, gpus_per_actor)
    for option, value in (("--ray-actors", actors), ("--gpus-per-actor", gpus_per_actor)):
        if value is not None:
            raise InputError(Problem(f"{option} is about a cluster, and there is none", "--ray beside it"))
    return None


@contextmanager
def on_ray(
    pool: Pool, options: EngineOptions, inputs: Inputs, settings: Generate, retry_errors: bool
) -> Iterator[tuple[dict[str, Any], Runner]]:
    """The model's part of the journal's header, and what runs the batch."""
    from legraph.raybatch import model_header_of, run_to_file_on_ray
    from legraph.raycluster import connected

    # Ray tells about actors that died on stdout, where results go.
    with redirect_stdout(sys.stderr), connected(pool.address):
        yield (
            model_header_of(pool, options),
            lambda journal, shown: run_to_file_on_ray(
                pool, options, inputs, settings, journal, retry_errors, shown
            ),
        )
