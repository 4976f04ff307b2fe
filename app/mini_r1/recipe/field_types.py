"""What one value of a recipe may be: its field types, each with the sentence for a wrong one.

YAML 1.1 has its own ideas (`5e-7` is a string, `no` is false); they are put right here, so that files written for
transformers' parser mean the same.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from mini_r1.recipe.builtin_models import BUILTIN_MODELS
from mini_r1.recipe.keys import REPORT_INTEGRATIONS, did_you_mean
from mini_r1.tasks.countdown.rewards import REWARDS

REWARD_NAMES: tuple[str, ...] = tuple(REWARDS)
if TYPE_CHECKING:
    RewardName = str
else:  # the game's registry is the only list of rewards
    RewardName = Annotated[
        Literal[REWARD_NAMES],
        BeforeValidator(
            lambda name: refuse_old(name, format_seed="format_original", equation_seed="equation_original")
        ),
    ]
DEFAULT_REWARDS: dict[str, float] = {"format": 1.0, "equation": 1.0}
"""What `rewards` means when it is not written; the original's sum of two verdicts."""

GENERATED = "generated"
LOCAL_ENDINGS = (".jsonl", ".parquet")
MAX_SEED = 2**32 - 1  # NumPy takes no larger one
LARGEST_NUMBER = 10**15  # far above any count here; keeps every sum and conversion exact in a float

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")


def _number(value: object) -> object:
    """YAML 1.1 reads `5e-7` as a string and transformers takes it as a number: so do we. A bool is no number."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, int | float) and abs(value) > LARGEST_NUMBER and abs(value) != math.inf:
        raise ValueError("is too large")
    return value


def _flag(value: object) -> object:
    word = value.lower() if isinstance(value, str) else value
    if isinstance(value, bool) or word in _TRUE + _FALSE:
        return value if isinstance(value, bool) else word in _TRUE
    raise ValueError("must be true or false")


def _one_line(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise ValueError("must be one line of text, not empty")
    return value


def yaml_no(value: object) -> object:
    return "no" if value is False else value  # YAML 1.1 reads an unquoted `no` as false


def yaml_off(value: object) -> object:
    return "off" if value is False else value  # YAML 1.1 reads an unquoted `off` as false, and `no` too


def watch_mapping(value: object) -> object:
    if value is None or value is False or value == "off":
        raise ValueError("cannot be switched off as a whole; switch off single watchers, e.g. watch: {kl: off}")
    return value


def evaluation_strategy(value: object) -> object:
    if value == "epoch":
        raise ValueError("must not be epoch: most runs end within one pass over the data; write steps and eval_steps")
    return yaml_no(value)


def only(allowed: object, why: str) -> BeforeValidator:
    """A key that other files carry and that has one possible value here; the error says why."""

    def check(value: object) -> object:
        if value != allowed or type(value) is not type(allowed):
            raise ValueError(f"must be {str(allowed).lower()}: {why}")
        return value

    return BeforeValidator(check)


def refuse_old(value: object, **new_names: str) -> object:
    """Return the value, unless it is an old name: the error gives the new one."""
    if isinstance(value, str) and value in new_names:
        raise ValueError(f"'{value}' was renamed: write '{new_names[value]}'")
    return value


def scoring_name(value: object) -> object:
    return refuse_old(value, seed="original")


def text_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def report_names(value: object) -> object:
    """TensorBoard is always on: `mini-r1 report` and the demo point to it."""
    names = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(names, list):
        raise ValueError("must be a name or a list of names")
    if names == ["all"]:
        return names
    for name in names:
        if name in ("all", "none") and len(names) > 1:
            raise ValueError(f"'{name}' stands alone")
        if name != "none" and name not in REPORT_INTEGRATIONS:
            guess = did_you_mean(str(name)[:60], REPORT_INTEGRATIONS)
            raise ValueError(f"must be all, none or names out of {', '.join(REPORT_INTEGRATIONS)}{guess}")
    return list(dict.fromkeys(["tensorboard", *(name for name in names if name != "none")]))


def _plain_values(value: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments are passed on as they are: flat, and such that they load back equal."""
    for key, item in value.items():
        plain = item is None or (isinstance(item, str) and item.isprintable())
        if isinstance(item, int | float):
            plain = abs(item) <= LARGEST_NUMBER
        if not plain or not key.isprintable():
            raise ValueError(f"'{key[:60]}' must have a plain value: a number, a word, true or false")
    return value


def model_name(value: str) -> str:
    if value.startswith("builtin:") and value not in BUILTIN_MODELS:
        raise ValueError(f"the built-in models are {' and '.join(BUILTIN_MODELS)}")
    return value


def data_source(value: str) -> str:
    local = value.endswith(LOCAL_ENDINGS)
    # `rows.csv` has the form of a hub id and is meant as a file.
    hub = _HUB_ID.fullmatch(value) and not value.endswith((".json", ".csv", ".txt"))
    if value != GENERATED and not local and not hub:
        raise ValueError(f"must be a hub id (owner/name), a local .jsonl or .parquet file, or '{GENERATED}'")
    return value


def hub_name(value: str) -> str:
    if not _HUB_ID.fullmatch(value):
        raise ValueError("must be a hub id (owner/name)")
    return value


def device_name(value: object) -> object:
    return f"cuda:{value}" if isinstance(value, int) and not isinstance(value, bool) else value


def steps_or_epochs(value: int) -> int:
    if value != -1 and value < 1:
        raise ValueError(f"must be at least 1, or -1 to count num_train_epochs, not {value}")
    return value


def group_size(value: int) -> int:
    if value < 2:
        raise ValueError(
            f"must be at least 2, not {value}: advantages divide by the standard deviation over one prompt's"
            " completions, and that of a single one is NaN"
        )
    return value


def operator_set(value: str) -> str:
    if not value or set(value) - set("+-*/") or len(set(value)) < len(value):
        raise ValueError("must be some of + - * /, each at most once")
    return value


def reward_weights(value: dict[str, float]) -> dict[str, float]:
    if not any(value.values()):
        raise ValueError("at least one reward needs a weight other than 0, or there is nothing to learn")
    return value


Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_number)]
Whole = Annotated[int, BeforeValidator(_number)]
Count = Annotated[int, Field(ge=1), BeforeValidator(_number)]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), BeforeValidator(_number)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Text = Annotated[str, Field(strict=True), AfterValidator(_one_line)]
Kwargs = Annotated[dict[str, Any], AfterValidator(_plain_values)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), BeforeValidator(_number)]
Scheduler = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "reduce_lr_on_plateau", "cosine_with_min_lr", "warmup_stable_decay",
]  # fmt: skip
Optimizer = Literal[
    "adamw_torch", "adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit",
    "adafactor", "sgd",
]  # fmt: skip
