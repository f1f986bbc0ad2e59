"""What a recipe may say, and how its file is read."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, get_origin, get_type_hints

HERE = Path(__file__).parent
CHOICES = {"schedule": ("steps", "cosine"), "amp": ("none", "bf16", "fp16")}
RATES = ("momentum", "smoothing", "drop_path", "erasing", "ema")  # from 0 on, less than 1
COUNTS = ("epochs", "batch", "accumulate", "size")  # at least 1
# What does not change a run's results, and so may change where it goes on.
FREE = ("workers", "save_every", "table", "note", "figures")


class RecipeError(ValueError):
    """A recipe, or an option, that cannot be followed; the message is for those who wrote it."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained."""

    name: str = ""
    table: str = ""  # of the paper whose figures it would give
    note: str = ""  # what else there is to say
    model: str = "dla_light_resnet20"  # unless --model says another
    epochs: int = 1
    batch: int = 128  # images of a step, of all processes and parts together
    options: dict[str, Any] = field(default_factory=dict)  # of create_model, for every model
    # the optimiser
    optimizer: str = "sgd"  # or adamw, or a name that timm knows
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    attention_weight_decay: float | None = None  # of attention and its norms, where it is another
    bias_weight_decay: float | None = None  # of biases, norms, positions and class tokens, where it is another
    clip: float = 0.0  # the largest norm of the gradients; 0 for any
    # its schedule, in epochs
    schedule: str = "steps"
    milestones: list[int] = field(default_factory=list)  # of "steps": where the rate is multiplied by gamma
    gamma: float = 0.1
    warmup: float = 0.0  # while the rate grows from 0
    # the network in training
    drop_path: float = 0.0  # of layer attention, and of transformers; others have none
    smoothing: float = 0.0  # of labels
    ema: float = 0.0  # how much a step keeps of the average of weights, which is then tested; 0 for no average
    # the images
    size: int | None = None  # their side, where it is not their own; made images keep theirs
    flip: bool = False
    pad: int = 0  # before a crop of the image's own size, at each side
    resized_crop: bool = False  # a crop of any size and form instead, as for ImageNet; this and the rest by torchvision
    randaugment: int = 0  # its magnitude, up to 30
    erasing: float = 0.0  # how often a rectangle is erased
    mixup: float = 0.0  # alpha; with cutmix, either is drawn
    cutmix: float = 0.0
    # how it is computed
    accumulate: int = 1  # parts of a step's images that go through the network one after the other
    amp: str = "none"
    channels_last: bool = False
    compile: bool = False
    sync_bn: bool = False  # of several processes with GPUs
    deterministic: bool = True  # the same bits from run to run; on GPUs at some cost
    drop_last: bool = False  # leave out an epoch's last images where they are less than a batch
    workers: int = 0  # processes that read images
    save_every: int = 0  # steps between checkpoints within an epoch; 0 for none
    figures: dict[str, dict[str, float]] = field(default_factory=dict)  # published, in %: data set -> model -> top-1

    def __post_init__(self) -> None:
        for key, choices in CHOICES.items():
            if getattr(self, key) not in choices:
                raise RecipeError(f"{key}: expected {', '.join(choices)}, got {getattr(self, key)!r}")
        for key in COUNTS:
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise RecipeError(f"{key}: expected at least 1, got {getattr(self, key)}")
        for key in RATES:
            if not 0 <= getattr(self, key) < 1:
                raise RecipeError(f"{key}: expected a rate in [0, 1), got {getattr(self, key)}")
        for key, value in asdict(self).items():
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, (int, float)) and not 0 <= number < math.inf:
                    raise RecipeError(f"{key}: expected no number below 0, infinite or NaN, got {value}")
        if self.randaugment > 30:
            raise RecipeError(f"randaugment: expected a magnitude up to 30, got {self.randaugment}")
        if self.pad and self.resized_crop:
            raise RecipeError("pad: expected 0 with resized_crop, which crops otherwise")

    def with_changes(self, changes: dict[str, Any]) -> Recipe:
        """Return another recipe, of which some keys are said anew; ``options.norm`` says one of the model's options,
        above ``options``, which says several."""
        known = {f.name for f in fields(self)}
        own, options = {}, {}
        for key, value in changes.items():
            if key.startswith("options."):
                options[key.removeprefix("options.")] = value
            elif key not in known:
                close = get_close_matches(key, known, n=3) or sorted(known)
                raise RecipeError(f"recipe: expected keys such as {', '.join(close)}, got {key!r}")
            else:
                own[key] = checked(key, value)
        own["options"] = {**self.options, **own.get("options", {}), **options}
        return replace(self, **own)

    def settings(self) -> dict[str, Any]:
        """Return what decides the results of a run, as plain values."""
        return {key: value for key, value in asdict(self).items() if key not in FREE}


TYPES = get_type_hints(Recipe)


def checked(key: str, value: Any) -> Any:
    """Return a value of a recipe as its key needs it, a whole number for any other."""
    wanted = TYPES[key]
    if wanted in (float, float | None) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = get_origin(wanted) or wanted
    fits = isinstance(value, wanted.__args__ if plain is UnionType else plain)
    if plain is list:
        fits = fits and all(isinstance(item, wanted.__args__) for item in value)
    if not fits or (isinstance(value, bool) and wanted is not bool):
        said = wanted.__name__ if isinstance(wanted, type) and plain is wanted else wanted
        raise RecipeError(f"{key}: expected {said}, got {value!r}")
    return value


def names() -> list[str]:
    """Return the names of the recipes that come with the project."""
    return sorted(file.stem for file in HERE.glob("*.toml"))


def load(name: str, above: tuple[Path, ...] = ()) -> Recipe:
    """Return a recipe by its name, or from a file of one's own; what it does not say, it has from its ``base``."""
    file = Path(name) if name.endswith(".toml") else HERE / f"{name}.toml"
    if not file.is_file():
        raise RecipeError(f"recipe: expected a .toml file or one of {', '.join(names())}, got {name!r}")
    if file in above:
        raise RecipeError(f"{file}: expected a base that is another recipe, but it is its own")
    said = read_toml(file.read_bytes().decode(errors="replace"), str(file))
    recipe = Recipe()
    if "base" in said:
        recipe = replace(load(str(said.pop("base")), (*above, file)), table="", note="", figures={})
    try:
        return recipe.with_changes({"name": file.stem, **said})
    except RecipeError as error:
        raise RecipeError(f"{file}: {error}") from error


def read_toml(text: str, where: str) -> dict[str, Any]:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        try:
            import tomli as tomllib
        except ImportError as error:
            raise RecipeError("recipes are TOML, which Python reads from 3.11 on; pip install tomli") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{where}: expected TOML, {error}") from error


def parse_change(text: str) -> tuple[str, Any]:
    """Return key and value of ``key=value``; the value is read as TOML, and as a word where it is none."""
    key, equals, value = text.partition("=")
    if not equals:
        raise RecipeError(f"--set: expected key=value, got {text!r}")
    try:
        return key.strip(), read_toml(f"value = {value}", "")["value"]
    except RecipeError:
        return key.strip(), read_toml(f"value = {json.dumps(value.strip())}", text)["value"]
