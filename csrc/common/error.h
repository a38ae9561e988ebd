// The two kinds of error that native code raises; bindings turn them into vlakern.errors classes.
#pragma once

#include <stdexcept>
#include <string>

namespace vlakern {

// vlakern.errors.InputError: an argument of the wrong shape, dtype or value.
struct InputError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// vlakern.errors.Unsupported: something asked for by name that this machine or build lacks.
struct UnsupportedError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace vlakern
