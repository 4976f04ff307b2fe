"""The shape of a model: what memory and time depend on, without torch and without a network.

    find_shape("Qwen/Qwen2.5-3B-Instruct", "main").shape.parameters  # 3085938688

Shapes of the shipped recipes' models are here; any other is read from its config.json, in its own directory or in the
hub's cache on this machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from mini_r1.errors import KitError
from mini_r1.recipe.builtin_models import BuiltinModel
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.keys import did_you_mean
from mini_r1.recipe.model_kinds import ADAPTER_REFUSED, later_kind_by_name, refuse_later_kind
from mini_r1.run.files import load_object

LAYOUTS: Final = ("qwen2", "llama", "mistral")
"""Kinds with the decoder layer below: grouped-query attention, a gated MLP, two RMSNorms."""
NORMS_PER_LAYER: Final = 2


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder-only transformer. Names in formulas: hidden h, heads a, intermediate i, vocabulary V."""

    name: str
    kind: str  # its model_type
    hidden: int
    layers: int
    heads: int
    kv_heads: int  # heads of keys and values, shared by groups of the others
    head_size: int
    intermediate: int
    vocabulary: int
    tied: bool  # whether the output layer is the embedding
    max_positions: int  # longest sequence, in tokens
    dtype: str = "bfloat16"  # of the weights file
    qkv_bias: bool = True  # whether queries, keys and values have a bias, as Qwen2's

    @property
    def kv_width(self) -> int:
        """Values in one token's keys of one layer, and as many in its values."""
        return self.kv_heads * self.head_size

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each linear layer of a decoder layer, by transformers' names."""
        wide, h, i = self.heads * self.head_size, self.hidden, self.intermediate
        return {
            "q_proj": (h, wide), "k_proj": (h, self.kv_width), "v_proj": (h, self.kv_width), "o_proj": (wide, h),
            "gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h),
        }  # fmt: skip

    @property
    def linear_parameters(self) -> int:
        """Weights of all linear layers without the output layer: what quantization stores in fewer bits."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding; an output layer that is not tied has as many."""
        return self.vocabulary * self.hidden

    @property
    def largest_parameter(self) -> int:
        """Elements of the largest single tensor."""
        return max(self.embedding_parameters, *(inputs * outputs for inputs, outputs in self.linears.values()))

    @property
    def parameters(self) -> int:
        biases = self.layers * (self.heads * self.head_size + 2 * self.kv_width) if self.qkv_bias else 0
        norms = self.layers * NORMS_PER_LAYER * self.hidden + self.hidden
        return self.embedding_parameters * (1 if self.tied else 2) + self.linear_parameters + biases + norms

    def adapted_linears(self, modules: Sequence[str] | None) -> list[tuple[int, int]]:
        """Return inputs and outputs of the linear layers of a decoder layer that a LoRA adapter changes.

        `modules` are names, or `all-linear`; None is peft's choice for these kinds, q_proj and v_proj.
        """
        if modules is not None and list(modules) == ["all-linear"]:
            return list(self.linears.values())
        names = {module.rsplit(".", 1)[-1] for module in (("q_proj", "v_proj") if modules is None else modules)}
        return [size for name, size in self.linears.items() if name in names]

    def adapter_parameters(self, rank: int, modules: Sequence[str] | None) -> int:
        """Return the weights of a LoRA adapter: r * (inputs + outputs) per layer (arXiv:2106.09685, section 4.1)."""
        return self.layers * rank * sum(map(sum, self.adapted_linears(modules)))


class UnknownShape(Exception):
    """Warning raised when a model may be usable, but its shape is not known here."""


def _qwen25(
    size: str, *, hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocabulary: int = 151_936,
    tied: bool = True, base_positions: int,
) -> dict[str, ModelShape]:  # fmt: skip
    """Return base and instruct model of a size; values of the two config.json on the hub."""
    base = ModelShape(
        name=f"Qwen/Qwen2.5-{size}", kind="qwen2", hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads,
        head_size=128 if hidden > 1000 else 64, intermediate=intermediate, vocabulary=vocabulary, tied=tied,
        max_positions=base_positions,
    )  # fmt: skip
    instruct = replace(base, name=f"{base.name}-Instruct", max_positions=32_768)
    return {base.name: base, instruct.name: instruct}


