"""Recipes are read as they are written, and say which images, rates and parameters they mean."""

import sys

import pytest
import torch
import torch.nn.functional as F

import dla_kernels as dla
from dla_kernels.data import open_data
from dla_kernels.data.images import Held
from recipes import augment, batches, optim, run, settings
from recipes.settings import Recipe, RecipeError

from .clients import imported
from .training import recipe_of

# ---- recipes ----


def test_models_and_figures_of_recipes_are_of_networks_that_there_are():
    for recipe in map(settings.load, settings.names()):
        figures = [figure for models in recipe.figures.values() for figure in models.items()]
        assert {recipe.model, *(model for model, _ in figures)} <= {*dla.list_models()}
        assert all(50 < accuracy < 100 for _, accuracy in figures)


def test_a_recipe_has_from_its_base_what_it_does_not_say():
    base, wide = settings.load("dia-cifar"), settings.load("wrn-cifar")
    assert (wide.pad, wide.flip, wide.batch) == (base.pad, base.flip, base.batch) == (4, True, 128)
    assert (wide.epochs, wide.gamma, wide.weight_decay) == (200, 0.2, 5e-4)
    assert "dia_resnet164" in base.figures["cifar100"] and "dia_resnet164" not in wide.figures["cifar100"]
    assert settings.load("dia-cifar-no-augmentation").figures == {}


