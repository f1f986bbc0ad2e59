"""What ``record`` collects is what the equations say, and nothing that a network computes changes."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import dla_kernels as dla
from dla_kernels import analysis
from dla_kernels.models import ResNet, VisionTransformer
from dla_kernels.models.blocks import BasicBlock
from dla_kernels.nn import DLABase, DLALight, MRLABase, MRLALight

from .tolerances import assert_same_bits

DOUBLE = torch.float64
KINDS = ("dla_light", "dla_base", "mrla_light", "mrla_base", "dia")


def network(attention, dtype=DOUBLE, **options):
    """Return a network of two stages, of 3 and 4 layers, 16 and 32 channels, 2 heads in the second."""
    heads = {} if attention == "dia" else {"head_channels": 16}
    return ResNet((3, 4), BasicBlock, attention=attention, in_channels=1, **heads, **options).to(dtype)


def images(B=3, dtype=DOUBLE):
    return torch.randn(B, 1, 8, 8, dtype=dtype)


# ---- nothing changes ----


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("attention", KINDS)
def test_a_recorded_network_computes_the_same_bits(attention, training):
    """Results, gradients, running statistics and random numbers, of which drop path draws some."""
    drop = {} if attention == "dia" else {"drop_path": 0.5}
    net = network(attention, torch.float32, **drop).train(training)
    other, x = copy.deepcopy(net), images(4, torch.float32)
    results = []
    for each, recorded in ((net, True), (other, False)):
        torch.manual_seed(7)
        if recorded:
            with analysis.record(each) as found:
                out = each(x)
            assert len(found.stages) == 2
        else:
            out = each(x)
        grads = torch.autograd.grad(out.square().sum(), list(each.parameters()), materialize_grads=True)
        results.append([out.detach(), *grads, *(b for b in each.buffers() if b.is_floating_point()), torch.rand(1)])
    for ours, theirs in zip(*results):
        assert_same_bits(ours, theirs)


def test_hooks_are_gone_afterwards_also_after_an_error():
    net = network("dla_light")
    with analysis.record(net) as found:
        net(images())
    with pytest.raises(KeyError), analysis.record(net):
        raise KeyError
    net(images())
    assert found.stages["layer1"].scores.shape[2] == 3  # the second call is not in it
    assert not any(module._forward_hooks for module in net.modules())


# ---- the equations, in plain PyTorch ----


class Seen:
    """What the attention of a stage is called with, layer by layer."""

    def __init__(self, attention):
        self.calls = []
        attention.register_forward_pre_hook(lambda _module, args: self.calls.append(args))


def filtered(y, taps):
    return F.conv1d(y[:, None], taps[None, None], padding=len(taps) // 2)[:, 0]


def per_head(q, k, G):
    B, C = q.shape
    return (q * k).view(B, G, C // G).sum(2) / (C // G) ** 0.5


def released_dsu(w, y, h, c):
    """Return c and sig(c), which is what it shows and what is h for the next."""
    from_y = F.linear(F.relu(F.linear(y, w.w1y, w.b1y)), w.w2y, w.b2y)
    from_h = F.linear(F.relu(F.linear(h, w.w1h, w.b1h)), w.w2h, w.b2h)
    i, f, g = (from_y + from_h).chunk(3, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return c, torch.sigmoid(c)


def light_by_hand(attention, calls):
    """Return scores [T, T, B, C], d of each layer, the product of d [T, T, B, C] and h [T, B, C]."""
    T, (B, C), G = len(calls), calls[0][1].shape[:2], attention.heads
    scores, refresh = torch.zeros(2, T, T, B, C, dtype=DOUBLE)
    h, c, all_d, all_h = torch.zeros(B, C, dtype=DOUBLE), torch.zeros(B, C, dtype=DOUBLE), [], []
    for t, (_, x, o_prev, *_) in enumerate(calls):
        layer, y, d = attention.layers[t], x.mean((2, 3)), torch.ones(B, C, dtype=DOUBLE)
        if attention.cell is not None:
            c, h = released_dsu(attention.cell.weights, y, h, c)
            d = released_dsu(attention.cell.weights, o_prev.mean((2, 3)), h, c)[1]
        gate = torch.sigmoid(per_head(filtered(y, layer.q), filtered(y, layer.k), G))
        for m in range(t):
            scores[t, m] = layer.lam * d * scores[t - 1, m]
            refresh[t, m] = d * refresh[t - 1, m]
        scores[t, t], refresh[t, t] = gate.repeat_interleave(C // G, 1), 1
        all_d.append(d)
        all_h.append(h)
    return scores, all_d, refresh, torch.stack(all_h)


def base_by_hand(attention, calls):
    """Return the same; scores [T, T, B, G] and d [2, t, B, C]. Keys and values are copied and refreshed one by one."""
    T, (B, C), G = len(calls), calls[0][1].shape[:2], attention.heads
    scores, refresh = torch.zeros(T, T, B, G, dtype=DOUBLE), torch.zeros(T, T, B, C, dtype=DOUBLE)
    h, c, all_d, all_h = torch.zeros(B, C, dtype=DOUBLE), torch.zeros(B, C, dtype=DOUBLE), [], []
    keys, values = [], []
    for t, (_, x, *_) in enumerate(calls):
        layer, y = attention.layers[t], x.mean((2, 3))
        d = torch.ones(2, t, B, C, dtype=DOUBLE)
        if attention.cell is not None:
            c, h = released_dsu(attention.cell.weights, y, h, c)
            for m in range(t):
                d[0, m] = released_dsu(attention.cell.weights, keys[m], h, c)[1]
                d[1, m] = released_dsu(attention.cell.weights, values[m].mean((2, 3)), h, c)[1]
        for m in range(t):
            keys[m], values[m] = keys[m] * d[0, m], values[m] * d[1, m][..., None, None]
            refresh[t, m] = d[1, m] * refresh[t - 1, m]
        refresh[t, t] = 1
        keys.append(filtered(y, layer.k))
        values.append(F.conv2d(x, layer.v, padding=1, groups=C))
        exponents = torch.stack([per_head(filtered(y, layer.q), k, G) for k in keys]).exp()
        scores[t, : t + 1] = exponents / exponents.sum(0)
        all_d.append(d)
        all_h.append(h)
    return scores, all_d, refresh, torch.stack(all_h)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("attention", ["dla_light", "dla_base", "mrla_light", "mrla_base"])
@torch.no_grad()
def test_what_is_recorded_is_what_the_equations_say(attention):
    net = network(attention).eval()
    seen = {name: Seen(net.get_submodule(name).attention) for name in ("layer1", "layer2")}
    with analysis.record(net) as found:
        net(images())
    assert list(found.stages) == ["layer1", "layer2"]
    for name, stage in found.stages.items():
        module = net.get_submodule(name).attention
        by_hand = light_by_hand if isinstance(module, DLALight) else base_by_hand
        scores, d, refresh, h = by_hand(module, seen[name].calls)
        assert stage.kind == attention.partition("_")[2]
        close(stage.scores, scores)
        close(stage.mean_scores, scores.abs().mean((2, 3)))
        if attention.endswith("base"):
            close(stage.scores.sum(1), torch.ones_like(stage.scores[0]))
        if attention.startswith("mrla"):
            assert (stage.d, stage.refresh, stage.h) == ((None,) * len(d), None, None)
            continue
        close(stage.refresh, refresh)
        close(stage.h, h)
        for t, (ours, theirs) in enumerate(zip(stage.d, d)):
            if attention == "dla_base" and t == 0:
                assert ours is None  # there is nothing before it
            else:
                close(ours, theirs)


@pytest.mark.parametrize("make", [DLALight, MRLALight, DLABase, MRLABase])
@torch.no_grad()
def test_an_output_is_the_sum_of_values_by_their_scores(make):
    """The definition, where each layer is handed the one before itself, not a block's shortcut, and there is no E."""
    B, C, T = 2, 12, 5
    module = make(C, T, head_channels=4, **({"conv": False} if make is DLALight else {})).double().eval()
    for layer in module.layers:
        layer.norm = nn.Identity()
    module.relu = False
    xs, o, memory = torch.randn(T, B, C, 5, 3, dtype=DOUBLE), None, None
    outputs = []
    with analysis.record(module) as found:
        for t in range(T):
            out, memory = module(t, xs[t], o, memory)
            o = out - xs[t]
            outputs.append(o)
    (stage,) = found.stages.values()
    values = [F.conv2d(x, layer.v, padding=1, groups=C) for x, layer in zip(xs, module.layers)]
    weights = stage.scores.repeat_interleave(C // stage.scores.shape[-1], -1)
    if isinstance(module, DLABase) and stage.refresh is not None:  # whose scores are those of refreshed values
        weights = weights * stage.refresh
    for t, o in enumerate(outputs):
        close(o, sum(weights[t, m][..., None, None] * values[m] for m in range(t + 1)))
        assert not weights[t, t + 1 :].any()


@torch.no_grad()
def test_the_gates_of_dia_are_what_its_branches_are_scaled_by():
    net = network("dia", norm="none").eval()
    before, after = [], []  # copies, since without gradients a block may be written over
    net.layer1.attention.register_forward_pre_hook(lambda _module, args: before.append([x.clone() for x in args[:2]]))
    net.layer1.attention.register_forward_hook(lambda _module, _args, out: after.append(out[0].clone()))
    with analysis.record(net) as found:
        net(images())
    stage = found.stages["layer1"]
    assert (stage.kind, stage.scores, stage.refresh, stage.h.shape) == ("dia", None, None, (3, 3, 16))
    for h, (shortcut, a), out in zip(stage.h, before, after):
        close(out, F.relu(shortcut + a * h[..., None, None]))
    with pytest.raises(ValueError, match="layer1: expected layer attention, got dia"):
        _ = stage.mean_scores


@pytest.mark.parametrize("attention", ["dla_light", "dla_base", "mrla_light", "mrla_base"])
@torch.no_grad()
def test_a_vision_transformer_is_recorded(attention):
    """Its attention is one between maps, of pixels that are normed."""
    how = {"in_channels": 1, "img_size": (8, 12), "patch_size": 2, "head_channels": 8, "num_classes": 3}
    net = VisionTransformer(16, 5, 2, attention, **how).to(DOUBLE).eval()
    modules = {name: m for name, m in net.named_modules() if isinstance(m, (DLALight, DLABase))}
    seen = {name: Seen(module) for name, module in modules.items()}
    x = torch.randn(2, 1, 8, 12, dtype=DOUBLE)
    plain = net(x)
    for each in seen.values():
        each.calls.clear()
    with analysis.record(net) as found:
        assert_same_bits(net(x), plain)
    assert len(found.stages) == len(modules)
    for stage, (name, module) in zip(found.stages.values(), modules.items()):
        calls = []
        for (t, x, o_prev, *_), layer in zip(seen[name].calls, module.layers):
            tokens = [layer.norm(x)] + ([layer.norm_before(o_prev)] if isinstance(module, DLALight) else [])
            calls.append((t, *(part[:, 1:].transpose(1, 2).reshape(2, 16, 4, 6) for part in tokens)))
        by_hand = light_by_hand if isinstance(module, DLALight) else base_by_hand
        scores, _, _, h = by_hand(module, calls)
        close(stage.scores, scores)
        if module.cell is not None:
            close(stage.h, h)


# ---- calls ----


@torch.no_grad()
def test_calls_are_put_together_by_sample():
    net, x = network("dla_base").eval(), images(5)
    with analysis.record(net) as together:
        net(x)
    with analysis.record(net) as apart:
        net(x[:2])
        net(x[2:])
    for name, stage in together.stages.items():
        other = apart.stages[name]
        close(stage.scores, other.scores)
        close(stage.refresh, other.refresh)
        close(stage.h, other.h)
        close(stage.d[2], other.d[2])


@torch.no_grad()
def test_threads_that_share_a_network_do_not_mix():
    net, x = network("dla_light").eval(), images(6)
    meeting = threading.Barrier(2, timeout=60)

    def meet(*_):
        meeting.wait()

    handles = [block.register_forward_hook(meet) for block in net.layer1.blocks]  # both are in the stage at once

    def run(part):
        with torch.no_grad():  # which is a thread's own
            net(part)

    with analysis.record(net) as found:
        threads = [threading.Thread(target=run, args=(part,)) for part in x.split(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for handle in handles:
        handle.remove()
    with analysis.record(net) as alone:
        for part in x.split(3):
            net(part)
    for name, stage in alone.stages.items():
        either = [stage.scores, torch.cat(stage.scores.split(3, 2)[::-1], 2)]  # whoever was first
        assert any(torch.equal(found.stages[name].scores, scores) for scores in either)


@pytest.mark.parametrize("attention", ["dla_light", "dia"])
def test_layers_that_checkpointing_runs_again_count_once(attention):
    """Layer by layer, as our networks do it, or all of the network at once."""
    net, x = network(attention).train(), images(2)

    def by_layers(x):
        net.set_grad_checkpointing()
        return net(x)

    results = []
    for run in (net, lambda x: checkpoint(net, x, use_reentrant=False), by_layers):
        with analysis.record(net) as found:
            run(x).sum().backward()
        results.append(found.stages["layer2"].h)
    assert results[0].shape == (4, 2, 32)
    for h in results[1:]:
        assert_same_bits(h, results[0])


@torch.no_grad()
@pytest.mark.parametrize("attention", ["dla_light", "dia"])
def test_a_call_that_ended_early_is_left_out(attention):
    net = network(attention).eval()
    handle = net.layer2[2].register_forward_hook(lambda *_: 1 / 0)
    with analysis.record(net) as found:
        with pytest.raises(ZeroDivisionError):
            net(images(2))
        with pytest.raises(RuntimeError, match=r"record: expected a call of the network .* got none that ended"):
            _ = found.stages
        handle.remove()
        net(images(3))
    assert [tuple(stage.h.shape[:2]) for stage in found.stages.values()] == [(3, 3), (4, 3)]
    with analysis.record(net) as found:  # a stage may be called by itself
        net.layer1(torch.randn(2, 16, 4, 4, dtype=DOUBLE))
    assert [(name, stage.h.shape[1]) for name, stage in found.stages.items()] == [("layer1", 2)]


@torch.no_grad()
def test_layers_that_are_called_out_of_turn_are_no_call_of_the_stage():
    module, x = DLALight(8, 3).eval(), torch.randn(2, 8, 4, 4)
    with analysis.record(module) as found:
        for turns in ((0, 2, 1), (0, 1), (1, 2), (0, 1, 2)):
            state = module.cell(x.mean((2, 3)))
            for t in turns:
                _, state = module(t, x, x, state)
    assert found.stages[""].scores.shape == (3, 3, 2, 8)  # the last alone


@torch.no_grad()
def test_a_converted_network_is_recorded():
    def block(channels):
        return nn.Sequential(nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())

    net = nn.Sequential(nn.Sequential(block(3), block(16), block(16)), nn.Flatten(2)).eval()
    dla.convert(net, attention="dla_base", stages=["0"], head_channels=8)
    with analysis.record(net) as found:
        net(torch.randn(2, 3, 8, 8))
    assert found.stages["0"].scores.shape == (3, 3, 2, 2)
    torch.testing.assert_close(found.stages["0"].scores.sum(1), torch.ones(3, 2, 2))


@torch.no_grad()
def test_under_autocast_scores_are_those_of_the_step_in_float32():
    net, x = network("dla_light", torch.float32).eval(), images(2, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        plain = net(x)
        with analysis.record(net) as found:
            assert_same_bits(net(x), plain)
    stage = found.stages["layer2"]
    assert {stage.scores.dtype, stage.h.dtype, stage.d[0].dtype} == {torch.float32}


# ---- errors ----


@pytest.mark.parametrize(
    "compiled",
    [
        lambda net: torch.compile(net, backend="eager"),
        lambda net: net.compile(backend="eager") or net,
        lambda net: net.layer1.compile(backend="eager") or net,
    ],
    ids=["a wrapper", "in place", "a stage"],
)
def test_a_compiled_network_is_refused(compiled):
    net = compiled(network("dla_light"))
    with (
        pytest.raises(TypeError, match="net: expected a network that is not compiled, got a compiled"),
        analysis.record(net),
    ):
        pass


@torch.no_grad()
def test_code_that_was_compiled_before_records_nothing_and_says_so():
    net = network("mrla_base").eval()
    run = torch.compile(lambda x: net(x), backend="eager")
    run(images())
    with analysis.record(net) as found:
        run(images())
    with pytest.raises(RuntimeError, match="record: expected a call of the network inside the with block, got none"):
        _ = found.stages


def test_a_network_without_anything_to_record_is_refused():
    net = dla.create_model("se_resnet20")
    with (
        pytest.raises(ValueError, match=r"net: expected layer attention or DIA in it, .* got a ResNet"),
        analysis.record(net),
    ):
        pass


def test_unrolled_is_one_row_more_for_each_layer():
    own, kept = torch.tensor([[[2.0]], [[3.0]], [[5.0]]]), torch.tensor([[[0.0]], [[0.5]], [[0.1]]])
    found = analysis.unrolled(list(own), list(kept))
    torch.testing.assert_close(found[..., 0, 0], torch.tensor([[2.0, 0, 0], [1, 3, 0], [0.1, 0.3, 5]]))


def test_scores_compile_as_one_graph():
    C = 8
    attention = dla.Attention(torch.randn(3), torch.randn(3), torch.randn(C, 1, 3, 3))
    weights = dla.Joint(torch.randn(2, 2 * C), torch.randn(3 * C, 2), torch.zeros(3 * C))
    x, before, lam = torch.randn(2, C, 4, 4), torch.randn(2, C, 4, 4), torch.randn(C)

    def both(x, before):
        o, _, _, light = dla.light_step(x, before, attention, lam, weights, heads=2, scores=True)
        _, stage, _ = dla.base_step(before, None, attention, weights, heads=2)
        p, _, _, base = dla.base_step(x, stage, attention, weights, heads=2, scores=True)
        return o, p, *light, *base

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    results = []
    for run in (both, compiled):
        given = [t.clone().requires_grad_() for t in (x, before)]
        found = run(*given)
        assert [t.requires_grad for t in found] == [True, True, False, False, False, False]
        results.append([*found, *torch.autograd.grad(found[0].sum() + found[1].square().sum(), given)])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs)
