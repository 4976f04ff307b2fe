"""A prompt: system and user message with a task's placeholders, and the prefill that a completion continues.

A user's own prompt is a YAML file with the keys `system`, `user` and `prefill`:

    system: You solve number puzzles.
    user: |
      Reach {target} with {nums}. Think in <think> </think>, then answer in <answer> </answer>.
    prefill: <think>
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from mini_r1.values import describe_value, read_limited

from .answer_tags import THINK
from .data_errors import DataError

SUFFIXES = (".yaml", ".yml")
KEYS = ("system", "user", "prefill")
MAX_BYTES = 2**16
"""Largest prompt file: about 16,000 tokens, more than any prompt length here."""

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked, the same for every problem but for the placeholders."""

    user: str
    system: str | None = None
    prefill: str = ""  # the start of the assistant's turn; may be empty

    def messages(self, values: Mapping[str, object]) -> list[dict[str, str]]:
        """Return the chat of one problem: system and user message, and the prefill as the assistant's, unless empty.

        `values` are those of the placeholders. Other braces are text, and so are braces in a value.
        """

        def fill(text: str) -> str:
            return _PLACEHOLDER.sub(lambda found: str(values.get(found[1], found[0])), text)

        turns = (("system", self.system and fill(self.system)), ("user", fill(self.user)), ("assistant", self.prefill))
        return [{"role": role, "content": content} for role, content in turns if content]

    @property
    def names_thought(self) -> bool:
        """Whether the prompt has a `<think>` anywhere, so that a model can know of the tag."""
        return any(THINK in text for text in (self.system or "", self.user, self.prefill))


def is_prompt_file(style: str) -> bool:
    """Return whether a prompt style is a file by its name."""
    return style.endswith(SUFFIXES)


def read_prompt(path: Path, placeholders: Sequence[str]) -> Prompt:
    """Read a prompt file, whose user message must have each of the placeholders.

    Raises:
        DataError: what is wrong with the file, and what to do.
    """
    import yaml

    try:
        values = yaml.safe_load(read_limited(path, MAX_BYTES).decode())
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not valid UTF-8 ({error.reason} at byte {error.start})") from error
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: must be a mapping with the keys {', '.join(KEYS)}, found {describe_value(values)}")
    for key, value in values.items():
        if key not in KEYS:
            raise DataError(f"{path}: unknown key '{str(key)[:60]}'; a prompt has {', '.join(KEYS)}")
        if not isinstance(value, str | None):
            raise DataError(f"{path}: {key} must be text (put it in quotes), found {describe_value(value)}")
    # A block of YAML ends with a line break that is not meant; chat templates strip the prefill.
    texts = {key: (value or "").rstrip() for key, value in values.items()}
    user = texts.get("user", "")
    for name in placeholders:
        if f"{{{name}}}" not in user:
            found = ", ".join(dict.fromkeys(_PLACEHOLDER.findall(user))) or "none"
            raise DataError(
                f"{path}: the user message has no {{{name}}}, so the model would not know it: write "
                f"{' and '.join(f'{{{each}}}' for each in placeholders)} where they belong (found: {found})"
            )
    return Prompt(user, texts.get("system") or None, texts.get("prefill", ""))


def describe_style(style: str) -> str:
    """Return the name of a prompt style for records: a file's with its digest and without its folder."""
    if not is_prompt_file(style):
        return style
    return f"{Path(style).name} (sha256 {sha256(Path(style).read_bytes()).hexdigest()[:12]})"
