# Headers, static libraries and a package file, for find_package(vlakern): from `cmake --install`, and
# inside the wheel, whose build has compiled the kernels anyway.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)
set(VLAKERN_PREFIX "")
if(SKBUILD)
  set(VLAKERN_PREFIX vlakern/cpp/)
endif()
set(VLAKERN_LIBRARIES_AT ${VLAKERN_PREFIX}lib)
set(VLAKERN_PACKAGE_AT ${VLAKERN_LIBRARIES_AT}/cmake/vlakern)

foreach(part core engine executor)
  set_target_properties(vlakern_${part} PROPERTIES EXPORT_NAME ${part})
  target_include_directories(vlakern_${part} INTERFACE $<INSTALL_INTERFACE:${VLAKERN_PREFIX}include>)
  target_compile_features(vlakern_${part} INTERFACE cxx_std_17)
endforeach()
install(TARGETS vlakern_core vlakern_engine vlakern_executor EXPORT vlakern
  ARCHIVE DESTINATION ${VLAKERN_LIBRARIES_AT} COMPONENT cpp)
install(EXPORT vlakern NAMESPACE vlakern:: FILE vlakernTargets.cmake
  DESTINATION ${VLAKERN_PACKAGE_AT} COMPONENT cpp)
foreach(header
    common/error.h policy/policy.h executor/chunk_buffer.h executor/command_queue.h executor/core.h
    executor/counters.h executor/executor.h executor/limiter.h executor/realtime.h
    executor/shared_command.h executor/trace.h)
  get_filename_component(room ${header} DIRECTORY)
  install(FILES csrc/${header} DESTINATION ${VLAKERN_PREFIX}include/vlakern/${room} COMPONENT cpp)
endforeach()

configure_package_config_file(
  cmake/vlakernConfig.cmake.in ${PROJECT_BINARY_DIR}/vlakernConfig.cmake
  INSTALL_DESTINATION ${VLAKERN_PACKAGE_AT})
write_basic_package_version_file(
  ${PROJECT_BINARY_DIR}/vlakernConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES
  ${PROJECT_BINARY_DIR}/vlakernConfig.cmake ${PROJECT_BINARY_DIR}/vlakernConfigVersion.cmake
  DESTINATION ${VLAKERN_PACKAGE_AT} COMPONENT cpp)
