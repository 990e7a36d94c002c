# The CUDA backend. KLA_CUDA: AUTO builds it where both a toolkit and a visible GPU are there, ON wherever there is
# a toolkit (a cluster's login node), OFF never. The program starts and computes on the CPU without GPU and driver
# either way: nothing here links the driver, and NCCL is loaded when a run asks for it.
set(KLA_CUDA AUTO CACHE STRING "CUDA backend: AUTO (a toolkit and a visible GPU), ON or OFF")
set_property(CACHE KLA_CUDA PROPERTY STRINGS AUTO ON OFF)

# The architectures of the GPUs that are here, else Hopper's. 90a is 9.0 with its products of warpgroups.
set(archs 90a)
execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
                OUTPUT_VARIABLE capabilities RESULT_VARIABLE failed ERROR_QUIET)
if(NOT failed AND capabilities MATCHES "^[0-9]+\\.[0-9]+")
  string(REGEX MATCHALL "[0-9]+\\.[0-9]+" archs "${capabilities}")
  list(REMOVE_DUPLICATES archs)
  list(TRANSFORM archs REPLACE "\\." "")
  list(TRANSFORM archs REPLACE "^90$" 90a)
endif()
set(KLA_CUDA_ARCH "${archs}" CACHE STRING "GPU architectures to compile for, such as 90a or \"80;90a\"")

set(KLA_HAVE_CUDA OFF)
set(KLA_CUDA_STATE "KLA_CUDA=OFF")  # for the summary
if(NOT KLA_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "KLA_CUDA is '${KLA_CUDA}'; it must be AUTO, ON or OFF")
elseif(NOT KLA_CUDA STREQUAL "OFF")
  find_package(CUDAToolkit QUIET)
  find_program(KLA_NVCC nvcc HINTS ${CUDAToolkit_BIN_DIR} /usr/local/cuda/bin)
  file(GLOB KLA_VISIBLE_GPUS /dev/nvidia[0-9]*)
  if(NOT CUDAToolkit_FOUND OR NOT KLA_NVCC)
    set(KLA_CUDA_STATE "no CUDA toolkit found")
  elseif(KLA_CUDA STREQUAL "AUTO" AND NOT KLA_VISIBLE_GPUS)
    set(KLA_CUDA_STATE "toolkit ${CUDAToolkit_VERSION}, but no GPU here; KLA_CUDA=ON builds it all the same")
  else()
    set(KLA_HAVE_CUDA ON)
  endif()
  if(KLA_CUDA STREQUAL "ON" AND NOT KLA_HAVE_CUDA)
    message(FATAL_ERROR "KLA_CUDA=ON: ${KLA_CUDA_STATE}. Put nvcc on the PATH or set CUDAToolkit_ROOT, "
                        "or configure with KLA_CUDA=OFF to build the CPU program.")
  endif()
endif()

if(KLA_HAVE_CUDA)
  set(CMAKE_CUDA_COMPILER ${KLA_NVCC} CACHE FILEPATH "")
  set(CMAKE_CUDA_ARCHITECTURES ${KLA_CUDA_ARCH})
  set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
  set(CMAKE_CUDA_FLAGS_RELEASE "-O3")
  enable_language(CUDA)
  if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc 13 has it
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
  find_path(KLA_NCCL_INCLUDE nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
  find_path(KLA_CUDNN_INCLUDE cudnn.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
  find_library(KLA_CUDNN_LIBRARY cudnn HINTS ${CUDAToolkit_LIBRARY_DIR})
endif()

# kla_cuda_layer(): kernels/cuda as one OBJECT library, the kernels by nvcc, what only calls libraries by the host's
# compiler. tools/kernel_report.py keeps what ptxas says of each kernel.
function(kla_cuda_layer)
  if(NOT KLA_HAVE_CUDA)
    return()
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cu ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cpp)
  add_library(kla_kernels_cuda OBJECT ${sources})
  target_link_libraries(kla_kernels_cuda PUBLIC kla_flags CUDA::cudart CUDA::cublasLt ${CMAKE_DL_LIBS})
  target_compile_options(kla_kernels_cuda PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-fno-math-errno -Xptxas=-v --expt-relaxed-constexpr>
    $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${KLA_WERROR}>>:-Werror=all-warnings -Xcompiler=-Werror>)
  string(REPLACE ";" ", sm_" arch_names "${KLA_CUDA_ARCH}")
  target_compile_definitions(kla_kernels_cuda PRIVATE KLA_CUDA_ARCH="${arch_names}")
  if(KLA_CUDA_ARCH MATCHES "90a")
    target_compile_definitions(kla_kernels_cuda PRIVATE KLA_SM90A)  # code for warpgroups is in the program
  endif()
  find_program(KLA_PYTHON python3)  # for the report; the build goes without
  if(KLA_PYTHON)
    set_target_properties(kla_kernels_cuda PROPERTIES CUDA_COMPILER_LAUNCHER
      "${KLA_PYTHON};${CMAKE_SOURCE_DIR}/tools/kernel_report.py;--compile;${CMAKE_CUDA_COMPILER_LAUNCHER}")
  endif()
  if(KLA_CUDNN_INCLUDE AND KLA_CUDNN_LIBRARY)
    target_link_libraries(kla_kernels_cuda PUBLIC ${KLA_CUDNN_LIBRARY})
    target_include_directories(kla_kernels_cuda SYSTEM PRIVATE ${KLA_CUDNN_INCLUDE})
  endif()
  set(KLA_LAYERS ${KLA_LAYERS} kla_kernels_cuda CACHE INTERNAL "")
endfunction()
