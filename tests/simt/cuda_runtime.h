// Lets the host compiler compile the .cu files of kernels/cuda/: what they use of CUDA, for the
// device `simt`. README.md says what that proves.
#pragma once

#include "tests/simt/bfloat16.h"
#include "tests/simt/device_math.h"
#include "tests/simt/host_api.h"
#include "tests/simt/launch.h"
#include "tests/simt/types.h"
#include "tests/simt/warp.h"
