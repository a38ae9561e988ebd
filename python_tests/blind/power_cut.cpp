// Records what a process does to the files of one folder, so that a test can replay a power cut.
//
// Preloaded with LD_PRELOAD. Every change of a regular file below $POWER_CUT_FOLDER is appended to
// $POWER_CUT_TRACE before it happens, every sync after it has succeeded:
//   kind (1 byte) · path length (4) · path · number (8) · content length (4) · content
// with the kinds W(rite at offset), T(runcate to size), C(reate), U(nlink), S(ync of a file or a
// folder) and A(cknowledged: a write to descriptor 1).

#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

namespace {

template <typename F>
F Real(const char* name) {
  return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

using WriteFn = ssize_t (*)(int, const void*, size_t);

std::recursive_mutex g_turn;

void Put(std::string* out, const void* data, size_t size) {
  out->append(static_cast<const char*>(data), size);
}

void Record(char kind, const std::string& path, uint64_t number, const void* data, size_t size) {
  static const int trace = Real<int (*)(const char*, int, ...)>("open")(
      getenv("POWER_CUT_TRACE"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  std::string out(1, kind);
  const uint32_t length = static_cast<uint32_t>(path.size());
  const uint32_t bytes = static_cast<uint32_t>(size);
  Put(&out, &length, sizeof(length));
  out += path;
  Put(&out, &number, sizeof(number));
  Put(&out, &bytes, sizeof(bytes));
  if (size > 0) Put(&out, data, size);
  if (Real<WriteFn>("write")(trace, out.data(), out.size()) != static_cast<ssize_t>(out.size())) {
    abort();
  }
}

// The path inside the watched folder ("." for itself), or "" for anything else.
std::string Inside(const std::string& path) {
  static const std::string folder = getenv("POWER_CUT_FOLDER");
  if (path == folder) return ".";
  if (path.compare(0, folder.size() + 1, folder + "/") != 0) return "";
  return path.substr(folder.size() + 1);
}

std::string OfDescriptor(int descriptor) {
  char name[64], target[PATH_MAX];
  snprintf(name, sizeof(name), "/proc/self/fd/%d", descriptor);
  const ssize_t size = readlink(name, target, sizeof(target));
  return size < 0 ? "" : Inside(std::string(target, static_cast<size_t>(size)));
}

std::string OfName(const char* name) {
  if (name[0] == '/') return Inside(name);
  char here[PATH_MAX];
  if (getcwd(here, sizeof(here)) == nullptr) return "";
  return Inside(std::string(here) + "/" + name);
}

int Open(const char* symbol, const char* name, int flags, mode_t mode) {
  std::lock_guard<std::recursive_mutex> turn(g_turn);
  const std::string path = OfName(name);
  struct stat found;
  const bool made = (flags & O_CREAT) != 0 && !path.empty() && stat(name, &found) != 0;
  const int descriptor = Real<int (*)(const char*, int, ...)>(symbol)(name, flags, mode);
  if (descriptor >= 0 && made) Record('C', path, 0, nullptr, 0);
  if (descriptor >= 0 && (flags & O_TRUNC) != 0 && !path.empty()) {
    Record('T', path, 0, nullptr, 0);
  }
  return descriptor;
}

int Synced(const char* symbol, int descriptor) {
  std::lock_guard<std::recursive_mutex> turn(g_turn);
  const int code = Real<int (*)(int)>(symbol)(descriptor);
  const std::string path = OfDescriptor(descriptor);
  if (code == 0 && !path.empty()) Record('S', path, 0, nullptr, 0);
  return code;
}

ssize_t WriteAt(const char* symbol, int descriptor, const void* data, size_t size, off_t offset) {
  std::lock_guard<std::recursive_mutex> turn(g_turn);
  const std::string path = OfDescriptor(descriptor);
  if (!path.empty()) Record('W', path, static_cast<uint64_t>(offset), data, size);
  return Real<ssize_t (*)(int, const void*, size_t, off_t)>(symbol)(descriptor, data, size, offset);
}

int Truncated(const char* symbol, int descriptor, off_t size) {
  std::lock_guard<std::recursive_mutex> turn(g_turn);
  const std::string path = OfDescriptor(descriptor);
  if (!path.empty()) Record('T', path, static_cast<uint64_t>(size), nullptr, 0);
  return Real<int (*)(int, off_t)>(symbol)(descriptor, size);
}

}  // namespace

extern "C" {

int open(const char* name, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  return Open("open", name, flags, mode);
}

int open64(const char* name, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  return Open("open64", name, flags, mode);
}

ssize_t write(int descriptor, const void* data, size_t size) {
  std::lock_guard<std::recursive_mutex> turn(g_turn);
  if (descriptor == 1) Record('A', "", 0, data, size);
  const std::string path = OfDescriptor(descriptor);
  if (!path.empty()) {
    const off_t offset = lseek(descriptor, 0, SEEK_CUR);
    Record('W', path, static_cast<uint64_t>(offset), data, size);
  }
  return Real<WriteFn>("write")(descriptor, data, size);
}

ssize_t pwrite(int descriptor, const void* data, size_t size, off_t offset) {
  return WriteAt("pwrite", descriptor, data, size, offset);
}

ssize_t pwrite64(int descriptor, const void* data, size_t size, off64_t offset) {
  return WriteAt("pwrite64", descriptor, data, size, offset);
}

int ftruncate(int descriptor, off_t size) { return Truncated("ftruncate", descriptor, size); }

int ftruncate64(int descriptor, off64_t size) { return Truncated("ftruncate64", descriptor, size); }

int fsync(int descriptor) { return Synced("fsync", descriptor); }

int fdatasync(int descriptor) { return Synced("fdatasync", descriptor); }

int unlink(const char* name) {
  std::lock_guard<std::recursive_mutex> turn(g_turn);
  const std::string path = OfName(name);
  if (!path.empty()) Record('U', path, 0, nullptr, 0);
  return Real<int (*)(const char*)>("unlink")(name);
}

}  // extern "C"
