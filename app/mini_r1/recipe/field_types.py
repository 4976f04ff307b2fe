"""Types of a recipe's values, each with the sentence for a wrong one.

Words of YAML 1.1 (`no`, `off`, quoted numbers) mean what they mean in files written for transformers' parser.
"""

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema

from mini_r1.recipe.builtin_models import BUILTIN_MODELS
from mini_r1.recipe.keys import REPORT_INTEGRATIONS, did_you_mean, foreign_keys
from mini_r1.recipe.named_files import find_near_recipe
from mini_r1.tasks.problem_files import HUB_ID, SUFFIXES
from mini_r1.tasks.prompt_file import is_prompt_file
from mini_r1.tasks.registry import TASKS, describe_unknown_task
from mini_r1.tasks.reward_file import SUFFIX as CODE_SUFFIX
from mini_r1.tasks.reward_file import is_code
from mini_r1.tasks.task_data import GENERATED
from mini_r1.values import describe_value, expand_path

REWARD_NAMES: tuple[str, ...] = tuple(dict.fromkeys(name for task in TASKS.values() for name in task.rewards))
PROMPT_STYLES: tuple[str, ...] = tuple(dict.fromkeys(style for task in TASKS.values() for style in task.prompts))
TASK_NAMES: tuple[str, ...] = tuple(TASKS)
MAX_SEED = 2**32 - 1  # NumPy takes no larger one
LARGEST_NUMBER = 10**15  # far above any count here; keeps every sum and conversion exact in a float
MOST_STOPS = 16  # each is searched for in every completion while it is sampled
LONGEST_STOP = 200

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")


def require(test: Callable[[Any], object], text: str, kind: type = AfterValidator) -> Any:
    """Return a validator that raises a ValueError with `text`, where {} is the value, unless `test` holds."""

    def check(value: Any) -> Any:
        if not test(value):
            raise ValueError(text.format(value))
        return value

    return kind(check)


def require_mapping(text: str) -> Any:
    """Return a validator that raises a ValueError with `text` for a list or text in place of a mapping."""
    return require(lambda value: not isinstance(value, list | str), text, BeforeValidator)


def only(allowed: object, why: str) -> Any:
    """Return a validator for a key that other files have and that has one possible value here."""
    text = f"must be {str(allowed).lower()}: {why}"
    return require(lambda value: value == allowed and type(value) is type(allowed), text, BeforeValidator)


def replace_false(word: str) -> BeforeValidator:
    """Return a validator that reads false as a word: YAML 1.1 reads an unquoted `no` or `off` as false."""
    return BeforeValidator(lambda value: word if value is False else value)


