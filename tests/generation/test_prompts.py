"""A chat template is a program that comes with the model: what it may do, and the error when it fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mini_r1.errors import ExitCode, KitError
from mini_r1.generation.model import PLAIN_TEMPLATE, load_tokenizer, plain_template
from mini_r1.generation.prompts import render
from mini_r1.tasks.countdown.countdown_task import CountdownTask
from mini_r1.tasks.countdown.problem import Problem
from tokenizers.processors import TemplateProcessing

Template = Callable[[str], str]

SECRET = "hf_planted0123456789planted"
QUESTION = "{{ messages[-1]['content'] }}"
"""What every template has to end in."""
READS_THE_TOKEN = "'{0.__globals__[inspect].os.environ[HF_TOKEN]}'"
"""As a format, of a function that transformers gives to every template."""


@pytest.fixture
def through(untrained: Path, monkeypatch: pytest.MonkeyPatch) -> Template:
    """One problem rendered through a template, with a token in the environment."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    tokenizer = load_tokenizer(str(untrained), None)

    def rendered(template: str) -> str:
        tokenizer.chat_template = template
        return render(CountdownTask(), tokenizer, [Problem(nums=(5, 3, 9), target=1)], "script")[0]

    return rendered


@pytest.mark.parametrize(
    "template",
    [
        f"{{{{ ({READS_THE_TOKEN} | attr('format'))(raise_exception) }}}}",
        f"{{{{ ([{READS_THE_TOKEN}] | map('attr', 'format') | first)(raise_exception) }}}}",
        f"{{{{ {READS_THE_TOKEN}.format(raise_exception) }}}}",
        "{{ raise_exception.__globals__ }}",
        "{{ raise_exception | attr('__globals__') | string }}",
    ],
    ids=["CVE-2025-27516", "by-map", "format", "attribute", "filter"],
)
def test_a_template_cannot_read_a_secret_out_of_the_process(through: Template, template: str) -> None:
    try:
        text = through(template + QUESTION)
    except KitError as error:
        text = error.message  # some are refused, of some there is nothing
    assert SECRET not in text
    assert "/usr" not in text  # of what __globals__ holds


def test_a_template_may_still_use_the_filter(through: Template) -> None:
    text = through("{{ messages | first | attr('keys') | string | length > 0 }} " + QUESTION)
    assert text.startswith("True ")
    assert through("[{{ messages | attr('no_such_thing') }}]" + QUESTION).startswith("[]")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% if", "TemplateSyntaxError: unexpected 'end of template'"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ raise_exception('only for tools') }}", "TemplateError: only for tools"),
        ("nothing of the question", "ValueError: "),
        ("{{ raise_exception('\u001b[31m' + 'x ' * 4000) }}", "TemplateError: \\x1b[31mx x"),
    ],
)
def test_a_template_that_does_not_work_is_one_line_of_error(through: Template, template: str, said: str) -> None:
    with pytest.raises(KitError) as caught:
        through(template)
    assert caught.value.exit_code == ExitCode.CONFIG
    assert said in caught.value.message
    assert "set tokenizer_name_or_path to a tokenizer whose template works" in caught.value.message
    assert caught.value.message.isprintable()  # and one line
    assert len(caught.value.message) < 600


def test_without_a_chat_template_prompts_are_plain_text(untrained: Path, tmp_path: Path) -> None:
    shutil.copytree(untrained, tmp_path / "bare")
    settings = tmp_path / "bare" / "tokenizer_config.json"
    kept = json.loads(settings.read_text())
    del kept["chat_template"]
    settings.write_text(json.dumps(kept))
    tokenizer = load_tokenizer(str(tmp_path / "bare"), None)
    task, problem = CountdownTask(), Problem(nums=(5, 3, 9), target=1)
    system, user, prefill = (message["content"] for message in task.messages(problem, "script"))
    assert render(task, tokenizer, [problem], "script") == [f"{system}\n\nUser: {user}\n\nAssistant: {prefill}"]
    (tmp_path / "own.yaml").write_text("user: '{nums} {target}'")
    assert render(task, tokenizer, [problem], str(tmp_path / "own.yaml")) == ["User: [5, 3, 9] 1\n\nAssistant:"]
    tokenizer.save_pretrained(tmp_path / "saved")  # as in a snapshot, which others load
    assert load_tokenizer(str(tmp_path / "saved"), None).chat_template == tokenizer.chat_template


def test_a_plain_prompt_begins_as_the_tokenizer_begins_a_text(untrained: Path) -> None:
    tokenizer = load_tokenizer(str(untrained), None)
    assert plain_template(tokenizer) == PLAIN_TEMPLATE
    tokenizer.bos_token = "<|im_start|>"
    assert plain_template(tokenizer) == PLAIN_TEMPLATE  # it has one, and does not begin with it
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $0", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = plain_template(tokenizer)
    (text,) = render(CountdownTask(), tokenizer, [Problem(nums=(1, 2), target=3)], "script")
    assert text.startswith("<|im_start|>You are a helpful assistant.")
