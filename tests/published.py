"""This module computes the published networks by their formulas alone, from a state dict under their own names: in
evaluation, and in DLA each sample refreshed by its own state. It is there to be compared with; see docs/networks.md."""

import re

import torch
import torch.nn.functional as F


def sub(state, prefix):
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def count(state, pattern):
    return len({found[1] for key in state if (found := re.match(pattern, key))})


def norm(x, s, name):
    return F.batch_norm(
        x, s[f"{name}.running_mean"], s[f"{name}.running_var"], s[f"{name}.weight"], s[f"{name}.bias"], eps=1e-5
    )


def block(x, s):
    """Return the branch and the shortcut of a residual block."""
    # A stage's first block halves the map, except in the first stage, whose input is as narrow as its bottleneck.
    narrow = x.shape[1] == s["conv1.weight"].shape[0]
    stride = 2 if "downsample.0.weight" in s and not narrow else 1
    a = norm(F.conv2d(x, s["conv1.weight"]), s, "bn1").relu()
    a = norm(F.conv2d(a, s["conv2.weight"], stride=stride, padding=1), s, "bn2").relu()
    a = norm(F.conv2d(a, s["conv3.weight"]), s, "bn3")
    if "downsample.0.weight" in s:
        x = norm(F.conv2d(x, s["downsample.0.weight"], stride=stride), s, "downsample.1")
    return a, x


