"""Networks and ops work with the tools that people use beside them: torch.fx and feature extractors, FLOP counters,
torch.export and ONNX, torchvision's detectors."""

import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import dla_kernels as dla
from dla_kernels import backends
from dla_kernels.models import ResNet
from dla_kernels.models.blocks import Bottleneck
from dla_kernels.verify import functions, make_cases, make_plain_cases, outputs_and_gradients

from .cases import COMMON, Shape, case_name, inputs_of, options_of
from .clients import imported, with_detection

ATTENTIONS = ("none", "se", "eca", "dia", "mrla_light", "mrla_base", "dla_light", "dla_base")


def small(attention, **options):
    return ResNet((1, 2), Bottleneck, attention=attention, **options).eval()


def of_timm(name="resnet26"):
    return imported("timm").create_model(name, num_classes=10)


def converted(name, stages, make=of_timm):
    return dla.convert(make(name), stages=stages).eval()


def regnet(name="regnet_y_400mf"):
    return imported("torchvision.models").get_model(name, num_classes=10)


CONVERTED = {
    "ResNet": lambda: dla.convert(of_timm()).eval(),
    "ConvNeXt": lambda: converted("convnext_atto", [f"stages.{s}.blocks" for s in range(4)]),
    "RegNet": lambda: converted("regnety_002", [f"s{s}" for s in range(1, 5)]),
    "torchvision's RegNet": lambda: converted(
        "regnet_y_400mf", [f"trunk_output.block{s}" for s in range(1, 5)], make=regnet
    ),
}


# ---- torch.fx ----


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_networks_are_traced_by_fx(attention):
    net = small(attention)
    traced, x = torch.fx.symbolic_trace(net), torch.randn(2, 3, 8, 8)
    assert torch.equal(traced(x), net(x))
    targets = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    between = attention in ("mrla_light", "mrla_base", "dla_light", "dla_base", "dia")
    assert ("layer1.attention" in targets) == between and "layer1.0.conv1" in targets


@pytest.mark.parametrize("name", CONVERTED)
def test_converted_networks_are_traced_by_fx(name):
    net, x = CONVERTED[name](), torch.randn(2, 3, 32, 32)
    for norm in (m for n, m in net.named_modules() if n.endswith(".norm")):
        nn.init.ones_(getattr(norm, "weight", torch.empty(0)))
    assert torch.equal(torch.fx.symbolic_trace(net)(x), net(x))


def test_modules_of_a_stage_and_of_rows_are_traced_by_fx():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.update, self.scan = dla.nn.LayerUpdate(dla.nn.DSUCell(8)), dla.nn.ContextScan(dla.nn.DSUCell(8))

        def forward(self, a, b):
            a, b = self.update([a, b])
            (c,) = self.scan(torch.stack([a.mean((2, 3)), b.mean((2, 3))]))
            return c

    net, maps = Whole(), [torch.randn(2, 8, 4, 4) for _ in range(2)]
    assert torch.equal(torch.fx.symbolic_trace(net)(*maps), net(*maps))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_torchvisions_feature_extractor_takes_stages_for_their_maps(attention):
    extraction = imported("torchvision.models.feature_extraction")
    net, x = small(attention), torch.randn(2, 3, 8, 8)
    found = extraction.create_feature_extractor(net, {"layer1": "a", "layer2": "b"})(x)
    maps = small(attention, features_only=True)
    maps.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("fc.")})
    assert [*found] == ["a", "b"] and all(torch.equal(a, b) for a, b in zip(found.values(), maps(x)))


@pytest.mark.parametrize("wrapper", ["FeatureHookNet", "FeatureListNet", "FeatureGraphNet"])
@pytest.mark.parametrize("name", ["ours", "ResNet", "ConvNeXt"])
def test_timms_feature_wrappers_give_the_maps_of_stages(name, wrapper):
    if (name, wrapper) == ("ConvNeXt", "FeatureListNet"):
        name = "RegNet"  # this one takes modules of the first level alone
    timm_models = imported("timm.models")
    dla.register_timm()
    net = imported("timm").create_model("dla_light_resnet18") if name == "ours" else CONVERTED[name]()
    x = torch.randn(2, 3, 64, 64)
    wrapped = getattr(timm_models, wrapper)(net.eval(), out_indices=(1, 2))
    assert [m.shape[1] for m in wrapped(x)] == wrapped.feature_info.channels()


def test_timms_features_only_has_timms_feature_info():
    dla.register_timm()
    net = imported("timm").create_model("dla_light_resnet18", features_only=True, out_indices=(1, 2))
    assert net.feature_info.channels() == [m.shape[1] for m in net(torch.randn(1, 3, 64, 64))] == [128, 256]
    assert net.feature_info.reduction() == [8, 16] and net.feature_info.module_name() == ["layer2", "layer3"]


# ---- operations counted ----

SIZES = [(3, 4)] * 2
FLOP_CELLS = [dla.Cell("dsu-paper", projection=projection) for projection in COMMON]
FLOP_CASES = [
    *make_plain_cases(SIZES, 2, 6, "cpu"),
    *(case for cell in FLOP_CELLS for case in make_cases(cell, SIZES, 2, 6, 5, "cpu")),
]


