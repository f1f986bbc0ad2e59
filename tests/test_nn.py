"""Modules compute what the ops and the formulas say, and behave as torch's own modules do."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dla_kernels as dla
from dla_kernels import reference
from dla_kernels.nn import (
    CellModule,
    ContextScan,
    DIACell,
    DLABase,
    DLALight,
    DSUCell,
    LayerUpdate,
    LayerwiseIntegration,
    LSTMCell,
    MRLABase,
    MRLALight,
    RNNCell,
    make_cell,
)

from .tolerances import assert_equal_to_rounding

C, B, T = 12, 3, 4
CELLS = {
    "rnn": lambda **o: RNNCell(C, **o),
    "lstm": lambda **o: LSTMCell(C, **o),
    "lstm-split": lambda **o: LSTMCell(C, projection="split", **o),
    "dia": lambda **o: DIACell(C, **o),
    "dsu-paper": lambda **o: DSUCell(C, 4, **o),
    "dsu-released": lambda **o: DSUCell(C, 4, form="released", **o),
    "dsu-tanh": lambda **o: DSUCell(C, 4, act="tanh", **o),
}
ATTENTIONS = {
    "dla_light": lambda **o: DLALight(C, T, head_channels=4, **o),
    "dla_light-paper": lambda **o: DLALight(C, T, dla.PAPER_DSU, head_channels=4, conv=False, **o),
    "dla_light-lstm": lambda **o: DLALight(C, T, "lstm", head_channels=4, **o),
    "mrla_light": lambda **o: MRLALight(C, T, head_channels=4, **o),
    "dla_base": lambda **o: DLABase(C, T, head_channels=4, **o),
    "dla_base-rnn": lambda **o: DLABase(C, T, "rnn", head_channels=4, **o),
    "mrla_base": lambda **o: MRLABase(C, T, head_channels=4, **o),
}


def maps(*sizes, dtype=torch.float64):
    return [torch.randn(B, C, *size, dtype=dtype) for size in sizes]


class Stage(nn.Module):
    """A stage runs an attention over T layers, whose blocks are a multiplication."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        memory = None
        for t in range(len(self.attention.layers)):
            identity, x = x, torch.relu(x * (0.5 + t))
            x, memory = self.attention(t, x, identity, memory)
        return x


# ---- cells ----


@pytest.mark.parametrize("start", ["zeros", "random", "learned"])
@pytest.mark.parametrize("name", CELLS)
def test_a_cell_steps_as_the_reference_does(name, start):
    cell = CELLS[name](start=start).double()
    if start == "learned":
        nn.init.normal_(cell.memory0)
    y = torch.randn(B, C, dtype=torch.float64)
    state = None
    if start != "zeros":
        memory = cell.memory0.expand(B, C)
        state = {"rnn": (memory,), "dsu": (memory,)}.get(cell.cell.kind, (torch.zeros_like(memory), memory))
    expected = reference.scan(y[None], cell.weights, cell=cell.cell, state=state)
    assert_equal_to_rounding(cell(y), [s[0] for s in expected])
    again = reference.scan(y[None], cell.weights, cell=cell.cell, state=tuple(s[0] for s in expected))
    assert_equal_to_rounding(cell(y, cell(y)), [s[0] for s in again])


def test_the_lstm_equals_that_of_torch():
    ours, theirs = LSTMCell(C).double(), nn.LSTMCell(C, C).double()
    names = {"wy": "weight_ih", "wh": "weight_hh", "by": "bias_ih", "bh": "bias_hh"}
    ours.load_state_dict({name: getattr(theirs, their).detach() for name, their in names.items()})
    y, h, c = (torch.randn(B, C, dtype=torch.float64) for _ in range(3))
    assert_equal_to_rounding(ours(y, (h, c)), theirs(y, (h, c)))


def test_the_output_of_a_cell_is_the_factor_of_a_refresh():
    h, c = torch.randn(2, B, C)
    assert torch.equal(LSTMCell(C).output((h, c)), h)
    assert torch.equal(DSUCell(C).output((c,)), c)
    assert torch.equal(DSUCell(C, form="released").output((c,)), c.sigmoid())