@pytest.mark.parametrize(
    "text, said",
    [
        ("epoch = 3", r"expected keys such as epochs.*, got 'epoch'"),
        ("epochs = 1.5", r"epochs: expected int, got 1.5"),
        ("flip = 1", r"flip: expected bool, got 1"),
        ("lr = true", r"lr: expected float, got True"),
        ("lr = -1", r"expected no number below 0"),
        ("amp = 'fp8'", r"amp: expected none, bf16, fp16, got 'fp8'"),
        ("gamma = nan", r"gamma: expected no number below 0, infinite or NaN, got nan"),
        ("milestones = [-1]", r"milestones: expected no number below 0"),
        ("workers = -1", r"workers: expected no number below 0, infinite or NaN, got -1$"),
        ("attention_weight_decay = -1", r"attention_weight_decay: expected no number below 0"),
        ("size = 0", r"size: expected at least 1, got 0"),
        ("momentum = 1.5", r"momentum: expected a rate in \[0, 1\), got 1.5"),
        ("randaugment = 31", r"randaugment: expected a magnitude up to 30, got 31"),
        ("drop_path = 1.0", r"drop_path: expected a rate in \[0, 1\), got 1.0"),
        ("accumulate = 0", r"accumulate: expected at least 1, got 0"),
        ("milestones = 3", r"milestones: expected list\[int\], got 3"),
        ("milestones = ['a']", r"milestones: expected list\[int\], got \['a'\]"),
        ("lr = ", r"expected TOML"),
        ("base = 'mine.toml'", r"mine.toml: expected a base that is another recipe"),
        ("base = 'nothing'", r"recipe: expected a .toml file or one of .*dla-cifar.*, got 'nothing'"),
    ],
)
def test_a_recipe_that_cannot_be_followed_says_why(text, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(RecipeError, match=said):
        settings.load("mine.toml")


def test_options_of_a_recipe_are_above_those_of_its_base(tmp_path):
    (tmp_path / "base.toml").write_text('[options]\ncell = "dsu"\nreduction = 4')
    (tmp_path / "mine.toml").write_text(f'base = "{tmp_path}/base.toml"\n[options]\ncell = "lstm"')
    recipe = settings.load(str(tmp_path / "mine.toml"))
    assert recipe.options == {"cell": "lstm", "reduction": 4}
    changes = dict(map(settings.parse_change, ["options.reduction=8", "options={reduction = 16, norm = 'none'}"]))
    assert recipe.with_changes(changes).options == {"cell": "lstm", "reduction": 8, "norm": "none"}


def test_a_plain_network_is_made_by_the_recipe_of_those_with_attention(few_images):
    images, recipe = open_data("synthetic", True), settings.load("dia-cifar-no-norm")
    plain, dia = (run.model_options(name, recipe, images) for name in ("resnet164", "dia_resnet164"))
    assert dia == {**plain, "reduction": 16} and plain["norm"] == "none"
    recipe = Recipe(drop_path=0.1, options={"attention": ["none", "none", "dla_light"]})
    assert run.model_options("resnet20", recipe, images)["drop_path"] == 0.1
    with pytest.raises(RecipeError, match=r"options.num_classes: expected none, as the images say that it is 10"):
        run.model_options("resnet20", Recipe(options={"num_classes": 5}), images)


def test_changes_are_read_as_toml_or_as_words():
    changes = dict(map(settings.parse_change, ["lr=1", "amp=bf16", "options.norm=none", "milestones=[1, 2]"]))
    recipe = settings.load("dia-cifar").with_changes(changes)
    assert (recipe.lr, recipe.amp, recipe.milestones, recipe.options) == (1.0, "bf16", [1, 2], {"norm": "none"})
    with pytest.raises(RecipeError, match="expected key=value, got 'lr'"):
        settings.parse_change("lr")


# ---- optimisers and schedules ----


def test_rates_follow_the_schedule():
    steps = Recipe(epochs=180, milestones=[100, 150])
    assert [round(optim.rate(steps, e), 6) for e in (0, 99.99, 100, 149, 150)] == [1, 1, 0.1, 0.1, 0.01]
    cosine = Recipe(epochs=13, schedule="cosine", warmup=3)
    assert [round(optim.rate(cosine, e), 6) for e in (1.5, 3, 8, 13)] == [0.5, 1, 0.5, 0]
    assert 0 < optim.rate(cosine, 0) < 0.01


@pytest.mark.parametrize("model", ["dla_light_resnet20", "dia_resnet20", "se_resnet20", "shared_se_resnet20"])
def test_attention_has_a_weight_decay_of_its_own(model):
    net = dla.create_model(model)
    recipe = Recipe(weight_decay=0.1, attention_weight_decay=0.2, bias_weight_decay=0.0)
    groups = {group["weight_decay"]: group["params"] for group in optim.groups_of(net, recipe)}
    assert sorted(groups) == [0.0, 0.1, 0.2]
    plain = {name for name, p in dla.create_model("resnet20").named_parameters() if p.dim() > 1}
    assert len(groups[0.1]) == len(plain)  # all that a network without attention has
    assert sum(map(len, groups.values())) == len([*net.parameters()])


def test_positions_and_class_tokens_decay_as_biases_do():
    net = dla.create_model("mrla_light_deit_tiny", num_classes=10, img_size=32)
    groups = optim.groups_of(net, Recipe(weight_decay=0.1, attention_weight_decay=0.2, bias_weight_decay=0.0))
    undecayed = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert {id(net.pos_embed), id(net.cls_token), id(net.norm.weight), id(net.head.bias)} <= undecayed
    assert id(net.head.weight) not in undecayed


def test_an_optimiser_of_timm_is_taken_by_its_name():
    imported("timm")
    net = dla.create_model("resnet20")
    found = optim.optimizer_of(net, Recipe(optimizer="lamb", lr=0.5, attention_weight_decay=0.0))
    assert type(found).__name__.lower() == "lamb" and found.param_groups[0]["lr"] == 0.5
    for name in ("nothing", "fusedsgd"):  # which needs apex
        with pytest.raises(
            RecipeError, match=f"expected sgd, adamw or a name that timm knows, but {name} cannot be made"
        ):
            optim.optimizer_of(net, Recipe(optimizer=name))


# ---- images ----


def test_randaugment_is_of_colours_or_greys():
    images = Held("it", ["a"], torch.zeros(1, 4, 8, 8, dtype=torch.uint8), torch.zeros(1), [0.0] * 4, [1.0] * 4)
    with pytest.raises(RecipeError, match="randaugment: expected images of 1 or 3 channels, got 4"):
        augment.Augmentation(recipe_of(randaugment=9), images, 0)


def test_a_crop_and_a_flip_are_those_of_each_image():
    x = torch.randint(1, 256, (64, 3, 5, 7), dtype=torch.uint8)
    draws = torch.randint(2**31, (64, 3))
    found = augment.cropped(x, draws, pad=2, flip=True)
    for image, (down, right, turned), got in zip(x, draws.tolist(), found):
        expected = F.pad(image, (2, 2, 2, 2))[:, down % 5 : down % 5 + 5, right % 5 : right % 5 + 7]
        assert torch.equal(got, expected.flip(2) if turned % 2 else expected)
    assert 0.2 < (draws[:, 2] % 2).double().mean() < 0.8
    assert torch.equal(augment.cropped(x, draws, 0, False), x)


@pytest.mark.parametrize("changes", [{}, {"pad": 0, "resized_crop": True, "randaugment": 9, "erasing": 0.5}])
def test_what_happens_to_an_image_follows_from_seed_epoch_and_number(changes, few_images):
    if changes:
        imported("torchvision")
    images = open_data("synthetic", True)
    before = torch.get_rng_state()

    def batch(numbers, epoch=1, seed=5):
        return augment.Augmentation(recipe_of(**changes), images, seed).batch(epoch, torch.tensor(numbers))

    whole = batch([*range(40)])
    assert torch.equal(whole[[7, 31, 2]], batch([7, 31, 2]))
    assert not torch.equal(whole, batch([*range(40)], epoch=2))
    assert not torch.equal(whole, batch([*range(40)], seed=6))
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's numbers are drawn


class Member:
    """Stand for one process of several."""

    def __init__(self, rank, world):
        self.rank, self.world = rank, world


def parts_of(rank, world, accumulate, first=0, **changes):
    recipe = recipe_of(accumulate=accumulate, batch=16, pad=0, flip=False, **changes)
    reader = batches.Reader(open_data("synthetic", True), None)
    return [*batches.training_parts(recipe, reader, 3, 0, first, Member(rank, world))]


def test_processes_share_a_step_as_its_parts_do(few_images):
    """The 40 images are two batches of 16 and one of 8."""
    whole = parts_of(0, 1, accumulate=4)
    halves = [parts_of(rank, 2, accumulate=2) for rank in (0, 1)]
    assert [len(part[0]) for step in whole for part in step] == [4] * 8 + [2] * 4
    for step, parts in enumerate(whole):
        both = [part for half in halves for part in half[step]]
        assert all(torch.equal(a[0], b[0]) and a[2] == b[2] == (8 if step == 2 else 16) for a, b in zip(parts, both))
    seen = torch.cat([part[0] for step in whole for part in step])
    assert len(seen.flatten(1).unique(dim=0)) == 40
    assert torch.equal(parts_of(0, 1, 4, first=1)[0][1][0], whole[1][1][0])
    assert len(parts_of(0, 1, accumulate=8)) == 2  # the last 8 images are no eight parts of two
    assert len(parts_of(0, 1, accumulate=1, drop_last=True)) == 2


def test_batches_that_cannot_be_divided_are_refused():
    with pytest.raises(RecipeError, match=r"batch: expected a multiple of 6 \(2 processes, accumulate = 3\), got 8"):
        batches.steps_of(recipe_of(accumulate=3), 40, world=2)
    with pytest.raises(RecipeError, match="expected at most 7, which is how many images there are, got 8"):
        batches.steps_of(recipe_of(drop_last=True), 7, world=1)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_image_is_tested_once(world, few_images):
    reader = batches.Reader(open_data("synthetic", False), None)
    shares = [[*batches.test_parts(recipe_of(), reader, Member(rank, world))] for rank in range(world)]
    seen = torch.cat([x for share in shares for x, _ in share])
    assert len(seen) == len(seen.flatten(1).unique(dim=0)) == 20


def test_what_needs_torchvision_says_so_where_there_is_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)
    with pytest.raises(RecipeError, match="erasing: it needs torchvision, which cannot be imported"):
        augment.Augmentation(recipe_of(erasing=0.1), open_data("synthetic", True), 0)
    with pytest.raises(RecipeError, match="cutmix: it needs torchvision"):
        augment.mixing(recipe_of(cutmix=1.0), 10)
