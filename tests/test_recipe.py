"""The recipe: published files load unchanged, and all issues of a bad one are reported with line and fix."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mini_r1.errors import ExitCode
from mini_r1.recipe import keys
from mini_r1.recipe.field_types import Optimizer, Scheduler
from mini_r1.recipe.fields import REWARD_NAMES, GeneratorRecipe, Recipe, WarmStartRecipe, WatchRecipe
from mini_r1.recipe.recipe_file import (
    MAX_BYTES,
    RecipeError,
    differences,
    dump_recipe,
    effective_output_dir,
    find_recipe,
    load_recipe,
)
from pydantic import ValidationError

PUBLISHED_RECIPE = Path(__file__).parent / "assets" / "recipes" / "published-3b.yaml"
DEMO = "model_name_or_path: builtin:demo\n"


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "x.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def issues(write):
    """The lines of the error, without the folder."""

    def issues(text, *overrides):
        path = write(text)
        with pytest.raises(RecipeError) as caught:
            load_recipe(path, overrides)
        assert caught.value.exit_code == ExitCode.CONFIG
        return [line.replace(f"{path}:", "x:") for line in caught.value.message.splitlines()]

    return issues


# --- the published recipe, and what a good file means


def test_the_published_recipe_loads_unchanged():
    recipe = load_recipe(PUBLISHED_RECIPE)
    written = yaml.safe_load(PUBLISHED_RECIPE.read_text())
    loaded = recipe.model_dump()
    assert written.pop("vllm_device") == 3
    assert loaded["vllm_device"] == "3"
    assert {key: loaded[key] for key in written} == written
    assert recipe.learning_rate == 5e-7
    assert recipe.resolved_rewards() == {"format": 1, "equation": 1}
    assert recipe.warnings() == ["vllm_device is ignored: the launcher gives vLLM the last device"]


def test_defaults_are_those_of_the_pinned_libraries_unless_the_docstring_names_another():
    pytest.importorskip("trl")
    from trl import GRPOConfig, ModelConfig

    ours = {
        "logging_steps", "save_steps", "hub_private_repo", "report_to", "output_dir", "model_name_or_path",
        "gradient_checkpointing_kwargs", "lr_scheduler_kwargs",
    }  # fmt: skip
    ours |= {"run_name", "vllm_gpu_memory_utilization"}  # transformers fills the first; the plan fills the second
    theirs = {
        field.name: getattr(config, field.name)
        for config in (GRPOConfig(output_dir="x", report_to=[], use_cpu=True), ModelConfig())
        for field in dataclasses.fields(config)
        if field.name in Recipe.model_fields and field.name not in ours
    }
    assert len(theirs) > 40
    defaults = {name: Recipe.model_fields[name].default for name in theirs}
    assert defaults == {name: getattr(value, "value", value) for name, value in theirs.items()}


def test_numbers_and_flags_mean_what_yaml_users_mean(write):
    recipe = load_recipe(
        write(DEMO + "learning_rate: 5e-7\nbf16: 'Yes'\nsave_strategy: no\nmax_steps: '20'\nbeta: 0\n")
    )
    assert (recipe.learning_rate, recipe.bf16, recipe.save_strategy, recipe.max_steps, recipe.beta) == (
        5e-7, True, "no", 20, 0.0,
    )  # fmt: skip


def test_line_ends_and_byte_order_mark_do_not_matter(write):
    recipe = load_recipe(write(b"\xef\xbb\xbf" + b"model_name_or_path: builtin:demo\r\nseed: 7\r\n"))
    assert recipe.seed == 7


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("wandb", ["tensorboard", "wandb"]),
        ("[wandb, tensorboard]", ["tensorboard", "wandb"]),
        ("none", ["tensorboard"]),
        ("all", ["all"]),
        ("[]", ["tensorboard"]),
    ],
)
def test_tensorboard_is_always_on(write, written, meant):
    assert load_recipe(write(DEMO + f"report_to: {written}\n")).report_to == meant


def test_an_old_name_is_refused_with_the_new_one(issues):
    text = DEMO + "scoring: seed\nrewards: {format: 1, equation_seed: 1}\n"
    assert issues(text) == [
        "x:2: scoring: 'seed' was renamed: write 'original'",
        "x:3: rewards.equation_seed: 'equation_seed' was renamed: write 'equation_original'",
    ]
    assert issues(DEMO, "rewards.format_seed=1", "scoring=seed") == [
        "--set rewards.format_seed=1: 'format_seed' was renamed: write 'format_original'",
        "--set scoring=seed: 'seed' was renamed: write 'original'",
    ]


def test_rewards_by_scoring(write):
    original = load_recipe(write(DEMO + "scoring: original\n"))
    assert original.resolved_rewards() == {"format_original": 1, "equation_original": 1}
    mixed = load_recipe(write(DEMO + "scoring: original\nrewards: {equation: 2, words: 0.1}\n"))
    assert mixed.resolved_rewards() == {"equation_original": 2, "words": 0.1}


@pytest.mark.parametrize(
    ("written", "every"),
    [
        ("", None),
        ("eval_steps: 5", None),
        ("eval_strategy: no\neval_steps: 5", None),
        ("eval_strategy: steps\neval_steps: 5", 5),
        ("eval_strategy: steps\nsave_steps: 7", 7),
    ],
)
def test_steps_between_evaluations(write, written, every):
    assert load_recipe(write(DEMO + written)).eval_every(100) == every


@pytest.mark.parametrize(
    ("written", "meant"),
    [("off", "off"), ("no", "off"), ("'off'", "off"), ("warn", "warn"), ("stop", "stop")],
)
def test_one_watcher_is_set_and_the_others_keep_their_defaults(write, written, meant):
    expected = WatchRecipe(kl=meant)
    in_file = load_recipe(write(f"{DEMO}watch: {{kl: {written}}}\n")).watch
    assert (in_file, in_file.kl) == (expected, meant)
    assert load_recipe(write(DEMO), [f"watch.kl={written}"]).watch == expected


@pytest.mark.parametrize(
    ("written", "total", "steps"),
    [("0.1", 450, 45), ("0.1", 452, 46), ("'0.5'", 3, 2), ("0.001", 450, 1), ("0.07", 100, 8), ("25.0", 450, 25)],
)
@pytest.mark.parametrize("key", ["save_steps", "eval_steps"])
def test_a_share_of_the_run_is_steps_as_in_transformers(write, key, written, total, steps):
    recipe = load_recipe(write(f"{DEMO}{key}: {written}\neval_strategy: steps\n"))
    if key == "save_steps":
        assert recipe.save_every(total) == steps
    assert recipe.eval_every(total) == steps
    assert load_recipe(write(dump_recipe(recipe))) == recipe


# --- what the constants copy


def test_constants_equal_the_pinned_libraries():
    pytest.importorskip("trl")
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.trainer_utils import HubStrategy, SchedulerType
    from transformers.training_args import OptimizerNames
    from trl import GRPOConfig, ModelConfig

    assert set(keys.REPORT_INTEGRATIONS) - {"swanlab"} == set(INTEGRATION_TO_CALLBACK)  # SwanLab's package has it
    assert set(Scheduler.__args__) == {item.value for item in SchedulerType}
    assert set(Optimizer.__args__) <= {item.value for item in OptimizerNames}
    assert set(Recipe.model_fields["hub_strategy"].annotation.__args__) == {item.value for item in HubStrategy}
    pinned = {field.name for kind in (GRPOConfig, ModelConfig) for field in dataclasses.fields(kind)} - {"_n_gpu"}
    foreign = keys.foreign_keys()
    answered = {*Recipe.model_fields, *foreign["answers"], *foreign["renamed"]}
    assert pinned - answered == {*foreign["unused"]["transformers"], *foreign["unused"]["TRL"]}
    assert not set(foreign["unused"]["TRL 0.15 or later"]) & pinned
    assert set(Recipe.model_fields) >= keys.HARMLESS_KEYS


@pytest.mark.parametrize("model", [Recipe, GeneratorRecipe, WarmStartRecipe, WatchRecipe])
def test_every_field_has_a_docstring(model):
    assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_loading_needs_no_torch():
    code = "import sys, mini_r1.recipe.recipe_file; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- issues


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("num_generation: 4", "unknown key 'num_generation'; did you mean 'num_generations'?"),
        ("zzz: 4", "unknown key 'zzz'"),
        ("num_iterations: 2", "key 'num_iterations' is not accepted: each rollout is used for one update"),
        ("use_ipex: true", "key 'use_ipex' is an argument of transformers that this kit does not use"),
        ("hub_token: hf_abcdef", "key 'hub_token' is not accepted: tokens come from the environment variable HF_TOKEN"),
        (
            "num_generations: 1",
            "num_generations: must be at least 2, not 1: advantages divide by the standard deviation",
        ),
        ("max_steps: 1.5", "max_steps: must be a whole number, not 1.5"),
        ("max_steps: 0", "max_steps: must be at least 1, or -1 to count num_train_epochs, not 0"),
        ("max_steps: true", "max_steps: must be a number"),
        ("learning_rate: fast", "learning_rate: must be a number, not 'fast'"),
        ("learning_rate: 0", "learning_rate: must be above 0, not 0"),
        ("learning_rate: .nan", "learning_rate: must be a finite number"),
        ("temperature: 0", "temperature: must be above 0, not 0"),
        ("top_p: 0", "top_p: must be above 0, not 0"),
        ("top_p: 1.01", "top_p: must be at most 1, not 1.01"),
        ("top_k: 0", "top_k: must be at least 1, or null to keep all tokens, not 0"),
        ("rollout_ahead: 2", "rollout_ahead: must be at most 1, not 2"),
        ("rollout_ahead: -1", "rollout_ahead: must be at least 0, not -1"),
        ("off_policy: ppo", "off_policy: must be one of none, tis, clip, not 'ppo'"),
        ("off_policy_cap: 0.9", "off_policy_cap: must be at least 1, not 0.9"),
        ("epsilon: 1", "epsilon: must be below 1, not 1"),
        ("epsilon_high: 0", "epsilon_high: must be above 0, not 0"),
        ("top_k: -1", "top_k: must be at least 1, or null to keep all tokens, not -1"),
        ("stop: ''", "stop.0: is an empty string, which would end every completion: take it out"),
        ("stop: [a, '']", "stop.1: is an empty string, which would end every completion: take it out"),
        ("stop: [5]", "stop.0: must be text (put it in quotes), not 5"),
        ("stop: {a: 1}", "stop: must be a list, not a mapping"),
        ("stop: <think>", "stop: '<think>' is what every prompt ends with: write a string that an answer ends with"),
        (
            'stop: ["x step by step.\\n<think>", "by step.\\n<think>"]',
            "stop: 'by step.\\n<think>' is what every prompt ends with",
        ),
        (f"stop: [{', '.join('abcdefghijklmopqr')}]", "stop: has too many strings: write at most 16"),
        (f"stop: {'x' * 201}", "stop.0: is longer than 200 characters: shorten it"),
        ("num_scheduler_steps: 0", "num_scheduler_steps: must be at least 1, not 0"),
        ("warmup_ratio: 1.5", "warmup_ratio: must be at most 1, not 1.5"),
        ("seed: -1", "seed: must be at least 0, not -1"),
        ("seed: 0x" + "f" * 9000, "seed: is too large"),
        ("seed: " + "9" * 9000, "seed: cannot be read"),
        ("bf16: 1", "bf16: must be true or false"),
        ("optim: adamw_torsh", "optim: must be one of adamw_torch, adamw_torch_fused"),
        ("model_revision: 1234567", "model_revision: must be text (put it in quotes), not 1234567"),
        ("run_name: 2024-99-99", "run_name: cannot be read"),
        ("run_name: ''", "run_name: must be one line of text, not empty"),
        ("trust_remote_code: true", "trust_remote_code: must be false: code from a model repository is never run"),
        ("eval_strategy: epoch", "eval_strategy: 'epoch' is not accepted: most runs end within one pass over the data"),
        ("eval_strategy: step", "eval_strategy: must be one of no, steps, not 'step'; did you mean 'steps'?"),
        (
            "evaluation_strategy: steps",
            "key 'evaluation_strategy' is called 'eval_strategy' here",
        ),
        ("eval_steps: 0", "eval_steps: must be a whole number of steps, at least 1, or a share of the run"),
        ("warmup_steps: 0.03", "warmup_steps: must be a whole number: write a share of the run as warmup_ratio: 0.03"),
        ("warmup_steps: 2.5", "warmup_steps: must be a whole number, not 2.5"),
        ("save_steps: 2.5", "save_steps: must be a whole number of steps, at least 1, or a share of the run"),
        ("save_steps: -0.1", "save_steps: must be a whole number of steps, at least 1, or a share of the run"),
        ("logging_steps: true", "logging_steps: must be a number"),
        ("eval_problems: 0", "eval_problems: must be at least 1, not 0"),
        ("scale_rewards: maybe", "scale_rewards: must be true or false"),
        ("bnb_4bit_quant_type: nf5", "bnb_4bit_quant_type: must be one of fp4, nf4, not 'nf5'; did you mean 'nf4'?"),
        ("watch: off", "watch: cannot be switched off as a whole; switch off single watchers, e.g. watch: {kl: off}"),
        ("watch: 'off'", "watch: cannot be switched off as a whole"),
        ("watch: null", "watch: cannot be switched off as a whole"),
        ("watch: stop", "watch: must be a mapping of names to values, not 'stop'"),
        ("watch: {kl: on}", "watch.kl: must be one of off, warn, stop, not true"),
        ("watch: {kl: stopp}", "watch.kl: must be one of off, warn, stop, not 'stopp'; did you mean 'stop'?"),
        ("watch: {klx: stop}", "unknown key 'klx' in 'watch'; did you mean 'kl'?"),
        ("watch: {max_kl: 0}", "watch.max_kl: must be above 0, not 0"),
        ("watch: {min_entropy: -1}", "watch.min_entropy: must be at least 0, not -1"),
        ("watch: {collapse_share: 1}", "watch.collapse_share: must be below 1, not 1"),
        ("watch: {window: 0}", "watch.window: must be at least 1, not 0"),
        ("logging_strategy: epoch", "logging_strategy: must be steps"),
        ("save_strategy: epoch", "save_strategy: 'epoch' is not accepted"),
        ("report_to: [wandbb]", "report_to: must be all, none or names out of azure_ml"),
        ("report_to: [none, wandb]", "report_to: 'none' can't be combined"),
        ("rewards: {formt: 1}", "rewards.formt: must be one of format, equation"),
        ("rewards: {format: 0}", "rewards: at least one reward needs a weight other than 0"),
        ("rewards: {}", "rewards: at least one reward needs a weight other than 0"),
        ("rewards: {format: .inf}", "rewards.format: must be a finite number"),
        (
            "dataset_id_or_path: rows.txt",
            "dataset_id_or_path: must be a hub id (owner/name), a local file or folder",
        ),
        ("generator: 3", "generator: must be a mapping of names to values, not 3"),
        ("warm_start: {step: 1}", "unknown key 'step' in 'warm_start'; did you mean 'steps'?"),
        ("lora_target_modules: []", "lora_target_modules: must not be empty"),
        ("lr_scheduler_kwargs: {a: [1]}", "lr_scheduler_kwargs: 'a' must have a plain value"),
        (
            "lr_scheduler_type: reduce_lr_on_plateau",
            "lr_scheduler_type: GRPO has no held-out loss for reduce_lr_on_plateau",
        ),
        (
            "lr_scheduler_type: cosine_with_min_lr",
            "lr_scheduler_type: cosine_with_min_lr needs min_lr or",
        ),
        ("dataset_columns: [nums]", "dataset_columns: must be a mapping of fields to columns, such as {nums: numbers}"),
        (
            "dataset_columns: {numbers: nums}",
            "dataset_columns: 'numbers' is not a field of the task: ",
        ),
        ("num_train_epochs: 0", "num_train_epochs: nothing to train: set max_steps"),
        ("generator: {low: 3}", "generator: needs dataset_id_or_path: generated"),
        ("load_in_4bit: true", "load_in_4bit: quantized weights cannot be trained themselves"),
        ("seed: 1\nseed: 2", "duplicate key 'seed', first in line 3"),
        ("? [a]\n: 1", "a key must be a plain word"),
        ("seed: &x 1\nbeta: *x", "not valid YAML: aliases (*name) are not allowed"),
        ("optim: !!python/object:os.system x", "optim: not valid YAML: could not determine a constructor"),
        ("seed: !!int ''", "seed: cannot be read"),
        ("seed: [1", "not valid YAML: "),
        ("\tseed: 1", "not valid YAML: found character '\\t' that cannot start any token; YAML indents with spaces"),
        ('run_name: "\\uD800"', "not valid YAML: a character that does not exist"),
        ("run_name: \x00", "a character that YAML does not allow"),
        ("---\na: 1", "not valid YAML: expected a single document in the stream, but found another document"),
    ],
)
def test_one_issue(issues, line, sentence):
    found = issues(DEMO + "# the issue is below\n" + line + "\n")
    assert len(found) == 1
    # Where YAML notices: in the line itself, or below it when something is left open or comes twice.
    at = {"seed: 1\nseed: 2": (4,), "seed: &x 1\nbeta: *x": (4,), "seed: [1": (3, 4)}.get(line, (3,))
    assert found[0].startswith(tuple(f"x:{number}: {sentence}" for number in at)), found
    assert "hf_abcdef" not in found[0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("bf16: true\nfp16: true", "x:3: fp16: bf16 and fp16 are both true"),
        ("fp16: true\ntorch_dtype: float16", "x:2: fp16: loss scaling needs float32 weights"),
        ("attn_implementation: flash_attention_2", "x:2: attn_implementation: flash_attention_2 computes in 16 bits"),
        ("max_steps: 5\nwarmup_steps: 6", "x:3: warmup_steps: the warm-up is longer than the run: at most 5 steps"),
        ("eval_strategy: steps\ntest_fraction: 0", "x:2: eval_strategy: test_fraction is 0, so nothing is held out"),
        ("use_peft: true\nload_in_4bit: true\nload_in_8bit: true", "x:4: load_in_8bit: load_in_4bit and load_in_8bit"),
        (
            "dataset_id_or_path: generated\ndataset_columns: {nums: numbers}",
            "x:3: dataset_columns: generated problems have no columns to map: take it out",
        ),
        ("dataset_id_or_path: generated\ndataset_rows: null", "x:3: dataset_rows: generated data has no end"),
        ("dataset_id_or_path: generated\ngenerator: {low: 9, high: 3}", "x:3: generator: low (9) is above high (3)"),
        (
            "dataset_id_or_path: generated\ngenerator:\n  hihg: 3",
            "x:4: unknown key 'hihg' in 'generator'; did you mean",
        ),
        (
            "dataset_id_or_path: generated\ngenerator:\n  sizes:\n  - 3\n  - 7",
            "x:6: generator.sizes.1: must be at most 6",
        ),
        *(
            (f"dataset_id_or_path: generated\ngenerator: {{{line}}}", f"x:3: generator{error}")
            for line, error in (
                ("sizes: []", ".sizes: must not be empty"),
                ("sizes: [1]", ".sizes.0: must be at least 2"),
                ("target_low: -5", ".target_low: must be at least 0"),
                ("target_low: 5, target_high: 4", ": target_low (5) is above target_high (4)"),
                ("operators: ''", ".operators: must be one line of text"),
                ("operators: +%", ".operators: must be some of + - * /"),
                ("max_intermediate: 0", ".max_intermediate: must be at least 1"),
            )
        ),
        (
            "push_to_hub: true\nhub_strategy: checkpoint",
            "x:3: hub_strategy: pickled checkpoints are not published",
        ),
        ("rollout_ahead: 1", "x:2: rollout_ahead: the trainer cannot sample while it trains, vLLM can: set use_vllm"),
        ("off_policy: tis", "x:2: off_policy: only vLLM's log-probabilities are corrected: set use_vllm: true"),
        ("use_vllm: true\noff_policy: clip", "x:3: off_policy: clip needs epsilon, the distance from 1"),
        *(
            (
                f"use_vllm: true\n{correction}\n{cut_off}",
                "x:3: off_policy: the loss corrects by vLLM's log-probabilities, which top_p and",
            )
            for correction in ("off_policy: tis", "off_policy: clip\nepsilon: 0.2")
            for cut_off in ("top_p: 0.9", "top_k: 20")
        ),
        ("use_vllm: true\nrollout_ahead: 1\ntop_k: 5", "x:4: top_k: the loss corrects by vLLM's log-probabilities"),
        (
            "scoring: original\nrewards: {format: 1, format_original: 1}",
            "x:3: rewards: under scoring: original 'format' means",
        ),
    ],
)
def test_contradictions(issues, text, sentence):
    (found,) = issues(DEMO + text)
    assert found.startswith(sentence)


def test_warm_start_is_for_built_in_models(issues):
    assert issues("model_name_or_path: a/b\nwarm_start: {}") == [
        "x:2: warm_start: is for builtin:demo, builtin:scratch, builtin:arithmetic only: take it out"
    ]


def test_all_issues_together_sorted_by_line_and_overrides_last(issues):
    found = issues(
        "num_generation: 4\nbeta: -1\nbf16: true\nfp16: true\nseed: x\nseed: 3\ngenerator: {low: 0}\n",
        "temperature=0",
        "nonsense",
        "hub_token=hf_abcdef",
    )
    assert [line.split(": ")[0] for line in found] == [
        "x:1", "x:2", "x:4", "x:5", "x:6", "x:7", found[6].split(": ")[0],
        "--set temperature=0", "--set nonsense", "--set hub_token=***",
    ]  # fmt: skip
    assert found[6].endswith("model_name_or_path: is missing: name a hub id, a local directory, or builtin:demo")
    assert not any("hf_abcdef" in line for line in found)


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [("seed", "v" * 80, "seed=" + "v" * 80), ("seed", "v" * 81, "seed=" + "v" * 77 + "..."),
     ("k" * 81, "1", "k" * 80 + "=1")],
)  # fmt: skip
def test_a_long_override_is_cut_where_it_is_named(issues, key, value, shown):
    (found,) = issues("model_name_or_path: builtin:demo\nmax_steps: 1\n", f"{key}={value}")
    assert found.startswith(f"--set {shown}: ")


def test_a_long_duplicate_key_is_cut(issues):
    key = "k" * 61
    found = issues(f"model_name_or_path: builtin:demo\n{key}: 1\n{key}: 2\n")
    assert f"x:3: duplicate key '{key[:60]}', first in line 2" in found


@pytest.mark.parametrize("text", ["", "# nothing\n", "null\n"])
def test_an_empty_file(issues, text):
    (found,) = issues(text)
    assert found.endswith("is empty; a recipe needs at least model_name_or_path, e.g. builtin:demo")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text\n", "3\n"])
def test_not_a_mapping(issues, text):
    assert issues(text) == ["x:1: must be a mapping, one 'key: value' a line"]


def test_files_that_are_no_recipe(write, tmp_path, issues):
    assert issues(b"seed: 1\nrun_name: \xff\n") == ["x:2: is not UTF-8 text; save the file as UTF-8"]
    assert issues(b"#" * (MAX_BYTES + 1))[0].endswith("is larger than 64 KiB; this is not a recipe")
    assert issues("seed: " + "[" * 5000)[0].endswith("is nested too deeply")
    with pytest.raises(RecipeError, match="is a directory; name a recipe file in it"):
        load_recipe(tmp_path)
    for name in ("a" * 5000, "a\0b"):
        with pytest.raises(RecipeError, match="no such recipe"):
            load_recipe(Path(name))


def test_the_error_for_a_missing_file_names_similar_ones():
    with pytest.raises(RecipeError) as caught:
        load_recipe(PUBLISHED_RECIPE.with_name("published-3B.yaml"))
    assert "no such recipe; did you mean 'published-3b'?" in caught.value.message
    assert f"recipes in that directory: {PUBLISHED_RECIPE}" in caught.value.message
    assert "ConfigMap" not in caught.value.message


def test_the_error_for_a_file_missing_from_a_config_map_names_where_to_add_it(tmp_path):
    data = tmp_path / "recipes/..2026_01_01"  # as the kubelet mounts it
    data.mkdir(parents=True)
    (data / "mine.yaml").write_text(DEMO)
    (tmp_path / "recipes/..data").symlink_to(data.name)
    (tmp_path / "recipes/mine.yaml").symlink_to("..data/mine.yaml")
    with pytest.raises(RecipeError, match=r"is a ConfigMap: add the file to it .*configs/kustomization\.yaml"):
        find_recipe(str(tmp_path / "recipes/yours.yaml"))
    assert load_recipe(find_recipe(str(tmp_path / "recipes/mine.yaml")))


# --- --set


def test_overrides(write):
    path = write(DEMO + "seed: x\ndataset_id_or_path: generated\ngenerator: {low: 2}\n")
    recipe = load_recipe(
        path, ["seed=7", "generator.high=12", "learning_rate=5e-7", "report_to=[wandb]", "seed=8", "rewards.words=0.1"]
    )
    assert recipe.seed == 8  # the later one wins, and corrects the file's bad value
    assert recipe.generator == GeneratorRecipe(low=2, high=12)
    assert recipe.learning_rate == 5e-7
    assert recipe.report_to == ["tensorboard", "wandb"]
    assert recipe.resolved_rewards() == {"format": 1, "equation": 1, "words": 0.1}


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("num_generation=4", "unknown key 'num_generation'; did you mean 'num_generations'?"),
        ("num_generations=1", "must be at least 2, not 1"),
        ("generator={low: 0}", "generator.low: must be at least 1, not 0"),
        ("rewards={formt: x}", "rewards.formt: must be one of"),
        ("rewards={format:1}", "rewards.format:1: write a space after the colon"),
        ("generator.low=0", "must be at least 1, not 0"),
        ("watch.kl=maybe", "must be one of off, warn, stop, not 'maybe'"),
        ("watch=off", "cannot be switched off as a whole; switch off single watchers"),
        ("warm_start.step=1", "unknown key 'step' in 'warm_start'; did you mean 'steps'?"),
        ("seed.x=1", "'seed' is not a mapping"),
        ("generator.high.x=1", "generator.high: must be a whole number"),
        ("seed", "write it as key=value"),
        ("=1", "write it as key=value"),
        ("a\udcff=1", "write it as key=value"),
        ("seed=[", "not valid YAML: "),
        ("run_name=*x", "not valid YAML: aliases (*name) are not allowed"),
        ("seed=", "must be a whole number, not null"),
        ("fp16=true", "fp16: bf16 and fp16 are both true"),
    ],
)
def test_bad_overrides(issues, override, sentence):
    (found,) = issues(DEMO + "seed: 1\nbf16: true\n", override)
    shown = override.replace("\udcff", "\\udcff")
    # A contradiction is about the key itself, so its name is not said twice.
    assert found.startswith((f"--set {shown}: {sentence}", f"--set {shown}: {sentence.removeprefix('fp16: ')}"))


# --- out again, and between runs


def test_round_trip(write):
    recipe = load_recipe(
        PUBLISHED_RECIPE, ["rewards.words=-0.5", "lora_target_modules=all-linear", "run_name='1e5 × ü'"]
    )
    text = dump_recipe(recipe)
    assert load_recipe(write(text)) == recipe
    assert dump_recipe(load_recipe(write(text))) == text
    assert list(yaml.safe_load(text)) == list(Recipe.model_fields)


def test_every_default_round_trips(write):
    recipe = Recipe(model_name_or_path="builtin:demo", warm_start={}, dataset_id_or_path="generated", generator={})
    assert load_recipe(write(dump_recipe(recipe))) == recipe


def test_differences_are_those_that_change_what_is_learned():
    old = load_recipe(PUBLISHED_RECIPE)
    new = load_recipe(
        PUBLISHED_RECIPE, ["output_dir=elsewhere", "save_steps=5", "beta=0.04", "rewards={format: 1, equation: 1}"]
    )
    assert differences(old, new) == {"beta": (0.001, 0.04)}
    assert differences(old, old) == {}
    ahead = {"model_name_or_path": "a/b", "use_vllm": True, "rollout_ahead": 1}
    assert differences(Recipe(**ahead), Recipe(**ahead, off_policy="tis")) == {}


def test_a_run_resumes_with_other_evaluation_and_watchers_but_not_with_another_loss():
    old = Recipe(model_name_or_path="a/b")
    harmless = {
        "eval_strategy": "steps", "eval_steps": 5, "eval_on_start": True, "eval_problems": None,
        "watch": {"kl": "stop", "max_kl": 1},
    }  # fmt: skip
    assert differences(old, Recipe(model_name_or_path="a/b", **harmless)) == {}
    learned = {"scale_rewards": False, "drop_zero_variance_groups": True, "bnb_4bit_quant_type": "fp4"}
    assert set(differences(old, Recipe(model_name_or_path="a/b", **learned))) == set(learned)


def test_the_recipe_of_a_run_older_than_a_key_still_loads_and_means_the_same(write):
    recipe = load_recipe(PUBLISHED_RECIPE)
    newer = {
        "eval_steps", "eval_on_start", "eval_problems", "scale_rewards", "drop_zero_variance_groups", "watch",
        "bnb_4bit_quant_type", "use_bnb_nested_quant",
    }  # fmt: skip
    resolved = yaml.safe_load(dump_recipe(recipe))
    assert newer <= set(resolved)
    older = write(yaml.safe_dump({key: value for key, value in resolved.items() if key not in newer}))
    assert load_recipe(older) == recipe


def test_run_directory():
    demo = Recipe(model_name_or_path="builtin:demo")
    assert effective_output_dir(demo, Path("configs/recipes/demo-cpu.yaml")) == Path("runs/demo-cpu")
    assert effective_output_dir(load_recipe(PUBLISHED_RECIPE), PUBLISHED_RECIPE) == Path(
        "runs/qwen-2.5-3b-r1-countdown"
    )


def test_find_recipe(monkeypatch, tmp_path):
    from mini_r1.recipe import recipe_file

    shipped = tmp_path / "demo-cpu.yaml"
    monkeypatch.setattr(recipe_file, "shipped_files", lambda folder: {"demo-cpu": shipped})
    assert find_recipe(str(PUBLISHED_RECIPE)) == PUBLISHED_RECIPE
    assert find_recipe("demo-cpu") == find_recipe("demo-cpu.yaml") == shipped
    with pytest.raises(RecipeError, match=r"no such recipe; did you mean 'demo-cpu'\?\n(.|\n)*of the kit: demo-cpu"):
        find_recipe("demo-gpu")


def test_warnings():
    quiet = Recipe(model_name_or_path="a/b")
    assert quiet.warnings() == []
    loud = Recipe(
        model_name_or_path="a/b", dataset_id_or_path="rows.jsonl", dataset_revision="x", lora_r=8, hub_strategy="end",
        warmup_steps=1, warmup_ratio=0.1, gradient_checkpointing_kwargs={"use_reentrant": False}, test_fraction=0,
        max_steps=5, bnb_4bit_quant_type="fp4", use_bnb_nested_quant=True, eval_steps=5, eval_on_start=True,
        eval_problems=None, num_scheduler_steps=4,
    )  # fmt: skip
    assert [warning.split(":")[0] for warning in loud.warnings()] == [
        "lora_r", "bnb_4bit_quant_type, use_bnb_nested_quant", "eval_on_start, eval_problems, eval_steps",
        "hub_strategy", "num_scheduler_steps", "gradient_checkpointing_kwargs", "warmup_ratio", "dataset_revision",
        "test_fraction is 0",
    ]  # fmt: skip


@pytest.mark.parametrize("keys", [{"top_p": 0.9}, {"top_k": 20}])
def test_the_gap_of_truncated_log_probabilities_is_announced(keys):
    recipe = Recipe(model_name_or_path="a/b", use_vllm=True, **keys)
    assert [warning.split(" ")[0] for warning in recipe.warnings()] == ["logp_gap"]
    for quiet in ({"use_vllm": False}, {"watch": {"logp_gap": "off"}}):
        assert Recipe(model_name_or_path="a/b", **{"use_vllm": True, **keys, **quiet}).warnings() == []


def test_off_policy_corrections_by_default_and_their_warnings():
    assert Recipe(model_name_or_path="a/b").resolved_off_policy == "none"
    assert Recipe(model_name_or_path="a/b", use_vllm=True, rollout_ahead=1).resolved_off_policy == "tis"
    idle = Recipe(model_name_or_path="a/b", use_vllm=True, off_policy_cap=3, epsilon=0.2, epsilon_high=0.28)
    assert [warning.split(":")[0] for warning in idle.warnings()] == ["off_policy_cap", "epsilon, epsilon_high"]
    uncorrected = Recipe(model_name_or_path="a/b", use_vllm=True, rollout_ahead=1, off_policy="none", top_p=0.9)
    assert any(warning.startswith("off_policy: none, so") for warning in uncorrected.warnings())


def test_settings_with_an_effect_get_no_warning():
    used = Recipe(
        model_name_or_path="a/b", use_peft=True, load_in_4bit=True, use_bnb_nested_quant=True, eval_strategy="steps",
        eval_steps=5, eval_on_start=True, eval_problems=None,
    )  # fmt: skip
    assert used.warnings() == []


def test_python_callers_see_contradictions_too_and_no_secrets():
    with pytest.raises(ValidationError, match="both true"):
        Recipe(model_name_or_path="a/b", bf16=True, fp16=True)
    with pytest.raises(ValidationError) as caught:
        Recipe(model_name_or_path="a/b", hub_token="hf_abcdef")
    assert "hf_abcdef" not in str(caught.value)


# --- any text at all

KEYS = st.sampled_from([*Recipe.model_fields, "hub_token", "zzz", "<<", "3", "null", "? [a]", '"\\uD800"'])
SCALARS = st.sampled_from(
    ["1", "-1", "0", "1e-7", ".nan", ".inf", "yes", "no", "~", "''", "text", "2024-13-01", "0x", "0x" + "f" * 20,
     "1:30", "!!int x", "!!bool x", "!!python/name:os.system", "!!binary x", "!!timestamp x", "*a", "&a x", '"\\uDC00"',
     "generated", "builtin:demo", "seed", "a/b", "[", "{", "'", "!!set {a, b}", "!!omap [a: 1]", "!!float ''"]
)  # fmt: skip
VALUES = st.recursive(
    SCALARS | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
    | st.dictionaries(KEYS | st.sampled_from(["low", "high", "format", "kl", "window"]), inner, max_size=3).map(
        lambda items: "{" + ", ".join(f"{key}: {item}" for key, item in items.items()) + "}"
    ),
    max_leaves=5,
)
FILES = st.lists(st.tuples(KEYS, VALUES), max_size=6).map(
    lambda rows: "".join(f"{key}: {item}\n" for key, item in rows)
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=FILES | st.text() | st.binary(),
    overrides=st.lists(st.text() | st.tuples(KEYS, VALUES).map("=".join), max_size=2),
)
@example(text="generator: {? !!binary x : 1}", overrides=[])
@example(text="rewards: &a [*a]", overrides=["rewards.a=1"])
def test_no_text_raises_anything_but_a_recipe_error(write, text, overrides):
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    path, message, recipe = write(data), "-", None
    try:
        recipe = load_recipe(path, overrides)
    except RecipeError as error:
        message = error.message
    assert all(line and line.isprintable() for line in message.split("\n"))
    if recipe:
        assert load_recipe(write(dump_recipe(recipe))) == recipe


def test_reward_names_are_distinct():
    assert len(set(REWARD_NAMES)) == len(REWARD_NAMES) == 8


def test_a_reward_is_added_by_one_function_and_one_line(tmp_path):
    """What docs/rewards.md promises, in another process, so that this one's registry stays as it is."""
    program = """
from pathlib import Path
from mini_r1.tasks.countdown.problem import Problem
from mini_r1.tasks.countdown.rewards import judge
from mini_r1.tasks.countdown.rewards import reward

@reward("brief")
def brief(completion):
    return float(len(completion.text) <= 200)

from mini_r1.recipe.fields import Recipe
recipe = Recipe(model_name_or_path="builtin:demo", rewards={"brief": 0.5})
problem = Problem((1, 2), 3)
print(recipe.resolved_rewards(), judge("x", problem, ["brief"]).rewards["brief"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "{'brief': 0.5} 1.0", done.stderr