@pytest.mark.parametrize("start", ["random", "learned"])
def test_the_start_of_a_cell_is_in_its_state_dict_and_learns_only_if_asked(start):
    cell = DSUCell(C, start=start)
    assert cell.state_dict()["memory0"].shape == (C,)
    assert isinstance(cell.memory0, nn.Parameter) == (start == "learned")
    if start == "learned":
        (c,) = cell(torch.randn(B, C))
        c.sum().backward()
        assert cell.memory0.grad.abs().sum() > 0


def test_the_repr_of_a_cell_names_its_rule_and_projection():
    assert repr(make_cell("dsu", 64)) == "CellModule(64, dsu-sigmoid-sigmoid, split, R=16)"
    assert repr(LSTMCell(64, start="learned")) == "LSTMCell(64, lstm, dense, start=learned)"
    assert CellModule(64, dla.PAPER_DSU, 20).R == 3


def test_parameters_begin_as_those_of_linear_layers():
    cell = DSUCell(400, 4)
    assert cell.w1.abs().max() <= 800**-0.5
    assert cell.b2.abs().max() <= 100**-0.5
    assert cell.b2.std().item() == pytest.approx(100**-0.5 / 3**0.5, rel=0.1)
    before = cell.w2.clone()
    cell.reset_parameters()
    assert not torch.equal(before, cell.w2)


# ---- a whole stage ----


@pytest.mark.parametrize("start", ["zeros", "learned"])
def test_modules_for_a_whole_stage_equal_the_reference(start):
    cell = DSUCell(C, 4, start=start).double()
    xs = maps((5, 3), (4, 4), (1, 1))
    state = cell.initial_state(xs[0])
    expected, _ = reference.layer_update(xs, cell.weights, state=state)
    assert_equal_to_rounding(LayerUpdate(cell)(xs), expected)
    y = reference.gap(xs)
    assert_equal_to_rounding(ContextScan(cell)(y), reference.scan(y, cell.weights, state=state))
    own = [x.clone() for x in xs]
    with torch.no_grad():
        returned = LayerUpdate(cell, inplace=True)(own)
    assert all(a is b for a, b in zip(returned, own))
    assert_equal_to_rounding(own, expected)


# ---- attention, layer by layer ----


