"""Triton's interpreter takes a second for what a GPU does in microseconds: it gets fewer cases, and less overhead."""

import numpy as np

from dla_kernels.backends import INTERPRETED


def interpreted(backend):
    return backend.name == "triton" and INTERPRETED


def some(backend, many, n):
    """Return all of them; where the interpreter runs them, n from first to last, or the last alone if n is 1."""
    many = list(many)
    if not interpreted(backend) or len(many) <= n:
        return many
    return [many[-1 - i * (len(many) - 1) // max(n - 1, 1)] for i in reversed(range(n))]


def patch():
    patch_once_a_launch()
    remember_shapes()
    round_to_nearest()
    sum_each_row_alike()


def patch_once_a_launch():
    """Replace the functions of triton.language once for each module in a launch. The interpreter replaces them anew
    whenever one function of a kernel calls another, which is half of its time."""
    from triton.runtime import interpreter

    launch, patch = interpreter.GridExecutor.__call__, interpreter._patch_lang
    patched = []  # the modules patched in each launch under way, by the id of their globals

    def launch_once(self, *args, **kwargs):
        patched.append(set())
        try:
            return launch(self, *args, **kwargs)
        finally:
            patched.pop()

    def patch_once(function):
        module = id(function.__globals__)
        if patched and module in patched[-1]:
            return None
        if patched:
            patched[-1].add(module)
        return patch(function)

    interpreter.GridExecutor.__call__, interpreter._patch_lang = launch_once, patch_once


def remember_shapes():
    """Make once for each shape what the interpreter makes anew for every tensor of that shape."""
    from triton.language import core

    def once_for_each(kind, key_of, fields, rest):
        original, made = kind.__init__, {}

        def init(self, *args):
            key = key_of(*args)
            if key not in made:
                original(self, *args)
                made[key] = [getattr(self, name) for name in fields]
                return
            for name, value in zip(fields, made[key]):
                setattr(self, name, value)
            rest(self, *args)

        kind.__init__ = init

    def ints(shape):
        return tuple(n.value if isinstance(n, core.constexpr) else n for n in shape)

    def rest_of_tensor(self, handle, type):
        self.handle, self.type, self.dtype = handle, type, type.scalar

    def rest_of_type(self, element_ty, shape):
        self.element_ty = element_ty

    def shape_of(handle, type):
        return ints(type.shape) if type.is_block() else ()

    def name_and_shape(element_ty, shape):
        return element_ty.name, ints(shape)

    once_for_each(core.tensor, shape_of, ("shape", "numel"), rest_of_tensor)
    once_for_each(core.block_type, name_and_shape, ("shape", "numel", "name"), rest_of_type)


def round_to_nearest():
    """Round conversions to bfloat16 to nearest, ties to even, as every compiler does; the interpreter cuts bits off."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def convert_float(input, input_dtype, output_dtype, rounding_mode):
        if (input_dtype, output_dtype) == (tl.bfloat16, tl.float32):
            return input.astype(np.uint32) << np.uint32(16)
        if (input_dtype, output_dtype) != (tl.float32, tl.bfloat16):
            return convert(input, input_dtype, output_dtype, rounding_mode)
        bits = np.ascontiguousarray(input).view(np.uint32)
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        rounded = (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
        quiet_nan = (bits >> np.uint32(16)) | np.uint32(0x40)
        return np.where(np.isnan(input), quiet_nan, rounded).astype(np.uint16)

    interpreter._convert_float = convert_float


def sum_each_row_alike():
    """Multiply matrices by einsum. The interpreter does by numpy's BLAS, which on some processors sums a row in another
    order at another place of the matrix; a compiled product does not, and neither does einsum."""
    from triton.runtime import interpreter

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        product = np.einsum("mk,kn->mn", a.data, b.data, dtype=d.data.dtype)
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = create_dot
