// Scalar sigmoid, tanh and relu. A SIMD type joins in by overloading the same names beside itself:
// the cells call them unqualified, so argument-dependent lookup finds the right one.
#pragma once

#include <cmath>

#include "../common.h"

namespace dla {

DLA_HOST_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + ::expf(-x)); }
DLA_HOST_DEVICE double sigmoid(double x) { return 1.0 / (1.0 + ::exp(-x)); }
DLA_HOST_DEVICE float tanh(float x) { return ::tanhf(x); }
DLA_HOST_DEVICE double tanh(double x) { return ::tanh(x); }

DLA_HOST_DEVICE float exponential(float x) { return ::expf(x); }
DLA_HOST_DEVICE double exponential(double x) { return ::exp(x); }

// Written so that NaN passes through, as torch.relu does.
DLA_HOST_DEVICE float relu(float x) { return x < 0.0f ? 0.0f : x; }
DLA_HOST_DEVICE double relu(double x) { return x < 0.0 ? 0.0 : x; }
// d relu(x)/dx * dy, with slope 0 at x = 0; at NaN it passes dy, as torch does.
DLA_HOST_DEVICE float relu_grad(float x, float dy) { return x <= 0.0f ? 0.0f : dy; }
DLA_HOST_DEVICE double relu_grad(double x, double dy) { return x <= 0.0 ? 0.0 : dy; }

}  // namespace dla