def formula(attention, x):
    """Return what ``Stage`` does, by the reference and torch's own norm."""
    memory = None
    cell = attention.cell
    own = {"heads": attention.heads}
    if cell is not None:
        own |= {"weights": cell.weights, "cell": cell.cell}
    light = isinstance(attention, DLALight)
    for t, layer in enumerate(attention.layers):
        identity, x = x, torch.relu(x * (0.5 + t))
        if light:
            o, memory, _ = reference.light_step(
                x, identity, layer.filters, layer.lam, state=memory, e=attention.e, **own
            )
        else:
            o, memory, _ = reference.base_step(x, memory, layer.filters, **own)
        normed = layer.norm(o)
        x = x + (normed if light else normed.relu())
    return x


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_follows_its_formula(name, training):
    ours = Stage(ATTENTIONS[name]()).double().train(training)
    for norm in (m for m in ours.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            nn.init.normal_(tensor)
    theirs = copy.deepcopy(ours)
    (x,) = maps((5, 3))
    leaf = x.clone().requires_grad_()
    out, expected = ours(x.requires_grad_()), formula(theirs.attention, leaf)
    assert_equal_to_rounding([out], [expected], factor=100)
    do = torch.randn_like(out)
    got = torch.autograd.grad(out, [x, *ours.parameters()], do)
    want = torch.autograd.grad(expected, [leaf, *theirs.parameters()], do)
    assert_equal_to_rounding(got, want, factor=100, together=True)
    assert_equal_to_rounding(list(ours.buffers()), list(theirs.buffers()), factor=100)


@pytest.mark.parametrize("name", ["dla_light", "dla_base"])
def test_any_other_norm_may_take_the_place_of_batch_norm(name):
    class Subclass(nn.BatchNorm2d):
        """A subclass is no longer fused: it might do anything."""

    fused = Stage(ATTENTIONS[name]()).double()
    plain = copy.deepcopy(fused)
    for layer in plain.attention.layers:
        layer.norm.__class__ = Subclass
    (x,) = maps((4, 4))
    assert_equal_to_rounding([fused(x)], [plain(x)], factor=100)
    assert_equal_to_rounding(list(fused.buffers()), list(plain.buffers()), factor=100)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(fused)
    assert isinstance(synced.attention.layers[0].norm, nn.SyncBatchNorm)
    synced.eval(), plain.eval()
    for layer in synced.attention.layers:
        layer.norm = layer.norm.double()
    assert_equal_to_rounding([synced(x)], [plain(x)], factor=100)


def test_norms_without_running_statistics_follow_their_formula():
    attention = ATTENTIONS["dla_light"]()
    for layer in attention.layers:
        layer.norm = nn.BatchNorm2d(C, track_running_stats=False)
    ours = Stage(attention).double()
    (x,) = maps((4, 4))
    assert_equal_to_rounding([ours.train()(x)], [formula(attention, x)], factor=100)
    assert_equal_to_rounding([ours.eval()(x)], [formula(attention, x)], factor=100)


@pytest.mark.parametrize("name", ["dla_light", "dla_base"])
def test_drop_path_drops_whole_samples_and_keeps_the_mean(name):
    attention = ATTENTIONS[name](drop_path=0.25)
    x = torch.randn(1, C, 4, 4).expand(400, -1, -1, -1).contiguous()
    out, _ = attention(0, x, x)
    branch = (out - x).flatten(1)
    kept = branch.abs().sum(1) > 0
    assert 0.65 < kept.float().mean() < 0.85
    assert torch.equal(out[~kept], x[~kept])
    attention.drop_path = 0.0
    whole, _ = attention(0, x, x)
    torch.testing.assert_close(branch[kept], ((whole - x).flatten(1) / 0.75)[kept], rtol=1e-4, atol=1e-5)
    attention.drop_path = 0.25
    attention.eval()
    assert torch.equal(attention(0, x, x)[0], attention(0, x, x)[0])


@pytest.mark.parametrize("cell", [DIACell(C), LSTMCell(C), DSUCell(C, 4), DSUCell(C, 4, form="released")], ids=repr)
def test_integration_follows_its_formula(cell):
    integrate = LayerwiseIntegration(cell.double())
    x, *branches = maps(*[(5, 3)] * 4)
    ours, theirs, state, states = x, x, None, None
    for a in branches:
        ours, state = integrate(ours, a, state)
        states = tuple(s[0] for s in reference.scan(a.mean((2, 3))[None], cell.weights, cell=cell.cell, state=states))
        h = states[0]
        if cell.cell.kind == "dsu":
            h = h.sigmoid() if cell.cell.output == "sigmoid" else h
        theirs = theirs + a * h[:, :, None, None]
    assert_equal_to_rounding([ours], [theirs], factor=10)


@pytest.mark.parametrize("start", ["random", "learned"])
@pytest.mark.parametrize("kind", [DLALight, DLABase])
def test_attention_begins_from_the_start_of_its_cell(kind, start):
    cell = DSUCell(C, 4, start=start)
    nn.init.normal_(cell.memory0)
    attention = kind(C, T, cell, head_channels=4).double()
    (x,) = maps((4, 4))
    out, _ = attention(0, x, x)
    if kind is DLALight:  # the state refreshes what comes before the first layer
        state = (cell.memory0.expand(B, C),)
        layer = attention.layers[0]
        o, _, _ = reference.light_step(
            x, x, layer.filters, layer.lam, cell.weights, heads=attention.heads, state=state, e=attention.e
        )
        assert_equal_to_rounding([out], [x + copy.deepcopy(layer.norm)(o)], factor=100)
    stage = Stage(attention)
    whole = stage(x)
    with torch.no_grad():
        cell.memory0.add_(1.0)
    assert (stage(x) - whole).abs().max() > 1e-6
    if start == "learned":
        stage(x).sum().backward()
        assert cell.memory0.grad.abs().sum() > 0


def test_norms_with_hooks_or_settings_of_their_own_are_called():
    """Hooks, a momentum of 0 or 1, and statistics no longer tracked do what they do in torch's own norm."""
    ours = Stage(ATTENTIONS["dla_light"]()).double()
    norms = [layer.norm for layer in ours.attention.layers]
    norms[0].momentum, norms[1].momentum, norms[2].track_running_stats = 0, 1, False
    seen = []
    norms[3].register_forward_hook(lambda *call: seen.append(call))
    theirs = copy.deepcopy(ours)
    (x,) = maps((4, 4))
    assert_equal_to_rounding([ours(x)], [formula(theirs.attention, x)], factor=100)
    assert_equal_to_rounding(list(ours.buffers()), list(theirs.buffers()), factor=100)
    assert len(seen) == 2


# ---- as other modules ----


@pytest.mark.parametrize("name", ATTENTIONS)
def test_copies_pickles_and_state_dicts_give_the_same_bits(name):
    stage = Stage(ATTENTIONS[name]()).eval()
    (x,) = maps((4, 4), dtype=torch.float32)
    expected = stage(x)
    fresh = Stage(ATTENTIONS[name]()).eval()
    fresh.load_state_dict(stage.state_dict())
    buffer = io.BytesIO()
    torch.save(stage.state_dict(), buffer)
    buffer.seek(0)
    saved = Stage(ATTENTIONS[name]()).eval()
    saved.load_state_dict(torch.load(buffer, weights_only=True))
    for other in (fresh, saved, copy.deepcopy(stage), pickle.loads(pickle.dumps(stage))):
        assert torch.equal(other(x), expected)


@pytest.mark.parametrize("name", ["dla_light", "dla_base"])
def test_attention_compiles_in_one_graph(name):
    torch._dynamo.reset()
    stage = Stage(ATTENTIONS[name]())
    twin = copy.deepcopy(stage)
    (x,) = maps((4, 4), dtype=torch.float32)
    compiled = torch.compile(stage, fullgraph=True, backend="aot_eager")
    out, expected = compiled(x), twin(x)
    torch.testing.assert_close(out, expected)
    out.sum().backward(), expected.sum().backward()
    for a, b in zip(stage.parameters(), twin.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(list(stage.buffers()), list(twin.buffers()))


@pytest.mark.parametrize("name", ["dla_light", "dla_base"])
def test_attention_exports(name):
    stage = Stage(ATTENTIONS[name]()).eval()
    (x,) = maps((4, 4), dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(stage, (x,)).module()(x), stage(x))


@pytest.mark.parametrize("name", ["dla_light", "dla_base"])
def test_attention_takes_channels_last_and_autocast(name):
    stage = Stage(ATTENTIONS[name]()).eval()
    (x,) = maps((6, 5), dtype=torch.float32)
    expected = stage(x)
    last = stage(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, expected)
    with torch.autocast("cpu", torch.bfloat16):
        low = stage(x.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=0.1, atol=0.1 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["dla_light", "dla_base"])
def test_checkpointing_changes_no_gradient(name):
    stage = Stage(ATTENTIONS[name]()).double().eval()  # in training the norms would move twice, as torch's do
    (x,) = maps((4, 4))
    plain = torch.autograd.grad(stage(x).sum(), list(stage.parameters()), allow_unused=True)
    out = torch.utils.checkpoint.checkpoint(stage, x, use_reentrant=False)
    again = torch.autograd.grad(out.sum(), list(stage.parameters()), allow_unused=True)
    for a, b in zip(plain, again):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


# ---- mistakes ----


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: DLALight(64, 0), "layers: expected at least 1, got 0"),
        (lambda: DLALight(100, 2), "head_channels: expected a divisor of the 100 channels, got 32"),
        (lambda: DLALight(64, 2, head_channels=0), "head_channels: expected a divisor of the 64 channels, got 0"),
        (lambda: DSUCell(64)(torch.randn(64)), r"y: expected \[B, 64\], got \[64\]; ContextScan takes"),
        (lambda: DLALight(64, 2, drop_path=1.0), r"drop_path: expected a rate in \[0, 1\), got 1.0"),
        (lambda: DLALight(64, 2, DSUCell(32)), "cell: expected one of 64 channels, got 32"),
        (lambda: DSUCell(64, form="new"), "form: expected one of paper, released, got 'new'"),
        (lambda: DSUCell(64, start="warm"), "start: expected one of zeros, random, learned, got 'warm'"),
        (lambda: DSUCell(0), "channels, reduction: expected at least 1, got 0, 20"),
        (lambda: make_cell("gru", 64), "Cell.kind: expected one of rnn, lstm, dia, dsu, se, eca, got 'gru'"),
    ],
)
def test_mistakes_are_explained(mistake, message):
    with pytest.raises(ValueError, match=message):
        mistake()


