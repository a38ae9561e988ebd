// Python's (pointer, dtype name, shape, strides) as a Tensor, and errors as vlakern.errors classes.
#pragma once

#include <nanobind/nanobind.h>

#include "common/error.h"
#include "common/tensor.h"

namespace nanobind::detail {

template <>
struct type_caster<vlakern::Tensor> {
  NB_TYPE_CASTER(vlakern::Tensor, const_name("tuple[int, str, tuple[int, ...], tuple[int, ...]]"))

  bool from_python(handle source, uint8_t, cleanup_list*) noexcept {
    if (!PyTuple_Check(source.ptr()) || PyTuple_Size(source.ptr()) != 4) return false;
    const handle parts[] = {item(source, 0), item(source, 1), item(source, 2), item(source, 3)};
    if (!PyTuple_Check(parts[2].ptr()) || !PyTuple_Check(parts[3].ptr())) return false;
    const Py_ssize_t rank = PyTuple_Size(parts[2].ptr());
    if (rank > vlakern::kMaxRank || rank != PyTuple_Size(parts[3].ptr())) return false;
    value.rank = static_cast<int>(rank);
    value.data = PyLong_AsSize_t(parts[0].ptr());
    for (int i = 0; i < value.rank; ++i) {
      value.shape[i] = PyLong_AsLongLong(item(parts[2], i).ptr());
      value.stride[i] = PyLong_AsLongLong(item(parts[3], i).ptr());
    }
    return !failed() && read_dtype(parts[1]);
  }

 private:
  static handle item(handle tuple, Py_ssize_t i) { return PyTuple_GetItem(tuple.ptr(), i); }

  static bool failed() {
    if (PyErr_Occurred() == nullptr) return false;
    PyErr_Clear();  // nanobind answers with the TypeError that lists the expected arguments
    return true;
  }

  bool read_dtype(handle name) noexcept {
    const char* text = PyUnicode_AsUTF8AndSize(name.ptr(), nullptr);
    if (text == nullptr) return !failed();
    try {
      value.dtype = vlakern::dtype_from_name(text);
    } catch (const vlakern::InputError&) {
      return false;
    }
    return true;
  }
};

}  // namespace nanobind::detail

namespace vlakern {

inline void raise_as(const char* name, const char* message) {
  PyObject* module = PyImport_ImportModule("vlakern.errors");
  PyObject* type = module == nullptr ? nullptr : PyObject_GetAttrString(module, name);
  if (type != nullptr) PyErr_SetString(type, message);
  Py_XDECREF(type);
  Py_XDECREF(module);
}

inline void register_errors() {
  nanobind::register_exception_translator([](const std::exception_ptr& error, void*) {
    try {
      std::rethrow_exception(error);
    } catch (const InputError& e) {
      raise_as("InputError", e.what());
    } catch (const UnsupportedError& e) {
      raise_as("Unsupported", e.what());
    }
  });
}

}  // namespace vlakern
