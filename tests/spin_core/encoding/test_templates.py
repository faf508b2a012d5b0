"""What the published chat templates do to ends of turn, prompts and text, and what becomes of each row."""

import datetime
from pathlib import Path
from typing import Any

import pytest

from spin_core.contracts.rows import Message
from spin_core.encoding.chat import Encoded, Refused, Renderer
from spin_core.encoding.template import rendering_options, template_text
from spin_core.runtime.errors import BadInput
from tests.spin_core.encoding.templates import FAMILIES, PHI3, QWEN3, R1, Family


def talk(*texts: str, system: str | None = None) -> list[Message]:
    """Questions and answers in turn."""
    turns: list[Message] = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns] if system else turns


TALK, LONG = talk("hello", "Fine."), talk("hello", "Fine.", "and now?", "café 🙂")


@pytest.fixture(scope="module")
def renderers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Renderer]:
    return {name: Renderer(family.write(tmp_path_factory.mktemp(name)), family.kwargs) for name, family in FAMILIES.items()}


def one(renderer: Renderer, messages: list[Message], limit: int = 1000) -> Encoded:
    found = renderer.encode([messages], limit)[0]
    assert isinstance(found, Encoded), found
    return found


def refused(renderer: Renderer, messages: list[Message]) -> str:
    found = renderer.encode([messages], 1000)[0]
    assert isinstance(found, Refused), found
    return str(found)


USABLE = [name for name in FAMILIES if name != "r1"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_token_that_ends_a_turn_is_known(renderers: dict[str, Renderer], name: str) -> None:
    """An engine that knows one of two runs on into turns that nobody asked for."""
    ends = renderers[name].ends
    assert set(ends.texts) == FAMILIES[name].ends
    assert ends.texts[ends.ids.index(ends.template)] == FAMILIES[name].end
    assert ends.texts == renderers[name].tokenizer.convert_ids_to_tokens(ends.ids)


@pytest.mark.parametrize("name", USABLE)
def test_a_sampled_answer_that_says_the_same_has_the_same_ids(renderers: dict[str, Renderer], name: str) -> None:
    """What an engine is given and returns, put together, is the conversation as the template writes it, up to the end of turn."""
    renderer = renderers[name]
    for messages in (TALK, LONG):
        found = one(renderer, messages)
        whole = renderer.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **rendering_options({}))
        emitted = [*whole[len(found.prompt_ids) :], renderer.ends.template]  # an engine goes on until it emits an end of turn
        stop = next(place for place, token in enumerate(emitted) if token in renderer.ends.ids)
        assert found.prompt_ids + emitted[: stop + 1] == found.prompt_ids + found.real_ids
        assert found.real_ids[-1] == renderer.ends.template
        assert not set(found.real_ids[:-1]) & set(renderer.ends.ids)
        assert renderer.tokenizer.decode(found.real_ids, skip_special_tokens=True).strip().endswith(messages[-1]["content"])
        if name != "qwen3":
            assert renderer.added == {}


@pytest.mark.parametrize("name", USABLE)
def test_a_cut_answer_has_no_end(renderers: dict[str, Renderer], name: str) -> None:
    """An end glued to a cut answer would teach the discriminator lengths."""
    whole = one(renderers[name], LONG).real_ids
    for limit in range(1, len(whole)):
        assert one(renderers[name], LONG, limit).real_ids == whole[:limit]
        assert whole[limit - 1] not in renderers[name].ends.ids


@pytest.mark.parametrize("name", FAMILIES)
def test_a_system_turn_is_in_the_prompt_or_the_row_is_named(renderers: dict[str, Renderer], name: str) -> None:
    messages = talk("hello", "Fine.", system="Be brief.")
    if name in {"gemma", "mistral"}:
        says = refused(renderers[name], messages)
        assert "the chat template refuses it: the system role is not known here" in says
        assert "put the system text into the first question, or set model.chat_template" in says
    elif name != "r1":
        assert "Be brief." in renderers[name].tokenizer.decode(one(renderers[name], messages).prompt_ids)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("place", [0, 1])
def test_control_tokens_come_from_the_template_alone(renderers: dict[str, Renderer], name: str, place: int) -> None:
    """Written in a question they would open a turn of their own, in an answer they would cut it there."""
    token = FAMILIES[name].end
    texts = ["What is X for?", "X ends a turn."]
    texts[place] = texts[place].replace("X", token)
    says = refused(renderers[name], talk(*texts))
    assert f"turn {place + 1} ({('user', 'assistant')[place]}) has the control token {token} in its text" in says


@pytest.mark.parametrize(("name", "start"), [("chatml", "\n"), ("qwen3", "\n"), ("zephyr", "\n"), ("phi-3", "\n\n"), ("mistral", " ")])
def test_white_space_that_joins_the_prompt_is_named(renderers: dict[str, Renderer], name: str, start: str) -> None:
    """Its neighbours go on; the row says what to do."""
    rows = [TALK, talk("hello", f"{start}Fine."), LONG]
    found = renderers[name].encode(rows, 100)
    if name in {"mistral", "qwen3"}:  # "[/INST]" stands between; the template strips it
        assert isinstance(found[1], Encoded)
        return
    assert [isinstance(row, Encoded) for row in found] == [True, False, True]
    assert "no exact continuation of its prompt" in str(found[1])
    assert "remove the white space at the answer's beginning" in str(found[1])


@pytest.mark.parametrize("name", ["llama-3", "llama-3.2", "gemma"])
def test_what_a_template_trims_is_no_loss(renderers: dict[str, Renderer], name: str) -> None:
    assert one(renderers[name], talk("hello ", "\n\nFine. \n")) == one(renderers[name], TALK)