def test_an_unknown_backend_is_refused():
    for make in (lambda: DLALight(64, 2, backend="gpu"), lambda: LSTMCell(64, backend="gpu")):
        with pytest.raises(ValueError, match=r"backend: expected .*, got 'gpu'"):
            make()


@pytest.mark.parametrize("module", [LayerwiseIntegration, ContextScan, LayerUpdate])
def test_a_cell_that_is_no_module_is_refused(module):
    with pytest.raises(TypeError, match=r"cell: expected a CellModule, such as DSUCell\(channels\), got str"):
        module("dia")


def test_another_number_of_channels_is_refused():
    x, y = torch.randn(2, 32, 4, 4), torch.randn(2, 32)
    for call, said in (
        (lambda: DLALight(64, 2)(0, x, x), r"x: expected \[B, 64, H, W\], got \[2, 32, 4, 4\]"),
        (lambda: DSUCell(64)(y), r"y: expected \[B, 64\], got \[2, 32\]"),
        (lambda: ContextScan(DSUCell(64))(y[None]), "y: expected 64 channels, got"),
        (lambda: LayerUpdate(DSUCell(64))([x]), r"xs\[0\]: expected 64 channels, got"),
        (lambda: LayerwiseIntegration(DSUCell(64))(x, x), "a: expected 64 channels, got"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


@pytest.mark.parametrize("kind", [DLALight, DLABase, MRLABase])
def test_a_layer_needs_what_the_one_before_returned(kind):
    x = torch.randn(2, 64, 4, 4)
    with pytest.raises(ValueError, match="layer 1: expected what layer 0 returned beside its map, got None"):
        kind(64, 2)(1, x, x)
    for t in (2, -1):
        with pytest.raises(IndexError, match=f"t: expected one of 2 layers, counted from 0, got {t}"):
            kind(64, 2)(t, x, x)


def test_attention_in_float32_is_as_exact_as_its_formula():
    """A stage in fp32 is as near to fp64 as the formula is."""
    stage = Stage(ATTENTIONS["dla_light"]())
    (x,) = maps((6, 6), dtype=torch.float32)
    truth = formula(copy.deepcopy(stage).double().attention, x.double())
    plain = (formula(copy.deepcopy(stage).attention, x) - truth).abs().max()
    assert (stage(x) - truth).abs().max() <= 2 * plain + 1e-6
    assert F.mse_loss(stage.eval()(x).double(), formula(copy.deepcopy(stage).double().attention, x.double())) < 1e-9


def test_a_cell_with_a_forward_of_its_own_is_called_or_refused():
    class Halved(DSUCell):
        def forward(self, y, state=None):
            return tuple(s / 2 for s in super().forward(y, state))

    torch.manual_seed(0)
    cell, plain = Halved(8), DSUCell(8)
    plain.load_state_dict(cell.state_dict())
    for made in (ContextScan, LayerUpdate, lambda cell: DLALight(8, 2, cell), lambda cell: DLABase(8, 2, cell)):
        with pytest.raises(TypeError, match="got a Halved with a forward of its own, which would not be called"):
            made(cell)
        made(plain)
    x, a = torch.randn(2, 8, 3, 3), torch.randn(2, 8, 3, 3)
    ours, theirs = (LayerwiseIntegration(one)(x, a)[1] for one in (cell, plain))
    assert all(torch.equal(2 * half, whole) for half, whole in zip(ours, theirs))


def test_a_layer_of_base_that_is_skipped_or_run_again_is_an_error():
    attention, x = DLABase(8, 3), torch.randn(2, 8, 3, 3)
    x, stage = attention(0, x)
    for t in (0, 2):
        with pytest.raises(ValueError, match=f"t: expected 1, as the stage has gone through so many layers, got {t}"):
            attention(t, x, None, stage)
    attention(1, x, None, stage)
