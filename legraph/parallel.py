"""One model on several processes (tensor parallelism): how they find each other, and how they stay in step.

Each process holds a slice of every weight matrix and the attention heads that go with it; transformers says
which (`base_model_tp_plan`) and adds the slices' results up inside a pass (Megatron-LM, Shoeybi et al. 2019).
Everything else, the scheduler included, runs in each of them, on the same input. So they must never come to
different decisions: whatever depends on the state of one process (memory, the last bit of a logit) is agreed
on (`Team`). Where one fails inside a pass, the others wait for it in vain, so it ends, and `torchrun` ends
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from legraph.errors import InputError, ModelError, Problem

if TYPE_CHECKING:
    import torch

    from legraph.logits import Logits

AUTO = "auto"
COMMAND = "torchrun --nproc-per-node N -m legraph run ... --tp auto"
# How long a process waits for the others in the middle of a pass or while weights are loaded.
_PATIENCE = timedelta(minutes=10)
# How long it waits, at its end, for the one that speaks.
_LAST_WORD = timedelta(seconds=30)
_SPEAKS, _HAS_SPOKEN = "legraph/speaks", "legraph/has_spoken"
# Projections that make queries and keys; where a plan cuts one of them, it cuts between heads.
_HEAD_PROJECTIONS = ("q_proj", "k_proj", "q_b_proj", "kv_b_proj", "qkv_proj", "query_key_value")
# What torch says when another process has gone, or does not answer: gloo's and NCCL's words.
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "NCCL")


@dataclass(frozen=True, slots=True)
class Team:
    """The processes that share a model.

    Attributes:
        rank: this one's number; 0 is the one that draws tokens.
        size: how many there are.
        device: where what they exchange lies.
    """

    rank: int
    size: int
    device: torch.device

    def all(self, is_true: bool) -> bool:
        """Whether something is true in every process. All of them must ask."""
        import torch
        import torch.distributed as dist

        found = torch.tensor([int(is_true)], device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return bool(found.item())

    def agreed(self, logits: Logits, with_rows: bool) -> Logits:
        """The first process's logits. They differ in the last bit at most, and that may decide.

        Args:
            with_rows: all of them, for those who sample; else only the best of each row.
        """
        import torch
        import torch.distributed as dist

        if not logits.best:
            return logits
        best = torch.tensor([logits.best, logits.highest], dtype=torch.float64, device=self.device)
        dist.broadcast(best, 0)
        rows = logits.rows
        if with_rows:
            rows = rows.contiguous()
            dist.broadcast(rows, 0)
        tokens, highest = best.tolist()
        return replace(logits, rows=rows, best=[int(token) for token in tokens], highest=highest)


def team_of(model: Any) -> Team | None:
    """Those who share the model; None if this process has all of it."""
    import torch.distributed as dist

    size = getattr(model, "_tp_size", None) or 1
    if size == 1:
        return None
    return Team(dist.get_rank(), size, model.device)


def join() -> int:
    """Finds the other processes that `torchrun` has started, unless that is done already.

    Returns:
        how many there are.

    Raises:
        ModelError: this process was not started by torchrun; it has no device of its own; some others did
            not come.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    if not dist.is_available():
        raise ModelError("this build of torch has no torch.distributed, which tensor parallelism needs")
    if dist.is_initialized():
        return dist.get_world_size()
    if not dist.is_torchelastic_launched():
        raise ModelError(
            "tensor parallelism takes a process for each device, and this is a single one", COMMAND
        )
    has_gpus = torch.cuda.is_available()
    if has_gpus:
        at, num_devices = distributed_c10d.get_node_local_rank(), torch.cuda.device_count()
        if at >= num_devices:
            raise ModelError(
                f"there is no device for process {at + 1} of this machine: it has {num_devices}",
                f"--nproc-per-node {num_devices}",
            )
        torch.cuda.set_device(at)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpus else "gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"the processes do not find each other: {_first_line(error)}", COMMAND) from None
    return dist.get_world_size()


