"""The numbers behind the figures of analyses are right."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dla_kernels as dla
from dla_kernels import analysis
from dla_kernels.analysis.depth import has_depth
from dla_kernels.analysis.stages import evaluating, stages_of
from dla_kernels.models import ResNet, VisionTransformer
from dla_kernels.models.blocks import BasicBlock

from .tolerances import assert_same_bits

DOUBLE = torch.float64


# ---- importance by random forests ----


def gates(B=150, C=4):
    """Return gates of three layers [3, B, C] of which the first two have nothing to do with each other."""
    return torch.rand(3, B, C, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("source", [0, 1])
def test_the_layer_that_gates_follow_from_is_found(source):
    h = gates()
    h[2] = torch.sin(4 * h[source]) + h[source].roll(1, 1)
    found = analysis.gini(h, trees=20)
    assert not found.triu().any()
    assert found[1, 0] == 1  # the only source there is
    assert found[2, source] == 1
    assert found[2, 1 - source] < 0.2


def test_importances_are_summed_over_the_channels_of_a_source():
    """One channel of the second layer says more than any of the first, but the first says more in sum."""
    h = gates(400)
    h[2] = (h[0].sum(1) + 1.4 * h[1, :, 0])[:, None]
    found = analysis.gini_row(h, 2, trees=20)
    assert found[0] == 1
    assert 0.3 < found[1] < 0.9  # the variance is 1.4^2 of 4 parts


def test_gates_that_never_change_have_no_source():
    h = gates(20)
    h[2] = 0.5
    assert not analysis.gini(h, trees=2)[2].any()


def test_a_forest_is_the_same_for_a_seed_and_any_number_of_threads(set_threads):
    h, found = gates(40), []
    for threads, seed in ((1, 0), (2, 0), (1, 1)):
        set_threads(threads)
        found.append(analysis.gini(h, trees=4, seed=seed))
    assert_same_bits(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_gates_that_no_forest_can_learn_from_are_refused():
    with pytest.raises(
        ValueError, match=r"h, t: expected \[T, B, C\] of at least 2 samples and t < T, got \[3, 1, 4\] and 2"
    ):
        analysis.gini_row(gates(1), 2)
    with pytest.raises(ValueError, match="h: expected finite numbers, got others"):
        analysis.gini(gates() / 0)


# ---- gradients and Grad-CAM ----


def small(**options):
    return ResNet((2, 2), BasicBlock, attention="dla_light", in_channels=1, num_classes=3, **options).to(DOUBLE)


def moved(stage, at, by):
    """Have a stage return another number at one place of its map."""

    def move(_module, _args, output):
        return output.index_put(tuple(map(torch.tensor, at)), torch.tensor(by, dtype=DOUBLE), accumulate=True)

    return stage.register_forward_hook(move)


def test_gradients_at_stages_are_finite_differences_of_the_loss():
    net = small(frozen_stages=1).train()
    x, labels, step = torch.randn(2, 1, 8, 8, dtype=DOUBLE), torch.tensor([0, 2]), 1e-5
    before = [(name, b.clone()) for name, b in net.named_buffers()]
    found = analysis.gradients(net, x, labels)
    assert {name: g.shape for name, g in found.items()} == {"layer1": (2, 16, 8, 8), "layer2": (2, 32, 4, 4)}
    assert net.training and not net.layer1.training and all(p.grad is None for p in net.parameters())
    assert all(torch.equal(b, dict(net.named_buffers())[name]) for name, b in before)
    with torch.inference_mode():
        again = analysis.gradients(net, x.clone(), labels.clone())
    assert all(torch.equal(again[name], g) for name, g in found.items())
    net.eval()
    for name, gradient in found.items():
        for at in ((0, 3, 1, 2), (1, 11, 3, 0)):
            losses = []
            for by in (step, -step):
                handle = moved(net.get_submodule(name), at, by)
                with torch.no_grad():
                    losses.append(F.cross_entropy(net(x), labels, reduction="sum"))
                handle.remove()
            torch.testing.assert_close((losses[0] - losses[1]) / (2 * step), gradient[at], rtol=1e-5, atol=1e-9)


def test_a_distribution_is_in_percent_of_all_values():
    values = torch.tensor([-0.9, -0.4, 0.1, 0.2, 7.0])
    torch.testing.assert_close(
        analysis.distribution(values, 1.0, bins=4), torch.tensor([20.0, 20, 40, 0], dtype=DOUBLE)
    )
    with pytest.raises(ValueError, match="gradients: expected finite numbers"):
        analysis.distribution(values / 0, 1.0)


class Pooled(nn.Module):
    """A network whose class scores are linear in the means of a map, so that Grad-CAM is plain arithmetic."""

    def __init__(self):
        super().__init__()
        self.stage = nn.AvgPool2d(2)
        self.fc = nn.Linear(2, 3, bias=False)
        self.fc.weight.data = torch.tensor([[4.0, 0.0], [0.0, 4.0], [4.0, -8.0]])

    def forward(self, x):
        return self.fc(self.stage(x).mean((2, 3)))


def test_grad_cam_is_what_one_computes_by_hand():
    net = Pooled()
    maps = torch.tensor([[[[1.0, 2], [3, 4]], [[4.0, 0], [2, 0]]]])  # A, [1, 2, 2, 2]
    x = maps.repeat_interleave(2, 2).repeat_interleave(2, 3)  # whose pooled map is A
    # Over 4 pixels a class's weights are the row of fc divided by 4: (1, 0), (0, 1), (1, -2).
    expected = {0: maps[0, 0] / 4, 1: maps[0, 1] / 4, 2: torch.tensor([[0.0, 2], [0, 4]]) / 4}
    for k, cam in expected.items():
        both = torch.cat([x, 10 * x])  # each image has a scale of its own
        found, other = analysis.grad_cam(net, both, torch.tensor([k, k]), module=net.stage)
        torch.testing.assert_close(found, other)
        enlarged = F.interpolate(cam[None, None], (4, 4), mode="bilinear", align_corners=False)[0, 0]
        torch.testing.assert_close(found, enlarged / enlarged.max())
    assert_same_bits(
        analysis.grad_cam(net, x, module=net.stage), analysis.grad_cam(net, x, torch.tensor([0]), module=net.stage)
    )


def test_where_nothing_speaks_for_a_class_there_is_no_cam():
    net = Pooled()
    assert not analysis.grad_cam(net, -torch.ones(1, 2, 4, 4), torch.tensor([0]), module=net.stage).any()


def test_the_map_of_the_last_stage_is_what_grad_cam_looks_at():
    net, x = small(), torch.randn(2, 1, 8, 8, dtype=DOUBLE)
    assert_same_bits(analysis.grad_cam(net, x), analysis.grad_cam(net, x, module=net.layer2))
    assert net.training


def test_what_is_no_classifier_or_has_no_stages_is_refused():
    x = torch.randn(1, 1, 8, 8, dtype=DOUBLE)
    with pytest.raises(ValueError, match=r"net: expected a classifier, .* got list"):
        analysis.grad_cam(small(features_only=True), x)
    vit = VisionTransformer(8, 2, 2, in_channels=1, img_size=8, patch_size=4, num_classes=3).to(DOUBLE)
    assert analysis.gradients(vit, x, torch.tensor([0]))["blocks"].shape == (1, 5, 8)
    with pytest.raises(ValueError, match=r"net: expected a network whose last stage makes maps .*, got \[1, 5, 8\]"):
        analysis.grad_cam(vit, x)
    with pytest.raises(ValueError, match=r"net: expected a network of create_model or convert, .* got a Pooled"):
        analysis.gradients(Pooled(), x, torch.tensor([0]))


# ---- accuracy ----


class Constant(nn.Module):
    def forward(self, x):
        return x


def test_accuracy_is_the_share_of_images_that_are_right():
    scores = F.one_hot(torch.tensor([0, 1, 2, 2]), 3).float()
    batches = [(scores[:3], torch.tensor([0, 1, 1])), (scores[3:], torch.tensor([2]))]
    assert analysis.accuracy(Constant(), batches) == 0.75
    with pytest.raises(ValueError, match="batches: expected at least one image"):
        analysis.accuracy(Constant(), [])


def test_results_are_put_together_by_family_and_depth():
    results = [("dla_light_resnet56", 0.5), ("dla_light_resnet20", 0.4), ("resnet20", 0.2), ("dla_light_resnet56", 0.7)]
    found = analysis.by_depth(analysis.Result(*result) for result in results)
    assert found == {"dla_light_resnet": [(20, 0.4, 0.4, 0.4), (56, 0.6, 0.5, 0.7)], "resnet": [(20, 0.2, 0.2, 0.2)]}
    depths = {name: analysis.family_and_depth(name)[1] for name in dla.list_models() if has_depth(name)}
    assert {depths[name] for name in dla.list_models("*wrn*")} == {52}
    assert {*dla.list_models()} - {*depths} == {*dla.list_models("*deit*")}
    with pytest.raises(ValueError, match="name: expected one with a depth"):
        analysis.family_and_depth("deit_tiny")


def test_evaluation_leaves_each_module_as_it_was():
    net = small().train()
    net.layer1.eval()
    before = [module.training for module in net.modules()]
    with pytest.raises(KeyError), evaluating(net):
        assert not any(module.training for module in net.modules())
        raise KeyError
    assert [module.training for module in net.modules()] == before


def test_the_stages_of_a_converted_network_are_found():
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    dla.convert(net, attention="mrla_base", stages=["0"])
    assert list(stages_of(net)) == ["0"]
    found = analysis.gradients(net.eval(), torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))
    assert found["0"].shape == (2, 16, 8, 8)
