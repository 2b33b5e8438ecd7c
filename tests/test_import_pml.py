"""Prompt Cache's markup: the graph has the modules, the edges and the positions that the markup means."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legraph.graph import Graph
from legraph.import_pml import pml_text
from legraph.importing import ForeignText
from tests.command_line import Call
from tests.imported import graph_of, parents_of, problems_of, starts_of, texts_of

TRAVEL = """\
<schema name="travel">
  Be brief.
  <module name="plan">
    I travel for <parameter name="days" length="5"/> days.
    <union>
      <module name="home">To <parameter name="city" length="12"/>, please.</module>
      <module name="abroad">Far away, to the ends of the earth &amp; back.</module>
    </union>
    Thanks.
  </module>
  <module name="food">I eat ${all}.</module>
  <module name="drink">Water.</module>
</schema>
"""
PROMPT = """\
<prompt schema="travel">
  <drink/>
  <plan days="3"><home city="Rome"/></plan>
  What should I
  pack?
</prompt>
"""
ABROAD = "Far away, to the ends of the earth & back."


def imported(text: str, schema: str | None = None, with_positions: bool = False) -> Graph:
    schemas = None if schema is None else ForeignText("schema.pml", schema)
    count = (lambda text: len(text.encode())) if with_positions else None
    return graph_of(pml_text(ForeignText("given.pml", text), schemas, count))


def test_imported_modules_are_roots_and_the_prompt_sees_them_all() -> None:
    graph = imported(TRAVEL + PROMPT)
    assert texts_of(graph) == {
        "text": " Be brief. ",
        "plan": " I travel for 3 days. ",
        "plan.home": "To Rome, please.",
        "plan_2": " Thanks. ",
        "drink": "Water.",
        "prompt": "What should I\n  pack?",
    }
    parents = parents_of(graph)
    assert parents.pop("prompt") == ["text", "plan", "plan.home", "plan_2", "drink"]
    assert parents.pop("plan_2") == ["plan"], "the parts of one module are one text"
    assert set(map(tuple, parents.values())) == {()}


def test_without_a_tokenizer_chunks_follow_each_other_in_the_schemas_order() -> None:
    graph = imported(TRAVEL + PROMPT)
    lengths = [len(text) for text in texts_of(graph).values()]
    assert list(starts_of(graph).values()) == [sum(lengths[:i]) for i in range(len(lengths))]


def test_with_a_tokenizer_positions_are_those_of_the_schemas_layout() -> None:
    """The lengths of all modules are counted, imported or not; a union is as long as its longest member."""
    graph = imported(TRAVEL + PROMPT, with_positions=True)
    plan = len(" Be brief. ")
    days = plan + len(" I travel for ")
    union = days + 5 + len(" days. ")
    city = union + len("To ")
    thanks = union + max(len(ABROAD), len("To ") + 12 + len(", please."))
    drink = thanks + len(" Thanks. ") + len("I eat ${all}.")
    expected = {"text": 0, "plan": plan, "plan_2": days, "plan_3": days + 5}
    expected |= {"plan.home": union, "plan.home_2": city, "plan.home_3": city + 12, "plan_4": thanks}
    expected |= {"drink": drink, "prompt": drink + len("Water.")}
    assert starts_of(graph) == expected
    assert texts_of(graph)["plan_2"] == "3"


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=8), st.booleans())
def test_members_and_modules_of_any_length(modules: list[tuple[int, bool]], in_union: bool) -> None:
    if in_union:
        modules = [(length, is_wanted and i == 0) for i, (length, is_wanted) in enumerate(modules)]
    inside = "".join(f'<module name="m{i}">{"x" * length}</module>' for i, (length, _) in enumerate(modules))
    schema = f'<schema name="s">{f"<union>{inside}</union>" if in_union else inside}</schema>'
    wanted = "".join(f"<m{i}/>" for i, (_, is_wanted) in enumerate(modules) if is_wanted)
    starts = starts_of(imported(f'{schema}<prompt schema="s">{wanted}q</prompt>', with_positions=True))
    lengths = [length for length, _ in modules]
    assert starts.pop("prompt") == (max(lengths) if in_union else sum(lengths))
    expected = {f"m{i}": 0 if in_union else sum(lengths[:i]) for i, (_, is_in) in enumerate(modules) if is_in}
    assert starts == expected


def test_schema_and_prompt_may_stand_in_a_root_or_in_two_files() -> None:
    one = texts_of(imported(TRAVEL + PROMPT))
    assert texts_of(imported(f'<?xml version="1.0"?>\n<all>\n{TRAVEL}{PROMPT}</all>')) == one
    assert texts_of(imported(PROMPT, TRAVEL)) == one


def test_chat_tags_become_roles() -> None:
    graph = imported(
        '<schema name="s"><system>Be brief.</system><user>Look: <module name="m">m</module></user></schema>'
        '<prompt schema="s"><m/><user>Who?</user></prompt>'
    )
    assert [(chunk.name, chunk.role, chunk.text) for chunk in graph.chunks] == [
        ("text", "system", "Be brief."),
        ("text_2", "user", "Look:"),
        ("m", "user", "m"),
        ("prompt", "user", "Who?"),
        ("answer", "assistant", ""),
    ]
    assert parents_of(graph)["answer"] == ["text", "text_2", "m", "prompt"]


@pytest.mark.parametrize(
    ("prompt", "place", "said"),
    [
        ("<hom/>q", "1:25", "the schema has no module 'hom'"),
        ("<plan dais='3'/>q", "1:25", "module 'plan' has no parameter 'dais'"),
        ("\n<plan><home/><abroad/></plan>q", "2:14", "'abroad' and 'home' are members of one union"),
        ("<home/>q", "1:25", "the schema has no module 'home'"),
        ("<food/><food/>q", "1:32", "'food' is imported twice"),
        ("<food>more</food>q", "1:25", "text stands inside the import of 'food'"),
        ("<food/>", "1:1", "the prompt has no text of its own"),
    ],
)
def test_a_prompt_that_does_not_fit_its_schema(prompt: str, place: str, said: str) -> None:
    text = f'<prompt schema="travel">{prompt}</prompt>'
    source, schemas = ForeignText("p.pml", text), ForeignText("s.pml", TRAVEL)
    (problem,) = problems_of(pml_text, source, schemas)
    assert problem.startswith(f"p.pml:{place}: {said}")


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("<module>x</module>", "the module has no 'name'"),
        ('<module name="user">x</module>', "a module cannot be called 'user'"),
        ('<module name="m">x</module><union><module name="m">y</module></union>', "two parts are called 'm'"),
        ('<modul name="m">x</modul>', "<modul> cannot stand here"),
        ('<parameter name="p"/>', "<parameter> cannot stand here"),
        ('<module name="m"><parameter/></module>', "the parameter has no 'name'"),
        ('<module name="m"><parameter name="p" length="0"/></module>', "the length of parameter 'p' is '0'"),
        ('<module name="m"><parameter name="p" length="9999999"/></module>', "the length of parameter 'p'"),
        ("<union>text</union>", "text stands in a union"),
        ("<union><union/></union>", "<union> cannot stand here"),
    ],
)
def test_a_schema_that_is_none(schema: str, said: str) -> None:
    text = f'<schema name="s">\n {schema}</schema><prompt schema="s">q</prompt>'
    problems = problems_of(pml_text, ForeignText("p.pml", text))
    assert any(said in problem for problem in problems)
    assert all(problem.startswith(("p.pml:2:", "p.pml:1:1:")) for problem in problems)


def test_all_problems_of_a_prompt_are_reported_together() -> None:
    prompt = '<prompt schema="travel"><a/><b/><plan days="3" c="4"/></prompt>'
    problems = problems_of(pml_text, ForeignText("p.pml", TRAVEL + prompt))
    assert len(problems) == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<schema name='s'>\n<module name='m'>a & b</module>", "p.pml:2:21: broken markup"),
        ("<schema name='s'>\n</prompt>", "p.pml:2:3: broken markup: mismatched tag"),
        ("<schema>", "p.pml:1:9: broken markup: mismatched tag"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><prompt/>", "p.pml:1:3: document types and entities are"),
        ("<a>" * 40 + "</a>" * 40, "p.pml:1:97: nested deeper than 32 levels"),
        ("<a b='1' b='2'/>", "broken markup: duplicate attribute"),
        ("</pml><pml>", "broken markup"),
        ("plain text", "p.pml:1:1: the file holds 0 prompts"),
        (
            "<prompt schema='s'>q</prompt><prompt schema='s'>q</prompt>",
            "p.pml:1:30: the file holds 2 prompts",
        ),
        ("<prompt schema='s'>q</prompt>", "no schemas are called 's'"),
        ("<prompt>q</prompt>", "no schemas are called ''"),
    ],
)
def test_markup_that_cannot_be_read(text: str, said: str) -> None:
    (problem,) = problems_of(pml_text, ForeignText("p.pml", text))
    assert said in problem


def test_positions_need_lengths_that_are_kept_and_no_chat_tags() -> None:
    def problems(inside: str, prompt: str) -> list[str]:
        schema = f'<schema name="s"><module name="m">{inside}</module></schema>'
        source = ForeignText("p.pml", f'{schema}<prompt schema="s">{prompt}</prompt>')
        return problems_of(pml_text, source, None, len)

    (long,) = problems('x<parameter name="p" length="2"/>', '<m p="abc"/>q')
    assert "the value of 'p' has 3 tokens" in long and "2 or fewer" in long
    (missing,) = problems('x<parameter name="p"/>', '<m p="abc"/>q')
    assert "parameter 'p' has no 'length'" in missing
    (tags,) = problems("x", "<m/><user>q</user>")
    assert "depends on the chat template" in tags
    (empty,) = problems('<parameter name="p" length="2"/>', "<m/>q")
    assert "module 'm' gives no text" in empty


def test_the_command_takes_schema_and_tokenizer(call: Call, tmp_path: Path) -> None:
    schema, prompt = tmp_path / "schema.pml", tmp_path / "prompt.pml"
    schema.write_text(TRAVEL)
    prompt.write_text(PROMPT)
    done = call("import", "pml", prompt, "--schema", schema, "--tokenizer", "bytes")
    assert starts_of(graph_of(done.out)) == starts_of(imported(TRAVEL + PROMPT, with_positions=True))


@given(st.text(" \n\tab", min_size=1, max_size=12).filter(str.strip))
def test_white_space_around_a_module_is_one_space(text: str) -> None:
    graph = imported(
        f'<schema name="s"><module name="m">{text}</module></schema><prompt schema="s"><m/>q</prompt>'
    )
    front, back = " " * text[0].isspace(), " " * text[-1].isspace()
    assert texts_of(graph)["m"] == front + text.strip() + back


def test_long_texts_stay_whole_and_cost_no_more_where_they_are_blank() -> None:
    """The parser gives long texts in pieces, and a pattern that tries each blank anew would take hours."""
    long = "a" + " " * 1_000_000 + "b <!-- not text -->" + "c\n" * 20_000 + "d"
    graph = imported(
        f'<schema name="s"><module name="m">{long}</module></schema><prompt schema="s"><m/>q</prompt>'
    )
    assert texts_of(graph) == {"m": long.replace("<!-- not text -->", ""), "prompt": "q"}