KNOWN: Final[dict[str, ModelShape]] = {
    **_qwen25("0.5B", hidden=896, layers=24, heads=14, kv_heads=2, intermediate=4_864, base_positions=32_768),
    **_qwen25("1.5B", hidden=1_536, layers=28, heads=12, kv_heads=2, intermediate=8_960, base_positions=131_072),
    **_qwen25("3B", hidden=2_048, layers=36, heads=16, kv_heads=2, intermediate=11_008, base_positions=32_768),
    **_qwen25("7B", hidden=3_584, layers=28, heads=28, kv_heads=4, intermediate=18_944, base_positions=131_072,
              vocabulary=152_064, tied=False),
}  # fmt: skip
"""Models of the shipped recipes and their relatives."""


def builtin_shape(model: BuiltinModel) -> ModelShape:
    """Return the shape that training/from_scratch.py gives a built-in model."""
    heads = model.hidden_size // model.head_size
    return ModelShape(
        name=model.name, kind="qwen2", hidden=model.hidden_size, layers=model.layers, heads=heads, kv_heads=heads,
        head_size=model.head_size, intermediate=3 * model.hidden_size, vocabulary=model.vocabulary, tied=True,
        max_positions=model.positions, dtype="float32",
    )  # fmt: skip


def recipe_shape(recipe: Recipe) -> ModelShape:
    """Return the shape of a recipe's model; raise as `find_shape` does."""
    if recipe.built_in:
        return builtin_shape(recipe.built_in)
    return find_shape(recipe.model_name_or_path, recipe.model_revision)


def find_shape(name: str, revision: str) -> ModelShape:
    """Return the shape of a model by hub id or directory, and by revision of a hub id; nothing is downloaded.

    Raises UnknownShape, or KitError if the model cannot be used.
    """
    if name in KNOWN:
        return KNOWN[name]
    path = Path(name)
    if (path / "adapter_config.json").is_file():
        raise KitError(ADAPTER_REFUSED.format(name))
    if path.is_dir() and not (path / "config.json").is_file():
        raise KitError(f"{name} has no config.json: name a directory that save_pretrained wrote")
    if path.is_dir():
        return _config_shape(name, path / "config.json")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UnknownShape(f"{name} is not on this machine, so memory and time are not known here")
    refuse_later_kind(name, later_kind_by_name(name))
    cached = _cached_config(name, revision)
    if cached is not None:
        return _config_shape(name, cached)
    raise UnknownShape(
        f"the shape of {name} is not known here, so memory and time are not either{did_you_mean(name, KNOWN) or ':'} "
        "shapes are known for Qwen2.5 0.5B to 7B, a local model directory, and models in the hub's cache"
    )


def _cached_config(name: str, revision: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:  # no hub could have a repository of that name
        return None
    return Path(found) if isinstance(found, str) else None


def _config_shape(name: str, path: Path) -> ModelShape:
    try:
        config = load_object(path)
    except ValueError as error:
        raise KitError(f"{path} {error}: copy the model again") from error
    kind = config.get("model_type")
    refuse_later_kind(name, kind)
    if kind not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise UnknownShape(f"{name} is a model of kind {str(kind)[:40]!r}: memory and time are known for {known} only")

    def size(key: str, default: int | None = None) -> int:
        value = config.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10**9:
            found = str(value)[:40]
            raise KitError(f"{path}: {key} must be a whole number above 0, found {found}: copy the file again")
        return value

    heads = size("num_attention_heads")
    return ModelShape(
        name=name,
        kind=str(kind),
        hidden=size("hidden_size"),
        layers=size("num_hidden_layers"),
        heads=heads,
        kv_heads=size("num_key_value_heads", heads),
        head_size=size("head_dim", max(1, size("hidden_size") // heads)),
        intermediate=size("intermediate_size"),
        vocabulary=size("vocab_size"),
        tied=bool(config.get("tie_word_embeddings", False)),
        max_positions=size("max_position_embeddings"),
        dtype=str(config.get("torch_dtype", "float32")),
        qkv_bias=kind == "qwen2" or bool(config.get("attention_bias", False)),
    )
