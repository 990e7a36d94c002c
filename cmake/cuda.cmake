# KLA_CUDA: AUTO uses a CUDA toolkit and a visible GPU where both are there, ON demands them, OFF does without.
# This version has no CUDA backend, so AUTO and OFF build the CPU program and ON is refused.
set(KLA_CUDA AUTO CACHE STRING "CUDA backend: AUTO (a toolkit and a visible GPU), ON or OFF")
set_property(CACHE KLA_CUDA PROPERTY STRINGS AUTO ON OFF)
if(NOT KLA_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "KLA_CUDA is '${KLA_CUDA}'; it must be AUTO, ON or OFF")
elseif(KLA_CUDA STREQUAL "ON")
  message(FATAL_ERROR "KLA_CUDA=ON: this version of kla has no CUDA backend. Configure with KLA_CUDA=AUTO or OFF "
                      "to build the CPU program.")
endif()
