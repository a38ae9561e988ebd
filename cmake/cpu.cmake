# An op that is PER_ISA has a translation unit per instruction set; a set is built where the compiler
# knows its flags.
include(CheckCXXCompilerFlag)

set(VLAKERN_ISAS scalar)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(VLAKERN_FLAGS_avx2 -mavx2 -mfma -mf16c)
  # GCC 12 warns about the undefined vectors in its own AVX-512 header.
  set(VLAKERN_FLAGS_avx512 ${VLAKERN_FLAGS_avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq
    -Wno-uninitialized -Wno-maybe-uninitialized)
  # Every processor with the bfloat16 instructions has the int8 ones (VNNI).
  set(VLAKERN_FLAGS_avx512bf16 ${VLAKERN_FLAGS_avx512} -mavx512bf16 -mavx512vnni)
  foreach(isa avx2 avx512 avx512bf16)
    string(REPLACE ";" " " flags "${VLAKERN_FLAGS_${isa}}")
    check_cxx_compiler_flag("${flags}" VLAKERN_COMPILES_${isa})
    if(VLAKERN_COMPILES_${isa})
      list(APPEND VLAKERN_ISAS ${isa})
    endif()
  endforeach()
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  list(APPEND VLAKERN_ISAS neon)
endif()

set(VLAKERN_DEFINE_avx512bf16 VLAKERN_HAS_AVX512_BF16)
set(VLAKERN_DEFINE_avx512 VLAKERN_HAS_AVX512)
set(VLAKERN_DEFINE_avx2 VLAKERN_HAS_AVX2)
set(VLAKERN_DEFINE_neon VLAKERN_HAS_NEON)
foreach(isa ${VLAKERN_ISAS})
  if(VLAKERN_DEFINE_${isa})
    target_compile_definitions(vlakern_options INTERFACE ${VLAKERN_DEFINE_${isa}})
  endif()
endforeach()

function(vlakern_cpu_op target op)
  target_sources(${target} PRIVATE csrc/${op}/${op}_params.cpp csrc/${op}/${op}_cpu.cpp)
  if(NOT "PER_ISA" IN_LIST ARGN)
    return()
  endif()
  foreach(isa ${VLAKERN_ISAS})
    set(source csrc/${op}/${op}_${isa}.cpp)
    target_sources(${target} PRIVATE ${source})
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${VLAKERN_FLAGS_${isa}}")
  endforeach()
endfunction()