def dsu(y, h, c, s):
    """Return (h, c) after one step of the released DSU."""

    def bottleneck(z, name):
        hidden = F.linear(z, s[f"lstm.{name}.0.seq.0.weight"], s[f"lstm.{name}.0.seq.0.bias"]).relu()
        return F.linear(hidden, s[f"lstm.{name}.0.seq.2.weight"], s[f"lstm.{name}.0.seq.2.bias"])

    i, f, g = (bottleneck(y, "w_ih") + bottleneck(h, "w_hh")).chunk(3, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return c.sigmoid(), c


def per_channel(filters, z):
    return F.conv1d(z[:, None], filters, padding=filters.shape[-1] // 2)[:, 0]


def depthwise(x, v):
    return F.conv2d(x, v, padding=1, groups=x.shape[1])


def of_heads(scores, C):
    """Return the scores of heads [..., G] as factors of channels [..., C, 1, 1]."""
    return scores.repeat_interleave(C // scores.shape[-1], -1)[..., None, None]


def blocks(s):
    """Yield the block and the attention of each layer of a stage."""
    for n in range(count(s, r"layers\.(\d+)")):
        yield sub(s, f"layers.{n}."), sub(s, f"attention.{n}.")


def context(x, state, s):
    """Return the state after a layer's map."""
    y = x.mean((2, 3))
    return dsu(y, *(state or (torch.zeros_like(y), torch.zeros_like(y))), s)


def light_stage(x, s, inner, conv):
    state = None
    for of_block, own in blocks(s):
        a, identity = block(x, of_block)
        x = (a + identity).relu()
        state = context(x, state, s)
        d, _ = dsu(identity.mean((2, 3)), *state, s)
        before = identity * d[..., None, None] + depthwise(identity, s[f"{conv}.weight"])
        filters = sub(own, f"layer_attention.{inner}.")
        q, k = (per_channel(filters[f"W{name}.weight"], x.mean((2, 3))).unflatten(1, (-1, 32)) for name in "qk")
        gate = ((q * k).sum(-1) / 32**0.5).sigmoid()
        o = of_heads(gate, x.shape[1]) * depthwise(x, filters["Wv.weight"])
        o = o + own["layer_attention.lambda_t"] * before
        x = x + norm(o, own, "bn_layer_attention")
    return x


def base_stage(x, s):
    keys, values, state = [], [], None
    for of_block, own in blocks(s):
        a, identity = block(x, of_block)
        x = (a + identity).relu()
        state = context(x, state, s)
        keys = [k * dsu(k, *state, s)[0] for k in keys]
        values = [v * dsu(v.mean((2, 3)), *state, s)[0][..., None, None] for v in values]
        filters = sub(own, "layer_attention.layer_attention.")
        q, k = (per_channel(filters[f"W{name}.weight"], x.mean((2, 3))) for name in "qk")
        keys.append(k)
        values.append(depthwise(x, filters["Wv.weight"]))
        scores = torch.stack([(q * k).unflatten(1, (-1, 32)).sum(-1) for k in keys]) / 32**0.5
        o = (of_heads(scores.softmax(0), x.shape[1]) * torch.stack(values)).sum(0)
        x = x + norm(o, own, "bn_layer_attention").relu()
    return x


def network(state, x):
    """Return the scores of images [B, 3, H, W]."""
    imagenet = "layer1.extict.weight" in state
    x = norm(F.conv2d(x, state["conv1.weight"], stride=1 + imagenet, padding=1 + 2 * imagenet), state, "bn1").relu()
    if imagenet:
        x = F.max_pool2d(x, 3, 2, padding=1)
        for i in range(1, 5):
            x = light_stage(x, sub(state, f"layer{i}."), "mrla", "extict")
    else:
        for i in range(3):
            s = sub(state, f"stages.{i}.")
            x = light_stage(x, s, "layer_attention", "excite") if "excite.weight" in s else base_stage(x, s)
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


# ---- MRLA ----


def strided_block(x, s, stride, groups=1):
    """Return the branch and the shortcut of a bottleneck of that stride."""
    a = norm(F.conv2d(x, s["conv1.weight"]), s, "bn1").relu()
    a = norm(F.conv2d(a, s["conv2.weight"], stride=stride, padding=1, groups=groups), s, "bn2").relu()
    a = norm(F.conv2d(a, s["conv3.weight"]), s, "bn3")
    if "downsample.0.weight" in s:
        x = norm(F.conv2d(x, s["downsample.0.weight"], stride=stride), s, "downsample.1")
    return a, x


def mrla(state, x):
    """Return the scores of MRLA's ResNets for ImageNet."""
    base = "conv1.6.weight" in state
    if base:
        for i, stride in ((0, 2), (3, 1)):
            x = F.conv2d(x, state[f"conv1.{i}.weight"], stride=stride, padding=1)
            x = norm(x, state, f"conv1.{i + 1}").relu()
        x = F.conv2d(x, state["conv1.6.weight"], padding=1)
    else:
        x = F.conv2d(x, state["conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(norm(x, state, "bn1").relu(), 3, 2, padding=1)
    prefix = "stages." if base else "layer"
    for i in range(count(state, rf"{re.escape(prefix)}(\d+)\.")):
        stage = sub(state, f"{prefix}{i if base else i + 1}.")
        keys, values = [], []
        for t in range(count(stage, r"(\d+)\.")):
            s = sub(stage, f"{t}.")
            a, identity = strided_block(x, s, 2 if t == 0 and i > 0 else 1)
            x = (a + identity).relu()
            D = 16 if base else 32
            q, k = (per_channel(s[f"mrla.mrla.W{name}.weight"], x.mean((2, 3))) for name in "qk")
            keys.append(k)
            values.append(depthwise(x, s["mrla.mrla.Wv.weight"]))
            if base:
                scores = torch.stack([(q * k).unflatten(1, (-1, D)).sum(-1) for k in keys]) / D**0.5
                o = (of_heads(scores.softmax(0), x.shape[1]) * torch.stack(values)).sum(0)
                x = x + norm(o, s, "bn_mrla").relu()
            else:
                gate = ((q * k).unflatten(1, (-1, D)).sum(-1) / D**0.5).sigmoid()
                o = of_heads(gate, x.shape[1]) * values[-1] + s["mrla.lambda_t"] * identity
                x = x + norm(o, s, "bn_mrla")
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


# ---- DIANet ----


def vit(state, x, patch, heads, attention_heads):
    """Return the scores of MRLA on DeiT: light, or base in stages of four blocks, as what is in the state says."""

    def ln(x, s, name):
        return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], eps=1e-6)

    def linear(x, s, name):
        return F.linear(x, s[f"{name}.weight"], s[f"{name}.bias"])

    def filtered(s, x, name):
        q = F.conv1d(x.mean((2, 3))[:, None], s[f"mrla.mrla.W{name}.weight"], padding="same")[:, 0]
        return q.unflatten(1, (attention_heads, -1))

    x = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch)
    side, x = x.shape[-1], x.flatten(2).mT
    x = torch.cat([state["cls_token"].expand(len(x), 1, -1), x], 1) + state["pos_embed"]
    for t in range(count(state, r"blocks\.(\d+)\.")):
        s, before = sub(state, f"blocks.{t}."), x
        q, k, v = linear(ln(x, s, "norm1"), s, "attn.qkv").chunk(3, -1)
        q, k, v = (z.unflatten(-1, (heads, -1)).transpose(1, 2) for z in (q, k, v))
        shares = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)
        x = x + linear((shares @ v).transpose(1, 2).flatten(2), s, "attn.proj")
        x = x + linear(F.gelu(linear(ln(x, s, "norm2"), s, "mlp.fc1")), s, "mlp.fc2")

        if "mrla.mrla.Wq.weight" not in s:
            continue
        own = ln(x, s, "mrla.normx")
        pixels = own[:, 1:].mT.unflatten(2, (side, side))
        q, k = filtered(s, pixels, "q"), filtered(s, pixels, "k")
        v = depthwise(pixels, s["mrla.mrla.Wv.weight"])
        if "mrla.lambda_t" in s:
            gate = ((q * k).sum(-1) / q.shape[-1] ** 0.5).sigmoid()
            o = of_heads(gate, x.shape[2]) * F.gelu(v)
            tokens = o.flatten(2).mT + s["mrla.lambda_t"] * ln(before, s, "mrla.normo")[:, 1:]
        else:
            if t % 4 == 0:
                keys, values = [], []
            keys.append(k), values.append(v)
            scores = torch.stack([(q * k).sum(-1) for k in keys]) / q.shape[-1] ** 0.5
            shares = of_heads(scores.softmax(0), x.shape[2])
            tokens = sum(share * value for share, value in zip(shares, values)).flatten(2).mT
        x = x + torch.cat([own[:, :1], tokens], 1)
    return linear(ln(x, state, "norm")[:, 0], state, "head")


def dia_step(y, h, c, s):
    """Return (h, c) after one step of DIANet's cell, whose gates are i, f, g, o."""

    def bottleneck(z, name):
        hidden = F.linear(z, s[f"lstm.{name}.0.seq.0.weight"], s[f"lstm.{name}.0.seq.0.bias"]).relu()
        return F.linear(hidden, s[f"lstm.{name}.0.seq.2.weight"], s[f"lstm.{name}.0.seq.2.bias"])

    i, f, g, o = (bottleneck(y, "w_ih") + bottleneck(h, "w_hh")).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.sigmoid(), c


def pre_block(x, s, stride):
    a = F.conv2d(norm(x, s, "bn1").relu(), s["conv1.weight"])
    a = F.conv2d(norm(a, s, "bn2").relu(), s["conv2.weight"], stride=stride, padding=1)
    a = norm(F.conv2d(norm(a, s, "bn3").relu(), s["conv3.weight"]), s, "bn_additional")
    return a, F.conv2d(x, s["downsample.0.weight"], stride=stride) if "downsample.0.weight" in s else x


def wide_block(x, s, stride):
    before = norm(x, s, "bn1").relu()
    a = norm(F.conv2d(before, s["conv1.weight"], stride=stride, padding=1), s, "bn2").relu()
    a = norm(F.conv2d(a, s["conv2.weight"], padding=1), s, "bn_additional")
    return a, F.conv2d(before, s["convShortcut.weight"], stride=stride) if "convShortcut.weight" in s else x


def resnext_block(x, s, stride):
    names = {"conv_reduce": "conv1", "bn_reduce": "bn1", "conv_conv": "conv2", "bn": "bn2", "conv_expand": "conv3"}
    names |= {"bn_expand": "bn3", "shortcut.shortcut_conv": "downsample.0", "shortcut.shortcut_bn": "downsample.1"}
    renamed = {f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value for key, value in s.items()}
    return strided_block(x, renamed, stride, groups=8)


def dianet(state, x):
    """Return the scores of DIANet's networks for CIFAR."""
    kinds = {"stage_1.": resnext_block, "block1.": wide_block}
    prefix, block_of = next(
        (p, f) for p, f in (*kinds.items(), ("layer1.", None)) if any(k.startswith(p) for k in state)
    )
    ends_in_norm = "bn.weight" in state or block_of is wide_block
    if block_of is None:
        block_of = pre_block if ends_in_norm else strided_block
    x = F.conv2d(x, state["conv_1_3x3.weight" if block_of is resnext_block else "conv1.weight"], padding=1)
    if not ends_in_norm:
        x = norm(x, state, "bn_1" if block_of is resnext_block else "bn1").relu()
    for i in range(count(state, rf"{prefix[:-2]}(\d)\.")):
        stage, memory = sub(state, f"{prefix[:-2]}{i + 1}."), None
        for t in range(count(stage, r"ModuleList\.(\d+)\.")):
            a, identity = block_of(x, sub(stage, f"ModuleList.{t}."), 2 if t == 0 and i > 0 else 1)
            y = a.mean((2, 3))
            memory = dia_step(y, *(memory or (torch.zeros_like(y), torch.zeros_like(y))), stage)
            x = identity + a * memory[0][..., None, None]
            x = x if ends_in_norm else x.relu()
    if ends_in_norm:
        x = norm(x, state, "bn" if block_of is pre_block else "bn1").relu()
    last = "classifier" if block_of is resnext_block else "fc"
    return F.linear(x.mean((2, 3)), state[f"{last}.weight"], state[f"{last}.bias"])
