# KLA_MPI: AUTO uses an MPI where there is one, ON demands it, OFF does without: ranks then meet over TCP.
set(KLA_MPI AUTO CACHE STRING "ranks over MPI: AUTO, ON or OFF")
set_property(CACHE KLA_MPI PROPERTY STRINGS AUTO ON OFF)

set(KLA_HAVE_MPI OFF)
if(NOT KLA_MPI MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "KLA_MPI is '${KLA_MPI}'; it must be AUTO, ON or OFF")
elseif(NOT KLA_MPI STREQUAL "OFF")
  set(MPI_CXX_SKIP_MPICXX ON)  # the C interface is all we call
  find_package(MPI QUIET COMPONENTS CXX)
  set(KLA_HAVE_MPI ${MPI_CXX_FOUND})
  if(KLA_MPI STREQUAL "ON" AND NOT KLA_HAVE_MPI)
    message(FATAL_ERROR "KLA_MPI=ON, but CMake finds no MPI. Install libopenmpi-dev, or configure with KLA_MPI=OFF.")
  endif()
endif()
