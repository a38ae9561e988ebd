# vlakern._native_cuda: built for the named targets, else for the GPUs of this machine, else not.
set(archs "${VLAKERN_CUDA_ARCHS}")
if(NOT archs)
  execute_process(
    COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    RESULT_VARIABLE status OUTPUT_VARIABLE archs ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT status EQUAL 0)
    set(archs "")
  endif()
  string(REGEX MATCHALL "[0-9]+\\.[0-9]+" archs "${archs}")
  string(REPLACE "." "" archs "${archs}")
  list(REMOVE_DUPLICATES archs)
endif()
if(NOT archs)
  message(STATUS "vlakern: no GPU visible and VLAKERN_CUDA_ARCHS is empty: no CUDA kernels")
  return()
endif()

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(VLAKERN_CUDA_ARCHS)
    message(FATAL_ERROR "VLAKERN_CUDA_ARCHS is set, but no CUDA compiler was found; put nvcc on PATH")
  endif()
  message(STATUS "vlakern: a GPU is visible, but no CUDA compiler: no CUDA kernels")
  return()
endif()

list(TRANSFORM archs APPEND "-real" OUTPUT_VARIABLE CMAKE_CUDA_ARCHITECTURES)
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
add_library(vlakern_cuda STATIC
  csrc/ode_loop/ode_loop_cuda.cu
  csrc/ode_loop/ode_loop_params.cpp
  csrc/ode_step/ode_step_cuda.cu)
set_target_properties(vlakern_cuda PROPERTIES CUDA_VISIBILITY_PRESET hidden)
target_compile_options(vlakern_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--fmad=false>)
target_link_libraries(vlakern_cuda PUBLIC vlakern_core)

nanobind_add_module(_native_cuda NB_STATIC csrc/bindings_cuda.cpp)
set(VLAKERN_CUDA_ARCHS_BUILT ${archs})
target_link_libraries(_native_cuda PRIVATE vlakern_cuda)
install(TARGETS _native_cuda LIBRARY DESTINATION vlakern)
