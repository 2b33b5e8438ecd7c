"""A tokenizer's chat template -> the text it writes around the content of a message, by role.

A chat template is a program (Jinja), so what it does can only be seen by running it. Conversations whose
contents cannot be mistaken for anything else are rendered and taken apart at the contents; the pieces are
then put together again and compared with what the template renders, for conversations of all lengths and
contents that templates are known to tamper with. What does not come out equal, letter for letter, is refused.

Knows nothing of graphs: see `chat`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from legraph.errors import TokenizerError
from legraph.schema import Role
from legraph.tokens import check_tokenizer, tokenizer_id

# Messages in the longest conversation that is looked at, a system message aside.
MAX_TURNS = 5
# Contents that templates change: white space that some strip, thoughts that some leave out.
_CONTENTS = (
    "one line",
    "two\n\n  lines\tand a tab",
    " \n\n white space around it \n ",
    "<think>\na thought\n</think>\n\nan answer",
    "a thought</think>an answer",
)
_PADDING = (" \n\t ", "\n \n")


@dataclass(frozen=True, slots=True)
class ChatPieces:
    """What a chat template adds to the contents of messages, which follow each other without a gap.

    Attributes:
        bos: the BOS token in front of everything, or "".
        preamble: what follows it where no system message does: a default system message, mostly "".
        before, after: the text around a message's content. A role that cannot be had is in neither.
        generation_prompt: what asks for an answer. It may be more than `before["assistant"]`.
        trims: the roles whose contents are stripped of white space.
        missing: the roles that cannot be had, with the reason.
        closing: what follows a conversation that asks for no answer: EOS, or "". No chunk gets it.
    """

    bos: str
    preamble: str
    before: Mapping[Role, str]
    after: Mapping[Role, str]
    generation_prompt: str
    trims: frozenset[Role]
    missing: Mapping[Role, str]
    closing: str

    def content(self, role: Role, text: str) -> str:
        """The content of a message as the template writes it."""
        return text.strip() if role in self.trims else text

    def render(self, roles: Sequence[Role], contents: Sequence[str], ask: bool) -> str:
        """A conversation, as the template would render it."""
        front = self.bos if roles[0] == "system" else self.bos + self.preamble
        body = "".join(
            self.before[role] + self.content(role, content) + self.after[role]
            for role, content in zip(roles, contents, strict=True)
        )
        return front + body + (self.generation_prompt if ask else self.closing)


def cut_chat_template(tokenizer: Any) -> ChatPieces:
    """The pieces of a tokenizer's chat template.

    A system message, or an assistant's message that is written out, may be more than the template can do
    message by message: then it is in `missing`, and the rest can be had all the same.

    Raises:
        TokenizerError: there is no chat template, or it does not write a user's message in pieces.
    """
    check_tokenizer(tokenizer)
    if not getattr(tokenizer, "chat_template", None):
        raise TokenizerError(
            f"tokenizer {tokenizer_id(tokenizer)!r} has no chat template, so there are no markers for a role",
            "use the tokenizer of an instruct model, or write the markers into the texts, without 'role'",
        )
    template = _Template(tokenizer)
    try:
        pieces = _turns(template)
        _verify(template, pieces, _conversations(["user"]))
    except _Refusal as refusal:
        raise TokenizerError(
            f"the chat template of tokenizer {tokenizer_id(tokenizer)!r} cannot be written chunk by chunk: "
            f"{refusal}",
            "leave out 'role', and write the template's markers into the texts",
        ) from None
    for add in (_with_assistant, _with_system):
        pieces = add(template, pieces)
    return pieces


class _Refusal(Exception):
    """Why a template, or a role of it, cannot be cut. Never leaves this module."""


@dataclass(frozen=True, slots=True)
class _Template:
    tokenizer: Any

    def render(self, roles: Sequence[Role], contents: Sequence[str], ask: bool = False) -> str:
        """What the template makes of a conversation; `ask`: with what makes the model answer."""
        messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        except Exception as error:  # a template raises whatever it likes, and Jinja has errors of its own
            raise _Refusal(str(error).strip() or type(error).__name__) from None

    def gaps(self, roles: Sequence[Role], ask: bool = False) -> list[str]:
        """The texts in front of the first content, between each two, and behind the last."""
        contents = [_sentinel(at) for at in range(len(roles))]
        rest = self.render(roles, contents, ask)
        gaps = list[str]()
        for role, content in zip(roles, contents, strict=True):
            gap, found, rest = rest.partition(content)
            if not found or content in rest:
                raise _Refusal(f"it does not write the content of the {role} message once, in its place")
            gaps.append(gap)
        return [*gaps, rest]

    def trims(self, roles: Sequence[Role], at: int) -> bool:
        """Whether white space around the content of message `at` is stripped."""
        contents = [_sentinel(number) for number in range(len(roles))]
        plain = self.render(roles, contents)
        padded = contents[at].join(_PADDING)
        found = self.render(roles, [*contents[:at], padded, *contents[at + 1 :]])
        if found == plain:
            return True
        if found == plain.replace(contents[at], padded):
            return False
        raise _Refusal(f"it changes the white space around the content of the {roles[at]} message")


def _sentinel(at: int) -> str:
    return f"Content{at}OfTheMessage{at}"


def _turns(template: _Template) -> ChatPieces:
    """The pieces of user and assistant messages.

    They are taken from the middle of a conversation, where no end is near, and templates that want the
    roles to alternate are given nothing else.
    """
    head, tail = template.gaps(["user"])
    asking = template.gaps(["user"], ask=True)[1]
    _, to_assistant, to_user, _ = template.gaps(["user", "assistant", "user"])
    ending = template.gaps(["user", "assistant"])[2]
    closing = _closing(template, tail, ending, (asking, to_assistant), to_user)
    after_user, after_assistant = tail.removesuffix(closing), ending.removesuffix(closing)
    before_user = to_user.removeprefix(after_assistant)
    if not head.endswith(before_user):
        raise _Refusal(
            f"it writes {before_user!r} in front of a later user message, but not in front of the first"
        )
    front = head.removesuffix(before_user)
    token = getattr(template.tokenizer, "bos_token", None) or ""
    bos = token if front.startswith(token) else ""
    return ChatPieces(
        bos=bos,
        preamble=front.removeprefix(bos),
        before={"user": before_user, "assistant": to_assistant.removeprefix(after_user)},
        after={"user": after_user, "assistant": after_assistant},
        generation_prompt=asking.removeprefix(after_user),
        trims=frozenset[Role](["user"] if template.trims(["user"], 0) else []),
        missing={},
        closing=closing,
    )


def _closing(
    template: _Template, tail: str, ending: str, after_user: tuple[str, str], after_assistant: str
) -> str:
    """What ends a conversation that asks for no answer: nothing, or the EOS token.

    Args:
        tail, ending: what follows the last message, a user's or an assistant's.
        after_user, after_assistant: what follows such a message where the conversation goes on.
    """
    for closing in ("", getattr(template.tokenizer, "eos_token", None) or ""):
        if (
            tail.endswith(closing)
            and ending.endswith(closing)
            and all(text.startswith(tail.removesuffix(closing)) for text in after_user)
            and after_assistant.startswith(ending.removesuffix(closing))
        ):
            return closing
    raise _Refusal("what it writes after a message depends on what follows")


def _with_assistant(template: _Template, pieces: ChatPieces) -> ChatPieces:
    """With assistant messages, or without and the reason."""
    try:
        trims = pieces.trims | ({"assistant"} if template.trims(["user", "assistant"], 1) else set())
        found = replace(pieces, trims=trims)
        _verify(template, found, _conversations(["user", "assistant"]))
    except _Refusal as refusal:
        return _without(pieces, "assistant", str(refusal))
    return found


def _with_system(template: _Template, pieces: ChatPieces) -> ChatPieces:
    """With a system message in front of the first message, or without and the reason."""
    try:
        head, to_user, _ = template.gaps(["system", "user"])
        if not head.startswith(pieces.bos):
            raise _Refusal("the template leaves out the BOS token in front of a system message")
        if not to_user.endswith(pieces.before["user"]):
            raise _Refusal("the template writes the system message inside the first user message")
        found = replace(
            pieces,
            before={**pieces.before, "system": head.removeprefix(pieces.bos)},
            after={**pieces.after, "system": to_user.removesuffix(pieces.before["user"])},
            trims=pieces.trims | ({"system"} if template.trims(["system", "user"], 0) else set()),
        )
        turns: list[Role] = ["user"] if "assistant" in pieces.missing else ["user", "assistant"]
        _verify(template, found, [["system", *roles] for roles in _conversations(turns)])
    except _Refusal as refusal:
        return _without(pieces, "system", str(refusal))
    return found


def _without(pieces: ChatPieces, role: Role, reason: str) -> ChatPieces:
    before = {known: text for known, text in pieces.before.items() if known != role}
    after = {known: text for known, text in pieces.after.items() if known != role}
    return replace(pieces, before=before, after=after, missing={**pieces.missing, role: reason})


def _conversations(turns: Sequence[Role]) -> list[list[Role]]:
    """The conversations in which these roles take turns; of one role alone, a single message."""
    longest = MAX_TURNS if len(turns) > 1 else 1
    return [[turns[at % len(turns)] for at in range(length)] for length in range(1, longest + 1)]


def _verify(template: _Template, pieces: ChatPieces, conversations: Sequence[Sequence[Role]]) -> None:
    """Puts conversations together and compares them with what the template renders.

    Raises:
        _Refusal: one of them is not the same.
    """
    for roles in conversations:
        for shift in range(len(_CONTENTS)):
            contents = [_CONTENTS[(at + shift) % len(_CONTENTS)] for at in range(len(roles))]
            # After an assistant's message nobody asks for another.
            for ask in (False, True) if roles[-1] == "user" else (False,):
                rendered = template.render(roles, contents, ask)
                if rendered != pieces.render(roles, contents, ask):
                    _refuse_contents(pieces, roles, contents, rendered)
                    raise _Refusal(
                        "what the template writes around a message depends on its place or its neighbours: "
                        + ", ".join(roles)
                    )


def _refuse_contents(
    pieces: ChatPieces, roles: Sequence[Role], contents: Sequence[str], rendered: str
) -> None:
    for role, content in zip(roles, contents, strict=True):
        if pieces.content(role, content) not in rendered:
            raise _Refusal(f"the template changes the content of the {role} message, such as {content!r}")