def test_a_prompt_does_not_change_overnight(renderers: dict[str, Renderer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Llama-3.2 writes the date. A campaign that is continued tomorrow must not train on other prompts than it sampled from."""
    from transformers.utils import chat_template_utils

    today = one(renderers["llama-3.2"], TALK)

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2031, 1, 2)

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    assert one(renderers["llama-3.2"], TALK) == today
    tokenizer = renderers["llama-3.2"].tokenizer
    assert "Today is 26 Jul 2024" in tokenizer.decode(today.prompt_ids)
    folder = FAMILIES["llama-3.2"].write(tmp_path)
    for kwargs, says in (({"strftime_now": "2026-01-31"}, "31 Jan 2026"), ({"date_string": "any day"}, "any day")):
        assert f"Today is {says}" in tokenizer.decode(one(Renderer(folder, kwargs), TALK).prompt_ids)
    with pytest.raises(BadInput, match=r"strftime_now: tomorrow is no date; write it as 2026-01-31"):
        Renderer(folder, {"strftime_now": "tomorrow"})


REASONED = talk("hello", "<think>\nShe greets.\n</think>\n\nFine.")


def test_thinking_turned_off_has_both_sides_begin_alike(tmp_path: Path) -> None:
    """Qwen3's template puts an empty think block before the last answer, and before a sampled one only where it is told to."""
    folder = QWEN3.write(tmp_path)
    renderer = Renderer(folder)
    on = one(renderer, TALK)
    assert dict(renderer.added) == {"<think>\n\n</think>\n\n": 1}
    renderer = Renderer(folder, {"enable_thinking": False})
    off = one(renderer, TALK)
    assert renderer.added == {}
    assert on.prompt_ids + on.real_ids == off.prompt_ids + off.real_ids
    assert renderer.tokenizer.decode(off.real_ids) == "Fine.<|im_end|>"


def test_thinking_of_the_row_stays_in_its_answer(tmp_path: Path) -> None:
    renderer = Renderer(QWEN3.write(tmp_path))
    assert renderer.tokenizer.decode(one(renderer, REASONED).real_ids) == REASONED[1]["content"] + "<|im_end|>"
    assert renderer.added == {}
    earlier = [*REASONED, *talk("and now?", "<think>\nAgain.\n</think>\n\nGood.")]  # of an earlier turn it goes, by rule
    assert "greets" not in renderer.tokenizer.decode(one(renderer, earlier).prompt_ids)
    says = refused(Renderer(QWEN3.write(tmp_path / "off"), {"enable_thinking": False}), REASONED)
    assert "its answer is no continuation of its prompt" in says
    assert "model.chat_template_kwargs" in says


def test_a_prompt_that_opens_the_thinking_names_the_way_on(tmp_path: Path) -> None:
    """DeepSeek-R1's: the prompt ends in <think>, a conversation has none, and the row's own is taken away."""
    renderer = Renderer(R1.write(tmp_path))
    assert r"the chat template ends prompts in '<think>\n', conversations do not; set model.chat_template_kwargs" in refused(renderer, TALK)
    says = refused(renderer, REASONED)
    assert "leaves out text of turn 2 (assistant)" in says
    assert "or model.chat_template" in says
    renderer.tokenizer.chat_template = R1.template.replace("m.content.split('</think>')[-1]", "m.content")
    assert renderer.tokenizer.decode(one(renderer, REASONED).real_ids) == "She greets.\n</think>\n\nFine.<｜end▁of▁sentence｜>"
    renderer.tokenizer.chat_template = R1.template.replace("<think>\n", "")
    assert renderer.tokenizer.decode(one(renderer, TALK).real_ids) == "Fine.<｜end▁of▁sentence｜>"


def test_a_template_that_drops_the_system_turn_is_noticed(tmp_path: Path) -> None:
    template = PHI3.template.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
    quiet = Family(template, PHI3.control, PHI3.eos, PHI3.end)
    says = refused(Renderer(quiet.write(tmp_path)), talk("hello", "Fine.", system="Be brief."))
    assert "leaves out text of turn 1 (system)" in says


def test_an_id_of_ordinary_text_ends_no_turn(tmp_path: Path) -> None:
    """A configuration's default id may be a letter of this tokenizer; answers would be cut at it."""
    folder = FAMILIES["chatml"].write(tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 2]}')
    renderer = Renderer(folder)
    assert renderer.tokenizer.convert_ids_to_tokens(5) not in {"<|im_end|>", "<|im_start|>"}
    assert renderer.ends.texts == ["<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "puts no end-of-turn token after an answer"),
        ("{{ messages[0].content }}", "puts no end-of-turn token after an answer"),
        ("{{ raise_exception('not today') }}", "fails for a question and its answer: not today"),
        ("{{ nothing.at.all }}", "fails for a question and its answer: 'nothing' is undefined"),
        ("{% for %}", "fails for a question and its answer"),
    ],
)
def test_templates_that_cannot_work_are_named_once(tmp_path: Path, template: str, says: str) -> None:
    family = Family(template, FAMILIES["chatml"].control, "<|im_end|>", "<|im_end|>")
    with pytest.raises(BadInput, match=says) as caught:
        Renderer(family.write(tmp_path))
    assert "model.chat_template" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_template_is_given_as_text_or_as_a_file(tmp_path: Path) -> None:
    file = tmp_path / "ours.jinja"
    file.write_text(PHI3.template, encoding="utf-8")
    assert template_text(str(file)) == template_text(PHI3.template) == PHI3.template
    with pytest.raises(BadInput, match=r"model.chat_template: nowhere.jinja: No such file or directory; give a .jinja file"):
        template_text("nowhere.jinja")
