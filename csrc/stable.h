// torch's stable ABI as of 2.10: what is included here is all that a binary for any later torch may use.
// Defined here and not for every source, since the pybind11 that comes with torch 2.11 refuses to be compiled
// with it.
#pragma once

#define TORCH_TARGET_VERSION 0x020a000000000000

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