def check_choice(tp: str | None, device: str | None, has_kv: bool) -> None:
    """
    Raises:
        InputError: another choice than "auto", or one that something else contradicts.
    """
    if tp is None:
        return
    problems = list[Problem]()
    if tp != AUTO:
        problems.append(Problem(f"tp is {tp!r}", f"{AUTO!r}: the model's own plan"))
    if device is not None:
        problems.append(
            Problem(
                f"tp is {tp!r} and device is {device!r}: with tp each process takes a device of its own",
                "one of the two",
                "CUDA_VISIBLE_DEVICES= makes it the CPU",
            )
        )
    if has_kv:
        problems.append(no_kv())
    if problems:
        raise InputError(problems)


def no_kv() -> Problem:
    """Found in one process and lost in another, a chunk would make them run different passes."""
    return Problem(
        "keys and values cannot be kept for other runs where several processes share a model",
        "no KV store with tensor parallelism",
    )


def check_plan(name: str, config: Any, size: int) -> None:
    """
    Raises:
        ModelError: transformers has no plan for the model, or its heads cannot be dealt out evenly.
    """
    text = config.get_text_config()
    plan = getattr(text, "base_model_tp_plan", None) or getattr(config, "base_model_tp_plan", None)
    if not plan:
        raise ModelError(
            f"transformers has no plan to share out a model of type {text.model_type!r} ({name!r})",
            "run it on one device, without tp",
        )
    if not _cuts_heads(plan):
        return
    heads = getattr(text, "num_attention_heads", None)
    for what, number in (
        ("query heads", heads),
        ("key and value heads", getattr(text, "num_key_value_heads", None) or heads),
    ):
        if isinstance(number, int) and number % size:
            raise ModelError(
                f"the {number} {what} of {name!r} cannot be dealt out evenly to {size} processes",
                f"start as many as divide them: --nproc-per-node {_largest_divisor(number, size)}",
            )


def _cuts_heads(plan: dict[str, str]) -> bool:
    return any(
        style == "colwise" and module.rpartition(".")[2] in _HEAD_PROJECTIONS
        for module, style in plan.items()
    )


def _largest_divisor(number: int, below: int) -> int:
    return next(size for size in range(below - 1, 0, -1) if number % size == 0)


def load_options(size: int) -> dict[str, Any]:
    """What `from_pretrained` is told, besides the model's name.

    Raises:
        ModelError: the transformers that is installed is too old.
    """
    try:
        from transformers.distributed.configuration_utils import DistributedConfig
    except ImportError:
        raise _too_old() from None
    config: Any = DistributedConfig
    if "tp_size" not in config.__dataclass_fields__:
        raise _too_old()
    return {"distributed_config": config(tp_size=size, tp_plan=AUTO)}


def _too_old() -> ModelError:
    return ModelError("this transformers is too old for tensor parallelism", "transformers 5.17 or later")


def is_lost(error: BaseException) -> bool:
    """Whether an error is about another process that has gone, or does not answer."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized() or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or any(words in str(error) for words in _LOST)


def lost(error: BaseException) -> ModelError:
    """What is said of such an error, should the one that caused it have said nothing."""
    return ModelError(
        f"another process of the run has ended, or does not answer: {_first_line(error)}",
        "see what it has written, and whether its machine has run out of memory",
    )


@contextmanager
def one_voice() -> Iterator[bool | None]:
    """Who says what went wrong: True in the process that fails first, False in the others, which wait for it.

    None if the processes have not found each other.
    """
    store = _store()
    if store is None:
        yield None
        return
    try:
        speaks = store.add(_SPEAKS, 1) == 1
    except RuntimeError:  # the one that kept the store has gone
        speaks = True
    try:
        yield speaks
    finally:
        with suppress(RuntimeError):
            store.set(_HAS_SPOKEN, "") if speaks else store.wait([_HAS_SPOKEN], _LAST_WORD)


def leave(is_first: bool) -> None:
    """The end of a process, unless one of them has failed: the others may then be in the middle of a pass.

    They wait for the first one: `torchrun` would end it as soon as one has ended with an exit code.
    """
    import torch.distributed as dist

    store = _store()
    if store is None:
        return
    with suppress(RuntimeError):
        if store.add(_SPEAKS, 0):
            return
        store.set(_HAS_SPOKEN, "") if is_first else store.wait([_HAS_SPOKEN], _LAST_WORD)
        dist.destroy_process_group()


def _store() -> Any:
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    if not dist.is_available() or not dist.is_initialized():
        return None
    return distributed_c10d._get_default_store()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