def _number(value: object) -> object:
    """Read a quoted number as transformers does; a bool is no number."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, int | float) and abs(value) > LARGEST_NUMBER and abs(value) != math.inf:
        raise ValueError("is too large")
    return value


def _task(value: object) -> object:
    if isinstance(value, str) and value not in TASKS:
        raise ValueError(describe_unknown_task(value))
    return value


def _flag(value: object) -> object:
    word = str(value).lower()
    if not isinstance(value, bool | str) or word not in _TRUE + _FALSE:
        raise ValueError("must be true or false")
    return word in _TRUE


def _trackers(value: object) -> object:
    """Return the trackers with TensorBoard among them: `mini-r1 report` and the demo point to it."""
    names = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(names, list):
        raise ValueError("must be a name or a list of names")
    if names == ["all"]:
        return names
    for name in names:
        if name in ("all", "none") and len(names) > 1:
            raise ValueError(f"'{name}' can't be combined with other names")
        if name != "none" and name not in REPORT_INTEGRATIONS:
            answer = foreign_keys()["values"]["report_to"].get(str(name))
            if answer:
                raise ValueError(f"'{name}' {answer}; choose from {', '.join(REPORT_INTEGRATIONS)}")
            guess = did_you_mean(str(name)[:60], REPORT_INTEGRATIONS)
            raise ValueError(f"must be all, none or names out of {', '.join(REPORT_INTEGRATIONS)}{guess}")
    return list(dict.fromkeys(["tensorboard", *(name for name in names if name != "none")]))


def _plain_values(value: dict[str, Any]) -> dict[str, Any]:
    """Check keyword arguments, which are passed on as they are: flat, and such that they load back equal."""
    for key, item in value.items():
        plain = item is None or (isinstance(item, str) and item.isprintable())
        if isinstance(item, int | float):
            plain = abs(item) <= LARGEST_NUMBER
        if not plain or not key.isprintable():
            raise ValueError(f"'{key[:60]}' must have a plain value: a number, a word, true or false")
    return value


def is_local_path(value: str) -> bool:
    """Return whether a name is a path by its form: it begins as one, is too deep for a hub id, or ends as a file."""
    return value.startswith((".", "/")) or value.count("/") > 1 or value.endswith(SUFFIXES)


def _is_data_source(value: str) -> bool:
    # `rows.txt` has the form of a hub id and is meant as a file.
    return is_local_path(value) or bool(HUB_ID.fullmatch(value) and not value.endswith(".txt"))


Whole = Annotated[int, BeforeValidator(_number)]
Count = Annotated[Whole, Field(ge=1)]
Seed = Annotated[Whole, Field(ge=0, le=MAX_SEED)]
Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_number)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, lt=1)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Text = Annotated[
    str,
    Field(strict=True),
    require(lambda text: text.strip() and text.isprintable(), "must be one line of text, not empty"),
]
ColumnNames = Annotated[
    dict[str, Text],
    require_mapping("must be a mapping of fields to columns, such as {{nums: numbers}}"),
    BeforeValidator(lambda names: {} if names is None else names),
]


def _prompt_style(value: str, info: ValidationInfo) -> str:
    return find_near_recipe(value, info) if is_prompt_file(value) else value


def _reward_name(value: str, info: ValidationInfo) -> str:
    source, _, function = value.rpartition(":")
    if is_code(value):
        return f"{find_near_recipe(source, info)}:{function}" if source.endswith(CODE_SUFFIX) else value
    if value not in REWARD_NAMES:
        code = " or code, such as my_rewards.py:closeness" if ":" in value or value.endswith(CODE_SUFFIX) else ""
        guess = did_you_mean(value[:60], REWARD_NAMES)
        raise ValueError(f"must be one of {', '.join(REWARD_NAMES)}{code}, not {describe_value(value)}{guess}")
    return value


PromptStyle = Annotated[
    Text,
    AfterValidator(_prompt_style),
    WithJsonSchema({"anyOf": [{"enum": list(PROMPT_STYLES)}, {"type": "string", "pattern": r"\.ya?ml$"}]}),
]
Kwargs = Annotated[dict[str, Any], AfterValidator(_plain_values)]

PathText = Annotated[Text, AfterValidator(expand_path)]
"""A path, or a name that may be one: `~` and environment variables are filled in here, and nowhere else."""
ModelName = Annotated[
    PathText,
    require(
        lambda name: not name.startswith("builtin:") or name in BUILTIN_MODELS,
        f"the built-in models are {' and '.join(BUILTIN_MODELS)}",
    ),
]
DataSource = Annotated[
    PathText,
    require(_is_data_source, f"must be a hub id (owner/name), a local file or folder, or '{GENERATED}'"),
]
HubId = Annotated[Text, require(HUB_ID.fullmatch, "must be a hub id (owner/name)")]
Device = Annotated[
    str, Field(coerce_numbers_to_str=True), BeforeValidator(lambda value: value, json_schema_input_type=int | str)
]
TextList = Annotated[
    list[Text],
    Field(min_length=1),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=list[str] | str),
]
Trackers = Annotated[list[str], BeforeValidator(_trackers, json_schema_input_type=list[str] | str | None)]
Steps = Annotated[
    Whole, require(lambda n: n == -1 or n >= 1, "must be at least 1, or -1 to count num_train_epochs, not {}")
]
GroupSize = Annotated[
    Whole,
    require(lambda n: n >= 2, "must be at least 2, not {}: advantages divide by the standard deviation, NaN for one"),
]
TopK = Annotated[
    Whole, require(lambda k: k >= 1, "must be at least 1, or null to keep all tokens, not {}"), Field(ge=1)
]
StopStrings = Annotated[
    list[
        Annotated[
            str,
            Field(strict=True),
            require(bool, "is an empty string, which would end every completion: take it out"),
            require(lambda text: len(text) <= LONGEST_STOP, f"is longer than {LONGEST_STOP} characters: shorten it"),
        ]
    ],
    require(lambda texts: len(texts) <= MOST_STOPS, f"has too many strings: write at most {MOST_STOPS}"),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=list[str] | str),
]
Operators = Annotated[
    Text,
    require(
        lambda text: set(text) <= set("+-*/") and len(set(text)) == len(text),
        "must be some of + - * /, each at most once",
    ),
]
SaveStrategy = Annotated[Literal["steps", "no"], replace_false("no")]
EvalStrategy = Annotated[Literal["no", "steps"], replace_false("no")]
Action = Annotated[Literal["off", "warn", "stop"], replace_false("off")]
SHARE_OR_STEPS = "must be a whole number of steps, at least 1, or a share of the run between 0 and 1, not {}"
if TYPE_CHECKING:
    Interval = float
    RewardName = str
    TaskName = str
else:  # steps stay whole numbers, and the game's registry is the only list of rewards
    Interval = Annotated[
        Number,
        require(lambda n: 0 < n < 1 or (n >= 1 and n == int(n)), SHARE_OR_STEPS),
        AfterValidator(lambda n: int(n) if n >= 1 else n),
    ]
    RewardName = Annotated[
        Text,
        AfterValidator(_reward_name),
        WithJsonSchema({"anyOf": [{"enum": list(REWARD_NAMES)}, {"pattern": r":\w+$"}]}),
    ]
    TaskName = Annotated[
        Literal[TASK_NAMES],
        BeforeValidator(_task, json_schema_input_type=Literal[TASK_NAMES]),
    ]
Rewards = Annotated[
    dict[RewardName, Number],
    require_mapping("must be a mapping of names to weights, such as {{format: 1, equation: 1}}"),
    require(lambda weights: any(weights.values()), "at least one reward needs a weight other than 0"),
]
Scheduler = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "reduce_lr_on_plateau", "cosine_with_min_lr", "warmup_stable_decay",
]  # fmt: skip
Optimizer = Literal[
    "adamw_torch", "adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit",
    "adafactor", "sgd",
]  # fmt: skip