@pytest.mark.parametrize("case", FLOP_CASES, ids=lambda case: f"{case.op}-{case_name(case.cell) if case.cell else ''}")
def test_operations_are_counted_as_in_the_reference(backend, case):
    """Torch counts products and convolutions. Each has two gradients; of a depthwise convolution's, torch's own formula
    counts C times as many."""
    counted = {}
    for name in (backend.name, "reference"):
        tensors = [x.to(backend.device) for x in case.tensors]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            case.call(functions(name), tensors)
        counted[name] = counter.get_total_flops()
    assert counted[backend.name] == counted["reference"]
    assert (counted["reference"] > 0) == (case.op not in ("gap", "rescale", "mix", "norm_add"))
    with FlopCounterMode(display=False) as counter:
        outputs_and_gradients(case, functions(backend.name), tensors)
    assert counter.get_total_flops() == 3 * counted["reference"]


@pytest.mark.parametrize("with_e", [True, False])
def test_operations_of_a_step_are_those_of_the_filters_that_it_has(backend, with_e):
    cell = FLOP_CELLS[0]
    inputs = inputs_of("light_step", Shape.parse("T2-B2-C6-R5-HW3x4"), cell, torch.float32, device=backend.device)
    inputs["e"] = inputs["e"] if with_e else None
    counts = []
    for function in (partial(dla.light_step, backend=backend.name), dla.reference.light_step):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            function(**inputs, **options_of("light_step", cell))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_operations_in_place_are_counted():
    xs, weights = [torch.randn(2, 6, 3, 4) for _ in range(2)], make_cases(FLOP_CELLS[0], SIZES, 2, 6, 5, "cpu")
    weights = dla.Joint(*(w.float() for w in weights[0].tensors[1:4]))
    counts = []
    for inplace in (False, True):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            dla.layer_update(xs, weights, inplace=inplace)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


# ---- exported programs ----


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("attention", ["dia", "dla_light", "dla_base"])
def test_gradients_flow_through_programs_that_are_exported_with_gradients(attention, strict):
    net, x = small(attention), torch.randn(2, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        program = torch.export.export(net, (x,), strict=strict).module()
    (expected,) = torch.autograd.grad(net(x).square().sum(), net.conv1.weight)
    (found,) = torch.autograd.grad(program(x).square().sum(), program.get_parameter("conv1.weight"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strict", [False, True])
def test_programs_that_are_exported_without_gradients_call_the_kernels(strict):
    net, x = small("dla_light"), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        program = torch.export.export(net, (x,), strict=strict)
        torch.testing.assert_close(program.module()(x), net(x), rtol=1e-4, atol=1e-5)
    assert sum("dla.light_step" in str(node.target) for node in program.graph.nodes) == 3


def test_an_export_with_gradients_says_how_it_is_had_with_kernels(monkeypatch):
    monkeypatch.setattr(backends, "_warned", set())
    with pytest.warns(RuntimeWarning, match=r"by the reference's formulas; exported under torch.no_grad\(\)"):
        torch.export.export(small("dla_light"), (torch.randn(2, 3, 8, 8),))


@pytest.mark.parametrize("attention", ["dia", "dla_light", "dla_base"])
def test_onnx_has_the_formulas(attention):
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    net, x = small(attention), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        program = torch.onnx.export(net, (x,), dynamo=True, verbose=False)
        (found,) = reference.ReferenceEvaluator(program.model_proto).run(
            None, {program.model.graph.inputs[0].name: x.numpy()}
        )
        torch.testing.assert_close(torch.from_numpy(found), net(x), rtol=1e-4, atol=1e-5)
    assert {node.domain for node in program.model_proto.graph.node} == {""}


# ---- detection ----


def boxes_of(size):
    return torch.tensor([[4.0, 4, size - 8, size - 8], [size / 2, 2, size - 2, size / 2]])


@torch.compiler.set_stance("force_eager")  # torchvision compiles its stand-in for roi_align
@pytest.mark.parametrize("detector", ["FasterRCNN", "MaskRCNN", "RetinaNet"])
def test_features_feed_torchvisions_detectors(detector):
    """A step of training: losses are finite, and reach the first convolution and the attention of each stage."""
    detection = with_detection()
    torch.manual_seed(0)
    body = dla.create_model("dla_light_resnet18", features_only=True)
    assert body.channels == [64, 128, 256, 512]
    layers = {f"layer{s}": str(s) for s in range(1, 5)}
    backbone = detection.backbone_utils.BackboneWithFPN(body, layers, body.channels, 32)
    size = 64
    few = {f"rpn_{which}_nms_top_n_{when}": 20 for which in ("pre", "post") for when in ("train", "test")}
    few = {} if detector == "RetinaNet" else few | {"box_batch_size_per_image": 16, "box_detections_per_img": 4}
    net = getattr(detection, detector)(backbone, num_classes=3, min_size=size, max_size=size, **few)
    masks = torch.zeros(2, size, size, dtype=torch.uint8)
    masks[:, 8:32, 8:32] = 1
    targets = [{"boxes": boxes_of(size), "labels": torch.tensor([1, 2]), "masks": masks}] * 2
    losses = net(torch.rand(2, 3, size, size), targets)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    reached = dict(net.backbone.body.named_parameters())
    for name in ("conv1.weight", *(f"layer{s}.attention.layers.1.lam" for s in range(1, 5))):
        assert reached[name].grad.abs().sum() > 0
    with torch.no_grad():
        assert {"boxes", "labels", "scores"} <= {*net.eval()(torch.rand(1, 3, size, size))[0]}
